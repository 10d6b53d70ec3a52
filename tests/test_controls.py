"""Controls: what each of them keeps and what it destroys; which source can have which."""

import numpy as np
import pytest

from rtl_core import catalogue
from rtl_core.catalogue import CONTROLS, SOURCES, base_of, find, fitting, parts_of, table_of
from rtl_core.config import Experiment, PretrainConfig
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain import pretrain
from rtl_core.storage import StudyError


@pytest.fixture(scope="module")
def vocabulary(tiny_corpus):
    return Vocabulary.build(tiny_corpus.split("train"))


@pytest.fixture
def vectors():
    rng = np.random.default_rng(1)
    table = (rng.standard_normal((60, 6)) @ rng.standard_normal((6, 6)) + 3).astype(np.float32)
    return Embeddings(tuple(f"w{i}" for i in range(60)), table, {"source": "lsa"})


# What they do to a table


def test_permuting_in_bands_moves_rows_within_their_band_only(vectors):
    bands = np.repeat([0, 1, 2], 20)
    control = vectors.permuted(3, bands)
    where = [int(np.flatnonzero((vectors.table == row).all(1))[0]) for row in control.table]
    assert sorted(where) == list(range(60)) and where != list(range(60))
    assert (bands[where] == bands).all()
    assert control.provenance["source"] == "permuted-in-band:lsa" and control.words == vectors.words


def test_spectrum_keeps_mean_and_singular_values_and_destroys_the_words(vectors):
    control = vectors.with_spectrum(3)

    def values(table):
        return np.linalg.svd(table - table.mean(0), compute_uv=False)

    assert np.allclose(control.table.mean(0), vectors.table.mean(0), atol=1e-4)
    assert np.allclose(values(control.table), values(vectors.table), rtol=1e-4)
    products = [e.centred().table @ e.centred().table[0] for e in (vectors, control)]
    assert abs(np.corrcoef([each[1:] for each in products])[0, 1]) < 0.35
    assert not np.array_equal(control.table, vectors.with_spectrum(4).table)
    assert np.array_equal(control.table, vectors.with_spectrum(3).table)


def test_bands_go_by_powers_of_ten():
    vocabulary = Vocabulary(("<unk>", "<eos>", *"abcdef"), (0, 500, 1000, 999, 100, 99, 10, 9))
    assert vocabulary.bands.tolist() == [0, 2, 3, 2, 2, 1, 1, 0]


@pytest.mark.parametrize("control", ["permuted", "permuted-in-band", "spectrum"])
def test_a_control_of_a_table_is_made_from_the_stored_one(control, tiny_corpus, vocabulary, capsys):
    base = pretrain("lsa", tiny_corpus, vocabulary, dim=6).embeddings
    made = pretrain(f"{control}:lsa", tiny_corpus, vocabulary, dim=6).embeddings
    assert "loaded lsa" in capsys.readouterr().err
    assert made.words == base.words and not np.allclose(made.table, base.table)
    assert made.provenance["source"] == f"{control}:lsa"
    assert made.provenance["tokens_read"] == base.provenance["tokens_read"]  # it stands on the same text
    other = pretrain(f"{control}:lsa", tiny_corpus, vocabulary, dim=6, seed=1).embeddings
    assert not np.array_equal(made.table, other.table)


# What they do to a training


@pytest.mark.parametrize("source", ["bilm", "masked-lm", "domain-sentence", "next-paragraph"])
def test_untrained_is_the_same_encoder_before_training(source, tiny_corpus, vocabulary):
    trained = pretrain(source, tiny_corpus, vocabulary, dim=8, epochs=2)
    untrained = pretrain(f"untrained:{source}", tiny_corpus, vocabulary, dim=8)
    assert untrained.history == [] and untrained.embeddings.words == trained.embeddings.words
    assert not np.allclose(untrained.embeddings.table, trained.embeddings.table)
    before, after = (dict(made.model.named_parameters()) for made in (untrained, trained))
    assert before.keys() == after.keys()
    again = pretrain(f"untrained:{source}", tiny_corpus, vocabulary, dim=8, epochs=7)  # epochs change nothing
    assert np.array_equal(again.embeddings.table, untrained.embeddings.table)


def test_shuffled_labels_leave_nothing_to_learn(tiny_corpus, vocabulary, monkeypatch):
    from rtl_core import batches

    monkeypatch.setattr(batches, "BATCH_TOKENS", 600)
    honest, shuffled = (
        pretrain(f"{control}domain-sentence", tiny_corpus, vocabulary, dim=16, epochs=5)
        for control in ("", "shuffled-labels:")
    )
    assert honest.scores["accuracy"] > 0.8 and shuffled.scores["accuracy"] < 0.6
    assert shuffled.embeddings.provenance["labels"] == honest.embeddings.provenance["labels"]


def test_controls_can_be_joined_and_stacked(tiny_corpus, vocabulary):
    made = pretrain("lsa+untrained:bilm", tiny_corpus, vocabulary, dim=6).embeddings
    assert made.table.shape[1] == 6 and made.provenance["source"] == "lsa+untrained:bilm"
    stacked = pretrain("permuted:untrained:bilm", tiny_corpus, vocabulary, dim=6).embeddings
    inner = pretrain("untrained:bilm", tiny_corpus, vocabulary, dim=6).embeddings
    assert sorted(map(tuple, stacked.table.tolist())) == sorted(map(tuple, inner.table.tolist()))


# Names


def test_names_come_apart():
    assert (
        base_of("permuted:untrained:bilm") == "bilm"
        and table_of("permuted:untrained:bilm") == "untrained:bilm"
    )
    assert parts_of("a+permuted:file:x+y.txt") == ("a", "permuted:file:x+y.txt")
    config = PretrainConfig("untrained:bilm")
    assert config.untrained and not config.shuffled_labels and config.plain == "bilm"


@pytest.mark.parametrize(
    "source, says",
    [
        ("shuffled-labels:bilm", "shuffled-labels:X takes domain-sentence"),
        ("untrained:glove", "untrained:X takes bilm"),
        ("untrained:permuted:bilm", "no control that can be made"),
        ("permuted:leaky-bilm", "no table of word vectors"),
        ("lsa+nonsense", "unknown source 'nonsense'"),
        ("spectrum:glov", "Did you mean glove"),
    ],
)
def test_a_source_that_cannot_be_says_what_can(source, says):
    with pytest.raises(StudyError, match=says):
        Experiment(source=source)


def test_what_fits_follows_from_what_is_there():
    assert "domain-sentence" not in fitting(False) and "domain-lsa" in fitting(False)
    assert "domain-sentence" in fitting(True) and "pos" not in fitting(True) and "pos" in fitting(True, True)
    assert catalogue.LEAKY not in fitting(True, True)
    assert set(fitting(True, True)) == set(SOURCES) - {catalogue.LEAKY}


def test_every_entry_is_whole():
    for name, source in SOURCES.items():
        assert all((source.task, source.objective, source.context, source.data, source.idea)), name
        assert find(name) is source
        for control in CONTROLS:
            if name != catalogue.LEAKY and control in catalogue.TABLE_CONTROLS:
                assert find(control + name) is source


def test_labels_are_dealt_out_among_what_has_them():
    from rtl_core.batches import Sequences
    from rtl_core.pretrain.pretrained import dealt_out

    config, starts, lengths = PretrainConfig("shuffled-labels:pos"), np.array([0, 30]), np.array([30, 30])
    tokens = np.r_[np.arange(2, 31), 1, np.arange(2, 31), 1]
    tags = np.where(tokens == 1, 9, tokens % 5)
    dealt = dealt_out(config, Sequences(tokens, starts, lengths, np.array([0, 0]), tags)).token_labels
    assert (dealt[tokens == 1] == 9).all() and sorted(dealt) == sorted(tags) and (dealt != tags).any()
    halves = np.tile(np.arange(20) % 2, 2)
    both = Sequences(np.arange(40), np.arange(40), np.ones(40, int), halves)
    labels = dealt_out(config, both, pairs=True).labels
    assert (labels[:20] == labels[20:]).all() and labels[:20].sum() == 10 and (labels != halves).any()


@pytest.mark.parametrize("source", ["lsa+lsa", "glove+leaky-bilm", "permuted:glove+leaky-bilm", "permuted:"])
def test_joins_and_controls_need_tables(source):
    with pytest.raises(StudyError, match="joins different tables|lacks the source"):
        Experiment(source=source)


def test_a_join_accounts_for_all_of_its_parts(tiny_corpus, vocabulary):
    facts = pretrain("random+lsa", tiny_corpus, vocabulary, dim=6).embeddings.provenance
    assert facts["text"] == "tiny" and "document's word counts" in facts["task"]
    twice = pretrain("domain-sentence+untrained:domain-sentence", tiny_corpus, vocabulary, dim=6, epochs=1)
    once = pretrain("domain-sentence", tiny_corpus, vocabulary, dim=6, epochs=1)
    assert twice.embeddings.provenance["labels"] <= once.embeddings.provenance["labels"]


def test_a_setting_that_changes_nothing_is_not_another_experiment(tiny_corpus, monkeypatch):
    from rtl_core import texts

    monkeypatch.setattr(texts, "load_corpus", lambda name: tiny_corpus)
    texts.forget()
    plain, inert = Experiment(corpus="tiny"), Experiment(corpus="tiny", pretrain_on="other")
    assert texts.fingerprint_of(plain) == texts.fingerprint_of(inert)
    assert texts.pretraining_corpus(inert) is texts.corpus_of("tiny")
