"""The text of an experiment in its three roles: pre-training text, the language model's text, test text."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from rtl_core.choices import ORACLE
from rtl_core.config import Experiment
from rtl_core.corpora import load_corpus
from rtl_core.corpora.corpus import Corpus, Document, sample_documents
from rtl_core.corpora.labelled import labelled_content
from rtl_core.corpora.text import comparable, near_duplicates
from rtl_core.corpora.vocabulary import Encoded, Vocabulary


@dataclass(frozen=True)
class Text:
    """The text of an experiment: the corpus, the vocabulary of its training split, the LM's text as ids."""

    corpus: Corpus
    vocabulary: Vocabulary
    train: Encoded
    valid: Encoded
    test: Encoded

    @property
    def lm_counts(self) -> np.ndarray:
        """Word counts of the LM's own training text. Shape (V,)."""
        return np.bincount(self.train.tokens, minlength=len(self.vocabulary))


@lru_cache(maxsize=2)
def _named_corpus(name: str) -> Corpus:
    return load_corpus(name)


def forget() -> None:
    """Lets go of the text in memory: who waits for workers needs none."""
    for cached in (_named_corpus, _vocabulary, _text, _lm_split, _other_text):
        cached.cache_clear()


def corpus_of(name: str) -> Corpus:
    """Returns a corpus, a named one from memory; a folder may have changed and is looked at again."""
    return load_corpus(name) if name.startswith("folder:") else _named_corpus(name)


@lru_cache(maxsize=2)
def _vocabulary(name: str, fingerprint: str, size: int | None) -> Vocabulary:
    return Vocabulary.build(corpus_of(name).split("train"), size)


def vocabulary_of(e: Experiment) -> Vocabulary:
    """Returns the vocabulary of an experiment: of the whole training split, whatever the LM's text is."""
    return _vocabulary(e.corpus, corpus_of(e.corpus).fingerprint, e.vocab_size)


@lru_cache(maxsize=2)
def _text(name: str, fingerprint: str, vocab_size, lm_tokens, valid_tokens, test_tokens) -> Text:
    corpus, vocabulary = corpus_of(name), _vocabulary(name, fingerprint, vocab_size)
    sizes = {"train": lm_tokens, "valid": valid_tokens, "test": test_tokens}
    encoded = {
        split: vocabulary.encode(sample_documents(corpus.split(split), size), corpus.domains)
        for split, size in sizes.items()
    }
    return Text(corpus, vocabulary, **encoded)


def text_of(e: Experiment) -> Text:
    """Returns the text of an experiment; the last ones are kept in memory."""
    fingerprint = corpus_of(e.corpus).fingerprint
    return _text(e.corpus, fingerprint, e.vocab_size, e.lm_tokens, e.valid_tokens, e.test_tokens)


@lru_cache(maxsize=2)
def _lm_split(name: str, fingerprint: str, lm_tokens: int | None) -> Corpus:
    return corpus_of(name).sampled(lm_tokens)


def pretraining_corpus(e: Experiment) -> Corpus:
    """Returns the corpus whose training split the pre-training reads, as `pretrain_on` and `pretrain_tokens` say.

    Another corpus loses what repeats the test text of the LM's. Subsets are drawn as the LM's text is: of two of
    the same corpus the larger holds the smaller, and one as long as the LM's text is that text.
    Raises: StudyError when there is less text than asked for.
    """
    whole, n_tokens = _whole_pretraining_corpus(e), e.settled().pretrain_tokens
    return whole if n_tokens is None else whole.sampled(n_tokens)


def _whole_pretraining_corpus(e: Experiment) -> Corpus:
    own, name = corpus_of(e.corpus), e.settled().pretrain_on
    if name == "lm-split":
        return _lm_split(e.corpus, own.fingerprint, e.lm_tokens)
    if name in ("corpus", e.corpus):
        return own
    return _other_text(name, corpus_of(name).fingerprint, e.corpus, own.fingerprint)


@lru_cache(maxsize=2)
def _other_text(name: str, fingerprint: str, lm_corpus: str, lm_fingerprint: str) -> Corpus:
    corpus, guarded = corpus_of(name), corpus_of(lm_corpus).split("test")
    texts = (
        [comparable(p) for d in documents for p in d.paragraphs] for documents in (corpus.documents, guarded)
    )
    repeated = iter(near_duplicates(*texts))
    kept = (
        replace(d, paragraphs=tuple(p for p in d.paragraphs if not next(repeated))) for d in corpus.documents
    )
    return replace(corpus, documents=tuple(d for d in kept if d.paragraphs), guarded=guarded)


def fingerprint_of(e: Experiment) -> str:
    """Returns the fingerprint of all text that an experiment reads: corpora and labelled files."""
    texts = [corpus_of(e.corpus).fingerprint]
    if e.settled().pretrain_on not in (
        "corpus",
        "lm-split",
        e.corpus,
    ):  # these follow from corpus and settings
        texts.append(pretraining_corpus(e).fingerprint)
    return "+".join([*texts, *labelled_content(e.source)])


def extra_tokens(e: Experiment, text: Text, provenance: dict) -> int | None:
    """Returns the running tokens that pre-training, averaging or a context feature read beyond the LM's own text.

    None where that is not known: a file of vectors does not say what it was trained on.
    """
    if provenance["tokens_read"] is None:
        return None
    outside, own = provenance.get("outside_tokens", 0), e.pretrain_on in ("corpus", "lm-split", e.corpus)
    read = {("", d.id): d for d in feature_documents(e, text)}
    if provenance["tokens_read"]:
        documents = pretraining_corpus(e).split("train")
        labelled_only = provenance["labelled_only"]
        read |= {("" if own else e.pretrain_on, d.id): d for d in documents if d.domain or not labelled_only}
    of_model = {("", name) for name in text.train.document_ids}
    return outside + sum(d.n_tokens for key, d in read.items() if key not in of_model)


def feature_documents(e: Experiment, text: Text) -> list[Document]:
    """Returns the documents that the reader behind a context feature has learnt from; the oracle has none."""
    if e.context_feature in ("none", ORACLE):
        return []
    by_label = e.context_feature.endswith("domain-posterior")
    return [d for d in text.corpus.split("train") if d.domain or not by_label]
