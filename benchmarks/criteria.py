"""Speed and memory of the output layer's criteria and of exact scoring, at the size of WikiText-2's vocabulary.

States are Gaussian and words follow Zipf's law, so that no corpus is needed. What is compared runs in turn. For each
criterion a step is a loss and its gradients; the optimiser's work is in the benchmark `steps`.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import row
from rtl_core.criteria import AdaptiveSoftmax, NoiseContrastive, OutputLayer
from rtl_core.softmax import BLOCK_TOKENS, BLOCK_WORDS, affine, fast_bf16

VOCAB_SIZE, DIM, TOKENS, SAMPLES = 33_278, 128, 32 * 35, 1024
TEXTBOOK_TOKENS = 350  # logits held at once by the plain way: ten lanes of 35 words, as evaluation has them
ROUNDS = 7


def layers(vocab_size: int = VOCAB_SIZE) -> dict[str, nn.Module]:
    """Returns an output layer for each criterion, at the same sizes."""
    counts = 1e6 / np.arange(2, vocab_size + 2)
    made = {}
    for name, kind, n_samples in (
        ("softmax", OutputLayer, None), ("sampled-softmax", OutputLayer, SAMPLES), ("nce", NoiseContrastive, SAMPLES)
    ):  # fmt: skip
        torch.manual_seed(0)
        made[name] = kind(nn.Parameter(torch.randn(vocab_size, DIM) / DIM**0.5), counts, n_samples, True)
    made["adaptive-softmax"] = AdaptiveSoftmax(counts, DIM)
    return made


def states_and_words(n: int, vocab_size: int = VOCAB_SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what an LSTM hands to its output layer: states (n, DIM), and the words to predict (n,)."""
    torch.manual_seed(1)
    shares = 1 / torch.arange(2, vocab_size + 2)
    return (0.3 * torch.randn(n, DIM)).requires_grad_(), torch.multinomial(shares, n, replacement=True)


def in_turn(ways: dict[str, Callable], rounds: int = ROUNDS) -> dict[str, float]:
    """Returns the median seconds of each way, the first round left out."""
    seconds = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


@torch.no_grad()
def textbook_nats(layer: OutputLayer, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns -log p of each word by logits and cross_entropy in float32, one window after the other."""
    parts = zip(hidden.split(TEXTBOOK_TOKENS), targets.split(TEXTBOOK_TOKENS))
    losses = [F.cross_entropy(F.linear(h, layer.weight, layer.bias), t, reduction="none") for h, t in parts]
    return torch.cat(losses)


@torch.no_grad()
def products(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    """Multiplies states with a table in the blocks of scoring and does nothing with them: the ceiling."""
    for part in hidden.split(BLOCK_TOKENS):
        for rows in weight.split(BLOCK_WORDS):
            affine(part, rows)


@torch.no_grad()
def all_products(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    """The three products of a full softmax with its gradients, in its blocks, on made-up probabilities."""
    share = torch.rand(BLOCK_TOKENS, BLOCK_WORDS).to(weight.dtype)
    for part in hidden.split(BLOCK_TOKENS):
        for rows in weight.split(BLOCK_WORDS):
            p = share[: len(part), : len(rows)]
            affine(part, rows), affine(p, rows.T), affine(p.T, part.T)


def scoring() -> list[dict]:
    """Exact and bf16 scoring against logits and cross_entropy, and as a share of the bare products."""
    layer = layers()["softmax"].eval()
    hidden, targets = states_and_words(4 * TOKENS)
    weight, halves = layer.weight.detach(), (hidden.detach().bfloat16(), layer.weight.detach().bfloat16())
    plain, exact = textbook_nats(layer, hidden, targets), layer.nats(hidden, targets)
    apart = (plain - exact).abs().max()
    apart_bf16 = (layer.nats(hidden, targets, bf16=True) - exact).mean().abs()
    found = in_turn(
        {
            "plain": partial(textbook_nats, layer, hidden, targets),
            "exact": partial(layer.nats, hidden, targets),
            "bf16": partial(layer.nats, hidden, targets, bf16=True),
            "exact products": partial(products, hidden.detach(), weight),
            "bf16 products": partial(products, *halves),
        }
    )
    micro = {name: 1e6 * seconds / len(targets) for name, seconds in found.items()}
    rows = []
    for name, least, note in (
        ("exact", 1.8, f"nats differ by {apart:.0e} at most"),
        ("bf16", 4, f"mean nats differ by {apart_bf16:.0e}"),
    ):
        rows.append(
            against_plain(
                micro, "scoring, 33,278 words × 128: logits + cross_entropy", name, least, f"; {note}"
            )
        )
        rows.append(
            share_of_ceiling(f"scoring {name}", micro[f"{name} products"], micro[name], "bias, exp2 and sums")
        )
    return rows


def share_of_ceiling(what: str, ceiling: float, found: float, rest: str, n_products: int = 1) -> dict:
    """Returns the row that says how much of the time (µs a token) is the matrix products alone."""
    speed = n_products * 2 * VOCAB_SIZE * DIM / ceiling / 1000
    note = f"products {ceiling:.0f} of {found:.0f} µs a token ({speed:.0f} GFLOP/s); the rest: {rest}"
    return row(f"{what}: share of the products' speed", ceiling / found, 0, note)


def training() -> list[dict]:
    """Loss and gradients of each criterion against the plain full softmax in float32; the ceiling of the full one."""
    made = layers()
    hidden, targets = states_and_words(TOKENS)
    full = made["softmax"]
    options = nn.LinearCrossEntropyOptions()
    bf16, kind = fast_bf16(), torch.bfloat16 if fast_bf16() else torch.float32

    def plain() -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, full.weight, full.bias), targets, reduction="sum")

    def torchs_own() -> torch.Tensor:
        return F.linear_cross_entropy(
            hidden, full.weight, targets, linear_bias=full.bias, reduction="sum", options=options
        )

    def ours(name: str, in_bf16: bool = bf16) -> torch.Tensor:
        made[name].bf16 = in_bf16
        return made[name].loss(hidden, targets)

    def step(loss: Callable) -> None:
        hidden.grad = None
        for layer in made.values():
            layer.zero_grad()
        loss().backward()

    ways = {
        "plain": plain,
        "linear_cross_entropy": torchs_own,
        "softmax in float32": partial(ours, "softmax", False),
    }
    ways |= {name: partial(ours, name) for name in made}
    timed = {name: partial(step, loss) for name, loss in ways.items()}
    timed["products"] = partial(all_products, hidden.detach().to(kind), full.weight.detach().to(kind))
    micro = {name: 1e6 * seconds / TOKENS for name, seconds in in_turn(timed).items()}
    rows = []
    for name, least in (
        ("linear_cross_entropy", 0), ("softmax in float32", 1.5), ("softmax", 3), ("adaptive-softmax", 8),
        ("nce", 15), ("sampled-softmax", 20),
    ):  # fmt: skip
        rows.append(against_plain(micro, "loss and gradients, 33,278 words: plain full softmax", name, least))
    rest = "a fourth product, exp2 twice, sums, and the gradients' memory"
    return [
        *rows,
        share_of_ceiling("full softmax with gradients", micro["products"], micro["softmax"], rest, 3),
    ]


def against_plain(micro: dict[str, float], plain: str, name: str, least: float, note: str = "") -> dict:
    """Returns the row of one way against the plain one, of microseconds a token."""
    what = f"{micro['plain']:.0f} against {micro[name]:.0f} µs a token{note}"
    return row(f"{plain} / {name}", micro["plain"] / micro[name], least, what)


def memory() -> list[dict]:
    """Memory that scoring adds to the table and the states, at three vocabularies."""
    added = {size: _added_by(size) for size in (33_278, 133_112, 532_448)}
    what = ", ".join(f"{mib:.1f} MiB at {size:,} words" for size, mib in added.items())
    small, large = added[33_278], added[532_448]
    return [
        row(
            "memory of scoring at 33,278 words / at 16 times as many, two blocks of logits (8 MiB) added to both",
            (small + 8) / (large + 8),
            0.5,
            what,
        )
    ]


def _added_by(vocab_size: int) -> float:
    """Returns by how many MiB the peak of a fresh process grows in scoring, beyond the same batch at 1,024 words."""
    command = [sys.executable, "-m", "benchmarks.criteria", str(vocab_size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _print_added(vocab_size: int) -> None:
    torch.set_num_threads(1)
    layer, small = (
        OutputLayer(nn.Parameter(torch.zeros(n, DIM)), np.ones(n)).eval() for n in (vocab_size, 1024)
    )
    hidden, targets = states_and_words(1024, 1024)
    small.nats(hidden, targets)
    before = _peak()
    layer.nats(hidden, targets)
    print(_peak() - before)


def all_rows() -> list[dict]:
    """Returns the rows of scoring, its memory, and training."""
    return [*scoring(), *memory(), *training()]


if __name__ == "__main__":
    _print_added(int(sys.argv[1]))
