"""Labelled sets: every format by small files, the spelling of the LM's corpus, and text that must not leak."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from rtl_core import corpora
from rtl_core.__main__ import main
from rtl_core.catalogue import SOURCES
from rtl_core.corpora import labelled, load_corpus, sources, text
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.corpora.labelled import LABELLED, labelled_for, load_labelled
from rtl_core.storage import StudyError, file_sha256

REAL = Path(os.environ.get("RTL_DATA_DIR", ""))
WORDS = [a + b for a in ("ma", "ve", "ti", "so") for b in ("ker", "lo", "nu", "pim", "dax")]

EWT = """# newdoc id = a
# text = Don’t ask # 12.
1-2\tDon’t\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn’t\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
3\task\task\tVERB\tVB\t_\t0\troot\t_\t_
3.1\task\task\tVERB\tVB\t_\t_\t_\t3:x\t_
4\t#\t#\tSYM\tNN\t_\t3\tobj\t_\t_
5\t12\t12\tNUM\tCD\t_\t4\tnummod\t_\t_

# text = Yes
1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_
"""
WIKIGOLD = "Ann I-PER\nLee I-PER\nBob B-PER\nsaw O\nOhio I-LOC\n\nIt O\n\n-DOCSTART- O\n\n"
SICK = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
RTE = '<?xml version="1.0" encoding="UTF-8"?>\n<entailment-corpus>{}</entailment-corpus>'


def one(word: str, tag: str = "NOUN") -> str:
    return f"1\t{word}\t_\t{tag}\t_\t_\t0\troot\t_\t_\n\n"


def sentence(rng, n: int = 9) -> str:
    """Words in an order that no other sentence has."""
    return f"{' '.join(rng.choice(WORDS, n))} ."


def captions(text: str) -> bytes:
    return gzip.compress(
        text.encode(), mtime=0
    )  # the same bytes, so the same name of a test, in every process


FILES = {
    "ewt": {
        "en_ewt-ud-train.conllu": EWT,
        "en_ewt-ud-dev.conllu": one("A"),
        "en_ewt-ud-test.conllu": one("B"),
    },
    "gum": {
        "splits.md": "# Splits\n\ndev and train\n\n## dev\n\n  * GUM_bio_b\n\n## test\n\n  * GUM_news_c\n\n"
        "## test2\n  * GUM_whow_d\n## train\n  * GUM_bio_a\n  * GUM_reddit_e\n",
        **{f"dep/GUM_{n}.conllu": one(n) for n in ("bio_a", "bio_b", "news_c", "whow_d", "reddit_e")},
        "dep/GENTLE_f.conllu": one("f"),
    },
    "wnut17": {
        "wnut17train.conll": "#NLP\tO\nin\tO\nNew\tB-location\nYork\tI-location\n\t\nIt\tO\n",
        "emerging.dev.conll": "A\tO\n\n",
        "emerging.test.annotated": "B\tO\n\n",
    },
    "wikigold": {"wikigold.conll.txt": WIKIGOLD},
    "sst-2": {
        "train.tsv": "sentence\tlabel\nit 's `` fun \" , \t1\ni do n't see why \t0\n",
        "dev.tsv": "sentence\tlabel\nthe acting is a charm from the first to the last scene . \t1\nso dull ! \t0\n",
        "test.tsv": "index\tsentence\n0\tno such thing as it 's told here is even half as good .\n",
    },
    "mr": {
        "rt-polarity.pos": "the acting is a charm from the very first to the last scene . \nso it goes . \n",
        "rt-polarity.neg": "SO DULL !\nOh my . no such thing as it's told here is even half as good . \nno ! \n",
    },
    "sick": {
        "SICK_train.txt": SICK + "1\tA dog runs\tNo dog runs\t3.3\tCONTRADICTION\n",
        "SICK_trial.txt": SICK + "2\tA dog runs\tAn animal runs\t4\tENTAILMENT\n",
        "SICK_test_annotated.txt": (SICK + "3\tA cat\tA dog\t2\tNEUTRAL\n").replace("\n", "\r\n"),
    },
    "rte": {
        f"rte{i}_{part}.xml": RTE.format(
            f'<pair id="1" {"value" if i == 1 else "entailment"}="{label}"><t>Oil fell to $3.50, &amp; rose.</t>\n'
            f"<h>It fell.</h></pair>"
        )
        for i, label in ((1, "TRUE"), (2, "NO"), (3, "YES"))
        for part in ("dev", "test")
    },
    "multi30k": {
        f"data/task1/raw/{part}.{language}.gz": captions(lines)
        for part in ("train", "val", "test_2016_flickr")
        for language, lines in (
            ("en", "Two men.\n3 dogs\u2028run.\n"),
            ("de", "Zwei Männer.\n3 Hunde laufen.\n"),
        )
    },
}


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """Returns a function that lays small files of a set into RTL_DATA_DIR, which sources.toml then knows."""
    monkeypatch.setenv("RTL_DATA_DIR", str(tmp_path / "data"))

    def write(name: str, **changes) -> dict[str, Path]:
        entry = sources.source(name)
        folder = tmp_path / "data" / entry["folders"][0]
        for file, content in (FILES[name] | changes).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        known = {file: ["any"] for file in entry["files"]}
        monkeypatch.setitem(sources.all_sources(), name, entry | {"expected": {}, "files": known})
        return {file: folder / file for file in FILES[name]}

    return write


def words(examples) -> list[str]:
    return [" ".join(e.tokens) for e in examples]


def names(found, example) -> list[str]:
    return [found.labels[i] for i in example.labels]


# Formats


def test_conllu_ranges_and_empty_nodes_are_no_words(lay):
    lay("ewt")
    found = load_labelled("ewt")
    assert words(found.train) == ["do n't ask # 00", "yes"]
    assert names(found, found.train[0]) == ["AUX", "PART", "VERB", "SYM", "NUM"]
    assert (words(found.valid), words(found.test)) == (["a"], ["b"])
    assert found.report == {"read": {"train": 2, "valid": 1, "test": 1}, "dropped": {"without_text": 0}}
    assert [found.n_tokens(split) for split in ("train", "valid", "test")] == [6, 1, 1]


def test_gum_is_split_by_its_list_without_reddit_and_gentle(lay):
    lay("gum")
    found = load_labelled("gum")
    assert [words(part) for part in (found.train, found.valid, found.test)] == [
        ["bio_a"],
        ["bio_b"],
        ["news_c"],
    ]


def test_a_hash_begins_a_comment_in_conllu_only(lay):
    lay("wnut17")
    found = load_labelled("wnut17")
    assert words(found.train) == ["#nlp in new york", "it"], "a line of a tab parts sentences"
    assert names(found, found.train[0]) == ["O", "O", "B-location", "I-location"]


def test_iob1_becomes_bio(lay):
    lay("wikigold")
    found = load_labelled("wikigold")
    example = next(e for e in (*found.train, *found.valid, *found.test) if len(e.tokens) == 5)
    assert names(found, example) == ["B-PER", "I-PER", "B-PER", "O", "B-LOC"]


def test_documents_of_wikigold_stay_whole(lay):
    lay(
        "wikigold",
        **{"wikigold.conll.txt": "".join(f"d{i} O\n\nd{i} O\n\n-DOCSTART- O\n\n" for i in range(99))},
    )
    found = load_labelled("wikigold", "whitespace")
    parts = [set(words(part)) for part in (found.train, found.valid, found.test)]
    assert sum(map(len, parts)) == 99 == len(set().union(*parts))
    assert 10 <= len(parts[2]) <= 30 and 3 <= len(parts[1]) <= 20


def test_the_development_file_of_sst_2_is_its_test(lay):
    lay("sst-2")
    found = load_labelled("sst-2")
    assert sorted(words(found.train + found.valid)) == ["i don't see why", 'it\'s " fun " ,']
    assert [names(found, e) for e in found.test] == [["positive"], ["negative"]]


def test_windows_line_ends_and_pairs(lay):
    lay("sick")
    found = load_labelled("sick")
    (example,) = found.test
    assert (example.tokens, example.other, names(found, example)) == (("a", "cat"), ("a", "dog"), ["NEUTRAL"])


def test_labels_of_all_three_rte_are_one_inventory(lay):
    lay("rte")
    found = load_labelled("rte")
    assert [names(found, e) for e in found.test] == [["YES"], ["NO"], ["YES"]]
    assert words(found.test)[0] == "oil fell to $ 0.00 , & rose ." and found.test[0].other == (
        "it",
        "fell",
        ".",
    )
    assert len(found.train) + len(found.valid) == 3


def test_german_keeps_its_capitals_and_digits(lay):
    lay("multi30k")
    found = load_labelled("multi30k")
    assert words(found.train) == ["two men .", "0 dogs run ."], "a line separator of Unicode ends no line"
    assert found.train[1] == (("0", "dogs", "run", "."), (), ("3", "Hunde", "laufen", "."))
    assert found.labels == ()


def test_an_example_without_text_is_counted(lay):
    lay("sick", **{"SICK_train.txt": FILES["sick"]["SICK_train.txt"] + "9\tA\t \t1\tNEUTRAL\n"})
    found = load_labelled("sick")
    assert found.report["read"]["train"] == 2 and found.report["dropped"] == {"without_text": 1}
    assert len(found.train) == 1


# Spelling


@pytest.mark.parametrize("raw", ["Don’t", "3-D", "“", "isn't", "Ångström"])
def test_given_tokens_are_spelled_as_text_is(raw):
    assert " ".join(text.tokens_of(text.normalised(raw))) == text.paragraphs_of(raw)[0]


def test_whitespace_corpora_keep_spellings(lay):
    lay("ewt"), lay("sst-2"), lay("rte")
    assert words(load_labelled("ewt", "whitespace").train)[0] == "Do n’t ask # 12"
    found = load_labelled("sst-2", "whitespace")
    assert "it 's `` fun \" ," in words(found.train + found.valid), "its tokens are given"
    assert words(load_labelled("rte", "whitespace").test)[0] == "Oil fell to $ 3.50 , & rose ."


def test_an_unknown_tokenizer_is_refused(lay):
    lay("ewt")
    with pytest.raises(StudyError, match="Did you mean prose"):
        load_labelled("ewt", "prosa")


def test_fingerprint_is_of_the_content(lay):
    lay("ewt")
    first = load_labelled("ewt")
    assert load_labelled("ewt") is first, "kept in memory"
    assert load_labelled("ewt", "whitespace").fingerprint != first.fingerprint
    lay("ewt", **{"en_ewt-ud-test.conllu": one("B", "VERB")})
    changed = load_labelled("ewt")
    assert names(changed, changed.test[0]) == ["VERB"] and changed.fingerprint != first.fingerprint


# Leakage


def test_mr_loses_the_sentences_that_sst_2_tests(lay):
    lay("mr")
    alone = load_labelled("mr")
    assert len(alone.train) + len(alone.valid) == 5 and "in_sst-2" not in alone.report["dropped"]
    lay("sst-2")
    found = load_labelled("mr")
    assert sorted(words(found.train + found.valid)) == ["no !", "so it goes ."]
    assert found.report["dropped"] == {"without_text": 0, "in_sst-2": 3}
    assert sum(found.report["read"].values()) == 5 and found.test == ()


def corpus_with(test: list[str], domain: str | None = None) -> Corpus:
    rng = np.random.default_rng(9)
    documents = [Document(f"{s}-0", domain, s, (sentence(rng, 20),)) for s in ("train", "valid")]
    return Corpus("mine", (*documents, Document("test-0", domain, "test", tuple(test))))


@pytest.fixture
def hundred(lay):
    """EWT with a hundred training sentences, and these sentences as text."""
    rng = np.random.default_rng(0)
    raw = [sentence(rng) for _ in range(100)]
    rows = ("\n".join(f"{i}\t{w.upper()}\t_\tX" + "\t_" * 6 for i, w in enumerate(s.split(), 1)) for s in raw)
    lay("ewt", **{"en_ewt-ud-train.conllu": "\n\n".join(rows) + "\n"})
    return raw


def test_sentences_of_the_test_text_are_dropped_and_counted(hundred, capsys):
    copied, altered = hundred[0], " ".join(["Other", *hundred[1].split()[:7]])
    fresh = " ".join(hundred[2].split()[:5])  # one 5-gram of six is shared
    (found,) = labelled_for("pos", corpus_with([f"First this .\n{copied}", altered, fresh]))
    assert set(hundred) - set(words(found.train)) == {hundred[0], hundred[1]}
    assert found.report["dropped"]["in_test_text"] == 2
    assert len(found.test) == 1 and "in_test_text" not in load_labelled("ewt").report["dropped"]
    assert re.search(r"one set less: gum is not at hand.*Go to https", capsys.readouterr().err)


def test_test_text_is_found_whatever_its_tokenizer(lay):
    pair = "1\tNo one\tIt isn't the 3 men's old boat at all\t3\tNEUTRAL\n"
    rest = "".join(f"1\tA{i}\tB\t3\tNEUTRAL\n" for i in range(60))
    lay("sick", **{"SICK_train.txt": SICK + 2 * pair, "SICK_trial.txt": SICK + rest})
    spaced = Document("t", None, "test", ("", "It is n't the 3 men 's old boat at all .", "A1"))
    (found,) = labelled_for("nli", Corpus("w", (spaced,), "whitespace"))
    assert found.train == () and len(found.valid) == 60, "the second sentence counts, a short one does not"
    assert found.report["dropped"]["in_test_text"] == 2


def test_a_set_that_overlaps_the_test_text_is_refused(hundred):
    labelled_for("pos", corpus_with(hundred[:5]))
    with pytest.raises(
        StudyError, match=r"ewt overlaps the test text of corpus mine: 6 of 101 examples .*as '"
    ):
        labelled_for("pos", corpus_with(hundred[:6]))


def naive_near_duplicates(texts, others):
    """The twin of `near_duplicates`, by sets of tuples."""

    def grams(line):
        return [tuple(line.split()[i : i + 5]) for i in range(len(line.split()) - 4)]

    seen = {gram for other in others for gram in grams(other)}
    shares = [[gram in seen for gram in grams(line)] for line in texts]
    return [
        bool(s) and 2 * sum(s) >= len(s) or line in others and line != "" for line, s in zip(texts, shares)
    ]


def test_near_duplicates_are_those_a_plain_loop_finds():
    rng = np.random.default_rng(0)
    pool = [" ".join(rng.choice(["a", "b", "c"], rng.integers(0, 12))) for _ in range(80)]
    texts, others = pool[:60], pool[30:35] + pool[60:63]
    found = text.near_duplicates(texts, others).tolist()
    assert found == naive_near_duplicates(texts, others) and 5 < sum(found) < 40
    assert text.near_duplicates([], others).tolist() == [] and not text.near_duplicates(texts, []).any()


# Bad input


@pytest.mark.parametrize(
    "name, file, content, message",
    [
        ("ewt", "en_ewt-ud-train.conllu", "1\tDo\tdo\tAUX", r"train.conllu, line 1: not a token and its label"),
        ("ewt", "en_ewt-ud-train.conllu", one("x", "NOUM"), "unknown label of ewt 'NOUM'. Did you mean .*NOUN"),
        ("wnut17", "wnut17train.conll", "A\tO\nB\n", r"line 2: not a token and its label, found 'B'"),
        ("wikigold", "wikigold.conll.txt", "A I-GEO\n", "before line 2: unknown label of wikigold 'B-GEO'"),
        ("sst-2", "train.tsv", "sentence\tlabel\nfine\t1\ncut sho", "line 3: not 2 columns, found 1"),
        ("sst-2", "train.tsv", "fine\t1\n", "line 1: not a header with sentence, label"),
        ("sst-2", "dev.tsv", "sentence\tlabel\nfine\t2\n", "dev.tsv, line 2: unknown label of sst-2 '2'"),
        ("mr", "rt-polarity.pos", b"caf\xe9", "not UTF-8 text: byte 3 is 0xe9"),
        ("sick", "SICK_train.txt", SICK + "1\tA\tB\t3\tMAYBE\n", "unknown label of sick 'MAYBE'"),
        ("rte", "rte1_dev.xml", "<entailment-corpus><pair", "rte1_dev.xml: not whole XML"),
        ("rte", "rte2_dev.xml", RTE.format('<pair id="7"><t>a</t><h>b</h></pair>'), "pair 7: unknown label"),
        ("multi30k", "data/task1/raw/val.de.gz", captions("Zwei.\n"), r"val.de.gz: not as long as val.en.gz \(2"),
        ("multi30k", "data/task1/raw/val.de.gz", captions("Zwei\n")[:-9], "not a whole gzip file"),
        ("multi30k", "data/task1/raw/val.de.gz", b"Zwei\n", "not a whole gzip file"),
        ("multi30k", "data/task1/raw/val.de.gz", captions(" \n"), "val.de.gz is empty"),
        ("gum", "dep/GUM_bio_a.conllu", "", r"GUM_\[!r\]\*.conllu is empty"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(lay, name, file, content, message):
    lay(name, **{file: content})
    with pytest.raises(StudyError, match=message):
        load_labelled(name)


def test_another_version_and_wrong_counts_are_refused(lay, monkeypatch):
    files = lay("ewt")
    entry = sources.source("ewt") | {"expected": {"train": 3}}
    monkeypatch.setitem(sources.all_sources(), "ewt", entry)
    with pytest.raises(StudyError, match="ewt: train: 2 where 3 are expected"):
        load_labelled("ewt")
    known = {file: [file_sha256(path)] for file, path in files.items()}
    monkeypatch.setitem(sources.all_sources(), "ewt", entry | {"expected": {}, "files": known})
    assert load_labelled("ewt").name == "ewt"
    files["en_ewt-ud-dev.conllu"].write_text(one("C"))
    with pytest.raises(StudyError, match="dev.conllu is damaged or another version"):
        load_labelled("ewt")


def test_files_of_a_pattern_are_checked_together(lay, monkeypatch):
    files = lay("gum")
    entry = sources.source("gum")
    monkeypatch.setitem(entry, "files", {"splits.md": ["any"], "dep/GUM_[!r]*.conllu": ["0" * 64]})
    with pytest.raises(StudyError, match=r"its sha256 is ([0-9a-f]{16})") as refused:
        load_labelled("gum")
    start = re.search(r"its sha256 is (\w{16})", str(refused.value))[1]
    files["dep/GUM_reddit_e.conllu"].write_text(one("other"))
    files["dep/GENTLE_f.conllu"].unlink()
    with pytest.raises(StudyError, match=f"its sha256 is {start}"):
        load_labelled("gum")
    files["dep/GUM_whow_d.conllu"].unlink()
    with pytest.raises(StudyError) as refused:
        load_labelled("gum")
    assert start not in str(refused.value), "a file that is missing shows"


def test_unknown_names_suggest_the_nearest(lay):
    with pytest.raises(StudyError, match="unknown labelled set 'sst2'. Did you mean sst-2"):
        load_labelled("sst2")
    with pytest.raises(StudyError, match="unknown labelled task 'tags'.*pos, ner"):
        labelled_for("tags", corpus_with(["a"]))
    with pytest.raises(StudyError, match="ewt is a labelled set, not a corpus"):
        load_corpus("ewt")


def test_a_task_without_files_names_them_and_what_works_without(monkeypatch, tmp_path):
    monkeypatch.setenv("RTL_DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(StudyError) as refused:
        labelled_for("ner", corpus_with(["a"], "law"))
    message = str(refused.value)
    assert "wnut17train.conll, emerging.dev.conll" in message and str(tmp_path / "mine" / "wnut17") in message
    assert "rtl data get wnut17" in message and "wikigold/ in RTL_DATA_DIR" in message
    without = re.search("need no labelled files: (.*)[.]", message)[1].split(", ")
    assert {"word2vec-sg", "domain-lsa"} <= set(without) <= set(SOURCES) - set(LABELLED)
    assert "domain-sentence" not in without  # the corpus has one domain


# rtl data


def test_data_list_and_check_know_labelled_sets(lay, capsys):
    lay("sick")
    rows = {row["name"]: row for row in corpora.corpora_table()}
    assert {name for name, row in rows.items() if row["kind"] == "labelled"} == set(labelled.READERS)
    assert rows["wikitext-2"]["kind"] == rows["docstrings"]["kind"] == "corpus"
    assert rows["sick"]["at_hand"] and not rows["rte"]["at_hand"]
    assert main(["data", "check", "sick", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["ok"] and row["train_tokens"] == 6


def test_data_get_says_where_files_are_to_be_found(lay, capsys):
    assert main(["data", "get", "rte"]) != 0
    assert re.search(r"rte is not at hand.*Go to http.*lay them into rte/", capsys.readouterr().err)
    lay("rte")
    assert main(["data", "get", "rte"]) == 0
    assert "rte is at hand: 6 examples; tokens: train " in capsys.readouterr().out


def test_every_set_has_a_task_a_reader_and_an_entry():
    named = [name for sets in LABELLED.values() for name in sets]
    entries = [name for name, entry in sources.all_sources().items() if entry.get("kind") == "labelled"]
    assert named == list(labelled.READERS) == entries
    for name in named:
        entry = sources.source(name)
        assert set(entry["expected"]) == {"train", "valid", "test"} and entry["home"].startswith("http")
        known = {item["file"]: item["sha256"] for item in entry.get("downloads", ())}
        assert not known or {file: [sha] for file, sha in known.items()} == entry["files"]


@pytest.mark.parametrize("name", labelled.READERS)
def test_real_sets(name):
    if not (REAL / sources.source(name)["folders"][0]).is_dir():
        pytest.skip(f"RTL_DATA_DIR holds no {name}")
    found = load_labelled(name)
    assert found.report["read"] == sources.source(name)["expected"]
    n_tokens = {"ewt": (204_577, 25_147, 25_094), "wnut17": (62_730, 15_733, 23_394)}
    if name in n_tokens:
        assert tuple(found.n_tokens(split) for split in ("train", "valid", "test")) == n_tokens[name]
    if name == "mr" and sources.missing("sst-2") == "":
        assert found.report["dropped"]["in_sst-2"] == 2498
