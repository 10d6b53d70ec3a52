"""Copies of the notebooks for students: no outputs, no solutions, no rubrics."""

import re
from pathlib import Path

import nbformat

from course.files import folder, read
from rtl_core.storage import StudyError, atomic

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
    """Writes a blank copy of each notebook in `source` into `out`; returns their paths. Other files there stay.

    Raises: StudyError, before anything is written, where `out` is `source` or a notebook cannot be read.
    """
    copies = {out / path.name: blanked(read(path)) for path in sorted(source.glob("*.ipynb"))}
    if copies and folder(out).samefile(source):
        raise StudyError(
            f"{out} holds the notebooks themselves; name another folder for the copies with --out."
        )
    for path, copy in copies.items():
        with atomic(path) as temporary:
            nbformat.write(copy, temporary)
    return list(copies)
