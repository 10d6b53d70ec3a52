"""Every figure of the study as SVG, PDF and PNG, the same byte for byte, with a page that describes them."""

from pathlib import Path

from rtl_core import report
from rtl_core.figures import save_figure, style
from rtl_core.storage import atomic

KINDS = ("svg", "pdf", "png")


def page(descriptions: dict[str, str]) -> str:
    """Returns figures/README.md: each figure with its description, as alternative text and below it."""
    parts = [f"## {name}\n\n![{text}]({name}.svg)\n\n*{text}*\n" for name, text in descriptions.items()]
    note = "Written by `make figures` from the committed records, as SVG, PDF and PNG. Each description is computed."
    return "\n".join(["# Figures\n", f"{note}\n", *parts])


def write(out: Path) -> list[Path]:
    """Writes every figure of the study into `out`, and README.md with their descriptions; returns the files."""
    import matplotlib.pyplot as plt

    written, descriptions = [], {}
    for name, draw in report.study_figures().items():
        with style():
            ax, descriptions[name] = draw()
            for kind in KINDS:
                written.append(out / f"{name}.{kind}")
                save_figure(ax, written[-1])
            plt.close(ax.figure)
    with atomic(out / "README.md") as temporary:
        temporary.write_text(page(descriptions), encoding="utf-8")
    return [*written, out / "README.md"]
