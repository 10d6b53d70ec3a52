"""Language models as pre-training: `lm` reads the text forwards, `bilm` every sentence from both ends.

`leaky-bilm` is a biLM whose states of a text are given to the language model that is to predict the same text: a
mistake that happens easily, made here on purpose.
Source: Verwimp and Bellegarda 2019, section 3.1 (states averaged); Peters et al. 2018, section 3.1 (the biLM; here
with a table of words instead of characters, and an output layer for each direction).
"""

import math
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import nn

from rtl_core.batches import Batch, Sequences, groups, stream_batches, unit_batches
from rtl_core.catalogue import LEAKY
from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import SPLITS, Corpus
from rtl_core.corpora.vocabulary import EOS_ID, Encoded, Vocabulary
from rtl_core.criteria import OutputLayer
from rtl_core.embeddings import Embeddings
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.pretrain.averaging import check_layer, read_out
from rtl_core.pretrain.encoder import BidirectionalEncoder, output_layer, random_table
from rtl_core.pretrain.pretrained import Pretrained, contextual, fit_pretrainer, provenance, seeded
from rtl_core.training import Loss, Optimisation, device, mean_loss, to_device

EPOCHS = {"lm": 2, "bilm": 2, LEAKY: 2}
LEARNING_RATE = 1.2e-2
STREAMS, WINDOW = 64, 35  # of `lm`; fewer streams where the text is short
SHORTEST_STREAM = 1000
SCORED_AT_ONCE = 4096  # tokens; changes memory, never a number


class BidirectionalLanguageModel(nn.Module):
    """Two language models over one table of input vectors: one predicts the next word, one the word before.

    Shapes: counts (V,), of the training text.
    """

    def __init__(self, counts: np.ndarray, dim: int, n_layers: int, encoder: nn.Module | None = None):
        super().__init__()
        self.encoder = encoder or BidirectionalEncoder(random_table(len(counts), dim), dim, n_layers)
        self.widths = (dim // 2, dim - dim // 2)
        self.outputs = nn.ModuleList(output_layer(counts, width) for width in self.widths)

    def predictions(self, batch: Batch) -> list[tuple[OutputLayer, torch.Tensor, torch.Tensor]]:
        """Returns output layer, states and the words they are to predict: forward, then backward.

        A forward state has read all words up to its own and predicts the next one; a backward state has read
        its own and all after it, and predicts the one before.
        Shapes: hidden (n, D/2), targets (n,); n is one less than the tokens of each sequence, summed.
        """
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, self.training and self.outputs[0].bf16):
            states = self.encoder(batch.inputs, batch.mask)  # (B, T, D)
        ahead, behind = states.float().split(self.widths, dim=-1)
        real, (forward, backward) = batch.mask[:, 1:], self.outputs
        return [
            (forward, ahead[:, :-1][real], batch.inputs[:, 1:][real]),
            (backward, behind[:, 1:][real], batch.inputs[:, :-1][real]),
        ]

    def loss(self, batch: Batch, state=None) -> Loss:
        """Returns the losses of both directions summed, and the number of their predictions."""
        both = self.predictions(batch)
        total = sum(output.loss(hidden, targets) for output, hidden, targets in both)
        return Loss(total, sum(len(targets) for *_, targets in both))


def sentences(text: Encoded, cut: bool = False) -> Sequences:
    """Returns every sentence with the `<eos>` before it, so that n words and their `<eos>` are n + 1 predictions.

    `cut`: long ones in pieces, for training; a later piece has the word before it in place of the `<eos>`.
    """
    lengths = np.diff(text.line_starts)
    whole = Sequences(text.tokens, text.line_starts[:-1], lengths, np.full(len(lengths), -1))
    return preceded(Sequences.of(text, "sentence") if cut else whole)


def preceded(found: Sequences) -> Sequences:
    """Returns sequences with the token before each, `<eos>` before the first of the text."""
    # shifted by one, each start is the place of the token before
    shifted = np.concatenate([[EOS_ID], found.tokens]).astype(found.tokens.dtype)
    return replace(found, tokens=shifted, lengths=found.lengths + 1)


@torch.no_grad()
def perplexities(model: BidirectionalLanguageModel, text: Sequences) -> dict[str, float]:
    """Returns the exact perplexity of each direction: two models, so never one number."""
    model.eval()
    total, count = {"forward": 0.0, "backward": 0.0}, 0
    for batch in text.batches():
        both = model.predictions(to_device(batch, device()))
        for name, (output, hidden, targets) in zip(total, both):
            total[name] += output.nats(hidden, targets).sum().item()
        count += len(targets)
    return {f"{name}_perplexity": math.exp(total[name] / count) for name, _ in zip(total, both)}


@torch.no_grad()
def token_states(model: BidirectionalLanguageModel, text: Encoded, layer: int | None = None) -> np.ndarray:
    """Returns for every token the biLM's state of the token before it in its sentence: what must not be done.

    The backward half of that state has read the sentence from its end, the token itself included, so whoever
    predicts a token from it has been told. The first token of a sentence gets the state of the `<eos>` before it.
    Shapes: returns float32 (N, D).
    """
    model.eval()
    found, out = sentences(text), np.empty((len(text), sum(model.widths)), np.float32)
    for group in groups(found.lengths):
        batch = to_device(found.take(group), device())
        before = model.encoder(batch.inputs, batch.mask, layer)[:, :-1]  # (B, T - 1, D)
        real = batch.mask[:, 1:].cpu().numpy()
        places = found.starts[group][:, None] + np.arange(real.shape[1])
        out[places[real]] = before.cpu().numpy()[real]
    return out


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the vectors of a language model's input layer, or of a biLM's states, with exact perplexities.

    `leaky-bilm` has no vectors of its own, but random ones; what it is for is its model: see `token_states`.
    Raises: StudyError when the encoder has no such layer, or there is hardly any text.
    """
    return (_forward if config.plain == "lm" else _bidirectional)(corpus, vocabulary, config)


def _forward(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    started = perf_counter()
    train, valid, test = (vocabulary.encode(corpus.split(split)) for split in SPLITS)
    counts = np.bincount(train.tokens, minlength=len(vocabulary))
    streams = max(1, min(STREAMS, len(train) // SHORTEST_STREAM))

    def make() -> LSTMLanguageModel:
        lstm = nn.LSTM(config.dim, config.dim, batch_first=True)
        return LSTMLanguageModel(
            random_table(len(counts), config.dim), lstm, output_layer(counts, config.dim)
        )

    def mean_nats(text: Encoded) -> float:
        return mean_loss(model, unit_batches(text, "stream", 1, SCORED_AT_ONCE))

    model = seeded(config, make)
    rows = fit_pretrainer(
        config, model, lambda order: stream_batches(train, streams, WINDOW, int(order.integers(WINDOW))),
        lambda: mean_nats(valid), _optimisation(config),
    )  # fmt: skip
    scores = {"test_perplexity_stream": math.exp(mean_nats(test))}
    counts[EOS_ID] = 0  # no word
    seen = np.flatnonzero(counts)
    known = {"readout": "input-layer", "epochs": len(rows)}
    facts = provenance(config, corpus, len(train), perf_counter() - started, **known)
    table = model.table.weight.detach().cpu().numpy()[seen]
    return Pretrained(Embeddings(tuple(vocabulary.decode(seen)), table, facts), scores, rows, model)


def _bidirectional(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    started, n_layers = perf_counter(), config.encoder_layers or 1
    check_layer(config, n_layers)  # before it is trained for nothing
    train, valid, test = (vocabulary.encode(corpus.split(split)) for split in SPLITS)
    counts = np.bincount(train.tokens, minlength=len(vocabulary))
    pieces, held_out = sentences(train, cut=True), sentences(valid)
    model = seeded(config, lambda: BidirectionalLanguageModel(counts, config.dim, n_layers))
    rows = fit_pretrainer(
        config, model, pieces.batches, lambda: mean_loss(model, held_out.batches()), _optimisation(config)
    )
    scores = perplexities(model, sentences(test))
    known = {"epochs": len(rows), "tokens_read": len(train)}
    if config.plain == LEAKY:
        rng = np.random.default_rng(derive_seed(config.seed, "pretrain", config.plain))
        table = rng.standard_normal((len(vocabulary), config.dim), dtype=np.float32)
        counts, known["readout"] = np.ones(len(vocabulary)), None
    else:
        table, counts = read_out(model.encoder, sentences(train), len(vocabulary), config)
    known["seconds"] = perf_counter() - started
    return Pretrained(contextual(config, corpus, vocabulary, table, counts, known), scores, rows, model)


def _optimisation(config: PretrainConfig) -> Optimisation:
    return Optimisation(LEARNING_RATE, max_epochs=config.epochs or EPOCHS[config.plain], patience=2)
