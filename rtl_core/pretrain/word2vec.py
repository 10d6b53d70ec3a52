"""Skip-gram and continuous bag of words with negative sampling, of words and of spellings, trained by gensim.

Source: Mikolov et al. 2013, "Distributed Representations of Words and Phrases and their Compositionality";
Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information".
"""

from time import perf_counter

from tqdm import tqdm

from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import UNK, Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain.pretrained import Pretrained, provenance
from rtl_core.storage import StudyError

# The field's standard, but for the learning rate: word2vec.c has 0.05 for CBOW only, fastText for both. On
# WikiText-2 five epochs at 0.05 agree with human similarity judgements as well as ten at gensim's 0.025.
SETTINGS = {"window": 5, "negative": 5, "sample": 1e-3, "alpha": 0.05, "min_count": 1}
EPOCHS = 3  # on docstrings five gave the language model nothing more on validation
# fastText has two million buckets for its character n-grams, 1 GiB of vectors. A spelling seen once does not
# train: there are too many, and their n-grams come from the others too.
SPELLINGS = {"min_count": 2, "bucket": 100_000}


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns vectors for all words of the vocabulary in the training text, but not `<eos>`.

    Word2vec has one for `<unk>`; fasttext reads the words behind it, whose spellings share their n-grams.
    Raises: StudyError when fasttext finds no word twice.
    """
    from gensim.models import FastText, Word2Vec

    started, epochs = perf_counter(), config.epochs or EPOCHS
    spelt = config.source == "fasttext"
    sentences = _sentences(corpus, vocabulary, spelt)
    n_words, read = sum(map(len, sentences)), {word for line in sentences for word in line}
    if spelt and len(read) == n_words:
        raise StudyError(f"fasttext needs words that occur twice; the {n_words} of {corpus.name} all differ.")
    settings = SETTINGS | (SPELLINGS if spelt else {})
    with tqdm(desc=config.source, total=epochs, unit="epoch", disable=None) as bar:
        model = (FastText if spelt else Word2Vec)(
            sentences=sentences,
            sg=int(config.source != "word2vec-cbow"),
            vector_size=config.dim,
            epochs=epochs,
            seed=derive_seed(config.seed, "pretrain", config.source) % 2**32,
            workers=1,  # several threads write over each other, and no two runs are the same
            # the learning rate falls from batch to batch: short text gets smaller ones
            batch_words=max(100, min(10_000, n_words // 100)),
            callbacks=[_progress(bar)],
            **settings,
        )
    words = tuple(word for word in vocabulary.words[2 if spelt else 0 :] if word in read)
    tokens_read = n_words + len(sentences)  # with an <eos> for each line, as everywhere
    known = {"readout": "input-layer", "epochs": epochs}
    facts = provenance(config, corpus, tokens_read, perf_counter() - started, **known)
    return Pretrained(Embeddings(words, model.wv[words], facts))


def _sentences(corpus: Corpus, vocabulary: Vocabulary, spelt: bool) -> list[list[str]]:
    """The training text, with `<unk>` for words outside the vocabulary, so that windows keep their shape.

    `spelt`: with the spellings of these words instead.
    """
    known = {word: word for word in vocabulary.words}  # one string a type in memory, not one a token
    name = (lambda word: known.setdefault(word, word)) if spelt else (lambda word: known.get(word, UNK))
    return [list(map(name, line)) for d in corpus.split("train") for line in d.lines()]


def _progress(bar: tqdm):
    from gensim.models.callbacks import CallbackAny2Vec

    class Progress(CallbackAny2Vec):
        def on_epoch_end(self, model):
            bar.update()

    return Progress()
