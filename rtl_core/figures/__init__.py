"""Figures: tidy data in, Axes out; every figure has a computed description."""

from rtl_core.figures.charts import (
    describe_bars,
    describe_history,
    describe_ranks,
    describe_shares,
    plot_bars,
    plot_history,
    plot_ranks,
    plot_shares,
)
from rtl_core.figures.maps import describe_map, plot_map
from rtl_core.figures.perplexity import describe_perplexity, plot_perplexity
from rtl_core.figures.style import FONT_SIZES, save_figure, style

__all__ = [
    "FONT_SIZES", "describe_bars", "describe_history", "describe_map", "describe_perplexity", "describe_ranks",
    "describe_shares", "plot_bars", "plot_history", "plot_map", "plot_perplexity", "plot_ranks", "plot_shares",
    "save_figure", "style",
]  # fmt: skip
