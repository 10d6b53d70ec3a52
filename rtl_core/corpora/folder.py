"""The user's own text: sub-folders of .txt files, or CSV, TSV and JSONL with text and label columns."""

import csv
import io
import json
from pathlib import Path

from rtl_core.corpora.corpus import SPLITS, Corpus, Document
from rtl_core.corpora.text import drop_near_duplicates, paragraphs_of, read_text, split_by_hash
from rtl_core.storage import StudyError, file_sha256, unknown

COLUMNS = {
    "text": ("text", "content", "body", "document", "article", "review", "sentence", "description"),
    "label": ("label", "class", "category", "domain", "topic", "genre"),
    "split": ("split", "partition"),
}
SHARES = {"test": 0.1, "valid": 0.1}
_SPLIT_NAMES = {name: name for name in SPLITS} | {"training": "train", "validation": "valid", "dev": "valid"}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".txt", ".jsonl", *_DELIMITERS)


def checked_files(folder: str) -> dict[str, str]:
    """Returns the sha256 of every text file under a folder (or of one file) by path, in alphabetical order.

    Raises: StudyError when there is no such folder, or no text in it.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise StudyError(f"folder:{folder}: there is no {root}; give folder:PATH with an existing one.")
    found = [root] if root.is_file() else sorted(path for path in root.rglob("[!.]*") if path.is_file())
    files = {str(path): file_sha256(path) for path in found if path.suffix.lower() in _SUFFIXES}
    if not files:
        raise StudyError(
            f"folder:{folder}: none of its {len(found)} files is text that can be read. Give files named "
            f"*{', *'.join(_SUFFIXES)}; sub-folders of .txt files are domains."
        )
    return files


def _split(name: str) -> str:
    """Returns train, valid or test. Raises: StudyError for any other split."""
    name = str(name).strip().lower()
    if name not in _SPLIT_NAMES:
        raise unknown("split", name, _SPLIT_NAMES)
    return _SPLIT_NAMES[name]


def _column(row: dict, role: str) -> str | None:
    """Returns the name of the column that plays a role, None when there is none."""
    lowered = {str(name).strip().lower(): name for name in row}
    return next((lowered[name] for name in COLUMNS[role] if name in lowered), None)


def _records(path: Path):
    """Yields the rows of a CSV, TSV or JSONL file as dicts."""
    lines = io.StringIO(read_text(path), newline="")
    if path.suffix.lower() == ".jsonl":
        yield from (json.loads(line) for line in lines if line.strip())
    else:
        csv.field_size_limit(2**31 - 1)  # a field may hold a whole book
        yield from csv.DictReader(lines, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)


def _table_rows(path: Path, identifier: str):
    """Yields `(id, domain, split, text)` for every row of a table."""
    number = 0
    try:
        for number, record in enumerate(_records(path), 1):
            text, label, split = (_column(record, role) for role in COLUMNS)
            if text is None:
                raise StudyError(
                    f"{path} has no column of text; found {', '.join(map(str, record))}. Name it "
                    f"{COLUMNS['text'][0]} (or {', '.join(COLUMNS['text'][1:])})."
                )
            if not isinstance(record[text], str | None):
                raise StudyError(f"{path}, row {number}: its {text} is {record[text]!r}, no text; mend it.")
            domain = str(record[label]) if label and record[label] is not None else None
            own_split = _split(record[split]) if split else None
            yield f"{identifier}:{number}", domain, own_split, record[text] or ""
    except (csv.Error, ValueError, TypeError, AttributeError) as error:
        kind = path.suffix[1:].upper()
        raise StudyError(f"{path}, row {number + 1} is not whole {kind} ({error}); mend it.") from error


def _rows(root: Path, path: Path):
    """Yields `(id, domain, split, text)` for every document in a file; its folders name split and domain."""
    parts = path.relative_to(root).parent.parts if path != root else ()
    folders = parts[1:] if parts and parts[0].lower() in _SPLIT_NAMES else parts
    split = _SPLIT_NAMES.get((parts[0] if len(folders) < len(parts) else path.stem).lower())
    identifier = "/".join((*parts, path.name))
    if path.suffix.lower() == ".txt":
        yield identifier, folders[0] if folders else None, split, read_text(path)
    else:
        for each, domain, own_split, text in _table_rows(path, identifier):
            yield each, domain or (folders[0] if folders else None), own_split or split, text


def _by_split(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in counts.items())


def read_folder(name: str, files: dict[str, str]) -> Corpus:
    """Returns the corpus of the user's own files, split as given, or 80/10/10 by hash of the document's id.

    A split that was not given comes from the documents without one; where there are none, from train.
    Raises: StudyError when a file is empty or not UTF-8, or when a split is left without a document.
    """
    root = Path(name.removeprefix("folder:")).expanduser()
    rows = [row for file in files for row in _rows(root, Path(file))]
    given = {split for _, _, split, _ in rows}
    shares = {split: share for split, share in SHARES.items() if split not in given}
    kept_whole = (*SHARES, "train") if None in given else SHARES
    documents = []
    for identifier, domain, split, text in rows:
        split = split if split in kept_whole else split_by_hash(identifier, shares)
        documents.append(Document(identifier, domain, split, paragraphs_of(text)))
    with_text = [d for d in documents if d.paragraphs]
    kept, n_dropped = drop_near_duplicates(with_text)
    read, counts = (
        {split: sum(d.split == split for d in docs) for split in SPLITS} for docs in (with_text, kept)
    )
    if not all(counts.values()):
        raise StudyError(
            f"{name} has {len(rows)} documents, {len(rows) - len(with_text)} of them without text. By split there "
            f"are {_by_split(read)}; without what repeats an earlier split {_by_split(counts)}, and every split "
            "needs some. Add other documents, or lay these otherwise into folders train, valid, test (or give a "
            "column `split`)."
        )
    report = {"without_text": len(rows) - len(with_text), "near_duplicates": n_dropped}
    return Corpus(name, kept, report=report)
