"""Every source of word embeddings in one entry: what it is trained for, what it sees, what it needs, whose idea.

The registry of pretrainers, the valid names, `rtl sources` and the page docs/sources.md all follow from here.
"""

from dataclasses import dataclass, fields

from rtl_core.storage import unknown


@dataclass(frozen=True)
class Source:
    """One source. `settings` are the fields of pre-training that change it; the others are inert."""

    module: str  # of rtl_core.pretrain
    task: str  # what it is trained to do
    objective: str
    context: str  # how much text its vectors have seen around a word
    data: str  # what it needs beside running text
    idea: str  # where it comes from
    settings: tuple[str, ...] = ("epochs", "pretrain_on")


WORD2VEC = "Mikolov et al. 2013"
PAPER = "Verwimp and Bellegarda 2019"
CONTEXTUAL = ("epochs", "pretrain_on", "readout", "occurrences")

SOURCES = {
    "random": Source("", "nothing", "none", "nothing", "nothing", "the baseline", ()),
    "word2vec-sg": Source(
        "word2vec", "the words around a word", "negative sampling", "window", "nothing", WORD2VEC
    ),
    "word2vec-cbow": Source(
        "word2vec", "a word from those around it", "negative sampling", "window", "nothing", WORD2VEC
    ),
    "domain-sentence": Source(
        "domain", "the domain of a sentence", "cross-entropy", "sentence", "domain labels", PAPER, CONTEXTUAL
    ),
    "domain-paragraph": Source(
        "domain",
        "the domain of a paragraph",
        "cross-entropy",
        "paragraph",
        "domain labels",
        PAPER,
        CONTEXTUAL,
    ),
}
OUTSIDE = {
    "file:": Source(
        "", "unknown", "unknown", "unknown", "a word2vec, GloVe or fastText .vec file", "the user's", ()
    ),
}
CONTROLS = {
    "permuted:": "the vectors of X dealt out among its words: same geometry, words destroyed",
}


def base_of(name: str) -> str:
    """Returns the source behind any controls: word2vec-sg for permuted:word2vec-sg."""
    while control := next((prefix for prefix in CONTROLS if name.startswith(prefix)), None):
        name = name.removeprefix(control)
    return name


def parts_of(name: str) -> tuple[str, ...]:
    """Returns the sources that a combination joins: two of A+B, one of A. A path may hold a plus sign."""
    first, _, rest = name.partition("+")
    if not rest or any(first.startswith(prefix) for prefix in OUTSIDE):
        return (name,)
    return (first, *parts_of(rest))


def find(name: str) -> Source:
    """Returns the entry behind a source's name, that of X for a control, a joint one for A+B.

    Raises: StudyError for an unknown source, with the nearest valid names.
    """
    parts = parts_of(base_of(name))
    if len(parts) > 1:
        return _joint([find(part) for part in parts])
    base = parts[0]
    outside = next((prefix for prefix in OUTSIDE if base.startswith(prefix) and base != prefix), None)
    if base not in SOURCES and not outside:
        valid = (
            *SOURCES,
            *(f"{prefix}PATH" for prefix in OUTSIDE),
            *(f"{prefix}X" for prefix in CONTROLS),
            "A+B",
        )
        raise unknown("source", base, valid)
    return OUTSIDE[outside] if outside else SOURCES[base]


def _joint(entries: list[Source]) -> Source:
    words = {
        f.name: "; ".join(dict.fromkeys(getattr(e, f.name) for e in entries)) for f in fields(Source)[1:-1]
    }
    settings = tuple(dict.fromkeys(name for e in entries for name in e.settings))
    return Source(module="", settings=settings, **words)
