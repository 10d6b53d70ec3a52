"""A synthetic language: its settings, its law, and text drawn from it that is a corpus like any other."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from rtl_core import Experiment, corpora, load_corpus, pretrain, studies
from rtl_core.batches import previous
from rtl_core.corpora import sources
from rtl_core.corpora.topicworld import (
    CLASSES,
    SENTENCES,
    World,
    document_types,
    law_of,
    read_topicworld,
    sampled,
)
from rtl_core.corpora.vocabulary import EOS, Vocabulary
from rtl_core.storage import StudyError
from rtl_core.texts import text_of

SMALL = World(n_domains=3, content_words=4, function_words=3, n_documents=40, document_tokens=40)
NAME = "topicworld:n_domains=3,content_words=4,function_words=3,n_documents=40,document_tokens=40"


# Settings


def test_a_name_holds_all_settings():
    assert World.named("topicworld") == World() and World().name == "topicworld"
    assert World.named(NAME) == SMALL and SMALL.name == NAME
    assert World.named("topicworld:overlap=0,seed=3.0") == World(overlap=0.0, seed=3)
    assert World.named("topicworld:overlap=0.50").name == World(overlap=0.5).name


def test_a_name_tells_close_worlds_apart_and_studies_name_theirs_as_it_does():
    world = World(seed=1234567, overlap=0.1234567, zipf=2.0, noise=1e-7)
    assert world.name == "topicworld:overlap=0.1234567,zipf=2,noise=1e-07,seed=1234567"
    assert World.named(world.name) == world
    used = {arm["corpus"] for arm in studies.OVERLAP_ARMS} | {studies.SMALL_WORLD["corpus"]}
    assert {World.named(name).name for name in used} == used and len(used) == 5


@pytest.mark.parametrize(
    "name, message",
    [
        ("docstrings", "nobody knows its limits"),
        ("topicworld:overlp=1", "Did you mean overlap"),
        ("topicworld:overlap", "not NAME=NUMBER"),
        ("topicworld:overlap=high", "not NAME=NUMBER"),
        ("topicworld:overlap=1.5", "overlap = 1.5 is not valid; give float, 0.0 to 1.0"),
        ("topicworld:noise=nan", "noise = nan is not valid"),
        ("topicworld:n_domains=2.5", "n_domains = 2.5 is not valid; give int, 2 to 16"),
        ("topicworld:n_domains=inf", "n_domains = inf is not valid"),
        ("topicworld:overlap=0.5,overlap=0.6", "overlap is given twice"),
        ("topicworld:second=0.6", "second = 0.6 is not valid; give float, 0.0 to 0.5"),
    ],
)
def test_a_name_that_is_no_world_is_refused(name, message):
    with pytest.raises(StudyError, match=message):
        World.named(name)


@pytest.mark.parametrize("value", [True, "3", None])
def test_a_setting_that_is_no_number_is_refused(value):
    with pytest.raises(StudyError, match="n_domains = .* is not valid; give int"):
        World(n_domains=value)


# The law


def test_the_law_is_made_of_probabilities():
    for world in (World(), SMALL, World(overlap=1.0, noise=0.0, zipf=0.0), World(overlap=0.0, second=0.0)):
        law = law_of(world)
        np.testing.assert_allclose(law.transitions.sum(1), 1, atol=1e-12)
        np.testing.assert_allclose(law.emissions.sum(2), 1, atol=1e-12)
        assert law.emissions.min() >= 0 and len(set(law.words)) == len(law.words)
        assert (
            law.words[0] == EOS and (law.emissions[:, 0, 0] == 1).all() and not law.emissions[:, 1:, 0].any()
        )
        assert len(set(law.types)) == len(law.types) == world.n_domains ** (2 if world.second else 1)
        np.testing.assert_allclose(law.shares @ law.transitions, law.shares, atol=1e-12)


def test_content_words_depend_on_the_domain_and_function_words_do_not():
    law = law_of(SMALL)
    by_class = dict(zip(CLASSES, law.emissions.transpose(1, 0, 2)))
    for name, emissions in by_class.items():
        assert (np.ptp(emissions, axis=0).max() > 0.01) == (name in ("noun", "verb", "adjective"))
    noun = {word: i for i, word in enumerate(law.words)}["sea-noun-1"]
    of = dict(zip(law.types, by_class["noun"][:, noun]))
    assert of["sea"] > of["sea+court"] > of["court+sea"] > of["court"] == pytest.approx(of["farm+court"])
    assert of["court+sea"] == pytest.approx(0.25 * of["sea"] + 0.75 * of["court"])
    same = law_of(World(n_domains=3, overlap=1.0)).emissions
    assert np.ptp(same, axis=0).max() < 1e-15


def test_frequencies_fall_as_in_zipfs_law_and_noise_utters_anything():
    law = law_of(World(noise=0.0, overlap=0.0, second=0.0))
    place = {word: i for i, word in enumerate(law.words)}
    sea = law.emissions[law.types.index("sea"), CLASSES.index("verb")]
    assert sea[place["sea-verb-1"]] == pytest.approx(7 * sea[place["sea-verb-7"]])
    assert not sea[[place["farm-verb-1"], place["pronoun-1"], place["sea-noun-1"]]].any()
    noisy = law_of(World(noise=0.1, overlap=0.0, second=0.0)).emissions[
        law.types.index("sea"), CLASSES.index("verb")
    ]
    assert (noisy[1:] > 0).all() and noisy[place["sea-verb-1"]] > 0.9 * sea[place["sea-verb-1"]]
    assert sum(noisy[i] for w, i in place.items() if "sea-verb" not in w) == pytest.approx(0.1, abs=0.01)


# Text


def test_text_follows_the_law():
    """Counts of words and of pairs of classes in a long text against their probabilities."""
    law, rng = (
        law_of(World(n_domains=2, second=0.0, noise=0.0, content_words=3, function_words=2)),
        np.random.default_rng(3),
    )
    documents = sampled(law, np.zeros(60, dtype=int), 2000, rng)
    words = np.concatenate(documents)
    expected = law.shares @ law.emissions[0]
    np.testing.assert_allclose(
        np.bincount(words, minlength=len(law.words)) / len(words), expected, atol=0.004
    )
    class_of = law.emissions[0].argmax(0)  # without noise a word has one class
    pairs = Counter(pair for d in documents for pair in pairwise(class_of[d].tolist()))
    total = sum(pairs.values())
    for (a, b), count in pairs.items():
        assert law.transitions[a, b] > 0
        assert count / total == pytest.approx(law.shares[a] * law.transitions[a, b], abs=0.004)


def test_a_document_ends_with_the_first_sentence_end_from_its_length_on():
    for document in sampled(law_of(SMALL), np.zeros(30, dtype=int), 40, np.random.default_rng(0)):
        assert len(document) >= 40 and document[-1] == 0 and (document[39:-1] != 0).all()
    corpus = read_topicworld(SMALL)
    lines = [len(d.lines()) for d in corpus.documents]
    assert all(all(d.lines()) for d in corpus.documents)  # no empty sentence
    assert [len(d.paragraphs) for d in corpus.documents] == [-(-n // SENTENCES) for n in lines]


def test_the_text_is_that_of_the_seed_and_settings():
    first, again = read_topicworld(SMALL), read_topicworld(SMALL)
    assert first == again and first.fingerprint == again.fingerprint
    others = [World(**vars(SMALL) | change) for change in ({"seed": 1}, {"overlap": 0.6}, {"noise": 0.03})]
    assert len({first.fingerprint, *(read_topicworld(w).fingerprint for w in others)}) == 4
    assert Counter(d.split for d in first.documents) == {"train": 32, "valid": 2, "test": 6}


def test_every_number_of_documents_is_split_and_a_round_one_in_exact_shares():
    sizes = {}
    for n in (*range(20, 51), 400, 4000):
        corpus = read_topicworld(World(n_documents=n, document_tokens=10, content_words=2, function_words=1))
        count = Counter(document.split for document in corpus.documents)
        sizes[n] = tuple(count[split] for split in ("train", "valid", "test"))
        assert sum(sizes[n]) == n and abs(sizes[n][0] - 0.8 * n) <= 0.5 and min(sizes[n]) > 0
    assert sizes[400] == (320, 20, 60) and sizes[4000] == (3200, 200, 600) and sizes[23] == (18, 1, 4)


def test_the_default_world_is_as_expected_and_every_word_is_in_its_vocabulary():
    corpus = load_corpus("topicworld")
    assert sources.differences(corpus) == []  # the counts of sources.toml
    assert corpus.fingerprint.startswith("d14800c769d23657")  # the same on every machine and version
    law, vocabulary = law_of(World()), Vocabulary.build(corpus.split("train"), Experiment().vocab_size)
    assert set(vocabulary.words) == {"<unk>", *law.words}
    assert len(corpus.domains) == 8 and len(law.types) == 64
    types = [law.types[t] for t in document_types(World())]
    assert all(
        d.id == f"{d.split}-{i}" and types[i].split("+")[0] == d.domain
        for i, d in enumerate(corpus.documents)
    )


def test_it_is_an_ordinary_corpus():
    corpus = load_corpus(NAME)
    assert corpus == load_corpus(NAME) == read_topicworld(SMALL)  # from the cache
    assert corpora.check(NAME)[0]["ok"] and "40 documents" in corpora.get(NAME)
    assert next(row for row in corpora.corpora_table() if row["name"] == "topicworld")["at_hand"]
    text = text_of(Experiment(corpus=NAME))
    assert not (text.test.tokens == 0).any()
    starts = text.test.document_starts[:-1]
    assert (text.test.tokens[starts] != 1).all() and (previous(text.test, starts)[starts] == 1).all()


@pytest.mark.parametrize(
    "source", ["lsa", "bilm", "domain-sentence", "domain-paragraph", "next-paragraph", "sentence-order"]
)
def test_sources_of_every_kind_learn_from_it(source):
    corpus = load_corpus(
        "topicworld:n_domains=3,content_words=8,function_words=5,n_documents=100,document_tokens=60"
    )
    made = pretrain(source, corpus, dim=16, **({} if source == "lsa" else {"epochs": 1}))
    covered = set(made.embeddings.words)
    assert {w for d in corpus.split("train") for line in d.lines() for w in line} <= covered
