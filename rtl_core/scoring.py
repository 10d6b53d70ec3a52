"""The token ledger: nats of every test token in each context, by the exact softmax; perplexity from it."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rtl_core.batches import located_batches
from rtl_core.config import SCORE_CONTEXTS
from rtl_core.context import load_reader
from rtl_core.corpora.corpus import Document
from rtl_core.corpora.text import decode_text, paragraphs_of, read_text
from rtl_core.corpora.vocabulary import EOS, UNK_ID, Encoded
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.pretrain.classifier import accuracies
from rtl_core.storage import StudyError
from rtl_core.training import to_device
from rtl_core.transfer import load_model

LANES = {"stream": 1, "document": 32, "sentence": 128}  # units side by side; changes speed, never a number
WINDOW = {
    "stream": 4096,
    "document": 256,
    "sentence": 64,
}  # tokens a lane at a time; changes memory, never a number


def perplexity(nats: np.ndarray) -> float:
    """Returns exp(total nats / count)."""
    return math.exp(float(np.sum(nats, dtype=np.float64)) / len(nats))


@torch.no_grad()
def token_nats(
    model: LSTMLanguageModel,
    text: Encoded,
    context: str,
    lanes: int | None = None,
    window: int | None = None,
    bf16: bool = False,
) -> np.ndarray:
    """Returns -log p of every token of `text`, in order. Shape (N,), float32.

    `context` says where the state is reset: never ("stream", one unbroken stream), at every document, or at
    every line ("sentence"). After a reset the first token is predicted from `<eos>` and a zero state. `bf16`: the
    product with the vocabulary in bf16, whose mean differs in the sixth digit: for validation during training only.
    """
    out = np.empty(len(text), dtype=np.float32)
    for hidden, targets, places in states(
        model, text, context, lanes or LANES[context], window or WINDOW[context]
    ):
        out[places] = model.output.nats(hidden, targets, bf16).cpu().numpy()
    return out


def states(model: LSTMLanguageModel, text: Encoded, context: str, lanes: int, window: int):
    """Yields the states that predict tokens, the tokens, and where they stand. Shapes: (n, H), (n,), (n,)."""
    model.eval()
    where, state = next(model.parameters()).device, None
    for batch, positions in located_batches(text, context, lanes, window):
        batch = to_device(batch, where)
        state = None if batch.fresh else tuple(part[:, : len(batch.inputs)].contiguous() for part in state)
        hidden, state = model.states(batch.inputs, state, batch.features)
        real = torch.ones_like(batch.targets, dtype=torch.bool) if batch.mask is None else batch.mask
        yield hidden[real], batch.targets[real], positions[real.cpu().numpy()]


@torch.no_grad()
def label_scores(model: LSTMLanguageModel, text: Encoded) -> dict[str, float]:
    """Returns how often a model's second task is right over the labelled tokens (context document).

    Beside it, what naming the commonest label at every token would give. Nothing where there is no such task.
    """
    if model.head is None:
        return {}
    found = np.empty(len(text), dtype=np.int64)
    for hidden, _, places in states(model, text, "document", LANES["document"], WINDOW["document"]):
        found[places] = model.head(hidden).argmax(1).cpu().numpy()
    labelled = text.labels >= 0
    if not labelled.any():
        return {}
    scores = accuracies(found[labelled], text.labels[labelled])
    return {f"auxiliary_{name}": value for name, value in scores.items()}


def nats_by_context(model: LSTMLanguageModel, text: Encoded) -> dict[str, np.ndarray]:
    """Returns `token_nats` in every context, by its name."""
    return {context: token_nats(model, text, context) for context in SCORE_CONTEXTS}


def ledger_of(nats: dict[str, np.ndarray], text: Encoded) -> pd.DataFrame:
    """Returns one row per token: document, position, word, domain and nats_CONTEXT for each context.

    Shapes: nats by context, each (N,).
    """
    document = text.document_of(np.arange(len(text)))
    frame = pd.DataFrame(
        {
            "document": pd.Categorical.from_codes(document, list(text.document_ids)),
            "position": (np.arange(len(text)) - text.document_starts[document]).astype(np.int32),
            "word": text.tokens,
            "domain": text.domains[document].astype(np.int16),
        }
    )
    for context, values in nats.items():
        frame[f"nats_{context}"] = np.asarray(values, dtype=np.float32)
    return frame


def score_text(folder: Path, file: Path) -> tuple[dict, list[tuple[str, float]]]:
    """Returns a saved model's perplexities of a text file, and every token with its nats (context document).

    The text is one document, cut into tokens as the model's corpus was; `-` reads standard input.
    Raises: StudyError when the file is missing, is not UTF-8, or holds no token, or when the model was told
    what is not known of it.
    """
    model, vocabulary, tokenizer = load_model(folder)
    reader = load_reader(folder, len(vocabulary))
    piped = str(file) == "-"
    raw = decode_text(sys.stdin.buffer.read(), "standard input") if piped else read_text(file)
    document = Document(str(file), None, "test", paragraphs_of(raw, tokenizer))
    if not any(document.lines()):
        raise StudyError(f"{file} holds no words to score.")
    text = vocabulary.encode([document])
    if reader is not None:
        text = replace(text, features=reader.features(text))
    nats = nats_by_context(model, text)
    row = {f"perplexity_{context}": perplexity(values) for context, values in nats.items()}
    row |= {"tokens": len(text), "unk_share": float(np.mean(text.tokens == UNK_ID))}
    words = [word for line in document.lines() for word in (*line, EOS)]
    return row, list(zip(words, nats["document"].tolist()))
