"""Notebooks that are read and folders that are made: what is wrong with one is said in a line."""

from pathlib import Path

import nbformat

from rtl_core.storage import StudyError


def read(path: Path):
    """Returns a notebook. Raises: StudyError when it is missing, is no .ipynb file or is no whole notebook."""
    if path.suffix != ".ipynb" or not path.is_file():
        raise StudyError(f"there is no notebook {path}; give the path of a file that ends in .ipynb.")
    try:
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
    except Exception as error:  # of many kinds, by what is broken
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        advice = "Take back its last whole version, or save it anew in JupyterLab."
        raise StudyError(f"{path} is no whole notebook ({reason}). {advice}") from error
    return notebook


def folder(out: Path) -> Path:
    """Returns a folder to write to, made if need be. Raises: StudyError when there can be none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{out} cannot be a folder ({error.strerror}); name another with --out.") from error
    return out
