"""Batches of word ids: parallel streams, padded documents or sentences, labelled sequences."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from rtl_core.corpora.vocabulary import EOS_ID, Encoded
from rtl_core.storage import StudyError


class Batch(NamedTuple):
    """What an objective's `loss` receives.

    Shapes: inputs int64 (B, T); targets int64 (B, T) for a language model or a tagger, (B,) for a classifier;
    mask bool (B, T), true at real tokens, or None when every token is real; features (B, T, F) of the targets
    and labels int64 (B, T), what a second task is to name there, or None where the text has none.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor | None = None
    fresh: bool = True  # the recurrent state is reset before this batch
    features: torch.Tensor | None = None
    labels: torch.Tensor | None = None


def units(text: Encoded, context: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and lengths of the stretches after which the state is reset.

    `stream` is one stretch, `document` one a document, `sentence` one a line.
    """
    starts = {
        "stream": np.array([0, len(text)]),
        "document": text.document_starts,
        "sentence": text.line_starts,
    }[context]
    lengths = np.diff(starts)
    return starts[:-1][lengths > 0], lengths[lengths > 0]


def previous(text: Encoded, starts: np.ndarray) -> np.ndarray:
    """Returns the token before each token: `<eos>` before the first of each stretch. Shape (N,)."""
    before = np.empty_like(text.tokens)
    before[1:] = text.tokens[:-1]
    before[starts] = EOS_ID
    return before


def stream_batches(text: Encoded, batch_size: int, window: int, offset: int = 0) -> Iterator[Batch]:
    """Yields windows of `batch_size` contiguous streams; the state is carried from one window to the next.

    The text is cut into equal streams and starts `offset` tokens in, so that epochs differ in where
    windows and streams begin; what does not fill the streams is left out.

    Raises: StudyError when the text is too short for one token a stream.
    """
    length = (len(text) - offset - 1) // batch_size
    if length < 1:
        raise StudyError(
            f"{len(text):,} tokens are too few for {batch_size} streams; lower batch_size or use more text."
        )
    tokens = torch.from_numpy(text.tokens[offset : offset + batch_size * length + 1].astype(np.int64))
    inputs = tokens[:-1].view(batch_size, length)
    targets = tokens[1:].view(batch_size, length)
    first = np.arange(offset + 1, offset + 1 + batch_size * length, length)  # target of each stream
    for start in range(0, length, window):
        stop = min(start + window, length)
        beside = _beside(text, first[:, None] + np.arange(start, stop))
        yield Batch(inputs[:, start:stop], targets[:, start:stop], None, start == 0, *beside)


def _beside(text: Encoded, positions: np.ndarray) -> Iterator[torch.Tensor | None]:
    """Yields the features and the labels of tokens."""
    for values in (text.features, text.labels):
        yield None if values is None else torch.from_numpy(values[positions])


def unit_batches(text: Encoded, context: str, batch_size: int, window: int, order=None) -> Iterator[Batch]:
    """Yields padded windows over documents or sentences of similar length, and over a stream as one unit.

    All units are covered exactly once. `order`, a numpy Generator, shuffles the groups of units; without
    it they come by falling length. After the last window of a group the next batch is `fresh`.
    """
    for batch, _ in located_batches(text, context, batch_size, window, order):
        yield batch


def located_batches(text: Encoded, context: str, batch_size: int, window: int, order=None):
    """Yields (Batch, positions): positions int64 (B, T) of the targets in the text, as `unit_batches` cuts it."""
    starts, lengths = units(text, context)
    tokens = text.tokens.astype(np.int64)
    before = previous(text, starts).astype(np.int64)
    by_length = np.argsort(-lengths, kind="stable")
    groups = [by_length[i : i + batch_size] for i in range(0, len(starts), batch_size)]
    if order is not None:
        groups = [groups[i] for i in order.permutation(len(groups))]
    for group in groups:
        longest = lengths[group].max()
        for begin in range(0, longest, window):
            offsets = np.arange(begin, min(begin + window, longest))
            real = offsets[None, :] < lengths[group][:, None]  # (B, T)
            rows = real.any(axis=1).sum()  # units that have ended need no more work: they are last
            positions = np.where(real, starts[group][:, None] + offsets, 0)[:rows]
            mask = torch.from_numpy(real[:rows])
            batch = Batch(
                torch.from_numpy(before[positions]),
                torch.from_numpy(tokens[positions]),
                None if mask.all() else mask,
                begin == 0,
                *_beside(text, positions),
            )
            yield batch, positions


LONGEST = {"sentence": 64, "paragraph": 256}  # longer sequences are cut into pieces, so that no word is lost
BATCH_TOKENS = 4096  # states of a batch stay in cache


@dataclass(frozen=True)
class Sequences:
    """Sentences or paragraphs as stretches of one array of word ids, each with a label (-1: none).

    Shapes: tokens (N,); starts, lengths, labels (n,); token_labels (N,), one label a token, or None.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    token_labels: np.ndarray | None = None

    @classmethod
    def of(cls, text: Encoded, level: str) -> "Sequences":
        """Returns all sentences or paragraphs of a text with their document's domain, long ones cut."""
        bounds = text.line_starts if level == "sentence" else text.paragraph_starts
        pieces = np.maximum(1, -(-np.diff(bounds) // LONGEST[level]))
        within = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
        starts = np.repeat(bounds[:-1], pieces) + within * LONGEST[level]
        ends = np.minimum(starts + LONGEST[level], np.repeat(bounds[1:], pieces))
        return cls(text.tokens, starts, ends - starts, text.domains[text.document_of(starts)])

    def __len__(self) -> int:
        return len(self.starts)

    def select(self, chosen: np.ndarray) -> "Sequences":
        """Returns the chosen sequences, by a mask or by their numbers."""
        return replace(
            self, starts=self.starts[chosen], lengths=self.lengths[chosen], labels=self.labels[chosen]
        )

    @property
    def labelled(self) -> "Sequences":
        """The sequences that have a label."""
        return self.select(self.labels >= 0)

    @property
    def words(self) -> np.ndarray:
        """The ids that occur in the sequences, rising."""
        edges = np.zeros(len(self.tokens) + 1, dtype=np.int64)
        np.add.at(edges, self.starts, 1)
        np.add.at(edges, self.starts + self.lengths, -1)
        return np.unique(self.tokens[np.cumsum(edges)[:-1] > 0])

    @property
    def n_tokens(self) -> int:
        """Running tokens of all sequences."""
        return int(self.lengths.sum())

    def take(self, chosen: np.ndarray) -> Batch:
        """Returns the chosen sequences as one batch, padded with `<eos>`."""
        offsets = np.arange(self.lengths[chosen].max())
        real = offsets[None, :] < self.lengths[chosen][:, None]  # (B, T)
        places = np.where(real, self.starts[chosen][:, None] + offsets, 0)
        padded = np.where(real, self.tokens[places], EOS_ID).astype(np.int64)
        labels = self.labels[chosen] if self.token_labels is None else self.token_labels[places]
        return Batch(torch.from_numpy(padded), torch.from_numpy(labels), torch.from_numpy(real))

    def batches(self, order=None) -> Iterator[Batch]:
        """Yields batches of sequences of similar length; `order`, a numpy Generator, shuffles them."""
        for group in groups(self.lengths, order):
            yield self.take(group)


def groups(lengths: np.ndarray, order=None, budget: int | None = None) -> Iterator[np.ndarray]:
    """Yields the numbers of sequences of similar length, about `budget` padded tokens (BATCH_TOKENS) a group."""
    by_length = np.argsort(lengths, kind="stable")
    if order is not None:  # ties are broken at random, so that batches differ from epoch to epoch
        by_length = np.lexsort((order.random(len(lengths)), lengths))
    widest = lengths[by_length]  # of a group: its last
    found, begin = [], 0
    while begin < len(by_length):
        # grow the group while its padded size stays within the budget
        sizes = widest[begin:] * np.arange(1, len(by_length) - begin + 1)
        count = max(1, int(np.searchsorted(sizes, budget or BATCH_TOKENS, side="right")))
        found.append(by_length[begin : begin + count])
        begin += count
    yield from (found[i] for i in (range(len(found)) if order is None else order.permutation(len(found))))
