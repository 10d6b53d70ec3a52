"""Documents with a domain and a split; a corpus that knows its fingerprint."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from rtl_core.storage import StudyError, atomic

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Document:
    """One document: paragraphs of lines of space-separated tokens. Every line is followed by `<eos>`."""

    id: str
    domain: str | None  # what the domain classifier is asked to name; None where a corpus has no labels
    split: str  # train, valid or test
    paragraphs: tuple[str, ...]  # lines joined by "\n"; a line is a sentence (WikiText: a whole paragraph)

    def lines(self) -> list[list[str]]:
        """Returns the document's lines (sentences), each a list of tokens without `<eos>`."""
        return [line.split() for paragraph in self.paragraphs for line in paragraph.split("\n")]

    @cached_property
    def n_tokens(self) -> int:
        """Running tokens, one `<eos>` a line included."""
        return sum(len(line) + 1 for line in self.lines())


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order. `report` says what was skipped when the corpus was made."""

    name: str
    documents: tuple[Document, ...]
    tokenizer: str = "prose"  # how raw text becomes tokens: "prose" or "whitespace" (see text.py)
    report: dict = field(default_factory=dict, compare=False)
    guarded: tuple[Document, ...] = ()  # test text of another corpus, which no labelled sentence may repeat

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every document's id, domain, split and text, in order."""
        digest = hashlib.sha256(self.tokenizer.encode())
        for d in (*self.documents, *self.guarded):
            digest.update("\x1e".join((d.id, d.domain or "", d.split, *d.paragraphs)).encode())
            digest.update(b"\x1d")
        return digest.hexdigest()

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The domain labels that occur, in alphabetical order."""
        return tuple(sorted({d.domain for d in self.documents if d.domain is not None}))

    def split(self, name: str) -> tuple[Document, ...]:
        """Returns the documents of a split. Raises: StudyError when it has none."""
        chosen = tuple(d for d in self.documents if d.split == name)
        if not chosen:
            counts = dict(Counter(d.split for d in self.documents))
            raise StudyError(f"corpus {self.name} has no documents in split {name!r}; found {counts}.")
        return chosen

    def sampled(self, n_tokens: int | None) -> "Corpus":
        """Returns the corpus with a seeded subset of its training documents (None: all), as an LM's own text is."""
        train = sample_documents(self.split("train"), n_tokens)
        held_out = (d for split in ("valid", "test") for d in self.documents if d.split == split)
        return replace(self, documents=(*train, *held_out), report={})

    def n_tokens(self, split: str) -> int:
        """Returns the running tokens of a split, one `<eos>` a line included."""
        return sum(d.n_tokens for d in self.split(split))

    def save(self, path: Path) -> None:
        """Writes the corpus as one parquet file, atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "id": [d.id for d in self.documents],
            "domain": pa.array([d.domain for d in self.documents], pa.string()),
            "split": [d.split for d in self.documents],
            "paragraphs": pa.array([list(d.paragraphs) for d in self.documents], pa.list_(pa.string())),
        }
        notes = {"name": self.name, "tokenizer": self.tokenizer, "report": repr(self.report)}
        with atomic(path) as temporary:
            pq.write_table(pa.table(columns).replace_schema_metadata(notes), temporary)

    @classmethod
    def load(cls, path: Path) -> "Corpus":
        """Returns the corpus that `save` wrote. Raises: StudyError when the file is not whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return cls._from(pq.read_table(path))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise StudyError(
                f"{path} is not a whole corpus file ({error}); delete it and run again."
            ) from error
        finally:
            pa.default_memory_pool().release_unused()  # it would keep 55 MiB, in each of a study's processes

    @classmethod
    def _from(cls, table) -> "Corpus":
        import ast

        notes = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        rows = zip(*(table[name].to_pylist() for name in ("id", "domain", "split", "paragraphs")))
        documents = tuple(Document(i, domain, split, tuple(p)) for i, domain, split, p in rows)
        return cls(notes["name"], documents, notes["tokenizer"], ast.literal_eval(notes["report"]))


def sample_documents(documents, n_tokens: int | None, seed: int = 0) -> tuple[Document, ...]:
    """Returns a seeded subset of documents with at least `n_tokens` running tokens (None: all), in corpus order.

    Raises: StudyError when the documents hold fewer tokens than asked for.
    """
    if n_tokens is None:
        return tuple(documents)
    order = np.random.default_rng(seed).permutation(len(documents))
    total, chosen = 0, []
    for index in order:
        if total >= n_tokens:
            break
        chosen.append(index)
        total += documents[index].n_tokens
    if total < n_tokens:
        raise StudyError(f"{n_tokens:,} tokens were asked for, but the text has {total:,}; ask for fewer.")
    return tuple(documents[index] for index in sorted(chosen))
