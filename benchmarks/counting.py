"""Pre-training by counting against the plainest correct implementation of the same idea, on the same text."""

import time

import numpy as np
from scipy import sparse
from scipy.special import stdtrit

from benchmarks import row
from rtl_core.analysis.intrinsic import similarity
from rtl_core.config import PretrainConfig
from rtl_core.corpora import load_corpus
from rtl_core.corpora.clusters import document_counts, latent_space
from rtl_core.corpora.sources import missing
from rtl_core.corpora.vocabulary import Encoded, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain import glove as ours

JUDGED = {"SimLex-999": "simlex-999", "WordSim-353": "wordsim-353"}
DIM, VOCAB_SIZE = 128, 10_000
DENSE_DOCUMENTS = 1000
SEEDS = 3
PLAIN_EPOCHS = 25  # fewer than the 50 of the paper: on WikiText-2 its correlations no longer rise


def judged(embeddings: Embeddings) -> dict[str, float]:
    """Returns the correlation with each set of judgements that is at hand, the pairs covered in its name."""
    found = {title: similarity(embeddings, name) for title, name in JUDGED.items() if not missing(name)}
    return {f"{title} ({used} pairs)": value for title, (value, used, _) in found.items()}


def over_seeds(subject: str, ours: list[dict], plain: list[dict], at_least: dict[str, float]) -> list[dict]:
    """Returns a row a measure, of a dict of measures a seed: a ratio of means, above 1 in favour of ours.

    Its 95 % interval is Student's, the error of the ratio by the delta method: seeds differ by chance. `at_least`
    names the measures of which less is better; of all others more is, and 0.9 is asked.
    """
    rows, n_seeds = [], len(ours)
    for name in ours[0]:
        order, above, below = "plain / ours", plain, ours
        if name not in at_least:
            order, above, below = "ours / plain", ours, plain
        values = np.array([[measures[name] for measures in side] for side in (above, below)])
        means = values.mean(axis=1)
        errors = values.std(axis=1, ddof=1) / means / n_seeds**0.5
        ratio = float(means[0] / means[1])
        half = abs(ratio) * np.hypot(*errors) * stdtrit(2 * (n_seeds - 1), 0.975)
        what = f"{means[0]:.4g} against {means[1]:.4g}, {n_seeds} seeds, {ratio - half:.2f} to {ratio + half:.2f}"
        rows.append(row(f"{subject}, {name}: {order}", ratio, at_least.get(name, 0.9), what))
    return rows


def text_and_words(name: str) -> tuple[Encoded, Vocabulary]:
    """Returns the training text of a corpus as ids, and its 10,000 words."""
    documents = load_corpus(name).split("train")
    vocabulary = Vocabulary.build(documents, VOCAB_SIZE)
    return vocabulary.encode(documents), vocabulary


def plain_glove(text: Encoded, vocab_size: int, epochs: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """Returns tables as the authors' program makes them, pair by pair with AdaGrad, and the seconds it took.

    The loop over pairs is compiled by numba; the counts are ours. The count with full weight is ours too.
    Shapes: (2, V, D + 2), of words and of the words near them; products of rows fit the logs of counts.
    Source: Pennington et al. 2014, section 4.2 (learning rate 0.05; all accumulators begin at 1).
    """
    from numba import njit

    rng = np.random.default_rng(seed)
    counts = ours.co_occurrences(text, vocab_size).tocoo()
    order = rng.permutation(counts.nnz)
    pairs = counts.row[order].astype(np.int32), counts.col[order].astype(np.int32)
    logs = np.log(counts.data[order])
    weights = np.minimum(1, (counts.data[order] / ours.X_MAX) ** ours.ALPHA).astype(np.float32)
    # the last two columns: a bias, and the 1 that the other side's bias is multiplied by
    tables = (rng.random((2, vocab_size, DIM + 2), dtype=np.float32) - 0.5) / DIM
    tables[0, :, -1] = tables[1, :, -2] = 1
    tables[0, :, -2] = tables[1, :, -1] = 0
    squares = np.ones_like(tables)
    compiled = njit(_plain_epoch)
    compiled(*pairs, logs[:1], weights[:1], tables.copy(), squares.copy())
    started = time.perf_counter()
    for _ in range(epochs):
        compiled(*pairs, logs, weights, tables, squares)
    return tables, time.perf_counter() - started


def own_tables(model: ours.GloVe) -> np.ndarray:
    """Returns our tables in the shape of `plain_glove`'s."""
    parts = [(model.table.weight, model.bias), (model.context, model.context_bias)]
    (words, bias), (others, other_bias) = [[each.detach().numpy() for each in part] for part in parts]
    ones = np.ones_like(bias)
    return np.stack([np.column_stack([words, bias, ones]), np.column_stack([others, ones, other_bias])])


def error_of_a_pair(counts: sparse.csr_array, tables: np.ndarray) -> float:
    """Returns the objective itself, over all pairs: the mean weighted squared error of a log count."""
    total = 0.0
    for rows in np.array_split(np.arange(len(tables[0])), 20):
        part = counts[rows].tocoo()
        errors = (tables[0, rows] @ tables[1].T)[part.row, part.col] - np.log(part.data)
        total += float(np.minimum(1, (part.data / ours.X_MAX) ** ours.ALPHA) @ errors**2)
    return total / counts.nnz


def _plain_epoch(rows, columns, logs, weights, tables, squares):
    width = tables.shape[2]
    for k in range(len(logs)):
        word, other = tables[0, rows[k]], tables[1, columns[k]]
        word_squares, other_squares = squares[0, rows[k]], squares[1, columns[k]]
        error = -logs[k]
        for d in range(width):
            error += word[d] * other[d]
        step = np.float32(0.05) * weights[k] * error
        for d in range(width):
            word_step, other_step = step * other[d], step * word[d]
            if d != width - 1:  # the word's own 1 stays
                word[d] -= word_step / np.sqrt(word_squares[d])
                word_squares[d] += word_step * word_step
            if d != width - 2:
                other[d] -= other_step / np.sqrt(other_squares[d])
                other_squares[d] += other_step * other_step


def glove() -> list[dict]:
    """GloVe against pair-by-pair AdaGrad, over seeds: seconds, the objective, correlation with human judgements."""
    rows = []
    for name in ("docstrings", "wikitext-2"):
        text, vocabulary = text_and_words(name)
        counts = ours.co_occurrences(text, len(vocabulary))
        own, plain = [], []
        for seed in range(SEEDS):
            made = ours.pretrain(load_corpus(name), vocabulary, PretrainConfig("glove", dim=DIM, seed=seed))
            words = made.embeddings.words
            seconds = sum(r["seconds"] + r["validation_seconds"] for r in made.history)
            error = error_of_a_pair(counts, own_tables(made.model))
            own.append({"seconds": seconds, "error of a pair": error, **judged(made.embeddings)})
            tables, seconds = plain_glove(text, len(vocabulary), PLAIN_EPOCHS, seed)
            summed = tables[:, [vocabulary.ids[word] for word in words], :DIM].sum(axis=0)
            error = error_of_a_pair(counts, tables)
            plain.append({"seconds": seconds, "error of a pair": error, **judged(Embeddings(words, summed))})
        at_least = {"seconds": 2, "error of a pair": 1}
        rows += over_seeds(f"GloVe on {name} against pair by pair", own, plain, at_least)
    return rows


def lsa() -> list[dict]:
    """LSA against the dense singular value decomposition of the same matrix, of some documents only."""
    documents = load_corpus("docstrings").split("train")[:DENSE_DOCUMENTS]
    vocabulary = Vocabulary.build(documents, VOCAB_SIZE)
    text = vocabulary.encode(documents)
    started = time.perf_counter()
    space = latent_space(text, len(vocabulary), DIM)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    dense = document_counts(text, len(vocabulary)).log1p().toarray() * space.weights[:, None]
    strengths = np.linalg.svd(dense, full_matrices=False)[1][:DIM]
    plain = time.perf_counter() - started
    apart = np.abs(strengths / space.strengths - 1).max()
    what = f"{plain:.0f} s against {seconds:.1f} s; singular values differ by {apart:.0e} at most"
    return [row(f"LSA of {DENSE_DOCUMENTS:,} docstrings: dense SVD / ours", plain / seconds, 5, what)]


def all_rows() -> list[dict]:
    """Returns the rows of every source that counts."""
    return [*lsa(), *glove()]
