"""The house style: sizes, colours with a mark each, axes, rows, curves and their names, files the same each time."""

import textwrap
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from rtl_core.storage import atomic, unknown

FONT_SIZES = {"page": 9, "slide": 14}  # points at printed size
DPI = 120
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # okabe_ito without its yellow
STYLES = tuple(zip(COLOURS, "osD^vP"))  # a mark each, because colour is never the only sign
CURVES = tuple((colour, f"{mark}-") for colour, mark in STYLES)
BESIDE = "0.35", "X--"  # the look of a curve that the others are compared with
NOTE, GREY, PALE = "0.25", "0.55", "0.85"  # small print; points of less, and of least interest
DASHED = {"color": "0.4", "linestyle": "--", "linewidth": 1, "zorder": 0}  # a line to compare with
STEP = 3  # points between the intervals of two curves at one place
LETTERS, LINE = 24, 1.45  # letters in a line of a curve's name; height of a line in letters


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


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **shared):
    """Returns an array of new Axes in a figure of this size: inches on a page, more on a slide."""
    import matplotlib.pyplot as plt

    scale = plt.rcParams["font.size"] / FONT_SIZES["page"]
    settings = {"figsize": (width * scale, height * scale), "layout": "constrained", "squeeze": False}
    return plt.subplots(rows, columns, **settings, **shared)[1]


def new_axes(n_rows: float):
    """Returns new Axes of a page's width, high enough for so many rows of text."""
    return panels(7.2, 1.6 + 0.32 * n_rows)[0, 0]


def name_rows(ax, names: list) -> None:
    """Names the rows of a figure, the first at the top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)


def colour_table(ax, table: pd.DataFrame, text: Callable, look: Callable | None = None, **colours):
    """Returns the image of a table in colour, `text` of each value in its cell; `look` of row and column: how."""
    image = ax.imshow(table, aspect="auto", **colours)
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        dark = np.dot(image.to_rgba(value)[:3], (0.299, 0.587, 0.114)) < 0.5
        settings = {"color": "white" if dark else "black"} | (look(i, j) if look else {})
        if written := text(value):
            ax.text(j, i, written, ha="center", va="center", **settings)
    ax.set_yticks(range(len(table)), table.index)
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def log_axis(ax, names: dict[int, str]) -> None:
    """Makes the x axis logarithmic, with a name at each of these places alone."""
    ax.set_xscale("log")
    ax.set_xticks(list(names), list(names.values()))
    ax.minorticks_off()


def draw_curves(ax, curves: dict[str, tuple[str, tuple[str, str], pd.DataFrame]]) -> None:
    """Draws curves for `name_ends` to name; those with intervals a little aside, so that none hides another.

    A curve, by its gid: its name, its colour and mark with kind of line, and a frame of x, y and perhaps low, high.
    """
    from matplotlib.transforms import offset_copy

    beside = [gid for gid, (_, _, frame) in curves.items() if frame.shape[1] > 2]
    for gid, (name, (colour, line), frame) in curves.items():
        x, y, *ends = (frame[column] for column in frame)
        drawn = ax.plot(x, y, line, color=colour, ms=5, lw=1.5, gid=gid, label=name)
        if ends:
            drawn += [ax.vlines(x, *ends, color=colour, lw=1.2, alpha=0.7)]
            aside = STEP * (beside.index(gid) - (len(beside) - 1) / 2)
            for artist in drawn:  # now, when the axes have taken their range from the data
                artist.set_transform(offset_copy(ax.transData, ax.figure, aside, 0, "points"))


def name_ends(ax, at: float = 1.02) -> None:
    """Names each labelled line at the right, behind a sample of it, near its end; no name lies on another.

    Everything else must be on the axes: names are placed by the heights that the lines then have.
    """
    from matplotlib.lines import Line2D

    ax.figure.draw_without_rendering()  # now the axes have their height
    ends = {line: line.get_transform().transform(line.get_xydata()[-1]) for line in ax.lines}
    lines = sorted((line for line in ends if line.get_label()[0] != "_"), key=lambda line: ends[line][1])
    names = [textwrap.fill(line.get_label(), LETTERS) for line in lines]
    letter = ax.xaxis.label.get_fontsize() * ax.figure.dpi / 72 / ax.bbox.height
    heights = np.array([LINE * letter * (name.count("\n") + 1) for name in names])
    ends = ax.transAxes.inverted().transform([ends[line] for line in lines])
    stacked = heights.cumsum() - heights / 2
    free = ends[:, 1].clip(0, 1) - stacked  # where names were to start; those of near ends share the middle
    places = stacked + (np.maximum.accumulate(free) + np.minimum.accumulate(free[::-1])[::-1]) / 2
    for line, name, end, y in zip(lines, names, ends, places):
        sample = Line2D([at, at + 0.025, at + 0.05], [y] * 3, markevery=[1], transform=ax.transAxes)
        for copied in ("color", "linestyle", "linewidth", "marker", "markersize"):
            sample.set(**{copied: getattr(line, f"get_{copied}")()})
        look = {"color": line.get_color(), "lw": 0.6, "alpha": 0.6, "transform": ax.transAxes}
        leader = Line2D([end[0], at], [end[1], y], **look)
        for artist in (sample, leader) if 0 <= end[1] <= 1 else (sample,):
            ax.figure.add_artist(artist)
        ax.text(at + 0.065, y, name, va="center", transform=ax.transAxes)


def span(counts: pd.Series) -> str:
    """Returns the least and the largest of some counts in words: "3", or "2 to 3"."""
    return " to ".join(f"{n:,}" for n in sorted({int(counts.min()), int(counts.max())}))
