"""Two-dimensional maps of words, each with the numbers that say how far it may be believed."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from rtl_core.embeddings import Embeddings
from rtl_core.storage import StudyError

NEIGHBOURS = 5


def pca_map(embeddings: Embeddings, words: Iterable[str]) -> pd.DataFrame:
    """Returns x and y of words on their first two principal components.

    `attrs["explained"]`: share of the variance on the map; `attrs["recall"]`: share of a word's nearest
    neighbours (by cosine, in the original space, among these words) that are its nearest on the map too.
    Raises: StudyError for fewer than seven words, or one without a vector.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    words = list(dict.fromkeys(words))
    if len(words) < NEIGHBOURS + 2:
        raise StudyError(f"a map needs {NEIGHBOURS + 2} words or more; found {len(words)}.")
    table = np.stack([embeddings.vector(word) for word in words]).astype(np.float64)
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    table /= np.where(lengths > 0, lengths, 1)
    pca = PCA(2)
    flat = pca.fit_transform(table)
    near = [
        NearestNeighbors(n_neighbors=NEIGHBOURS).fit(space).kneighbors(return_distance=False)
        for space in (table, flat)
    ]
    recall = np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(*near)])
    frame = pd.DataFrame({"word": words, "x": flat[:, 0], "y": flat[:, 1]})
    frame.attrs |= {"explained": float(pca.explained_variance_ratio_.sum()), "recall": float(recall)}
    return frame
