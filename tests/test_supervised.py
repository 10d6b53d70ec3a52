"""Sources trained on labels: what a lexicon holds, how names and tags are scored, which pairs are drawn, controls."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rtl_core import batches
from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.corpora.labelled import Example, LabelledSet
from rtl_core.corpora.vocabulary import EOS, UNK, Vocabulary
from rtl_core.pretrain import pairs, pretrain, supervised, tagging
from rtl_core.storage import StudyError, cache_dir

TAGS = ("NAME", "VERB", "OTHER")
BIO = ("O", "B-PER", "I-PER", "B-SHIP", "I-SHIP")
VERBS = ("stirs", "bakes", "moors", "paints", "reads", "explains")


@pytest.fixture(scope="module")
def vocabulary(tiny_corpus):
    return Vocabulary.build(tiny_corpus.split("train"))


def tagged(rng, n, names):
    """`NAME VERB it .`: what a word is shows in its spelling and place."""
    rows = ((rng.choice(names), rng.choice(VERBS)) for _ in range(n))
    return tuple(Example((str(name), str(verb), "it", "."), (0, 1, 2, 2)) for name, verb in rows)


def named(rng, n, people):
    rows = ((rng.choice(people), rng.choice(["mary", "rose"])) for _ in range(n))
    return tuple(
        Example(("then", str(person), "moors", "the", "ship", str(ship)), (0, 1, 0, 0, 0, 3))
        for person, ship in rows
    )


def judged(rng, n, names):
    rows = ((rng.integers(2), rng.choice(names)) for _ in range(n))
    return tuple(Example(("the", str(name), ("fails", "shines")[good]), (int(good),)) for good, name in rows)


def inferred(rng, n, names):
    rows = ((rng.integers(2), rng.choice(names)) for _ in range(n))
    return tuple(
        Example(("the", str(name), "bakes"), (int(same),), ("nobody" if not same else str(name), "bakes"))
        for same, name in rows
    )


MADE = {
    "pos": (tagged, TAGS), "ner": (named, BIO), "sentiment": (judged, ("bad", "good")),
    "nli": (inferred, ("no", "yes")),
}  # fmt: skip
NAMES = ("anna", "hanna", "joanna", "susanna", "marianna")


def made_up(task, name="made", labels=None, size=200, names=NAMES):
    """A set of a task that is learnt at once; half of its test sentences have a name that training never saw."""
    make, own = MADE[task]
    rng = np.random.default_rng(0)
    parts = make(rng, size, names), make(rng, 20, names), make(rng, 40, (*names[:2], "savanna", "rosanna"))
    return LabelledSet(name, labels or own, *parts)


@pytest.fixture
def at_hand(monkeypatch):
    """Makes a function by which a test says which sets are there."""
    return lambda *sets: monkeypatch.setattr(supervised, "labelled_for", lambda task, corpus: list(sets))


@pytest.fixture
def small_batches(monkeypatch):
    """A tiny set gives a step or two an epoch otherwise."""
    monkeypatch.setattr(batches, "BATCH_TOKENS", 128)


# The lexicon


def test_a_lexicon_holds_every_spelling_and_knows_which_were_labelled(tiny_corpus):
    small = Vocabulary.build(tiny_corpus.split("train"), 12)
    lexicon = supervised.Lexicon.of([made_up("pos")], "token", tiny_corpus, small)
    words = lexicon.spellings.words
    assert words[:2] == (UNK, EOS) and len(set(words)) == len(words)
    read = {word for d in tiny_corpus.split("train") for line in d.lines() for word in line}
    assert set(words[2:]) == read | {*NAMES, *VERBS, "savanna", "rosanna", "it", "."}
    assert {word for word, known in zip(words, lexicon.known) if known} == {*NAMES, *VERBS, "it", "."}
    for word, kind in zip(words, lexicon.types.tolist()):
        assert kind == small.ids.get(word, 0)
    assert lexicon.text.n_tokens == tiny_corpus.n_tokens("train")
    first = lexicon.spellings.decode(lexicon.text.tokens[:6])
    assert first == tiny_corpus.split("train")[0].lines()[0][:6]  # nothing is <unk> in it


def test_examples_end_like_lines_of_text(tiny_corpus, vocabulary):
    tags = supervised.Lexicon.of([made_up("pos")], "token", tiny_corpus, vocabulary)
    text = tags.encode([Example(("anna", "reads"), (0, 1)), Example(("it",), (2,))], "token", end=3)
    assert tags.spellings.decode(text.tokens) == ["anna", "reads", EOS, "it", EOS]
    assert text.starts.tolist() == [0, 3] and text.lengths.tolist() == [3, 2]
    assert text.token_labels.tolist() == [0, 1, 3, 2, 3]
    both = supervised.Lexicon.of([made_up("nli")], "pair", tiny_corpus, vocabulary)
    examples = [Example(("the",), (1,), ("nobody", "bakes")), Example(("bakes",), (0,), ("the",))]
    text = both.encode(examples, "pair", end=9)
    words = [both.spellings.decode(text.tokens[a : a + n]) for a, n in zip(text.starts, text.lengths)]
    assert words == [["the", EOS], ["bakes", EOS], ["nobody", "bakes", EOS], ["the", EOS]]
    assert text.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("readout", ["averaged", "input-layer"])
def test_words_that_no_label_has_get_a_vector_by_their_spelling(readout, tiny_corpus, at_hand):
    at_hand(made_up("pos"))
    small = Vocabulary.build(tiny_corpus.split("train"), 20)
    made = pretrain("pos", tiny_corpus, small, dim=8, epochs=1, readout=readout).embeddings
    facts = made.provenance
    unlabelled = set(small.words[2:]) - {*VERBS, "."}
    assert unlabelled and unlabelled <= set(made.words)
    assert "anna" not in made  # not in the LM's vocabulary
    assert (UNK in made) == (readout == "averaged")
    assert facts["labels"] == facts["outside_tokens"] == 4 * 200
    assert facts["tokens_read"] == (tiny_corpus.n_tokens("train") if readout == "averaged" else 0)
    learnt = {*VERBS, "."} & set(small.words)
    assert facts["seen_in_labels"]["types"] == pytest.approx(len(learnt) / (len(small) - 2))
    running = sum(small.counts[small.ids[word]] for word in learnt)
    assert facts["seen_in_labels"]["tokens"] == pytest.approx(running / sum(small.counts[2:]))


# Tasks


@pytest.mark.parametrize("task", MADE)
def test_every_task_learns_its_labels_and_new_names_too(
    task, tiny_corpus, vocabulary, at_hand, small_batches
):
    at_hand(made_up(task))
    scores = pretrain(task, tiny_corpus, vocabulary, dim=16, epochs=15).scores
    best, baseline = ("f1", "dictionary_f1") if task == "ner" else ("accuracy", "majority_accuracy")
    assert scores[f"made_{best}"] > 0.9 > scores[f"made_{baseline}"] + 0.02


def test_sets_share_labels_by_name_and_are_scored_within_their_own(
    tiny_corpus, vocabulary, at_hand, small_batches
):
    first = made_up("sentiment", "first", size=100)
    flipped = tuple(e._replace(labels=(1 - e.labels[0],)) for e in first.test)
    second = replace(first, name="second", labels=("good", "bad"), test=flipped)
    second = replace(second, **{
        s: tuple(e._replace(labels=(1 - e.labels[0],)) for e in getattr(first, s)) for s in ("train", "valid")
    })  # fmt: skip
    other = replace(made_up("sentiment", "other", size=100), labels=("cold", "hot"))
    at_hand(first, second, other)
    made = pretrain("sentiment", tiny_corpus, vocabulary, dim=16, epochs=15)
    assert made.model.output.out_features == 4
    assert made.scores["first_accuracy"] == made.scores["second_accuracy"] > 0.95
    assert made.scores["other_accuracy"] > 0.95  # "good" can never be the answer to hot or cold
    assert set(made.embeddings.provenance["labelled_sets"]) == {"first", "second", "other"}


def test_a_set_without_a_test_split_is_trained_on_but_not_scored(tiny_corpus, vocabulary, at_hand):
    at_hand(made_up("sentiment"), replace(made_up("sentiment", "more"), test=()))
    made = pretrain("sentiment", tiny_corpus, vocabulary, dim=8, epochs=1)
    assert made.embeddings.provenance["labels"] == 400
    assert {name.split("_")[0] for name in made.scores} == {"made"}


# Scores by hand


@pytest.mark.parametrize(
    "labels, expected",
    [
        ("O O", set()),
        ("B-A I-A O B-A", {(0, 2, "A"), (3, 4, "A")}),
        ("B-A B-A", {(0, 1, "A"), (1, 2, "A")}),
        ("O I-A I-A", {(1, 3, "A")}),  # stray: begins a name
        ("B-A I-B", {(0, 1, "A"), (1, 2, "B")}),
        ("I-A B-A I-A I-A", {(0, 1, "A"), (1, 4, "A")}),
        ("B-creative-work I-creative-work", {(0, 2, "creative-work")}),
    ],
)
def test_names_are_read_as_conlleval_does(labels, expected):
    assert tagging.entities(labels.split()) == expected


def test_f1_counts_whole_names_only():
    true = {(0, 2, "A"), (4, 5, "B"), (7, 9, "A")}
    assert tagging.f1(true, true) == {"precision": 1, "recall": 1, "f1": 1}
    found = {
        (0, 2, "A"),
        (4, 5, "A"),
        (7, 8, "A"),
        (10, 11, "B"),
    }  # right; wrong type; wrong end; nothing there
    assert tagging.f1(found, true) == {"precision": 1 / 4, "recall": 1 / 3, "f1": pytest.approx(2 / 7)}
    assert (
        tagging.f1(set(), true)
        == tagging.f1(true, set())
        == {"precision": 0, "recall": 0, "f1": 0} | {"f1": 0}
    )


def test_names_never_reach_over_the_end_of_a_sentence():
    labelled = LabelledSet("x", BIO, (), (), ())
    true = np.array([0, 1, -1, 2, 0, -1])
    assert tagging._ner_scores(labelled, true, true)["recall"] == 1
    joined = np.array([0, 1, -1, 0, 0, -1])  # half of what would be one name without the end
    assert tagging._ner_scores(labelled, joined, true)["recall"] == 1 / 2


def test_the_dictionary_takes_the_longest_name_it_has_seen():
    train = (
        Example(("mary", "rose"), (3, 4)),
        Example(("mary", "sings"), (1, 0)),
    )
    test = (Example(("mary", "rose", "mary", "anne"), (3, 4, 1, 2)), Example(("rose",), (0,)))
    found, true = tagging._by_dictionary(LabelledSet("x", BIO, train, (), test))
    assert found == {(0, 2, "SHIP"), (2, 3, "PER")} and true == {(0, 2, "SHIP"), (2, 4, "PER")}


def test_baselines_of_tags():
    train = (Example(("a", "b", "a"), (0, 1, 0)), Example(("a", "c"), (2, 0)))
    labelled = LabelledSet("x", TAGS, train, (), (Example(("a", "b", "new", "b"), (0, 1, 0, 2)),))
    true = np.array([0, 1, 0, 2, -1])
    scores = tagging._pos_scores(labelled, np.array([0, 1, 1, 2, -1]), true)
    assert scores == {"accuracy": 3 / 4, "majority_accuracy": 2 / 4, "word_majority_accuracy": 3 / 4}


# Pairs that any corpus has


def numbered(n_documents=6, n=8, domain="d", split="train"):
    """Documents whose paragraphs have one sentence each, its document and place spelled out."""
    lines = [[f"doc{d} place{i} one two three four" for i in range(n)] for d in range(n_documents)]
    return [Document(f"{split}-{domain}-{d}", domain, split, tuple(p)) for d, p in enumerate(lines)]


def corpus_of(*groups):
    return Corpus("numbered", tuple(d for group in groups for d in group), "whitespace")


def drawn(corpus, source="next-paragraph", split="train", seed=0):
    """Pairs as ((document, place), (document, place), label)."""
    vocabulary = Vocabulary.build(corpus.split("train"))
    text = vocabulary.encode(corpus.split(split), corpus.domains)
    found = pairs.drawn(text, PretrainConfig(source, seed=seed), split, corpus)
    ends = [(int(a), int(a + n)) for a, n in zip(found.starts, found.lengths)]
    places = [tuple(map(place_of, vocabulary.decode(text.tokens[a:b])[:2])) for a, b in ends]
    half = len(places) // 2
    assert (found.labels[:half] == found.labels[half:]).all()
    return list(zip(places[:half], places[half:], found.labels[:half].tolist()))


def place_of(word):
    return int(re.sub(r"\D", "", word))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 30])
def test_paragraphs_that_follow_each_other_and_others_by_construction(n):
    found = drawn(corpus_of(numbered(n=n)))
    assert Counter(label for *_, label in found) == {0: len(found) // 2, 1: len(found) // 2}
    assert len(found) == 6 * (n - 1)
    for (document, place), (other, elsewhere), label in found:
        near = document == other and abs(place - elsewhere) <= 1
        assert near == bool(label) and (not label or elsewhere == place + 1)
        assert elsewhere > 0  # a document's opening would give a wrong one away
        if n >= 6 and not label:
            assert document == other  # the topic does not tell


def test_wrong_paragraphs_are_drawn_evenly():
    counts = Counter(b[1] for a, b, label in drawn(corpus_of(numbered(400, 6))) if not label and a[1] == 3)
    assert set(counts) == {1, 5}  # 2, 3 and 4 are neighbours or itself; 0 opens
    assert min(counts.values()) > 70


def test_short_documents_take_the_wrong_paragraph_from_their_own_domain():
    cook = numbered(3, 2, "cook")
    sail = [
        replace(d, paragraphs=tuple(p.replace("doc", "doc9") for p in d.paragraphs))
        for d in numbered(3, 2, "sail")
    ]
    mixed = [d for both in zip(cook, sail) for d in both]  # domains take turns
    for (a, _), (b, _), label in drawn(corpus_of(mixed)):
        assert (a == b) == bool(label) and (a >= 90) == (b >= 90)


def test_a_document_alone_in_its_domain_gives_no_pair_it_cannot_answer():
    lone = [
        Document("x", "lone", "train", ("doc77 place0 one two three four", "doc77 place1 one two three four"))
    ]
    assert {a[0] for a, *_ in drawn(corpus_of(numbered(), lone))} == set(range(6))


def test_order_of_sentences_is_right_or_swapped_half_each():
    found = drawn(corpus_of(numbered()), "sentence-order")
    assert Counter(label for *_, label in found) == {0: 21, 1: 21}
    for (document, place), (other, elsewhere), label in found:
        assert document == other and elsewhere - place == (1 if label else -1)
    assert len({(a[0], min(a[1], b[1])) for a, b, _ in found}) == 42  # every neighbours once


def test_sentences_are_of_one_paragraph_where_it_has_several():
    joined = [
        replace(d, paragraphs=("\n".join(d.paragraphs[:3]), "\n".join(d.paragraphs[3:]))) for d in numbered()
    ]
    found = drawn(corpus_of(joined), "sentence-order")
    assert {tuple(sorted((a[1], b[1]))) for a, b, _ in found} == {
        (0, 1),
        (1, 2),
        (3, 4),
        (4, 5),
        (5, 6),
        (6, 7),
    }


@pytest.mark.parametrize("source", ["next-paragraph", "sentence-order"])
def test_headings_and_blank_lines_are_skipped(source):
    spaced = [
        replace(d, paragraphs=tuple(x for p in d.paragraphs for x in ("= doc1 =", p, ""))) for d in numbered()
    ]
    assert drawn(corpus_of(spaced), source) == drawn(corpus_of(numbered()), source)


def test_what_is_drawn_is_capped_and_follows_the_seed(monkeypatch):
    corpus = corpus_of(numbered())
    assert drawn(corpus) == drawn(corpus) != drawn(corpus, seed=1)
    monkeypatch.setattr(pairs, "MOST_TOKENS", 10 * 14 + 13)  # a pair has 14
    assert len(drawn(corpus)) == 10


@pytest.mark.parametrize("source", ["next-paragraph", "sentence-order"])
def test_pairs_of_a_corpus_that_shows_them_are_learnt(source, small_batches):
    """Paragraphs come in two halves, each with a word of its own; sentences are numbered."""
    n, marks = (3, "abc") if source == "sentence-order" else (10, "aaaaabbbbb")
    corpus = corpus_of(
        *(numbered(size, n, split=s) for s, size in (("train", 60), ("valid", 9), ("test", 9)))
    )
    documents = (
        replace(d, paragraphs=tuple(f"{m} one two three four five" for m in marks)) for d in corpus.documents
    )
    scores = pretrain(source, replace(corpus, documents=tuple(documents)), dim=16, epochs=3).scores
    assert scores["accuracy"] > (0.9 if source == "sentence-order" else 0.7)
    assert scores["majority_accuracy"] == 0.5


@pytest.mark.parametrize("source", ["next-paragraph", "sentence-order"])
def test_a_corpus_without_such_pairs_says_so(source, tiny_corpus):
    single = [replace(d, paragraphs=("the cook stirs the warm soup .",)) for d in tiny_corpus.documents]
    with pytest.raises(
        StudyError, match=f"{source} needs .*train of corpus tiny has 0 such pairs.*word2vec-sg"
    ):
        pretrain(source, replace(tiny_corpus, documents=tuple(single)), dim=6)
    assert list(cache_dir().rglob("*.json")) == []


# Controls, seeds, accounts


@pytest.mark.parametrize("source", ["next-paragraph", "pos", "ner", "sentiment", "nli"])
def test_controls_destroy_the_task_and_nothing_else(source, tiny_corpus, vocabulary, at_hand):
    if source in MADE:
        at_hand(made_up(source))
    plain = pretrain(source, tiny_corpus, vocabulary, dim=8, epochs=2)
    untrained = pretrain(f"untrained:{source}", tiny_corpus, vocabulary, dim=8, epochs=2)
    shuffled = pretrain(f"shuffled-labels:{source}", tiny_corpus, vocabulary, dim=8, epochs=2)
    assert untrained.history == [] and len(shuffled.history) == 2
    assert plain.scores.keys() == untrained.scores.keys() == shuffled.scores.keys()
    tables = [made.embeddings.table for made in (plain, untrained, shuffled)]
    assert len({made.embeddings.words for made in (plain, untrained, shuffled)}) == 1
    assert not any(np.allclose(a, b) for a, b in zip(tables, tables[1:]))


def test_shuffled_labels_teach_nothing(tiny_corpus, vocabulary, at_hand):
    at_hand(made_up("pos", size=400))
    made = pretrain("shuffled-labels:pos", tiny_corpus, vocabulary, dim=8, epochs=4)
    assert made.scores["made_accuracy"] < 0.7 < 0.95 < made.scores["made_word_majority_accuracy"] + 0.2


@pytest.mark.parametrize("source", ["sentence-order", "nli"])
def test_the_seed_decides(source, tiny_corpus, vocabulary, at_hand, monkeypatch, tmp_path):
    at_hand(made_up("nli"))
    tables = []
    for number, seed in enumerate((3, 3, 4)):
        monkeypatch.setenv("RTL_CACHE_DIR", str(tmp_path / str(number)))
        tables.append(pretrain(source, tiny_corpus, vocabulary, dim=6, epochs=1, seed=seed).embeddings.table)
    assert np.array_equal(tables[0], tables[1]) and not np.allclose(tables[0], tables[2])


def test_words_that_no_pair_has_are_left_out(tiny_corpus):
    odd = Document("odd", "kitchen", "train", ("zig zag zog zug zeg zyg .",))  # no neighbour
    made = pretrain(
        "sentence-order", replace(tiny_corpus, documents=(*tiny_corpus.documents, odd)), dim=6, epochs=1
    )
    assert "zig" not in made.embeddings and "soup" in made.embeddings and EOS in made.embeddings
    facts = made.embeddings.provenance
    assert facts["labels"] == 28 * 3 * 3 and facts["outside_tokens"] == 0 and facts["level"] == "sentence"
    assert facts["tokens_read"] == tiny_corpus.n_tokens("train") + 8


def test_files_that_are_not_there_are_named_with_what_works_without(tiny_corpus, monkeypatch, tmp_path):
    monkeypatch.setenv("RTL_DATA_DIR", str(tmp_path))
    with pytest.raises(StudyError, match="(?s)sick.*next-paragraph"):
        pretrain("nli", tiny_corpus, dim=6)
    assert list(cache_dir().rglob("*.json")) == []


def test_other_labelled_files_are_another_table(tmp_path, monkeypatch, tiny_corpus):
    from rtl_core.corpora.labelled import labelled_content

    assert labelled_content("bilm") == []
    monkeypatch.setenv("RTL_DATA_DIR", str(tmp_path))
    assert labelled_content("pos") == []  # not at hand: the error comes when they are read
    checked = {"train.tsv": "aa", "dev.tsv": "bb"}
    monkeypatch.setattr("rtl_core.corpora.labelled.missing", lambda name: "" if name == "sst-2" else "gone")
    monkeypatch.setattr("rtl_core.corpora.labelled.checked_files", lambda name: ({}, checked))
    assert labelled_content("lsa+permuted:sentiment") == ["aa", "bb"]
