"""What finished runs measured: records, loud and atomic, and the sums of their token ledgers by document."""

import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd

from rtl_core.catalogue import LEAKY
from rtl_core.choices import ORACLE
from rtl_core.config import SCORE_CONTEXTS, Experiment
from rtl_core.storage import StudyError, atomic, read_json, results_dir, unknown, write_json
from rtl_core.studies import grid

NATS = tuple(f"nats_{context}" for context in SCORE_CONTEXTS)
DOCUMENT_COLUMNS = ("document", "domain", "tokens", *NATS)
# what may differ from the baseline
ARM_FIELDS = (
    "source", "readout", "occurrences", "pretrain_epochs", "pretrain_on", "pretrain_tokens", "encoder_layers",
    "layer", "encoder", "fold", "input_init", "input_mode", "l2sp", "warmup_frozen", "output_init", "output_mode",
    "context_feature", "auxiliary", "auxiliary_weight",
)  # fmt: skip
BASELINE = {"source": "random", "input_mode": "finetuned"}
SHARED = ("output_init", "output_mode", "warmup_frozen")  # what all arms of a study may have in common
# what to do about a table that is not whole
BESIDE_RECORD = "Delete it and the JSON of the same name, then run that experiment again."
COMMITTED = "Restore it as it was committed."


@dataclass(frozen=True)
class Record:
    """What one run measured, as JSON-able values only. Raises: StudyError on NaN or infinity."""

    experiment: dict  # Experiment.to_dict()
    identity: str
    status: str = "done"  # or failed: the run diverged; kept, so that it is not repeated by itself
    failure: str = ""  # what went wrong, of a failed run
    text: dict = field(default_factory=dict)  # corpus, fingerprint, sizes, unk_share, extra_tokens
    pretrained: dict = field(default_factory=dict)  # provenance, scores, coverage
    scores: dict = field(
        default_factory=dict
    )  # test_perplexity_document, …_stream, …_sentence, valid_perplexity
    history: list = field(default_factory=list)  # one row an epoch
    trials: list = field(default_factory=list)  # of tuning, one row each; the rest is of the chosen one
    converged: bool | None = None  # false: the last epoch still gained over 1 %; None: nothing was trained
    training_seconds: float = 0.0
    pretraining_seconds: float = 0.0
    scoring_seconds: float = 0.0
    environment: dict = field(default_factory=dict)  # versions, device, threads, commit, dirty, date
    schema: int = 1

    def __post_init__(self):
        if self.status not in ("done", "failed"):
            raise unknown("status", self.status, ("done", "failed"))
        bad = next(_not_finite(asdict(self), "record"), None)
        if bad:
            raise StudyError(
                f"{bad[0]} is {bad[1]}; a record holds finite numbers only. A run that diverged is stored as "
                "status 'failed', without that number."
            )

    @property
    def name(self) -> str:
        """File name without suffix: corpus, source, seed and the start of the identity."""
        parts = (self.experiment["corpus"], self.experiment["source"], str(self.experiment["seed"]))
        parts = (
            re.sub(r"(file|code|folder|hub):.*", r"\1", part) for part in parts
        )  # identity has no paths, nor has a name
        safe = (re.sub(r"[^A-Za-z0-9.-]+", "_", part)[-60:] for part in parts)
        return "-".join((*safe, self.identity[:10]))

    @property
    def told(self) -> str:
        """What the model was told of its test text that nobody knows beforehand, for teaching; "" of honest ones."""
        if self.experiment["source"] == LEAKY:
            return f"the source {LEAKY} sees the words that it must predict"
        feature = self.experiment["context_feature"]
        return f"the feature {feature} is the document's true label" if feature == ORACLE else ""

    def save(self, folder: Path, documents: pd.DataFrame | None) -> Path:
        """Returns the path of the JSON; `documents` (see `document_sums`; None: a failed run) lies beside it.

        Raises: StudyError when another record has this name, or when `documents` has other columns.
        """
        path = Path(folder) / f"{self.name}.json"
        if path.exists() and Record.load(path) != self:
            raise StudyError(
                f"{path} holds another record of the same experiment; delete it to keep this one."
            )
        if (documents is None) != (self.status == "failed"):
            raise StudyError(
                f"record {self.name} is {self.status}: a finished run, and no other, has sums by document."
            )
        if documents is not None:  # before the JSON, so that a JSON implies its parquet
            _write_parquet(documents, DOCUMENT_COLUMNS, path.with_suffix(".parquet"))
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Returns the record in `path`. Raises: StudyError when it is cut short or of another schema."""
        values = read_json(path)
        names = {f.name for f in fields(cls)}
        whole = isinstance(values, dict) and set(values) | {"trials"} == names
        if not whole or values["schema"] != cls.schema:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise StudyError(
                f"{path} is no record of schema {cls.schema} (found {found}); delete it and run again."
            )
        # what came later (trials, settings) has its default
        return cls(**values | {"experiment": Experiment.from_dict(values["experiment"]).to_dict()})


@dataclass(frozen=True)
class Results:
    """Records and the sums by document behind them: record, document, domain, tokens, nats_CONTEXT."""

    records: list[Record]
    documents: pd.DataFrame
    folder: Path | None = None  # where they were loaded from; None: a selection

    def select(self, names) -> "Results":
        """Returns the records of these names. Raises: StudyError when one is missing."""
        wanted = set(names)
        if missing := wanted - {record.name for record in self.records}:
            raise StudyError(
                f"{len(missing)} of {len(wanted)} records are missing, first {min(missing)}; run them."
            )
        chosen = [record for record in self.records if record.name in wanted]
        return Results(chosen, self.documents[self.documents["record"].isin(wanted)])

    @property
    def honest(self) -> "Results":
        """The records of models that were told nothing of their test text: see `Record.told`."""
        return self.select(r.name for r in self.records if not r.told)

    def of(self, *studies: str) -> "Results":
        """Returns the records of these studies: those whose settings are in their grids."""
        wanted = [e.settled().to_dict() for name in studies for e in grid(name)]
        return self.select(r.name for r in self.records if r.experiment in wanted)


def document_sums(ledger: pd.DataFrame, domains: tuple[str, ...] = ()) -> pd.DataFrame:
    """Returns a token ledger summed by document: document, domain (by name), tokens, nats_CONTEXT."""
    groups = ledger.astype(dict.fromkeys(NATS, "float64")).groupby("document", observed=True, sort=False)
    sums = groups[list(NATS)].sum()
    names = [domains[i] if i >= 0 else None for i in groups["domain"].first()]
    sums.insert(0, "domain", pd.Series(names, sums.index, dtype="str"))
    sums.insert(1, "tokens", groups.size())
    return sums.reset_index().astype({"document": "str"})


def load_results(folder: str | Path | None = None, *, corpus: str | None = None) -> Results:
    """Returns the records in `folder`: a path, "local" (your own runs) or "reference" (the committed ones).

    None: "local" once it holds a study, that is a baseline and another arm to compare with it; until then
    "reference", so that a table can be shown before anything has run.
    Raises: StudyError when there is none, or when a record or its parquet is missing or cut short.
    """
    if folder is None:
        local, reference = _load(results_dir() / "local", corpus), _load(results_dir() / "reference", corpus)
        results = local if _holds_study(local) or not reference.records else reference
    else:
        results = _load(results_dir() / folder if folder in ("local", "reference") else Path(folder), corpus)
    if not results.records:
        where = f"in {folder or results_dir()}" + (f" for corpus {corpus}" if corpus else "")
        raise StudyError(f"there are no records {where}; `make study` makes them, or name another folder.")
    return results


def collect(results: Results, folder: Path) -> None:
    """Writes records as a reference folder: a JSON each and one documents.parquet for all.

    Raises: StudyError when the folder already holds records: old and new results must not mix.
    """
    folder = Path(folder)
    if old := list(folder.glob("*.json")):
        raise StudyError(f"{folder} already holds {len(old)} records; delete them before writing new ones.")
    _write_parquet(results.documents, ("record", *DOCUMENT_COLUMNS), folder / "documents.parquet")
    for record in results.records:
        write_json(folder / f"{record.name}.json", asdict(record))


def record_rows(results: Results) -> pd.DataFrame:
    """Returns one row a record: settings, status, test perplexity in each context, seconds, extra tokens."""
    rows = [
        {
            "record": record.name,
            **record.experiment,
            "status": record.status,
            **{key: record.scores.get(key) for key in (f"test_perplexity_{c}" for c in SCORE_CONTEXTS)},
            "training_seconds": record.training_seconds,
            "extra_tokens": record.text.get("extra_tokens"),
            "converged": record.converged,
        }
        for record in results.records
    ]
    return pd.DataFrame(rows, dtype=object).infer_objects()  # whole numbers stay whole beside None


def _holds_study(results: Results) -> bool:
    return any(len(arms) > 1 and select_arm(arms, BASELINE) for arms in grouped(results).values())


def _load(folder: Path, corpus: str | None) -> Results:
    loaded = {path: Record.load(path) for path in sorted(folder.glob("*.json"))}
    records = {path: r for path, r in loaded.items() if corpus in (None, r.experiment["corpus"])}
    shared = folder / "documents.parquet"
    frames = dict(list(read_parquet(shared, COMMITTED).groupby("record"))) if shared.exists() else {}
    for path, record in records.items():
        if record.status == "done" and record.name not in frames:
            table = read_parquet(path.with_suffix(".parquet"), BESIDE_RECORD)
            frames[record.name] = table.assign(record=record.name)
    chosen = [frames[r.name] for r in records.values() if r.name in frames]
    columns = ["record", *DOCUMENT_COLUMNS]
    empty = pd.DataFrame(columns=columns)
    documents = pd.concat(chosen, ignore_index=True)[columns] if chosen else empty
    return Results(list(records.values()), documents, folder)


def read_parquet(path: Path, advice: str = "Delete it and run again: it is made anew.") -> pd.DataFrame:
    """Returns a stored table. Raises: StudyError, with advice, when it is missing or not whole."""
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError) as error:
        raise StudyError(f"{path} is missing or not whole ({error}). {advice}") from error


def _write_parquet(frame: pd.DataFrame, columns: tuple, path: Path) -> None:
    if tuple(frame.columns) != columns:
        raise StudyError(f"sums by document need the columns {columns}; found {tuple(frame.columns)}.")
    if not np.isfinite(frame[list(NATS)].to_numpy()).all():
        raise StudyError(f"the sums by document for {path.name} hold NaN or infinity; nothing was written.")
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _not_finite(value, place: str):
    """Yields (place, value) of every NaN or infinity inside a JSON-able value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, value


def grouped(
    results: Results, arm_fields: tuple = ARM_FIELDS
) -> dict[frozenset, dict[tuple, dict[int, Record]]]:
    """Returns setting → arm → seed → finished record; a setting is every field but the arm's and the seed."""
    groups: dict = {}
    done = (r for r in results.records if r.status == "done")
    for record in sorted(done, key=lambda r: (r.experiment["seed"], r.name)):
        values = record.experiment | {"corpus_fingerprint": record.text["corpus_fingerprint"]}
        seed, arm = values.pop("seed"), tuple(values.pop(name) for name in arm_fields)
        seeds = groups.setdefault(frozenset(values.items()), {}).setdefault(arm, {})
        if seed in seeds:
            raise StudyError(
                f"records {seeds[seed].name} and {record.name} are the same experiment, made by two versions "
                "of its recipe or of a file that it reads; delete the older one."
            )
        seeds[seed] = record
    return groups


def select_arm(arms: dict, wanted: dict, arm_fields: tuple = ARM_FIELDS) -> dict[int, Record]:
    """Returns the seeds of the arm that has the `wanted` values and is plain in all else; {} when there is none.

    Plain: every other field of an arm at its default. Where none is, one that differs in `SHARED` alone will do (a
    study whose arms are all tied, say, has its baseline tied), or in settings that `arm_fields` has beside an arm's.
    """
    plain = {f.name: f.default for f in fields(Experiment) if f.name in arm_fields} | wanted
    for free in ((), SHARED, (*SHARED, *set(arm_fields).difference(ARM_FIELDS))):
        needed = {name: value for name, value in plain.items() if name not in free or name in wanted}
        found = [arm for arm in arms if needed.items() <= dict(zip(arm_fields, arm)).items()]
        if len(found) == 1:
            return arms[found[0]]
    return {}
