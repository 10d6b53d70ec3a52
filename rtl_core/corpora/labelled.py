"""Labelled sentences for the other tasks, from their canonical files, in the spelling of the LM's corpus.

Training sentences that stand in a test text, of the language model or (MR) of the sister set, are left out.
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from itertools import compress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from rtl_core.catalogue import base_of, fitting, parts_of, table_of
from rtl_core.corpora.corpus import SPLITS, Corpus
from rtl_core.corpora.public import VALID_SHARE
from rtl_core.corpora.sources import checked_files, differences, missing
from rtl_core.corpora.text import (
    comparable,
    decode_text,
    near_duplicates,
    normalised,
    read_text,
    rejoined,
    split_by_hash,
    tokens_of,
)  # fmt: skip
from rtl_core.storage import StudyError, say, unknown

LABELLED = {
    "pos": ("ewt", "gum"),
    "ner": ("wnut17", "wikigold"),
    "sentiment": ("sst-2", "mr"),
    "nli": ("sick", "rte"),
    "translation": ("multi30k",),
}
WIKIGOLD_SHARES = {"test": 0.2, "valid": 0.1}  # of its documents; it has no split of its own
MOST_OVERLAP = 0.05  # of a set's training and validation examples; more is no accident

# A word and its UPOS; comments, ranges (3-4, a multiword token) and empty nodes (3.1) match without one.
_CONLLU = re.compile(r"(?:#|\d+[-.]\d+\t).*|\d+\t([^\t]+)\t[^\t]*\t([^\t]+)(?:\t[^\t]*){6}")
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")


class Example(NamedTuple):
    """One labelled sentence, or pair of sentences."""

    tokens: tuple[str, ...]  # of the sentence, in the spelling of the LM's corpus
    labels: tuple[int, ...]  # one a token (tagging), or one in all; () for translation
    other: tuple[str, ...] = ()  # the second sentence of a pair, or the translation


@dataclass(frozen=True)
class LabelledSet:
    """Examples in three splits; `labels` is what the labels of examples index. `report`: counts read, dropped."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    report: dict = field(default_factory=dict, compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the labels and every example, in order."""
        content = repr((self.labels, self.train, self.valid, self.test))
        return hashlib.sha256(content.encode()).hexdigest()

    def n_tokens(self, split: str) -> int:
        """Returns the tokens of a split, second sentences included."""
        return sum(len(e.tokens) + len(e.other) for e in getattr(self, split))


class _Row(NamedTuple):
    """An example as its file has it: text is raw, or tokens where the file gives them."""

    where: str  # in the file, for errors
    split: str
    text: str | tuple[str, ...]
    labels: tuple[str, ...] = ()
    other: str | None = None


def bio_of(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Returns IOB1 labels, where B- only parts neighbours of one type, as BIO: every entity begins with B-.

    >>> bio_of(("I-PER", "I-PER", "B-PER", "I-LOC", "O", "I-LOC"))
    ('B-PER', 'I-PER', 'B-PER', 'B-LOC', 'O', 'B-LOC')
    """
    begins = (now[0] == "I" and before[1:] != now[1:] for before, now in zip(("O", *labels), labels))
    return tuple(f"B{label[1:]}" if new else label for label, new in zip(labels, begins))


def _not_whole(where: str, expected: str) -> StudyError:
    return StudyError(f"{where}: not {expected}. The file was probably cut short; get it again.")


def _sentences(path: Path, line_of: re.Pattern) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yields where, tokens and labels of every sentence in a file of one token a line, blank lines between.

    Raises: StudyError for a line that is not as the pattern has it.
    """
    words: list[tuple[str, str]] = []
    for number, line in enumerate((*read_text(path).split("\n"), ""), 1):
        found = line_of.fullmatch(line)
        if line.strip() and not found:
            raise _not_whole(f"{path}, line {number:,}", f"a token and its label, found {line[:60]!r}")
        if found and found[1]:
            words.append((found[1], found[2]))
        elif words and not line.strip():
            yield f"{path}, before line {number:,}", *zip(*words)
            words = []


def _columns(path: Path, *names: str) -> Iterator[tuple[str, ...]]:
    """Yields where and the named columns of every row of a tab-separated file. Raises: StudyError as above."""
    header, *rows = (line.split("\t") for line in read_text(path).removesuffix("\n").split("\n"))
    if not set(names) <= set(header):
        raise _not_whole(f"{path}, line 1", f"a header with {', '.join(names)}, found {header}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise _not_whole(f"{path}, line {number:,}", f"{len(header)} columns, found {len(row)}")
        yield f"{path}, line {number:,}", *(row[header.index(name)] for name in names)


def _tagged(names: tuple[str, str, str], line_of: re.Pattern, files: dict[str, Path]) -> Iterator[_Row]:
    for split, name in zip(SPLITS, names):
        for where, tokens, labels in _sentences(files[name], line_of):
            yield _Row(where, split, tokens, labels)


def _gum(files: dict[str, Path]) -> Iterator[_Row]:
    """GUM by its list of splits; sources.toml leaves out Reddit, whose text is blank, and GENTLE is "test2"."""
    _, *sections = re.split(r"^## *", read_text(files["splits.md"]), flags=re.M)
    names = {"train": "train", "dev": "valid", "test": "test"}
    splits = {name: names.get(title) for title, *found in map(str.split, sections) for name in found}
    for path in files.values():
        if splits.get(path.stem):
            for where, tokens, labels in _sentences(path, _CONLLU):
                yield _Row(where, splits[path.stem], tokens, labels)


def _wikigold(files: dict[str, Path]) -> Iterator[_Row]:
    document = 0
    for where, tokens, labels in _sentences(files["wikigold.conll.txt"], re.compile(r"(\S+) (\S+)")):
        if tokens == ("-DOCSTART-",):
            document += 1
            continue
        yield _Row(where, split_by_hash(f"wikigold-{document}", WIKIGOLD_SHARES), tokens, bio_of(labels))


def _sst2(files: dict[str, Path]) -> Iterator[_Row]:
    """The published development file is the test split: the labels of the test file were never published."""
    names = {"0": "negative", "1": "positive"}
    for split, file in (("train", "train.tsv"), ("test", "dev.tsv")):
        for where, text, label in _columns(files[file], "sentence", "label"):
            part = split_by_hash(text, VALID_SHARE) if split == "train" else split
            yield _Row(where, part, text, (names.get(label, label),))


def _mr(files: dict[str, Path]) -> Iterator[_Row]:
    for label in ("positive", "negative"):
        path = files[f"rt-polarity.{label[:3]}"]
        for number, text in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
            yield _Row(f"{path}, line {number:,}", split_by_hash(text, VALID_SHARE), text, (label,))


def _sick(files: dict[str, Path]) -> Iterator[_Row]:
    for split, part in zip(SPLITS, ("train", "trial", "test_annotated")):
        rows = _columns(files[f"SICK_{part}.txt"], "sentence_A", "sentence_B", "entailment_judgment")
        for where, text, other, label in rows:
            yield _Row(where, split, text, (label,), other)


def _rte(files: dict[str, Path]) -> Iterator[_Row]:
    names = {"TRUE": "YES", "FALSE": "NO"}  # of RTE-1
    for file, path in files.items():
        try:
            pairs = ElementTree.fromstring(read_text(path)).iter("pair")
        except ElementTree.ParseError as error:
            raise _not_whole(str(path), f"whole XML ({error})") from error
        for pair in pairs:
            label, key = pair.get("entailment") or pair.get("value", ""), f"{file}, pair {pair.get('id')}"
            split = "test" if "test" in file else split_by_hash(key, VALID_SHARE)
            text, other = pair.findtext("t", ""), pair.findtext("h", "")
            yield _Row(f"{path.parent}/{key}", split, text, (names.get(label, label),), other)


def _multi30k(files: dict[str, Path]) -> Iterator[_Row]:
    for split, part in zip(SPLITS, ("train", "val", "test_2016_flickr")):
        english, german = (files[f"data/task1/raw/{part}.{language}.gz"] for language in ("en", "de"))
        pair = _unzipped_lines(english), _unzipped_lines(german)
        if len(pair[0]) != len(pair[1]):
            raise _not_whole(str(german), f"as long as {english.name} ({len(pair[0]):,} lines)")
        for number, (text, other) in enumerate(zip(*pair), 1):
            yield _Row(f"{english}, line {number:,}", split, text, (), other)


def _unzipped_lines(path: Path) -> list[str]:
    try:
        return decode_text(gzip.decompress(path.read_bytes()), path).removesuffix("\n").split("\n")
    except (OSError, EOFError, zlib.error) as error:
        raise _not_whole(str(path), f"a whole gzip file ({error})") from error


def _bio(*types: str) -> tuple[str, ...]:
    return ("O", *(f"{sign}-{name}" for name in types for sign in "BI"))


EWT_FILES = ("en_ewt-ud-train.conllu", "en_ewt-ud-dev.conllu", "en_ewt-ud-test.conllu")
WNUT17_FILES = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
UPOS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT",
    "SCONJ", "SYM", "VERB", "X",
)  # fmt: skip
WNUT17_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
POLARITY = ("negative", "positive")
READERS = {  # of each set, with its labels
    "ewt": (partial(_tagged, EWT_FILES, _CONLLU), UPOS),
    "gum": (_gum, UPOS),
    "wnut17": (partial(_tagged, WNUT17_FILES, re.compile(r"(\S+)\t(\S+)")), _bio(*WNUT17_TYPES)),
    "wikigold": (_wikigold, _bio("LOC", "MISC", "ORG", "PER")),
    "sst-2": (_sst2, POLARITY),
    "mr": (_mr, POLARITY),
    "sick": (_sick, ("CONTRADICTION", "ENTAILMENT", "NEUTRAL")),
    "rte": (_rte, ("NO", "YES")),
    "multi30k": (_multi30k, ()),
}
SPACED = ("sst-2", "mr")  # their spaces part tokens already


def _spelled(text: str | tuple[str, ...], tokenizer: str, spaced: bool = False) -> tuple[str, ...]:
    """Returns the tokens of a sentence as a corpus with this tokenizer spells them; tokens that are given stay."""
    if isinstance(text, tuple):
        return tuple(normalised(token, tokenizer) for token in text)
    as_it_is = spaced and tokenizer == "whitespace"
    return tuple(text.split() if as_it_is else tokens_of(rejoined(text), tokenizer))


def _built(name: str, tokenizer: str, rows: Iterator[_Row]) -> LabelledSet:
    """Returns the set of these rows. Raises: StudyError for a label that it does not have."""
    labels = READERS[name][1]
    ids = {label: i for i, label in enumerate(labels)}
    other_tokenizer = tokenizer if labels else "whitespace"  # German keeps its capitals
    examples, read = {split: [] for split in SPLITS}, dict.fromkeys(SPLITS, 0)
    for row in rows:
        read[row.split] += 1
        strange = next((label for label in row.labels if label not in ids), None)
        if strange is not None:
            raise StudyError(f"{row.where}: {unknown(f'label of {name}', strange, labels)}")
        tokens = _spelled(row.text, tokenizer, name in SPACED)
        other = _spelled(row.other or "", other_tokenizer)
        if tokens and (other or row.other is None):
            examples[row.split].append(Example(tokens, tuple(map(ids.get, row.labels)), other))
    parts = {split: tuple(found) for split, found in examples.items()}
    dropped = {"without_text": sum(read.values()) - sum(map(len, parts.values()))}
    return LabelledSet(name, labels, **parts, report={"read": read, "dropped": dropped})


def _without(found: LabelledSet, texts: list[str], reason: str) -> tuple[LabelledSet, list[Example]]:
    """Returns the set less the training and validation examples that stand in texts, and these examples.

    Such an example, or a sentence of it, is a near-duplicate of one of the texts.
    """
    others, kept, gone = list(map(comparable, texts)), {}, []
    for split in ("train", "valid"):
        examples = getattr(found, split)
        both = [(i, words) for i, e in enumerate(examples) for words in (e.tokens, e.other) if words]
        parts = [(i, part) for i, words in both for part in _with_sentences(comparable(" ".join(words)))]
        bad = {i for i, _ in compress(parts, near_duplicates([part for _, part in parts], others))}
        kept[split] = tuple(e for i, e in enumerate(examples) if i not in bad)
        gone += [e for i, e in enumerate(examples) if i in bad]
    dropped = found.report["dropped"] | {reason: len(gone)}
    return replace(found, **kept, report=found.report | {"dropped": dropped}), gone


def _with_sentences(text: str) -> set[str]:
    return {text, *_SENTENCE_END.split(text)}


def load_labelled(name: str, tokenizer: str = "prose") -> LabelledSet:
    """Returns ewt, gum, wnut17, wikigold, sst-2, mr, sick, rte or multi30k. Nothing is downloaded.

    The sentences of MR that also stand in the held-out text of SST-2, which was made from MR, are left out.
    Raises: StudyError for an unknown name, and for files that are missing, damaged or not what is expected.
    """
    if name not in READERS:
        raise unknown("labelled set", name, READERS)
    sets = ("mr", "sst-2") if name == "mr" and not missing("sst-2") else (name,)
    checked = [(*item, sums[item[0]]) for files, sums in map(checked_files, sets) for item in files.items()]
    return _parsed(name, tokenizer, tuple(checked))


@lru_cache(maxsize=len(READERS))
def _parsed(name: str, tokenizer: str, files: tuple[tuple[str, Path, str], ...]) -> LabelledSet:
    paths = {file: path for file, path, _ in files}
    found = _built(name, tokenizer, READERS[name][0](paths))
    differing = differences(found)
    if differing:
        raise StudyError(
            f"labelled set {name}: {'; '.join(differing)}. Get the files with `rtl data get {name}`."
        )
    if name == "mr" and "dev.tsv" in paths:
        held_out = [text for file in ("dev.tsv", "test.tsv") for _, text in _columns(paths[file], "sentence")]
        found, _ = _without(found, held_out, "in_sst-2")
    return found


def labelled_content(source: str) -> list[str]:
    """Returns the sha256 of the labelled files that a source reads, also behind a control or in A+B; else []."""
    tasks = (base_of(part) for part in parts_of(table_of(source)))
    names = [name for task in tasks for name in LABELLED.get(task, ()) if not missing(name)]
    return [checksum for name in names for checksum in checked_files(name)[1].values()]


def check_at_hand(task: str, labelled_domains: bool = True) -> dict[str, str]:
    """Returns for each set of a task what is missing, "" where it is at hand. Raises: StudyError if none is."""
    if task not in LABELLED:
        raise unknown("labelled task", task, LABELLED)
    lacking = {name: missing(name) for name in LABELLED[task]}
    if all(lacking.values()):
        without = ", ".join(fitting(labelled_domains))
        raise StudyError(f"{' '.join(lacking.values())} Sources that need no labelled files: {without}.")
    return lacking


def labelled_for(task: str, corpus: Corpus) -> list[LabelledSet]:
    """Returns the sets of a task that are at hand, spelled as the corpus is, without sentences of its test text.

    Raises: StudyError when none is at hand, when a file is damaged, and when over 5 % of a set's training
    and validation examples share half or more of their 5-grams with the test text.
    """
    lacking = check_at_hand(task, len(corpus.domains) > 1)
    for message in filter(None, lacking.values()):
        say(f"{task} goes on with one set less: {message}")
    texts = [" ".join(document.paragraphs) for document in (*corpus.split("test"), *corpus.guarded)]
    return [_apart(name, corpus, texts) for name in LABELLED[task] if not lacking[name]]


def _apart(name: str, corpus: Corpus, texts: list[str]) -> LabelledSet:
    """Returns the set without examples that stand in the test texts. Raises: StudyError when they are many."""
    found = load_labelled(name, corpus.tokenizer)
    left, gone = _without(found, texts, "in_test_text")
    n_examples = len(found.train) + len(found.valid)
    if len(gone) > MOST_OVERLAP * n_examples:
        raise StudyError(
            f"labelled set {name} overlaps the test text of corpus {corpus.name}: {len(gone):,} of "
            f"{n_examples:,} examples share half or more of their 5-grams with it, as "
            f"{' '.join(gone[0].tokens)[:100]!r}. What is learnt from it would know the test text: give another "
            "corpus or another source."
        )
    return left
