"""What every pretrainer returns, how it is trained, and how it says where its vectors came from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from rtl_core.batches import Batch, Sequences
from rtl_core.catalogue import find
from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
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
        purpose = config.plain if config.encoder == "own" else "shared"
        torch.manual_seed(derive_seed(config.seed, "pretrain", purpose))
        return make().to(device())


def dealt_out(config: PretrainConfig, text: Sequences, pairs: bool = False) -> Sequences:
    """Returns the sequences, for the control `shuffled-labels:` with their labels dealt out among them.

    Labels of words are dealt out among words, not to the ends of sentences; both halves of `pairs` have one label.
    """
    if not config.shuffled_labels:
        return text
    order = np.random.default_rng(derive_seed(config.seed, "shuffled-labels", len(text)))
    if text.token_labels is not None:
        labels, words = text.token_labels.copy(), text.tokens != EOS_ID
        labels[words] = order.permutation(labels[words])
        return replace(text, token_labels=labels)
    own = text.labels[: len(text) // 2] if pairs else text.labels
    return replace(text, labels=np.tile(order.permutation(own), len(text) // len(own)))


def fit_pretrainer(
    config: PretrainConfig,
    model: nn.Module,
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    validate: Callable[[], float],
    optimisation: Optimisation,
) -> list[dict]:
    """Returns the history of training `model`, a row an epoch; `batches(order)` gives one epoch, shuffled.

    The control `untrained:` is not trained: it has no rows.
    Raises: StudyError when training diverges; KeyboardInterrupt when it was interrupted.
    """
    if config.untrained:
        model.eval()
        return []
    seed = derive_seed(config.seed, "pretrain", config.plain)

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

    `tokens_read` are the running tokens of one pass over the corpus, as read in pre-training or in averaging
    states (None: not known); `outside_tokens` in `facts` those of labelled files. `facts` adds what only the
    pretrainer knows and may overrule the rest.
    """
    known = find(config.source)
    account = {"task": known.task, "objective": known.objective, "level": known.context}
    account |= {"epochs": config.epochs, "labels": 0, "labelled_only": False, "outside_tokens": 0}
    account |= {"source": config.source, "text": corpus.name, "text_fingerprint": corpus.fingerprint}
    account |= {"tokens_read": tokens_read, "readout": config.readout, "dim": config.dim, "seed": config.seed}
    account |= {"seconds": round(seconds, 2), "date": datetime.now(UTC).date().isoformat()}
    account["versions"] = {name: version(name) for name in ("numpy", "torch", "gensim")}
    return account | facts


def contextual(
    config: PretrainConfig,
    corpus: Corpus,
    vocabulary: Vocabulary,
    table: np.ndarray,
    counts: np.ndarray,
    facts: dict,
) -> Embeddings:
    """Returns the embeddings of an encoder's read-out, for the words it stands on; `facts` has its account.

    Shapes: table float32 (V, D); counts (V,), the occurrences behind each row.
    """
    seen = np.flatnonzero(counts)
    known = {"encoder_layers": config.encoder_layers or 1, "layer": config.layer} | facts
    account = provenance(config, corpus, known.pop("tokens_read"), known.pop("seconds"), **known)
    return Embeddings(tuple(vocabulary.decode(seen)), table[seen].astype(np.float32), account)
