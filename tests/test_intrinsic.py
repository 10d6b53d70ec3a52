"""Judgements that are read as published, measures that agree with gensim's, and correlations that can say no."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from test_results import BASE, made, results

from rtl_core import corpora, figures
from rtl_core.__main__ import main
from rtl_core.analysis import geometry, intrinsic
from rtl_core.corpora import sources
from rtl_core.embeddings import Embeddings
from rtl_core.storage import StudyError, file_sha256

WORDS = ("cat", "dog", "Cow", "king", "queen", "man", "woman", "run", "ran")
FILES = {
    "simlex-999": "word1\tword2\tPOS\tSimLex999\trest\r\nCat\tdog\tN\t8.5\t1\r\ncow\tking\tN\t0.5\t1\r\n"
    "man\twoman\tN\t6\t1\r\nqueen\tunicorn\tN\t3\t1\r\n",
    "men": "word1 word2 score\ncat dog 50.0\nking queen 40.0\nrun ran 45.0\ncow run 2.0\n",
    "rare-words": "cat\tunicorn\t5.88\t7\nrun\tran\t6\t7\n",
    "google-analogies": ": family\nking queen man woman\nman woman king queen\n: gram\nrun ran unicorn horn\n",
}  # fmt: skip
ROOT = Path(os.environ.get("RTL_DATA_DIR", "nowhere"))


def vectors(dim=6, seed=0):
    return Embeddings(
        WORDS, np.random.default_rng(seed).standard_normal((len(WORDS), dim)).astype(np.float32)
    )


@pytest.fixture
def laid(tmp_path, monkeypatch):
    """Small sets of judgements in RTL_DATA_DIR, all but wordsim-353; returns their paths."""
    paths = {}
    monkeypatch.setenv("RTL_DATA_DIR", str(tmp_path / "data"))
    intrinsic._say_once.cache_clear()
    for name, content in FILES.items():
        entry = sources.source(name)
        (file,) = entry["files"]
        paths[name] = tmp_path / "data" / entry["folders"][0] / file
        paths[name].parent.mkdir(parents=True)
        paths[name].write_bytes(content.encode())
        monkeypatch.setitem(
            sources.all_sources(), name, entry | {"files": {file: [file_sha256(paths[name])]}}
        )
    return paths


# Judgements


def test_pairs_are_read_in_lower_case_without_their_heading(laid):
    assert intrinsic.load_pairs("simlex-999")[:2] == [("cat", "dog", 8.5), ("cow", "king", 0.5)]
    assert intrinsic.load_pairs("rare-words") == [("cat", "unicorn", 5.88), ("run", "ran", 6.0)]
    assert intrinsic.load_analogies()[0] == ("king", "queen", "man", "woman")
    with pytest.raises(StudyError, match="unknown set of judged pairs 'simlex'. Did you mean simlex-999"):
        intrinsic.load_pairs("simlex")


@pytest.mark.parametrize("name", intrinsic.SETS)
def test_real_sets(name):
    if not (ROOT / sources.source(name)["folders"][0]).is_dir():
        pytest.skip(f"RTL_DATA_DIR holds no {name}")
    rows = intrinsic.load_analogies() if name == intrinsic.ANALOGIES else intrinsic.load_pairs(name)
    assert len(rows) == sources.source(name)["expected"]["pairs"]
    assert {len(row) for row in rows} == {4 if name == intrinsic.ANALOGIES else 3}
    assert all(word == word.lower() for row in rows for word in row if isinstance(word, str))


def test_every_set_has_an_entry_and_the_other_readers_leave_it_alone(laid, capsys):
    entries = [name for name, entry in sources.all_sources().items() if entry.get("kind") == "judged"]
    assert entries == list(intrinsic.SETS)
    with pytest.raises(StudyError, match="men is a judged set, not a corpus"):
        corpora.load_corpus("men")
    assert main(["data", "check", "men"]) == 0 and main(["data", "get", "men"]) == 0
    assert "as expected" in (said := capsys.readouterr().out) and "men is at hand" in said
    laid["men"].write_text("word1 word2 score\n")
    assert main(["data", "check", "men"]) == 1 and "another version" in capsys.readouterr().out


def test_a_missing_set_is_named_once_and_the_others_go_on(laid, capsys):
    found = intrinsic.evaluate(vectors())
    assert found["measure"].tolist() == ["simlex-999", "men", "rare-words", "google-analogies"]
    intrinsic.evaluate(vectors())
    assert capsys.readouterr().err.count("wordsim-353 is not at hand: combined.tab") == 1
    for path in laid.values():
        path.unlink()
    with pytest.raises(
        StudyError, match="no set of judgements is at hand.*Go to https.*MEN/ in RTL_DATA_DIR"
    ):
        intrinsic.evaluate(vectors())


def test_a_pair_without_a_vector_is_not_a_zero(laid):
    own = vectors()
    unit = {word.lower(): row / np.linalg.norm(row) for word, row in zip(own.words, own.table)}
    known = [("cat", "dog", 8.5), ("cow", "king", 0.5), ("man", "woman", 6)]
    by_hand = spearmanr([unit[a] @ unit[b] for a, b, _ in known], [j for *_, j in known]).statistic
    assert intrinsic.similarity(own, "simlex-999") == (pytest.approx(by_hand), 3, 4)
    rho, used, total = intrinsic.similarity(own, "rare-words")
    assert np.isnan(rho) and (used, total) == (1, 2)


def test_pairs_agree_with_gensim(laid, tmp_path):
    from gensim.models import KeyedVectors

    vectors().to_word2vec(tmp_path / "v.txt")
    theirs = KeyedVectors.load_word2vec_format(tmp_path / "v.txt")
    _, spearman, missing = theirs.evaluate_word_pairs(laid["men"], delimiter=" ")
    rho, used, total = intrinsic.similarity(vectors(), "men")
    assert rho == pytest.approx(spearman.statistic) and missing == 100 * (total - used) / total == 0


@pytest.mark.parametrize("seed", range(4))
def test_analogies_agree_with_gensim(laid, tmp_path, seed, monkeypatch):
    from gensim.models import KeyedVectors

    monkeypatch.setattr(intrinsic, "QUESTIONS_AT_ONCE", 1)
    table = vectors(seed=seed).table.copy()
    table[6] = (
        table[5] + 0.7 * (table[4] - table[3]) + 0.5 * table[seed]
    )  # more or less woman = man + queen - king
    own = Embeddings(WORDS, table)
    own.to_word2vec(tmp_path / "v.txt")
    score, sections = KeyedVectors.load_word2vec_format(tmp_path / "v.txt").evaluate_word_analogies(
        str(laid["google-analogies"])
    )
    asked = [q for section in sections[:-1] for kind in ("correct", "incorrect") for q in section[kind]]
    assert intrinsic.analogies(own) == (pytest.approx(score), len(asked), 3) and len(asked) == 2


def test_a_table_without_the_words_has_no_score(laid):
    other = Embeddings(("x", "y"), np.eye(2, dtype=np.float32))
    value, used, total = intrinsic.analogies(other)
    assert np.isnan(value) and (used, total) == (0, 3)


def test_a_record_has_a_row_a_table_and_set(laid, monkeypatch):
    tables = {name: vectors(seed=i) for i, name in enumerate(geometry.TABLES)}
    monkeypatch.setattr(intrinsic, "tables", lambda record: tables)
    found = intrinsic.measure(None)
    assert list(found) == ["table", "measure", "value", "used", "total"] and len(found) == 12
    row = found[(found["table"] == "finetuned") & (found["measure"] == "men")].iloc[0]
    assert (row["value"], row["used"]) == intrinsic.similarity(tables["finetuned"].centred(), "men")[:2]


# Gains, and what foretells them


def study(gains, seeds=2, noise=0.0):
    """A study whose arms save these shares of the baseline's perplexity (a dict of source -> share)."""
    rng, runs = np.random.default_rng(0), []
    for seed in range(seeds):
        for source, gain in {"random": 0.0, **gains}.items():
            nats = 40 * (5 + np.log(1 - gain - noise * rng.standard_normal()))
            runs.append(made(BASE.replace(source=source, seed=seed), (nats / 4, 3 * nats / 4)))
    return results(*runs)


def findings_of(study, value):
    """Returns findings, one measure by name, of a function of (gain in per cent, index of the record)."""
    found = intrinsic.gains(study)
    rows = [
        (r, "pretrained", "purity", value(g, i))
        for i, (r, g) in enumerate(zip(found["record"], found["gain_percent"]))
    ]
    return pd.DataFrame(rows, columns=["record", "table", "measure", "value"])


GAINS = {
    "word2vec-sg": 0.12, "fasttext": 0.1, "lsa": 0.08, "lm": 0.06, "bilm": 0.05, "permuted:word2vec-sg": -0.01,
    "glove": 0.03, "masked-lm": 0.02, "domain-lsa": 0.04,
}  # fmt: skip


def test_gains_are_shares_of_the_baselines_perplexity():
    found = intrinsic.gains(study(GAINS)).set_index(["arm", "seed"])["gain_percent"]
    for source, gain in GAINS.items():
        assert found[source].tolist() == pytest.approx([100 * gain] * 2)
    arms = list(dict.fromkeys(found.index.get_level_values("arm")))
    assert arms[:3] == ["random", "word2vec-sg", "fasttext"] and arms[-1] == "permuted:word2vec-sg"


def test_arms_that_enter_in_another_way_are_left_out_and_another_encoder_is_named():
    same = [made(BASE), made(BASE.replace(source="lm", encoder="shared"), (45.0, 140.0))]
    others = [made(BASE.replace(source="lm", input_mode="frozen")), made(BASE.replace(model="unigram"))]
    found = intrinsic.gains(results(*same, *others))
    assert found["arm"].tolist() == ["random", "lm (encoder shared)"]


def test_results_without_such_arms_or_of_two_settings_are_refused():
    with pytest.raises(StudyError, match=r"hold 0 models .* load_results\(\).of\('laptop'\)"):
        intrinsic.gains(results(made(BASE)))
    two = [made(BASE.replace(source=s, window=w)) for s in ("random", "lsa") for w in (20, 35)]
    with pytest.raises(StudyError, match="hold 4 models .* 2 arms; one setting"):
        intrinsic.gains(results(*two))


def test_a_summary_has_the_mean_of_seeds_and_students_interval():
    results = study(GAINS, seeds=3)
    found = findings_of(results, lambda gain, i: gain + i % 3).assign(used=[*range(30)], total=99)
    row = intrinsic.summary(found, results).set_index("arm").loc["lsa"]
    half = 4.302653 / 3**0.5  # t with two degrees of freedom; the values are 8, 9 and 10
    assert row[["mean", "low", "high"]].tolist() == pytest.approx([9, 9 - half, 9 + half])
    assert (row["n_seeds"], row["table"], row["used"], row["total"]) == (3, "pretrained", 12, 99)
    one = intrinsic.summary(findings_of(one := study(GAINS, 1), lambda gain, i: gain), one)
    assert one["low"].isna().all() and one["mean"].notna().all()


def test_a_measure_that_follows_the_gain_is_found_and_one_that_does_not_is_not():
    results = study(GAINS, seeds=3, noise=0.003)
    rng = np.random.default_rng(1)
    follows = intrinsic.correlations(findings_of(results, lambda gain, i: gain**3), results).set_index("over")
    assert follows.loc["all", "low"] > 0.6 and follows.loc["all", "rho"] == pytest.approx(1)
    assert follows["n_arms"].to_dict() == {"all": 10, "sources": 8} and (follows["n_seeds"] == 3).all()
    chance = intrinsic.correlations(findings_of(results, lambda gain, i: rng.random()), results)
    assert (chance["low"] < 0).all() and (chance["high"] > 0).all()


def test_rho_is_that_of_the_means_over_seeds():
    results = study(GAINS, noise=0.02)
    rng = np.random.default_rng(2)
    found = findings_of(results, lambda gain, i: gain + 5 * rng.standard_normal())
    means = (
        found.merge(intrinsic.gains(results), on="record").groupby("arm")[["value", "gain_percent"]].mean()
    )
    (row,) = [r for _, r in intrinsic.correlations(found, results).iterrows() if r["over"] == "all"]
    assert row["rho"] == pytest.approx(spearmanr(*means.T.to_numpy()).statistic)
    assert -1 <= row["low"] < row["rho"] < row["high"] <= 1


def test_an_arm_without_the_measure_does_not_count_and_three_are_too_few():
    results = study(GAINS)
    found = findings_of(results, lambda gain, i: gain)
    fewer = intrinsic.correlations(found[found["record"] != found["record"].iloc[2]], results)
    assert fewer.set_index("over").loc["all", "n_arms"] == 9
    with pytest.raises(StudyError, match="purity is known of 3 arms with all seeds"):
        intrinsic.correlations(found.head(6), results)


def test_the_interval_covers_what_it_says():
    """Arms drawn from a population whose rank correlation is known: 90 % or more of the intervals hold it."""
    rng, hits = np.random.default_rng(3), []
    cov = 0.7
    truth = 6 / np.pi * np.arcsin(cov / 2)  # Spearman's rho of a normal pair
    for _ in range(60):
        both = rng.multivariate_normal([0, 0], [[1, cov], [cov, 1]], size=20)
        frame = pd.DataFrame(both, columns=["value", "gain_percent"]).assign(arm=range(20), seed=0)
        row = intrinsic._correlation(frame, "x")
        hits.append(row["low"] <= truth <= row["high"])
    assert np.mean(hits) > 0.85


# Figures


@pytest.fixture
def summary():
    results = study(GAINS, seeds=3)
    kinds = {"pretrained": 1.0, "finetuned": 0.5, "permuted": 0.0}
    parts = [
        findings_of(results, lambda gain, i, k=k: k * gain + 0.01 * (i % 3)).assign(table=t)
        for t, k in kinds.items()
    ]
    men = findings_of(results, lambda gain, i: gain / 100).assign(measure="men", used=170, total=3000)
    chance = parts[0].assign(measure="purity_chance", value=2.0)
    yield intrinsic.summary(pd.concat([*parts, chance, men]), results)
    from matplotlib import pyplot as plt

    plt.close("all")


def test_a_measure_is_drawn_for_every_arm_and_table(summary):
    ax = figures.plot_measure(summary, "purity")
    arms = [tick.get_text() for tick in ax.get_yticklabels()]
    assert arms[0] == "random" and arms[-1] == "permuted:word2vec-sg" and len(arms) == 10
    lines = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert lines["pre-trained"][arms.index("lsa")] == pytest.approx(8.01)
    assert lines["fine-tuned"][arms.index("lsa")] == pytest.approx(4.01)
    assert "dashed: chance, 2.00" in ax.get_xlabel() and "mean of 3 seeds; line: 95 %" in ax.get_xlabel()
    said = figures.describe_measure(summary, "purity")
    assert (
        "in 10 arms" in said and "pre-trained from −0.99 (permuted:word2vec-sg) to 12 (word2vec-sg)" in said
    )
    assert "In 9 arms the interval of the table does not meet" in said
    with pytest.raises(StudyError, match="unknown measure 'purities'. Did you mean purity"):
        figures.plot_measure(summary, "purities")


def test_pairs_stand_beside_a_correlation_with_judgements(summary):
    assert "MEN (ρ), 170 pairs of 3,000" in figures.plot_measure(summary, "men").get_xlabel()
    assert "170 pairs of 3,000" in (said := figures.describe_measure(summary, "men"))
    assert "a ρ within ±0.15 is no more than chance" in said


def test_correlations_are_drawn_with_their_intervals_and_say_no():
    from matplotlib import pyplot as plt

    columns = ["measure", "over", "rho", "low", "high", "n_arms", "n_seeds"]
    rows = [("purity", "all", 0.8, 0.4, 0.9, 17, 3), ("men", "all", -0.2, -0.7, 0.5, 17, 3)]
    frame = pd.DataFrame([*rows, ("purity", "sources", 0.5, -0.1, 0.9, 13, 3)], columns=columns)
    ax = figures.plot_correlations(frame)
    lines = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert lines["all arms (17)"].tolist() == [0.8, -0.2]
    assert lines["pre-trained sources alone (13)"][0] == 0.5
    said = figures.describe_correlations(frame)
    assert "Over all arms (17), intervals without zero: purity +0.80 (+0.40 to +0.90); of 2 measures" in said
    assert "alone (13), intervals without zero: none" in said
    plt.close("all")
