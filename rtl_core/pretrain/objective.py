"""The objective, everything else equal: one encoder, one text, as many updates and tokens; only the loss differs.

A bidirectional LSTM over one table of words is trained for UPDATES batches of TOKENS tokens by one optimiser. All
objectives of one seed start from the same weights; those on paragraphs read the same batches in the same order.
`domain-sentence` reads sentences, `next-paragraph` pairs of paragraphs. The vectors of all are the mean states over
the paragraphs of the training text, so `untrained:` any of them is one and the same table.

`lm` trains the forward half and, through it, the words; the backward half stays as it began, since a forward language
model has none. That halves the columns that learn to read: `bilm` is the same with both halves.
Source: Verwimp and Bellegarda 2019, section 3 (the objectives); that all else is equal is ours.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from torch import nn

from rtl_core.batches import BATCH_TOKENS, Sequences
from rtl_core.config import PretrainConfig, derive_seed
from rtl_core.corpora.corpus import SPLITS, Corpus
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.pretrain.averaging import check_layer, read_out
from rtl_core.pretrain.classifier import Classifier, accuracies, predictions
from rtl_core.pretrain.domain import LEVELS, encoded_splits
from rtl_core.pretrain.encoder import BidirectionalEncoder, random_table
from rtl_core.pretrain.lm import BidirectionalLanguageModel, perplexities, preceded
from rtl_core.pretrain.masked_lm import MaskedLanguageModel, hidden, scores_of
from rtl_core.pretrain.pairs import drawn
from rtl_core.pretrain.pretrained import Pretrained, contextual, dealt_out, fit_pretrainer, seeded
from rtl_core.pretrain.supervised import batches
from rtl_core.training import Optimisation, mean_loss

UPDATES, TOKENS = 500, BATCH_TOKENS  # together two thirds of a pass over docstrings
# Peak rate: of 0.005, 0.01 and 0.02 (200 updates) the best on validation text for all but next-paragraph, where all
# are alike; at 500 updates 0.02 gains 0.06 nats of bilm over 0.01 and loses 0.02 of domain-paragraph.
RECIPE = Optimisation(2e-2, max_epochs=1)


class ForwardLanguageModel(BidirectionalLanguageModel):
    """The forward half alone predicts; the backward half is there to be read out, untrained."""

    def predictions(self, batch) -> list[tuple]:
        """Returns output layer, states and the words they are to predict, of the forward half."""
        return super().predictions(batch)[:1]


LANGUAGE_MODELS = {
    "lm": ForwardLanguageModel, "bilm": BidirectionalLanguageModel, "masked-lm": MaskedLanguageModel
}  # fmt: skip


@dataclass(frozen=True)
class Updates:
    """The batches of one pre-training: UPDATES of them, with TOKENS real tokens each, whatever the objective.

    `groups`: the numbers in `text` of each batch's sequences; of pairs all first ones, then all second ones.
    """

    text: Sequences
    groups: list[np.ndarray]

    @classmethod
    def of(cls, text: Sequences, pairs: bool, seed: int) -> "Updates":
        """Returns batches of similar length, drawn in as many passes over the text as it takes."""
        rng = np.random.default_rng(derive_seed(seed, "updates"))
        members = np.arange(len(text)).reshape(1 + pairs, -1)
        members = members[:, text.lengths[members].min(0) > 2]  # <eos> and a blank line are nothing to learn
        lengths = text.lengths[members].sum(0)
        passes = -(-UPDATES * TOKENS // lengths.sum())
        order = np.concatenate([rng.permutation(len(lengths)) for _ in range(passes)])
        order = order[: np.searchsorted(lengths[order].cumsum(), UPDATES * TOKENS) + 1]
        widest = text.lengths[members].max(0)  # what a batch is padded to
        order = order[np.argsort(widest[order], kind="stable")]
        cuts = np.searchsorted(lengths[order].cumsum(), np.arange(1, UPDATES) * TOKENS)
        found = np.split(order, cuts)
        return cls(text, [members[:, found[i]].ravel() for i in rng.permutation(UPDATES)])

    @property
    def n_tokens(self) -> int:
        """Real tokens of all batches."""
        return sum(int(self.text.lengths[group].sum()) for group in self.groups)

    def batches(self, order=None):
        """Yields the batches, always in the order in which they were drawn."""
        return map(self.text.take, self.groups)


def _unit(config: PretrainConfig) -> str:
    return "sequence" if config.plain in (*LANGUAGE_MODELS, *LEVELS) else "pair"


def _texts(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> list[Sequences]:
    """Returns what the objective reads of each split, every sequence from the `<eos>` before it."""
    if config.plain in LEVELS:
        texts = [text.labelled for text in encoded_splits(corpus, vocabulary, config.plain)]
    else:
        encoded = [vocabulary.encode(corpus.split(split), corpus.domains) for split in SPLITS]
        texts = [Sequences.of(text, "paragraph") for text in encoded]
        if _unit(config) == "pair":
            size = UPDATES * TOKENS
            texts = [drawn(text, config, split, corpus, size) for text, split in zip(encoded, SPLITS)]
    learnt = [dealt_out(config, text, _unit(config) == "pair") for text in texts[:2]]
    return [preceded(text) for text in (*learnt, texts[2])]


def _model(config: PretrainConfig, counts: np.ndarray, n_labels: int) -> nn.Module:
    """Returns the objective's model; its encoder is made first, so that one seed gives all the same."""
    n_layers, dim = config.encoder_layers or 1, config.dim
    table = random_table(len(counts) + 1, dim)  # the last row stands for a hidden word
    encoder = BidirectionalEncoder(table, dim, n_layers)
    if config.plain in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[config.plain](counts, dim, n_layers, encoder)
    return Classifier(encoder, dim, n_labels, _unit(config))


def _batches(config: PretrainConfig, text: Sequences | Updates, vocab_size: int, order=None):
    """Yields the batches of a text as the objective poses them; without `order` always the same words are hidden."""
    if config.plain == "masked-lm":
        return hidden(text, vocab_size, order or np.random.default_rng(derive_seed(config.seed, "hidden")))
    return text.batches() if isinstance(text, Updates) else batches(_unit(config), text)


def _scores(config: PretrainConfig, model: nn.Module, test: Sequences, vocab_size: int) -> dict[str, float]:
    if config.plain == "masked-lm":
        return scores_of(model, _batches(config, test, vocab_size))
    if config.plain in LANGUAGE_MODELS:
        return perplexities(model, test)
    found, true = predictions(model, _batches(config, test, vocab_size))
    return accuracies(found, true) | {f"test_{_unit(config)}s": len(true)}


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the shared encoder's word vectors after training for one objective, with that task's own scores.

    Raises: StudyError when the encoder has no such layer, or the corpus lacks what the objective needs.
    """
    started = perf_counter()
    check_layer(config, config.encoder_layers or 1)  # before it is trained for nothing
    train, valid, test = _texts(corpus, vocabulary, config)
    size, updates = len(vocabulary), Updates.of(train, _unit(config) == "pair", config.seed)
    counts = np.bincount(train.tokens, minlength=size)
    n_labels = len(corpus.domains) if config.plain in LEVELS else 2
    model = seeded(config, lambda: _model(config, counts, n_labels))
    rows = fit_pretrainer(
        config, model, lambda order: _batches(config, updates, size, order),
        lambda: mean_loss(model, _batches(config, valid, size)), RECIPE,
    )  # fmt: skip
    scores = _scores(config, model, test, size)
    whole = preceded(Sequences.of(vocabulary.encode(corpus.split("train")), "paragraph"))
    table, occurrences = read_out(model.encoder, whole, size, config)
    only_labelled = config.readout == "input-layer" and config.plain in LEVELS
    learnt = (
        len(np.unique(np.concatenate(updates.groups))) if rows and config.plain not in LANGUAGE_MODELS else 0
    )
    facts = {
        "level": "paragraph", "epochs": len(rows) and updates.n_tokens / train.n_tokens,
        "updates": len(rows) and UPDATES, "tokens_trained": len(rows) and updates.n_tokens,
        "labels": learnt // (1 + (_unit(config) == "pair")), "labelled_only": only_labelled,
        "tokens_read": (train.n_tokens - len(train)) if only_labelled else len(whole.tokens) - 1,
        "seconds": perf_counter() - started,
    }  # fmt: skip
    return Pretrained(contextual(config, corpus, vocabulary, table, occurrences, facts), scores, rows, model)
