"""Context features know the preceding text and nothing else; the second task changes nothing but what it trains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from rtl_core import context, experiments, texts
from rtl_core.batches import stream_batches, unit_batches
from rtl_core.choices import ORACLE
from rtl_core.comparison import compare
from rtl_core.config import Experiment, derive_seed
from rtl_core.context import (
    FEATURE_RMS,
    READERS,
    SHUFFLED,
    TopicClassifier,
    donors,
    load_reader,
    read_context,
    save_reader,
    token_domains,
    with_context,
)
from rtl_core.corpora.corpus import SPLITS
from rtl_core.corpora.text import paragraphs_of
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.experiments import checkpoint_path, model_dir, run
from rtl_core.pretrain import pretrain
from rtl_core.results import load_results
from rtl_core.scoring import score_text, token_nats
from rtl_core.storage import StudyError
from rtl_core.studies import grid
from rtl_core.tables import markdown_table
from rtl_core.texts import Text
from rtl_core.transfer import load_model

FEATURES = tuple(READERS)


@pytest.fixture
def text(tiny_corpus, monkeypatch):
    monkeypatch.setattr(context, "LSA_DIM", 6)
    return text_from(tiny_corpus)


def text_from(corpus):
    vocabulary = Vocabulary.build(corpus.split("train"))
    return Text(corpus, vocabulary, *(vocabulary.encode(corpus.split(s), corpus.domains) for s in SPLITS))


@pytest.fixture
def small(tiny_corpus, monkeypatch):
    """An experiment on the tiny corpus that trains in a second."""
    monkeypatch.setattr(texts, "load_corpus", lambda name: tiny_corpus)
    monkeypatch.setattr(context, "LSA_DIM", 6)
    texts.forget()
    whole = {"lm_tokens": None, "valid_tokens": None, "test_tokens": None, "vocab_size": None}
    return grid("smoke")[0].replace(corpus="tiny", **whole, n_samples=16, max_epochs=2, learning_rate=0.02)


def reader_of(feature, text):
    return READERS[feature].learn(text.train, text)


# The readers


def test_the_posterior_is_that_of_a_plain_loop(text):
    reader = reader_of("domain-posterior", text)
    found = reader.posterior(text.test)
    position = 0
    for start, end in zip(text.test.document_starts, text.test.document_starts[1:]):
        scores, n = np.zeros(3), 0
        for token in text.test.tokens[start:end]:
            worth = reader.sharpness / max(n, 1) ** reader.discount
            unnormalised = reader.prior * np.exp(worth * scores)
            assert np.allclose(found[position], unnormalised / unnormalised.sum(), atol=1e-5)
            scores, n, position = scores + reader.evidence[token], n + 1, position + 1
    assert position == len(found)


def test_the_evidence_is_counted_by_hand(text):
    reader, train = reader_of("domain-posterior", text), text.train
    word, counts = text.vocabulary.ids["cook"], np.full((len(text.vocabulary), 3), context.SMOOTHING)
    np.add.at(counts, (train.tokens, token_domains(train)), 1)
    logs = np.log(counts / counts.sum(0))[word]
    assert np.allclose(reader.evidence[word], logs - logs.mean(), atol=1e-5)
    assert np.allclose(reader.prior, (np.bincount(train.domains) + 1) / (28 + 3))


def test_the_running_posterior_sums_to_one_and_learns(text):
    reader = reader_of("domain-posterior", text)
    posterior, true = reader.posterior(text.test), token_domains(text.test)
    assert np.allclose(posterior.sum(1), 1) and (posterior >= 0).all()
    assert np.allclose(posterior[text.test.document_starts[:-1]], reader.prior, atol=1e-6)
    scores = reader.scores(text.test)
    assert scores["feature_accuracy"] == np.mean(posterior.argmax(1) == true)
    assert scores["feature_accuracy"] > 0.9 > 2 * scores["feature_majority_accuracy"]


def test_sharpness_is_what_fits_held_out_documents(text):
    """Other numbers than the fitted ones explain held-out documents no better."""
    reader = reader_of("domain-posterior", text)
    labelled = text.train
    held = np.arange(28) % context.HELD_OUT == context.HELD_OUT - 1
    evidence, prior = context._evidence(labelled.select(~held), len(text.vocabulary), 3)
    tested = labelled.select(held)

    def nats(sharpness, discount):
        posterior = TopicClassifier(evidence, prior, sharpness, discount).posterior(tested)
        return -np.log(posterior[np.arange(len(tested)), token_domains(tested)]).mean()

    fitted = nats(reader.sharpness, reader.discount)
    assert fitted < nats(1.0, 0.0) and fitted < nats(1.0, 1.0)


def test_lsa_history_is_a_direction_of_one_size(text):
    features = reader_of("lsa-history", text).features(text.test)
    sizes = np.sqrt((features**2).mean(1))
    begins = np.zeros(len(sizes), bool)
    begins[text.test.document_starts[:-1]] = True
    assert (sizes[begins] == 0).all()
    assert np.allclose(sizes[~begins & (sizes > 0)], FEATURE_RMS, atol=1e-5) and (sizes > 0).mean() > 0.9


@pytest.mark.parametrize("feature", FEATURES)
def test_features_enter_at_one_size(feature, text):
    reader, told = read_context(feature, text, 0)
    for split in SPLITS:
        assert told[split].dtype == np.float32 and len(told[split]) == len(getattr(text, split))
        assert 0.6 < np.sqrt(np.mean(told[split] ** 2)) / FEATURE_RMS <= 1.01


@pytest.mark.parametrize("feature", FEATURES)
def test_a_reader_that_was_stored_says_the_same(feature, text, tmp_path):
    from rtl_core.storage import write_json

    reader = reader_of(feature, text)
    e = Experiment(context_feature=feature)
    write_json(tmp_path / "experiment.json", {"experiment": e.to_dict(), "tokenizer": "prose"})
    save_reader(tmp_path, reader)
    loaded = load_reader(tmp_path, len(text.vocabulary))
    assert np.array_equal(loaded.features(text.test), reader.features(text.test))
    part = tmp_path / "context.safetensors"
    for name, values in load_file(part).items():
        if values.size > 1:
            for wrong in (values[: len(values) // 2], values[..., 0].copy()):
                part.write_bytes(save(load_file(part) | {name: wrong}))
                with pytest.raises(StudyError, match="not whole .*its reader's .* has shape"):
                    load_reader(tmp_path, len(text.vocabulary))
            save_reader(tmp_path, reader)
    part.write_bytes(b"short")
    with pytest.raises(StudyError, match="not whole"):
        load_reader(tmp_path, len(text.vocabulary))


def test_two_spaces_of_the_same_text_are_turned_into_each_other(text):
    space = reader_of("lsa-history", text)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0].astype(np.float32)
    even = replace(space, strengths=np.ones(6, np.float32))
    turned = replace(even, directions=even.directions @ rotation)
    assert not np.allclose(turned.features(text.test), even.features(text.test), atol=0.1)
    assert np.allclose(turned.comparable_to(even).features(text.test), even.features(text.test), atol=1e-3)


# Folds and the shuffled control


@pytest.mark.parametrize("seed", range(60))
def test_donors_are_other_documents_each_used_once(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 50, size=rng.integers(2, 90))
    donor = donors(lengths, seed)
    assert sorted(donor) == list(range(len(lengths)))
    assert (donor != np.arange(len(lengths))).all()


@pytest.mark.parametrize("feature", FEATURES)
def test_the_shuffled_control_has_the_feature_of_another_document_at_the_same_place(feature, text):
    e = Experiment(context_feature=feature, seed=3)
    own, _ = with_context(e, text)
    shuffled, reader = with_context(e.replace(context_feature=SHUFFLED + feature), text)
    assert reader is None  # what it says of the text is not what the model is told
    for split in SPLITS:
        part, other = getattr(own, split), getattr(shuffled, split)
        starts = part.document_starts
        documents = [part.features[a:b] for a, b in zip(starts, starts[1:])]
        donor = donors(np.diff(starts), derive_seed(3, SHUFFLED))
        for i, (a, b) in enumerate(zip(starts, starts[1:])):
            told = documents[donor[i]]
            assert np.array_equal(other.features[a:b], told[np.minimum(np.arange(b - a), len(told) - 1)])
    again, _ = with_context(e.replace(context_feature=SHUFFLED + feature), text)
    assert np.array_equal(again.train.features, shuffled.train.features)
    third, _ = with_context(e.replace(context_feature=SHUFFLED + feature, seed=4), text)
    assert not np.array_equal(third.test.features, shuffled.test.features)


def test_folds_deal_out_every_document_once(text):
    parts = list(context.folds(text.train, 0))
    assert sorted(sum((inside for inside, _ in parts), [])) == sorted(text.train.document_ids)
    for inside, outside in parts:
        assert not set(inside) & set(outside.document_ids)
        assert len(inside) + len(outside.document_ids) == 28 and len(inside) in (5, 6)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 1])
def test_selecting_documents_equals_encoding_them(tiny_corpus, share):
    chosen = np.random.default_rng(0).random(40) < share
    vocabulary = Vocabulary.build(tiny_corpus.split("train"))
    whole = vocabulary.encode(tiny_corpus.documents, tiny_corpus.domains)
    whole = replace(whole, labels=token_domains(whole))
    found = whole.select(chosen)
    wanted = vocabulary.encode(
        (d for d, keep in zip(tiny_corpus.documents, chosen) if keep), tiny_corpus.domains
    )
    for name in ("tokens", "document_starts", "paragraph_starts", "line_starts", "domains"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    assert found.document_ids == wanted.document_ids
    assert np.array_equal(found.labels, token_domains(wanted))


# What is refused


def unlabelled(corpus, splits=SPLITS):
    documents = (replace(d, domain=None) if d.split in splits else d for d in corpus.documents)
    return replace(corpus, documents=tuple(documents))


@pytest.mark.parametrize(
    "settings",
    [{"context_feature": "domain-posterior"}, {"context_feature": ORACLE}, {"auxiliary": "domain"}],
)
def test_a_corpus_without_domains_is_told_what_fits(settings, tiny_corpus):
    with pytest.raises(StudyError, match=r"at least two domains are needed; corpus tiny has 0.*lsa-history"):
        with_context(Experiment(**settings), text_from(unlabelled(tiny_corpus)))


def test_lsa_history_needs_no_domains(tiny_corpus):
    told, _ = with_context(Experiment(context_feature="lsa-history"), text_from(unlabelled(tiny_corpus)))
    assert told.train.features.shape == (len(told.train), 21)  # 28 documents, 22 of them outside a fold


def test_too_few_labels_or_documents_are_refused(tiny_corpus):
    e = Experiment(context_feature="domain-posterior")
    with pytest.raises(StudyError, match="5 labelled training documents at least and found 0"):
        with_context(e, text_from(unlabelled(tiny_corpus, ("train",))))
    few = replace(tiny_corpus, documents=tiny_corpus.documents[:6] + tiny_corpus.documents[28:])
    with pytest.raises(StudyError, match="10 training documents at least; corpus tiny has 6"):
        with_context(e, text_from(few))


def test_leaky_bilm_has_features_of_its_own():
    with pytest.raises(StudyError, match="choose context_feature none"):
        Experiment(source="leaky-bilm", context_feature="lsa-history")


# Whole runs


@pytest.mark.parametrize("feature", FEATURES)
def test_a_run_says_what_stands_behind_its_feature(feature, small, tiny_corpus, tmp_path):
    record = run(small.replace(context_feature=feature, lm_tokens=500))
    assert record.text["context_feature"] == feature
    assert record.text["feature_tokens"] == tiny_corpus.n_tokens("train")
    assert record.text["extra_tokens"] == tiny_corpus.n_tokens("train") - record.text["lm_tokens"] > 0
    assert ("feature_accuracy" in record.scores) == (feature == "domain-posterior")
    # text of one's own: the same features as in the study
    document = tiny_corpus.split("test")[0]
    (tmp_path / "own.txt").write_text(raw := "\n\n".join(document.paragraphs), encoding="utf-8")
    document = replace(document, paragraphs=paragraphs_of(raw, tiny_corpus.tokenizer))
    folder = model_dir(record.name)
    _, words = score_text(folder, tmp_path / "own.txt")
    model, vocabulary, _ = load_model(folder)
    text = vocabulary.encode([document])
    text = replace(text, features=load_reader(folder, len(vocabulary)).features(text))
    assert [nats for _, nats in words] == pytest.approx(
        token_nats(model, text, "document").tolist(), abs=1e-6
    )


def test_text_that_pretraining_and_feature_both_read_counts_once(small, tiny_corpus):
    e = small.replace(source="word2vec-sg", context_feature="lsa-history", lm_tokens=500)
    record = run(e)
    assert record.text["extra_tokens"] == tiny_corpus.n_tokens("train") - record.text["lm_tokens"]
    assert "context_feature" not in run(small).text and run(small).text["extra_tokens"] == 0


@pytest.mark.parametrize("feature", [SHUFFLED + "lsa-history", ORACLE])
def test_scoring_a_text_with_what_it_does_not_have_is_refused(feature, small, tmp_path):
    record = run(small.replace(context_feature=feature))
    (tmp_path / "own.txt").write_text("the cook stirs the soup .", encoding="utf-8")
    with pytest.raises(StudyError, match=f"was given {feature}.*domain-posterior or lsa-history"):
        score_text(model_dir(record.name), tmp_path / "own.txt")


def test_the_oracle_is_refused_by_compare_unless_asked(small):
    for feature in ("none", "domain-posterior", ORACLE):
        run(small.replace(context_feature=feature))
    results = load_results("local")
    with pytest.raises(
        StudyError, match=f"{ORACLE} is the document's true label.*results.honest.*leaky=True"
    ):
        compare(results)
    table = compare(results, leaky=True)
    assert set(table["context_feature"]) == {"none", "domain-posterior", ORACLE}
    assert "told the document's label" in markdown_table(table)
    assert ORACLE not in set(compare(results.honest)["context_feature"])
    oracle = next(r for r in results.records if r.told)
    assert oracle.text["extra_tokens"] == oracle.text["feature_tokens"] == 0


def test_the_oracle_is_the_true_domain(text, tiny_corpus):
    told, reader = with_context(Experiment(context_feature=ORACLE), text)
    assert reader is None
    assert np.array_equal(told.test.features.argmax(1), token_domains(text.test))
    part = text_from(unlabelled(tiny_corpus, ("test",)))
    assert not with_context(Experiment(context_feature=ORACLE), part)[0].test.features.any()


# The second task


def fitted(e, text):
    model = experiments.untrained_model(
        e, text, pretrain(e.pretraining, text.corpus, text.vocabulary).embeddings
    )
    return model, experiments.fit_language_model(e, model, text)


@pytest.mark.parametrize("train_context", ["stream", "document"])
def test_a_second_task_of_weight_zero_changes_no_bit(train_context, small):
    small = small.replace(dropout=0.2, train_context=train_context)
    plain, history = fitted(small, texts.text_of(small))
    e = small.replace(auxiliary="domain", auxiliary_weight=0.0)
    told, _ = with_context(e, texts.text_of(e))
    other, second = fitted(e, told)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert [r["valid_loss"] for r in history.rows] == [r["valid_loss"] for r in second.rows]


@pytest.mark.parametrize("context", ["stream", "document", "sentence"])
def test_labels_and_features_of_a_batch_are_those_of_its_targets(context, text):
    told, _ = with_context(Experiment(context_feature="lsa-history", auxiliary="domain"), text)
    train = replace(told.train, labels=told.train.tokens.astype(np.int64))  # so that they can be told
    features = np.arange(len(train), dtype=np.float32)[:, None]
    train = replace(train, features=features)
    make = stream_batches(train, 3, 7, 2) if context == "stream" else unit_batches(train, context, 4, 9)
    for batch in make:
        real = torch.ones_like(batch.targets, dtype=bool) if batch.mask is None else batch.mask
        assert torch.equal(batch.labels[real], batch.targets[real])
        places = batch.features[real][:, 0].long()
        assert torch.equal(torch.from_numpy(train.tokens.astype(np.int64))[places], batch.targets[real])


def test_the_loss_is_the_language_models_and_the_weighted_second_one(small):
    e = small.replace(auxiliary="domain", auxiliary_weight=0.7, dropout=0.0, criterion="softmax")
    text, _ = with_context(e, texts.text_of(e))
    model, _ = fitted(e, text)
    batch = next(iter(unit_batches(text.train, "document", 4, 9)))
    batch = batch._replace(labels=torch.where(torch.arange(9) == 3, -1, batch.labels))  # without a label
    pure = model.eval().loss(batch)
    both = model.train().loss(batch)
    hidden, _ = model.states(batch.inputs, None, batch.features)
    expected, unlabelled = 0.0, 0
    for row, labels in zip(hidden, batch.labels):
        for state, label in zip(row, labels.tolist()):
            unlabelled += label < 0
            scores = model.head.weight @ state + model.head.bias
            expected += 0.0 if label < 0 else -scores.log_softmax(0)[label].item()
    assert unlabelled == len(batch.inputs)
    assert both.total.item() - pure.total.item() == pytest.approx(0.7 * expected, rel=1e-2)
    assert both.count == pure.count == batch.targets.numel()


def test_the_head_learns_and_its_accuracy_is_recorded(small, tmp_path):
    record = run(small.replace(auxiliary="domain", auxiliary_weight=1.0, max_epochs=6))
    scores = record.scores
    assert scores["auxiliary_accuracy"] > 0.8 > 2 * scores["auxiliary_majority_accuracy"]
    assert "auxiliary_accuracy" not in run(small).scores
    (tmp_path / "own.txt").write_text("the cook stirs the soup .", encoding="utf-8")
    assert score_text(model_dir(record.name), tmp_path / "own.txt")[0]["perplexity_document"] > 1


@pytest.mark.parametrize(
    "changes", [{"context_feature": "domain-posterior"}, {"auxiliary": "domain"}], ids=lambda c: next(iter(c))
)
def test_an_interrupted_run_ends_as_one_that_was_not(changes, small, monkeypatch, tmp_path):
    e = small.replace(**changes, max_epochs=3)
    whole = run(e)
    monkeypatch.setenv("RTL_RESULTS_DIR", str(tmp_path / "again"))
    validate, calls = experiments.token_nats, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*arguments, **options)

    monkeypatch.setattr(experiments, "token_nats", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(e)
    assert checkpoint_path(e).exists()
    monkeypatch.setattr(experiments, "token_nats", validate)
    resumed = run(e)
    assert resumed.scores == whole.scores
    assert [r["train_loss"] for r in resumed.history] == [r["train_loss"] for r in whole.history]
