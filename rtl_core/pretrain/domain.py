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
from rtl_core.pretrain.pretrained import Pretrained, provenance
from rtl_core.storage import StudyError
from rtl_core.training import Loss, Optimisation, fit, mean_loss

BATCH_TOKENS = 4096  # states of a batch stay in cache
LONGEST = {"sentence": 64, "paragraph": 256}  # longer sequences are cut into pieces, so that no word is lost
EPOCHS = 1


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
    """Returns starts, lengths and labels of all labelled sentences or paragraphs, long ones cut into pieces."""
    bounds = text.line_starts if level == "sentence" else text.paragraph_starts
    starts, lengths = bounds[:-1], np.diff(bounds)
    pieces = np.maximum(1, -(-lengths // LONGEST[level]))
    within = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
    starts = np.repeat(starts, pieces) + within * LONGEST[level]
    ends = np.minimum(starts + LONGEST[level], np.repeat(bounds[1:], pieces))
    labels = text.domains[text.document_of(starts)]
    labelled = labels >= 0
    return starts[labelled], (ends - starts)[labelled], labels[labelled]


def labelled(text: Encoded, level: str, order=None) -> Iterator[Batch]:
    """Yields batches of labelled sentences or paragraphs; `order`, a numpy Generator, shuffles them."""
    return sequence_batches(text.tokens, *sequences(text, level), BATCH_TOKENS, order)


@torch.no_grad()
def accuracy(model: DomainClassifier, text: Encoded, level: str) -> dict:
    """Returns the share of sequences whose domain is named right, and the share of the most frequent domain."""
    model.eval()
    right, labels = 0, sequences(text, level)[2]
    for batch in labelled(text, level):
        right += int((model.logits(batch).argmax(1) == batch.targets).sum())
    majority = np.bincount(labels).max() / len(labels)
    return {
        "accuracy": right / len(labels),
        "majority_accuracy": float(majority),
        "test_sequences": len(labels),
    }


def train(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig, level: str):
    """Returns the trained classifier, the encoded training text, its history and its scores.

    Raises: StudyError when training diverges; KeyboardInterrupt when it was interrupted.
    """
    texts = [vocabulary.encode(corpus.split(split), corpus.domains) for split in SPLITS]
    for split, text in zip(SPLITS, texts):
        if len(set(text.domains) - {-1}) < (2 if split == "train" else 1):
            raise StudyError(
                f"{config.source} needs documents with labels in every split, of two domains at least in train; "
                f"in {split} of corpus {corpus.name} {sum(text.domains >= 0)} of {len(text.domains)} have a label."
            )
    seed = derive_seed(config.seed, "pretrain", config.source)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DomainClassifier(len(vocabulary), config.dim, len(corpus.domains))

    def batches(epoch: int):
        return labelled(texts[0], level, np.random.default_rng(derive_seed(seed, "order", epoch)))

    history = fit(
        model,
        batches,
        lambda: mean_loss(model, labelled(texts[1], level)),
        Optimisation(max_epochs=config.epochs or EPOCHS, patience=2),
        seed=seed,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    if history.failed:
        raise StudyError(f"{config.source} diverged: {history.failed}. Another seed may train.")
    return model.eval(), texts[0], history.rows, accuracy(model, texts[2], level)


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the classifier's word vectors, read out as the config says, with its accuracy on the test split.

    Raises: StudyError when the corpus has fewer than two domains.
    """
    started, level = perf_counter(), config.source.removeprefix("domain-")
    if len(corpus.domains) < 2:
        raise StudyError(
            f"{config.source} needs documents of at least two domains; corpus {corpus.name} has "
            f"{len(corpus.domains)} ({', '.join(corpus.domains) or 'no labels'}). Choose a labelled corpus, or "
            "put documents into one sub-folder a domain."
        )
    model, text, rows, scores = train(corpus, vocabulary, config, level)
    if config.readout == "averaged":
        table, counts = average_states(model.encoder, labelled(text, level), len(vocabulary), config.dim)
    else:
        table = model.encoder.table.weight.detach().numpy()
        read = (batch.inputs[batch.mask] for batch in labelled(text, level))
        counts = sum(np.bincount(ids, minlength=len(vocabulary)) for ids in read)
    seen = np.flatnonzero(counts)  # a word that never occurs has nothing but its random start
    facts = {"task": f"domain of the {level}", "objective": "cross-entropy over domains", "level": level}
    facts |= {"epochs": len(rows)}
    read = int(sequences(text, level)[1].sum())
    account = provenance(config, corpus, read, perf_counter() - started, **facts)
    embeddings = Embeddings(tuple(vocabulary.decode(seen)), table[seen].astype(np.float32), account)
    return Pretrained(embeddings, scores, rows, model)
