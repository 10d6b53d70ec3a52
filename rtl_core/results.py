"""What finished runs measured: records, loud and atomic; the table that compares them with their baseline."""

import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from rtl_core.catalogue import SOURCES, base_of
from rtl_core.config import SCORE_CONTEXTS, Experiment
from rtl_core.storage import StudyError, atomic, read_json, results_dir, unknown, write_json

NATS = tuple(f"nats_{context}" for context in SCORE_CONTEXTS)
DOCUMENT_COLUMNS = ("document", "domain", "tokens", *NATS)
# what may differ from the baseline
ARM_FIELDS = ("source", "readout", "occurrences", "pretrain_epochs", "pretrain_on", "input_mode")
TEXT_FIELDS = ("corpus", "corpus_fingerprint", "vocab_size", "lm_tokens", "test_tokens")
BASELINE = {"source": "random", "input_mode": "finetuned"}
MODELS = ("lstm", "kneser-ney", "unigram")  # in the order of rows
ALL_TEXT = ("lm_tokens", None)
PERPLEXITIES = ("perplexity", "perplexity_stream", "perplexity_sentence")  # in the order of SCORE_CONTEXTS
N_RESAMPLES = 2000  # of the documents, for an interval


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
            re.sub(r"(file|folder):.*", r"\1", part) for part in parts
        )  # identity has no paths, nor has a name
        safe = (re.sub(r"[^A-Za-z0-9.-]+", "_", part)[-60:] for part in parts)
        return "-".join((*safe, self.identity[:10]))

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
        if not isinstance(values, dict) or set(values) != names or values["schema"] != cls.schema:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise StudyError(
                f"{path} is no record of schema {cls.schema} (found {found}); delete it and run again."
            )
        # a setting that came later has its default
        return cls(**values | {"experiment": Experiment.from_dict(values["experiment"]).to_dict()})


@dataclass(frozen=True)
class Results:
    """Records and the sums by document behind them: record, document, domain, tokens, nats_CONTEXT."""

    records: list[Record]
    documents: pd.DataFrame

    def select(self, names) -> "Results":
        """Returns the records of these names. Raises: StudyError when one is missing."""
        wanted = set(names)
        if missing := wanted - {record.name for record in self.records}:
            raise StudyError(
                f"{len(missing)} of {len(wanted)} records are missing, first {min(missing)}; run them."
            )
        chosen = [record for record in self.records if record.name in wanted]
        return Results(chosen, self.documents[self.documents["record"].isin(wanted)])


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
    return any(len(arms) > 1 and _select(arms, BASELINE) for arms in _grouped(results).values())


def _load(folder: Path, corpus: str | None) -> Results:
    loaded = {path: Record.load(path) for path in sorted(folder.glob("*.json"))}
    records = {path: r for path, r in loaded.items() if corpus in (None, r.experiment["corpus"])}
    shared = folder / "documents.parquet"
    frames = dict(list(_read_parquet(shared).groupby("record"))) if shared.exists() else {}
    for path, record in records.items():
        if record.status == "done" and record.name not in frames:
            frames[record.name] = _read_parquet(path.with_suffix(".parquet")).assign(record=record.name)
    chosen = [frames[r.name] for r in records.values() if r.name in frames]
    columns = ["record", *DOCUMENT_COLUMNS]
    empty = pd.DataFrame(columns=columns)
    return Results(list(records.values()), pd.concat(chosen, ignore_index=True)[columns] if chosen else empty)


def _read_parquet(path: Path) -> pd.DataFrame:
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError) as error:
        raise StudyError(
            f"{path}, the sums by document behind a record, is missing or not whole ({error}). "
            "Delete it and the JSON of the same name, then run that experiment again."
        ) from error


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


def compare(results: Results, baseline: dict | None = None) -> pd.DataFrame:
    """Returns one row an arm: perplexities, and its effect against the baseline, all other settings equal.

    Effect: difference of token-weighted mean nats (context document) over the seeds that both have, as per
    cent of perplexity. Its 95 % interval joins a bootstrap over documents with the variance over seeds; one
    seed has none: run SIZE=laptop for intervals. Failed runs are left out and counted in `attrs["failed"]`.
    `baseline` says which arm that is, by values of `ARM_FIELDS`.
    Raises: StudyError when no group of records has a baseline.
    """
    wanted = BASELINE | (baseline or {})
    for name in wanted:
        if name not in ARM_FIELDS:
            raise unknown("field of an arm", name, ARM_FIELDS)
    groups = _grouped(results)
    bounds = {setting: _bounds(setting, groups) for setting in groups if ("model", "lstm") in setting}
    used = [seeds for beside in bounds.values() for seeds in beside]
    studies = {s: groups[s] for s in bounds if any(seeds not in used for seeds in groups[s].values())}
    bases = {setting: _select(arms, wanted) for setting, arms in studies.items()}
    if not any(bases.values()):
        raise _no_baseline(studies, wanted)
    rows = []
    for setting, arms in studies.items():
        entries = [("baseline" if seeds is bases[setting] else "arm", seeds) for seeds in arms.values()]
        entries += [("bound", seeds) for seeds in bounds[setting]]
        described = {"settings": _differing(setting, studies), "lm_tokens": dict(setting)["lm_tokens"]}
        rows += [row | described for row in _rows(results.documents, entries, bases[setting])]
    table = pd.DataFrame(sorted(rows, key=_order))
    whole = ("lm_tokens", "pretrain_epochs", "occurrences", "extra_tokens")
    table = table.astype(dict.fromkeys(whole, "Int64") | {"converged": "boolean"})
    table.attrs["failed"] = sum(r.status == "failed" for r in results.records)
    return table


def effect(arm: np.ndarray, baseline: np.ndarray, tokens: np.ndarray, seed: int = 0) -> dict:
    """Returns effect_percent, its 95 % interval low_percent and high_percent, and p_value; NaN without seeds.

    Shapes: arm, baseline (n_documents, n_seeds), summed nats, paired; tokens (n_documents,).
    """
    difference = arm - baseline
    n_documents, n_seeds = difference.shape
    per_seed = difference.sum(axis=0) / tokens.sum()
    mean, half, p = per_seed.mean() if n_seeds else math.nan, math.nan, math.nan
    if n_seeds > 1 and n_documents > 1:
        even = np.full(n_documents, 1 / n_documents)
        drawn = np.random.default_rng(seed).multinomial(n_documents, even, size=N_RESAMPLES)
        resampled = (drawn @ difference.mean(axis=1)) / (drawn @ tokens)
        spread = math.sqrt(resampled.var(ddof=1) + per_seed.var(ddof=1) / n_seeds)
        half = stdtrit(n_seeds - 1, 0.975) * spread
        p = 2 * stdtr(n_seeds - 1, -abs(mean) / spread) if spread else 1.0
    percent = 100 * np.expm1([mean, mean - half, mean + half])
    names = ("effect_percent", "low_percent", "high_percent", "p_value")
    return dict(zip(names, map(float, (*percent, p))))


def _grouped(results: Results) -> dict[frozenset, dict[tuple, dict[int, Record]]]:
    """Returns setting → arm → seed → finished record; a setting is every field but the arm's and the seed."""
    groups: dict = {}
    done = (r for r in results.records if r.status == "done")
    for record in sorted(done, key=lambda r: (r.experiment["seed"], r.name)):
        values = record.experiment | {"corpus_fingerprint": record.text["corpus_fingerprint"]}
        seed, arm = values.pop("seed"), tuple(values.pop(name) for name in ARM_FIELDS)
        seeds = groups.setdefault(frozenset(values.items()), {}).setdefault(arm, {})
        if seed in seeds:
            raise StudyError(
                f"records {seeds[seed].name} and {record.name} are the same experiment, made by two versions "
                "of its recipe or of a file that it reads; delete the older one."
            )
        seeds[seed] = record
    return groups


def _select(arms: dict, wanted: dict) -> dict[int, Record]:
    """Returns the seeds of the one arm that has the `wanted` values; {} when there is none."""
    found = [seeds for arm, seeds in arms.items() if wanted.items() <= dict(zip(ARM_FIELDS, arm)).items()]
    if len(found) > 1:
        raise StudyError(
            f"{len(found)} arms have {wanted}; say which is the baseline by more of {ARM_FIELDS}."
        )
    return found[0] if found else {}


def _bounds(setting: frozenset, groups: dict) -> list[dict[int, Record]]:
    """Returns the bounds of a group: n-grams of the same text, and the same LM trained on all text."""
    text = {item for item in setting if item[0] in TEXT_FIELDS}
    same = {item for item in setting if item[0] not in ("lm_tokens", "max_epochs")}
    found = []
    for other, arms in groups.items():
        if ("model", "lstm") not in other and text <= other:
            found += arms.values()
        elif ALL_TEXT in other and ALL_TEXT not in setting and same <= other:
            found.append(_select(arms, BASELINE))
    return [seeds for seeds in found if seeds]


def _rows(documents: pd.DataFrame, entries: list, base: dict[int, Record]) -> list[dict]:
    """Returns the row of each (role, seed → record): its settings, perplexities and effect against `base`."""
    names = {record.name for _, seeds in entries for record in seeds.values()}
    chosen = documents[documents["record"].isin(names)]
    sums = chosen.pivot(index="document", columns="record", values=["tokens", *NATS])
    if sums.isna().any(axis=None) or sums["tokens"].nunique(axis=1).max() > 1:
        counts = chosen.groupby("record").size().to_dict()
        raise StudyError(
            f"these records were not scored on the same test text (documents: {counts}); run them again."
        )
    tokens = sums["tokens"].iloc[:, 0].to_numpy()
    rows = []
    for role, seeds in entries:
        first = next(iter(seeds.values()))
        means = {c: sums[c][[r.name for r in seeds.values()]].sum() / tokens.sum() for c in NATS}
        # An n-gram has no seed of its own: it is set against every seed of the baseline.
        paired = seeds if first.experiment["model"] == "lstm" else dict.fromkeys(base, first)
        common = [seed for seed in paired if seed in base and role != "baseline"]
        ours, theirs = ([of[seed].name for seed in common] for of in (paired, base))
        nats = sums["nats_document"]
        rows.append(
            {
                **{name: first.experiment[name] for name in (*ARM_FIELDS, "corpus", "output_init", "model")},
                "role": role,
                "lm_tokens_used": first.text["lm_tokens"],
                "vocab_size": first.text["vocab_size"],
                "unk_share": first.text["unk_share"],
                "test_tokens": int(tokens.sum()),
                "test_documents": len(tokens),
                "n_seeds": len(seeds),
                "seeds": tuple(np.exp(means["nats_document"]).tolist()),
                **{name: float(np.exp(means[nat].mean())) for name, nat in zip(PERPLEXITIES, NATS)},
                **effect(nats[ours].to_numpy(), nats[theirs].to_numpy(), tokens),
                "extra_tokens": first.text["extra_tokens"],
                "converged": None if first.converged is None else all(r.converged for r in seeds.values()),
                "training_seconds": float(np.mean([r.training_seconds for r in seeds.values()])),
            }
        )
    return rows


def _differing(setting: frozenset, studies: dict) -> str:
    """Returns the settings, other than those a table shows anyway, in which the groups of a table differ."""
    shared = frozenset.intersection(*studies)
    values = {k: v for k, v in setting - shared if k not in ("corpus", "lm_tokens")}
    if len({dict(s)["corpus"] for s in studies}) == len({dict(s)["corpus_fingerprint"] for s in studies}):
        values.pop("corpus_fingerprint", None)
    return ", ".join(f"{k} {str(v)[:12]}" for k, v in sorted(values.items()))


def _order(row: dict) -> tuple:
    """Returns the key of the fixed order of rows: baseline, arms as in SOURCES, their controls, bounds."""
    base, places = base_of(row["source"]), tuple(SOURCES)
    return (
        row["corpus"], row["lm_tokens"] or math.inf, row["settings"],
        ("baseline", "arm", "bound").index(row["role"]), MODELS.index(row["model"]),
        base != row["source"], places.index(base) if base in places else len(places),
        row["source"], row["readout"], row["input_mode"], row["pretrain_on"], row["pretrain_epochs"] or 0,
        row["occurrences"] or math.inf,
    )  # fmt: skip


def _no_baseline(studies: dict, wanted: dict) -> StudyError:
    if not studies:
        return StudyError("there is no finished language model among the records; `make study` makes them.")
    setting, arms = next(iter(studies.items()))
    values = dict(setting) | wanted
    defaults = {f.name: f.default for f in fields(Experiment)}
    changed = [f"{k}={values[k]!r}" for k, d in defaults.items() if k in values and values[k] != d]
    seeds = sorted({seed for of_arm in arms.values() for seed in of_arm})
    return StudyError(
        f"no baseline: none of the {len(arms)} finished arms has {wanted} with all other settings equal. "
        f"Make it, for seed in {seeds}: rtl.run(rtl.Experiment({', '.join([*changed, 'seed=seed'])}))."
    )
