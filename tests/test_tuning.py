"""Tuning: the same trials for every arm, chosen on validation text alone, and the test text scored once."""

import math

import numpy as np
import pytest

from rtl_core import experiments, run, scoring, texts, training, tuning
from rtl_core.config import Experiment
from rtl_core.experiments import model_dir, record_path
from rtl_core.results import Record
from rtl_core.scoring import token_nats
from rtl_core.storage import StudyError, read_json, results_dir, write_json
from rtl_core.training import History
from rtl_core.transfer import load_model
from rtl_core.tuning import TRIALS, Trial, best_trial, trials_of

TUNED = Experiment(
    corpus="tiny", hidden_size=8, n_samples=32, batch_size=8, window=20, max_epochs=2, lm_tokens=1000,
    tuning="equal-budget",
)  # fmt: skip
CACHES = (texts._vocabulary, texts._text, texts._lm_split)


@pytest.fixture
def tiny(tiny_corpus, monkeypatch):
    monkeypatch.setattr(texts, "corpus_of", lambda name: tiny_corpus)
    for cached in CACHES:
        cached.cache_clear()
    yield tiny_corpus
    for cached in CACHES:
        cached.cache_clear()


def without_times(record):
    trials = [{k: v for k, v in row.items() if k != "seconds"} for row in record.trials]
    rows = [(row["train_loss"], row["valid_loss"]) for row in record.history]
    return record.identity, record.scores, trials, rows, record.converged


def history(loss, **changes):
    return History([{"valid_loss": loss, "seconds": 1.0}], **changes)


def made(losses, **changes):
    """The trial kept and its rows, where the trainings end with these losses."""
    given = iter(losses)
    return best_trial(Experiment(**changes), lambda e: Trial(e, None, next(given)))


def test_the_trials_are_the_same_few_for_every_arm():
    one, other = (
        [(t.learning_rate, t.input_rms) for t in trials_of(Experiment(source=source, tuning="equal-budget"))]
        for source in ("random", "word2vec-sg")
    )
    assert one == other == [(0.008, 0.3), (0.004, 0.3), (0.016, 0.3), (0.008, 0.1), (0.008, 0.9)]
    assert TRIALS[0] == (1, 1) and len(TRIALS) <= 6


def test_without_tuning_there_is_one_trial_and_nothing_is_noted():
    trial, rows = made([history(2.0)])
    assert trial.experiment == Experiment() and rows == []


def test_the_best_on_validation_is_kept_and_of_equal_ones_the_first():
    losses = [3.0, 2.5, 2.0, 2.0, 9.0]
    trial, rows = made(map(history, losses), tuning="equal-budget")
    assert (trial.experiment.learning_rate, trial.experiment.input_rms) == (0.016, 0.3)
    assert [row["valid_perplexity"] for row in rows] == [pytest.approx(math.exp(x)) for x in losses]
    assert [row["chosen"] for row in rows] == [False, False, True, False, False]


def test_a_trial_that_failed_is_noted_and_never_kept():
    failed = history(0.5, failed="nan")
    trial, rows = made([failed, *map(history, [3, 2, 4, 5])], tuning="equal-budget")
    assert rows[0]["valid_perplexity"] is None and not rows[0]["chosen"] and rows[2]["chosen"]
    trial, rows = made([failed] * 5, tuning="equal-budget")
    assert trial.history.failed and [row["chosen"] for row in rows] == [True] + [False] * 4


def test_tuning_reads_the_test_text_once_and_only_with_the_chosen_model(tiny, monkeypatch):
    scored = []

    def counted(model, text):
        scored.append(text)
        return scoring.nats_by_context(model, text)

    read = []

    def noted(model, text, *arguments, **options):
        read.append(text)
        return token_nats(model, text, *arguments, **options)

    monkeypatch.setattr(experiments, "nats_by_context", counted)
    monkeypatch.setattr(experiments, "token_nats", noted)
    record = run(TUNED)
    text = texts.text_of(TUNED)
    assert len(scored) == 1 and scored[0] is text.test
    assert len(read) >= 2 * len(TRIALS) and all(part is text.valid for part in read)
    assert len(record.trials) == len(TRIALS)
    chosen = [row for row in record.trials if row["chosen"]]
    least = min(row["valid_perplexity"] for row in record.trials)
    assert len(chosen) == 1 and chosen[0]["valid_perplexity"] == least
    assert record.scores["valid_perplexity_stream"] == pytest.approx(least)
    assert record.training_seconds == chosen[0]["seconds"]


def test_each_trial_is_what_the_same_settings_give_without_tuning(tiny):
    record = run(TUNED)
    for row in record.trials[1:3]:
        alone = run(TUNED.replace(tuning="none", learning_rate=row["learning_rate"]))
        assert alone.scores["valid_perplexity_stream"] == row["valid_perplexity"] and alone.trials == []
        if row["chosen"]:
            assert alone.scores == record.scores


@pytest.mark.parametrize("output_init", ["random", "tied"])
def test_the_saved_model_is_the_chosen_one(tiny, monkeypatch, output_init):
    """A tied table is multiplied by the chosen input_rms, which the saved settings must say."""
    monkeypatch.setattr(tuning, "TRIALS", ((1, 1), (1, 3), (3, 3)))
    e = TUNED.replace(output_init=output_init)
    record = run(e)
    assert not record.trials[0]["chosen"]
    model = load_model(model_dir(record.name))[0]
    nats = token_nats(model, texts.text_of(e).test, "document").mean(dtype=np.float64)
    assert math.exp(nats) == pytest.approx(record.scores["test_perplexity_document"], rel=1e-6)


@pytest.mark.parametrize("at", [2, 5, 8])
def test_interrupted_tuning_goes_on_with_the_trial_that_it_was_in(tiny, monkeypatch, tmp_path, at):
    expected = run(TUNED)
    monkeypatch.setenv("RTL_RESULTS_DIR", str(tmp_path / "again"))
    epochs = []

    def noted(*arguments):
        epochs.append(arguments)
        if len(epochs) == at:
            raise KeyboardInterrupt
        return plain(*arguments)

    plain = training._epoch
    monkeypatch.setattr(training, "_epoch", noted)
    with pytest.raises(KeyboardInterrupt):
        run(TUNED)
    assert not record_path(TUNED).exists()
    again = run(TUNED)
    assert len(epochs) == 2 * len(TRIALS) + 1  # the interrupted one twice, and no other
    assert without_times(again) == without_times(expected)
    assert not list((results_dir() / "local" / "checkpoints").glob("*.safetensors"))


def test_a_record_from_before_tuning_loads_and_has_no_trials(tiny):
    record = run(TUNED.replace(tuning="none"))
    path = record_path(TUNED.replace(tuning="none"))
    values = read_json(path)
    del values["trials"]
    write_json(path, values)
    assert Record.load(path) == record and record.trials == []


def test_a_learned_size_is_not_tuned():
    with pytest.raises(StudyError, match="equal-budget.*give input_rms as a number"):
        Experiment(tuning="equal-budget", input_rms="learned")
