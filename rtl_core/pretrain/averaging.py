"""Token states to one vector per word type: the mean over its occurrences."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from rtl_core.batches import Batch
from rtl_core.training import device, to_device


@torch.no_grad()
def average_states(
    states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    vocab_size: int,
    dim: int,
    occurrences: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean state of every word type over its occurrences in `batches`, and how many were averaged.

    `occurrences`: at most so many of each type, the first that `batches` brings (None: all). `<unk>` averages
    the out-of-vocabulary occurrences, since they all carry its id. Types that never occur have count 0 and a
    row of zeros.

    Shapes: states (B, T), (B, T) -> (B, T, D); returns float32 (V, D), int64 (V,).
    Source: Verwimp and Bellegarda 2019, section 3 (a context-independent vector from contextual states).
    """
    total = torch.zeros(vocab_size, dim, dtype=torch.float64)
    count = torch.zeros(vocab_size, dtype=torch.int64)
    where = device()
    for batch in batches:
        there = to_device(batch, where)
        hidden = states(there.inputs, there.mask)[there.mask].cpu()  # (n, D)
        ids = batch.inputs[batch.mask]
        if occurrences is not None:
            wanted = count[ids] + _earlier(ids) < occurrences
            hidden, ids = hidden[wanted], ids[wanted]
        total.index_add_(0, ids, hidden.double())
        count += torch.bincount(ids, minlength=vocab_size)
    return (total / count.clamp(min=1)[:, None]).float().numpy(), count.numpy()


def _earlier(ids: torch.Tensor) -> torch.Tensor:
    """Returns for each id how often it stands earlier in `ids`. Shapes: (n,) -> (n,)."""
    ordered, places = torch.sort(ids, stable=True)
    first = torch.searchsorted(ordered, ordered)  # where the run of each id begins
    out = torch.empty_like(ids)
    out[places] = torch.arange(len(ids)) - first
    return out
