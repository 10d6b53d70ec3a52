"""The taggers: each word's part of speech; which words are names, and of what.

Source: Collobert and Weston 2008 (tagging as the task behind word vectors); Tjong Kim Sang and De Meulder 2003,
section 2.4 (names are scored whole, as conlleval and seqeval do).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.labelled import Example, LabelledSet
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.pretrain.classifier import accuracies
from rtl_core.pretrain.pretrained import Pretrained
from rtl_core.pretrain.supervised import Recipe, from_labels

Spans = set[tuple[int, int, str]]  # begin, end, type


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the word vectors of a tagger, with its scores on each set's test split and those of baselines."""
    return from_labels(*TASKS[config.plain], corpus, vocabulary, config)


def _pos_scores(labelled: LabelledSet, found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Returns the share of right tags; of those of the most frequent tag; of each word's most frequent tag."""
    words = true >= 0  # the rest are ends of sentences
    return accuracies(found[words], true[words]) | {"word_majority_accuracy": _word_majority(labelled)}


def _word_majority(labelled: LabelledSet) -> float:
    """Returns the accuracy of each word's most frequent tag, for words new in the test split that of all words."""
    tags, every = defaultdict(Counter), Counter()
    for word, tag in _tagged(labelled.train):
        tags[word][tag] += 1
        every[tag] += 1
    right = [tags.get(word, every).most_common(1)[0][0] == tag for word, tag in _tagged(labelled.test)]
    return float(np.mean(right))


def _tagged(examples: Iterable[Example]) -> Iterable[tuple[str, int]]:
    return (pair for e in examples for pair in zip(e.tokens, e.labels))


def _ner_scores(labelled: LabelledSet, found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Returns F1 of whole names, micro-averaged, and that of a dictionary of the names of the training split."""
    spans = [entities(labelled.labels[i] if i >= 0 else "O" for i in labels) for labels in (found, true)]
    return f1(*spans) | {"dictionary_f1": f1(*_by_dictionary(labelled))["f1"]}


def entities(labels: Iterable[str]) -> Spans:
    """Returns the names in a row of BIO labels. As in conlleval, an I- that continues nothing begins a name.

    >>> sorted(entities(["B-LOC", "I-LOC", "B-LOC", "O", "I-PER", "I-LOC"]))
    [(0, 2, 'LOC'), (2, 3, 'LOC'), (4, 5, 'PER'), (5, 6, 'LOC')]
    """
    found, begin, kind = set(), 0, ""
    for place, label in enumerate((*labels, "O")):
        sign, _, name = label.partition("-")
        if kind and (sign == "B" or name != kind):
            found.add((begin, place, kind))
            kind = ""
        if name and not kind:
            begin, kind = place, name
    return found


def f1(found: Spans, true: Spans) -> dict[str, float]:
    """Returns precision, recall and F1 of names, right only with the exact words and type.

    >>> f1({(0, 2, "LOC"), (4, 5, "PER")}, {(0, 2, "LOC"), (4, 6, "PER"), (7, 8, "PER")})
    {'precision': 0.5, 'recall': 0.3333333333333333, 'f1': 0.4}
    """
    right = len(found & true)
    return {
        "precision": right / max(1, len(found)),
        "recall": right / max(1, len(true)),
        "f1": 2 * right / max(1, len(found) + len(true)),
    }


def _by_dictionary(labelled: LabelledSet) -> tuple[Spans, Spans]:
    """Returns the names in the test split that the training split has too, longest first, and the true names."""
    kinds = defaultdict(Counter)
    for e in labelled.train:
        for begin, end, kind in entities(labelled.labels[i] for i in e.labels):
            kinds[e.tokens[begin:end]][kind] += 1
    longest = max(map(len, kinds), default=0)
    found, true, offset = set(), set(), 0
    for e in labelled.test:
        names = entities(labelled.labels[i] for i in e.labels)
        true |= {(offset + begin, offset + end, kind) for begin, end, kind in names}
        begin = 0
        while begin < len(e.tokens):
            ends = range(min(begin + longest, len(e.tokens)), begin, -1)
            end = next((end for end in ends if e.tokens[begin:end] in kinds), None)
            if end:
                found.add((offset + begin, offset + end, kinds[e.tokens[begin:end]].most_common(1)[0][0]))
            begin = end or begin + 1
        offset += len(e.tokens)
    return found, true


TASKS = {
    "pos": (Recipe("token", epochs=3, dropout=0.3), _pos_scores),
    "ner": (Recipe("token", epochs=8, dropout=0.3, learning_rate=2e-2), _ner_scores),
}
