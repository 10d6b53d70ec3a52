"""How the output layer is trained, and how it is scored: always exactly, by its own model in float32."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rtl_core.config import Experiment, derive_seed
from rtl_core.softmax import SampledLoss, SoftmaxLoss, compiled_here, fast_bf16, matmul, token_nats
from rtl_core.training import device


def make_output(
    experiment: Experiment, weight: nn.Parameter | None, counts: np.ndarray, sparse: bool = False
):
    """Returns the output layer of an experiment: an OutputLayer on `weight` (V, D), or an AdaptiveSoftmax.

    `counts` (V,) are the word counts of the LM's text. Adaptive softmax has tables of its own and takes no weight.
    """
    if experiment.criterion == "adaptive-softmax":
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(experiment.seed, "adaptive-softmax"))
            return AdaptiveSoftmax(counts, experiment.hidden_size)
    kind = NoiseContrastive if experiment.criterion == "nce" else OutputLayer
    n_samples = None if experiment.criterion == "softmax" else experiment.n_samples
    sparse = sparse and experiment.output_rows == "touched"
    return kind(weight, counts, n_samples, sparse, experiment.sampling, experiment.label_smoothing)


def sampling_distribution(counts: np.ndarray, name: str = "unigram") -> torch.Tensor:
    """Returns the probability that each word is drawn: proportional to count + 1, or log-uniform. float64 (V,).

    Log-uniform is Zipf's law over the frequency ranks r = 1 … V: log((r + 1) / r) / log(V + 1).
    Source: the candidate sampler of Jean et al. 2015's successors in TensorFlow, log_uniform_candidate_sampler.
    """
    if name == "log-uniform":
        ranks = torch.from_numpy(frequency_ranks(counts)).double() + 1
        return torch.log1p(1 / ranks) / np.log(len(counts) + 1)
    frequency = torch.from_numpy(np.asarray(counts, dtype=np.float64) + 1)
    return frequency / frequency.sum()


def frequency_ranks(counts: np.ndarray) -> np.ndarray:
    """Returns the rank of each word, 0 the most frequent; ties in order of id. int64 (V,)."""
    ranks = np.empty(len(counts), dtype=np.int64)
    ranks[np.argsort(-np.asarray(counts, dtype=np.float64), kind="stable")] = np.arange(len(counts))
    return ranks


class OutputLayer(nn.Module):
    """A linear layer over the vocabulary, its bias started at the log of the training text's word frequencies.

    Shapes: weight (V, D), bias (V,); q (V,), the sampling distribution.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        counts: np.ndarray,
        n_samples: int | None = None,
        sparse: bool = False,
        sampling: str = "unigram",
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        log_q = sampling_distribution(counts, sampling).log().float()
        self.weight = weight
        self.bias = nn.Parameter(sampling_distribution(counts).log().float())
        self.n_samples = n_samples  # None: full softmax
        self.sparse = sparse  # gradients of the sampled rows only: for training.RowwiseAdamW
        self.label_smoothing = label_smoothing
        self.bf16 = fast_bf16(device().type)
        self.register_buffer("log_q", log_q, persistent=False)
        self.cumulative_q = log_q.double().exp().cumsum(0)  # on the CPU: not every device has float64

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the summed loss in nats, exact outside training. Shapes: hidden (N, D), targets (N,)."""
        if not self.training:
            return self.nats(hidden, targets).sum()
        if self.n_samples is None:
            return self.full_loss(hidden, targets)
        return self.sampled_loss(hidden, targets, self.sample(hidden.device))

    def full_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the summed loss of the full softmax, a share of each target spread evenly over all words.

        log Z - (1 - ε) s_y - ε mean(s): the mean logit needs the mean row of the table alone.
        Source: Szegedy et al. 2016, section 7.
        """
        total = SoftmaxLoss.apply(hidden, self.weight, self.bias, targets, self.bf16)
        if self.label_smoothing:
            rows, bias = self.weight[targets] - self.weight.mean(0), self.bias[targets] - self.bias.mean()
            total = total + self.label_smoothing * ((hidden * rows).sum() + bias.sum())
        return total

    def sample(self, where) -> torch.Tensor:
        """Returns `n_samples` word ids drawn with replacement from q, shared by the batch. Shape (S,)."""
        draws = torch.rand(self.n_samples, dtype=torch.float64) * self.cumulative_q[-1]
        return torch.searchsorted(self.cumulative_q, draws).clamp_(max=len(self.cumulative_q) - 1).to(where)

    def sampled_loss(self, hidden: torch.Tensor, targets: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Returns the summed loss log Z' - s_y, where Z' estimates the softmax's normaliser from the sample.

        Z' adds exp(s_j) / (S q_j) over the draws and the true word: log(S q) is subtracted from every logit,
        the true one included, and draws that hit the true word stay. That makes the loss a ranking noise-
        contrastive estimate, whose optimum is the true distribution for every S. The term log(S q_y), which
        has no parameters, is left out, so that the value tends to the full softmax's loss as S grows.

        Shapes: hidden (N, D), targets (N,), sample (S,).
        Source: Ma and Collins 2018, equation 5 (ranking objective); Jean et al. 2015, section 3.
        """
        weight, bias, constant = self.gathered(targets, sample)
        if compiled_here(hidden):
            return SampledLoss.apply(hidden, weight, bias, self.bf16) - constant
        true, noise = self._logits(hidden, weight, bias)
        return (torch.logaddexp(noise.logsumexp(1), true) - true).sum() - constant

    def gathered(self, targets: torch.Tensor, sample: torch.Tensor):
        """Returns what a loss on a sample is made of, by one look-up in the table: true words first, then drawn ones.

        Rows (N + S, D), bias less log(S q) (N + S,), and the sum of the true words' log(S q).
        """
        rows = torch.cat([targets, sample])
        correction = self.log_q[rows] + float(np.log(len(sample)))
        bias = self.bias[rows] - correction
        return F.embedding(rows, self.weight, sparse=self.sparse), bias, correction[: len(targets)].sum()

    def _logits(self, hidden, weight, bias):
        """Returns the logits of the true words and of the drawn ones. Shapes: as in SampledLoss -> (N,), (N, S)."""
        n = len(hidden)
        true = (hidden * weight[:n]).sum(1) + bias[:n]
        return true, matmul(hidden, weight[n:].T, self.bf16) + bias[n:]

    @torch.no_grad()
    def nats(self, hidden: torch.Tensor, targets: torch.Tensor, bf16: bool = False) -> torch.Tensor:
        """Returns -log p(target) of each token under the exact softmax in float32. Shapes: (N, D), (N,) -> (N,).

        `bf16`: the products with the vocabulary in bf16, for validation during training only.
        """
        return token_nats(hidden.float(), self.weight.float(), self.bias.float(), targets, bf16)


class NoiseContrastive(OutputLayer):
    """An output layer trained to tell the text's words from words drawn from q: noise-contrastive estimation."""

    def sampled_loss(self, hidden: torch.Tensor, targets: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Returns the summed binary loss: the true word is data, the S draws that the batch shares are noise.

        A word is data with probability σ(s - log(S q)), so that s itself comes to be log p: the normaliser is fixed
        at 1, where the bias, log unigram frequencies, starts it. The value is no perplexity's.

        Shapes: hidden (N, D), targets (N,), sample (S,).
        Source: Gutmann and Hyvärinen 2010, equation 8; Mnih and Teh 2012, equations 8 to 10.
        """
        weight, bias, _ = self.gathered(targets, sample)
        true, noise = self._logits(hidden, weight, bias)
        return F.softplus(-true).sum() + F.softplus(noise).sum()


class AdaptiveSoftmax(nn.Module):
    """One softmax over the frequent words and an entry for each cluster of rarer ones, and one within each cluster.

    Clusters end at 1/16, 1/4 and all of the vocabulary in order of frequency; the states of a cluster are reduced
    to 1/4 and 1/16 of their dimension. Biases start at the log of the training text's frequencies. Unlike
    torch.nn.AdaptiveLogSoftmaxWithLoss it is scored in blocks, whatever the vocabulary, and starts at the unigram.

    Shapes: counts (V,), hidden states (N, dim).
    Source: Grave et al. 2017, section 4.
    """

    def __init__(self, counts: np.ndarray, dim: int):
        super().__init__()
        size = len(counts)
        edges = [max(1, size // 16), max(2, size // 4)]
        ranks = torch.from_numpy(frequency_ranks(counts))
        frequency = torch.empty(size).index_copy_(0, ranks, sampling_distribution(counts).float())  # by rank
        first, *others = frequency.tensor_split(edges)
        self.head = _linear(dim, torch.cat([first, torch.stack([part.sum() for part in others])]))
        inner = [max(1, dim // 4 ** (i + 1)) for i in range(len(others))]
        self.tails = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, width, bias=False), _linear(width, part / part.sum()))
            for width, part in zip(inner, others)
        )
        self.bf16 = fast_bf16(device().type)
        self.register_buffer("ranks", ranks, persistent=False)
        self.register_buffer("edges", torch.tensor(edges), persistent=False)

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the summed loss in nats, exact. Shapes: hidden (N, dim), targets (N,)."""
        if not self.training:
            return self.nats(hidden, targets).sum()
        return sum(
            SoftmaxLoss.apply(states, table.weight, table.bias, words, self.bf16)
            for states, table, words, _ in self._parts(hidden, targets)
        )

    @torch.no_grad()
    def nats(self, hidden: torch.Tensor, targets: torch.Tensor, bf16: bool = False) -> torch.Tensor:
        """Returns -log p(target) of each token under this model in float32. Shapes: (N, dim), (N,) -> (N,)."""
        out = torch.zeros(len(targets), device=hidden.device)
        for states, table, words, chosen in self._parts(hidden.float(), targets):
            out[chosen] += token_nats(states, table.weight, table.bias, words, bf16)
        return out

    def _parts(self, hidden: torch.Tensor, targets: torch.Tensor):
        """Yields one softmax after the other: states, table, the words' places in it, and which tokens need it."""
        ranks = self.ranks[targets]
        cluster = torch.bucketize(ranks, self.edges, right=True)  # 0: in the head
        places = torch.where(cluster == 0, ranks, self.edges[0] - 1 + cluster)
        yield hidden, self.head, places, cluster >= 0
        for i, (project, table) in enumerate(self.tails):
            chosen = cluster == i + 1
            yield project(hidden[chosen]), table, ranks[chosen] - self.edges[i], chosen


def _linear(dim: int, probabilities: torch.Tensor) -> nn.Linear:
    """Returns a linear layer whose bias starts at the log of `probabilities` (n,)."""
    layer = nn.Linear(dim, len(probabilities))
    nn.init.normal_(layer.weight, std=dim**-0.5)
    layer.bias.data = probabilities.log()
    return layer
