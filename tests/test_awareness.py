"""Cut, shuffled and exchanged contexts: against plain loops, and against models whose memory is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_generation import made_model, text
from test_results import by_hand, made, results

from rtl_core import figures
from rtl_core.analysis import awareness
from rtl_core.analysis.awareness import as_documents, chosen_targets, last_nats, longest, summary
from rtl_core.config import Experiment
from rtl_core.corpora.corpus import Document
from rtl_core.corpora.vocabulary import EOS_ID
from rtl_core.embeddings import Embeddings
from rtl_core.findings import model_dir
from rtl_core.results import Record
from rtl_core.scoring import token_nats
from rtl_core.storage import StudyError
from rtl_core.transfer import build_model, save_model

__all__ = ["text"]  # a fixture
CHANGED = ("shuffled", "transplanted")
BOUNDARIES = (20, 50)  # of INTACT, those that the tiny documents of about 100 tokens are longer than


pytestmark = pytest.mark.usefixtures("closed_figures")


@pytest.fixture(scope="module")
def model(text):
    return made_model(text)


def naive_nats(model, context, target):
    """-log p of a word after `<eos>` and these words, one at a time, by the whole softmax."""
    state = None
    with torch.no_grad():
        for word in [EOS_ID, *context]:
            hidden, state = model.states(torch.tensor([[word]]), state)
        logits = hidden[0, 0] @ model.output.weight.T + model.output.bias
    return -float(torch.log_softmax(logits, 0)[target])


def targets_of(text, n=50, seed=0):
    return chosen_targets(text, n, np.random.default_rng(seed))


def test_the_last_word_of_a_sequence_against_a_plain_loop(model, text):
    sequences = [text.test.tokens[a : a + n] for a, n in ((0, 1), (5, 2), (9, 30), (100, 7))]
    found = last_nats(model, sequences)
    assert np.allclose(found, [naive_nats(model, s[:-1], s[-1]) for s in sequences], atol=1e-5)


def test_the_number_of_contexts_side_by_side_changes_no_number(model, text, monkeypatch):
    sequences = awareness.truncated(text.test, targets_of(text.test), 40)
    found = last_nats(model, sequences)
    monkeypatch.setattr(awareness, "LANES", 3)
    monkeypatch.setattr(awareness, "WINDOW", 16)
    assert np.allclose(last_nats(model, sequences), found, atol=1e-5)


def test_the_full_context_is_that_of_the_ledger(model, text):
    targets, ledger = targets_of(text.test), token_nats(model, text.test, "document")
    full = last_nats(model, awareness.truncated(text.test, targets, len(text.test)))
    assert np.allclose(full, ledger[targets], atol=1e-5)
    assert len(full) > 50 and not np.allclose(full, ledger[targets - 1], atol=1e-2)
    first = text.test.document_starts[:-1]  # behind `<eos>` and nothing else
    assert np.allclose(last_nats(model, awareness.truncated(text.test, first, 5)), ledger[first], atol=1e-5)


def test_words_stand_behind_enough_others_and_in_every_document_that_has_some(text):
    targets = targets_of(text.test, 80)
    document = text.test.document_of(targets)
    assert (targets - text.test.document_starts[document]).min() >= 80 and (np.diff(targets) > 0).all()
    free = np.maximum(np.diff(text.test.document_starts) - 80, 0)
    counts = np.bincount(document, minlength=len(free))
    assert counts.tolist() == np.minimum(free, awareness.PER_DOCUMENT).tolist()
    assert np.array_equal(targets, targets_of(text.test, 80))
    assert not np.array_equal(targets_of(text.test, 20), targets_of(text.test, 20, seed=1))


def test_a_cut_context_is_the_last_words_of_the_document(text):
    targets = targets_of(text.test, 20)
    for target, sequence in zip(targets, awareness.truncated(text.test, targets, 7)):
        assert sequence.tolist() == text.test.tokens[target - 7 : target + 1].tolist()


@pytest.mark.parametrize("n", BOUNDARIES)
def test_shuffled_words_are_the_same_words_in_another_order(text, n):
    targets, rng = targets_of(text.test), np.random.default_rng(1)
    whole = awareness.truncated(text.test, targets, len(text.test))
    moved = 0
    for before, after in zip(whole, awareness.shuffled(text.test, targets, n, rng)):
        assert np.array_equal(before[-n - 1 :], after[-n - 1 :])
        assert np.array_equal(np.sort(before), np.sort(after))
        moved += not np.array_equal(before, after)
    assert moved > 0.9 * len(targets)


@pytest.mark.parametrize("n", BOUNDARIES)
def test_a_transplanted_context_is_of_a_document_of_another_domain(text, n):
    test, targets = text.test, targets_of(text.test)
    hosts = {
        int(d): test.tokens[test.document_starts[d] : test.document_starts[d + 1]]
        for d in test.document_of(targets)
    }
    others = set()
    for target, sequence in zip(targets, awareness.transplanted(test, targets, n, np.random.default_rng(1))):
        own = int(test.document_of(target))
        assert np.array_equal(sequence[-n - 1 :], test.tokens[target - n : target + 1])
        given = sequence[: -n - 1]
        fitting = {d for d, words in hosts.items() if np.array_equal(words[: len(given)], given)}
        assert {test.domains[d] for d in fitting} != {test.domains[own]}
        if len(given) > 20:  # shorter ones may begin several documents
            (other,) = fitting
            assert len(given) == min(target - n - test.document_starts[own], len(hosts[other]))
            others.add(other)
    assert others == set(hosts)


def test_documents_without_domains_get_any_other_document():
    text = as_documents([np.full(60, 2 + d) for d in range(3)])  # a document is one word, again and again
    targets = targets_of(text, 30)
    found = awareness.transplanted(text, targets, 10, np.random.default_rng(0))
    assert all(sequence[0] != sequence[-1] for sequence in found)


def test_the_longest_context_is_one_that_enough_documents_have():
    lengths = np.array([10] * 5 + [60] * 40 + [300] * 29)
    assert longest(lengths, (5, 10, 50, 200), 30) == 50
    assert longest(np.append(lengths, 300), (5, 10, 50, 200), 30) == 200
    assert longest(np.array([30, 30, 8]), (5, 20), 30) == 20  # half of a small text's
    with pytest.raises(StudyError, match="needs at least 2 longer documents and found 1 of 3"):
        longest(np.array([3, 5, 6]), (5, 10), 30)


def nats_of(text, sequences_to_nats, monkeypatch):
    """What is found of a model that is a rule: from a sequence of words to the loss of its last word."""
    monkeypatch.setattr(
        awareness,
        "last_nats",
        lambda _, sequences: np.array([float(sequences_to_nats(s)) for s in sequences]),
    )
    found = awareness.losses(None, text.test, seed=0)
    whole = found[found["kind"] == "full"].set_index("document")["nats"]
    found["lost"] = found["nats"] - found["document"].map(whole)
    return found.groupby(["kind", "n"])["lost"].agg(lambda lost: abs(lost).max())


def test_a_model_that_remembers_six_words_loses_by_cutting_five_only(text, monkeypatch):
    lost = nats_of(text, lambda s: s[-7:] @ np.arange(1, len(s[-7:]) + 1), monkeypatch)
    assert lost["truncated"].loc[:5].min() > 0 and lost["truncated"].loc[10:].max() == 0
    assert lost["shuffled"].max() == lost["transplanted"].max() == 0


def test_a_model_that_counts_words_loses_nothing_by_their_order(text, monkeypatch):
    lost = nats_of(text, lambda s: np.square(np.bincount(s)).sum() / len(s), monkeypatch)
    assert lost["shuffled"].max() == 0 < lost["transplanted"].min()
    assert lost["truncated"].min() > 0


def test_a_model_that_knows_the_order_loses_by_it(text, monkeypatch):
    assert nats_of(text, lambda s: s @ np.arange(len(s)), monkeypatch)["shuffled"].min() > 0


def test_all_contexts_are_of_the_same_words(model, text):
    found = awareness.losses(model, text.test, seed=0)
    counts = found.pivot(index="document", columns=["kind", "n"], values="tokens")
    assert counts.notna().all(axis=None) and (counts.nunique(axis=1) == 1).all()
    cut = [("truncated", n) for n in (1, 2, 5, 10, 20, 50, 100)]
    assert set(counts) == {("full", 0), *cut, *((kind, n) for kind in CHANGED for n in BOUNDARIES)}
    assert found.equals(awareness.losses(model, text.test, seed=0))
    assert not found["nats"].equals(awareness.losses(model, text.test, seed=1)["nats"])


# Of a record


def test_a_record_is_measured_by_its_own_model(model, text, monkeypatch):
    e = Experiment(source="word2vec-sg", hidden_size=8, n_samples=8, input_rms=3.0)
    record = Record(e.to_dict(), "0" * 64)
    monkeypatch.setattr(awareness, "text_of", lambda _: text)
    with pytest.raises(StudyError, match="does not exist"):
        awareness.measure(record)
    save_model(model_dir(record.name), model, text.vocabulary, e, "whitespace")
    assert awareness.measure(record).equals(awareness.losses(model, text.test, seed=0))
    grown = text.vocabulary.build([Document("a", None, "train", ("soup",))])
    monkeypatch.setattr(
        awareness, "text_of", lambda _: type(text)(text.corpus, grown, text.train, text.valid, text.test)
    )
    with pytest.raises(
        StudyError, match=f"knows 24 words of another text.* delete the record {record.name}.json and run"
    ):
        awareness.measure(record)


def test_what_has_no_state_or_is_told_of_the_text_is_refused(text):
    bound = Record(Experiment(model="unigram").to_dict(), "0" * 64)
    with pytest.raises(StudyError, match=r"\(unigram, done\) has no recurrent state"):
        awareness.measure(bound)
    e = Experiment(hidden_size=8, context_feature="lsa-history")
    told = Record(e.to_dict(), "0" * 64)
    vectors = Embeddings(text.vocabulary.words, np.eye(24, 8, dtype=np.float32))
    with_features = build_model(e, text.vocabulary, vectors, text.lm_counts, n_features=3)
    save_model(model_dir(told.name), with_features, text.vocabulary, e, "whitespace")
    with pytest.raises(StudyError, match="is told of the preceding text by features"):
        awareness.measure(told)


# What it says of arms


def found_of(pairs):
    """Findings of two documents of 4 and 12 words: full 5 nats a word, cut to 5 words so much more, by seed."""
    parts = []
    for (record, _), more in zip(pairs, ((0.1, 0.1), (0.1, 0.1), (0.3, 0.3), (0.5, 0.5))):
        for kind, n, extra in (("full", 0, (0, 0)), ("truncated", 5, more)):
            nats = [(5 + e) * count for e, count in zip(extra, (4, 12))]
            rows = {"document": ["a", "b"], "tokens": [4, 12], "nats": nats}
            parts.append(pd.DataFrame(rows | {"record": record.name, "kind": kind, "n": n}))
    return pd.concat(parts, ignore_index=True)


def test_losses_and_differences_by_hand():
    table = summary(results(*by_hand()), found_of(by_hand()))
    base, arm = table.iloc[0], table.iloc[1]
    assert (base["role"], arm["role"], arm["kind"], arm["n"]) == ("baseline", "arm", "truncated", 5)
    assert (arm["documents"], arm["count"], arm["n_seeds"]) == (2, 16, 2)
    assert base["value"] == pytest.approx(0.1) and np.isnan(base["difference"])
    assert arm["value"] == pytest.approx(0.4) and arm["difference"] == pytest.approx(0.3)
    half = 12.7062 * np.std([0.2, 0.4], ddof=1) / math.sqrt(2)  # the two documents do not differ
    assert arm["difference_low"] == pytest.approx(0.3 - half) and arm["difference_high"] == pytest.approx(
        0.3 + half
    )
    assert arm["p_holm"] == pytest.approx(arm["p_value"]) and arm["p_value"] > 0.05


def test_losses_themselves_keep_the_full_context():
    table = summary(results(*by_hand()), found_of(by_hand()), lost=False).set_index(["role", "kind"])
    assert (
        table.loc[("arm", "full"), "value"] == pytest.approx(5)
        and table.loc[("arm", "full"), "difference"] == 0
    )
    assert table.loc[("arm", "truncated"), "difference"] == pytest.approx(0.3)


def test_arms_that_were_not_measured_are_left_out():
    pairs = by_hand()
    findings = found_of(pairs)
    other = [made(Experiment(lm_tokens=1000, source="lsa", seed=s)) for s in (0, 1)]
    assert len(summary(results(*pairs, *other), findings)) == 2
    no_base = findings[findings["record"] != pairs[0][0].name]
    with pytest.raises(StudyError, match="no baseline was measured"):
        summary(results(*pairs), no_base)


def test_two_groups_of_comparison_are_refused():
    pairs = [*by_hand(), *(made(Experiment(lm_tokens=None, source=s)) for s in ("random", "lsa"))]
    findings = pd.concat([found_of(by_hand()), found_of(pairs[4:])])
    with pytest.raises(
        StudyError, match="records are of 2 .*docstrings, 1000; docstrings, all.; select the records of one"
    ):
        summary(results(*pairs), findings)
    assert len(summary(results(*pairs), found_of(by_hand()))) == 2  # of one group nothing was measured


# The figure


def curves(arms=("random", "lsa", "glove"), ns=(5, 20, 50)):
    """A table as `summary` makes it: what is lost falls with n, faster in the baseline."""
    rows = []
    for place, name in enumerate(arms):
        for n in ns:
            value, apart = (1 + place) / n, place / n
            interval = (apart - 0.1, apart + 0.1) if name != "lsa" else (apart / 2, 2 * apart)
            row = {"kind": "truncated", "n": n, "arm": f"{name}, fine-tuned", "n_seeds": 3, "documents": 124}
            row |= {"role": "arm" if place else "baseline", "count": 1970, "p_holm": 0.01 if n == 5 else 0.5}
            row |= {"value": value, "value_low": value / 2, "value_high": 2 * value}
            differences = (apart, *interval) if place else (np.nan,) * 3
            rows.append(row | dict(zip(("difference", "difference_low", "difference_high"), differences)))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("column, n_arms", [("value", 3), ("difference", 2)])
def test_curves_show_each_arm_with_its_intervals_and_name(column, n_arms):
    table = curves()
    ax = figures.plot_awareness(table, column=column)
    drawn = {line.get_gid(): line for line in ax.lines if str(line.get_gid()).endswith("fine-tuned")}
    assert len(drawn) == n_arms
    for arm, line in drawn.items():
        rows = table[table["arm"] == arm]
        assert np.allclose(line.get_ydata(), rows[column])
        assert np.allclose(np.log(line.get_xdata()), np.log(rows["n"]), atol=0.08)
    ends = np.sort(np.concatenate([[p[:, 1].min() for p in c.get_segments()] for c in ax.collections]))
    assert np.allclose(ends, np.sort(table[f"{column}_low"].dropna()))
    names = [t for t in ax.texts if t.get_text() in ("random", "lsa", "glove")]
    boxes = sorted((t.get_window_extent() for t in names), key=lambda box: box.y0)
    assert len(names) == n_arms and all(low.y1 < high.y0 for low, high in zip(boxes, boxes[1:]))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["5", "20", "50"]
    assert (ax.get_yscale() == "log") == (column == "value")


def test_the_description_claims_what_intervals_support():
    said = figures.describe_awareness(curves(), column="difference")
    assert "lsa, fine-tuned: 0.200 at 5, 0.050 at 20, 0.020 at 50" in said and "random" not in said
    assert (
        "interval of the difference: lsa, fine-tuned at 5, 20, 50; glove, fine-tuned at 5; by Holm's" in said
    )
    assert "numbers of tokens: 2 of these 4." in said
    nothing = curves().assign(difference_low=-1.0)
    assert "of the difference: nowhere; by Holm's" in figures.describe_awareness(nothing)


def test_counts_by_rank_are_called_a_line_by_nobody():
    assert "line" not in figures.describe_ranks([5, 5, 5, 1])


def test_too_many_arms_and_kinds_are_refused():
    with pytest.raises(StudyError, match="8 arms do not fit into one figure of curves; choose at most 7"):
        figures.plot_awareness(curves(tuple("abcdefgh")))
    mixed = pd.concat([curves(), curves().assign(kind="shuffled")])
    with pytest.raises(StudyError, match=r"one kind, but the table holds \['shuffled', 'truncated'\]"):
        figures.plot_awareness(mixed)
