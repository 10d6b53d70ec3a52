"""Judges of pairs: does one sentence follow from another (labelled files), or what every text shows by itself:
do two paragraphs follow each other, which of two sentences came first.

Source: Conneau et al. 2017 (inference); Devlin et al. 2019, task 2 of section 3.1 (next sentence), with a paragraph
of the same document as the wrong one, so that its topic alone does not tell; Lan et al. 2020, section 3.1 (order).
"""

from time import perf_counter

import numpy as np
from torch import nn

from rtl_core.batches import LONGEST, Sequences
from rtl_core.catalogue import find, fitting
from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import SPLITS, Corpus
from rtl_core.corpora.vocabulary import Encoded, Vocabulary
from rtl_core.pretrain.averaging import read_out
from rtl_core.pretrain.classifier import accuracies, predictions
from rtl_core.pretrain.pretrained import Pretrained, contextual
from rtl_core.pretrain.supervised import Recipe, batches, from_labels, learn
from rtl_core.storage import StudyError

NLI = Recipe("pair", epochs=6, dropout=0.3)
NEIGHBOURS = Recipe("pair", learning_rate=1e-2)
SHORTEST = 5  # words; less is a heading or a blank line
MOST_TOKENS = 1_500_000  # of the pairs drawn from a split


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the word vectors of a judge of pairs, with its accuracy on test pairs.

    Raises: StudyError when the labelled files are missing, or a split has not two such pairs.
    """
    if config.plain == "nli":
        return from_labels(NLI, lambda labelled, *labels: accuracies(*labels), corpus, vocabulary, config)
    started, level = perf_counter(), find(config.plain).context
    texts = [vocabulary.encode(corpus.split(split), corpus.domains) for split in SPLITS]
    train, valid, test = (drawn(text, config, split, corpus) for text, split in zip(texts, SPLITS))
    model, rows = learn(
        config, NEIGHBOURS, lambda: nn.Embedding(len(vocabulary), config.dim), 2, train, valid
    )
    found, true = predictions(model, batches("pair", test))
    whole = Sequences.of(texts[0], level)
    table, counts = read_out(model.encoder, whole, len(vocabulary), config)
    counts[np.setdiff1d(np.arange(len(vocabulary)), train.words)] = 0  # their input was never trained
    facts = {
        "seconds": perf_counter() - started, "epochs": len(rows), "labels": len(train) // 2 if rows else 0,
        "tokens_read": whole.n_tokens,
    }  # fmt: skip
    embeddings = contextual(config, corpus, vocabulary, table, counts, facts)
    return Pretrained(embeddings, accuracies(found, true) | {"test_pairs": len(true)}, rows, model)


def drawn(
    text: Encoded, config: PretrainConfig, split: str, corpus: Corpus, most: int | None = None
) -> Sequences:
    """Returns pairs drawn with the seed, half of them label 1: all first members, then all second ones.

    Label 1: neighbours in their order. Label 0: for next-paragraph the second is no neighbour of the
    first, for sentence-order the two are swapped. `most`: tokens of all pairs (None: MOST_TOKENS).
    Raises: StudyError when there are not two pairs.
    """
    level, rng = find(config.plain).context, np.random.default_rng(derive_seed(config.seed, "pairs", split))
    starts, lengths, stretches, domains = _members(text, level)
    first = np.flatnonzero(stretches[1:] == stretches[:-1])  # each has the member after it as neighbour
    other = _elsewhere(stretches[first], domains[first], rng)
    usable = rng.permutation(np.flatnonzero(other >= 0) if level == "paragraph" else len(first))
    size = np.cumsum(lengths[first[usable]] + lengths[first[usable] + 1])
    chosen = usable[: np.searchsorted(size, most or MOST_TOKENS, side="right") // 2 * 2]
    if not len(chosen):
        others = ", ".join(fitting(len(corpus.domains) > 1, but=config.plain))
        raise StudyError(
            f"{config.plain} needs {level}s of {SHORTEST} words or more that follow each other in a document; "
            f"{split} of corpus {corpus.name} has {len(usable)} such pairs, 2 are the least. Choose a corpus of "
            f"longer documents, or take another source: {others}."
        )
    labels = np.arange(len(chosen)) % 2
    before, after, wrong = first[chosen], first[chosen] + 1, first[other[chosen]] + 1
    if level == "sentence":
        before, after, wrong = np.where(labels, before, after), np.where(labels, after, before), before
    members = np.concatenate([before, np.where(labels, after, wrong)])
    return Sequences(text.tokens, starts[members], lengths[members], np.tile(labels, 2))


def _members(text: Encoded, level: str) -> tuple[np.ndarray, ...]:
    """Returns starts, lengths, stretch and domain of what can stand in a pair, stretches of one domain together.

    Neighbours are of one stretch: of a document, but sentences of a paragraph where it has several, as a paragraph's
    opening comes before its second sentence, yet after the last one of the paragraph before.
    """
    bounds, within = text.paragraph_starts, text.document_starts
    if level == "sentence":
        bounds = text.line_starts
        within = within if len(bounds) == len(text.paragraph_starts) else text.paragraph_starts
    kept = np.flatnonzero(np.diff(bounds) > SHORTEST)  # an <eos> is counted too
    starts, lengths = bounds[kept], np.minimum(np.diff(bounds)[kept], LONGEST[level])
    domains = text.domains[text.document_of(starts)]
    order = np.argsort(domains, kind="stable")
    stretches = np.searchsorted(within, starts, side="right")
    return starts[order], lengths[order], stretches[order], domains[order]


def _elsewhere(stretches: np.ndarray, domains: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns for each pair a random one whose second member is no neighbour of its first; -1 where there is none.

    The pairs before and after the place in the same document are drawn from, else other documents of the domain.
    So a wrong second member, like a right one, never opens a document.
    Shapes: stretches, domains (n,), of pairs in their order -> (n,).
    """
    numbers = np.arange(len(stretches))
    begin, end = _run(stretches)
    low, high = np.maximum(begin, numbers - 2), numbers + 1  # seconds that are the first or stand next to it
    alone = end - begin == high - low
    low, high = np.where(alone, begin, low), np.where(alone, end, high)
    begin, end = (np.where(alone, wide, narrow) for wide, narrow in zip(_run(domains), (begin, end)))
    free = end - begin - (high - low)
    draw = begin + (rng.random(len(numbers)) * free).astype(np.int64)
    return np.where(free > 0, draw + np.where(draw >= low, high - low, 0), -1)


def _run(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the run of equal keys around each place begins and ends."""
    places = np.flatnonzero(np.diff(keys, prepend=-2))
    lengths = np.diff(places, append=len(keys))
    return np.repeat(places, lengths), np.repeat(places + lengths, lengths)
