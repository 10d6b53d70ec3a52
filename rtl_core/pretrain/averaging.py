"""Token states to one vector per word type: the mean over its occurrences."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import nn

from rtl_core.batches import Batch, Sequences
from rtl_core.catalogue import settings_of
from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.storage import StudyError
from rtl_core.training import device, to_device


@torch.no_grad()
def average_states(
    states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    vocab_size: int,
    occurrences: int | None = None,
    types: torch.Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean state of every word type over its occurrences in `batches`, and how many were averaged.

    `occurrences`: at most so many of each type, the first that `batches` brings (None: all). `types` says which
    type each id of `batches` counts for (None: itself): `<unk>` averages all out-of-vocabulary occurrences.
    Types that never occur have count 0 and a row of zeros.

    Shapes: states (B, T), (B, T) -> (B, T, D); types (W,); returns float32 (V, D), int64 (V,).
    Source: Verwimp and Bellegarda 2019, section 3 (a context-independent vector from contextual states).
    """
    total, count = None, torch.zeros(vocab_size, dtype=torch.int64)
    where = device()
    for batch in batches:
        there = to_device(batch, where)
        hidden = states(there.inputs, there.mask)[there.mask].cpu()  # (n, D)
        ids = batch.inputs[batch.mask]
        ids = ids if types is None else types[ids]
        if occurrences is not None:
            wanted = count[ids] + _earlier(ids) < occurrences
            hidden, ids = hidden[wanted], ids[wanted]
        if total is None:
            total = torch.zeros(vocab_size, hidden.shape[1], dtype=torch.float64)
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


def check_layer(config: PretrainConfig, n_layers: int) -> None:
    """Raises: StudyError when an encoder of `n_layers` has not the layer that the config asks for."""
    if config.layer is not None and config.layer > n_layers:
        can = settings_of(config.source, config.encoder)
        more = ", or more encoder_layers" if "encoder_layers" in can else ""
        raise StudyError(
            f"{config.source} has {n_layers} encoder layers and no layer {config.layer}; give layer 1 to "
            f"{n_layers}{more}."
        )


@torch.no_grad()
def read_out(
    encoder: nn.Module,
    text: Sequences,
    vocab_size: int,
    config: PretrainConfig,
    types: torch.Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the vector of every word type, read out as the config says, and on how many occurrences it stands.

    `encoder` has a `table` of input vectors, `n_layers`, and gives the states of a layer.
    Shapes: types (W,), see `average_states`; returns float32 (V, D), int64 (V,).
    Raises: StudyError when the encoder has no such layer.
    """
    encoder.eval()
    check_layer(config, encoder.n_layers)
    if config.readout == "input-layer":
        own = torch.arange(vocab_size)
        if types is not None:  # the id whose spelling is the type's own; the first of several
            own = torch.zeros(vocab_size, dtype=torch.int64)
            own[types.flip(0)] = torch.arange(len(types)).flip(0)
        seen = text.tokens if types is None else types.numpy()[text.tokens]
        return encoder.table(own.to(device())).cpu().numpy(), np.bincount(seen, minlength=vocab_size)
    order = np.random.default_rng(derive_seed(config.seed, "occurrences")) if config.occurrences else None
    states = partial(encoder, layer=config.layer)
    return average_states(states, text.batches(order), vocab_size, config.occurrences, types)
