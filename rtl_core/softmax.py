"""Sums of exponentials over a vocabulary and their gradients; the logits exist a block at a time only.

What decides the speed, measured on AMD's processors and no slower elsewhere: products by oneDNN (MKL's take twice as
long), blocks that stay in cache, and exp2 of logits in base 2, since torch's exp takes four times as long.
"""

import math
import os
from functools import cache

import torch
import torch.nn.functional as F

BLOCK_TOKENS, BLOCK_WORDS = 256, 1024  # logits held at a time: 1 MiB stays in cache
LOG2E = math.log2(math.e)
LEAST, MOST = 1e-30, 1e38  # a sum of exponentials between these has lost nothing in float32
# A product in bf16 is compiled for every new shape and kept. Batches of sentences have many shapes: a thousand kept
# ones held 500 MiB in pre-training a masked language model, sixteen take no longer.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "16")


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


def affine(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns hidden @ weight.T + bias. Shapes: (n, D), (m, D), (m,) -> (n, m).

    float32 on an x86 processor by oneDNN, through the operator that torch's compiler uses: as exact as the default
    product (MKL's), which takes twice as long on AMD's processors. It refuses products of nothing.
    """
    simple = hidden.device.type == "cpu" and hidden.dtype == torch.float32 and hidden.numel()
    if simple and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return F.linear(hidden, weight, bias)


class LogNormaliser(torch.autograd.Function):
    """log of the sum over j of exp(h · w_j + b_j); its gradient reuses the exponentials of the forward pass.

    For a few thousand words, whose logits may be held. Three passes over the (N, S) logits forward and one
    backward, against ten of the plain expression.
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


class SoftmaxLoss(torch.autograd.Function):
    """The sum of -log p(target) under the full softmax; its gradient is computed in the forward pass.

    The probabilities of a block are made again from the normaliser, multiplied into the gradients and forgotten:
    one product more than the plain expression, and half of its time or less, for memory stays in cache. On a
    processor it is over five times as fast as torch.nn.functional.linear_cross_entropy (benchmarks/README.md).
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, bf16: bool):
        """Returns the summed loss, a scalar. Shapes: hidden (N, D), weight (V, D), bias (V,), targets (N,)."""
        normaliser = log_normaliser(hidden, weight, bias, bf16)
        of_hidden = -weight[targets]
        total = (normaliser - bias[targets]).sum() + (hidden * of_hidden).sum()
        of_weight = torch.zeros_like(weight).index_add_(0, targets, hidden, alpha=-1)
        of_bias = torch.zeros_like(bias).index_add_(0, targets, torch.ones_like(normaliser), alpha=-1)
        blocks = _blocks(weight, bias, bf16)
        parts = (x.split(BLOCK_TOKENS) for x in (hidden, normaliser[:, None] * LOG2E, of_hidden))
        for states, normal, of_states in zip(*parts):
            scaled, states = ((x.bfloat16() if bf16 else x) for x in (states * LOG2E, states))
            gradients = zip(of_weight.split(BLOCK_WORDS), of_bias.split(BLOCK_WORDS))
            for (rows, offsets), (of_rows, of_offsets) in zip(blocks, gradients):
                share = _logits(scaled, rows, offsets).sub_(normal).exp2_()  # (n, block)
                of_offsets.add_(share.sum(0))
                share = share.to(states.dtype)
                of_states.add_(affine(share, rows.T))
                if ctx.needs_input_grad[1]:
                    of_rows.add_(affine(share.T, states.T))
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx, gradient):
        """Returns the gradients of hidden, weight and bias, times that of the loss."""
        return *(part * gradient for part in ctx.saved_tensors), None, None


def token_nats(hidden, weight, bias, targets, bf16: bool = False) -> torch.Tensor:
    """Returns -log p(target) of each token under the exact softmax. Shapes: as in SoftmaxLoss -> (N,)."""
    true = (hidden * weight[targets]).sum(1) + bias[targets]
    return log_normaliser(hidden, weight, bias, bf16) - true


def log_normaliser(hidden, weight, bias, bf16: bool = False) -> torch.Tensor:
    """Returns the log of the sum of exponentials over the vocabulary. Shapes: (N, D), (V, D), (V,) -> (N,).

    The exponentials are summed without first looking for the largest logit; where the sum shows that one was too
    large or all were too small, it is done again with care. `bf16`: the product only, which costs about 0.1 %.
    """
    blocks = _blocks(weight, bias, bf16)
    return torch.cat([_of_part(part, blocks) for part in hidden.split(BLOCK_TOKENS)])


def _blocks(weight, bias, bf16: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns blocks of words: their rows, and their bias in base 2."""
    rows = weight.bfloat16() if bf16 else weight
    return list(zip(rows.split(BLOCK_WORDS), (bias * LOG2E).split(BLOCK_WORDS)))


def _logits(scaled: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Returns logits in base 2; after a product in bf16 they are float32 again. (n, D), (m, D), (m,) -> (n, m)."""
    if rows.dtype == torch.bfloat16:
        return affine(scaled, rows).float().add_(offsets)
    return affine(scaled, rows, offsets)


def _of_part(hidden: torch.Tensor, blocks: list) -> torch.Tensor:
    """Returns the log normalisers of one block of tokens. Shapes: (n, D) -> (n,)."""
    scaled = (hidden * LOG2E).to(blocks[0][0].dtype)
    logits = (_logits(scaled, *block) for block in blocks)
    total = sum(block.exp2_().sum(1) for block in logits)
    if bool(((total > LEAST) & (total < MOST)).all()):
        return total.log()
    careful = (_logits(scaled, *block).div_(LOG2E).logsumexp(1) for block in blocks)
    return torch.stack(list(careful)).logsumexp(0)
