"""Where and how embeddings enter the language model; the trained model as files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from rtl_core.config import Experiment, derive_seed
from rtl_core.corpora.text import TOKENIZERS
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.criteria import OutputLayer, make_output
from rtl_core.embeddings import Embeddings
from rtl_core.input_layers import (
    AnchoredTable,
    ConcatenatedTables,
    GatedTables,
    InputLayer,
    InputTable,
    ProjectedTable,
)
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.pretrain import random_vectors
from rtl_core.recurrent import Dropouts, make_lstm
from rtl_core.storage import StudyError, atomic, read_json, reading_model, write_json
from rtl_core.training import device


def input_table(embeddings: Embeddings, vocabulary: Vocabulary, rms: float, seed: int):
    """Returns the table that enters the model, and which rows its source covers.

    The table is centred over its covered rows and divided by their root mean square, so that every source
    enters at the same size; then multiplied by `rms`. Rows that no source covers, always `<eos>`, are
    Gaussian of the same size.

    Shapes: returns float32 (V, D), bool (V,).
    Raises: StudyError when the source covers no word of the vocabulary.
    """
    table, covered = embeddings.lookup(vocabulary.words)
    covered = covered.copy()
    covered[EOS_ID] = False
    if not covered.any():
        raise StudyError(
            f"the embeddings share no word with the vocabulary (theirs: {', '.join(embeddings.words[:5])}; "
            f"the vocabulary's: {', '.join(vocabulary.words[2:7])}). Is it the same language and spelling?"
        )
    out = np.random.default_rng(seed).standard_normal(table.shape)
    known = table[covered] - table[covered].mean(0, dtype=np.float64)
    size = np.sqrt(np.mean(known**2))
    if size == 0:
        raise StudyError("the embeddings are the same for every word; there is nothing to transfer.")
    out[covered] = known / size
    return torch.from_numpy(out * rms).float(), torch.from_numpy(covered)


# What, beside its settings, a model's structure follows from: stored with it, so that it can be built again.
BUILT_FROM = ("covered", "kept", "counts", "n_features")


class Tables(NamedTuple):
    """What a model starts from: its input table, its output table (None: drawn), the rows that frozen ones keep.

    Shapes: inputs and outputs (V, D); covered bool (V,), of the input; kept bool (V,), of the output.
    """

    inputs: torch.Tensor
    covered: torch.Tensor
    outputs: torch.Tensor | None
    kept: torch.Tensor


def build_model(
    experiment: Experiment,
    vocabulary: Vocabulary,
    embeddings: Embeddings,
    lm_counts: np.ndarray,
    n_features: int = 0,
) -> LSTMLanguageModel:
    """Returns the language model of an experiment, its embeddings in place.

    `lm_counts` (V,) are the word counts of the LM's own training text: they start the output bias and shape
    the sampling distribution. `n_features` are joined to every input vector. The initial weights depend on the
    seed alone, never on the source.
    Raises: StudyError when the embeddings' dimension is not the model's.
    """
    size, seed = experiment.hidden_size, experiment.seed
    if embeddings.dim != size:
        raise StudyError(
            f"the embeddings have {embeddings.dim} dimensions and the model {size}; set hidden_size="
            f"{embeddings.dim}, or reduce them with Embeddings.reduced({size})."
        )
    entering = random_vectors(vocabulary, size, seed) if experiment.input_init == "random" else embeddings
    inputs, covered = input_table(entering, vocabulary, entering_rms(experiment), derive_seed(seed, "rows"))
    # a drawn output has all words, as source random has
    outputs, kept = None, torch.arange(len(vocabulary)) != EOS_ID
    if experiment.output_init == "pretrained":
        outputs, kept = input_table(embeddings, vocabulary, size**-0.5, derive_seed(seed, "output rows"))
    return _assembled(experiment, Tables(inputs, covered, outputs, kept), lm_counts, n_features)


def entering_rms(experiment: Experiment) -> float:
    """Returns the root mean square at which the input table enters; a learned one starts at the default."""
    return Experiment.input_rms if experiment.input_rms == "learned" else experiment.input_rms


def _assembled(
    experiment: Experiment, tables: Tables, counts: np.ndarray, n_features: int
) -> LSTMLanguageModel:
    """Returns the model whose structure follows from settings, tables, counts and features: new, or to be loaded."""
    size = experiment.hidden_size
    sparse = device().type != "mps"  # which has no sparse gradients
    inputs = _input_layer(experiment, tables, sparse)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(experiment.seed, "initialisation"))
        lstm = make_lstm(experiment, inputs.dim - size + n_features)
        weight = torch.randn(len(tables.inputs), size) / size**0.5
    if experiment.output_init == "tied":
        output_weight = inputs.weight
    else:
        output_weight = nn.Parameter(weight if tables.outputs is None else tables.outputs.clone())
    output = make_output(experiment, output_weight, counts, sparse)
    if experiment.output_mode == "frozen":
        keep_rows(output, tables.kept)
    model = LSTMLanguageModel(inputs, lstm, output, Dropouts.of(experiment))
    model.built_from = dict(zip(BUILT_FROM, (tables.covered, tables.kept, counts, n_features)))
    return model


def _input_layer(experiment: Experiment, tables: Tables, sparse: bool) -> InputLayer:
    mode, table, covered, rms = experiment.input_mode, tables.inputs, tables.covered, entering_rms(experiment)
    scale = 1.0
    if experiment.output_init == "tied":  # stored at root mean square 1/√D, the output's size
        scale = experiment.hidden_size**0.5 * rms  # and brought to input_rms at the input
        table = table / scale
    if mode == "l2sp":
        layer = AnchoredTable(experiment.l2sp, table, covered, scale=scale, sparse=sparse)
    elif mode == "projected":
        layer = ProjectedTable(table, covered)
    elif mode in ("concatenated", "gated"):
        drawn = np.random.default_rng(derive_seed(experiment.seed, "beside")).standard_normal(table.shape)
        joined = ConcatenatedTables if mode == "concatenated" else GatedTables
        layer = joined(table, covered, torch.from_numpy(drawn * rms).float(), sparse)
    else:
        layer = InputTable(table, covered, mode == "frozen", scale, sparse)
    if experiment.input_rms == "learned":
        layer.learn_size()
    return layer


def keep_rows(layer: OutputLayer, kept: torch.Tensor) -> None:
    """Makes rows of a layer's weight stay as they are: their gradient is dropped before anything has seen it.

    What is left is a sparse gradient, so that weight decay too leaves the kept rows alone (training.RowwiseAdamW).
    Shapes: kept bool (V,).
    """
    layer.register_buffer("kept", kept, persistent=False)

    def drop(weight: torch.Tensor) -> None:
        if not layer.sparse:  # on a device without sparse gradients
            weight.grad[layer.kept] = 0
            return
        gradient = weight.grad.coalesce() if weight.grad.is_sparse else weight.grad.to_sparse(1)
        free = ~layer.kept[gradient.indices()[0]]
        parts = gradient.indices()[:, free], gradient.values()[free]
        weight.grad = torch.sparse_coo_tensor(*parts, weight.shape, check_invariants=False, is_coalesced=True)

    layer.weight.register_post_accumulate_grad_hook(drop)


def save_model(
    folder: Path, model: LSTMLanguageModel, vocabulary: Vocabulary, experiment: Experiment, tokenizer: str
) -> None:
    """Writes all that scoring a text needs: weights, vocabulary, settings and the corpus's tokenizer."""
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    if experiment.output_init == "tied":
        del tensors["output.weight"]
    tensors = {name: value for name, value in tensors.items() if not name.startswith("head.")}  # no word's
    tensors |= {f"built_from.{name}": torch.as_tensor(value) for name, value in model.built_from.items()}
    vocabulary.save(folder / "vocabulary.json")
    with atomic(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(tensors))
    write_json(folder / "experiment.json", {"experiment": experiment.to_dict(), "tokenizer": tokenizer})


def load_model(folder: Path) -> tuple[LSTMLanguageModel, Vocabulary, str]:
    """Returns what `save_model` wrote: the model, its vocabulary and the name of its tokenizer.

    Raises: StudyError when a part is missing or not whole.
    """
    with reading_model(folder):
        notes = read_json(folder / "experiment.json")
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
        model = _restored(load_file(folder / "model.safetensors"), Experiment.from_dict(notes["experiment"]))
        known, rows = len(vocabulary.ids), len(model.built_from["covered"])
        if not known == len(vocabulary.words) == len(vocabulary.counts) == rows:
            raise ValueError(f"its vocabulary has {known} different words, its table {rows} rows")
        if notes["tokenizer"] not in TOKENIZERS:
            raise ValueError(f"its tokenizer is {notes['tokenizer']!r}; known are {', '.join(TOKENIZERS)}")
        return model.eval(), vocabulary, notes["tokenizer"]


def _restored(tensors: dict, experiment: Experiment) -> LSTMLanguageModel:
    """Returns the model built as it once was, on an empty table, its weights then put in place."""
    covered, kept, counts, n_features = (tensors.pop(f"built_from.{name}") for name in BUILT_FROM)
    empty = torch.zeros(len(covered), experiment.hidden_size)
    outputs = empty if experiment.output_init == "pretrained" else None
    model = _assembled(experiment, Tables(empty, covered, outputs, kept), counts.numpy(), int(n_features))
    if experiment.output_init == "tied":
        tensors["output.weight"] = tensors["table.weight"]
    if bad := [name for name, values in tensors.items() if not values.isfinite().all()]:
        raise ValueError(f"not all numbers of {', '.join(bad)} are finite")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # parts that are missing or of another size; torch has one error for much
        raise ValueError(" ".join(str(error).split())) from None
    return model
