"""Each way into the language model is what it says: its formula, what moves in training and what does not."""

from dataclasses import fields
from itertools import product

import numpy as np
import pytest
import torch

from rtl_core import experiments
from rtl_core.batches import stream_batches
from rtl_core.choices import CHOICES
from rtl_core.config import Experiment, derive_seed
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.experiments import fit_language_model
from rtl_core.input_layers import GATE_START, AnchoredTable, GatedTables
from rtl_core.pretrain import pretrain
from rtl_core.scoring import score_text, token_nats
from rtl_core.storage import StudyError
from rtl_core.studies import STUDY_SIZES, grid
from rtl_core.texts import Text
from rtl_core.training import Optimisation, clip_gradients
from rtl_core.transfer import build_model, load_model, save_model

D, COVERED = 12, 20  # the source covers the first words of the vocabulary, <eos> apart
MODES = CHOICES["input_mode"]


@pytest.fixture
def text(tiny_corpus):
    vocabulary = Vocabulary.build(tiny_corpus.split("train"))
    splits = {
        s: vocabulary.encode(tiny_corpus.split(s), tiny_corpus.domains) for s in ("train", "valid", "test")
    }
    return Text(tiny_corpus, vocabulary, **splits)


def setting(**changes):
    return Experiment(
        **{"source": "word2vec-sg", "hidden_size": D, "n_samples": 50, "batch_size": 4, "window": 7}
        | {"max_epochs": 3, "dropout": 0.1}
        | changes
    )


def vectors(text):
    table = np.random.default_rng(0).standard_normal((COVERED, D)).astype(np.float32)
    return Embeddings(text.vocabulary.words[:COVERED], table * 3 + 1, {})


def made(text, **changes):
    return build_model(setting(**changes), text.vocabulary, vectors(text), text.lm_counts)


def every(text):
    return torch.arange(len(text.vocabulary))[None]


def covered(text):
    return every(text)[0].lt(COVERED) & every(text)[0].ne(EOS_ID)


def entering(text, rms=0.3):
    """The covered rows as they should enter: centred, of root mean square `rms`; by plain numpy in float64."""
    rows = np.delete(vectors(text).table.astype(np.float64), EOS_ID, axis=0)
    rows = rows - rows.mean(0)
    return rows / np.sqrt((rows**2).mean()) * rms


def steps(model, text, n=2, weight_decay=0.1):
    """Trains `n` steps as `fit` does, weight decay included: what is kept must be safe from that too."""
    model.train()
    torch.manual_seed(0)
    optimiser = Optimisation(learning_rate=0.02, weight_decay=weight_decay).optimiser(
        list(model.parameters())
    )
    for batch, _ in zip(stream_batches(text.train, 4, 7), range(n)):
        optimiser.zero_grad(set_to_none=True)
        loss = model.loss(batch)
        (loss.total / loss.count).backward()
        clip_gradients(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


def fitted(text, monkeypatch, checkpoint=None, **changes):
    monkeypatch.setattr(experiments, "checkpoint_path", lambda e: checkpoint)
    model = made(text, **changes)
    return model, fit_language_model(setting(**changes), model, text)


def same_weights(one, two):
    one, two = one.state_dict(), two.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one.keys() & two.keys())


# What enters


@pytest.mark.parametrize("mode", MODES)
def test_covered_words_enter_as_their_formula_says(mode, text):
    expected = entering(text)
    beside = np.random.default_rng(derive_seed(0, "beside")).standard_normal((len(text.vocabulary), D)) * 0.3
    beside = beside[covered(text).numpy()]
    gate = 1 / (1 + np.exp(-GATE_START))
    if mode == "concatenated":
        expected = np.concatenate([expected, beside], 1)
    elif mode == "gated":
        expected = gate * expected + (1 - gate) * beside
    found = made(text, input_mode=mode).table(every(text))[0][covered(text)].detach().numpy()
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_uncovered_words_enter_at_the_same_size(mode, text):
    found = made(text, input_mode=mode).table(every(text))[0][~covered(text)]
    assert found.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.15)


def test_a_changed_map_maps_every_word(text):
    model = made(text, input_mode="projected")
    before, change = model.table(every(text)), torch.randn(D, D)
    with torch.no_grad():
        model.table.map.copy_(change)
    expected = np.einsum("vd,ed->ve", before[0].detach().numpy(), change.numpy())
    assert np.allclose(model.table(every(text))[0].detach().numpy(), expected, atol=1e-5)


def test_a_gate_goes_from_the_source_to_the_trained_table(text):
    layer = made(text, input_mode="gated").table
    for value, expected in ((100.0, layer.kept), (-100.0, layer.trained.weight)):
        with torch.no_grad():
            layer.gates.fill_(value)
        found = layer(every(text))[0]
        assert torch.equal(found[covered(text)], expected[covered(text)])
        assert torch.equal(
            found[~covered(text)], layer.trained.weight[~covered(text)]
        )  # whatever the gate says


@pytest.mark.parametrize("mode", MODES)
def test_a_learned_size_starts_at_the_default_and_stays_positive(mode, text):
    number, learned = (made(text, input_mode=mode, **more) for more in ({}, {"input_rms": "learned"}))
    assert torch.equal(learned.table(every(text)), number.table(every(text)))
    steps(learned, text)
    factor = learned.table.log_factor.exp().item()
    assert factor > 0 and factor != 1
    with torch.no_grad():
        learned.table.log_factor.zero_()
        whole = learned.table(every(text))
        learned.table.log_factor.fill_(np.log(2))
    assert torch.allclose(learned.table(every(text)), 2 * whole)


def test_random_inputs_are_those_of_the_baseline(text):
    """Source random and input_init random are one table, so that arms differ in nothing else."""
    baseline = pretrain("random", text.corpus, text.vocabulary, dim=D, seed=0).embeddings
    theirs = build_model(setting(source="random"), text.vocabulary, baseline, text.lm_counts)
    ours = made(text, input_init="random", output_init="pretrained")
    assert torch.equal(ours.table.weight, theirs.table.weight)


def test_a_pretrained_output_is_the_source_at_the_output_size(text):
    model = made(text, output_init="pretrained")
    rows = model.output.weight.detach().numpy()
    assert np.allclose(rows[covered(text)], entering(text, D**-0.5), atol=1e-6)
    assert np.sqrt((rows[~covered(text)] ** 2).mean()) == pytest.approx(D**-0.5, rel=0.15)
    assert np.allclose(model.table.weight.detach().numpy()[covered(text)], entering(text), atol=1e-6)


def test_the_rest_of_the_model_starts_the_same_whatever_enters(text):
    plain = made(text).state_dict()
    for mode in set(MODES) - {"concatenated"}:  # whose LSTM is wider
        other = made(text, input_mode=mode).state_dict()
        assert all(torch.equal(plain[name], other[name]) for name in plain if not name.startswith("table"))


# What moves


@pytest.mark.parametrize("mode", ["frozen", "concatenated", "projected", "gated"])
def test_the_kept_table_does_not_move_and_the_rest_does(mode, text):
    model = made(text, input_mode=mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model, text, n=4)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    kept = {"frozen": "table.fixed", "gated": "table.kept"}.get(mode, "table.kept.fixed")
    trained = {
        "frozen": {"table.weight"},
        "concatenated": {"table.kept.weight", "table.trained.weight"},
        "projected": {"table.kept.weight", "table.map"},
        "gated": {"table.trained.weight", "table.gates"},
    }[mode]
    assert kept not in moved and trained <= moved


@pytest.mark.parametrize("changes", [{}, {"output_init": "pretrained"}, {"criterion": "softmax"}])
def test_a_frozen_output_keeps_its_rows_and_trains_its_bias(changes, text):
    changes = {"output_mode": "frozen"} | changes
    model = made(text, **changes)
    kept = covered(text) if changes.get("output_init") else every(text)[0] != EOS_ID
    weight, bias = (part.detach().clone() for part in (model.output.weight, model.output.bias))
    steps(model, text)
    moved = (model.output.weight != weight).any(1)
    assert not moved[kept].any() and moved[~kept].all() and not torch.equal(model.output.bias, bias)


def test_a_frozen_output_bounds_no_gradient_of_the_others(text):
    """The gradient of kept rows is dropped before clipping: it takes no part in the joint norm."""
    model = made(text, output_mode="frozen")
    model.train().loss(next(iter(stream_batches(text.train, 4, 7)))).total.backward()
    assert model.output.weight.grad.coalesce().indices()[0].tolist() in ([EOS_ID], [])


@pytest.mark.parametrize("mode", MODES)
def test_a_step_touches_only_the_rows_of_its_batch(mode, text):
    model = made(text, input_mode=mode, input_rms="learned").train()
    batch = next(iter(stream_batches(text.train, 2, 3)))
    model.loss(batch).total.backward()
    large = [p for p in model.table.parameters() if p.ndim and len(p) == len(text.vocabulary)]
    assert bool(large) == (mode not in ("frozen", "projected"))
    for parameter in large:
        rows = parameter.grad.coalesce().indices()[0].tolist()
        assert set(rows) <= set(batch.inputs.flatten().tolist())


# Held near the start


def test_the_pull_to_the_start_is_the_gradient_of_the_whole_penalty_on_touched_rows(text):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(text.vocabulary), D, generator=generator)
    layer = AnchoredTable(0.7, start, covered(text), scale=1.5, sparse=True)
    with torch.no_grad():
        layer.weight += torch.randn(start.shape, generator=generator)
    ids = torch.tensor([[3, 5, 3, EOS_ID], [5, COVERED, COVERED + 1, 7]])
    layer.penalty(ids).backward()
    dense = layer.weight.detach().double().requires_grad_()
    whole = 0.7 * (1.5 * (dense - start.double())).square().sum()
    whole.backward()
    found = layer.weight.grad.to_dense().double()
    touched = torch.zeros(len(start), dtype=torch.bool)
    touched[[3, 5, 7]] = True  # each once, those that the source covers
    assert torch.allclose(found[touched], dense.grad[touched], rtol=1e-5)
    assert not found[~touched].any()


def test_the_penalty_counts_in_the_mean_and_only_in_training(text):
    model = made(text, input_mode="l2sp", l2sp=2.0, dropout=0.0, criterion="softmax")
    batch = next(iter(stream_batches(text.train, 4, 7)))
    model.output.bf16 = False
    with torch.no_grad():
        model.table.weight += 0.1
    plain = model.eval().loss(batch)
    trained = model.train().loss(batch)
    words = torch.unique(batch.inputs)
    n = covered(text)[words].sum().item()
    added = (trained.total - plain.total).item() / plain.count
    assert added == pytest.approx(2.0 * n * D * 0.01, rel=1e-3)


def test_no_pull_is_plain_finetuning(text):
    plain = steps(made(text), text, 5)
    free = steps(made(text, input_mode="l2sp", l2sp=0.0), text, 5)
    assert same_weights(plain, free)


def test_the_stronger_the_pull_the_nearer_the_start(text):
    distances = []
    for strength in (0.0, 0.1, 1e6):
        model = made(text, input_mode="l2sp", l2sp=strength, weight_decay=0.0)
        start = model.table.weight.detach().clone()
        steps(model, text, 40, weight_decay=0.0)
        moved = (model.table.weight - start).square().mean(1).sqrt()
        distances.append(moved[covered(text)].mean().item())
        assert moved[~covered(text)].max().item() > 0.02  # the others are free
    assert distances[0] > 1.5 * distances[1] > 1.5 * distances[2]
    assert distances[2] < 0.02  # the length of a step


# Thawing


@pytest.mark.parametrize("mode", ["finetuned", "l2sp"])
def test_a_table_thaws_after_its_epochs(mode, text, monkeypatch):
    changes = {"input_mode": mode, "warmup_frozen": 2, "weight_decay": 0.1}
    start = made(text, **changes).table.weight.detach().clone()
    seen = []

    def observed(model, *rest, **settings):
        seen.append((model.table.weight.detach() != start).any(1))
        return token_nats(model, *rest, **settings)

    monkeypatch.setattr(experiments, "token_nats", observed)
    fitted(text, monkeypatch, **changes)
    assert [bool(moved[covered(text)].any()) for moved in seen] == [False, False, True]
    assert seen[0][EOS_ID]  # no source covers it: as in a frozen table, it learns


def test_patience_cannot_end_training_before_the_table_thaws(text, monkeypatch):
    bad = iter((3.0, 3.1, 3.2, 3.3))
    monkeypatch.setattr(
        experiments, "token_nats", lambda model, *rest, **settings: np.full(9, next(bad), np.float32)
    )
    _, history = fitted(text, monkeypatch, warmup_frozen=2, patience=1, max_epochs=4)
    assert len(history.rows) == 4  # the third epoch is the first that counts


def test_a_held_table_is_the_same_table(text):
    model = made(text)
    open_, model.table.held = model.table(every(text)), True
    assert torch.equal(model.table(every(text)), open_)


@pytest.mark.parametrize("warmup", [1, 2])
def test_a_resumed_warmup_equals_one_that_was_never_interrupted(warmup, text, monkeypatch, tmp_path):
    changes = {"warmup_frozen": warmup, "input_mode": "l2sp", "input_rms": "learned", "output_mode": "frozen"}
    whole, history = fitted(text, monkeypatch, tmp_path / "whole", **changes)
    calls = []

    def interrupted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3:  # in the third epoch: two are in the checkpoint
            raise KeyboardInterrupt
        return token_nats(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(experiments, "token_nats", interrupted)
        assert fitted(text, monkeypatch, tmp_path / "part", **changes)[1].interrupted
    resumed, again = fitted(text, monkeypatch, tmp_path / "part", **changes)
    assert same_weights(whole, resumed)
    assert [r["train_loss"] for r in again.rows] == [r["train_loss"] for r in history.rows]


# Every combination


AXES = ("input_init", "input_mode", "output_init", "output_mode")
COMBINATIONS = [dict(zip(AXES, values)) for values in product(*(CHOICES[axis] for axis in AXES))]


def is_valid(changes):
    try:
        return bool(setting(**changes))
    except StudyError:
        return False


VALID = [c for c in COMBINATIONS if is_valid(c)]
IDS = [" ".join(c.values()) for c in VALID]


def test_every_combination_is_made_or_refused():
    assert len(VALID) == 29  # pretrained: 6 modes × 2 outputs × 2, and 1 tied; random: 2 modes × 2
    assert all(
        c in VALID for c in COMBINATIONS if c["input_init"] == "pretrained" and c["output_init"] != "tied"
    )


@pytest.mark.parametrize(
    "combination", [c for c in COMBINATIONS if not is_valid(c)], ids=lambda c: " ".join(c.values())
)
def test_a_refused_combination_says_why_and_what_to_do(combination):
    with pytest.raises(StudyError, match=r"[a-z]+: .*(choose|take|give)") as error:
        setting(**combination)
    named = [axis for axis in AXES if f"{axis} {combination[axis]}" in str(error.value).partition(":")[0]]
    assert named  # the settings that clash


@pytest.mark.parametrize("combination", VALID, ids=IDS)
def test_a_valid_combination_trains_and_comes_back_from_disk(combination, text, tmp_path):
    e = setting(**combination)
    model = steps(made(text, **combination), text)
    save_model(tmp_path, model, text.vocabulary, e, "whitespace")
    loaded, vocabulary, _ = load_model(tmp_path)
    assert vocabulary == text.vocabulary and same_weights(model, loaded)
    assert model.state_dict().keys() == loaded.state_dict().keys()
    expected = token_nats(model, text.test, "document")
    assert np.array_equal(token_nats(loaded, text.test, "document"), expected)
    assert same_weights(steps(model, text), steps(loaded, text))  # it also goes on learning in the same way


def test_a_saved_model_of_any_mode_scores_a_file(text, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the cook stirs the warm soup .\n", encoding="utf-8")
    for mode in MODES:
        changes = {"input_mode": mode, "input_rms": "learned", "output_init": "pretrained"}
        model = steps(made(text, **changes), text)
        save_model(tmp_path / mode, model, text.vocabulary, setting(**changes), "whitespace")
        row, tokens = score_text(tmp_path / mode, file)
        assert row["tokens"] == len(tokens) == 8 and 1 < row["perplexity_document"] < 1000


def test_tied_tables_come_back_as_one_parameter(text, tmp_path):
    model = steps(made(text, output_init="tied"), text)
    save_model(tmp_path, model, text.vocabulary, setting(output_init="tied"), "whitespace")
    loaded, *_ = load_model(tmp_path)
    assert loaded.table.weight is loaded.output.weight


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"warmup_frozen": 3}, "never thaw.*at most 2"),
        ({"warmup_frozen": 9}, "never thaw"),
        ({"warmup_frozen": 1, "output_init": "tied"}, "output layer too"),
        *(
            ({"warmup_frozen": 1, "input_mode": mode}, "never thaws in this mode")
            for mode in ("frozen", "concatenated", "projected", "gated")
        ),
        ({"input_rms": "learned", "output_init": "tied"}, "output layer"),
        ({"input_init": "random"}, "nothing would use"),
        ({"input_rms": "learnt"}, "or learned"),
        ({"input_rms": 0}, "or learned"),
    ],
)
def test_other_refusals_say_why(changes, message):
    with pytest.raises(StudyError, match=message):
        setting(**changes)


def test_grids_of_transfer_are_made_of_valid_arms_that_differ():
    for name in ("welch", "transfer"):
        arms = [e for e in grid(name) if e.seed == 0 and e.model == "lstm"]
        assert len({e.identity("text") for e in arms}) == len(arms) == len(STUDY_SIZES[name].arms)


def test_each_setting_of_transfer_says_what_it_is():
    named = {f.name: f.metadata["help"] for f in fields(Experiment)}
    for mode in MODES:
        assert f"{mode}:" in named["input_mode"]
    for name in (*AXES, "l2sp", "warmup_frozen", "input_rms"):
        assert len(named[name]) > 20


def test_gates_are_rows_of_one_number(text):
    layer = made(text, input_mode="gated").table
    assert isinstance(layer, GatedTables) and layer.gates.shape == (len(text.vocabulary), 1)
