"""Figures: tidy data in, Axes out; every figure has a computed description."""

from rtl_core.figures.awareness import describe_awareness, describe_probes, plot_awareness, plot_probes
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
from rtl_core.figures.curves import describe_size_curve, plot_size_curve
from rtl_core.figures.generation import describe_generation, plot_generation
from rtl_core.figures.geometry import (
    describe_between,
    describe_correlations,
    describe_measure,
    plot_between,
    plot_correlations,
    plot_measure,
)
from rtl_core.figures.maps import describe_map, describe_maps, describe_moves, plot_map, plot_maps, plot_moves
from rtl_core.figures.perplexity import describe_perplexity, plot_perplexity
from rtl_core.figures.slices import describe_slice_table, describe_slices, plot_slice_table, plot_slices
from rtl_core.figures.style import FONT_SIZES, save_figure, style
from rtl_core.figures.topicworld import describe_limits, describe_overlap, plot_limits, plot_overlap

__all__ = [
    "FONT_SIZES", "describe_awareness", "describe_bars", "describe_between", "describe_correlations",
    "describe_generation", "describe_history", "describe_limits", "describe_map", "describe_maps",
    "describe_measure", "describe_moves", "describe_overlap", "describe_perplexity", "describe_probes",
    "describe_ranks", "describe_shares", "describe_size_curve", "describe_slice_table", "describe_slices",
    "plot_awareness", "plot_bars", "plot_between", "plot_correlations", "plot_generation", "plot_history",
    "plot_limits", "plot_map", "plot_maps", "plot_measure", "plot_moves", "plot_overlap", "plot_perplexity",
    "plot_probes", "plot_ranks", "plot_shares", "plot_size_curve", "plot_slice_table", "plot_slices",
    "save_figure", "style",
]  # fmt: skip
