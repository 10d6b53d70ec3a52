"""The biLM against a plain one: PyTorch's own modules, full softmax in float32, dense Adam, whole lines.

The reference shares the text, its vocabulary, the width and the number of epochs with ours, but no code: no sampled
softmax, no row-wise updates, no bf16, no lines cut or sorted by length, no running sums.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.counting import judged, over_seeds
from rtl_core.config import PretrainConfig
from rtl_core.corpora import load_corpus
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain import lm

DIM, VOCAB_SIZE = 128, 10_000
# None: all two million, a quarter of an hour a seed; judgements need them, perplexities do not
TOKENS = 300_000
HELD_OUT = 10  # documents of validation and of test text: a full softmax in float32 is slow
SEEDS = 3
LINES = 16  # of a batch
# of 2e-3, 4e-3, 8e-3, 1.6e-2 the one with the lowest validation perplexity on 92,000 tokens
LEARNING_RATE = 1.6e-2


class PlainBiLM(nn.Module):
    """A forward and a backward LSTM over one table of vectors, each with an output layer of its own."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.table = nn.Embedding(vocab_size, DIM)
        self.lstms = nn.ModuleList(nn.LSTM(DIM, DIM // 2, batch_first=True) for _ in range(2))
        self.outputs = nn.ModuleList(nn.Linear(DIM // 2, vocab_size) for _ in range(2))

    def states(self, lines: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Returns each line's states, forward and backward, in the order of the text. Shapes: (T,) -> (T, D/2)."""
        both = []
        for lstm, turned in zip(self.lstms, (False, True)):
            padded = pad_sequence([line.flip(0) if turned else line for line in lines], batch_first=True)
            hidden, _ = lstm(self.table(padded))
            own = [states[: len(line)] for states, line in zip(hidden, lines)]
            both.append([states.flip(0) for states in own] if turned else own)
        return both

    def nats(self, lines: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the summed loss of each direction: the word after each word, and the word before."""
        forward, backward = self.states(lines)
        ahead = torch.cat([states[:-1] for states in forward]), torch.cat([line[1:] for line in lines])
        behind = torch.cat([states[1:] for states in backward]), torch.cat([line[:-1] for line in lines])
        return [
            F.cross_entropy(output(hidden), targets, reduction="sum")
            for output, (hidden, targets) in zip(self.outputs, (ahead, behind))
        ]


def lines_of(corpus: Corpus, vocabulary: Vocabulary, split: str) -> list[torch.Tensor]:
    """Returns each line as ids between two `<eos>`: n words make n + 1 predictions in either direction."""
    eos, unk = vocabulary.words[EOS_ID], vocabulary.ids["<unk>"]
    lines = (line for document in corpus.split(split) for line in document.lines())
    return [torch.tensor([vocabulary.ids.get(word, unk) for word in (eos, *line, eos)]) for line in lines]


def trained(lines: list[torch.Tensor], vocab_size: int, seed: int, rate: float = LEARNING_RATE) -> PlainBiLM:
    """Returns a plain biLM trained for as many epochs as ours."""
    torch.manual_seed(seed)
    model = PlainBiLM(vocab_size)
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for _ in range(lm.EPOCHS["bilm"]):
        for chosen in torch.randperm(len(lines)).split(LINES):
            batch = [lines[i] for i in chosen]
            optimiser.zero_grad()
            (sum(model.nats(batch)) / (2 * sum(len(line) - 1 for line in batch))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    return model.eval()


@torch.no_grad()
def perplexities(model: PlainBiLM, lines: list[torch.Tensor]) -> list[float]:
    """Returns the perplexity of each direction, a line at a time."""
    total = np.sum([[float(nats) for nats in model.nats([line])] for line in lines], axis=0)
    return [math.exp(nats / sum(len(line) - 1 for line in lines)) for nats in total]


@torch.no_grad()
def averaged(model: PlainBiLM, lines: list[torch.Tensor], vocabulary: Vocabulary) -> Embeddings:
    """Returns for every word the mean of its states over all its occurrences, one line at a time."""
    total, count = torch.zeros(len(vocabulary), DIM, dtype=torch.float64), torch.zeros(len(vocabulary))
    for line in lines:
        (forward,), (backward,) = model.states([line])
        total.index_add_(0, line, torch.cat([forward, backward], 1).double())
        count.index_add_(0, line, torch.ones(len(line)))
    seen = np.flatnonzero(count)
    table = (total[seen] / count[seen, None]).float().numpy()
    return Embeddings(tuple(vocabulary.decode(seen)), table)


def all_rows() -> list[dict]:
    """Perplexity in both directions and correlation with human judgements, ours and plain, over seeds."""
    corpus = load_corpus("wikitext-2").sampled(TOKENS)
    held_out = [d for split in ("valid", "test") for d in corpus.split(split)[:HELD_OUT]]
    corpus = replace(corpus, documents=(*corpus.split("train"), *held_out))
    vocabulary = Vocabulary.build(corpus.split("train"), VOCAB_SIZE)
    train, test = (lines_of(corpus, vocabulary, split) for split in ("train", "test"))
    own, plain = [], []
    for seed in range(SEEDS):
        started = time.perf_counter()
        made = lm.pretrain(corpus, vocabulary, PretrainConfig("bilm", dim=DIM, seed=seed))
        own.append(_measures(started, made.scores.values(), made.embeddings))
        started = time.perf_counter()
        model = trained(train, len(vocabulary), seed)
        vectors = averaged(model, train, vocabulary)
        plain.append(_measures(started, perplexities(model, test), vectors))
    at_least = {"seconds": 2, "forward perplexity": 0.9, "backward perplexity": 0.9}
    n_tokens = corpus.n_tokens("train")
    return over_seeds(f"biLM on {n_tokens:,} tokens of wikitext-2 against plain", own, plain, at_least)


def _measures(started: float, scores: Iterable[float], vectors: Embeddings) -> dict[str, float]:
    seconds = time.perf_counter() - started
    directions = dict(zip(("forward perplexity", "backward perplexity"), scores))
    return {"seconds": seconds, **directions, **judged(vectors)}
