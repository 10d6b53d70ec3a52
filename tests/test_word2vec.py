"""Word2vec, and the one door to every source: trained once, then loaded."""

import errno
import hashlib
import importlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import fields

import numpy as np
import pytest
from conftest import DOMAINS, ROOT

from rtl_core.catalogue import SOURCES
from rtl_core.config import Experiment, PretrainConfig
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain import Pretrained, pretrain
from rtl_core.storage import StudyError, cache_dir

WORD2VEC = ("word2vec-sg", "word2vec-cbow")
GENSIM = (*WORD2VEC, "fasttext")
TEXT = ("the cat sat on the mat .\nthe dog sat on the log .", "a dog saw a cat .")
SMALL = Corpus("small", (Document("d", None, "train", TEXT * 20), Document("t", None, "test", ("the end",))))
MODULE = importlib.import_module("rtl_core.pretrain.word2vec")
FACTS = {"source": "word2vec-sg", "seconds": 41.2, "date": "2026-01-31"}


def stored():
    return sorted(p.suffix for p in (cache_dir() / "pretrained").glob("*") if p.suffix != ".lock")


@pytest.fixture
def counted(monkeypatch):
    """Counts how often word2vec-sg is trained; a short wait makes a race sure to be seen."""
    calls = []

    def slow(corpus, vocabulary, config):
        calls.append(config)
        time.sleep(0.2)
        table = np.ones((len(vocabulary), config.dim), np.float32)
        return Pretrained(Embeddings(vocabulary.words, table, FACTS), {"accuracy": 0.1 + 0.2}, [{"epoch": 1}])

    monkeypatch.setattr(MODULE, "pretrain", slow)
    return calls


# word2vec


@pytest.mark.parametrize("source", WORD2VEC)
def test_vectors_for_the_vocabulary_and_an_account_of_them(source):
    vocabulary = Vocabulary.build(SMALL.split("train"), 8)
    made = pretrain(source, SMALL, vocabulary, dim=10, seed=1, epochs=2)
    assert made.embeddings.words == tuple(word for word in vocabulary.words if word != "<eos>")
    assert "<unk>" in made.embeddings and made.embeddings.table.shape == (7, 10)
    facts = made.embeddings.provenance
    expected = {"source": source, "dim": 10, "seed": 1, "epochs": 2, "level": "window", "text": "small"}
    assert expected.items() <= facts.items()
    assert facts["text_fingerprint"] == SMALL.fingerprint
    assert facts["tokens_read"] == SMALL.n_tokens("train") == 20 * 23
    assert {"task", "objective", "readout", "seconds", "date", "versions"} <= facts.keys()


@pytest.mark.parametrize("source", WORD2VEC)
def test_words_of_one_domain_come_together(source, tiny_corpus):
    vectors = pretrain(source, tiny_corpus, dim=16, epochs=60).embeddings
    for words in DOMAINS.values():
        near = {word for word, _ in vectors.neighbors(words[0], k=5)}
        assert len(near & set(words)) >= 4, (words[0], near)


def digest(source, **settings):
    table = pretrain(source, SMALL, dim=12, epochs=2, **settings).embeddings.table
    return hashlib.sha256(table.tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_bits_in_any_process(tmp_path, monkeypatch):
    here = [digest(source, seed=3) for source in GENSIM]
    monkeypatch.setenv("RTL_CACHE_DIR", str(tmp_path / "another"))
    assert [digest(source, seed=3) for source in GENSIM] == here
    monkeypatch.setenv("RTL_CACHE_DIR", str(tmp_path / "a third"))
    monkeypatch.setenv("PYTHONHASHSEED", "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    code = f"import test_word2vec as t; print(*[t.digest(s, seed=3) for s in {GENSIM}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == here
    assert len({*here, digest("word2vec-sg", seed=4)}) == 4


# fastText

STEMS = {"sea": ("brandel", "clompit", "frursta"), "desk": ("glixeno", "spuwaff", "thoguck")}


@pytest.fixture(scope="module")
def spelt():
    """Frequent forms among words of their own subject; rare forms of the same stems that stand anywhere."""
    rng, lines = np.random.default_rng(0), ["the only <unk> word"]
    for _ in range(400):
        subject = rng.choice(list(STEMS))
        near = [f"{subject}{i}" for i in rng.integers(4, size=3)]
        lines.append(" ".join([near[0], f"{rng.choice(STEMS[subject])}ing", *near[1:]]))
    lines += [f"once {stem}er sat" for stems in STEMS.values() for stem in stems]
    return Corpus("spelt", (Document("d", None, "train", ("\n".join(lines),)),))


def test_fasttext_knows_words_by_their_spelling(spelt):
    words = Vocabulary.build(spelt.split("train"))
    vectors = pretrain("fasttext", spelt, words, dim=16, epochs=60).embeddings
    for subject, stems in STEMS.items():
        own, other = (
            np.mean([vectors.vector(f"{x}ing") for x in STEMS[s]], axis=0)
            for s in sorted(STEMS, key=subject.__ne__)
        )
        for stem in stems:
            rare = vectors.vector(f"{stem}er")  # seen once, and never near a word of its subject
            assert rare @ own > rare @ other, stem


def test_fasttext_has_a_vector_for_what_only_spelling_covers(spelt):
    words = Vocabulary.build(spelt.split("train"))
    made = pretrain("fasttext", spelt, words, dim=6, epochs=1).embeddings
    assert made.words == words.words[2:] and "only" in made  # seen once, below min_count
    facts = made.provenance
    expected = {"source": "fasttext", "level": "window", "tokens_read": spelt.n_tokens("train"), "epochs": 1}
    assert expected.items() <= facts.items()
    elsewhere = Vocabulary(("<unk>", "<eos>", "sea0", "absent"), (9, 9, 9, 9))
    assert pretrain("fasttext", spelt, elsewhere, dim=6, epochs=1).embeddings.words == ("sea0",)


def test_fasttext_reads_the_words_outside_the_vocabulary(spelt, monkeypatch):
    few = Vocabulary.build(spelt.split("train"), 5)
    heard = []
    monkeypatch.setattr("gensim.models.FastText", lambda sentences, **_: heard.extend(sentences) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain("fasttext", spelt, few, dim=6)
    assert heard == spelt.split("train")[0].lines() and "brandeler" not in few.ids


def test_fasttext_of_words_that_all_differ():
    once = Corpus("once", (Document("d", None, "train", ("all words here differ",)),))
    with pytest.raises(StudyError, match="words that occur twice; the 4 of once all differ"):
        pretrain("fasttext", once, dim=4)


# Every source


def test_every_source_of_the_catalogue_has_its_function_and_its_words():
    for name, source in SOURCES.items():
        module = f"rtl_core.pretrain.{source.module}" if source.module else "rtl_core.pretrain"
        assert callable(importlib.import_module(module).pretrain), name
        assert all(getattr(source, f.name) for f in fields(source) if f.type is str and f.name != "module"), (
            name
        )
        settings = {f.metadata.get("of_sources") for f in fields(Experiment)}
        assert set(source.settings) <= settings, name


def test_settings_that_change_nothing_for_a_source_leave_its_identity():
    plain = PretrainConfig("word2vec-sg")
    assert PretrainConfig("word2vec-sg", readout="input-layer", occurrences=3).changed() == plain.changed()
    assert (
        PretrainConfig("permuted:domain-sentence", readout="input-layer").changed()["readout"]
        == "input-layer"
    )
    same = Experiment(source="random", pretrain_epochs=4, pretrain_on="lm-split", readout="input-layer")
    assert same.settled() == Experiment() and same.identity("f") == Experiment().identity("f")
    assert same.replace(source="word2vec-sg").settled().pretrain_epochs == 4  # and is not forgotten


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(StudyError, match="Did you mean word2vec-sg"):
        pretrain("word2vec-gs", SMALL)
    with pytest.raises(StudyError, match="unknown source 'domain'"):
        pretrain("word2vec-sg+domain", SMALL)
    with pytest.raises(StudyError, match="unknown setting 'epoch'. Did you mean epochs"):
        pretrain("word2vec-sg", SMALL, epoch=3)


def test_random_is_gaussian_over_the_vocabulary_and_seeded():
    made = [pretrain(PretrainConfig("random", dim=500, seed=s), SMALL).embeddings for s in (0, 0, 1)]
    assert made[0].words == Vocabulary.build(SMALL.split("train")).words
    assert np.sqrt(np.mean(made[0].table ** 2)) == pytest.approx(1, abs=0.03)
    assert (made[0].table == made[1].table).all() and not (made[0].table == made[2].table).any()
    assert made[0].provenance["tokens_read"] == 0


def test_trained_once_then_loaded(counted, capsys):
    first = pretrain("word2vec-sg", SMALL, dim=4)
    again = pretrain(PretrainConfig("word2vec-sg", dim=4), SMALL)
    assert len(counted) == 1
    assert again.embeddings.table.tobytes() == first.embeddings.table.tobytes()
    assert (again.scores, again.history, again.embeddings.provenance) == (first.scores, first.history, FACTS)
    said = capsys.readouterr().err.splitlines()
    assert said == ["training word2vec-sg, seed 0", "loaded word2vec-sg (made in 41 s on 2026-01-31)"]


def test_whatever_changes_the_result_trains_anew(counted, tiny_corpus):
    vocabulary = Vocabulary.build(SMALL.split("train"), 5)
    pretrain("word2vec-sg", SMALL, dim=4)
    for source, corpus, words, settings in (
        ("word2vec-sg", SMALL, None, {"dim": 5}),
        ("word2vec-sg", SMALL, None, {"dim": 4, "seed": 1}),
        ("word2vec-sg", SMALL, None, {"dim": 4, "epochs": 3}),
        ("word2vec-sg", SMALL, vocabulary, {"dim": 4}),
        ("word2vec-sg", tiny_corpus, None, {"dim": 4}),
    ):
        before = len(counted)
        pretrain(source, corpus, words, **settings)
        assert len(counted) == before + 1, settings


def test_two_runs_at_once_train_once(counted):
    threads = [threading.Thread(target=pretrain, args=("word2vec-sg", SMALL)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == 1


def test_two_sources_are_joined_and_reduced(tmp_path):
    words = Vocabulary.build(SMALL.split("train"))
    parts = [pretrain(source, SMALL, words, dim=4, epochs=2) for source in WORD2VEC]
    made = pretrain("+".join(WORD2VEC), SMALL, words, dim=4, epochs=2).embeddings
    joint = parts[0].embeddings.joined(parts[1].embeddings)
    assert np.allclose(made.table, joint.reduced(4).table, atol=1e-5)
    facts = made.provenance
    assert facts["source"] == "word2vec-sg+word2vec-cbow" and facts["tokens_read"] == SMALL.n_tokens("train")
    assert pretrain("permuted:word2vec-sg+word2vec-cbow", SMALL, words, dim=4).embeddings.dim == 4
    path = tmp_path / "a+b.vec"
    parts[0].embeddings.to_word2vec(path)
    with_file = pretrain(f"random+file:{path}", SMALL, words, dim=4).embeddings.provenance
    assert with_file["tokens_read"] is None


def test_permuted_is_made_from_the_stored_table(monkeypatch):
    base = pretrain("word2vec-sg", SMALL, dim=8, epochs=1).embeddings
    monkeypatch.setattr(MODULE, "pretrain", None)
    control = pretrain("permuted:word2vec-sg", SMALL, dim=8, epochs=1).embeddings
    assert control.words == base.words and (control.table != base.table).any()
    assert sorted(map(bytes, control.table)) == sorted(map(bytes, base.table))
    assert control.provenance["source"] == "permuted:word2vec-sg"
    assert pretrain("permuted:random", SMALL, dim=8).embeddings.provenance["source"] == "permuted:random"


# Vectors from a file


def write(path, words, dim=3):
    table = np.arange(len(words) * dim, dtype=np.float32).reshape(-1, dim)
    Embeddings(words, table).to_word2vec(path)
    return f"file:{path}"


def test_file_source_keeps_the_words_of_the_vocabulary(tmp_path, monkeypatch):
    source = write(tmp_path / "v.txt", ("the", "elsewhere", "cat"))
    made = pretrain(source, SMALL, dim=3).embeddings
    assert made.words == ("the", "cat") and made.vector("cat").tolist() == [6, 7, 8]
    facts = made.provenance
    assert facts["source"] == "file:v.txt" and facts["tokens_read"] is None and facts["text"] is None
    (tmp_path / "v.txt").rename(tmp_path / "same.txt")
    monkeypatch.setattr(Embeddings, "from_file", None)  # the same content under another name is loaded
    assert pretrain(f"file:{tmp_path / 'same.txt'}", SMALL, dim=3).embeddings.words == made.words


def test_file_source_of_another_dimension_or_language(tmp_path):
    with pytest.raises(StudyError, match=r"vectors of 3 dimensions, 8 expected.*reduced\(8\)"):
        pretrain(write(tmp_path / "v.txt", ("the", "cat")), SMALL, dim=8)
    with pytest.raises(StudyError, match="no word in common with .*: der, Hund there, the, .*here"):
        pretrain(write(tmp_path / "w.txt", ("der", "Hund")), SMALL, dim=3)
    with pytest.raises(StudyError, match="there is no file .*nowhere"):
        pretrain(f"file:{tmp_path / 'nowhere'}", SMALL)
    assert stored() == []


# Nothing is left half-done


def test_a_full_disk_leaves_nothing_and_the_next_run_trains(counted, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StudyError, match="the disk is full"):
            pretrain("word2vec-sg", SMALL, dim=4)
        assert stored() == []
    pretrain("word2vec-sg", SMALL, dim=4)
    assert len(counted) == 2 and stored() == [".json", ".safetensors"]


def test_ctrl_c_passes_through(monkeypatch):
    from tqdm import tqdm

    def interrupt(bar):
        raise KeyboardInterrupt

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "pretrain", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain("word2vec-cbow", SMALL)
    monkeypatch.setattr(tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain("word2vec-sg", SMALL)
    assert stored() == []


def test_a_folder_that_cannot_be_made_is_named_before_training(counted, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RTL_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(StudyError, match="cannot write to .*pretrained: Not a directory. Set RTL_CACHE_DIR"):
        pretrain("word2vec-sg", SMALL)
    assert counted == []
