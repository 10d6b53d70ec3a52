"""The domain classifier: a bidirectional LSTM that reads a sentence or a paragraph and names its domain.

The only supervision is the document's domain, so what its vectors know of words is what words say about the
global topic. `domain-lsa` makes the domains itself, where a corpus has none: clusters of documents in LSA space.
Source: Verwimp and Bellegarda 2019, section 3.3, and US patent 10,984,780 (clusters); pooling by the mean is ours.
"""

from time import perf_counter

import numpy as np
from torch import nn

from rtl_core.batches import Sequences
from rtl_core.catalogue import fitting
from rtl_core.config import PretrainConfig
from rtl_core.corpora.clusters import clustered
from rtl_core.corpora.corpus import SPLITS, Corpus
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.pretrain.averaging import read_out
from rtl_core.pretrain.classifier import accuracies, predictions
from rtl_core.pretrain.pretrained import Pretrained, contextual
from rtl_core.pretrain.supervised import Recipe, learn
from rtl_core.storage import StudyError

LEVELS = {"domain-sentence": "sentence", "domain-paragraph": "paragraph", "domain-lsa": "paragraph"}


def encoded_splits(corpus: Corpus, vocabulary: Vocabulary, source: str) -> list[Sequences]:
    """Returns the sequences of the train, valid and test text. Raises: StudyError when labels are missing."""
    if len(corpus.domains) < 2:
        raise StudyError(
            f"{source} needs documents of at least two domains; corpus {corpus.name} has "
            f"{len(corpus.domains)} ({', '.join(corpus.domains) or 'no labels'}). Choose a labelled corpus, put "
            f"documents into one sub-folder a domain, or take what fits: {', '.join(fitting(False))}."
        )
    texts = [vocabulary.encode(corpus.split(split), corpus.domains) for split in SPLITS]
    for split, text in zip(SPLITS, texts):
        if len(set(text.domains) - {-1}) < (2 if split == "train" else 1):
            raise StudyError(
                f"{source} needs documents with labels in every split, of two domains at least in train; "
                f"in {split} of corpus {corpus.name} {sum(text.domains >= 0)} of {len(text.domains)} have a label."
            )
    return [Sequences.of(text, LEVELS[source]) for text in texts]


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the classifier's word vectors, read out as the config says, with its accuracy on the test split.

    Raises: StudyError when the corpus has fewer than two domains, or a split no labels.
    """
    started = perf_counter()
    labelled = clustered(corpus, vocabulary, seed=config.seed) if config.plain == "domain-lsa" else corpus
    whole, valid, test = encoded_splits(labelled, vocabulary, config.plain)
    train, n_domains = whole.labelled, len(labelled.domains)

    def table() -> nn.Module:
        return nn.Embedding(len(vocabulary), config.dim)

    model, rows = learn(config, Recipe("sequence"), table, n_domains, train, valid.labelled)
    scores = accuracies(*predictions(model, test.labelled.batches())) | {"test_sequences": len(test.labelled)}
    table, counts = read_out(model.encoder, whole, len(vocabulary), config)
    counts[np.setdiff1d(np.arange(len(vocabulary)), train.words)] = 0  # their input was never trained
    # clusters label every document, whatever labels the corpus itself has
    only_labelled = config.readout == "input-layer" and config.plain != "domain-lsa"
    facts = {
        "seconds": perf_counter() - started, "epochs": len(rows), "labels": len(train) if rows else 0,
        "tokens_read": train.n_tokens if only_labelled else whole.n_tokens, "labelled_only": only_labelled,
    }  # fmt: skip
    embeddings = contextual(config, corpus, vocabulary, table, counts, facts)
    return Pretrained(embeddings, scores, rows, model)
