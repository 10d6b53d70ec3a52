"""The language model: an LSTM that receives its input table and its output layer."""

import torch
import torch.nn.functional as F
from torch import nn

from rtl_core.batches import Batch
from rtl_core.corpora.vocabulary import EOS_ID
from rtl_core.criteria import OutputLayer
from rtl_core.input_layers import InputLayer
from rtl_core.recurrent import Dropouts
from rtl_core.softmax import affine
from rtl_core.storage import StudyError
from rtl_core.training import Loss


class LSTMLanguageModel(nn.Module):
    """Predicts each word from the words before it.

    Shapes: hidden size H equals the output layer's columns; the input table's D may differ.
    """

    def __init__(
        self, table: InputLayer, lstm: nn.Module, output: OutputLayer, dropouts: Dropouts | None = None
    ):
        super().__init__()
        self.table, self.lstm, self.output = table, lstm, output
        self.dropouts = dropouts or Dropouts()
        self.head, self.head_weight = None, 0.0  # of a second task, see `learn_labels`

    def states(self, inputs: torch.Tensor, state=None, features: torch.Tensor | None = None):
        """Returns the hidden states and the recurrent state.

        Shapes: inputs (B, T), features (B, T, F) joined to the word vectors, or None -> (B, T, H).
        Training multiplies in bf16 where that is fast; scoring, as everything reported, is float32.
        """
        vectors = self.dropouts.words(self.table(inputs), inputs)
        if features is not None:
            vectors = torch.cat([vectors, features], dim=-1)
        vectors = self.dropouts.inputs(vectors)
        with torch.autocast(vectors.device.type, torch.bfloat16, self.training and self.output.bf16):
            hidden, state = self.lstm(vectors, state)
        return hidden.float(), state

    def learn_labels(self, hidden_size: int, n_labels: int, weight: float, seed: int) -> None:
        """Adds a linear layer that names each token's label from the state that predicts the token.

        Its loss, times `weight`, joins the language model's in training; perplexity is not affected by it.
        Source: Collobert and Weston 2008, section 4 (tasks that share their layers).
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = nn.Linear(hidden_size, n_labels)
        self.head_weight = weight

    def loss(self, batch: Batch, state=None) -> Loss:
        """Returns the summed training loss over the batch's real tokens, and the detached state."""
        if state is not None:  # units that have ended are the last rows: the batch may be narrower
            state = tuple(part[:, : len(batch.inputs)].contiguous() for part in state)
        hidden, state = self.states(batch.inputs, state, batch.features)
        hidden = self.dropouts.outputs(hidden)
        if batch.mask is None:
            hidden, targets = hidden.flatten(0, 1), batch.targets.flatten()
        else:
            hidden, targets = hidden[batch.mask], batch.targets[batch.mask]
        total = self.output.loss(hidden, targets)
        if self.training:
            total = total + len(targets) * self.table.penalty(batch.inputs)
            if self.head_weight:
                labels = batch.labels.flatten() if batch.mask is None else batch.labels[batch.mask]
                nats = F.cross_entropy(self.head(hidden), labels, ignore_index=-1, reduction="sum")
                total = total + self.head_weight * nats
        return Loss(total, len(targets), tuple(part.detach() for part in state))


SAMPLED = 256  # texts that are sampled side by side; changes speed and memory, never a word


@torch.no_grad()
def generate(model: LSTMLanguageModel, openings: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Returns how the model goes on after each opening: word ids sampled one by one from the exact softmax.

    An opening is read from `<eos>` and a zero state, as a document is scored. `<unk>` is a word like any other: it is
    sampled, and read again, as often as the model expects it. Each draw, uniform from 0 to 1, decides one word, so
    that a text depends on its own draws alone.
    Shapes: openings int64 (B, n), draws float64 (B, T) -> int64 (B, T).
    Raises: StudyError for a model whose output is not one softmax.
    """
    if not isinstance(model.output, OutputLayer):
        raise StudyError(
            "texts are sampled from one softmax over all words, and this model has an adaptive one; train it with "
            "criterion softmax or sampled-softmax."
        )
    model.eval()
    pairs = zip(openings.split(SAMPLED), draws.split(SAMPLED))
    return torch.cat([_continued(model, *pair) for pair in pairs])


def _continued(model: LSTMLanguageModel, openings: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    weight, bias = model.output.weight.float(), model.output.bias.float()
    inputs, state, words = F.pad(openings, (1, 0), value=EOS_ID).to(weight.device), None, []
    for draw in draws.to(weight.device).T:
        hidden, state = model.states(inputs, state)
        chances = affine(hidden[:, -1], weight, bias).softmax(1).cumsum(1, dtype=torch.float64)  # (B, V)
        inputs = torch.searchsorted(chances, draw[:, None] * chances[:, -1:]).clamp_(max=len(bias) - 1)
        words.append(inputs)
    return torch.cat(words, dim=1).cpu()
