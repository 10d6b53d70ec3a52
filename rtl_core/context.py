"""What the language model is told of a document's earlier text: a vector for every token it is to predict.

Two readers of text make such features: a forward-only classifier of domains, and a latent semantic space. Both add
up one vector a word, so what is said at a token depends on the tokens before it in its document and on nothing else,
in whatever context the model itself is trained or scored: with its state reset at every sentence it still learns what
stood in the sentences before. A reader has learnt from all training text; what it says of the LM's own training
documents comes from readers that learnt from other documents, so that it is as good there as on test text.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import minimize
from scipy.special import log_softmax

from rtl_core.choices import ORACLE
from rtl_core.config import Experiment, derive_seed
from rtl_core.corpora.clusters import LatentSpace, document_counts, latent_space, running_sums, unit
from rtl_core.corpora.corpus import SPLITS
from rtl_core.corpora.vocabulary import Encoded
from rtl_core.pretrain.classifier import accuracies
from rtl_core.storage import StudyError, atomic, read_json, reading_model
from rtl_core.texts import Text

N_FOLDS = 5
LSA_DIM = 50
FEATURE_RMS = (
    0.3  # of every kind of feature, where it says something: that of word vectors; at 1 models overfit more
)
SMOOTHING = 0.1  # added to a word's count in a domain; 0.01 to 0.3 differ by 2 % in nats
HELD_OUT = 5  # one document in so many says how far the classifier's sums can be trusted
NEIGHBOURS = 20  # documents of about equal length that exchange their features in the shuffled control
SHUFFLED = "shuffled-"


@dataclass(frozen=True, eq=False)
class TopicClassifier:
    """Names the domain of a document as it is read: naive Bayes over its words so far.

    log p(domain | w_1 … w_n) = log prior + sharpness · n^-discount · (sum of log p(w_i | domain)) - log normaliser.
    Words of a text are no independent evidence; the two numbers, fitted on held-out documents, say how much less n
    of them are worth. On docstrings (21 domains) its mean accuracy over 50,000 test tokens is 0.81, learnt in a
    second; a forward LSTM of 64 units reached 0.67 in 45 seconds.

    Shapes: evidence float32 (V, K), log p(word | domain) less its mean over domains; prior (K,), sums to 1.
    """

    SHAPES = {"evidence": "VK", "prior": "K"}  # of what is stored; a letter a dimension
    evidence: np.ndarray
    prior: np.ndarray
    sharpness: float
    discount: float

    @classmethod
    def learn(cls, training: Encoded, text: Text) -> "TopicClassifier":
        """Returns the classifier of the labelled documents in `training`, a part of what `text` is made of.

        Raises: StudyError when there are too few of them.
        """
        vocab_size, n_domains = len(text.vocabulary), len(text.corpus.domains)
        labelled = training.select(training.domains >= 0)
        if len(labelled.document_ids) < HELD_OUT:
            raise StudyError(
                f"a classifier of domains needs {HELD_OUT} labelled training documents at least and found "
                f"{len(labelled.document_ids)} in corpus {text.corpus.name}; label more of them."
            )
        held = np.arange(len(labelled.document_ids)) % HELD_OUT == HELD_OUT - 1
        tested = labelled.select(held)
        trial = cls(*_evidence(labelled.select(~held), vocab_size, n_domains), 1.0, 0.5)
        every = slice(None, None, 16)  # neighbouring tokens say nearly the same
        sums, lengths = running_sums(tested, trial.evidence)[every], _tokens_before(tested)[every]
        true = token_domains(tested)[every]

        def nats(numbers: np.ndarray) -> float:
            tried = replace(trial, sharpness=np.exp(numbers[0]), discount=numbers[1])
            return -tried.log_posterior(sums, lengths)[np.arange(len(true)), true].mean()

        # without limits: where no error is made, sharper would always be better
        limits = [(-3, 4), (0, 1)]
        options = {"xatol": 0.01, "fatol": 1e-4}
        best = minimize(nats, [1.0, 0.7], method="Nelder-Mead", bounds=limits, options=options).x
        return cls(*_evidence(labelled, vocab_size, n_domains), float(np.exp(best[0])), float(best[1]))

    def log_posterior(self, sums: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns log p(domain). Shapes: sums of evidence (n, K) over lengths (n,) words -> (n, K)."""
        worth = self.sharpness * np.maximum(lengths, 1.0) ** -self.discount
        return log_softmax(np.log(self.prior) + worth[:, None] * sums, axis=1)

    def posterior(self, text: Encoded) -> np.ndarray:
        """Returns for every token p(domain | what stands before it in its document). Shape (N, K)."""
        return np.exp(self.log_posterior(running_sums(text, self.evidence), _tokens_before(text)))

    def features(self, text: Encoded) -> np.ndarray:
        """Returns the posterior as it enters a model, see `centred`. Shape float32 (N, K)."""
        return centred(self.posterior(text))

    def comparable_to(self, other: "TopicClassifier") -> "TopicClassifier":
        """Returns itself: the columns of its features are domains, as those of any other."""
        return self

    def scores(self, test: Encoded) -> dict[str, float]:
        """Returns how often the first guess is right over all labelled tokens, and the commonest domain's share."""
        true = token_domains(test)
        labelled = true >= 0
        if not labelled.any():
            return {}
        found = self.posterior(test)[labelled].argmax(1)
        return {f"feature_{k}": value for k, value in accuracies(found, true[labelled]).items()}


class History(LatentSpace):
    """The latent space as a reader: where in it what stands before each token is to be found."""

    SHAPES = {"directions": "VD", "strengths": "D", "weights": "V", "documents": "nD"}

    @classmethod
    def learn(cls, training: Encoded, text: Text) -> "History":
        """Returns the space of the documents in `training`, a part of what `text` is made of."""
        # one size for every fold, the smallest of which must hold it
        fewest = min(len(text.corpus.split("train")) * (N_FOLDS - 1) // N_FOLDS, len(text.vocabulary)) - 1
        space = latent_space(training, len(text.vocabulary), min(LSA_DIM, fewest))
        # in a small text some directions hold rounding errors only, which no two machines share
        space = replace(space, directions=space.directions * (space.strengths > 1e-5 * space.strengths[0]))
        return cls(space.directions, space.strengths, space.weights, space.documents[:0])  # those are large

    def features(self, text: Encoded) -> np.ndarray:
        """Returns the direction in which each document has moved so far. Shape float32 (N, D)."""
        return unit(self.history(text)) * np.float32(FEATURE_RMS * len(self.strengths) ** 0.5)

    def comparable_to(self, other: "History") -> "History":
        """Returns the space turned so that its words lie as near as can be to those of another one.

        The axes of two spaces have nothing to do with each other; a rotation changes no distance in the space.
        Source: Schönemann 1966.
        """
        rotation, _ = orthogonal_procrustes(self.words, other.words)
        return replace(self, directions=self.directions @ rotation)

    def scores(self, test: Encoded) -> dict[str, float]:
        """Returns nothing: the space has no task."""
        return {}


READERS = {"domain-posterior": TopicClassifier, "lsa-history": History}


def centred(posterior: np.ndarray) -> np.ndarray:
    """Returns distributions over K domains at the size of features: zeros where nothing is known. Shape (N, K)."""
    n_domains = posterior.shape[1]  # one that is sure has a root mean square of √((K - 1) / K) · FEATURE_RMS
    return ((posterior - 1 / n_domains) * (FEATURE_RMS * n_domains**0.5)).astype(np.float32)


def _evidence(text: Encoded, vocab_size: int, n_domains: int) -> tuple[np.ndarray, np.ndarray]:
    of_domain = np.eye(n_domains)[text.domains]  # (documents, K)
    counts = document_counts(text, vocab_size) @ of_domain + SMOOTHING
    evidence = np.log(counts / counts.sum(0))
    prior = (of_domain.sum(0) + 1) / (len(of_domain) + n_domains)
    return (evidence - evidence.mean(1, keepdims=True)).astype(np.float32), prior


def _tokens_before(text: Encoded) -> np.ndarray:
    return np.arange(len(text)) - np.repeat(text.document_starts[:-1], np.diff(text.document_starts))


def token_domains(text: Encoded) -> np.ndarray:
    """Returns the domain of every token's document, -1 where it has none. Shape int64 (N,)."""
    return np.repeat(text.domains, np.diff(text.document_starts))


def with_context(e: Experiment, text: Text):
    """Returns the text with the features and labels that an experiment asks for, and the reader that tells them.

    The reader is None where there is none, or where the model is told what it says of other documents.
    Raises: StudyError when the corpus has no domains where they are needed, or too few documents.
    """
    _check_domains(e, text)
    parts, reader = {split: getattr(text, split) for split in SPLITS}, None
    if e.auxiliary == "domain":
        parts = {split: replace(part, labels=token_domains(part)) for split, part in parts.items()}
    if e.context_feature != "none":
        feature = e.context_feature.removeprefix(SHUFFLED)
        if feature == ORACLE:
            told = _true_domains(text)
        else:
            reader, told = read_context(feature, text, e.seed)
        if feature != e.context_feature:
            reader, seed = None, derive_seed(e.seed, SHUFFLED)
            told = {split: _of_others(part, told[split], seed) for split, part in parts.items()}
        parts = {split: replace(part, features=told[split]) for split, part in parts.items()}
    return replace(text, **parts), reader


def _check_domains(e: Experiment, text: Text) -> None:
    asked = {f"context_feature {e.context_feature}": "domain" in e.context_feature}
    asked |= {f"auxiliary {e.auxiliary}": e.auxiliary == "domain"}
    wanting, found = [name for name, needed in asked.items() if needed], text.corpus.domains
    if wanting and len(found) < 2:
        raise StudyError(
            f"{' and '.join(wanting)}: documents of at least two domains are needed; corpus {text.corpus.name} has "
            f"{len(found)} ({', '.join(found) or 'no labels'}). Put documents into one sub-folder a domain, or take "
            f"what fits any corpus: context_feature lsa-history or {SHUFFLED}lsa-history, and auxiliary none."
        )


def _true_domains(text: Text) -> dict[str, np.ndarray]:
    n_domains = len(text.corpus.domains)
    known = np.vstack([np.eye(n_domains), np.full(n_domains, 1 / n_domains)])  # the last for -1
    return {split: centred(known[token_domains(getattr(text, split))]) for split in SPLITS}


def read_context(feature: str, text: Text, seed: int):
    """Returns the reader of all training text, and its features of each split: by folds for the LM's own documents.

    Every document of the training split is dealt into one of `N_FOLDS`; its features come from a reader of the
    other folds.
    """
    whole = text.vocabulary.encode(text.corpus.split("train"), text.corpus.domains)
    if len(whole.document_ids) < 2 * N_FOLDS:
        raise StudyError(
            f"{feature} needs {2 * N_FOLDS} training documents at least; corpus {text.corpus.name} has "
            f"{len(whole.document_ids)}. Give more documents, or cut long texts into several."
        )
    reader = READERS[feature].learn(whole, text)
    told = {split: reader.features(getattr(text, split)) for split in ("valid", "test")}
    told["train"] = np.empty((len(text.train), told["test"].shape[1]), np.float32)
    for inside, outside in folds(whole, seed):
        other = READERS[feature].learn(outside, text).comparable_to(reader)
        own = np.isin(text.train.document_ids, inside)
        places = np.repeat(own, np.diff(text.train.document_starts))
        told["train"][places] = other.features(text.train.select(own))
    return reader, told


def folds(text: Encoded, seed: int) -> Iterator[tuple[list[str], Encoded]]:
    """Yields the ids of each fold's documents and the text of all others."""
    n_documents = len(text.document_ids)
    fold = np.random.default_rng(derive_seed(seed, "folds")).permutation(n_documents) % N_FOLDS
    for number in range(N_FOLDS):
        yield [text.document_ids[i] for i in np.flatnonzero(fold == number)], text.select(fold != number)


def _of_others(text: Encoded, features: np.ndarray, seed: int) -> np.ndarray:
    """Returns at each position what is said of another document there, or at its end if it is shorter."""
    if len(text.document_ids) < 2:
        raise StudyError("the shuffled control needs two documents or more in every split; use more text.")
    donor = donors(np.diff(text.document_starts), seed)
    document = text.document_of(np.arange(len(text)))
    last = text.document_starts[donor + 1] - 1
    return features[np.minimum(text.document_starts[donor][document] + _tokens_before(text), last[document])]


def donors(lengths: np.ndarray, seed: int) -> np.ndarray:
    """Returns for each document another one, of about its length and used once. Shapes: (n,) -> (n,)."""
    order, donor = np.random.default_rng(seed), np.empty(len(lengths), np.int64)
    by_length = np.argsort(lengths, kind="stable")
    for near in np.array_split(by_length, max(1, len(lengths) // NEIGHBOURS)):
        circle = order.permutation(near)
        donor[circle] = np.roll(circle, 1)
    return donor


def save_reader(folder: Path, reader) -> None:
    """Writes what makes the features of a text of one's own, beside a model; nothing where there is none (None)."""
    if reader is None:
        return
    arrays = {f.name: np.ascontiguousarray(getattr(reader, f.name)) for f in fields(reader)}
    with atomic(folder / "context.safetensors") as temporary:
        temporary.write_bytes(save(arrays))


def load_reader(folder: Path, vocab_size: int):
    """Returns the reader behind the features of a saved model of `vocab_size` words, None where it has none.

    Raises: StudyError when the model was given what a text of one's own has not, or the file is not whole.
    """
    with reading_model(folder):
        e = Experiment.from_dict(read_json(folder / "experiment.json")["experiment"])
    if e.context_feature == "none":
        return None
    if e.context_feature not in READERS:
        raise StudyError(
            f"the model in {folder} was given {e.context_feature}, which a text of one's own does not have; "
            f"score it with a model of context_feature none, {' or '.join(READERS)}."
        )
    with reading_model(folder):
        parts, sizes = load_file(folder / "context.safetensors"), {"V": vocab_size}
        reader = READERS[e.context_feature](**parts)
        for name, letters in reader.SHAPES.items():
            expected = [sizes.setdefault(letter, n) for letter, n in zip(letters, parts[name].shape)]
            if list(parts[name].shape) != expected or len(letters) != parts[name].ndim:
                raise ValueError(
                    f"its reader's {name} has shape {parts[name].shape}, and {letters} are {sizes}"
                )
        return reader
