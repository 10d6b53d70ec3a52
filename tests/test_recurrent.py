"""Every dropout: what it leaves out, for how long, and that scoring leaves out nothing."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rtl_core.batches import Batch
from rtl_core.config import Experiment
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.recurrent import Dropouts, LayeredLSTM, LockedDropout, WordDropout, make_lstm
from rtl_core.scoring import token_nats
from rtl_core.storage import StudyError
from rtl_core.training import RowwiseAdamW, clip_gradients
from rtl_core.transfer import build_model, load_model, save_model

V = 30
EVERY_DROPOUT = {
    "n_layers": 3, "inner_size": 9, "dropout": 0.4, "input_dropout": 0.5, "layer_dropout": 0.3,
    "embedding_dropout": 0.2, "weight_drop": 0.5,
}  # fmt: skip


def model_of(**changes):
    e = Experiment(hidden_size=6, n_samples=20, batch_size=4, window=7, **changes)
    words = ("<unk>", "<eos>", *(f"w{i}" for i in range(V - 2)))
    table = np.random.default_rng(0).standard_normal((V, 6)).astype(np.float32)
    vocabulary = Vocabulary(words, (2,) * V)
    model = build_model(e, vocabulary, Embeddings(words, table, {}), np.ones(V))
    model.output.bf16 = False
    return model, vocabulary, e


def windows(n, seed=0, shape=(4, 8)):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ids = torch.randint(V, shape, generator=generator)
        yield Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


# What is left out


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_locked_dropout_keeps_its_mask_over_the_window_and_the_mean(rate):
    torch.manual_seed(0)
    out = LockedDropout(rate)(torch.ones(200, 5, 100))
    assert (out == out[:, :1]).all()
    dropped = (out[:, 0] == 0).float().mean().item()
    assert dropped == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 20_000))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    assert (out[0] != out[1]).any()  # another stream, another mask


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_word_dropout_leaves_a_type_out_everywhere_or_nowhere(rate):
    torch.manual_seed(0)
    ids = torch.randint(20_000, (100, 300))
    out = WordDropout(rate)(torch.ones(100, 300, 4), ids)
    assert (out == out[..., :1]).all()
    factors = torch.full((20_000,), -1.0)
    factors[ids] = out[..., 0]
    assert torch.equal(factors[ids], out[..., 0])  # one factor a type
    seen = factors[factors >= 0]
    dropped = (seen == 0).float().mean().item()
    assert dropped == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / len(seen)))
    assert seen.max().item() == pytest.approx(1 / (1 - rate))


def test_word_dropout_leaves_the_gradient_of_the_table_sparse_and_without_the_words_left_out():
    model, _, _ = model_of(embedding_dropout=0.5, dropout=0.0)
    batch = next(windows(1))
    torch.manual_seed(3)
    model.train().loss(batch).total.backward()
    gradient = model.table.weight.grad
    assert gradient.is_sparse
    moved = gradient.to_dense().abs().sum(1) > 0
    types = batch.inputs.unique()
    assert not moved[[i for i in range(V) if i not in types]].any()
    assert 0 < moved[types].sum() < len(types)


def test_input_dropout_is_that_of_the_outputs_unless_given():
    assert (Dropouts(0.3).inputs.rate, Dropouts(0.3).outputs.rate) == (0.3, 0.3)
    given = Dropouts.of(Experiment(dropout=0.3, input_dropout=0.0, embedding_dropout=0.2))
    assert (given.words.rate, given.inputs.rate, given.outputs.rate) == (0.2, 0.0, 0.3)


def cell(x, h, c, weights):
    """One step of an LSTM in plain arithmetic."""
    w_ih, w_hh, b_ih, b_hh = weights
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def plain_lstm(layer, values, recurrent):
    """The states of one layer, step by step, with these recurrent weights."""
    h = c = torch.zeros(len(values), layer.hidden_size)
    out = []
    for x in values.unbind(1):
        weights = (layer.weight_ih_l0, recurrent, layer.bias_ih_l0, layer.bias_hh_l0)
        h, c = cell(x, h, c, weights)
        out.append(h)
    return torch.stack(out, 1)


def test_weight_drop_is_one_mask_of_the_recurrent_weights_for_the_window():
    torch.manual_seed(0)
    lstm = LayeredLSTM([5, 8], 0.0, 0.5)
    values = torch.randn(3, 20, 5)
    torch.manual_seed(7)
    found = lstm(values)[0]
    torch.manual_seed(7)
    layer = lstm.layers[0]
    mask = nn.functional.dropout(torch.ones_like(layer.weight_hh_l0), 0.5)
    assert 0.3 < (mask == 0).float().mean() < 0.7 and mask.max() == 2
    assert torch.allclose(found, plain_lstm(layer, values, layer.weight_hh_l0 * mask), atol=1e-6)
    assert not torch.allclose(found, plain_lstm(layer, values, layer.weight_hh_l0), atol=1e-3)


def test_weight_drop_changes_weights_by_their_gradient_alone():
    """A forward and backward pass leave them be; what was dropped has no gradient, the rest has a doubled one."""
    torch.manual_seed(0)
    lstm = LayeredLSTM([5, 8], 0.0, 0.5)
    before = {name: value.clone() for name, value in lstm.state_dict().items()}
    torch.manual_seed(7)
    lstm(torch.randn(3, 20, 5))[0].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in lstm.state_dict().items())
    weight = lstm.layers[0].weight_hh_l0
    assert 0.3 < (weight.grad == 0).float().mean() < 0.7
    torch.optim.SGD(lstm.parameters(), 0.1).step()
    assert torch.allclose(weight, before["layers.0.weight_hh_l0"] - 0.1 * weight.grad)
    values = torch.randn(3, 20, 5)
    assert torch.allclose(lstm.eval()(values)[0], plain_lstm(lstm.layers[0], values, weight), atol=1e-6)


def test_dropout_between_layers_is_locked_and_not_after_the_last():
    torch.manual_seed(0)
    lstm = LayeredLSTM([5, 8, 4], 0.5, 0.0)
    seen = []
    lstm.between.register_forward_hook(lambda module, given, out: seen.append(out))
    top = lstm(torch.randn(3, 20, 5))[0]
    off = seen[0] == 0
    assert len(seen) == 1
    assert (off == off[:, :1]).all() and 0.2 < off.float().mean() < 0.8
    assert (top != 0).all()


# Sizes, state, scoring


def test_layers_of_the_sizes_of_awd():
    lstm = make_lstm(Experiment(hidden_size=40, inner_size=115, n_layers=3), n_features=2)
    assert [(each.input_size, each.hidden_size) for each in lstm.layers] == [(42, 115), (115, 115), (115, 40)]


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_without_dropout_it_is_the_lstm_of_torch(n_layers):
    """The same first weights from the same seed, the same states, the same last state."""
    values, lstms = torch.randn(3, 9, 6), []
    for changes in ({}, {"weight_drop": 0.5}):
        torch.manual_seed(1)
        lstms.append(make_lstm(Experiment(hidden_size=6, n_layers=n_layers, **changes)).eval())
    (plain, (h, c)), (layered, state) = (lstm(values) for lstm in lstms)
    assert torch.allclose(plain, layered, atol=1e-6)
    assert torch.allclose(h, torch.cat(state[::2]), atol=1e-6)
    assert torch.allclose(c, torch.cat(state[1::2]), atol=1e-6)


def test_the_state_carries_over_windows_of_layers_of_several_sizes():
    lstm = LayeredLSTM([5, 8, 4], 0.0, 0.0)
    values = torch.randn(3, 20, 5)
    whole = lstm(values)[0]
    first, state = lstm(values[:, :11])
    second, _ = lstm(values[:, 11:], state)
    assert torch.allclose(whole, torch.cat([first, second], 1), atol=1e-6)


def test_scoring_leaves_nothing_out_and_a_saved_model_scores_the_same(tmp_path, tiny_corpus):
    vocabulary = Vocabulary.build(tiny_corpus.split("train"))
    text = vocabulary.encode(tiny_corpus.split("test"))
    table = np.random.default_rng(0).standard_normal((len(vocabulary), 6)).astype(np.float32)
    e = Experiment(hidden_size=6, n_samples=20, **EVERY_DROPOUT)
    model = build_model(e, vocabulary, Embeddings(vocabulary.words, table, {}), np.ones(len(vocabulary)))
    first = {context: token_nats(model, text, context) for context in ("document", "stream", "sentence")}
    assert all(np.array_equal(token_nats(model, text, context), nats) for context, nats in first.items())
    save_model(tmp_path, model, vocabulary, e, "prose")
    loaded = load_model(tmp_path)[0]
    assert np.array_equal(token_nats(loaded, text, "document"), first["document"])


def test_training_with_every_dropout_learns():
    rates = {name: 0.05 for name, value in EVERY_DROPOUT.items() if isinstance(value, float)}
    model, _, _ = model_of(**EVERY_DROPOUT | rates)
    optimiser = RowwiseAdamW(model.parameters(), 0.02)
    ids = torch.arange(V).repeat(2)[None, :36] % 7  # 0 1 … 6 0 1 …
    batch, losses, state = Batch(ids[:, :-1], ids[:, 1:]), [], None
    torch.manual_seed(0)
    for _ in range(250):
        loss = model.train().loss(batch, state)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        clip_gradients(model.parameters(), 1.0)
        optimiser.step()
        state = loss.state
        losses.append(loss.total.item() / loss.count)
    assert len(state) == 6
    model.eval()
    assert model.loss(batch).total.item() / 35 < 0.5 * losses[0]


# What was there before


def test_the_default_model_trains_bit_for_bit_as_a_plain_one():
    """Two steps by nn.LSTM, two locked masks, the sampled loss and dense AdamW without momentum for the tables."""
    model, _, e = model_of()
    twin, _, _ = model_of()
    assert isinstance(model.lstm, nn.LSTM)
    ours = RowwiseAdamW(model.parameters(), 0.01, weight_decay=0.0, fused=True)
    theirs = RowwiseAdamW(twin.parameters(), 0.01, weight_decay=0.0, fused=True)
    states = [None, None]
    for step, batch in enumerate(windows(2)):
        torch.manual_seed(step)
        loss = model.train().loss(batch, states[0])
        torch.manual_seed(step)
        vectors = nn.functional.embedding(batch.inputs, twin.table.weight, sparse=True)
        keep = (torch.rand(4, 1, 6) >= e.dropout) / (1 - e.dropout)
        hidden, state = twin.lstm(vectors * keep, states[1])
        keep = (torch.rand(4, 1, 6) >= e.dropout) / (1 - e.dropout)
        hidden = (hidden * keep).flatten(0, 1)
        total = twin.output.train().sampled_loss(hidden, batch.targets.flatten(), twin.output.sample("cpu"))
        assert torch.equal(loss.total, total)
        for summed, net, optimiser in ((loss.total, model, ours), (total, twin, theirs)):
            optimiser.zero_grad()
            (summed / batch.targets.numel()).backward()
            clip_gradients(net.parameters(), 1.0)
            optimiser.step()
        states = [loss.state, tuple(part.detach() for part in state)]
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_several_layers_at_their_defaults_are_one_lstm_of_torch():
    lstm = make_lstm(Experiment(n_layers=2, dropout=0.2))
    assert isinstance(lstm, nn.LSTM) and lstm.dropout == 0.2
    assert make_lstm(Experiment(n_layers=1, dropout=0.2)).dropout == 0


def test_settings_of_several_layers_mean_nothing_to_one():
    assert Experiment(inner_size=200, layer_dropout=0.1).changed() == {}
    assert set(Experiment(n_layers=2, inner_size=200).changed()) == {"n_layers", "inner_size"}


@pytest.mark.parametrize("name", ["input_dropout", "layer_dropout", "embedding_dropout", "weight_drop"])
def test_a_rate_of_one_would_leave_nothing(name):
    with pytest.raises(StudyError, match=f"{name} = 1"):
        Experiment(**{name: 1.0})
