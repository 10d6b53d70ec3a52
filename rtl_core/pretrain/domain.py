"""The domain classifier: a bidirectional LSTM that reads a sentence or a paragraph and names its domain.

The only supervision is the document's domain, so what its vectors know of words is what words say about the
global topic. Source: Verwimp and Bellegarda 2019, section 3.3; pooling by the mean is our choice.
"""

from collections.abc import Iterator
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rtl_core.batches import Batch, sequence_batches
from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import SPLITS, Corpus
from rtl_core.corpora.vocabulary import Encoded, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain.averaging import average_states
from rtl_core.pretrain.encoder import BidirectionalEncoder
from rtl_core.pretrain.pretrained import Pretrained, fit_pretrainer, provenance, seeded
from rtl_core.storage import StudyError
from rtl_core.training import Loss, Optimisation, mean_loss, to_device

BATCH_TOKENS = 4096  # states of a batch stay in cache
LONGEST = {"sentence": 64, "paragraph": 256}  # longer sequences are cut into pieces, so that no word is lost
EPOCHS = 1
UNLABELLED = -1


class DomainClassifier(nn.Module):
    """Mean of the encoder's states, then a linear layer over the domains."""

    def __init__(self, vocab_size: int, dim: int, n_domains: int):
        super().__init__()
        self.encoder = BidirectionalEncoder(vocab_size, dim)
        self.output = nn.Linear(dim, n_domains)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Returns domain scores. Shapes: (B, T) -> (B, n_domains)."""
        states = self.encoder(batch.inputs, batch.mask) * batch.mask[..., None]
        return self.output(states.sum(1) / batch.mask.sum(1, keepdim=True))

    def loss(self, batch: Batch, state=None) -> Loss:
        """Returns the summed cross-entropy of the batch's sequences."""
        return Loss(F.cross_entropy(self.logits(batch), batch.targets, reduction="sum"), len(batch.targets))


def sequences(text: Encoded, level: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns starts, lengths and labels (-1: none) of all sentences or paragraphs, long ones cut into pieces."""
    bounds = text.line_starts if level == "sentence" else text.paragraph_starts
    starts, lengths = bounds[:-1], np.diff(bounds)
    pieces = np.maximum(1, -(-lengths // LONGEST[level]))
    within = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
    starts = np.repeat(starts, pieces) + within * LONGEST[level]
    ends = np.minimum(starts + LONGEST[level], np.repeat(bounds[1:], pieces))
    return starts, ends - starts, text.domains[text.document_of(starts)]


def labelled(text: Encoded, level: str, order=None) -> Iterator[Batch]:
    """Yields batches of labelled sentences or paragraphs; `order`, a numpy Generator, shuffles them."""
    starts, lengths, labels = sequences(text, level)
    chosen = labels != UNLABELLED
    return sequence_batches(text.tokens, starts[chosen], lengths[chosen], labels[chosen], BATCH_TOKENS, order)


def whole_text(text: Encoded, level: str, order=None) -> Iterator[Batch]:
    """Yields batches of all sentences or paragraphs, labelled or not: what states are averaged over."""
    return sequence_batches(text.tokens, *sequences(text, level), BATCH_TOKENS, order)


@torch.no_grad()
def accuracy(model: DomainClassifier, text: Encoded, level: str) -> dict:
    """Returns the share of sequences whose domain is named right, and the share of the most frequent domain."""
    model.eval()
    where = model.output.weight.device
    right, labels = 0, sequences(text, level)[2]
    labels = labels[labels != UNLABELLED]
    for batch in (to_device(batch, where) for batch in labelled(text, level)):
        right += int((model.logits(batch).argmax(1) == batch.targets).sum())
    majority = np.bincount(labels).max() / len(labels)
    return {
        "accuracy": right / len(labels),
        "majority_accuracy": float(majority),
        "test_sequences": len(labels),
    }


def encoded_splits(corpus: Corpus, vocabulary: Vocabulary, source: str) -> list[Encoded]:
    """Returns the encoded train, valid and test text. Raises: StudyError when labels are missing."""
    if len(corpus.domains) < 2:
        raise StudyError(
            f"{source} needs documents of at least two domains; corpus {corpus.name} has "
            f"{len(corpus.domains)} ({', '.join(corpus.domains) or 'no labels'}). Choose a labelled corpus, or "
            "put documents into one sub-folder a domain."
        )
    texts = [vocabulary.encode(corpus.split(split), corpus.domains) for split in SPLITS]
    for split, text in zip(SPLITS, texts):
        if len(set(text.domains) - {UNLABELLED}) < (2 if split == "train" else 1):
            raise StudyError(
                f"{source} needs documents with labels in every split, of two domains at least in train; "
                f"in {split} of corpus {corpus.name} {sum(text.domains >= 0)} of {len(text.domains)} have a label."
            )
    return texts


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the classifier's word vectors, read out as the config says, with its accuracy on the test split.

    Raises: StudyError when the corpus has fewer than two domains, or a split no labels.
    """
    started, level = perf_counter(), config.source.removeprefix("domain-")
    train, valid, test = encoded_splits(corpus, vocabulary, config.source)
    model = seeded(config, lambda: DomainClassifier(len(vocabulary), config.dim, len(corpus.domains)))
    rows = fit_pretrainer(
        config,
        model,
        lambda order: labelled(train, level, order),
        lambda: mean_loss(model, labelled(valid, level)),
        Optimisation(max_epochs=config.epochs or EPOCHS, patience=2),
    )
    scores = accuracy(model, test, level)
    table = _read_out(model, train, level, config)
    trained = (batch.inputs[batch.mask] for batch in labelled(train, level))
    seen = np.unique(np.concatenate([ids.numpy() for ids in trained]))  # the others' input was never trained
    only_labelled = config.readout == "input-layer"
    labels = sequences(train, level)[2] != UNLABELLED
    read = sequences(train, level)[1][labels].sum() if only_labelled else len(train)
    facts = {"epochs": len(rows), "labels": int(labels.sum()), "labelled_only": only_labelled}
    account = provenance(config, corpus, int(read), perf_counter() - started, **facts)
    embeddings = Embeddings(tuple(vocabulary.decode(seen)), table[seen].astype(np.float32), account)
    return Pretrained(embeddings, scores, rows, model)


def _read_out(model: DomainClassifier, train: Encoded, level: str, config: PretrainConfig) -> np.ndarray:
    """Returns a vector for every word id. Shapes: (V, D)."""
    table = model.encoder.table.weight.detach().cpu().numpy()
    if config.readout == "input-layer":
        return table
    order = np.random.default_rng(derive_seed(config.seed, "occurrences"))
    batches = whole_text(train, level, order if config.occurrences else None)
    return average_states(model.encoder, batches, *table.shape, config.occurrences)[0]
