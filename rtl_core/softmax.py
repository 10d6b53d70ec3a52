"""Sums of exponentials over a vocabulary and their gradients; the logits exist a block at a time only.

What decides the speed, measured on AMD's processors and no slower elsewhere: products by oneDNN (MKL's take twice as
long), blocks that stay in cache, and exp2 of logits in base 2, since torch's exp takes four times as long.
"""

import math
import os
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

BLOCK_TOKENS, BLOCK_WORDS = 1024, 1024  # logits held at a time: 4 MiB stay near the processor
LOG2E = math.log2(math.e)
LEAST, MOST = 1e-25, 1e38  # a sum of exponentials between these has lost nothing in float32
# A product in bf16, an LSTM too, is compiled for every new shape, in a millisecond or two, and kept. Batches of
# sentences have many shapes: a thousand kept ones held 500 MiB in pre-training a masked language model. So 32 are
# kept, and SampledLoss takes its tokens in multiples of PADDED.
PADDED = 128
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "32")


@cache
def fast_bf16(device_type: str = "cpu") -> bool:
    """Returns whether the processor multiplies bf16 matrices in hardware (elsewhere it is slower than fp32)."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    found = torch.cpu.get_capabilities() if device_type == "cpu" else {}
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def compiled_here(values: torch.Tensor) -> bool:
    """Returns whether these numbers are for the compiled loops (kernels.py): float32 on a processor."""
    return values.device.type == "cpu" and values.dtype == torch.float32


def as_numpy(values: torch.Tensor) -> np.ndarray:
    """Returns the same memory as an array; numpy has no bf16, whose bits are given instead."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).detach().numpy()


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


class SampledLoss(torch.autograd.Function):
    """The sum over tokens of log(exp(t) + Σ_j exp(s_j)) - t: their own words' logits t, those s_j of a sample.

    One pass over the logits (`kernels.softmax_rows`), where the plain expression, which other devices take, makes a
    dozen; it leaves in their place the shares that the gradient is made of.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, bf16: bool):
        """Returns the sum, a scalar.

        Shapes: hidden (N, D); weight (N + S, D) and bias (N + S,), of the own words first, then of the sample.
        """
        from rtl_core.kernels import softmax_rows

        n, kind = len(hidden), torch.bfloat16 if bf16 else torch.float32
        padded = hidden.new_zeros(-(-n // PADDED) * PADDED, hidden.shape[1], dtype=kind)
        padded[:n] = hidden
        # those of tokens that are not there are zero, and stay so
        logits = padded @ (weight[n:] * LOG2E).to(kind).T
        of_bias = torch.zeros_like(bias)
        total = softmax_rows(*map(as_numpy, (logits[:n], bias * LOG2E, hidden, weight, of_bias)))
        ctx.save_for_backward(hidden, weight, padded, logits, of_bias)
        return hidden.new_tensor(total)

    @staticmethod
    def backward(ctx, gradient):
        """Returns the gradients of hidden, weight and bias: shares, less 1 for own words, times the scalar."""
        hidden, weight, padded, shares, of_bias = ctx.saved_tensors
        n, of_bias, of_weight = len(hidden), of_bias * gradient, None
        own = of_bias[:n, None]
        of_hidden = (shares @ (weight[n:] * gradient).to(shares.dtype))[:n].float().addcmul_(weight[:n], own)
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight)
            torch.mul(hidden, own, out=of_weight[:n])
            of_weight[n:] = shares.T @ padded
            of_weight[n:] *= gradient  # in float32, not rounded once more
        return of_hidden, of_weight, of_bias, None


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
    total = hidden.new_zeros(len(hidden))
    for block in blocks:
        _add_exponentials(total, scaled, *block)
    if bool(((total > LEAST) & (total < MOST)).all()):
        return total.log()
    careful = (_logits(scaled, *block).div_(LOG2E).logsumexp(1) for block in blocks)
    return torch.stack(list(careful)).logsumexp(0)


def _add_exponentials(total: torch.Tensor, scaled: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor):
    """Adds to `total` each token's sum of exponentials over a block of words. Shapes: (n,), (n, D), (m, D), (m,)."""
    # several threads share out torch's passes, and each keeps its own rows in its cache
    if compiled_here(total) and torch.get_num_threads() == 1:
        from rtl_core.kernels import add_exponentials

        add_exponentials(*map(as_numpy, (affine(scaled, rows), offsets, total)))
    else:
        total += _logits(scaled, rows, offsets).exp2_().sum(1)
