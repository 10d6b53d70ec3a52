"""Language models as sources: what each direction predicts, exact perplexities, the leak, hidden words."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from rtl_core import batches, training
from rtl_core.batches import LONGEST
from rtl_core.catalogue import LEAKY
from rtl_core.config import PretrainConfig
from rtl_core.corpora.corpus import Document
from rtl_core.corpora.vocabulary import EOS_ID, Vocabulary
from rtl_core.pretrain import lm, masked_lm, pretrain
from rtl_core.storage import StudyError, cache_dir

DIM = 7  # odd: the directions have 3 and 4 units, and the transformer one head
MODULES = {"lm": lm, "bilm": lm, "masked-lm": masked_lm}


@pytest.fixture(scope="module")
def vocabulary(tiny_corpus):
    return Vocabulary.build(tiny_corpus.split("train"))


@pytest.fixture(scope="module")
def text(tiny_corpus, vocabulary):
    return vocabulary.encode(tiny_corpus.split("test"))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """So little text would be a single step an epoch."""
    monkeypatch.setattr(batches, "BATCH_TOKENS", 400)
    monkeypatch.setattr(lm, "SHORTEST_STREAM", 200)


def encoded(*lines):
    words = sorted({word for line in lines for word in line.split()})
    vocabulary = Vocabulary(("<unk>", "<eos>", *words), (0,) * (len(words) + 2))
    return vocabulary, vocabulary.encode([Document("d", None, "train", ("\n".join(lines),))])


def made_bilm(vocab_size, n_layers=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lm.BidirectionalLanguageModel(np.arange(vocab_size), DIM, n_layers).eval()


def made_masked(vocab_size, n_layers=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return masked_lm.MaskedLanguageModel(np.arange(vocab_size), DIM, n_layers).eval()


def flat(model):
    """The model with every word equally likely."""
    for output in getattr(model, "outputs", None) or [model.output]:
        torch.nn.init.zeros_(output.weight)
        torch.nn.init.zeros_(output.bias)
    return model


@torch.no_grad()
def sentence_states(model, ids, layer=None):
    """The states of one sentence after its leading <eos>. Shape (T + 1, D)."""
    row = torch.tensor([[EOS_ID, *map(int, ids)]])
    return model.encoder(row, torch.ones_like(row, dtype=torch.bool), layer)[0]


def lines_of(text):
    return [text.tokens[a:b] for a, b in zip(text.line_starts[:-1], text.line_starts[1:])]


def kept_in_cache():
    return [path for path in cache_dir().rglob("*") if path.is_file() and path.suffix != ".lock"]


# What is predicted


def test_a_line_of_n_words_gives_n_plus_1_predictions_in_each_direction():
    vocabulary, text = encoded("a b c", "b")
    predicted = [[], []]
    for batch in lm.sentences(text).batches():
        for words, (_, hidden, targets) in zip(predicted, made_bilm(len(vocabulary)).predictions(batch)):
            assert len(hidden) == len(targets)
            words.append(" ".join(vocabulary.decode(targets.tolist())))
    assert predicted == [["b <eos> a b c <eos>"], ["<eos> b <eos> a b c"]]  # the shorter line stands first


def test_the_state_that_predicts_has_not_read_the_word():
    vocabulary, text = encoded("a b c d e")
    model, (batch,) = made_bilm(len(vocabulary)), lm.sentences(text).batches()
    (_, ahead, _), (_, behind, _) = model.predictions(batch)
    for place in range(1, 6):  # of the words, after the leading <eos>
        inputs = batch.inputs.clone()
        inputs[0, place] = 0
        (_, other_ahead, _), (_, other_behind, _) = model.predictions(batch._replace(inputs=inputs))
        assert torch.equal(ahead[:place], other_ahead[:place])
        assert (ahead[place:] != other_ahead[place:]).any(1).all()
        assert torch.equal(behind[place:], other_behind[place:])
        assert (behind[:place] != other_behind[:place]).any(1).all()


def test_pieces_of_long_lines_predict_every_token_once():
    limit = LONGEST["sentence"]
    vocabulary, text = encoded(
        *(" ".join(f"w{i % 50}" for i in range(n)) for n in (3, limit, 200, limit - 1))
    )
    for cut in (False, True):
        found = lm.sentences(text, cut)
        ahead = np.concatenate([np.arange(s + 1, s + n) for s, n in zip(found.starts, found.lengths)])
        assert (ahead - 1).tolist() == list(range(len(text)))  # places in the text, which is shifted by one
        assert found.lengths.max() == (limit + 1 if cut else 202)
        before = found.tokens[found.starts]
        assert before.tolist() == [
            EOS_ID if s in text.line_starts else text.tokens[s - 1] for s in found.starts
        ]


# Perplexities


def test_a_uniform_model_has_the_perplexity_of_the_vocabulary(vocabulary, text):
    size = len(vocabulary)
    found = lm.perplexities(flat(made_bilm(size)), lm.sentences(text))
    assert found == {"forward_perplexity": pytest.approx(size), "backward_perplexity": pytest.approx(size)}
    sequences = batches.Sequences.of(text, "paragraph")
    masked = masked_lm.hidden(sequences, size, np.random.default_rng(0))
    assert masked_lm.scores_of(flat(made_masked(size)), masked)["masked_perplexity"] == pytest.approx(size)


@torch.no_grad()
@pytest.mark.parametrize("n_layers", [1, 2])
def test_each_direction_has_the_perplexity_of_a_plain_loop(n_layers, vocabulary, text):
    model, nats = made_bilm(len(vocabulary), n_layers), ([], [])
    for ids in lines_of(text):
        states, words = sentence_states(model, ids), [EOS_ID, *ids.tolist()]
        halves = states[:, : DIM // 2], states[:, DIM // 2 :]
        for t in range(len(words) - 1):
            ways = (halves[0][t], words[t + 1]), (halves[1][t + 1], words[t])
            for output, way, (state, target) in zip(model.outputs, nats, ways):
                logits = output.weight @ state + output.bias
                way.append(-logits.log_softmax(0)[target].item())
    assert len(nats[0]) == len(nats[1]) == len(text)
    found = lm.perplexities(model, lm.sentences(text))
    assert found["forward_perplexity"] == pytest.approx(math.exp(np.mean(nats[0])), rel=1e-5)
    assert found["backward_perplexity"] == pytest.approx(math.exp(np.mean(nats[1])), rel=1e-5)
    # validation, which is not told apart by direction, is exact as well
    mean = training.mean_loss(model, lm.sentences(text).batches())
    assert mean == pytest.approx(np.mean(nats), rel=1e-5)


def test_lm_reports_the_perplexity_of_one_unbroken_stream(tiny_corpus, vocabulary, text):
    made = pretrain("lm", tiny_corpus, vocabulary, dim=DIM, epochs=2)
    previous, state, nats = EOS_ID, None, []
    for token in text.tokens.tolist():
        with torch.no_grad():
            hidden, state = made.model.states(torch.tensor([[previous]]), state)
        logits = made.model.output.weight @ hidden[0, 0] + made.model.output.bias
        nats.append(-logits.log_softmax(0)[token].item())
        previous = token
    assert made.scores == {"test_perplexity_stream": pytest.approx(math.exp(np.mean(nats)), rel=1e-5)}


@pytest.mark.parametrize("source", MODULES)
def test_training_beats_the_frequencies_of_words(source, tiny_corpus, vocabulary, text):
    made = pretrain(source, tiny_corpus, vocabulary, dim=16, epochs=6)
    share = np.array(vocabulary.counts) / sum(vocabulary.counts)
    tokens = text.tokens[text.tokens != EOS_ID] if source == "masked-lm" else text.tokens
    unigram = math.exp(-np.log(share[tokens]).mean())
    found = [value for name, value in made.scores.items() if "perplexity" in name]
    assert max(found) < 0.9 * unigram and min(found) > 2
    assert made.history[-1]["valid_loss"] < made.history[0]["valid_loss"]
    if source == "masked-lm":
        assert made.scores["accuracy"] > made.scores["majority_accuracy"]


# The vectors


def test_lm_has_the_input_vectors_of_all_words_that_occur(tiny_corpus):
    small = Vocabulary.build(tiny_corpus.split("train"), 12)
    wider = Vocabulary((*small.words, "never"), (*small.counts, 0))
    made = pretrain("lm", tiny_corpus, wider, dim=DIM, epochs=1)
    assert made.embeddings.words == ("<unk>", *small.words[2:])
    expected = made.model.table.weight.detach().numpy()[[0, *range(2, 12)]]
    assert np.array_equal(made.embeddings.table, expected)


@pytest.mark.parametrize("layer", [1, None])
def test_bilm_averages_the_states_of_all_occurrences(layer, tiny_corpus, vocabulary):
    made = pretrain("bilm", tiny_corpus, vocabulary, dim=DIM, epochs=1, encoder_layers=2, layer=layer)
    met = {}
    for ids in lines_of(vocabulary.encode(tiny_corpus.split("train"))):
        states = sentence_states(made.model, ids, layer).numpy()
        for token, state in zip([EOS_ID, *ids.tolist()], states):
            met.setdefault(token, []).append(state)
    assert set(made.embeddings.words) == {vocabulary.words[token] for token in met}
    for token, states in met.items():
        found = made.embeddings.lookup([vocabulary.words[token]])[0][0]
        assert np.allclose(found, np.mean(states, axis=0), atol=1e-5)
    other = pretrain("bilm", tiny_corpus, vocabulary, dim=DIM, epochs=1, encoder_layers=2, layer=2)
    assert np.array_equal(made.embeddings.table, other.embeddings.table) == (layer is None)


@pytest.mark.parametrize("source", ["bilm", "masked-lm"])
def test_options_of_the_read_out_change_the_vectors_but_not_the_model(source, tiny_corpus, vocabulary):
    settings = [{}, {"occurrences": 1}, {"readout": "input-layer"}]
    made = [pretrain(source, tiny_corpus, vocabulary, dim=6, epochs=1, **each) for each in settings]
    assert made[0].scores == made[1].scores == made[2].scores
    tables = [each.embeddings.table for each in made]
    assert not any(np.allclose(tables[i], tables[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    rows = made[2].model.encoder.table.weight.detach().numpy()
    assert np.array_equal(tables[2], rows[[vocabulary.ids[word] for word in made[2].embeddings.words]])
    assert len(rows) == len(vocabulary) + (source == "masked-lm")  # and what stands for a hidden word


@pytest.mark.parametrize("source", ["bilm", "masked-lm"])
def test_untrained_is_the_same_encoder_before_training(source, tiny_corpus, vocabulary):
    made = pretrain(f"untrained:{source}", tiny_corpus, vocabulary, dim=6)
    trained = pretrain(source, tiny_corpus, vocabulary, dim=6, epochs=1)
    assert made.history == [] and made.embeddings.provenance["epochs"] == 0
    assert made.embeddings.words == trained.embeddings.words
    assert not np.allclose(made.embeddings.table, trained.embeddings.table)
    name = next(iter(made.scores))
    assert made.scores[name] > trained.scores[name]


@pytest.mark.parametrize("source", MODULES)
def test_same_seed_same_table_bit_for_bit(source, tiny_corpus, vocabulary):
    def made(seed):
        torch.manual_seed(seed + 5)  # the caller's random state plays no part
        before = torch.get_rng_state()
        config = PretrainConfig(source=source, dim=6, epochs=2, seed=seed)
        found = MODULES[source].pretrain(tiny_corpus, vocabulary, config)
        assert torch.equal(torch.get_rng_state(), before)
        return found

    first, again, other = made(0), made(0), made(1)
    assert np.array_equal(first.embeddings.table, again.embeddings.table) and first.scores == again.scores
    assert not np.allclose(first.embeddings.table, other.embeddings.table)


@pytest.mark.parametrize("source", MODULES)
def test_the_account_says_what_was_read_and_how(source, tiny_corpus, vocabulary):
    facts = pretrain(source, tiny_corpus, vocabulary, dim=6, epochs=2, seed=3).embeddings.provenance
    expected = {
        "source": source, "text": "tiny", "epochs": 2, "seed": 3, "labels": 0, "labelled_only": False,
        "tokens_read": tiny_corpus.n_tokens("train"), "dim": 6,
        "readout": "input-layer" if source == "lm" else "averaged",
    }  # fmt: skip
    assert expected.items() <= facts.items() and facts["seconds"] > 0
    assert facts.get("encoder_layers") == {"lm": None, "bilm": 1, "masked-lm": 2}[source]


@pytest.mark.parametrize("source", MODULES)
def test_a_short_text_will_do(source, tiny_corpus):
    documents = [d for d in tiny_corpus.documents if d.id[-2:] in ("-0", "-1")]
    made = pretrain(source, type(tiny_corpus)("short", tuple(documents), "whitespace"), dim=6)
    assert len(made.embeddings.words) > 10 and np.isfinite(made.embeddings.table).all()


# The leak


@pytest.mark.parametrize("layer", [1, None])
def test_token_states_are_those_of_the_token_before(layer, vocabulary, text):
    model, expected = made_bilm(len(vocabulary), 2), []
    for ids in lines_of(text):
        expected.extend(sentence_states(model, ids, layer)[:-1].numpy())  # the last is before no token
    found = lm.token_states(model, text, layer)
    assert found.dtype == np.float32 and found.shape == (len(text), DIM)
    assert np.allclose(found, expected, atol=1e-5)


def test_a_token_state_has_read_its_own_token():
    vocabulary, text = encoded("a b c d", "d c b a")
    model = made_bilm(len(vocabulary))
    before = lm.token_states(model, text)
    for place in (0, 2, 3):
        other = text.tokens.copy()
        other[place] = 0
        changed = lm.token_states(model, replace(text, tokens=other))
        assert (before[place] != changed[place])[DIM // 2 :].any()  # the backward half gives it away
        assert np.array_equal(
            before[place, : DIM // 2], changed[place, : DIM // 2]
        )  # the forward half does not
        assert np.array_equal(before[5:], changed[5:])  # nor does another sentence


def test_leaky_bilm_has_a_model_and_random_vectors(tiny_corpus, vocabulary):
    config = PretrainConfig(source=LEAKY, dim=6, epochs=2)
    made, other = (lm.pretrain(tiny_corpus, vocabulary, c) for c in (config, config.replace(seed=1)))
    assert isinstance(made.model, lm.BidirectionalLanguageModel) and len(made.history) == 2
    assert made.embeddings.words == vocabulary.words and made.embeddings.provenance["readout"] is None
    assert abs(made.embeddings.table.mean()) < 0.2 and 0.8 < made.embeddings.table.std() < 1.2
    random = pretrain("random", tiny_corpus, vocabulary, dim=6).embeddings.table
    for table in (other.embeddings.table, random):
        assert not np.allclose(made.embeddings.table, table)


# Hidden words


def drawn(text, vocab_size, seed=0):
    sequences = batches.Sequences.of(text, "paragraph")
    return list(masked_lm.hidden(sequences, vocab_size, np.random.default_rng(seed)))


def test_a_fifth_of_the_words_is_hidden_eight_times_in_ten(tiny_corpus, vocabulary):
    size, fates, words = len(vocabulary), Counter(), 0
    text = vocabulary.encode(tiny_corpus.split("train"))
    for batch, plain in zip(drawn(text, size), batches.Sequences.of(text, "paragraph").batches()):
        chosen = batch.targets >= 0
        assert torch.equal(batch.targets[chosen], plain.inputs[chosen])
        assert torch.equal(batch.inputs[~chosen], plain.inputs[~chosen])  # the others stand as they are
        assert not (chosen & ((plain.inputs == EOS_ID) | ~plain.mask)).any()
        words += int((plain.mask & (plain.inputs != EOS_ID)).sum())
        for now, was in zip(batch.inputs[chosen].tolist(), batch.targets[chosen].tolist()):
            fates["hidden" if now == size else "same" if now == was else "another"] += 1
            assert now != EOS_ID
    n = sum(fates.values())
    assert 0.15 < n / words < 0.25
    assert abs(fates["hidden"] / n - 0.8) < 0.06 and min(fates["same"], fates["another"]) > 0.05 * n


def test_one_word_at_least_is_hidden_and_empty_lines_are_no_words():
    vocabulary, text = encoded("a")
    for seed in range(20):
        (batch,) = drawn(text, len(vocabulary), seed)
        assert batch.targets.tolist() == [[2, -1]]
    assert drawn(encoded("")[1], 2) == []


def test_the_same_words_are_hidden_every_time(vocabulary, text):
    first, again, other = (drawn(text, len(vocabulary), seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again))
    assert not all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, other))


@torch.no_grad()
def test_a_hidden_word_is_never_seen_but_the_others_are():
    vocabulary, text = encoded(*["a b c d e f g h"] * 4)
    model, size = made_masked(len(vocabulary)), len(vocabulary)
    (batch,) = drawn(text, size)
    gone = (batch.inputs[0] == size).numpy()
    states, _ = model.predictions(batch)

    def after_changing(places):
        other = text.tokens.copy()
        other[places] = 2 + (other[places] - 1) % (size - 2)
        (changed,) = drawn(replace(text, tokens=other), size)
        return changed, model.predictions(changed)[0]

    changed, found = after_changing(gone)
    assert gone.sum() > 3 and torch.equal(changed.inputs, batch.inputs)
    assert (changed.targets != batch.targets)[0, gone].all() and torch.equal(found, states)
    for place in np.flatnonzero((batch.targets[0] < 0).numpy() & (text.tokens != EOS_ID))[[0, -1]]:
        assert (after_changing(place)[1] != states).any(1).all()  # on either side


@torch.no_grad()
@pytest.mark.parametrize("dim", [7, 64])
def test_padding_never_reaches_a_state(dim):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = masked_lm.TransformerEncoder(20, dim, 2).eval()
    ids = torch.randint(20, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    for layer in (1, None):
        states = model(ids, mask, layer)
        for row, n in ((0, 9), (1, 5), (2, 1)):
            alone = model(ids[row : row + 1, :n], mask[row : row + 1, :n], layer)
            assert torch.allclose(states[row, :n], alone[0], atol=1e-5)
    assert not torch.allclose(model(ids, mask, 1)[0], model(ids, mask)[0])


@torch.no_grad()
def test_masked_scores_equal_a_plain_loop(vocabulary, text):
    model, size = made_masked(len(vocabulary)), len(vocabulary)
    nats, right, true = [], 0, Counter()
    for batch in drawn(text, size):
        for ids, real, targets in zip(*batch[:1], batch.mask, batch.targets):
            states = model.encoder(ids[real][None], real[real][None])[0]
            for state, target in zip(states, targets[real].tolist()):
                if target >= 0:
                    logits = model.output.weight @ state + model.output.bias
                    nats.append(-logits.log_softmax(0)[target].item())
                    right += logits.argmax().item() == target
                    true[target] += 1
    found = masked_lm.scores_of(model, drawn(text, size))
    assert found == {
        "masked_perplexity": pytest.approx(math.exp(np.mean(nats)), rel=1e-5),
        "accuracy": pytest.approx(right / len(nats)),
        "majority_accuracy": pytest.approx(max(true.values()) / len(nats)),
    }


# What cannot be


@pytest.mark.parametrize("source, has, layer", [("bilm", 1, 2), ("masked-lm", 2, 3), (LEAKY, 1, 2)])
def test_a_layer_that_is_not_there_is_named_before_training(
    source, has, layer, tiny_corpus, vocabulary, monkeypatch
):
    monkeypatch.delattr(training, "_epoch")
    config = PretrainConfig(source=source, dim=6, layer=layer)
    with pytest.raises(
        StudyError, match=f"{source} has {has} encoder layers and no layer {layer}; give layer 1 to"
    ):
        MODULES.get(source, lm).pretrain(tiny_corpus, vocabulary, config)


@pytest.mark.parametrize("source", MODULES)
@pytest.mark.parametrize(
    "error, expected", [(KeyboardInterrupt, KeyboardInterrupt), (training.Diverged, StudyError)]
)
def test_training_that_ends_early_keeps_nothing(
    source, error, expected, tiny_corpus, vocabulary, monkeypatch
):
    def end(*arguments):
        raise error("the loss became nan")

    monkeypatch.setattr(training, "_epoch", end)
    with pytest.raises(expected):
        pretrain(source, tiny_corpus, vocabulary, dim=6)
    assert kept_in_cache() == []


def test_too_little_text_for_a_stream_says_how_much_there_is(tiny_corpus):
    documents = [Document(split, None, split, ("a b",)) for split in ("train", "valid", "test")]
    with pytest.raises(StudyError, match="3 tokens are too few"):
        pretrain("lm", type(tiny_corpus)("scrap", tuple(documents), "whitespace"), dim=6)
