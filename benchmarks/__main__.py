"""`make bench`: what is fast, against what, in one run. Prints a table and writes benchmarks/results.json.

`python -m benchmarks NAME …` runs some; -h lists them. Compared things run in
turn in one process, so that a machine whose speed drifts gives a fair ratio; medians are shown. Rows of a benchmark
that was not run stay as they were in results.json.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from unittest import mock

import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn

from benchmarks import bilm, counting, criteria, pretraining, row
from rtl_core.batches import stream_batches
from rtl_core.config import Experiment
from rtl_core.embeddings import Embeddings
from rtl_core.experiments import environment, fit_language_model, run, run_all
from rtl_core.storage import project_root, read_json, write_json
from rtl_core.studies import NAMED
from rtl_core.texts import text_of
from rtl_core.training import RowwiseAdamW, clip_gradients
from rtl_core.transfer import build_model

PAPER = Experiment(
    corpus="wikitext-2", vocab_size=None, n_samples=1024, batch_size=32, dropout=0.0
)  # 1 × 128
# Of batches of 32 to 64 and samples of 512 to 1,024 the fastest whose perplexity stays within 3 % of that of the full
# softmax after one epoch: see quality. With 512 samples at the default rate batch 64 is 10 % above it.
BEST = PAPER.replace(batch_size=64, n_samples=768, learning_rate=1.2e-2)
TEXTBOOK = PAPER.replace(
    hidden_size=200, n_layers=2, dropout=0.2, criterion="softmax", batch_size=20, max_epochs=6
)  # the default recipe of the word-language-model example, which users report at test perplexity 142.07
TEXTBOOK_PERPLEXITY = 142.07
ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)


def model_of(e: Experiment) -> nn.Module:
    """Returns the untrained model of an experiment, its input table random."""
    text = text_of(e)
    table = np.random.default_rng(0).standard_normal((len(text.vocabulary), e.hidden_size)).astype(np.float32)
    return build_model(e, text.vocabulary, Embeddings(text.vocabulary.words, table, {}), text.lm_counts)


class Stepper:
    """Training steps of one experiment, timed one by one."""

    def __init__(self, e: Experiment, optimiser=None):
        self.model, self.e = model_of(e), e
        if optimiser:  # plain, as a textbook has it: dense gradients, float32
            self.model.output.bf16 = False
            self.model.table.sparse = self.model.output.sparse = False
            self.optimiser = optimiser(self.model.parameters())
        else:
            self.optimiser = RowwiseAdamW(self.model.parameters(), 1e-3, fused=True)
        self.batches = stream_batches(text_of(e).train, e.batch_size, e.window)
        self.state, self.seconds = None, []

    def step(self) -> None:
        """Trains one batch and keeps its seconds."""
        started = time.perf_counter()
        loss = self.model.loss(next(self.batches), self.state)
        self.state = loss.state
        self.optimiser.zero_grad()
        (loss.total / loss.count).backward()
        clip_gradients(self.model.parameters(), self.e.clip)
        self.optimiser.step()
        self.seconds.append(time.perf_counter() - started)

    @property
    def median(self) -> float:
        """Median seconds of a step, the first two left out."""
        return statistics.median(self.seconds[2:])

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.e.batch_size * self.e.window

    @property
    def per_token(self) -> float:
        """Median seconds of a step for each of its tokens."""
        return self.median / self.tokens

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch over the training text."""
        return len(text_of(self.e).train) // self.tokens


@contextlib.contextmanager
def own_results():
    """Keeps checkpoints out of the user's results, so that what is timed starts from nothing."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, RTL_RESULTS_DIR=folder):
        yield


def steps() -> list[dict]:
    """The training step with sampled softmax against the full softmax in float32, same model and optimiser."""
    slow, quick, best = Stepper(PAPER.replace(criterion="softmax"), ADAM), Stepper(PAPER), Stepper(BEST)
    for _ in range(10):
        slow.step()
        for _ in range(5):
            quick.step()
            best.step()
    name = "training step: full softmax / sampled softmax, 1 × 128, 33,278 words"
    alike = f"{1000 * slow.median:.0f} ms against {1000 * quick.median:.1f} ms"
    chosen = f"batch {BEST.batch_size}, {BEST.n_samples} samples: {1e6 * best.per_token:.1f} µs a token"
    return [
        row(name, slow.median / quick.median, 20, alike),
        row(f"{name}, best batch and sample", slow.per_token / best.per_token, 35, chosen),
    ]


def fast() -> list[dict]:
    """Training time of wikitext-2-fast, trained here, against the textbook recipe extrapolated from its step."""
    e = NAMED["wikitext-2-fast"]
    slow = Stepper(TEXTBOOK, partial(torch.optim.SGD, lr=1e-3))
    for _ in range(8):
        slow.step()
    with own_results():
        record = run(e)
    for _ in range(8):
        slow.step()
    textbook = slow.median * slow.epoch_steps * TEXTBOOK.max_epochs
    seconds, found = record.training_seconds, record.scores["test_perplexity_stream"]
    what = f"{textbook / 60:.0f} min extrapolated against {seconds:.0f} s"
    return [
        row("training time: textbook 2 × 200 recipe / wikitext-2-fast", textbook / seconds, 60, what),
        row(
            "test perplexity (stream): textbook / wikitext-2-fast",
            TEXTBOOK_PERPLEXITY / found,
            1,
            f"{found:.2f}",
        ),
    ]


def quality() -> list[dict]:
    """Perplexity after the same epochs: full softmax against sampled softmax, 1 × 128, one epoch of WikiText-2."""
    arms = {
        "softmax": PAPER.replace(criterion="softmax"),
        "sampled softmax": PAPER,
        "best batch and sample": BEST,
    }
    found = {}
    with own_results():
        for name, e in arms.items():
            history = fit_language_model(e.replace(max_epochs=1), model_of(e), text_of(e))
            found[name] = float(np.exp(history.rows[-1]["valid_loss"]))
    exact = found.pop("softmax")
    return [
        row(
            f"perplexity after one epoch: full softmax / {name}, 1 × 128",
            exact / value,
            1 / 1.03,
            f"{exact:.1f} against {value:.1f} (validation, stream)",
        )
        for name, value in found.items()
    ]


def workers() -> list[dict]:
    """Wall-clock of a grid of eight small runs: one process of one thread against two, the text already encoded."""
    e = Experiment(lm_tokens=150_000, valid_tokens=10_000, test_tokens=50_000, max_epochs=4)
    grid, seconds = [e.replace(seed=seed) for seed in range(8)], {}
    for n_workers in (1, 2):
        with own_results():
            started = time.perf_counter()
            run_all(grid, n_workers)
            seconds[n_workers] = time.perf_counter() - started
    what = f"{seconds[1]:.0f} s against {seconds[2]:.0f} s, start of the processes included"
    return [row("grid of 8 small runs: workers=1 / workers=2", seconds[1] / seconds[2], 1.7, what)]


def tree_pss(process: psutil.Process) -> int:
    """Returns the proportional set size of a process and all below it, in bytes."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def study(size: str) -> list[dict]:
    """Wall-clock and peak memory of a study from nothing (corpus not yet harvested), and of the same again."""
    limits = {"quick": 300, "laptop": 1800}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "RTL_CACHE_DIR": f"{folder}/cache",
            "RTL_RESULTS_DIR": f"{folder}/results",
        }
        (first, peak), (again, _) = (_measured(size, environment) for _ in range(2))
    return [
        row(
            f"study {size}: allowed time / time",
            limits[size] / first,
            1,
            f"{first:.0f} s of {limits[size]} s",
        ),
        row(f"study {size}: allowed memory / peak", 2**31 / peak, 1, f"{peak / 2**20:.0f} MiB of 2,048 MiB"),
        row(f"study {size} again: allowed time / time", 15 / again, 1, f"{again:.1f} s of 15 s"),
    ]


def _measured(size: str, environment: dict) -> tuple[float, int]:
    """Returns seconds and peak proportional set size of the process tree of one study."""
    started, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "rtl_core", "study", "--size", size]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    done = threading.Event()
    process = psutil.Process(child.pid)
    while not done.wait(0.5):
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, tree_pss(process))
        if child.poll() is not None:
            done.set()
    if child.returncode:
        raise SystemExit(f"the study ended with exit code {child.returncode}")
    return time.perf_counter() - started, peak


BENCHMARKS = {
    "steps": steps,
    "fast": fast,
    "quality": quality,
    "workers": workers,
    "criteria": criteria.all_rows,
    "counting": counting.all_rows,
    "bilm": bilm.all_rows,
    "pretraining": pretraining.all_rows,
    "study-quick": lambda: study("quick"),
    "study-laptop": lambda: study("laptop"),
}


def main() -> None:
    """Runs the chosen benchmarks, prints the table, writes results.json."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: all but quality, bilm, study-laptop"
    )
    names = parser.parse_args().names or [
        "steps",
        "workers",
        "fast",
        "criteria",
        "counting",
        "pretraining",
        "study-quick",
    ]
    path = project_root() / "benchmarks" / "results.json"
    before = read_json(path)["rows"] if path.exists() else []
    rows = []
    for name in names:
        rows += [{"benchmark": name, **line} for line in BENCHMARKS[name]()]
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
    kept = [line for line in before if line["benchmark"] not in names]
    write_json(
        path, {"environment": environment(), "rows": sorted(kept + rows, key=lambda r: r["benchmark"])}
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
