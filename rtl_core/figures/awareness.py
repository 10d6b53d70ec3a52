"""Figures of what a model makes of its context: what it loses without, and what a probe reads off its state."""

import pandas as pd

from rtl_core.figures.style import BESIDE, CURVES, DASHED, draw_curves, log_axis, name_ends, new_axes, span
from rtl_core.storage import StudyError

LEAST = 3e-4  # nats a token, below which a loss is not drawn on a logarithmic scale
LEFT = {
    "truncated": "how many of the last tokens of its context a model has",
    "shuffled": "how many of the last tokens stay in place, those before them shuffled",
    "transplanted": "how many of the last tokens stay, behind those of another document",
}
AGAINST = {"value": "with its full context", "difference": "what the baseline loses"}


def plot_awareness(table: pd.DataFrame, *, column: str = "value", ax=None):
    """Returns the Axes of what a few arms lose with a changed context, by what is left of it, with 95 % intervals.

    `table`: of `analysis.awareness.summary`, one kind and at most six arms beside the baseline. `column` "value":
    beyond the loss with the full context, on a logarithmic scale; "difference": beyond what the baseline loses.
    Raises: StudyError for several kinds, or too many arms.
    """
    kind = _kind(table)
    ax = new_axes(9) if ax is None else ax
    unseen = f"; under {LEAST:g} not shown" if column == "value" else ""
    if column == "value":
        ax.set(yscale="log", ylim=(LEAST, 1.6 * table[["value", "value_high"]].max(axis=None)))
        ax.yaxis.set_major_formatter("{x:g}")
    else:
        table = table[table["role"] != "baseline"]
        ax.axhline(0, **DASHED)
    draw_curves(ax, _curves(table, column))
    log_axis(ax, {n: f"{n:,}" for n in table["n"]})
    ax.set_ylabel(f"nats a token more than\n{AGAINST[column]}")
    ax.set_xlabel(f"{LEFT[kind]}\n{_small_print(table)}{unseen}")
    name_ends(ax)
    return ax


def describe_awareness(table: pd.DataFrame, *, column: str = "value") -> str:
    """Returns the figure of `plot_awareness` in words, computed from its numbers. Raises: StudyError as it does."""
    kind = _kind(table)
    lines = [
        f"{arm}: {', '.join(f'{round(value, 3) + 0.0:.3f} at {n}' for n, value in zip(rows['n'], rows[column]))}"
        for arm, rows in table.dropna(subset=column).groupby("arm", sort=False)
    ]
    return (
        f"Curves of the loss of the same {table['count'].max():,} tokens in {table['documents'].max()} documents, by "
        f"{LEFT[kind]}; in nats a token more than {AGAINST[column]}. {'; '.join(lines)}. "
        f"{_verdict(table, 'More is lost than the baseline loses')}"
    )


def plot_probes(table: pd.DataFrame, *, ax=None):
    """Returns the Axes of how often a probe of each arm's state names a document's domain, by the tokens read.

    Beside the arms: the bag of the words themselves, and the control task. `table`: of `analysis.probes.summary`, at
    most six arms beside the baseline. Raises: StudyError for more.
    """
    ax = new_axes(10) if ax is None else ax
    states, base = table[table["probe"] == "state"], table[table["role"] == "baseline"]
    beside = {"words": ("the words themselves", ("0.2", ":")), "control": ("control task", ("0.2", "-."))}
    curves = {
        probe: (*look, base.loc[base["probe"] == probe, ["n", "value"]]) for probe, look in beside.items()
    }
    draw_curves(ax, _curves(states, "value") | curves)
    log_axis(ax, {n: f"{n:,}" for n in states["n"]})
    ax.axhline(table["chance"].iloc[0], color="0.7", linewidth=1, zorder=0)
    ax.set_ylabel("documents whose domain\na linear probe names")
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    ax.set_xlabel(
        f"tokens of the document that were read; grey: the commonest domain\n{_small_print(states)}"
    )
    name_ends(ax)
    return ax


def describe_probes(table: pd.DataFrame) -> str:
    """Returns the figure of `plot_probes` in words, computed from its numbers."""
    last, states = table[table["n"] == table["n"].max()], table[table["probe"] == "state"]
    arms = last[last["probe"] == "state"].set_index("arm")["value"]
    base = last[last["role"] == "baseline"].set_index("probe")["value"]
    return (
        f"Curves of how often a linear probe of a model's state names a document's domain, by the tokens read, of "
        f"{table['documents'].max()} documents. After {last['n'].max()}: "
        f"{'; '.join(f'{arm} {value:.0%}' for arm, value in arms.items())}. Beside them the words themselves "
        f"{base['words']:.0%}, the control task {base['control']:.0%}, the commonest domain "
        f"{table['chance'].iloc[0]:.0%}. {_verdict(states, 'More often right than in the baseline')}"
    )


def _kind(table: pd.DataFrame) -> str:
    if table["kind"].nunique() != 1:
        raise StudyError(
            f"a figure shows one kind, but the table holds {sorted(set(table['kind']))}; choose one."
        )
    return table["kind"].iloc[0]


def _curves(table: pd.DataFrame, column: str) -> dict[str, tuple]:
    """Returns each arm's curve, as `draw_curves` takes them."""
    arms, looks = list(table.groupby("arm", sort=False)), iter(CURVES)
    if len(arms) > len(CURVES) + 1:
        raise StudyError(
            f"{len(arms)} arms do not fit into one figure of curves; choose at most {len(CURVES) + 1}."
        )
    curves = {}
    for arm, rows in arms:
        look = BESIDE if rows["role"].iloc[0] == "baseline" else next(looks)
        name, frame = arm.removesuffix(", fine-tuned"), rows[["n", column, f"{column}_low", f"{column}_high"]]
        curves[arm] = name, look, frame
    return curves


def _small_print(table: pd.DataFrame) -> str:
    seeds, documents = span(table["n_seeds"]), table["documents"].max()
    return f"marks: mean of seeds ({seeds}), bars: 95 % interval; {documents} documents"


def _verdict(table: pd.DataFrame, claim: str) -> str:
    apart = table[(table["role"] == "arm") & (table["difference_low"] > 0)]
    found = (f"{arm} at {', '.join(map(str, rows['n']))}" for arm, rows in apart.groupby("arm", sort=False))
    return (
        f"{claim}, by the 95 % interval of the difference: {'; '.join(found) or 'nowhere'}; by Holm's correction "
        f"for all measured arms and numbers of tokens: {(apart['p_holm'] < 0.05).sum()} of these {len(apart)}."
    )
