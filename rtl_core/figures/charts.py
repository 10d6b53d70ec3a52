"""Plain charts: word counts by rank, a training history, bars, a table of shares."""

import numpy as np
import pandas as pd

from rtl_core.figures.style import new_axes


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
        f"{counts[-1]:,}, near a falling straight line. The {half:,} most frequent words make half of all tokens; "
        f"{(counts < 10).mean():.0%} of the words occur fewer than ten times."
    )


def plot_history(rows: list[dict], *, ax=None):
    """Returns the Axes of training and validation loss by epoch, as `fit` returned its rows."""
    frame = pd.DataFrame(rows)
    ax = new_axes(6) if ax is None else ax
    above = frame["train_loss"].iloc[-1] > frame["valid_loss"].iloc[-1]  # so that the labels stay apart
    for name, marker, label in (("train_loss", "o--", "training"), ("valid_loss", "s-", "validation")):
        ax.plot(frame["epoch"], frame[name], marker, label=label)
        offset = (6, 2 if above == (name == "train_loss") else -10)
        ax.annotate(label, frame[["epoch", name]].iloc[-1], offset, textcoords="offset points")
    ax.set(xlabel="epoch", ylabel="loss (nats a prediction)", xticks=frame["epoch"])
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
    bars = ax.barh([str(name) for name in values.index], values, color="#56B4E9")
    ax.bar_label(bars, fmt="%.3g", padding=3)
    if line is not None:
        ax.axvline(line, color="0.3", linestyle="--", linewidth=1)
        ax.text(line, 1.01, f"baseline {line:.3g}", transform=ax.get_xaxis_transform(), color="0.25")
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
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), share in np.ndenumerate(shares.to_numpy()):
        if share >= 0.1:
            colour = "white" if share > 0.7 else "black"
            ax.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour)
    ax.set_yticks(range(len(shares)), shares.index)
    ax.set_xticks(range(shares.shape[1]), shares.columns, rotation=90)
    ax.tick_params(length=0)
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
