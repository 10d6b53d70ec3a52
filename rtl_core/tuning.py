"""The same few trials of learning rate and table size for every arm; the best on validation text is kept."""

import math
from collections.abc import Callable
from typing import NamedTuple

from rtl_core.config import Experiment
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.training import History

# Factors of learning_rate and input_rms: the experiment's own setting, then each of the two moved both ways.
TRIALS = ((1, 1), (0.5, 1), (2, 1), (1, 1 / 3), (1, 3))


class Trial(NamedTuple):
    """One training of the language model: with which settings, what came of it, and how it went."""

    experiment: Experiment
    model: LSTMLanguageModel
    history: History

    @property
    def loss(self) -> float:
        """The best validation loss in nats; infinite where training failed."""
        return math.inf if self.history.failed else min(row["valid_loss"] for row in self.history.rows)


def trials_of(e: Experiment) -> list[Experiment]:
    """Returns what is trained for an experiment: itself, or with tuning a variant for each of TRIALS."""
    if e.tuning == "none":
        return [e]
    return [
        e.replace(learning_rate=_scaled(e.learning_rate, rate), input_rms=_scaled(e.input_rms, size))
        for rate, size in TRIALS
    ]


def _scaled(value: float, factor: float) -> float:
    return value if factor == 1 else float(f"{value * factor:.3g}")


def best_trial(e: Experiment, train: Callable[[Experiment], Trial]) -> tuple[Trial, list[dict]]:
    """Returns the trial that is best on validation, of equal ones the first; and a row for each if it was tuned.

    A row says learning_rate, input_rms, valid_perplexity (None: that training failed), seconds and which one
    was chosen. Test text plays no part: `train` never sees it. Ctrl-C ends all; every trial has a checkpoint of
    its own, so that the next run takes the finished ones from there.
    """
    best, rows = None, []
    for variant in trials_of(e):
        trial = train(variant)
        if trial.history.interrupted:
            raise KeyboardInterrupt
        rows.append(
            {
                "learning_rate": variant.learning_rate,
                "input_rms": variant.input_rms,
                "valid_perplexity": math.exp(trial.loss) if math.isfinite(trial.loss) else None,
                "seconds": sum(row["seconds"] for row in trial.history.rows),
            }
        )
        best = trial if best is None or trial.loss < best.loss else best
    chosen = trials_of(e).index(best.experiment)
    rows = [row | {"chosen": index == chosen} for index, row in enumerate(rows)]
    return best, rows if e.tuning != "none" else []
