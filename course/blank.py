"""Copies of the notebooks for students: no outputs, no solutions, no rubrics."""

import re
from pathlib import Path

import nbformat

RUBRIC = "What a good answer has"  # the folded end of an open exercise
FOLDED = re.compile(rf"\s*<details><summary>{RUBRIC}</summary>.*?</details>", re.S)
SOLUTIONS = re.compile(r"^.*\(solutions/.*\n?", re.M)


def blanked(notebook):
    """Returns a copy of a notebook without outputs, rubrics and lines that link to solutions."""
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = SOLUTIONS.sub("", FOLDED.sub("", cell.source)).strip()
    return copy


def write(source: Path, out: Path) -> list[Path]:
    """Writes a blank copy of each notebook in `source` into `out`; returns their paths. Other files there stay."""
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(source.glob("*.ipynb"))
    for path in paths:
        nbformat.write(blanked(nbformat.read(path, 4)), out / path.name)
    return [out / path.name for path in paths]
