"""Limits of topicworld: against enumeration, closed forms and long samples; a trained model; the share captured."""

from dataclasses import replace
from itertools import pairwise, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rtl_core import Experiment, Record, compare, figures, load_results, run_all
from rtl_core.analysis import awareness
from rtl_core.analysis import limits as module
from rtl_core.analysis.limits import (
    available,
    between,
    captured,
    joint_log_probabilities,
    last_words_nats,
    law_over,
    limits,
    preceded_nats,
)
from rtl_core.corpora.topicworld import World, law_of, sampled
from rtl_core.corpora.vocabulary import Encoded, Vocabulary
from rtl_core.findings import load_findings, save_finding
from rtl_core.results import Results
from rtl_core.storage import StudyError
from rtl_core.texts import text_of

TINY = World(n_domains=2, content_words=2, function_words=1, overlap=0.2, noise=0.3)  # 16 words, 4 types
SMALL = "topicworld:n_domains=4,content_words=6,function_words=4,n_documents=160,document_tokens=120"
SIZES = (0, 1, 2, 3)


def encoded(documents) -> Encoded:
    """Documents of word ids; one paragraph, one line, no labels."""
    starts = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    names = tuple(map(str, range(len(documents))))
    return Encoded(
        np.concatenate(documents), starts, starts, starts, np.zeros(len(documents), dtype=int), names
    )


def even(law, text) -> np.ndarray:
    """What is believed of the types before the first word."""
    return np.full((len(text.document_ids), len(law.types)), 1 / len(law.types))


def all_limits(law, text) -> dict:
    inferred = preceded_nats(law, text, even(law, text))
    return {"inferred": inferred, **last_words_nats(law, text, SIZES, inferred)}


def enumerated(law, words, seen) -> float:
    """P(those words that are seen), summed over every type and every sequence of classes."""
    paths = np.array(list(product(range(len(law.transitions)), repeat=len(words))))
    chance = law.transitions[np.column_stack([np.zeros(len(paths), dtype=int), paths[:, :-1]]), paths].prod(1)
    total = 0.0
    for emissions in law.emissions:
        factors = [emissions[paths[:, t], w] for t, w in enumerate(words) if seen[t]]
        total += float(chance @ np.prod(factors, axis=0)) / len(law.types)
    return total


# The same number in two ways


def test_limits_agree_with_enumeration():
    law, rng = law_of(TINY), np.random.default_rng(0)
    documents = [d[:5] for d in sampled(law, np.array([0, 1, 2]), 10, rng)]
    text = encoded([*documents, documents[0][:2]])  # of different lengths
    found = all_limits(law, text)
    for start, document in zip(text.document_starts, [*documents, documents[0][:2]]):
        for t in range(len(document)):
            words, place = document[: t + 1], np.arange(t + 1)
            ratio = enumerated(law, words, place >= 0) / (enumerated(law, words[:-1], place >= 0) if t else 1)
            assert found["inferred"][start + t] == pytest.approx(-np.log(ratio), abs=1e-9)
            for n in SIZES:
                before = enumerated(law, words, (place >= t - n) & (place < t)) if n and t else 1
                wanted = -np.log(enumerated(law, words, place >= t - n) / before)
                assert found[n][start + t] == pytest.approx(wanted, abs=1e-9)


def test_a_known_type_is_that_types_own_forward_algorithm():
    law, text = law_of(TINY), encoded(sampled(law_of(TINY), np.array([2, 0]), 30, np.random.default_rng(1)))
    found = preceded_nats(law, text, np.eye(4)[[2, 0]])
    at = 0
    for kind, document in zip((2, 0), np.split(text.tokens, text.document_starts[1:-1])):
        belief = np.eye(len(law.transitions))[0]
        for word in document:
            belief = belief @ law.transitions * law.emissions[kind, :, word]
            assert found[at] == pytest.approx(-np.log(belief.sum()), abs=1e-12)
            belief, at = belief / belief.sum(), at + 1


@pytest.fixture(scope="module")
def every_text():
    """Every text of four words that TINY can utter: the texts, their probabilities by type, their limits."""
    law = law_of(TINY)
    texts = np.array(list(product(range(len(law.words)), repeat=4)))
    possible = (texts[:, 0] != 0) & np.array([all(a or b for a, b in pairwise(t)) for t in texts.tolist()])
    text = encoded(list(texts[possible]))
    by_type = [preceded_nats(law, text, np.eye(4)[[k]].repeat(len(text.document_ids), 0)) for k in range(4)]
    return texts[possible], np.stack(by_type).reshape(4, -1, 4), all_limits(law, text)


def test_limits_obey_their_order_in_expectation(every_text):
    texts, by_type, found = every_text
    chance = np.exp(-by_type.sum(2)) / 4  # of each type and text
    assert chance.sum() == pytest.approx(1, abs=1e-12)
    known = float((chance[:, :, None] * by_type).sum((0, 1))[3])
    inferred, *last = (
        float(chance.sum(0) @ found[name].reshape(-1, 4)[:, 3]) for name in ("inferred", *SIZES)
    )
    unigram = np.bincount(texts.ravel(), chance.sum(0).repeat(4))
    position_free = float(chance.sum(0) @ -np.log(unigram / unigram.sum())[texts[:, 3]])
    assert last[3] == pytest.approx(inferred)
    assert known < inferred < last[2] < last[1] < last[0] < position_free
    law = law_of(TINY)
    stationary = -np.log(law.shares @ law.emissions.mean(0))
    assert last[0] < float(chance.sum(0) @ stationary[texts[:, 3]])


def test_limits_are_the_conditional_entropies(every_text):
    """H(last word | n words before it), from the joint distribution of four words alone."""
    texts, by_type, found = every_text
    joint = np.zeros((16,) * 4)
    joint[tuple(texts.T)] = np.exp(-by_type.sum(2)).mean(0)

    def entropy(*places):
        marginal = joint.sum(tuple({0, 1, 2, 3}.difference(places)))
        kept = marginal[marginal > 0]
        return -float(kept @ np.log(kept))

    for n in SIZES:
        expected = float(joint[tuple(texts.T)] @ found[n].reshape(-1, 4)[:, 3])
        before = range(3 - n, 3)
        assert expected == pytest.approx(entropy(*before, 3) - entropy(*before), abs=1e-9)


def test_a_long_sample_agrees_with_the_expectations(every_text):
    texts, by_type, exact = every_text
    chance = np.exp(-by_type.sum(2)).mean(0)
    law, rng = law_of(TINY), np.random.default_rng(2)
    drawn = [d[:4] for d in sampled(law, (rng.random(4000) * 4).astype(int), 4, rng)]
    found = all_limits(law, encoded(drawn))
    for name, nats in found.items():
        at_fourth = nats.reshape(-1, 4)[:, 3]
        error = at_fourth.std() / np.sqrt(len(at_fourth))
        assert at_fourth.mean() == pytest.approx(chance @ exact[name].reshape(-1, 4)[:, 3], abs=4 * error)


def test_a_long_document_of_known_type_has_the_entropy_of_grammar_and_words():
    """Without noise a word tells its class, so that the entropy rate has a closed form."""
    law = law_of(World(n_domains=3, content_words=5, function_words=3, noise=0.0))

    def entropy(rows):
        return -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1)

    rate = law.shares @ (entropy(law.transitions) + entropy(law.emissions[1]))
    documents = sampled(law, np.ones(40, dtype=int), 1000, np.random.default_rng(3))
    nats = preceded_nats(law, encoded(documents), np.eye(len(law.types))[np.ones(40, dtype=int)])
    assert nats.mean() == pytest.approx(rate, abs=0.01)


def test_what_inferring_costs_is_what_the_type_is_worth():
    """By the chain rule the excess over a known type adds up to the log of the types' number, then ends."""
    law = law_of(World(n_domains=3, content_words=20, function_words=10, overlap=0.3))
    types = np.arange(60) % len(law.types)
    text = encoded(sampled(law, types, 400, np.random.default_rng(4)))
    excess = preceded_nats(law, text, even(law, text)) - preceded_nats(
        law, text, np.eye(len(law.types))[types]
    )
    by_document = np.add.reduceat(excess, text.document_starts[:-1])
    np.testing.assert_allclose(by_document, np.log(len(law.types)), atol=1e-3)
    assert (by_document <= np.log(len(law.types)) + 1e-9).all()  # a posterior is at most one


# What the default world is for


def test_the_default_world_rewards_a_hundred_words_of_context():
    world = World()
    law, rng = law_of(world), np.random.default_rng(5)
    types = (rng.random(100) * len(law.types)).astype(int)
    documents = [d[:200] for d in sampled(law, types, 200, rng)]
    text = encoded(documents)
    inferred = preceded_nats(law, text, even(law, text))
    above = (inferred - preceded_nats(law, text, np.eye(len(law.types))[types])).reshape(100, 200)
    by_stretch = [above[:, a:b].mean() for a, b in ((0, 5), (5, 20), (20, 50), (50, 100), (150, 200))]
    assert all(b < 0.8 * a for a, b in pairwise(by_stretch)) and by_stretch[3] > 0.002
    five = last_words_nats(law, encoded(documents[:40]), (5,), inferred[: 40 * 200])[5]
    late = (np.arange(40 * 200) % 200) >= 100
    assert np.exp((five - inferred[: 40 * 200])[late].mean()) > 1.1  # in perplexity, by more than 10 %


# Code that must change no number, and text that is not of the world


def test_chunks_and_neighbours_change_nothing(monkeypatch):
    law, rng = law_of(TINY), np.random.default_rng(6)
    documents = sampled(law, np.array([0, 2, 1]), 12, rng)
    whole = joint_log_probabilities(law, encoded(documents), {1, 4})
    monkeypatch.setattr(module, "CHUNK", 5)
    cut = joint_log_probabilities(law, encoded(documents), {1, 4})
    alone = joint_log_probabilities(law, encoded(documents[1:2]), {1, 4})
    for j in (1, 4):
        np.testing.assert_allclose(cut[j], whole[j], atol=1e-12)
        first = len(documents[0])
        np.testing.assert_allclose(alone[j], whole[j][first : first + len(documents[1])], atol=1e-12)
        assert np.isnan(alone[j][: j - 1]).all() and not np.isnan(alone[j][j - 1 :]).any()


def test_words_that_a_vocabulary_lacks_are_one_word():
    law = law_of(TINY)
    known = ("<unk>", "<eos>", *law.words[3:9])
    merged = law_over(law, Vocabulary(known, (1,) * len(known)))
    np.testing.assert_allclose(merged.emissions.sum(2), 1, atol=1e-12)
    lacking = [i for i, word in enumerate(law.words) if word not in known]
    np.testing.assert_allclose(merged.emissions[:, :, 0], law.emissions[:, :, lacking].sum(2), atol=1e-12)
    np.testing.assert_allclose(merged.emissions[:, :, 4], law.emissions[:, :, 5], atol=0)


def test_text_of_another_world_is_refused():
    law = law_of(World(n_domains=2, second=0.0, overlap=0.0, noise=0.0))
    impossible = encoded([np.array([1, 1])])  # two determiners in a row
    with pytest.raises(StudyError, match="at token 1 that this world cannot utter there"):
        preceded_nats(law, impossible, even(law, impossible))
    with pytest.raises(StudyError, match="nobody knows its limits"):
        limits(Experiment(corpus="docstrings"))


# The ledger, and models


def test_the_ledger_has_every_limit_and_is_kept(monkeypatch):
    e = Experiment(corpus=SMALL, vocab_size=60)
    ledger = limits(e, (1, 5))
    names = ("known", "inferred", "last_1", "last_5", "unigram")
    assert list(ledger.columns) == ["document", "position", "word", "domain", *(f"nats_{n}" for n in names)]
    text = text_of(e)
    assert len(ledger) == len(text.test) and (text.test.tokens == 0).any()  # words that the vocabulary lacks
    means = [ledger[f"nats_{name}"].mean() for name in ("known", "inferred", "last_5", "last_1", "unigram")]
    assert means == sorted(means) and len(set(means)) == 5
    monkeypatch.setattr(module, "preceded_nats", None)
    assert limits(e, (1, 5)).equals(ledger)


FEW = Experiment(
    corpus=SMALL, hidden_size=32, criterion="softmax", batch_size=16, max_epochs=3, lm_tokens=10_000
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two arms with two seeds each, in a world of 89 words, and what awareness found in them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RTL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patched.setenv("RTL_RESULTS_DIR", str(tmp_path_factory.mktemp("results")))
        arms = [FEW.replace(source=s, seed=i) for s in ("random", "word2vec-sg") for i in (0, 1)]
        records = run_all(arms, workers=1)
        for record in records:
            save_finding("awareness", record.name, awareness.measure(record))
        yield load_results("local"), load_findings("awareness", [record.name for record in records])


def test_no_trained_model_beats_the_best_that_infers(study):
    results, findings = study
    frame = between(results)
    limit = frame[frame["kind"] == "limit"].set_index("name")["perplexity"]
    assert limit["known"] < limit["inferred"] < limit["last_10"] < limit["last_1"] < limit["unigram"]
    arms = frame[frame["kind"] != "limit"]
    arms = arms.set_index(arms["name"].str.removesuffix(" (not converged)"))
    assert (arms["perplexity"] < 0.95 * limit["unigram"]).all()  # they have learnt something
    assert (arms["above_high"] > 0).all() and (arms["above"] > 5).all()
    # against `compare`, and by hand
    theirs = compare(results)[["source", "effect_percent", "low_percent", "seeds"]].set_index("source")
    assert arms.loc["word2vec-sg", "effect"] == pytest.approx(theirs.loc["word2vec-sg", "effect_percent"])
    assert arms.loc["word2vec-sg", "effect_low"] == pytest.approx(theirs.loc["word2vec-sg", "low_percent"])
    assert arms.loc["random", "seeds"] == pytest.approx(theirs.loc["random", "seeds"])
    assert arms.loc["random", "above"] == pytest.approx(
        100 * (arms.loc["random", "perplexity"] / limit["inferred"] - 1), rel=1e-5
    )
    nats = np.log(
        [arms.loc["random", "perplexity"], arms.loc["word2vec-sg", "perplexity"], limit["inferred"]]
    )
    assert arms.loc["word2vec-sg", "closed"] == pytest.approx(
        (nats[0] - nats[1]) / (nats[0] - nats[2]), rel=1e-5
    )
    # analyses of trained models run on them
    found = captured(results, findings)
    assert set(found["name"]) == set(arms["name"]) and 5 in set(found["n"])
    assert (found["share_low"] < found["share"]).all() and (found["share"] < found["share_high"]).all()


def test_what_was_measured_of_the_limits_is_taken_from_the_findings(study, monkeypatch):
    results, findings = study
    before = between(results), captured(results, findings)
    for record in results.records:
        save_finding("limits", record.name, module.measure(record))
    monkeypatch.setattr(module, "limits", None)
    pd.testing.assert_frame_equal(between(results), before[0])
    pd.testing.assert_frame_equal(captured(results, findings), before[1])


def test_arms_differ_by_name_and_records_of_another_corpus_are_refused(study):
    results, findings = study
    lsa = {r.name: replace(r, experiment=r.experiment | {"corpus": "docstrings"}) for r in results.records}
    with pytest.raises(StudyError, match="docstrings is not topicworld"):
        renamed = results.documents.assign(record=results.documents["record"].map(lambda n: lsa[n].name))
        between(Results(list(lsa.values()), renamed))
    with pytest.raises(StudyError, match="no finished language model"):
        between(results.select([]))


@pytest.fixture
def one_record():
    return Record(FEW.to_dict(), "0" * 64)


def test_limits_are_taken_at_the_words_that_awareness_measures(one_record, monkeypatch):
    """The place of each word stands for its nats, so that the sums tell which words they are of."""
    place = limits(FEW)[["document", "position"]].assign(nats_inferred=0.0)
    for n in module.N_WORDS:
        place[f"nats_last_{n}"] = place["position"] + 1.0
    monkeypatch.setattr(module, "limits", lambda e: place)
    monkeypatch.setattr(awareness, "last_nats", lambda _, contexts: np.array(list(map(len, contexts))))
    measured = awareness.losses(None, text_of(FEW).test, FEW.seed)
    full = measured[measured["kind"] == awareness.FULL].set_index("document")
    found = available(one_record)
    assert (found[5] == full["nats"].loc[found.index]).all() and len(found) == len(full)
    assert (found["tokens"] == full["tokens"].loc[found.index]).all()


def test_the_share_is_a_ratio_of_sums_over_the_same_words(monkeypatch):
    rng = np.random.default_rng(7)
    names = list(map(str, range(30)))
    there = {
        s: pd.DataFrame({5: rng.random(30) + 0.5, 50: 0.001, "inferred": 6.2, "tokens": 16}, names)
        for s in (0, 1)
    }
    records = {s: Record(FEW.replace(seed=s).to_dict(), f"{s}" * 64) for s in (0, 1)}
    monkeypatch.setattr(module, "available", lambda record: there[record.experiment["seed"]])
    row = {"corpus": SMALL, "name": "lsa", "records": {s: r.name for s, r in records.items()}}
    monkeypatch.setattr(module, "_arms", lambda results: pd.DataFrame([row]))
    results = Results(list(records.values()), None)

    def findings(part):
        rows = []
        for s, record in records.items():
            lost = part[s] * there[s][5].to_numpy()
            for kind, n, nats in ((awareness.FULL, 0, np.full(30, 7.0)), (awareness.CUT, 5, 7.0 + lost)):
                rows.append({"record": record.name, "kind": kind, "n": n, "document": names, "nats": nats})
        return pd.concat(map(pd.DataFrame, rows))

    everything = captured(results, findings((1, 1))).iloc[0]
    assert everything["n"] == 5 and everything["share"] == pytest.approx(1) and everything["share_low"] > 0.95
    half = captured(results, findings((0.4, 0.6)))
    assert len(half) == 1  # at 50 words there is nothing to capture
    assert half.loc[0, "share"] == pytest.approx(0.5) and half.loc[0, "share_low"] < 0.4
    assert half.loc[0, "above_full"] == pytest.approx(0.8 / 16)
    share = 1 + (half["above_cut"] - half["above_full"]) / half["available"]
    assert share.loc[0] == pytest.approx(0.5, abs=0.01)  # summed over seeds, not a mean of theirs
    assert half.loc[0, "available"] == pytest.approx(sum(t[5].sum() for t in there.values()) / 960)


# Figures


def frame_of(arms, overlap=0.5, corpus="topicworld"):
    limits_ = {"known": 100, "inferred": 102, "last_5": 120, "last_1": 140, "unigram": 300}
    rows = [{"kind": "limit", "name": name, "perplexity": value} for name, value in limits_.items()]
    for name, value in arms.items():
        effect = 100 * (value / arms["random"] - 1)
        above = {"above": value - 102, "above_low": value - 104, "above_high": value - 100}
        rows.append(
            {
                "kind": "baseline" if name == "random" else "arm",
                "name": name,
                "perplexity": value,
                "seeds": (value - 1, value + 1),
                "n_seeds": 2,
            }
        )
        rows[-1] |= above | {"effect": effect, "effect_low": effect - 2, "effect_high": effect + 2}
    return pd.DataFrame(rows).assign(corpus=corpus, overlap=overlap)


def test_the_figure_shows_every_arm_and_the_limits_that_fit():
    frame = frame_of({"random": 150.0, "permuted:lsa": 149.0, "lsa": 130.0})
    ax = figures.plot_limits(frame)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["random", "permuted:lsa", "lsa"]
    lines = {
        round(line.get_xdata()[0])
        for line in ax.lines
        if len(line.get_xdata()) == 2 and line.get_zorder() == 0
    }
    assert lines == {100, 102, 120, 140}
    text = [t.get_text() for t in ax.texts]
    assert (
        "sees 1 word: 140" in text and "told the type: 100" in text and "counts words: 300" in ax.get_xlabel()
    )
    said = figures.describe_limits(frame)
    assert (
        "from 130.0 (lsa) to 150.0 (random)" in said
        and "None is below" in said
        and "counts words 300.0" in said
    )
    impossible = frame_of({"random": 150.0, "lsa": 90.0})
    assert "which cannot be: lsa" in figures.describe_limits(impossible)
    single = frame.assign(above_low=np.nan, above_high=np.nan)
    assert "One seed gives no interval" in figures.describe_limits(single)
    with pytest.raises(StudyError, match="shows one world"):
        figures.plot_limits(pd.concat([frame, frame_of({"random": 1.0}, corpus="topicworld:seed=1")]))
    plt.close(ax.figure)


def test_the_sweep_shows_each_arm_by_overlap_and_what_there_is_to_gain():
    parts = [
        ({"random": 150.0, "lsa": 120.0, "bilm": 149.0}, 0.0),
        ({"random": 120.0, "lsa": 119.5, "bilm": 120.0}, 1.0),
    ]
    frame = pd.concat([frame_of(arms, overlap, f"topicworld:overlap={overlap}") for arms, overlap in parts])
    ax = figures.plot_overlap(frame)
    drawn = {line.get_gid(): list(line.get_ydata()) for line in ax.lines}
    assert drawn["lsa"] == pytest.approx([-20, -0.4167], abs=1e-3)
    assert drawn["inferred"] == pytest.approx([-32, -15])
    said = figures.describe_overlap(frame)
    assert "interval: lsa at 0." in said and "−15.0 % at 1" in said and "-15.0" not in said
    single = frame.assign(effect_low=np.nan, effect_high=np.nan)
    assert "none of the arms' effects is established" in figures.describe_overlap(single)
    plt.close(ax.figure)


def test_the_sweep_tells_where_models_lack_what_one_word_tells():
    parts = [
        ({"random": 139.0, "lsa": 141.0}, 0.0),
        ({"random": 150.0, "lsa": 120.0}, 0.5),
        ({"random": 141.0, "lsa": 140.5}, 1.0),
    ]  # the best that sees one word has 140
    frame = pd.concat([frame_of(arms, overlap, f"topicworld:overlap={overlap}") for arms, overlap in parts])
    ax = figures.plot_overlap(frame)
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert ticks == ["0\nrandom 139", "0.5*\nrandom 150", "1*\nrandom 141"]
    assert "*: random lacks what one word tells" in ax.get_xlabel()
    said = figures.describe_overlap(frame)
    assert "so lacking what one tells: lsa at 0, 1; random at 0.5, 1. Where random is among them" in said
    one = figures.plot_overlap(frame[frame["overlap"] == 0])
    assert "*" not in one.get_xlabel() + one.get_xticklabels()[0].get_text()
    said = figures.describe_overlap(frame[frame["overlap"] == 0])
    assert "so lacking what one tells: lsa at 0." in said and "Where random is" not in said
    learnt = frame_of({"random": 140.0, "lsa": 120.0})
    assert "sees one word" not in figures.describe_overlap(learnt)
    plt.close(ax.figure)
    plt.close(one.figure)
