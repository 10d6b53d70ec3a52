"""Where and how embeddings enter the language model."""

import numpy as np
import torch
from torch import nn

from rtl_core.config import Experiment, derive_seed
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.criteria import OutputLayer
from rtl_core.embeddings import Embeddings
from rtl_core.language_model import InputTable, LSTMLanguageModel, make_lstm
from rtl_core.storage import StudyError
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
    size = experiment.hidden_size
    if embeddings.dim != size:
        raise StudyError(
            f"the embeddings have {embeddings.dim} dimensions and the model {size}; set hidden_size="
            f"{embeddings.dim}, or reduce them with Embeddings.reduced({size})."
        )
    tied = experiment.output_init == "tied"
    seed = derive_seed(experiment.seed, "rows")
    table, covered = input_table(embeddings, vocabulary, experiment.input_rms, seed)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(experiment.seed, "initialisation"))
        lstm = make_lstm(experiment, n_features)
        weight = torch.randn(len(vocabulary), size) / size**0.5
    sparse = device().type != "mps"  # which has no sparse gradients
    if tied:  # stored at root mean square 1/√D, the output's size, and brought to input_rms at the input
        stored, scale = table / (size**0.5 * experiment.input_rms), size**0.5 * experiment.input_rms
        inputs = InputTable(stored, covered, scale=scale, sparse=sparse)
        output_weight = inputs.weight
    else:
        inputs = InputTable(table, covered, frozen=experiment.input_mode == "frozen", sparse=sparse)
        output_weight = nn.Parameter(weight)
    n_samples = experiment.n_samples if experiment.criterion == "sampled-softmax" else None
    output = OutputLayer(output_weight, lm_counts, n_samples, sparse)
    return LSTMLanguageModel(inputs, lstm, output, experiment.dropout)
