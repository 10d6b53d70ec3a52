"""Where in a text the nats are: the test tokens cut by frequency, class, position, recurrence and what was just read.

Every slicing is a partition: each token is in one slice of each. The slicing by domain follows from documents alone
(`by_domain`), so it is not stored.
"""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from rtl_core.config import Experiment
from rtl_core.corpora.vocabulary import EOS, EOS_ID, UNK, Vocabulary
from rtl_core.storage import StudyError, results_dir
from rtl_core.texts import text_of

# The closed classes of English (Quirk et al. 1985, section 2.34): determiners and quantifiers, pronouns,
# prepositions, conjunctions and connectives, auxiliaries with negation and degree, and auxiliaries as the tokenizer
# leaves them, cut at the apostrophe. What is in none of them is in a class that takes new words: content.
_CLOSED = """
a an the this that these those such same other another each every either neither both all any some no none
half enough many much more most few fewer fewest less least several own what which whose whatever whichever
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her
hers herself it its itself they them their theirs themselves one ones oneself who whom whoever someone
somebody something anyone anybody anything everyone everybody everything nobody nothing there here
about above across after against along alongside amid among amongst around as at before behind below beneath
beside besides between beyond by despite down during except for from in inside into like near of off on onto
out outside over past per since than through throughout to toward towards under underneath until unlike up
upon via with within without
and or nor but yet so if unless because although though while whereas whether when whenever where wherever
why how once then else thus hence therefore however
be am is are was were been being have has had having do does did doing done can could may might must shall
should will would ought cannot not only also even just too very
isn aren wasn weren hasn haven hadn doesn don didn couldn mustn shouldn won wouldn
"""
FUNCTION_WORDS = frozenset(_CLOSED.split())
COUNTS = (0, 1, 10, 100, 1000)  # of a word in the LM's own training text
POSITIONS = (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # tokens of the document before this one
DISTANCES = (1, 20, 100, 500)  # tokens since the same word was there
TIMES_READ = (1, 10)  # in all training text, of a word that the LM's own part of it lacks


def _bands(edges: tuple[int, ...]) -> tuple[str, ...]:
    """Returns the names of bands that begin at `edges`, the last one open."""
    ends = zip(edges, edges[1:])
    closed = (f"{low:,}" if high == low + 1 else f"{low:,}–{high - 1:,}" for low, high in ends)
    return (*closed, f"{edges[-1]:,}+")


def _banded(values: np.ndarray, edges: tuple[int, ...], prefix: str = "") -> np.ndarray:
    names = np.array([prefix + name for name in _bands(edges)], dtype=object)
    return names[np.searchsorted(edges, values, side="right") - 1]


AGAIN, ONLY_READ = "content, again after ", "0, but in pre-training "
SLICES = {  # slicing -> its slices, in order
    "frequency": (*(ONLY_READ + band for band in _bands(TIMES_READ)), *_bands(COUNTS[1:]), UNK),
    "class": ("content", "function", "number", "punctuation", EOS, UNK),
    "position": _bands(POSITIONS),
    "recurrence": (
        "content, new", *(AGAIN + band for band in _bands(DISTANCES)), "other, new", "other, again"
    ),
    "word before": (*_bands(COUNTS), UNK),  # the frequency of what the model has just read: its input
}  # fmt: skip
DOMAIN = "domain"


def word_class(word: str) -> str:
    """Returns the class of a word: content, function, number, punctuation, or itself for `<eos>` and `<unk>`."""
    if word in (EOS, UNK):
        return word
    if not re.search(r"[^\W_]", word):
        return "punctuation"
    if re.match(r"[-+]?[.,]?\d", word):
        return "number"
    return "function" if word in FUNCTION_WORDS else "content"


def labels(ledger: pd.DataFrame, vocabulary: Vocabulary, lm_counts: np.ndarray) -> pd.DataFrame:
    """Returns the slice of every token in every slicing, as ordered categories.

    Shapes: ledger as `scoring.ledger_of` makes it; lm_counts (V,), occurrences in the LM's own training text.
    """
    words, first = ledger["word"].to_numpy(), ledger["position"].to_numpy() == 0
    classes = np.array([word_class(word) for word in vocabulary.words], dtype=object)[words]
    counts = np.where(classes == UNK, UNK, _banded(lm_counts[words], COUNTS))
    read = _banded(np.maximum(vocabulary.counts, 1)[words], TIMES_READ, ONLY_READ)
    of_eos = _banded(lm_counts[[EOS_ID]], COUNTS)  # which stands before every document
    since, content = _since(ledger), classes == "content"
    again = np.where(content, _banded(since, DISTANCES, AGAIN), "other, again")
    new = np.where(content, "content, new", "other, new")
    found = {
        "frequency": np.where(counts == "0", read, counts),
        "class": classes,
        "position": _banded(ledger["position"].to_numpy(), POSITIONS),
        "recurrence": np.where(since > 0, again, new),
        "word before": np.where(first, of_eos, np.roll(counts, 1)),
    }
    return pd.DataFrame({s: pd.Categorical(found[s], SLICES[s]) for s in SLICES}, index=ledger.index)


def _since(ledger: pd.DataFrame) -> np.ndarray:
    """Returns how many tokens ago the same word was in the same document, 0 where it is new. Shape (N,)."""
    groups = ledger.groupby(["document", "word"], observed=True, sort=False)
    return groups["position"].diff().fillna(0).to_numpy(dtype=np.int64)


def sums(ledger: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Returns a ledger summed by document and slice: document, slicing, slice, tokens, nats (context document)."""
    nats, parts = ledger["nats_document"].astype("float64"), []
    for slicing in labels:
        groups = nats.groupby([ledger["document"], labels[slicing].rename("slice")], observed=True)
        part = groups.agg(tokens="size", nats="sum").reset_index()
        part.insert(1, "slicing", slicing)
        parts.append(part.astype({"document": "str", "slice": "str"}))
    return pd.concat(parts, ignore_index=True)


def by_domain(documents: pd.DataFrame) -> pd.DataFrame:
    """Returns sums by document (`Results.documents`) as `sums` has them, sliced by the document's domain."""
    rows = documents.rename(columns={"domain": "slice", "nats_document": "nats"}).dropna(subset="slice")
    return rows.assign(slicing=DOMAIN)[["record", "document", "slicing", "slice", "tokens", "nats"]]


def in_order(slicing: str, found: Iterable[str]) -> list[str]:
    """Returns the slices found in a slicing in its own order; domains by name."""
    present = set(found)
    return [name for name in SLICES.get(slicing, sorted(present)) if name in present]


def measure(record) -> pd.DataFrame:
    """Returns the sums of a record's own token ledger by document and slice, tokens int32 and nats float32.

    Raises: StudyError when the ledger is gone or of another text.
    """
    path = results_dir() / "local" / f"{record.name}.ledger.parquet"
    try:
        ledger = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StudyError(
            f"the token ledger {path} is missing or not whole ({error}); delete the record of that name and run it "
            "again to have one."
        ) from error
    text = text_of(Experiment.from_dict(record.experiment))
    if not np.array_equal(ledger["word"], text.test.tokens):
        raise StudyError(
            f"{path} has {len(ledger):,} tokens of another text than the corpus of today, which has "
            f"{len(text.test):,}; the corpus has changed since. Delete the record and run it again."
        )
    found = sums(ledger, labels(ledger, text.vocabulary, text.lm_counts))
    return found.astype({"tokens": "int32", "nats": "float32"})
