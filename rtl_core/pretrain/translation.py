"""The translator: an encoder-decoder with attention, English to German, whose encoder is read out.

Source: McCann et al. 2017, "Learned in Translation: Contextualized Word Vectors"; attention from Luong et al. 2015,
section 3.1 ("general"). What attention finds is not fed back into the decoder (their section 3.3), so that training
reads whole sentences at once instead of going word by word.
"""

from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rtl_core.batches import Sequences, groups
from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.corpora.labelled import labelled_for
from rtl_core.corpora.vocabulary import EOS_ID, UNK_ID, Vocabulary
from rtl_core.criteria import OutputLayer
from rtl_core.pretrain.averaging import check_layer
from rtl_core.pretrain.encoder import BidirectionalEncoder, SubwordTable
from rtl_core.pretrain.pretrained import Pretrained, fit_pretrainer, seeded
from rtl_core.pretrain.supervised import Lexicon
from rtl_core.recurrent import LockedDropout
from rtl_core.training import Loss, Optimisation, device, mean_loss, to_device

# On validation text a second LSTM after attention gives half a BLEU point more; bf16 LSTMs take 0.7 GB and gain no
# time. Neither is worth it.
EPOCHS = 6
LEARNING_RATE = 4e-3
DROPOUT = 0.3
N_SAMPLES = 1024  # words drawn for each batch by sampled softmax
PAIR_TOKENS = 2048  # of a training batch, both languages
RARE = 2  # words of the other language with fewer occurrences are <unk>
MOST_WORDS = 60  # of a translation


class Pairs(NamedTuple):
    """Sentences and their translations, all ended by `<eos>`.

    Shapes: inputs int64, mask bool (B, S); targets int64, target_mask bool (B, T); masks are true at real words.
    """

    inputs: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    target_mask: torch.Tensor
    fresh: bool = True


class Parallel(NamedTuple):
    """Sentences and, under the same numbers, their translations."""

    source: Sequences
    target: Sequences

    def batches(self, order=None) -> Iterator[Pairs]:
        """Yields batches of pairs of similar length; `order`, a numpy Generator, shuffles them."""
        for group in groups(self.source.lengths + self.target.lengths, order, PAIR_TOKENS):
            source, target = self.source.take(group), self.target.take(group)
            yield Pairs(source.inputs, source.mask, target.inputs, target.mask)


class Translator(nn.Module):
    """Predicts each word of a translation from the words before it and from the sentence.

    An LSTM reads what is written so far; its state looks up the encoder's states by attention; both predict.
    Shapes: counts (V,), of the target words in training text; the table of target words is the output layer's too.
    """

    def __init__(self, encoder: nn.Module, dim: int, counts: np.ndarray):
        super().__init__()
        self.encoder, self.dropout, self.scale = encoder, LockedDropout(DROPOUT), dim**0.5
        self.table = nn.Embedding(len(counts), dim)
        nn.init.normal_(self.table.weight, std=1 / self.scale)
        self.output = OutputLayer(self.table.weight, counts, N_SAMPLES)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.attention = nn.Linear(dim, dim, bias=False)
        self.join = nn.Linear(2 * dim, dim)

    def read(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the encoder's states. Shapes: (B, S), (B, S) -> (B, S, D)."""
        return self.dropout(self.encoder(inputs, mask))

    def write(self, before: torch.Tensor, states: torch.Tensor, mask: torch.Tensor, memory=None):
        """Returns what predicts each word, the attention paid to each word of the sentence, and the LSTM's memory.

        Shapes: before (B, T), the words before; states (B, S, D), mask (B, S) -> (B, T, D), (B, T, S).
        """
        hidden, memory = self.lstm(self.dropout(self.table(before) * self.scale), memory)
        scores = self.attention(hidden) @ states.transpose(1, 2)
        attention = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        hidden = self.join(torch.cat([hidden, attention @ states], dim=-1)).tanh()
        return self.dropout(hidden), attention, memory

    def loss(self, batch: Pairs, state=None) -> Loss:
        """Returns the summed loss of the translations' words and ends: sampled in training, else exact."""
        before = F.pad(batch.targets[:, :-1], (1, 0), value=EOS_ID)
        hidden, _, _ = self.write(before, self.read(batch.inputs, batch.mask), batch.mask)
        hidden, targets = hidden[batch.target_mask], batch.targets[batch.target_mask]
        return Loss(self.output.loss(hidden, targets), len(targets))

    @torch.no_grad()
    def translate(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the translations, each word the likeliest after those before, never `<unk>`, padded with `<eos>`.

        Shapes: (B, S), (B, S) -> (B, T), T at most MOST_WORDS.
        """
        states, memory, written = self.read(inputs, mask), None, []
        words = inputs.new_full((len(inputs), 1), EOS_ID)
        ended = torch.zeros_like(words, dtype=torch.bool)
        while len(written) < MOST_WORDS and not ended.all():
            hidden, _, memory = self.write(words, states, mask, memory)
            logits = hidden[:, 0] @ self.output.weight.T + self.output.bias
            logits[:, UNK_ID] = -torch.inf
            words = logits.argmax(1, keepdim=True).masked_fill(ended, EOS_ID)
            ended |= words == EOS_ID
            written.append(words)
        return torch.cat(written, dim=1)


def vocabulary_of(sentences: list[tuple[str, ...]]) -> Vocabulary:
    """Returns the words of training sentences, the rare ones as `<unk>`."""
    text = [_document(sentences)]
    everything = Vocabulary.build(text)
    return Vocabulary.build(text, 2 + sum(count >= RARE for count in everything.counts[2:]))


def encoded(sentences: list[tuple[str, ...]], vocabulary: Vocabulary) -> Sequences:
    """Returns sentences as sequences, each ended by `<eos>` and none cut."""
    text = vocabulary.encode([_document(sentences)])
    starts, lengths = text.line_starts[:-1], np.diff(text.line_starts)
    return Sequences(text.tokens, starts, lengths, np.full(len(starts), -1))


def _document(sentences: list[tuple[str, ...]]) -> Document:
    return Document("sentences", None, "train", ("\n".join(map(" ".join, sentences)),))


def translations(model: Translator, source: Sequences, words: tuple[str, ...]) -> list[str]:
    """Returns the translation of each sentence, its words joined by spaces."""
    model.eval()
    found = [""] * len(source)
    for group in groups(source.lengths):
        batch = to_device(source.take(group), device())
        for number, ids in zip(group, model.translate(batch.inputs, batch.mask).tolist()):
            found[number] = " ".join(words[i] for i in ids if i != EOS_ID)
    return found


def bleu(found: list[str], true: list[str]) -> float:
    """Returns the BLEU of translations, cased, 13a tokens, by sacrebleu.

    Words of both are joined by spaces: 13a parts punctuation anyway, and so makes the same tokens of the raw
    references but in 1 of Multi30k's 1,000 test sentences ("Kids' Food").
    """
    from sacrebleu import corpus_bleu

    return corpus_bleu(found, [true], force=True).score  # force: no warning that the words stand apart


def pretrain(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """Returns the encoder's word vectors, with the translator's BLEU and perplexity on the test sentences.

    `copy_bleu` is the score of the English sentence itself; the perplexity counts `<unk>` and `<eos>` as words.
    Raises: StudyError when Multi30k is not at hand.
    """
    check_layer(config, config.encoder_layers or 1)  # before it is trained for nothing
    started, sets = perf_counter(), labelled_for("translation", corpus)
    lexicon, (labelled,) = Lexicon.of(sets, "sequence", corpus, vocabulary), sets
    target = vocabulary_of([example.other for example in labelled.train])
    train, valid, test = (
        Parallel(
            encoded([e.tokens for e in part], lexicon.spellings), encoded([e.other for e in part], target)
        )
        for part in (labelled.train, labelled.valid, labelled.test)
    )

    def make() -> nn.Module:
        table = SubwordTable(lexicon.spellings.words, lexicon.known, config.dim)
        encoder = BidirectionalEncoder(table, config.dim, config.encoder_layers or 1)
        return Translator(encoder, config.dim, np.bincount(train.target.tokens, minlength=len(target)))

    model = seeded(config, make)
    rows = fit_pretrainer(
        config, model, train.batches, lambda: mean_loss(model, valid.batches()),
        Optimisation(LEARNING_RATE, max_epochs=config.epochs or EPOCHS, patience=2),
    )  # fmt: skip
    true = [" ".join(example.other) for example in labelled.test]
    scores = {
        "bleu": bleu(translations(model, test.source, target.words), true),
        "copy_bleu": bleu([" ".join(example.tokens) for example in labelled.test], true),
        "test_perplexity": float(np.exp(mean_loss(model, test.batches()))),
    }
    facts = {
        "started": started, "epochs": len(rows), "labelled_sets": {labelled.name: labelled.fingerprint},
        "labels": len(labelled.train) if rows else 0,
        "outside_tokens": labelled.n_tokens("train") if rows else 0,
    }  # fmt: skip
    embeddings = lexicon.read_out(model.encoder, corpus, vocabulary, config, facts)
    return Pretrained(embeddings, {f"{labelled.name}_{k}": v for k, v in scores.items()}, rows, model)
