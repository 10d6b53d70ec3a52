"""Every source of word embeddings in one entry: what it is trained for, what it sees, what it needs, whose idea.

The registry of pretrainers, the valid names, `rtl sources` and the page docs/sources.md all follow from here.
"""

from dataclasses import dataclass, fields

from rtl_core.storage import StudyError, unknown


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
    labels: bool = False  # trained on labels, so that they can be shuffled

    @property
    def contextual(self) -> bool:
        """Whether its vectors are read out of an encoder's states, which exist without training too."""
        return "readout" in self.settings


NOTHING = "nothing"
DOMAINS, FILES = "domain labels", "labelled files"  # what a source may need; the rest of `data` says which
WORD2VEC = "Mikolov et al. 2013"
PAPER = "Verwimp and Bellegarda 2019"
NLL, NEGATIVE = "cross-entropy", "negative sampling"
PLAIN = ("epochs", "pretrain_on")
CONTEXTUAL = (*PLAIN, "readout", "occurrences", "encoder_layers", "layer")
ENCODER = ("encoder",)  # of sources that the shared encoder can be trained for, which has no epochs

SOURCES = {
    "random": Source("", "nothing", "none", "nothing", NOTHING, "the baseline", ()),
    "word2vec-sg": Source("word2vec", "the words around a word", NEGATIVE, "window", NOTHING, WORD2VEC),
    "word2vec-cbow": Source("word2vec", "a word from those around it", NEGATIVE, "window", NOTHING, WORD2VEC),
    "fasttext": Source(
        "word2vec", "the words around a spelling", NEGATIVE, "window", NOTHING, "Bojanowski et al. 2017"
    ),
    "glove": Source(
        "glove", "the log of a co-occurrence count", "weighted least squares", "window", NOTHING,
        "Pennington et al. 2014",
    ),
    "lsa": Source(
        "lsa", "a document's word counts", "least squares (SVD)", "document", NOTHING, "Bellegarda 2000",
        ("pretrain_on",),
    ),
    "lm": Source(
        "lm", "the next word", NLL, "all words before", NOTHING, "transfer within one task", PLAIN + ENCODER
    ),
    "bilm": Source(
        "lm", "the next word and the one before", NLL, "sentence", NOTHING, PAPER, CONTEXTUAL + ENCODER
    ),
    "masked-lm": Source(
        "masked_lm", "a hidden word", NLL, "paragraph", NOTHING, "Devlin et al. 2019", CONTEXTUAL + ENCODER
    ),
    "domain-sentence": Source(
        "domain", "the domain of a sentence", NLL, "sentence", DOMAINS, PAPER, CONTEXTUAL + ENCODER, True
    ),
    "domain-paragraph": Source(
        "domain", "the domain of a paragraph", NLL, "paragraph", DOMAINS, PAPER, CONTEXTUAL + ENCODER, True
    ),
    "domain-lsa": Source(
        "domain", "the cluster of a paragraph's document", NLL, "paragraph", NOTHING,
        "US patent 10,984,780", CONTEXTUAL, True,
    ),
    "next-paragraph": Source(
        "pairs", "whether two paragraphs follow each other", NLL, "paragraph", NOTHING,
        "Devlin et al. 2019", CONTEXTUAL + ENCODER, True,
    ),
    "sentence-order": Source(
        "pairs", "which of two sentences came first", NLL, "sentence", NOTHING, "Lan et al. 2020",
        CONTEXTUAL, True,
    ),
    "pos": Source(
        "tagging", "each word's part of speech", NLL, "sentence", f"{FILES}: UD English EWT, GUM",
        "Collobert and Weston 2008", CONTEXTUAL, True,
    ),
    "ner": Source(
        "tagging", "which words are names, of what", NLL, "sentence", f"{FILES}: WNUT 2017, Wikigold",
        "Collobert and Weston 2008", CONTEXTUAL, True,
    ),
    "sentiment": Source(
        "sentiment", "whether a sentence is positive", NLL, "sentence", f"{FILES}: SST-2, MR",
        "Socher et al. 2013", CONTEXTUAL, True,
    ),
    "nli": Source(
        "pairs", "whether one sentence follows from another", NLL, "sentence", f"{FILES}: SICK, RTE",
        "Conneau et al. 2017", CONTEXTUAL, True,
    ),
    "translation": Source(
        "translation", "the sentence in German", NLL, "sentence", f"{FILES}: Multi30k", "McCann et al. 2017",
        CONTEXTUAL,
    ),
}  # fmt: skip
OUTSIDE = {
    "file:": Source(
        "", "unknown", "unknown", "unknown", "a word2vec, GloVe or fastText .vec file", "the user's", ("fold",)
    ),
    "code:": Source(
        "", "the user's", "the user's", "unknown", "a Python file with a function pretrain", "the user's", PLAIN
    ),
    "hub:": Source(
        "hub", "unknown", "unknown", "sentence", "an encoder of the transformers library, and the extra [hub]",
        "the model's", ("pretrain_on", "readout", "occurrences", "layer"),
    ),
}  # fmt: skip
PLACEHOLDERS = {"file:": "file:PATH", "code:": "code:PATH", "hub:": "hub:MODEL"}
# One source that breaks the rules on purpose, for teaching: no table of vectors, but states of the very text.
LEAKY = "leaky-bilm"
SOURCES[LEAKY] = Source(
    "lm", "the next word and the one before", NLL, "the sentence, the word to predict too", NOTHING,
    "a mistake, made on purpose", ("epochs", "pretrain_on", "encoder_layers", "layer"),
)  # fmt: skip
# Controls that change a finished table, and controls that train another one.
TABLE_CONTROLS = {
    "permuted:": "the vectors of X dealt out among its words: same geometry, words destroyed",
    "permuted-in-band:": "the same within bands of word frequency only: what is left is frequency",
    "spectrum:": "a random table with the mean and the singular values of X: nothing is left but its shape",
}
TRAINING_CONTROLS = {
    "shuffled-labels:": "X trained on its own labels dealt out at random: same text, task destroyed",
    "untrained:": "the encoder of X read out before any training: what averaging alone brings",
}
CONTROLS = TABLE_CONTROLS | TRAINING_CONTROLS


def _stripped(name: str, controls: dict) -> str:
    while control := next((prefix for prefix in controls if name.startswith(prefix)), None):
        name = name.removeprefix(control)
    return name


def base_of(name: str) -> str:
    """Returns the source behind any controls: word2vec-sg for permuted:word2vec-sg."""
    return _stripped(name, CONTROLS)


def place_of(name: str) -> tuple[bool, int]:
    """Returns the key by which sources stand in a fixed order: as in SOURCES, others last, then their controls."""
    base, places = base_of(name), tuple(SOURCES)
    return base != name, places.index(base) if base in places else len(places)


def table_of(name: str) -> str:
    """Returns the source whose table a control changes, itself perhaps one that trains: untrained:bilm."""
    return _stripped(name, TABLE_CONTROLS)


def parts_of(name: str) -> tuple[str, ...]:
    """Returns the sources that a combination joins: two of A+B, one of A. A path may hold a plus sign."""
    first, _, rest = name.partition("+")
    if not rest or any(prefix in first for prefix in OUTSIDE):
        return (name,)
    return (first, *parts_of(rest))


def fitting(labelled_domains: bool, labelled_files: bool = False, but: str = "") -> list[str]:
    """Returns the sources, all `but` one, that work with what is there: documents with domains, labelled files."""
    lacking = [] if labelled_domains else [DOMAINS]
    lacking += [] if labelled_files else [FILES]
    fit = (name for name, s in SOURCES.items() if not s.data.startswith(tuple(lacking)))
    return [name for name in fit if name not in (LEAKY, but)]


def find(name: str) -> Source:
    """Returns the entry behind a source's name, that of X for a control, a joint one for A+B.

    Raises: StudyError for an unknown source, with the nearest valid names, and for a control it cannot have.
    """
    parts = parts_of(table_of(name))
    if len(parts) > 1:
        if len(set(parts)) < len(parts) or LEAKY in parts:
            raise StudyError(f"{name}: A+B joins different tables of word vectors, and {LEAKY} has none.")
        return _joint([find(part) for part in parts])
    base = base_of(parts[0])
    if not base:
        raise StudyError(f"{name} lacks the source behind the colon: permuted:word2vec-sg, untrained:bilm.")
    outside = next((prefix for prefix in OUTSIDE if base.startswith(prefix) and base != prefix), None)
    if base not in SOURCES and not outside:
        valid = (*SOURCES, *PLACEHOLDERS.values(), *(f"{prefix}X" for prefix in CONTROLS), "A+B")
        raise unknown("source", base, valid)
    if base == LEAKY and name != base:
        raise StudyError(f"{name}: {LEAKY} has no table of word vectors that a control could change.")
    if parts[0] != base:
        _check_control(parts[0], base)
    return OUTSIDE[outside] if outside else SOURCES[base]


def _check_control(name: str, base: str) -> None:
    control = name.removesuffix(base)
    can = {
        "untrained:": [x for x, s in SOURCES.items() if s.contextual],
        "shuffled-labels:": [x for x, s in SOURCES.items() if s.labels],
    }
    if base not in can.get(control, ()):
        raise StudyError(
            f"{name} is no control that can be made; untrained:X takes {', '.join(can['untrained:'])}, "
            f"shuffled-labels:X takes {', '.join(can['shuffled-labels:'])}."
        )


def _joint(entries: list[Source]) -> Source:
    words = {
        f.name: "; ".join(dict.fromkeys(getattr(e, f.name) for e in entries)) for f in fields(Source)[1:6]
    }
    settings = tuple(dict.fromkeys(name for e in entries for name in e.settings))
    return Source(module="", settings=settings, **words)


def settings_of(name: str, encoder: str) -> tuple[str, ...]:
    """Returns the settings that change a source: the shared encoder has no epochs of its own, but a read-out."""
    own = [find(part).settings for part in parts_of(table_of(name))]
    shared = tuple(setting for setting in CONTEXTUAL if setting != "epochs") + ENCODER
    return tuple({s for used in own for s in (shared if encoder == "shared" and "encoder" in used else used)})
