"""Latent semantic analysis: words are near each other that occur in the same documents.

Source: Bellegarda 2000; the space is that of rtl_core.corpora.clusters.
"""

from time import perf_counter

import numpy as np

from rtl_core.config import PretrainConfig
from rtl_core.corpora.clusters import latent_space
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain.pretrained import Pretrained, provenance


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns vectors for all words of the vocabulary in the training text, `<unk>` too, but not `<eos>`.

    They are the same for every seed.
    Raises: StudyError when there are not more documents than dimensions.
    """
    started = perf_counter()
    text = vocabulary.encode(corpus.split("train"))
    space = latent_space(text, len(vocabulary), config.dim)
    seen = np.setdiff1d(text.tokens, [EOS_ID])
    known = {"readout": "input-layer", "epochs": 1}
    facts = provenance(config, corpus, len(text), perf_counter() - started, **known)
    return Pretrained(Embeddings(tuple(vocabulary.decode(seen)), space.words[seen], facts))
