"""What the notebooks show with: figures that can be read aloud, tables, the size and cost of a notebook."""

import io
import json
import os
import sys
from collections.abc import Iterable

import pandas as pd

from rtl_core import figures
from rtl_core.corpora import load_corpus
from rtl_core.embeddings import Embeddings
from rtl_core.storage import StudyError, project_root, read_json, unknown
from rtl_core.studies import STUDY_SIZES
from rtl_core.tables import effect_text, labels, markdown_rows, tokens_text
from rtl_core.training import device

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


def machine() -> str:
    """Returns in words what notebooks are timed on: the device and its number of cores."""
    return f"{device().type}, {os.cpu_count()} cores"


def banner(number: str) -> None:
    """Displays what a notebook costs: time to read and to run here, memory, device, downloads."""
    from IPython.display import Markdown, display

    display(Markdown(markdown_rows([cost(number, project_root() / "notebooks")])))


def cost(number: str, folder) -> dict[str, str]:
    """Returns a notebook's cost in words, by its prose and by what `make notebooks` measured in times.json."""
    times = read_json(path) if (path := folder / "times.json").exists() else {}
    measured = times.get("notebooks", {}).get(number, {})
    found = sorted(folder.glob(f"{number}_*.ipynb"))
    where = "here" if times.get("machine") == machine() else f"on {times.get('machine')}"
    words = {"seconds": f" {where}", "first_seconds": " the first time"}
    runs = [_duration(measured[name]) + text for name, text in words.items() if name in measured]
    return {
        "time to read": _duration(_reading_seconds(found[0])) if found else "–",
        "time to run": ", ".join(runs) or "not measured yet: make notebooks",
        "memory": f"{measured['memory_mb'] / 1000:.1f} GB" if measured else "–",
        "device": machine(),
        "downloads": f"{measured['download_mb']:.0f} MB" if measured.get("download_mb") else "none",
    }


def _reading_seconds(path) -> float:
    """Returns the time that a notebook's prose and code take a reader: 150 words a minute, 4 seconds a line."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = {kind: "".join("".join(c["source"]) + "\n" for c in cells if c["cell_type"] == kind)
            for kind in ("markdown", "code")}  # fmt: skip
    return len(text["markdown"].split()) / 150 * 60 + 4 * len(text["code"].splitlines())


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def widgets_on() -> bool:
    """Returns whether widgets can answer: in a kernel, unless `RTL_WIDGETS` is off, as where outputs are kept."""
    return "ipykernel" in sys.modules and os.environ.get("RTL_WIDGETS") != "off"


class Guess:
    """What the reader expects, kept until the result stands beside it."""

    def __init__(self, question: str, options: Iterable[str]):
        """Takes a question and its options, from two on. Raises: StudyError for fewer, or one given twice."""
        self.question, self.options, self.made = question, tuple(options), None
        if len(set(self.options)) < max(2, len(self.options)):
            raise StudyError(
                f"a prediction chooses among two options or more, all different; got {self.options}."
            )

    def choose(self, option: str | None) -> None:
        """Keeps the reader's guess; None takes it back. Raises: StudyError for what is no option."""
        if option is not None and option not in self.options:
            raise unknown("option", option, self.options)
        self.made = option

    def against(self, measured: str) -> None:
        """Displays the guess beside what was measured. Raises: StudyError where that is no option."""
        from IPython.display import Markdown, display

        if measured not in self.options:
            raise unknown("option", measured, self.options)
        guessed = "You made no guess." if self.made is None else f"Your guess: {self.made}."
        verdict = "" if self.made is None else " As you said." if self.made == measured else " A surprise?"
        display(Markdown(f"*{self.question}* {guessed} Measured: **{measured}**.{verdict}"))


def predict(question: str, options: Iterable[str]) -> Guess:
    """Returns a guess to be held `against` the result; displays its question, with buttons where a kernel runs."""
    from IPython.display import Markdown, display

    guess = Guess(question, options)
    display(Markdown(f"**Predict before you run:** {question} *Options:* {' · '.join(guess.options)}."))
    if widgets_on():
        from ipywidgets import ToggleButtons

        # not radio buttons: JupyterLab takes the arrow keys that choose among these, while Tab and Space get through
        buttons = ToggleButtons(options=guess.options, value=None, description="My guess:")
        buttons.style.button_width = "auto"
        buttons.observe(lambda change: guess.choose(change["new"]), "value")
        display(buttons)
    return guess


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
            "extra tokens": table["extra_tokens"].map(tokens_text).to_numpy(),
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
