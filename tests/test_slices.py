"""Slices: each token once in every slicing, sums that agree with plain loops, effects that add up to the whole."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_results import ARM, BASE, made, results

from rtl_core import slices
from rtl_core.analysis.significance import headline_effects, slice_effects
from rtl_core.comparison import compare
from rtl_core.config import Experiment
from rtl_core.corpora.vocabulary import EOS, UNK, Encoded, Vocabulary
from rtl_core.figures import (
    describe_slice_table,
    describe_slices,
    plot_slice_table,
    plot_slices,
    style,
)
from rtl_core.findings import save_finding
from rtl_core.results import DOCUMENT_COLUMNS
from rtl_core.storage import StudyError, results_dir

WORDS = (UNK, EOS, "the", "matrix", ".", "3.5", "kernel", "of", "zebra")
VOCABULARY = Vocabulary(WORDS, (9, 90, 2000, 300, 400, 40, 25, 900, 5))
LM_COUNTS = np.array([4, 50, 1000, 99, 100, 9, 0, 400, 0])


def ledger_of(*documents, nats=None):
    """Returns a ledger of documents given as words."""
    words = [word for document in documents for word in document]
    return pd.DataFrame(
        {
            "document": pd.Categorical([f"d{i}" for i, d in enumerate(documents) for _ in d]),
            "position": np.array([i for d in documents for i in range(len(d))], dtype=np.int32),
            "word": np.array([WORDS.index(word) for word in words], dtype=np.int32),
            "domain": np.zeros(len(words), dtype=np.int16),
            "nats_document": np.arange(1, len(words) + 1, dtype=np.float32) if nats is None else nats,
        }
    )


def test_every_slice_by_hand():
    ledger = ledger_of(["the", "matrix", "kernel", ".", EOS, "the", "matrix", UNK], ["zebra", "3.5", "zebra"])
    found = slices.labels(ledger, VOCABULARY, LM_COUNTS).astype(str)
    rare = ["0, but in pre-training 10+", "0, but in pre-training 1–9"]
    assert list(found["frequency"]) == [
        "1,000+", "10–99", rare[0], "100–999", "10–99", "1,000+", "10–99", UNK, rare[1], "1–9", rare[1],
    ]  # fmt: skip
    assert list(found["class"]) == [
        "function", "content", "content", "punctuation", EOS, "function", "content", UNK,
        "content", "number", "content",
    ]  # fmt: skip
    assert list(found["position"]) == [*["0–4"] * 5, *["5–9"] * 3, *["0–4"] * 3]
    assert list(found["recurrence"]) == [
        "other, new", "content, new", "content, new", "other, new", "other, new", "other, again",
        "content, again after 1–19", "other, new", "content, new", "other, new", "content, again after 1–19",
    ]  # fmt: skip
    # what stands before a document is <eos>, which the LM's text has 50 times
    assert list(found["word before"]) == [
        "10–99", "1,000+", "10–99", "0", "100–999", "10–99", "1,000+", "10–99", "10–99", "0", "1–9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "word, kind",
    [
        ("the", "function"), ("doesn", "function"), ("return", "content"), ("e.g.", "content"), ("x", "content"),
        ("3", "number"), ("-0.5", "number"), (".5", "number"), ("0d", "number"), ("...", "punctuation"),
        ("_", "punctuation"), ("∞", "punctuation"), ("-", "punctuation"), (EOS, EOS), (UNK, UNK),
    ],
)  # fmt: skip
def test_the_class_of_a_word(word, kind):
    assert slices.word_class(word) == kind


def test_every_slice_that_can_occur_has_its_place():
    assert all(len(set(names)) == len(names) for names in slices.SLICES.values())
    assert slices.in_order("class", ["<eos>", "content"]) == ["content", "<eos>"]
    assert slices.in_order("domain", ["b", "a"]) == ["a", "b"]


def documents(seed):
    """Returns one to five documents of one to sixty words, drawn at random."""
    rng = np.random.default_rng(seed)
    return [list(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(rng.integers(1, 6))]


@pytest.mark.parametrize("seed", range(25))
def test_every_slicing_is_a_partition(seed):
    drawn, rng = documents(seed), np.random.default_rng(seed)
    n = sum(map(len, drawn))
    ledger = ledger_of(*drawn, nats=rng.gamma(2, 2, n).astype(np.float32))
    counts = rng.integers(0, 3000, len(WORDS))
    found = slices.labels(ledger, VOCABULARY, counts)
    assert list(found) == list(slices.SLICES) and not found.isna().any(axis=None)
    sums = slices.sums(ledger, found)
    for _, part in sums.groupby("slicing"):
        assert part["tokens"].sum() == n
        assert part["nats"].sum() == pytest.approx(ledger["nats_document"].astype(float).sum())
        by_document = part.groupby("document")["nats"].sum()
        expected = ledger.astype({"nats_document": float}).groupby("document", observed=True)["nats_document"]
        assert np.allclose(by_document, expected.sum())


@pytest.mark.parametrize("seed", range(10))
def test_sums_and_distances_equal_plain_loops(seed):
    drawn = documents(seed)
    ledger = ledger_of(*drawn)
    found = slices.labels(ledger, VOCABULARY, LM_COUNTS)
    since, tokens, place = [], {}, 0
    for i, document in enumerate(drawn):
        for j, word in enumerate(document):
            earlier = [k for k in range(j) if document[k] == word]
            since.append(j - earlier[-1] if earlier else 0)
            key = (f"d{i}", "class", str(found["class"].iloc[place]))
            tokens[key] = tokens.get(key, 0) + ledger["nats_document"].iloc[place]
            place += 1
    assert list(slices._since(ledger)) == since
    sums = slices.sums(ledger, found).query("slicing == 'class'").set_index(["document", "slicing", "slice"])
    assert sums["nats"].to_dict() == pytest.approx(tokens)


# Of records


@pytest.fixture
def study():
    """Two arms, two seeds, twelve documents in two domains, their slices kept: the records, and a ledger each."""
    rng = np.random.default_rng(0)
    texts = [list(rng.choice(WORDS, rng.integers(20, 40))) for _ in range(12)]
    ids, domains = [f"d{i}" for i in range(12)], ["x", "y"] * 6
    pairs, ledgers = [], {}
    for e in (BASE, BASE.replace(seed=1), ARM, ARM.replace(seed=1)):
        n = sum(map(len, texts))
        gain = 0.3 if e.source != "random" else 0.0
        ledger = ledger_of(*texts)
        content = slices.labels(ledger, VOCABULARY, LM_COUNTS)["class"] == "content"
        nats = rng.normal(5, 0.05, n) - gain * content + 0.01 * e.seed
        ledger = ledger.assign(nats_document=nats.astype(np.float32))
        whole = ledger.groupby("document", observed=True)["nats_document"].agg(["size", "sum"]).loc[ids]
        columns = dict.fromkeys(
            ("nats_document", "nats_stream", "nats_sentence"), whole["sum"].to_numpy(float)
        )
        sums = pd.DataFrame(
            {"document": ids, "domain": domains, "tokens": whole["size"].to_numpy(), **columns}
        )
        record, _ = made(e)
        save_finding("slices", record.name, slices.sums(ledger, slices.labels(ledger, VOCABULARY, LM_COUNTS)))
        pairs.append((record, sums[list(DOCUMENT_COLUMNS)]))
        ledgers[record.name] = ledger
    return results(*pairs), ledgers


def test_effects_of_slices_add_up_to_the_effect_and_lie_where_the_gain_was_put(study):
    records, _ = study
    found = slice_effects(records)
    whole = compare(records).set_index("role").loc["arm"]
    assert set(found["slicing"]) == {*slices.SLICES, "domain"}
    for _, part in found.groupby("slicing"):
        assert part["share"].sum() == pytest.approx(1)
        assert part["part_nats"].sum() == pytest.approx(whole["effect_nats"], rel=1e-5)
        assert (part["p_holm"].dropna() >= part["p_value"].dropna()).all()
    content = found.set_index("slice").loc["content"]
    assert content["effect_nats"] == pytest.approx(-0.3, abs=0.05) and content["high_nats"] < 0
    assert abs(found.set_index("slice").loc["punctuation", "effect_nats"]) < 0.05


def test_an_effect_of_a_slice_equals_the_difference_of_ledgers(study):
    records, ledgers = study
    names = compare(records).set_index("role")["records"]
    found = slice_effects(records, ["class"]).set_index("slice")["effect_nats"]
    for kind in ("content", "function", UNK):
        per_seed = []
        for seed in (0, 1):
            means = []
            for role in ("arm", "baseline"):
                ledger = ledgers[names[role][seed]]
                wanted = [slices.word_class(WORDS[w]) == kind for w in ledger["word"]]
                means.append(ledger["nats_document"][wanted].astype(float).mean())
            per_seed.append(means[0] - means[1])
        assert found[kind] == pytest.approx(np.mean(per_seed), rel=1e-5)


def test_few_documents_have_no_interval_and_unknown_slicings_are_refused(study):
    records, _ = study
    found = slice_effects(records, ["domain", "recurrence"]).set_index("slice")
    assert list(found.index)[:2] == ["content, new", "content, again after 1–19"]
    assert found.loc["x", ["low_nats", "p_value", "p_holm"]].isna().all()  # six documents
    assert found.loc["content, new", ["low_nats", "p_value", "p_holm"]].notna().all()
    with pytest.raises(StudyError, match="unknown slicing 'frequencies'. Did you mean frequency"):
        slice_effects(records, ["frequencies"])


def test_headlines_are_unions_of_slices(study):
    records, _ = study
    found = headline_effects(records).set_index("slice")
    parts = slice_effects(records, ["frequency"]).set_index("slice")
    rare = [name for name in parts.index if name.startswith("0") or name == "1–9"]
    assert len(rare) == 3
    assert found.loc["rare words", "part_nats"] == pytest.approx(parts.loc[rare, "part_nats"].sum())
    assert found.loc["content words", "effect_nats"] == pytest.approx(-0.3, abs=0.05)
    assert "beyond token 200" not in found.index  # no document is so long


def test_what_was_not_measured_is_said(study):
    records, _ = study
    (results_dir() / "local" / "findings" / "slices-1" / f"{records.records[-1].name}.parquet").unlink()
    with pytest.raises(StudyError, match="slices has not been measured of 1 of 4 records.*--only slices"):
        slice_effects(records)


def test_a_record_is_measured_by_its_own_ledger(monkeypatch):
    ledger = ledger_of(["the", "matrix", "."], ["zebra", EOS])
    record = SimpleNamespace(name="mine", experiment=Experiment().to_dict())
    encoded = Encoded(ledger["word"].to_numpy(), *[np.array([0, 3, 5])] * 3, np.array([-1, -1]), ("d0", "d1"))
    text = SimpleNamespace(test=encoded, vocabulary=VOCABULARY, lm_counts=LM_COUNTS)
    monkeypatch.setattr(slices, "text_of", lambda e: text)
    path = results_dir() / "local" / "mine.ledger.parquet"
    with pytest.raises(StudyError, match="mine.ledger.parquet is missing or not whole.*run it again"):
        slices.measure(record)
    path.parent.mkdir(parents=True)
    ledger.to_parquet(path)
    found = slices.measure(record)
    assert found.dtypes.astype(str).to_dict() == {
        "document": "str", "slicing": "str", "slice": "str", "tokens": "int32", "nats": "float32",
    }  # fmt: skip
    assert found.groupby("slicing")["nats"].sum().unique() == [15.0]
    ledger.iloc[:4].to_parquet(path)
    with pytest.raises(
        StudyError, match="has 4 tokens of another text than the corpus of today, which has 5"
    ):
        slices.measure(record)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StudyError, match="missing or not whole"):
        slices.measure(record)


# Figures


@pytest.fixture
def drawn():
    from matplotlib import pyplot as plt

    with style():
        yield
    plt.close("all")


def table(n_arms=2):
    """Returns effects as `slice_effects` makes them: every arm the same but for a shift."""
    rows = []
    for i in range(n_arms):
        for slicing, names in (("class", ("content", "function")), ("position", ("0–4", "5–9"))):
            for j, name in enumerate(names):
                value = -20.0 + 10 * j + i
                low, high = (math.nan, math.nan) if (i, name) == (1, "5–9") else (value - 2, value + 2)
                ends = {"effect_percent": value, "low_percent": low, "high_percent": high}
                where = {"slicing": slicing, "slice": name, "arm": f"arm {i}", "share": 0.5}
                rows.append(where | ends | {"p_holm": 0.04 + 0.02 * j})
    return pd.DataFrame(rows)


def test_each_arm_has_a_mark_in_each_slice_and_its_interval(drawn):
    ax = plot_slices(table())
    marks = {line.get_label(): line for line in ax.lines if line.get_label().startswith("arm")}
    assert list(marks["arm 1"].get_xdata()) == [-19.0, -9.0, -19.0, -9.0]
    assert {line.get_marker() for line in marks.values()} == {"o", "s"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["content", "function", "0–4", "5–9"]
    segments = [np.asarray(s) for c in ax.collections for s in c.get_segments() if len(s)]
    assert [-21.0, -17.0] in [sorted(segment[:, 0]) for segment in segments]
    assert {"class", "position", "50.0 %"} <= {text.get_text() for text in ax.texts}
    with pytest.raises(StudyError, match="7 arms do not fit into one figure of slices; choose 1 to 6"):
        plot_slices(table(7))


def test_an_interval_far_too_wide_ends_at_the_edge(drawn):
    wide = table()
    wide.loc[0, "high_percent"] = 900.0
    ax = plot_slices(wide)
    assert ax.get_xlim()[1] < 20


def test_the_description_of_slices_says_where_the_ends_are():
    text = describe_slices(table())
    assert "arm 0: from −20.0 % (−22.0 to −18.0) in class content to −10.0 %" in text
    assert "leaves out zero in 4 of 4 slices, 4 of them better" in text
    assert "leaves out zero in 3 of 4 slices" in text  # one has no interval


def test_the_table_of_slices_tells_apart_what_is_established(drawn):
    ax = plot_slice_table(table(8))
    cells = {text.get_text(): text for text in ax.texts}
    assert cells["−20"].get_weight() == "bold" and cells["−10"].get_weight() != "bold"
    unknown = [t for t in ax.texts if t.get_style() == "italic"]
    assert [t.get_text() for t in unknown] == ["−9"]
    assert len(ax.get_yticklabels()) == 8 and len(ax.get_xticklabels()) == 4
    text = describe_slice_table(table(8))
    assert "8 arms by 4 slices" in text and "from −20.0 % (−22.0 to −18.0) in class content (arm 0)" in text
    assert (
        "Of 32 effects 31 have a 95 % interval without zero; after" in text and " 16 are told apart" in text
    )
