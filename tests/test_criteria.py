"""Sampled softmax is an honest estimate of the full one; scoring is exact."""

import numpy as np
import pytest
import torch
from torch import nn

from rtl_core.criteria import LogNormaliser, OutputLayer, affine, fast_bf16, matmul

V, D, N = 40, 8, 30


def output(n_samples=None, vocab_size=V):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(vocab_size, D) * 0.5)
    layer = OutputLayer(weight, np.arange(vocab_size)[::-1] ** 2, n_samples)
    layer.bf16 = False
    return layer


def batch():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, D, generator=generator, requires_grad=True)
    return hidden, torch.randint(V, (N,), generator=generator)


def gradients(layer, loss, hidden):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [layer.weight, layer.bias, hidden])])


def test_nats_equal_log_softmax_in_float64():
    layer, (hidden, targets) = output(), batch()
    logits = hidden.double() @ layer.weight.double().T + layer.bias.double()
    expected = nn.functional.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(layer.nats(hidden, targets).double(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])  # 100: logits too large to sum without care
@pytest.mark.parametrize(("tokens", "vocab_size"), [(1, 5), (300, 1024), (700, 2500)])
def test_blocks_change_no_number(scale, tokens, vocab_size):
    layer = output(vocab_size=vocab_size)
    hidden, targets = torch.randn(tokens, D) * scale, torch.randint(vocab_size, (tokens,))
    logits = hidden.double() @ layer.weight.double().T + layer.bias.double()
    expected = nn.functional.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(layer.nats(hidden, targets).double(), expected, rtol=1e-5, atol=1e-5 * scale)


def test_full_loss_is_the_sum_of_exact_nats():
    layer, (hidden, targets) = output(), batch()
    assert layer.loss(hidden, targets).item() == pytest.approx(
        layer.nats(hidden, targets).sum().item(), rel=1e-5
    )


def test_sampled_softmax_at_50_v_samples_equals_the_full_softmax():
    torch.manual_seed(2)
    layer, (hidden, targets) = output(vocab_size=400), batch()
    full = layer.loss(hidden, targets)
    expected = gradients(layer, full, hidden)
    layer.n_samples = 50 * 400
    runs = [layer.loss(hidden, targets) for _ in range(20)]
    found = torch.stack([gradients(layer, loss, hidden) for loss in runs]).mean(0)
    assert runs[0].item() == pytest.approx(full.item(), rel=0.01)
    assert ((found - expected).norm() / expected.norm()).item() < 0.01


def test_bias_of_sampled_softmax_falls_as_the_sample_grows():
    layer, (hidden, targets) = output(), batch()
    expected = gradients(layer, layer.loss(hidden, targets), hidden)
    errors = []
    for n_samples in (2, 20, 200):
        layer.n_samples = n_samples
        torch.manual_seed(3)
        runs = [gradients(layer, layer.loss(hidden, targets), hidden) for _ in range(400)]
        errors.append((torch.stack(runs).mean(0) - expected).norm().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_two_samples_fit_the_true_conditional_distribution_of_five_words():
    torch.manual_seed(0)
    true = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05], [0.05, 0.05, 0.1, 0.2, 0.6]])  # two contexts
    hidden = torch.eye(2)
    layer = OutputLayer(nn.Parameter(torch.zeros(5, 2)), np.array([9, 1, 5, 3, 2]), n_samples=2)
    layer.bf16 = False
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / (1 + step / 40))
    for _ in range(1500):
        context = torch.randint(2, (256,))
        targets = torch.multinomial(true[context], 1).squeeze(1)
        optimiser.zero_grad()
        (layer.loss(hidden[context], targets) / 256).backward()
        optimiser.step()
        schedule.step()
    fitted = (hidden @ layer.weight.T + layer.bias).softmax(1)
    assert (fitted - true).abs().max().item() < 0.03


def test_draws_follow_the_sampling_distribution():
    layer = output(200_000)
    torch.manual_seed(4)
    share = torch.bincount(layer.sample("cpu"), minlength=V) / 200_000
    assert (share - layer.log_q.exp()).abs().max().item() < 0.005


def test_bf16_product_is_close_and_its_gradient_flows():
    hidden = torch.randn(20, D, requires_grad=True)
    weight = torch.randn(V, D)
    product = matmul(hidden, weight.T, bf16=True)
    assert product.dtype == torch.float32
    assert torch.allclose(product, hidden @ weight.T, atol=0.1)
    product.sum().backward()
    assert torch.allclose(hidden.grad, weight.sum(0).expand_as(hidden), atol=0.2)


def test_bf16_is_looked_up_never_assumed():
    assert isinstance(fast_bf16("cpu"), bool)
    assert fast_bf16("mps") is False


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (40, 64, 16)])
def test_log_normaliser_and_its_gradient_equal_the_plain_expression_in_float64(shape):
    n, s, d = shape
    torch.manual_seed(0)
    parts = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((n, d), (s, d), (s,))]
    plain = (parts[0] @ parts[1].T + parts[2]).logsumexp(1)
    fast = LogNormaliser.apply(*parts, False)
    assert torch.allclose(fast, plain)
    upstream = torch.randn(n, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(plain, parts, upstream), torch.autograd.grad(fast, parts, upstream)):
        assert torch.allclose(a, b)


def test_the_product_of_scoring_is_exact_in_float32():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((70, 33), (1030, 33), (1030,))
    )
    exact = hidden.double() @ weight.double().T + bias.double()
    ours, plain = (
        x.double() - exact for x in (affine(hidden, weight, bias), torch.addmm(bias, hidden, weight.T))
    )
    assert ours.abs().max() < 2 * plain.abs().max() < 1e-4
