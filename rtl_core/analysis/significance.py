"""How sure a difference is: effects slice by slice, what the design could have seen, what its interval covers."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr, stdtrit
from scipy.stats import chi2

from rtl_core.comparison import compare, effect, half_width, holm
from rtl_core.findings import load_findings
from rtl_core.results import Results
from rtl_core.slices import DOMAIN, POSITIONS, SLICES, TIMES_READ, by_domain, in_order
from rtl_core.storage import StudyError, unknown
from rtl_core.tables import GROUP, labels

POWER = 0.8  # of the smallest effect
FEWEST = 10  # documents with tokens in a slice, below which it has no interval
UNSURE = ("low_nats", "high_nats", "low_percent", "high_percent", "p_value")  # of `effect`
TAIL = 3  # degrees of freedom of the heavy tails in a simulation
HEADLINES = {  # what results/README.md shows of every arm: a slicing and some of its slices
    "rare words": ("frequency", SLICES["frequency"][: len(TIMES_READ) + 1]),
    "content words": ("class", ("content",)),
    "beyond token 200": ("position", SLICES["position"][POSITIONS.index(200) :]),
}


def slice_effects(results: Results, slicings: Iterable[str] = (), **options) -> pd.DataFrame:
    """Returns the effect of every arm in every slice: arm, slicing, slice, its share of tokens, and `effect` of it.

    `part_nats`: what the slice adds to the effect over all tokens; the parts of a slicing sum to it. `p_holm` is
    corrected for all arms and slices of a slicing. A slice with tokens in few documents has no interval. `slicings`:
    those of slices.SLICES and domain (none: all); `options` are those of `compare`. One row a slice and arm.
    Raises: StudyError when the slices of a record were never measured, and for an unknown slicing.
    """
    table = compare(results, **options)
    sums = _slice_sums(table, results)
    slicings = (slicings,) if isinstance(slicings, str) else tuple(slicings)
    for name in slicings:
        if name not in (*SLICES, DOMAIN):
            raise unknown("slicing", name, (*SLICES, DOMAIN))
    return _slice_effects(table, sums[sums["slicing"].isin(slicings)] if slicings else sums)


def headline_effects(results: Results, **options) -> pd.DataFrame:
    """Returns `slice_effects` of `HEADLINES` alone: rare words, content words, far into a document."""
    table = compare(results, **options)
    sums = _slice_sums(table, results)
    chosen = [
        sums[(sums["slicing"] == slicing) & sums["slice"].isin(wanted)].assign(slicing=name, slice=name)
        for name, (slicing, wanted) in HEADLINES.items()
    ]
    return _slice_effects(table, pd.concat(chosen))


def _slice_sums(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    lms = table[table["role"].isin(["baseline", "arm"])]
    names = [name for records in lms["records"] for name in records.values()]
    documents = results.documents[results.documents["record"].isin(names)]
    sums = pd.concat([load_findings("slices", names), by_domain(documents)], ignore_index=True)
    return sums.astype(
        dict.fromkeys(("record", "document", "slicing", "slice"), "category")
    )  # many, few different


def _slice_effects(table: pd.DataFrame, sums: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for _, group in table.assign(label=labels(table)).groupby(GROUP, sort=False, dropna=False):
        base = group.loc[group["role"] == "baseline", "records"]
        arms = group[(group["role"] == "arm") & group["effect_nats"].notna()]
        for slicing, part in sums.groupby("slicing", observed=True, sort=False) if len(base) else ():
            found = [
                {"slicing": slicing, "slice": name} | row
                for name in in_order(slicing, part["slice"])
                for row in _effects_of_slice(arms, base.iloc[0], part[part["slice"] == name])
            ]
            corrected = holm(pd.Series([row["p_value"] for row in found]))
            rows += [row | {"p_holm": p} for row, p in zip(found, corrected)]
    if not rows:
        raise StudyError("no arm shares a seed with a baseline, so there is no effect to cut into slices.")
    return pd.DataFrame(rows)


def _effects_of_slice(arms: pd.DataFrame, base: dict, part: pd.DataFrame) -> list[dict]:
    """Returns the effect of each arm over the tokens of one slice. `base`: seed → record."""
    groups = part.groupby(["document", "record"], observed=True, sort=False)[["tokens", "nats"]]
    sums = groups.sum().unstack("record")
    rows, tokens = [], sums["tokens"][base[min(base)]].to_numpy()
    nats = {name: values.to_numpy(dtype=np.float64) for name, values in sums["nats"].items()}
    for _, arm in arms.iterrows():
        common = [seed for seed in arm["records"] if seed in base]
        ours, theirs = (np.column_stack([nats[of[s]] for s in common]) for of in (arm["records"], base))
        found = effect(ours, theirs, tokens)
        if len(tokens) < FEWEST:
            found |= dict.fromkeys(UNSURE, math.nan)
        share = tokens.sum() / arm["test_tokens"]
        about = {"arm": arm["label"], "share": share, "part_nats": share * found["effect_nats"]}
        rows.append(about | {name: arm[name] for name in ("source", "input_mode")} | found)
    return rows


def smallest_effect(table: pd.DataFrame, level: float = 0.05, power: float = POWER) -> dict:
    """Returns the smallest true effect that the design of `compare` would have shown with this power.

    smallest_nats and smallest_percent (of perplexity, downwards), from the spreads of documents and seeds pooled over
    all arms; two-sided. A normal effect is held against an interval whose part of the seeds varies with chi-square.
    Raises: StudyError when no arm has an interval.
    """
    arms = table[(table["role"] == "arm") & table["sd_seeds"].notna()]
    if arms.empty:
        raise StudyError("no arm has an interval; two seeds or more are needed to know what could be seen.")
    spreads = np.sqrt((arms[["sd_documents", "sd_seeds"]] ** 2).mean())
    n_documents, n_seeds = int(arms["test_documents"].median()), int(arms["n_seeds"].median())
    luck = np.sqrt(
        chi2.ppf(np.linspace(0.0005, 0.9995, 1000), n_seeds - 1) / (n_seeds - 1)
    )  # of the seeds' spread
    half = np.array([
        half_width((spreads["sd_documents"], spreads["sd_seeds"] * times), (n_documents, n_seeds), level)
        for times in luck
    ])  # fmt: skip
    spread = math.hypot(*spreads)
    nats = brentq(lambda nats: ndtr((nats - half) / spread).mean() - power, 0, 10 * half.max())
    return {
        "smallest_nats": nats, "smallest_percent": 100 * math.expm1(-nats), "power": power, "level": level,
        "n_seeds": n_seeds, "n_documents": n_documents, **spreads.to_dict(),
    }  # fmt: skip


def difference_of(results: Results, arm: dict, base: dict) -> tuple[pd.DataFrame, pd.Series]:
    """Returns summed nats of an arm less the baseline's, by document and seed, and tokens by document.

    `arm`, `base`: seed → record, as in the column `records` of `compare`.
    """
    nats = results.documents.pivot(index="document", columns="record", values="nats_document")
    tokens = results.documents.drop_duplicates("document").set_index("document")["tokens"]
    common = [seed for seed in arm if seed in base]
    columns = {seed: nats[arm[seed]] - nats[base[seed]] for seed in common}
    return pd.DataFrame(columns), tokens.loc[nats.index]


def parts(difference: np.ndarray, tokens: np.ndarray) -> dict:
    """Returns what a difference is made of: its mean, and what documents, seeds and both together add to it.

    nats a token; documents (D,), summed nats by which each differs from the mean; seeds, a standard deviation; both
    (D,), the standard deviation of what a seed does to one document.
    Shapes: difference (D, S), summed nats; tokens (D,).
    """
    per_seed = difference.sum(axis=0) / tokens.sum()
    of_document, n_seeds = difference.mean(axis=1), difference.shape[1]
    rest = difference - of_document[:, None] - tokens[:, None] * (per_seed - per_seed.mean())
    both = np.sqrt((rest**2).sum(axis=1) / (n_seeds - 1))
    documents = of_document - tokens * per_seed.mean()
    # a mean of few seeds holds some of what they do to single documents
    kept = max(0.0, 1 - (both**2).sum() / n_seeds / (documents**2).sum())
    return {
        "mean": per_seed.mean(),
        "documents": documents * math.sqrt(kept),
        "seeds": math.sqrt(max(0.0, per_seed.var(ddof=1) - (both**2).sum() / tokens.sum() ** 2)),
        "both": both,
    }


def coverage(
    difference: np.ndarray, tokens: np.ndarray, n: int = 1000, heavy: bool = False, seed: int = 0
) -> dict:
    """Returns how often the interval of `effect` holds the truth: coverage, and its Monte-Carlo error.

    Draws `n` studies like the real one: its documents with replacement, seeds and what a seed does to a document from
    normal distributions with the spreads of the real ones; `heavy`: from Student's t with 3 degrees of freedom, and
    documents that differ by as heavy factors. The truth is the real mean. Beside it the coverage that one t, of the
    seeds, would have (`coverage_one_t`), and the mean width of both.
    Shapes: difference (D, S), summed nats; tokens (D,).
    """
    rng, found = np.random.default_rng(seed), parts(difference, tokens)
    n_documents, n_seeds = difference.shape

    def drawn(*shape: int) -> np.ndarray:
        return (
            rng.standard_t(TAIL, shape) / math.sqrt(TAIL / (TAIL - 2))
            if heavy
            else rng.standard_normal(shape)
        )

    halves, errors = [], []
    for _ in range(n):
        at = rng.integers(n_documents, size=n_documents)
        own = found["documents"][at] * (drawn(n_documents) if heavy else 1)
        moved = found["mean"] + found["seeds"] * drawn(n_seeds)
        sample = (
            own[:, None] + tokens[at, None] * moved + found["both"][at, None] * drawn(n_documents, n_seeds)
        )
        seen = effect(sample, np.zeros_like(sample), tokens[at])
        halves.append((seen["high_nats"] - seen["effect_nats"], -stdtrit(n_seeds - 1, 0.025)
                       * math.hypot(seen["sd_documents"], seen["sd_seeds"])))  # fmt: skip
        errors.append(abs(seen["effect_nats"] - found["mean"]))
    halves = np.array(halves)
    covered, one_t = (np.array(errors)[:, None] <= halves).mean(axis=0)
    return {
        "coverage": covered, "error": math.sqrt(covered * (1 - covered) / n), "coverage_one_t": one_t,
        "width": 2 * halves[:, 0].mean(), "width_one_t": 2 * halves[:, 1].mean(),
    }  # fmt: skip
