"""Records that are whole or refused, and the comparison by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rtl_core.comparison import compare, effect, half_width, holm
from rtl_core.config import Experiment
from rtl_core.results import (
    DOCUMENT_COLUMNS,
    Record,
    Results,
    collect,
    document_sums,
    load_results,
    record_rows,
)
from rtl_core.storage import StudyError
from rtl_core.studies import grid
from rtl_core.tables import labels, markdown_table

TOKENS = (10, 30)
BASE = Experiment(lm_tokens=1000)
ARM = BASE.replace(source="word2vec-sg")


def made(experiment, nats=(50.0, 150.0), fingerprint="f" * 64, **facts):
    """Returns a record and its sums: two documents of 10 and 30 tokens with these summed nats."""
    scales = {"document": 1.0, "stream": 0.9, "sentence": 1.1}
    columns = {f"nats_{context}": [n * scale for n in nats] for context, scale in scales.items()}
    documents = pd.DataFrame({"document": ["a", "b"], "domain": ["x", None], "tokens": TOKENS, **columns})
    text = {
        "corpus": experiment.corpus,
        "corpus_fingerprint": fingerprint,
        "vocab_size": 100,
        "lm_tokens": 1_004,
    }
    defaults = {
        "text": text | {"unk_share": 0.02, "extra_tokens": 0 if experiment.source == "random" else 2_700_000},
        "scores": {"test_perplexity_document": math.exp(sum(nats) / 40)},
        "converged": True,
        "training_seconds": 12.0,
    }
    return Record(experiment.to_dict(), experiment.identity(fingerprint), **(defaults | facts)), documents


def results(*pairs):
    frames = [documents.assign(record=record.name) for record, documents in pairs]
    documents = pd.concat(frames, ignore_index=True)[["record", *DOCUMENT_COLUMNS]]
    return Results([record for record, _ in pairs], documents)


def by_hand():
    """Two arms, two seeds: per-seed effects -0.2 and -0.3 nats."""
    return [
        made(BASE, (50.0, 150.0)),
        made(BASE.replace(seed=1), (52.0, 152.0)),
        made(ARM, (46.0, 146.0)),
        made(ARM.replace(seed=1), (50.0, 142.0)),
    ]


def bounds():
    return [
        made(BASE.replace(model="unigram"), (100.0, 300.0), converged=None),
        made(BASE.replace(model="kneser-ney"), (60.0, 180.0), converged=None),
        made(BASE.replace(lm_tokens=None, max_epochs=3), (40.0, 120.0)),
    ]


def test_effect_and_interval_by_hand():
    row = compare(results(*by_hand())).set_index("role").loc["arm"]
    # Documents a, b, seed-averaged: -3 of 10 tokens, -7 of 30. The resamples are aa, ab, ba, bb.
    over_documents = np.var([-6 / 20, -10 / 40, -10 / 40, -14 / 60])
    over_seeds = np.var([-0.2, -0.3], ddof=1) / 2
    half = 12.7062 * math.sqrt(over_documents + over_seeds)  # Student's t, one degree of freedom
    assert row["effect_percent"] == pytest.approx(100 * (math.exp(-0.25) - 1))
    assert math.log1p(row["low_percent"] / 100) == pytest.approx(-0.25 - half, rel=0.01)
    assert math.log1p(row["high_percent"] / 100) == pytest.approx(-0.25 + half, rel=0.01)
    # With one degree of freedom Student's t is Cauchy, whose tails have a closed form.
    assert row["p_value"] == pytest.approx(1 - 2 / math.pi * math.atan(0.25 * 12.7062 / half), rel=0.01)


def test_perplexities_of_every_context_are_those_of_the_seed_mean_nats():
    row = compare(results(*by_hand())).set_index("role").loc["arm"]
    assert row["seeds"] == pytest.approx((math.exp(192 / 40), math.exp(192 / 40)))
    assert row["perplexity"] == pytest.approx(math.exp(4.8))
    assert row["perplexity_stream"] == pytest.approx(math.exp(0.9 * 4.8))
    assert row["perplexity_sentence"] == pytest.approx(math.exp(1.1 * 4.8))
    assert (row["n_seeds"], row["extra_tokens"], row["training_seconds"]) == (2, 2_700_000, 12.0)


def test_effect_equals_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 500, size=40)
    baseline = rng.normal(5, 0.1, (40, 3)) * tokens[:, None]
    arm = baseline + rng.normal(-0.1, 0.1, (40, 3)) * tokens[:, None]
    found = effect(arm, baseline, tokens)
    difference, drawn = (arm - baseline).mean(axis=1), []
    for _ in range(2000):
        chosen = rng.integers(40, size=40)
        drawn.append(sum(difference[i] for i in chosen) / sum(tokens[i] for i in chosen))
    per_seed = [(arm[:, s] - baseline[:, s]).sum() / tokens.sum() for s in range(3)]
    # Student's t with 39 and with 2 degrees of freedom
    half = math.hypot(2.02269 * np.std(drawn), 4.30265 * np.std(per_seed, ddof=1) / math.sqrt(3))
    assert math.log1p(found["high_percent"] / 100) - np.mean(per_seed) == pytest.approx(half, rel=0.05)
    assert (found["effect_nats"], found["high_nats"]) == pytest.approx(
        (np.mean(per_seed), np.mean(per_seed) + half), rel=0.05
    )


def test_the_p_value_is_the_level_at_which_the_interval_ends_at_zero():
    rng = np.random.default_rng(1)
    tokens = rng.integers(50, 500, size=30)
    for shift in (0.001, 0.02, 0.5):
        arm = rng.normal(shift, 0.05, (30, 3)) * tokens[:, None]
        found = effect(arm, np.zeros((30, 3)), tokens)
        spreads = found["sd_documents"], found["sd_seeds"]
        half = half_width(spreads, (30, 3), found["p_value"])
        assert half == pytest.approx(abs(found["effect_nats"]), rel=1e-6)
        assert (found["p_value"] < 0.05) == (found["low_nats"] > 0 or found["high_nats"] < 0)
    certain = effect(np.ones((30, 3)) * tokens[:, None], np.zeros((30, 3)), tokens)
    assert certain["p_value"] == pytest.approx(0, abs=1e-9)


def test_one_spread_alone_gives_student_s_interval():
    tokens = np.full(20, 100)
    alike = np.array([[1.0, 2.0, 4.0]] * 20) * 100  # documents agree, seeds do not
    found = effect(alike, np.zeros((20, 3)), tokens)
    interval = stats.t.interval(0.95, 2, np.mean([1, 2, 4]), stats.sem([1, 2, 4]))
    assert (found["low_nats"], found["high_nats"]) == pytest.approx(interval)
    assert found["p_value"] == pytest.approx(stats.ttest_1samp([1, 2, 4], 0).pvalue)


def test_holm_equals_its_definition_and_leaves_gaps():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = pd.Series(rng.random(6) ** 3)
        order, running, expected = sorted(range(6), key=lambda i: p[i]), 0.0, [0.0] * 6
        for rank, i in enumerate(order):
            running = max(running, min(1.0, (6 - rank) * p[i]))
            expected[i] = running
        assert holm(p).tolist() == pytest.approx(expected)
    assert holm(pd.Series([0.01, np.nan, 0.04])).tolist() == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert holm(pd.Series([], dtype=float)).empty


def test_p_values_are_corrected_for_the_arms_of_a_group_and_for_no_bounds():
    other = [made(ARM.replace(source="glove", seed=s), (45.0 + s, 146.0)) for s in (0, 1)]
    table = compare(results(*by_hand(), *other, *bounds()))
    arms = table[table["role"] == "arm"]
    assert sorted(arms["p_holm"]) == pytest.approx(sorted(holm(arms["p_value"])))
    assert table.loc[table["role"] != "arm", "p_holm"].isna().all()
    assert compare(results(*by_hand()))["p_holm"].dropna().tolist() == pytest.approx(
        compare(results(*by_hand()))["p_value"].dropna().tolist()
    )


def test_perplexity_has_an_interval_of_its_own_and_rows_name_their_records():
    row = compare(results(*by_hand())).set_index("role").loc["baseline"]
    assert row["low_perplexity"] < row["perplexity"] < row["high_perplexity"]
    assert math.log(row["high_perplexity"]) == pytest.approx(
        2 * math.log(row["perplexity"]) - math.log(row["low_perplexity"])
    )
    assert row["records"] == {0: by_hand()[0][0].name, 1: by_hand()[1][0].name}


def test_same_data_twice_gives_the_same_table_and_no_effect_between_equal_arms():
    records = [*by_hand()[:2], made(ARM, (50.0, 150.0)), made(ARM.replace(seed=1), (52.0, 152.0))]
    table = compare(results(*records))
    pd.testing.assert_frame_equal(table, compare(results(*reversed(records))))
    arm = table.set_index("role").loc["arm"]
    assert (arm["effect_percent"], arm["low_percent"], arm["high_percent"], arm["p_value"]) == (0, 0, 0, 1)


def test_one_seed_has_an_effect_and_no_interval():
    row = compare(results(made(BASE), made(ARM, (46.0, 146.0)))).set_index("role").loc["arm"]
    assert row["effect_percent"] == pytest.approx(100 * (math.exp(-0.2) - 1))
    assert row[["low_percent", "high_percent", "p_value"]].isna().all()


def test_effects_use_the_seeds_that_both_have():
    alone = made(ARM.replace(seed=2), (10.0, 30.0))
    row = compare(results(*by_hand(), alone)).set_index("role").loc["arm"]
    assert row["n_seeds"] == 3
    assert row["effect_percent"] == pytest.approx(100 * (math.exp(-0.25) - 1))


def test_bounds_stand_beside_the_arms_in_a_fixed_order():
    frozen = made(ARM.replace(input_mode="frozen"), (47.0, 147.0))
    control = made(ARM.replace(source="permuted:word2vec-sg"), (51.0, 151.0))
    table = compare(results(*bounds(), control, frozen, *reversed(by_hand())))
    assert labels(table) == [
        "random, fine-tuned", "word2vec-sg, fine-tuned", "word2vec-sg, frozen",
        "permuted:word2vec-sg, fine-tuned",
        "bound: random, all text", "bound: Kneser-Ney 5-gram", "bound: unigram",
    ]  # fmt: skip
    assert list(table["role"]) == ["baseline", *["arm"] * 3, *["bound"] * 3]
    assert (table["lm_tokens"] == 1000).all()
    unigram = table.iloc[-1]  # 10 nats a token, against 5.0 and 5.1: n-grams have no seed of their own
    assert (unigram["n_seeds"], unigram["perplexity"]) == (1, pytest.approx(math.exp(10)))
    assert unigram["effect_percent"] == pytest.approx(100 * (math.exp(10 - 5.05) - 1))


def test_groups_are_compared_within_themselves():
    small = [made(e.replace(hidden_size=64), n) for e, n in ((BASE, (80.0, 240.0)), (ARM, (60.0, 180.0)))]
    table = compare(results(*by_hand(), *small))
    arms = table[table["role"] == "arm"].set_index("settings")["effect_percent"]
    assert arms["hidden_size 128"] == pytest.approx(100 * (math.exp(-0.25) - 1))
    assert arms["hidden_size 64"] == pytest.approx(100 * (math.exp(-2) - 1))
    assert markdown_table(table).count("| arm |") == 2


def test_failed_runs_are_counted_and_left_out():
    failed = Record(ARM.replace(seed=2).to_dict(), "9" * 64, status="failed")
    found = results(*by_hand())
    table = compare(Results([*found.records, failed], found.documents))
    assert table.attrs["failed"] == 1
    assert list(table["n_seeds"]) == [2, 2]
    assert "Failed and left out: 1 runs." in markdown_table(table)


def test_another_baseline_can_be_chosen_and_a_missing_one_says_how_to_make_it():
    table = compare(results(*by_hand()), baseline={"source": "word2vec-sg"})
    assert table.set_index("role").loc["arm", "source"] == "random"
    with pytest.raises(StudyError, match=r"no baseline.*Experiment\(lm_tokens=1000, seed=seed\)"):
        compare(results(*by_hand()[2:]))
    with pytest.raises(StudyError, match="unknown field of an arm 'sauce'. Did you mean source"):
        compare(results(*by_hand()), baseline={"sauce": "random"})


def test_settings_named_by_across_make_arms_of_one_group():
    exact = [made(BASE.replace(criterion="softmax", seed=s), (45.0 + s, 145.0)) for s in (0, 1)]
    apart = compare(results(*by_hand(), *exact))
    assert apart["settings"].nunique() == 2 and list(apart["role"]).count("baseline") == 2
    table = compare(results(*by_hand(), *exact), across="criterion").set_index("criterion")
    assert table.loc["softmax", "role"] == "arm" and table.loc["softmax", "effect_percent"] < 0
    assert any("criterion softmax" in label for label in labels(table.reset_index()))
    for name in ("source", "corpus", "model", "seed", "criterions"):
        with pytest.raises(StudyError, match=f"unknown setting to compare across '{name}'"):
            compare(results(*by_hand()), across=(name,))


def test_a_group_without_one_plain_baseline_does_not_stop_the_others():
    changes = ({"output_init": "tied"}, {"output_mode": "frozen"})
    other = [made(BASE.replace(hidden_size=64, **change)) for change in changes]
    told = made(BASE.replace(hidden_size=32, auxiliary="domain"))  # one arm alone, but not a plain one
    assert compare(results(*by_hand(), told)).set_index("settings").loc["hidden_size 32", "role"] == "arm"
    tied = [made(e.replace(hidden_size=32, output_init="tied")) for e in (BASE, ARM)]  # all arms of a study
    assert list(compare(results(*tied))["role"]) == ["baseline", "arm"]
    table = compare(results(*by_hand(), *other)).set_index("settings")
    assert table.loc["hidden_size 64", "effect_percent"].isna().all()
    assert table.loc["hidden_size 128", "role"].tolist() == ["baseline", "arm"]
    with pytest.raises(StudyError, match="no baseline: none of the 2 finished arms"):
        compare(results(*other))


def test_the_records_of_a_study_are_those_of_its_grid():
    own, seen = made(grid("laptop")[1]), made(grid("welch")[5])
    assert [r.name for r in results(own, seen, *by_hand()).of("laptop").records] == [own[0].name]
    assert {r.name for r in results(own, seen).of("laptop", "welch").records} == {own[0].name, seen[0].name}


def test_two_records_of_one_experiment_and_other_test_texts_are_refused():
    record, documents = made(ARM)
    other = Record(**{**vars(record), "identity": "0" * 64})
    with pytest.raises(StudyError, match="are the same experiment.*delete the older one"):
        compare(results(*by_hand(), (other, documents)))
    with pytest.raises(StudyError, match="not scored on the same test text.*run them again"):
        compare(results(made(BASE), (record, documents.iloc[:1])))


def test_records_survive_saving_and_loading(tmp_path, monkeypatch):
    monkeypatch.setenv("RTL_RESULTS_DIR", str(tmp_path))
    for record, documents in by_hand():
        record.save(tmp_path / "local", documents)
        record.save(tmp_path / "local", documents)  # the same record again is no conflict
    loaded = load_results()
    assert sorted(r.name for r in loaded.records) == sorted(r.name for r, _ in by_hand())
    pd.testing.assert_frame_equal(compare(loaded), compare(results(*by_hand())))
    collect(loaded, tmp_path / "reference")
    reference = load_results("reference", corpus="docstrings")
    pd.testing.assert_frame_equal(compare(reference), compare(loaded))
    assert len(list((tmp_path / "reference").glob("*.parquet"))) == 1
    with pytest.raises(StudyError, match="already holds 4 records; delete them"):
        collect(loaded, tmp_path / "reference")
    with pytest.raises(StudyError, match="no records in local for corpus ag-news.*make study"):
        load_results("local", corpus="ag-news")


def test_reference_records_are_shown_until_the_user_has_a_study(tmp_path, monkeypatch):
    monkeypatch.setenv("RTL_RESULTS_DIR", str(tmp_path))
    collect(results(*by_hand()), tmp_path / "reference")
    own = [made(BASE.replace(seed=7)), made(ARM.replace(seed=7))]
    seen = []
    for record, documents in own:
        record.save(tmp_path / "local", documents)
        seen.append({r.experiment["seed"] for r in load_results().records})
    assert seen == [{0, 1}, {7}]  # a baseline alone is no study


def test_a_different_record_of_the_same_name_is_not_overwritten(tmp_path):
    record, documents = made(BASE)
    path = record.save(tmp_path, documents)
    before = path.read_bytes()
    with pytest.raises(StudyError, match="another record of the same experiment; delete it"):
        made(BASE, training_seconds=99.0)[0].save(tmp_path, documents)
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float64("nan")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, bad):
    with pytest.raises(StudyError, match=r"record.history\[1\].loss is (nan|inf).*status 'failed'"):
        made(BASE, history=[{"loss": 1.0}, {"loss": bad}])
    record, documents = made(BASE, (bad, 1.0), scores={})
    with pytest.raises(StudyError, match="NaN or infinity; nothing was written"):
        record.save(tmp_path, documents)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_record_needs_its_sums_by_document(tmp_path):
    record, documents = made(BASE)
    with pytest.raises(StudyError, match="is done: a finished run, and no other, has sums by document"):
        record.save(tmp_path, None)
    with pytest.raises(StudyError, match="need the columns.*nats_sentence"):
        record.save(tmp_path, documents.drop(columns="nats_sentence"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StudyError, match="unknown status 'finished'"):
        made(BASE, status="finished")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_file_cut_in_half_is_named_with_what_to_do(tmp_path, suffix, share):
    record, documents = made(BASE)
    path = record.save(tmp_path, documents).with_suffix(suffix)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(StudyError, match=rf"{path.name}.*not whole.*[Dd]elete it"):
        load_results(tmp_path)


def test_a_missing_parquet_and_a_json_that_is_no_record_are_named(tmp_path):
    record, documents = made(BASE)
    path = record.save(tmp_path, documents)
    path.with_suffix(".parquet").unlink()
    with pytest.raises(StudyError, match=rf"{path.stem}.parquet.*missing.*Delete it and the JSON"):
        load_results(tmp_path)
    path.write_text(json.dumps({"schema": 0}))
    with pytest.raises(StudyError, match=r"no record of schema 1 \(found \['schema'\]\); delete it"):
        load_results(tmp_path)


def test_committed_sums_cut_short_are_to_be_restored(tmp_path):
    collect(results(*by_hand()), tmp_path)
    path = tmp_path / "documents.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(
        StudyError, match="documents.parquet is missing or not whole.*Restore it as it was"
    ) as of:
        load_results(tmp_path)
    assert "JSON" not in str(of.value)


def test_names_are_safe_for_every_file_system_and_hold_no_path():
    record = Record({"corpus": "folder:/a b/ü", "source": "permuted:file:../x/y.vec", "seed": 3}, "ab" * 32)
    assert record.name == "folder-permuted_file-3-ababababab"


def test_rows_of_records_go_to_json_with_whole_numbers_and_nulls():
    failed = Record(ARM.to_dict(), "9" * 64, status="failed")
    found = results(*by_hand()[:1])
    rows = json.loads(
        record_rows(Results([*found.records, failed], found.documents)).to_json(orient="records")
    )
    assert [r["status"] for r in rows] == ["done", "failed"]
    assert (rows[0]["lm_tokens"], rows[0]["test_tokens"], rows[0]["seed"]) == (1000, None, 0)
    assert rows[0]["test_perplexity_document"] == pytest.approx(math.exp(5))
    assert rows[1]["test_perplexity_document"] is None
    assert (rows[0]["training_seconds"], rows[0]["extra_tokens"], rows[0]["converged"]) == (12.0, 0, True)


def test_a_ledger_is_summed_by_document_in_order_and_without_float32_loss():
    n = 20_000
    ledger = pd.DataFrame({"document": pd.Categorical.from_codes([0] * n + [1], ["z", "a"])})
    ledger["domain"] = np.array([1] * n + [-1], dtype=np.int16)
    for context in ("document", "stream", "sentence"):
        ledger[f"nats_{context}"] = np.full(n + 1, 0.1, dtype=np.float32)
    sums = document_sums(ledger, ("x", "y"))
    assert tuple(sums.columns) == DOCUMENT_COLUMNS
    assert list(sums["document"]) == ["z", "a"]
    assert list(sums["tokens"]) == [n, 1]
    assert sums["domain"][0] == "y" and pd.isna(sums["domain"][1])
    assert sums["nats_stream"][0] == pytest.approx(n * float(np.float32(0.1)), rel=1e-12)


def test_markdown_shows_contexts_intervals_units_and_marks():
    slow = made(ARM.replace(source="domain-sentence", readout="input-layer"), converged=False)
    unknown = made(ARM.replace(source="word2vec-cbow"))
    unknown[0].text["extra_tokens"] = None
    text = markdown_table(compare(results(*by_hand(), *bounds(), slow, unknown)))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in lines[0].split("|")]
    assert all(context in "".join(header) for context in ("(document)", "(stream)", "(sentence)"))
    rows = {line.split("|")[1].strip(): line for line in lines[2:]}
    assert "| −22.1 % (−" in rows["word2vec-sg, fine-tuned"] and "2.7 M" in rows["word2vec-sg, fine-tuned"]
    assert "| 148.4, 164.0 |" in rows["random, fine-tuned"] and "baseline" in rows["random, fine-tuned"]
    assert "| unknown |" in rows["word2vec-cbow, fine-tuned"]
    assert "domain-sentence (input layer), fine-tuned (not converged)" in rows
    assert [name for name in rows if name.startswith("bound")] == list(rows)[-3:]
    assert all(len(line.split("|")) == len(header) for line in lines)
    assert "**docstrings: LM text 1,004 tokens, vocabulary 100; test text 40 tokens in 2 documents" in text
