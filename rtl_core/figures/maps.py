"""Maps of words, never without the numbers that say how far they may be believed."""

import itertools

import pandas as pd

from rtl_core.figures.style import new_axes


def plot_map(frame: pd.DataFrame, *, groups: dict[str, str] | None = None, ax=None):
    """Returns the Axes of a map of words (see maps.py); `groups` gives a word's group, shown by colour and mark."""
    ax = new_axes(11) if ax is None else ax
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
