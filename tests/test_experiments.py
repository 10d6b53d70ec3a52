"""From settings to records: made once, the same each time, whole or not there; grids in many processes."""

import errno
import math
import os
import shutil
from collections import Counter
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DOMAINS, ROOT
from joblib import delayed

from rtl_core import (
    compare,
    experiments,
    load_corpus,
    load_results,
    run,
    run_all,
    scoring,
    storage,
    texts,
    training,
)
from rtl_core.config import RECIPE, Experiment
from rtl_core.corpora.corpus import Document
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.experiments import model_dir, record_path
from rtl_core.scoring import token_nats
from rtl_core.storage import StudyError, cache_dir, results_dir
from rtl_core.studies import FEW_ARMS, NAMED, STUDY_SIZES, grid
from rtl_core.transfer import load_model

BASE = Experiment(
    corpus="tiny", hidden_size=8, n_samples=32, batch_size=8, window=20, max_epochs=3, lm_tokens=1000,
    pretrain_epochs=1,
)  # fmt: skip
FILLERS = (
    "some",
    "every",
    "quite",
    "often",
    "under",
    "beside",
    "blue",
    "round",
    "slow",
    "early",
    "new",
    "old",
)
TIMES = ("seconds", "validation_seconds", "date")


@pytest.fixture
def use(monkeypatch):
    """Makes a corpus the one that every name means, until the end of the test."""

    def put(corpus):
        for cached in (texts._vocabulary, texts._text, texts._lm_split):
            cached.cache_clear()
        monkeypatch.setattr(texts, "corpus_of", lambda name: corpus)
        return corpus

    yield put
    for cached in (texts._vocabulary, texts._text, texts._lm_split):
        cached.cache_clear()


@pytest.fixture
def tiny(use, tiny_corpus):
    return use(tiny_corpus)


@pytest.fixture
def folder_corpus(tmp_path):
    """The name of a corpus of text files in three domains, which other processes can read too."""
    write_text(tmp_path / "text")
    return f"folder:{tmp_path / 'text'}"


def write_text(root):
    """Writes 18 documents of 12 random sentences, so that no paragraph repeats another split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("valid", 3), ("test", 3)):
        for i in range(count):
            domain = list(DOMAINS)[i % 3]
            sentences = [" ".join(rng.choice([*DOMAINS[domain], *FILLERS], 8)) for _ in range(12)]
            path = root / split / domain / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n\n".join(f"{s.capitalize()}." for s in sentences), encoding="utf-8")


def vector_file(path, words, dim=8, seed=0):
    """Writes random vectors in word2vec's text format; returns the source that reads them."""
    table = np.random.default_rng(seed).standard_normal((len(words), dim)).astype(np.float32)
    Embeddings(tuple(words), table).to_word2vec(path)
    return f"file:{path}"


def timeless(value):
    """A record's content less everything that a clock wrote."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES and not k.endswith("ing_seconds")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def same(first, second):
    return timeless(asdict(first)) == timeless(asdict(second))


def forget(monkeypatch, folder):
    """From here on there are no records, models or embeddings."""
    monkeypatch.setenv("RTL_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("RTL_RESULTS_DIR", str(folder / "results"))


def written(folder):
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"
    )


def fail_at(n, function, error):
    """Returns `function` that raises instead at its n-th call, and the list of its calls."""
    calls = []

    def wrapped(*arguments, **options):
        calls.append(arguments)
        if len(calls) == n:
            raise error
        return function(*arguments, **options)

    return wrapped, calls


# Once, and always the same


def test_the_second_run_loads_and_says_so(tiny, monkeypatch, capsys):
    first = run(BASE)
    assert f"running {first.name}" in capsys.readouterr().err
    monkeypatch.setattr(experiments, "_make", None)  # nothing is made again
    second = run(BASE)
    captured = capsys.readouterr()
    assert second == first and captured.out == ""
    day = first.environment["date"][:10]
    assert f"loaded {first.name} (done; trained {first.training_seconds:.0f} s on {day})" in captured.err


@pytest.mark.parametrize("source", ["random", "domain-sentence", "permuted:domain-paragraph"])
def test_same_seed_same_record_another_seed_another(source, tiny, monkeypatch, tmp_path):
    e = BASE.replace(source=source, dropout=0.1)
    first = run(e)
    forget(monkeypatch, tmp_path / "again")
    torch.manual_seed(99)  # the caller's random state plays no part
    assert same(run(e), first)
    assert run(e.replace(seed=1)).scores != first.scores


@pytest.mark.parametrize(
    "module, name, call",
    [
        (training, "_epoch", 1),
        (training, "_epoch", 3),
        (experiments, "token_nats", 2),
        (scoring, "token_nats", 2),
    ],
    ids=["first epoch", "last epoch", "validation", "scoring"],
)
def test_interrupted_and_resumed_is_the_same_record(module, name, call, tiny, monkeypatch, tmp_path):
    e = BASE.replace(dropout=0.2, output_init="tied")
    whole = run(e)
    forget(monkeypatch, tmp_path / "again")
    with monkeypatch.context() as patched:
        patched.setattr(module, name, fail_at(call, getattr(module, name), KeyboardInterrupt())[0])
        with pytest.raises(KeyboardInterrupt):
            run(e)
    assert list(results_dir().rglob("*.json")) == []
    epoch, calls = fail_at(0, training._epoch, None)
    monkeypatch.setattr(training, "_epoch", epoch)
    assert same(run(e), whole)
    done = 3 if module is scoring else call - 1  # validated epochs are not repeated
    assert len(calls) == 3 - done
    assert list((results_dir() / "local" / "checkpoints").glob("*")) == []


def test_a_checkpoint_cut_short_is_reported_and_can_be_deleted(tiny, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(training, "_epoch", fail_at(2, training._epoch, KeyboardInterrupt())[0])
        with pytest.raises(KeyboardInterrupt):
            run(BASE)
    checkpoint = experiments.checkpoint_path(BASE)
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    with pytest.raises(StudyError, match=f"{checkpoint.name} is not whole.*delete it and run again"):
        run(BASE)
    checkpoint.unlink()
    assert run(BASE).status == "done"


def test_a_record_cut_in_half_is_an_error_until_it_is_deleted(tiny):
    first = run(BASE)
    path = record_path(BASE)
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    with pytest.raises(StudyError, match=f"{path.name} is not whole JSON.*delete it and run again"):
        run(BASE)
    with pytest.raises(StudyError, match="not whole JSON"):
        run_all([BASE], workers=1)
    path.unlink()
    assert same(run(BASE), first)


# Runs that fail


def test_a_loss_that_is_not_finite_is_stored_as_failed_and_not_repeated(tiny, monkeypatch, capsys):
    run(BASE)
    with monkeypatch.context() as patched:
        error = training.Diverged("the training loss became nan at step 1 of an epoch")
        patched.setattr(training, "_epoch", fail_at(2, training._epoch, error)[0])
        failed = run(BASE.replace(input_mode="frozen"))
    assert failed.status == "failed" and failed.scores == {} and failed.converged is False
    assert len(failed.history) == 1 and not model_dir(failed.name).exists()
    monkeypatch.setattr(experiments, "_make", None)
    assert run(BASE.replace(input_mode="frozen")) == failed
    assert "(failed; trained" in capsys.readouterr().err
    assert run_all([BASE.replace(input_mode="frozen")], workers=1) == [failed]
    table = compare(load_results("local"))
    assert table["input_mode"].tolist() == ["finetuned"] and table.attrs["failed"] == 1


@pytest.mark.parametrize("learning_rate", [30.0, 1000.0])
def test_a_huge_learning_rate_fails_without_an_exception(learning_rate, tiny):
    record = run(BASE.replace(learning_rate=learning_rate, clip=1e6, schedule="constant", n_layers=2))
    assert record.status == "failed" or record.scores["test_perplexity_document"] < 1e300
    assert run(BASE.replace(learning_rate=learning_rate, clip=1e6, schedule="constant", n_layers=2)) == record


def test_validation_that_is_not_finite_fails_too(tiny, monkeypatch):
    def not_a_number(model, text, context, bf16):
        return np.full(len(text), np.nan, np.float32)

    monkeypatch.setattr(experiments, "token_nats", not_a_number)
    assert run(BASE).status == "failed"
    assert load_results("local").records[0].scores == {}


def test_a_failed_run_leaves_no_checkpoint(tiny, monkeypatch):
    monkeypatch.setattr(training, "_epoch", fail_at(2, training._epoch, training.Diverged("nan"))[0])
    assert run(BASE).status == "failed"
    assert list((results_dir() / "local" / "checkpoints").glob("*")) == []


# What a record holds


@pytest.mark.parametrize("model", ["unigram", "kneser-ney"])
def test_bounds_have_records(model, tiny):
    record, base = run(BASE.replace(model=model)), run(BASE)
    assert record.history == [] and record.converged is None and record.text["extra_tokens"] == 0
    table = compare(load_results("local"))
    assert table["role"].tolist() == ["baseline", "bound"]
    assert table["perplexity"][1] == pytest.approx(record.scores["test_perplexity_document"], rel=1e-5)
    assert record.text == base.text


def test_the_unigram_bound_by_hand(tiny):
    text, scores = texts.text_of(BASE), run(BASE.replace(model="unigram")).scores
    counts = Counter(text.train.tokens.tolist())
    total = len(text.train) + len(text.vocabulary)
    nats = [-math.log((counts[word] + 1) / total) for word in text.test.tokens.tolist()]
    for context in ("document", "stream", "sentence"):
        assert scores[f"test_perplexity_{context}"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-9)


ARMS = (
    {"input_mode": "frozen"}, {"output_init": "tied"}, {"source": "permuted:word2vec-cbow"}, {"source": "file"},
    {"source": "permuted:file"}, {"source": "file", "input_mode": "frozen"},
    {"source": "domain-paragraph", "readout": "input-layer"}, {"criterion": "softmax", "n_layers": 2},
    {"train_context": "document"}, {"train_context": "sentence", "schedule": "constant", "weight_decay": 0.1},
)  # fmt: skip


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: " ".join(map(str, arm.values())))
def test_every_arm_runs_and_its_model_ledger_and_record_agree(arm, tiny, tmp_path):
    vocabulary = Vocabulary.build(tiny.split("train"))
    if arm.get("source", "").endswith("file"):
        source = arm["source"].replace("file", vector_file(tmp_path / "v.vec", vocabulary.words[2:9]))
        arm = arm | {"source": source}
    record = run(BASE.replace(**arm))
    path = record_path(BASE.replace(**arm))
    ledger, sums = (
        pd.read_parquet(path.with_suffix(".ledger.parquet")),
        pd.read_parquet(path.with_suffix(".parquet")),
    )
    assert len(ledger) == record.text["test_tokens"] == tiny.n_tokens("test") == sums["tokens"].sum()
    for context in ("document", "stream", "sentence"):
        found = record.scores[f"test_perplexity_{context}"]
        assert 1 < found < len(vocabulary)
        for frame in (ledger, sums):
            total = frame[f"nats_{context}"].astype("float64").sum()
            assert math.exp(total / len(ledger)) == pytest.approx(found, rel=1e-6)
    assert sums["domain"].tolist() == [d.domain for d in tiny.split("test")]
    assert f"valid_perplexity_{record.experiment['train_context']}" in record.scores
    model, stored, tokenizer = load_model(model_dir(record.name))
    assert stored == vocabulary and tokenizer == "whitespace"
    nats = token_nats(model, texts.text_of(BASE).test, "document")
    assert np.allclose(nats, ledger["nats_document"], atol=1e-5)


def test_extra_tokens_are_those_that_only_pretraining_read(tiny, tmp_path):
    vectors = vector_file(tmp_path / "v.vec", ["cook", "sailor", "the"])
    expected = tiny.n_tokens("train") - len(texts.text_of(BASE).train)
    assert expected > 0
    wanted = {
        "random": 0, "word2vec-sg": expected, "domain-sentence": expected, "permuted:word2vec-sg": expected,
        vectors: None, f"permuted:{vectors}": None, "permuted:random": 0,
    }  # fmt: skip
    found = {source: run(BASE.replace(source=source, max_epochs=1)).text["extra_tokens"] for source in wanted}
    assert found == wanted


def test_embeddings_and_their_scores_are_told(tiny):
    record = run(BASE.replace(source="domain-sentence", seed=4))
    facts = record.pretrained
    assert facts["provenance"]["source"] == "domain-sentence" and facts["provenance"]["seed"] == 4
    assert facts["coverage"]["type_share"] == 1.0 and 0 <= facts["scores"]["accuracy"] <= 1
    assert record.pretraining_seconds == facts["provenance"]["seconds"]
    assert record.training_seconds == sum(row["seconds"] for row in record.history) > 0
    assert record.environment["threads"] == 1 and record.environment["versions"]["torch"] == version("torch")


# Sources that cannot enter


def bad_sources(folder):
    return {
        "8 dimensions|5 dimensions.*8": vector_file(folder / "narrow.vec", ["cook", "sailor"], dim=5),
        "no word in common.*Koch, Seemann": vector_file(folder / "german.vec", ["Koch", "Seemann"]),
    }


@pytest.mark.parametrize("number", [0, 1], ids=["wrong dimension", "no common word"])
@pytest.mark.parametrize("control", ["", "permuted:"])
def test_a_file_that_cannot_enter_leaves_nothing_behind(number, control, tiny, tmp_path):
    message, source = list(bad_sources(tmp_path).items())[number]
    with pytest.raises(StudyError, match=message):
        run(BASE.replace(source=control + source))
    assert written(results_dir()) == written(cache_dir()) == []


def test_too_little_text_leaves_nothing_behind(tiny):
    for changes, message in (({"lm_tokens": 10**6}, "1,000,000 tokens were asked for, but the text has 3,111"),
                             ({"batch_size": 5000}, "too few for 5000 streams")):  # fmt: skip
        with pytest.raises(StudyError, match=message):
            run(BASE.replace(**changes))
    assert written(results_dir()) == []


def test_a_model_can_be_used_when_its_vector_file_is_gone(tiny, tmp_path):
    source = vector_file(tmp_path / "v.vec", ["cook", "sailor", "the"])
    record = run(BASE.replace(source=source, max_epochs=1))
    (tmp_path / "v.vec").unlink()
    model, _, _ = load_model(model_dir(record.name))
    text = texts.text_of(BASE).test
    found = math.exp(token_nats(model, text, "document").mean(dtype="float64"))
    assert found == pytest.approx(record.scores["test_perplexity_document"], rel=1e-5)


# A full disk


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_nothing_half_written(call, tiny, monkeypatch):
    """Whichever file it is that does not fit: what is there is whole, and the next run ends as if nothing was."""
    real, e = getattr(os, call), BASE.replace(source="domain-sentence", max_epochs=1)
    plain, calls = fail_at(0, real, None)
    with monkeypatch.context() as patched:
        patched.setattr(storage.os, call, plain)
        whole = run(e)
    expected = written(results_dir())
    assert len(calls) >= len(expected) + 3  # the embeddings, their account and a checkpoint
    for n in range(1, len(calls) + 1) if call == "replace" else [1, len(calls)]:
        shutil.rmtree(results_dir())
        shutil.rmtree(cache_dir())
        with monkeypatch.context() as patched:
            patched.setattr(storage.os, call, fail_at(n, real, OSError(errno.ENOSPC, "No space left"))[0])
            with pytest.raises(StudyError, match="could not write .*: the disk is full. Nothing was left"):
                run(e)
        there = written(results_dir()) if results_dir().exists() else []
        assert not [name for name in there if Path(name).name.startswith(".")], n
        assert set(there) - set(expected) <= {name for name in there if "checkpoints" in name}
        if record_path(e).exists():  # a record promises its ledger, sums and model
            assert set(expected) <= set(there), f"write {n} of {len(calls)}"
        assert same(run(e), whole) and written(results_dir()) == expected, f"write {n} of {len(calls)}"


# Identity


def test_identity_follows_a_files_content_never_its_path(tiny, tmp_path, capsys):
    words = ["cook", "sailor", "the"]
    first, copy, other = (tmp_path / name for name in ("a.vec", "b.vec", "c.vec"))
    vector_file(first, words), vector_file(other, words, seed=1)
    shutil.copy(first, copy)
    e, moved, another = (BASE.replace(source=f"file:{p}", max_epochs=1) for p in (first, copy, other))
    assert e.identity("f") == moved.identity("f") != another.identity("f")
    assert e.identity("f") != e.replace(source=f"permuted:file:{first}").identity("f")
    run(e)
    capsys.readouterr()
    run(moved)
    assert "running" not in capsys.readouterr().err


def test_identity_follows_a_folders_content_never_its_path(folder_corpus, tmp_path, capsys):
    source = Path(folder_corpus.removeprefix("folder:"))
    moved = shutil.copytree(source, tmp_path / "moved")
    e = BASE.replace(corpus=folder_corpus, lm_tokens=None, max_epochs=1)
    first = run(e)
    again = e.replace(corpus=f"folder:{moved}")
    assert again.identity(first.text["corpus_fingerprint"]) == first.identity
    capsys.readouterr()
    run(again)
    assert "running" not in capsys.readouterr().err


def test_identity_follows_every_setting_and_the_text():
    base = BASE.replace(source="domain-sentence")
    changes = {"vocab_size": 50, "test_tokens": 5, "readout": "input-layer", "dropout": 0.4, "seed": 3}
    changes |= {"model": "unigram", "schedule": "constant", "corpus": "other", "input_rms": 2.0}
    changes |= {"pretrain_on": "lm-split", "occurrences": 1, "pretrain_epochs": None}
    identities = [base.replace(**{name: value}).identity("f") for name, value in changes.items()]
    assert len({*identities, base.identity("f"), base.identity("g")}) == len(changes) + 2


def test_what_a_bound_does_not_read_is_no_part_of_it():
    """Only its text is, so that one n-gram serves all studies of a text; the committed ones keep their names."""
    bound = Experiment(model="kneser-ney", lm_tokens=350_000, valid_tokens=10_000, test_tokens=150_000)
    other = bound.replace(seed=2, source="word2vec-sg", dropout=0.1, criterion="softmax", hidden_size=64)
    assert other.identity("f") == bound.identity("f") != bound.replace(test_tokens=9).identity("f")
    assert other.settled() == bound
    reference = load_results(ROOT / "results" / "reference").records
    for record in (r for r in reference if r.experiment["model"] != "lstm"):
        again = Experiment.from_dict(record.experiment)
        assert again.identity(record.text["corpus_fingerprint"]) == record.identity


def test_a_named_experiment_is_still_the_one_it_was():
    expected = (
        "a678271867673631b6a2cfbffc84cccaa6e08ff9ffd15c3baf7f0a15a1764ea9"  # before it was said shorter
    )
    assert NAMED["wikitext-2-fast"].identity("f") == expected


def test_what_a_recipe_means_does_not_change_in_silence():
    """Identity leaves out settings at their default, so another default needs another RECIPE, and this test."""
    defaults = {f.name: f.default for f in fields(Experiment)}
    recipe = {
        "vocab_size": 10_000, "input_mode": "finetuned", "output_init": "random", "input_rms": 0.3,
        "hidden_size": 128, "n_layers": 1, "dropout": 0.3, "criterion": "sampled-softmax", "n_samples": 512,
        "train_context": "stream", "batch_size": 64, "window": 35, "learning_rate": 8e-3, "clip": 1.0,
        "schedule": "one-cycle", "weight_decay": 0.0, "adam_eps": 1e-8, "max_epochs": 8, "patience": 2,
        "pretrain_on": "corpus",
    }  # fmt: skip
    assert recipe.items() <= defaults.items() and RECIPE["run"] == 2


def test_adam_s_eps_reaches_the_optimiser(tiny):
    plain, held = (run(BASE.replace(adam_eps=eps)).history[-1]["train_loss"] for eps in (1e-8, 1.0))
    assert held > plain + 0.02


def test_pretraining_reads_the_text_that_is_asked_for(tiny, monkeypatch):
    other = replace(tiny, name="other", documents=tuple(replace(d, id=f"{d.id} b") for d in tiny.documents))
    monkeypatch.setattr(texts, "corpus_of", {"tiny": tiny, "other": other}.get)
    texts._text.cache_clear()
    found = {}
    for text in ("corpus", "lm-split", "other"):
        record = run(BASE.replace(source="word2vec-sg", pretrain_on=text))
        found[text] = record.pretrained["provenance"]["tokens_read"], record.text["extra_tokens"]
    lm, everything = record.text["lm_tokens"], tiny.n_tokens("train")
    left = texts.pretraining_corpus(BASE.replace(source="word2vec-sg", pretrain_on="other")).n_tokens("train")
    assert 0 < left < everything  # less what repeats the test text of the LM's corpus
    assert found == {"corpus": (everything, everything - lm), "lm-split": (lm, 0), "other": (left, left)}
    changed = replace(other, documents=other.documents[1:])
    before = record.identity
    monkeypatch.setattr(texts, "corpus_of", {"tiny": tiny, "other": changed}.get)
    assert (
        experiments.record_path(BASE.replace(source="word2vec-sg", pretrain_on="other")).stem[-10:]
        != before[:10]
    )


def test_pretraining_reads_as_much_text_as_is_asked_for(tiny, monkeypatch):
    e, everything = BASE.replace(source="word2vec-sg"), tiny.n_tokens("train")
    own = set(texts.text_of(e).train.document_ids)
    read = [
        {d.id for d in texts.pretraining_corpus(e.replace(pretrain_tokens=n)).split("train")}
        for n in (300, 1000, 2000, None)
    ]
    assert read[0] < read[1] == own < read[2] < read[3]  # each holds the one before
    records = [run(e.replace(pretrain_tokens=n)) for n in (300, 1000, 2000)]
    facts = [(r.pretrained["provenance"]["tokens_read"], r.text["extra_tokens"]) for r in records]
    lm = records[0].text["lm_tokens"]
    assert 300 <= facts[0][0] < 450 and facts[0][1] == 0
    assert facts[1] == (lm, 0)
    assert 2000 <= facts[2][0] < 2150 and facts[2][1] == facts[2][0] - lm
    same_text = run(e.replace(pretrain_on="lm-split"))
    assert same_text.scores == records[1].scores and same_text.identity != records[1].identity
    with pytest.raises(StudyError, match="9,999 tokens were asked for, but the text has"):
        run(e.replace(pretrain_tokens=9_999))
    other = replace(tiny, name="other", documents=tuple(replace(d, id=f"{d.id} b") for d in tiny.documents))
    monkeypatch.setattr(texts, "corpus_of", {"tiny": tiny, "other": other}.get)
    elsewhere = e.replace(pretrain_on="other", pretrain_tokens=10)
    found = run(elsewhere)
    assert found.text["extra_tokens"] == found.pretrained["provenance"]["tokens_read"] < everything
    assert run(e.replace(source="random", pretrain_tokens=300)).identity == BASE.identity(tiny.fingerprint)


def test_another_number_of_threads_is_the_same_experiment(tiny, capsys):
    first = run(BASE)
    torch.set_num_threads(2)
    try:
        assert run(BASE) == first and "loaded" in capsys.readouterr().err
    finally:
        torch.set_num_threads(1)


def test_a_changed_corpus_is_another_experiment(tiny_corpus, use):
    use(tiny_corpus)
    first = run(BASE)
    use(
        replace(
            tiny_corpus, documents=(*tiny_corpus.documents, Document("new", None, "test", ("the cook .",)))
        )
    )
    second = run(BASE)
    assert first.identity != second.identity and first.name != second.name
    assert second.text["test_documents"] == first.text["test_documents"] + 1


# Grids


def test_an_unknown_grid_suggests_the_nearest():
    with pytest.raises(StudyError, match="unknown study size or experiment 'qick'. Did you mean quick"):
        grid("qick")
    with pytest.raises(StudyError, match="Did you mean wikitext-2-fast"):
        grid("wikitext2-fast")


@pytest.mark.parametrize("name", [*STUDY_SIZES, *NAMED])
def test_every_preset_is_a_grid_of_different_experiments(name):
    experiments_of = grid(name)
    for e in experiments_of:
        assert Experiment.from_dict(e.to_dict()) == e
        assert e.pretraining.dim == e.hidden_size
    assert len({e.identity("f") for e in experiments_of}) == len(experiments_of)


@pytest.mark.parametrize("name", STUDY_SIZES)
def test_a_study_has_every_arm_and_seed_and_the_bounds(name):
    size, runs = STUDY_SIZES[name], grid(name)
    everything = [e for e in runs if e.model == "lstm" and e.lm_tokens is None]
    arms = [e for e in runs if e.model == "lstm" and e.lm_tokens is not None]
    assert len(FEW_ARMS) == 8 and len(arms) == len(size.arms) * size.seeds
    for seed in range(size.seeds):
        found = [e for e in arms if e.seed == seed]
        assert found == [Experiment(**size.settings | arm, seed=seed) for arm in size.arms]
    assert {e.model for e in runs} == {"lstm", "unigram", "kneser-ney"}
    assert len(everything) == (name in ("laptop", "full"))  # the same LM on all text
    assert all(e.source == "random" and e.test_tokens == arms[0].test_tokens for e in everything)
    bounds = {(e.corpus, e.model) for e in runs if e.model != "lstm"}
    assert bounds == {(e.corpus, model) for e in arms for model in ("unigram", "kneser-ney")}
    assert len(runs) == len(arms) + len(everything) + len(bounds)


def small_grid(corpus):
    base = BASE.replace(corpus=corpus, max_epochs=2)
    sources = ("random", "domain-sentence", "permuted:domain-sentence", "domain-paragraph")
    return [*(base.replace(source=source) for source in sources), base.replace(model="unigram")]


@pytest.fixture
def fresh_workers():
    """Worker processes keep the environment they were started with, so none may be left from or for others."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)
    yield
    get_reusable_executor().shutdown(wait=True)


def serial(experiments_of, monkeypatch, folder):
    with monkeypatch.context() as patched:
        forget(patched, folder)
        return run_all(experiments_of, workers=1)


def test_two_workers_make_the_same_records_as_one(
    folder_corpus, fresh_workers, monkeypatch, tmp_path, capsys
):
    wanted = small_grid(folder_corpus)
    records = run_all(wanted, workers=2)
    assert [r.experiment for r in records] == [e.settled().to_dict() for e in wanted]  # in order
    assert [r.status for r in records] == ["done"] * 5
    assert "0 of 5 runs loaded from records, 5 to do" in capsys.readouterr().err
    assert {r.environment["threads"] for r in records} == {1}
    for ours, theirs in zip(records, serial(wanted, monkeypatch, tmp_path / "serial")):
        assert same(ours, theirs)
    capsys.readouterr()
    assert run_all(wanted, workers=2) == records
    assert "5 of 5 runs loaded from records, 0 to do" in capsys.readouterr().err


def test_what_a_worker_refuses_comes_without_its_traceback(fresh_workers):
    refused = pytest.raises(StudyError, match="unknown corpus 'nowhere'")
    with refused as caught, experiments._workers(2, None) as parallel:
        list(parallel([delayed(load_corpus)("nowhere")]))
    assert caught.value.__cause__ is None


def test_a_dask_cluster_makes_the_same_records(folder_corpus, monkeypatch, tmp_path):
    distributed = pytest.importorskip("distributed")
    wanted = small_grid(folder_corpus)[:3]
    # One worker of two threads, as `dask worker` starts them by default: they share torch's random generator.
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        records = run_all(wanted, scheduler=cluster.scheduler_address)
    for ours, theirs in zip(records, serial(wanted, monkeypatch, tmp_path / "serial")):
        assert same(ours, theirs)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "smoke-signal://hill:1"])
def test_a_scheduler_that_does_not_answer_is_named(address, tiny, monkeypatch):
    distributed = pytest.importorskip("distributed")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda where, timeout: client(where, timeout=0.3))
    with pytest.raises(StudyError, match=f"no Dask scheduler answers at {address}"):
        run_all([BASE], scheduler=address)
    assert written(results_dir()) == []


def test_an_interrupted_grid_keeps_what_is_done_and_goes_on(tiny, monkeypatch, capsys):
    wanted = [BASE.replace(seed=seed, max_epochs=2) for seed in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(training, "_epoch", fail_at(4, training._epoch, KeyboardInterrupt())[0])
        with pytest.raises(KeyboardInterrupt):
            run_all(wanted, workers=1)
    assert len(load_results("local").records) == 1
    capsys.readouterr()
    records = run_all(wanted, workers=1)
    assert "1 of 3 runs loaded from records, 2 to do" in capsys.readouterr().err
    assert [r.experiment["seed"] for r in records] == [0, 1, 2]


def test_the_same_experiment_twice_in_a_grid_runs_once(tiny):
    first, second = run_all([BASE, BASE], workers=1)
    assert first == second


def test_experiments_on_different_vocabularies_share_a_grid(tiny):
    wanted = [BASE.replace(source="word2vec-cbow", vocab_size=size, max_epochs=1) for size in (10, 20)]
    assert [r.text["vocab_size"] for r in run_all(wanted, workers=1)] == [10, 20]
