"""From settings to records: run one experiment, run a grid."""

import os
import platform
import subprocess
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from rtl_core import bounds
from rtl_core.batches import stream_batches, unit_batches
from rtl_core.catalogue import LEAKY, base_of, parts_of, table_of
from rtl_core.config import SCORE_CONTEXTS, Experiment, derive_seed
from rtl_core.context import save_reader, with_context
from rtl_core.corpora.corpus import SPLITS
from rtl_core.corpora.labelled import LABELLED, check_at_hand
from rtl_core.corpora.vocabulary import UNK_ID
from rtl_core.embeddings import Embeddings
from rtl_core.findings import model_dir
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.pretrain import Pretrained, lm, pretrain
from rtl_core.results import Record, document_sums
from rtl_core.scoring import label_scores, ledger_of, nats_by_context, perplexity, token_nats
from rtl_core.softmax import fast_bf16
from rtl_core.storage import StudyError, atomic, project_root, results_dir, say
from rtl_core.texts import (
    Text,
    extra_tokens,
    feature_documents,
    fingerprint_of,
    forget,
    pretraining_corpus,
    text_of,
    vocabulary_of,
)
from rtl_core.training import Diverged, History, Optimisation, device, fit, give_back_memory
from rtl_core.transfer import build_model, save_model
from rtl_core.tuning import Trial, best_trial, trials_of

# Threads of one worker share torch's random generator: two runs at once would not be reproducible.
one_at_a_time = threading.Lock()
VERSIONS = ("torch", "numpy", "numba", "gensim", "pandas", "scikit-learn")


def record_path(e: Experiment):
    """Returns where the record of an experiment lies, or will lie, among the user's own results."""
    name = Record(e.to_dict(), e.identity(fingerprint_of(e))).name
    return results_dir() / "local" / f"{name}.json"


def run(e: Experiment) -> Record:
    """Returns the record of an experiment: loaded if it exists, else made now; it says which.

    Making it means: pre-train (or load) the embeddings, transfer them, fit the language model, score the
    test text once, store the record, its ledger and its model. An interrupted run resumes at its last epoch.
    It uses every core, where `run_all` gives each run one: sums in another order may differ in the last digits.
    """
    _ = e.file_inputs  # a missing file is named before a corpus is read
    path = record_path(e)
    if path.exists():
        record = Record.load(path)
        seconds, date = record.training_seconds, record.environment["date"][:10]
        say(f"loaded {record.name} ({record.status}; trained {seconds:.0f} s on {date})")
        return record
    say(f"running {path.stem}")
    return _make(e)


def _make(e: Experiment) -> Record:
    return _make_bound(e.settled()) if e.model != "lstm" else _make_lstm(e)


def run_all(
    experiments: list[Experiment], workers: int | None = None, scheduler: str | None = None
) -> list[Record]:
    """Returns the records of a grid, in order. Each worker is one process of one thread.

    `workers` None: one a core. `scheduler`: the address of a Dask cluster to run on instead. Each table is
    made once, before the language models that need it.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise StudyError(
            f"{workers} workers cannot run anything; give 1 or more, or leave them out: one a core."
        )
    for task in {
        base_of(part) for e in experiments for part in parts_of(table_of(e.source))
    } & LABELLED.keys():
        check_at_hand(task)  # before hours of other runs
    # Reading a corpus here harvests it once, before the workers need it.
    paths = [record_path(e) for e in experiments]
    missing = list({path: e for e, path in zip(experiments, paths) if not path.exists()}.values())
    n_loaded = len(experiments) - len(missing)
    say(f"{n_loaded} of {len(experiments)} runs loaded from records, {len(missing)} to do")
    if missing and scheduler is None and workers == 1:
        for e in missing:
            say(_run_one(e))
    elif missing:
        # Runs that need no table fill the workers while the last tables are being made.
        missing.sort(key=_needs_table)
        tables = {_table_key(e): e for e in missing if _needs_table(e)}
        jobs = [delayed(_pretrain_one)(e) for e in tables.values()]
        forget()
        give_back_memory()
        with _workers(workers, scheduler) as parallel:
            _progress(parallel, [*jobs, *(delayed(_run_one)(e) for e in missing)])
    return [Record.load(path) for path in paths]


def _needs_table(e: Experiment) -> bool:
    return e.model == "lstm" and e.pretraining.base.source not in ("random", LEAKY)


def _table_key(e: Experiment) -> tuple:
    """Returns what decides the table behind an experiment; controls of one table share it."""
    text = e.settled().pretrain_on
    own_text = e.lm_tokens if text == "lm-split" else None
    return e.pretraining.base.settled(), e.corpus, e.vocab_size, text, e.settled().pretrain_tokens, own_text


def _pretrained(e: Experiment, config) -> Pretrained:
    return pretrain(config, pretraining_corpus(e), vocabulary_of(e))


def _workers(workers: int, scheduler: str | None):
    """Returns a context that yields a joblib Parallel over local processes or a Dask cluster."""

    @contextmanager
    def local():
        with (
            parallel_config("loky", n_jobs=workers, inner_max_num_threads=1),
            Parallel(return_as="generator_unordered") as parallel,
        ):
            try:
                yield parallel
            except StudyError as error:
                raise error from None  # its message says all; joblib's cause is the worker's traceback

    @contextmanager
    def cluster():
        try:
            from distributed import Client
        except ImportError:
            raise StudyError("a cluster needs the extra: pip install -e '.[cluster]'") from None
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise StudyError(f"no Dask scheduler answers at {scheduler} ({error}); give HOST:PORT.") from None
        with client, parallel_config("dask"), Parallel(return_as="generator_unordered") as parallel:
            yield parallel

    return cluster() if scheduler else local()


def _progress(parallel: Parallel, jobs: list) -> None:
    """Runs jobs side by side; one line for each that is done."""
    with warnings.catch_warnings():
        # joblib replaces a worker whose memory has grown, which is as it should be
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        for line in tqdm(parallel(jobs), "study", len(jobs), disable=None, unit="job"):
            with tqdm.external_write_mode():
                say(line)


@contextmanager
def _alone():
    """One run of one thread at a time in this process; the caller's number of threads comes back."""
    with one_at_a_time:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            give_back_memory()


def _pretrain_one(e: Experiment) -> str:
    config = e.pretraining.base
    with _alone():
        made = _pretrained(e, config)
    scores = ", ".join(f"{name} {value:.3g}" for name, value in made.scores.items())
    return f"{config.source}, seed {config.seed}: {made.embeddings.provenance['seconds']:.0f} s {scores}"


def _run_one(e: Experiment) -> str:
    with _alone():
        record = _make(e)
    found = record.scores.get("test_perplexity_document")
    what = f"test perplexity {found:.1f} (document)" if found else record.status
    return f"{record.name}: {what}, {record.training_seconds:.0f} s"


def _make_lstm(e: Experiment) -> Record:
    """Trains and scores an LSTM; stores ledger, model and, when all else is there, the record."""
    text, leaky = text_of(e), e.source == LEAKY
    pretrained = _pretrained(e, e.pretraining)
    if leaky:
        text = _leaked(text, pretrained.model, e.layer)
    text, reader = with_context(e, text)

    def train(e: Experiment) -> Trial:
        model = untrained_model(e, text, pretrained.embeddings)
        return Trial(e, model, fit_language_model(e, model, text))

    (chosen, model, history), trials = best_trial(e, train)
    facts = pretrained.embeddings.provenance
    coverage = pretrained.embeddings.coverage(text.vocabulary)
    common = {
        "pretrained": {"provenance": facts, "scores": pretrained.scores, "coverage": coverage},
        "history": history.rows,
        "trials": trials,
        "training_seconds": sum(row["seconds"] for row in history.rows),
        "pretraining_seconds": facts.get("seconds", 0.0),
    }
    if history.failed:
        record = _store(
            e, text, None, common | {"status": "failed", "failure": history.failed, "converged": False}
        )
    else:
        started = time.perf_counter()
        nats = nats_by_context(model, text.test)
        common |= {"converged": history.converged, "scoring_seconds": time.perf_counter() - started}
        best = min(row["valid_loss"] for row in history.rows)
        common["scores"] = {f"valid_perplexity_{e.train_context}": float(np.exp(best))}
        common["scores"] |= label_scores(model, text.test) | (reader.scores(text.test) if reader else {})
        name = record_path(e).stem
        if not leaky:  # a text of one's own has no such features
            save_model(model_dir(name), model, text.vocabulary, chosen, text.corpus.tokenizer)
            save_reader(model_dir(name), reader)
        record = _store(e, text, nats, common)
    for trial in trials_of(e):
        checkpoint_path(trial).unlink(missing_ok=True)
    return record


def untrained_model(e: Experiment, text: Text, embeddings: Embeddings) -> LSTMLanguageModel:
    """Returns the model to be trained on a text and its features, with a second task where the text has labels."""
    n_features = 0 if text.train.features is None else text.train.features.shape[1]
    model = build_model(e, text.vocabulary, embeddings, text.lm_counts, n_features)
    if text.train.labels is not None:
        seed = derive_seed(e.seed, "auxiliary")
        model.learn_labels(e.hidden_size, len(text.corpus.domains), e.auxiliary_weight, seed)
    return model.to(device())


def _leaked(text: Text, bilm, layer: int | None) -> Text:
    """Returns the text with features that have read the token which they help to predict: a mistake, on purpose."""
    parts = {split: getattr(text, split) for split in SPLITS}
    return replace(
        text, **{s: replace(part, features=lm.token_states(bilm, part, layer)) for s, part in parts.items()}
    )


def checkpoint_path(e: Experiment):
    """Returns where a run keeps its last epoch until it is finished."""
    return results_dir() / "local" / "checkpoints" / f"{e.identity(fingerprint_of(e))}.safetensors"


def fit_language_model(e: Experiment, model: LSTMLanguageModel, text: Text) -> History:
    """Returns the history of training `model` on the LM's text, validated in the context it is trained in."""
    optimisation = Optimisation(
        e.learning_rate, e.schedule, e.max_epochs, e.patience, e.weight_decay, e.clip,
        eps=e.adam_eps, average_from=e.average_from, patience_after=e.warmup_frozen,
    )  # fmt: skip

    def batches(epoch: int):
        model.table.held = epoch < e.warmup_frozen
        order = np.random.default_rng(derive_seed(e.seed, "order", epoch))
        if e.train_context == "stream":
            return stream_batches(text.train, e.batch_size, e.window, int(order.integers(e.window)))
        return unit_batches(text.train, e.train_context, e.batch_size, e.window, order)

    def validate() -> float:
        nats = token_nats(model, text.valid, e.train_context, bf16=model.output.bf16)
        loss = float(nats.mean(dtype=np.float64))
        if not loss < 2 * np.log(len(text.vocabulary)):  # NaN too; a uniform guess has log V
            raise Diverged(f"the validation loss became {loss:.3g} nats")
        return loss

    seed = derive_seed(e.seed, "training")
    return fit(model, batches, validate, optimisation, seed=seed, checkpoint=checkpoint_path(e))


def _make_bound(e: Experiment) -> Record:
    """Scores a bound: the unigram model or interpolated Kneser-Ney of order 5."""
    text, nats, started = text_of(e), {}, time.perf_counter()
    for context in SCORE_CONTEXTS:
        if e.model == "unigram":
            nats[context] = bounds.unigram_nats(text.train, text.test, len(text.vocabulary))
        else:
            nats[context] = bounds.kneser_ney_nats(
                text.train, text.test, len(text.vocabulary), context=context
            )
    return _store(e, text, nats, {"scoring_seconds": time.perf_counter() - started})


def _store(e: Experiment, text: Text, nats: dict | None, facts: dict) -> Record:
    """Writes and returns the record of a finished run and, unless it failed, its ledger."""
    corpus = text.corpus
    read = facts.get("pretrained", {}).get("provenance", {"tokens_read": 0})  # a bound has no table
    measured = {f"test_perplexity_{context}": perplexity(values) for context, values in (nats or {}).items()}
    record = Record(
        experiment=e.settled().to_dict(),
        identity=e.identity(fingerprint_of(e)),
        text={
            "corpus": corpus.name,
            "corpus_fingerprint": corpus.fingerprint,
            "vocab_size": len(text.vocabulary),
            "lm_tokens": len(text.train),
            "train_tokens": corpus.n_tokens("train"),
            "test_tokens": len(text.test),
            "test_documents": len(text.test.document_ids),
            "unk_share": float(np.mean(text.test.tokens == UNK_ID)),
            "extra_tokens": extra_tokens(e, text, read),
            **_further_facts(e, text),
        },
        environment=environment(),
        **facts | {"scores": measured | facts.get("scores", {})},
    )
    if (path := record_path(e)).exists():  # another process was faster
        return Record.load(path)
    ledger = ledger_of(nats, text.test) if nats else None
    if ledger is not None:
        with atomic(path.with_suffix(".ledger.parquet")) as temporary:
            ledger.to_parquet(temporary, compression="zstd", index=False)
    record.save(results_dir() / "local", None if ledger is None else document_sums(ledger, corpus.domains))
    return record


def _further_facts(e: Experiment, text: Text) -> dict:
    """Returns what only some texts have: paragraphs left out as near-duplicates; what stands behind a feature.

    That is its name and the running tokens that its reader learnt from.
    """
    left_out = text.corpus.report.get("near_duplicates")
    facts = {"left_out": left_out} if left_out else {}
    if e.context_feature != "none":
        tokens = sum(d.n_tokens for d in feature_documents(e, text))
        facts |= {"context_feature": e.context_feature, "feature_tokens": tokens}
    return facts


def environment() -> dict:
    """Returns what a record says of where it was made."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=project_root(), capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "device": device().type,
        "threads": torch.get_num_threads(),
        "bf16": fast_bf16(device().type),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }
