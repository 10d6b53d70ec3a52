"""The recurrent part of the language model and every dropout around it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from rtl_core.config import Experiment


class LockedDropout(nn.Module):
    """Dropout whose mask is the same at every step of a window: fewer draws, and the LSTM's usual form.

    Source: Gal and Ghahramani 2016, section 4.2.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Returns `values`, some units zero, the others scaled up. Shapes: (B, T, D) -> (B, T, D)."""
        if not self.training or self.rate == 0:
            return values
        keep = torch.rand(len(values), 1, values.shape[2], device=values.device) >= self.rate
        return values * (keep / (1 - self.rate))


class WordDropout(nn.Module):
    """Leaves whole word types out of a window: a type has a zero vector wherever it stands, or nowhere.

    One draw for each type of the window, on the vectors that were looked up: the gradient of the table stays
    one of the looked-up rows.
    Source: Gal and Ghahramani 2016, section 4.2 (word embeddings); Merity et al. 2018, section 4.3.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, vectors: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Returns the vectors, those of some types zero, the others scaled up. Shapes: (B, T, D), (B, T)."""
        if not self.training or self.rate == 0:
            return vectors
        types, places = ids.unique(return_inverse=True)  # (n,), (B, T)
        keep = torch.rand(len(types), device=ids.device) >= self.rate
        return vectors * (keep / (1 - self.rate))[places][..., None]


class Dropouts(nn.Module):
    """What is left out around the LSTM: word types, units of its inputs (None: as of its outputs), its outputs."""

    def __init__(self, outputs: float = 0.0, inputs: float | None = None, words: float = 0.0):
        super().__init__()
        self.words, self.outputs = WordDropout(words), LockedDropout(outputs)
        self.inputs = LockedDropout(outputs if inputs is None else inputs)

    @classmethod
    def of(cls, experiment: Experiment) -> "Dropouts":
        """Returns the dropouts of an experiment."""
        return cls(experiment.dropout, experiment.input_dropout, experiment.embedding_dropout)


class LayeredLSTM(nn.Module):
    """LSTM layers of any sizes, locked dropout between them, and some recurrent weights left out of each window.

    Called as nn.LSTM is, but its state is flat: h and c of each layer in turn. Without dropout, and with layers
    of one size, it starts from the same weights as nn.LSTM and gives the same states; the dropout between the
    layers of nn.LSTM draws a new mask at every step.
    Source: Merity et al. 2018, section 2 (weight drop) and 4.1 (locked dropout).
    """

    def __init__(self, sizes: list[int], between: float, weight_drop: float):
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(*pair, batch_first=True) for pair in pairwise(sizes))
        self.between, self.weight_drop = LockedDropout(between), weight_drop

    def forward(self, values: torch.Tensor, state: tuple | None = None):
        """Returns the top layer's states and the state. Shapes: (B, T, D) -> (B, T, H), 2 L times (1, B, H_l)."""
        ends: list[torch.Tensor] = []
        for index, layer in enumerate(self.layers):
            zeros = values.new_zeros(1, len(values), layer.hidden_size)
            before = (zeros, zeros) if state is None else state[2 * index : 2 * index + 2]
            kept = F.dropout(layer.weight_hh_l0, self.weight_drop, self.training)
            weights = (layer.weight_ih_l0, kept, layer.bias_ih_l0, layer.bias_hh_l0)
            values = self.between(values) if index else values
            # What nn.LSTM calls: with biases, 1 layer, no dropout, in training or not, one direction, batch first.
            values, *end = torch.lstm(values, before, weights, True, 1, 0.0, self.training, False, True)
            ends += end
        return values, tuple(ends)


def make_lstm(experiment: Experiment, n_features: int = 0) -> nn.Module:
    """Returns the untrained LSTM of an experiment; its input dimension is its hidden size, and any features."""
    size, layers, between = experiment.hidden_size, experiment.n_layers, experiment.layer_dropout
    inner, weight_drop = experiment.inner_size, experiment.weight_drop
    if inner is None and between is None and weight_drop == 0:
        dropout = experiment.dropout if layers > 1 else 0.0
        return nn.LSTM(size + n_features, size, layers, batch_first=True, dropout=dropout)
    sizes = [size + n_features, *[inner or size] * (layers - 1), size]
    return LayeredLSTM(sizes, experiment.dropout if between is None else between, weight_drop)
