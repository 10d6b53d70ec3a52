"""Figures of tables of word vectors: a measure of every arm, who is like whom, and what foretells the gain."""

import numpy as np
import pandas as pd

from rtl_core.figures.style import BESIDE, DASHED, STYLES, colour_table, name_rows, new_axes, span
from rtl_core.storage import unknown

TITLES = {
    "purity": "neighbours of the same domain (share of 10)",
    "silhouette": "silhouette of the domains",
    "mean_cosine": "mean cosine of two words",
    "participation_ratio": "dimensions used (participation ratio)",
    "effective_rank": "dimensions used (effective rank)",
    "cka": "likeness to the fine-tuned table (CKA)",
    "procrustes": "distance to the fine-tuned table (Procrustes)",
    "simlex-999": "SimLex-999 (ρ)",
    "wordsim-353": "WordSim-353 (ρ)",
    "men": "MEN (ρ)",
    "rare-words": "Rare Words (ρ)",
    "google-analogies": "Google analogies (share solved)",
}
# of each table: colour, mark, name
TABLES = {
    "pretrained": (*STYLES[0], "pre-trained"),
    "finetuned": (*STYLES[1], "fine-tuned"),
    "permuted": (BESIDE[0], "x", "words permuted"),
}
OVER = {"all": (*STYLES[0], "all arms"), "sources": (*STYLES[1], "pre-trained sources alone")}


def plot_measure(summary: pd.DataFrame, measure: str, *, ax=None):
    """Returns the Axes of one measure of every arm's tables (`analysis.intrinsic.summary`), mean and 95 % interval.

    Raises: StudyError for a measure that is not in the summary.
    """
    rows = _of_measure(summary, measure).set_index("arm")
    chance = summary.loc[summary["measure"] == f"{measure}_chance", "mean"].mean()
    tables = ((look, rows[rows["table"] == table]) for table, look in TABLES.items())
    series = [(*look, own["mean"], own) for look, own in tables if len(own)]
    ax = _dots(ax, list(rows.index.unique()), series, 0 if np.isnan(chance) else chance)
    dashed = "" if np.isnan(chance) else f"; dashed: chance, {chance:.2f}"
    ax.set_xlabel(f"{TITLES.get(measure, measure)}{_pairs(rows)}{dashed}\n{_means(rows)}")
    return ax


def describe_measure(summary: pd.DataFrame, measure: str) -> str:
    """Returns the figure of `plot_measure` in words. Raises: StudyError as it does."""
    rows = _of_measure(summary, measure)
    title, parts = TITLES.get(measure, measure) + _pairs(rows), []
    for table, (_, _, name) in TABLES.items():
        if len(own := rows[rows["table"] == table].sort_values("mean")):
            ends = (f"{row['mean']:.3g} ({row['arm']})" for _, row in own.iloc[[0, -1]].iterrows())
            parts.append(f"{name} from {' to '.join(ends)}")
    text = (
        f"Dot plot of {title}, in {rows['arm'].nunique()} arms; {_means(rows)}. Tables: {'; '.join(parts)}."
    )
    control, own = (rows[rows["table"] == table].set_index("arm") for table in ("permuted", "pretrained"))
    if len(control) and rows["low"].notna().any():
        apart = (own["low"] > control["high"]) | (own["high"] < control["low"])
        text += f" In {apart.sum()} arms the interval of the table does not meet that of its words permuted."
    if "ρ" in title and "used" in rows:
        limit = 1.96 / np.sqrt(max(rows["used"].min() - 1, 1))
        text += f" With so few pairs a ρ within ±{limit:.2f} is no more than chance among pairs."
    return text.replace(" -", " −")


def plot_between(pairs: pd.DataFrame, *, ax=None):
    """Returns the Axes of a heat table of linear CKA between sources (`analysis.geometry.between`), times 100.

    Sources stand so that those that are alike are neighbours.
    """
    square = _square(pairs)
    n = len(square)
    ax = new_axes(0.75 * n + 3) if ax is None else ax
    shown = square.where(np.tri(n, k=-1, dtype=bool)).iloc[1:, :-1]  # each pair once
    text = lambda value: "" if np.isnan(value) else str(round(100 * abs(value)))  # noqa: E731
    colour_table(ax, shown, text, cmap="Blues", vmin=0, vmax=1)
    note = f"linear CKA × 100, of the words\ncommon to both tables.\n{_control(pairs)}."
    ax.text(0.99, 0.99, note.replace(" permuted", "\npermuted"), transform=ax.transAxes, ha="right", va="top")
    return ax


def describe_between(pairs: pd.DataFrame) -> str:
    """Returns the figure of `plot_between` in words."""
    order = pairs.sort_values("cka", ascending=False)
    most = [f"{row['first']} and {row['second']} {row['cka']:.2f}" for _, row in order.head(3).iterrows()]
    near = (pairs["cka"] < 0.02).sum()
    return (
        f"Heat table of linear CKA (debiased; 1: alike but for turning and size, 0: unrelated) between the tables of "
        f"{len(_square(pairs))} sources, over the words common to both. Most alike: {'; '.join(most)}. Of "
        f"{len(pairs)} pairs {near} are below 0.02. {_control(pairs)}."
    )


def plot_correlations(frame: pd.DataFrame, *, ax=None):
    """Returns the Axes of the rank correlation of every measure with the gain (`analysis.intrinsic.correlations`)."""
    rows = frame.assign(title=frame["measure"].map(TITLES)).set_index("title")
    series = []
    for over, (*look, name) in OVER.items():
        if len(own := rows[rows["over"] == over]):
            series.append((*look, f"{name} ({span(own['n_arms'])})", own["rho"], own))
    names = [title for title in TITLES.values() if title in rows.index]
    ax = _dots(ax, names, series, 0)
    ax.set(xlim=(-1.02, 1.02), xticks=[-1, -0.5, 0, 0.5, 1])
    ax.set_xlabel("rank correlation ρ with the gain in perplexity\nline: 95 % interval, over arms and seeds")
    return ax


def describe_correlations(frame: pd.DataFrame) -> str:
    """Returns the figure of `plot_correlations` in words: what foretells the gain, and what decides nothing."""
    text = (
        f"Dot plot of Spearman's rank correlation of {frame['measure'].nunique()} measures of the pre-trained table "
        "with the gain in perplexity over random vectors; intervals (95 %) by a bootstrap over arms and seeds."
    )
    for over, (_, _, name) in OVER.items():
        own = frame[frame["over"] == over].sort_values("rho", ascending=False)
        clear = own[(own["low"] > 0) | (own["high"] < 0)]
        clear = clear[["measure", "rho", "low", "high"]].itertuples(index=False)
        shown = "; ".join(
            f"{measure} {rho:+.2f} ({low:+.2f} to {high:+.2f})" for measure, rho, low, high in clear
        )
        text += f" Over {name} ({span(own['n_arms'])}), intervals without zero: {shown or 'none'}"
        text += f"; of {len(own)} measures the others decide nothing."
    text += " With so few arms, and so many measures, one interval may miss zero by chance."
    return text.replace(" -", " −").replace("(-", "(−")


def _of_measure(summary: pd.DataFrame, measure: str) -> pd.DataFrame:
    if measure not in set(summary["measure"]):
        raise unknown("measure", measure, tuple(summary["measure"].unique()))
    return summary[(summary["measure"] == measure) & summary["table"].isin(TABLES)]


def _dots(ax, names: list[str], series: list[tuple], zero: float):
    """Returns Axes with a row for each name and in it a mark and an interval for each series; dashed: `zero`.

    A series is colour, mark, label, values and the frame of their low and high, both by name.
    """
    ax = new_axes(0.9 * len(names)) if ax is None else ax
    for step, (colour, mark, label, values, ends) in enumerate(series):
        places = np.arange(len(names)) + 0.66 / len(series) * (step - (len(series) - 1) / 2)
        values, ends = values.reindex(names), ends.reindex(names)
        ax.hlines(places, ends["low"], ends["high"], color=colour, lw=1.5, alpha=0.6)
        ax.plot(values, places, mark, color=colour, ms=5, label=label)
    ax.axvline(zero, **DASHED)
    name_rows(ax, names)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), frameon=False)
    return ax


def _means(rows: pd.DataFrame) -> str:
    seeds = f"mean of {span(rows['n_seeds'])} seeds"
    return seeds if rows["low"].isna().all() else f"mark: {seeds}; line: 95 % interval over seeds"


def _pairs(rows: pd.DataFrame) -> str:
    if "used" not in rows or rows["used"].isna().all():
        return ""
    return f", {span(rows['used'])} pairs of {rows['total'].max():,}"


def _square(pairs: pd.DataFrame) -> pd.DataFrame:
    """Returns CKA as a symmetric table, sources in the order of a tree that joins the most alike first."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    names = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))
    table = pd.DataFrame(np.eye(len(names)), names, names)
    for first, second, value in pairs[["first", "second", "cka"]].itertuples(index=False):
        table.loc[first, second] = table.loc[second, first] = value
    distances = squareform((1 - table).clip(lower=0), checks=False)
    order = leaves_list(linkage(distances, "average", optimal_ordering=True))
    return table.iloc[order, order]


def _control(pairs: pd.DataFrame) -> str:
    return f"With the words of one table permuted CKA is at most {pairs['cka_permuted'].abs().max():.1g}"
