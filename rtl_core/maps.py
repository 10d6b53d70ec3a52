"""Two-dimensional maps of words, each word with the numbers that say how far its place may be believed.

Every number about a map comes from the original space: cosines of the centred table, as it enters a language model. A
map is made of its own table alone and then only turned onto the first one: UMAP's own aligned maps of six tables of
3,000 words took 19 times as long and kept fewer neighbours (22.5 % against 23.5 % of ten), since each map is drawn
towards the others.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import cKDTree

from rtl_core.analysis.geometry import BLOCK, cosines_from, nearest, word_domains
from rtl_core.config import RECIPE, derive_seed, identity
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain import pretrain
from rtl_core.results import read_parquet
from rtl_core.storage import StudyError, atomic, file_stem, results_dir, say, unknown

METHODS = ("pca", "umap")
NEIGHBOURS = 10  # nearest words that a map is judged by; fewer on a map of few words
FEWEST = 7  # words of a map
NUMBERS = ("near", "trust", "recall", "purity", "purity_map", "moved")
COLUMNS = ("source", "word", "domain", "count", "x", "y", *NUMBERS, "method")
VERSION = 1  # raised by hand when a change of code changes maps


def pca_map(embeddings: Embeddings, words: Iterable[str] | pd.DataFrame) -> pd.DataFrame:
    """Returns a map of words on their first two principal components, a row a word: see `word_maps`.

    Raises: StudyError for fewer than seven words, or one without a vector.
    """
    frame = _words(words)
    for word in frame.index:
        embeddings.vector(word)  # which says what is near to a word that is missing
    name = str(embeddings.provenance.get("source", "table"))
    return word_maps({name: embeddings}, frame, "pca", control=False)


def word_maps(
    tables: dict[str, Embeddings],
    words: Iterable[str] | pd.DataFrame,
    method: str = "umap",
    seed: int = 0,
    *,
    n_neighbors: int = 15,
    control: bool = True,
) -> pd.DataFrame:
    """Returns maps of the same words under every table: a row a source and word, with `COLUMNS`.

    x, y: centred, at root mean square radius 1, and turned as near as can be to the first map; `moved`: how far from
    the word's place there. `near`: the number k of neighbours that the rest is about. `recall`: share of a word's k
    nearest in the original space that are its k nearest on the map. `trust`: 1 less a penalty for neighbours on the
    map that are far down the order in the space. `purity`, `purity_map`: share of the k nearest words with a domain
    that have the word's own, in the space and on the map; NaN for words without. The means over words are the map's
    numbers, see `quality`; a map is made of words that all tables have.

    `words`: with columns domain ("" for none) and count, or words only. `control`: beside the maps one of the first
    table with its rows dealt out among the words. `n_neighbors`: of UMAP, a word itself included.
    Source: McInnes et al. 2018 (UMAP); Venna and Kaski 2001 (trustworthiness); Schönemann 1966 (turning).
    Raises: StudyError for an unknown method, no table, fewer than seven words, or vectors that are all alike.
    """
    if method not in METHODS:
        raise unknown("kind of map", method, METHODS)
    if not tables or n_neighbors < 2:
        raise StudyError(
            f"a map needs a table and n_neighbors of 2 or more; found {len(tables)} and {n_neighbors}."
        )
    frame = _words(words)
    frame = frame[[all(word in table for table in tables.values()) for word in frame.index]]
    if len(frame) < FEWEST:
        raise StudyError(
            f"a map needs {FEWEST} words or more; found {len(frame)} with a vector in every table."
        )
    chosen = {source: _centred(source, table, frame.index) for source, table in tables.items()}
    if control:  # beside the first
        (name, first), *others = chosen.items()
        permuted = first.permuted(derive_seed(seed, "maps"))
        chosen = {name: first, f"permuted:{name}": permuted, **dict(others)}
    found, made = None, []
    for source, table in chosen.items():
        unit = table.normalised().table
        flat = _pca(unit) if method == "pca" else _umap(unit, n_neighbors, seed)
        flat = _turned(flat, found)
        found = flat if found is None else found
        moved = np.linalg.norm(flat - found, axis=1)
        numbers = _judged(unit, flat, frame["domain"].to_numpy())
        places = {"source": source, "x": flat[:, 0], "y": flat[:, 1], "moved": moved, "method": method}
        made.append(frame.reset_index().assign(**places, **numbers))
    return pd.concat(made, ignore_index=True)[list(COLUMNS)]


def quality(maps: pd.DataFrame) -> pd.DataFrame:
    """Returns the numbers of each map, their means over words: a row a source; `recall_chance`, of a random map.

    Raises: StudyError when words have lost the numbers that belong to their places.
    """
    if missing := [name for name in COLUMNS if name not in maps]:
        raise StudyError(
            f"a map is shown with its numbers only, and this one has lost {', '.join(missing)}. Make it with "
            "maps.word_maps or maps.pca_map, and choose rows of it, not columns."
        )
    groups = maps.groupby("source", sort=False)
    found = groups[list(NUMBERS)].mean().astype({"near": int})
    found.insert(0, "words", groups.size())
    found.insert(4, "recall_chance", found["near"] / (found["words"] - 1))
    return found


def common_words(corpus: Corpus, vocabulary: Vocabulary, n: int) -> pd.DataFrame:
    """Returns the `n` most frequent words with the domain that they belong to ("": none) and their count."""
    words = vocabulary.words[2 : n + 2]
    domains = word_domains(corpus, vocabulary)["domain"].reindex(words).fillna("")
    counts = np.array(vocabulary.counts[2 : n + 2])
    return pd.DataFrame({"domain": domains.to_numpy(), "count": counts}, pd.Index(words, name="word"))


def stored_maps(
    sources: tuple[str, ...],
    corpus: Corpus,
    n_words: int = 6000,
    *,
    dim: int = 128,
    method: str = "umap",
    seed: int = 0,
) -> pd.DataFrame:
    """Returns maps of a corpus's most frequent words under several sources: kept ones if there are, else new ones.

    UMAP gives other places on another machine, and tables take minutes to train: so places are kept among the
    results, the user's own and the committed ones, by what they were made from. See `word_maps`.
    """
    vocabulary = Vocabulary.build(corpus.split("train"), 10_000)
    settings = [list(sources), n_words, dim, method, seed, VERSION, RECIPE["pretrain"]]
    key = identity(*settings, corpus.fingerprint, vocabulary.fingerprint)
    name = f"{file_stem(corpus.name)}-{method}-{seed}-{key[:10]}.parquet"
    paths = [results_dir() / folder / name for folder in ("local/maps", "maps")]
    for path in paths:
        if path.exists():
            return read_parquet(path)
    say(f"making maps of {n_words:,} words under {', '.join(sources)}")
    tables = {s: pretrain(s, corpus, vocabulary, dim=dim, seed=seed).embeddings for s in sources}
    maps = word_maps(tables, common_words(corpus, vocabulary, n_words), method, seed)
    save_maps(maps, paths[0])
    return read_parquet(paths[0])


def save_maps(maps: pd.DataFrame, path: Path) -> None:
    """Writes maps as one parquet file, atomically; places and numbers to three digits: no figure shows more."""
    quality(maps)
    digits = {name: maps[name].round(3).astype("float32") for name in ("x", "y", *NUMBERS[1:])}
    texts = dict.fromkeys(("source", "word", "domain", "method"), "category")  # an integer each on disk
    with atomic(path) as temporary:
        maps.assign(**digits).astype(texts).to_parquet(temporary, compression="zstd", index=False)


# Of one table


def _words(words: Iterable[str] | pd.DataFrame) -> pd.DataFrame:
    """Returns words, each once, with a domain and a count."""
    if isinstance(words, pd.DataFrame):
        return words[~words.index.duplicated()][["domain", "count"]].rename_axis("word")
    index = pd.Index(dict.fromkeys(words), name="word", dtype="str")
    return pd.DataFrame({"domain": "", "count": 0}, index)


def _centred(source: str, table: Embeddings, words: pd.Index) -> Embeddings:
    """Returns the centred vectors of words. Raises: StudyError when no plane shows them."""
    found = Embeddings(words, table.centred().lookup(words)[0])
    if found.dim < 2 or np.ptp(found.normalised().table, axis=0).max() < 1e-6:
        raise StudyError(
            f"{source} cannot be mapped: its {len(found):,} vectors of {found.dim} dimensions are all alike, or on "
            "a line. Give a table of two dimensions or more in which words differ."
        )
    return found


def _pca(unit: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    return PCA(2, svd_solver="full").fit_transform(unit.astype(np.float64))


def _umap(unit: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """Returns UMAP's places. Exact neighbours, by one product, spare it an approximate search and its compiling."""
    n_neighbors = min(n_neighbors, len(unit) - 1)
    near, cosines = nearest(unit, n_neighbors - 1)
    itself = np.arange(len(unit))[:, None]
    known = np.hstack([itself, near]), np.hstack([0.0 * itself, 1 - cosines]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that new words cannot be added, and that importing TensorFlow failed
        import umap

        settings = {"n_neighbors": n_neighbors, "metric": "cosine", "init": "pca", "precomputed_knn": known}
        return umap.UMAP(**settings, random_state=seed, n_jobs=1).fit_transform(unit)


def _turned(flat: np.ndarray, first: np.ndarray | None) -> np.ndarray:
    """Returns places centred, at root mean square radius 1, and turned or mirrored onto those of the first map."""
    flat = flat - flat.mean(axis=0)
    flat = flat / np.sqrt(np.square(flat).sum(axis=1).mean())
    return flat if first is None else flat @ orthogonal_procrustes(flat, first)[0]


def _judged(unit: np.ndarray, flat: np.ndarray, domains: np.ndarray) -> dict:
    """Returns `NUMBERS` but `moved` of every word. Shapes: unit (n, D), flat (n, 2), domains (n,)."""
    n = len(unit)
    k = min(NEIGHBOURS, (n - 1) // 2)
    ranks = _ranks(unit, nearest_places(flat, k))
    trust = 1 - 2 / (k * (2 * n - 3 * k - 1)) * np.maximum(ranks - k, 0).sum(axis=1)
    found = {"near": k, "trust": trust, "recall": (ranks <= k).mean(axis=1)}
    labelled = np.flatnonzero(domains != "")
    found |= {name: np.full(n, np.nan) for name in ("purity", "purity_map")}
    if len(labelled) > k:
        own = domains[labelled]
        near = {"purity": nearest(unit[labelled], k)[0], "purity_map": nearest_places(flat[labelled], k)}
        for name, rows in near.items():
            found[name][labelled] = (own[rows] == own[:, None]).mean(axis=1)
    return found


def nearest_places(flat: np.ndarray, k: int) -> np.ndarray:
    """Returns each place's `k` nearest others. Shapes: (n, 2) -> (n, k)."""
    near = cKDTree(flat).query(flat, k + 1)[1]
    others = near != np.arange(len(flat))[:, None]
    others[others.all(axis=1), -1] = False  # places that coincide: the word itself may not be among them
    return near[others].reshape(len(flat), k)


def _ranks(unit: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Returns the rank by cosine, 1 the nearest, of each word's neighbours on a map. Shapes: (n, k) -> (n, k)."""
    ranks = []
    for start in range(0, len(unit), BLOCK):
        cosines, rows = cosines_from(unit, start), near[start : start + BLOCK]
        values = np.take_along_axis(cosines, rows, axis=1)
        ranks.append(1 + np.stack([(cosines > value[:, None]).sum(axis=1) for value in values.T], axis=1))
    return np.concatenate(ranks)
