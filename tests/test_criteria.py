"""Every criterion fits the true distribution; sampled losses estimate the full one; scoring is exact."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rtl_core.softmax
from rtl_core import __main__, doctor, texts
from rtl_core.config import Experiment
from rtl_core.criteria import (
    AdaptiveSoftmax,
    NoiseContrastive,
    OutputLayer,
    frequency_ranks,
    make_output,
    sampling_distribution,
)
from rtl_core.experiments import model_dir, run
from rtl_core.scoring import token_nats
from rtl_core.softmax import SoftmaxLoss, affine, fast_bf16, log_normaliser, matmul
from rtl_core.storage import StudyError
from rtl_core.studies import grid
from rtl_core.training import RowwiseAdamW
from rtl_core.transfer import load_model

V, D, N = 40, 8, 30


def output(n_samples=None, vocab_size=V, kind=OutputLayer, **settings):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(vocab_size, D) * 0.5)
    layer = kind(weight, np.arange(vocab_size)[::-1] ** 2, n_samples, **settings)
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


@pytest.mark.parametrize("sampling", ["unigram", "log-uniform"])
def test_sampled_softmax_at_50_v_samples_equals_the_full_softmax(sampling):
    torch.manual_seed(2)
    layer, (hidden, targets) = output(vocab_size=400, sampling=sampling), batch()
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


TRUE = torch.tensor(
    [[0.5, 0.2, 0.15, 0.1, 0.05], [0.05, 0.05, 0.1, 0.2, 0.6]]
)  # of five words, in two contexts
FIVE_COUNTS = np.array([9, 1, 5, 3, 2])


def fitted(layer, steps=1500):
    """The logits of both contexts after training on draws from TRUE."""
    torch.manual_seed(0)
    contexts = torch.eye(2)
    layer.bf16 = False
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / (1 + step / 40))
    for _ in range(steps):
        context = torch.randint(2, (256,))
        targets = torch.multinomial(TRUE[context], 1).squeeze(1)
        optimiser.zero_grad()
        (layer.loss(contexts[context], targets) / 256).backward()
        optimiser.step()
        schedule.step()
    return torch.stack([-layer.eval().nats(contexts, torch.full((2,), word)) for word in range(5)], dim=1)


@pytest.mark.parametrize("sampling", ["unigram", "log-uniform"])
@pytest.mark.parametrize("kind", [OutputLayer, NoiseContrastive])
def test_two_samples_fit_the_true_conditional_distribution_of_five_words(kind, sampling):
    layer = kind(nn.Parameter(torch.zeros(5, 2)), FIVE_COUNTS, 2, sampling=sampling)
    assert (fitted(layer).exp() - TRUE).abs().max().item() < 0.03


def test_noise_contrastive_estimation_learns_normalised_scores():
    layer = NoiseContrastive(nn.Parameter(torch.zeros(5, 2)), FIVE_COUNTS, 2)
    fitted(layer)
    scores = (layer.weight.T + layer.bias).exp()  # of both contexts, never divided by their sum
    assert (scores.sum(1) - 1).abs().max().item() < 0.05
    ranking = OutputLayer(nn.Parameter(torch.zeros(5, 2)), FIVE_COUNTS, 2)
    ranking.bias.data += 1
    fitted(ranking)
    assert (ranking.weight.T + ranking.bias).exp().sum(
        1
    ).min().item() > 2  # sampled softmax leaves the sum free


def test_adaptive_softmax_fits_the_true_conditional_distribution_of_five_words():
    torch.manual_seed(0)
    assert (fitted(AdaptiveSoftmax(FIVE_COUNTS, 2), 400).exp() - TRUE).abs().max().item() < 0.03


def test_noise_contrastive_loss_equals_a_loop_over_words():
    layer, (hidden, targets) = output(n_samples=6, kind=NoiseContrastive), batch()
    sample = torch.tensor([3, 0, 7, 7, 1, int(targets[0])])
    found = layer.sampled_loss(hidden, targets, sample).item()
    q = sampling_distribution(np.arange(V)[::-1] ** 2)
    expected = 0.0
    for h, y in zip(hidden, targets):
        for word, is_data in [(int(y), True), *((int(w), False) for w in sample)]:
            odds = math.exp((h @ layer.weight[word] + layer.bias[word]).item()) / (6 * q[word].item())
            expected -= math.log(odds / (1 + odds) if is_data else 1 / (1 + odds))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sampling", ["unigram", "log-uniform"])
def test_sampling_distributions_sum_to_one_and_fall_with_rank(sampling):
    counts = np.array([5, 0, 70, 5, 3])
    q = sampling_distribution(counts, sampling)
    assert q.sum().item() == pytest.approx(1)
    assert frequency_ranks(counts).tolist() == [1, 4, 0, 2, 3]
    assert q.argsort(descending=True, stable=True).tolist() == [2, 0, 3, 4, 1]
    if sampling == "log-uniform":
        expected = [math.log((r + 2) / (r + 1)) / math.log(6) for r in (1, 4, 0, 2, 3)]
        assert q.tolist() == pytest.approx(expected)


def test_the_bias_starts_at_the_unigram_whatever_is_sampled():
    for layer in (output(), output(5, sampling="log-uniform"), output(5, kind=NoiseContrastive)):
        assert torch.allclose(layer.bias.exp().double(), sampling_distribution(np.arange(V)[::-1] ** 2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing_equals_that_of_torch_and_leaves_scoring_alone(smoothing):
    layer, (hidden, targets) = output(label_smoothing=smoothing).double(), batch()
    hidden = hidden.detach().double().requires_grad_()
    plain = nn.functional.cross_entropy(
        hidden @ layer.weight.T + layer.bias, targets, reduction="sum", label_smoothing=smoothing
    )
    found = layer.loss(hidden, targets)
    assert torch.allclose(found, plain)
    assert torch.allclose(gradients(layer, found, hidden), gradients(layer, plain, hidden))
    assert torch.equal(layer.nats(hidden, targets), output().nats(hidden, targets))


# Adaptive softmax


def adaptive(vocab_size, dim=16, seed=0):
    torch.manual_seed(seed)
    counts = np.random.default_rng(seed).permutation(vocab_size) ** 2  # ids are in no order of frequency
    layer = AdaptiveSoftmax(counts, dim)
    layer.bf16 = False
    return layer, frequency_ranks(counts)


@pytest.mark.parametrize("vocab_size", [3, 5, 64, 1500])
def test_adaptive_probabilities_sum_to_one_and_equal_a_loop(vocab_size):
    layer, ranks = adaptive(vocab_size)
    hidden = torch.randn(4, 16)
    words = torch.arange(vocab_size)
    found = torch.stack([layer.nats(h.expand(vocab_size, -1), words) for h in hidden])
    assert (-found).exp().sum(1).tolist() == pytest.approx([1] * 4, abs=1e-4)
    first, second = max(1, vocab_size // 16), max(2, vocab_size // 4)
    for word in range(0, vocab_size, 1 + vocab_size // 20):
        rank, h = ranks[word], hidden[0]
        head = layer.head(h).softmax(0)
        if rank < first:
            p = head[rank]
        else:
            cluster, start = (0, first) if rank < second else (1, second)
            p = head[first + cluster] * layer.tails[cluster](h).softmax(0)[rank - start]
        assert found[0, word].item() == pytest.approx(-math.log(p.item()), abs=1e-4)


def test_adaptive_softmax_equals_torchs_own():
    layer, ranks = adaptive(320)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(16, 320, [20, 80], div_value=4, head_bias=True)
    theirs.head.load_state_dict(layer.head.state_dict())
    for own, other in zip(layer.tails, theirs.tail):
        own[1].bias.data.zero_()  # theirs has none
        other[0].weight, other[1].weight = own[0].weight, own[1].weight
    hidden, targets = torch.randn(50, 16), torch.randint(320, (50,))
    expected = theirs(hidden, torch.from_numpy(ranks)[targets]).output
    assert torch.allclose(-layer.nats(hidden, targets), expected, atol=1e-5)


def test_adaptive_loss_is_the_sum_of_its_nats_and_its_gradient_theirs():
    layer, ranks = adaptive(320)
    hidden = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(320, (50,))
    nats = layer.nats(hidden, targets).sum().item()
    loss = layer.double().loss(hidden, targets)
    assert loss.item() == pytest.approx(nats)
    rank = torch.from_numpy(ranks)[targets]
    plain = (
        -layer.head(hidden)
        .log_softmax(1)
        .gather(1, torch.where(rank < 20, rank, 20 + (rank >= 80).long())[:, None])
        .sum()
    )
    for (low, high), tail in zip([(20, 80), (80, 320)], layer.tails):
        inside = (rank >= low) & (rank < high)
        plain = plain - tail(hidden[inside]).log_softmax(1).gather(1, rank[inside][:, None] - low).sum()
    parts = [hidden, *layer.parameters()]
    for found, expected in zip(torch.autograd.grad(loss, parts), torch.autograd.grad(plain, parts)):
        assert torch.allclose(found, expected, atol=1e-10)


def test_adaptive_softmax_starts_near_the_unigram_and_trains_where_a_cluster_is_absent():
    layer, ranks = adaptive(320)
    words = torch.arange(320)
    p = (-layer.nats(torch.zeros(320, 16), words)).exp().double()
    assert torch.allclose(p, sampling_distribution(np.random.default_rng(0).permutation(320) ** 2), rtol=1e-3)
    frequent = torch.from_numpy(np.flatnonzero(ranks == 0)).repeat(3)
    layer.loss(torch.randn(3, 16, requires_grad=True), frequent).backward()
    assert layer.head.weight.grad.abs().sum() > 0


# From settings


@pytest.mark.parametrize(
    ("criterion", "kind", "n_samples"),
    [
        ("softmax", OutputLayer, None),
        ("sampled-softmax", OutputLayer, 7),
        ("nce", NoiseContrastive, 7),
        ("adaptive-softmax", AdaptiveSoftmax, None),
    ],
)
def test_make_output_gives_the_criterion_and_draws_nothing_from_the_callers_stream(
    criterion, kind, n_samples
):
    e = Experiment(criterion=criterion, n_samples=7, hidden_size=D)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    layers = [make_output(e, nn.Parameter(torch.zeros(V, D)), np.arange(V)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert type(layers[0]) is kind and getattr(layers[0], "n_samples", None) == n_samples
    for one, other in zip(layers[0].parameters(), layers[1].parameters()):
        assert torch.equal(one, other)


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


SMALL = Experiment(
    corpus="tiny", hidden_size=8, n_samples=16, batch_size=4, window=20, max_epochs=3, learning_rate=0.03
)


@pytest.fixture
def tiny_text(monkeypatch, tiny_corpus):
    monkeypatch.setattr(texts, "corpus_of", lambda name: tiny_corpus)
    yield
    texts._vocabulary.cache_clear(), texts._text.cache_clear()


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "softmax", "label_smoothing": 0.1},
        {"criterion": "sampled-softmax", "sampling": "log-uniform"},
        {"criterion": "nce"},
        {"criterion": "sampled-softmax", "output_rows": "all", "output_init": "tied"},
        {"criterion": "adaptive-softmax"},
    ],
)
def test_each_criterion_trains_a_model_that_is_stored_and_beats_the_unigram(tiny_text, settings):
    e = SMALL.replace(**settings)
    record = run(e)
    unigram = run(SMALL.replace(model="unigram"))
    assert record.scores["test_perplexity_stream"] < 0.8 * unigram.scores["test_perplexity_stream"]
    model, _, _ = load_model(model_dir(record.name))
    nats = token_nats(model, texts.text_of(e).test, "stream")
    assert math.exp(nats.mean(dtype=np.float64)) == pytest.approx(record.scores["test_perplexity_stream"])


@pytest.mark.parametrize("rows", ["touched", "all"])
def test_a_row_that_was_drawn_once_moves_on_by_momentum_only_if_all_rows_are_trained(rows):
    e = SMALL.replace(output_rows=rows, hidden_size=D)
    layer = make_output(e, nn.Parameter(torch.randn(V, D)), np.ones(V), sparse=True)
    twin = nn.Parameter(layer.weight.detach().clone())
    kinds = (RowwiseAdamW, layer.parameters()), (torch.optim.AdamW, [twin])
    optimisers = [kind(parameters, lr=0.01, weight_decay=0.0) for kind, parameters in kinds]
    hidden, moved = torch.ones(1, D), []
    for word in (3, 5):
        before = layer.weight.detach().clone()
        layer.sampled_loss(hidden, torch.tensor([word]), torch.tensor([word + 1])).backward()
        assert layer.weight.grad.is_sparse == (rows == "touched")
        twin.grad = layer.weight.grad.to_dense()
        [each.step() for each in optimisers], [each.zero_grad() for each in optimisers]
        moved.append(set((layer.weight != before).any(1).nonzero()[:, 0].tolist()))
    assert moved == [{3, 4}, {5, 6} if rows == "touched" else {3, 4, 5, 6}]
    assert torch.equal(layer.weight, twin) == (rows == "all")  # what trains the full softmax's table


def test_the_study_of_criteria_has_an_arm_for_the_optimiser_alone():
    arms = [e for e in grid("criteria") if e.seed == 0 and e.model == "lstm"]
    plain, dense = (
        e for e in arms if e.n_samples == 512 and e.sampling == "unigram" and e.criterion[:4] == "samp"
    )
    assert dense == plain.replace(output_rows="all")
    assert all(e == e.settled() for e in arms)  # it matters in that arm, and only there
    with pytest.raises(StudyError, match="a frozen output table keeps its rows"):
        plain.replace(output_rows="all", output_mode="frozen")


def test_arms_are_given_as_many_epochs_as_fit_a_time(tiny_text, monkeypatch):
    monkeypatch.setattr(doctor, "step_seconds", lambda e, n: 3.0 if e.criterion == "softmax" else 1.0)
    steps = len(texts.text_of(SMALL).train) / (4 * 20)
    arms = [SMALL, SMALL.replace(seed=1), SMALL.replace(criterion="softmax"), SMALL.replace(model="unigram")]
    assert [e.max_epochs for e in doctor.trained_for(arms, 7 * steps)] == [7, 7, 2, 3]
    with pytest.raises(StudyError, match="criterion softmax one takes about"):
        doctor.trained_for(arms, 2 * steps)


def test_a_study_of_equal_times_compares_arms_of_unequal_epochs(tiny_text, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "step_seconds", lambda e, n: 2.0 if e.criterion == "softmax" else 1.0)
    arms = [SMALL.replace(criterion=name, n_samples=512) for name in ("sampled-softmax", "softmax")]
    monkeypatch.setattr(__main__, "grid", lambda name: [*arms, SMALL.replace(model="unigram")])
    steps = len(texts.text_of(SMALL).train) / (4 * 20)
    assert (
        __main__.main(["study", "--size", "criteria", "--workers", "1", "--seconds", str(2.1 * steps)]) == 0
    )
    out = capsys.readouterr().out
    assert "max_epochs 2" in out and "max_epochs 1" in out


# Fast paths against the plain expression, on shapes drawn at random


def random_case(seed, scale=1.0):
    """Parts of a softmax in float64: hidden, weight, bias; and targets."""
    generator = torch.Generator().manual_seed(seed)
    n, v, d = (int(torch.randint(1, most, (), generator=generator)) for most in (600, 2500, 40))
    shapes = ((n, d), (v, d), (v,))
    parts = [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [part.requires_grad_() for part in parts], torch.randint(v, (n,), generator=generator)


@pytest.mark.parametrize("scale", [1.0, 30.0])  # 30: logits of thousands, too large to sum without care
@pytest.mark.parametrize("seed", range(12))
def test_full_softmax_and_its_gradient_equal_cross_entropy_in_float64(seed, scale, monkeypatch):
    monkeypatch.setattr(rtl_core.softmax, "BLOCK_TOKENS", 1 + 37 * seed)
    parts, targets = random_case(seed, scale)
    hidden, weight, bias = parts
    plain = nn.functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")
    fast = SoftmaxLoss.apply(hidden, weight, bias, targets, False)
    assert torch.allclose(fast, plain, rtol=1e-10)
    expected, found = torch.autograd.grad(3 * plain, parts), torch.autograd.grad(3 * fast, parts)
    for a, b in zip(expected, found):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-9 * scale)
    normaliser = log_normaliser(*parts)
    assert torch.allclose(normaliser, (hidden @ weight.T + bias).logsumexp(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [-500.0, -95.0, 0.0, 95.0, 500.0])
def test_normalisers_survive_logits_that_are_all_small_or_large(shift):
    parts, _ = random_case(3)
    hidden, weight, bias = (part.detach().float() for part in parts)
    expected = (hidden.double() @ weight.double().T + bias.double() + shift).logsumexp(1)
    found = log_normaliser(hidden, weight, bias + shift)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_bf16_is_near_and_unbiased(seed):
    parts, targets = random_case(seed, 0.4)
    hidden, weight, bias = (part.detach().float().requires_grad_() for part in parts)
    exact = nn.functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")
    fast = SoftmaxLoss.apply(hidden, weight, bias, targets, True)
    assert fast.item() == pytest.approx(exact.item(), rel=2e-3)
    for a, b in zip(*(torch.autograd.grad(loss, (hidden, weight, bias)) for loss in (exact, fast))):
        assert (a - b).norm() < 0.02 * a.norm() + 1e-3
    layer = output(vocab_size=3000)
    states, words = torch.randn(2000, D), torch.randint(3000, (2000,))
    difference = layer.nats(states, words, bf16=True) - layer.nats(states, words)
    assert difference.abs().max().item() < 0.05 and abs(difference.mean().item()) < 1e-3


def test_a_frozen_table_gets_no_gradient_and_the_states_theirs():
    layer, (hidden, targets) = output(), batch()
    expected = torch.autograd.grad(layer.loss(hidden, targets), hidden)[0]
    layer.weight.requires_grad_(False)
    layer.loss(hidden, targets).backward()
    assert layer.weight.grad is None and torch.equal(hidden.grad, expected)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor holds that is made inside."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("vocab_size", [2_000, 20_000])
@pytest.mark.parametrize("kind", ["softmax", "adaptive-softmax"])
def test_scoring_and_training_never_hold_the_logits(kind, vocab_size):
    layer = output(vocab_size=vocab_size) if kind == "softmax" else adaptive(vocab_size, D)[0]
    hidden, targets = torch.randn(3000, D), torch.randint(vocab_size, (3000,))
    block = rtl_core.softmax.BLOCK_TOKENS * rtl_core.softmax.BLOCK_WORDS
    with Largest() as scoring:
        layer.nats(hidden, targets)
    assert scoring.numbers <= max(block, 3000 * D)  # whatever the vocabulary
    with Largest() as training:
        layer.loss(hidden.requires_grad_(), targets)
    assert training.numbers <= max(block, 3000 * D, vocab_size * D)  # the table's gradient
