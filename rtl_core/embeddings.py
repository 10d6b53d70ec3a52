"""Word vectors as a value: words, a table and where it came from; import, export and controls."""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from rtl_core.choices import CHOICES
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.storage import StudyError, atomic, file_sha256, unknown


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One vector for each word; `provenance` is JSON-able and says where the vectors came from.

    Shapes: table float32 (V, D), read-only.
    Raises: StudyError when shapes disagree, a value is not finite or a word occurs twice.
    """

    words: tuple[str, ...]
    table: np.ndarray
    provenance: dict = field(default_factory=dict)

    def __post_init__(self):
        table = self.table.copy() if self.table.flags.writeable else self.table
        table.flags.writeable = False
        object.__setattr__(self, "words", tuple(self.words))
        object.__setattr__(self, "table", table)
        if table.dtype != np.float32 or table.ndim != 2 or len(table) != len(self.words) or not table.size:
            raise StudyError(
                f"embeddings need a float32 table with one row for each word; found {table.dtype} of shape "
                f"{table.shape} for {len(self.words):,} words."
            )
        finite = np.isfinite(table).all(axis=1)
        if not finite.all():
            bad = [self.words[i] for i in np.flatnonzero(~finite)]
            raise StudyError(f"{len(bad):,} words have NaN or infinity in their vector: {_some(bad)}.")
        if len(self.ids) < len(self.words):
            twice = [word for word, count in Counter(self.words).items() if count > 1]
            raise StudyError(f"{len(twice):,} words have more than one row: {_some(twice)}. Keep one each.")

    @property
    def dim(self) -> int:
        """Columns of the table."""
        return self.table.shape[1]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word to row."""
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self.ids

    def _row(self, word: str) -> int:
        if word not in self.ids:
            near = get_close_matches(word, self.words[:50_000], n=3)
            hint = f" Nearest in spelling: {', '.join(near)}." if near else ""
            raise StudyError(f"no vector for {word!r} among {len(self):,} words.{hint}")
        return self.ids[word]

    def vector(self, word: str) -> np.ndarray:
        """Returns the word's vector, read-only. Raises: StudyError with the nearest words."""
        return self.table[self._row(word)]

    @cached_property
    def _unit(self) -> np.ndarray:
        norms = np.linalg.norm(self.table, axis=1, keepdims=True)
        return self.table / np.where(norms > 0, norms, 1)

    def neighbors(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """Returns the `k` nearest other words with their cosines."""
        row = self._row(word)
        cosines = self._unit @ self._unit[row]
        order = [i for i in np.argsort(-cosines, kind="stable")[: k + 1] if i != row][:k]
        return [(self.words[i], float(cosines[i])) for i in order]

    def lookup(self, words: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors of `words`, zero where there is none, and which of them are covered.

        Shapes: table float32 (n, D); covered bool (n,).
        """
        rows = np.array([self.ids.get(word, -1) for word in words], dtype=np.int64)
        covered = rows >= 0
        table = np.zeros((len(rows), self.dim), dtype=np.float32)
        table[covered] = self.table[rows[covered]]
        return table, covered

    def coverage(self, vocabulary: Vocabulary) -> dict:
        """Returns how much of a vocabulary has a vector: share of types and of running tokens, missing words.

        `<unk>` and `<eos>` are left out: they are not words.
        """
        words, counts = vocabulary.words[2:], np.array(vocabulary.counts[2:])
        covered = np.array([word in self for word in words], dtype=bool)
        return {
            "types": int(covered.sum()),
            "type_share": float(covered.sum() / max(len(words), 1)),
            "token_share": float(counts[covered].sum() / max(counts.sum(), 1)),
            "missing": [words[i] for i in np.flatnonzero(~covered)[:10]],  # the most frequent ones
        }

    def _changed(self, step: str, table: np.ndarray, words=None, **provenance) -> "Embeddings":
        changes = [*self.provenance.get("changes", []), step]
        return Embeddings(words or self.words, table, {**self.provenance, **provenance, "changes": changes})

    def centred(self) -> "Embeddings":
        """Returns the vectors less their mean."""
        return self._changed("centred", self.table - self.table.mean(axis=0))

    def normalised(self) -> "Embeddings":
        """Returns the vectors at length one; a zero vector stays zero."""
        return self._changed("normalised", self._unit)

    def reduced(self, dim: int) -> "Embeddings":
        """Returns the first `dim` principal components. Raises: StudyError when there are fewer."""
        from sklearn.decomposition import PCA

        if not 1 <= dim <= min(self.table.shape):
            found = f"{len(self):,} vectors of {self.dim} dimensions"
            raise StudyError(f"cannot reduce {found} to {dim}: PCA gives fewer, and a table is never padded.")
        table = PCA(dim, svd_solver="covariance_eigh").fit_transform(self.table)
        return self._changed(f"reduced from {self.dim} by PCA", table.astype(np.float32), dim=dim)

    def joined(self, other: "Embeddings") -> "Embeddings":
        """Returns both tables side by side, each centred and at root mean square 1, for the words of either.

        A word that one of them lacks stands at that table's mean. Shapes: (n, D + D of `other`).
        """
        words = tuple(dict.fromkeys((*self.words, *other.words)))
        parts = []
        for each in (self, other):
            table, covered = each.lookup(words)
            table[covered] -= each.table.mean(axis=0)
            parts.append(table / (np.sqrt(np.mean(table[covered] ** 2)) or 1))
        sources = [str(each.provenance.get("source", "unknown")) for each in (self, other)]
        step, table = f"joined {sources[0]} and {sources[1]}", np.hstack(parts).astype(np.float32)
        return self._changed(step, table, words, source="+".join(sources), dim=table.shape[1])

    def permuted(self, seed: int, bands: np.ndarray | None = None) -> "Embeddings":
        """Returns the control with the rows dealt out among the words: same geometry, words destroyed.

        `bands`: rows are dealt out only among words of the same band. Shape (V,), of the words here.
        """
        rng, order = np.random.default_rng(seed), np.arange(len(self))
        for band in [None] if bands is None else np.unique(bands):
            members = order if band is None else np.flatnonzero(bands == band)
            order[members] = rng.permutation(members)
        return self._control("permuted" if bands is None else "permuted-in-band", seed, self.table[order])

    def with_spectrum(self, seed: int) -> "Embeddings":
        """Returns the control with random rows, but the mean and the singular values (about it) of this table.

        The left singular vectors are replaced by a random orthonormal basis, orthogonal to the constant vector.
        """
        mean = self.table.mean(axis=0, dtype=np.float64)
        _, values, axes = np.linalg.svd(self.table - mean, full_matrices=False)
        random = np.random.default_rng(seed).standard_normal((len(self), len(values)))
        basis = np.linalg.qr(random - random.mean(axis=0))[0]  # (V, min(V, D))
        return self._control("spectrum", seed, (basis * values @ axes + mean).astype(np.float32))

    def _control(self, kind: str, seed: int, table: np.ndarray) -> "Embeddings":
        source = f"{kind}:{self.provenance.get('source', 'unknown')}"
        return self._changed(f"{kind} with seed {seed}", table, source=source)

    def folded(self, fold: str) -> "Embeddings":
        """Returns the words with "case", "digits" (every one to 0) or "case+digits" made equal, or with "nothing".

        Of several spellings the one already folded stays, else the first. Raises: StudyError for another `fold`.
        """
        if fold not in CHOICES["fold"]:
            raise unknown("fold", fold, CHOICES["fold"])
        words = [re.sub(r"\d", "0", word) if "digits" in fold else word for word in self.words]
        words = [word.lower() if "case" in fold else word for word in words]
        keep: dict[str, int] = {}
        for i in sorted(range(len(self)), key=lambda i: self.words[i] != words[i]):
            keep.setdefault(words[i], i)
        rows = sorted(keep.values())
        return self._changed(f"folded: {fold}", self.table[rows], tuple(words[i] for i in rows))

    def save(self, path: Path) -> None:
        """Writes one safetensors file, atomically; `load` gives back the same bits."""
        from safetensors.numpy import save

        # One metadata key: safetensors does not keep the order of several, and equal values give equal bytes.
        notes = {"embeddings": json.dumps([self.words, self.provenance], ensure_ascii=False, allow_nan=False)}
        data = save({"table": np.ascontiguousarray(self.table)}, notes)
        with atomic(path) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: Path) -> "Embeddings":
        """Returns what `save` wrote. Raises: StudyError when the file is missing or not whole."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                words, provenance = json.loads(file.metadata()["embeddings"])
                return cls(tuple(words), file.get_tensor("table"), provenance)
        except FileNotFoundError:
            raise StudyError(f"there is no embedding file {path}.") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            advice = "Delete it and run again; word2vec, GloVe and fastText files need Embeddings.from_file."
            raise StudyError(f"{path} is not a whole embedding file ({error}). {advice}") from error

    @classmethod
    def from_file(cls, path: Path, fold: str = "nothing") -> "Embeddings":
        """Returns vectors from a word2vec (text or binary), GloVe or fastText .vec file, plain or gzipped.

        `fold`: spellings made equal, see `folded`.
        Raises: StudyError that says in which line or row the file is wrong, and how.
        """
        path = Path(path)
        try:
            with _open(path) as file:
                kind, words, table = _read(file)
            notes = {"source": f"file:{path.name}", "format": kind, "sha256": file_sha256(path)}
            vectors = cls(words, table, notes)
        except StudyError as error:
            raise StudyError(f"{path}: {error}") from error
        except (OSError, EOFError, zlib.error) as error:  # gzip reports a damaged archive by any of them
            reason = getattr(error, "strerror", None) or error
            raise StudyError(f"{path} cannot be read: {reason}. Check the path or fetch it again.") from error
        return vectors if fold == "nothing" else vectors.folded(fold)

    def to_word2vec(self, path: Path, binary: bool = False) -> None:
        """Writes a word2vec text or binary file, gzipped when the name ends in .gz, atomically."""
        spaced = [word for word in self.words if word.split() != [word]]
        if spaced:
            raise StudyError(f"word2vec files cannot hold words with white space: {_some(spaced)}.")
        opened = gzip.open if Path(path).suffix == ".gz" else open
        with atomic(path) as temporary, opened(temporary, "wb") as file:
            file.write(f"{len(self)} {self.dim}\n".encode())
            for word, row in zip(self.words, self.table):
                values = row.tobytes() if binary else " ".join(map(str, row)).encode()
                file.write(word.encode() + b" " + values + b"\n")


def _some(words: list[str]) -> str:
    return ", ".join(map(repr, words[:5])) + (", ..." if len(words) > 5 else "")


# Reading files of other programs. gensim's reader will not do: it takes a line with one number for a whole
# vector, drops duplicates and rows beyond the count in silence, and names no line. Tests compare the two.

NUMBER = re.compile(rb"[-+]?\.?\d\S*")


def _open(path: Path) -> io.BufferedReader:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return io.BufferedReader(gzip.open(path)) if zipped else open(path, "rb")


def _read(file: io.BufferedReader) -> tuple[str, list[str], np.ndarray]:
    """Returns the format, words and table of an open vector file."""
    first = file.readline()
    fields = first.split()
    if len(fields) < 2 or fields[1:] == [b"0"]:
        found = f"its first line is {first[:40]!r}" if first else "the file is empty"
        raise StudyError(f"no word vectors here: {found}. A line must hold a word and its numbers.")
    if len(fields) > 2 or not b"".join(fields).isdigit():
        dim = len(fields) - 1
        return "GloVe text", *_collect(_text_rows(chain([first], file), 1, dim), dim)
    count, dim = map(int, fields)
    # The first 2 D - 1 bytes after a word are digits and blanks in a text file, hardly ever in a binary one.
    values = file.peek().partition(b" ")[2][: 2 * dim - 1]
    binary = bool(values.translate(None, b"0123456789+-.eE \t\r\nnaifNAIF"))
    rows = _binary_rows(file, count, dim) if binary else _text_rows(file, 2, dim)
    words, table = _collect(rows, dim)
    if len(words) != count or file.read(2).strip():
        found = f"{len(words):,}" if len(words) != count else "more"
        raise StudyError(f"the header announces {count:,} words, but {found} follow. Fetch the file again.")
    return f"word2vec {'binary' if binary else 'text'}", words, table


def _collect(rows: Iterator, dim: int) -> tuple[list[str], np.ndarray]:
    words, values = [], bytearray()
    for place, word, vector in rows:
        try:
            words.append(word.decode("utf-8"))
        except UnicodeDecodeError:
            raise StudyError(f"{place}: the word {word!r} is not UTF-8; convert the file first.") from None
        values += vector.tobytes()
    table = np.frombuffer(values, dtype=np.float32).reshape(-1, dim)
    table.flags.writeable = False
    return words, table


def _text_rows(lines: Iterable[bytes], start: int, dim: int) -> Iterator:
    for number, line in enumerate(lines, start):
        fields = line.split()
        if not fields:
            continue
        # A few words of GloVe 840B hold blanks, so the numbers are counted from the end of the line.
        if len(fields) <= dim or any(map(NUMBER.fullmatch, fields[1:-dim])):
            raise StudyError(f"line {number} has {len(fields) - 1} numbers, {dim} expected.")
        try:
            with np.errstate(over="ignore"):  # a number too large for float32 becomes infinity, refused later
                vector = np.array(fields[-dim:], dtype=np.float32)
        except ValueError as error:
            raise StudyError(f"line {number} has something that is not a number: {error}.") from None
        yield f"line {number}", b" ".join(fields[:-dim]), vector


def _binary_rows(file: io.BufferedReader, count: int, dim: int) -> Iterator:
    for number in range(1, count + 1):
        word = bytearray()
        while (byte := file.read(1)) not in (b" ", b""):
            word += byte
        vector = file.read(4 * dim)
        if len(vector) < 4 * dim:
            found = f"{len(vector)} bytes of {4 * dim}; read as binary, for the first row is not in digits"
            raise StudyError(f"row {number:,} of {count:,} is cut short ({found}). Fetch the file again.")
        yield f"row {number}", bytes(word).lstrip(b"\n"), np.frombuffer(vector, dtype="<f4")
