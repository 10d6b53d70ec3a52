"""The figure of sampled texts: in how many a document's domain is recognised, arm by arm, stretch by stretch."""

import numpy as np
import pandas as pd

from rtl_core.figures.style import COLOURS, DASHED, NOTE, name_rows, panels
from rtl_core.storage import StudyError

SURE, OPEN, CHANCE = COLOURS[0], "0.45", COLOURS[1]


def plot_generation(table: pd.DataFrame):
    """Returns the Axes of the share of texts whose domain is recognised, a row an arm, in an array: a panel a band.

    `table`: of `analysis.generation.summary`, one opening. Filled where the 95 % interval of the difference from the
    baseline, the bar, does not hold zero.
    Raises: StudyError for several openings.
    """
    bands, arms = _bands(table), list(dict.fromkeys(table["arm"]))
    axes = panels(9.0, 1.5 + 0.26 * len(arms), 1, len(bands), sharex=True, sharey=True)[0]
    for ax, ((start, end), rows) in zip(axes, bands):
        base, chance = (100 * value for value in _levels(rows))
        ax.axvline(base, **DASHED)
        ax.axvline(chance, color=CHANCE, linestyle=":", linewidth=1.2, zorder=0)
        for place, (_, row) in enumerate(rows.iterrows()):
            sure = row["low"] > 0 or row["high"] < 0
            colour = SURE if sure else OPEN
            ends = base + 100 * row[["low", "high"]].to_numpy(float)
            if row["role"] != "baseline":
                ax.plot(ends, [place, place], color=colour, lw=1.2)
            ax.plot(100 * row["sampled"], place, "o", ms=5, color=colour, mfc=colour if sure else "w")
        ax.set_title(f"tokens {start} to {end}\nreal text {rows['real'].mean():.0%}", loc="left", color=NOTE)
        name_rows(ax, arms)
    axes[0].figure.supxlabel(
        f"texts whose domain is recognised (%), after an opening of {table['opening'].iloc[0]} tokens\n"
        f"dashed: baseline; dotted: by chance; bar: 95 % interval of the difference from the baseline, "
        f"{table['n_seeds'].max()} seeds and documents",
        fontsize=axes[0].title.get_fontsize(),
    )
    return axes


def describe_generation(table: pd.DataFrame) -> str:
    """Returns the figure of `plot_generation` in words. Raises: StudyError for several openings."""
    parts = []
    for (start, end), rows in _bands(table):
        base, chance = _levels(rows)
        above, below = rows[rows["low"] > 0], rows[rows["high"] < 0]
        better = "; ".join(f"{row['arm']} {row['sampled']:.0%}" for _, row in above.iterrows()) or "none"
        parts.append(
            f"Tokens {start} to {end}: real text {rows['real'].mean():.0%}, baseline {base:.0%}, chance "
            f"{chance:.0%}; above the baseline by the 95 % interval of the difference: {better}"
            + (f"; below it: {', '.join(below['arm'])}." if len(below) else ".")
        )
    return (
        f"Dot plot, a row an arm and a panel a stretch of text: the share of texts, sampled after the first "
        f"{table['opening'].iloc[0]} tokens of a test document, in which a classifier that has never seen the model "
        f"recognises the document's domain. {' '.join(parts)} The intervals are not corrected for the number of arms."
    )


def _bands(table: pd.DataFrame) -> list[tuple[tuple[int, int], pd.DataFrame]]:
    if table["opening"].nunique() != 1:
        found = sorted(set(table["opening"]))
        raise StudyError(f"the figure shows one opening, but the table holds {found}; choose one.")
    return list(table.groupby(["start", "end"]))


def _levels(rows: pd.DataFrame) -> tuple[float, float]:
    """Returns what is recognised in the baseline's texts, and in texts after other openings."""
    return rows.loc[rows["role"] == "baseline", "sampled"].iloc[0], np.mean(rows["other"])
