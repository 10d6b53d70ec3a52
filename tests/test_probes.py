"""Probes of a state: what can be read off is found, what is not there is not, and no document names itself."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from test_generation import made_model
from test_results import by_hand, results

from rtl_core import figures
from rtl_core.analysis import awareness, probes
from rtl_core.config import Experiment
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.findings import model_dir
from rtl_core.results import Record
from rtl_core.storage import StudyError
from rtl_core.texts import Text
from rtl_core.transfer import save_model

pytestmark = pytest.mark.usefixtures("closed_figures")


@pytest.fixture(scope="module")
def text(tiny_corpus):
    """The tiny corpus with enough documents to probe: all of its training documents but four read as test text."""
    train = tiny_corpus.split("train")
    moved = [Document(d.id, d.domain, "test", d.paragraphs) for d in train[4:]]
    corpus = Corpus(
        "tiny", (*train[:4], *moved, *tiny_corpus.split("valid"), *tiny_corpus.split("test")), "whitespace"
    )
    vocabulary = Vocabulary.build(train)
    splits = (corpus.split(name) for name in ("train", "valid", "test"))
    return Text(corpus, vocabulary, *(vocabulary.encode(d, corpus.domains) for d in splits))


@pytest.fixture(scope="module")
def model(text):
    return made_model(text)


def test_documents_are_held_out_long_enough_and_of_domains_with_several(text):
    frame, words = probes.openings(text.corpus, text.vocabulary)
    held_out = {d.id: d for d in text.corpus.documents if d.split != "train"}
    long = [d for d in held_out.values() if d.n_tokens > words.shape[1] - 1]
    assert words.shape[1] - 1 == 100 and set(frame["document"]) == {d.id for d in long}
    assert frame["domain"].tolist() == [held_out[name].domain for name in frame["document"]]
    (first,) = words[:1]
    assert np.array_equal(first, text.vocabulary.encode([held_out[frame["document"][0]]]).tokens[:101])


def test_a_domain_of_four_documents_is_left_out(text):
    rare = [Document(f"rare-{i}", "rare", "test", text.corpus.documents[0].paragraphs) for i in range(5)]
    unlabelled = Document("none", None, "test", rare[0].paragraphs)

    def domains(n):
        corpus = Corpus("tiny", (*text.corpus.documents, *rare[:n], unlabelled))
        return set(probes.openings(corpus, text.vocabulary)[0]["domain"])

    assert domains(5) - domains(4) == {"rare"} and len(domains(4)) == 3


def test_too_few_documents_are_refused(text):
    one = [d for d in text.corpus.documents if d.domain == "kitchen" or d.split == "train"]
    with pytest.raises(StudyError, match="two domains or more of 5 documents of over [0-9]+ tokens .* has 1"):
        probes.openings(Corpus("tiny", tuple(one)), text.vocabulary)


def test_states_are_those_after_each_word(model, text):
    words = probes.openings(text.corpus, text.vocabulary)[1][:3]
    found = probes.all_states(model, words)
    with torch.no_grad():
        for row, document in zip(found, words):
            hidden = model.states(torch.tensor([[EOS_ID, *document[:-1]]]))[0][0]
            assert np.allclose(row, hidden, atol=1e-5)


def test_states_are_taken_up_to_n():
    assert probes.places(1).tolist() == [1] and probes.places(5).tolist() == [3, 4, 5]
    assert len(probes.places(200)) == probes.PLACES and probes.places(200)[[0, -1]].tolist() == [133, 200]


def test_the_untrained_model_has_the_table_but_another_lstm(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = probes.untrained(model, seed=0)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("lstm."))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = probes.untrained(model, seed=0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in other.state_dict().items())


def test_bags_keep_every_product_of_the_tf_idf_of_words():
    words = np.random.default_rng(0).integers(2, 12, (7, 20))
    plain = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
    expected = plain.fit_transform(" ".join(map(str, row)) for row in words)
    found = probes.bags(words, 12)
    assert np.allclose(found @ found.T, (expected @ expected.T).toarray()) and found.shape == (7, 7)


def labelled(n=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.array(["a", "b", "c"], dtype=object)[np.arange(n) % 3]
    return rng, labels, rng.standard_normal((n, 6))


def test_a_probe_finds_what_is_linear_and_nothing_else():
    rng, labels, noise = labelled()
    one = (labels[:, None] == ["a", "b", "c"]) * 3.0
    shown = [np.hstack([noise, one + rng.standard_normal(one.shape)]) for _ in range(2)]
    assert np.mean(probes.named(probes._scaled, shown, labels, (0.01, 0.1), 0) == labels) > 0.85
    assert abs(np.mean(probes.named(probes._scaled, [noise], labels, (0.01, 0.1), 0) == labels) - 1 / 3) < 0.2


def test_no_document_names_itself():
    """A column for each document would name all of them, if its own label were learnt from."""
    _, labels, _ = labelled()
    own = np.eye(len(labels)) * 10
    assert np.mean(probes.named(probes._plain, [own, own], labels, (100.0,), 0) == labels) < 0.5


def test_the_last_block_is_named_and_the_test_fold_has_no_say_in_the_strength():
    rng, labels, noise = labelled()
    one = (labels[:, None] == ["a", "b", "c"]) * 2.0
    blocks = [one + 0.5 * rng.standard_normal(one.shape), rng.standard_normal(one.shape)]
    early = np.mean(probes.named(probes._scaled, blocks[::-1], labels, (0.1,), 0) == labels)
    assert np.mean(probes.named(probes._scaled, blocks, labels, (0.1,), 0) == labels) < 0.6 < early
    seen = []

    class Spy:
        def __init__(self, strength):
            self.strength = strength

        def fit(self, values, fitted):
            self.rows = frozenset(values[:, 0])
            return self

        def predict_proba(self, values):
            seen.append((self.strength, self.rows, frozenset(values[:, 0])))
            return np.full((len(values), 3), 1 / 3)

        def predict(self, values):
            seen.append(("final", self.rows, frozenset(values[:, 0])))
            return labels[: len(values)]

    probes.named(Spy, [np.arange(90.0)[:, None]], labels, (1, 2), 0)
    for k in range(probes.FOLDS):
        *trials, (_, rest, test) = seen[3 * k : 3 * k + 3]
        assert rest.isdisjoint(test) and len(rest | test) == 90
        assert all(fitted | tuning == rest and fitted.isdisjoint(tuning) for _, fitted, tuning in trials)


@pytest.fixture
def measured(model, text, monkeypatch):
    e = Experiment(source="word2vec-sg", hidden_size=8, n_samples=8, input_rms=3.0)
    record = Record(e.to_dict(), "0" * 64)
    monkeypatch.setattr(awareness, "text_of", lambda _: text)
    save_model(model_dir(record.name), model, text.vocabulary, e, "whitespace")
    return probes.measure(record)


def test_words_tell_the_domain_and_dealt_out_domains_are_at_chance(measured, text):
    documents = {d.id for d in text.corpus.documents if d.split != "train"}
    shares = measured.groupby(["probe", "n"])["correct"].mean().unstack("probe")
    assert set(shares) == {"state", "mean", "control", "untrained", "words"}
    assert list(shares.index) == [1, 5, 20, 50, 100]
    assert (measured.groupby(["probe", "n"])["document"].nunique() == measured["document"].nunique()).all()
    assert set(measured["document"]) <= documents and set(measured["correct"]) == {0, 1}
    assert shares.loc[50, "words"] > 0.9 > 0.5 > shares.loc[1, "words"]  # a document begins with "the"
    assert shares["control"].mean() < 0.5 < shares.loc[50, "mean"]


def test_accuracies_of_arms_by_hand():
    pairs, parts = by_hand(), []
    for (record, _), right in zip(pairs, ((1, 0), (1, 0), (1, 1), (1, 1))):
        for probe in ("state", "words"):
            rows = {
                "document": ["a", "b"],
                "domain": ["x", "y"],
                "correct": right if probe == "state" else (1, 0),
            }
            parts.append(pd.DataFrame(rows).assign(record=record.name, probe=probe, n=20))
    table = probes.summary(results(*pairs), pd.concat(parts)).set_index(["probe", "role"])
    assert table.loc[("state", "baseline"), "value"] == 0.5 and table.loc[("state", "arm"), "value"] == 1
    assert table.loc[("state", "arm"), "difference"] == 0.5 and table.loc[("words", "arm"), "difference"] == 0
    assert (table["chance"] == 0.5).all() and (table["count"] == 2).all()


def test_without_findings_there_is_no_summary():
    with pytest.raises(StudyError, match="no findings of probes; `rtl analyse STUDY --only probes`"):
        probes.summary(results(*by_hand()), pd.DataFrame(columns=["record", "document", "domain", "correct"]))


def curves():
    """A table as `summary` makes it: the state of one arm says more than the baseline's, the words say most."""
    rows = []
    for probe, rising in (("state", 0.05), ("words", 0.1), ("control", 0.0), ("mean", 0.07)):
        for role, more in (("baseline", 0.0), ("arm", 0.1 if probe == "state" else 0.0)):
            for step, n in enumerate((1, 20, 200)):
                value = 0.2 + step * (rising + more)
                row = {
                    "probe": probe,
                    "n": n,
                    "role": role,
                    "arm": "random, fine-tuned" if role != "arm" else "lsa, frozen",
                }
                row |= {
                    "n_seeds": 3,
                    "documents": 414,
                    "value": value,
                    "value_low": value - 0.03,
                    "value_high": value + 0.03,
                }
                low = step * more - 0.05 if role == "arm" else np.nan
                rows.append(row | {"difference_low": low, "p_holm": 0.2, "chance": 0.16})
    return pd.DataFrame(rows)


def test_the_figure_shows_states_words_and_control():
    ax = figures.plot_probes(curves())
    drawn = {
        line.get_gid(): line.get_ydata() for line in ax.lines if line.get_gid() and line.get_gid()[0] != "_"
    }
    assert set(drawn) == {"random, fine-tuned", "lsa, frozen", "words", "control"}
    assert np.allclose(drawn["lsa, frozen"], [0.2, 0.35, 0.5]) and np.allclose(
        drawn["words"], [0.2, 0.3, 0.4]
    )
    assert {t.get_text() for t in ax.texts} == {
        "random",
        "lsa, frozen",
        "the words themselves",
        "control task",
    }
    assert ax.get_xlabel().endswith("mean of seeds (3), bars: 95 % interval; 414 documents")


def test_the_description_of_probes_is_computed():
    said = figures.describe_probes(curves())
    assert "After 200: random, fine-tuned 30%; lsa, frozen 50%. Beside them the words themselves 40%" in said
    assert "the control task 20%, the commonest domain 16%" in said
    assert "of the difference: lsa, frozen at 20, 200; by Holm's" in said and "0 of these 2." in said
