"""The simple bounds that stand beside every table: a unigram and an interpolated Kneser-Ney n-gram."""

import numpy as np

from rtl_core.corpora.vocabulary import EOS_ID, Encoded
from rtl_core.storage import unknown


def unigram_nats(train: Encoded, test: Encoded, vocab_size: int) -> np.ndarray:
    """Returns -log P(w) of every test token: relative frequencies in the LM text, one added to every count.

    Shapes: float64 (N,).
    """
    counts = np.bincount(train.tokens, minlength=vocab_size) + 1
    return -np.log(counts / counts.sum())[test.tokens]


def kneser_ney_nats(
    train: Encoded, test: Encoded, vocab_size: int, order: int = 5, context: str = "document"
) -> np.ndarray:
    """Returns -log P(w | up to `order` - 1 tokens before it) of every test token, interpolated Kneser-Ney.

    A context begins with one `<eos>` where the state is reset (`context`) and never reaches behind it, in the
    LM text as in the test text. The lowest order is interpolated with the uniform distribution.
    Shapes: float64 (N,).
    Source: Kneser & Ney 1995; Chen & Goodman 1999, section 3 (one discount an order, n1 / (n1 + 2 n2)).
    """
    tokens, since, is_train = _laid_out(train, test, context)
    ids = _numbered(tokens, since, vocab_size, order)
    tested = np.flatnonzero(~is_train & (since > 0))
    probability = np.full(len(tested), 1.0 / vocab_size)
    for n in range(1, order + 1):
        seen = np.flatnonzero(is_train & (since >= max(n - 1, 1)))
        counts = _counts(ids, since, seen, n, order)
        each = _one_of_each(ids[n], seen)
        contexts = ids[n - 1][each - 1]
        n_contexts = ids[n - 1].max() + 1
        totals = np.bincount(contexts, counts[ids[n][each]], minlength=n_contexts)
        types = np.bincount(contexts, minlength=n_contexts)
        # Too close to a reset for this order, or in a context never seen: the shorter context's value stays.
        at = np.flatnonzero(since[tested] >= n - 1)
        at = at[totals[ids[n - 1][tested[at] - 1]] > 0]
        context_ids, gram_ids = ids[n - 1][tested[at] - 1], ids[n][tested[at]]
        discount = _discount(counts)
        kept = np.maximum(counts[gram_ids] - discount, 0)
        probability[at] = (kept + discount * types[context_ids] * probability[at]) / totals[context_ids]
    return -np.log(probability)


def _laid_out(train: Encoded, test: Encoded, context: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns both texts in a row with an `<eos>` at every reset: tokens, distance to it, which are train."""
    starts = {
        "document": lambda text: text.document_starts[:-1],
        "stream": lambda text: np.zeros(1, dtype=np.int64),
        "sentence": lambda text: text.line_starts[:-1],
    }
    if context not in starts:
        raise unknown("context", context, tuple(starts))
    train_starts, test_starts = starts[context](train), starts[context](test)
    resets = np.concatenate([train_starts, test_starts + len(train)])
    tokens = np.insert(np.concatenate([train.tokens, test.tokens]).astype(np.int64), resets, EOS_ID)
    place = np.arange(len(tokens))
    marker = np.zeros_like(place)
    marker[resets + np.arange(len(resets))] = resets + np.arange(len(resets))
    return tokens, place - np.maximum.accumulate(marker), place < len(train) + len(train_starts)


def _numbered(tokens: np.ndarray, since: np.ndarray, vocab_size: int, order: int) -> list[np.ndarray]:
    """Returns for n = 0 … order a dense number for the n tokens that end at each place (0 across a reset)."""
    ids = [np.zeros_like(tokens), tokens]
    for n in range(2, order + 1):
        whole = np.flatnonzero(since >= n - 1)
        keys = ids[n - 1][whole - 1] * vocab_size + tokens[whole]
        ids.append(np.zeros_like(tokens))
        ids[n][whole] = np.unique(keys, return_inverse=True)[1]
    return ids


def _one_of_each(ids: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns one of `places` for each distinct number among them."""
    last = np.full(ids.max() + 1, -1)
    last[ids[places]] = places
    return last[last >= 0]


def _counts(ids: list[np.ndarray], since: np.ndarray, seen: np.ndarray, n: int, order: int) -> np.ndarray:
    """Returns the count of each n-gram: running at the highest order, else the distinct words to its left.

    An n-gram that begins at a reset has no word to its left; each of its occurrences counts.
    """
    if n < order:
        longer = since[seen] >= n
        seen = np.concatenate([_one_of_each(ids[n + 1], seen[longer]), seen[~longer]])
    return np.bincount(ids[n][seen], minlength=ids[n].max() + 1)


def _discount(counts: np.ndarray) -> float:
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    return once / (once + 2 * twice) if once else 0.5  # never zero: every word keeps some probability
