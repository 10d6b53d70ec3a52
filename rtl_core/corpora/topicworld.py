"""A synthetic language whose limits are known: every document has a hidden type, which its content words betray.

A document's type is a domain, or a domain with some of a second one; all types are equally likely. Classes of words
follow one grammar in every domain, a Markov chain that begins behind the end of a sentence. Each class then utters a
word: a function word in the same way in every domain, a content word by the distributions of the document's domains.
A document's label is its first domain, which says less than its type. `Law` holds these probabilities; the text and
the exact limits (analysis/limits.py) both come from it.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import product

import numpy as np

from rtl_core.config import derive_seed
from rtl_core.corpora.corpus import SPLITS, Corpus, Document
from rtl_core.corpora.vocabulary import EOS
from rtl_core.storage import StudyError, unknown

DOMAINS = (
    "sea", "farm", "court", "stage", "clinic", "mine", "school", "kitchen", "forest", "bank", "railway", "loom",
    "star", "chess", "press", "forge",
)  # fmt: skip
# Probabilities of the next class. `end` utters <eos> and nothing else; it stands before a document too.
GRAMMAR = {
    "end": {"determiner": 0.6, "pronoun": 0.2, "noun": 0.2},
    "determiner": {"noun": 0.6, "adjective": 0.4},
    "preposition": {"determiner": 0.7, "noun": 0.2, "pronoun": 0.1},
    "pronoun": {"verb": 0.8, "preposition": 0.1, "end": 0.1},
    "noun": {"verb": 0.4, "preposition": 0.3, "end": 0.3},
    "verb": {"determiner": 0.5, "preposition": 0.2, "noun": 0.2, "end": 0.1},
    "adjective": {"noun": 0.8, "adjective": 0.2},
}
CLASSES, CONTENT = tuple(GRAMMAR), ("noun", "verb", "adjective")
SENTENCES = 4  # of a paragraph
SHARES = {"train": 0.8, "valid": 0.05, "test": 0.15}  # of documents
RANGES = {
    "n_domains": (2, len(DOMAINS)), "second": (0.0, 0.5), "overlap": (0.0, 1.0), "content_words": (2, 1000),
    "function_words": (1, 1000), "zipf": (0.0, 3.0), "noise": (0.0, 0.9), "n_documents": (20, 10**6),
    "document_tokens": (10, 10**5), "seed": (0, 2**31),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """The settings of a language; its text follows from them alone. Raises: StudyError when one is out of range."""

    n_domains: int = 8
    overlap: float = 0.35  # share of content words that come from any domain instead of the document's own
    second: float = 0.25  # share of the others that come from a second domain; 0: no document has one
    content_words: int = 80  # in each content class of each domain
    function_words: int = 30  # in each other class
    zipf: float = 1.0  # exponent: the word of rank r in its class has weight 1 / r ** zipf
    noise: float = 0.02  # share of words that are any word of the language, whatever the grammar says
    n_documents: int = 4000
    document_tokens: int = 300  # a document ends with the first sentence end from here on
    seed: int = 0

    def __post_init__(self):
        for name, (least, most) in RANGES.items():
            value, kind = getattr(self, name), type(least)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most or kind is int and value != int(value):
                raise StudyError(
                    f"topicworld: {name} = {value!r} is not valid; give {kind.__name__}, {least} to {most}."
                )
            object.__setattr__(self, name, kind(value))  # 0 and 0.0 are one setting

    @classmethod
    def named(cls, name: str) -> "World":
        """Returns the world of a corpus name, `topicworld` or `topicworld:overlap=0.5,noise=0.1`.

        Raises: StudyError for another corpus, a setting unknown or given twice, or a value that is no number.
        """
        corpus, _, settings = name.partition(":")
        if corpus != "topicworld":
            raise StudyError(
                f"{name} is not topicworld, so nobody knows its limits; choose topicworld[:SETTINGS]."
            )
        values = {}
        for part in filter(None, settings.split(",")):
            key, _, value = part.partition("=")
            if key not in RANGES:
                raise unknown("setting of topicworld", key, tuple(RANGES))
            if key in values:
                raise StudyError(f"{name}: {key} is given twice; give each setting once.")
            try:
                values[key] = float(value)
            except ValueError:
                raise StudyError(f"{name}: {part!r} is not NAME=NUMBER, such as overlap=0.5.") from None
        return cls(**values)

    @property
    def name(self) -> str:
        """The corpus name of this world: `topicworld`, and the settings that are not at their default."""
        values = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}
        changed = [f"{name}={repr(v).removesuffix('.0')}" for name, v in values.items()]
        return "topicworld" + (f":{','.join(changed)}" if changed else "")


@dataclass(frozen=True)
class Law:
    """The probabilities of a world. Class 0 is `end`, word 0 `<eos>`; a document begins behind an `end`.

    Shapes: transitions (C, C), of the next class; emissions (K, C, V), of the word that a class utters in a
    document of each type.
    """

    words: tuple[str, ...]
    types: tuple[str, ...]
    transitions: np.ndarray
    emissions: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """How often each class occurs far from a document's beginning. Shape (C,)."""
        return np.linalg.matrix_power(self.transitions, 2**12)[0]


@lru_cache(maxsize=8)
def law_of(world: World) -> Law:
    """Returns the probabilities of a world."""
    domains = sorted(DOMAINS[: world.n_domains])
    n_content, n_function = len(CONTENT), len(CLASSES) - len(CONTENT) - 1
    n_words = 1 + n_function * world.function_words + len(domains) * n_content * world.content_words
    words, own = [EOS], np.zeros((len(domains), len(CLASSES), n_words))
    own[:, 0, 0] = 1
    for place, name in enumerate(CLASSES[1:], 1):
        for d, domain in enumerate(domains) if name in CONTENT else [(slice(None), None)]:
            ranks = np.arange(1, 1 + (world.content_words if domain else world.function_words))
            weights = 1 / ranks**world.zipf
            own[d, place, len(words) : len(words) + len(ranks)] = weights / weights.sum()
            words += [f"{domain}-{name}-{rank}" if domain else f"{name}-{rank}" for rank in ranks]
    topical = (1 - world.overlap) * own + world.overlap * own.mean(0)
    pairs = [(a, b) for a, b in product(range(len(domains)), repeat=2) if a == b or world.second]
    types = tuple("+".join(dict.fromkeys((domains[a], domains[b]))) for a, b in pairs)
    clean = np.stack([(1 - world.second) * topical[a] + world.second * topical[b] for a, b in pairs])
    law = Law(tuple(words), types, _transitions(), clean)
    anything = law.shares[1:] @ clean[:, 1:].mean(0)
    noisy = (1 - world.noise) * clean[:, 1:] + world.noise * anything / anything.sum()
    return replace(law, emissions=np.concatenate([clean[:, :1], noisy], axis=1))


def _transitions() -> np.ndarray:
    return np.array([[after.get(name, 0.0) for name in CLASSES] for after in GRAMMAR.values()])


def sampled(law: Law, types: np.ndarray, n_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns a document's words for each type in `types`: up to the first `<eos>` from `n_tokens` words on.

    Where a document ends so follows from its own words; that it goes on says nothing else about the next one.
    Shapes: types int (n,); each document int (T,), indices of `law.words`.
    """
    n_classes, n_words = law.emissions.shape[1:]
    after, uttered = _cumulative(law.transitions), _cumulative(law.emissions.reshape(-1, n_words))
    classes, running, steps = np.zeros(len(types), dtype=np.int64), np.arange(len(types)), []
    while len(running):
        classes[running] = _drawn(after, n_classes, classes[running], rng)
        words = _drawn(uttered, n_words, types[running] * n_classes + classes[running], rng)
        steps.append((running, words))
        if len(steps) >= n_tokens:
            running = running[words != 0]
    owners, words = map(np.concatenate, zip(*steps))
    order = np.argsort(owners, kind="stable")
    return np.split(words[order], np.cumsum(np.bincount(owners))[:-1])


def _cumulative(probabilities: np.ndarray) -> np.ndarray:
    """Returns cumulative probabilities of every row, row r from r to r + 1, one after the other."""
    sums = probabilities.cumsum(1)
    return (sums / sums[:, -1:] + np.arange(len(sums))[:, None]).ravel()


def _drawn(cumulative: np.ndarray, width: int, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a column drawn from each of `rows`, by uniform numbers alone: these are the same in every version."""
    return np.searchsorted(cumulative, rows + rng.random(len(rows)), "right") - width * rows


def document_types(world: World) -> np.ndarray:
    """Returns the type of every document, as an index of `law.types`. Shape (n_documents,)."""
    rng = np.random.default_rng(derive_seed(world.seed, "types"))
    return (rng.random(world.n_documents) * len(law_of(world).types)).astype(np.int64)


def read_topicworld(world: World) -> Corpus:
    """Returns the corpus of a world. The number in a document's id is its place in `document_types`.

    Nothing is dropped as a near-duplicate: the splits are independent draws of one known law.
    """
    law, types = law_of(world), document_types(world)
    rng = np.random.default_rng(derive_seed(world.seed, "words"))
    *shares, _ = SHARES.values()  # the last split is the rest
    ends = np.cumsum([round(share * world.n_documents) for share in shares])
    documents = []
    for i, ids in enumerate(sampled(law, types, world.document_tokens, rng)):
        split = tuple(SHARES)[int(np.searchsorted(ends, i, "right"))]
        lines = " ".join(law.words[w] for w in ids[:-1]).split(f" {EOS} ")
        paragraphs = ("\n".join(lines[at : at + SENTENCES]) for at in range(0, len(lines), SENTENCES))
        domain = law.types[types[i]].partition("+")[0]
        documents.append(Document(f"{split}-{i}", domain, split, tuple(paragraphs)))
    corpus = Corpus(world.name, tuple(documents), tokenizer="whitespace")
    return replace(corpus, report={"read": {split: corpus.n_tokens(split) for split in SPLITS}})
