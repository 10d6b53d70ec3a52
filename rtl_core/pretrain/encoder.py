"""The shared encoder: LSTMs that read a sequence from both ends; word vectors from spelling."""

import zlib

import numpy as np
import torch
from torch import nn

from rtl_core.corpora.vocabulary import EOS, UNK
from rtl_core.criteria import OutputLayer
from rtl_core.input_layers import InputTable
from rtl_core.training import device

N_BUCKETS = 20_000  # of character n-grams; several share a bucket
GRAMS = (3, 4, 5)
MOST_GRAMS = 32  # of one word
INITIAL_RMS = 0.3  # of input vectors that a language model starts from
N_SAMPLES = 512  # words drawn for each batch by sampled softmax
OWN_DROPOUT = 0.3  # share of known words that are read by spelling alone in training


class BidirectionalEncoder(nn.Module):
    """Word vectors, then in every layer a forward and a backward LSTM of D/2 units each.

    The two directions never see each other, so that both halves can be trained as language models. The backward
    LSTM reads each sequence reversed within its own length, so that padding, which follows the real tokens in
    both directions, never reaches a state of a real token.
    """

    def __init__(self, table: nn.Module, dim: int, n_layers: int = 1):
        super().__init__()
        self.table = table
        sizes = [(dim, dim // 2, dim - dim // 2)] + [(None, dim // 2, dim - dim // 2)] * (n_layers - 1)
        self.forward_lstms = nn.ModuleList(
            nn.LSTM(size or ahead, ahead, batch_first=True) for size, ahead, _ in sizes
        )
        self.backward_lstms = nn.ModuleList(
            nn.LSTM(size or behind, behind, batch_first=True) for size, _, behind in sizes
        )

    @property
    def n_layers(self) -> int:
        """LSTM layers, each of two directions."""
        return len(self.forward_lstms)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """Returns the state of each token: forward after reading it joined to backward after reading it.

        `layer`: 1 the lowest; None: the top.
        Shapes: ids int64 (B, T), mask bool (B, T) -> (B, T, D); states at padding mean nothing.
        """
        ahead = vectors = self.table(ids)  # (B, T, D)
        positions = torch.arange(ids.shape[1], device=ids.device)
        mirror = (mask.sum(1, keepdim=True) - 1 - positions).clamp(min=0)  # (B, T)
        places = (mirror + len(positions) * torch.arange(len(ids), device=ids.device)[:, None]).flatten()
        behind = _rows(vectors, places)
        for forward_lstm, backward_lstm in zip(self.forward_lstms[:layer], self.backward_lstms[:layer]):
            ahead, _ = forward_lstm(ahead)
            behind, _ = backward_lstm(behind)
        return torch.cat([ahead, _rows(behind, places)], dim=-1)


def _rows(vectors: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Returns the vectors at places of the flattened batch. Shapes: (B, T, D), (B T,) -> (B, T, D)."""
    return vectors.flatten(0, 1).index_select(0, places).view_as(vectors)


def random_table(vocab_size: int, dim: int) -> InputTable:
    """Returns Gaussian input vectors, all of them trained, those of a batch at a time."""
    every = torch.ones(vocab_size, dtype=torch.bool)
    return InputTable(torch.randn(vocab_size, dim) * INITIAL_RMS, every, sparse=device().type != "mps")


def output_layer(counts: np.ndarray, dim: int) -> OutputLayer:
    """Returns an output layer to be trained with sampled softmax. Shapes: counts (V,), of the training text."""
    weight = nn.Parameter(torch.randn(len(counts), dim) / dim**0.5)
    return OutputLayer(weight, counts, N_SAMPLES, sparse=device().type != "mps")


class SubwordTable(nn.Module):
    """Word vectors that words outside the labelled data have too: from spelling, and a part of their own.

    A vector is the mean over the word's character n-grams plus, for words that are `known` from training, one of
    its own, which is dropped at random in training, so that spelling alone learns to do.

    Shapes: known bool (W,), of the words.
    Source: Bojanowski et al. 2017, section 3.2 (n-grams of 3 to 5 characters here, hashed).
    """

    def __init__(self, words: tuple[str, ...], known: np.ndarray, dim: int):
        super().__init__()
        self.grams = nn.Embedding(N_BUCKETS + 1, dim, padding_idx=0)
        self.own = nn.Embedding(int(known.sum()) + 1, dim, padding_idx=0)
        spelling = np.zeros((len(words), MOST_GRAMS), dtype=np.int64)
        for row, word in zip(spelling, words):
            buckets = grams_of(word)[:MOST_GRAMS]
            row[: len(buckets)] = buckets
        self.register_buffer("spelling", torch.from_numpy(spelling), persistent=False)
        own = torch.from_numpy(np.where(known, np.cumsum(known), 0))
        self.register_buffer("own_rows", own, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns vectors. Shapes: ids (…) -> (…, D)."""
        words, places = ids.unique(return_inverse=True)  # each word is spelled once a batch
        buckets = self.spelling[words]  # (n, MOST_GRAMS)
        spelled = self.grams(buckets).sum(1) / (buckets > 0).sum(1, keepdim=True)
        own = self.own(self.own_rows[words])
        if self.training:
            own = own * (torch.rand(len(words), 1, device=ids.device) >= OWN_DROPOUT)
        return (spelled + own)[places]


def grams_of(word: str) -> list[int]:
    """Returns the buckets of a word's character n-grams, its ends marked; a special word is one of its own."""
    marked = f"<{word}>"
    grams = (
        [] if word in (UNK, EOS) else [marked[i : i + n] for n in GRAMS for i in range(len(marked) - n + 1)]
    )
    return [1 + zlib.crc32(gram.encode()) % N_BUCKETS for gram in dict.fromkeys([marked, *grams])]
