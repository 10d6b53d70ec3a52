"""Data-size curves: effects that `compare` has too, changes, slopes and ends against plain loops; the figure."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rtl_core import compare
from rtl_core.analysis.curves import ALONG, size_curve, size_trend
from rtl_core.comparison import effect
from rtl_core.config import Experiment
from rtl_core.figures.curves import describe_size_curve, plot_size_curve, short
from rtl_core.report import study_figure
from rtl_core.results import DOCUMENT_COLUMNS, Record, Results
from rtl_core.storage import StudyError
from rtl_core.studies import STUDY_SIZES, grid
from rtl_core.tables import labels

N_DOCUMENTS, SEEDS, SIZES = 30, (0, 1, 2), (1000, 2000, 4000, 8000)
TOKENS = np.random.default_rng(0).integers(50, 400, N_DOCUMENTS)


def made(e, nats_a_token, n_documents=N_DOCUMENTS):
    """A record whose documents cost about so many nats a token, and its sums by document."""
    rng = np.random.default_rng([e.seed, e.lm_tokens, e.pretrain_tokens or 0, len(e.source)])
    names, tokens = [f"d{i:02}" for i in range(n_documents)], TOKENS[:n_documents]
    nats = tokens * (nats_a_token + 0.01 * rng.standard_normal(n_documents))
    columns = dict.fromkeys(("nats_document", "nats_stream", "nats_sentence"), nats)
    documents = pd.DataFrame({"document": names, "domain": "x", "tokens": tokens, **columns})
    text = {"corpus": e.corpus, "corpus_fingerprint": "f", "vocab_size": 9, "lm_tokens": e.lm_tokens + 3}
    text |= {"unk_share": 0.0, "extra_tokens": 0}
    read = {"provenance": {"tokens_read": e.pretrain_tokens or 20_000}}
    record = Record(e.to_dict(), e.identity("f"), text=text, pretrained=read, converged=True)
    return record, documents.assign(record=record.name)


def results(pairs):
    records, frames = zip(*pairs)
    return Results(list(records), pd.concat(frames, ignore_index=True)[["record", *DOCUMENT_COLUMNS]])


def by_lm_size(gain, seeds=SEEDS, sizes=SIZES):
    """Random vectors at log-falling perplexities, and a source that is `gain(doublings)` nats better."""
    base = Experiment()
    return results([
        made(base.replace(source=source, lm_tokens=n, seed=seed), 5 - 0.2 * k + 0.01 * seed - better(k))
        for k, n in enumerate(sizes) for seed in seeds
        for source, better in (("random", lambda k: 0), ("word2vec-sg", gain))
    ])  # fmt: skip


def by_pretraining_size():
    base = Experiment(lm_tokens=4000)
    pairs = [made(base.replace(seed=seed), 5) for seed in SEEDS]
    for k, n in enumerate((1000, 4000, None)):
        pairs += [made(base.replace(source="lsa", pretrain_tokens=n, seed=s), 5 - 0.05 * k) for s in SEEDS]
    return results(pairs)


@pytest.fixture(scope="module")
def falling():
    return by_lm_size(lambda k: 0.2 - 0.04 * k)


def test_effects_and_perplexities_are_those_of_compare(falling):
    curve = size_curve(falling, "lm_tokens")
    table = compare(falling).sort_values("lm_tokens")
    arms, base = table[table["role"] == "arm"], table[table["role"] == "baseline"]
    assert curve["tokens"].tolist() == [n + 3 for n in SIZES] == arms["lm_tokens_used"].tolist()
    assert curve["lm_tokens"].tolist() == curve["tokens"].tolist()
    for name in ("effect_percent", "low_percent", "high_percent", "n_seeds"):
        assert np.allclose(curve[name], arms[name])
    assert np.allclose(curve["baseline_perplexity"], base["perplexity"])


def plain_gains(found, size, source):
    """Nats beyond the baseline's of each seed and document, by plain loops."""
    named = {
        (r.experiment["lm_tokens"], r.experiment["source"], r.experiment["seed"]): r for r in found.records
    }
    sums = {
        name: rows.set_index("document")["nats_document"] for name, rows in found.documents.groupby("record")
    }

    def nats(source, seed, i):
        return sums[named[size, source, seed].name][f"d{i:02}"]

    return np.array([[nats(source, s, i) - nats("random", s, i) for s in SEEDS] for i in range(N_DOCUMENTS)])


def test_a_change_is_the_difference_of_two_effects(falling):
    curve = size_curve(falling, "lm_tokens")
    assert curve.filter(like="change").iloc[0].isna().all()
    for before, now, (_, row) in zip(SIZES, SIZES[1:], curve.iloc[1:].iterrows()):
        pair = (plain_gains(falling, n, "word2vec-sg") for n in (now, before))
        expected = effect(*pair, TOKENS)
        assert row["change_percent"] == pytest.approx(expected["effect_percent"])
        assert row["change_low_percent"] == pytest.approx(expected["low_percent"])


def test_the_slope_and_the_end_are_those_of_a_line_through_the_last_three(falling):
    row = size_trend(falling, "lm_tokens").iloc[0]
    means = [plain_gains(falling, n, "word2vec-sg").mean(1).sum() / TOKENS.sum() for n in SIZES[1:]]
    slope, level = np.polyfit(np.log2([n + 3 for n in SIZES[1:]]), means, 1)
    assert row["slope_percent"] == pytest.approx(100 * math.expm1(slope))
    assert row["slope_low_percent"] < row["slope_percent"] < row["slope_high_percent"]
    assert (row["smallest"], row["largest"]) == (2003, 8003)
    end = 2 ** (-level / slope)  # the line is at zero
    assert end <= row["ends"] < 1.2 * end
    assert row["ends_from"] <= row["ends"] <= row["ends_by"]
    assert end == pytest.approx(2**5 * 1000, rel=0.1)  # 0.2 nats less 0.04 a doubling


def test_a_gain_that_lasts_has_no_end_and_one_seed_no_interval():
    lasting = size_trend(by_lm_size(lambda k: 0.2), "lm_tokens").iloc[0]
    assert pd.isna(lasting["ends_by"]) and lasting["farthest"] == 64 * lasting["largest"]
    assert lasting["slope_low_percent"] < 0 < lasting["slope_high_percent"]
    single = by_lm_size(lambda k: 0.2, seeds=(0,))
    assert size_curve(single, "lm_tokens")["low_percent"].isna().all()
    assert (
        size_trend(single, "lm_tokens")[["slope_low_percent", "ends_from", "ends_by"]].isna().all(axis=None)
    )
    assert size_trend(by_lm_size(lambda k: 0.2, sizes=SIZES[:2]), "lm_tokens").empty


def test_pretraining_text_grows_beside_one_baseline():
    found = by_pretraining_size()
    curve = size_curve(found, "pretrain_tokens")
    assert curve["tokens"].tolist() == [1000, 4000, 20_000] and set(curve["lm_tokens"]) == {4003}
    assert curve["baseline_perplexity"].nunique() == 1
    assert np.allclose(curve["effect_percent"], 100 * np.expm1([0, -0.05, -0.1]), atol=0.6)
    table = compare(found)
    assert labels(table)[1:] == [
        "lsa (pre-trained on 1,000 tokens), fine-tuned", "lsa (pre-trained on 4,000 tokens), fine-tuned",
        "lsa, fine-tuned",
    ]  # fmt: skip


def test_what_is_no_curve_is_refused(falling):
    with pytest.raises(StudyError, match="unknown text to follow 'lm_token'. Did you mean lm_tokens"):
        size_curve(falling, "lm_token")
    alone = [r.name for r in falling.records if r.experiment["source"] == "random"]
    with pytest.raises(StudyError, match="no baseline with another arm"):
        size_curve(falling.select(alone), "lm_tokens")
    with pytest.raises(StudyError, match="two arms of lsa read 4,003 tokens"):
        size_curve(by_pretraining_size(), "lm_tokens")
    other = made(Experiment(lm_tokens=500), 5, n_documents=9)
    mixed = Results([*falling.records, other[0]], pd.concat([falling.documents, other[1]]))
    with pytest.raises(StudyError, match="not scored on the same test text"):
        size_curve(mixed, "lm_tokens")


# The figure


@pytest.fixture
def axes():
    yield lambda curve: plot_size_curve(curve, ax=plt.subplots()[1])
    plt.close("all")


def test_every_size_and_interval_is_drawn(falling, axes):
    curve = size_curve(falling, "lm_tokens")
    ax = axes(curve)
    (line,) = [line for line in ax.lines if line.get_gid() == "word2vec-sg"]
    assert line.get_ydata().tolist() == curve["effect_percent"].tolist()
    drawn = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert drawn == curve[["low_percent", "high_percent"]].to_numpy().tolist()
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert ticks[0] == f"1 k\n({curve['baseline_perplexity'][0]:.0f})" and len(ticks) == len(SIZES)
    assert "3 seeds" in ax.get_xlabel() and "language model" in ax.get_xlabel()


def test_where_pretraining_reads_no_more_than_the_model_is_marked(axes):
    curve = size_curve(by_pretraining_size(), "pretrain_tokens")
    ax = axes(curve)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1 k", "4 k", "20 k"]
    assert any(line.get_xdata()[0] == 4003 for line in ax.lines)


def test_the_description_says_what_the_numbers_do(falling):
    words = {along: describe_size_curve(size_curve(each, along), size_trend(each, along))
             for along, each in zip(ALONG, (falling, by_pretraining_size()))}  # fmt: skip
    curve = size_curve(falling, "lm_tokens")
    best = f"{curve['effect_percent'][0]:+.1f} %".replace("-", "−")
    assert f"word2vec-sg: largest gain {best}" in words["lm_tokens"]
    assert "followed beyond what was measured, reaches zero at" in words["lm_tokens"]
    assert "not told apart from zero, by an interval, at no size" in words["lm_tokens"]
    assert "the gain still grows" in words["pretrain_tokens"] and "1 k to 20 k" in words["pretrain_tokens"]
    lasting = by_lm_size(lambda k: 0.2)
    text = describe_size_curve(size_curve(lasting, "lm_tokens"), size_trend(lasting, "lm_tokens"))
    assert "no change with size is established" in text


def test_a_study_of_sizes_is_drawn_as_a_curve_and_every_other_as_arms(falling, axes):
    table = compare(falling)
    ax, words = study_figure(STUDY_SIZES["lm-sizes"], falling, table)
    assert "language model" in ax.get_xlabel() and words.startswith("Lines of the effect")
    one = falling.select(r.name for r in falling.records if r.experiment["lm_tokens"] == 8000)
    ax, words = study_figure(STUDY_SIZES["laptop"], one, compare(one))
    assert "test perplexity" in ax.get_xlabel() and words.startswith("Dot plot")


def test_the_studies_of_sizes_change_what_grows_and_nothing_else():
    for name, sizes in (("lm-sizes", 6), ("pretrain-sizes", 5)):
        arms = [e for e in grid(name) if e.model == "lstm" and e.seed == 0]
        along = STUDY_SIZES[name].along
        assert len({getattr(e, along) for e in arms if e.source == "word2vec-sg"}) == sizes >= 5
        assert len({e.replace(**{along: None}, source="random") for e in arms}) == 1
        baselines = {e.lm_tokens for e in arms if e.source == "random"}
        assert baselines == {e.lm_tokens for e in arms}


def test_numbers_of_tokens_are_short():
    assert [short(n) for n in (12, 44_046, 350_595, 999_999, 1_400_000)] == [
        "12",
        "44 k",
        "351 k",
        "1 M",
        "1.4 M",
    ]
