"""What a table is worth by itself: agreement with people's judgements; and whether such numbers foretell the gain.

A pair or question counts only if all its words have a vector: one that is missing is not a zero. How many were used
stands beside every number.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from scipy.stats import rankdata, spearmanr

from rtl_core.analysis.geometry import OF_TABLE, table_name, tables
from rtl_core.catalogue import base_of, place_of
from rtl_core.config import Experiment, derive_seed
from rtl_core.corpora.sources import checked_files, missing
from rtl_core.corpora.text import read_text
from rtl_core.embeddings import Embeddings
from rtl_core.results import ARM_FIELDS, BASELINE, Record, Results, grouped, select_arm
from rtl_core.storage import StudyError, say, unknown

# column of the judgement, lines of heading
PAIRS = {"simlex-999": (3, 1), "wordsim-353": (2, 1), "men": (2, 1), "rare-words": (2, 0)}
ANALOGIES = "google-analogies"
SETS = (*PAIRS, ANALOGIES)
FEWEST = 3  # pairs behind a correlation
QUESTIONS_AT_ONCE = 256
N_RESAMPLES = 2000
SHAPES = (
    "purity", "silhouette", "mean_cosine", "participation_ratio", "effective_rank", "cka", "procrustes"
)  # fmt: skip
GAIN = "gain_percent"


# Judgements


def load_pairs(name: str) -> list[tuple[str, str, float]]:
    """Returns the word pairs of a set and their judgements, in lower case.

    Raises: StudyError for an unknown set, and for a file that is missing (where to get it) or not the known one.
    """
    if name not in PAIRS:
        raise unknown("set of judged pairs", name, PAIRS)
    column, heading = PAIRS[name]
    rows = [line.lower().split() for line in _lines(name)[heading:]]
    return [(row[0], row[1], float(row[column])) for row in rows]


def load_analogies() -> list[tuple[str, str, str, str]]:
    """Returns Google's questions, a is to b as c is to d, in lower case. Raises: StudyError as `load_pairs`."""
    return [tuple(line.lower().split()) for line in _lines(ANALOGIES) if not line.startswith(":")]


def _lines(name: str) -> list[str]:
    (path,) = checked_files(name)[0].values()
    return read_text(path).removesuffix("\n").split("\n")


def similarity(embeddings: Embeddings, name: str) -> tuple[float, int, int]:
    """Returns Spearman's correlation of cosines with the judgements of a set, pairs used, pairs in all.

    Below three pairs the correlation is NaN. Raises: StudyError as `load_pairs`.
    """
    pairs, vectors = load_pairs(name), embeddings.folded("case").normalised()
    known = [pair for pair in pairs if pair[0] in vectors and pair[1] in vectors]
    if len(known) < FEWEST:
        return np.nan, len(known), len(pairs)
    first, second, judged = zip(*known)
    cosines = (vectors.lookup(first)[0] * vectors.lookup(second)[0]).sum(axis=1)
    return float(spearmanr(cosines, judged).statistic), len(known), len(pairs)


def analogies(embeddings: Embeddings) -> tuple[float, int, int]:
    """Returns the share of analogies that are solved, questions used, questions in all; NaN without a question.

    Solved: of all words but a, b and c, the one nearest to b - a + c is d. Source: Mikolov et al. 2013 (3CosAdd).
    Raises: StudyError as `load_pairs`.
    """
    questions, vectors = load_analogies(), embeddings.folded("case").normalised()
    known = [question for question in questions if all(word in vectors for word in question)]
    if not known:
        return np.nan, 0, len(questions)
    solved, ids = 0, np.array([[vectors.ids[word] for word in question] for question in known])
    for start in range(0, len(ids), QUESTIONS_AT_ONCE):
        part = ids[start : start + QUESTIONS_AT_ONCE]
        a, b, c = vectors.table[part[:, :3].T]
        cosines = (b - a + c) @ vectors.table.T
        np.put_along_axis(cosines, part[:, :3], -np.inf, axis=1)
        solved += int((cosines.argmax(axis=1) == part[:, 3]).sum())
    return solved / len(ids), len(ids), len(questions)


def evaluate(embeddings: Embeddings) -> pd.DataFrame:
    """Returns a row for each set at hand: measure (its name), value, used, total. The others are named and left out.

    The value is Spearman's correlation, of google-analogies the share solved. Raises: StudyError without any set.
    """
    lacking = {name: missing(name) for name in SETS}
    for message in filter(None, lacking.values()):
        _say_once(message)
    if all(lacking.values()):
        raise StudyError(f"no set of judgements is at hand. {' '.join(lacking.values())}")
    here = [name for name in SETS if not lacking[name]]
    rows = [(n, *(analogies(embeddings) if n == ANALOGIES else similarity(embeddings, n))) for n in here]
    return pd.DataFrame(rows, columns=["measure", "value", "used", "total"])


@lru_cache
def _say_once(message: str) -> None:
    say(message)


def measure(record: Record) -> pd.DataFrame:
    """Returns how a record's tables agree with judgements: table, measure (the set), value, used, total.

    Tables are those of `geometry.tables`, centred, as they enter the language model.
    Raises: StudyError as `tables` and `evaluate` do.
    """
    found = (evaluate(vectors.centred()).assign(table=name) for name, vectors in tables(record).items())
    frame = pd.concat(found, ignore_index=True)
    return frame[["table", *frame.columns.drop("table")]]


# Measures and gains, arm by arm


def gains(results: Results) -> pd.DataFrame:
    """Returns the gain of each arm that differs from the baseline only in its table: arm, source, record, seed,
    gain_percent.

    The gain is the part of the baseline's perplexity (document) that the arm saves, with the same seed. An arm of
    another encoder or read-out than its source's own has that in its name.
    Raises: StudyError when the results hold no such arms, or those of several settings.
    """
    sums = results.documents.groupby("record")[["nats_document", "tokens"]].sum()
    nats, rows = sums["nats_document"] / sums["tokens"], []
    for setting, arms in grouped(results).items():
        base = select_arm(arms, BASELINE)
        for seed, record in (
            (s, r) for of in arms.values() for s, r in of.items() if len(arms) > 1 and s in base
        ):
            if ("model", "lstm") in setting and not record.told and _plain(record):
                gain = 100 * (1 - np.exp(nats[record.name] - nats[base[seed].name]))
                rows.append((table_name(record), record.experiment["source"], record.name, seed, gain))
    frame = pd.DataFrame(sorted(rows, key=_order), columns=["arm", "source", "record", "seed", GAIN])
    if frame.empty or frame.duplicated(["arm", "seed"]).any():
        raise StudyError(
            f"the results hold {len(frame)} models that differ from their baseline in the table alone, of "
            f"{frame['arm'].nunique()} arms; one setting with such arms is needed: load_results().of('laptop')."
        )
    return frame


def _plain(record: Record) -> bool:
    own = ("source", *OF_TABLE)
    return all(record.experiment[n] == getattr(Experiment, n) for n in ARM_FIELDS if n not in own)


def _order(row: tuple) -> tuple:
    arm, source, _, seed, _ = row
    return *place_of(source), arm, seed


def summary(found: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Returns findings by arm: arm, table, measure, n_seeds, mean, its 95 % interval low and high, used, total.

    `found`: of `load_findings`, geometry or intrinsic or both. The interval is Student's, over seeds; one seed has
    none. `used` and `total` are the pairs of intrinsic measures (of the seed that has fewest). Arms stand in the
    order of the catalogue, controls last.
    Raises: StudyError as `gains` does.
    """
    frame = gains(results).merge(found, on="record")
    groups = frame.groupby(["arm", "table", "measure"], sort=False, observed=True)["value"]
    table = groups.agg(n_seeds="count", mean="mean", spread="std")
    half = table.pop("spread") / table["n_seeds"] ** 0.5 * stdtrit(np.maximum(table["n_seeds"] - 1, 1), 0.975)
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    pairs = [name for name in ("used", "total") if name in frame]
    if pairs:
        of_set = frame.groupby(["arm", "table", "measure"], sort=False, observed=True)
        table[pairs] = of_set[pairs].min().astype("Int64")
    return table.reset_index()


def correlations(found: pd.DataFrame, results: Results, table: str = "pretrained") -> pd.DataFrame:
    """Returns how each measure of a table goes with the gain: measure, over, rho, low, high, n_arms, n_seeds.

    rho is Spearman's, of the arms' means over seeds; over "all" arms, or the "sources" alone, without `random` and
    the controls, which tell whether a measure does more than set a control apart. Its 95 % interval is a bootstrap:
    arms are drawn with replacement, and seeds within each. With some twenty arms it is wide, and one that holds zero
    decides nothing; of as many measures as there are here one may leave zero out by chance.
    Raises: StudyError as `gains` does, and with fewer than four arms.
    """
    chosen = found[(found["table"] == table) & found["measure"].isin((*SHAPES, *SETS))]
    frame = gains(results).merge(chosen, on="record")
    sources = frame[(frame["source"] != "random") & (frame["source"] == frame["source"].map(base_of))]
    rows = []
    for over, part in (("all", frame), ("sources", sources)):
        for name, of_measure in part.groupby("measure", sort=False, observed=True):
            rows.append({"measure": name, "over": over, **_correlation(of_measure, name)})
    return pd.DataFrame(rows)


def _correlation(frame: pd.DataFrame, name: str) -> dict:
    """Returns rho, its interval and what is behind it, of one measure's rows."""
    wide = frame.pivot(index="arm", columns="seed", values=["value", GAIN]).dropna()
    both = np.stack([wide["value"], wide[GAIN]]).astype(float)  # (2, n, seeds)
    n_arms, n_seeds = both.shape[1:]
    if n_arms < 4:
        raise StudyError(
            f"{name} is known of {n_arms} arms with all seeds; a correlation needs four or more."
        )
    rng = np.random.default_rng(derive_seed(0, "correlation", name))
    arms = rng.integers(n_arms, size=(N_RESAMPLES, n_arms, 1))
    seeds = rng.integers(n_seeds, size=(N_RESAMPLES, n_arms, n_seeds))
    drawn = rankdata(both[:, arms, seeds].mean(axis=-1), axis=-1)  # (2, resamples, n)
    first, second = drawn - drawn.mean(axis=-1, keepdims=True)
    sizes = np.sqrt(np.square(first).sum(axis=1) * np.square(second).sum(axis=1))
    resampled = (first * second).sum(axis=1)[sizes > 0] / sizes[sizes > 0]
    low, high = np.quantile(resampled, [0.025, 0.975])
    rho = spearmanr(*both.mean(axis=-1)).statistic
    found = {"rho": float(rho), "low": float(low), "high": float(high)}
    return found | {"n_arms": n_arms, "n_seeds": n_seeds}
