"""Figures: tidy data in, Axes out; every figure has a computed description."""

import itertools
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from rtl_core.catalogue import base_of
from rtl_core.results import ARM_FIELDS
from rtl_core.storage import StudyError, atomic, unknown
from rtl_core.tables import GROUP, caption, effect_text, labels

FONT_SIZES = {"page": 9, "slide": 14}  # points at printed size
DPI = 120
SEEDS, MEAN, INTERVAL = "seeds", "mean", "interval"  # the gid of what is drawn for each row
CONTEXT = "document"
LABEL = 36  # letters of an arm's name in a line, so that long names leave room to the dots


@contextmanager
def style(medium: str = "page"):
    """Yields with the house style switched on: okabe_ito colours, sizes for a "page" or a "slide".

    Raises: StudyError for another medium.
    """
    import matplotlib as mpl

    if medium not in FONT_SIZES:
        raise unknown("medium", medium, tuple(FONT_SIZES))
    settings = {
        "font.size": FONT_SIZES[medium],
        "axes.prop_cycle": mpl.cycler(color=mpl.color_sequences["okabe_ito"]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "rtl",
    }
    for name in ("axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"):
        settings[name] = FONT_SIZES[medium]
    with mpl.rc_context(settings):
        yield


def save_figure(ax, path: Path) -> None:
    """Writes the figure of `ax` as .svg, .pdf or .png; the same figure gives the same bytes.

    Raises: StudyError for another ending.
    """
    import matplotlib as mpl

    path = Path(path)
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    kind = path.suffix.removeprefix(".")
    if kind not in dates:
        raise unknown("kind of figure file", kind, tuple(dates))
    with mpl.rc_context({"svg.hashsalt": "rtl"}), atomic(path) as temporary:
        ax.figure.savefig(temporary, format=kind, dpi=DPI, metadata=dates[kind])


def plot_perplexity(table: pd.DataFrame, *, ax=None):
    """Returns the Axes of a dot plot of `compare`: a row for each arm and bound, every seed, mean, interval.

    Raises: StudyError when the table holds more than one group of arms, or no baseline.
    """
    base = _baseline(table)
    names = [textwrap.wrap(name, LABEL, break_on_hyphens=False) for name in labels(table)]
    height = max(1, max(map(len, names)) / 2)  # two lines fit into a row
    ax = _new_axes(len(table) * height) if ax is None else ax
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
    ax.axvline(base, color="0.4", linestyle="--", linewidth=1, zorder=0)
    ax.axhline((table["role"] != "bound").sum() - 0.5, color="0.8", linewidth=0.8, zorder=0)
    ax.set(xlim=(low, high), ylim=(len(table) - 0.4, -0.6))
    ax.set_yticks(range(len(table)), list(map("\n".join, names)))
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel(f"test perplexity, context {CONTEXT} (lower is better)")
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


def plot_ranks(counts, *, ax=None):
    """Returns the Axes of word counts by rank, both logarithmic (Zipf's plot). Shapes: counts (V,), any order."""
    ax = _new_axes(8) if ax is None else ax
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
    ax = _new_axes(6) if ax is None else ax
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
    ax = _new_axes(len(values)) if ax is None else ax
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
    ax = _new_axes(len(shares)) if ax is None else ax
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


def plot_map(frame: pd.DataFrame, *, groups: dict[str, str] | None = None, ax=None):
    """Returns the Axes of a map of words (see maps.py); `groups` gives a word's group, shown by colour and mark."""
    ax = _new_axes(11) if ax is None else ax
    names = [(groups or {}).get(word, "") for word in frame["word"]]
    for name, marker in zip(dict.fromkeys(names), itertools.cycle("osD^vP*X")):
        chosen = frame[[each == name for each in names]]
        ax.plot(chosen["x"], chosen["y"], marker, ms=6, label=name or None)
    for _, row in frame.iterrows():
        ax.annotate(row["word"], (row["x"], row["y"]), (4, 3), textcoords="offset points")
    if groups:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    ax.set(xlabel="first principal component", ylabel="second principal component")
    note = f"{frame.attrs['explained']:.0%} of the variance; neighbour recall {frame.attrs['recall']:.0%}"
    ax.set_title(note, loc="left", color="0.25")
    return ax


def describe_map(frame: pd.DataFrame) -> str:
    """Returns the figure of `plot_map` in words: what it shows, and what may not be read off it."""
    ends = [frame.loc[frame["x"].idxmin(), "word"], frame.loc[frame["x"].idxmax(), "word"]]
    return (
        f"Map of {len(frame)} words on their first two principal components, which hold "
        f"{frame.attrs['explained']:.0%} of the variance; {ends[0]} lies farthest left, {ends[1]} farthest right. Of "
        f"a word's five nearest neighbours in the original space {frame.attrs['recall']:.0%} are nearest on the map "
        "too: distances on it are a hint and no measurement."
    )


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
    colour = "0.35" if bound else "#D55E00" if frozen else "#0072B2"  # of okabe_ito; shapes say the same
    marker = "D" if bound else "s" if frozen else "o"
    control = row["source"] != base_of(
        row["source"]
    )  # hollow; other marks get a white rim, so that they stay apart
    face, rim = ("white", colour) if control else (colour, "white")
    if not pd.isna(row["low_percent"]) and not bound:
        ends = [base * (1 + row[name] / 100) for name in ("low_percent", "high_percent")]
        ax.plot(ends, [place] * 2, color=colour, alpha=0.25, lw=7, solid_capstyle="butt", gid=INTERVAL)
    ax.plot([row["perplexity"]], [place], "|", color=colour, markersize=15, markeredgewidth=2, gid=MEAN)
    spread = np.linspace(-0.13, 0.13, len(row["seeds"])) if len(row["seeds"]) > 1 else 0  # none hides another
    ax.plot(row["seeds"], place + spread, marker, mfc=face, mec=rim, ms=5.5, gid=SEEDS)


def _small_print(ax, table: pd.DataFrame, base: float) -> None:
    """Writes what the marks mean, the heading of the effects and the settings, around the axes."""
    arms = table[table["role"] != "bound"]
    intervals = bool(arms["low_percent"].notna().any())
    grey = {"color": "0.25", "va": "bottom"}
    towards_middle = "right" if base > sum(ax.get_xlim()) / 2 else "left"
    ax.text(base, -0.75, f"baseline {base:.1f}", ha=towards_middle, **grey)
    heading = "difference from baseline" + "\n(95 % interval)" * intervals
    ax.text(1.03, -0.75, heading, transform=ax.get_yaxis_transform(), **grey)
    marks = "dots = seeds, bar = mean, " + (
        "band = 95 % interval of the difference" if intervals else "one seed: no interval"
    )
    n_seeds = " to ".join(str(n) for n in sorted({arms["n_seeds"].min(), arms["n_seeds"].max()}))
    seeds = f"{n_seeds} seed{'s' if n_seeds != '1' else ''} an arm"
    lines = [line for text in (marks, f"{caption(table)}; {seeds}") for line in textwrap.wrap(text, 80)]
    below = (0, -4 * ax.xaxis.label.get_size())  # points: under the ticks and the label of the axis
    middle = {"ha": "center", "va": "top", "color": "0.25"}
    ax.annotate("\n".join(lines), (0.5, 0), below, "axes fraction", "offset points", **middle)


def _new_axes(n_rows: float):
    import matplotlib.pyplot as plt

    scale = plt.rcParams["font.size"] / FONT_SIZES["page"]
    return plt.subplots(figsize=(7.2 * scale, (1.6 + 0.32 * n_rows) * scale), layout="constrained")[1]
