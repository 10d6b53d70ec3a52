"""One loop: same seed, same history; interrupted and resumed, the same weights."""

import math
import platform

import numpy as np
import pytest
import torch
from torch import nn

from rtl_core.batches import Batch
from rtl_core.storage import StudyError
from rtl_core.training import (
    AVERAGED_EVERY,
    History,
    Loss,
    Optimisation,
    RunningMean,
    clip_gradients,
    fit,
    mean_loss,
)


class Regression(nn.Module):
    """Squared error with dropout, so that the random state matters; no recurrent state."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 1), nn.Dropout(0.2)

    def loss(self, batch, state=None):
        """Returns the summed squared error."""
        error = self.linear(self.dropout(batch.inputs)).squeeze(1) - batch.targets
        return Loss(error.square().sum(), len(error))


def batches(epoch=0):
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(5):
        inputs = torch.randn(8, 3, generator=generator)
        yield Batch(inputs, inputs.sum(1))


def model():
    torch.manual_seed(0)
    return Regression()


def trained(**options):
    objective = model()
    settings = Optimisation(learning_rate=0.05, max_epochs=options.pop("max_epochs", 4), patience=9)
    history = fit(objective, batches, lambda: mean_loss(objective, batches(99)), settings, **options)
    return objective, history


def losses(history):
    return [(row["train_loss"], row["valid_loss"]) for row in history.rows]


def test_same_seed_same_history_another_seed_another():
    (_, a), (_, b), (_, c) = trained(seed=1), trained(seed=1), trained(seed=2)
    assert losses(a) == losses(b) != losses(c)


def test_training_leaves_the_callers_random_state_untouched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    objective = Regression.__new__(Regression)
    state = torch.get_rng_state()
    objective = model()
    torch.set_rng_state(state)
    fit(objective, batches, lambda: mean_loss(objective, batches(99)), Optimisation(max_epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_mean_loss_weights_batches_by_their_counts():
    objective = model()
    parts = [Batch(torch.randn(n, 3), torch.randn(n)) for n in (1, 20)]
    whole = Batch(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))
    assert mean_loss(objective, parts) == pytest.approx(mean_loss(objective, [whole]), rel=1e-5)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, capsys, stop_at):
    expected, history = trained()
    objective, checkpoint, epochs = model(), tmp_path / "run.safetensors", []

    def interrupted(epoch):
        epochs.append(epoch)
        if len(epochs) == stop_at + 2:  # the first call counts the steps
            raise KeyboardInterrupt
        return batches(epoch)

    settings = Optimisation(learning_rate=0.05, max_epochs=4, patience=9)
    first = fit(
        objective, interrupted, lambda: mean_loss(objective, batches(99)), settings, checkpoint=checkpoint
    )
    assert first.interrupted and len(first.rows) == stop_at
    resumed, second = trained(checkpoint=checkpoint)
    assert losses(second) == losses(history)
    assert f"going on after epoch {stop_at}" in capsys.readouterr().err
    for name, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("losses", "converged"),
    [
        ([3.0], False),
        ([3.0, 2.9], False),
        ([3.0, 2.995], True),
        ([2.9, 3.0, 2.95], True),
        ([3.0, 3.1, 2.9], False),
    ],
)
def test_a_run_has_converged_when_its_last_epoch_gains_little_over_the_best_before(losses, converged):
    assert History([{"valid_loss": loss} for loss in losses]).converged == converged


def test_ctrl_c_keeps_what_was_learnt():
    objective = model()
    start = {name: value.clone() for name, value in objective.state_dict().items()}
    calls = []

    def stop_in_second_epoch(epoch):
        calls.append(epoch)
        if epoch == 1:
            raise KeyboardInterrupt
        return batches(epoch)

    history = fit(objective, stop_in_second_epoch, lambda: mean_loss(objective, batches(99)), Optimisation())
    assert history.interrupted and len(history.rows) == 1
    assert not torch.equal(start["linear.weight"], objective.linear.weight)


def test_training_stops_on_validation_and_keeps_the_best_weights():
    objective, values = model(), iter([3.0, 1.0, 2.0, 2.5, 9.0])
    kept = []

    def validate():
        kept.append(objective.linear.weight.detach().clone())
        return next(values)

    history = fit(objective, batches, validate, Optimisation(max_epochs=9, patience=2))
    assert len(history.rows) == 4
    assert torch.equal(objective.linear.weight, kept[1])


def test_patience_begins_when_nothing_is_held_any_more():
    """Two held epochs without gain do not end training before the third; after it, patience is as ever."""
    losses_of = [3.0, 3.1, 3.2, 2.9, 2.95, 3.0, 1.0]
    for after, n_epochs in ((0, 3), (2, 6), (3, 6)):
        objective, values = model(), iter(losses_of)
        settings = Optimisation(max_epochs=7, patience=2, patience_after=after)
        history = fit(objective, batches, lambda: next(values), settings)
        assert len(history.rows) == n_epochs


def test_converged_means_that_the_last_epoch_gained_at_most_one_per_cent():
    for last, expected in ((0.985, False), (0.995, True), (1.2, True)):
        objective, values = model(), iter([2.0, 1.0, last])
        history = fit(objective, batches, lambda: next(values), Optimisation(max_epochs=3, patience=9))
        assert history.converged is expected


def test_a_loss_that_is_not_finite_fails_and_keeps_the_last_good_weights():
    objective = model()

    def poisoned(epoch):
        for batch in batches(epoch):
            yield batch._replace(targets=batch.targets * (math.nan if epoch == 1 else 1))

    history = fit(objective, poisoned, lambda: mean_loss(objective, batches(99)), Optimisation(max_epochs=3))
    assert "nan" in history.failed and len(history.rows) == 1
    assert torch.isfinite(objective.linear.weight).all()


def test_a_checkpoint_cut_short_says_what_to_do(tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    trained(checkpoint=checkpoint, max_epochs=1)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(StudyError, match="not whole.*delete it"):
        trained(checkpoint=checkpoint)


def test_the_schedule_peaks_at_the_learning_rate_and_ends_near_zero():
    settings = Optimisation(learning_rate=0.5, warmup=0.2)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(0.5) and np.argmax(rates) in (19, 20)
    assert 0 < rates[-1] < 0.01
    assert Optimisation(learning_rate=0.5, schedule="constant").rate(99, 100) == 0.5


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_rows_are_updated_as_by_dense_adam_without_momentum(eps):
    torch.manual_seed(0)
    ours, dense = nn.Embedding(20, 4, sparse=True), nn.Embedding(20, 4)
    dense.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    optimisers = (
        Optimisation(0.01, eps=eps).optimiser(list(ours.parameters())),
        torch.optim.AdamW(dense.parameters(), lr=0.01, weight_decay=0.0, betas=(0.0, 0.999), eps=eps),
    )
    for _ in range(30):
        ids, weight = torch.randint(15, (3,)), torch.randn(3, 4)
        for table, optimiser in zip((ours, dense), optimisers):
            optimiser.zero_grad()
            (table(ids) * weight).sum().backward()
            optimiser.step()
    assert torch.allclose(ours.weight, dense.weight, atol=1e-5)
    assert not torch.equal(ours.weight, start)


def test_clipping_counts_sparse_gradients_by_their_summed_rows():
    torch.manual_seed(0)
    sparse, dense = nn.Embedding(6, 3, sparse=True), nn.Embedding(6, 3)
    dense.load_state_dict(sparse.state_dict())
    other = nn.Linear(3, 1)
    for table in (sparse, dense):
        other.zero_grad()
        other(table(torch.tensor([0, 1, 1, 4]))).square().sum().backward()
        parameters = [*table.parameters(), *other.parameters()]
        if table is sparse:
            clip_gradients(parameters, 0.1)
            found = [p.grad.to_dense() if p.grad.is_sparse else p.grad.clone() for p in parameters]
        else:
            nn.utils.clip_grad_norm_(parameters, 0.1)
    for mine, parameter in zip(found, parameters):
        assert torch.allclose(mine, parameter.grad, atol=1e-6)


class Slope(nn.Module):
    """A loss of gradient 2 everywhere."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def loss(self, batch, state=None):
        """Returns twice the weight."""
        return Loss(2 * self.weight.sum(), 1)


def test_adagrad_takes_ever_smaller_steps():
    """Each step is the rate times the gradient over the root of all squares so far."""
    slope, places = Slope(), []

    def validate():
        places.append(slope.weight.item())
        return places[-1]

    optimisation = Optimisation(0.5, "constant", 3, patience=3, clip=math.inf, method="adagrad")
    fit(slope, lambda epoch: [next(batches())], validate, optimisation)
    assert np.allclose(-np.diff([0, *places]), [0.5 / (i + 1) ** 0.5 for i in range(3)], atol=1e-3)


# Averaged weights


class Lookup(nn.Module):
    """Squared error of looked-up rows, whose gradient is sparse, and of a dense map."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(30, 4, sparse=True), nn.Linear(4, 1)
        self.seen = []

    def loss(self, batch, state=None):
        """Returns the summed squared error; in training it notes the weights that it began with."""
        if self.training:
            self.seen.append([p.detach().double() for p in self.parameters()])
        error = self.linear(self.table(batch.inputs)).squeeze(1) - batch.targets
        return Loss(error.square().sum(), len(error))


def lookups(epoch, steps=25):
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(steps):
        ids = torch.randint(20, (3,), generator=generator)  # ten rows are never touched
        yield Batch(ids, ids.float())


def averaged(checkpoint=None, source=lookups, **changes):
    torch.manual_seed(0)
    objective, validated = Lookup(), []

    def validate():
        validated.append([p.detach().clone() for p in objective.parameters()])
        return mean_loss(objective, lookups(99))

    settings = {"learning_rate": 0.05, "schedule": "constant", "max_epochs": 4, "patience": 9} | changes
    history = fit(objective, source, validate, Optimisation(**settings), checkpoint=checkpoint)
    return objective, history, validated


def test_the_mean_of_the_weights_is_that_of_a_plain_loop_in_float64():
    objective, _, validated = averaged(average_from=2)
    plain, _, _ = averaged()
    starts = plain.seen  # training goes on from the last weights, not from the mean
    for mine, theirs in zip(objective.seen, starts):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs))
    for epoch in (2, 3, 4):
        taken = [
            starts[25 * e + step + 1]  # what a step began with is what the step before it ended with
            for e in range(1, epoch)
            for step in range(0, 25, AVERAGED_EVERY)
        ]
        for index, found in enumerate(validated[epoch - 1]):
            mean = torch.stack([weights[index] for weights in taken]).mean(0)
            assert torch.allclose(found.double(), mean, atol=1e-6)
    untouched = validated[3][0][20:]
    assert torch.allclose(untouched.double(), starts[0][0][20:], rtol=1e-6)
    assert torch.equal(validated[0][0].double(), starts[25][0])  # before, the last weights count


def test_the_mean_is_what_validation_saw_and_what_is_kept():
    objective, history, validated = averaged(average_from=1)
    best = min(range(4), key=lambda i: history.rows[i]["valid_loss"])
    for found, kept in zip(objective.parameters(), validated[best]):
        assert torch.equal(found, kept)


def test_a_mean_of_equal_weights_is_exact_and_leaves_the_weights_where_they_were():
    parameter = nn.Parameter(torch.rand(7, 3))
    mean = RunningMean([parameter])
    with mean.in_place():
        assert mean.values == []  # nothing taken yet: nothing changes
    for _ in range(9):
        mean.add()
    before = parameter.detach().clone()
    assert torch.equal(mean.values[0], before)
    with torch.no_grad():
        parameter.add_(1)
    with pytest.raises(KeyError), mean.in_place():
        assert torch.equal(parameter, before)
        raise KeyError
    assert torch.equal(parameter, before + 1)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_an_averaged_run_resumed_equals_one_uninterrupted(tmp_path, stop_at):
    expected, history, _ = averaged(average_from=2)
    calls = []

    def interrupted(epoch):
        calls.append(epoch)
        if len(calls) == stop_at + 2:
            raise KeyboardInterrupt
        return lookups(epoch)

    checkpoint = tmp_path / "run.safetensors"
    first = averaged(checkpoint, interrupted, average_from=2)[1]
    assert first.interrupted and len(first.rows) == stop_at
    objective, second, _ = averaged(checkpoint, average_from=2)
    assert losses(second) == losses(history)
    for a, b in zip(expected.parameters(), objective.parameters()):
        assert torch.equal(a, b)


def test_memory_freed_by_a_step_is_there_for_the_next_one():
    """A step's tensors of some MiB would be given back and taken again, at 256 page faults a MiB."""
    if platform.system() != "Linux":
        return
    import resource

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def step():
        parts = [torch.ones(2**20) for _ in range(5)]  # 4 MiB each
        return sum(part[0].item() for part in parts)

    step()
    before = faults()
    for _ in range(20):
        step()
    assert faults() - before < 5 * 1024  # what one step touches; giving it back would make it 20 times that
