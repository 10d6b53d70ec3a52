"""Raw text to tokens by one normaliser, for every corpus and the user's files; splits; near-duplicates."""

import hashlib
import re
from collections import defaultdict
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import numpy as np

from rtl_core.corpora.corpus import SPLITS, Document
from rtl_core.storage import StudyError, unknown

TOKENIZERS = ("prose", "whitespace")

_BLANK_LINES = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"""([.!?]["')\]]*)\s+(?=["'(\[]?[A-Z])""")
_ABBREVIATION = re.compile(r"\b(?:[A-Z]|[Ee]\.g|[Ii]\.e|[Cc]f|vs|al|Dr|Mr|Mrs|Ms|Prof|St)\.$")
_TYPOGRAPHY = str.maketrans("‘’“”–—\u00a0", "''\"\"-- ")
_PARTED = re.compile(r" (?=(?:n't|'(?:s|t|re|ve|ll|d|m))\b)", re.I)  # a treebank's contraction: it 's, do n't
_TREEBANK_QUOTES = re.compile("``|''")
_DIGIT = re.compile(r"\d")
_TOKEN = re.compile(
    r"\d+(?:[.,]\d+)+"  # numbers
    r"|e\.g\.|i\.e\."
    r"|\w+(?:[-']\w+)*"  # words with inner hyphens and apostrophes; identifiers with underscores
    r"|\.\.+|--+|[^\w\s]"  # an ellipsis, a dash, any other sign
)


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file, with Unix line ends.

    Raises: StudyError when the file is missing, empty or not UTF-8 (with the position of the byte).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror}. Check the path.") from error
    return decode_text(data, path)


def decode_text(data: bytes, path: Path) -> str:
    """Returns bytes as text, as `read_text` does; `path` names them in errors."""
    if not data.strip():
        raise StudyError(f"{path} is empty ({len(data)} bytes); put the whole text in its place.")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise StudyError(
            f"{path} is not UTF-8 text: byte {error.start:,} is 0x{error.object[error.start]:02x} "
            f"({error.reason}). Save the file as UTF-8 and run again."
        ) from error


def sentences_of(paragraph: str) -> list[str]:
    """Returns the sentences of one paragraph of prose, by full stop and capital, abbreviations excepted.

    >>> sentences_of("See e.g. Knuth. It is clear.")
    ['See e.g. Knuth.', 'It is clear.']
    """
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[start : end.end(1)]
        if not _ABBREVIATION.search(sentence):
            sentences.append(sentence)
            start = end.end()
    return [*sentences, paragraph[start:]]


def normalised(text: str, tokenizer: str = "prose") -> str:
    """Returns text, or one token, in the spelling of corpora with this tokenizer; "whitespace": as it is.

    "prose": lower case, every digit "0", plain quotes and dashes. Raises: StudyError for any other tokenizer.

    >>> normalised("Didn’t 3-D")
    "didn't 0-d"
    """
    if tokenizer not in TOKENIZERS:
        raise unknown("tokenizer", tokenizer, TOKENIZERS)
    return text if tokenizer == "whitespace" else _DIGIT.sub("0", text.translate(_TYPOGRAPHY).lower())


def tokens_of(sentence: str, tokenizer: str = "prose") -> list[str]:
    """Returns the tokens of a raw sentence, normalised, punctuation apart.

    >>> tokens_of("Its 12-bit range isn't 3.14 (n_bits).")
    ['its', '00-bit', 'range', "isn't", '0.00', '(', 'n_bits', ')', '.']
    """
    return _TOKEN.findall(normalised(sentence, tokenizer))


def paragraphs_of(text: str, tokenizer: str = "prose") -> tuple[str, ...]:
    """Returns text as a Document's paragraphs: sentences joined by line ends, tokens by spaces.

    "prose": blank lines part paragraphs. "whitespace": tokens as they are; every line, blank ones too, is a
    paragraph of one sentence, as in WikiText.
    """
    if tokenizer == "whitespace":
        return tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    blocks = _BLANK_LINES.split(text.translate(_TYPOGRAPHY))
    sentences = (sentences_of(" ".join(block.split())) for block in blocks)
    lines = ([" ".join(tokens_of(sentence, tokenizer)) for sentence in block] for block in sentences)
    return tuple(filter(None, map("\n".join, lines)))


def split_by_hash(key: str, shares: dict[str, float]) -> str:
    """Returns the split of a key: shares of all keys go to the named splits, the rest to train.

    >>> split_by_hash("numpy.linalg", {"test": 1.0})
    'test'
    """
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return "train"


def _five_grams(paragraphs: list[str], ids: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hash of every 5-gram that lies inside one paragraph, and the index of that paragraph."""
    tokens = [paragraph.split() for paragraph in paragraphs]
    lengths = [len(words) for words in tokens]
    words = np.fromiter(map(ids.__getitem__, chain.from_iterable(tokens)), np.uint64, sum(lengths))
    hashes = np.zeros(max(len(words) - 4, 0), np.uint64)
    for k in range(5):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[k : k + len(hashes)]  # modulo 2**64
    owner = np.repeat(np.arange(len(tokens)), lengths)
    inside = owner[4:] == owner[: len(hashes)]
    return hashes[inside], owner[4:][inside]


def _repeats(paragraphs: list[str], seen: np.ndarray, ids: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which paragraphs have half or more of their 5-grams in `seen` (sorted), and all their hashes."""
    hashes, owner = _five_grams(paragraphs, ids)
    shared = np.searchsorted(seen, hashes, "right") > np.searchsorted(seen, hashes, "left")
    n_shared = np.bincount(owner, shared, minlength=len(paragraphs))
    n_all = np.bincount(owner, minlength=len(paragraphs))
    return (2 * n_shared >= n_all) & (n_all > 0), hashes


def rejoined(text: str) -> str:
    """Returns text with a treebank's contractions and quotes as they are usually written."""
    return _TREEBANK_QUOTES.sub('"', _PARTED.sub("", text))


def comparable(text: str) -> str:
    """Returns text in one spelling, whatever its tokenizer was."""
    return " ".join(tokens_of(rejoined(text)))


def near_duplicates(texts: list[str], others: list[str]) -> np.ndarray:
    """Returns which texts share half or more of their 5-grams with others; one too short for that: equals one.

    >>> near_duplicates(["a b", "a b c", "", "x a b c d e"], ["a b c d e", "a b"]).tolist()
    [True, False, False, True]
    """
    ids: dict[str, int] = defaultdict(count().__next__)
    _, seen = _repeats(others, np.empty(0, np.uint64), ids)
    repeated, _ = _repeats(texts, np.sort(seen), ids)
    same = set(others) - {""}
    return repeated | np.fromiter((text in same for text in texts), bool, len(texts))


def drop_near_duplicates(documents) -> tuple[tuple[Document, ...], int]:
    """Returns documents less the paragraphs that repeat an earlier split, and the number of these.

    Such a paragraph shares half or more of its 5-grams with training text or, in the test split, validation
    text. A document without a paragraph left goes too.
    """
    ids: dict[str, int] = defaultdict(count().__next__)
    seen, kept, n_dropped = np.empty(0, np.uint64), {}, 0
    for split in SPLITS:
        chosen = [d for d in documents if d.split == split]
        repeated, hashes = _repeats([p for d in chosen for p in d.paragraphs], seen, ids)
        fresh = iter(~repeated)
        for document in chosen:
            left = tuple(p for p in document.paragraphs if next(fresh))
            n_dropped += len(document.paragraphs) - len(left)
            if left:
                kept[document.id] = replace(document, paragraphs=left)
        seen = np.sort(np.concatenate([seen, hashes]))
    return tuple(kept[d.id] for d in documents if d.id in kept), n_dropped
