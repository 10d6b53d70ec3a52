"""The figure of data-size curves: how much pre-trained vectors gain, by the amount of text."""

from itertools import cycle

import pandas as pd

from rtl_core.figures.style import CURVES, DASHED, NOTE, draw_curves, log_axis, name_ends, new_axes, span
from rtl_core.tables import change_text

# What grows, as the axis and the description say it
TEXTS = {"lm_tokens": "training text of the language model", "pretrain_tokens": "pre-training text"}
EFFECT = ("effect_percent", "low_percent", "high_percent")


def plot_size_curve(curve: pd.DataFrame, *, ax=None):
    """Returns the Axes of the effect of each source by the amount of text (`analysis.curves.size_curve`).

    A mark is the mean over seeds, a bar its 95 % interval. The perplexity of random vectors, where the effect is
    zero, stands in brackets under each size, or once where it is the same.
    """
    ax = new_axes(8) if ax is None else ax
    base = curve.groupby("tokens")["baseline_perplexity"].first().round()
    sources = zip(curve.groupby("source", sort=False), cycle(CURVES))
    draw_curves(ax, {source: (source, look, rows[["tokens", *EFFECT]]) for (source, rows), look in sources})
    several = base.nunique() > 1
    log_axis(ax, {n: short(n) + f"\n({value:.0f})" * several for n, value in base.items()})
    ax.axhline(0, **DASHED)
    if curve["along"].iloc[0] == "pretrain_tokens":
        own = curve["lm_tokens"].iloc[0]
        ax.axvline(own, color="0.7", linewidth=1, zorder=0)
        place = {"xytext": (4, 4), "textcoords": "offset points", "xycoords": ax.get_xaxis_transform()}
        ax.annotate("as long as\nthe LM's own text", (own, 0), color=NOTE, **place)
    dashed = "in brackets: their perplexity" if several else f"perplexity {base.iloc[0]:.0f}"
    marks = f"mark: mean over {span(curve['n_seeds'])} seeds, bar: 95 % interval"
    ax.set_xlabel(f"tokens of {TEXTS[curve['along'].iloc[0]]}\n{marks}\ndashed: random vectors, {dashed}")
    ax.set_ylabel("effect on perplexity (%)")
    name_ends(ax)
    return ax


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
