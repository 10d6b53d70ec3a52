"""What is made by counting: the latent semantic space and its clusters, LSA, GloVe."""

from collections import defaultdict
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from conftest import DOMAINS

from rtl_core.config import PretrainConfig
from rtl_core.corpora.clusters import clustered, latent_space
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.pretrain import glove, pretrain
from rtl_core.storage import StudyError

# four documents by hand: "a" is in all alike, "b" in one, "c" twice in one and once in another
TEXTS = (("a b\na b",), ("a c", "a c"), ("a a", "c d"), ("a a d d e",))
HAND = Corpus("hand", tuple(Document(str(i), None, "train", text) for i, text in enumerate(TEXTS)))
NEAR = Corpus("near", (Document("d", None, "train", ("x y x z\ny", "z z w " + "v " * 12)),))


def words_of(corpus):
    return Vocabulary.build(corpus.split("train"))


@pytest.fixture(scope="module")
def tiny(tiny_corpus):
    """A corpus, its vocabulary, the encoded training text and a space of eight dimensions."""
    vocabulary = words_of(tiny_corpus)
    text = vocabulary.encode(tiny_corpus.split("train"))
    return tiny_corpus, vocabulary, text, latent_space(text, len(vocabulary), 8)


# The latent space


def test_weights_and_space_of_a_matrix_by_hand():
    vocabulary = words_of(HAND)
    space = latent_space(vocabulary.encode(HAND.documents), len(vocabulary), 3)
    weights = dict(zip(vocabulary.words, space.weights))
    assert weights["a"] == pytest.approx(0) and weights["b"] == weights["e"] == 1 and weights["<eos>"] == 0
    entropy = -(2 / 3 * log(2 / 3) + 1 / 3 * log(1 / 3)) / log(4)
    assert weights["c"] == weights["d"] == pytest.approx(1 - entropy)
    matrix = np.zeros((len(vocabulary), 4))
    for column, text in enumerate(TEXTS):
        tokens = " ".join(text).split()
        for word in set(tokens):
            matrix[vocabulary.ids[word], column] = weights[word] * log(1 + tokens.count(word))
    left, strengths, right = np.linalg.svd(matrix)
    assert np.allclose(space.strengths, strengths[:3], atol=1e-6)
    assert np.allclose(
        space.words @ space.words.T, (left[:, :3] * strengths[:3] ** 2) @ left[:, :3].T, atol=1e-5
    )
    signs = np.sign((space.documents * (right[:3].T * strengths[:3])).sum(0))
    assert np.allclose(space.documents, right[:3].T * strengths[:3] * signs, atol=1e-5)


def test_a_document_is_placed_by_its_own_words(tiny):
    corpus, vocabulary, text, space = tiny
    assert np.allclose(space.project(text), space.documents, atol=1e-5)
    alone = [space.project(vocabulary.encode([d])) for d in corpus.split("test")]
    assert np.allclose(np.vstack(alone), space.project(vocabulary.encode(corpus.split("test"))), atol=1e-5)


def test_history_is_what_stood_before_in_the_document(tiny):
    corpus, vocabulary, _, space = tiny
    documents = corpus.split("test")[:2]
    text = vocabulary.encode(documents)
    history = space.history(text)
    assert history.dtype == np.float32 and history.shape == (len(text), 8)
    for start, end in zip(text.document_starts[:-1], text.document_starts[1:]):
        seen, place = defaultdict(int), np.zeros(8)
        for position in range(start, end):
            assert np.allclose(history[position], place, atol=1e-4)
            word = text.tokens[position]
            gain = log(2 + seen[word]) - log(1 + seen[word])
            place = place + gain * space.weights[word] * space.directions[word]
            seen[word] += 1
        assert np.allclose(place, space.project(text)[text.document_of(np.array([start]))[0]], atol=1e-4)


def test_history_knows_nothing_of_what_comes(tiny):
    _, vocabulary, text, space = tiny
    history = space.history(text)
    for position in (0, 5, 700, int(text.document_starts[3]), len(text) - 1):
        tokens = text.tokens.copy()
        tokens[position] = vocabulary.ids["soup" if tokens[position] != vocabulary.ids["soup"] else "ferry"]
        other = space.history(replace(text, tokens=tokens))
        end = text.document_starts[text.document_of(np.array([position]))[0] + 1]
        assert other[: position + 1].tobytes() == history[: position + 1].tobytes()
        assert other[end:].tobytes() == history[end:].tobytes()
        assert (other[position + 1 : end] != history[position + 1 : end]).any(1).all()


# Clusters


def test_clusters_find_the_domains(tiny):
    corpus, vocabulary, _, _ = tiny
    unlabelled = replace(corpus, documents=tuple(replace(d, domain=None) for d in corpus.documents))
    found = clustered(unlabelled, vocabulary, n_clusters=3, dim=8)
    assert found.domains == ("cluster-00", "cluster-01", "cluster-02")
    pairs = {(a.domain, b.domain) for a, b in zip(corpus.documents, found.documents)}
    assert len(pairs) == 3  # each domain is one cluster, in test text too
    assert [(d.id, d.split, d.paragraphs) for d in found.documents] == [
        (d.id, d.split, d.paragraphs) for d in corpus.documents
    ]
    assert found.fingerprint == clustered(corpus, vocabulary, n_clusters=3, dim=8).fingerprint


def test_clusters_ignore_validation_and_test_text(tiny):
    corpus, vocabulary, _, _ = tiny
    other = [d if d.split == "train" else replace(d, paragraphs=("soup",)) for d in corpus.documents]
    for documents in (other, corpus.split("train")):
        found = clustered(replace(corpus, documents=tuple(documents)), vocabulary, n_clusters=5)
        whole = clustered(corpus, vocabulary, n_clusters=5)
        assert found.split("train") == whole.split("train")


def test_too_few_documents(tiny):
    corpus, vocabulary, _, _ = tiny
    with pytest.raises(StudyError, match="40 clusters .*corpus tiny has 28. Give more documents"):
        clustered(corpus, vocabulary, n_clusters=40)
    with pytest.raises(StudyError, match="28 dimensions needs more than 28 training documents.*28 documents"):
        pretrain("lsa", corpus, vocabulary, dim=28)


# LSA


def test_lsa_has_the_words_of_the_training_text(tiny):
    corpus, _, _, space = tiny
    vocabulary = Vocabulary.build(corpus.split("train"), 20)
    made = pretrain("lsa", corpus, vocabulary, dim=8).embeddings
    assert made.words == tuple(word for word in vocabulary.words if word != "<eos>")
    facts = made.provenance
    expected = {"source": "lsa", "level": "document", "tokens_read": corpus.n_tokens("train"), "dim": 8}
    assert expected.items() <= facts.items()
    whole = pretrain("lsa", corpus, words_of(corpus), dim=8, seed=5).embeddings
    kept = [i for i, word in enumerate(words_of(corpus).words) if word in whole]
    assert np.allclose(whole.table, space.words[kept])  # whatever the seed


def test_lsa_brings_the_words_of_a_domain_together(tiny):
    vectors = pretrain("lsa", tiny[0], tiny[1], dim=6).embeddings
    for words in DOMAINS.values():
        assert {word for word, _ in vectors.neighbors(words[0], k=5)} <= set(words)


# GloVe


def naive_counts(corpus, vocabulary, window):
    counts = np.zeros((len(vocabulary), len(vocabulary)))
    for line in (line for d in corpus.split("train") for line in d.lines()):
        for i, word in enumerate(line):
            for j, other in enumerate(line):
                if 0 < abs(i - j) <= window:
                    counts[vocabulary.ids[word], vocabulary.ids[other]] += 1 / abs(i - j)
    return counts


@pytest.mark.parametrize("window", [2, 10])
def test_counts_equal_a_double_loop(window, tiny):
    for corpus in (NEAR, tiny[0]):
        vocabulary = words_of(corpus)
        text = vocabulary.encode(corpus.split("train"))
        counts = glove.co_occurrences(text, len(vocabulary), window)
        assert counts.dtype == np.float32 and counts.has_sorted_indices
        assert np.allclose(counts.toarray(), naive_counts(corpus, vocabulary, window), rtol=1e-5)
        assert not counts[[EOS_ID]].nnz


def near_logs():
    vocabulary = words_of(NEAR)
    logs = glove.co_occurrences(vocabulary.encode(NEAR.documents), len(vocabulary))
    logs.data = np.log(logs.data)
    return logs


def test_loss_and_gradients_equal_the_pairwise_formula(monkeypatch):
    monkeypatch.setattr(glove, "X_MAX", 2)  # some counts are above, some below
    logs, words = near_logs(), np.array([5, 2, 3])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = glove.GloVe(np.linspace(-1, 1, logs.shape[0]), 4)
    tables = [p.detach().clone().requires_grad_() for p in model.parameters()]
    named = dict(zip((name for name, _ in model.named_parameters()), tables))
    total = 0
    pairs = logs.tocoo()
    for i, j, value in zip(pairs.row, pairs.col, pairs.data):
        if i in words:
            product = named["table.weight"][i] @ named["context"][j]
            error = product + named["bias"][i] + named["context_bias"][j] - float(value)
            total = total + min(1, (np.exp(value) / 2) ** 0.75) * error**2
    total.backward()
    monkeypatch.setattr(glove, "STEPS", 1)
    (block,) = glove.blocks(logs, words)
    loss = model.loss(block)
    loss.total.backward()
    assert loss.count == len(words) and loss.total.item() == pytest.approx(total.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, named[name].grad, atol=1e-5), name


def test_training_starts_at_the_best_biases():
    logs = near_logs()
    biases, pairs = glove.additive_fit(logs, rounds=500), logs.tocoo()
    weights = np.minimum(1, (np.exp(pairs.data) / glove.X_MAX) ** glove.ALPHA)
    error = weights * (pairs.data - biases[pairs.row] - biases[pairs.col])
    assert np.abs(np.bincount(pairs.row, error)).max() < 1e-6  # no bias could be better
    assert np.abs(error).max() > 0.01


def test_blocks_bring_every_pair_once(tiny, monkeypatch):
    monkeypatch.setattr(glove, "STEPS", 5)
    logs = glove.co_occurrences(tiny[2], len(tiny[1]))
    order = np.random.default_rng(0).permutation(logs.shape[0])
    found = np.zeros(logs.shape)
    for block in glove.blocks(logs, order):
        rows = block.words.repeat_interleave(block.starts.diff())
        np.add.at(found, (rows.numpy(), block.others.numpy()), block.logs.numpy())
    assert np.array_equal(found, logs.toarray())


@pytest.fixture(scope="module")
def circles():
    """Lines whose words come from one of two circles four times in five: GloVe learns from pairs that occur."""
    rng, names = np.random.default_rng(0), [[f"{c}{i}" for i in range(6)] for c in "ab"]
    lines = [
        " ".join(rng.choice(names[own if rng.random() < 0.8 else 1 - own]) for _ in range(6))
        for own in rng.integers(2, size=300)
    ]
    return Corpus("circles", (Document("d", None, "train", ("\n".join(lines),)),))


def test_glove_vectors_and_an_account_of_them(circles):
    vocabulary = words_of(circles)
    made = pretrain("glove", circles, vocabulary, dim=4, epochs=30)
    vectors = made.embeddings
    assert set(vectors.words) == set(vocabulary.words[2:]) and vectors.table.shape == (12, 4)
    for word in vectors.words:
        assert {other[0] for other, _ in vectors.neighbors(word, k=3)} == {word[0]}
    assert made.history[-1]["valid_loss"] < made.history[0]["valid_loss"] / 2
    facts = vectors.provenance
    assert facts["tokens_read"] == circles.n_tokens("train") and facts["epochs"] == len(made.history) == 30


def test_glove_is_reproducible_and_seeded(tiny):
    corpus, vocabulary = tiny[:2]
    tables = [
        glove.pretrain(corpus, vocabulary, PretrainConfig("glove", dim=6, epochs=2, seed=s)).embeddings.table
        for s in (0, 0, 1)
    ]
    assert tables[0].tobytes() == tables[1].tobytes() and (tables[0] != tables[2]).all()


def test_words_that_stand_alone_have_no_vector():
    alone = Corpus("alone", (Document("d", None, "train", ("one\ntwo three\nfour",)),))
    made = pretrain("glove", alone, words_of(alone), dim=4, epochs=1).embeddings
    assert set(made.words) == {"two", "three"}
    single = Corpus("single", (Document("d", None, "train", ("one\ntwo",)),))
    with pytest.raises(StudyError, match="no training line of corpus single has two words"):
        pretrain("glove", single, words_of(single), dim=4)


def test_glove_can_be_interrupted(tiny, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(glove.GloVe, "loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        glove.pretrain(tiny[0], tiny[1], PretrainConfig("glove", dim=4))
