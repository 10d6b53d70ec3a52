"""What stored ledgers, records and saved models tell beyond one perplexity: tables, each with a figure."""

import os
import time
import warnings
from collections.abc import Iterable
from importlib import import_module

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from rtl_core.catalogue import LEAKY
from rtl_core.findings import VERSIONS, findings_of, model_dir, save_finding
from rtl_core.results import Record
from rtl_core.storage import StudyError, say, unknown

WITHOUT_MODEL = ("slices", "limits")  # the others look into the trained one
# analysis -> the module whose `measure(record)` finds it; imported when it is wanted
MEASURES = {name: f"rtl_core.analysis.{name}" for name in VERSIONS} | {"slices": "rtl_core.slices"}


def analyse(records: Iterable[Record], only: Iterable[str] = (), workers: int | None = None) -> list[dict]:
    """Measures of every finished record what was not measured yet; returns one row an analysis.

    Rows: analysis, there (before), measured, refused (record -> why it could not be measured). `only` names analyses
    (none: all), `workers` the processes, of one thread each (None: one a core). What is measured is kept at once, so
    that an interrupted call goes on where it stopped.
    Raises: StudyError for an unknown analysis.
    """
    only = (only,) if isinstance(only, str) else tuple(only) or tuple(MEASURES)
    records = [r for r in records if r.status == "done"]
    for name in only:
        if name not in MEASURES:
            raise unknown("analysis", name, tuple(MEASURES))
    jobs, rows = [], {}
    for name in only:
        wanted = [record for record in records if _applies(name, record)]
        there = findings_of(name, [record.name for record in wanted], lenient=True)
        jobs += [(name, record) for record in wanted if record.name not in there]
        rows[name] = {"analysis": name, "there": len(there), "measured": 0, "refused": {}}
    say(f"{sum(row['there'] for row in rows.values())} findings there, {len(jobs)} to measure")
    for name, record, fault in _done(jobs, os.cpu_count() or 1 if workers is None else workers):
        rows[name]["measured"] += not fault
        rows[name]["refused"] |= {record: fault} if fault else {}
    return list(rows.values())


def _applies(analysis: str, record: Record) -> bool:
    """Returns whether there is what an analysis looks at: n-grams and the leaking source keep no model."""
    e = record.experiment
    if analysis == "limits":
        return e["model"] == "lstm" and e["corpus"].startswith("topicworld")
    return analysis in WITHOUT_MODEL or (e["model"] == "lstm" and e["source"] != LEAKY)


def _done(jobs: list[tuple[str, Record]], workers: int):
    """Yields (analysis, record, why not or "") as jobs are done side by side; one line for each."""
    if workers < 1:
        raise StudyError(f"{workers} workers cannot measure anything; give 1 or more, or leave them out.")
    with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1), warnings.catch_warnings():
        # joblib replaces a worker whose memory has grown, which is as it should be
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        results = Parallel(return_as="generator_unordered")(delayed(_measure)(*job) for job in jobs)
        for name, record, fault, seconds in tqdm(results, "analyse", len(jobs), disable=None, unit="job"):
            with tqdm.external_write_mode():
                say(f"{name} of {record}: {fault or f'{seconds:.0f} s'}")
            yield name, record, fault


def _measure(analysis: str, record: Record) -> tuple[str, str, str, float]:
    started, fault = time.perf_counter(), ""
    again = f"delete the record {record.name}.json and run its study again"
    try:
        if analysis not in WITHOUT_MODEL and not model_dir(record.name).is_dir():
            raise StudyError(
                f"its trained model is gone ({model_dir(record.name)} is not there); {again} to have one."
            )
        save_finding(analysis, record.name, import_module(MEASURES[analysis]).measure(record))
    except StudyError as error:
        fault = str(error)
    # one record must not stop the others
    except (LookupError, ValueError, TypeError, OSError, RuntimeError) as error:
        fault = f"it could not be measured ({type(error).__name__}: {error}); {again}."
    return analysis, record.name, fault, time.perf_counter() - started
