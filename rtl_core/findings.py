"""What analyses found in trained models: a table for each analysis and record, kept because models are not."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from rtl_core.results import COMMITTED, read_parquet
from rtl_core.storage import StudyError, atomic, results_dir, say, unknown

# Raised by hand when a change of code changes what an analysis finds, so that an old finding is never taken for new.
VERSIONS = {
    "slices": 1, "awareness": 1, "probes": 1, "geometry": 1, "intrinsic": 1, "generation": 1, "limits": 1
}  # fmt: skip


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


def load_findings(analysis: str, names: Iterable[str], every: bool = True) -> pd.DataFrame:
    """Returns what an analysis found in the models of these records: `record` and the analysis's own columns.

    The user's own findings and the committed ones are the same for the same record; the own ones are read first.
    Not `every`: records without are left out.
    Raises: StudyError when a record has none; when all have none, where not every record needs some.
    """
    names = list(dict.fromkeys(names))
    found = findings_of(analysis, names)
    missing = [name for name in names if name not in found]
    if missing and (every or not found):
        raise StudyError(
            f"{analysis} has not been measured of {len(missing)} of {len(names)} records, first {missing[0]}. "
            f"`rtl analyse STUDY --only {analysis}` measures it; that needs the trained models, which are made by "
            "`rtl study`."
        )
    frame = pd.concat(found.values(), ignore_index=True)
    return frame[["record", *frame.columns.drop("record")]]


def collect_findings(names: Iterable[str], folder: Path) -> None:
    """Writes the findings there are of these records as one file an analysis, for a reference folder."""
    for analysis in VERSIONS:
        if frames := findings_of(analysis, sorted(names)):  # not every record was analysed
            whole = pd.concat(frames.values(), ignore_index=True)
            # Few different texts: an integer each on disk. Floats are no such thing, and pack by their bytes.
            texts = [name for name in whole if whole[name].dtype == "str"]
            floats = [name for name in whole if whole[name].dtype.kind == "f"]
            with atomic(committed_path(analysis, folder)) as temporary:
                whole.astype(dict.fromkeys(texts, "category")).to_parquet(
                    temporary, compression="zstd", index=False, use_byte_stream_split=floats,
                    use_dictionary=[name for name in whole if name not in floats],
                )  # fmt: skip


def committed_path(analysis: str, folder: Path) -> Path:
    """Returns where a reference folder keeps what an analysis found in all its records."""
    return Path(folder) / f"{analysis}-{VERSIONS[analysis]}.parquet"


def findings_of(analysis: str, names: list[str], lenient: bool = False) -> dict[str, pd.DataFrame]:
    """Returns the findings there are of these records, by name in the order given.

    Raises: StudyError when a file is not whole; `lenient`: it counts as missing, and a line says so.
    """
    paths = {name: finding_path(analysis, name) for name in names}
    own = {
        name: _read(path, "Delete it and run `rtl analyse` again.", lenient) for name, path in paths.items()
    }
    found = {name: table.assign(record=name) for name, table in own.items() if table is not None}
    committed = committed_path(analysis, results_dir() / "reference")
    shared = _read(committed, COMMITTED, lenient) if len(found) < len(names) else None
    if shared is not None:
        texts = {name: "str" for name in shared if shared[name].dtype == "category"}
        shared = shared[shared["record"].isin(names)].astype(texts)
        found = dict(list(shared.groupby("record"))) | found
    return {name: found[name] for name in names if name in found}


def _read(path: Path, advice: str, lenient: bool) -> pd.DataFrame | None:
    try:
        return read_parquet(path, advice) if path.exists() else None
    except StudyError as error:
        if not lenient:
            raise
        say(f"{error} Now it counts as missing.")
        return None
