"""Sampled text: drawn from the exact softmax, one draw a word; judged by domain, against real text and chance."""

import numpy as np
import pandas as pd
import pytest
import torch

from rtl_core import figures, language_model
from rtl_core.analysis import generation
from rtl_core.config import Experiment
from rtl_core.corpora.vocabulary import EOS_ID, UNK_ID, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.language_model import generate
from rtl_core.results import DOCUMENT_COLUMNS, Record, Results
from rtl_core.storage import StudyError
from rtl_core.texts import Text
from rtl_core.transfer import build_model

pytestmark = pytest.mark.usefixtures("closed_figures")


@pytest.fixture(scope="module")
def text(tiny_corpus):
    vocabulary = Vocabulary.build(tiny_corpus.split("train"), 24)  # so that some words are unknown
    splits = (tiny_corpus.split(name) for name in ("train", "valid", "test"))
    return Text(tiny_corpus, vocabulary, *(vocabulary.encode(d, tiny_corpus.domains) for d in splits))


@pytest.fixture(scope="module")
def model(text):
    return made_model(text)


def made_model(text, **changes):
    vocabulary, rng = text.vocabulary, np.random.default_rng(0)
    vectors = Embeddings(vocabulary.words, rng.standard_normal((len(vocabulary), 8)).astype(np.float32))
    e = Experiment(source="word2vec-sg", hidden_size=8, n_samples=8, input_rms=3.0, **changes)
    return build_model(e, vocabulary, vectors, np.array(vocabulary.counts))


@pytest.fixture
def short(monkeypatch):
    """Stretches that fit into documents of about 100 tokens."""
    monkeypatch.setattr(generation, "OPENINGS", (5, 10))
    monkeypatch.setattr(generation, "BANDS", ((0, 20), (20, 60)))


def chances(model, words):
    """p of each word of the vocabulary after these, by the model's own exact scores."""
    with torch.no_grad():
        hidden = model.eval().states(torch.tensor([[EOS_ID, *words]]))[0][0, -1:]
        every = torch.arange(len(model.output.bias))
        return (-model.output.nats(hidden.expand(len(every), -1), every)).exp().double().numpy()


def test_every_draw_decides_one_word(model):
    draws = np.random.default_rng(1).random((3, 6))
    openings = torch.tensor([[3, 4], [5, 6], [7, 8]])
    found = generate(model, openings, torch.from_numpy(draws))
    for row, opening in enumerate(openings.tolist()):
        words = list(opening)
        for draw in draws[row]:
            words.append(int(np.searchsorted(np.cumsum(chances(model, words)), draw)))
        assert found[row].tolist() == words[2:]


def test_words_come_as_often_as_the_softmax_says(model):
    n = 20_000
    draws = torch.from_numpy(np.random.default_rng(2).random((n, 1)))
    found = generate(model, torch.tensor([[3]]).expand(n, 1), draws)
    shares, expected = np.bincount(found[:, 0], minlength=24) / n, chances(model, [3])
    assert expected.max() > 2 * np.median(expected)
    assert (abs(shares - expected) < 5 * np.sqrt(expected / n) + 1e-4).all()


def test_the_number_of_texts_side_by_side_changes_no_word(model, monkeypatch):
    openings, draws = torch.tensor([[3], [4], [5]]), torch.rand((3, 5), dtype=torch.float64)
    found = generate(model, openings, draws)
    monkeypatch.setattr(language_model, "SAMPLED", 2)
    assert torch.equal(generate(model, openings, draws), found)


def test_a_model_of_several_softmaxes_is_refused(text):
    with pytest.raises(StudyError, match="has an adaptive one"):
        generate(made_model(text, criterion="adaptive-softmax"), torch.tensor([[3]]), torch.rand(1, 1))


def test_the_judge_knows_words_only(text):
    reader, ids = generation.judge(text), text.vocabulary.ids
    soup = np.array([[ids["soup"], ids["knife"]]])
    filled = np.array([[EOS_ID, ids["soup"], UNK_ID, ids["knife"], UNK_ID]])
    found = generation.log_posterior(reader, soup)
    assert np.allclose(found, generation.log_posterior(reader, filled))
    assert np.isclose(np.exp(found).sum(), 1) and text.corpus.domains[found.argmax()] == "kitchen"
    nothing = generation.log_posterior(reader, np.array([[UNK_ID, EOS_ID]]))
    assert np.allclose(nothing, np.log(reader.prior))


def test_other_documents_are_all_others():
    found = np.log(
        np.random.default_rng(3).dirichlet(np.ones(3), (2, 5))
    )  # 2 samples, 5 documents, 3 domains
    domains = np.array([0, 1, 1, 2, 0])
    correct, nats = generation._others(found, domains)
    for i in range(5):
        pairs = [(s, j) for s in range(2) for j in range(5) if j != i]
        assert np.isclose(correct[i], np.mean([found[s, j].argmax() == domains[i] for s, j in pairs]))
        assert np.isclose(nats[i], np.mean([found[s, j, domains[i]] for s, j in pairs]))


def means(frame):
    return frame.groupby(["opening", "start", "kind"])["correct"].mean().unstack()


def test_a_model_without_a_subject_is_at_chance_and_real_text_is_not(model, text, short):
    frame = generation.continuations(model, text, seed=0)
    assert len(frame) == 2 * 2 * 3 * 6 and frame["log_posterior"].max() <= 0
    found = means(frame)
    assert (found["real"] > 0.9).all() and (found["sampled"] < 0.7).all()
    assert np.allclose(found["other"], 1 / 3, atol=0.1)
    assert generation.continuations(model, text, seed=0).equals(frame)
    assert not generation.continuations(model, text, seed=1).equals(frame)


def test_a_model_that_goes_on_as_the_document_does_is_recognised(model, text, short, monkeypatch):
    def copied(model, openings, draws):
        starts = text.test.document_starts[:-1]
        rows = [
            next(s for s in starts if np.array_equal(text.test.tokens[s : s + len(o)], o)) for o in openings
        ]
        n, length = openings.shape[1], draws.shape[1]
        return torch.stack([torch.from_numpy(text.test.tokens[r + n : r + n + length]) for r in rows]).long()

    monkeypatch.setattr(generation, "generate", copied)
    found = means(generation.continuations(model, text, seed=0))
    assert found["sampled"].equals(found["real"].rename("sampled"))


def test_documents_that_are_too_short_are_refused(model, text):
    with pytest.raises(
        StudyError, match="needs two test documents or more with a domain and 250 tokens; .* has 0"
    ):
        generation.continuations(model, text, seed=0)


# What it says of arms


def studied():
    """A baseline and an arm of two seeds, and findings of two documents, with differences of 0.2 and 0.4."""
    arms = [Experiment(source=s, seed=i) for s in ("random", "lsa") for i in (0, 1)]
    facts = {"corpus_fingerprint": "f", "vocab_size": 9, "lm_tokens": 4, "unk_share": 0.1, "extra_tokens": 0}
    records = [Record(e.to_dict(), e.identity("f"), text=facts, converged=True) for e in arms]
    sums = {"document": ["a", "b"], "domain": ["x", "y"], "tokens": [10, 30]}
    sums |= {f"nats_{c}": [50.0, 150.0] for c in ("document", "stream", "sentence")}
    documents = pd.concat([pd.DataFrame(sums).assign(record=r.name) for r in records])
    parts = []
    for record, shift in zip(records, (0.0, 0.0, 0.2, 0.4)):
        for kind, value in (("sampled", 0.3 + shift), ("real", 0.9), ("other", 0.1)):
            row = {"record": record.name, "opening": 20, "start": 100, "end": 200, "kind": kind}
            values = {"document": ["a", "b"], "correct": [value, value], "log_posterior": [-1.0, -2.0]}
            parts.append(pd.DataFrame(row | values))
    return pd.concat(parts), Results(records, documents[["record", *DOCUMENT_COLUMNS]])


def test_arms_are_set_against_the_baseline():
    table = generation.summary(*studied())
    assert table["arm"].tolist() == ["random, fine-tuned", "lsa, fine-tuned"]
    base, arm = table.iloc[0], table.iloc[1]
    assert base["role"] == "baseline" and np.isclose(base["sampled"], 0.3) and np.isclose(arm["sampled"], 0.6)
    assert np.isclose(arm["real"], 0.9) and np.isclose(arm["other"], 0.1)
    half = (
        12.706 * np.std([0.2, 0.4], ddof=1) / 2**0.5
    )  # t with one degree of freedom; documents do not differ
    assert np.allclose(
        arm[["difference", "low", "high"]].astype(float), [0.3, 0.3 - half, 0.3 + half], atol=1e-3
    )


def test_two_groups_of_comparison_are_refused():
    found, results = studied()
    other = [Record(r.experiment | {"hidden_size": 64}, "0" * 64, text=r.text) for r in results.records]
    names = {old.name: new.name for old, new in zip(results.records, other)}
    both = Results(
        [*results.records, *other],
        pd.concat([results.documents, results.documents.replace({"record": names})]),
    )
    with pytest.raises(
        StudyError, match="records are of 2 .*hidden_size 64.*select the records of one study"
    ):
        generation.summary(pd.concat([found, found.replace({"record": names})]), both)


def test_the_figure_has_a_panel_a_band_and_marks_what_is_sure():
    found, results = studied()
    later = found.assign(start=200, end=300, correct=0.5)
    table = generation.summary(pd.concat([found, later]), results).assign(low=[0.0, 0.1] * 2)
    axes = figures.plot_generation(table)
    assert [ax.get_title(loc="left").split("\n")[0] for ax in axes] == [
        "tokens 100 to 200",
        "tokens 200 to 300",
    ]
    dots = [line for line in axes[0].lines if line.get_marker() == "o"]
    assert np.allclose([dot.get_xdata()[0] for dot in dots], [30, 60])
    assert [dot.get_markerfacecolor() == dot.get_color() for dot in dots] == [False, True]
    assert "real text 90%" in axes[0].get_title(loc="left")
    said = figures.describe_generation(table)
    assert "baseline 30%, chance 10%; above the baseline" in said and "lsa, fine-tuned 60%" in said
    with pytest.raises(StudyError, match=r"one opening, but the table holds \[20, 50\]"):
        figures.plot_generation(pd.concat([table, table.assign(opening=50)]))
