"""The token ledger: nats of every test token in each context, by the exact softmax; perplexity from it."""

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rtl_core.batches import located_batches
from rtl_core.config import SCORE_CONTEXTS
from rtl_core.corpora.corpus import Document
from rtl_core.corpora.text import decode_text, paragraphs_of, read_text
from rtl_core.corpora.vocabulary import EOS, UNK_ID, Encoded
from rtl_core.language_model import LSTMLanguageModel, load_model
from rtl_core.storage import StudyError
from rtl_core.training import to_device

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
    model: LSTMLanguageModel, text: Encoded, context: str, lanes: int | None = None, window: int | None = None
) -> np.ndarray:
    """Returns -log p of every token of `text`, in order. Shape (N,), float32.

    `context` says where the state is reset: never ("stream", one unbroken stream), at every document, or at
    every line ("sentence"). After a reset the first token is predicted from `<eos>` and a zero state.
    """
    model.eval()
    where = next(model.parameters()).device
    out = np.empty(len(text), dtype=np.float32)
    state = None
    for batch, positions in located_batches(
        text, context, lanes or LANES[context], window or WINDOW[context]
    ):
        inputs, targets, mask, fresh, features = to_device(batch, where)
        state = None if fresh else tuple(part[:, : len(inputs)].contiguous() for part in state)
        hidden, state = model.states(inputs, state, features)
        real = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
        nats = model.output.nats(hidden[real], targets[real])
        out[positions[real.cpu().numpy()]] = nats.cpu().numpy()
    return out


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
    Raises: StudyError when the file is missing, is not UTF-8, or holds no token.
    """
    model, vocabulary, tokenizer = load_model(folder)
    raw = decode_text(sys.stdin.buffer.read(), file) if str(file) == "-" else read_text(file)
    document = Document(str(file), None, "test", paragraphs_of(raw, tokenizer))
    if not any(document.lines()):
        raise StudyError(f"{file} holds no words to score.")
    text = vocabulary.encode([document])
    nats = nats_by_context(model, text)
    row = {f"perplexity_{context}": perplexity(values) for context, values in nats.items()}
    row |= {"tokens": len(text), "unk_share": float(np.mean(text.tokens == UNK_ID))}
    words = [word for line in document.lines() for word in (*line, EOS)]
    return row, list(zip(words, nats["document"].tolist()))
