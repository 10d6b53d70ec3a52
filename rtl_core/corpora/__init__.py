"""Text in: `load_corpus(name)` returns any corpus, parsed once and kept; the rest serves `rtl data`."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from rtl_core.config import identity
from rtl_core.corpora import docstrings, folder, labelled, public, topicworld
from rtl_core.corpora.corpus import SPLITS, Corpus, Document, sample_documents
from rtl_core.corpora.labelled import load_labelled
from rtl_core.corpora.sources import (
    all_sources,
    checked_files,
    differences,
    download,
    missing,
    raw_files,
    source,
)
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.storage import StudyError, cache_dir, file_stem, lock_beside

__all__ = [
    "Corpus", "Document", "Vocabulary", "check", "corpora_table", "get", "load_corpus", "sample_documents"
]  # fmt: skip
RECIPE = 1  # raised by hand when a change of code changes the text of a corpus
READ_BY = {"labelled": "`rtl sources` says which source reads it", "judged": "analysis/intrinsic.py reads it"}


def _reader(name: str):
    """Returns the function that reads a corpus from its origin, and what identifies that origin's content."""
    if name.startswith("folder:"):
        files = folder.checked_files(name.removeprefix("folder:"))
        return partial(folder.read_folder, name, files), files
    if name == "docstrings":
        return docstrings.read_docstrings, [docstrings.installed_versions(), source(name)]
    if name.partition(":")[0] == "topicworld":
        world = topicworld.World.named(name)
        return partial(topicworld.read_topicworld, world), asdict(world)
    if kind := source(name).get("kind"):
        raise StudyError(f"{name} is a {kind} set, not a corpus; {READ_BY[kind]}.")
    files, checksums = checked_files(name)
    return partial(public.READERS[name], files), checksums


def load_corpus(name: str) -> Corpus:
    """Returns docstrings, topicworld[:SETTINGS], wikitext-2, ag-news, 20newsgroups or folder:PATH, none downloaded.

    The parsed text is kept in the cache under the content of its origin: a changed file is read again.
    Raises: StudyError for an unknown name, and for files that are missing, damaged or not what is expected.
    """
    read, content = _reader(name)
    key = identity(name, content, RECIPE)[:16]
    path = cache_dir() / "corpora" / f"{file_stem(name)}-{key}.parquet"
    if path.exists():
        return Corpus.load(path)
    with lock_beside(path):  # two runs that start at once read it once
        return Corpus.load(path) if path.exists() else _read(name, read, path)


def _read(name: str, read, path: Path) -> Corpus:
    """Returns a corpus from its origin, kept at `path`. Raises: StudyError when it is not what is expected."""
    corpus = read()
    differing = differences(corpus)
    if differing and name != "docstrings":
        raise StudyError(f"corpus {name}: {'; '.join(differing)}. Get the files with `rtl data get {name}`.")
    corpus.save(path)
    return corpus


def corpora_table() -> list[dict]:
    """Returns a row for every named corpus and labelled set: whether it is at hand, where, its licence and home."""
    rows = []
    for name, entry in all_sources().items():
        row = {"name": name, "kind": entry.get("kind", "corpus")}
        try:
            files = raw_files(name) if "files" in entry else {}
            where = next((str(path.parent) for path in files.values()), entry["home"])
            row |= {"at_hand": True, "where": where}
        except StudyError:
            by_hand = "" if "downloads" in entry else " says where to get it and where to lay it"
            row |= {"at_hand": False, "where": f"`rtl data get {name}`{by_hand}"}
        rows.append(row | {"licence": entry["licence"], "home": entry["home"]})
    return rows


def get(name: str) -> str:
    """Returns a line about the corpus or labelled set, after it was downloaded, if it was not at hand, and read.

    Raises: StudyError when it has no public home to download from: where to find it and where to lay it.
    """
    if "downloads" in all_sources().get(name, {}) and missing(name):
        download(name)
    found = _load(name)
    if found is None:
        return f"{name} is at hand, its sha256 the known one."
    sizes = ", ".join(f"{split} {found.n_tokens(split):,}" for split in SPLITS)
    if isinstance(found, Corpus):
        return f"{name} is at hand: {len(found.documents):,} documents; tokens: {sizes}."
    n_examples = sum(found.report["read"].values())
    return f"{name} is at hand: {n_examples:,} examples; tokens: {sizes}."


def _load(name: str) -> Corpus | labelled.LabelledSet | None:
    """Returns what is read; of words that people judged only the checksum is looked at, which says all."""
    if all_sources().get(name, {}).get("kind") == "judged":
        return checked_files(name) and None
    return load_labelled(name) if name in labelled.READERS else load_corpus(name)


def check(name: str | None = None) -> list[dict]:
    """Returns a row for the corpus or labelled set (None: all at hand): whether it reads as expected, or why not."""
    if name and not name.startswith(("folder:", "topicworld:")):
        source(name)  # or it is unknown
    rows = []
    for each in [name] if name else [row["name"] for row in corpora_table() if row["at_hand"]]:
        try:
            found = _load(each)
            if found is None:
                rows.append({"name": each, "ok": True, "found": "as expected"})
                continue
            other = found.report.get("versions", []) + differences(found)
            tokens = {f"{split}_tokens": found.n_tokens(split) for split in SPLITS}
            rows.append({"name": each, "ok": not other, "found": "; ".join(other) or "as expected"} | tokens)
        except StudyError as error:
            rows.append({"name": each, "ok": False, "found": str(error)})
    return rows
