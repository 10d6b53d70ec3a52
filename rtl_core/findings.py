"""What analyses found in trained models: a table for each analysis and record, kept because models are not."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from rtl_core.results import read_parquet
from rtl_core.storage import StudyError, atomic, results_dir, unknown

# Raised by hand when a change of code changes what an analysis finds, so that an old finding is never taken for new.
VERSIONS = {"slices": 1, "awareness": 1, "probes": 1, "geometry": 1, "intrinsic": 1, "generation": 1}


def model_dir(name: str) -> Path:
    """Returns the folder of the trained model behind the user's own record of this name."""
    return results_dir() / "local" / "models" / name


def finding_path(analysis: str, name: str) -> Path:
    """Returns where an analysis of the record of this name is kept among the user's own results.

    Raises: StudyError for an unknown analysis.
    """
    if analysis not in VERSIONS:
        raise unknown("analysis", analysis, tuple(VERSIONS))
    return results_dir() / "local" / "findings" / f"{analysis}-{VERSIONS[analysis]}" / f"{name}.parquet"


def save_finding(analysis: str, name: str, frame: pd.DataFrame) -> Path:
    """Writes what an analysis found in one model, atomically; returns its path. Raises: StudyError without a row."""
    path = finding_path(analysis, name)
    if frame.empty:
        raise StudyError(f"{analysis} of {name} found nothing; nothing was written.")
    with atomic(path) as temporary:
        frame.to_parquet(temporary, compression="zstd", index=False)
    return path


def load_findings(analysis: str, names: Iterable[str]) -> pd.DataFrame:
    """Returns what an analysis found in the models of these records: `record` and the analysis's own columns.

    The user's own findings and the committed ones are the same for the same record; the own ones are read first.
    Raises: StudyError when a record has none.
    """
    names, found = list(dict.fromkeys(names)), {}
    committed = results_dir() / "reference" / f"{analysis}.parquet"
    for name in names:
        if (path := finding_path(analysis, name)).exists():
            found[name] = read_parquet(path).assign(record=name)
    if len(found) < len(names) and committed.exists():
        shared = read_parquet(committed)
        found = dict(list(shared[shared["record"].isin(names)].groupby("record", observed=True))) | found
    if missing := [name for name in names if name not in found]:
        raise StudyError(
            f"{analysis} has not been measured of {len(missing)} of {len(names)} records, first {missing[0]}. "
            f"`rtl analyse STUDY --only {analysis}` measures it; that needs the trained models, which are made by "
            "`rtl study`."
        )
    frame = pd.concat([found[name] for name in names], ignore_index=True)
    return frame[["record", *frame.columns.drop("record")]]


def collect_findings(names: Iterable[str], folder: Path) -> None:
    """Writes the findings there are of these records as one file an analysis, for a reference folder."""
    for analysis in VERSIONS:
        frames = []
        for name in sorted(names):
            try:
                frames.append(load_findings(analysis, [name]))
            except StudyError:  # not every record was analysed
                continue
        if frames:
            whole = pd.concat(frames, ignore_index=True)
            texts = [
                c for c in whole if whole[c].dtype == "str"
            ]  # few different ones: an integer each on disk
            with atomic(Path(folder) / f"{analysis}.parquet") as temporary:
                whole.astype(dict.fromkeys(texts, "category")).to_parquet(
                    temporary, compression="zstd", index=False
                )
