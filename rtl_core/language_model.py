"""The language model: an LSTM that receives its input table and its output layer."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from rtl_core.batches import Batch
from rtl_core.config import Experiment
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.criteria import OutputLayer
from rtl_core.storage import StudyError, atomic, read_json, write_json
from rtl_core.training import Loss


class InputTable(nn.Module):
    """Word vectors by id. Frozen rows stay as they are; rows of words no source covers stay trainable.

    Shapes: table (V, D); covered bool (V,). `scale` multiplies what is looked up: √D where the table is
    tied to the output and stored small. `sparse`: gradients of the looked-up rows only.
    """

    def __init__(
        self,
        table: torch.Tensor,
        covered: torch.Tensor,
        frozen: bool = False,
        scale: float = 1.0,
        sparse: bool = False,
    ):
        super().__init__()
        self.frozen, self.scale, self.sparse = frozen, scale, sparse
        if frozen:
            rows = torch.full((len(table),), -1)
            rows[~covered] = torch.arange(int((~covered).sum()))
            self.register_buffer("fixed", table.clone())
            self.register_buffer("rows", rows)  # of the trainable part, -1 where the row is fixed
            self.weight = nn.Parameter(table[~covered].clone())
        else:
            self.weight = nn.Parameter(table.clone())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns vectors. Shapes: ids (B, T) -> (B, T, D)."""
        if not self.frozen:
            vectors = nn.functional.embedding(ids, self.weight, sparse=self.sparse)
            return vectors if self.scale == 1 else vectors * self.scale
        rows = self.rows[ids]
        free = nn.functional.embedding(rows.clamp(min=0), self.weight)
        return torch.where((rows >= 0)[..., None], free, self.fixed[ids]) * self.scale


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


class LSTMLanguageModel(nn.Module):
    """Predicts each word from the words before it.

    Shapes: hidden size H equals the output layer's columns; the input table's D may differ.
    """

    def __init__(self, table: InputTable, lstm: nn.LSTM, output: OutputLayer, dropout: float = 0.0):
        super().__init__()
        self.table, self.lstm, self.output = table, lstm, output
        self.dropout = LockedDropout(dropout)

    def states(self, inputs: torch.Tensor, state=None, features: torch.Tensor | None = None):
        """Returns the hidden states and the recurrent state.

        Shapes: inputs (B, T), features (B, T, F) joined to the word vectors, or None -> (B, T, H).
        Training multiplies in bf16 where that is fast; scoring, as everything reported, is float32.
        """
        vectors = self.table(inputs)
        if features is not None:
            vectors = torch.cat([vectors, features], dim=-1)
        vectors = self.dropout(vectors)
        with torch.autocast(vectors.device.type, torch.bfloat16, self.training and self.output.bf16):
            hidden, state = self.lstm(vectors, state)
        return hidden.float(), state

    def loss(self, batch: Batch, state=None) -> Loss:
        """Returns the summed training loss over the batch's real tokens, and the detached state."""
        if state is not None:  # units that have ended are the last rows: the batch may be narrower
            state = tuple(part[:, : len(batch.inputs)].contiguous() for part in state)
        hidden, state = self.states(batch.inputs, state, batch.features)
        hidden = self.dropout(hidden)
        if batch.mask is None:
            hidden, targets = hidden.flatten(0, 1), batch.targets.flatten()
        else:
            hidden, targets = hidden[batch.mask], batch.targets[batch.mask]
        total = self.output.loss(hidden, targets)
        return Loss(total, len(targets), tuple(part.detach() for part in state))


def make_lstm(experiment: Experiment, n_features: int = 0) -> nn.LSTM:
    """Returns the untrained LSTM of an experiment; its input dimension is its hidden size, and any features."""
    size, layers = experiment.hidden_size, experiment.n_layers
    between = experiment.dropout if layers > 1 else 0.0
    return nn.LSTM(size + n_features, size, layers, batch_first=True, dropout=between)


def save_model(
    folder: Path, model: LSTMLanguageModel, vocabulary: Vocabulary, experiment: Experiment, tokenizer: str
) -> None:
    """Writes all that scoring a text needs: weights, vocabulary, settings and the corpus's tokenizer."""
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    if experiment.output_init == "tied":
        del tensors["output.weight"]
    vocabulary.save(folder / "vocabulary.json")
    with atomic(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(tensors))
    write_json(folder / "experiment.json", {"experiment": experiment.to_dict(), "tokenizer": tokenizer})


def load_model(folder: Path) -> tuple[LSTMLanguageModel, Vocabulary, str]:
    """Returns what `save_model` wrote: the model, its vocabulary and the name of its tokenizer.

    Raises: StudyError when a part is missing or not whole.
    """
    notes = read_json(folder / "experiment.json")
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    experiment = Experiment.from_dict(notes["experiment"])
    try:
        model = _restored(load_file(folder / "model.safetensors"), vocabulary, experiment)
    except (SafetensorError, FileNotFoundError, KeyError, RuntimeError) as error:
        raise StudyError(f"the model in {folder} is not whole ({error}); train it again.") from error
    return model.eval(), vocabulary, notes["tokenizer"]


def _restored(tensors: dict, vocabulary: Vocabulary, experiment: Experiment) -> LSTMLanguageModel:
    tied, frozen = experiment.output_init == "tied", experiment.input_mode == "frozen"
    if frozen:
        table = InputTable(tensors["table.fixed"], tensors["table.rows"] < 0, frozen=True)
    else:
        table = InputTable(tensors["table.weight"], torch.ones(len(vocabulary), dtype=torch.bool))
        table.scale = experiment.hidden_size**0.5 * experiment.input_rms if tied else 1.0
    weight = table.weight if tied else nn.Parameter(tensors["output.weight"])
    output = OutputLayer(weight, vocabulary.counts)  # counts start the bias, which is loaded next
    model = LSTMLanguageModel(table, make_lstm(experiment), output, experiment.dropout)
    model.load_state_dict(tensors, strict=not tied)
    return model
