"""The translator: it learns a made-up language, attends to the sentence only, and says exactly how well it does."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import DOMAINS, _sentence
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from rtl_core.corpora.labelled import Example, LabelledSet
from rtl_core.corpora.text import tokens_of
from rtl_core.corpora.vocabulary import EOS_ID, UNK_ID, Vocabulary
from rtl_core.pretrain import pretrain, translation
from rtl_core.pretrain.encoder import BidirectionalEncoder
from rtl_core.storage import StudyError, cache_dir
from rtl_core.training import mean_loss

LENGTHS = (5, 1, 9, 3)


def sentences(count, seed):
    """Sentences like the corpus's, but none that is "salty", and each word's translation: it backwards."""
    rng, words = np.random.default_rng(seed), list(DOMAINS.values())
    drawn = (_sentence(rng, words[rng.integers(3)]).split() for _ in range(count))
    return tuple(Example((*s,), (), tuple(w[::-1].title() for w in s)) for s in drawn if "salty" not in s)


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    """Pairs of the made-up language in place of Multi30k."""
    labelled = LabelledSet("made-up", (), sentences(600, 0), sentences(40, 1), sentences(40, 2))
    monkeypatch.setattr(translation, "labelled_for", lambda task, corpus: [labelled])
    small = {"PAIR_TOKENS": 300, "N_SAMPLES": 64, "DROPOUT": 0.1, "LEARNING_RATE": 0.01}
    for name, value in small.items():  # so little text would be a few steps an epoch
        monkeypatch.setattr(translation, name, value)
    return labelled


def translator(n_words=12, dim=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = BidirectionalEncoder(torch.nn.Embedding(20, dim), dim)
        model = translation.Translator(encoder, dim, np.arange(n_words, 0, -1)).eval()
        with torch.no_grad():  # as initialised it says nearly the same whatever it reads
            for weight in (*model.parameters(), *model.output.parameters()):
                weight.mul_(4)
        return model


def padded(seed, filling=EOS_ID, n_words=20):
    """Sentences of several lengths. Shapes: ids, mask (B, T)."""
    rng = np.random.default_rng(seed)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.from_numpy(rng.integers(2, n_words, mask.shape))
    return ids.where(mask, torch.tensor(filling)), mask


# Attention, loss, decoding


@torch.no_grad()
def test_attention_sums_to_one_and_never_falls_on_padding():
    model, (ids, mask) = translator(), padded(0)
    before = torch.from_numpy(np.random.default_rng(1).integers(12, size=(len(ids), 7)))
    _, attention, _ = model.write(before, model.read(ids, mask), mask)
    assert attention.shape == (*before.shape, ids.shape[1])
    assert torch.allclose(attention.sum(-1), torch.ones(before.shape))
    assert (attention[(~mask)[:, None].expand_as(attention)] == 0).all()
    spread = attention[2].std(0).max()  # it looks elsewhere from word to word
    assert (attention[mask[:, None].expand_as(attention)] > 0).all() and spread > 0.01


def test_the_loss_equals_a_plain_loop():
    model = translator()
    (inputs, mask), (targets, target_mask) = padded(0), padded(1, n_words=12)
    batch = translation.Pairs(inputs, mask, targets, target_mask)
    expected = 0.0
    with torch.no_grad():
        for row, n in enumerate(LENGTHS):  # one pair without padding, one word at a time
            states = model.read(inputs[row : row + 1, :n], mask[row : row + 1, :n])
            before, memory = EOS_ID, None
            for word in targets[row, :n].tolist():
                real = torch.ones(1, n, dtype=torch.bool)
                hidden, _, memory = model.write(torch.tensor([[before]]), states, real, memory)
                logits = hidden[0, 0] @ model.table.weight.T + model.output.bias
                expected -= logits.log_softmax(0)[word].item()
                before = word
        loss = model.loss(batch)
    assert loss.count == sum(LENGTHS)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    other = batch._replace(inputs=padded(0, filling=7)[0], targets=padded(1, 5, 12)[0])
    assert model.loss(other).total.item() == pytest.approx(
        expected, rel=1e-5
    )  # whatever stands in the padding


def test_training_draws_a_sample_and_validation_does_not():
    model = translator()
    batch = translation.Pairs(*padded(0), *padded(1, n_words=12))
    exact = mean_loss(model, [batch])
    assert exact == mean_loss(model, [batch])
    model.train()
    torch.manual_seed(0)
    first = model.loss(batch)
    assert first.total.item() != model.loss(batch).total.item()  # other draws, other dropout
    first.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_batched_decoding_equals_the_likeliest_words_one_sentence_at_a_time(monkeypatch):
    monkeypatch.setattr(translation, "MOST_WORDS", 8)
    model, (ids, mask) = translator(), padded(6)
    together, ends = model.translate(ids, mask).tolist(), set()
    for row, n in enumerate(LENGTHS):
        real, said = torch.ones(1, n, dtype=torch.bool), [EOS_ID]
        states = model.read(ids[row : row + 1, :n], real)
        while len(said) <= translation.MOST_WORDS and EOS_ID not in said[1:]:  # reads all again for each word
            hidden, _, _ = model.write(torch.tensor([said]), states, real)
            logits = hidden[0, -1] @ model.output.weight.T + model.output.bias
            said.append(1 + logits[1:].argmax().item())
        assert together[row][: len(said) - 1] == said[1:]
        assert set(together[row][len(said) - 1 :]) <= {EOS_ID}
        ends.add(len(said))
    assert len(ends) == 3  # two come to an end, at different words


def test_decoding_never_says_unk_and_comes_to_an_end(monkeypatch):
    monkeypatch.setattr(translation, "MOST_WORDS", 9)
    model, (ids, mask) = translator(), padded(3)
    with torch.no_grad():
        model.output.bias[UNK_ID], model.output.bias[EOS_ID] = 1000, -1000
    endless = model.translate(ids, mask)
    assert endless.shape == (len(ids), 9) and (endless > EOS_ID).all()
    with torch.no_grad():
        model.output.bias[EOS_ID] = 900
    assert model.translate(ids, mask).tolist() == [[EOS_ID]] * len(ids)  # at once


# Sentences


def parallel(examples):
    columns = [e.tokens for e in examples], [e.other for e in examples]
    words = [translation.vocabulary_of(column * 2) for column in columns]  # twice: no word is rare
    return translation.Parallel(*map(translation.encoded, columns, words)), [w.words for w in words]


def rows(batch, words):
    """The pairs of a batch as words."""
    sides = (batch.inputs, batch.mask), (batch.targets, batch.target_mask)
    for row in range(len(batch.inputs)):
        yield tuple(tuple(w[i] for i in ids[row][real[row]]) for w, (ids, real) in zip(words, sides))


def test_pairs_stay_together_and_none_is_lost(made_up):
    long = Example(("knife",) * 100, (), ("Lang",))  # over the 64 words of a sentence
    text, words = parallel([*made_up.train, long])

    def drawn(seed):
        return [pair for b in text.batches(np.random.default_rng(seed)) for pair in rows(b, words)]

    expected = [((*e.tokens, "<eos>"), (*e.other, "<eos>")) for e in (*made_up.train, long)]
    assert Counter(drawn(0)) == Counter(drawn(1)) == Counter(expected)
    assert drawn(0) == drawn(0) != drawn(1)
    sizes = [b.inputs.numel() + b.targets.numel() for b in text.batches()]
    assert sorted(sizes)[-2] <= 2 * translation.PAIR_TOKENS < 2 * len(sizes) * translation.PAIR_TOKENS


def test_rare_words_of_the_translations_are_unk():
    words = translation.vocabulary_of([("Ein", "Hund"), ("Ein", "Hut"), ("Ein", "Hund", "<unk>")])
    assert words.words == ("<unk>", "<eos>", "Ein", "Hund")
    assert translation.encoded([("Hut", "Ein"), ()], words).tokens.tolist() == [UNK_ID, 2, EOS_ID, EOS_ID]


# The score


def test_bleu_is_cased_and_whole():
    true = ["Ein Hund läuft über den Schnee .", "Zwei Männer stehen am Herd ."]
    assert translation.bleu(true, true) == pytest.approx(100)
    assert 0 < translation.bleu([true[0], true[1].lower()], true) < 90
    assert translation.bleu(["", ""], true) == 0


@pytest.mark.parametrize(
    "raw",
    [
        "Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen.",
        "Ein T-Shirt für 12,50 Euro, das „neu“ ist!",
        'Er liest: "Hallo"; sie (seine Frau) winkt ...',
        "Was tut der 3-jährige Junge vor Müller's Laden?",
    ],
)
def test_13a_makes_the_same_tokens_of_the_raw_line(raw):
    def plain(text):  # 13a leaves typographic quotes at their words, and never parts the same sign in both
        return Tokenizer13a()(text.translate(str.maketrans("„“", '""'))).split()

    assert plain(" ".join(tokens_of(raw, "whitespace"))) == plain(raw)


# The task and its vectors


def test_a_language_is_learnt(tiny_corpus, made_up):
    made = pretrain("translation", tiny_corpus, dim=32, epochs=8)
    assert made.scores["made-up_bleu"] > 95 and made.scores["made-up_copy_bleu"] < 5
    assert 1 < made.scores["made-up_test_perplexity"] < 1.5
    assert made.history[-1]["valid_loss"] < made.history[0]["valid_loss"]
    facts = made.embeddings.provenance
    assert facts["labels"] == len(made_up.train) and facts["epochs"] == len(made.history)
    assert facts["outside_tokens"] == sum(2 * len(e.tokens) for e in made_up.train)
    again = pretrain("translation", tiny_corpus, dim=32, epochs=8)
    assert again.model is None and again.scores == made.scores  # loaded


def small(corpus, source="translation", **settings):
    vocabulary = Vocabulary.build(corpus.split("train"))
    config = translation.PretrainConfig(source, **{"dim": 8, "epochs": 1, **settings})
    return translation.pretrain(corpus, vocabulary, config)


def test_the_seed_decides(tiny_corpus):
    first, again, other = (small(tiny_corpus, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.embeddings.table, again.embeddings.table) and first.scores == again.scores
    assert first.history[0]["train_loss"] == again.history[0]["train_loss"]
    assert not np.allclose(first.embeddings.table, other.embeddings.table)


@pytest.mark.parametrize("readout", ["averaged", "input-layer"])
def test_words_without_a_translation_get_vectors_from_their_spelling(tiny_corpus, readout):
    made = small(tiny_corpus, readout=readout, encoder_layers=2).embeddings
    assert "salty" in made.words and np.linalg.norm(made.lookup(["salty"])[0]) > 0
    assert made.table.shape == (len(made.words), 8) and np.isfinite(made.table).all()
    seen = made.provenance["seen_in_labels"]
    assert 0 < seen["types"] < 1 and made.provenance["encoder_layers"] == 2


def test_untrained_is_the_same_encoder_before_training(tiny_corpus):
    trained, untrained = small(tiny_corpus), small(tiny_corpus, "untrained:translation")
    assert untrained.history == [] and untrained.scores.keys() == trained.scores.keys()
    assert untrained.scores["made-up_test_perplexity"] > trained.scores["made-up_test_perplexity"]
    facts = untrained.embeddings.provenance
    assert facts["labels"] == facts["outside_tokens"] == facts["epochs"] == 0
    assert untrained.embeddings.words == trained.embeddings.words
    assert not np.allclose(untrained.embeddings.table, trained.embeddings.table)


# Bad input


def test_missing_files_say_what_needs_none(tiny_corpus, monkeypatch, tmp_path):
    from rtl_core.corpora.labelled import labelled_for

    monkeypatch.setattr(translation, "labelled_for", labelled_for)
    monkeypatch.setenv("RTL_DATA_DIR", str(tmp_path))
    with pytest.raises(StudyError, match="(?s)multi30k.*RTL_DATA_DIR.*word2vec-sg"):
        pretrain("translation", tiny_corpus)


def test_a_layer_that_is_not_there(tiny_corpus):
    with pytest.raises(StudyError, match="no layer 2"):
        pretrain("translation", tiny_corpus, dim=8, epochs=1, layer=2)
    assert not [path for path in cache_dir().rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_there_are_no_labels_to_shuffle(tiny_corpus):
    with pytest.raises(StudyError, match="shuffled-labels"):
        pretrain("shuffled-labels:translation", tiny_corpus)
