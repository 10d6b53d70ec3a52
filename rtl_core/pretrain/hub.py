"""hub:MODEL, an encoder of the transformers library: states of sub-words pooled to words, averaged over the text.

The model is the user's and is read from this machine only; what it was trained on is not known. It reads the
sentences of the training text as they are, words outside the vocabulary too.
Source: Bommasani et al. 2020, the strategy "aggregated" (the mean over sub-words, then over contexts).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rtl_core.batches import Sequences
from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.vocabulary import EOS_ID, UNK_ID, Encoded, Vocabulary
from rtl_core.pretrain.averaging import read_out
from rtl_core.pretrain.pretrained import Pretrained, contextual, seeded
from rtl_core.storage import StudyError, file_sha256, say

FILES = (".json", ".txt", ".model", ".safetensors", ".bin")  # settings, tokenizer and weights
NO_LIMIT = 10**6  # sub-words; some models take a text of any length


@contextmanager
def _library() -> Iterator:
    """Yields the transformers library with its bars and warnings off. Raises: StudyError without it."""
    try:
        import transformers
    except ImportError as error:
        raise StudyError(
            f"hub: sources need the extra [hub] ({error}): pip install --editable '.[hub]'."
        ) from error
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def folder_of(name: str) -> Path:
    """Returns the folder of a model: `name` itself, or its place in the library's cache. Never downloads.

    Raises: StudyError when the model is not on this machine.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        with _library() as library:
            return Path(library.utils.cached_file(name, "config.json", local_files_only=True)).parent
    except (OSError, ValueError) as error:
        raise StudyError(
            f"hub:{name} is not on this machine, and nothing is downloaded unasked. Fetch it with `hf download "
            f"{name}`, or give the path of a folder that holds a model and its tokenizer: hub:PATH."
        ) from error


def fingerprint(name: str) -> str:
    """Returns the sha256 of a model's settings, tokenizer and weights: the same in the cache and in a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder_of(name).iterdir() if p.suffix in FILES):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _loaded(name: str) -> tuple[nn.Module, object]:
    """Returns the encoder and its tokenizer. Raises: StudyError when they are not whole or cannot serve."""
    folder, here = folder_of(name), {"local_files_only": True, "trust_remote_code": False}
    with _library() as library:
        try:
            tokenizer = library.AutoTokenizer.from_pretrained(folder, **here)
            model, found = library.AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **here
            )
        except Exception as error:  # the library and its parts raise errors of all kinds, bare ones too
            reason = str(error).strip().partition("\n")[0]
            raise StudyError(
                f"hub:{name} cannot be loaded: {reason} Fetch it again (`hf download`), or choose a text encoder "
                "that the transformers library knows by itself."
            ) from error
    lacking = sorted(key for key in found["missing_keys"] if "pooler" not in key)  # no state needs a pooler
    if lacking:
        raise StudyError(
            f"hub:{name} lacks {len(lacking)} of its weights, which would be random: {', '.join(lacking[:3])}. "
            "Fetch the whole model."
        )
    if not tokenizer.is_fast:
        raise StudyError(
            f"hub:{name} has a tokenizer in Python, which does not say which sub-words make up a word; choose a "
            "model with a tokenizer.json."
        )
    model.config.use_cache = False  # past keys serve generation only
    return (model.get_encoder() if model.config.is_encoder_decoder else model), tokenizer


def _room(model: nn.Module, tokenizer) -> int:
    """Returns how many sub-words the model takes at once, special ones included."""
    positions = getattr(model.config, "max_position_embeddings", None) or NO_LIMIT
    tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    padding = [part.padding_idx for part in tables if getattr(part, "padding_idx", None) is not None]
    positions -= max(padding, default=-1) + 1  # RoBERTa counts positions from after the padding's
    return min(tokenizer.model_max_length, positions if positions > 0 else NO_LIMIT)


class HubEncoder(nn.Module):
    """A model of the library that reads words; `words` are what ids stand for. It serves `read_out`.

    Every word is split once, as it stands after a blank: its sub-words do not depend on its neighbours.
    Raises: StudyError when the tokenizer does not fit the model or the words.
    """

    def __init__(self, model: nn.Module, tokenizer, words: tuple[str, ...]):
        super().__init__()
        self.model, self.n_layers = model, model.config.num_hidden_layers
        one = tokenizer("a", return_special_tokens_mask=True)
        real = np.flatnonzero(np.array(one["special_tokens_mask"]) == 0)
        before, after = one["input_ids"][: real[0]], one["input_ids"][real[-1] + 1 :]
        self.room = _room(model, tokenizer) - len(before) - len(after)
        written = [tokenizer.unk_token or words[UNK_ID], *words[UNK_ID + 1 :]]
        read = tokenizer(
            [f"a {word}" for word in written], add_special_tokens=False, return_offsets_mapping=True
        )
        split = [  # what ends beyond the "a"; of a very long word, what the model takes
            [piece for piece, (_, end) in zip(pieces, offsets) if end > 1][: self.room]
            for pieces, offsets in zip(read["input_ids"], read["offset_mapping"])
        ]
        split[EOS_ID] = []  # a mark of the corpus, not a word: the model has its own
        known, unknown = model.get_input_embeddings().num_embeddings, [tokenizer.unk_token_id]
        if max(map(max, filter(None, split)), default=0) >= known or all(p in ([], unknown) for p in split):
            raise StudyError(
                f"the tokenizer does not fit: it knows none of the words, or sub-words beyond the model's {known:,}. "
                "The files of tokenizer and model must come from the same place."
            )
        sizes = torch.tensor([len(pieces) for pieces in split])
        self.register_buffer("sizes", sizes)
        self.register_buffer("starts", sizes.cumsum(0) - sizes)
        self.register_buffer("pieces", torch.tensor([piece for pieces in split for piece in pieces]))
        self.register_buffer("before", torch.tensor(before, dtype=torch.int64))
        self.register_buffer("after", torch.tensor(after, dtype=torch.int64))

    def width(self, readout: str) -> int:
        """Returns the dimension of the vectors of a readout."""
        static = self.model.get_input_embeddings().embedding_dim
        return static if readout == "input-layer" else self.model.config.hidden_size

    def _spelled(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the sub-words of words, and of which word each is. Shapes: (n,) -> (m,), (m,)."""
        sizes = self.sizes[words]
        owner = torch.arange(len(words), device=words.device).repeat_interleave(sizes)
        return self.pieces[self.starts[words][owner] + _within(sizes, owner)], owner

    def _pooled(self, vectors: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the sub-words of each word. Shapes: (m, D) -> (n, D)."""
        sizes = self.sizes[words]
        first, total = sizes.cumsum(0) - sizes, vectors.new_zeros(len(words), vectors.shape[1])
        for k in range(int(sizes.max())):  # in a fixed order, so that the sum is the same at every run
            longer = sizes > k
            total[longer] += vectors[first[longer] + k]
        return total / sizes.clamp(min=1)[:, None]

    def table(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the mean of the static vectors of each word's sub-words. Shapes: (n,) -> (n, D)."""
        return self._pooled(self.model.get_input_embeddings()(self._spelled(ids)[0]), ids)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """Returns the state of each word; `layer`: 1 the lowest, None the top.

        Shapes: ids int64 (B, T), mask bool (B, T) -> (B, T, D); zeros at padding.
        """
        words = ids[mask]  # (n,)
        pieces, owner = self._spelled(words)  # (m,)
        row = mask.nonzero()[:, 0][owner]  # (m,)
        counts = torch.bincount(row, minlength=len(ids))  # (B,)
        place = len(self.before) + _within(counts, row)  # (m,)
        ends = len(self.before) + counts[:, None]  # (B, 1)
        positions = torch.arange(int(ends.max()) + len(self.after), device=ids.device)  # (S,)
        inputs = ids.new_zeros(len(ids), len(positions))
        inputs[:, : len(self.before)] = self.before
        inputs[row, place] = pieces
        inputs.scatter_(1, ends + positions[: len(self.after)], self.after.expand(len(ids), -1))
        real = (positions < ends + len(self.after)).long()
        found = self.model(inputs, attention_mask=real, output_hidden_states=layer is not None)
        hidden = found.last_hidden_state if layer is None else found.hidden_states[layer]  # (B, S, D)
        states = hidden.new_zeros(*ids.shape, hidden.shape[2])
        states[mask] = self._pooled(hidden[row, place], words)
        return states


def _within(sizes: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Returns the place of each item within its owner's run. Shapes: (n,), (m,) -> (m,)."""
    return torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]


def sentences(text: Encoded, sizes: np.ndarray, room: int) -> Sequences:
    """Returns the sentences without words that have no sub-words, in parts where the model takes no more at once.

    The label of a part is the number of its sentence. Shapes: sizes int64 (W,), the sub-words of each id.
    """
    kept = sizes[text.tokens] > 0
    tokens, bounds = text.tokens[kept], np.append(0, kept.cumsum())[text.line_starts]
    before = np.append(0, sizes[tokens].cumsum())  # sub-words before each word
    starts, numbers = [], []
    for number, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        while start < end:
            starts.append(start)
            numbers.append(number)
            start = min(end, np.searchsorted(before, before[start] + room, side="right") - 1)
    return Sequences(tokens, np.array(starts), np.diff([*starts, len(tokens)]), np.array(numbers))


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the model's word vectors, read out as the config says, by PCA at the dimension asked for.

    Raises: StudyError when the model is not here, not whole, or narrower than asked for.
    """
    started, name = perf_counter(), config.plain.removeprefix("hub:")
    train = corpus.split("train")
    every = Vocabulary.build(train)  # the model reads words that the vocabulary does not know
    encoder = seeded(config, lambda: HubEncoder(*_loaded(name), every.words))
    if (width := encoder.width(config.readout)) < config.dim:
        raise StudyError(
            f"{config.source} gives vectors of {width} dimensions, {config.dim} expected; ask for {width} or fewer."
        )
    text = sentences(every.encode(train), encoder.sizes.cpu().numpy(), encoder.room)
    if cut := len(text) - len(np.unique(text.labels)):
        say(
            f"long sentences were cut {cut:,} times: {config.source} takes {encoder.room:,} sub-words at once"
        )
    types = torch.tensor([vocabulary.ids.get(word, UNK_ID) for word in every.words])
    with tqdm(total=len(text), desc=config.source, unit="sentence", leave=False, disable=None) as bar:
        encoder.register_forward_hook(lambda _, given, states: bar.update(len(states)))
        table, counts = read_out(encoder, text, len(vocabulary), config, types)
    facts = {"source": f"hub:{Path(name).name if Path(name).is_dir() else name}", "sha256": fingerprint(name)}
    facts |= {"architecture": encoder.model.config.model_type, "encoder_layers": encoder.n_layers}
    facts |= {"cuts": cut, "tokens_read": None, "seconds": perf_counter() - started, "dim": width}
    vectors = contextual(config, corpus, vocabulary, table, counts, facts)
    return Pretrained(vectors if width == config.dim else vectors.reduced(config.dim))
