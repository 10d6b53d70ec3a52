"""What records say together: every arm against its baseline, in one table."""

import math
from dataclasses import fields
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import stdtrit

from rtl_core.catalogue import place_of
from rtl_core.config import Experiment
from rtl_core.results import ARM_FIELDS, BASELINE, NATS, Record, Results, grouped, select_arm
from rtl_core.storage import StudyError, unknown

TEXT_FIELDS = ("corpus", "corpus_fingerprint", "vocab_size", "lm_tokens", "test_tokens")
MODELS = ("lstm", "kneser-ney", "unigram")  # in the order of rows
ALL_TEXT = ("lm_tokens", None)
PERPLEXITIES = ("perplexity", "perplexity_stream", "perplexity_sentence")  # in the order of SCORE_CONTEXTS
N_RESAMPLES = 2000  # of the documents, for an interval


def compare(
    results: Results, baseline: dict | None = None, *, across: tuple[str, ...] = (), leaky: bool = False
) -> pd.DataFrame:
    """Returns one row an arm: perplexities, and its effect against the baseline, all settings but the arm's equal.

    Effect: difference of token-weighted mean nats (context document) over the seeds that both have, in nats and as
    per cent of perplexity, with its 95 % interval (see `effect`); one seed has none: run SIZE=laptop for intervals.
    `p_holm`: its p-value corrected for the number of arms that are set against one baseline; bounds are not counted.
    `records`: the names behind a row, by seed. Failed runs are left out and counted in `attrs["failed"]`.
    `baseline` says which arm that is, by values of `ARM_FIELDS`. `across` names more settings in which arms may
    differ, such as criterion; without it their differences make groups that are not compared. `leaky`: an arm
    that was told what it cannot know (leaky-bilm, domain-oracle), for teaching, may stand beside honest ones.
    Raises: StudyError when no group of records has a baseline, or when such an arm is there unasked.
    """
    if not leaky:
        _check_honest(results)
    across = (across,) if isinstance(across, str) else tuple(dict.fromkeys(across))
    wanted, arm_fields = BASELINE | (baseline or {}), (*ARM_FIELDS, *across)
    own = (*ARM_FIELDS, *TEXT_FIELDS, "model", "seed")
    settings = [f.name for f in fields(Experiment) if f.name not in own]
    for name in across:
        if name not in settings:
            raise unknown("setting to compare across", name, settings)
    for name in wanted:
        if name not in arm_fields:
            raise unknown("field of an arm", name, arm_fields)
    groups = grouped(results, arm_fields)
    bounds = {s: _bounds(s, groups, arm_fields) for s in groups if ("model", "lstm") in s}
    used = [seeds for beside in bounds.values() for seeds in beside]
    studies = {s: groups[s] for s in bounds if any(seeds not in used for seeds in groups[s].values())}
    bases = {setting: select_arm(arms, wanted, arm_fields) for setting, arms in studies.items()}
    if not any(bases.values()):
        raise _no_baseline(studies, wanted)
    rows = []
    for setting, arms in studies.items():
        entries = [("baseline" if seeds is bases[setting] else "arm", seeds) for seeds in arms.values()]
        entries += [("bound", seeds) for seeds in bounds[setting]]
        described = {"settings": _differing(setting, studies), "lm_tokens": dict(setting)["lm_tokens"]}
        found = [row | described for row in _rows(results.documents, entries, bases[setting], across)]
        corrected = holm(pd.Series([r["p_value"] if r["role"] == "arm" else math.nan for r in found]))
        rows += [row | {"p_holm": p} for row, p in zip(found, corrected)]
    table = pd.DataFrame(sorted(rows, key=_order))
    table.attrs["across"] = across
    whole = ("lm_tokens", "pretrain_epochs", "pretrain_tokens", "occurrences", "encoder_layers", "layer")
    whole = (*whole, "extra_tokens")
    table = table.astype(dict.fromkeys(whole, "Int64") | {"converged": "boolean"})
    table.attrs["failed"] = sum(r.status == "failed" for r in results.records)
    return table


def effect(arm: np.ndarray, baseline: np.ndarray, tokens: np.ndarray, seed: int = 0) -> dict:
    """Returns what an arm changes: effect_nats a token, its 95 % interval and p_value, and the same in per cent.

    Two spreads of the mean effect are joined: `sd_documents`, by a bootstrap over documents, and `sd_seeds`. Each
    is widened by its own Student's t (documents − 1 and seeds − 1 degrees of freedom), then their squares are added.
    The t of few seeds for both would cover far more than it says: see analysis.significance.coverage. NaN without
    two seeds and two documents.
    Shapes: arm, baseline (n_documents, n_seeds), summed nats, paired; tokens (n_documents,).
    Source: Zou and Donner 2008 (joining half-widths); Efron 1979 (the bootstrap).
    """
    difference = arm - baseline
    n_documents, n_seeds = difference.shape
    per_seed = difference.sum(axis=0) / tokens.sum()
    mean, spreads = per_seed.mean() if n_seeds else math.nan, (math.nan, math.nan)
    if n_seeds > 1 and n_documents > 1:
        drawn = _resamples(n_documents, seed)
        resampled = (drawn @ difference.mean(axis=1)) / (drawn @ tokens)
        spreads = resampled.std(ddof=1), per_seed.std(ddof=1) / math.sqrt(n_seeds)
    half = half_width(spreads, (n_documents, n_seeds))
    nats = (mean, mean - half, mean + half)
    names = ("effect_nats", "low_nats", "high_nats", "effect_percent", "low_percent", "high_percent")
    found = dict(zip(names, map(float, (*nats, *(100 * np.expm1(nats))))))
    found["p_value"] = _p_value(mean, spreads, (n_documents, n_seeds))
    return found | {"sd_documents": float(spreads[0]), "sd_seeds": float(spreads[1])}


def renamed(found, name: str, unit: str = "nats") -> dict[str, float]:
    """Returns NAME, NAME_low and NAME_high: what `effect` found, in nats or percent, and the ends of its interval."""
    ends = {"": f"effect_{unit}", "_low": f"low_{unit}", "_high": f"high_{unit}"}
    return {f"{name}{end}": found[of] for end, of in ends.items()}


def half_width(spreads: tuple, counts: tuple, level: float = 0.05) -> float:
    """Returns half the 1 − `level` interval of a mean whose spread has parts, each estimated from so many units."""
    return math.hypot(*(-stdtrit(n - 1, level / 2) * sd for sd, n in zip(spreads, counts)))


def _p_value(mean: float, spreads: tuple, counts: tuple) -> float:
    """Returns the level at which the interval ends at zero."""
    if math.isnan(sum(spreads)):
        return math.nan
    if mean == 0 or not any(spreads):
        return float(mean == 0)

    def beyond(log_level: float) -> float:
        return half_width(spreads, counts, math.exp(log_level)) - abs(mean)

    smallest = -600.0  # of a level, as a logarithm
    return math.exp(smallest if beyond(smallest) < 0 else brentq(beyond, smallest, 0))


@lru_cache(maxsize=4)
def _resamples(n_documents: int, seed: int) -> np.ndarray:
    """Returns how often each document is drawn in each resample. Shape (N_RESAMPLES, n_documents)."""
    even = np.full(n_documents, 1 / n_documents)
    drawn = np.random.default_rng(seed).multinomial(n_documents, even, size=N_RESAMPLES)
    return drawn.astype(np.float64)  # as the products need it


def holm(p_values: pd.Series) -> pd.Series:
    """Returns p-values corrected for their number by Holm's method; NaN stays and is not counted.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    ordered = p_values.dropna().sort_values(kind="stable")
    corrected = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1)
    return corrected.reindex(p_values.index)


def _check_honest(results: Results) -> None:
    shown = {r.name: r.told for r in results.records if r.told}
    if shown:
        raise StudyError(
            f"{', '.join(shown)}: {' and '.join(sorted(set(shown.values())))}, so the perplexity is no result. "
            "Leave such runs out with results.honest, or compare(…, leaky=True) to show what it does."
        )


def _bounds(setting: frozenset, groups: dict, arm_fields: tuple) -> list[dict[int, Record]]:
    """Returns the bounds of a group: n-grams of the same text, and the same LM trained on all text."""
    text = {item for item in setting if item[0] in TEXT_FIELDS}
    same = {item for item in setting if item[0] not in ("lm_tokens", "max_epochs")}
    found = []
    for other, arms in groups.items():
        if ("model", "lstm") not in other and text <= other:
            found += arms.values()
        elif ALL_TEXT in other and ALL_TEXT not in setting and same <= other:
            found.append(select_arm(arms, BASELINE, arm_fields))
    return [seeds for seeds in found if seeds]


def _rows(documents: pd.DataFrame, entries: list, base: dict[int, Record], across: tuple) -> list[dict]:
    """Returns the row of each (role, seed → record): its settings, perplexities and effect against `base`."""
    names = {record.name for _, seeds in entries for record in seeds.values()}
    chosen = documents[documents["record"].isin(names)]
    sums = chosen.pivot(index="document", columns="record", values=["tokens", *NATS])
    if sums.isna().any(axis=None) or sums["tokens"].nunique(axis=1).max() > 1:
        counts = chosen.groupby("record").size().to_dict()
        raise StudyError(
            f"these records were not scored on the same test text (documents: {counts}); run them again."
        )
    entering = [(role, seeds, base if role != "baseline" else {}) for role, seeds in entries]
    return [_row(sums, role, seeds, beside, across) for role, seeds, beside in entering]


def _row(sums: pd.DataFrame, role: str, seeds: dict[int, Record], base: dict, across: tuple) -> dict:
    first, tokens = next(iter(seeds.values())), sums["tokens"].iloc[:, 0].to_numpy()
    # An n-gram has no seed of its own: it is set against every seed of the baseline.
    paired = seeds if first.experiment["model"] == "lstm" else dict.fromkeys(base, first)
    common = [seed for seed in paired if seed in base]
    ours, theirs = ([of[seed].name for seed in common] for of in (paired, base))
    nats, own = sums["nats_document"], [record.name for record in seeds.values()]
    means = {c: sums[c][own].sum() / tokens.sum() for c in NATS}
    alone = effect(nats[own].to_numpy(), np.zeros((len(tokens), len(own))), tokens)
    seconds = ("training_seconds", "pretraining_seconds")
    return {
        **{name: first.experiment[name] for name in (*ARM_FIELDS, *across, "corpus", "model")},
        "role": role,
        "lm_tokens_used": first.text["lm_tokens"],
        "vocab_size": first.text["vocab_size"],
        "unk_share": first.text["unk_share"],
        "test_tokens": int(tokens.sum()),
        "test_documents": len(tokens),
        "n_seeds": len(seeds),
        "records": {seed: record.name for seed, record in seeds.items()},
        "seeds": tuple(np.exp(means["nats_document"]).tolist()),
        **{name: float(np.exp(means[nat].mean())) for name, nat in zip(PERPLEXITIES, NATS)},
        "low_perplexity": math.exp(alone["low_nats"]),
        "high_perplexity": math.exp(alone["high_nats"]),
        **effect(nats[ours].to_numpy(), nats[theirs].to_numpy(), tokens),
        "extra_tokens": first.text["extra_tokens"],
        "converged": None if first.converged is None else all(r.converged for r in seeds.values()),
        **{name: float(np.mean([getattr(r, name) for r in seeds.values()])) for name in seconds},
    }


def _differing(setting: frozenset, studies: dict) -> str:
    """Returns the settings, other than those a table shows anyway, in which the groups of a table differ."""
    shared = frozenset.intersection(*studies)
    values = {k: v for k, v in setting - shared if k not in ("corpus", "lm_tokens")}
    if "corpus_fingerprint" in values:
        values["corpus_fingerprint"] = values["corpus_fingerprint"][:12]
    if len({dict(s)["corpus"] for s in studies}) == len({dict(s)["corpus_fingerprint"] for s in studies}):
        values.pop("corpus_fingerprint", None)
    return ", ".join(f"{k} {v}" for k, v in sorted(values.items()))


def _order(row: dict) -> tuple:
    """Returns the key of the fixed order of rows: baseline, arms as in SOURCES, their controls, bounds."""
    return (
        row["corpus"], row["lm_tokens"] or math.inf, row["settings"],
        ("baseline", "arm", "bound").index(row["role"]), MODELS.index(row["model"]),
        *place_of(row["source"]), row["source"], row["readout"], row["input_mode"], row["pretrain_on"],
        row["pretrain_tokens"] or math.inf, row["pretrain_epochs"] or 0,
        row["occurrences"] or math.inf, row["encoder_layers"] or 0, row["layer"] or math.inf, row["fold"],
        *(str(row[name]) for name in ARM_FIELDS if name not in ("pretrain_epochs", "occurrences")),
    )  # fmt: skip


def _no_baseline(studies: dict, wanted: dict) -> StudyError:
    if not studies:
        return StudyError("there is no finished language model among the records; `make study` makes them.")
    setting, arms = next(iter(studies.items()))
    values = dict(setting) | wanted
    defaults = {f.name: f.default for f in fields(Experiment)}
    changed = [f"{k}={values[k]!r}" for k, d in defaults.items() if k in values and values[k] != d]
    seeds = sorted({seed for of_arm in arms.values() for seed in of_arm})
    return StudyError(
        f"no baseline: none of the {len(arms)} finished arms has {wanted}, the other settings of an arm at "
        "their default and all others equal. "
        f"Make it, for seed in {seeds}: rtl.run(rtl.Experiment({', '.join([*changed, 'seed=seed'])}))."
    )
