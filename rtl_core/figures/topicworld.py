"""Figures of a language with known limits: the arms between the limits, and what is gained as domains overlap."""

from itertools import cycle

import pandas as pd

from rtl_core.catalogue import base_of
from rtl_core.figures.perplexity import draw_seeds
from rtl_core.figures.style import (
    BESIDE,
    COLOURS,
    CURVES,
    NOTE,
    draw_curves,
    name_ends,
    name_rows,
    new_axes,
    span,
)
from rtl_core.storage import StudyError
from rtl_core.tables import change_text

CLOSEST = 0.03  # limits nearer to a drawn one, in parts of the axis, are left out
BEST = "the best there can be"
KNOWS = {"known": "told the type", "inferred": "infers the type", "unigram": "counts words"}


def words(limit: str) -> str:
    """Returns what the best model of a limit knows, in words.

    >>> words("last_5")
    'sees 5 words'
    """
    n = limit.removeprefix("last_")
    return KNOWS.get(limit) or f"sees {n} word{'s' if n != '1' else ''}"


def plot_limits(frame: pd.DataFrame, *, ax=None):
    """Returns the Axes of the arms of one world between its limits (`analysis.limits.between`): every seed and mean.

    Raises: StudyError when the frame holds several worlds.
    """
    arms, limits = _of_one_world(frame)
    ax = new_axes(len(arms) + 4) if ax is None else ax
    low, top = limits.min(), max(value for seeds in arms["seeds"] for value in seeds)
    high = min(limits.drop("unigram")[lambda values: values > top], default=top)  # the next limit is seen too
    above = {"xytext": (0, 3), "textcoords": "offset points", "rotation": 90, "ha": "center", "va": "bottom"}
    for name, value in _apart(limits[limits <= high], CLOSEST * (high - low)):
        style = ("0.35", "-") if name in KNOWS else ("0.7", "--")
        ax.axvline(value, color=style[0], linestyle=style[1], lw=1, zorder=0)
        label = f"{words(name)}: {value:.0f}"
        ax.annotate(label, (value, 1), xycoords=ax.get_xaxis_transform(), color=NOTE, **above)
    for place, (_, row) in enumerate(arms.iterrows()):
        draw_seeds(ax, place, row, COLOURS[0], "o", base_of(row["name"]) != row["name"])
        ax.text(1.02, place, _above(row), transform=ax.get_yaxis_transform(), va="center")
    name_rows(ax, arms["name"])
    ax.set_xlim(1.04 * low - 0.04 * high, 1.04 * high - 0.04 * low)
    ax.locator_params(axis="x", nbins=6)
    _small_print(ax, arms, limits["unigram"])
    return ax


def describe_limits(frame: pd.DataFrame) -> str:
    """Returns the figure of `plot_limits` in words, computed from its numbers.

    Raises: StudyError when the frame holds several worlds.
    """
    arms, limits = _of_one_world(frame)
    shown = "; ".join(f"{words(name)} {value:.1f}" for name, value in limits.items())
    order = arms.set_index("name")["perplexity"].sort_values().iloc[[0, -1]]
    ends = " to ".join(f"{value:.1f} ({name})" for name, value in order.items())
    reached = "; ".join(f"{row['name']} {_above(row)}" for _, row in arms.iterrows())
    beaten = ", ".join(arms.loc[arms["above_high"] < 0, "name"])
    verdict = f"Below it, which cannot be: {beaten}." if beaten else "None is below it by its 95 % interval."
    if arms["above_high"].isna().all():
        verdict = "One seed gives no interval."
    return (
        f"Dot plot of test perplexity (context document, lower is better) of {len(arms)} language models that differ "
        f"in the source of their embeddings, beside the best models there can be: {shown}. The trained ones run from "
        f"{ends}. Above the best that infers the type from all the text before a word: {reached}. {verdict}"
    )


def plot_overlap(frame: pd.DataFrame, *, ax=None):
    """Returns the Axes of each arm's effect on perplexity against the baseline, by the overlap of the domains.

    A bar is a 95 % interval; the dashed line is the best model that infers the type: all that there is to gain.
    """
    ax = new_axes(8) if ax is None else ax
    effects, looks, curves = _effects(frame), cycle(CURVES), {}
    for name, rows in effects.groupby("name", sort=False):
        label, look = (BEST, (BESIDE[0], "--")) if name == "inferred" else (name, next(looks))
        columns = ["overlap", "effect", "effect_low", "effect_high"]
        curves[name] = label, look, rows[columns[:2] if name == "inferred" else columns]
    draw_curves(ax, curves)
    ax.axhline(0, color="0.6", linewidth=1, zorder=0)
    base = frame[frame["kind"] == "baseline"]
    marked = base["overlap"].isin(_lacking(base, frame)["overlap"])
    ticks = zip(base["overlap"], marked, base["perplexity"])
    ax.set_xticks(base["overlap"], [f"{x:g}{'*' if mark else ''}\nrandom {p:.0f}" for x, mark, p in ticks])
    interval = "bar: 95 % interval" if effects["effect_low"].notna().any() else "no interval"
    note = "\n*: random lacks what one word tells: above the best that sees one" * bool(marked.any())
    seeds = f"seeds: {span(base['n_seeds'])}; {interval}"
    ax.set_xlabel(f"overlap of the domains' words; perplexity of random vectors\n{seeds}{note}")
    ax.set_ylabel("effect on perplexity\nagainst random (%)")
    name_ends(ax)
    return ax


def describe_overlap(frame: pd.DataFrame) -> str:
    """Returns the figure of `plot_overlap` in words, computed from its numbers."""
    effects = _effects(frame)
    lines = "; ".join(
        f"{name.replace('inferred', BEST)} "
        + ", ".join(
            f"{value:+.1f} % at {x:g}" for x, value in rows.set_index("overlap")["effect"].items()
        ).replace("-", "−")
        for name, rows in effects.groupby("name", sort=False)
    )
    verdict = f"Below zero by the 95 % interval: {_listed(effects[effects['effect_high'] < 0])}."
    if effects["effect_high"].isna().all():
        verdict = "One seed gives no interval, so that none of the arms' effects is established."
    lacking = _lacking(frame[frame["kind"] != "limit"], frame)
    if len(lacking):
        verdict += f" Above the best that sees one word, so lacking what one tells: {_listed(lacking)}."
    if "baseline" in set(lacking["kind"]):
        verdict += " Where random is among them, an arm's gain may be no more than that."
    return (
        "Lines of the effect on test perplexity against random vectors, by the share of content words that come from "
        f"any domain: {lines}. {verdict}"
    )


def _lacking(models: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the models that are above the best one that sees one word: they lack what one word tells."""
    best = frame[frame["name"] == "last_1"].set_index("overlap")["perplexity"]
    return models[models["perplexity"] > models["overlap"].map(best)]


def _listed(rows: pd.DataFrame) -> str:
    """Returns each model of the rows with its overlaps: "lsa at 0, 0.6; bilm at 0", or "none"."""
    groups = rows.groupby("name", sort=False)["overlap"]
    return "; ".join(f"{name} at {', '.join(f'{x:g}' for x in at)}" for name, at in groups) or "none"


def _of_one_world(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Returns the rows of models, and the perplexity of each limit by its name."""
    if frame["corpus"].nunique() != 1:
        raise StudyError(
            f"a figure shows one world; the frame holds {sorted(set(frame['corpus']))}: select one."
        )
    limits = frame["kind"] == "limit"
    return frame[~limits], frame[limits].set_index("name")["perplexity"]


def _apart(limits: pd.Series, least: float) -> list[tuple[str, float]]:
    """Returns the limits that are `least` apart, the first ones first."""
    drawn: list[tuple[str, float]] = []
    for name, value in limits.items():
        if all(abs(value - other) >= least for _, other in drawn):
            drawn.append((name, value))
    return drawn


def _above(row) -> str:
    return change_text(*row[["above", "above_low", "above_high"]], unit=" %")


def _small_print(ax, arms: pd.DataFrame, unigram: float) -> None:
    """Writes what lines and marks mean, and the headings of the limits and of the numbers, around the axes."""
    grey = {"color": NOTE, "va": "bottom", "transform": ax.transAxes}
    ax.text(-0.03, 1.03, "The best model\nthere can be:", ha="right", **grey)
    single = bool(arms["above_low"].isna().all())
    ax.text(1.02, 1.03, "above the one\nthat infers" + "\n(95 % interval)" * (not single), **grey)
    ax.set_xlabel(
        "test perplexity, context document (lower is better)\ndots: seeds, bar: mean, hollow: control; the best that "
        f"only counts words: {unigram:.0f}\n{arms['corpus'].iloc[0]}{'; one seed: no interval' * single}"
    )


def _effects(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the arms' effects and, as `inferred`, how far the best model is below the baseline."""
    arms, best = frame[frame["kind"] == "arm"], frame[frame["name"] == "inferred"].set_index("overlap")
    base = frame[frame["kind"] == "baseline"].set_index("overlap")["perplexity"]
    possible = best.assign(effect=100 * (best["perplexity"] / base - 1)).reset_index()
    return pd.concat([arms, possible], ignore_index=True)
