"""The command line: help, exit codes, data on stdout and talk on stderr."""

import io
import json
import math
import shutil
import sys
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save
from test_experiments import write_text

from rtl_core import experiments, texts, training
from rtl_core.__main__ import main
from rtl_core.catalogue import SOURCES
from rtl_core.choices import CHOICES
from rtl_core.config import SCORE_CONTEXTS, Experiment
from rtl_core.embeddings import Embeddings
from rtl_core.findings import VERSIONS, load_findings
from rtl_core.results import collect, load_results
from rtl_core.storage import results_dir
from rtl_core.studies import FEW_ARMS, STUDY_SIZES

COMMANDS = {
    "data": ("list", "get", "check"),
    "sources": ("--json",),
    "pretrain": ("--corpus", "--dim", "--seed", "--readout", "--epochs", "--neighbors", "--output"),
    "run": ("wikitext-2-fast", *(f"--{f.name.replace('_', '-')}" for f in fields(Experiment))),
    "study": ("--size", "--seconds", "--workers", "--scheduler", *STUDY_SIZES),
    "analyse": ("STUDY", "--only", "--workers", *STUDY_SIZES, *VERSIONS),
    "score": ("model", "file", "--words"),
    "report": ("STUDY", "--results", "--write", "--promote"),
    "doctor": (),
}
SETTINGS = {
    "hidden_size": 8, "n_samples": 32, "batch_size": 8, "window": 20, "max_epochs": 1, "pretrain_epochs": 1
}  # fmt: skip
OPTIONS = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
PERPLEXITIES = [f"test_perplexity_{context}" for context in SCORE_CONTEXTS]


@pytest.fixture
def folder_corpus(tmp_path):
    write_text(tmp_path / "text")
    return f"folder:{tmp_path / 'text'}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_corpus):
    """The results folder of one finished run, which the tests copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RTL_RESULTS_DIR", str(folder))
        patched.setattr(texts, "corpus_of", lambda name: tiny_corpus)
        record = experiments.run(Experiment(corpus="tiny", **SETTINGS))
    texts._vocabulary.cache_clear(), texts._text.cache_clear()
    return folder, record


@pytest.fixture
def model(trained):
    """The name of a model among this test's own results."""
    folder, record = trained
    shutil.copytree(folder, results_dir())
    return record.name


@pytest.fixture
def own_text(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("the cook stirs the warm soup .\nthe zebra paints a rusty anchor .\n", encoding="utf-8")
    return path


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def call(capsys, *arguments):
    """Returns the exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


# Help and mistakes


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    found = capsys.readouterr().out
    assert stopped.value.code == 0
    assert [name for name in (*COMMANDS[command], "--json") if name not in found] == []


def test_help_lists_the_commands_and_the_meaning_of_settings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # no line breaks inside a sentence
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    found = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n    {name} " not in found] == []
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    found = " ".join(capsys.readouterr().out.split())
    assert [f.name for f in fields(Experiment) if f.metadata["help"] not in found] == []
    assert [value for name in CHOICES for value in CHOICES[name] if value not in found] == []


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (("run", "--source", "word2vec-sq"), "unknown source 'word2vec-sq'. Did you mean word2vec-sg"),
        (("run", "--source", "permuted:domain-paragraf"), "Did you mean domain-paragraph"),
        (("run", "wikitext-2-fats"), "Did you mean wikitext-2-fast"),
        (("run", "quick"), "quick is a study size: rtl study --size quick"),
        (("run", "--corpus", "docstring"), "Did you mean docstrings"),
        (("run", "--corpus", "folder:nowhere"), "there is no nowhere"),
        (("run", "--source", "file:nowhere.vec"), "there is no file nowhere.vec"),
        (("run", "--dropout", "2"), "0.0 to 0.95"),
        (("run", "--input-mode", "frozen", "--output-init", "tied"), "choose finetuned"),
        (
            ("run", "--average-from", "9", "--max-epochs", "2"),
            "is after the last epoch, 2; choose it smaller",
        ),
        (("study", "--size", "quick", "--seconds", "5"), "rtl study --size criteria --seconds N"),
        (("study", "--size", "criteria", "--seconds", "nan"), "give a positive number"),
        (("data", "get"), "say which corpus to get"),
        (("data", "get", "wikitext"), "Did you mean wikitext-2"),
        (("report", "--results", "local"), "there are no records in local; `make study` makes them"),
        (("score", "some", "mine.txt"), "0 models have names that begin with 'some'. There are: none"),
    ],
)
def test_a_mistake_is_explained_on_stderr_with_exit_code_2(arguments, hint, capsys):
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("rtl: ") and hint in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [(), ("runn",), ("run", "--seed", "x"), ("run", "--schedule", "cosine"), ("study", "--size", "big")],
)
def test_what_cannot_be_parsed_ends_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2 and "usage: rtl" in capsys.readouterr().err


def test_an_unknown_option_is_answered_with_the_nearest_one(capsys):
    code, out, err = call(capsys, "run", "--sorce", "glove")
    assert code == 2 and out == "" and "unknown option '--sorce'. Did you mean --source" in err
    code, out, err = call(capsys, "run", "--sorce=folder:/a/long/path")
    assert code == 2 and "unknown option '--sorce'. Did you mean --source" in err
    code, out, err = call(capsys, "doctor", "quick")
    assert code == 2 and out == "" and "'quick' is one argument too many; see rtl doctor --help" in err


def test_a_wrong_source_is_found_before_the_corpus_is_read(monkeypatch, capsys):
    def read(name):
        raise AssertionError("the corpus was read")

    monkeypatch.setattr("rtl_core.load_corpus", read)
    code, out, err = call(capsys, "pretrain", "domain-sentense")
    assert code == 2 and out == "" and "Did you mean domain-sentence" in err


def test_ctrl_c_ends_with_exit_code_130(folder_corpus, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_epoch", interrupt)
    code, out, err = call(capsys, "run", "--corpus", folder_corpus, *OPTIONS)
    assert code == 130 and out == ""
    assert err.rstrip().endswith("run the same command to go on.")


# run, study, report


def test_run_trains_then_loads(folder_corpus, monkeypatch, capsys):
    arguments = ("run", "--corpus", folder_corpus, *OPTIONS, "--seed", 3, "--vocab-size", "none")
    code, out, err = call(capsys, *arguments, "--json")
    row = json.loads(out)
    assert code == 0 and "running" in err and row["status"] == "done" and row["epochs"] == 1
    assert all(1 < row[name] < 1000 for name in PERPLEXITIES)
    again = call(capsys, *arguments, "--json")
    assert json.loads(again[1]) == row and f"loaded {row['record']}" in again[2]
    few = f"too few documents of test text to tell arms apart: {row['test_documents']}"
    assert row["test_tokens"] > 0 and few in err and "cut long ones into several" in err
    monkeypatch.setattr("rtl_core.__main__.FEW_DOCUMENTS", row["test_documents"])
    assert "too few" not in call(capsys, *arguments)[2]
    code, out, _ = call(capsys, *arguments)
    assert code == 0 and f"{row['test_perplexity_document']:.2f}" in out
    stored = json.loads((results_dir() / "local" / f"{row['record']}.json").read_text())["experiment"]
    assert stored["seed"] == 3 and stored["vocab_size"] is None and stored["hidden_size"] == 8


def test_a_run_that_diverges_has_exit_code_1(folder_corpus, monkeypatch, capsys):
    def diverge(*arguments):
        raise training.Diverged("the training loss became nan")

    monkeypatch.setattr(training, "_epoch", diverge)
    code, out, _ = call(capsys, "run", "--corpus", folder_corpus, *OPTIONS, "--json")
    assert code == 1 and json.loads(out)["status"] == "failed"


@pytest.fixture
def small_study(monkeypatch, folder_corpus):
    """Makes every study three arms and two bounds on the folder; returns how many runs it has."""
    base = Experiment(corpus=folder_corpus, **SETTINGS)
    arms = [base.replace(**FEW_ARMS[i]) for i in (0, 1, 5)]
    runs = [*arms, base.replace(model="unigram"), base.replace(model="kneser-ney")]
    monkeypatch.setattr("rtl_core.__main__.grid", lambda name: runs)
    return runs


def test_study_then_report(small_study, monkeypatch, capsys):
    code, out, err = call(capsys, "study", "--size", "smoke", "--workers", 1)
    assert code == 0 and "0 of 5 runs loaded from records, 5 to do" in err
    for arm in (
        "random, fine-tuned",
        "random, frozen",
        "domain-sentence, fine-tuned",
        "unigram",
        "Kneser-Ney",
    ):
        assert arm in out
    assert "| arm |" in out and "Figure: " in err and (results_dir() / "local" / "study-smoke.png").exists()
    code, out, err = call(capsys, "study", "--size", "smoke", "--workers", 1, "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 5 and "5 of 5 runs loaded" in err
    code, out, _ = call(capsys, "report", "--json")
    assert code == 0 and sorted(r["record"] for r in json.loads(out)) == sorted(r["record"] for r in rows)
    code, out, _ = call(capsys, "report", "--results", "local")
    assert code == 0 and "domain-sentence, fine-tuned" in out and "baseline" in out
    parts = {"smoke": small_study[:2], "criteria": small_study[3:], "full": []}
    monkeypatch.setattr("rtl_core.results.grid", parts.get)
    code, out, _ = call(capsys, "report", "smoke", "criteria", "--results", "local")
    assert (
        code == 0 and "random, fine-tuned, criterion sampled-softmax" in out and "domain-sentence" not in out
    )
    for form in ((), ("--json",)):
        code, out, err = call(capsys, "report", "full", "--results", "local", *form)
        assert code == 2 and out == "" and "has no run of full; rtl study --size full makes them" in err
    collect(load_results("local"), results_dir() / "reference")
    code, _, err = call(capsys, "report")
    assert code == 0 and "the committed records" not in err
    shutil.rmtree(results_dir() / "local")
    code, _, err = call(capsys, "report")
    assert code == 0 and "the committed records: your own are no study yet" in err


def test_analyse_measures_what_is_there_and_says_what_is_not(small_study, capsys):
    code, out, err = call(capsys, "analyse", "smoke")
    assert (
        code == 2
        and out == ""
        and err == ("rtl: there is nothing to analyse yet; rtl study --size smoke makes it.\n")
    )
    first, *_ = experiments.run_all(small_study[:2], workers=1)
    code, out, err = call(capsys, "analyse", "smoke", "--only", "slices", "--workers", 1, "--json")
    assert code == 0 and json.loads(out) == [{"analysis": "slices", "there": 0, "measured": 2, "refused": {}}]
    assert "3 of 5 runs are not finished and are left out" in err and "0 findings there, 2 to measure" in err
    found = load_findings("slices", [first.name])
    assert found.groupby("slicing")["tokens"].sum().unique() == [first.text["test_tokens"]]
    code, out, _ = call(capsys, "analyse", "smoke", "--only", "slices", "--workers", 1)
    assert code == 0 and out.split() == ["slices", "2", "there,", "0", "measured", "now"]
    shutil.rmtree(results_dir() / "local" / "models" / first.name)
    code, out, _ = call(capsys, "analyse", "smoke", "--only", "awareness", "--workers", 1)
    assert code == 1 and f"awareness refused {first.name}: its trained model is gone" in out


def test_a_setting_that_changes_nothing_is_said_to(folder_corpus, capsys):
    plain = json.loads(call(capsys, "run", "--corpus", folder_corpus, *OPTIONS, "--json")[1])
    code, out, err = call(
        capsys, "run", "--corpus", folder_corpus, *OPTIONS, "--label-smoothing", 0.1, "--json"
    )
    assert code == 0 and json.loads(out)["record"] == plain["record"]
    assert "label_smoothing changes nothing here" in err and "n_samples changes" not in err


def test_studies_that_the_readme_does_not_show_cannot_replace_the_reference(small_study, capsys):
    experiments.run_all(small_study, workers=1)
    (results_dir() / "reference").mkdir()
    (results_dir() / "reference" / "old.json").write_text("kept")
    code, _, err = call(capsys, "report", "laptop", "--write")
    assert code == 2 and "name a STUDY without them" in err
    code, _, err = call(capsys, "report", "--promote", "smoke")
    assert code == 2 and "rtl report --promote laptop tasks" in err
    assert (results_dir() / "reference" / "old.json").read_text() == "kept"


def test_report_has_one_row_a_record_with_settings_and_measures(small_study, capsys):
    records = experiments.run_all(small_study, workers=1)
    code, out, _ = call(capsys, "report", "--json")
    rows = {row["record"]: row for row in json.loads(out)}
    assert code == 0 and len(json.loads(out)) == len(rows) == len(records)
    for record in records:
        row = rows[record.name]
        assert {name: row[name] for name in record.experiment} == record.experiment
        assert {name: row[name] for name in PERPLEXITIES} == pytest.approx(
            {name: record.scores[name] for name in PERPLEXITIES}, rel=1e-9
        )
        assert row["extra_tokens"] == record.text["extra_tokens"]
        assert row["training_seconds"] == pytest.approx(record.training_seconds, rel=1e-6)
        assert row["converged"] is record.converged


# score


def test_score_counts_every_token_in_every_context(model, own_text, capsys):
    code, out, _ = call(capsys, "score", model, own_text, "--words", "--json")
    row = json.loads(out)
    assert code == 0 and row["tokens"] == len(row["words"]) == 16 and row["unk_share"] == 1 / 16
    assert [word for word, _ in row["words"]] == [
        word for line in own_text.read_text().splitlines() for word in (*line.split(), "<eos>")
    ]
    assert row["perplexity_document"] == pytest.approx(
        math.exp(sum(n for _, n in row["words"]) / 16), rel=1e-6
    )
    assert len({row[f"perplexity_{context}"] for context in ("document", "sentence")}) == 2
    assert row["perplexity_stream"] == pytest.approx(row["perplexity_document"], rel=1e-6)  # one document


def test_score_shows_words_only_when_asked(model, own_text, capsys):
    _, short, _ = call(capsys, "score", model, own_text)
    _, long, _ = call(capsys, "score", model, own_text, "--words")
    assert "perplexity (document)" in short and "6.2 % unknown words" in short
    assert "zebra" not in short and "zebra" in long and long.startswith(short)
    assert "words" not in json.loads(call(capsys, "score", model, own_text, "--json")[1])


def test_a_model_is_found_by_the_beginning_of_its_name_and_by_its_folder(model, own_text, capsys):
    folder = results_dir() / "local" / "models" / model
    found = {call(capsys, "score", name, own_text, "--json")[1] for name in (model, model[:8], folder)}
    assert len(found) == 1


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_standard_input_scores_as_a_file(mark, model, own_text, monkeypatch, capsys):
    expected = json.loads(call(capsys, "score", model, own_text, "--json")[1])
    data = mark + own_text.read_bytes()
    own_text.write_bytes(data)
    assert json.loads(call(capsys, "score", model, own_text, "--json")[1]) == expected
    stdin(monkeypatch, data)
    code, out, _ = call(capsys, "score", model, "-", "--json")
    assert code == 0 and json.loads(out) == expected


@pytest.mark.parametrize(
    "data, message",
    [(b"\xff\xfe\x00caf\xe9", "not UTF-8"), (b"", "empty|no words"), (b" \n\n \n", "empty|no words")],
    ids=["not UTF-8", "empty", "blank"],
)
@pytest.mark.parametrize("where", ["file", "-"])
def test_text_that_cannot_be_scored_is_refused(where, data, message, model, own_text, monkeypatch, capsys):
    own_text.write_bytes(data)
    stdin(monkeypatch, data)
    code, out, err = call(capsys, "score", model, own_text if where == "file" else "-")
    assert code == 2 and out == ""
    assert any(part in err for part in message.split("|"))


def test_a_missing_file_or_model_says_what_there_is(model, own_text, capsys):
    code, out, err = call(capsys, "score", model, "nowhere.txt")
    assert code == 2 and out == "" and "cannot read nowhere.txt" in err
    code, out, err = call(capsys, "score", "gpt", own_text)
    assert (
        code == 2 and out == "" and f"0 models have names that begin with 'gpt'. There are: {model}." in err
    )
    shutil.copytree(*(results_dir() / "local" / "models" / name for name in (model, f"{model}x")))
    code, _, err = call(capsys, "score", model[:5], own_text)
    assert code == 2 and f"2 models have names that begin with {model[:5]!r}" in err


def test_a_model_that_is_not_whole_is_refused(model, own_text, capsys):
    weights = results_dir() / "local" / "models" / model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    code, out, err = call(capsys, "score", model, own_text)
    assert code == 2 and out == "" and "is not whole" in err and "train it again" in err


def test_a_model_with_a_part_of_another_size_is_refused(model, own_text, capsys):
    weights = results_dir() / "local" / "models" / model / "model.safetensors"
    whole = {name: value.clone() for name, value in load_file(weights).items()}  # the file is written over
    for changed in (
        {k: v for k, v in whole.items() if k != "output.bias"},
        whole | {"output.bias": torch.ones(3)},
    ):
        weights.write_bytes(save(changed))
        code, out, err = call(capsys, "score", model, own_text)
        assert code == 2 and out == "" and "is not whole" in err and "output.bias" in err


def test_a_text_is_cut_into_tokens_as_the_corpus_was(folder_corpus, own_text, capsys):
    record = json.loads(call(capsys, "run", "--corpus", folder_corpus, *OPTIONS, "--json")[1])["record"]
    own_text.write_text("Some SLOW cook. Every\nnew oven!", encoding="utf-8")
    row = json.loads(call(capsys, "score", record, own_text, "--words", "--json")[1])
    words = "some slow cook . <eos> every new oven ! <eos>"  # a sentence a line, as in the corpus
    assert [word for word, _ in row["words"]] == words.split() and row["unk_share"] == 0.1  # the "!"


# data, pretrain, doctor


def test_sources_lists_every_source_and_control(capsys):
    code, out, _ = call(capsys, "sources")
    assert code == 0 and all(name in out for name in (*SOURCES, "file:PATH", "permuted:X"))
    rows = json.loads(call(capsys, "sources", "--json")[1])
    assert {"domain-sentence", "permuted:X"} <= {row.get("source") or row["control"] for row in rows}


def test_data_list_has_a_row_for_every_corpus(monkeypatch, capsys):
    monkeypatch.delenv("RTL_DATA_DIR", raising=False)
    code, out, _ = call(capsys, "data", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and set(rows) >= {"docstrings", "wikitext-2", "ag-news", "20newsgroups"}
    assert rows["docstrings"]["at_hand"] and not rows["wikitext-2"]["at_hand"]
    assert all(row["licence"] and row["home"] for row in rows.values())
    code, out, _ = call(capsys, "data", "list")
    assert code == 0 and "rtl data get wikitext-2`\n" in out
    assert "`rtl data get gum` says where to get it and where to lay it" in out


def test_data_check_of_a_missing_corpus_has_exit_code_1(monkeypatch, capsys):
    monkeypatch.delenv("RTL_DATA_DIR", raising=False)
    code, out, _ = call(capsys, "data", "check", "wikitext-2", "--json")
    (row,) = json.loads(out)
    assert code == 1 and row["ok"] is False and "not at hand" in row["found"]


def test_data_check_of_a_folder_has_exit_code_0(folder_corpus, capsys):
    code, out, _ = call(capsys, "data", "check", folder_corpus, "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["ok"] is True and row["train_tokens"] > row["test_tokens"] > 0


def test_pretrain_writes_a_file_that_gensim_reads(folder_corpus, tmp_path, capsys):
    from gensim.models import KeyedVectors

    path = tmp_path / "table.vec"
    arguments = (
        "pretrain",
        "domain-sentence",
        "--corpus",
        folder_corpus,
        "--dim",
        6,
        "--epochs",
        1,
        "--seed",
        2,
    )
    code, out, _ = call(capsys, *arguments, "--output", path, "--neighbors", "cook", "slow", "--json")
    made, theirs, ours = json.loads(out), KeyedVectors.load_word2vec_format(path), Embeddings.from_file(path)
    assert code == 0 and theirs.index_to_key == list(ours.words) and len(ours) == made["words"]
    assert theirs.vectors.tobytes() == ours.table.tobytes() and ours.dim == made["dim"] == 6
    assert made["provenance"]["seed"] == 2 and made["provenance"]["source"] == "domain-sentence"
    assert 0 <= made["scores"]["accuracy"] <= 1
    found = [(word, cosine) for word, cosine in made["neighbors"]["cook"]]
    assert len(found) == 8 and [w for w, _ in found] == [w for w, _ in ours.neighbors("cook", k=8)]
    code, out, _ = call(capsys, *arguments, "--neighbors", "slow")
    assert code == 0 and f"{len(ours)} words × 6" in out and "\nslow: " in out


def test_pretrain_of_an_unknown_word_suggests_the_nearest(folder_corpus, capsys):
    code, out, err = call(capsys, "pretrain", "random", "--corpus", folder_corpus, "--neighbors", "coook")
    assert code == 2 and out == "" and "cook" in err.replace("coook", "")


def test_doctor_works_before_anything_has_run(tmp_path, capsys):
    code, out, _ = call(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0 and not results_dir().exists()
    assert found["versions"]["torch"] and found["threads"] == 1 and isinstance(found["bf16"], bool)
    assert "docstrings" in [row["name"] for row in found["corpora"]]
    code, out, _ = call(capsys, "doctor")
    assert code == 0 and "torch" in out and "data at hand: docstrings" in out
