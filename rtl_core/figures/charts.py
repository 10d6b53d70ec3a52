"""Plain charts: word counts by rank, a training history, bars, a table of shares."""

import numpy as np
import pandas as pd

from rtl_core.figures.style import COLOURS, DASHED, NOTE, colour_table, draw_curves, name_ends, new_axes


def plot_ranks(counts, *, ax=None):
    """Returns the Axes of word counts by rank, both logarithmic (Zipf's plot). Shapes: counts (V,), any order."""
    ax = new_axes(8) if ax is None else ax
    counts = np.sort(np.asarray(counts))[::-1]
    ax.loglog(np.arange(1, len(counts) + 1), counts, ".", markersize=3, rasterized=True)
    ax.set(xlabel="rank of the word", ylabel="occurrences")
    return ax


def describe_ranks(counts) -> str:
    """Returns the figure of `plot_ranks` in words."""
    counts = np.sort(np.asarray(counts))[::-1]
    half = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) + 1
    return (
        f"Word counts by rank, both axes logarithmic: {len(counts):,} words, from {counts[0]:,} occurrences down to "
        f"{counts[-1]:,}. The {half:,} most frequent words make half of all tokens; "
        f"{(counts < 10).mean():.0%} of the words occur fewer than ten times."
    )


def plot_history(rows: list[dict], *, ax=None):
    """Returns the Axes of training and validation loss by epoch, as `fit` returned its rows."""
    frame = pd.DataFrame(rows)
    ax = new_axes(6) if ax is None else ax
    frames = (frame[["epoch", name]] for name in ("train_loss", "valid_loss"))
    curves = zip(("training", "validation"), ((COLOURS[0], "o--"), (COLOURS[1], "s-")), frames)
    draw_curves(ax, {name: (name, look, of) for name, look, of in curves})
    ax.set(xlabel="epoch", ylabel="loss (nats a prediction)", xticks=frame["epoch"])
    name_ends(ax)
    return ax


def describe_history(rows: list[dict]) -> str:
    """Returns the figure of `plot_history` in words."""
    first, last, best = rows[0], rows[-1], min(rows, key=lambda row: row["valid_loss"])
    return (
        f"Loss by epoch, in nats a prediction: training goes from {first['train_loss']:.2f} to "
        f"{last['train_loss']:.2f}, validation from {first['valid_loss']:.2f} to {last['valid_loss']:.2f} in "
        f"{len(rows)} epochs; the best on validation is epoch {best['epoch']} with {best['valid_loss']:.2f}."
    )


def plot_bars(values: pd.Series, *, xlabel: str, line: float | None = None, ax=None):
    """Returns the Axes of one horizontal bar for each value, its number beside it; `line` marks a baseline."""
    ax = new_axes(len(values)) if ax is None else ax
    bars = ax.barh([str(name) for name in values.index], values, color=COLOURS[5])
    ax.bar_label(bars, fmt="%.3g", padding=3)
    if line is not None:
        ax.axvline(line, **DASHED | {"zorder": 3})  # before the bars
        ax.text(line, 1.01, f"baseline {line:.3g}", transform=ax.get_xaxis_transform(), color=NOTE)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.margins(x=0.12)
    return ax


def describe_bars(values: pd.Series, *, xlabel: str, line: float | None = None) -> str:
    """Returns the figure of `plot_bars` in words."""
    shown = "; ".join(f"{name} {value:.3g}" for name, value in values.items())
    return f"Bars of {xlabel}: {shown}." + (
        "" if line is None else f" A dashed line marks the baseline, {line:.3g}."
    )


def plot_shares(shares: pd.DataFrame, *, ax=None):
    """Returns the Axes of a table of shares (0 to 1): a row a row, darker for more, large ones in per cent."""
    ax = new_axes(len(shares)) if ax is None else ax
    image = colour_table(
        ax, shares, lambda share: f"{100 * share:.0f}" if share >= 0.1 else "", cmap="Blues", vmin=0, vmax=1
    )
    ax.set(xlabel=shares.columns.name, ylabel=shares.index.name)
    ax.figure.colorbar(image, label="share of the row", format=lambda share, _: f"{100 * share:.0f} %")
    return ax


def describe_shares(shares: pd.DataFrame) -> str:
    """Returns the figure of `plot_shares` in words: the largest share of each row."""
    largest = (f"{name}: {row.idxmax()} {row.max():.0%}" for name, row in shares.iterrows())
    return (
        f"Table of shares in colour, {len(shares)} rows ({shares.index.name}) by {shares.shape[1]} columns "
        f"({shares.columns.name}); each row sums to 100 %. Largest share of each row: {'; '.join(largest)}."
    )
