"""Skip-gram and continuous bag of words with negative sampling, trained by gensim.

Source: Mikolov et al. 2013, "Distributed Representations of Words and Phrases and their Compositionality".
"""

from time import perf_counter

from tqdm import tqdm

from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import UNK, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain.pretrained import Pretrained, provenance

# The field's standard, but for the learning rate: word2vec.c has 0.05 for CBOW only, fastText for both. On
# WikiText-2 five epochs at 0.05 agree with human similarity judgements as well as ten at gensim's 0.025.
SETTINGS = {"window": 5, "negative": 5, "sample": 1e-3, "alpha": 0.05, "min_count": 1}
EPOCHS = 3  # on docstrings five gave the language model nothing more on validation


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns vectors for all words of the vocabulary in the training text, `<unk>` too, but not `<eos>`."""
    from gensim.models import Word2Vec

    started, epochs = perf_counter(), config.epochs or EPOCHS
    sentences = _sentences(corpus, vocabulary)
    n_words = sum(map(len, sentences))
    with tqdm(desc=config.source, total=epochs, unit="epoch", disable=None) as bar:
        model = Word2Vec(
            sentences,
            sg=int(config.source == "word2vec-sg"),
            vector_size=config.dim,
            epochs=epochs,
            seed=derive_seed(config.seed, "pretrain", config.source) % 2**32,
            workers=1,  # several threads write over each other, and no two runs are the same
            # the learning rate falls from batch to batch: short text gets smaller ones
            batch_words=max(100, min(10_000, n_words // 100)),
            callbacks=[_progress(bar)],
            **SETTINGS,
        )
    words = tuple(word for word in vocabulary.words if word in model.wv)
    tokens_read = n_words + len(sentences)  # with an <eos> for each line, as everywhere
    known = {"readout": "input-layer", "epochs": epochs}
    facts = provenance(config, corpus, tokens_read, perf_counter() - started, **known)
    return Pretrained(Embeddings(words, model.wv[words], facts))


def _sentences(corpus: Corpus, vocabulary: Vocabulary) -> list[list[str]]:
    """The training text with `<unk>` for words outside the vocabulary, so that windows keep their shape."""
    known = {word: word for word in vocabulary.words}  # one string a type in memory, not one a token
    return [[known.get(w, UNK) for w in line] for d in corpus.split("train") for line in d.lines()]


def _progress(bar: tqdm):
    from gensim.models.callbacks import CallbackAny2Vec

    class Progress(CallbackAny2Vec):
        def on_epoch_end(self, model):
            bar.update()

    return Progress()
