"""Frozen settings: experiments, pre-training, study sizes; JSON both ways and an identity for each."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

from rtl_core import catalogue
from rtl_core.storage import StudyError, file_sha256, unknown

CHOICES = {
    "model": ("lstm", "unigram", "kneser-ney"),
    "readout": ("averaged", "input-layer"),
    "fold": ("nothing", "case", "digits", "case+digits"),
    "input_mode": ("finetuned", "frozen"),
    "output_init": ("random", "tied"),
    "criterion": ("sampled-softmax", "softmax"),
    "train_context": ("stream", "document", "sentence"),
    "schedule": ("one-cycle", "constant"),
}
SCORE_CONTEXTS = ("document", "stream", "sentence")
# Raised by hand when a change of code changes results, so that an old model is never taken for a new one.
RECIPE = {"pretrain": 1, "run": 2}


def derive_seed(seed: int, *purpose) -> int:
    """Returns an independent 63-bit seed for one purpose, so that streams of randomness never share draws."""
    text = json.dumps([seed, *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def identity(*parts) -> str:
    """Returns the sha256 of JSON-able parts in canonical form."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class _Config:
    """What all settings share: choices are checked, variants are made with `replace`, JSON goes both ways."""

    def __post_init__(self):
        for name, valid in CHOICES.items():
            if hasattr(self, name) and getattr(self, name) not in valid:
                raise unknown(name, str(getattr(self, name)), valid)
        if hasattr(self, "source"):
            catalogue.find(self.source)
        for f in fields(self):
            value = getattr(self, f.name)
            bounds = f.metadata.get("range")
            if not bounds or value is None and type(None) in get_args(f.type):
                continue
            kind = float if float in (f.type, *get_args(f.type)) else int
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if (
                not number
                or kind is int
                and not float(value).is_integer()
                or not bounds[0] <= value <= bounds[1]
            ):
                raise StudyError(
                    f"{f.name} = {value!r} is not valid; give {kind.__name__}, {bounds[0]} to {bounds[1]}."
                )
            object.__setattr__(self, f.name, kind(value))  # 0 and 0.0 are one setting

    def replace(self, **changes):
        """Returns a copy with some fields changed. Raises: StudyError for an unknown field."""
        names = [f.name for f in fields(self)]
        for name in changes:
            if name not in names:
                raise unknown("setting", name, names)
        return replace(self, **changes)

    def to_dict(self) -> dict:
        """Returns the settings as a JSON-able dict."""
        return asdict(self)

    def settled(self):
        """Returns a copy in which every setting that changes nothing for this source has its default."""
        used = catalogue.find(self.source).settings
        own = {f.name: f for f in fields(self) if f.metadata.get("of_sources")}
        return replace(self, **{n: f.default for n, f in own.items() if f.metadata["of_sources"] not in used})

    def changed(self) -> dict:
        """Returns the settings that matter and are not at their default: what identity is made of.

        A new setting whose default changes nothing so leaves the records of before valid; a default that
        changes needs a raised RECIPE.
        """
        values = self.settled().to_dict()
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    @classmethod
    def from_dict(cls, values: dict):
        """Returns settings from `to_dict`. Raises: StudyError for an unknown key, with the nearest valid one."""
        names = [f.name for f in fields(cls)]
        for key in values:
            if key not in names:
                raise unknown("setting", key, names)
        return cls(**values)


def _setting(default, meaning: str, low=None, high=None, of_sources: str | None = None):
    """A field with its meaning (also its help text) and, for numbers, the valid range.

    `of_sources`: the name under which a source of the catalogue says that this setting matters to it.
    """
    valid = None if low is None else (low, high)
    return field(default=default, metadata={"help": meaning, "range": valid, "of_sources": of_sources})


# What these settings mean, in PretrainConfig and in Experiment
READOUT = "of contextual sources: mean state over a word's occurrences, or the input layer"
OCCURRENCES = "how many occurrences of a word are averaged; none: all"
EPOCHS = "passes of pre-training; none: the source's own default"
PRETRAIN_ON = "pre-training text: corpus (all its training text), lm-split (the LM's own), or another corpus"
LAYERS = "layers of the encoder; none: the source's own default"
LAYER = "which layer's states are averaged, 1 the lowest; none: the top"
FOLD = "spellings of a file: vectors made equal: case, digits (every one to 0), case+digits, nothing"


@dataclass(frozen=True)
class PretrainConfig(_Config):
    """How one embedding table is pre-trained. Everything here is part of its identity."""

    source: str = "word2vec-sg"
    dim: int = _setting(128, "columns of the table", 2, 16384)
    readout: str = _setting("averaged", READOUT, of_sources="readout")
    occurrences: int | None = _setting(None, OCCURRENCES, 1, 10**9, of_sources="occurrences")
    epochs: int | None = _setting(None, EPOCHS, 1, 1000, of_sources="epochs")
    encoder_layers: int | None = _setting(None, LAYERS, 1, 24, of_sources="encoder_layers")
    layer: int | None = _setting(None, LAYER, 1, 48, of_sources="layer")
    fold: str = _setting("nothing", FOLD, of_sources="fold")
    seed: int = _setting(0, "random seed", 0, 2**31)

    @property
    def base(self) -> "PretrainConfig":
        """The settings of the table that a control changes, which is made once for all its controls."""
        return self.replace(source=catalogue.table_of(self.source))

    @property
    def plain(self) -> str:
        """The source without any control: what its module goes by."""
        return catalogue.base_of(self.source)

    @property
    def untrained(self) -> bool:
        """Whether this is the control that reads the encoder out before training."""
        return self.source.startswith("untrained:")

    @property
    def shuffled_labels(self) -> bool:
        """Whether this is the control that trains on labels dealt out at random."""
        return self.source.startswith("shuffled-labels:")

    @property
    def content(self) -> str:
        """What identifies the source: its name; for files and folders of vectors what they hold, not their path."""
        kind, _, path = self.source.partition(":")
        if kind == "file":
            if "+" in path and not Path(path).exists():
                raise StudyError(f"there is no file {path}; in A+B a file comes last: glove+file:PATH.")
            return f"file:{file_sha256(path)}"
        if kind == "hub" and Path(path).is_dir():
            return "hub:" + identity([file_sha256(p) for p in sorted(Path(path).rglob("*")) if p.is_file()])
        return self.source


@dataclass(frozen=True)
class Experiment(_Config):
    """One language model to train and score: text, source of its embeddings, transfer, criterion, model, seed.

    The defaults are the study's recipe. learning_rate, input_rms, dropout, batch and max_epochs were chosen on the
    validation text of docstrings, for the baseline and skip-gram together, and are the same for every arm.
    """

    # text
    corpus: str = _setting("docstrings", "name of the corpus, or folder:PATH")
    vocab_size: int | None = _setting(10_000, "word types with <unk> and <eos>; none: all", 3, 10**7)
    lm_tokens: int | None = _setting(None, "LM training text, a seeded subset; none: all", 1, 10**12)
    valid_tokens: int | None = _setting(None, "validation text; none: all", 1, 10**12)
    test_tokens: int | None = _setting(None, "test text; none: all", 1, 10**12)
    # source of the input embeddings
    source: str = _setting("random", "where the input embeddings come from")
    readout: str = _setting("averaged", READOUT, of_sources="readout")
    occurrences: int | None = _setting(None, OCCURRENCES, 1, 10**9, of_sources="occurrences")
    pretrain_epochs: int | None = _setting(None, EPOCHS, 1, 1000, of_sources="epochs")
    pretrain_on: str = _setting("corpus", PRETRAIN_ON, of_sources="pretrain_on")
    encoder_layers: int | None = _setting(None, LAYERS, 1, 24, of_sources="encoder_layers")
    layer: int | None = _setting(None, LAYER, 1, 48, of_sources="layer")
    fold: str = _setting("nothing", FOLD, of_sources="fold")
    # transfer
    input_mode: str = _setting("finetuned", "whether the LM trains the embeddings it received")
    output_init: str = _setting("random", "output layer: its own, or tied to the input table")
    input_rms: float = _setting(0.3, "root mean square at which the centred table enters", 1e-6, 1e6)
    # model
    model: str = _setting("lstm", "lstm, or one of the bounds")
    hidden_size: int = _setting(128, "LSTM units, also the embedding dimension", 2, 16384)
    n_layers: int = _setting(1, "LSTM layers", 1, 16)
    dropout: float = _setting(0.3, "dropout on the LSTM's inputs and outputs", 0.0, 0.95)
    # training
    criterion: str = _setting("sampled-softmax", "training criterion; scoring is always exact")
    n_samples: int = _setting(512, "words drawn for each batch by sampled softmax", 1, 10**7)
    train_context: str = _setting("stream", "where the state is reset in training and validation")
    batch_size: int = _setting(64, "parallel streams, documents or sentences", 1, 65536)
    window: int = _setting(35, "tokens of truncated back-propagation through time", 1, 10**6)
    learning_rate: float = _setting(8e-3, "peak learning rate of Adam", 1e-8, 1e3)
    schedule: str = _setting("one-cycle", "linear up then a cosine down to zero, or constant")
    weight_decay: float = _setting(0.0, "decoupled weight decay", 0.0, 10.0)
    clip: float = _setting(1.0, "largest norm of the gradient of the mean loss", 1e-6, 1e6)
    max_epochs: int = _setting(8, "most passes over the LM's text", 1, 10_000)
    patience: int = _setting(2, "epochs without gain on validation before stopping", 1, 10_000)
    seed: int = _setting(0, "random seed, of the pre-training too", 0, 2**31)

    def __post_init__(self):
        super().__post_init__()
        if self.output_init == "tied" and self.input_mode == "frozen":
            raise StudyError(
                "input_mode frozen with output_init tied would freeze the output layer too; choose finetuned, "
                "or output_init random."
            )

    @property
    def pretraining(self) -> PretrainConfig:
        """The settings of the pre-training behind this experiment."""
        same = {f.name: getattr(self, f.name) for f in fields(PretrainConfig) if hasattr(self, f.name)}
        return PretrainConfig(**same, dim=self.hidden_size, epochs=self.pretrain_epochs)

    @cached_property
    def file_inputs(self) -> dict[str, list[str]]:
        """What `file:` and `hub:` sources hold: identity follows the content, never the path."""
        names = map(catalogue.base_of, catalogue.parts_of(catalogue.table_of(self.source)))
        outside = [name for name in names if name.startswith(tuple(catalogue.OUTSIDE))]
        return {"files": [PretrainConfig(name).content for name in outside]} if outside else {}

    def identity(self, corpus_fingerprint: str) -> str:
        """Returns the sha256 over settings, corpus, contents of files and recipe version."""
        settings = self.changed()
        if self.corpus.startswith("folder:"):  # its fingerprint says all: the same text in another place
            settings["corpus"] = "folder:"
        if self.pretrain_on.startswith("folder:"):
            settings["pretrain_on"] = "folder:"
        if self.file_inputs:  # the same file under another name is the same experiment
            settings["source"] = re.sub("(file|hub):.*", r"\1:", settings["source"])
        return identity(settings, corpus_fingerprint, self.file_inputs, RECIPE)


@dataclass(frozen=True)
class StudySize(_Config):
    """How much text and how many seeds: the same study at several sizes."""

    seeds: int  # language models an arm, each with its own pre-training
    settings: dict  # of Experiment
    arms: tuple[dict, ...]  # each a change to the baseline: source random, fine-tuned
    bound_epochs: int | None = None  # passes over all training text for the upper bound; None: left out


FEW_ARMS = (
    {"source": "random"},
    {"source": "random", "input_mode": "frozen"},
    {"source": "word2vec-sg"},
    {"source": "word2vec-sg", "input_mode": "frozen"},
    {"source": "word2vec-cbow"},
    {"source": "domain-sentence"},
    {"source": "domain-paragraph"},
    {"source": "permuted:word2vec-sg"},
)
# Every source that needs no labelled files, and the controls.
ALL_ARMS = (
    *FEW_ARMS,
    *(
        {"source": name}
        for name in (
            "fasttext", "glove", "lsa", "lm", "bilm", "masked-lm", "domain-lsa", "next-paragraph",
            "sentence-order", "spectrum:word2vec-sg", "untrained:bilm",
        )
    ),
)  # fmt: skip

# Sources trained on labelled files (data/README.md), beside their baseline.
TASK_ARMS = tuple({"source": name} for name in ("random", "pos", "ner", "sentiment", "nli", "translation"))

SMOKE = {
    "vocab_size": 500,
    "hidden_size": 8,
    "lm_tokens": 4_000,
    "valid_tokens": 1_000,
    "test_tokens": 2_000,
    "n_samples": 64,
    "batch_size": 8,
    "max_epochs": 1,
    "pretrain_epochs": 1,
}

LAPTOP = {"lm_tokens": 350_000, "valid_tokens": 10_000, "test_tokens": 150_000}

STUDY_SIZES = {
    "smoke": StudySize(1, SMOKE, FEW_ARMS),
    "quick": StudySize(1, {"lm_tokens": 150_000, "valid_tokens": 10_000, "test_tokens": 50_000}, FEW_ARMS),
    "laptop": StudySize(3, LAPTOP, ALL_ARMS, bound_epochs=2),
    "tasks": StudySize(3, LAPTOP, TASK_ARMS),
    "full": StudySize(5, {"lm_tokens": 1_000_000}, ALL_ARMS, bound_epochs=3),
}

NAMED = {
    # WikiText-2 at its full vocabulary in two epochs. Chosen on validation perplexity (stream): dropout 0 or 0.1,
    # peak 0.006 or 0.01, input_rms 0.15 or 1.
    "wikitext-2-fast": Experiment(
        corpus="wikitext-2",
        vocab_size=None,
        hidden_size=200,
        output_init="tied",
        dropout=0.1,
        input_rms=0.15,
        n_samples=1024,
        batch_size=32,
        learning_rate=1e-2,
        max_epochs=2,
    ),
}
