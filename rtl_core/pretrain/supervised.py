"""What the sources trained on labelled files share: a lexicon, one classifier for all sets of a task, the account.

The labelled text is small and the LM's words are others, so the input layer reads spellings: a word that no
labelled sentence has still gets a vector, as the encoder's mean state over its occurrences in the LM's corpus.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from rtl_core.batches import Sequences
from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.labelled import Example, LabelledSet, labelled_for
from rtl_core.corpora.vocabulary import EOS_ID, UNK_ID, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain.averaging import check_layer, read_out
from rtl_core.pretrain.classifier import Classifier, paired, predictions
from rtl_core.pretrain.encoder import BidirectionalEncoder, SubwordTable
from rtl_core.pretrain.pretrained import Pretrained, contextual, dealt_out, fit_pretrainer, seeded
from rtl_core.training import Optimisation, mean_loss


class Recipe(NamedTuple):
    """How a classifier is trained; what it labels is a `token`, a `sequence` or a `pair` of them."""

    unit: str
    epochs: int = 1  # where the settings do not say
    dropout: float = 0.0
    learning_rate: float = 4e-3


@dataclass(frozen=True)
class Lexicon:
    """Every spelling of the labelled sentences and of the LM corpus's training text, which `text` holds.

    Shapes: known bool (W,), whether a word stands in labelled training text; types int64 (W,), its id in the
    LM's vocabulary.
    """

    spellings: Vocabulary
    known: np.ndarray
    types: torch.Tensor
    text: Sequences

    @classmethod
    def of(cls, sets: list[LabelledSet], unit: str, corpus: Corpus, vocabulary: Vocabulary) -> "Lexicon":
        """Returns the lexicon of a task's sets: of both sentences where the unit is a pair."""
        documents = corpus.split("train")
        read = Vocabulary.build(documents)
        learnt = set(chain.from_iterable(sentences_of([e for s in sets for e in s.train], unit)))
        others = sentences_of([e for s in sets for e in (*s.valid, *s.test)], unit)
        more = sorted(learnt.union(*others) - read.ids.keys())
        spellings = Vocabulary(read.words + tuple(more), read.counts + (0,) * len(more))
        return cls(
            spellings,
            np.array([word in learnt for word in spellings.words]),
            torch.tensor([vocabulary.ids.get(word, UNK_ID) for word in spellings.words]),
            Sequences.of(spellings.encode(documents), "sentence"),
        )

    def encode(self, examples: list[Example], unit: str, end: int) -> Sequences:
        """Returns examples as sequences, each with an `<eos>` as in the LM's text; of a tagger its label is `end`."""
        ids = [[*map(self.spellings.ids.get, words), EOS_ID] for words in sentences_of(examples, unit)]
        lengths = np.array([len(row) for row in ids])
        first = np.array([e.labels[0] for e in examples])
        labels = np.tile(first, 2) if unit == "pair" else first
        tags = np.concatenate([(*e.labels, end) for e in examples]) if unit == "token" else None
        return Sequences(np.concatenate(ids), lengths.cumsum() - lengths, lengths, labels, tags)

    def seen_in_labels(self, vocabulary: Vocabulary) -> dict[str, float]:
        """Returns the share of the vocabulary's types, and of its running tokens, that labelled training text has."""
        learnt = {word for word, known in zip(self.spellings.words, self.known) if known}
        seen = np.array([word in learnt for word in vocabulary.words[2:]])
        return {"types": float(seen.mean()), "tokens": float(np.average(seen, weights=vocabulary.counts[2:]))}

    def read_out(
        self, encoder: nn.Module, corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig, facts: dict
    ) -> Embeddings:
        """Returns the words' vectors by a trained encoder over this lexicon, averaged over the LM's text.

        `facts`: what the account says beside the coverage; `started`, of the clock, becomes the seconds.
        """
        table, counts = read_out(encoder, self.text, len(vocabulary), config, self.types)
        only_spelling = config.readout == "input-layer"
        if only_spelling:
            counts[UNK_ID] = 0  # it has no spelling
        known = {
            "tokens_read": 0 if only_spelling else self.text.n_tokens,
            "seen_in_labels": self.seen_in_labels(vocabulary),
            "seconds": perf_counter() - facts["started"],
        }
        own = {name: fact for name, fact in facts.items() if name != "started"}
        return contextual(config, corpus, vocabulary, table, counts, known | own)


def sentences_of(examples: list[Example], unit: str) -> list[tuple[str, ...]]:
    """Returns the sentences of examples; where the unit is a pair all first ones, then all second ones."""
    return [e.tokens for e in examples] + [e.other for e in examples if unit == "pair"]


def learn(
    config: PretrainConfig, recipe: Recipe, table: Callable[[], nn.Module], n_labels: int, train: Sequences,
    valid: Sequences,
) -> tuple[Classifier, list[dict]]:  # fmt: skip
    """Returns a classifier over the shared encoder with this table of word vectors, trained, and its history.

    Raises: StudyError when the config asks for a layer that the encoder has not.
    """
    check_layer(config, config.encoder_layers or 1)  # before it is trained for nothing

    def make() -> nn.Module:
        encoder = BidirectionalEncoder(table(), config.dim, config.encoder_layers or 1)
        return Classifier(encoder, config.dim, n_labels, recipe.unit, recipe.dropout)

    model = seeded(config, make)
    train, valid = (dealt_out(config, text, recipe.unit == "pair") for text in (train, valid))
    rows = fit_pretrainer(
        config, model, lambda order: batches(recipe.unit, train, order),
        lambda: mean_loss(model, batches(recipe.unit, valid)),
        Optimisation(recipe.learning_rate, max_epochs=config.epochs or recipe.epochs, patience=2),
    )  # fmt: skip
    return model, rows


def batches(unit: str, text: Sequences, order=None):
    """Yields batches of tokens, sequences or pairs; `order`, a numpy Generator, shuffles them."""
    return paired(text, order) if unit == "pair" else text.batches(order)


def from_labels(
    recipe: Recipe, score: Callable, corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig
) -> Pretrained:
    """Returns the embeddings of a task with labelled sets, which are mixed in training and scored one by one.

    Labels of one name are one label of the model. `score(labelled, found, true)` gives the scores of a set's test
    split from the numbers of its labels, -1 at the end of each sentence of tags.
    Raises: StudyError when none of the task's sets is at hand.
    """
    started, sets = perf_counter(), labelled_for(config.plain, corpus)
    lexicon = Lexicon.of(sets, recipe.unit, corpus, vocabulary)
    names = sorted({name for labelled in sets for name in labelled.labels})
    own = [np.array([names.index(name) for name in labelled.labels]) for labelled in sets]

    def encoded(split: str, chosen=slice(None)) -> Sequences:
        renamed = [
            e._replace(labels=tuple(numbers[list(e.labels)]))
            for labelled, numbers in zip(sets[chosen], own[chosen]) for e in getattr(labelled, split)
        ]  # fmt: skip
        return lexicon.encode(renamed, recipe.unit, len(names))

    def table() -> nn.Module:
        return SubwordTable(lexicon.spellings.words, lexicon.known, config.dim)

    n_labels = len(names) + (recipe.unit == "token")  # and that of <eos>
    model, rows = learn(config, recipe, table, n_labels, encoded("train"), encoded("valid"))
    scores = {}
    for i, (labelled, numbers) in enumerate(zip(sets, own)):
        if not labelled.test:
            continue
        back = np.full(len(names) + 1, -1)
        back[numbers] = np.arange(len(numbers))
        test = batches(recipe.unit, encoded("test", slice(i, i + 1)))
        found, true = (back[labels] for labels in predictions(model, test, numbers))
        measured = score(labelled, np.where(true < 0, -1, found), true)
        scores |= {f"{labelled.name}_{name}": value for name, value in measured.items()}
    facts = {
        "started": started, "epochs": len(rows), "labelled_sets": {s.name: s.fingerprint for s in sets},
        "labels": sum(len(e.labels) for s in sets for e in s.train) if rows else 0,
        "outside_tokens": sum(s.n_tokens("train") for s in sets) if rows else 0,
    }  # fmt: skip
    return Pretrained(lexicon.read_out(model.encoder, corpus, vocabulary, config, facts), scores, rows, model)
