"""The one training loop, for every pretrainer and the language model."""

import ctypes
import json
import math
import os
import platform
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import nn
from tqdm import tqdm

from rtl_core.batches import Batch
from rtl_core.config import derive_seed
from rtl_core.storage import StudyError, atomic, say

# In MiB. The C library gives freed memory back to the system, and a training step takes as much as the one before:
# of the study's recipe 3,000 page faults a step, 6 ms of 24. It keeps so much instead; see `keep_memory`.
KEPT, KEPT_AT_ONCE = 128, 32


def keep_memory() -> None:
    """Makes the C library keep freed memory for the next step, KEPT MiB at most and no piece over KEPT_AT_ONCE."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    _c_library("mallopt", trim_threshold, KEPT << 20)
    _c_library("mallopt", mmap_threshold, KEPT_AT_ONCE << 20)


def give_back_memory() -> None:
    """Gives free memory back to the system, so that two workers and who waits for them stay within 2 GiB.

    The C library would keep it: 200 MiB and more after batches of many sizes.
    """
    _c_library("malloc_trim", 0)


def _c_library(function: str, *arguments: int) -> None:
    """Calls a function of the C library where that is glibc, which has it."""
    if platform.system() == "Linux" and hasattr(library := ctypes.CDLL(None), function):
        getattr(library, function)(*arguments)


keep_memory()


class Loss(NamedTuple):
    """Summed nats, the number of predictions behind them, and the recurrent state after the batch."""

    total: torch.Tensor
    count: int
    state: object = None


@dataclass(frozen=True)
class Optimisation:
    """How `fit` optimises; learning_rate is the peak of the schedule."""

    learning_rate: float = 4e-3
    schedule: str = "one-cycle"  # linear warm-up, then a half cosine down to zero; or "constant"
    max_epochs: int = 8
    patience: int = 1  # epochs without gain on validation before stopping
    weight_decay: float = 0.0  # decoupled, per unit of learning rate
    clip: float = 1.0  # largest norm of the gradient of the mean loss
    warmup: float = 0.2  # share of all steps before the peak of one-cycle
    method: str = "adam"  # or "adagrad", whose steps only ever shrink
    eps: float = 1e-8  # added to the root of the squares: larger, it keeps the steps of small gradients small
    average_from: int | None = None  # epoch from which on the mean of the weights is what counts: RunningMean
    patience_after: int = 0  # epochs that do not count for patience: part of the model is held until then

    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the optimiser of these parameters."""
        if self.method == "adagrad":
            fused = parameters[0].is_cpu
            return torch.optim.Adagrad(parameters, self.learning_rate, eps=self.eps, fused=fused)
        settings = {"weight_decay": self.weight_decay, "eps": self.eps, "fused": True}
        return RowwiseAdamW(parameters, self.learning_rate, **settings)

    def rate(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, of `steps` in all."""
        if self.schedule == "constant":
            return self.learning_rate
        warm = max(1, int(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


@dataclass
class History:
    """What `fit` saw: one row an epoch; whether Ctrl-C ended it; whether the loss became infinite or NaN."""

    rows: list[dict] = field(default_factory=list)
    interrupted: bool = False
    failed: str | None = None

    @property
    def converged(self) -> bool:
        """Whether the last epoch gained at most 1 % of perplexity on validation over the best before it, or none."""
        losses = [row["valid_loss"] for row in self.rows]
        return len(losses) > 1 and min(losses[:-1]) - losses[-1] <= 0.01


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW for all parameters but looked-up tables, whose rows it updates as they are touched.

    A parameter with a sparse gradient is trained by Adam without momentum (beta1 = 0). Its rows then move only
    in steps that touch them, and the second moment of an untouched row only decays, which is made up for at
    its next touch: a step costs what it touches and, without weight decay, equals the dense step. (Updating
    moments only when touched, as torch.optim.SparseAdam does, would train a word seen every K steps √K times
    more slowly.) The other side of it: at its touch such a row moves by √K rates, 1/√(1 - beta2) = 32 at most,
    however small its gradient is, as long as eps is smaller still (benchmarks/README.md, "Rare words").
    """

    @torch.no_grad()
    def step(self, closure=None):
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._update_rows(parameter, group)
                    parameter.grad = None
        return super().step(closure)

    def _update_rows(self, parameter, group) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["touched"] = torch.zeros(len(parameter), device=parameter.device)  # step of the last touch
        state["step"] += 1
        gradient = parameter.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()  # (n,), (n, D)
        beta2, step, rate = group["betas"][1], state["step"].item(), group["lr"]
        decay = beta2 ** (step - state["touched"][rows])[:, None]  # (n, 1)
        second = (
            state["exp_avg_sq"].index_select(0, rows).mul_(decay).addcmul_(values, values, value=1 - beta2)
        )
        state["exp_avg_sq"][rows], state["touched"][rows] = second, step
        spread = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        weight = parameter.index_select(0, rows).mul_(1 - rate * group["weight_decay"])
        parameter[rows] = weight.addcdiv_(values, spread, value=-rate)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scales the gradients, sparse ones too, so that their joint norm is at most `largest`."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = largest / (norm + 1e-6)
    if scale < 1:
        torch._foreach_mul_(gradients, scale)


AVERAGED_EVERY = 10  # steps


class RunningMean:
    """The mean of the weights after the first step of an epoch and every tenth from there.

    Averaged SGD takes every step. Every tenth costs a tenth: a mean reads and writes all V · D weights, where a
    step with sparse gradients writes the rows that it touched. Over some thousand steps, neighbours of which
    differ little, it is as good a mean; of what is taken it is exact, of untouched rows too.
    Source: Polyak and Juditsky 1992; Merity et al. 2018, section 3.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.values, self.count = parameters, [], 0

    @torch.no_grad()
    def add(self) -> None:
        """Takes the weights as they are now into the mean."""
        self.count += 1
        if self.count == 1:
            self.values = [parameter.detach().clone() for parameter in self.parameters]
        else:
            torch._foreach_lerp_(self.values, self.parameters, 1 / self.count)

    @contextmanager
    def in_place(self):
        """The weights are their mean until the context ends; while there is none, they stay as they are."""
        now = [parameter.detach().clone() for parameter in self.parameters] if self.count else []
        self._put(self.values)
        try:
            yield
        finally:
            self._put(now)

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values):
            parameter.copy_(value)


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
    return batch._replace(
        **{
            name: value.to(where)
            for name, value in batch._asdict().items()
            if isinstance(value, torch.Tensor)
        }
    )


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
) -> History:
    """Returns the history of training `objective`, which ends with the weights that were best on validation.

    `batches(epoch)` gives an epoch's batches (about the same number every epoch), `validate()` the validation loss
    in nats. Every epoch draws from its own seed, so that a run resumed from `checkpoint` (written after each
    epoch) equals one that was never interrupted; the caller's random state is left untouched. Ctrl-C returns
    what was learnt; a loss that is not finite ends training with `failed` set.
    """
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimiser, mean = optimisation.optimiser(parameters), RunningMean(parameters)
    history, best = History(), _weights(objective)
    if checkpoint is not None and checkpoint.exists():
        history.rows, best = _resume(checkpoint, objective, optimiser, mean)
    steps = sum(1 for _ in batches(0))
    try:
        for epoch in range(len(history.rows), optimisation.max_epochs):
            if _stalled(history.rows[optimisation.patience_after :]) >= optimisation.patience:
                break
            label = _label(objective, epoch, optimisation)
            bar = tqdm(batches(epoch), label, steps, leave=False, disable=None)
            started = perf_counter()
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(seed, "epoch", epoch))
                averaged = mean if epoch + 1 >= (optimisation.average_from or math.inf) else None
                loss = _epoch(objective, bar, optimiser, optimisation, epoch * steps, averaged)
            trained = perf_counter()
            with mean.in_place():
                row = {"epoch": epoch + 1, "train_loss": loss, "valid_loss": validate()}
                row |= {"seconds": trained - started, "validation_seconds": perf_counter() - trained}
                history.rows.append(row)
                best = best if _stalled(history.rows) else _weights(objective)
            if checkpoint is not None:
                _save_checkpoint(checkpoint, objective, optimiser, history.rows, best, mean)
    except KeyboardInterrupt:
        history.interrupted = True
    except Diverged as error:
        history.failed = str(error)
    objective.load_state_dict(best)
    return history


def _label(objective, epoch: int, optimisation: Optimisation) -> str:
    return f"{type(objective).__name__}, epoch {epoch + 1} of {optimisation.max_epochs} at most"


def _epoch(objective, batches: tqdm, optimiser, optimisation: Optimisation, done: int, mean) -> float:
    """Trains one epoch after `done` steps, its weights taken into `mean` unless that is None.

    Returns the mean nats per prediction. Raises: Diverged.
    """
    objective.train()
    where, state, total, count = next(objective.parameters()).device, None, 0.0, 0
    for step, batch in enumerate(batches):
        loss = objective.loss(to_device(batch, where), None if batch.fresh else state)
        optimiser.zero_grad(set_to_none=True)
        (loss.total / loss.count).backward()
        clip_gradients(objective.parameters(), optimisation.clip)
        for group in optimiser.param_groups:
            group["lr"] = optimisation.rate(done + step, batches.total * optimisation.max_epochs)
        optimiser.step()
        if mean is not None and step % AVERAGED_EVERY == 0:
            mean.add()
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


def _save_checkpoint(path, objective, optimiser, rows, best, mean) -> None:
    """Writes everything the next epoch needs as one safetensors file, atomically; no pickles."""
    tensors = {f"now.{name}": value for name, value in _weights(objective).items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    tensors |= {f"mean.{index}": value for index, value in enumerate(mean.values)}
    stored = optimiser.state_dict()
    for index, state in stored["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    whole = {name: value.contiguous().cpu().clone() for name, value in tensors.items()}
    with atomic(path) as temporary:
        temporary.write_bytes(save(whole, {"rows": json.dumps(rows), "averaged": str(mean.count)}))


def _resume(path, objective, optimiser, mean) -> tuple[list[dict], dict]:
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
    mean.count, values = int(notes.get("averaged", 0)), _part(tensors, "mean.")
    mean.values = [values[str(index)].to(mean.parameters[index].device) for index in range(len(values))]
    optimiser.load_state_dict({"state": states, "param_groups": groups})
    rows = json.loads(notes["rows"])
    say(f"going on after epoch {len(rows)}")
    return rows, _part(tensors, "best.")


def _part(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
