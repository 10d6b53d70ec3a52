"""The figure of data-size curves: how much pre-trained vectors gain, by the amount of text."""

import textwrap

import numpy as np
import pandas as pd

from rtl_core.figures.style import COLOURS, new_axes, span
from rtl_core.tables import change_text

# What grows, as the axis and the description say it
TEXTS = {"lm_tokens": "training text of the language model", "pretrain_tokens": "pre-training text"}
MARKS = ("o-", "s--", "^:", "D-.")
APART = 0.015  # of the width of the data, so that intervals at one size do not hide each other


def plot_size_curve(curve: pd.DataFrame, *, ax=None):
    """Returns the Axes of the effect of each source by the amount of text (`analysis.curves.size_curve`).

    A mark is the mean over seeds, a bar its 95 % interval. The perplexity of random vectors, where the effect is
    zero, stands in brackets under each size, or once where it is the same.
    """
    ax = new_axes(8) if ax is None else ax
    base = curve.groupby("tokens")["baseline_perplexity"].first().round()
    groups = curve.groupby("source", sort=False)
    width = max(np.log(base.index[-1] / base.index[0]), 1)
    for place, (source, rows) in enumerate(groups):
        at = rows["tokens"] * np.exp((place - (len(groups) - 1) / 2) * APART * width)
        colour, effects = COLOURS[place % len(COLOURS)], rows["effect_percent"]
        ax.plot(at, effects, MARKS[place % len(MARKS)], ms=5, gid=source, color=colour)
        ax.vlines(at, rows["low_percent"], rows["high_percent"], lw=1.2, color=colour)
    ax.set_xscale("log")
    under = [f"\n({value:.0f})" if base.nunique() > 1 else "" for value in base]
    ax.set_xticks(base.index, [short(n) + text for n, text in zip(base.index, under)])
    ax.minorticks_off()
    ax.set_xlim(base.index[0] * np.exp(-0.05 * width), base.index[-1] * np.exp(0.27 * width))
    ax.set(xlabel=f"tokens of {TEXTS[curve['along'].iloc[0]]}", ylabel="effect on perplexity (%)")
    _notes(ax, curve, base)
    _labels(ax, base.index[-1] * np.exp(0.06 * width))
    return ax


def _labels(ax, x: float) -> None:
    """Writes the name of each line beside its last mark at the right edge, those of near ends apart."""
    lines = sorted((line for line in ax.lines if line.get_gid()), key=lambda line: line.get_ydata()[-1])
    gap, height = 0.07 * np.ptp(ax.get_ylim()), -np.inf
    for line in lines:
        end, colour = line.get_xydata()[-1], line.get_color()
        height = max(end[1], height + gap)
        leader = {"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6}
        ax.annotate(line.get_gid(), end, (x, height), va="center", color=colour, arrowprops=leader)


def _notes(ax, curve: pd.DataFrame, base: pd.Series) -> None:
    """Writes what the marks mean and, where pre-training text grows, where it is as long as the LM's own."""
    dashed = "in brackets: their perplexity" if base.nunique() > 1 else f"perplexity {base.iloc[0]:.0f}"
    marks = f"mark = mean over {span(curve['n_seeds'])} seeds, bar = 95 % interval; dashed: random vectors, {dashed}"
    ax.set_title("\n".join(textwrap.wrap(marks, 80)), loc="left", color="0.25")
    ax.axhline(0, color="0.4", linestyle="--", linewidth=1, zorder=0)
    if curve["along"].iloc[0] == "pretrain_tokens":
        own = curve["lm_tokens"].iloc[0]
        ax.axvline(own, color="0.7", linewidth=1, zorder=0)
        note = {"xytext": (4, 4), "textcoords": "offset points", "color": "0.25"}
        ax.annotate("as long as\nthe LM's own text", (own, ax.get_ylim()[0]), **note)


def short(n: int) -> str:
    """Returns a number of tokens in few letters: 44 k, 1.4 M."""
    return f"{n / 1e6:.2g} M" if n >= 999_500 else f"{n / 1e3:.0f} k" if n >= 1_000 else str(n)


def describe_size_curve(curve: pd.DataFrame, trend: pd.DataFrame) -> str:
    """Returns the figure of `plot_size_curve` in words, with what `analysis.curves.size_trend` says of its end."""
    sizes, base = sorted(set(curve["tokens"])), curve["baseline_perplexity"].round()
    base = " to ".join(f"{value:.0f}" for value in dict.fromkeys((base.max(), base.min())))
    text = (
        f"Lines of the effect of pre-trained vectors on test perplexity by the amount of "
        f"{TEXTS[curve['along'].iloc[0]]}, {short(sizes[0])} to {short(sizes[-1])} tokens; zero is random vectors "
        f"with as much text of the language model (perplexity {base})."
    )
    sources = [_of_source(rows) for _, rows in curve.groupby("source", sort=False)]
    return " ".join([text, *sources, *(_of_trend(row) for _, row in trend.iterrows())])


def _of_source(rows: pd.DataFrame) -> str:
    best, last = int(rows["effect_percent"].argmin()), len(rows) - 1
    shown = [
        f"{'largest gain ' * (place == best)}{_number(rows.iloc[place])} at {short(rows['tokens'].iloc[place])}"
        for place in sorted({0, best, last})
    ]
    unsure = rows[~((rows["high_percent"] < 0) | (rows["low_percent"] > 0))]
    unsure = ", ".join(map(short, unsure["tokens"])) or "no size"
    return f"{rows['source'].iloc[0]}: {', '.join(shown)}; not told apart from zero, by an interval, at {unsure}."


def _of_trend(row: pd.Series) -> str:
    reach = f"{row['source']} from {short(row['smallest'])} to {short(row['largest'])}"
    change = f"{_number(row, 'slope_')} a doubling"
    if not (row["slope_low_percent"] > 0 or row["slope_high_percent"] < 0):
        return f"{reach}: {change}, so no change with size is established."
    if row["slope_percent"] < 0:
        return f"{reach}: {change}; the gain still grows."
    ends, beyond = (row[name] for name in ("ends", "ends_from", "ends_by")), f"over {short(row['farthest'])}"
    end, first, last = (beyond if pd.isna(n) else short(n) for n in ends)
    return (
        f"{reach}: {change}; a line through these sizes, followed beyond what was measured, reaches zero at {end} "
        f"({first} to {last})."
    )


def _number(row: pd.Series, prefix: str = "") -> str:
    names = (prefix or "effect_", f"{prefix}low_", f"{prefix}high_")
    return change_text(*(row[f"{name}percent"] for name in names), unit=" %")
