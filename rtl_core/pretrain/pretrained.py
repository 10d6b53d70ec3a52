"""What every pretrainer returns, how it is trained, and how it says where its vectors came from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from rtl_core.batches import Batch
from rtl_core.catalogue import find
from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import Corpus
from rtl_core.embeddings import Embeddings
from rtl_core.storage import StudyError
from rtl_core.training import Optimisation, device, fit


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Embeddings, the scores of their own task (if it has any), and the model if it was trained just now."""

    embeddings: Embeddings
    scores: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)  # one row an epoch
    model: nn.Module | None = None


def seeded(config: PretrainConfig, make: Callable[[], nn.Module]) -> nn.Module:
    """Returns `make()` on the device, its initial weights drawn from the seed of this pre-training."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "pretrain", config.source))
        return make().to(device())


def fit_pretrainer(
    config: PretrainConfig,
    model: nn.Module,
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    validate: Callable[[], float],
    optimisation: Optimisation,
) -> list[dict]:
    """Returns the history of training `model`, a row an epoch; `batches(order)` gives one epoch, shuffled.

    Raises: StudyError when training diverges; KeyboardInterrupt when it was interrupted.
    """
    seed = derive_seed(config.seed, "pretrain", config.source)

    def of_epoch(epoch: int):
        return batches(np.random.default_rng(derive_seed(seed, "order", epoch)))

    history = fit(model, of_epoch, validate, optimisation, seed=seed)
    if history.interrupted:
        raise KeyboardInterrupt
    if history.failed:
        raise StudyError(f"{config.source} diverged: {history.failed}. Another seed may train.")
    model.eval()
    return history.rows


def provenance(
    config: PretrainConfig, corpus: Corpus, tokens_read: int | None, seconds: float, **facts
) -> dict:
    """Returns the JSON-able account of a pre-training: its text, its settings, when and with what.

    `tokens_read` are the running tokens of one pass over the text, as read in pre-training or in averaging
    states; `facts` adds what only the pretrainer knows and may overrule the rest.
    """
    known = find(config.source)
    account = {"task": known.task, "objective": known.objective, "level": known.context}
    account |= {"epochs": config.epochs, "labels": 0, "labelled_only": False}
    account |= {"source": config.source, "text": corpus.name, "text_fingerprint": corpus.fingerprint}
    account |= {"tokens_read": tokens_read, "readout": config.readout, "dim": config.dim, "seed": config.seed}
    account |= {"seconds": round(seconds, 2), "date": datetime.now(UTC).date().isoformat()}
    account["versions"] = {name: version(name) for name in ("numpy", "torch", "gensim")}
    return account | facts
