"""What every pretrainer returns, and how it says where its vectors came from."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

from torch import nn

from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Corpus
from rtl_core.embeddings import Embeddings


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Embeddings, the scores of their own task (if it has any), and the model if it was trained just now."""

    embeddings: Embeddings
    scores: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)  # one row an epoch
    model: nn.Module | None = None


def provenance(
    config: PretrainConfig, corpus: Corpus, tokens_read: int | None, seconds: float, **facts
) -> dict:
    """Returns the JSON-able account of a pre-training: its text, its settings, when and with what.

    `tokens_read` are the running tokens of one pass over the text; `facts` adds what only the pretrainer
    knows (task, objective, level, epochs) and may overrule the rest.
    """
    account = {"task": None, "objective": None, "level": None, "epochs": config.epochs}
    account |= {"source": config.source, "text": corpus.name, "text_fingerprint": corpus.fingerprint}
    account |= {"tokens_read": tokens_read, "readout": config.readout, "dim": config.dim, "seed": config.seed}
    account |= {"seconds": round(seconds, 2), "date": datetime.now(UTC).date().isoformat()}
    account["versions"] = {name: version(name) for name in ("numpy", "torch", "gensim")}
    return account | facts
