"""Files that are whole or not there: atomic writing, JSON, the project's folders, errors that teach."""

import difflib
import errno
import hashlib
import json
import os
import re
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError


class StudyError(Exception):
    """Something the user can mend: the message says what was wrong, what was found and what to do."""


def unknown(kind: str, name: str, valid) -> StudyError:
    """Returns the error for a name that is not in `valid`, with the nearest valid names."""
    near = difflib.get_close_matches(name, valid, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return StudyError(f"unknown {kind} {name!r}.{hint} Valid: {', '.join(valid)}.")


def say(text: str) -> None:
    """Tells the user what happens: on stderr, so that stdout stays data; in a notebook as plain output."""
    print(text, file=sys.stdout if "ipykernel" in sys.modules else sys.stderr, flush=True)


def project_root() -> Path:
    """Returns the checkout this package was installed from, or the working directory."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").exists() else Path.cwd()


def cache_dir() -> Path:
    """Returns the folder for everything that can be made again: `RTL_CACHE_DIR`, or data/cache."""
    return Path(os.environ.get("RTL_CACHE_DIR") or project_root() / "data" / "cache")


def results_dir() -> Path:
    """Returns the folder of records: `RTL_RESULTS_DIR`, or results (with local/ and reference/ in it)."""
    return Path(os.environ.get("RTL_RESULTS_DIR") or project_root() / "results")


@contextmanager
def atomic(path: Path):
    """Yields a temporary path beside `path` that replaces it when the block ends well.

    Raises: StudyError when the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise StudyError(
            f"could not write {path}: {reason}. Nothing was left half-written; free some space or "
            "check the folder's permissions, then run again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def lock_beside(path: Path) -> FileLock:
    """Returns a lock that two processes making the same file hold in turn. Raises: StudyError if none can be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix(".lock")).acquire()
    except OSError as error:
        advice = "Set RTL_CACHE_DIR to a folder that can be written."
        raise StudyError(f"cannot write to {path.parent}: {error.strerror or error}. {advice}") from error


def write_json(path: Path, value) -> None:
    """Writes `value` as readable JSON, atomically. Raises: ValueError on NaN or infinity."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path):
    """Returns the JSON value in `path`. Raises: StudyError when it is missing, cut short or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path} does not exist.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise StudyError(
            f"{path} is not whole JSON ({error}). It was probably cut short; delete it and run again."
        ) from error


def file_stem(name: str) -> str:
    """Returns a corpus's name, or its last 40 characters, as a part of a file's name.

    >>> file_stem("folder:/some/where")
    'folder-some-where'
    """
    return re.sub("[^0-9A-Za-z.-]+", "-", name)[-40:].lstrip("-.")


@contextmanager
def reading_model(folder: Path):
    """Says what to do when a part of a saved model is missing or not whole. Raises: StudyError."""
    try:
        yield
    except (StudyError, SafetensorError, FileNotFoundError, KeyError, TypeError, ValueError) as error:
        found = error.__cause__ or error  # what was found, without advice for other files
        why = str(found).rstrip(".") if isinstance(found, StudyError) else f"{type(found).__name__}: {found}"
        raise StudyError(
            f"the model in {folder} is not whole ({why}); to train it again, delete the record {folder.name}.json "
            "and run its study again."
        ) from error


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's bytes, as hexadecimal. Raises: StudyError when there is no such file."""
    if not Path(path).is_file():
        raise StudyError(f"there is no file {path}; give the path of an existing one.")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
