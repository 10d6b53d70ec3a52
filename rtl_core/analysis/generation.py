"""Does a language model stay with the subject? Texts that it writes after a document's opening, judged by domain.

The judge is the classifier of domains that `context` has: naive Bayes of words in the training split, which has never
seen a language model. It is given a stretch of the continuation alone, never the opening, and knows words only:
`<unk>` and `<eos>` say nothing to it. What it finds in sampled text is held against what it finds in the real
continuation, and against samples after other documents' openings, which agree with this document by chance.
"""

import numpy as np
import pandas as pd
import torch

from rtl_core.analysis.awareness import by_arm, loaded
from rtl_core.config import derive_seed
from rtl_core.context import TopicClassifier
from rtl_core.corpora.vocabulary import EOS_ID
from rtl_core.language_model import LSTMLanguageModel, generate
from rtl_core.results import Record, Results
from rtl_core.storage import StudyError
from rtl_core.texts import Text

OPENINGS = (20, 50)  # tokens of a document that the model reads
BANDS = ((0, 50), (50, 100), (100, 200))  # tokens after the opening that are judged together
SAMPLES = 4  # texts sampled after each opening
SAMPLED, REAL, OTHER = "sampled", "real", "other"
VALUES = {
    "correct": 3,
    "log_posterior": 2,
}  # and their digits: more would double the size of the file that is kept


def measure(record: Record) -> pd.DataFrame:
    """Returns how the judge finds a document's domain in what follows its opening.

    Columns: opening, start, end (tokens after it), kind (sampled, real, other: samples after other openings, the mean
    over all of them), document, correct (the share of texts in which the domain comes first), log_posterior (mean
    log p of the domain). Documents are those of the test text with a domain that are long enough for every band.
    Raises: StudyError as `awareness.loaded` and `generate` do, and without two such documents.
    """
    model, text = loaded(record)
    return continuations(model, text, record.experiment["seed"])


def continuations(model: LSTMLanguageModel, text: Text, seed: int) -> pd.DataFrame:
    """Returns how the judge finds each document's domain in what a model writes: see `measure`."""
    test, length = text.test, BANDS[-1][1]
    needed = max(OPENINGS) + length
    long = np.flatnonzero((np.diff(test.document_starts) >= needed) & (test.domains >= 0))
    if len(long) < 2:
        raise StudyError(
            f"generation needs two test documents or more with a domain and {needed} tokens; corpus "
            f"{text.corpus.name} has {len(long)}. Use more test text, or longer documents with labels."
        )
    reader, parts = judge(text), []
    domains, names = test.domains[long], np.array(test.document_ids, dtype=object)[long]
    for opening in OPENINGS:
        real = test.tokens[test.document_starts[long][:, None] + np.arange(opening + length)].astype(np.int64)
        draws = np.random.default_rng(derive_seed(seed, "generation", opening))
        draws = torch.from_numpy(draws.random((SAMPLES * len(long), length)))
        openings = torch.from_numpy(np.tile(real[:, :opening], (SAMPLES, 1)))
        sampled = generate(model, openings, draws).numpy()
        for start, end in BANDS:
            found = log_posterior(reader, sampled[:, start:end]).reshape(SAMPLES, len(long), -1)
            truth = log_posterior(reader, real[:, opening + start : opening + end])[None]
            kinds = {
                SAMPLED: _own(found, domains),
                REAL: _own(truth, domains),
                OTHER: _others(found, domains),
            }
            place = {"opening": opening, "start": start, "end": end}
            parts += [
                pd.DataFrame(place | {"kind": kind, "document": names} | dict(zip(VALUES, values)))
                for kind, values in kinds.items()
            ]
    types = dict.fromkeys(("opening", "start", "end"), "int32") | {"kind": "str", "document": "str"}
    frame = pd.concat(parts, ignore_index=True).round(VALUES)
    return frame.astype(types | dict.fromkeys(VALUES, "float32"))


def judge(text: Text) -> TopicClassifier:
    """Returns the classifier of domains, learnt from all documents of the training split."""
    whole = text.vocabulary.encode(text.corpus.split("train"), text.corpus.domains)
    return TopicClassifier.learn(whole, text)


def log_posterior(reader: TopicClassifier, words: np.ndarray) -> np.ndarray:
    """Returns log p(domain | these words and no others) of each text. Shapes: (m, T) -> (m, K)."""
    known = words > EOS_ID  # <unk> and <eos> are no words
    return reader.log_posterior((reader.evidence[words] * known[..., None]).sum(axis=1), known.sum(axis=1))


def _own(found: np.ndarray, domains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each document how its own texts do. Shapes: found (S, n, K), domains (n,) -> (n,) twice."""
    correct = found.argmax(axis=2) == domains
    return correct.mean(axis=0), found[:, np.arange(len(domains)), domains].mean(axis=0)


def _others(found: np.ndarray, domains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each document how the texts of all others would do in the place of its own. Shapes: as `_own`."""
    guesses = np.eye(found.shape[2])[found.argmax(axis=2)]  # (S, n, K)
    values = []
    for each, own in zip((guesses, found), _own(found, domains)):
        values.append((each.mean(axis=0).sum(axis=0)[domains] - own) / (len(domains) - 1))
    return values[0], values[1]


def summary(found: pd.DataFrame, results: Results, value: str = "correct") -> pd.DataFrame:
    """Returns a row an arm, opening and band: what the judge finds, and the arm's difference from the baseline.

    Columns: arm, role, opening, start, end, n_seeds, sampled, real, other (means over documents and seeds), and
    difference, of `sampled` from the baseline's, with its 95 % interval low and high and p_value: a bootstrap over
    documents joined with the variance over seeds, as in `comparison.effect`; one seed has none. Every arm answers to
    the same openings with the same draws. `found`: of `load_findings`; `value`: one of `VALUES`.
    """
    keys = ["opening", "start", "end"]
    values = found.astype({value: "float64"}).rename(columns={value: "total"}).assign(count=1)
    table = by_arm(results.select(found["record"].unique()), values, ["kind", *keys])
    sampled = table[table["kind"] == SAMPLED].rename(columns=lambda name: name.replace("difference_", ""))
    kinds = table.pivot(index=["arm", *keys], columns="kind", values="value").reset_index()
    whole = sampled.merge(kinds, on=["arm", *keys])
    base = whole["role"] == "baseline"  # which differs from itself by nothing
    whole.loc[base, "difference"] = 0.0
    whole.loc[base & (whole["n_seeds"] > 1), ["low", "high", "p_value"]] = 0.0, 0.0, 1.0
    columns = ["arm", "role", "n_seeds", *keys, SAMPLED, REAL, OTHER, "difference", "low", "high", "p_value"]
    return whole[columns].sort_values(keys, kind="stable", ignore_index=True)
