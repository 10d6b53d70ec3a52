"""What the notebooks show with: figures that can be read aloud, tables, the size and cost of a notebook."""

import io
import os

import pandas as pd

from rtl_core import figures
from rtl_core.config import STUDY_SIZES
from rtl_core.storage import unknown
from rtl_core.tables import effect_text, labels


def size() -> str:
    """Returns the study size this notebook runs at: `RTL_SIZE`, else quick. Raises: StudyError if unknown."""
    name = os.environ.get("RTL_SIZE", "quick")
    if name not in STUDY_SIZES:
        raise unknown("study size", name, tuple(STUDY_SIZES))
    return name


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
