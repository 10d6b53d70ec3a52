"""The shape of word tables: each measure has a naive twin, and each is told what it must not see."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.metrics import silhouette_score

from rtl_core import figures, findings, run, texts
from rtl_core.analysis import geometry
from rtl_core.analysis.geometry import (
    cka,
    dimensions,
    mean_cosine,
    procrustes,
    purity,
    silhouette,
    word_domains,
)
from rtl_core.config import Experiment
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.results import Record
from rtl_core.storage import StudyError
from rtl_core.transfer import load_model

BASE = Experiment(
    corpus="tiny", hidden_size=8, n_samples=32, batch_size=8, window=20, max_epochs=1, lm_tokens=1000,
    pretrain_epochs=1,
)  # fmt: skip
RNG = np.random.default_rng(0)


def embeddings(table):
    return Embeddings([f"w{i}" for i in range(len(table))], np.asarray(table, dtype=np.float32))


def domains_of(labels, counts):
    index = pd.Index([f"w{i}" for i in range(len(labels))], name="word")
    return pd.DataFrame({"domain": list(labels), "count": counts}, index)


def planted(n=60, spread=0.3):
    """Three bunches of vectors, their domains, and word counts in two bands."""
    labels = np.repeat(["a", "b", "c"], [n // 2, n // 3, n // 6])
    middles = {name: RNG.standard_normal(8) for name in "abc"}
    table = [middles[name] + spread * RNG.standard_normal(8) for name in labels]
    return embeddings(table), domains_of(labels, RNG.choice([20, 500], n))


# Words and their domains


def corpus_of(texts_of: dict[str, list[str]], split="train"):
    documents = [
        Document(f"{split}-{domain}-{i}", domain, split, (text,))
        for domain, lines in texts_of.items()
        for i, text in enumerate(lines)
    ]
    return Corpus("made", tuple(documents), tokenizer="whitespace")


def test_a_word_belongs_to_the_domain_of_its_highest_rate():
    # "both" occurs as often in a as in b, but b is four times as long: its rate in a is four times that in b
    short, long = "only both the the the the", " ".join(["both the the the", "more"] + ["x y z"] * 6)
    made = corpus_of({"a": [short] * 24, "b": [long] * 24})
    vocabulary = Vocabulary.build(made.split("train"))
    found = word_domains(made, vocabulary)
    tokens = {name: made_tokens * 24 for name, made_tokens in (("a", 7), ("b", 24))}  # with <eos>
    rates = {"a": 24 / tokens["a"], "b": 24 / tokens["b"]}
    assert found.loc["both", "domain"] == "a"
    assert found.loc["both", "share"] == pytest.approx(rates["a"] / sum(rates.values()))
    assert found.loc["only", ["domain", "share", "count"]].tolist() == ["a", 1, 24]
    assert found.loc["x", "domain"] == "b" and found["count"].is_monotonic_decreasing
    assert "the" in found.index and "the" not in word_domains(made, vocabulary, min_share=0.9).index
    assert not {"<unk>", "<eos>"} & set(found.index)


def test_rare_and_bunched_words_and_held_out_text_are_left_out():
    common = ["left right"] * 24
    made = corpus_of(
        {"a": [*common, *["seldom"] * 19], "b": [*common, *["bunched " * 10] * 4, *["often"] * 20]}
    )
    vocabulary = Vocabulary.build(made.split("train"))
    found = word_domains(made, vocabulary)
    assert "often" in found.index and not {"seldom", "bunched"} & set(found.index)
    held_out = corpus_of({"a": ["often " * 500] * 30}, "test").documents
    again = word_domains(replace(made, documents=(*made.documents, *held_out)), vocabulary)
    pd.testing.assert_frame_equal(found, again)


def test_a_corpus_without_domains_says_what_to_do(tiny_corpus):
    plain = replace(tiny_corpus, documents=tuple(replace(d, domain=None) for d in tiny_corpus.documents))
    vocabulary = Vocabulary.build(plain.split("train"))
    with pytest.raises(StudyError, match="has 0 domains, and 0 of its words .*clusters.clustered"):
        word_domains(plain, vocabulary)


def test_the_words_of_the_tiny_corpus_are_known(tiny_corpus):
    from conftest import DOMAINS

    found = word_domains(tiny_corpus, Vocabulary.build(tiny_corpus.split("train")))
    assert found["domain"].to_dict() == {w: name for name, words in DOMAINS.items() for w in words}
    assert (found["share"] == 1).all()


# Purity and silhouette


def test_purity_and_its_chance_level_by_hand():
    vectors, domains = planted(spread=1.0)
    labels, counts = domains["domain"].to_numpy(), domains["count"].to_numpy()
    same, chance = [], []
    for i, word in enumerate(vectors.words):
        for other, _ in vectors.neighbors(word, k=5):
            j = vectors.ids[other]
            same.append(labels[i] == labels[j])
            peers = [
                m
                for m in range(len(labels))
                if m != i and np.log10(counts[m]) // 1 == np.log10(counts[j]) // 1
            ]
            chance.append(np.mean(labels[peers] == labels[i]))
    found = purity(vectors, domains, k=5)
    assert found == pytest.approx((np.mean(same), np.mean(chance)))
    assert 0.4 < found[0] < 1


def test_a_permuted_table_is_at_chance_and_bunches_are_pure():
    vectors, domains = planted(spread=0.01)
    assert purity(vectors, domains, k=5)[0] == 1
    dealt = [purity(vectors.permuted(seed), domains, k=5) for seed in range(200)]
    assert np.mean([p for p, _ in dealt]) == pytest.approx(np.mean([c for _, c in dealt]), abs=0.01)


def test_chance_is_matched_by_frequency():
    # All frequent words are of domain a, and neighbours are of equal frequency: no better than that.
    labels, counts = np.array(["a"] * 20 + ["a", "b"] * 20), np.array([500] * 20 + [20] * 40)
    side = np.where(counts > 100, 1.0, -1.0)[:, None]
    table = np.hstack([3 * side, RNG.standard_normal((60, 6))])
    found, chance = purity(embeddings(table), domains_of(labels, counts))
    naive = np.mean([(labels == own).sum() - 1 for own in labels]) / 59
    assert found == pytest.approx(chance, abs=0.05) and found > naive + 0.05


def test_words_without_a_vector_do_not_count():
    vectors, domains = planted()
    more = pd.concat([domains, domains_of("ab", [30, 30]).set_axis(["absent", "gone"])])
    assert purity(vectors, more) == purity(vectors, domains)
    with pytest.raises(StudyError, match="needs 12 words or more .* found 5"):
        purity(vectors, domains.head(5))


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_silhouette_agrees_with_scikit_learn(spread):
    vectors, domains = planted(spread=spread)
    domains.iloc[0, 0] = "alone"
    expected = silhouette_score(vectors.table, domains["domain"], metric="cosine")
    assert silhouette(vectors, domains) == pytest.approx(expected, abs=1e-5)


# One table


def test_mean_cosine_by_pairs_and_before_and_after_the_mean_is_gone():
    vectors = embeddings(RNG.standard_normal((40, 6)) + 2)
    unit = vectors.normalised().table
    pairs = [unit[i] @ unit[j] for i in range(40) for j in range(i)]
    assert mean_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-6) and mean_cosine(vectors) > 0.5
    assert abs(mean_cosine(vectors.centred())) < 0.05


def test_dimensions_of_known_tables():
    round_ = np.vstack([np.eye(5), -np.eye(5)])
    assert dimensions(embeddings(round_ + 7)) == pytest.approx((5, 5))
    assert dimensions(embeddings(np.outer(np.arange(9), np.ones(4)))) == pytest.approx((1, 1))
    shares = np.array([0.5, 0.25, 0.25])
    table = np.vstack([np.diag(np.sqrt(shares)), -np.diag(np.sqrt(shares))])
    assert dimensions(embeddings(table)) == pytest.approx((1 / 0.375, np.exp(1.5 * np.log(2))))


def test_isoscore_is_the_participation_ratio_rescaled():
    table = RNG.standard_normal((200, 12)) * np.linspace(0.1, 2, 12)
    variances = np.linalg.eigvalsh(np.cov(table.T))  # Rudman et al. 2022, section 4, step by step
    n = len(variances)
    normed = np.sqrt(n) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normed - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    used = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    ratio, _ = dimensions(embeddings(table))
    assert (n * used - 1) / (n - 1) == pytest.approx((ratio - 1) / (n - 1), rel=1e-5)


# Two tables


def naive_cka(first, second):
    """From Gram matrices without their diagonals: Song et al. 2012, equation 5."""

    def hsic(k, m):
        n, one = len(k), np.ones(len(k))
        parts = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (parts - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))

    grams = [table @ table.T for table in (first, second)]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    k, m = grams
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_cka_agrees_with_gram_matrices_without_diagonals():
    first = RNG.standard_normal((50, 6)) + 1
    second = first[:, :4] @ RNG.standard_normal((4, 9)) + RNG.standard_normal((50, 9))
    assert cka(first, second) == pytest.approx(naive_cka(first, second), rel=1e-6)
    assert 0.1 < cka(first, second) < 0.9


def test_turning_moving_and_scaling_change_nothing():
    first, turn = RNG.standard_normal((80, 6)), np.linalg.qr(RNG.standard_normal((6, 6)))[0]
    moved = 3 * first @ turn + 5
    assert cka(first, moved) == pytest.approx(1) and procrustes(first, moved) == pytest.approx(0, abs=1e-9)
    squashed = first * [5, 1, 1, 1, 1, 1]
    assert cka(first, squashed) < 0.95 and procrustes(first, squashed) > 0.05


def test_unrelated_tables_have_none_but_for_the_debiasing():
    pairs = [RNG.standard_normal((2, 60, 20)) for _ in range(100)]
    assert np.mean([cka(*pair) for pair in pairs]) == pytest.approx(
        0, abs=0.01
    )  # the plain estimate is about 0.25


def test_procrustes_is_the_distance_after_the_best_rotation():
    first, second = RNG.standard_normal((2, 30, 5))
    a, b = ((t - t.mean(0)) / np.linalg.norm(t - t.mean(0)) for t in (first, second))
    turn, _ = orthogonal_procrustes(b, a)
    assert procrustes(first, second) == pytest.approx(np.sum((a - b @ turn) ** 2))
    wider = np.hstack([second, np.zeros((30, 3))])  # as of a table beside another
    assert procrustes(first, wider) == pytest.approx(procrustes(first, second))


# Of records


@pytest.fixture
def small(tiny_corpus, monkeypatch):
    texts.forget()
    monkeypatch.setattr(texts, "load_corpus", lambda name: tiny_corpus)
    yield tiny_corpus
    texts.forget()


def test_a_record_has_a_row_a_table_and_measure(small):
    record = run(BASE.replace(source="lsa"))
    found = geometry.measure(record)
    assert list(found) == ["table", "measure", "value"] and found["value"].map(np.isfinite).all()
    values = found.set_index(["table", "measure"])["value"]
    assert {len(values[name]) for name in ("pretrained", "finetuned")} == {10, 8} and len(
        values["permuted"]
    ) == 5
    assert values["pretrained", "purity"] > 2 * values["pretrained", "purity_chance"]
    assert values["pretrained", "cka"] > 0.5 > abs(values["permuted", "cka"])
    assert values["pretrained", "procrustes"] < values["permuted", "procrustes"]
    pd.testing.assert_frame_equal(found, geometry.measure(record))
    findings.save_finding("geometry", record.name, found)
    assert len(findings.load_findings("geometry", [record.name])) == len(found)


@pytest.mark.parametrize("mode", ["finetuned", "frozen", "concatenated", "gated", "projected"])
def test_the_fine_tuned_table_is_what_enters_the_lstm(small, mode):
    record = run(BASE.replace(source="lsa", input_mode=mode))
    found = geometry.tables(record)
    model, vocabulary, _ = load_model(findings.model_dir(record.name))
    word = found["finetuned"].words[3]
    entering = model.table(torch.tensor([[vocabulary.ids[word]]]))[0, 0].detach().numpy()
    assert np.allclose(found["finetuned"].vector(word), entering, atol=1e-6)
    assert len(entering) == (16 if mode == "concatenated" else 8)
    if mode == "frozen":
        assert cka(found["pretrained"].table, found["finetuned"].table) == pytest.approx(1)
    assert sorted(map(tuple, found["permuted"].table)) == sorted(map(tuple, found["pretrained"].table))


def test_random_vectors_are_those_that_were_drawn(small):
    own = run(BASE)
    drawn = geometry.source_table(own)
    swapped = run(BASE.replace(source="lsa", input_init="random", output_init="pretrained"))
    assert np.array_equal(geometry.source_table(swapped).table, drawn.table)
    assert cka(drawn.table, geometry.tables(own)["finetuned"].table) > 0.5


def test_models_without_a_table_are_refused(small):
    with pytest.raises(StudyError, match=r"n-gram bound \(unigram\), which has no table"):
        geometry.measure(run(BASE.replace(model="unigram")))
    with pytest.raises(StudyError, match="of the source leaky-bilm, which has no table"):
        geometry.measure(run(BASE.replace(source="leaky-bilm")))


def test_without_domains_the_rest_goes_on(small, monkeypatch, capsys):
    record = run(BASE)
    plain = replace(small, documents=tuple(replace(d, domain=None) for d in small.documents))
    monkeypatch.setattr(geometry, "corpus_of", lambda name: plain)
    found = geometry.measure(record)
    assert not found["measure"].str.startswith(("purity", "silhouette")).any() and "cka" in set(
        found["measure"]
    )
    assert "purity and silhouette are left out" in capsys.readouterr().err


def test_sources_are_compared_two_by_two(small):
    records = [run(BASE.replace(source=name)) for name in ("random", "lsa", "permuted:lsa")]
    found = geometry.between(records)
    assert found[["first", "second"]].values.tolist() == [
        ["random", "lsa"], ["random", "permuted:lsa"], ["lsa", "permuted:lsa"]
    ]  # fmt: skip
    first, second = (geometry.source_table(record) for record in records[:2])
    words = [word for word in first.words if word in second]
    both = first.lookup(words)[0], second.lookup(words)[0]
    assert found.loc[0, ["words", "cka"]].tolist() == [len(words), cka(*both)]
    assert found.loc[0, "procrustes"] == procrustes(*both)
    assert (found[["cka", "cka_permuted"]].abs() < 0.3).all(axis=None)
    tuned = geometry.between(records[:2], "finetuned")
    assert tuned.loc[0, "cka"] != found.loc[0, "cka"]


def test_a_table_is_named_by_what_made_it_not_by_its_use(small):
    changes = (
        {},
        {"encoder": "shared"},
        {"input_mode": "frozen"},
        {"input_init": "random", "output_init": "pretrained"},
    )
    records = [Record(BASE.replace(source="lm", **change).to_dict(), "0" * 64) for change in changes]
    assert [*map(geometry.table_name, records)] == ["lm", "lm (encoder shared)", "lm", "random"]


def test_sources_of_other_settings_are_not_compared(small):
    one, other = run(BASE), run(BASE.replace(source="lsa", seed=1))
    with pytest.raises(StudyError, match="of one corpus, vocabulary and seed; found 2 sources"):
        geometry.between([one, other])
    with pytest.raises(StudyError, match="found 1 sources"):
        geometry.between([one, one])


# Figures


def pairs():
    values = {
        ("a", "b"): 0.9,
        ("a", "c"): 0.1,
        ("b", "c"): 0.004,
        ("a", "d"): 0.2,
        ("b", "d"): 0.1,
        ("c", "d"): 0.7,
    }
    rows = [
        {"first": f, "second": s, "cka": value, "cka_permuted": -0.0007} for (f, s), value in values.items()
    ]
    return pd.DataFrame(rows)


def test_alike_sources_stand_together_and_every_pair_once():
    from matplotlib import pyplot as plt

    ax = figures.plot_between(pairs())
    *cells, note = [text.get_text() for text in ax.texts]
    assert sorted(cells, key=int) == ["0", "10", "10", "20", "70", "90"] and "CKA is at most 0.0007." in note
    names = [tick.get_text() for tick in (*ax.get_xticklabels()[:1], *ax.get_yticklabels())]
    assert {frozenset(names[:2]), frozenset(names[2:])} == {frozenset("ab"), frozenset("cd")}
    said = figures.describe_between(pairs())
    assert "a and b 0.90; c and d 0.70; a and d 0.20. Of 6 pairs 1 are below 0.02" in said
    plt.close("all")
