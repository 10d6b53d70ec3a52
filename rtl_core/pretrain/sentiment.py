"""The judge of sentiment: whether a sentence, or a phrase of one, of a film review is positive.

Source: Socher et al. 2013 (SST-2, its phrases too); Pang and Lee 2005 (MR).
"""

from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.pretrain.classifier import accuracies
from rtl_core.pretrain.pretrained import Pretrained
from rtl_core.pretrain.supervised import Recipe, from_labels

RECIPE = Recipe("sequence", epochs=2, dropout=0.3)


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the word vectors of the judge, with its accuracy on each set's test split."""
    return from_labels(RECIPE, lambda labelled, *labels: accuracies(*labels), corpus, vocabulary, config)
