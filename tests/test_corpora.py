"""Corpora: text to tokens, the harvest of docstrings, public files good and bad, the user's own folders."""

import gzip
import http.server
import io
import json
import os
import re
import tarfile
import threading
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from rtl_core import corpora
from rtl_core.corpora import docstrings, load_corpus, public, sources, text
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.storage import StudyError, file_sha256

NOUNS = [a + b + c for a in ("ma", "ve", "ti") for b in ("ker", "lo", "nu") for c in ("x", "nel", "tor")]
REAL = Path(os.environ.get("RTL_DATA_DIR", "")) / "wikitext-2"
TITLE = " = Homarus gammarus = \n"


def sentence(rng) -> str:
    """Nine nouns in a row that no other sentence has."""
    return f"The {' '.join(rng.choice(NOUNS, 9))} is returned as it was."


# Text


def test_prose_becomes_paragraphs_of_sentences_of_tokens():
    raw = "He said: “It isn’t\n3.14.” Dr. Who, e.g. Knuth, left.\n \nA well-known case (x_1)...\n\n\n"
    assert text.paragraphs_of(raw) == (
        'he said : " it isn\'t 0.00 . "\ndr . who , e.g. knuth , left .',
        "a well-known case ( x_0 ) ...",
    )


def test_whitespace_text_is_left_as_it_is():
    assert text.paragraphs_of(" = Title = \n \n A @-@ B . \n", "whitespace") == ("= Title =", "", "A @-@ B .")


def test_an_unknown_tokenizer_is_named_with_the_nearest():
    with pytest.raises(StudyError, match="Did you mean prose"):
        text.paragraphs_of("a", "prosa")


@pytest.mark.parametrize(
    "content, message",
    [(None, "Check the path"), (b" \n", r"is empty \(2 bytes\)"), (b"caf\xe9 au lait", "byte 3 is 0xe9")],
)
def test_unreadable_text_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(StudyError, match=message):
        text.read_text(tmp_path / "a.txt")


def naive_near_duplicates(documents):
    """The twin of `drop_near_duplicates`, by sets of strings."""
    seen, kept = set(), []
    for split in ("train", "valid", "test"):
        new = set()
        for document in (d for d in documents if d.split == split):
            for paragraph in document.paragraphs:
                words = paragraph.split()
                grams = [tuple(words[i : i + 5]) for i in range(len(words) - 4)]
                new.update(grams)
                if not grams or sum(g in seen for g in grams) < len(grams) / 2:
                    kept.append((document.id, paragraph))
        seen |= new
    return sorted(kept)


def test_near_duplicates_are_those_a_plain_loop_finds():
    rng = np.random.default_rng(0)
    pool = [" ".join(rng.choice(["a", "b", "c"], rng.integers(1, 12))) for _ in range(60)]
    documents = [
        Document(f"{split}{i}", None, split, tuple(rng.choice(pool, 3)))
        for split in ("test", "train", "valid")
        for i in range(8)
    ]
    kept, n_dropped = text.drop_near_duplicates(documents)
    found = sorted((d.id, p) for d in kept for p in d.paragraphs)
    assert found == naive_near_duplicates(documents)
    assert n_dropped == 72 - len(found) > 10
    assert {d.id for d in kept} <= {d.id for d in documents if d.paragraphs}


def test_split_by_hash_keeps_its_shares():
    counts = Counter(text.split_by_hash(str(i), {"test": 0.2, "valid": 0.1}) for i in range(4000))
    assert abs(counts["test"] - 800) < 100 and abs(counts["valid"] - 400) < 80


# Docstrings

DOCSTRING = """
Compute the *weighted* mean of all values along the given :ref:`axis <axes>` [1]_.

Parameters
----------
a : array_like, shape (n,)
    The values whose ``mean`` is wanted; they are left as they were.
b : int
    Short.

Notes
-----
The estimator :math:`\\hat{\\mu}` is unbiased whenever the weights are not random at all.

=====  =====
one    two words in a table that nobody wants to read
=====  =====

Examples
--------
>>> mean_of_all_the_values_that_are_given(a, b)

.. [1] A. Author, "The mean of many values that are given", Journal of Means.
"""


def test_only_prose_is_kept_of_a_docstring():
    assert docstrings.prose_of(DOCSTRING) == [
        "compute the weighted mean of all values along the given axis .",
        "the values whose mean is wanted ; they are left as they were .",
    ]


def test_every_kind_of_docstring_is_found_and_nothing_runs():
    found = docstrings.docstrings_of(
        '"""Module."""\nraise SystemExit\nif True:\n    class A:\n        "Class."\n'
        "        x = 1\n        'Attribute.'\n        def f(self):\n            '''Method.'''\n"
        "add_newdoc('m', 'f', 'Compiled.')\nprint('not this')\n_shared = '''Two\n    lines'''\n"
    )
    assert [*found] == [
        "Module.", "Class.", "Attribute.", "Method.", "m", "f", "Compiled.", "Two\nlines"
    ]  # fmt: skip


@pytest.fixture
def modules(tmp_path):
    """120 modules with the same first paragraph; one is not Python, one is not UTF-8."""
    rng, rows = np.random.default_rng(1), []
    for i in range(120):
        path = tmp_path / f"m{i}.py"
        paragraphs = "\n\n".join(sentence(rng) for _ in range(80))
        path.write_text(f'"""This very paragraph is in all of the modules.\n\n{paragraphs}\n"""\n')
        rows.append(("graphs" if i % 2 else "arrays", f"pkg.m{i}", str(path)))
    (tmp_path / "m3.py").write_text('"""Never closed\n')
    (tmp_path / "m4.py").write_bytes(b'"""caf\xe9"""')
    return rows


def test_harvest_is_the_same_for_any_number_of_workers(modules):
    corpus = docstrings.harvest(modules, n_workers=1)
    assert corpus.fingerprint == docstrings.harvest(modules, n_workers=2).fingerprint
    assert corpus.report["unreadable"] == 2 and corpus.report["modules"] == 120
    assert corpus.domains == ("arrays", "graphs")
    pieces, splits = Counter(), {}
    for document in corpus.documents:
        module = document.id.partition(":")[0]
        pieces[module, document.split] += 1
        assert splits.setdefault(module, document.split) == document.split, "a module lies in one split"
        assert 50 <= document.n_tokens <= 1000
    assert {n for (_, split), n in pieces.items() if split != "train"} == {1}
    assert {n for (_, split), n in pieces.items() if split == "train"} == {2}
    repeated = [p for d in corpus.documents for p in d.paragraphs if "very paragraph" in p]
    assert len(repeated) == 1


def test_other_versions_are_named_and_none_is_refused(monkeypatch, modules, capsys):
    monkeypatch.setattr(docstrings, "topic_modules", lambda: modules)
    versions = dict(pin.split("==") for pin in sources.source("docstrings")["distributions"])
    monkeypatch.setattr(docstrings, "installed_versions", lambda: versions | {"numpy": "9.9", "scipy": None})
    report = docstrings.read_docstrings().report
    assert [line.partition(",")[0] for line in report["versions"]] == ["numpy 9.9", "scipy missing"]
    assert "another text than published: numpy 9.9, not" in capsys.readouterr().err
    monkeypatch.setattr(docstrings, "installed_versions", lambda: dict.fromkeys(versions))
    with pytest.raises(StudyError, match="no package of the docstrings corpus is installed"):
        docstrings.read_docstrings()


def test_pinned_versions_are_those_of_the_lock():
    def pins(lines):
        found = re.findall(r"^([\w.-]+)==([\w.]+)", "\n".join(lines), re.M)
        return {re.sub("[-_.]+", "-", name).lower(): version for name, version in found}

    lock = pins((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
    corpus = pins(sources.source("docstrings")["distributions"])
    assert corpus == {name: lock.get(name) for name in corpus}


def test_the_embedded_corpus_is_large_mixed_and_prose(docstrings_corpus):
    corpus = docstrings_corpus
    tokens = Counter()
    for document in corpus.documents:
        tokens[document.domain] += document.n_tokens
    total = sum(tokens.values())
    assert len(tokens) >= 12 and max(tokens.values()) < 0.15 * total and total > 3_000_000
    assert corpus.n_tokens("test") >= 150_000 and len(corpus.split("test")) >= 250
    assert corpus.n_tokens("valid") >= 100_000 and corpus.n_tokens("train") >= 2_800_000
    assert not [d.id for d in corpus.documents if any(p.startswith("> > >") for p in d.paragraphs)]
    if not corpus.report["versions"]:
        assert corpora.differences(corpus) == []


# Public corpora


def wikitext_files(folder: Path, **changes: str) -> dict[str, Path]:
    """Three small files; in the test file a line only looks like a title."""
    article = "{} \n The lobster is large . \n \n = = Ecology = = \n \n It lives in the sea . \n"
    content = {
        "train": " \n" + TITLE + article.format("") + " \n = Starling = \n" + article.format(" "),
        "valid": " \n" + TITLE + article.format(" "),
        "test": " \n" + TITLE + article.format(" ") + " = 1 <unk> and C = \n More . \n",
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    for split, raw in content.items():
        (folder / f"wiki.{split}.tokens").write_text(raw, encoding="utf-8")
    return {f"wiki.{split}.tokens": folder / f"wiki.{split}.tokens" for split in content}


@pytest.fixture
def small_wikitext(tmp_path, monkeypatch):
    """wikitext-2 with small files, found in RTL_DATA_DIR, that sources.toml knows."""
    files = wikitext_files(tmp_path / "data" / "wikitext-2")
    read = public.read_wikitext(files).report["read"]
    entry = sources.source("wikitext-2") | {
        "expected": read, "files": {name: [file_sha256(path)] for name, path in files.items()}
    }  # fmt: skip
    monkeypatch.setitem(sources.all_sources(), "wikitext-2", entry)
    monkeypatch.setenv("RTL_DATA_DIR", str(tmp_path / "data"))
    return files


def test_a_title_stands_between_blank_lines(tmp_path):
    corpus = public.read_wikitext(wikitext_files(tmp_path))
    assert [d.id for d in corpus.documents] == ["train-000", "train-001", "valid-000", "test-000"]
    assert corpus.documents[0].paragraphs[:3] == ("", "= Homarus gammarus =", "")
    assert corpus.documents[1].paragraphs[:3] == ("= Starling =", "", "The lobster is large .")
    raw = (tmp_path / "wiki.test.tokens").read_text()
    assert corpus.n_tokens("test") == len(raw.split()) + raw.count("\n")


@pytest.mark.skipif(not REAL.is_dir(), reason="RTL_DATA_DIR holds no wikitext-2")
def test_wikitext_2_counts():
    corpus = load_corpus("wikitext-2")
    counts = [corpus.n_tokens(split) for split in ("train", "valid", "test")]
    types = {word for document in corpus.documents for line in document.lines() for word in line}
    assert counts == [2_088_628, 217_646, 245_569] and len(types | {"<eos>"}) == 33_278
    assert [len(corpus.split(split)) for split in ("train", "valid", "test")] == [600, 60, 60]
    assert load_corpus("wikitext-2") == corpus, "the second time from the cache"


def test_missing_files_say_what_to_run_and_where_to_lay_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RTL_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(StudyError, match=r"rtl data get wikitext-2.*wikitext-2/ in RTL_DATA_DIR"):
        load_corpus("wikitext-2")
    row = next(row for row in corpora.corpora_table() if row["name"] == "wikitext-2")
    assert row["at_hand"] is False and "rtl data get" in row["where"]


def test_data_dir_comes_before_the_cache(small_wikitext, tmp_path):
    wikitext_files(tmp_path / "cache" / "raw" / "wikitext-2", train="other")
    assert load_corpus("wikitext-2").n_tokens("train") > 10


@pytest.mark.parametrize("content, message", [("", "is empty"), ("cut", "is damaged or another version")])
def test_a_bad_file_is_refused_and_nothing_is_kept(small_wikitext, tmp_path, content, message):
    small_wikitext["wiki.valid.tokens"].write_text(content)
    with pytest.raises(StudyError, match=message):
        load_corpus("wikitext-2")
    assert not list(tmp_path.glob("cache/corpora/*"))
    (row,) = corpora.check("wikitext-2")
    assert row["ok"] is False and message in row["found"]


def test_wrong_counts_are_refused(small_wikitext, monkeypatch):
    entry = sources.source("wikitext-2")
    monkeypatch.setitem(entry, "expected", entry["expected"] | {"types": 33_278})
    with pytest.raises(StudyError, match=r"types: \d+ where 33,278 are expected"):
        load_corpus("wikitext-2")


def test_text_that_is_not_utf8_is_refused(tmp_path):
    files = wikitext_files(tmp_path)
    files["wiki.test.tokens"].write_bytes(b" \n = Caf\xe9 = \n")
    with pytest.raises(StudyError, match="wiki.test.tokens is not UTF-8 text: byte 8 is 0xe9"):
        public.read_wikitext(files)


@pytest.fixture
def server(tmp_path):
    """A home for downloads on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "home"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as home:
        threading.Thread(target=home.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{home.server_port}"
        home.shutdown()


def test_get_downloads_checks_and_reads(small_wikitext, server, tmp_path, monkeypatch):
    folder, url = server
    members = [f"wikitext-2/{name}" for name in small_wikitext]
    with zipfile.ZipFile(folder / "w.zip", "w") as archive:
        for member, path in zip(members, small_wikitext.values()):
            archive.write(path, member)
    checksum = file_sha256(folder / "w.zip")
    item = {"url": f"{url}/w.zip", "file": "w.zip", "members": members, "sha256": checksum}
    entry = sources.source("wikitext-2")
    monkeypatch.delenv("RTL_DATA_DIR")

    monkeypatch.setitem(entry, "downloads", [item | {"sha256": "0" * 64}])
    with pytest.raises(StudyError, match=r"could not download .*w\.zip.*by hand"):
        corpora.get("wikitext-2")
    monkeypatch.setitem(entry, "downloads", [item])
    assert "wikitext-2 is at hand: 4 documents" in corpora.get("wikitext-2")
    assert {path.name for path in tmp_path.glob("cache/raw/wikitext-2/*.tokens")} == set(small_wikitext)
    assert corpora.check("wikitext-2")[0]["ok"] is True


def test_news_lose_the_residue_of_html():
    raw = r"Turner   Newall #39;s &lt;B&gt;pension\talks&lt;/B&gt; cost  #36;10, &amp;quot;all told quot;"
    cleaned = 'Turner Newall\'s pension talks cost $10, "all told "'
    assert " ".join(public.clean_news(raw).split()) == cleaned


def news_files(folder: Path, train: str) -> dict[str, Path]:
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text('"1","Title of the news","All of it is new here."\n')
    return {name: folder / name for name in ("train.csv", "test.csv")}


def test_part_of_the_training_news_becomes_validation(tmp_path):
    rng = np.random.default_rng(0)
    rows = "".join(f'"{i % 4 + 1}","Title","{sentence(rng)}"\n' for i in range(200))
    corpus = public.read_ag_news(news_files(tmp_path, rows))
    assert 5 <= len(corpus.split("valid")) <= 40 and corpus.report["read"] == {"train": 200, "test": 1}
    assert corpus.domains == ("business", "science-technology", "sports", "world")


@pytest.mark.parametrize("last", ['"2","Cut', '"2","no description"', '"7","t","d"'])
def test_news_cut_short_are_refused(tmp_path, last):
    with pytest.raises(StudyError, match=r"train\.csv, line 2: not `class,title,description`"):
        public.read_ag_news(news_files(tmp_path, f'"1","t","d"\n{last}'))


POST = """From: a@b.edu (Ann)
Subject: Re: Engines

In article <1@b> bob@c.com (Bob) writes:
>Is it loud?
JD> Very.
Note: I think it is.

M"F4*0&%S92!S96YD(&UO<F4@:6YF;W)M871I;VX@=&\\@;64N"D1O('EO=2!H
-----
A rule in a long post is no signature.
{}
--
Ann, Ohio
"""


def test_posts_lose_header_quotations_and_signature():
    cleaned = public.clean_post(POST.format("\n" * 13))
    assert cleaned.split("\n\n")[-1].strip() == ""
    assert [line for line in cleaned.split("\n") if line] == [
        "Note: I think it is.", "-----", "A rule in a long post is no signature."
    ]  # fmt: skip


def news_archive(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for i in range(80):
            split, group = ("test", "train")[i % 4 > 0], ("sci.space", "rec.autos")[i % 2]
            post = f"From: x\n\nCaf\xe9. {sentence(rng)} {sentence(rng)}\n".encode("latin-1")
            member = tarfile.TarInfo(f"20news-bydate-{split}/{group}/{i}")
            member.size = len(post)
            archive.addfile(member, io.BytesIO(post))
    return path


def test_newsgroups_are_read_as_latin_1_with_their_split(tmp_path):
    corpus = public.read_newsgroups({"a": news_archive(tmp_path / "20news-bydate.tar.gz")})
    assert corpus.domains == ("rec.autos", "sci.space")
    assert corpus.report["read"] == {"train": 60, "test": 20}
    assert 0 < len(corpus.split("valid")) < 20 and corpus.documents[0].paragraphs[0].startswith("café .")


@pytest.mark.parametrize("damage", [lambda b: b[:-99], lambda b: b"no gzip", lambda b: gzip.compress(b"x")])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    path = news_archive(tmp_path / "20news-bydate.tar.gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StudyError, match="not the whole archive of 20 Newsgroups"):
        public.read_newsgroups({"a": path})


# The user's own text


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@pytest.fixture
def own(tmp_path):
    """60 .txt files in two sub-folders."""
    rng = np.random.default_rng(0)
    for i in range(60):
        write(tmp_path / "own" / ("law", "medicine")[i % 2] / "deep" / f"{i}.txt", sentence(rng))
    return tmp_path / "own"


def test_sub_folders_are_domains(own, monkeypatch):
    corpus = load_corpus(f"folder:{own}")
    assert corpus.domains == ("law", "medicine") and len(corpus.documents) == 60
    assert len(corpus.split("train")) > 36 and corpus.split("test") and corpus.split("valid")
    monkeypatch.setattr(Corpus, "save", None)  # the second time it comes from the cache
    assert load_corpus(f"folder:{own}") == corpus


def test_a_changed_file_is_read_again(own):
    before = load_corpus(f"folder:{own}")
    write(own / "law" / "deep" / "0.txt", "Now it says something else altogether, in other words.")
    assert load_corpus(f"folder:{own}").fingerprint != before.fingerprint


def test_folders_named_after_splits_are_splits(tmp_path):
    rng = np.random.default_rng(0)
    for i, split in enumerate(["train", "dev", "test"] * 3):
        write(tmp_path / split / "law" / f"{i}.txt", sentence(rng))
    corpus = load_corpus(f"folder:{tmp_path}")
    assert corpus.domains == ("law",)
    assert [len(corpus.split(split)) for split in ("train", "valid", "test")] == [3, 3, 3]


def test_a_given_split_stays_whole_where_others_are_left_open(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        write(tmp_path / "train" / f"{i}.txt", sentence(rng))
        write(tmp_path / f"{i}.txt", sentence(rng))
    corpus = load_corpus(f"folder:{tmp_path}")
    assert {d.split for d in corpus.documents if d.id.startswith("train/")} == {"train"}
    assert corpus.split("valid") and corpus.split("test")


def test_a_missing_split_comes_from_train_where_every_document_has_one(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        write(tmp_path / "train" / f"{i}.txt", sentence(rng))
        write(tmp_path / "test" / f"{i}.txt", sentence(rng))
    corpus = load_corpus(f"folder:{tmp_path}")
    assert len(corpus.split("test")) == 40 and 0 < len(corpus.split("valid")) < 15


def test_a_label_that_is_null_is_no_domain(tmp_path):
    rng = np.random.default_rng(0)
    splits = ("train", "valid", "test")
    rows = [{"text": sentence(rng), "label": ("law", None)[i % 2], "split": splits[i % 3]} for i in range(12)]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    corpus = load_corpus(f"folder:{tmp_path}")
    assert corpus.domains == ("law",) and sum(d.domain is None for d in corpus.documents) == 6


def test_tables_have_text_label_and_split_columns(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(sentence(rng), ("law", "art")[i % 2], ("train", "valid", "test")[i % 3]) for i in range(12)]
    lines = ["Body,Category,Split", *(f'"{body}",{label},{split}' for body, label, split in rows)]
    write(tmp_path / "a.csv", "\ufeff" + "\n".join(lines))
    records = (dict(zip(("text", "label", "split"), row)) for row in rows)
    write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, records)))
    table = load_corpus(f"folder:{tmp_path / 'a.csv'}")
    assert table.domains == ("art", "law") and len(table.split("train")) == 4
    assert [d.paragraphs for d in load_corpus(f"folder:{tmp_path / 'b.jsonl'}").documents] == [
        d.paragraphs for d in table.documents
    ]


def test_a_flat_folder_has_no_domains(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(60):
        write(tmp_path / f"{i}.txt", sentence(rng))
    assert load_corpus(f"folder:{tmp_path}").domains == ()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "title,label\nx,y\n", "no column of text; found title, label. Name it text"),
        ("a.csv", "text,split\nx,holdout\n", "unknown split 'holdout'"),
        ("a.csv", 'text,label\n"cut short', "row 1 is not whole CSV"),
        ("a.jsonl", '{"text": "a"}\n{"text": "cu', "row 2 is not whole JSONL"),
        ("a.jsonl", '{"text": 5}', "row 1: its text is 5, no text; mend it"),
        ("a.txt", "Only one document is here.", r"has 1 documents.*every split needs some"),
        ("a.txt", "", "is empty"),
        ("a.pdf", "x", r"none of its 1 files is text.*\*\.txt"),
    ],
)
def test_own_text_that_cannot_be_used_is_refused(tmp_path, name, content, message):
    write(tmp_path / "own" / name, content)
    with pytest.raises(StudyError, match=message):
        load_corpus(f"folder:{tmp_path / 'own'}")


def test_a_split_of_which_nothing_is_new_says_what_was_repeated(tmp_path):
    words = sentence(np.random.default_rng(0))
    for split in ("train", "valid", "test"):
        write(tmp_path / split / "a.txt", words)
    with pytest.raises(
        StudyError, match="3 documents, 0 .*1 train, 1 valid, 1 test; .*1 train, 0 valid, 0 test"
    ):
        load_corpus(f"folder:{tmp_path}")


# Names


def test_unknown_names_suggest_the_nearest(tmp_path):
    with pytest.raises(StudyError, match="unknown corpus 'wikitext2'. Did you mean wikitext-2"):
        load_corpus("wikitext2")
    with pytest.raises(StudyError, match="there is no .*nowhere"):
        load_corpus(f"folder:{tmp_path / 'nowhere'}")


def test_a_missing_list_of_sources_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "project_root", lambda: tmp_path)
    sources.all_sources.cache_clear()
    try:
        with pytest.raises(StudyError, match=r"sources\.toml is missing.*pip install -e"):
            load_corpus("docstrings")
    finally:
        sources.all_sources.cache_clear()
