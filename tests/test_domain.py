"""The domain classifier: what a state has read, what is averaged, what its vectors say of themselves."""

from collections import Counter, defaultdict
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn

from rtl_core import batches, training
from rtl_core.batches import LONGEST, Sequences
from rtl_core.corpora.corpus import Document
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.pretrain import pretrain
from rtl_core.pretrain.averaging import average_states
from rtl_core.pretrain.encoder import BidirectionalEncoder
from rtl_core.storage import StudyError, cache_dir

LEVELS = ("sentence", "paragraph")
DIM = 7  # odd: the directions have 3 and 4 units


@pytest.fixture(scope="module")
def vocabulary(tiny_corpus):
    return Vocabulary.build(tiny_corpus.split("train"))


@pytest.fixture(scope="module")
def text(tiny_corpus, vocabulary):
    return vocabulary.encode(tiny_corpus.split("train"), tiny_corpus.domains)


def encoder(vocab_size, n_layers=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BidirectionalEncoder(nn.Embedding(vocab_size, DIM), DIM, n_layers)


@torch.no_grad()
def alone(model, ids):
    """The states of one sequence without any padding. Shape (T, D)."""
    row = torch.tensor([list(map(int, ids))])
    return model(row, torch.ones_like(row, dtype=torch.bool))[0].numpy()


def stretches(text, level):
    """Ids of every sentence or paragraph, one after the other."""
    starts = text.line_starts if level == "sentence" else text.paragraph_starts
    return [text.tokens[a:b] for a, b in zip(starts[:-1], starts[1:])]


def labelled(text, level, order=None):
    """Batches of the labelled sentences or paragraphs."""
    return Sequences.of(text, level).labelled.batches(order)


def changed(corpus, documents):
    return replace(corpus, documents=tuple(documents))


def kept_in_cache():
    return [path for path in cache_dir().rglob("*") if path.is_file() and path.suffix != ".lock"]


# States


@torch.no_grad()
@pytest.mark.parametrize("filling", [EOS_ID, 9])
def test_padding_never_reaches_a_state(filling):
    model, lengths = encoder(20), (5, 1, 9, 3)
    rng = np.random.default_rng(0)
    rows = [rng.integers(20, size=n) for n in lengths]
    padded = np.full((len(rows), max(lengths)), filling)
    for row, ids in zip(padded, rows):
        row[: len(ids)] = ids
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    states = model(torch.from_numpy(padded), mask).numpy()
    for row, ids in zip(states, rows):
        assert np.allclose(row[: len(ids)], alone(model, ids), atol=1e-6)


def test_each_direction_reads_from_its_own_end():
    model, ids, ahead = encoder(20), [2, 5, 3, 7, 4], DIM // 2
    before, other_first, other_last = (alone(model, x) for x in (ids, [11, *ids[1:]], [*ids[:-1], 11]))
    assert np.array_equal(
        before[:-1, :ahead], other_last[:-1, :ahead]
    )  # forward: only what stands to the left
    assert (before[:, :ahead] != other_first[:, :ahead]).any(1).all()
    assert np.array_equal(
        before[1:, ahead:], other_first[1:, ahead:]
    )  # backward: only what stands to the right
    assert (before[:, ahead:] != other_last[:, ahead:]).any(1).all()


@torch.no_grad()
def test_the_backward_states_are_those_of_the_text_read_from_the_right():
    model, ids = encoder(20), torch.tensor([2, 5, 3, 7, 4])
    state, expected = None, {}
    for position in (4, 3, 2, 1, 0):  # one word at a time
        output, state = model.backward_lstms[0](model.table(ids[position])[None, None], state)
        expected[position] = output[0, 0].tolist()
    found = alone(model, ids)[:, DIM // 2 :]
    assert np.allclose(found, [expected[i] for i in range(5)], atol=1e-6)


# Averages


@pytest.mark.parametrize("level", LEVELS)
def test_averaged_states_equal_a_plain_loop(level, vocabulary, text, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_TOKENS", 200)  # several batches
    vocab_size = len(vocabulary) + 2  # two types that never occur
    model = encoder(vocab_size)
    total, count = {}, Counter()
    for ids in stretches(text, level):
        for token, state in zip(ids.tolist(), alone(model, ids)):
            total[token] = total.get(token, 0) + state.astype(np.float64)
            count[token] += 1
    table, counts = average_states(model, labelled(text, level), vocab_size)
    assert counts.tolist() == [count[i] for i in range(vocab_size)] and counts.sum() == len(text)
    for token in range(vocab_size):
        assert np.allclose(table[token], total[token] / count[token] if count[token] else 0, atol=1e-5), token


def test_a_number_of_occurrences_averages_the_first_that_come(vocabulary, text, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_TOKENS", 200)
    model, met = encoder(len(vocabulary)), defaultdict(list)
    with torch.no_grad():
        for batch in labelled(text, "sentence"):
            states = model(batch.inputs, batch.mask)[batch.mask]
            for token, state in zip(batch.inputs[batch.mask].tolist(), states.numpy()):
                met[token].append(state)
    again = labelled(text, "sentence")
    table, counts = average_states(model, again, len(vocabulary), occurrences=3)
    for token, states in met.items():
        assert counts[token] == min(3, len(states))
        assert np.allclose(table[token], np.mean(states[:3], axis=0), atol=1e-5)


def test_unknown_words_share_the_average_of_unk(tiny_corpus):
    small = Vocabulary.build(tiny_corpus.split("train"), 12)
    text = small.encode(tiny_corpus.split("train"), tiny_corpus.domains)
    model = encoder(len(small))
    states = [alone(model, ids)[ids == 0] for ids in stretches(text, "sentence")]
    table, counts = average_states(model, labelled(text, "sentence"), len(small))
    assert counts[0] == (text.tokens == 0).sum() > 100
    assert np.allclose(table[0], np.concatenate(states).mean(0), atol=1e-5)


# Sequences


@pytest.mark.parametrize("level", LEVELS)
def test_long_sequences_are_cut_and_no_token_is_lost(level, vocabulary):
    words = [vocabulary.words[2 + i % 20] for i in range(1000)]
    lines = [" ".join(words[:n]) for n in (1000, 3, 63, 64, 255, 256)]
    documents = [
        Document(f"d{i}", "ab"[i % 2], "train", (line, "the cook .")) for i, line in enumerate(lines)
    ]
    text = vocabulary.encode(documents, ("a", "b"))
    cut = Sequences.of(text, level)
    starts, lengths, labels = cut.starts, cut.lengths, cut.labels
    covered = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths)])
    assert covered.tolist() == list(range(len(text)))  # each token once, in order
    assert lengths.min() > 0 and lengths.max() == LONGEST[level]
    whole = set((text.line_starts if level == "sentence" else text.paragraph_starts).tolist())
    assert whole <= {*starts.tolist(), len(text)}  # no piece reaches over an end
    assert labels.tolist() == [text.domains[text.document_of(s)] for s in starts]
    batched = [batch.inputs[batch.mask] for batch in labelled(text, level)]
    assert Counter(torch.cat(batched).tolist()) == Counter(text.tokens.tolist())


def test_another_order_shuffles_the_same_sequences(text):
    def drawn(seed):
        drawn = labelled(text, "sentence", np.random.default_rng(seed))
        return [(tuple(ids[real].tolist()), label) for b in drawn for ids, label, real in rows(b)]

    def rows(batch):
        return zip(batch.inputs, batch.targets.tolist(), batch.mask)

    assert drawn(0) == drawn(0) != drawn(1) and sorted(drawn(0)) == sorted(drawn(1))


# The task and its vectors


@pytest.mark.parametrize("level", LEVELS)
def test_domains_are_named_better_than_by_majority(level, tiny_corpus, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_TOKENS", 600)  # so little text would be a single step an epoch
    made = pretrain(f"domain-{level}", tiny_corpus, dim=16, epochs=5)
    labels = [d.domain for d in tiny_corpus.split("test") for p in d.paragraphs for _ in p.split("\n")]
    if level == "paragraph":
        labels = [d.domain for d in tiny_corpus.split("test") for _ in d.paragraphs]
    assert made.scores["majority_accuracy"] == max(Counter(labels).values()) / len(labels)
    assert made.scores["test_sequences"] == len(labels)
    assert made.scores["accuracy"] > made.scores["majority_accuracy"] + 0.3
    assert made.history[-1]["valid_loss"] < made.history[0]["valid_loss"]


def test_accuracy_equals_a_plain_count(tiny_corpus, vocabulary):
    made = pretrain("domain-sentence", tiny_corpus, vocabulary, dim=6, epochs=4)
    text = vocabulary.encode(tiny_corpus.split("test"), tiny_corpus.domains)
    right = 0
    for start, ids in zip(text.line_starts, stretches(text, "sentence")):
        mean = torch.from_numpy(alone(made.model.encoder, ids).mean(0))
        guess = made.model.output(mean).argmax().item()
        right += guess == text.domains[text.document_of(start)]
    assert made.scores["accuracy"] == pytest.approx(right / made.scores["test_sequences"])


def test_both_readouts_are_of_the_same_classifier(tiny_corpus, vocabulary, text):
    settings = {"dim": DIM, "epochs": 2, "seed": 3}
    averaged, layer = (
        pretrain("domain-sentence", tiny_corpus, vocabulary, readout=readout, **settings)
        for readout in ("averaged", "input-layer")
    )
    table, counts = average_states(averaged.model.encoder, labelled(text, "sentence"), len(vocabulary))
    assert (
        averaged.embeddings.words
        == layer.embeddings.words
        == tuple(vocabulary.decode(np.flatnonzero(counts)))
    )
    assert np.array_equal(averaged.embeddings.table, table[counts > 0])
    assert np.array_equal(
        layer.embeddings.table, layer.model.encoder.table.weight.detach().numpy()[counts > 0]
    )
    assert torch.equal(averaged.model.encoder.table.weight, layer.model.encoder.table.weight)
    assert [m.embeddings.provenance["readout"] for m in (averaged, layer)] == ["averaged", "input-layer"]


@pytest.mark.parametrize("level", LEVELS)
def test_same_seed_same_table_bit_for_bit(level, tiny_corpus, vocabulary, tmp_path, monkeypatch):
    tables = []
    for number, seed in enumerate((0, 0, 1)):
        monkeypatch.setenv("RTL_CACHE_DIR", str(tmp_path / str(number)))  # or it would be loaded
        torch.manual_seed(number)  # the caller's random state plays no part
        before = torch.get_rng_state()
        tables.append(
            pretrain(f"domain-{level}", tiny_corpus, vocabulary, dim=6, epochs=2, seed=seed).embeddings
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert tables[0].words == tables[1].words and np.array_equal(tables[0].table, tables[1].table)
    assert not np.allclose(tables[0].table, tables[2].table)


def test_the_account_says_what_was_read_and_how(tiny_corpus, vocabulary):
    made = pretrain("domain-paragraph", tiny_corpus, vocabulary, dim=6, epochs=3, seed=2)
    facts = made.embeddings.provenance
    expected = {
        "source": "domain-paragraph", "task": "the domain of a paragraph", "level": "paragraph", "epochs": 3,
        "readout": "averaged", "dim": 6, "seed": 2, "text": "tiny", "text_fingerprint": tiny_corpus.fingerprint,
        "tokens_read": tiny_corpus.n_tokens("train"),
    }  # fmt: skip
    assert expected.items() <= facts.items()
    assert facts["versions"]["torch"] == version("torch") and facts["seconds"] > 0
    assert "<unk>" not in made.embeddings  # with the whole vocabulary it never occurs
    loaded = pretrain("domain-paragraph", tiny_corpus, vocabulary, dim=6, epochs=3, seed=2)
    assert loaded.model is None and loaded.scores == made.scores and loaded.history == made.history
    assert loaded.embeddings.provenance == facts


# Labels that are missing


def unlabelled(identifier, split, line="zig zag zog ."):
    return Document(identifier, None, split, (line,) * 3)


def test_documents_without_a_label_are_skipped(tiny_corpus):
    mixed = changed(
        tiny_corpus, [unlabelled("first", "train"), *tiny_corpus.documents, unlabelled("x", "test")]
    )
    vocabulary = Vocabulary.build(mixed.split("train"))
    text = vocabulary.encode(mixed.split("train"), mixed.domains)
    read = [batch.inputs[batch.mask] for batch in labelled(text, "sentence")]
    assert sum(map(len, read)) == tiny_corpus.n_tokens("train") == len(text) - 15
    assert sorted(map(int, torch.cat(read))) == sorted(text.tokens[15:])
    made = pretrain("domain-sentence", mixed, vocabulary, dim=6, epochs=1)
    assert made.scores["test_sequences"] == sum(len(d.lines()) for d in tiny_corpus.split("test"))


@pytest.mark.parametrize("readout, n", [("averaged", 15), ("input-layer", 0)])
def test_states_are_averaged_over_unlabelled_documents_too(readout, n, tiny_corpus):
    mixed = changed(tiny_corpus, [*tiny_corpus.documents, unlabelled("x", "train", "the cook zig .")])
    facts = pretrain("domain-sentence", mixed, dim=6, epochs=1, readout=readout).embeddings.provenance
    assert facts["tokens_read"] == tiny_corpus.n_tokens("train") + n
    assert facts["labels"] == sum(len(d.lines()) for d in tiny_corpus.split("train"))


@pytest.mark.parametrize("readout", ["averaged", "input-layer"])
def test_words_that_only_unlabelled_documents_have_get_no_vector(readout, tiny_corpus):
    mixed = changed(tiny_corpus, [*tiny_corpus.documents, unlabelled("x", "train")])
    made = pretrain("domain-sentence", mixed, dim=6, epochs=1, readout=readout).embeddings
    assert "cook" in made
    assert [word for word in ("zig", "zag", "zog") if word in made] == []


@pytest.mark.parametrize("label, found", [("kitchen", r"1 \(kitchen\)"), (None, r"0 \(no labels\)")])
def test_a_corpus_without_two_domains_says_what_it_has(label, found, tiny_corpus):
    corpus = changed(tiny_corpus, [replace(d, domain=label) for d in tiny_corpus.documents])
    with pytest.raises(StudyError, match=f"at least two domains; corpus tiny has {found}.*sub-folder"):
        pretrain("domain-sentence", corpus, dim=6)
    assert kept_in_cache() == []


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_without_any_label_says_which(split, tiny_corpus):
    documents = [replace(d, domain=None if d.split == split else d.domain) for d in tiny_corpus.documents]
    with pytest.raises(StudyError, match=f"(?=.*{split})(?=.*label)"):
        pretrain("domain-paragraph", changed(tiny_corpus, documents), dim=6, epochs=1)
    assert kept_in_cache() == []


# Training that ends early


def test_training_that_diverges_says_so_and_keeps_nothing(tiny_corpus, monkeypatch):
    def diverge(*arguments):
        raise training.Diverged("the training loss became nan at step 1 of an epoch")

    monkeypatch.setattr(training, "_epoch", diverge)
    with pytest.raises(StudyError, match="domain-sentence diverged: the training loss became nan"):
        pretrain("domain-sentence", tiny_corpus, dim=6)
    assert kept_in_cache() == []


def test_interrupted_pretraining_keeps_nothing_and_can_be_repeated(tiny_corpus, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain("domain-sentence", tiny_corpus, dim=6, epochs=1)
    assert kept_in_cache() == []
    assert pretrain("domain-sentence", tiny_corpus, dim=6, epochs=1).history
