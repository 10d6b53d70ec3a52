"""What is here: versions, device, corpora at hand, and how long each study size will take."""

import math
import os
import platform
import time

import numpy as np
import torch

from rtl_core.batches import Batch
from rtl_core.catalogue import table_of
from rtl_core.config import Experiment
from rtl_core.corpora import corpora_table
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.experiments import environment
from rtl_core.results import load_results
from rtl_core.storage import StudyError
from rtl_core.studies import STUDY_SIZES, grid
from rtl_core.texts import text_of
from rtl_core.training import RowwiseAdamW, device
from rtl_core.transfer import build_model


def step_seconds(e: Experiment, vocab_size: int = 10_000, steps: int = 12) -> float:
    """Returns the seconds of one training step of an experiment on the device here, on words drawn by Zipf's law.

    On one thread, as each worker of a study has it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    words = tuple(map(str, range(vocab_size)))
    table = generator.standard_normal((vocab_size, e.hidden_size), dtype=np.float32)
    shares = 1 / np.arange(2, vocab_size + 2)
    model = build_model(
        e, Vocabulary(words, (1,) * vocab_size), Embeddings(words, table, {}), 1e6 * shares
    ).to(device())
    optimiser = RowwiseAdamW(model.parameters(), fused=True)
    drawn = generator.choice(vocab_size, (e.batch_size, e.window), p=shares / shares.sum())
    ids = torch.from_numpy(drawn).to(device())
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss = model.loss(Batch(ids, ids))
        (loss.total / loss.count).backward()
        optimiser.step()
        loss.total.item()  # waits for a device that works on its own
        times.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return float(np.median(times[2:]))


def trained_for(experiments: list[Experiment], seconds: float) -> list[Experiment]:
    """Returns the experiments with max_epochs such that training each takes about `seconds` here; bounds as they are.

    By the measured seconds of a step on one thread and the steps of an epoch; validation is not counted. Arms
    compared at equal time may so have had unequal numbers of epochs, each with a whole learning-rate schedule.
    Raises: StudyError when not one epoch of some arm fits.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise StudyError(f"{seconds:g} seconds are no time to train for; give a positive number.")
    arms = {e.replace(seed=0) for e in experiments if e.model == "lstm"}  # seeds of an arm share its epochs
    epoch = {}
    for arm in arms:
        text = text_of(arm)
        steps = len(text.train) / (arm.batch_size * arm.window)
        epoch[arm] = steps * step_seconds(arm, len(text.vocabulary))
    slowest = max(epoch, key=epoch.get, default=None)
    if slowest and epoch[slowest] > seconds:
        raise StudyError(
            f"not one epoch fits into {seconds:g} s: with criterion {slowest.criterion} one takes about "
            f"{epoch[slowest]:.3g} s here; give --seconds {epoch[slowest] + 1:.0f} or more, or less text."
        )
    return [
        e.replace(max_epochs=int(seconds / epoch[e.replace(seed=0)])) if e.model == "lstm" else e
        for e in experiments
    ]


def study_seconds(workers: int | None = None) -> dict[str, float]:
    """Returns the seconds that each study size will take here, by the costs in the committed records.

    A record's seconds per token of training, scoring and pre-training are scaled by the speed of one training
    step here against the record's own. Empty where there are no committed records.
    """
    try:
        records = [
            r
            for r in load_results("reference", corpus=Experiment.corpus).records
            if r.experiment["model"] == "lstm"
        ]
    except StudyError:
        return {}
    workers = workers or os.cpu_count() or 1
    e = Experiment()
    records = [
        r for r in records if (r.experiment["criterion"], r.experiment["encoder"]) == (e.criterion, e.encoder)
    ]
    lm = [r for r in records if r.experiment["lm_tokens"] is not None]
    tokens = sum(r.text["lm_tokens"] * len(r.history) for r in lm)
    training = sum(r.training_seconds for r in lm) / tokens
    speed = step_seconds(e) / (e.batch_size * e.window) / training
    beside = sum(r.scoring_seconds + sum(row["validation_seconds"] for row in r.history) for r in lm) / len(
        lm
    )
    pretraining = {table_of(r.experiment["source"]): r.pretraining_seconds for r in lm}
    estimates = {}
    for name, size in STUDY_SIZES.items():
        runs = [x for x in grid(name) if x.model == "lstm"]
        passes = sum((x.lm_tokens or lm[0].text["train_tokens"]) * x.max_epochs for x in runs)
        share = (runs[-1].test_tokens or lm[0].text["test_tokens"]) / lm[0].text["test_tokens"]
        tables = {table_of(x.source) for x in runs} & pretraining.keys()
        total = passes * training + len(runs) * beside * share
        total += size.seeds * sum(pretraining[source] for source in tables)
        estimates[name] = speed * total / workers
    return estimates


def report() -> dict:
    """Returns everything `rtl doctor` shows, as a JSON-able dict."""
    found = environment()
    return {
        "python": found["python"],
        "platform": platform.platform(terse=True),
        "versions": found["versions"],
        "device": found["device"],
        "cores": os.cpu_count(),
        "threads": found["threads"],
        "bf16": found["bf16"],
        "corpora": corpora_table(),
        "study_seconds": study_seconds(),
    }
