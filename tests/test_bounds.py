"""The bounds: probabilities that sum to one, and equality with a plain loop over dicts."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from rtl_core.bounds import kneser_ney_nats, unigram_nats
from rtl_core.corpora.vocabulary import EOS_ID, Encoded
from rtl_core.storage import StudyError

V = 6
CONTEXTS = ("document", "stream", "sentence")


def encoded(documents):
    """Returns documents (lists of lines of ids) as Encoded; `<eos>` is put after every line."""
    tokens, lines, starts = [], [], []
    for document in documents:
        starts.append(len(tokens))
        for line in document:
            lines.append(len(tokens))
            tokens += [*line, EOS_ID]
    starts, lines = (np.array([*s, len(tokens)]) for s in (starts, lines))
    names = tuple(f"d{i}" for i in range(len(documents)))
    return Encoded(np.array(tokens, dtype=np.int32), starts, starts, lines, np.zeros(len(names), int), names)


def random_text(seed, n_documents, skewed=(0.5, 0, 0.25, 0.15, 0.1, 0)):
    rng = np.random.default_rng(seed)
    lines = [
        [rng.choice(V, size=rng.integers(1, 12), p=skewed).tolist() for _ in range(3)]
        for _ in range(n_documents)
    ]
    return encoded(lines)


def pieces(text, context):
    """Returns the text cut at its resets, each piece behind one `<eos>`."""
    starts = {
        "document": text.document_starts,
        "stream": np.array([0, len(text)]),
        "sentence": text.line_starts,
    }
    ends = starts[context]
    return [[EOS_ID, *text.tokens[a:b].tolist()] for a, b in zip(ends, ends[1:])]


def plain_kneser_ney(train, test, order, context):
    """The twin: one dict an order, one token at a time, straight from the definition."""
    running, left, at_reset = Counter(), defaultdict(set), Counter()
    for piece in pieces(train, context):
        for end in range(1, len(piece)):
            for n in range(1, min(order, end + 1) + 1):
                gram = tuple(piece[end - n + 1 : end + 1])
                running[gram] += 1
                if end - n >= 0:
                    left[gram].add(piece[end - n])
                else:
                    at_reset[gram] += 1
    counts = [
        {g: running[g] if n == order else len(left[g]) + at_reset[g] for g in running if len(g) == n}
        for n in range(order + 1)
    ]

    def probability(history, word):
        if len(history) + 1 > order:
            return probability(history[1:], word)
        shorter = probability(history[1:], word) if history else 1 / V
        table = counts[len(history) + 1]
        same = {g: c for g, c in table.items() if g[:-1] == history}
        if not same:
            return shorter
        once, twice = (sum(c == k for c in table.values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        kept = max(table.get((*history, word), 0) - discount, 0)
        return (kept + discount * len(same) * shorter) / sum(same.values())

    return [
        -math.log(probability(tuple(piece[max(0, end - order + 1) : end]), piece[end]))
        for piece in pieces(test, context)
        for end in range(1, len(piece))
    ]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_kneser_ney_equals_a_plain_loop(context, order):
    train = random_text(0, 6)
    test = random_text(1, 3, skewed=(0.3, 0, 0.2, 0.2, 0.2, 0.1))  # the last word never occurs in training
    fast = kneser_ney_nats(train, test, V, order=order, context=context)
    np.testing.assert_allclose(fast, plain_kneser_ney(train, test, order, context), rtol=0, atol=1e-10)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("history", [[], [0], [0, 0, 2, 0], [5, 5, 5, 5], [5, 0, 0], [3, 5, 0, 2]])
def test_kneser_ney_sums_to_one_for_seen_unseen_and_partly_seen_contexts(context, history):
    train = random_text(2, 6)
    at = len(history)
    nats = [kneser_ney_nats(train, encoded([[[*history, w]]]), V, context=context)[at] for w in range(V)]
    assert np.exp(-np.array(nats)).sum() == pytest.approx(1, abs=1e-12)


def test_kneser_ney_knows_the_text_it_read_and_the_contexts_differ_where_they_should():
    train = encoded([[[2, 3, 4]], [[5, 3, 2]]] * 20)
    nats = {c: kneser_ney_nats(train, encoded([[[2, 3, 4]], [[5, 3, 2]]]), V, context=c) for c in CONTEXTS}
    # Documents alternate: only the unbroken stream can foresee that 5 follows 2 3 4 <eos>.
    assert nats["document"][4] == pytest.approx(-math.log(0.5), abs=0.1)
    assert nats["stream"][4] < 0.1 < nats["document"][4]
    np.testing.assert_array_equal(nats["document"], nats["sentence"])  # each document is one line here
    assert nats["document"][2] < 0.1


def test_a_text_without_rare_ngrams_still_leaves_every_word_a_probability():
    train = encoded([[[2, 2, 2]]] * 5)
    assert np.isfinite(kneser_ney_nats(train, encoded([[[5, 4, 3]]]), V)).all()


def test_unigram_by_hand_and_sums_to_one():
    train = encoded([[[2, 2, 3]]])  # with <eos>: four tokens
    nats = unigram_nats(train, encoded([[[2, 3, 5]]]), V)
    np.testing.assert_allclose(np.exp(-nats), [3 / 10, 2 / 10, 1 / 10, 2 / 10])
    every = unigram_nats(train, encoded([[list(range(V))]]), V)[:V]
    assert np.exp(-every).sum() == pytest.approx(1)


def test_an_unknown_context_names_the_valid_ones():
    with pytest.raises(StudyError, match="'documents'.*Did you mean document.*sentence"):
        kneser_ney_nats(encoded([[[2]]]), encoded([[[2]]]), V, context="documents")
