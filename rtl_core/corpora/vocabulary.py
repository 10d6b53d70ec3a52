"""The words a model knows, and text as arrays of word ids."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rtl_core.corpora.corpus import Document
from rtl_core.storage import StudyError, read_json, write_json

UNK, EOS = "<unk>", "<eos>"
UNK_ID, EOS_ID = 0, 1


@dataclass(frozen=True)
class Encoded:
    """Documents as word ids, one after the other; each `*_starts` has one more entry than there are units.

    Shapes: tokens int32 (N,); document_starts, paragraph_starts, line_starts int64 (n + 1,), the last entry N;
    domains int64 (n_documents,), -1 where a document has no domain; features float32 (N, F) or None, what a
    model may know beside the token before when it predicts a token; labels int64 (N,) or None, what its second
    task is to name there, -1: nothing.
    """

    tokens: np.ndarray
    document_starts: np.ndarray
    paragraph_starts: np.ndarray
    line_starts: np.ndarray
    domains: np.ndarray
    document_ids: tuple[str, ...]
    features: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def document_of(self, positions: np.ndarray) -> np.ndarray:
        """Returns the index of the document that holds each position."""
        return np.searchsorted(self.document_starts, positions, side="right") - 1

    def select(self, chosen: np.ndarray) -> "Encoded":
        """Returns the chosen documents, in the same order. Shapes: chosen bool (n_documents,)."""
        kept = np.repeat(chosen, np.diff(self.document_starts))  # (N,)
        new = np.concatenate([[0], np.cumsum(kept)])  # where a token that is kept goes to

        def moved(starts: np.ndarray) -> np.ndarray:
            return np.append(new[starts[:-1]][kept[starts[:-1]]], new[-1])

        return Encoded(
            self.tokens[kept],
            *map(moved, (self.document_starts, self.paragraph_starts, self.line_starts)),
            self.domains[chosen],
            tuple(name for name, wanted in zip(self.document_ids, chosen) if wanted),
            *(None if values is None else values[kept] for values in (self.features, self.labels)),
        )


@dataclass(frozen=True)
class Vocabulary:
    """Word types by id: `<unk>`, `<eos>`, then by falling count. Counts are of the whole training split."""

    words: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def build(cls, documents: Iterable[Document], max_size: int | None = None) -> "Vocabulary":
        """Returns the `max_size` most frequent types (None: all) of training documents, `<unk>` and `<eos>` included.

        Raises: StudyError when a document is not of the training split: a vocabulary must not know the test text.
        """
        counter: Counter = Counter()
        for document in documents:
            if document.split != "train":
                raise StudyError(
                    f"document {document.id!r} is of split {document.split!r}; a vocabulary is built from "
                    "training documents only, or the test text would leak into the model."
                )
            for line in document.lines():
                counter.update(line)
                counter[EOS] += 1
        known = sorted((w for w in counter if w not in (UNK, EOS)), key=lambda w: (-counter[w], w))
        if not known:
            raise StudyError("the training documents hold no words; a vocabulary needs some.")
        if max_size is not None:
            known = known[: max_size - 2]
        unk = sum(counter.values()) - counter[EOS] - sum(counter[w] for w in known)
        return cls((UNK, EOS, *known), (unk, counter[EOS], *(counter[w] for w in known)))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word to id."""
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def bands(self) -> np.ndarray:
        """The frequency band of each word: 0 up to 9 occurrences in the training split, 1 up to 99, … Shape (V,)."""
        return np.log10(np.maximum(self.counts, 1)).astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the words in order."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def encode(self, documents: Iterable[Document], domains: tuple[str, ...] = ()) -> Encoded:
        """Returns documents as arrays of ids, `<eos>` after every line, unknown words as `<unk>`.

        `domains` gives domain ids their order: `corpus.domains`.
        """
        get, domain_ids = self.ids.get, {name: i for i, name in enumerate(domains)}
        tokens: list[int] = []
        starts: tuple[list[int], ...] = ([], [], [])  # of documents, paragraphs, lines
        labels, names = [], []
        for document in documents:
            starts[0].append(len(tokens))
            labels.append(domain_ids.get(document.domain, -1))
            names.append(document.id)
            for paragraph in document.paragraphs:
                starts[1].append(len(tokens))
                for line in paragraph.split("\n"):
                    starts[2].append(len(tokens))
                    tokens.extend(get(word, UNK_ID) for word in line.split())
                    tokens.append(EOS_ID)
        ends = [np.array([*s, len(tokens)], dtype=np.int64) for s in starts]
        return Encoded(
            np.array(tokens, dtype=np.int32), *ends, np.array(labels, dtype=np.int64), tuple(names)
        )

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Returns the words of `ids`."""
        return [self.words[i] for i in ids]

    def save(self, path: Path) -> None:
        """Writes words and counts as JSON, atomically."""
        write_json(path, {"words": self.words, "counts": self.counts})

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Returns the vocabulary that `save` wrote."""
        stored = read_json(path)
        return cls(tuple(stored["words"]), tuple(stored["counts"]))
