"""The Embeddings value: bits that survive, files of other programs, controls, and errors that teach."""

import errno
import gzip
import json
import os

import numpy as np
import pytest
from gensim.models import KeyedVectors

from rtl_core.__main__ import main
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.storage import StudyError

WORDS = ("the", "matrix", "vector", "café", "naïve", "0.5", "-", "日本")


@pytest.fixture
def vectors():
    table = np.random.default_rng(0).standard_normal((len(WORDS), 6)).astype(np.float32)
    table[0, :4] = [-0.0, 1e-40, 3e38, 1 / 3]  # negative zero, denormal, nearly the largest, no short decimal
    return Embeddings(WORDS, table, {"source": "test", "seed": 3, "versions": {"numpy": "2"}})


def same(a, b):
    return a.words == b.words and a.table.tobytes() == b.table.tobytes()


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# The value


def test_the_table_cannot_be_changed():
    table = np.ones((2, 3), dtype=np.float32)
    made = Embeddings(("a", "b"), table)
    table[:] = 7
    assert made.table.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        made.vector("a")[0] = 5


@pytest.mark.parametrize(
    "words, table, message",
    [
        (("a", "b"), np.ones((2, 3)), r"float32 .* found float64 of shape \(2, 3\)"),
        (("a",), np.ones((2, 3), np.float32), r"\(2, 3\) for 1 words"),
        ((), np.ones((0, 3), np.float32), r"\(0, 3\) for 0 words"),
        (("a", "b", "c"), np.float32([[1], [np.nan], [np.inf]]), "2 words have NaN or infinity .* 'b', 'c'"),
        (("a", "b", "a"), np.ones((3, 1), np.float32), "1 words have more than one row: 'a'"),
    ],
)
def test_bad_values_are_refused(words, table, message):
    with pytest.raises(StudyError, match=message):
        Embeddings(words, table)


def test_lookup_and_vector(vectors):
    table, covered = vectors.lookup(["vector", "nowhere", "the"])
    assert covered.tolist() == [True, False, True]
    assert (table[0] == vectors.vector("vector")).all() and not table[1].any()
    assert len(vectors) == 8 and vectors.dim == 6 and "café" in vectors and "cafe" not in vectors


def test_neighbours_agree_with_gensim():
    table = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    made = Embeddings([f"w{i}" for i in range(50)], table)
    oracle = KeyedVectors(8)
    oracle.add_vectors(list(made.words), table)
    words, cosines = zip(*made.neighbors("w7", k=5))
    expected_words, expected_cosines = zip(*oracle.most_similar("w7", topn=5))
    assert words == expected_words
    assert cosines == pytest.approx(expected_cosines, abs=1e-6)
    assert len(made.neighbors("w7", k=1000)) == 49


def test_an_unknown_word_names_the_nearest(vectors):
    with pytest.raises(StudyError, match="no vector for 'matrx' among 8 words. Nearest in spelling: matrix"):
        vectors.neighbors("matrx")


def test_coverage_weighs_types_by_their_counts():
    vocabulary = Vocabulary(("<unk>", "<eos>", "the", "matrix", "rare"), (100, 50, 6, 3, 1))
    found = Embeddings(("the", "rare", "other"), np.ones((3, 2), np.float32)).coverage(vocabulary)
    assert found == {"types": 2, "type_share": 2 / 3, "token_share": 0.7, "missing": ["matrix"]}


# Controls and changes of the geometry


def test_permuted_keeps_the_rows_and_loses_the_words(vectors):
    control = vectors.permuted(1)
    assert control.words == vectors.words
    assert sorted(map(bytes, control.table)) == sorted(map(bytes, vectors.table))
    assert (control.table != vectors.table).any()
    assert same(control, vectors.permuted(1)) and not same(control, vectors.permuted(2))
    assert control.provenance["source"] == "permuted:test"
    assert control.provenance["changes"] == ["permuted with seed 1"]
    assert "changes" not in vectors.provenance


def test_joined_tables_weigh_the_same_and_keep_the_words_of_both():
    rng = np.random.default_rng(0)
    first = Embeddings(("a", "b", "c"), rng.standard_normal((3, 2)).astype(np.float32), {"source": "x"})
    second = Embeddings(("c", "d"), 50 + 9 * rng.standard_normal((2, 3)).astype(np.float32), {"source": "y"})
    both = first.joined(second)
    assert both.words == ("a", "b", "c", "d") and both.dim == 5 and both.provenance["source"] == "x+y"
    left, right = both.table[:3, :2], both.table[2:, 2:]
    for part, whole in ((left, first.table), (right, second.table)):
        assert np.allclose(part.mean(0), 0, atol=1e-5) and np.sqrt((part**2).mean()) == pytest.approx(
            1, rel=1e-5
        )
        centred = whole - whole.mean(0)
        assert np.allclose(part / part[0, 0], centred / centred[0, 0], rtol=1e-3)
    assert (both.table[3, :2] == 0).all() and (both.table[:2, 2:] == 0).all()  # at the mean


def test_centred_and_normalised():
    made = Embeddings(("a", "b", "zero"), np.float32([[3, 4], [6, 8], [0, 0]]))
    assert made.centred().table.sum(axis=0).tolist() == [0, 0]
    assert made.normalised().table == pytest.approx(np.array([[0.6, 0.8], [0.6, 0.8], [0, 0]]))


def test_reduced_keeps_the_most_variance_and_never_pads():
    rng = np.random.default_rng(2)
    plane = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 10))  # ten dimensions, but flat
    made = Embeddings([f"w{i}" for i in range(40)], plane.astype(np.float32))
    reduced = made.reduced(2)
    between = [np.linalg.norm(e.table[:1] - e.table, axis=1) for e in (made, reduced)]
    assert between[1] == pytest.approx(between[0], rel=1e-3)
    assert reduced.dim == reduced.table.shape[1] == 2
    with pytest.raises(StudyError, match="40 vectors of 10 dimensions to 20: .* never padded"):
        made.reduced(20)


# The project's own file


def test_save_and_load_bit_for_bit(vectors, tmp_path):
    path = tmp_path / "deep" / "vectors.safetensors"
    vectors.save(path)
    loaded = Embeddings.load(path)
    assert same(loaded, vectors) and loaded.provenance == vectors.provenance
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def test_a_damaged_or_foreign_file_is_refused(vectors, tmp_path):
    path = tmp_path / "vectors.safetensors"
    with pytest.raises(StudyError, match="there is no embedding file"):
        Embeddings.load(path)
    vectors.save(path)
    for content in (path.read_bytes()[:-5], path.read_bytes()[:20], b"", b"the 0.1 0.2\n" * 50):
        with pytest.raises(StudyError, match="not a whole embedding file"):
            Embeddings.load(put(path, content))


@pytest.mark.parametrize("name", ["vectors.safetensors", "vectors.vec", "vectors.vec.gz"])
def test_a_full_disk_leaves_nothing(vectors, tmp_path, monkeypatch, name):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    write = vectors.save if name.endswith("tensors") else vectors.to_word2vec
    with pytest.raises(StudyError, match="the disk is full. Nothing was left half-written"):
        write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# Files of other programs


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_word2vec_files_agree_with_gensim(vectors, tmp_path, capfd, binary, ending):
    ours, theirs = tmp_path / f"ours{ending}", tmp_path / f"theirs{ending}"
    vectors.to_word2vec(ours, binary=binary)
    read = KeyedVectors.load_word2vec_format(ours, binary=binary)
    assert tuple(read.index_to_key) == WORDS and read.vectors.tobytes() == vectors.table.tobytes()
    read.save_word2vec_format(theirs, binary=binary)
    assert same(Embeddings.from_file(theirs), vectors) and same(Embeddings.from_file(ours), vectors)
    assert capfd.readouterr().err == ""


def test_glove_without_header_agrees_with_gensim(vectors, tmp_path):
    oracle = KeyedVectors(6)
    oracle.add_vectors(list(WORDS), vectors.table)
    path = tmp_path / "glove.txt"
    oracle.save_word2vec_format(path, write_header=False)
    made = Embeddings.from_file(path)
    assert same(made, vectors)
    assert made.provenance["format"] == "GloVe text" and made.provenance["source"] == "file:glove.txt"
    zipped = put(tmp_path / "glove.gz", gzip.compress(path.read_bytes()))
    assert same(Embeddings.from_file(zipped), vectors)


def test_details_of_real_files(tmp_path):
    fasttext = put(tmp_path / "cc.vec", "2 3\nthe 1 2 3 \nof 4 5 6 \n")  # every line ends in a blank
    assert Embeddings.from_file(fasttext).table.tolist() == [[1, 2, 3], [4, 5, 6]]
    windows = put(tmp_path / "w.txt", "the\t1 2\r\nof\t3 4\r\n\r\n")
    assert Embeddings.from_file(windows).words == ("the", "of")
    blanks = put(tmp_path / "glove.txt", "the 1 2\n. . . 3 4\nat me@home.org 5 6\n")  # as in GloVe 840B
    assert Embeddings.from_file(blanks).words == ("the", ". . .", "at me@home.org")
    original = b"2 2\nthe " + np.float32([1, 2]).tobytes() + b"\nof " + np.float32([3, 4]).tobytes() + b"\n"
    assert Embeddings.from_file(put(tmp_path / "w2v.bin", original)).words == ("the", "of")  # by word2vec.c


@pytest.mark.parametrize(
    "fold, expected",
    [
        ("nothing", {"US": 1, "the": 2, "The": 3, "us": 4, "Top10": 5, "top99": 6, "top00": 7, "²٣": 8}),
        ("case", {"the": 2, "us": 4, "top10": 5, "top99": 6, "top00": 7, "²٣": 8}),
        ("digits", {"US": 1, "the": 2, "The": 3, "us": 4, "Top00": 5, "top00": 7, "²0": 8}),
        ("case+digits", {"the": 2, "us": 4, "top00": 7, "²0": 8}),
    ],
)
def test_folding_prefers_the_spelling_that_is_folded_already(tmp_path, fold, expected):
    words = ["US", "the", "The", "us", "Top10", "top99", "top00", "²٣"]  # a superscript is no digit
    path = put(tmp_path / "g.txt", "".join(f"{word} {i} {i}\n" for i, word in enumerate(words, 1)))
    made = Embeddings.from_file(path, fold)
    assert dict(zip(made.words, made.table[:, 0])) == expected
    assert made.provenance.get("changes") == (None if fold == "nothing" else [f"folded: {fold}"])


def test_without_a_folded_spelling_the_first_row_stays(tmp_path):
    path = put(tmp_path / "g.txt", "Paris 5 5\nPARIS 6 6\n1999 7 7\n2001 8 8\n")
    made = Embeddings.from_file(path, "case+digits")
    assert dict(zip(made.words, made.table[:, 0])) == {"paris": 5, "0000": 7}
    with pytest.raises(StudyError, match="unknown fold 'digit'. Did you mean digits.*Valid: nothing, case"):
        Embeddings.from_file(path, "digit")


LETTERS = (b"a", b"b", b"c")
BINARY = b"3 2\n" + b"".join(w + b" " + np.float32([0.1, i]).tobytes() for i, w in enumerate(LETTERS))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "the file is empty"),
        ("\n\n", r"its first line is b'\\n'"),
        ("the 1 2 3\nof 1 2\n", "line 2 has 2 numbers, 3 expected"),
        ("the 1 2 3\nof 1 2 3 4\n", "line 2 has 4 numbers, 3 expected"),
        ("2 3\nthe 1 2 3\nof 1\n", "line 3 has 1 numbers, 3 expected"),
        ("the 1 2\nof 1 x\n", "line 2 has something that is not a number: .*'x'"),
        ("the 1 2\nof 1 nan\nto -inf 2\nin 1e60 2\n", "3 words have NaN or infinity .*: 'of', 'to', 'in'"),
        ("a 1 2\nb 3 4\na 5 6\nb 1 1\n", "2 words have more than one row: 'a', 'b'"),
        ("caf\xe9 1 2\n".encode("latin-1"), r"line 1: the word b'caf\\xe9' is not UTF-8"),
        ("3 2\na 1 2\nb 1 2\n", "announces 3 words, but 2 follow"),
        ("1 2\na 1 2\nb 1 2\n", "announces 1 words, but 2 follow"),
        ("9 0\n", r"its first line is b'9 0\\n'"),
        ("9 2\n", "announces 9 words, but 0 follow"),
        (BINARY[:-1], r"row 3 of 3 is cut short \(7 bytes of 8"),
        (BINARY[:-9], r"row 3 of 3 is cut short \(0 bytes of 8"),
        (BINARY + b"d 12345678", "announces 3 words, but more follow"),
        (BINARY.replace(b"b ", b"a "), "1 words have more than one row: 'a'"),
        (BINARY.replace(b"b ", b"\xe9 "), r"row 2: the word b'\\xe9' is not UTF-8"),
        (BINARY[:-4] + np.float32([np.nan]).tobytes(), "1 words have NaN or infinity .*: 'c'"),
        (gzip.compress(BINARY, mtime=0)[:-9], "cannot be read: .*end"),
        (gzip.compress(BINARY, mtime=0)[:-8] + b"12345678", "cannot be read: CRC"),
    ],
)
def test_bad_files_say_where_and_how(tmp_path, content, message):
    path = put(tmp_path / "bad.vec", content)
    with pytest.raises(StudyError, match=message) as caught:
        Embeddings.from_file(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_and_words_that_cannot_be_written(tmp_path):
    with pytest.raises(StudyError, match="nowhere.txt cannot be read: No such file"):
        Embeddings.from_file(tmp_path / "nowhere.txt")
    with pytest.raises(StudyError, match="cannot hold words with white space: 'new york'"):
        Embeddings(("new york",), np.ones((1, 2), np.float32)).to_word2vec(tmp_path / "out.txt")
    assert list(tmp_path.iterdir()) == []


# Files of other programs through the command line


TEXTS = {
    "train": "The the the matrix matrix Top10 top99 rarely fits.\n",
    "valid": "A vector grows with every number.\n",
    "test": "Rows hold words, columns hold documents.\n",
}


@pytest.fixture
def folder(tmp_path):
    """A corpus whose most frequent words are `the`, `matrix` and, its digits folded, `top00`."""
    for split, text in TEXTS.items():
        (tmp_path / "texts" / split).mkdir(parents=True)
        put(tmp_path / "texts" / split / "a.txt", text)
    return f"folder:{tmp_path / 'texts'}"


def covered(capsys, path, folder, *settings) -> tuple[int, dict | None, str]:
    code = main(["pretrain", f"file:{path}", "--corpus", folder, "--dim", "2", "--json", *settings])
    out, err = capsys.readouterr()
    return code, json.loads(out)["coverage"] if out else None, err


@pytest.mark.parametrize("kind", ["text", "binary", "glove", "vec", "gzip"])
def test_every_format_reports_its_coverage(kind, folder, tmp_path, capsys):
    vectors, path = Embeddings(("the", "top00"), np.float32([[1, 2], [3, 4]])), tmp_path / f"v.{kind}"
    if kind in ("text", "binary"):
        vectors.to_word2vec(path, binary=kind == "binary")
    else:
        text = {"glove": "the 1 2\ntop00 3 4\n", "vec": "2 2\nthe 1 2 \ntop00 3 4 \n"}.get(kind)
        put(path, text or gzip.compress(b"2 2\nthe 1 2\ntop00 3 4\n"))
    code, found, _ = covered(capsys, path, folder)
    assert code == 0 and found["types"] == 2 and found["missing"][0] == "matrix"
    assert 0 < found["type_share"] < found["token_share"] < 1
    assert main(["pretrain", f"file:{path}", "--corpus", folder, "--dim", "2"]) == 0
    types, tokens = (f"{100 * found[name]:.1f} %" for name in ("type_share", "token_share"))
    out = capsys.readouterr().out
    assert f"covers 2 of 6 types ({types}), {tokens} of their running tokens" in out
    assert "most frequent without a vector: matrix, " in out


def test_folding_through_the_command_line(folder, tmp_path, capsys):
    path = put(tmp_path / "v.txt", "THE 1 2\nTop99 3 4\nMATRIX 5 6\n")
    found = {fold: covered(capsys, path, folder, "--fold", fold) for fold in ("case", "case+digits")}
    assert [(code, coverage["types"]) for code, coverage, _ in found.values()] == [(0, 2), (0, 3)]
    for fold in ("nothing", "digits"):  # the corpus is in lower case
        code, _, err = covered(capsys, path, folder, "--fold", fold)
        assert code == 2 and "no word in common" in err and "set fold to case" in err


@pytest.mark.parametrize(
    "content, message",
    [
        ("the 1 2 3\nof 4 5 6\n", "has vectors of 3 dimensions, 2 expected. Ask for 3"),
        ("9 2\nthe 1 2\n", "announces 9 words, but 1 follow"),
        (gzip.compress(b"the 1 2\n" * 99, mtime=0)[:-20], "cannot be read"),
        (gzip.compress(b"1 2\nthe " + np.float32([1, 2]).tobytes()[:-1], mtime=0), "cut short"),
        ("nowhere 1 2\n", "no word in common"),
        ("", "the file is empty"),
    ],
)
def test_bad_files_stop_the_command(content, message, folder, tmp_path, capsys):
    code, found, err = covered(capsys, put(tmp_path / "v.vec", content), folder)
    assert code == 2 and found is None and message in err and str(tmp_path / "v.vec") in err
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
