"""Batches of word ids: parallel streams, padded documents or sentences, labelled sequences."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from rtl_core.corpora.vocabulary import EOS_ID, Encoded
from rtl_core.storage import StudyError


class Batch(NamedTuple):
    """What an objective's `loss` receives.

    Shapes: inputs int64 (B, T); targets int64 (B, T) for a language model, (B,) for a classifier;
    mask bool (B, T), true at real tokens, or None when every token is real.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor | None = None
    fresh: bool = True  # the recurrent state is reset before this batch


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
    for start in range(0, length, window):
        stop = start + window
        yield Batch(inputs[:, start:stop], targets[:, start:stop], fresh=start == 0)


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
                fresh=begin == 0,
            )
            yield batch, positions


def sequence_batches(
    tokens: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    batch_tokens: int,
    order=None,
) -> Iterator[Batch]:
    """Yields labelled sequences of similar length, padded with `<eos>`, about `batch_tokens` tokens a batch.

    Shapes: tokens (N,); starts, lengths, labels (n,). `order`, a numpy Generator, shuffles the batches.
    """
    by_length = np.argsort(lengths, kind="stable")
    if order is not None:  # ties are broken at random, so that batches differ from epoch to epoch
        by_length = np.lexsort((order.random(len(lengths)), lengths))
    widest = lengths[by_length]  # of a group: its last
    groups, begin = [], 0
    while begin < len(by_length):
        # grow the group while its padded size stays within the budget
        sizes = widest[begin:] * np.arange(1, len(by_length) - begin + 1)
        count = max(1, int(np.searchsorted(sizes, batch_tokens, side="right")))
        groups.append(by_length[begin : begin + count])
        begin += count
    sequence = range(len(groups)) if order is None else order.permutation(len(groups))
    for group in (groups[i] for i in sequence):
        offsets = np.arange(lengths[group].max())
        real = offsets[None, :] < lengths[group][:, None]  # (B, T)
        padded = np.where(real, tokens[np.where(real, starts[group][:, None] + offsets, 0)], EOS_ID)
        yield Batch(
            torch.from_numpy(padded.astype(np.int64)), torch.from_numpy(labels[group]), torch.from_numpy(real)
        )
