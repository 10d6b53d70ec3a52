"""The house style of every figure, its axes, and files that are the same byte for byte."""

from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from rtl_core.storage import atomic, unknown

FONT_SIZES = {"page": 9, "slide": 14}  # points at printed size
DPI = 120
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of okabe_ito; marks say the same


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


def new_axes(n_rows: float):
    """Returns new Axes of a page's width, high enough for so many rows of text."""
    import matplotlib.pyplot as plt

    scale = plt.rcParams["font.size"] / FONT_SIZES["page"]
    return plt.subplots(figsize=(7.2 * scale, (1.6 + 0.32 * n_rows) * scale), layout="constrained")[1]


def span(counts: pd.Series) -> str:
    """Returns the least and the largest of some counts in words: "3", or "2 to 3"."""
    return " to ".join(f"{n:,}" for n in sorted({int(counts.min()), int(counts.max())}))
