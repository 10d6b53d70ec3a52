"""Where the gain sits: the effect of arms slice by slice, as intervals for a few arms, as colour for all."""

import textwrap

import numpy as np
import pandas as pd

from rtl_core.figures.style import DASHED, NOTE, STYLES, colour_table, new_axes
from rtl_core.storage import StudyError
from rtl_core.tables import change_text

BEYOND = 0.35  # of the range of the effects, by which an interval may stretch the axis
STRONG = 30  # per cent, from which the colour is full
LETTERS = 16  # of a slice's name in a line


def plot_slices(effects: pd.DataFrame, *, ax=None):
    """Returns the Axes of effects by slice with 95 % intervals, one mark an arm, a block of rows a slicing.

    `effects`: of `significance.slice_effects`. Raises: StudyError for more than six arms.
    """
    arms = list(dict.fromkeys(effects["arm"]))
    if not 0 < len(arms) <= len(STYLES):
        raise StudyError(f"{len(arms)} arms do not fit into one figure of slices; choose 1 to {len(STYLES)}.")
    places = _places(effects)
    ax = new_axes((0.36 + 0.14 * len(arms)) * max(places.values()) + 2) if ax is None else ax
    for arm, offset, (colour, mark) in zip(arms, np.linspace(-0.45, 0.45, len(arms) + 2)[1:-1], STYLES):
        rows = effects[effects["arm"] == arm]
        y = [places[key] + offset for key in zip(rows["slicing"], rows["slice"])]
        ax.hlines(y, rows["low_percent"], rows["high_percent"], color=colour, lw=1.6, alpha=0.6)
        ax.plot(rows["effect_percent"], y, mark, color=colour, mec="white", ms=5.5, label=arm, clip_on=False)
    _name_rows(ax, effects, places)
    ax.axvline(0, **DASHED)
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2, frameon=False)
    ax.set_xlabel(
        "change of perplexity against the baseline, % (below zero: better)\n"
        f"bar: 95 % interval{', cut at the edge' * _cut(ax, effects)}; right: share of all tokens"
    )
    return ax


def _cut(ax, effects: pd.DataFrame) -> bool:
    """Sets the axis by the effects, so that no wide interval squeezes all others; returns whether it cuts one."""
    effect, low, high = (effects[f"{name}_percent"] for name in ("effect", "low", "high"))
    least, most = min(effect.min(), 0), max(effect.max(), 0)
    margin = BEYOND * (most - least) or 1.0
    ends = least - margin, most + margin
    ax.set_xlim(max(ends[0], min(least, low.min())), min(ends[1], max(most, high.max())))
    return bool(low.min() < ends[0] or high.max() > ends[1])


def _places(effects: pd.DataFrame) -> dict[tuple, float]:
    """Returns the height of each row, with a gap before each slicing for its name."""
    places, place = {}, 0.0
    for slicing, part in effects.groupby("slicing", sort=False):
        place += 1
        for name in dict.fromkeys(part["slice"]):
            places[slicing, name] = place
            place += 1
    return places


def _name_rows(ax, effects: pd.DataFrame, places: dict) -> None:
    ax.set_yticks(list(places.values()), [name for _, name in places])
    ax.set_ylim(max(places.values()) + 0.6, 0)
    ax.tick_params(axis="y", length=0)
    for slicing, part in effects.groupby("slicing", sort=False):
        top = min(place for (of, _), place in places.items() if of == slicing)
        side = ax.get_yaxis_transform()
        ax.text(0.01, top - 0.85, slicing, transform=side, weight="bold", va="center")
        ax.axhline(top - 0.5, color="0.85", lw=0.8, zorder=0)
        for name, share in part.groupby("slice", sort=False)["share"].first().items():
            right = {"transform": side, "va": "center", "color": NOTE}
            ax.text(1.01, places[slicing, name], f"{100 * share:.1f} %", **right)


def describe_slices(effects: pd.DataFrame) -> str:
    """Returns the figure of `plot_slices` in words: for each arm where its effect is largest and where it is open."""
    arms = list(dict.fromkeys(effects["arm"]))
    text = (
        f"Effect on perplexity, in per cent of the baseline's, of {len(arms)} arms in "
        f"{effects.groupby(['slicing', 'slice']).ngroups} slices of the test text "
        f"({', '.join(dict.fromkeys(effects['slicing']))}), each with its 95 % interval."
    )
    for arm in arms:
        rows = effects[effects["arm"] == arm]
        sure = rows[(rows["high_percent"] < 0) | (rows["low_percent"] > 0)]
        best, worst = (rows.loc[rows["effect_percent"].agg(pick)] for pick in ("idxmin", "idxmax"))
        text += (
            f" {arm}: from {_effect(best)} to {_effect(worst)}; the interval leaves out zero in {len(sure)} of "
            f"{len(rows)} slices, {(sure['effect_percent'] < 0).sum()} of them better."
        )
    return text


def _effect(row) -> str:
    change = change_text(*(row[f"{name}_percent"] for name in ("effect", "low", "high")), unit=" %")
    return f"{change} in {row['slicing']} {row['slice']}"


def plot_slice_table(effects: pd.DataFrame, *, ax=None):
    """Returns the Axes of effects as colour and number: an arm a row, a slice a column, a block a slicing."""
    table, p_holm = _wide(effects, "effect_percent"), _wide(effects, "p_holm")
    sure = (_wide(effects, "high_percent") < 0) | (_wide(effects, "low_percent") > 0)
    ax = new_axes(0.75 * len(table) + 3) if ax is None else ax
    bold, italic = {"weight": "bold"}, {"style": "italic"}
    colour_table(
        ax, table, lambda value: f"{round(value)}".replace("-", "−"),
        lambda i, j: (bold if p_holm.iloc[i, j] < 0.05 else {}) | ({} if sure.iloc[i, j] else italic),
        cmap="PuOr", vmin=-STRONG, vmax=STRONG,
    )  # fmt: skip
    blocks, names = (table.columns.get_level_values(level) for level in (0, 1))
    ax.set_xticks(range(len(names)), [textwrap.fill(name, LETTERS) for name in names])
    for slicing in dict.fromkeys(blocks):
        at = np.flatnonzero(blocks == slicing)
        if at[0]:
            ax.axvline(at[0] - 0.5, color="white", lw=5)
        ax.text(at.mean(), -0.7, slicing, ha="center", va="bottom", weight="bold")
    ax.set_xlabel(
        f"number and colour (full from {STRONG} on): change of perplexity, %\n"
        "italics: the 95 % interval contains zero; bold: told apart from it after\n"
        "Holm's correction for all arms and slices of a block"
    )
    return ax


def _wide(effects: pd.DataFrame, column: str) -> pd.DataFrame:
    columns = list(dict.fromkeys(zip(effects["slicing"], effects["slice"])))
    wide = effects.pivot(index="arm", columns=["slicing", "slice"], values=column)
    return wide.loc[list(dict.fromkeys(effects["arm"])), columns]


def describe_slice_table(effects: pd.DataFrame) -> str:
    """Returns the figure of `plot_slice_table` in words: the strongest effects, and how many are established."""
    table, sure = _wide(effects, "effect_percent"), effects[effects["p_holm"] < 0.05]
    ends = (effects.loc[effects["effect_percent"].agg(pick)] for pick in ("idxmin", "idxmax"))
    low, high = (f"{_effect(row)} ({row['arm']})" for row in ends)
    out = (effects["high_percent"] < 0) | (effects["low_percent"] > 0)
    return (
        f"Table of effects on perplexity in colour, {len(table)} arms by {table.shape[1]} slices of the test text; "
        f"from {low} to {high}. Of {len(effects)} effects {out.sum()} have a 95 % interval without zero; after "
        f"Holm's correction for the arms and slices of a slicing {len(sure)} are told apart from zero, "
        f"{(sure['effect_percent'] < 0).sum()} of them better."
    )
