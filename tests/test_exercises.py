"""The checks of the exercises: to do, not yet with a reason, right; never an error unless asked for."""

import math
import re

import numpy as np
import pytest

from rtl_core import exercises
from rtl_core.exercises import NOT_YET, RIGHT, TODO, Verdict, choice, exercise, number, rule
from rtl_core.storage import StudyError

CHECKS = {name: check for name, check in vars(exercises).items() if name.startswith("check_")}


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_has_three_answers(name):
    check = CHECKS[name]
    assert check(None).state == check(...).state == TODO
    for wrong in (-123.456, lambda *given: -123.456, "nonsense", [1, 2], math.nan, {}, lambda: 1):
        verdict = check(wrong)
        assert verdict.state == NOT_YET
        assert len(verdict.reason) > 8
    assert check.__doc__.startswith("Returns the verdict on notebook ")


@pytest.mark.parametrize("name", CHECKS)
def test_strict(name, monkeypatch):
    monkeypatch.setenv("RTL_STRICT", "1")
    for answer in (None, -123.456, "nonsense"):
        with pytest.raises(StudyError, match=name):
            CHECKS[name](answer)


@pytest.mark.parametrize(
    "name, wrong, reason",
    [
        ("four_tokens", 16, "third root"),
        ("effect", lambda arm, baseline: arm - baseline, "given 100, 80 yours returns 20; it should be 25"),
        ("monkey", -1.02, "five letters"),
        ("unknown_share", lambda counts: counts[0] / sum(counts[1:]), r"given \[3, 2, 2, 1\] yours returns 0.6"),
        ("three_dimensions", 1, "two dimensions"),
        ("word_entropy", lambda p, n: -(p * np.log(p)).sum(), "it should be 0.4591"),
        ("more_negatives", math.log(4), "mind the sign"),
        ("log_odds", lambda real, negative: math.log(real / (real + negative)), "it should be 1.099"),
        ("narrow_window", 4, "twice"),
        ("glove_weight", lambda count, x_max: (count / x_max) ** 0.75, "given 40, 10 yours returns 2.828"),
        ("backward_rows", 2, "has just read it"),
        ("three_sentences", 3, "certain"),
        ("longer_vector", 1 / (1 + math.exp(-4)), "the mean halves"),
        ("softmax_loss", lambda scores, right: -scores[right], "given .* it should be 0.3133"),
        ("enough_pairs", 2500, "one standard error"),
        ("f1", lambda right, found, true: (right / found + right / true) / 2, "it should be 0.4"),
        ("open_gate", 7 / 8, "f = 1/2"),
        ("exact_perplexity", lambda ds: math.exp(np.mean([d.mean() for d in ds])), "yours returns 4; .* 5.657"),
        ("strong_pull", "finetuned", "costs nothing"),
        ("penalty", 0.225, "moved once"),
        ("forgotten_ships", math.log((0.8 * 64 + 0.2) / 65 / 0.5), "cut to no word"),
        ("comparable", lambda positions, ns: (positions >= min(ns)).sum(), "yours returns 6; it should be 3"),
    ],
)  # fmt: skip
def test_a_typical_mistake_has_its_reason(name, wrong, reason):
    verdict = CHECKS[f"check_{name}"](wrong)
    assert verdict.state == NOT_YET
    assert re.search(reason, verdict.reason)


def test_number():
    misses = {3: "That is the sum."}
    assert number(np.float32(2), 2, why="Two.") == Verdict(RIGHT, "Two.")
    assert number(2.01, 2, why="").state == RIGHT
    assert number(3, 2, why="", misses=misses).reason == "3? That is the sum."
    assert number(1, 2, why="", misses=misses).reason == "1 is too small."
    assert number(4, 2, why="", misses=misses).reason == "4 is too large."
    assert number(math.nan, 2, why="").reason == "nan is no number."
    assert number(0, 1e-3, why="").state == NOT_YET


def test_rule():
    examples = ((1, 2), (np.array([1.0, 2]), 3))
    assert (
        rule(
            lambda a, b: np.sum(a) + b, lambda a, b: math.fsum([*np.ravel(a), b]), examples, why="A sum."
        ).state
        == RIGHT
    )
    assert rule(lambda a, b: None, lambda a, b: 1, examples, why="") is None
    wrong = rule(lambda a, b: np.max(a) + b, lambda a, b: np.sum(a) + b, examples, why="")
    assert wrong.reason == "given [1, 2], 3 yours returns 5; it should be 6."
    assert rule(lambda a, b: a * np.ones(2), lambda a, b: 1, examples, why="").state == NOT_YET


def test_an_answer_that_works_in_place_is_right():
    def shrink(counts):
        counts /= counts.sum()
        return counts[0]

    examples = [(np.array([1.0, 3]),), (np.array([2.0, 2]),)]
    assert rule(shrink, lambda counts: counts[0] / counts.sum(), examples, why="").state == RIGHT
    assert examples[0][0].tolist() == [1, 3]


def test_an_answer_that_leaves_python_is_judged():
    def answer(*given):
        raise SystemExit(3)

    assert CHECKS["check_effect"](answer).reason == "this answer cannot be judged (SystemExit: 3)."


def test_choice():
    reasons = {"b": "B is another."}
    assert choice("a", "a", why="A.", reasons=reasons) == Verdict(RIGHT, "A.")
    assert choice("b", "a", why="", reasons=reasons).reason == "B is another."
    assert choice("c", "a", why="", reasons=reasons).reason == "'c' is none of these: a, b."


def test_what_an_answer_raises_is_a_reason():
    @exercise("a hint")
    def judge(answer):
        return rule(answer, lambda a: a, ((0,),), why="")

    assert judge(lambda a: None) == Verdict(TODO, "a hint")
    assert (
        judge(lambda a: 1 / a).reason == "this answer cannot be judged (ZeroDivisionError: division by zero)."
    )


def test_a_verdict_is_text_and_markdown():
    verdict = Verdict(NOT_YET, "x is too small.")
    assert repr(verdict) == "Not yet: x is too small."
    assert verdict._repr_markdown_() == "**Not yet:** x is too small."
