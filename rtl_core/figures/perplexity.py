"""The figure of a comparison: perplexity of every arm, its seeds and its interval."""

import textwrap

import numpy as np
import pandas as pd

from rtl_core.catalogue import base_of
from rtl_core.figures.style import DASHED, NOTE, STYLES, name_rows, new_axes, span
from rtl_core.results import ARM_FIELDS
from rtl_core.storage import StudyError
from rtl_core.tables import GROUP, caption, effect_text, labels

SEEDS, MEAN, INTERVAL = "seeds", "mean", "interval"  # the gid of what is drawn for each row
CONTEXT = "document"
BOUND = "0.35", "D"
SPREAD = 0.15  # of a row, between the first and the last seed and the middle, so that none hides another
LABEL = 40  # letters of an arm's name in a line, so that long names leave room to the dots


def plot_perplexity(table: pd.DataFrame, *, ax=None):
    """Returns the Axes of a dot plot of `compare`: a row for each arm and bound, every seed, mean, interval.

    Raises: StudyError when the table holds more than one group of arms, or no baseline.
    """
    base = _baseline(table)
    names = [textwrap.wrap(name, LABEL, break_on_hyphens=False) for name in labels(table)]
    height = max(0.75, max(map(len, names)) / 2)  # two lines fit into a row of 1
    ax = new_axes(len(table) * height) if ax is None else ax
    low, high = _range(table, base)
    side = ax.get_yaxis_transform()  # x in parts of the axis, y in rows
    for place, (_, row) in enumerate(table.iterrows()):
        if row["perplexity"] > high:  # too far away to share the axis
            beyond = f"{row['perplexity']:.1f} →"
            ax.text(0.99, place, beyond, transform=side, ha="right", va="center", backgroundcolor="w")
        elif row["perplexity"] < low:
            ax.text(0.01, place, f"← {row['perplexity']:.1f}", transform=side, va="center")
        else:
            _draw_row(ax, place, row, base)
        ax.text(1.03, place, effect_text(row), transform=side, va="center_baseline")
    ax.axvline(base, **DASHED)
    ax.axhline((table["role"] != "bound").sum() - 0.5, color="0.8", linewidth=0.8, zorder=0)
    name_rows(ax, list(map("\n".join, names)))
    ax.set_xlim(low, high)
    ax.locator_params(axis="x", nbins=6)
    _small_print(ax, table, base)
    return ax


def describe_perplexity(table: pd.DataFrame) -> str:
    """Returns the figure of `plot_perplexity` in words, computed from its numbers: alt text and caption.

    Raises: StudyError when the table holds more than one group of arms, or no baseline.
    """
    arms, bounds = table[table["role"] != "bound"], table[table["role"] == "bound"]
    ends = [f"{row['perplexity']:.1f} ({name})" for name, row in _extremes(arms)]
    text = (
        f"Dot plot of test perplexity (context {CONTEXT}, lower is better) of {len(arms)} language models "
        f"that differ in {_differences(arms)}. "
        f"{caption(table)}. Perplexity runs from {ends[0]} to {ends[1]}; the baseline has "
        f"{_baseline(table):.1f}. "
    )
    text += _takeaway(arms[arms["role"] == "arm"], arms["n_seeds"].max())
    if len(bounds):
        names = (name.removeprefix("bound: ") for name in labels(bounds))
        shown = (f"{name} {value:.1f}" for name, value in zip(names, bounds["perplexity"]))
        text += f" Bounds beside the arms: {'; '.join(shown)}."
    return text


def _differences(arms: pd.DataFrame) -> str:
    """Returns in words the settings that are not the same in all arms."""
    settings = [name for name in (*ARM_FIELDS, *arms.attrs.get("across", ())) if name in arms]
    varied = [name for name in settings if arms[name].astype("str").nunique() > 1]
    if set(varied) <= {"source", "input_mode"}:
        return "the source of their input embeddings and in whether these are fine-tuned"
    return " and ".join([*([", ".join(varied[:-1])] if varied[1:] else []), varied[-1]])


def _takeaway(arms: pd.DataFrame, n_seeds: int) -> str:
    if arms.empty:
        return "There is no other arm to compare with it."
    if arms["low_percent"].isna().all():
        return "Without intervals, which need two seeds or more, none of these differences is established."
    better, worse = arms[arms["high_percent"] < 0], arms[arms["low_percent"] > 0]
    n_open = len(arms) - len(better) - len(worse)
    ranking = f" {n_seeds} seeds are too few for a ranking." if n_seeds < 5 else ""
    return (
        f"Below the baseline by the 95 % interval of the difference: {_listed(better)}. Above it: "
        f"{_listed(worse)}. Not told apart from it, because the interval contains zero or there is none: "
        f"{n_open} of {len(arms)}.{ranking}"
    )


def _listed(arms: pd.DataFrame) -> str:
    found = (f"{name} {effect_text(row)}" for name, (_, row) in zip(labels(arms), arms.iterrows()))
    return "; ".join(found) or "none"


def _extremes(arms: pd.DataFrame) -> list:
    order = arms["perplexity"].argsort().iloc[[0, -1]]
    return [(labels(arms)[i], arms.iloc[i]) for i in order]


def _baseline(table: pd.DataFrame) -> float:
    """Returns the baseline's perplexity. Raises: StudyError unless the table is one group that has one."""
    groups = table[GROUP].drop_duplicates().to_dict("records")
    if len(groups) != 1:
        raise StudyError(f"a figure shows one corpus and setting, but the table holds {groups}; select one.")
    found = table.loc[table["role"] == "baseline", "perplexity"]
    if not len(found):
        raise StudyError("the table has no baseline row; select a corpus and setting that has one.")
    return found.iloc[0]


def _range(table: pd.DataFrame, base: float) -> tuple[float, float]:
    """Returns the ends of the axis: all arms, and the bounds that are not much farther away."""
    arms = table[table["role"] != "bound"]
    seen = [value for seeds in arms["seeds"] for value in seeds]
    seen += [base * (1 + p / 100) for p in pd.concat([arms["low_percent"], arms["high_percent"]]).dropna()]
    low, high = min(seen), max(seen)
    reach = max(high - low, 0.1 * base)
    near = [value for value in table["perplexity"] if low - reach <= value <= high + reach]
    low, high = min(low, *near), max(high, *near)
    margin = 0.06 * (high - low) or 0.02 * base
    return low - margin, high + margin


def _draw_row(ax, place: int, row, base: float) -> None:
    bound, frozen = row["role"] == "bound", row["input_mode"] == "frozen"
    colour, mark = BOUND if bound else STYLES[frozen]
    if not pd.isna(row["low_percent"]) and not bound:
        ends = [base * (1 + row[name] / 100) for name in ("low_percent", "high_percent")]
        ax.plot(ends, [place] * 2, color=colour, alpha=0.25, lw=7, solid_capstyle="butt", gid=INTERVAL)
    draw_seeds(ax, place, row, colour, mark, row["source"] != base_of(row["source"]))


def draw_seeds(ax, place: int, row, colour: str, mark: str, hollow: bool) -> None:
    """Draws an arm's mean as a bar and its seeds as marks: hollow, or with a white rim, so that they stay apart."""
    ax.plot([row["perplexity"]], [place], "|", color=colour, ms=16, mew=2, gid=MEAN)
    spread = np.linspace(-SPREAD, SPREAD, len(row["seeds"])) if len(row["seeds"]) > 1 else 0
    face, rim = ("white", colour) if hollow else (colour, "white")
    ax.plot(row["seeds"], place + spread, mark, mfc=face, mec=rim, ms=5.5, gid=SEEDS)


def _small_print(ax, table: pd.DataFrame, base: float) -> None:
    """Writes what the marks mean, the heading of the effects and the settings, around the axes."""
    arms = table[table["role"] != "bound"]
    intervals = bool(arms["low_percent"].notna().any())
    grey = {"color": NOTE, "va": "bottom"}
    towards_middle = "right" if base > sum(ax.get_xlim()) / 2 else "left"
    ax.text(base, -0.75, f"baseline {base:.1f}", ha=towards_middle, **grey)
    heading = "difference from baseline" + "\n(95 % interval)" * intervals
    ax.text(1.03, -0.75, heading, transform=ax.get_yaxis_transform(), **grey)
    marks = "dots: seeds, bar: mean, " + (
        "band: 95 % interval of the difference" if intervals else "one seed: no interval"
    )
    n_seeds = span(arms["n_seeds"])
    seeds = f"{n_seeds} seed{'s' if n_seeds != '1' else ''} an arm"
    lines = [f"test perplexity, context {CONTEXT} (lower is better)", marks]
    ax.set_xlabel("\n".join([*lines, *textwrap.wrap(f"{caption(table)}; {seeds}", 80)]))
