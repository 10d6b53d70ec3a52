"""Findings: kept like records, read from both homes, measured once, and never silently left out."""

import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from test_results import ARM, BASE, made, results

from rtl_core import analysis, findings, report
from rtl_core.analysis import analyse
from rtl_core.context import load_reader
from rtl_core.findings import (
    VERSIONS,
    collect_findings,
    committed_path,
    finding_path,
    findings_of,
    load_findings,
    model_dir,
    save_finding,
)
from rtl_core.results import Record
from rtl_core.storage import StudyError, results_dir, write_json
from rtl_core.studies import grid


def frame(value=1.0, n=3):
    return pd.DataFrame({"kind": ["a", "b", "a"][:n], "n": range(n), "value": np.full(n, value, np.float32)})


def test_a_finding_comes_back_as_it_was_with_its_record():
    for name, value in (("two", 2.0), ("one", 1.0)):
        save_finding("probes", name, frame(value))
    found = load_findings("probes", ["one", "two", "one"])
    assert list(found) == ["record", "kind", "n", "value"]
    assert list(found["record"]) == ["one"] * 3 + ["two"] * 3
    pd.testing.assert_frame_equal(
        found.query("record == 'two'")[list(frame())].reset_index(drop=True), frame(2.0)
    )


def test_committed_findings_are_the_same_table_and_the_own_ones_come_first():
    for name, value in (("two", 2.0), ("one", 1.0)):
        save_finding("slices", name, frame(value))
    collect_findings(["one", "two", "three"], results_dir() / "reference")
    own = load_findings("slices", ["one", "two"])
    for name in ("one", "two"):
        finding_path("slices", name).unlink()
    pd.testing.assert_frame_equal(load_findings("slices", ["one", "two"]), own)
    save_finding("slices", "one", frame(7.0))
    found = load_findings("slices", ["two", "one"]).groupby("record", sort=False)["value"].first()
    assert found.to_dict() == {"two": 2.0, "one": 7.0}
    assert sorted(p.name for p in (results_dir() / "reference").iterdir()) == ["slices-1.parquet"]


def test_what_is_missing_is_said_with_the_command_that_measures_it():
    save_finding("awareness", "one", frame())
    with pytest.raises(
        StudyError, match="awareness has not been measured of 2 of 3 records, first two.*--only awar"
    ):
        load_findings("awareness", ["one", "two", "three"])
    assert list(findings_of("awareness", ["two", "one"])) == ["one"]
    with pytest.raises(StudyError, match="unknown analysis 'prob'. Did you mean probes"):
        finding_path("prob", "one")
    with pytest.raises(StudyError, match="probes of one found nothing; nothing was written"):
        save_finding("probes", "one", frame(n=0))
    assert not finding_path("probes", "one").exists()


def test_a_finding_of_an_older_version_is_not_taken_for_new(monkeypatch):
    save_finding("probes", "one", frame())
    collect_findings(["one"], results_dir() / "reference")
    monkeypatch.setitem(findings.VERSIONS, "probes", 2)
    assert findings_of("probes", ["one"]) == {}


def test_a_finding_cut_short_is_named():
    path = save_finding("probes", "one", frame())
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(
        StudyError, match="one.parquet.*not whole.*Delete it and run `rtl analyse` again"
    ) as of:
        load_findings("probes", ["one"])
    assert "JSON" not in str(of.value)  # the record is whole


def test_promoting_a_study_carries_its_findings_along(monkeypatch):
    pairs = [made(e.settled()) for e in grid("smoke")]
    monkeypatch.setattr(report, "MAIN", ("smoke",))
    save_finding("slices", pairs[0][0].name, frame())
    folder = report.promote(results(*pairs))
    finding_path("slices", pairs[0][0].name).unlink()
    assert load_findings("slices", [pairs[0][0].name])["value"].tolist() == [1.0] * 3
    report.promote(results(*pairs))  # from the old reference, now that there is no other
    assert (folder / "slices-1.parquet").exists() and len(list(folder.glob("*.json"))) == len(pairs)


# Measuring


@pytest.fixture
def measured(monkeypatch):
    """Makes probes count its calls; returns the names that it was called with."""
    called, module = [], ModuleType("counted")

    def measure(record):
        called.append(record.name)
        if record.experiment["source"] == "word2vec-sg" and record.experiment["seed"] == 1:
            raise StudyError("it has no state to look into.")
        return frame()

    module.measure = measure
    monkeypatch.setitem(sys.modules, "counted", module)
    monkeypatch.setattr(analysis, "MEASURES", {"probes": "counted", "slices": "counted"})
    return called


def records():
    found = [made(e)[0] for e in (BASE, ARM, ARM.replace(seed=1), BASE.replace(model="unigram"))]
    for record in found[:3]:
        model_dir(record.name).mkdir(parents=True)
    return found


def test_what_is_there_is_not_measured_again_and_a_refusal_stops_nothing(measured, capsys):
    found = records()
    rows = analyse(found, ["probes"], workers=1)
    assert measured == [record.name for record in found[:3]]  # an n-gram has no model
    assert rows[0]["measured"] == 2 and rows[0]["refused"] == {found[2].name: "it has no state to look into."}
    assert f"probes of {found[2].name}: it has no state" in capsys.readouterr().err
    measured.clear()
    rows = analyse(found, ["probes"], workers=1)
    assert measured == [found[2].name] and rows[0]["there"] == 2
    assert "2 findings there, 1 to measure" in capsys.readouterr().err


def test_a_model_that_is_gone_is_said_and_a_ledger_is_enough_for_slices(measured):
    found = records()
    model_dir(found[0].name).rmdir()
    failed = Record(ARM.replace(seed=5).to_dict(), "9" * 64, status="failed")
    rows = {row["analysis"]: row for row in analyse([*found, failed], workers=1)}
    why = rows["probes"]["refused"][found[0].name]
    assert "its trained model is gone" in why and f"delete the record {found[0].name}.json" in why
    assert rows["slices"]["measured"] == 3  # the bound too, not the one that refuses
    assert failed.name not in measured


def test_committed_findings_need_not_be_measured(measured):
    found = records()
    save_finding("probes", found[0].name, frame())
    collect_findings([found[0].name], results_dir() / "reference")
    finding_path("probes", found[0].name).unlink()
    assert analyse(found[:2], ["probes"], workers=1)[0]["there"] == 1
    assert measured == [found[1].name]


def test_a_finding_cut_short_counts_as_missing_for_its_record_alone(measured, capsys):
    found = records()[:2]
    paths = [save_finding("probes", record.name, frame()) for record in found]
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    rows = analyse(found, ["probes"], workers=1)
    assert measured == [found[1].name] and (rows[0]["there"], rows[0]["measured"]) == (1, 1)
    assert f"{paths[1]} is missing or not whole" in capsys.readouterr().err
    assert list(load_findings("probes", [record.name for record in found])["value"]) == [1.0] * 6
    committed = committed_path("probes", results_dir() / "reference")
    committed.parent.mkdir(parents=True)
    committed.write_bytes(b"PAR1")
    paths[0].unlink()
    assert analyse(found, ["probes"], workers=1)[0]["measured"] == 1
    assert "Restore it as it was committed. Now it counts as missing" in capsys.readouterr().err


def test_a_model_that_is_not_whole_is_one_record_s_fault(measured, monkeypatch):
    whole, odd, cut = records()[:3]
    monkeypatch.setitem(analysis.MEASURES, "awareness", "rtl_core.analysis.awareness")
    for record in (odd, cut):
        write_json(
            model_dir(record.name) / "experiment.json", {"experiment": record.experiment, "tokenizer": ""}
        )
    write_json(model_dir(odd.name) / "vocabulary.json", {})
    write_json(model_dir(cut.name) / "vocabulary.json", {"words": ["<unk>", "<eos>"], "counts": [1, 1]})
    (model_dir(cut.name) / "model.safetensors").write_bytes(b"cut")
    rows = {row["analysis"]: row for row in analyse([odd, cut, whole], ["awareness", "probes"], workers=1)}
    assert rows["probes"]["measured"] == 2
    refused = rows["awareness"]["refused"]
    assert "is not whole (KeyError: 'words'); to train it again, delete the record" in refused[odd.name]
    for record in (odd, cut):
        assert f"delete the record {record.name}.json and run its study again" in refused[record.name]


def test_a_reader_of_features_that_is_not_whole_says_which_record_to_delete():
    record = made(ARM.replace(context_feature="domain-posterior"))[0]
    folder = model_dir(record.name)
    write_json(folder / "experiment.json", {"experiment": record.experiment})
    (folder / "context.safetensors").write_bytes(b"cut")
    with pytest.raises(
        StudyError, match=f"not whole.*delete the record {record.name}.json and run its study"
    ):
        load_reader(folder, 10)


def test_wrong_names_and_numbers_are_refused(measured):
    assert [row["analysis"] for row in analyse([], "slices")] == ["slices"]
    with pytest.raises(StudyError, match="unknown analysis 'slice'. Did you mean slices"):
        analyse([], ["slice"])
    with pytest.raises(StudyError, match="0 workers cannot measure anything"):
        analyse(records(), workers=0)


def test_every_analysis_has_a_module_and_a_version():
    from importlib import import_module

    assert set(analysis.MEASURES) == set(VERSIONS)
    assert all(callable(import_module(module).measure) for module in analysis.MEASURES.values())
    assert committed_path("slices", results_dir()).name == f"slices-{VERSIONS['slices']}.parquet"
