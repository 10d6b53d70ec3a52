"""The objective, everything else equal: the same start, text, updates and tokens; only the loss differs."""

import math
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from rtl_core import experiments, figures, studies
from rtl_core.batches import Sequences
from rtl_core.catalogue import SOURCES, settings_of
from rtl_core.comparison import compare
from rtl_core.config import Experiment, PretrainConfig
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.pretrain import pretrain
from rtl_core.pretrain.pretrained import seeded
from rtl_core.results import load_results
from rtl_core.storage import StudyError
from rtl_core.tables import labels

objective = import_module("rtl_core.pretrain.objective")

DIM = 7  # odd: the directions have 3 and 4 units
PARAGRAPHS = ("lm", "bilm", "masked-lm", "domain-paragraph")
OBJECTIVES = (*PARAGRAPHS, "domain-sentence", "next-paragraph")
CONTROLS = ("shuffled-labels:domain-paragraph", "shuffled-labels:next-paragraph", "untrained:domain-sentence")
OWN_SCORES = {
    "lm": {"forward_perplexity"},
    "bilm": {"forward_perplexity", "backward_perplexity"},
    "masked-lm": {"masked_perplexity", "accuracy", "majority_accuracy"},
    "next-paragraph": {"accuracy", "majority_accuracy", "test_pairs"},
}
DOMAIN_SCORES = {"accuracy", "majority_accuracy", "test_sequences"}


@pytest.fixture(scope="module")
def vocabulary(tiny_corpus):
    return Vocabulary.build(tiny_corpus.split("train"))


@pytest.fixture(autouse=True)
def little_training(monkeypatch):
    monkeypatch.setattr(objective, "UPDATES", 40)
    monkeypatch.setattr(objective, "TOKENS", 300)


def config_of(source, **settings):
    return PretrainConfig(source, dim=DIM, encoder="shared", **settings)


def model_of(source, vocabulary, seed=0):
    config = config_of(source, seed=seed)
    counts = np.array(vocabulary.counts)
    return seeded(config, lambda: objective._model(config, counts, 3))


def updates_of(source, corpus, vocabulary, seed=0):
    """What a source reads in training, and the batches."""
    config = config_of(source, seed=seed)
    train = objective._texts(corpus, vocabulary, config)[0]
    updates = objective.Updates.of(train, source == "next-paragraph", seed)
    rng = np.random.default_rng(0)
    return updates, list(objective._batches(config, updates, len(vocabulary), rng))


# Everything else is equal


def test_all_start_from_the_same_encoder(vocabulary):
    first, *others = (model_of(source, vocabulary).encoder.state_dict() for source in OBJECTIVES)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
    again = model_of("lm", vocabulary, seed=1).encoder.state_dict()
    assert not torch.equal(first["table.weight"], again["table.weight"])


def test_the_encoder_has_a_row_for_hidden_words_and_both_halves(vocabulary):
    encoder = model_of("lm", vocabulary).encoder
    assert len(encoder.table.weight) == len(vocabulary) + 1
    assert [h[0].hidden_size for h in (encoder.forward_lstms, encoder.backward_lstms)] == [3, 4]


@pytest.mark.parametrize("seed", range(3))
def test_all_get_as_many_updates_and_tokens(tiny_corpus, vocabulary, seed):
    wanted = objective.UPDATES * objective.TOKENS
    for source in OBJECTIVES:
        updates, batches = updates_of(source, tiny_corpus, vocabulary, seed)
        assert len(batches) == objective.UPDATES, source
        sizes = [int(batch.mask.sum()) for batch in batches]
        assert sum(sizes) == updates.n_tokens == pytest.approx(wanted, rel=0.02), source
        longest = updates.text.lengths.max() * (1 + (source == "next-paragraph"))
        assert all(abs(size - objective.TOKENS) <= 2 * longest for size in sizes), source


def test_objectives_on_paragraphs_read_the_same_batches(tiny_corpus, vocabulary):
    read = [updates_of(source, tiny_corpus, vocabulary)[1] for source in PARAGRAPHS]
    for first, *others in zip(*read):
        for other in others:
            assert torch.equal(first.mask, other.mask)
    masked = read[PARAGRAPHS.index("masked-lm")]
    for plain, posed in zip(read[0], masked):
        shown = posed.targets < 0
        assert torch.equal(plain.inputs[shown], posed.inputs[shown])
        assert torch.equal(plain.inputs[~shown], posed.targets[~shown])


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_dealt_evenly_whatever_the_text(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    updates, tokens = int(rng.integers(1, 30)), int(rng.integers(120, 600))
    monkeypatch.setattr(objective, "UPDATES", updates)
    monkeypatch.setattr(objective, "TOKENS", tokens)
    pairs, n = bool(rng.integers(2)), int(rng.integers(2, 80))
    lengths = rng.integers(3, 50, n * (1 + pairs))
    starts = lengths.cumsum() - lengths
    text = Sequences(rng.integers(2, 9, lengths.sum()), starts, lengths, np.zeros(len(lengths), int))
    found = objective.Updates.of(text, pairs, seed)
    assert len(found.groups) == updates and all(len(group) for group in found.groups)
    assert 0 <= found.n_tokens - updates * tokens < 100
    for group in found.groups:
        if pairs:
            first, second = group.reshape(2, -1)
            assert (second - first == n).all()
    # every sequence as often as any other, or once more
    times = np.bincount(np.concatenate(found.groups), minlength=len(text))
    assert times.max() - times.min() <= 1


def test_blank_lines_are_no_part_of_training(monkeypatch):
    monkeypatch.setattr(objective, "TOKENS", 20)
    tokens = np.array([5, EOS_ID, EOS_ID, 6, 7, EOS_ID])
    lines = Sequences(tokens, np.array([0, 2, 3]), np.array([2, 1, 3]), np.full(3, -1))
    found = objective.Updates.of(objective.preceded(lines), False, 0)
    assert set(np.concatenate(found.groups)) == {0, 2}


def test_the_read_out_is_the_same_for_all(tiny_corpus, vocabulary):
    made = [
        pretrain(config_of(f"untrained:{source}"), tiny_corpus, vocabulary).embeddings
        for source in OBJECTIVES[1:]
    ]
    assert all(np.array_equal(made[0].table, each.table) for each in made)
    assert all(made[0].words == each.words for each in made)


# What each objective is trained for


def untrained(source):
    """The settings of the untouched encoder; the forward language model's control has no name of its own."""
    return config_of(f"untrained:{'bilm' if source == 'lm' else source}")


@pytest.mark.parametrize("source", OBJECTIVES)
def test_training_helps_with_its_own_task(source, tiny_corpus, vocabulary):
    trained = pretrain(config_of(source), tiny_corpus, vocabulary)
    untouched = objective.pretrain(tiny_corpus, vocabulary, untrained(source))
    assert trained.scores.keys() == OWN_SCORES.get(source, DOMAIN_SCORES)
    if source == "next-paragraph":  # which only chance orders in this corpus: it can but be fitted
        assert trained.history[-1]["train_loss"] < math.log(2) * 1.05
    else:
        name = next(iter(trained.scores))
        sign = -1 if name.endswith("perplexity") else 1
        assert sign * trained.scores[name] > sign * untouched.scores[name]


@pytest.mark.parametrize("source", OBJECTIVES)
def test_the_loss_falls_on_a_batch_that_is_repeated(source, tiny_corpus, vocabulary):
    _, batches = updates_of(source, tiny_corpus, vocabulary)
    batch, model = batches[0], model_of(source, vocabulary)
    optimiser, losses = objective.RECIPE.optimiser(list(model.parameters())), []
    torch.manual_seed(0)
    for _ in range(60):
        loss = model.loss(batch)
        optimiser.zero_grad(set_to_none=True)
        (loss.total / loss.count).backward()
        optimiser.step()
        losses.append(loss.total.item() / loss.count)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_the_forward_language_model_leaves_the_backward_half_as_it_was(tiny_corpus, vocabulary):
    trained = pretrain(config_of("lm"), tiny_corpus, vocabulary).model
    before, after = model_of("lm", vocabulary).state_dict(), trained.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    behind = {name for name in before if "backward_lstms" in name or name == "outputs.1.weight"}
    assert behind and changed - {"outputs.1.bias"} == before.keys() - behind - {"outputs.1.bias"}
    both = pretrain(config_of("bilm"), tiny_corpus, vocabulary).model.state_dict()
    assert all(not torch.equal(before[name], both[name]) for name in before)


def test_the_forward_half_predicts_as_in_the_bidirectional_model(tiny_corpus, vocabulary):
    ahead, both = (model_of(source, vocabulary).eval() for source in ("lm", "bilm"))
    _, batches = updates_of("lm", tiny_corpus, vocabulary)
    ((_, states, targets),), ((_, same, wanted), _) = (m.predictions(batches[0]) for m in (ahead, both))
    assert torch.equal(states, same) and torch.equal(targets, wanted)
    assert len(targets) == int(batches[0].mask[:, 1:].sum())


def test_its_perplexity_counts_every_token_once(tiny_corpus, vocabulary):
    model = model_of("lm", vocabulary)
    torch.nn.init.zeros_(model.outputs[0].weight)
    torch.nn.init.zeros_(model.outputs[0].bias)
    test = objective._texts(tiny_corpus, vocabulary, config_of("lm"))[2]
    assert objective.perplexities(model, test) == {"forward_perplexity": pytest.approx(len(vocabulary))}
    assert test.n_tokens - len(test) == tiny_corpus.n_tokens("test")


@pytest.mark.parametrize("source", OBJECTIVES)
def test_what_stands_at_padding_never_matters(source, tiny_corpus, vocabulary):
    updates, _ = updates_of(source, tiny_corpus, vocabulary)
    mixed = np.argsort(-updates.text.lengths)[[0, -1]]  # the longest and the shortest
    batch = updates.text.take(np.repeat(mixed, 2))
    if source == "masked-lm":
        batch = batch._replace(targets=torch.where(batch.mask & (batch.inputs != EOS_ID), batch.inputs, -1))
    assert not batch.mask.all()
    other = batch._replace(inputs=torch.where(batch.mask, batch.inputs, 2))
    model = model_of(source, vocabulary).eval()
    first, second = (model.loss(each) for each in (batch, other))
    assert first.count == second.count and first.total.item() == pytest.approx(second.total.item(), rel=1e-6)


# Controls, account, settings


def test_shuffled_labels_train_on_the_same_text_with_other_labels(tiny_corpus, vocabulary):
    for source in ("domain-paragraph", "next-paragraph"):
        plain, dealt = (
            objective._texts(tiny_corpus, vocabulary, config_of(name))
            for name in (source, f"shuffled-labels:{source}")
        )
        for own, other in zip(plain[:2], dealt[:2]):
            assert np.array_equal(own.starts, other.starts)
            assert not np.array_equal(own.labels, other.labels)
            assert np.array_equal(np.sort(own.labels), np.sort(other.labels))
        assert np.array_equal(plain[2].labels, dealt[2].labels)  # scored on the true ones
    own = pretrain(config_of("domain-paragraph"), tiny_corpus, vocabulary)
    dealt = pretrain(config_of("shuffled-labels:domain-paragraph"), tiny_corpus, vocabulary)
    assert dealt.scores["accuracy"] < own.scores["accuracy"]


def test_untrained_is_the_encoder_that_all_start_from(tiny_corpus, vocabulary):
    made = pretrain(config_of("untrained:domain-paragraph"), tiny_corpus, vocabulary)
    start = model_of("lm", vocabulary).encoder.state_dict()
    assert all(torch.equal(start[name], value) for name, value in made.model.encoder.state_dict().items())
    assert made.history == []


@pytest.mark.parametrize("source", [*OBJECTIVES, *CONTROLS])
def test_the_account_tells_updates_and_tokens(source, tiny_corpus, vocabulary):
    facts = pretrain(config_of(source, seed=2), tiny_corpus, vocabulary).embeddings.provenance
    idle = source.startswith("untrained")
    assert facts["updates"] == (0 if idle else 40)
    assert facts["tokens_trained"] == (0 if idle else pytest.approx(12_000, rel=0.02))
    assert facts["tokens_read"] == tiny_corpus.n_tokens("train")
    assert (facts["labels"] > 0) == (not idle and SOURCES[PretrainConfig(source).plain].labels)
    assert (facts["epochs"] > 1) == (not idle)
    assert facts["readout"] == "averaged" and facts["source"] == source and facts["level"] == "paragraph"
    assert facts["encoder_layers"] == 1 and facts["seconds"] >= 0  # rounded: an untrained one takes no time


@pytest.mark.parametrize("source", ["lm", "domain-paragraph", "next-paragraph"])
def test_the_read_out_has_its_options(source, tiny_corpus, vocabulary):
    settings = ({}, {"occurrences": 1}, {"readout": "input-layer"})
    made = [pretrain(config_of(source, **each), tiny_corpus, vocabulary) for each in settings]
    assert made[0].scores == made[1].scores == made[2].scores
    tables = [each.embeddings.table for each in made]
    assert not any(np.allclose(tables[i], tables[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    rows = made[2].model.encoder.table.weight.detach().numpy()
    assert np.array_equal(tables[2], rows[[vocabulary.ids[word] for word in made[2].embeddings.words]])


def test_same_seed_same_table_and_stored_apart_from_the_own_encoder(tiny_corpus, vocabulary):
    first = pretrain(config_of("bilm"), tiny_corpus, vocabulary)
    stored = pretrain(config_of("bilm"), tiny_corpus, vocabulary)
    assert stored.model is None and np.array_equal(first.embeddings.table, stored.embeddings.table)
    again = objective.pretrain(tiny_corpus, vocabulary, config_of("bilm"))
    assert np.array_equal(first.embeddings.table, again.embeddings.table) and first.scores == again.scores
    own = pretrain("bilm", tiny_corpus, vocabulary, dim=DIM, epochs=1)
    assert own.model is not None and not np.allclose(own.embeddings.table, first.embeddings.table)


def test_layers_are_an_option_and_one_that_is_not_there_is_an_error(tiny_corpus, vocabulary):
    made = pretrain(config_of("domain-sentence", encoder_layers=2, layer=1), tiny_corpus, vocabulary)
    assert made.model.encoder.n_layers == made.embeddings.provenance["encoder_layers"] == 2
    with pytest.raises(
        StudyError, match="lm has 1 encoder layers and no layer 2; give layer 1 to 1, or more enc"
    ):
        pretrain(config_of("lm", layer=2), tiny_corpus, vocabulary)


def test_domains_need_labels_with_the_shared_encoder_too(tiny_corpus, vocabulary):
    unlabelled = replace(
        tiny_corpus, documents=tuple(replace(document, domain=None) for document in tiny_corpus.documents)
    )
    with pytest.raises(StudyError, match="domain-paragraph needs documents of at least two domains"):
        pretrain(config_of("domain-paragraph"), unlabelled, vocabulary)
    assert pretrain(config_of("masked-lm"), unlabelled, vocabulary).scores["masked_perplexity"] > 1


def test_settings_that_the_shared_encoder_has_not_change_nothing():
    own, shared = PretrainConfig("lm"), PretrainConfig("lm", encoder="shared")
    assert shared.changed() == {"source": "lm", "encoder": "shared"}
    assert shared.replace(epochs=5).changed() == shared.changed()  # it has updates
    assert own.replace(epochs=5).changed() != own.changed()
    assert shared.replace(readout="input-layer").changed() != shared.changed()
    assert own.replace(readout="input-layer").changed() == own.changed()
    for source in ("random", "word2vec-sg", "lsa", "pos", "domain-lsa", "leaky-bilm"):
        assert PretrainConfig(source, encoder="shared").changed() == PretrainConfig(source).changed()
        assert Experiment(source=source, encoder="shared").identity("f") == Experiment(
            source=source
        ).identity("f")


def test_a_combination_has_the_settings_of_its_parts():
    assert {"epochs", "encoder", "readout"} <= set(settings_of("word2vec-sg+bilm", "shared"))
    assert "epochs" not in settings_of("lm+bilm", "shared") and "epochs" in settings_of("lm+bilm", "own")
    assert "readout" not in settings_of("permuted:lm", "own") and "readout" in settings_of(
        "permuted:lm", "shared"
    )


def test_an_inert_shared_encoder_gives_the_same_table(tiny_corpus, vocabulary):
    own, other = (
        pretrain("domain-lsa", tiny_corpus, vocabulary, dim=6, epochs=1, encoder=encoder)
        for encoder in ("own", "shared")
    )
    assert other.model is None and np.array_equal(own.embeddings.table, other.embeddings.table)


def test_the_grid_compares_these_objectives():
    runs = [e for e in studies.grid("objective") if e.model == "lstm"]
    shared = {e.source for e in runs if e.settled().encoder == "shared"}
    assert shared == {*OBJECTIVES, "shuffled-labels:domain-paragraph", "untrained:domain-paragraph"}
    assert {e.source for e in runs} - shared == {"random"}
    assert len({e.identity("f") for e in runs}) == len(runs) == 9 * 3


def test_its_table_and_figure_name_every_objective(tmp_path, monkeypatch):
    monkeypatch.setattr(objective, "UPDATES", 2)
    rng, words = np.random.default_rng(0), [a + b for a in "bdfglmnr" for b in ("a", "e", "i", "o", "u")]
    for split, count in (("train", 9), ("valid", 3), ("test", 3)):
        for i in range(count):
            path = tmp_path / "text" / split / f"domain {i % 3}" / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            paragraphs = [" ".join(rng.choice(words, 9)) + "." for _ in range(8)]
            path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    sizes = {
        "hidden_size": 4,
        "vocab_size": 30,
        "lm_tokens": 400,
        "max_epochs": 1,
        "batch_size": 4,
        "window": 9,
    }
    base = Experiment(corpus=f"folder:{tmp_path / 'text'}", n_samples=8, valid_tokens=None, **sizes)
    for arm in studies.OBJECTIVE_ARMS:
        experiments.run(base.replace(**arm))
    table = compare(load_results("local"))
    others = [f"{arm['source']} (shared encoder), fine-tuned" for arm in studies.OBJECTIVE_ARMS[1:]]
    named = [label.removesuffix(" (not converged)") for label in labels(table)]
    assert named == ["random, fine-tuned", *others]
    ticks = figures.plot_perplexity(table).get_yticklabels()
    shown = [" ".join(label.get_text().split()) for label in ticks]
    assert all(any(text.startswith(name) for text in shown) for name in named)
