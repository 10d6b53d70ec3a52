"""The shape of tables of word vectors: whose neighbours share a domain, how many dimensions are used, who is alike.

A table is compared with what fine-tuning made of it and with the tables of other sources, each time beside the
permuted control: the same rows, dealt out among the words. Every cosine and every dimension but `mean_cosine` is of
the centred table, as it enters the language model.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from rtl_core.catalogue import LEAKY
from rtl_core.config import Experiment, derive_seed
from rtl_core.corpora.clusters import document_counts
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.findings import model_dir
from rtl_core.pretrain import pretrain
from rtl_core.results import ARM_FIELDS, Record
from rtl_core.storage import StudyError, say
from rtl_core.texts import corpus_of, pretraining_corpus, vocabulary_of
from rtl_core.transfer import load_model

MIN_COUNT, MIN_DOCUMENTS, MIN_SHARE = 20, 5, 0.5  # of a word that has a domain
NEIGHBOURS = 10
BLOCK = 1000  # rows of cosines held at a time
# the fields of an arm that say what its table is, beside the source; those after them say how it is used
OF_TABLE = ARM_FIELDS[1 : ARM_FIELDS.index("input_init")]
TABLES = ("pretrained", "finetuned", "permuted")


# Words and their domains


@lru_cache(maxsize=2)
def _by_domain(corpus: Corpus, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a word's occurrences in each domain, the domain's tokens, the word's documents, of training text.

    Shapes: (V, n_domains), (n_domains,), (V,).
    """
    text = vocabulary.encode(corpus.split("train"), corpus.domains)
    labelled = np.flatnonzero(text.domains >= 0)
    counts = document_counts(text, len(vocabulary))[:, labelled]
    places = np.arange(len(labelled)), text.domains[labelled]
    belongs = sparse.coo_array((np.ones(len(labelled)), places), (len(labelled), len(corpus.domains)))
    found = (counts @ belongs.tocsr()).toarray()
    return found, found.sum(axis=0), (counts > 0).sum(axis=1)


def word_domains(corpus: Corpus, vocabulary: Vocabulary, min_share: float = MIN_SHARE) -> pd.DataFrame:
    """Returns the words that belong to a domain, the most frequent first: index word; domain, share, count.

    A word's share of a domain is its rate there (occurrences a token of the domain's training text) over the sum
    of its rates in all domains: the share it would have were all domains equally long. Its domain is that of the
    largest share. Words of fewer than 20 occurrences or 5 documents are left out, and so are those whose largest
    share is below `min_share`, as words of every domain are.
    Raises: StudyError when no word belongs to a domain, or all belong to one.
    """
    counts, tokens, documents = _by_domain(corpus, vocabulary)
    rates = counts / np.maximum(tokens, 1)
    shares, total = rates / np.maximum(rates.sum(axis=1, keepdims=True), 1e-300), counts.sum(axis=1)
    kept = (total >= MIN_COUNT) & (documents >= MIN_DOCUMENTS) & (shares.max(axis=1, initial=0) >= min_share)
    kept[:2] = False  # <unk> and <eos> are no words
    rows = np.flatnonzero(kept)
    own = shares[rows].argmax(axis=1) if len(rows) else rows
    if len(set(own)) < 2:
        raise StudyError(
            f"corpus {corpus.name} has {len(corpus.domains)} domains, and {len(rows)} of its words belong to one. "
            "Their neighbours say something with two domains or more and enough text; corpora.clusters.clustered "
            "makes domains for documents without labels."
        )
    values = {"domain": [corpus.domains[i] for i in own], "share": shares[rows, own]}
    index = pd.Index(vocabulary.decode(rows), name="word")
    return pd.DataFrame(values | {"count": total[rows].astype(np.int64)}, index)


def _of_domains(embeddings: Embeddings, domains: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns unit vectors, domains as numbers and counts of the words that have a vector and a domain."""
    table, covered = embeddings.lookup(domains.index)
    chosen = domains[covered]
    if len(chosen) < NEIGHBOURS + 2:
        raise StudyError(
            f"purity needs {NEIGHBOURS + 2} words or more that have a domain and a vector; found {len(chosen)}. "
            "Use more text, or a larger vocabulary."
        )
    unit = Embeddings(chosen.index, table[covered]).normalised().table
    return unit, pd.factorize(chosen["domain"])[0], chosen["count"].to_numpy()


def nearest(unit: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each row's `k` nearest others by product, the nearest first, and the products. Shapes: (n, k) twice."""
    near, values = [], []
    for start in range(0, len(unit), BLOCK):
        cosines = cosines_from(unit, start)
        best = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        of_best = np.take_along_axis(cosines, best, axis=1)
        order = np.argsort(-of_best, axis=1, kind="stable")
        near.append(np.take_along_axis(best, order, axis=1))
        values.append(np.take_along_axis(of_best, order, axis=1))
    return np.concatenate(near), np.concatenate(values)


def cosines_from(unit: np.ndarray, start: int) -> np.ndarray:
    """Returns the products of a block of rows with all rows; with themselves it is -inf."""
    cosines = unit[start : start + BLOCK] @ unit.T
    cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
    return cosines


def purity(embeddings: Embeddings, domains: pd.DataFrame, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Returns the share of a word's `k` nearest neighbours that have its domain, and what chance would give.

    Neighbours are by cosine, among the words of `domains` (see `word_domains`) that have a vector; the share is
    averaged over these words. The chance level is matched by frequency: what a neighbour's place would give on
    average if any other word of the neighbour's frequency band (powers of ten) stood there. So a table whose
    neighbours are merely equally frequent is at chance. A source that was trained on the labels of the domains was
    taught what is measured here.
    Raises: StudyError for too few words.
    """
    unit, labels, counts = _of_domains(embeddings, domains)
    bands = np.log10(counts).astype(np.int64)
    near, _ = nearest(unit, k)
    holds = np.zeros((bands.max() + 1, labels.max() + 1))  # words of each band in each domain
    np.add.at(holds, (bands, labels), 1)
    itself = bands[near] == bands[:, None]  # a word is no neighbour of its own
    chance = (holds[bands[near], labels[:, None]] - itself) / (holds.sum(axis=1)[bands[near]] - itself)
    return float((labels[near] == labels[:, None]).mean()), float(chance.mean())


def silhouette(embeddings: Embeddings, domains: pd.DataFrame) -> float:
    """Returns the mean silhouette of the words' domains by cosine distance, from -1 to 1; 0 or below: no clusters.

    A word's is (b - a) / max(a, b), a being its mean distance to its own domain, b that to the nearest other one.
    The sum of cosine distances to a domain needs only the sum of its unit vectors. Source: Rousseeuw 1987.
    """
    unit, labels, _ = _of_domains(embeddings, domains)
    member = np.eye(labels.max() + 1)[labels]  # (n, K)
    sizes, rows = member.sum(axis=0), np.arange(len(unit))
    distances = sizes - unit @ (member.T @ unit).T  # (n, K), summed over the words of a domain
    within = distances[rows, labels] / np.maximum(sizes[labels] - 1, 1)  # that to itself is 0
    distances = distances / sizes
    distances[rows, labels] = np.inf
    nearest = distances.min(axis=1)
    values = (nearest - within) / np.maximum(within, nearest)
    return float(np.where(sizes[labels] > 1, values, 0).mean())


# One table, and two


def mean_cosine(embeddings: Embeddings) -> float:
    """Returns the mean cosine over all pairs of different words: 0 if isotropic, near 1 in a narrow cone.

    Source: Ethayarajh 2019 (there of sampled pairs; the mean over all needs only the sum of the unit vectors).
    """
    unit = embeddings.normalised().table.astype(np.float64)
    n, own = len(unit), np.square(unit).sum()
    return float((np.square(unit.sum(axis=0)).sum() - own) / (n * (n - 1)))


def dimensions(embeddings: Embeddings) -> tuple[float, float]:
    """Returns how many dimensions a table uses about its mean, by participation ratio and by entropy; 1 to D.

    With the shares p of the variance along the principal axes: 1 / Σ p², and exp(-Σ p log p). IsoScore (Rudman et
    al. 2022) is the first one rescaled, (ratio - 1) / (D - 1), and the partition function of Mu and Viswanath 2018
    depends on the vectors' length, so neither is given beside it.
    Source: Roy and Vetterli 2007 (effective rank, by entropy).
    """
    variances = np.linalg.svd(_centred(embeddings.table), compute_uv=False) ** 2
    p = variances[variances > 0] / variances.sum()
    return float(1 / np.square(p).sum()), float(np.exp(-(p * np.log(p)).sum()))


def _centred(table: np.ndarray) -> np.ndarray:
    return table - table.mean(axis=0, dtype=np.float64)


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the linear centred kernel alignment of two tables of the same words: 1 if alike, about 0 if unrelated.

    Turning or scaling a table changes nothing. The estimator is the debiased one: the plain one of unrelated tables
    is about D / n. Shapes: (n, D), (n, E).
    Source: Kornblith et al. 2019, section 3; the unbiased HSIC of Song et al. 2012, equation 5, for linear kernels.
    """
    both = _centred(first), _centred(second)
    return float(_hsic(*both) / np.sqrt(_hsic(both[0], both[0]) * _hsic(both[1], both[1])))


def _hsic(first: np.ndarray, second: np.ndarray) -> float:
    n, (a, b) = len(first), (np.square(t).sum(axis=1) for t in (first, second))
    shared = np.square(first.T @ second).sum()
    return shared - n / (n - 2) * (a @ b) + a.sum() * b.sum() / ((n - 1) * (n - 2))


def procrustes(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the squared distance of two tables of the same words after the best rotation: 0 if alike, at most 2.

    Both are centred and at Frobenius norm 1: min ||A - B R||², R orthogonal, = 2 - 2 ||AᵀB||*. Unlike `cka`, it
    counts every direction as much as it varies. Shapes: (n, D), (n, E).
    Source: Schönemann 1966.
    """
    a, b = (table / np.linalg.norm(table) for table in map(_centred, (first, second)))
    return float(2 - 2 * np.linalg.svd(a.T @ b, compute_uv=False).sum())


# Of records


def table_name(record: Record) -> str:
    """Returns the source of the table that a record's input started from, with settings of its own but epochs."""
    e = record.experiment
    if e["input_init"] == "random":
        return "random"
    changed = [n for n in OF_TABLE if e[n] != getattr(Experiment, n) and n != "pretrain_epochs"]
    return e["source"] + (f" ({', '.join(f'{n} {e[n]}' for n in changed)})" if changed else "")


def source_table(record: Record) -> Embeddings:
    """Returns the table that a record's input started from, of the words of the vocabulary that its source covers.

    It is as the source made it, loaded if that was done before; of `random`, as it was drawn.
    Raises: StudyError for a record without a table.
    """
    e = Experiment.from_dict(record.experiment)
    if e.model != "lstm" or e.source == LEAKY:
        what = f"an n-gram bound ({e.model})" if e.model != "lstm" else f"of the source {LEAKY}"
        raise StudyError(f"record {record.name} is {what}, which has no table of word vectors to look at.")
    config, vocabulary = e.pretraining, vocabulary_of(e)
    if e.input_init == "random":
        config = config.replace(source="random")
    made = pretrain(config, pretraining_corpus(e), vocabulary).embeddings
    words = [word for word in vocabulary.words[2:] if word in made]
    return Embeddings(words, made.lookup(words)[0])


def tables(record: Record) -> dict[str, Embeddings]:
    """Returns the tables of a trained model, of the words that its source covers, by the names in `TABLES`.

    `pretrained`: see `source_table`; `finetuned`: the vectors that enter the LSTM at the end of training; `permuted`:
    the first, its rows dealt out among the words.
    Raises: StudyError for a record without a table, and when its model is not at hand.
    """
    source = source_table(record)
    model, vocabulary, _ = load_model(model_dir(record.name))
    with torch.no_grad():
        entering = model.table(torch.tensor([vocabulary.ids[word] for word in source.words]))
    dealt = source.permuted(derive_seed(record.experiment["seed"], "geometry", "permuted"))
    return dict(zip(TABLES, (source, Embeddings(source.words, entering.numpy()), dealt)))


def measure(record: Record) -> pd.DataFrame:
    """Returns the geometry of a record's tables: table (see `tables`), measure, value.

    Measures: purity, purity_chance, silhouette; cka and procrustes, with the fine-tuned table; and of the first two
    tables, whose shape the third one shares: words, mean_cosine, mean_cosine_centred, participation_ratio,
    effective_rank. Without domains of words the first three are left out, which is said.
    Raises: StudyError as `tables` does.
    """
    found, domains = tables(record), _domains_or_none(record)
    rows = []
    for name, vectors in found.items():
        values, centred = {}, vectors.centred()
        if domains is not None:
            values |= dict(zip(("purity", "purity_chance"), purity(centred, domains)))
            values["silhouette"] = silhouette(centred, domains)
        if name != "finetuned":
            pair = vectors.table, found["finetuned"].table
            values |= {"cka": cka(*pair), "procrustes": procrustes(*pair)}
        if name != "permuted":
            values |= {"words": len(vectors), "mean_cosine": mean_cosine(vectors)}
            values["mean_cosine_centred"] = mean_cosine(centred)
            values |= dict(zip(("participation_ratio", "effective_rank"), dimensions(vectors)))
        rows += [(name, measure, float(value)) for measure, value in values.items()]
    return pd.DataFrame(rows, columns=["table", "measure", "value"])


def _domains_or_none(record: Record) -> pd.DataFrame | None:
    e = Experiment.from_dict(record.experiment)
    try:
        return word_domains(corpus_of(e.corpus), vocabulary_of(e))
    except StudyError as error:
        say(f"{record.name}: purity and silhouette are left out. {error}")
        return None


def between(records: Iterable[Record], table: str = "pretrained") -> pd.DataFrame:
    """Returns how alike the tables of several records are: a row a pair, of the words common to both.

    Columns: first, second (see `table_name`), words, cka, procrustes, and both of the control, the second table's
    rows dealt out among its words. Of several records with one name the first counts. `table`: of `TABLES`.
    Raises: StudyError when seeds or corpora differ, or fewer than two tables are left.
    """
    chosen: dict[str, Record] = {}
    for record in records:
        chosen.setdefault(table_name(record), record)
    shared = ("corpus", "vocab_size", "seed")
    settings = {tuple(record.experiment[name] for name in shared) for record in chosen.values()}
    if len(chosen) < 2 or len(settings) > 1:
        raise StudyError(
            f"tables are compared of one corpus, vocabulary and seed; found {len(chosen)} sources with "
            f"{sorted(map(str, settings))}. Choose records of two sources or more that agree in these."
        )
    made = {s: source_table(r) if table == "pretrained" else tables(r)[table] for s, r in chosen.items()}
    return pd.DataFrame([_pair(*names, *map(made.get, names)) for names in combinations(made, 2)])


def _pair(first: str, second: str, a: Embeddings, b: Embeddings) -> dict:
    words = [word for word in a.words if word in b]
    left, right = (vectors.lookup(words)[0] for vectors in (a, b))
    dealt = right[np.random.default_rng(derive_seed(0, first, second)).permutation(len(words))]
    found = {"cka": cka(left, right), "procrustes": procrustes(left, right)}
    control = {"cka_permuted": cka(left, dealt), "procrustes_permuted": procrustes(left, dealt)}
    return {"first": first, "second": second, "words": len(words), **found, **control}
