"""The masked language model: a small transformer encoder that guesses hidden words from both sides at once.

Source: Devlin et al. 2019, "BERT", section 3.1 (words hidden); Xiong et al. 2020 (normalisation before each part).
"""

import math
from collections.abc import Iterator
from time import perf_counter

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rtl_core.batches import LONGEST, Batch, Sequences
from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import SPLITS, Corpus
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.pretrain.averaging import check_layer, read_out
from rtl_core.pretrain.classifier import accuracies
from rtl_core.pretrain.encoder import INITIAL_RMS, output_layer, random_table
from rtl_core.pretrain.pretrained import Pretrained, contextual, fit_pretrainer, seeded
from rtl_core.softmax import BLOCK_TOKENS
from rtl_core.training import Loss, Optimisation, device, mean_loss, to_device

EPOCHS = 1
N_LAYERS = 2
LEARNING_RATE = 5e-3
HIDDEN = 0.2  # share of words that are to be guessed
HEAD_SIZE = 32  # at least, of as many heads as divide the dimension


class TransformerEncoder(nn.Module):
    """Word and position vectors, then layers in which every word looks at all others of its paragraph.

    The last row of the table is what stands for a hidden word.
    """

    def __init__(self, vocab_size: int, dim: int, n_layers: int):
        super().__init__()
        self.table = random_table(vocab_size + 1, dim)
        self.positions = nn.Parameter(torch.randn(LONGEST["paragraph"], dim) * INITIAL_RMS)
        heads = next(n for n in range(max(1, dim // HEAD_SIZE), 0, -1) if dim % n == 0)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 2 * dim, 0.0, batch_first=True, norm_first=True)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(dim)

    @property
    def n_layers(self) -> int:
        """Transformer layers."""
        return len(self.layers)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """Returns the states of a layer, 1 the lowest (None: the top), normalised.

        Shapes: ids int64 (B, T), mask bool (B, T) -> (B, T, D); states at padding mean nothing.
        """
        states = self.table(ids) + self.positions[: ids.shape[1]]  # (B, T, D)
        for part in self.layers[:layer]:
            states = part(states, src_key_padding_mask=~mask)
        return self.norm(states)


class MaskedLanguageModel(nn.Module):
    """Guesses the words that `hidden` has hidden. Shapes: counts (V,), of the training text."""

    def __init__(self, counts: np.ndarray, dim: int, n_layers: int, encoder: nn.Module | None = None):
        super().__init__()
        self.encoder = encoder or TransformerEncoder(len(counts), dim, n_layers)
        self.output = output_layer(counts, dim)

    def predictions(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the states that are to predict, and the words. Shapes: (n, D), (n,)."""
        fast = torch.autocast(batch.inputs.device.type, torch.bfloat16, self.training and self.output.bf16)
        with fast, sdpa_kernel(SDPBackend.MATH):  # a processor's fused attention takes twice as long to train
            states = self.encoder(batch.inputs, batch.mask)  # (B, T, D)
        chosen = batch.targets >= 0
        return states[chosen].float(), batch.targets[chosen]

    def loss(self, batch: Batch, state=None) -> Loss:
        """Returns the summed loss over the hidden words."""
        hidden, targets = self.predictions(batch)
        return Loss(self.output.loss(hidden, targets), len(targets))


def hidden(text: Sequences, vocab_size: int, rng: np.random.Generator, order=None) -> Iterator[Batch]:
    """Yields batches in which a share of the words is to be guessed; targets are -1 at all others.

    Of the chosen words eight in ten are hidden, one in ten is another word, one in ten stands as it is; `<eos>` is
    no word. `order` shuffles, as in `Sequences.batches`.
    """
    for batch in text.batches(order):
        words = batch.inputs.numpy()
        is_word = batch.mask.numpy() & (words != EOS_ID)
        draws = np.where(is_word, rng.random(words.shape), 1)
        chosen = is_word & (draws <= max(HIDDEN, draws.min()))  # one at least
        if not chosen.any():
            continue  # empty lines
        how = rng.random(words.shape)
        inputs = np.where(chosen & (how < 0.8), vocab_size, words)
        inputs = np.where(chosen & (how >= 0.9), rng.integers(EOS_ID + 1, vocab_size, words.shape), inputs)
        targets = np.where(chosen, words, -1)
        yield batch._replace(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets))


@torch.no_grad()
def scores_of(model: MaskedLanguageModel, batches: Iterator[Batch]) -> dict[str, float]:
    """Returns the exact perplexity of hidden words, which is no language model's, and how many are guessed right."""
    model.eval()
    nats, found, true = 0.0, [], []
    for batch in batches:
        states, targets = model.predictions(to_device(batch, device()))
        nats += model.output.nats(states, targets).sum().item()
        for part in states.split(BLOCK_TOKENS):
            found.append((part @ model.output.weight.T + model.output.bias).argmax(1).cpu().numpy())
        true.append(targets.cpu().numpy())
    found, true = np.concatenate(found), np.concatenate(true)
    return {"masked_perplexity": math.exp(nats / len(true)), **accuracies(found, true)}


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the encoder's word vectors, read out as the config says, with its scores on the test text.

    Raises: StudyError when the encoder has no such layer.
    """
    started, n_layers = perf_counter(), config.encoder_layers or N_LAYERS
    check_layer(config, n_layers)  # before it is trained for nothing
    encoded = (vocabulary.encode(corpus.split(split)) for split in SPLITS)
    train, valid, test = (Sequences.of(text, "paragraph") for text in encoded)
    counts = np.bincount(train.tokens, minlength=len(vocabulary))

    def fixed(text: Sequences) -> Iterator[Batch]:  # the same words hidden every time
        rng = np.random.default_rng(derive_seed(config.seed, "hidden"))
        return hidden(text, len(vocabulary), rng)

    model = seeded(config, lambda: MaskedLanguageModel(counts, config.dim, n_layers))
    rows = fit_pretrainer(
        config, model, lambda order: hidden(train, len(vocabulary), order, order),
        lambda: mean_loss(model, fixed(valid)),
        Optimisation(LEARNING_RATE, max_epochs=config.epochs or EPOCHS, patience=2),
    )  # fmt: skip
    scores = scores_of(model, fixed(test))
    table, counts = read_out(model.encoder, train, len(vocabulary), config)
    facts = {"seconds": perf_counter() - started, "epochs": len(rows), "tokens_read": train.n_tokens}
    facts["encoder_layers"] = n_layers
    return Pretrained(contextual(config, corpus, vocabulary, table, counts, facts), scores, rows, model)
