"""What a language model's state says of its document: a linear probe names the domain after the first n words.

The documents are those of the validation and test text, of which neither the language model nor any source of its
vectors has learnt a word or a label. The same documents serve every n, each named by a probe fitted on others.
Source: Conneau et al. 2018 (probing); Hewitt and Liang 2019, section 2 (control tasks).
"""

import copy
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rtl_core.analysis.awareness import as_documents, by_arm, loaded, longest, states_at
from rtl_core.config import derive_seed
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.results import Record, Results
from rtl_core.storage import StudyError

LENGTHS = (1, 5, 20, 50, 100, 200, 500, 1000)  # words read before the state is looked at
FEWEST = 300  # documents that must be longer than the longest, or half of a smaller text's
FOLDS = 5  # and the fewest documents of a domain
PLACES = 8  # states of a training document, from two thirds of n words to n: more to learn from
STATE, MEAN, CONTROL, UNTRAINED, WORDS = "state", "mean", "control", "untrained", "words"
# C of scikit-learn, one of which is chosen: the smaller, the more regularised
OF_STATES, OF_WORDS = (0.001, 0.01, 0.1), (10, 100, 1000)


def openings(corpus: Corpus, vocabulary: Vocabulary) -> tuple[pd.DataFrame, np.ndarray]:
    """Returns the documents that are probed (document, domain), and the words that each begins with.

    As many words as the largest of LENGTHS that enough documents of the validation and test text are longer than,
    and one more. A domain with fewer than FOLDS such documents is left out.
    Shapes: words int32 (n_documents, n + 1). Raises: StudyError when fewer than two domains are left.
    """
    labelled = [d for split in ("valid", "test") for d in corpus.split(split) if d.domain]
    lengths = np.array([d.n_tokens for d in labelled])
    n = longest(lengths, LENGTHS, FEWEST)
    frame = pd.DataFrame({"document": [d.id for d in labelled], "domain": [d.domain for d in labelled]})
    frame = frame[lengths > n]
    frame = frame[frame.groupby("domain")["document"].transform("size") >= FOLDS]
    if frame["domain"].nunique() < 2:
        raise StudyError(
            f"a probe needs two domains or more of {FOLDS} documents of over {n} tokens each in the validation and "
            f"test text; corpus {corpus.name} has {frame['domain'].nunique()}. Use more text, or other labels."
        )
    encoded = (vocabulary.encode([labelled[i]]).tokens[: n + 1] for i in frame.index)
    return frame.reset_index(drop=True), np.stack(list(encoded))


def untrained(model: LSTMLanguageModel, seed: int) -> LSTMLanguageModel:
    """Returns a copy of a model that has its table, but an LSTM as before any training."""
    other = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "untrained"))
        for part in other.lstm.modules():
            if isinstance(part, torch.nn.LSTM):
                part.reset_parameters()
    return other


def all_states(model: LSTMLanguageModel, words: np.ndarray) -> np.ndarray:
    """Returns the states after `<eos>` and then after every word but the last. Shapes: (n, T) -> (n, T, H)."""
    text = as_documents(words)
    return states_at(model, text, np.arange(len(text))).cpu().numpy().reshape(*words.shape, -1)


def places(n: int) -> np.ndarray:
    """Returns after how many words a training document's states are taken for the probe of `n` words; n is last."""
    return np.unique(np.linspace(2 * n / 3, n, PLACES).round().astype(int))


def bags(words: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns documents as tf-idf of their words, turned so that there are no more columns than documents.

    The turn changes no product of two documents, so the probe is the same as that of a column a word.
    Shapes: words (n, T) -> (n, n).
    """
    n, length = words.shape
    rows = (np.ones(words.size), words.ravel(), np.arange(0, words.size + 1, length))
    counts = sparse.csr_array(rows, (n, vocab_size))
    counts.sum_duplicates()
    found = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    strengths, directions = np.linalg.eigh((found @ found.T).toarray())
    return directions * np.sqrt(np.maximum(strengths, 0))


def named(probe, blocks: list[np.ndarray], labels: np.ndarray, strengths: tuple, seed: int) -> np.ndarray:
    """Returns the label that a probe gives each document, fitted on other documents.

    `probe(C)` makes one. Of `strengths` the one is taken whose probability of a further fold of the training
    documents is highest; the test fold has no say in it.
    Shapes: blocks, each (n, F), all fitted on and the last one named; labels (n,) -> (n,).
    """
    fold, found = np.empty(len(labels), int), np.empty_like(labels)
    for k, (_, test) in enumerate(
        StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels)
    ):
        fold[test] = k

    def fitted(strength: float, chosen: np.ndarray):
        return probe(strength).fit(
            np.concatenate([b[chosen] for b in blocks]), np.tile(labels[chosen], len(blocks))
        )

    for k in range(FOLDS):
        tuning = fold == (k + 1) % FOLDS
        scores = {
            c: log_loss(labels[tuning], fitted(c, (fold != k) & ~tuning).predict_proba(blocks[-1][tuning]))
            for c in strengths
        }
        found[fold == k] = fitted(min(scores, key=scores.get), fold != k).predict(blocks[-1][fold == k])
    return found


def _scaled(strength: float):
    return make_pipeline(StandardScaler(), _plain(strength))


def _plain(strength: float):
    return LogisticRegression(C=strength, max_iter=1000)


@lru_cache(maxsize=8)
def named_by_words(corpus: Corpus, vocabulary: Vocabulary, seed: int) -> dict[int, np.ndarray]:
    """Returns for each n the domains that a probe of the first n words names: what is in the text at all."""
    frame, words = openings(corpus, vocabulary)
    labels = frame["domain"].to_numpy(dtype=object)
    ns = [n for n in LENGTHS if n < words.shape[1]]
    return {n: named(_plain, [bags(words[:, :n], len(vocabulary))], labels, OF_WORDS, seed) for n in ns}


def probed(model: LSTMLanguageModel, frame: pd.DataFrame, words: np.ndarray, seed: int) -> pd.DataFrame:
    """Returns what probes of a model's states name: probe, n, document, domain, correct. Shapes: as `openings`."""
    labels = frame["domain"].to_numpy(dtype=object)
    chance = np.random.default_rng(derive_seed(seed, "control")).permutation(labels)
    trained, blank = all_states(model, words), all_states(untrained(model, seed), words)
    parts = []
    for n in (n for n in LENGTHS if n < words.shape[1]):
        own = [trained[:, m] for m in places(n)]
        so_far = [trained[:, 1 : m + 1].mean(axis=1) for m in places(n)]
        before = [blank[:, m] for m in places(n)]
        tried = {
            STATE: (own, labels),
            MEAN: (so_far, labels),
            UNTRAINED: (before, labels),
            CONTROL: (own, chance),
        }
        for probe, (blocks, true) in tried.items():
            found = named(_scaled, blocks, true, OF_STATES, seed)
            parts.append(frame.assign(probe=probe, n=n, correct=found == true))
    return pd.concat(parts, ignore_index=True)


def measure(record: Record) -> pd.DataFrame:
    """Returns which documents' domains probes name after n words: probe, n, document, domain, correct (0 or 1).

    `state` is probed, and beside it: `mean`, of the states so far; `untrained`, the state of an LSTM as before any
    training behind the model's own table; `control`, the state when domains are dealt out among the documents at
    random, where nothing can be found; `words`, the bag of the n words themselves, which no model has read.
    """
    model, text = loaded(record)
    seed = record.experiment["seed"]
    frame, words = openings(text.corpus, text.vocabulary)
    by_words = named_by_words(text.corpus, text.vocabulary, seed)
    parts = [
        frame.assign(probe=WORDS, n=n, correct=found == frame["domain"]) for n, found in by_words.items()
    ]
    table = pd.concat([probed(model, frame, words, seed), *parts], ignore_index=True)
    kinds = {"probe": "str", "n": "int32", "document": "str", "domain": "str", "correct": "int8"}
    return table.astype(kinds)[list(kinds)]


def summary(results: Results, findings: pd.DataFrame, **options) -> pd.DataFrame:
    """Returns how often the probes of every arm are right: a row an arm, probe and n.

    Columns: see `awareness.by_arm`; `value` is the accuracy, `difference` how far it is from the baseline's; beside
    them chance, the share of the commonest domain. `findings`: of `load_findings`.
    Raises: StudyError without findings, and as `by_arm` does.
    """
    if findings.empty:
        raise StudyError("there are no findings of probes; `rtl analyse STUDY --only probes` makes them.")
    values = findings.rename(columns={"correct": "total"}).assign(count=1)
    one = values[values["record"] == values["record"].iloc[0]].drop_duplicates("document")
    chance = one["domain"].value_counts(normalize=True).iloc[0]
    return by_arm(results, values, ["probe", "n"], **options).assign(chance=chance)
