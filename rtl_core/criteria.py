"""How the output layer is trained, and how it is scored: always exactly, by the full softmax in float32."""

import os
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rtl_core.training import device

BLOCK_TOKENS, BLOCK_WORDS = 256, 1024  # logits held at a time while scoring: 1 MiB stays in cache
# A product in bf16 is compiled for every new shape and kept. Batches of sentences have many shapes: a thousand kept
# ones held 500 MiB in pre-training a masked language model, sixteen take no longer.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "16")
SAFE_LOGIT = 70.0  # exp(70) times any vocabulary is a float32


@cache
def fast_bf16(device_type: str = "cpu") -> bool:
    """Returns whether the processor multiplies bf16 matrices in hardware (elsewhere it is slower than fp32)."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    found = torch.cpu.get_capabilities() if device_type == "cpu" else {}
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def matmul(a: torch.Tensor, b: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Returns a @ b in float32, the product itself in bf16 if asked for. Shapes: (N, D), (D, M) -> (N, M)."""
    return (a.bfloat16() @ b.bfloat16()).float() if bf16 else a @ b


class LogNormaliser(torch.autograd.Function):
    """log of the sum over j of exp(h · w_j + b_j); its gradient reuses the exponentials of the forward pass.

    Three passes over the (N, S) logits forward and one backward, against ten of the plain expression.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, bf16: bool):
        """Returns the log normaliser. Shapes: hidden (N, D), weight (S, D), bias (S,) -> (N,)."""
        logits = matmul(hidden, weight.T, True).add_(bias) if bf16 else torch.addmm(bias, hidden, weight.T)
        largest = logits.amax(1, keepdim=True)
        exponentials = logits.sub_(largest).exp_()
        total = exponentials.sum(1, keepdim=True)
        ctx.save_for_backward(hidden, weight, exponentials, total)
        ctx.bf16 = bf16
        return (largest + total.log()).squeeze(1)

    @staticmethod
    def backward(ctx, gradient):
        """Returns the gradients of hidden, weight and bias: the softmax, weighted by `gradient` (N,)."""
        hidden, weight, exponentials, total = ctx.saved_tensors
        share = exponentials.mul(gradient[:, None] / total)  # (N, S)
        of_bias = share.sum(0)
        if ctx.bf16:  # converted once for both products
            share, weight, hidden = share.bfloat16(), weight.bfloat16(), hidden.bfloat16()
        return (share @ weight).float(), (share.T @ hidden).float(), of_bias, None


class OutputLayer(nn.Module):
    """A linear layer over the vocabulary, its bias started at the log of the training text's word frequencies.

    Shapes: weight (V, D), bias (V,); q (V,), the sampling distribution, proportional to count + 1.
    """

    def __init__(
        self, weight: nn.Parameter, counts: np.ndarray, n_samples: int | None = None, sparse: bool = False
    ):
        super().__init__()
        frequency = torch.from_numpy(np.asarray(counts, dtype=np.float64) + 1)
        log_q = (frequency / frequency.sum()).log().float()
        self.weight = weight
        self.bias = nn.Parameter(log_q.clone())
        self.n_samples = n_samples  # None: full softmax
        self.sparse = sparse  # gradients of the sampled rows only: for training.RowwiseAdamW
        self.bf16 = fast_bf16(device().type)
        self.register_buffer("log_q", log_q, persistent=False)
        self.cumulative_q = log_q.double().exp().cumsum(0)  # on the CPU: not every device has float64

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the summed loss in nats, exact outside training. Shapes: hidden (N, D), targets (N,)."""
        if not self.training:
            return self.nats(hidden, targets).sum()
        if self.n_samples is None:
            logits = matmul(hidden, self.weight.T, self.bf16) + self.bias
            return F.cross_entropy(logits, targets, reduction="sum")
        return self.sampled_loss(hidden, targets, self.sample(hidden.device))

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
        n_samples = len(sample)
        rows = torch.cat([targets, sample])
        weight, bias = F.embedding(rows, self.weight, sparse=self.sparse), self.bias[rows]
        correction = self.log_q[rows] + float(np.log(n_samples))
        n = len(targets)
        true = (hidden * weight[:n]).sum(1) + bias[:n]  # (N,)
        noise = LogNormaliser.apply(hidden, weight[n:], bias[n:] - correction[n:], self.bf16)  # (N,)
        normaliser = torch.logaddexp(noise, true - correction[:n])
        return (normaliser - true).sum()

    @torch.no_grad()
    def nats(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns -log p(target) of each token under the exact softmax in float32.

        The logits exist only a block of tokens × words at a time. Where the sizes of states and weights prove
        that no exponential can overflow, the normaliser is summed without first looking for the largest logit.

        Shapes: hidden (N, D), targets (N,) -> (N,).
        """
        hidden, weight = hidden.float(), self.weight.float()
        largest = hidden.norm(dim=1).max() * weight.norm(dim=1).max() + self.bias.abs().max()
        blocks = list(zip(weight.split(BLOCK_WORDS), self.bias.split(BLOCK_WORDS)))
        safe = bool(largest < SAFE_LOGIT)
        normaliser = torch.cat([_log_normaliser(part, blocks, safe) for part in hidden.split(BLOCK_TOKENS)])
        return normaliser - (hidden * weight[targets]).sum(1) - self.bias[targets]


def affine(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Returns hidden @ weight.T + bias in float32. Shapes: (n, D), (m, D), (m,) -> (n, m).

    On an x86 processor by oneDNN, through the operator that torch's compiler uses: as exact as the default product
    (MKL's), which takes twice as long on AMD's processors.
    """
    if hidden.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return torch.addmm(bias, hidden, weight.T)


def _log_normaliser(hidden: torch.Tensor, blocks: list, safe: bool) -> torch.Tensor:
    """Returns the log of the sum of exponentials over the vocabulary, of (weight, bias) in blocks. (n, D) -> (n,)."""
    logits = (affine(hidden, weight, bias) for weight, bias in blocks)  # (n, block)
    if safe:
        return torch.stack([block.exp_().sum(1) for block in logits]).sum(0).log()
    return torch.stack([block.logsumexp(1) for block in logits]).logsumexp(0)
