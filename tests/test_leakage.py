"""The leakage protocol of docs/leakage.md: a check for each rule, and the same check with the rule broken."""

import re
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from conftest import ROOT

from rtl_core import context, experiments, texts
from rtl_core.catalogue import LEAKY, SOURCES
from rtl_core.comparison import compare
from rtl_core.config import Experiment
from rtl_core.corpora import clusters, labelled, text
from rtl_core.corpora.corpus import SPLITS, Corpus, Document
from rtl_core.corpora.labelled import Example, LabelledSet
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.experiments import run
from rtl_core.pretrain import lm, pretrain, supervised, translation
from rtl_core.results import load_results
from rtl_core.storage import StudyError
from rtl_core.studies import grid

TRAINED = [name for name in SOURCES if name not in ("random", LEAKY)]
WORDS = ("zig", "zag", "zog", "zug", "zeg")


def with_other_test_text(corpus, words=WORDS):
    """The corpus with the words of its test documents replaced: nothing but its own scores may change."""
    documents = []
    for d in corpus.documents:
        swap = [" ".join(words[i % len(words)] for i, _ in enumerate(p.split())) for p in d.paragraphs]
        documents.append(replace(d, paragraphs=tuple(swap)) if d.split == "test" else d)
    return replace(corpus, documents=tuple(documents))


@contextmanager
def found():
    """The check inside must fail: the rule is broken."""
    with pytest.raises((AssertionError, StudyError)):
        yield


@pytest.fixture
def broken_split(monkeypatch):
    """A corpus that hands out its test documents with the training documents."""
    split = Corpus.split

    def mixed(self, name):
        chosen = split(self, name)
        extra = (replace(d, split="train") for d in split(self, "test"))
        return (*chosen, *extra) if name == "train" else chosen

    monkeypatch.setattr(Corpus, "split", mixed)


@pytest.fixture
def made_up_sets(monkeypatch, tiny_corpus):
    """Labelled sets of every task, made from training sentences of the tiny corpus."""
    lines = [tuple(line) for d in tiny_corpus.split("train") for line in d.lines()]

    def of(task):
        names = {"pos": ("X", "Y"), "ner": ("O", "B-thing")}.get(task, ("no", "yes"))
        rows = []
        for i, line in enumerate(lines):
            each = tuple(len(word) % 2 for word in line) if task in ("pos", "ner") else (i % 2,)
            other = tuple(word[::-1] for word in line) if task in ("nli", "translation") else ()
            rows.append(Example(line, () if task == "translation" else each, other))
        return [
            LabelledSet(f"tiny-{task}", names, tuple(rows[:80]), tuple(rows[80:100]), tuple(rows[100:]), {})
        ]

    for module in (supervised, translation):
        monkeypatch.setattr(module, "labelled_for", lambda task, corpus: of(task))


# The page and the tests say the same


def test_every_rule_of_the_page_names_its_test():
    page = (ROOT / "docs" / "leakage.md").read_text(encoding="utf-8")
    rules = re.findall(r"^(\d+)\. \*\*.*?`(test_\w+)`$", page, re.M | re.S)
    assert [int(number) for number, _ in rules] == list(range(1, 11))
    for _, name in rules:
        assert name in globals() and f"{name}_broken" in globals()


# 1 Vocabulary


def check_vocabulary(corpus):
    other = with_other_test_text(corpus)
    assert Vocabulary.build(corpus.split("train")) == Vocabulary.build(other.split("train"))


def test_vocabulary(tiny_corpus):
    check_vocabulary(tiny_corpus)
    with pytest.raises(StudyError, match="training documents only"):
        Vocabulary.build(tiny_corpus.split("test"))


def test_vocabulary_broken(tiny_corpus, broken_split):
    with found():
        check_vocabulary(tiny_corpus)


# 2 Pre-training text


def check_table(source, corpus):
    words = ("<unk>", "<eos>", *WORDS, *_words(corpus))
    vocabulary = Vocabulary(words, (1,) * len(words))
    tables = [
        pretrain(source, each, vocabulary, dim=8, epochs=1).embeddings
        for each in (corpus, with_other_test_text(corpus))
    ]
    assert tables[0].words == tables[1].words
    assert np.array_equal(tables[0].table, tables[1].table)


def _words(corpus):
    return tuple(
        sorted({w for d in corpus.documents if d.split == "train" for line in d.lines() for w in line})
    )


@pytest.mark.parametrize("source", TRAINED)
def test_tables(source, tiny_corpus, made_up_sets):
    check_table(source, tiny_corpus)


@pytest.mark.parametrize("source", TRAINED)
def test_tables_broken(source, tiny_corpus, made_up_sets, broken_split):
    with found():
        check_table(source, tiny_corpus)


# 3 Averaging


def check_averaging(corpus):
    """The vector of a word that stands in the test text only does not exist."""
    marked = [
        replace(d, paragraphs=(*d.paragraphs, "the zig .")) if d.split == "test" else d
        for d in corpus.documents
    ]
    vocabulary = Vocabulary(("<unk>", "<eos>", "zig", *_words(corpus)), (1,) * (3 + len(_words(corpus))))
    corpus = replace(corpus, documents=tuple(marked))
    for source in ("bilm", "domain-sentence", "untrained:bilm"):
        made = pretrain(source, corpus, vocabulary, dim=8, epochs=1).embeddings
        assert "cook" in made and "zig" not in made


def test_averaging(tiny_corpus):
    check_averaging(tiny_corpus)


def test_averaging_broken(tiny_corpus, broken_split):
    with found():
        check_averaging(tiny_corpus)


# 4 Labels


def check_labels(corpus):
    """Other labels on test documents change no table; clusters follow training documents alone."""
    vocabulary = Vocabulary.build(d for d in corpus.documents if d.split == "train")
    names = corpus.domains
    turned = [
        replace(d, domain=names[(names.index(d.domain) + 1) % len(names)]) if d.split == "test" else d
        for d in corpus.documents
    ]
    tables = [
        pretrain("domain-paragraph", each, vocabulary, dim=8, epochs=1).embeddings.table
        for each in (corpus, replace(corpus, documents=tuple(turned)))
    ]
    assert np.array_equal(*tables)
    found_clusters = [
        [d.domain for d in clusters.clustered(each, vocabulary, n_clusters=3, dim=4).documents[:28]]
        for each in (corpus, with_other_test_text(corpus, ("cook", "sailor", "pupil")))
    ]  # the training documents come first
    assert found_clusters[0] == found_clusters[1]


def test_labels(tiny_corpus):
    check_labels(tiny_corpus)


def test_labels_broken(tiny_corpus, broken_split):
    with found():
        check_labels(tiny_corpus)


# 5 Labelled files


def check_labelled_files(monkeypatch, corpus):
    """Of a set with one test sentence in forty, that one goes; a set of test sentences is refused."""
    test_line = tuple(" ".join(corpus.split("test")[0].paragraphs[0].split("\n")).split())
    others = tuple(tuple(f"w{i}{j}" for j in range(8)) for i in range(39))
    rows = tuple(Example(line, (i % 2,)) for i, line in enumerate((test_line, *others)))

    def sets(rows, corpus=corpus):
        whole = LabelledSet("made-up", ("no", "yes"), rows, rows[:2], rows[:2], {"dropped": {}})
        monkeypatch.setattr(labelled, "load_labelled", lambda name, tokenizer="prose": whole)
        monkeypatch.setattr(labelled, "missing", lambda name: "")
        return labelled.labelled_for("sentiment", corpus)

    assert test_line not in [example.tokens for s in sets(rows) for example in s.train]
    with pytest.raises(StudyError, match="test text"):
        sets(rows[:4])
    elsewhere = Corpus("elsewhere", (Document("x", None, "test", ("another text altogether .",)),))
    assert len(sets(rows, elsewhere)[0].train) == 40
    guarded = replace(elsewhere, guarded=corpus.split("test"))  # pre-trained on, for a model of `corpus`
    assert test_line not in [example.tokens for s in sets(rows, guarded) for example in s.train]
    assert guarded.fingerprint != elsewhere.fingerprint


def test_labelled_files(monkeypatch, tiny_corpus):
    check_labelled_files(monkeypatch, tiny_corpus)


def test_labelled_files_broken(monkeypatch, tiny_corpus):
    monkeypatch.setattr(labelled, "MOST_OVERLAP", 1.0)
    with pytest.raises(pytest.fail.Exception):  # nothing was refused
        check_labelled_files(monkeypatch, tiny_corpus)


# 6 Near-duplicates


def check_near_duplicates(monkeypatch):
    line = "the quick brown fox jumps over the lazy dog again ."
    documents = (
        Document("a", None, "train", (line,)),
        Document(
            "b", None, "test", (line.replace("again", "twice"), "another text of which nothing was seen .")
        ),
    )
    kept, dropped = text.drop_near_duplicates(documents)
    assert dropped == 1 and [len(d.paragraphs) for d in kept] == [1, 1]
    own = Corpus("own", documents)
    other = Corpus("other", (Document("c", None, "train", ("Before .", line.replace("again", "twice"))),))
    monkeypatch.setattr(texts, "load_corpus", {"own": own, "other": other}.get)
    texts.forget()
    read = texts.pretraining_corpus(grid("smoke")[2].replace(corpus="own", pretrain_on="other"))
    assert [d.paragraphs for d in read.documents] == [("Before .",)]


def test_near_duplicates(monkeypatch):
    check_near_duplicates(monkeypatch)


def test_near_duplicates_broken(monkeypatch):
    monkeypatch.setattr(text, "SPLITS", ("valid", "test"))  # nothing is compared with training text
    with found():
        check_near_duplicates(monkeypatch)


def test_other_corpus_broken(monkeypatch):
    monkeypatch.setattr(texts, "near_duplicates", lambda paragraphs, tested: np.zeros(len(paragraphs), bool))
    with found():
        check_near_duplicates(monkeypatch)


# 7 Topic features


def told_of(feature, corpus, vocabulary, name):
    """The features of one document, by way of everything that a run does."""
    parts = (vocabulary.encode(corpus.split(split), corpus.domains) for split in SPLITS)
    made, _ = context.with_context(
        Experiment(context_feature=feature), texts.Text(corpus, vocabulary, *parts)
    )
    part = getattr(made, name.split("-")[0])
    return part.features[part.document_of(np.arange(len(part))) == part.document_ids.index(name)]


def check_topic_features(feature, corpus):
    """Another ending and another label of a document change nothing of what is told before the ending.

    The latent spaces of all documents are turned into one frame; that rotation, common to all documents of a fold,
    changes no inner product.
    """
    vocabulary = Vocabulary.build(corpus.split("train"))
    for name in ("train-4", "test-1"):
        documents = list(corpus.documents)
        index = [d.id for d in documents].index(name)
        old = documents[index]
        ending = "\n".join(["the cook stirs the warm soup ."] * 12)
        label = "school" if name.startswith("train") else old.domain
        documents[index] = replace(old, paragraphs=(old.paragraphs[0], ending), domain=label)
        other = replace(corpus, documents=tuple(documents))
        before, after = (told_of(feature, each, vocabulary, name) for each in (corpus, other))
        n = replace(old, paragraphs=old.paragraphs[:1]).n_tokens + 1  # the first word of the ending too
        assert np.allclose(before[:n] @ before[:n].T, after[:n] @ after[:n].T, atol=1e-3)
        if feature == "domain-posterior" or name.startswith("test"):
            assert np.array_equal(before[:n], after[:n])
        assert not np.allclose(before[-9:], after[: len(before)][-9:], atol=1e-3)


@pytest.fixture
def small_space(monkeypatch):
    monkeypatch.setattr(context, "LSA_DIM", 6)


@pytest.mark.parametrize("feature", context.READERS)
def test_topic_features(feature, tiny_corpus, small_space):
    check_topic_features(feature, tiny_corpus)


@pytest.mark.parametrize("feature", context.READERS)
def test_topic_features_broken(feature, tiny_corpus, small_space, monkeypatch):
    """The topic of the whole document at each of its words."""
    running_sums = clusters.running_sums

    def whole_document(text, *arguments):
        ends = text.document_starts[1:] - 1
        return running_sums(text, *arguments)[ends][text.document_of(np.arange(len(text)))]

    for module in (clusters, context):
        monkeypatch.setattr(module, "running_sums", whole_document)
    with found():
        check_topic_features(feature, tiny_corpus)


@pytest.mark.parametrize("feature", context.READERS)
def test_topic_features_in_fold_broken(feature, tiny_corpus, small_space, monkeypatch):
    """A reader that has learnt from the very document whose words it helps to predict."""
    folds = context.folds
    monkeypatch.setattr(context, "folds", lambda text, seed: ((ids, text) for ids, _ in folds(text, seed)))
    with found():
        check_topic_features(feature, tiny_corpus)


# 8 Own text only


def check_own_text(corpus, monkeypatch):
    """With lm-split, or as few tokens as the LM's, its own documents are all that is read, and nothing is extra."""
    monkeypatch.setattr(texts, "load_corpus", lambda name: corpus)
    texts.forget()
    base = grid("smoke")[2].replace(
        lm_tokens=500, valid_tokens=None, test_tokens=None, n_samples=16, vocab_size=60
    )
    own, everything = (run(base.replace(corpus="tiny", pretrain_on=text)) for text in ("lm-split", "corpus"))
    assert own.text["extra_tokens"] == 0
    assert everything.text["extra_tokens"] == corpus.n_tokens("train") - own.text["lm_tokens"] > 0
    assert own.pretrained["provenance"]["tokens_read"] == own.text["lm_tokens"]
    as_few, more = (run(base.replace(corpus="tiny", pretrain_tokens=n)) for n in (500, 900))
    assert as_few.text["extra_tokens"] == 0 and as_few.scores == own.scores
    read = more.pretrained["provenance"]["tokens_read"]
    assert more.text["extra_tokens"] == read - more.text["lm_tokens"] > 0


def test_own_text(tiny_corpus, monkeypatch):
    check_own_text(tiny_corpus, monkeypatch)


def test_own_text_broken(tiny_corpus, monkeypatch):
    monkeypatch.setattr(texts, "_lm_split", lru_cache(lambda *_: tiny_corpus))
    with found():
        check_own_text(tiny_corpus, monkeypatch)


def test_own_text_first_broken(tiny_corpus, monkeypatch):
    """A subset for pre-training that begins with other documents than the LM's."""
    own, last = tiny_corpus.sampled(500), replace(tiny_corpus, documents=tiny_corpus.documents[14:])
    monkeypatch.setattr(texts, "_lm_split", lru_cache(lambda *_: own))
    monkeypatch.setattr(Corpus, "sampled", lambda self, n: last)
    with found():
        check_own_text(tiny_corpus, monkeypatch)


# 9 Stopping


def check_stopping(corpus, monkeypatch):
    """Other test text, the same history of training and validation."""
    histories = []
    for number, each in enumerate((corpus, with_other_test_text(corpus))):
        monkeypatch.setattr(texts, "load_corpus", lambda name, each=each: each)
        texts.forget()
        e = grid("smoke")[0].replace(
            corpus=f"tiny-{number}", lm_tokens=None, valid_tokens=None, test_tokens=None
        )
        record = run(e.replace(vocab_size=None, n_samples=16, max_epochs=2))
        histories.append([(row["train_loss"], row["valid_loss"]) for row in record.history])
    assert histories[0] == histories[1]


def test_stopping(tiny_corpus, monkeypatch):
    check_stopping(tiny_corpus, monkeypatch)


def test_stopping_broken(tiny_corpus, monkeypatch):
    fit = experiments.fit_language_model
    on_test = lambda e, model, text: fit(e, model, replace(text, valid=text.test))  # noqa: E731
    monkeypatch.setattr(experiments, "fit_language_model", on_test)
    with found():
        check_stopping(tiny_corpus, monkeypatch)


# 10 The warning example


def leaky_runs():
    """Records of the baseline and of the leak, on the same real text."""
    base = grid("smoke")[0].replace(
        lm_tokens=20_000, hidden_size=32, batch_size=16, dropout=0.0, max_epochs=6, pretrain_epochs=6,
        pretrain_on="lm-split",
    )  # fmt: skip
    return [run(base.replace(source=source)) for source in ("random", LEAKY)]


def check_leak(records):
    honest, leak = (record.scores["test_perplexity_document"] for record in records)
    assert leak < 0.7 * honest  # it was told the answer
    results = load_results("local")
    with pytest.raises(StudyError, match=f"{LEAKY} sees the words that it must predict"):
        compare(results)
    assert LEAKY in set(compare(results, leaky=True)["source"])
    assert LEAKY not in set(compare(results.honest)["source"])


def test_leak(docstrings_corpus):
    check_leak(leaky_runs())


def test_leak_broken(docstrings_corpus, monkeypatch):
    blind = lambda model, text, layer: np.zeros((len(text), 32), np.float32)  # noqa: E731
    monkeypatch.setattr(lm, "token_states", blind)  # nothing leaks: nothing collapses
    with found():
        check_leak(leaky_runs())
