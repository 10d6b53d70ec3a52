"""Runs notebooks in fresh kernels, keeps their outputs, and what each cost in notebooks/times.json."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from course.files import folder, read
from rtl_core import notebook
from rtl_core.storage import StudyError, cache_dir, read_json, results_dir, say, write_json

# no times and no editor's marks, so that a notebook's diff shows only what changed
CLEAN = (
    "--log-level=WARN",
    "--ExecutePreprocessor.record_timing=False",
    "--ClearMetadataPreprocessor.enabled=True",
    "--ClearMetadataPreprocessor.preserve_cell_metadata_mask=tags",
    "--ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec",
)


def execute(paths: list[Path], out: Path | None = None) -> None:
    """Runs each notebook and keeps it in its place, or in the folder `out`; times.json learns what it cost.

    A notebook whose run made tables, models or records was timed "the first time". Raises: StudyError naming the
    first notebook that fails, its file stays as it was, or, before any is run, one that cannot be read.
    """
    for path in paths:
        read(path)
        folder(out or path.parent)
    for path in paths:
        say(f"running {path.name}")
        had, held, started = _made(), _downloaded(), time.monotonic()
        memory = _run(path, out or path.parent)
        seconds = round(time.monotonic() - started, 1)
        say(f"  {seconds:.0f} s, {memory} MB")
        if path.name[:2].isdigit():
            key = "first_seconds" if _made() > had else "seconds"
            found = {key: seconds, "memory_mb": memory, "download_mb": round(_downloaded() - held)}
            _note(path.parent / "times.json", path.name[:2], found)


def _run(path: Path, out: Path) -> int:
    """Returns the peak memory in MB of the process that ran a notebook, its kernel included."""
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", *CLEAN]
    command += [str(path), "--output", path.name, "--output-dir", str(out)]
    with tempfile.TemporaryFile("w+", errors="replace") as told:  # shown at the end, and not after Ctrl-C
        running = subprocess.Popen(command, env=os.environ | {"RTL_WIDGETS": "off"}, stderr=told)
        _, status, used = os.wait4(running.pid, 0)
        told.seek(0)
        print(told.read(), end="", file=sys.stderr)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise StudyError(
            f"{path} did not run to its end; the error stands above. Open it and run it cell by cell."
        )
    return used.ru_maxrss // (1_000_000 if platform.system() == "Darwin" else 1000)


def _made() -> int:
    """Returns how many files of tables, models and records there are."""
    return sum(1 for folder in (cache_dir(), results_dir() / "local") for _ in folder.rglob("*.*"))


def _downloaded() -> float:
    """Returns how many MB of downloads there are."""
    return sum(p.stat().st_size for p in (cache_dir() / "raw").rglob("*") if p.is_file()) / 1e6


def _note(path: Path, number: str, found: dict) -> None:
    """Writes a notebook's cost beside that of the others; costs measured on another machine are dropped."""
    times = read_json(path) if path.exists() else {}
    here = {"machine": notebook.machine(), "size": notebook.size()}
    others = times["notebooks"] if {name: times.get(name) for name in here} == here else {}
    before = others.get(number, {})
    if "first_seconds" in before and "first_seconds" in found:  # a part of it may have been there
        found["first_seconds"] = max(found["first_seconds"], before["first_seconds"])
    found["memory_mb"] = max(found["memory_mb"], before.get("memory_mb", 0))
    everything = others | {number: before | found}
    write_json(path, here | {"notebooks": dict(sorted(everything.items()))})
