"""Speed of the pre-trainers against the plainest correct way to the same thing, in one run on real text."""

import copy
import time
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch
from torch import nn

from benchmarks import row
from rtl_core.batches import Sequences, stream_batches
from rtl_core.config import PretrainConfig
from rtl_core.corpora import load_corpus
from rtl_core.corpora.labelled import labelled_for
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.criteria import OutputLayer
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.pretrain import lm, masked_lm, pairs, translation
from rtl_core.pretrain.averaging import average_states
from rtl_core.pretrain.classifier import Classifier
from rtl_core.pretrain.encoder import BidirectionalEncoder, SubwordTable, output_layer, random_table
from rtl_core.pretrain.supervised import Lexicon
from rtl_core.storage import StudyError
from rtl_core.training import RowwiseAdamW

DIM = 128
STEPS = 12
SINGLES = 200  # sequences that are also read one at a time


def seconds_of(model: nn.Module, batches: Iterable, optimiser=None) -> list[float]:
    """Returns the seconds of each training step."""
    optimiser, times = optimiser or RowwiseAdamW(model.parameters(), 1e-3, fused=True), []
    for batch in batches:
        started = time.perf_counter()
        loss = model.loss(batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
        times.append(time.perf_counter() - started)
    return times


def plain(model: nn.Module) -> nn.Module:
    """Returns a copy that trains with the full softmax, dense gradients and float32."""
    model = copy.deepcopy(model)
    for part in model.modules():
        if hasattr(part, "sparse"):
            part.sparse = False
        if isinstance(part, OutputLayer):
            part.n_samples, part.bf16 = None, False
    return model


def language_models() -> list[dict]:
    """lm, bilm and masked-lm: a training step as it is against full softmax in float32, same model and batches."""
    corpus = load_corpus("docstrings")
    vocabulary = Vocabulary.build(corpus.split("train"), 10_000)
    text = vocabulary.encode(corpus.split("valid"))
    counts, rng = np.bincount(text.tokens, minlength=len(vocabulary)), np.random.default_rng(0)
    table, output = random_table(len(counts), DIM), output_layer(counts, DIM)
    models = {
        "lm": LSTMLanguageModel(table, nn.LSTM(DIM, DIM, batch_first=True), output),
        "bilm": lm.BidirectionalLanguageModel(counts, DIM, 1),
        "masked-lm": masked_lm.MaskedLanguageModel(counts, DIM, masked_lm.N_LAYERS),
    }
    batches = {
        "lm": stream_batches(text, lm.STREAMS, lm.WINDOW),
        "bilm": lm.sentences(text, cut=True).batches(rng),
        "masked-lm": masked_lm.hidden(Sequences.of(text, "paragraph"), len(vocabulary), rng, rng),
    }
    rows = []
    for name, model in models.items():
        chosen = list(islice(batches[name], STEPS))
        slow, fast = (float(np.median(seconds_of(m, chosen)[2:])) for m in (plain(model), model))
        what = f"{1000 * slow:.0f} ms against {1000 * fast:.0f} ms"
        rows.append(row(f"{name}: step with full softmax / step", slow / fast, 2, what))
    return rows


def against_singles(name: str, model: nn.Module, take: Callable, batched: Iterable, n: int) -> dict:
    """Returns the row of a model trained on `n` sequences in batches and one at a time; `take(i)` gives one."""
    slow = sum(seconds_of(model, (take(i) for i in range(n))))
    fast = sum(seconds_of(model, batched))
    what = f"{1000 * slow / n:.1f} ms against {1000 * fast / n:.2f} ms a sequence"
    return row(f"{name}: one at a time / in batches by length", slow / fast, 2, what)


def classifiers() -> list[dict]:
    """Domain classifier and judge of pairs: training in batches by length against one sequence at a time."""
    corpus = load_corpus("docstrings")
    vocabulary = Vocabulary.build(corpus.split("train"), 10_000)
    text = vocabulary.encode(corpus.split("valid"), corpus.domains)

    def made(unit: str) -> Classifier:
        table = nn.Embedding(len(vocabulary), DIM)
        return Classifier(BidirectionalEncoder(table, DIM), DIM, len(corpus.domains), unit)

    rows, rng = [], np.random.default_rng(0)
    for level in ("sentence", "paragraph"):
        whole = Sequences.of(text, level)
        part = whole.select(rng.permutation(len(whole))[:SINGLES])
        take = lambda i, part=part: part.take(np.array([i]))  # noqa: E731
        rows.append(against_singles(f"domain-{level}", made("sequence"), take, part.batches(), SINGLES))
    for source in ("next-paragraph", "sentence-order"):
        both = pairs.drawn(text, PretrainConfig(source), "valid", corpus)
        half = len(both) // 2
        part = both.select(np.concatenate([np.arange(SINGLES), half + np.arange(SINGLES)]))
        take = lambda i, part=part: part.take(np.array([i, i + SINGLES]))  # noqa: E731
        rows.append(against_singles(source, made("pair"), take, pairs.batches("pair", part), SINGLES))
    whole = Sequences.of(text, "sentence").select(np.arange(1000))
    encoder = BidirectionalEncoder(nn.Embedding(len(vocabulary), DIM), DIM).eval()
    times = []
    for batches in ((whole.take(np.array([i])) for i in range(1000)), whole.batches()):
        started = time.perf_counter()
        average_states(encoder, batches, len(vocabulary))
        times.append(time.perf_counter() - started)
    what = f"{1e3 * times[0]:.0f} ms against {1e3 * times[1]:.0f} ms for 1,000 sentences"
    return [*rows, row("averaging states: one sentence at a time / in batches", times[0] / times[1], 2, what)]


def labelled() -> list[dict]:
    """Tagging, sentiment, inference, translation, where the files are at hand: batches against one at a time."""
    corpus = load_corpus("docstrings")
    vocabulary = Vocabulary.build(corpus.split("train"), 10_000)
    units = {
        "pos": "token",
        "ner": "token",
        "sentiment": "sequence",
        "nli": "pair",
        "translation": "sequence",
    }
    rows = []
    for task, unit in units.items():
        try:
            sets = labelled_for(task, corpus)
        except StudyError:
            print(f"left out, its files are not at hand: {task}")
            continue
        lexicon = Lexicon.of(sets, unit, corpus, vocabulary)
        encoder = BidirectionalEncoder(SubwordTable(lexicon.spellings.words, lexicon.known, DIM), DIM)
        examples = list(sets[0].valid[:SINGLES])
        n = len(examples)
        if task == "translation":
            target = translation.vocabulary_of([e.other for e in sets[0].train])
            both = [
                translation.encoded([getattr(e, part) for e in examples], words)
                for part, words in (("tokens", lexicon.spellings), ("other", target))
            ]
            model = translation.Translator(encoder, DIM, np.ones(len(target)))
            text = translation.Parallel(*both)
            take = lambda i, both=both: next(  # noqa: E731
                translation.Parallel(*(part.select(np.array([i])) for part in both)).batches()
            )
            rows.append(against_singles(task, model, take, text.batches(), n))
            continue
        text = lexicon.encode(examples, unit, len(sets[0].labels))
        model = Classifier(encoder, DIM, len(sets[0].labels) + 1, unit)
        ends = (0, n) if unit == "pair" else (0,)
        take = lambda i, text=text, ends=ends: text.take(np.array([i + end for end in ends]))  # noqa: E731
        rows.append(against_singles(task, model, take, pairs.batches(unit, text), n))
    return rows


def gensim_models() -> list[dict]:
    """word2vec-sg, word2vec-cbow and fasttext, which gensim trains: gensim called by hand against the source."""
    from gensim.models import FastText, Word2Vec

    from rtl_core.pretrain import word2vec

    corpus = load_corpus("docstrings").sampled(300_000)
    vocabulary = Vocabulary.build(corpus.split("train"), 10_000)
    rows = []
    for source in ("word2vec-sg", "word2vec-cbow", "fasttext"):
        config = PretrainConfig(source, epochs=1)
        started = time.perf_counter()
        word2vec.pretrain(corpus, vocabulary, config)
        ours = time.perf_counter() - started
        started = time.perf_counter()
        lines = [line for d in corpus.split("train") for line in d.lines()]
        known = vocabulary.ids.keys()
        lines = (
            lines
            if source == "fasttext"
            else [[w if w in known else "<unk>" for w in line] for line in lines]
        )
        settings = word2vec.SETTINGS | {"sg": int(source != "word2vec-cbow"), "vector_size": DIM, "epochs": 1}
        if source == "fasttext":
            FastText(lines, workers=1, **settings | word2vec.SPELLINGS)
        else:
            Word2Vec(lines, workers=1, **settings)
        theirs = time.perf_counter() - started
        what = f"{theirs:.1f} s against {ours:.1f} s"
        rows.append(row(f"{source}: gensim by hand / the source (gensim inside)", theirs / ours, 0.9, what))
    return rows


BENCHMARKS = (gensim_models, language_models, classifiers, labelled)


def all_rows() -> list[dict]:
    """Every pre-trainer that can run here, on one thread, as a worker of the study has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [line for benchmark in BENCHMARKS for line in benchmark()]
    finally:
        torch.set_num_threads(threads)
