"""Perplexity is exact, whatever the window, the batch or the model."""

import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from rtl_core.batches import stream_batches, unit_batches
from rtl_core.config import Experiment
from rtl_core.corpora.corpus import Document
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.criteria import OutputLayer
from rtl_core.embeddings import Embeddings
from rtl_core.input_layers import InputTable
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.recurrent import make_lstm
from rtl_core.scoring import ledger_of, nats_by_context, perplexity, token_nats
from rtl_core.storage import StudyError
from rtl_core.training import Optimisation, fit, mean_loss
from rtl_core.transfer import build_model, input_table, load_model, save_model


@pytest.fixture
def vocabulary(tiny_corpus):
    return Vocabulary.build(tiny_corpus.split("train"))


@pytest.fixture
def text(tiny_corpus, vocabulary):
    return vocabulary.encode(tiny_corpus.split("test"), tiny_corpus.domains)


def small_experiment(**changes):
    return Experiment(hidden_size=12, n_samples=50, batch_size=4, window=7, **changes)


def random_embeddings(vocabulary, dim=12, seed=0):
    table = np.random.default_rng(seed).standard_normal((len(vocabulary), dim)).astype(np.float32)
    return Embeddings(vocabulary.words, table, {})


def small_model(vocabulary, **changes):
    counts = np.array(vocabulary.counts)
    return build_model(small_experiment(**changes), vocabulary, random_embeddings(vocabulary), counts)


def uniform_model(vocab_size):
    weight = nn.Parameter(torch.zeros(vocab_size, 4))
    output = OutputLayer(weight, np.ones(vocab_size))
    table = InputTable(torch.randn(vocab_size, 4), torch.ones(vocab_size, dtype=torch.bool))
    return LSTMLanguageModel(table, make_lstm(Experiment(hidden_size=4)), output)


@pytest.mark.parametrize("context", ["document", "stream", "sentence"])
def test_perplexity_of_a_uniform_model_is_the_vocabulary_size(context, vocabulary, text):
    nats = token_nats(uniform_model(len(vocabulary)), text, context)
    assert perplexity(nats) == pytest.approx(len(vocabulary), rel=1e-6)


@pytest.mark.parametrize("context", ["document", "stream", "sentence"])
def test_perplexity_does_not_depend_on_window_or_batch_size(context, vocabulary, text):
    model = small_model(vocabulary)
    expected = token_nats(model, text, context, lanes=1, window=10**6)
    for lanes, window in ((1, 3), (2, 7), (5, 64), (32, 200)):
        found = token_nats(model, text, context, lanes=lanes, window=window)
        assert np.allclose(found, expected, atol=1e-5), (lanes, window)


def test_three_tokens_by_hand():
    """A model without input: every token has the softmax of the bias, p = 1/2, 1/4, 1/8 for a, b, <eos>."""
    vocabulary = Vocabulary(("<unk>", "<eos>", "a", "b"), (1, 1, 1, 1))
    model = uniform_model(4)
    with torch.no_grad():
        model.output.bias.copy_(torch.tensor([1 / 8, 1 / 8, 1 / 2, 1 / 4]).log())
    text = vocabulary.encode([Document("d", None, "test", ("a b",))])
    nats = token_nats(model, text, "document")
    assert nats == pytest.approx([math.log(2), math.log(4), math.log(8)], rel=1e-6)
    assert perplexity(nats) == pytest.approx(4.0, rel=1e-6)  # (2 · 4 · 8) ** (1/3)


def test_contexts_reset_where_they_say(vocabulary, text):
    """Each token's nats equal those of a plain loop, one token at a time, state reset by hand."""
    model = small_model(vocabulary).eval()
    starts = {"stream": {0}, "document": set(text.document_starts), "sentence": set(text.line_starts)}
    for context, resets in starts.items():
        expected, state, previous = [], None, 1
        for position, token in enumerate(text.tokens.tolist()):
            if position in resets:
                state, previous = None, 1  # <eos> and a zero state
            with torch.no_grad():
                hidden, state = model.states(torch.tensor([[previous]]), state)
                logits = model.output.weight @ hidden[0, 0] + model.output.bias
            expected.append(-logits.log_softmax(0)[token].item())
            previous = token
        assert np.allclose(token_nats(model, text, context), expected, atol=1e-5)


def test_ledger_has_one_row_a_token_and_sums_to_the_perplexity(vocabulary, text):
    rows = ledger_of(nats_by_context(small_model(vocabulary), text), text)
    assert len(rows) == len(text) and rows["word"].tolist() == text.tokens.tolist()
    assert (rows.groupby("document", observed=True)["position"].first() == 0).all()
    by_document = rows.groupby("document", observed=True)["nats_document"].agg(["sum", "size"])
    total = by_document["sum"].sum() / by_document["size"].sum()
    assert math.exp(total) == pytest.approx(perplexity(rows["nats_document"].to_numpy()), rel=1e-6)


def test_every_training_token_is_in_exactly_one_batch(text):
    for context in ("document", "sentence"):
        order = np.random.default_rng(0)
        batches = list(unit_batches(text, context, 4, 7, order))
        seen = [b.targets[b.mask] if b.mask is not None else b.targets.flatten() for b in batches]
        assert sorted(torch.cat(seen).tolist()) == sorted(text.tokens.tolist())


def test_streams_are_contiguous_and_targets_follow_inputs(text):
    windows = list(stream_batches(text, 3, 5))
    inputs = torch.cat([b.inputs for b in windows], 1)
    targets = torch.cat([b.targets for b in windows], 1)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    assert windows[0].fresh and not any(b.fresh for b in windows[1:])


def test_too_short_a_text_for_the_streams_says_so(text):
    with pytest.raises(StudyError, match="too few for 5000 streams"):
        next(stream_batches(text, 5000, 5))


def train(vocabulary, corpus, bf16=False, **changes):
    text = vocabulary.encode(corpus.split("train"))
    model = small_model(vocabulary, **changes)
    model.output.bf16 = bf16
    history = fit(
        model,
        lambda epoch: stream_batches(text, 4, 7),
        lambda: mean_loss(model, unit_batches(text, "document", 8, 50)),
        Optimisation(learning_rate=0.02, max_epochs=3),
    )
    return model, history


def test_training_with_the_bf16_product_ends_within_one_per_cent(tiny_corpus, vocabulary, text):
    results = [
        perplexity(token_nats(train(vocabulary, tiny_corpus, bf16)[0], text, "document"))
        for bf16 in (False, True)
    ]
    assert results[1] == pytest.approx(results[0], rel=0.01)


def test_training_in_each_context_beats_the_untrained_model(tiny_corpus, vocabulary, text):
    before = perplexity(token_nats(small_model(vocabulary), text, "document"))
    after = perplexity(token_nats(train(vocabulary, tiny_corpus)[0], text, "document"))
    assert after < 0.8 * before


def test_frozen_rows_do_not_move_and_uncovered_rows_do(tiny_corpus, vocabulary):
    embeddings = random_embeddings(vocabulary)
    some = Embeddings(embeddings.words[:10], embeddings.table[:10], {})
    train_text = vocabulary.encode(tiny_corpus.split("train"))
    model = build_model(small_experiment(input_mode="frozen"), vocabulary, some, np.array(vocabulary.counts))
    ids = torch.arange(len(vocabulary))[None]
    before = model.table(ids)[0].detach().clone()
    loss = model.loss(next(stream_batches(train_text, 4, 7)))
    loss.total.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    moved = (model.table(ids)[0] - before).abs().sum(1) > 0
    covered = torch.zeros(len(vocabulary), dtype=torch.bool)
    covered[:10] = True
    covered[1] = False  # <eos> is always trainable
    assert not moved[covered].any()
    assert moved[~covered].any() and moved[1]


def test_every_source_enters_at_the_same_size(vocabulary):
    for scale in (0.01, 100.0):
        source = random_embeddings(vocabulary)
        shifted = Embeddings(source.words, source.table * np.float32(scale) + 3, {})
        table, covered = input_table(shifted, vocabulary, rms=0.5, seed=0)
        assert table[covered].square().mean().sqrt().item() == pytest.approx(0.5, rel=1e-4)
        assert table[covered].mean(0).abs().max().item() < 1e-4
        assert not covered[1]


def test_the_source_changes_nothing_but_the_table(vocabulary):
    counts = np.array(vocabulary.counts)
    one, two = (
        build_model(
            small_experiment(), vocabulary, random_embeddings(vocabulary, seed=seed), counts
        ).state_dict()
        for seed in (0, 1)
    )
    differing = {name for name in one if not torch.equal(one[name], two[name])}
    assert differing == {"table.weight"}


def test_tied_tables_are_one_parameter_of_the_right_sizes(vocabulary):
    model = small_model(vocabulary, output_init="tied")
    assert model.table.weight is model.output.weight
    rms = model.table(torch.arange(2, len(vocabulary))[None]).square().mean().sqrt().item()
    assert rms == pytest.approx(small_experiment().input_rms, rel=0.02)
    assert model.output.weight[2:].square().mean().sqrt().item() == pytest.approx(12**-0.5, rel=0.02)


def test_another_dimension_is_an_error_that_says_what_to_do(vocabulary):
    with pytest.raises(StudyError, match=r"5 dimensions and the model 12.*reduced"):
        build_model(
            small_experiment(), vocabulary, random_embeddings(vocabulary, dim=5), np.ones(len(vocabulary))
        )


def test_no_common_word_is_an_error_with_examples(vocabulary):
    strange = Embeddings(("xyzzy", "plugh"), np.ones((2, 12), dtype=np.float32), {})
    with pytest.raises(StudyError, match="xyzzy"):
        input_table(strange, vocabulary, 1.0, 0)


@pytest.mark.parametrize("changes", [{}, {"input_mode": "frozen"}, {"output_init": "tied"}, {"n_layers": 2}])
def test_a_saved_model_scores_the_same(tmp_path, vocabulary, text, changes):
    model = small_model(vocabulary, **changes)
    save_model(tmp_path, model, vocabulary, small_experiment(**changes), "prose")
    loaded, words, tokenizer = load_model(tmp_path)
    assert words == vocabulary and tokenizer == "prose"
    assert np.array_equal(token_nats(loaded, text, "document"), token_nats(model, text, "document"))


@pytest.mark.parametrize("change", ["nothing known", "doubled", "uncounted", "not finite"])
def test_a_model_whose_parts_do_not_fit_is_refused(tmp_path, vocabulary, change):
    model, words, counts = small_model(vocabulary), list(vocabulary.words), list(vocabulary.counts)
    if change == "not finite":
        with torch.no_grad():
            model.output.bias[0] = math.nan
    words = {"nothing known": words[:2], "doubled": [*words[:-1], words[2]]}.get(change, words)
    counts = counts[: {"nothing known": 2, "uncounted": 2}.get(change)]
    save_model(tmp_path, model, Vocabulary(tuple(words), tuple(counts)), small_experiment(), "prose")
    with pytest.raises(
        StudyError, match="output.bias are finite|its vocabulary has .* words, its table .* rows"
    ):
        load_model(tmp_path)


def test_what_is_no_damage_is_not_called_so(tmp_path, vocabulary, monkeypatch):
    save_model(tmp_path, small_model(vocabulary), vocabulary, small_experiment(), "prose")
    monkeypatch.setattr("rtl_core.transfer.load_file", Mock(side_effect=PermissionError))
    with pytest.raises(PermissionError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("model.safetensors", b"cut"),
        ("model.safetensors", None),
        ("vocabulary.json", b"{}"),
        ("vocabulary.json", b'{"words": ["<unk>"'),
        ("experiment.json", b'{"experiment": {"no_setting": 1}, "tokenizer": ""}'),
        ("experiment.json", b'{"experiment": {}, "tokenizer": null}'),
        ("experiment.json", None),
    ],
)
def test_a_model_that_is_not_whole_says_how_to_have_it_again(tmp_path, vocabulary, part, content):
    save_model(tmp_path, small_model(vocabulary), vocabulary, small_experiment(), "prose")
    (tmp_path / part).unlink() if content is None else (tmp_path / part).write_bytes(content)
    with pytest.raises(StudyError, match=f"not whole.*delete the record {tmp_path.name}.json and run"):
        load_model(tmp_path)
