"""Maps to walk about in: two linked ones in JupyterLab, and files for Embedding Atlas and TensorFlow's Projector."""

import csv
import html
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from rtl_core.analysis.geometry import nearest
from rtl_core.embeddings import Embeddings
from rtl_core.figures.maps import GREY, PALE, STYLES, coloured_domains
from rtl_core.maps import NEIGHBOURS, quality, word_maps
from rtl_core.storage import StudyError, atomic

STEPS = 20  # of the slider
SHOWN = 60  # chosen words that are listed
HEIGHT = 420  # of a map, in pixels
OTHER, NONE = "another domain", "no domain"
HELP = (
    '<div style="line-height: 1.4">The wheel zooms; dragging moves the map or draws a lasso round words; rest on a '
    "point to read its word. What is chosen on one map is chosen on the other, and listed below. Everything outside "
    "the maps can be reached with Tab and changed with the arrow keys.</div>"
)


class Explorer:
    """Two maps of the same words beside each other: what is chosen or pointed at on one is so on the other.

    `widget` is what a notebook displays. The slider moves the words of the left map from their places under its
    source to those under the right map's.
    """

    def __init__(self, maps: pd.DataFrame, tables: dict[str, Embeddings] | None = None):
        """Takes maps of two sources or more (`maps.word_maps`), and the tables behind them if they are at hand.

        With `tables`, by source, a word that is searched for is chosen together with its nearest in the original
        spaces. Raises: StudyError for one map only, maps without their numbers, or of different words.
        """
        numbers = quality(maps)
        self.tables = {source: table.centred() for source, table in (tables or {}).items()}
        self.sources = list(numbers.index)
        if len(self.sources) < 2:
            raise StudyError(f"one can walk from one map to another; found {self.sources}. Give two or more.")
        self.kept = numbers["recall"].to_dict()
        first = maps.loc[maps["source"] == self.sources[0], ["word", "domain", "count"]]
        self.words = first.astype({"word": "str", "domain": "str"}).reset_index(drop=True)
        self.rows = {word: row for row, word in enumerate(self.words["word"])}
        self.places = {s: self._placed(maps[maps["source"] == s], s) for s in self.sources}
        self.chosen: list[str] = []
        self._draw(dict(zip(coloured_domains(maps), (colour for colour, _ in STYLES))))
        self._control()
        self._move()
        self.choose([])

    def _placed(self, rows: pd.DataFrame, source: str) -> np.ndarray:
        """Returns the places of a source's words in the order of `words`. Raises: StudyError for other words."""
        words = list(rows["word"].astype("str"))
        if sorted(words) != sorted(self.rows):
            raise StudyError(
                f"maps to walk between have the same words, each once; {source} has {len(words):,} of the "
                f"{len(self.rows):,} of {self.sources[0]}, or others. Take both from one call of maps.word_maps."
            )
        return rows.set_index("word").loc[self.words["word"], ["x", "y"]].to_numpy(float)

    def _draw(self, colours: dict[str, str]) -> None:
        """Makes the two maps, linked."""
        from jscatter import Scatter, compose

        domain, colours = self.words["domain"], {NONE: PALE, OTHER: GREY} | colours
        group = domain.where(domain.isin(list(colours)), np.where(domain == "", NONE, OTHER))
        data = self.words.assign(size=np.log10(self.words["count"] + 10.0), group=group, x=0.0, y=0.0)
        self.colours = {name: _hex(colour) for name, colour in colours.items() if (group == name).any()}
        self.maps = []
        for _ in range(2):
            scatter = Scatter(
                "x", "y", data, color_by="group", color_map=self.colours, color_selected="black"
            )
            scatter.size(by="size", map=(2, 8, 10)).axes(False).options(transition_points=False)
            scatter.tooltip(True, ["domain", "count"], histograms=False, preview="word", size="small")
            self.maps.append(scatter)
        self.linked = compose(self.maps, sync_selection=True, sync_hover=True, cols=2, row_height=HEIGHT)
        for scatter in self.maps:
            scatter.widget.observe(lambda change: self._say(change["new"]), "selection")

    def _control(self) -> None:
        """Makes the boxes, the slider and the list of chosen words."""
        import ipywidgets as w

        named = {"style": {"description_width": "initial"}}
        sources, domains = {"options": self.sources, **named}, sorted(set(self.words["domain"]) - {""})
        self.left = w.Dropdown(description="left map", value=self.sources[0], **sources)
        other = next((s for s in self.sources[1:] if not s.startswith("permuted:")), self.sources[1])
        self.right = w.Dropdown(description="right map", value=other, **sources)
        self.slider = w.FloatSlider(
            description="from left to right", max=1, step=1 / STEPS, readout=False, **named
        )
        self.search = w.Combobox(
            description="find a word", options=sorted(self.rows), continuous_update=False, **named
        )
        self.domain = w.Dropdown(description="choose a domain", options=["", *domains], **named)
        self.slider.layout.width, self.said = "50%", w.HTML()
        modes = [("moves the map", "panZoom"), ("chooses words", "lasso")]
        self.mode = w.ToggleButtons(description="dragging", options=modes, **named)
        self.mode.layout.width = "max-content"
        self.mode.observe(lambda change: self._drag(change["new"]), "value")
        for control in (self.left, self.right, self.slider):
            control.observe(lambda _: self._move(), "value")
        self.search.observe(lambda change: self.find(change["new"]), "value")
        self.domain.observe(lambda change: self.choose(self._words_of(change["new"])), "value")
        rows = [w.HBox([self.left, self.right]), self.slider, w.HBox([self.search, self.domain]), self.mode]
        key = "".join(
            f'<span style="color:{c}">&#9679;</span> {name} &ensp;' for name, c in self.colours.items()
        )
        self.widget = w.VBox([w.HTML(HELP), *rows, w.HTML(key), self.linked, self.said])

    def _words_of(self, domain: str) -> list[str]:
        return list(self.words.loc[self.words["domain"] == domain, "word"]) if domain else []

    def _move(self) -> None:
        """Puts the words of the left map where the slider says, those of the right one at their own places."""
        start, end, share = self.places[self.left.value], self.places[self.right.value], self.slider.value
        reach = max(np.abs(places).max() for places in self.places.values())
        for scatter, places in zip(self.maps, ((1 - share) * start + share * end, end)):
            scatter.xy(*places.T, (-reach, reach), (-reach, reach), animate=False)

    def _drag(self, mode: str) -> None:
        for scatter in self.maps:
            scatter.mouse(mode)

    def find(self, word: str) -> None:
        """Chooses a word, and with it the nearest in the original spaces of both maps, where tables are at hand."""
        if word not in self.rows:
            self.said.value = _status(f"{html.escape(word)} is not on these maps." if word else "")
            return
        near = [other for source in (self.left.value, self.right.value) for other in self._near(source, word)]
        self.choose([word, *near])
        for scatter in self.maps:
            scatter.zoom([self.rows[w] for w in self.chosen] if near else None)

    def _near(self, source: str, word: str) -> list[str]:
        table = self.tables.get(source)
        if table is None or word not in table:
            return []
        close = (other for other, _ in table.neighbors(word, len(table) - 1) if other in self.rows)
        return [other for other, _ in zip(close, range(NEIGHBOURS))]

    def choose(self, words: Iterable[str]) -> None:
        """Chooses words on both maps. Raises: StudyError for a word that is not on them."""
        words = list(dict.fromkeys(words))
        if unknown := [word for word in words if word not in self.rows]:
            raise StudyError(
                f"{', '.join(unknown[:5])}: not among the {len(self.rows):,} words of these maps."
            )
        self.maps[0].selection([self.rows[word] for word in words])
        self._say([self.rows[word] for word in words])

    def _say(self, rows) -> None:
        """Lists the chosen words, also for readers who listen."""
        chosen = self.words.iloc[[] if rows is None else list(rows)]
        self.chosen = list(chosen["word"])
        kept = "; ".join(
            f"{s} keeps {self.kept[s]:.0%} of neighbours" for s in (self.left.value, self.right.value)
        )
        first = chosen[:SHOWN].itertuples()
        listed = ", ".join(f"{row.word} ({row.domain})" if row.domain else row.word for row in first)
        more = f" and {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
        found = f"Chosen: {html.escape(listed)}{more}" if len(chosen) else "No word chosen"
        self.said.value = _status(f"{found}. On a map, {kept}.")


def _status(text: str) -> str:
    return f'<div role="status" aria-live="polite" style="line-height: 1.4">{text}</div>'


def _hex(colour: str) -> str:
    from matplotlib.colors import to_hex

    return to_hex(colour)


# Other viewers


def write_projector(embeddings: Embeddings, words: pd.DataFrame, folder: Path) -> tuple[Path, Path]:
    """Returns the paths of vectors.tsv and metadata.tsv, written for https://projector.tensorflow.org.

    `words`: see `maps.common_words`; those without a vector are left out.
    Raises: StudyError when none has one, and for a word with a tab or line end.
    """
    words = words[[word in embeddings for word in words.index]]
    if words.empty:
        raise StudyError("none of the words has a vector; give words of the table's own vocabulary.")
    if broken := [word for word in words.index if re.search(r"[\t\r\n]", word)]:
        raise StudyError(f"a word in a table has no tab or line end; found {broken[:5]}. Leave these out.")
    table, paths = (
        embeddings.lookup(words.index)[0],
        tuple(Path(folder) / f"{n}.tsv" for n in ("vectors", "metadata")),
    )
    frames = pd.DataFrame(table), words.rename_axis("word").reset_index()
    for path, frame, header in zip(paths, frames, (False, True)):
        with atomic(path) as temporary:
            frame.to_csv(temporary, sep="\t", header=header, index=False, quoting=csv.QUOTE_NONE)
    return paths


def open_atlas(embeddings: Embeddings, words: pd.DataFrame, method: str = "umap", seed: int = 0):
    """Returns Embedding Atlas, a widget, on a map of any table; its neighbours are those of the original space.

    `words`, `method`, `seed`: as in `maps.word_maps`. Raises: StudyError when Embedding Atlas is not installed.
    """
    try:
        from embedding_atlas.widget import EmbeddingAtlasWidget
    except ImportError as error:
        raise StudyError(
            f"Embedding Atlas is not installed ({error}). `pip install duckdb inquirer` and `pip install --no-deps "
            "embedding-atlas` add what this widget needs and leave the other packages as they are. The whole of it, "
            "rtl-core[atlas], brings an older python-dateutil, from whose text the corpus docstrings is made: it "
            "needs an environment of its own."
        ) from error
    maps = word_maps({"table": embeddings}, words, method, seed, control=False)
    unit = Embeddings(maps["word"], embeddings.centred().lookup(maps["word"])[0]).normalised().table
    k = min(NEIGHBOURS, len(unit) - 1)
    near = ({"ids": ids, "distances": 1 - cosines} for ids, cosines in zip(*nearest(unit, k)))
    maps["neighbors"] = [{name: values.tolist() for name, values in row.items()} for row in near]
    return EmbeddingAtlasWidget(maps, x="x", y="y", text="word", neighbors="neighbors")
