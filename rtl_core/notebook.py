"""What the notebooks show with: figures that can be read aloud, tables, the size and cost of a notebook."""

import io
import os
from collections.abc import Iterable

import pandas as pd

from rtl_core import figures
from rtl_core.corpora import load_corpus
from rtl_core.embeddings import Embeddings
from rtl_core.storage import unknown
from rtl_core.studies import STUDY_SIZES
from rtl_core.tables import effect_text, labels

# Followed through the notebooks: common words, words of one domain, words of several meanings.
WORDS = (
    "the", "return", "function", "array", "matrix", "graph",
    "tensor", "node", "axis", "distribution", "kernel", "figure",
)  # fmt: skip


def size() -> str:
    """Returns the study size this notebook runs at: `RTL_SIZE`, else quick. Raises: StudyError if unknown."""
    name = os.environ.get("RTL_SIZE", "quick")
    if name not in STUDY_SIZES:
        raise unknown("study size", name, tuple(STUDY_SIZES))
    return name


def corpus(name: str = "docstrings"):
    """Returns a corpus as this notebook's size has it: at smoke size a small part of its training text."""
    whole = load_corpus(name)
    return whole.sampled(60_000) if size() == "smoke" else whole


def show(ax, alt: str) -> None:
    """Displays a figure as PNG with its description as alternative text, and the same sentence as a caption."""
    import matplotlib.pyplot as plt
    from IPython.display import Markdown, display

    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    plt.close(ax.figure)
    bundle = {"image/png": buffer.getvalue(), "text/plain": alt}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})
    display(Markdown(f"*{alt}*"))


def show_perplexity(table: pd.DataFrame) -> None:
    """Displays the figure of a comparison with its computed description."""
    with figures.style():
        show(figures.plot_perplexity(table), figures.describe_perplexity(table))


def show_bars(values: pd.Series, xlabel: str, line: float | None = None) -> None:
    """Displays bars with their computed description; `line` marks a baseline."""
    with figures.style():
        ax = figures.plot_bars(values, xlabel=xlabel, line=line)
        show(ax, figures.describe_bars(values, xlabel=xlabel, line=line))


def arms(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of `compare` as readers want it: an arm a row, units in the header."""
    return pd.DataFrame(
        {
            "perplexity (document)": table["perplexity"].round(1).to_numpy(),
            "effect on perplexity": [effect_text(row) for _, row in table.iterrows()],
            "extra tokens": table["extra_tokens"].to_numpy(),
        },
        index=pd.Index(labels(table), name="arm"),
    )


def neighbours(tables: dict[str, Embeddings], words: Iterable[str] = WORDS, k: int = 4) -> pd.DataFrame:
    """Returns the `k` nearest words of each word: a word a row, a table a column, "-" where it has no vector."""

    def near(table: Embeddings, word: str) -> str:
        return ", ".join(other for other, _ in table.neighbors(word, k)) if word in table else "-"

    words = tuple(words)
    columns = {name: [near(table, word) for word in words] for name, table in tables.items()}
    return pd.DataFrame(columns, index=pd.Index(words, name="word"))
