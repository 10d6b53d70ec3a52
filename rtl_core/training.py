"""The one training loop, for every pretrainer and the language model."""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from rtl_core.batches import Batch
from rtl_core.config import derive_seed
from rtl_core.storage import StudyError, atomic


class Loss(NamedTuple):
    """Summed nats, the number of predictions behind them, and the recurrent state after the batch."""

    total: torch.Tensor
    count: int
    state: object = None


@dataclass(frozen=True)
class Optimisation:
    """How `fit` optimises; learning_rate is the peak of the schedule."""

    learning_rate: float = 4e-3
    schedule: str = "one-cycle"  # linear warm-up, then linear decay to zero; or "constant"
    max_epochs: int = 8
    patience: int = 1  # epochs without gain on validation before stopping
    weight_decay: float = 0.0  # decoupled, per unit of learning rate
    clip: float = 1.0  # largest norm of the gradient of the mean loss
    warmup: float = 0.2  # share of all steps before the peak of one-cycle

    def rate(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, of `steps` in all."""
        if self.schedule == "constant":
            return self.learning_rate
        warm = max(1, int(self.warmup * steps))
        share = (step + 1) / warm if step < warm else (steps - step) / (steps - warm)
        return self.learning_rate * share


@dataclass
class History:
    """What `fit` saw: one row an epoch; whether Ctrl-C ended it; whether the loss became infinite or NaN."""

    rows: list[dict] = field(default_factory=list)
    interrupted: bool = False
    failed: str | None = None

    @property
    def converged(self) -> bool:
        """Whether the last epoch gained at most 1 % of perplexity on validation, or none."""
        losses = [row["valid_loss"] for row in self.rows]
        return len(losses) > 1 and losses[-2] - losses[-1] <= 0.01


class Diverged(Exception):
    """The training loss became infinite or NaN."""


def device() -> torch.device:
    """Returns the device to train on: `RTL_DEVICE`, else CUDA, else Apple's MPS, else the processor."""
    if name := os.environ.get("RTL_DEVICE"):
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def to_device(batch: Batch, where: torch.device) -> Batch:
    """Returns the batch on a device."""
    return batch._replace(**{
        name: value.to(where) for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)
    })


@torch.no_grad()
def mean_loss(objective: nn.Module, batches: Iterable[Batch]) -> float:
    """Returns the mean nats per prediction: sums and counts, averaged once."""
    where, state, total, count = next(objective.parameters()).device, None, 0.0, 0
    training = objective.training
    objective.eval()
    for batch in batches:
        loss = objective.loss(to_device(batch, where), None if batch.fresh else state)
        total, count, state = total + loss.total.item(), count + loss.count, loss.state
    objective.train(training)
    return total / count


def fit(
    objective: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    validate: Callable[[], float],
    optimisation: Optimisation,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    label: str = "training",
) -> History:
    """Returns the history of training `objective`, which ends with the weights that were best on validation.

    `batches(epoch)` gives an epoch's batches (the same number every epoch), `validate()` the validation loss
    in nats. Every epoch draws from its own seed, so that a run resumed from `checkpoint` (written after each
    epoch) equals one that was never interrupted; the caller's random state is left untouched. Ctrl-C returns
    what was learnt; a loss that is not finite ends training with `failed` set.
    """
    steps = sum(1 for _ in batches(0))
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, optimisation.learning_rate, weight_decay=optimisation.weight_decay, fused=True
    )
    history, best = History(), _weights(objective)
    epochs = range(optimisation.max_epochs)
    if checkpoint is not None and checkpoint.exists():
        history.rows, best = _resume(checkpoint, objective, optimiser)
        epochs = range(len(history.rows), optimisation.max_epochs)
    with torch.random.fork_rng(enabled=True):
        try:
            for epoch in epochs:
                if _stalled(history.rows) >= optimisation.patience:
                    break
                torch.manual_seed(derive_seed(seed, "epoch", epoch))
                started = perf_counter()
                bar = tqdm(batches(epoch), label, steps, leave=False, disable=None, unit="batch")
                bar.set_postfix(epoch=f"{epoch + 1}/{optimisation.max_epochs}")
                loss = _epoch(objective, bar, optimiser, optimisation, (epoch * steps, optimisation.max_epochs * steps))
                trained = perf_counter()
                row = {"epoch": epoch + 1, "train_loss": loss, "valid_loss": validate()}
                row |= {"seconds": trained - started, "validation_seconds": perf_counter() - trained}
                history.rows.append(row)
                if _stalled(history.rows) == 0:
                    best = _weights(objective)
                if checkpoint is not None:
                    _save_checkpoint(checkpoint, objective, optimiser, history.rows, best)
        except KeyboardInterrupt:
            history.interrupted = True
        except Diverged as error:
            history.failed = str(error)
    objective.load_state_dict(best)
    return history


def _epoch(objective, batches, optimiser, optimisation: Optimisation, steps: tuple[int, int]) -> float:
    """Trains one epoch; returns the mean nats per prediction. `steps`: those done, and all there will be.

    Raises: Diverged.
    """
    objective.train()
    where, state, total, count = next(objective.parameters()).device, None, 0.0, 0
    for step, batch in enumerate(batches):
        loss = objective.loss(to_device(batch, where), None if batch.fresh else state)
        optimiser.zero_grad(set_to_none=True)
        (loss.total / loss.count).backward()
        nn.utils.clip_grad_norm_(objective.parameters(), optimisation.clip, foreach=True)
        for group in optimiser.param_groups:
            group["lr"] = optimisation.rate(steps[0] + step, steps[1])
        optimiser.step()
        value = loss.total.item()
        if not math.isfinite(value):
            raise Diverged(f"the training loss became {value} at step {step + 1} of an epoch")
        total, count, state = total + value, count + loss.count, loss.state
    return total / count


def _weights(objective) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in objective.state_dict().items()}


def _stalled(rows: list[dict]) -> int:
    """Returns the epochs since the best validation loss."""
    losses = [row["valid_loss"] for row in rows]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def _save_checkpoint(path, objective, optimiser, rows, best) -> None:
    """Writes everything the next epoch needs as one safetensors file, atomically; no pickles."""
    tensors = {f"now.{name}": value for name, value in _weights(objective).items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    stored = optimiser.state_dict()
    for index, state in stored["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    whole = {name: value.contiguous().cpu().clone() for name, value in tensors.items()}
    with atomic(path) as temporary:
        save_file(whole, temporary, {"rows": json.dumps(rows)})


def _resume(path, objective, optimiser) -> tuple[list[dict], dict]:
    """Puts a checkpoint back; returns its rows and best weights. Raises: StudyError when it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata()
        tensors = load_file(path)
        groups = optimiser.state_dict()["param_groups"]
        states: dict[int, dict] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                states.setdefault(int(index), {})[key] = value
        objective.load_state_dict(_part(tensors, "now."))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise StudyError(f"the checkpoint {path} is not whole ({error}); delete it and run again.") from error
    optimiser.load_state_dict({"state": states, "param_groups": groups})
    return json.loads(notes["rows"]), _part(tensors, "best.")


def _part(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
