"""Every source of word embeddings in one entry: what it is trained for, what it sees, what it needs, whose idea.

The registry of pretrainers, the valid names, `rtl sources` and the page docs/sources.md all follow from here.
"""

from dataclasses import dataclass

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
    "random": Source("", "none", "none", "nothing", "nothing", "the baseline", ()),
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
        "", "not known", "not known", "not known", "a word2vec, GloVe or fastText .vec file", "the user's", ()
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


def find(name: str) -> Source:
    """Returns the entry behind a source's name, that of X for a control. Raises: StudyError for an unknown one."""
    base = base_of(name)
    outside = next((prefix for prefix in OUTSIDE if base.startswith(prefix) and base != prefix), None)
    if base not in SOURCES and not outside:
        valid = (*SOURCES, *(f"{prefix}PATH" for prefix in OUTSIDE), *(f"{prefix}X" for prefix in CONTROLS))
        raise unknown("source", base, valid)
    return OUTSIDE[outside] if outside else SOURCES[base]
