"""Frozen settings: experiments, pre-training, study sizes; JSON both ways and an identity for each."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

from rtl_core import catalogue
from rtl_core.choices import CHOICES, REFUSED
from rtl_core.storage import StudyError, file_sha256, unknown

SCORE_CONTEXTS = ("document", "stream", "sentence")
# Raised by hand when a change of code changes results, so that an old model is never taken for a new one. What moves
# the seventh digit of a perplexity, as another order of a sum does, is no change.
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
            if not bounds or value is None and type(None) in get_args(f.type) or value in f.metadata["words"]:
                continue
            kind = float if float in (f.type, *get_args(f.type)) else int
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if (
                not number
                or kind is int
                and not float(value).is_integer()
                or not bounds[0] <= value <= bounds[1]
            ):
                words = "".join(f", or {word}" for word in f.metadata["words"])
                raise StudyError(
                    f"{f.name} = {value!r} is not valid; give {kind.__name__}, {bounds[0]} to {bounds[1]}{words}."
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
        used = catalogue.settings_of(self.source, self.encoder)
        inert = {}
        for f in fields(self):
            other, needed = f.metadata.get("where") or ("", ())
            of_sources = f.metadata.get("of_sources")
            if of_sources and of_sources not in used or needed and getattr(self, other) not in needed:
                inert[f.name] = f.default
        return replace(self, **inert)

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


def _setting(default, meaning: str, *bounds, of_sources: str | None = None, where=None, words=()):
    """A field with its meaning (also its help text) and, for numbers, the least and the largest that are valid.

    `words` are valid beside numbers. `of_sources`: the name under which a source of the catalogue says that this
    setting matters to it. `where`: another setting and those of its values with which this one matters.
    """
    metadata = {"help": meaning, "range": bounds, "of_sources": of_sources, "where": where, "words": words}
    return field(default=default, metadata=metadata)


# What these settings mean, in PretrainConfig and in Experiment
READOUT = "of contextual sources: mean state over a word's occurrences, or the input layer"
OCCURRENCES = "how many occurrences of a word are averaged; none: all"
EPOCHS = "passes of pre-training; none: the source's own default"
PRETRAIN_ON = "pre-training text: corpus (all its training text), lm-split (the LM's own), or another corpus"
LAYERS = "layers of the encoder; none: the source's own default"
LAYER = "which layer's states are averaged, 1 the lowest; none: the top"
ENCODER = "own: the source's own model and epochs; shared: one encoder, the same text and updates for every objective"
SEVERAL_LAYERS = ("n_layers", range(2, 17))
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
    encoder: str = _setting("own", ENCODER, of_sources="encoder")
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
        """What identifies the source: its name; for files and folders what they hold, not their path."""
        kind, _, path = self.source.partition(":")
        if kind in ("file", "code"):
            if "+" in path and not Path(path).exists():
                raise StudyError(f"there is no file {path}; in A+B a file comes last: glove+file:PATH.")
            return f"{kind}:{file_sha256(path)}"
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
    pretrain_tokens: int | None = _setting(
        None, "how much of it is read, the LM's own documents first; none: all", 1, 10**12,
        of_sources="pretrain_on",
    )  # fmt: skip
    encoder_layers: int | None = _setting(None, LAYERS, 1, 24, of_sources="encoder_layers")
    layer: int | None = _setting(None, LAYER, 1, 48, of_sources="layer")
    encoder: str = _setting("own", ENCODER, of_sources="encoder")
    fold: str = _setting("nothing", FOLD, of_sources="fold")
    # transfer
    input_init: str = _setting(
        "pretrained", "input table: the source's, or random (the source is for the output)"
    )
    input_mode: str = _setting(
        "finetuned",
        "finetuned: trained on; frozen: kept; concatenated: kept, beside a trained table; projected: kept, behind "
        "a trained linear map; gated: a learnt mixture with a trained table, word by word; l2sp: trained, but held "
        "near its start; words without a vector of the source are trained in every mode",
    )
    l2sp: float = _setting(
        0.001,
        "of l2sp: factor of the squared distance from the start that is added to the mean loss",
        0.0,
        1e6,
        where=("input_mode", ("l2sp",)),
    )
    warmup_frozen: int = _setting(
        0, "epochs of training before the input table thaws (finetuned, l2sp)", 0, 1000
    )
    output_init: str = _setting(
        "random", "output weights: random; tied: the input table itself; pretrained: the source's table"
    )
    output_mode: str = _setting(
        "finetuned", "output weights: trained on (finetuned), or kept, only their bias trained (frozen)"
    )
    input_rms: float | str = _setting(
        0.3,
        "root mean square at which the centred table enters; learned: a trained factor, from the default on",
        1e-6,
        1e6,
        words=("learned",),
    )
    # what the model is told of the preceding text, and a second task
    context_feature: str = _setting("none", "vector of the document's preceding text, joined to every input")
    auxiliary: str = _setting("none", "second task of the model, learnt at the same time")
    auxiliary_weight: float = _setting(
        0.1, "weight of the second task's loss", 0.0, 1e3, where=("auxiliary", ("domain",))
    )
    # model
    model: str = _setting("lstm", "lstm, or one of the bounds")
    hidden_size: int = _setting(128, "LSTM units, also the embedding dimension", 2, 16384)
    n_layers: int = _setting(1, "LSTM layers", 1, 16)
    inner_size: int | None = _setting(
        None, "units of the layers below the last; none: hidden_size", 2, 16384, where=SEVERAL_LAYERS
    )
    dropout: float = _setting(0.3, "dropout on the LSTM's inputs and outputs", 0.0, 0.95)
    input_dropout: float | None = _setting(None, "dropout on the LSTM's inputs; none: as dropout", 0.0, 0.95)
    layer_dropout: float | None = _setting(
        None,
        "dropout between layers, the same units all through a window; none: as dropout, others at every step",
        0.0,
        0.95,
        where=SEVERAL_LAYERS,
    )
    embedding_dropout: float = _setting(0.0, "share of word types left out of each window", 0.0, 0.95)
    weight_drop: float = _setting(0.0, "share of recurrent weights left out of each window", 0.0, 0.95)
    # training
    criterion: str = _setting("sampled-softmax", "training criterion; scoring is always exact")
    n_samples: int = _setting(
        512, "words drawn for each batch by sampled softmax and NCE", 1, 10**7,
        where=("criterion", ("sampled-softmax", "nce")),
    )  # fmt: skip
    sampling: str = _setting(
        "unigram", "what they are drawn from", where=("criterion", ("sampled-softmax", "nce"))
    )
    output_rows: str = _setting(
        "touched",
        "of the output table, what a step on a sample trains: the touched rows, by Adam without momentum, or all, by "
        "Adam with it, as without a sample",
        where=("criterion", ("sampled-softmax", "nce")),
    )
    label_smoothing: float = _setting(
        0.0,
        "share of the target spread over all words in training",
        0.0,
        0.9,
        where=("criterion", ("softmax",)),
    )
    train_context: str = _setting("stream", "where the state is reset in training and validation")
    batch_size: int = _setting(64, "parallel streams, documents or sentences", 1, 65536)
    window: int = _setting(35, "tokens of truncated back-propagation through time", 1, 10**6)
    learning_rate: float = _setting(8e-3, "peak learning rate of Adam", 1e-8, 1e3)
    adam_eps: float = _setting(
        1e-8,
        "added to the root of Adam's second moment: the larger, the less move rare words and all of small gradients",
        1e-12,
        1.0,
    )
    schedule: str = _setting("one-cycle", "linear up then a cosine down to zero, or constant")
    weight_decay: float = _setting(0.0, "decoupled weight decay", 0.0, 10.0)
    clip: float = _setting(1.0, "largest norm of the gradient of the mean loss", 1e-6, 1e6)
    max_epochs: int = _setting(8, "most passes over the LM's text", 1, 10_000)
    patience: int = _setting(2, "epochs without gain on validation before stopping", 1, 10_000)
    average_from: int | None = _setting(
        None,
        "epoch from which on the mean of the weights is validated and kept; none: the last weights",
        1,
        10_000,
    )
    tuning: str = _setting("none", "equal-budget: the best of the same few trials, chosen on validation")
    seed: int = _setting(0, "random seed, of the pre-training too", 0, 2**31)

    def __post_init__(self):
        super().__post_init__()
        if self.average_from is not None and self.average_from > self.max_epochs:
            raise StudyError(
                f"average_from {self.average_from} is after the last epoch, {self.max_epochs}; choose it smaller, or "
                "more max_epochs."
            )
        for settings, reason in REFUSED:
            if all(getattr(self, name) in values for name, values in settings.items()):
                given = ", ".join(f"{name} {getattr(self, name)}" for name in settings)
                raise StudyError(f"{given}: {reason}.")
        if self.warmup_frozen >= self.max_epochs:
            raise StudyError(
                f"warmup_frozen {self.warmup_frozen}, max_epochs {self.max_epochs}: the table would never thaw; "
                f"choose input_mode frozen, or at most {self.max_epochs - 1} for warmup_frozen."
            )

    def settled(self) -> "Experiment":
        """Returns a copy in which every setting that changes nothing has its default; a bound reads its text only."""
        if self.model == "lstm":
            return super().settled()
        text = ("corpus", "vocab_size", "lm_tokens", "valid_tokens", "test_tokens", "model")
        return Experiment(**{name: getattr(self, name) for name in text})

    @property
    def pretraining(self) -> PretrainConfig:
        """The settings of the pre-training behind this experiment."""
        same = {f.name: getattr(self, f.name) for f in fields(PretrainConfig) if hasattr(self, f.name)}
        return PretrainConfig(**same, dim=self.hidden_size, epochs=self.pretrain_epochs)

    @cached_property
    def file_inputs(self) -> dict[str, list[str]]:
        """What `file:`, `code:` and `hub:` sources hold: identity follows the content, never the path."""
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
            settings["source"] = re.sub("(file|code|hub):.*", r"\1:", settings["source"])
        return identity(settings, corpus_fingerprint, self.file_inputs, RECIPE)
