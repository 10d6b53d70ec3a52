"""The compiled loops give what the plain expressions give in float64, at any shape and for extreme numbers."""

import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

import rtl_core.criteria
import rtl_core.softmax
from rtl_core.criteria import OutputLayer
from rtl_core.kernels import add_exponentials, softmax_rows
from rtl_core.softmax import SampledLoss, as_numpy, log_normaliser


def parts(seed: int, scale: float = 1.0):
    """Hidden states, rows and biases of a random number of tokens and drawn words."""
    rng = np.random.default_rng(seed)
    n, s, d = (int(rng.integers(1, most)) for most in (400, 150, 40))
    shapes = (n, d), (n + s, d), (n + s,)
    return [torch.from_numpy(rng.normal(0, scale, shape)).float().requires_grad_() for shape in shapes]


def plain_loss(hidden, weight, bias):
    n = len(hidden)
    true = (hidden * weight[:n]).sum(1) + bias[:n]
    logits = torch.cat([true[:, None], hidden @ weight[n:].T + bias[n:]], dim=1)
    return (logits.logsumexp(1) - true).sum()


@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])  # 8: logits so far apart that one word has it all
@pytest.mark.parametrize("seed", range(8))
def test_the_sampled_loss_and_its_gradients_equal_the_plain_expression_in_float64(seed, scale):
    given = parts(seed, scale)
    exact = [part.detach().double().requires_grad_() for part in given]
    fast, expected = SampledLoss.apply(*given, False), plain_loss(*exact)
    assert fast.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-3)
    (3 * fast).backward()
    (3 * expected).backward()
    for mine, other in zip(given, exact):
        near = 1e-5 * max(1, scale) * max(1, other.grad.abs().max().item())
        assert torch.allclose(mine.grad.double(), other.grad, rtol=1e-4, atol=near)


@pytest.mark.parametrize("seed", range(4))
def test_the_sampled_loss_in_bf16_is_close(seed):
    given = parts(seed)
    given[0].data /= given[0].shape[1] ** 0.5
    exact = [part.detach().double().requires_grad_() for part in given]
    fast, expected = SampledLoss.apply(*given, True), plain_loss(*exact)
    assert fast.item() == pytest.approx(expected.item(), rel=2e-3)
    fast.backward()
    expected.backward()
    for mine, other in zip(given, exact):
        assert (mine.grad - other.grad).norm() < 0.02 * other.grad.norm()
    bias = given[2].grad[len(given[0]) :]  # summed before any rounding
    assert abs(float(bias.sum() + given[2].grad[: len(given[0])].sum())) < 1e-3  # shares are one a token


def test_shares_are_rounded_to_the_nearest_bf16():
    hidden, weight, bias = (part.detach() for part in parts(3))
    rounded = (hidden @ weight[len(hidden) :].T).bfloat16()
    exact = rounded.float()
    for shares in (rounded, exact):
        softmax_rows(*map(as_numpy, (shares, bias, hidden, weight, torch.zeros_like(bias))))
    assert torch.equal(rounded, exact.bfloat16())


def test_no_tokens_and_states_that_lie_apart_in_memory():
    hidden, weight, bias = (part.detach() for part in parts(2))
    n, apart = len(hidden), hidden.T.contiguous().T
    assert SampledLoss.apply(hidden[:0], weight[n:], bias[n:], False).item() == 0
    together, found = (SampledLoss.apply(h, weight, bias, False).item() for h in (hidden, apart))
    assert found == pytest.approx(together, rel=1e-6)


def test_a_frozen_output_table_gets_no_gradient():
    hidden, weight, bias = parts(0)
    loss = SampledLoss.apply(hidden, weight.detach(), bias, False)
    of_hidden, of_bias = torch.autograd.grad(loss, [hidden, bias])
    assert of_hidden.shape == hidden.shape and of_bias.shape == bias.shape


def test_a_drawn_word_a_thousand_nats_more_probable_is_no_overflow():
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [1000.0], [-1000.0]], requires_grad=True)
    loss = SampledLoss.apply(hidden, weight, torch.zeros(3), False)
    loss.backward()
    assert loss.item() == pytest.approx(1000)
    assert torch.allclose(weight.grad.flatten(), torch.tensor([-1.0, 1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("where", [0, -1])  # an own word, a drawn one
def test_what_is_no_number_stays_none(where, bf16):
    hidden, weight, bias = parts(1)
    weight.data[where, 0] = torch.nan
    assert SampledLoss.apply(hidden, weight, bias, bf16).isnan()
    assert log_normaliser(hidden, weight, bias, bf16).isnan().all()


@pytest.mark.parametrize("bf16", [False, True])
def test_sums_too_small_for_single_precision_are_taken_with_care(bf16):
    """Each of 200,000 terms below 2^-126 counts as 2^-126: together they must not pass for a sum."""
    bias = torch.full((200_000,), -200.0)
    bias[0] = -68.9
    found = log_normaliser(torch.zeros(1, 4), torch.zeros(len(bias), 4), bias, bf16)
    assert found.item() == pytest.approx(-68.9, abs=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_sums_of_exponentials_are_exact_to_single_precision(kind):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(-5, 8, (30, 700))).to(kind)
    bias, total = rng.normal(size=700).astype(np.float32), np.ones(30, np.float32)
    exact = 1 + np.exp2((logits.double().numpy() + bias).astype(np.float32).astype(float)).sum(1)
    add_exponentials(as_numpy(logits), bias, total)
    assert np.allclose(total, exact, rtol=6e-7)


@pytest.mark.parametrize("compiled", [True, False])
def test_other_devices_take_the_plain_expression_to_the_same_end(monkeypatch, compiled):
    for module in (rtl_core.softmax, rtl_core.criteria):
        monkeypatch.setattr(module, "compiled_here", lambda values: compiled)
    monkeypatch.setattr(SampledLoss, "apply", Mock(side_effect=SampledLoss.apply))
    layer = OutputLayer(nn.Parameter(torch.randn(50, 6, dtype=torch.float32)), np.arange(50), 12).train()
    layer.bf16 = False
    hidden, targets, sample = (
        torch.randn(9, 6, requires_grad=True),
        torch.randint(50, (9,)),
        layer.sample("cpu"),
    )
    loss = layer.sampled_loss(hidden, targets, sample)
    assert SampledLoss.apply.called == compiled
    log_q = layer.log_q.double()[torch.cat([targets, sample])] + np.log(12)
    weight, bias = (
        part.detach().double()[torch.cat([targets, sample])] for part in (layer.weight, layer.bias)
    )
    exact = hidden.detach().double().requires_grad_()
    expected = plain_loss(exact, weight, bias - log_q) - log_q[:9].sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (mine,), (other,) = torch.autograd.grad(loss, [hidden]), torch.autograd.grad(expected, [exact])
    assert torch.allclose(mine.double(), other, atol=1e-5)
    nats = layer.nats(hidden, targets)
    logits = exact.detach() @ layer.weight.detach().double().T + layer.bias.detach().double()
    assert torch.allclose(
        nats.double(), nn.functional.cross_entropy(logits, targets, reduction="none"), atol=1e-5
    )


def test_numba_is_loaded_when_it_is_needed_and_not_before():
    code = "import sys, rtl_core; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
