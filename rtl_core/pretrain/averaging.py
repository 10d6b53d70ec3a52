"""Token states to one vector per word type: the mean over all occurrences."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from rtl_core.batches import Batch


@torch.no_grad()
def average_states(
    states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    vocab_size: int,
    dim: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean state of every word type over its occurrences in `batches`, and the occurrences.

    `<unk>` averages all out-of-vocabulary occurrences, since they all carry its id. Types that never occur
    have count 0 and a row of zeros.

    Shapes: states (B, T), (B, T) -> (B, T, D); returns float32 (V, D), int64 (V,).
    Source: Verwimp and Bellegarda 2019, section 3 (a context-independent vector from contextual states).
    """
    total = torch.zeros(vocab_size, dim, dtype=torch.float64)
    count = torch.zeros(vocab_size, dtype=torch.int64)
    for batch in batches:
        hidden = states(batch.inputs, batch.mask)[batch.mask]  # (n, D)
        ids = batch.inputs[batch.mask]
        total.index_add_(0, ids, hidden.double())
        count += torch.bincount(ids, minlength=vocab_size)
    return (total / count.clamp(min=1)[:, None]).float().numpy(), count.numpy()
