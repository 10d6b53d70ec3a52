"""What could have been seen and what an interval covers: against simulations and a slow twin."""

import math

import numpy as np
import pandas as pd
import pytest
from test_results import ARM, BASE, by_hand, made, results
from test_slices import study

from rtl_core.analysis.overview import overview
from rtl_core.analysis.significance import (
    HEADLINES,
    coverage,
    difference_of,
    parts,
    slice_effects,
    smallest_effect,
)
from rtl_core.comparison import compare, effect
from rtl_core.findings import save_finding
from rtl_core.storage import StudyError
from rtl_core.tables import overview_rows

__all__ = ["study"]  # a fixture


def differences(seed=0, n_documents=60, n_seeds=3, of_documents=0.05, of_seeds=0.02, of_both=0.03, shift=0.0):
    """Returns summed nats by document and seed, drawn with these standard deviations, and tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(100, 900, n_documents)
    a = of_documents * rng.standard_normal((n_documents, 1))
    b = of_seeds * rng.standard_normal(n_seeds)
    both = of_both * rng.standard_normal((n_documents, n_seeds))
    return tokens[:, None] * (shift + a + b + both), tokens


def test_parts_are_found_again():
    found = [parts(*differences(seed, 400, 6)) for seed in range(30)]
    per_token = [
        np.sqrt((p["documents"] ** 2).sum() / (differences(s, 400, 6)[1] ** 2).sum())
        for s, p in enumerate(found)
    ]
    assert np.mean(per_token) == pytest.approx(0.05, rel=0.1)
    assert math.sqrt(np.mean([p["seeds"] ** 2 for p in found])) == pytest.approx(0.02, rel=0.2)
    tokens = differences(0, 400, 6)[1]
    assert math.sqrt(np.mean((found[0]["both"] / tokens) ** 2)) == pytest.approx(0.03, rel=0.1)
    assert found[0]["documents"].sum() == pytest.approx(0, abs=1e-6 * tokens.sum())


def test_nothing_but_noise_has_no_seeds_and_no_documents():
    drawn = differences(1, 400, of_documents=0, of_seeds=0)
    found = parts(*drawn)
    assert found["seeds"] < 0.005
    assert (
        math.sqrt(np.mean((found["documents"] / drawn[1]) ** 2)) < 0.03 / 3
    )  # what both do to a mean of 3 is 0.017


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("of_documents, of_seeds", [(0.05, 0.0), (0.02, 0.05)], ids=["documents", "seeds"])
def test_the_interval_covers_what_it_says(heavy, of_documents, of_seeds):
    found = coverage(*differences(2, of_documents=of_documents, of_seeds=of_seeds), n=400, heavy=heavy)
    assert found["coverage"] > 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / 400)
    assert found["coverage_one_t"] >= found["coverage"] and found["width_one_t"] > found["width"]
    p = found["coverage"]
    assert found["error"] == pytest.approx(math.sqrt(p * (1 - p) / 400))


def test_an_interval_that_is_too_narrow_would_be_noticed(monkeypatch):
    def narrow(*arguments):
        found = effect(*arguments)
        return found | {"high_nats": found["effect_nats"] + 0.3 * (found["high_nats"] - found["effect_nats"])}

    monkeypatch.setattr("rtl_core.analysis.significance.effect", narrow)
    assert coverage(*differences(2), n=300)["coverage"] < 0.85


def test_the_simulation_is_repeatable_and_centred_on_the_real_mean():
    drawn = differences(3, shift=-0.4)
    assert coverage(*drawn, n=50) == coverage(*drawn, n=50) != coverage(*drawn, n=50, seed=1)
    assert parts(*drawn)["mean"] == pytest.approx(drawn[0].sum(axis=0).mean() / drawn[1].sum())


def table_of(sd_documents, sd_seeds, n_seeds=3, n_documents=60):
    rows = {"role": ["arm"] * 2, "sd_documents": [sd_documents] * 2, "sd_seeds": [sd_seeds] * 2}
    return pd.DataFrame(rows | {"n_seeds": n_seeds, "test_documents": n_documents})


@pytest.mark.parametrize("sd_documents, sd_seeds", [(0.01, 0.0), (0.01, 0.01), (0.001, 0.01)])
def test_the_smallest_effect_is_seen_four_times_in_five(sd_documents, sd_seeds):
    least = smallest_effect(table_of(sd_documents, sd_seeds))["smallest_nats"]
    rng = np.random.default_rng(0)
    n = 20_000
    seeds = sd_seeds * math.sqrt(3) * rng.standard_normal((n, 3))
    means = least + sd_documents * rng.standard_normal(n) + seeds.mean(axis=1)
    halves = np.hypot(2.00100 * sd_documents, 4.30265 * seeds.std(axis=1, ddof=1) / math.sqrt(3))
    assert (means > halves).mean() == pytest.approx(0.8, abs=0.02)


def test_more_seeds_show_smaller_effects_and_no_interval_shows_none():
    few, many = (smallest_effect(table_of(0.001, 0.01, n))["smallest_nats"] for n in (2, 5))
    assert many < few / 3
    percent = smallest_effect(table_of(0.01, 0.0))
    assert percent["smallest_percent"] == pytest.approx(100 * (math.exp(-percent["smallest_nats"]) - 1))
    with pytest.raises(StudyError, match="no arm has an interval; two seeds or more"):
        smallest_effect(compare(results(made(BASE), made(ARM, (46.0, 146.0)))))


def test_a_difference_is_paired_by_seed_and_document():
    records = results(*by_hand(), made(ARM.replace(seed=2)))
    names = compare(records).set_index("role")["records"]
    found, tokens = difference_of(records, names["arm"], names["baseline"])
    assert found.to_numpy().tolist() == [[-4.0, -2.0], [-4.0, -10.0]] and list(found) == [0, 1]
    assert tokens.to_dict() == {"a": 10, "b": 30}


def test_one_slicing_is_named_by_its_name_alone(study):
    records, _ = study
    pd.testing.assert_frame_equal(slice_effects(records, "frequency"), slice_effects(records, ["frequency"]))


# Every arm in one row


def test_an_arm_in_one_row_with_dashes_where_nothing_was_measured(study):
    records, _ = study
    found = overview(records)
    assert list(found["role"]) == ["baseline", "arm"]
    arm = found.set_index("role").loc["arm"]
    assert arm["content words"] == pytest.approx(100 * (math.exp(-0.3) - 1), abs=3)
    assert arm["content words low"] < arm["content words"] < arm["content words high"]
    assert pd.isna(arm["beyond token 200"]) and pd.isna(arm["probe"]) and pd.isna(arm["purity"])
    assert set(found.attrs["missing"]) == {"probe", "purity"}
    cells = overview_rows(found, HEADLINES)[1]
    assert cells["probe"] == cells["purity"] == cells["beyond token 200, %"] == "–"
    assert cells["content words, %"].startswith("−2") and " to −" in cells["content words, %"]
    assert cells["extra text"] == "2.7 M" and cells["cost (s)"] == "0 + 12"


def test_an_arm_measured_for_some_of_its_seeds_is_not_shown(study):
    records, _ = study
    names = compare(records).set_index("role")["records"]
    for role, seeds in (("baseline", (0, 1)), ("arm", (0,))):
        for seed in seeds:
            rows = {"probe": ["state", "state", "mean"], "n": [200, 200, 200], "correct": [1, seed, 0]}
            save_finding("probes", names[role][seed], pd.DataFrame(rows))
    found = overview(records).set_index("role")["probe"]
    assert found["baseline"] == pytest.approx(0.75) and pd.isna(found["arm"])


def test_without_slices_the_table_still_stands():
    found = overview(results(*by_hand()))
    assert found[list(HEADLINES)].isna().all(axis=None)
    assert "slices has not been measured of 4 of 4 records" in found.attrs["missing"]["rare words"]
    assert overview_rows(found, HEADLINES)[1]["rare words, %"] == "–"


def test_two_groups_of_comparison_in_one_table_are_refused():
    other = [made(e.replace(corpus="topicworld"), fingerprint="e" * 64) for e in (BASE, ARM)]
    bound = made(BASE.replace(model="unigram"), (100.0, 300.0), converged=None)
    with pytest.raises(StudyError, match="records are of 2 .*docstrings, 1000.*topicworld, 1000.*one study"):
        overview(results(*by_hand(), bound, *other))
    assert list(overview(results(*by_hand(), bound))["label"]) == [
        "random, fine-tuned",
        "word2vec-sg, fine-tuned",
    ]
