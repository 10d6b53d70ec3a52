"""The latent semantic space of words and documents, and clusters of documents that stand in for domains.

Source: Bellegarda 2000, "Exploiting Latent Semantic Information in Statistical Language Modeling", eqs. 1 to 3. Where
its eq. 1 has a word's share of the document, n_ij / n_j, stands log(1 + n_ij) (Dumais 1991): on WikiText-2 its
vectors agree with WordSim-353 at 0.35 rather than 0.19.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import EOS_ID, Encoded, Vocabulary
from rtl_core.storage import StudyError


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """The space of `latent_space`; documents, also new ones, are placed in it by their own words.

    Shapes: directions float32 (V, D), orthonormal columns; strengths float32 (D,), falling; weights float64
    (V,), one less a word's entropy over documents, 0 for `<eos>`; documents float32 (n, D), of the training text.
    """

    directions: np.ndarray
    strengths: np.ndarray
    weights: np.ndarray
    documents: np.ndarray

    @property
    def words(self) -> np.ndarray:
        """The vectors of the words, U S. Shape (V, D)."""
        return self.directions * self.strengths

    def project(self, text: Encoded) -> np.ndarray:
        """Returns the place of each document, from its own words only. Shape float32 (n, D)."""
        return _weighted(document_counts(text, len(self.weights)), self.weights).T @ self.directions

    def history(self, text: Encoded) -> np.ndarray:
        """Returns for every token the place of what stands before it in its document, zeros at its beginning.

        Shape: float32 (N, D).
        """
        earlier = _earlier(text)
        gains = (np.log((2 + earlier) / (1 + earlier)) * self.weights[text.tokens]).astype(np.float32)
        return running_sums(text, self.directions, gains)


def running_sums(text: Encoded, vectors: np.ndarray, gains: np.ndarray | None = None) -> np.ndarray:
    """Returns for every token the sum of the vectors of what stands before it in its document, weighted by `gains`.

    Shapes: vectors float32 (V, D), gains float32 (N,), None: 1 -> float32 (N, D), zeros at a document's beginning.
    """
    sums = np.zeros((len(text), vectors.shape[1]), np.float32)
    for start, end in pairwise(text.document_starts):
        before = slice(start, end - 1)
        values = vectors[text.tokens[before]]
        if gains is not None:
            values *= gains[before, None]
        np.cumsum(values, axis=0, out=sums[start + 1 : end])
    return sums


def document_counts(text: Encoded, vocab_size: int) -> sparse.csr_array:
    """Returns how often each word occurs in each document, `<eos>` too. Shape float64 (V, n)."""
    shape = vocab_size, len(text.document_ids)
    where = text.tokens, np.repeat(np.arange(shape[1]), np.diff(text.document_starts))
    return sparse.coo_array((np.ones(len(text)), where), shape).tocsr()


def latent_space(text: Encoded, vocab_size: int, dim: int) -> LatentSpace:
    """Returns the best `dim` dimensions (least squares) of the weighted counts of words in documents.

    Raises: StudyError when there are not more documents and words than dimensions.
    """
    counts = document_counts(text, vocab_size)
    if dim >= min(counts.shape):
        raise StudyError(
            f"a latent space of {dim} dimensions needs more than {dim} training documents and words; found "
            f"{counts.shape[1]:,} documents and {vocab_size:,} words. Ask for fewer "
            "dimensions (--dim, or --hidden-size of a run) or use more text."
        )
    weights = 1 - _entropies(counts)
    weights[EOS_ID] = 0
    matrix = _weighted(counts, weights)
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))  # the result hardly depends on it
    directions, strengths, _ = svds(matrix, dim, v0=start)  # strengths rise
    directions = np.ascontiguousarray(directions[:, ::-1], dtype=np.float32)
    # the sign of a direction is free, and differs with the number of threads: its largest component is positive
    directions *= np.sign(directions[np.abs(directions).argmax(0), np.arange(dim)])
    return LatentSpace(directions, strengths[::-1].astype(np.float32), weights, matrix.T @ directions)


def _entropies(counts: sparse.csr_array) -> np.ndarray:
    """Returns the entropy of each word over documents, between 0 and 1. Source: eq. 2."""
    shares = counts.multiply(1 / np.maximum(counts.sum(1), 1)[:, None]).tocsr()
    shares.data *= np.log(shares.data)
    return -shares.sum(1) / np.log(counts.shape[1])


def _weighted(counts: sparse.csr_array, weights: np.ndarray) -> sparse.csr_array:
    """Returns (1 - entropy) log(1 + count) as float32."""
    return counts.log1p().multiply(weights[:, None]).tocsr().astype(np.float32)


def _earlier(text: Encoded) -> np.ndarray:
    """Returns how often the word at each position stands earlier in the same document. Shape (N,)."""
    documents = np.repeat(np.arange(len(text.document_ids)), np.diff(text.document_starts))
    order = np.lexsort((text.tokens, documents))  # stable
    changes = np.diff(text.tokens[order], prepend=-1) | np.diff(documents[order], prepend=-1)
    begins = np.maximum.accumulate(np.where(changes != 0, np.arange(len(order)), 0))
    earlier = np.empty(len(order), np.int64)
    earlier[order] = np.arange(len(order)) - begins
    return earlier


def clustered(
    corpus: Corpus, vocabulary: Vocabulary, n_clusters: int = 20, dim: int = 100, seed: int = 0
) -> Corpus:
    """Returns the same documents, each with its cluster as domain.

    The clusters are those of k-means over the directions of the training documents in their latent space (`dim`
    dimensions, fewer where documents are few); every document gets the nearest. Validation and test text changes
    nothing but its own labels.
    Raises: StudyError when there are fewer training documents than clusters.
    """
    from sklearn.cluster import KMeans

    train = vocabulary.encode(corpus.split("train"))
    if len(train.document_ids) < max(n_clusters, 3):
        raise StudyError(
            f"{n_clusters} clusters need as many training documents at least; corpus {corpus.name} has "
            f"{len(train.document_ids)}. Give more documents, or cut long texts into several."
        )
    space = latent_space(train, len(vocabulary), min(dim, len(train.document_ids) - 1, len(vocabulary) - 1))
    means = KMeans(n_clusters, n_init=4, random_state=seed % 2**32).fit(unit(space.documents))
    labels = means.predict(unit(space.project(vocabulary.encode(corpus.documents))))
    documents = (replace(d, domain=f"cluster-{label:02}") for d, label in zip(corpus.documents, labels))
    return replace(corpus, documents=tuple(documents))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns the vectors at length 1; zeros stay zeros. Shape (n, D)."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
