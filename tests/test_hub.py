"""hub:MODEL: words are pooled from sub-words as a plain loop pools them; nothing is ever fetched."""

import json
import shutil
import socket
import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Document
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.pretrain import hub, pretrain
from rtl_core.storage import StudyError, cache_dir

WIDTH, N_LAYERS = 8, 3
KINDS = ("bert", "roberta", "gpt2", "t5")
SMALL = {
    "bert": (transformers.BertConfig, {"intermediate_size": 16, "num_hidden_layers": N_LAYERS}),
    "roberta": (transformers.RobertaConfig, {"intermediate_size": 16, "num_hidden_layers": N_LAYERS}),
    "gpt2": (transformers.GPT2Config, {"num_hidden_layers": N_LAYERS, "bos_token_id": 0, "eos_token_id": 0}),
    "t5": (transformers.T5Config, {"d_kv": 4, "d_ff": 16, "num_layers": N_LAYERS}),
}
MARKS = {"bert": ("[CLS]", "[SEP]"), "roberta": ("<s>", "</s>"), "gpt2": (None, None), "t5": (None, "</s>")}


def made_tokenizer(kind, lines):
    """A fast tokenizer of the kind's own family, trained on the lines: WordPiece, byte-level BPE or Unigram."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "gpt2": ["<|endoftext|>"]}.get(
        kind, ["<s>", "<pad>", "</s>", "<unk>"]
    )
    settings = {"special_tokens": special, "show_progress": False}
    if kind == "bert":
        inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer, inner.pre_tokenizer = (
            normalizers.BertNormalizer(),
            pre_tokenizers.BertPreTokenizer(),
        )
        trainer = trainers.WordPieceTrainer(vocab_size=60, **settings)
    elif kind == "t5":
        inner = tokenizers.Tokenizer(models.Unigram())
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", **settings)
    else:
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, **settings)
    inner.train_from_iterator(lines, trainer)
    first, last = MARKS[kind]
    template = " ".join(filter(None, (first, "$A", last)))
    ids = [(mark, inner.token_to_id(mark)) for mark in (first, last) if mark]
    if ids:
        inner.post_processor = processors.TemplateProcessing(template, special_tokens=ids)
    unknown = {"bert": "[UNK]", "gpt2": "<|endoftext|>"}.get(kind, "<unk>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=unknown)


def made_model(kind, folder, lines, width=WIDTH, positions=120):
    """Writes a small random model with its tokenizer into a folder."""
    tokenizer = made_tokenizer(kind, lines)
    config, settings = SMALL[kind]
    more = {"max_position_embeddings": positions, "pad_token_id": 1} if kind != "t5" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = {"hidden_size": width, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
        model = transformers.AutoModel.from_config(config(**own, **more, **settings))
        for parameter in model.parameters():  # larger than initial weights, which hardly see the context
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tiny_corpus):
    """Six training documents: a plain loop over them takes no time."""
    return replace(tiny_corpus, documents=tiny_corpus.documents[:6])


@pytest.fixture(scope="module")
def lines(corpus):
    return [" ".join(line) for d in corpus.split("train") for line in d.lines()]


@pytest.fixture(scope="module")
def vocabulary(corpus):
    return Vocabulary.build(corpus.split("train"))


@pytest.fixture(scope="module")
def folders(lines, tmp_path_factory):
    return {kind: made_model(kind, tmp_path_factory.mktemp(kind), lines) for kind in KINDS}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the BERT that a test may spoil."""
    return shutil.copytree(folders["bert"], tmp_path / "bert")


@pytest.fixture(autouse=True)
def no_look_up(monkeypatch):
    """Not even the name of another machine is asked for."""

    def asked(host, *arguments, **settings):
        raise AssertionError(f"the network was asked for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", asked)


def asked_of(folder, **settings):
    return PretrainConfig(**{"source": f"hub:{folder}", "dim": WIDTH} | settings)


@torch.no_grad()
def plain_states(folder, lines, layer=None):
    """States of each word: one sentence at a time, no padding, the words split by the tokenizer in their place."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    met = defaultdict(list)
    for words in map(str.split, lines):
        read = tokenizer([words], is_split_into_words=True, return_tensors="pt")
        hidden = model(read["input_ids"], output_hidden_states=True).hidden_states[
            -1 if layer is None else layer
        ]
        for i, word in enumerate(words):
            own = [state for state, owner in zip(hidden[0], read.word_ids(0)) if owner == i]
            met[word].append(torch.stack(own).mean(0).numpy())
    return met


# Vectors


@pytest.mark.parametrize("kind", KINDS)
def test_averages_equal_a_plain_loop(kind, folders, lines, corpus, vocabulary):
    made = hub.pretrain(corpus, vocabulary, asked_of(folders[kind])).embeddings
    met = plain_states(folders[kind], lines)
    assert set(made.words) == set(met) == set(vocabulary.words) - {"<unk>", "<eos>"}
    for word in made.words:
        assert np.allclose(made.vector(word), np.mean(met[word], axis=0), atol=1e-4), word
    spread = [np.std(states, axis=0).mean() for states in met.values() if len(states) > 5]
    assert min(spread) > 0.01  # the states are contextual: the loop would not agree by accident


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("layer", [1, N_LAYERS])
def test_each_layer_can_be_read(kind, layer, folders, lines, corpus, vocabulary):
    made = hub.pretrain(corpus, vocabulary, asked_of(folders[kind], layer=layer)).embeddings
    expected = plain_states(folders[kind], lines, layer)["soup"]
    assert np.allclose(made.vector("soup"), np.mean(expected, axis=0), atol=1e-4)
    assert made.provenance["layer"] == layer and made.provenance["encoder_layers"] == N_LAYERS


@torch.no_grad()
def test_the_input_layer_is_the_mean_of_static_sub_words(folders, lines, corpus):
    vocabulary = Vocabulary.build(corpus.split("train"), 20)
    config = asked_of(folders["bert"], readout="input-layer")
    made = hub.pretrain(corpus, vocabulary, config).embeddings
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["bert"])
    static = transformers.AutoModel.from_pretrained(folders["bert"]).get_input_embeddings()
    for word in vocabulary.words[2:]:
        ids = tokenizer(word, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        assert np.allclose(made.vector(word), static(ids).mean(0).numpy(), atol=1e-6)


def test_unknown_words_are_read_as_they_are_and_share_a_vector(folders, lines, corpus):
    vocabulary = Vocabulary.build(corpus.split("train"), 12)
    made = hub.pretrain(corpus, vocabulary, asked_of(folders["bert"])).embeddings
    met = plain_states(folders["bert"], lines)
    unknown = [state for word, states in met.items() if word not in vocabulary.ids for state in states]
    assert made.words == ("<unk>", *vocabulary.words[2:])
    assert np.allclose(made.vector("<unk>"), np.mean(unknown, axis=0), atol=1e-4)
    assert np.allclose(made.vector("the"), np.mean(met["the"], axis=0), atol=1e-4)


def test_a_number_of_occurrences(folders, lines, corpus, vocabulary):
    one, again, seed = (
        hub.pretrain(corpus, vocabulary, asked_of(folders["bert"], occurrences=1, seed=seed)).embeddings
        for seed in (0, 0, 1)
    )
    states = np.array(plain_states(folders["bert"], lines)["the"])
    assert np.abs(states - one.vector("the")).max(axis=1).min() < 1e-4  # is one of them
    assert np.array_equal(one.table, again.table) and not np.allclose(one.table, seed.table)


def test_wider_models_are_reduced_and_narrower_ones_refused(folders, corpus, vocabulary):
    whole, less = (hub.pretrain(corpus, vocabulary, asked_of(folders["bert"], dim=d)) for d in (WIDTH, 3))
    assert np.array_equal(less.embeddings.table, whole.embeddings.reduced(3).table)
    assert less.embeddings.provenance["dim"] == 3
    with pytest.raises(StudyError, match="gives vectors of 8 dimensions, 9 expected; ask for 8 or fewer"):
        hub.pretrain(corpus, vocabulary, asked_of(folders["bert"], dim=9))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_long_sentences_are_read_in_parts_and_no_word_is_lost(kind, corpus, lines, tmp_path, capsys):
    made_model(kind, tmp_path, lines, positions=30)
    documents = [Document(d.id, d.domain, d.split, (" ".join(lines[:20]),)) for d in corpus.documents]
    corpus, words = replace(corpus, documents=tuple(documents[:1])), " ".join(lines[:20]).split()
    vocabulary = Vocabulary.build(corpus.split("train"))
    encoder = hub.HubEncoder(*hub._loaded(str(tmp_path)), vocabulary.words)
    room = 30 - sum(mark is not None for mark in MARKS[kind]) - (2 if kind == "roberta" else 0)
    assert encoder.room == room
    text = hub.sentences(vocabulary.encode(corpus.split("train")), encoder.sizes.numpy(), room)
    assert vocabulary.decode(text.tokens) == words  # in order, `<eos>` left out
    assert text.starts.tolist() == np.cumsum([0, *text.lengths[:-1]]).tolist() and len(text) > 5
    sizes = [encoder.sizes[text.tokens[a : a + n]].sum() for a, n in zip(text.starts, text.lengths)]
    firsts = encoder.sizes[text.tokens[text.starts]].tolist()
    assert all(size <= room < size + after for size, after in zip(sizes, firsts[1:]))  # no part is cut early
    made = hub.pretrain(corpus, vocabulary, asked_of(tmp_path)).embeddings
    assert set(made.words) == set(words) and made.provenance["cuts"] == len(text) - 1
    assert f"cut {len(text) - 1} times" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_odd_words(kind, folders, corpus):
    long, nothing = (
        "x" * 500,
        "\u200b",
    )  # more sub-words than the model takes; none at all for BERT's tokenizer
    odd = Document("odd", None, "train", (f"the {nothing} soup .", nothing, f"soup {long} soup"))
    corpus = replace(corpus, documents=(odd, *corpus.documents, replace(odd, id="last")))
    vocabulary = Vocabulary.build(corpus.split("train"))
    made = hub.pretrain(corpus, vocabulary, asked_of(folders[kind])).embeddings
    lost = {nothing} if kind == "bert" else set()
    assert set(vocabulary.words) - set(made.words) == {"<unk>", "<eos>"} | lost


# Identity, account, cache


def test_the_account_says_what_is_known(folders, corpus):
    made = pretrain(f"hub:{folders['bert']}", corpus, dim=WIDTH)
    facts = made.embeddings.provenance
    expected = {
        "source": f"hub:{folders['bert'].name}", "architecture": "bert", "tokens_read": None, "text": "tiny",
        "epochs": None, "sha256": hub.fingerprint(str(folders["bert"])), "readout": "averaged", "dim": WIDTH,
    }  # fmt: skip
    assert expected.items() <= facts.items()
    assert made.model is None and made.scores == {}
    loaded = pretrain(f"hub:{folders['bert']}", corpus, dim=WIDTH)
    assert np.array_equal(loaded.embeddings.table, made.embeddings.table)
    assert len(list(cache_dir().rglob("*.safetensors"))) == 1


def test_the_fingerprint_follows_the_content(folder, folders):
    first = hub.fingerprint(str(folder))
    (folder / "README.md").write_text("text")
    assert hub.fingerprint(str(folder)) == first == hub.fingerprint(str(folders["bert"]))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b" ")
        assert hub.fingerprint(str(folder)) != first, name
        (folder / name).write_bytes(before)


def test_models_of_the_local_cache_go_by_name(folders, corpus, tmp_path, monkeypatch, vocabulary):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--someone--small"
    shutil.copytree(folders["bert"], kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    named, placed = (
        hub.pretrain(corpus, vocabulary, asked_of(name)).embeddings
        for name in ("someone/small", folders["bert"])
    )
    assert np.array_equal(named.table, placed.table)
    assert named.provenance["source"] == "hub:someone/small"
    assert hub.fingerprint("someone/small") == hub.fingerprint(str(folders["bert"]))


def test_the_callers_state_is_left_as_it_was(folders, corpus, capfd, vocabulary):
    log = transformers.utils.logging
    before, level = torch.get_rng_state(), log.get_verbosity()
    hub.pretrain(corpus, vocabulary, asked_of(folders["bert"]))
    assert torch.equal(torch.get_rng_state(), before)
    assert log.get_verbosity() == level and log.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")


def test_a_model_without_its_pooler_serves(folder, corpus, vocabulary):
    whole = hub.pretrain(corpus, vocabulary, asked_of(folder)).embeddings
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    model.save_pretrained(folder)
    before = torch.get_rng_state()  # the library makes a random pooler
    assert np.array_equal(hub.pretrain(corpus, vocabulary, asked_of(folder)).embeddings.table, whole.table)
    assert torch.equal(torch.get_rng_state(), before)


# What is not here, not whole or does not serve


@pytest.mark.parametrize(
    "name", ["bert-base-nowhere", "someone/nothing", "/nowhere/at/all", "a b", "../none"]
)
def test_a_model_that_is_not_here_is_not_fetched(name, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StudyError, match="is not on this machine.*hf download .*hub:PATH"):
        hub.fingerprint(name)
    with pytest.raises(StudyError, match="is not on this machine"):
        pretrain(f"hub:{name}", corpus, dim=WIDTH)


def test_without_the_library_the_extra_is_named(folders, corpus, monkeypatch, vocabulary):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(StudyError, match=r"need the extra \[hub\].*pip install"):
        hub.pretrain(corpus, vocabulary, asked_of(folders["bert"]))


def without(name):
    return lambda folder: (folder / name).unlink()


def cut_short(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def settings(**changes):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (without("config.json"), "cannot be loaded: .*config"),
        (without("model.safetensors"), "cannot be loaded: .*model.safetensors"),
        (cut_short("model.safetensors"), "cannot be loaded"),
        (cut_short("tokenizer.json"), "cannot be loaded"),
        (settings(model_type="nothing-known"), "cannot be loaded: .*nothing-known"),
        (settings(auto_map={"AutoConfig": "own.Config"}, model_type="own"), "cannot be loaded.*own"),
        (settings(num_hidden_layers=N_LAYERS + 1), "lacks 16 of its weights.*encoder.layer.3"),
        (settings(hidden_size=WIDTH * 2), "cannot be loaded"),
        (shutil.rmtree, "is not on this machine"),
    ],
)
def test_a_model_that_is_not_whole_says_so(spoil, message, folder, corpus, monkeypatch):
    spoil(folder)
    asked = []  # whether code that comes with a model may run: it may not
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "n")
    with pytest.raises(StudyError, match=message):
        pretrain(f"hub:{folder}", corpus, dim=WIDTH)
    assert asked == [] and [p for p in cache_dir().rglob("*") if p.suffix not in ("", ".lock")] == []


def test_a_tokenizer_of_another_model_is_refused(folder, folders, corpus, vocabulary):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(StudyError, match="knows none of the words"):
        hub.pretrain(corpus, vocabulary, asked_of(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["gpt2"] / name, folder)
    with pytest.raises(StudyError, match="sub-words beyond the model's 60"):
        hub.pretrain(corpus, vocabulary, asked_of(folder))


def test_a_tokenizer_that_does_not_know_its_words_is_refused(folders, monkeypatch):
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(StudyError, match="a tokenizer in Python"):
        hub._loaded(str(folders["bert"]))


def test_a_layer_that_is_not_there(folders, corpus):
    with pytest.raises(StudyError, match="no layer 4; give layer 1 to 3"):
        pretrain(f"hub:{folders['bert']}", corpus, dim=WIDTH, layer=4)


def test_ctrl_c_keeps_nothing(folders, corpus, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hub.HubEncoder, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(f"hub:{folders['bert']}", corpus, dim=WIDTH)
    assert list(cache_dir().rglob("*.safetensors")) == []
    assert pretrain(f"hub:{folders['bert']}", corpus, dim=WIDTH).embeddings


def test_eos_has_no_sub_words(folders, corpus, vocabulary):
    encoder = hub.HubEncoder(*hub._loaded(str(folders["t5"])), vocabulary.words)
    assert encoder.sizes[EOS_ID] == 0 and (encoder.sizes[2:] > 0).all()
    assert (encoder.sizes[2:] > 1).any()  # some words have several
