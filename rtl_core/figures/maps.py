"""Maps of words, never without the numbers that say how far they may be believed."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from rtl_core.figures.style import COLOURS, GREY, NOTE, PALE, STYLES, new_axes, panels
from rtl_core.maps import quality
from rtl_core.storage import StudyError

# where a name may stand, in letter heights from its place; a letter's mean width in its height
SIDES = tuple((x, y) for y in (0.3, -0.9, 1.4, -2.1, 2.6, -3.3, 3.8) for x in (0.45, -0.45, 2, -2))
LETTER = 0.62
# from a place to a far name
LEADER = {"arrowstyle": "-", "lw": 0.6, "color": "0.4", "shrinkA": 0, "shrinkB": 2}
FEW = 50  # words that may all be large and named
MANY = 1000  # words whose marks have hard edges: blurred ones make a file of more than twice the size


def plot_map(maps: pd.DataFrame, *, words: Iterable[str] | None = None, ax=None):
    """Returns the Axes of one map (see maps.py): domains by colour and mark, `words` named (None: all of them).

    Raises: StudyError when the map has lost its numbers, or when there are several.
    """
    numbers = quality(maps)
    if len(numbers) > 1:
        raise StudyError(
            f"one map is drawn here; choose one of {', '.join(numbers.index)}, or use plot_maps."
        )
    ax = new_axes(11) if ax is None else ax
    groups = coloured_domains(maps)
    _points(ax, maps, groups)
    _name(ax, maps, maps["word"] if words is None else words)
    if groups:
        _key(ax, ax, loc="center left", bbox_to_anchor=(1.01, 0.5))
    if maps["method"].iloc[0] == "pca":
        ax.set(xlabel="first principal component", ylabel="second principal component")
    else:
        _without_axes(ax)
    ax.set_title(_small_print(numbers.iloc[0]), loc="left", color=NOTE)
    return ax


def describe_map(maps: pd.DataFrame) -> str:
    """Returns the figure of `plot_map` in words: what it shows, and what may not be read off it."""
    row = quality(maps).iloc[0]
    ends = [maps.loc[maps["x"].idxmin(), "word"], maps.loc[maps["x"].idxmax(), "word"]]
    how = "on their first two principal components" if maps["method"].iloc[0] == "pca" else "by UMAP"
    return (
        f"Map of {row['words']:,.0f} words {how}; {ends[0]} lies farthest left, {ends[1]} farthest right. "
        f"{_in_words(row)} Distances on a map are a hint and no measurement."
    )


def plot_maps(maps: pd.DataFrame, *, words: Iterable[str] = ()):
    """Returns the Axes of several maps of the same words, a panel each, in an array; each with its numbers.

    The domains with most words by colour and mark, others grey, words of none pale; larger for more frequent words;
    `words` named.
    Raises: StudyError when the maps have lost their numbers.
    """
    numbers, groups, words = quality(maps), coloured_domains(maps), tuple(words)
    columns = min(len(numbers), 3)
    rows = -(-len(numbers) // columns)
    axes = panels(2.9 * columns, 3.35 * rows + 0.5, rows, columns)
    for ax in axes.flat[len(numbers) :]:
        ax.set_axis_off()
    for ax, (source, row) in zip(axes.flat, numbers.iterrows()):
        chosen = maps[maps["source"] == source]
        _points(ax, chosen, groups)
        _name(ax, chosen, words)
        _without_axes(ax)
        ax.set_title(f"{source}\n\n", loc="left", weight="bold")
        ax.text(0, 1.02, _small_print(row, lines=True), transform=ax.transAxes, color=NOTE)
    _key(axes.flat[0].figure, axes.flat[0], loc="outside lower center", ncols=4)
    return axes


def describe_maps(maps: pd.DataFrame) -> str:
    """Returns the figure of `plot_maps` in words: what it shows, and what may not be read off it."""
    numbers = quality(maps)
    how = "PCA" if maps["method"].iloc[0] == "pca" else "UMAP"
    key = "; colours and marks are domains" if coloured_domains(maps) else ""
    shown = [f"{source} {row['recall']:.0%} (trust {row['trust']:.2f}" for source, row in numbers.iterrows()]
    if not numbers["purity"].isna().any():
        ends = zip(shown, numbers["purity"], numbers["purity_map"])
        shown = [
            f"{text}; purity {space:.0%} in the space, {flat:.0%} on the map" for text, space, flat in ends
        ]
    first = numbers.iloc[0]
    return (
        f"{len(numbers)} maps of the same {first['words']:,.0f} words by {how}, a panel a source, each turned onto "
        f"the first{key}. Of a word's {first['near']:.0f} nearest neighbours in the "
        f"original space the maps keep: {'); '.join(shown)}); by chance {first['recall_chance']:.1%}. Neither the "
        "size of a group nor the gap between two may be read off a map."
    )


def plot_moves(maps: pd.DataFrame, words: Iterable[str], *, ax=None):
    """Returns the Axes of two maps of the same words: an arrow from each word's place on the first to the second.

    Pale: where the first map's words are, up to 1,000 of them. Words that are not on the maps are left out.
    Raises: StudyError when the maps have lost their numbers or are not two, or when no word is on them.
    """
    first, second, words = _two(maps, words)
    ax = new_axes(13) if ax is None else ax
    some = first.iloc[:: -(-len(first) // MANY)]
    ax.plot(some["x"], some["y"], ".", color=PALE, ms=3, rasterized=True)
    start, end = (part.set_index("word").loc[words, ["x", "y"]] for part in (first, second))
    for word in start.index:
        ax.annotate("", end.loc[word], start.loc[word], arrowprops={"arrowstyle": "->", "color": COLOURS[0]})
    _name(ax, first, words)
    _without_axes(ax)
    numbers = (f"{source}: {_small_print(row)}" for source, row in quality(maps).iterrows())
    ax.set_title("\n".join([_moves(first, second), *numbers]), loc="left", color=NOTE)
    return ax


def describe_moves(maps: pd.DataFrame, words: Iterable[str]) -> str:
    """Returns the figure of `plot_moves` in words."""
    first, second, words = _two(maps, words)
    moved = second.set_index("word")["moved"].loc[words].sort_values()
    return (
        f"Arrows from the places of {len(moved)} words on one map to those on another, {_moves(first, second)}. "
        f"{moved.index[0]} moves least ({moved.iloc[0]:.2f}), {moved.index[-1]} most ({moved.iloc[-1]:.2f}). A long "
        "arrow may be the map's own: only neighbours, not places, are the tables'."
    )


def _two(maps: pd.DataFrame, words: Iterable[str]) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Returns the two maps, and those of the words that are on them."""
    sources = list(quality(maps).index)
    if len(sources) != 2:
        raise StudyError(
            f"words move between two maps; found {len(sources)}: {', '.join(sources)}. Choose two."
        )
    first, second = (maps[maps["source"] == source] for source in sources)
    words = list(words)
    found = [word for word in words if word in set(first["word"])]
    if not found:
        raise StudyError(f"none of {', '.join(words[:5])} is among the {len(first):,} words of these maps.")
    return first, second, found


def _moves(first: pd.DataFrame, second: pd.DataFrame) -> str:
    names = (part["source"].iloc[0] for part in (first, second))
    return (
        "from {} (dot) to {} (arrowhead); the median word of all moves by {:.2f} of the map's radius".format(
            *names, second["moved"].median()
        )
    )


def coloured_domains(maps: pd.DataFrame) -> list[str]:
    """Returns the domains that are drawn in colour: those with most words."""
    labelled = maps.loc[maps["domain"] != "", "domain"].astype(str)
    return sorted(labelled.value_counts().index[: len(STYLES)])


def _points(ax, maps: pd.DataFrame, groups: list[str]) -> None:
    few = len(maps) <= FEW
    sizes = np.full(len(maps), 30.0) if few else 0.7 * np.log10(maps["count"].to_numpy() + 10.0) ** 2
    domain = maps["domain"].astype(str).to_numpy()
    parts = [("of no domain", domain == "", PALE, "o")]
    parts.append(("of another domain", ~np.isin(domain, [*groups, ""]), GREY, "o"))
    parts += [(name, domain == name, *of_group) for name, of_group in zip(groups, STYLES)]
    settings = {"linewidths": 0, "rasterized": not few, "antialiased": len(maps) <= MANY}
    for label, chosen, colour, mark in parts if groups else [(None, domain == "", COLOURS[0], "o")]:
        if chosen.any():
            places = maps.loc[chosen, "x"], maps.loc[chosen, "y"], sizes[chosen]
            ax.scatter(*places, colour, marker=mark, label=label, **settings)


def _name(ax, maps: pd.DataFrame, words: Iterable[str]) -> None:
    """Writes words beside their places, inside the axes and clear of each other if there is such a side."""
    import matplotlib.patheffects as effects

    named, points = maps[maps["word"].isin(list(words))], ax.xaxis.label.get_fontsize()
    if len(maps) > FEW:
        ax.plot(named["x"], named["y"], "o", mfc="none", mec="k", ms=5)
    ax.autoscale_view()
    size, (low, high), taken = ax.figure.dpi / 72 * points, ax.get_window_extent().get_points(), []
    halo = [effects.withStroke(linewidth=2, foreground="w")]
    for _, row in named.iterrows():
        place, width = ax.transData.transform((row["x"], row["y"])), LETTER * size * len(row["word"])
        corners = [place + size * np.array(at) - (width * (at[0] < 0), 0) for at in SIDES]
        outside = [corner[0] < low[0] or corner[0] + width > high[0] for corner in corners]
        covers = [sum(_overlap((corner, width), other, size) for other in taken) for corner in corners]
        best = min(range(len(SIDES)), key=lambda i: (covers[i], outside[i]))
        taken.append((corners[best], width))
        side, lift = SIDES[best]
        settings = {"ha": "left" if side > 0 else "right", "arrowprops": LEADER if abs(lift) > 1 else None}
        settings |= {"textcoords": "offset points", "path_effects": halo}
        text = ax.annotate(row["word"], (row["x"], row["y"]), (side * points, lift * points), **settings)
        text.set_in_layout(False)


def _overlap(first: tuple, second: tuple, height: float) -> bool:
    (corner, width), (other, other_width) = first, second
    apart = corner[0] > other[0] + other_width or other[0] > corner[0] + width
    return not apart and abs(corner[1] - other[1]) < height


def _key(where, ax, **place) -> None:
    key = where.legend(*ax.get_legend_handles_labels(), frameon=False, **place)
    for handle in key.legend_handles:
        handle.set_sizes([30])


def _without_axes(ax) -> None:
    """Takes away ticks: the coordinates of a map mean nothing."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.8")


def _small_print(row: pd.Series, lines: bool = False) -> str:
    """Returns the numbers of a map, as they stand above it."""
    parts = [f"trust {row['trust']:.2f}, {row['recall']:.0%} of {row['near']:.0f} neighbours kept"]
    if not np.isnan(row["purity"]):
        parts.append(f"purity {row['purity']:.0%}, on the map {row['purity_map']:.0%}")
    return ("\n" if lines else "; ").join(parts)


def _in_words(row: pd.Series) -> str:
    """Returns the numbers of a map in sentences."""
    text = (
        f"Of a word's {row['near']:.0f} nearest neighbours in the original space the map keeps {row['recall']:.0%} "
        f"({row['recall_chance']:.1%} by chance), trustworthiness {row['trust']:.2f}"
    )
    if not np.isnan(row["purity"]):
        text += (
            f"; purity {row['purity']:.0%} of those nearest in the space, {row['purity_map']:.0%} on the map"
        )
    return f"{text}."
