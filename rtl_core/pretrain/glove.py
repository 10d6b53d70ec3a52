"""GloVe: word vectors whose products are the logarithms of how often two words stand near each other.

Source: Pennington, Socher and Manning 2014, "GloVe: Global Vectors for Word Representation". Its program visits
pair by pair; here all pairs of a block of words are one product of matrices, taken only where a pair occurs.
"""

import math
import warnings
from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import nn

from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import EOS_ID, Encoded, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain.pretrained import Pretrained, fit_pretrainer, provenance, seeded
from rtl_core.storage import StudyError
from rtl_core.training import Loss, Optimisation, mean_loss

WINDOW = 10  # words on either side
X_MAX = 10  # counts from here on have full weight; the paper's 100 was chosen for billions of words
ALPHA = 0.75
EPOCHS = 25
LEARNING_RATE = 0.1  # of AdaGrad, as in the paper: Adam moves rare words too far
STEPS = 80  # of an epoch, each with all pairs of some words
CHECKED = 1000  # words on which the objective is looked at after each epoch, about


class Block(NamedTuple):
    """All pairs of some words.

    Shapes: words int64 (B,); starts int64 (B + 1,), where each word's pairs begin; others int64 (n,), the other
    word of each pair; logs float32 (n,), of its count.
    """

    words: torch.Tensor
    starts: torch.Tensor
    others: torch.Tensor
    logs: torch.Tensor
    fresh: bool = True


class _Products(torch.autograd.Function):
    """The products of two tables' rows for some pairs of rows; autograd's own way takes four times as long."""

    @staticmethod
    def forward(ctx, rows, table, starts, others):
        """Returns the products. Shapes: (B, D), (V, D), (B + 1,), (n,) -> (n,)."""
        ctx.shape = len(rows), len(table)
        first = torch.repeat_interleave(torch.arange(len(rows)), starts.diff())
        ctx.save_for_backward(rows, table, torch.stack([first, others]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            zeros = torch.zeros(len(others))
            pairs = torch.sparse_csr_tensor(starts, others, zeros, ctx.shape, check_invariants=False)
        return torch.sparse.sampled_addmm(pairs, rows, table.T).values()

    @staticmethod
    def backward(ctx, gradient):
        """Returns the gradients of both tables."""
        rows, table, where = ctx.saved_tensors
        pairs = torch.sparse_coo_tensor(where, gradient, ctx.shape, is_coalesced=True, check_invariants=False)
        return torch.sparse.mm(pairs, table), torch.sparse.mm(pairs.t(), rows), None, None


class GloVe(nn.Module):
    """Two vectors and two biases for each word: as the word looked at, and as the word near it."""

    def __init__(self, biases: np.ndarray, dim: int):
        super().__init__()
        self.table = nn.Embedding(len(biases), dim)
        self.context = nn.Parameter(torch.empty(len(biases), dim))
        for weight in (self.table.weight, self.context):
            nn.init.uniform_(weight, -0.5 / dim, 0.5 / dim)
        self.bias = nn.Parameter(torch.tensor(biases, dtype=torch.float32))
        self.context_bias = nn.Parameter(self.bias.detach().clone())

    def loss(self, batch: Block, state=None) -> Loss:
        """Returns the weighted sum of squared errors of log counts, and of how many words. Source: eqs. 8 and 9."""
        products = _Products.apply(self.table(batch.words), self.context, batch.starts, batch.others)
        bias = torch.repeat_interleave(self.bias[batch.words], batch.starts.diff())
        error = products + bias + self.context_bias[batch.others] - batch.logs
        weights = (ALPHA * (batch.logs - math.log(X_MAX))).clamp(max=0).exp()  # min(1, (count / X_MAX)^ALPHA)
        return Loss((weights * error**2).sum(), len(batch.words))


def co_occurrences(text: Encoded, vocab_size: int, window: int = WINDOW) -> sparse.csr_array:
    """Returns how often words stand near each other in a line, each time weighted by 1 / distance.

    `<eos>` is no word. Shape: float32 (V, V), symmetric.
    """
    is_word = text.tokens != EOS_ID
    words = text.tokens[is_word]
    lines = np.repeat(np.arange(len(text.line_starts) - 1), np.diff(text.line_starts))[is_word]
    ahead = sparse.csr_array((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, window + 1):
        within = lines[distance:] == lines[:-distance]
        pairs = words[:-distance][within], words[distance:][within]
        near = np.full(len(pairs[0]), 1 / distance, np.float32)
        ahead += sparse.coo_array((near, pairs), ahead.shape).tocsr()
    return (ahead + ahead.T).tocsr()


def blocks(logs: sparse.csr_array, words: np.ndarray) -> Iterator[Block]:
    """Yields all pairs of `words`, some words at a time."""
    for chosen in np.array_split(words, min(STEPS, len(words))):
        part = logs[chosen]
        where = (torch.from_numpy(ids.astype(np.int64)) for ids in (chosen, part.indptr, part.indices))
        yield Block(*where, torch.from_numpy(part.data))


def additive_fit(logs: sparse.csr_array, rounds: int = 10) -> np.ndarray:
    """Returns the biases that fit log counts best without any vectors. Shape float64 (V,).

    Training starts here: from zero, vectors learn the frequency of words long before the biases do.
    """
    pairs, vocab_size = logs.tocoo(), logs.shape[0]
    weights = np.minimum(1, np.exp(ALPHA * (pairs.data - math.log(X_MAX))))
    total = np.maximum(np.bincount(pairs.row, weights, vocab_size), 1e-9)
    biases = np.bincount(pairs.row, weights * pairs.data, vocab_size) / total / 2
    for _ in range(rounds):
        rest = weights * (pairs.data - biases[pairs.col])
        biases = (biases + np.bincount(pairs.row, rest, vocab_size) / total) / 2
    return biases


def optimisation(epochs: int) -> Optimisation:
    """Returns how GloVe is trained: by AdaGrad, at one rate, its gradients as they are."""
    # eps keeps the first steps small, and those of what has small gradients
    return Optimisation(
        LEARNING_RATE, "constant", epochs, patience=2, clip=math.inf, method="adagrad", eps=1e-3
    )


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the sum of both vectors of all words that stand near another, `<unk>` too, but not `<eos>`.

    The validation loss is the objective itself on some words: fewer counts, of other text, have other logarithms.
    Raises: StudyError when no line has two words.
    """
    started = perf_counter()
    text = vocabulary.encode(corpus.split("train"))
    logs = co_occurrences(text, len(vocabulary))
    logs.data = np.log(logs.data)
    seen = np.flatnonzero(np.diff(logs.indptr))
    if not len(seen):
        raise StudyError(
            f"glove counts words of the same line, but no training line of corpus {corpus.name} has two words."
        )
    biases = additive_fit(logs)
    model = seeded(config, lambda: GloVe(biases, config.dim)).cpu()  # not every device has sparse products
    rows = fit_pretrainer(
        config,
        model,
        lambda order: blocks(logs, order.permutation(seen)),
        lambda: mean_loss(model, blocks(logs, seen[:: max(1, len(seen) // CHECKED)])),
        optimisation(config.epochs or EPOCHS),
    )
    table = (model.table.weight + model.context).detach().numpy()[seen]
    known = {"readout": "input-layer", "epochs": len(rows)}
    facts = provenance(config, corpus, len(text), perf_counter() - started, **known)
    return Pretrained(Embeddings(tuple(vocabulary.decode(seen)), table, facts), history=rows, model=model)
