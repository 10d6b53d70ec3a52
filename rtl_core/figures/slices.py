"""Where the gain sits: the effect of arms slice by slice, as intervals for a few arms, as colour for all."""

import numpy as np
import pandas as pd

from rtl_core.figures.style import COLOURS, new_axes
from rtl_core.storage import StudyError
from rtl_core.tables import change_text

MARKS = (*zip(COLOURS, "os^D"), ("0.35", "v"))
AT_ONCE = len(MARKS)
BEYOND = 0.35  # of the range of the effects, by which an interval may stretch the axis
STRONG = 30  # per cent, from which the colour is full


def plot_slices(effects: pd.DataFrame, *, ax=None):
    """Returns the Axes of effects by slice with 95 % intervals, one mark an arm, a block of rows a slicing.

    `effects`: of `significance.slice_effects`. Raises: StudyError for more than five arms.
    """
    arms = list(dict.fromkeys(effects["arm"]))
    if not 0 < len(arms) <= AT_ONCE:
        raise StudyError(f"{len(arms)} arms do not fit into one figure of slices; choose 1 to {AT_ONCE}.")
    places = _places(effects)
    ax = new_axes((0.45 + 0.14 * len(arms)) * max(places.values()) + 2) if ax is None else ax
    offsets = np.linspace(-0.3, 0.3, len(arms)) if len(arms) > 1 else [0]
    ends = _axis(ax, effects)
    for arm, offset, (colour, marker) in zip(arms, offsets, MARKS):
        rows = effects[effects["arm"] == arm]
        y = [places[key] + offset for key in zip(rows["slicing"], rows["slice"])]
        ax.hlines(
            y,
            rows["low_percent"].clip(*ends),
            rows["high_percent"].clip(*ends),
            color=colour,
            lw=1.6,
            alpha=0.6,
        )
        ax.plot(
            rows["effect_percent"].clip(*ends),
            y,
            marker,
            color=colour,
            mec="white",
            ms=5.5,
            label=arm,
            clip_on=False,
        )
    _name_rows(ax, effects, places)
    ax.axvline(0, color="0.4", lw=1, ls="--", zorder=0)
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2, frameon=False)
    ax.set_xlabel("change of perplexity against the baseline, % (below zero: better)\nbar = 95 % interval; "
                  "right: share of all tokens", color="0.15")  # fmt: skip
    return ax


def _axis(ax, effects: pd.DataFrame) -> tuple[float, float]:
    """Sets the range of the axis by the effects, so that no wide interval squeezes all others; returns it."""
    seen = [min(effects["effect_percent"].min(), 0), max(effects["effect_percent"].max(), 0)]
    margin = BEYOND * (seen[1] - seen[0]) or 1.0
    ends = (
        max(seen[0] - margin, effects["low_percent"].min()),
        min(seen[1] + margin, effects["high_percent"].max()),
    )
    ends = np.nan_to_num(ends[0], nan=seen[0] - margin), np.nan_to_num(ends[1], nan=seen[1] + margin)
    ax.set_xlim(*ends)
    return ends


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
        ax.text(0, top - 0.85, slicing, transform=side, weight="bold", va="center", ha="left")
        ax.axhline(top - 0.5, color="0.85", lw=0.8, zorder=0)
        for name, share in part.groupby("slice", sort=False)["share"].first().items():
            ax.text(
                1.01, places[slicing, name], f"{100 * share:.1f} %", transform=side, va="center", color="0.25"
            )


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
    ax = new_axes(0.9 * len(table) + 5) if ax is None else ax
    image = ax.imshow(table, cmap="PuOr", vmin=-STRONG, vmax=STRONG, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        dark, known = abs(value) > 0.7 * STRONG, sure.iloc[i, j]
        look = {"color": "white" if dark else "black" if known else "0.35"}
        look |= {"weight": "bold" if p_holm.iloc[i, j] < 0.05 else None, "style": None if known else "italic"}
        ax.text(j, i, f"{round(value)}".replace("-", "−"), ha="center", va="center", **look)
    blocks = table.columns.get_level_values(0)
    for slicing in dict.fromkeys(blocks):
        at = np.flatnonzero(blocks == slicing)
        if at[0]:
            ax.axvline(at[0] - 0.5, color="white", lw=5)
        ax.text(at.mean(), -0.7, slicing, ha="center", va="bottom", weight="bold")
    ax.set_yticks(range(len(table)), table.index)
    ax.set_xticks(range(len(blocks)), table.columns.get_level_values(1), rotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, label="change of perplexity, %", extend="both", shrink=0.4, aspect=25)
    ax.set_xlabel(
        "grey italics: the 95 % interval contains zero; bold: told apart from it after\n"
        "Holm's correction for all arms and slices of a block",
        color="0.25",
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
