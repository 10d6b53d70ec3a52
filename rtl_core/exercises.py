"""The exercises of the notebooks: what is right, what is not yet, and why; a wrong answer never stops a notebook."""

import copy
import functools
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rtl_core.storage import StudyError

TODO, NOT_YET, RIGHT = "To do", "Not yet", "Right"


@dataclass(frozen=True)
class Verdict:
    """What a check says of an answer: a state and the reason."""

    state: str
    reason: str

    def __repr__(self) -> str:
        return f"{self.state}: {self.reason}"

    def _repr_markdown_(self) -> str:
        return f"**{self.state}:** {self.reason}"


def exercise(hint: str) -> Callable:
    """Returns a decorator that makes a check of a function that judges an answer.

    No answer yet, None: To do, with the hint. Whatever an odd answer raises is a Not yet. Raises: StudyError for
    everything but Right where `RTL_STRICT` is 1, as in the notebook of solutions.
    """

    def decorate(judge: Callable) -> Callable:
        @functools.wraps(judge)
        def check(answer) -> Verdict:
            try:
                verdict = None if answer is None or answer is ... else judge(answer)
            except (Exception, SystemExit) as error:
                verdict = Verdict(NOT_YET, f"this answer cannot be judged ({type(error).__name__}: {error}).")
            verdict = verdict or Verdict(TODO, hint)
            if verdict.state != RIGHT and os.environ.get("RTL_STRICT") == "1":
                raise StudyError(f"{judge.__name__}: {verdict}")
            return verdict

        return check

    return decorate


def number(answer, right: float, *, why: str, misses: dict | None = None, rtol: float = 0.01) -> Verdict:
    """Returns the verdict on a number: Right within `rtol`; a foreseen wrong one has its reason in `misses`."""
    value = float(answer)
    if math.isclose(value, right, rel_tol=rtol, abs_tol=1e-9):
        return Verdict(RIGHT, why)
    for wrong, reason in (misses or {}).items():
        if math.isclose(value, wrong, rel_tol=rtol, abs_tol=1e-9):
            return Verdict(NOT_YET, f"{value:.4g}? {reason}")
    size = "too small" if value < right else "too large" if value > right else "no number"
    return Verdict(NOT_YET, f"{value:.4g} is {size}.")


def rule(answer: Callable, twin: Callable, examples: Iterable[tuple], *, why: str) -> Verdict | None:
    """Returns the verdict on a function: Right if it agrees with `twin`; else the first example where it does not.

    None, no answer yet, if the function returns None.
    """
    for given in examples:
        expected = twin(*given)
        found = answer(*copy.deepcopy(given))  # it may work in place
        if found is None:
            return None
        if np.shape(found) or not math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9):
            shown = ", ".join(map(_shown, given))
            return Verdict(
                NOT_YET, f"given {shown} yours returns {_shown(found)}; it should be {expected:.4g}."
            )
    return Verdict(RIGHT, why)


def _shown(value) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_shown(each)}' for name, each in value.items())}}}"
    return str(value) if isinstance(value, str) else f"{value:.4g}"


def choice(answer: str, right: str, *, why: str, reasons: dict[str, str]) -> Verdict:
    """Returns the verdict on one word of several; every wrong one has its reason in `reasons`."""
    if answer == right:
        return Verdict(RIGHT, why)
    options = ", ".join(sorted((right, *reasons)))
    return Verdict(NOT_YET, reasons.get(answer, f"{answer!r} is none of these: {options}."))


# Notebook 00


@exercise("put the token's 64 into the product too, and mind which root to take.")
def check_four_tokens(answer):
    """Returns the verdict on notebook 00, exercise 1: the perplexity when a token of probability 1/64 follows."""
    misses = {16: "That is the third root; there are four tokens now.", 4: "That is without the new token."}
    return number(answer, 8, why="2 · 4 · 8 · 64 is 4,096, and its fourth root is 8.", misses=misses)


@exercise("an arm of 90 beside a baseline of 100 has an effect of −10 per cent.")
def check_effect(answer):
    """Returns the verdict on notebook 00, exercise 2: the effect in per cent of two perplexities."""
    why = "the difference is measured against the baseline; below zero is better."
    examples = ((90, 100), (100, 80), (112.4, 112.4))
    return rule(answer, lambda arm, baseline: 100 * (arm - baseline) / baseline, examples, why=why)


# Notebook 01


@exercise('give the monkey the keys `list("ab ")` and read the slope off.')
def check_monkey(answer):
    """Returns the verdict on notebook 01, exercise 1: the slope of a monkey with two letters."""
    why = "near −log 3 / log 2, as theory says. A line again: it comes from chance, so it is no sign of meaning."
    misses = {-1.02: "That is the monkey with five letters.", 1.5: "The line falls: mind the sign."}
    return number(answer, -1.5, why=why, misses=misses, rtol=0.06)


@exercise("the count of `<unk>` is the first; what is the whole?")
def check_unknown_share(answer):
    """Returns the verdict on notebook 01, exercise 2: the share of unknown tokens, from a vocabulary's counts."""
    why = "every token counts in the whole, `<unk>` and `<eos>` too. Try it on `words.counts`."
    examples = (((3, 2, 2, 1),), ((0, 5, 5),), ((10, 20, 30, 40),))
    return rule(answer, lambda counts: counts[0] / math.fsum(counts), examples, why=why)


# Notebook 02


@exercise("write 3 for each 2 in the line that makes `flat`, and run on from there.")
def check_three_dimensions(answer):
    """Returns the verdict on notebook 02, exercise 1: the cosine of words that never meet, in three dimensions."""
    why = "three dimensions hold all of this table. The two words became alike only because one had to be left out."
    return number(answer, 0, why=why, misses={1: "That is in two dimensions."})


@exercise("shares of 2/3 and 1/3 among four documents have the entropy 0.459.")
def check_word_entropy(answer):
    """Returns the verdict on notebook 02, exercise 2: entropy of a word over documents, 0 to 1."""
    why = "by log n an even spread over all n documents has 1, whatever n is."
    examples = (
        (np.array([2, 1]) / 3, 4),
        (np.full(4, 1 / 4), 4),
        (np.array([1.0]), 4),
        (np.full(2, 1 / 2), 8),
    )
    return rule(answer, lambda p, n: sum(-each * math.log(each, n) for each in p), examples, why=why)


# Notebook 03


@exercise("with K = 20 every negative count is K / 5 times what it was.")
def check_more_negatives(answer):
    """Returns the verdict on notebook 03, exercise 1: what K = 20 in place of 5 adds to each product."""
    why = "log 4 is taken off every product alike; what a pair is beyond chance stays."
    misses = {
        math.log(4): "More negatives push apart: mind the sign.",
        -math.log(20): "K was 5 before, not 1.",
    }
    return number(answer, -math.log(4), why=why, misses=misses)


@exercise("six times real and twice negative made log 3.")
def check_log_odds(answer):
    """Returns the verdict on notebook 03, exercise 2: the product to which a pair's vectors tend."""
    why = "the log odds of having been seen; below zero for 100 real and 700 negative."
    examples = ((6, 2), (100, 700), (5, 5))
    return rule(answer, lambda real, negative: math.log(real) - math.log(negative), examples, why=why)


# Notebook 04


@exercise("give `glove.co_occurrences` in section 1 a `window=1`, and sum X.")
def check_narrow_window(answer):
    """Returns the verdict on notebook 04, exercise 1: the sum of all counts when only next neighbours count."""
    why = "two lines of two gaps, each seen from both sides. *Ice* and *solid* do not meet any more."
    misses = {10: "That is with pairs at distance two.", 4: "Every pair stands in X twice."}
    return number(answer, 8, why=why, misses=misses)


@exercise("a count of x_max / 16 weighs 1/8.")
def check_glove_weight(answer):
    """Returns the verdict on notebook 04, exercise 2: the weight of a pair that was counted so often."""

    def twin(count, x_max):
        return 1 if count >= x_max else math.sqrt(math.sqrt(count / x_max)) ** 3

    why = "a rare pair weighs little, and beyond x_max none weighs more than 1."
    return rule(answer, twin, ((1, 16), (1, 10_000), (10, 10), (40, 10)), why=why)


# Notebook 05


@exercise("change the second word of one of the two `lines`, and count the rows that moved.")
def check_backward_rows(answer):
    """Returns the verdict on notebook 05, exercise 1: rows whose backward half moves with the second word."""
    why = "two rows knew a word that was still to come; the third has just read it."
    misses = {
        2: "The row after the changed word moves too: its state has just read it.",
        5: "That is the forward half.",
        7: "That is with the last word changed.",
    }
    return number(answer, 3, why=why, misses=misses)


@exercise("nine predictions, three of them with 1/3.")
def check_three_sentences(answer):
    """Returns the verdict on notebook 05, exercise 2: perplexity of the best model of three sentences."""
    why = "three choices among three make 27, and nine predictions share them; so in both directions."
    misses = {
        3: "Only every third prediction is a choice; the two others are certain, and count.",
        4 ** (1 / 6): "That is with two sentences.",
    }
    return number(answer, 27 ** (1 / 9), why=why, misses=misses)


# Notebook 06


@exercise("write 4.0 for the 2.0 of *array*, and compute p of the right domain again.")
def check_longer_vector(answer):
    """Returns the verdict on notebook 06, exercise 1: probability of the right domain for a vector twice as long."""
    misses = {
        1 / (1 + math.exp(-1)): "That is with the vector (2, 0).",
        1 / (1 + math.exp(-4)): "The text has two words: the mean halves the vector.",
    }
    why = "the mean is (2, 0), so the odds are e² to 1. A longer vector makes a surer judge."
    return number(answer, 1 / (1 + math.exp(-2)), why=why, misses=misses)


@exercise("scores of 1 and 0 with the first one right cost 0.313 nats.")
def check_softmax_loss(answer):
    """Returns the verdict on notebook 06, exercise 2: the loss of scores when one of them is right."""

    def twin(scores, right):
        return math.log(sum(math.exp(score - scores[right]) for score in scores))

    examples = ((np.array([1.0, 0]), 0), (np.array([1.0, 1]), 1), (np.array([3.0, 1, 0]), 2))
    return rule(answer, twin, examples, why="*array graph* has two equal scores, and costs log 2.")


# Notebook 07


@exercise("two standard errors of a share of one half are 2 · √(¼ / n).")
def check_enough_pairs(answer):
    """Returns the verdict on notebook 07, exercise 1: pairs that make two standard errors 0.01."""
    misses = {2500: "That is one standard error.", 100: "That makes 0.1."}
    return number(answer, 10_000, why="half the error takes four times the pairs.", misses=misses)


@exercise("one right of two found and three true made 2/5.")
def check_f1(answer):
    """Returns the verdict on notebook 07, exercise 2: F1 of whole names."""

    def twin(right, found, true):
        return 0 if right == 0 else 2 / (found / right + true / right)  # the harmonic mean

    why = "between precision and recall, nearer to the smaller. With the third name it is 2/3."
    return rule(answer, twin, ((1, 2, 3), (2, 3, 3), (1, 10, 1), (0, 2, 3)), why=why)


# Notebook 08


@exercise("each step takes 3/4 of the cell and adds 1/2.")
def check_open_gate(answer):
    """Returns the verdict on notebook 08, exercise 1: the cell after three words when f is 3/4."""
    misses = {7 / 8: "That is with f = 1/2, or after two words.", 1.5: "That is with f = 1: nothing fades."}
    return number(answer, 37 / 32, why="1/2, 7/8, 37/32; it tends to 2.", misses=misses)


@exercise("the two documents of section 5 make 5.66.")
def check_exact_perplexity(answer):
    """Returns the verdict on notebook 08, exercise 2: the perplexity of several documents' nats."""

    def twin(documents):
        total = sum(float(nats) for document in documents for nats in document)
        return math.exp(total / sum(len(document) for document in documents))

    examples = ([np.log([2.0, 8]), np.log([4.0, 4])], [np.log([2.0]), np.log([8.0, 8, 8])])
    return rule(
        answer, twin, [(each,) for each in examples], why="all nats by all predictions, divided once."
    )


# Notebook 09


@exercise("run the arm with a strength of 1. Whose perplexity does it come close to?")
def check_strong_pull(answer):
    """Returns the verdict on notebook 09, exercise 1: what `l2sp` at a great strength is like."""
    reasons = {
        "finetuned": "That is the other end: a pull that costs nothing.",
        "random": "The vectors stay those of the source. What can they not do any more?",
        "gated": "A gate mixes two tables. Here is one, and it is held.",
    }
    why = "what may not leave its start at any price stays there. At 0.0001 it is `finetuned`."
    return choice(answer, "frozen", why=why, reasons=reasons)


@exercise("a squared distance for each different word of the batch.")
def check_penalty(answer):
    """Returns the verdict on notebook 09, exercise 2: what `l2sp` adds for *node*, *node*, *graph*."""
    misses = {
        0.225: "*Node* stands in the batch twice, but its vector has moved once.",
        0.15: "Distances are squared: 0.36 + 0.64 and 0.09 + 0.16.",
    }
    return number(answer, 0.125, why="0.1 · (1 + 0.25); a word counts once a batch.", misses=misses)


# Notebook 10


@exercise("sort them; the smallest times 4, the next times 3, and none falls below the one before.")
def check_holm_count(answer):
    """Returns the verdict on notebook 10, exercise 1: how many of four p-values stay below 0.05 by Holm's method."""
    misses = {
        4: "That is without a correction.",
        3: "0.04 times 1 is 0.04, but it may not fall below the one before it, 0.06.",
        1: "That is Bonferroni's method: each times 4.",
    }
    return number(answer, 2, why="0.02 and 0.042; then 0.06 and, carried on, 0.06.", misses=misses)


@exercise("sum over documents first, for each seed.")
def check_paired_effect(answer):
    """Returns the verdict on notebook 10, exercise 2: an effect in nats a token, of summed nats and tokens."""

    def twin(arm, baseline, tokens):
        sums = [sum(a) - sum(b) for a, b in zip(arm.T, baseline.T)]
        return sum(sums) / len(sums) / sum(tokens)

    first = np.array([[46.0, 50], [146, 142]]), np.array([[50.0, 52], [150, 152]]), np.array([10, 30])
    second = np.array([[30.0], [2000]]), np.array([[40.0], [2100]]), np.array([10, 900])
    return rule(answer, twin, (first, second), why="nats by tokens, divided once; seeds are averaged last.")


# Notebook 11


@exercise("after three ships the sea is 64 times as likely as the farm; after one, 4 times.")
def check_forgotten_ships(answer):
    """Returns the verdict on notebook 11, exercise 1: what a reader of three ships loses when cut to the last."""
    misses = {
        math.log((0.8 * 64 + 0.2) / 65 / 0.5): "That is a cut to no word.",
        math.log(0.8 / 0.68): "That is against a reader who is told the kind.",
    }
    why = "most of what there is to know is known after one word; the further ones add ever less."
    return number(answer, math.log((0.8 * 64 + 0.2) / 65 / 0.68), why=why, misses=misses)


@exercise("at position 12 a word has 12 words before it: enough for 5 and 10, not for 50.")
def check_comparable(answer):
    """Returns the verdict on notebook 11, exercise 2: how many words can serve every length of context."""
    first = np.array([0, 5, 10, 49, 50, 51, 200])
    examples = ((first, (5, 10, 50)), (first, (100, 1)), (np.arange(10), (20,)))
    why = "a word that has the longest context has the shorter ones too, so all lengths are tried on the same words."
    return rule(answer, lambda positions, ns: sum(p >= max(ns) for p in positions), examples, why=why)


# Notebook 12


@exercise("with half sides of 10, 5 and 4 a cosine is a sum of 100, 25 and 16, with signs, over 141.")
def check_longer_box(answer):
    """Returns the verdict on notebook 12, exercise 1: the recall of the map of a longer box."""
    why = "no corner at the other end is near any more, so what the map brings nearer was near before."
    return number(answer, 1, why=why, misses={2 / 3: "That is the box of section 1."})


@exercise(
    "three words of the domains 0, 0 and 1; their neighbours are the words 1, 2 and 0. One of three agrees."
)
def check_purity(answer):
    """Returns the verdict on notebook 12, exercise 2: the share of neighbours that have the domain of their word."""

    def twin(near, domains):
        pairs = [(word, other) for word, row in enumerate(near) for other in row]
        return sum(domains[word] == domains[other] for word, other in pairs) / len(pairs)

    examples = (
        (np.array([[1], [2], [0]]), np.array([0, 0, 1])),
        (np.array([[1, 2], [0, 3], [3, 0], [2, 1]]), np.array([0, 0, 1, 1])),
        (np.array([[1, 2], [0, 2], [0, 1], [0, 2]]), np.arange(4)),
    )
    why = "`domains[near]` has a row a word, and each row is compared with one domain: that of its word."
    return rule(answer, twin, examples, why=why)


# Notebook 13


@exercise("the entropy of five shares of 1/5.")
def check_yardstick(answer):
    """Returns the verdict on notebook 13, exercise 1: the loss of knowing that five labels are equally frequent."""
    misses = {
        1 / 5: "That is the probability of a label; its loss is its negative log.",
        math.log2(5): "That is in bits.",
    }
    why = "each label costs ln 5, whatever the word. Below it, words tell something."
    return number(answer, math.log(5), why=why, misses=misses)


@exercise("go through `read`, and leave out what is in `own`.")
def check_extra_tokens(answer):
    """Returns the verdict on notebook 13, exercise 2: the tokens that were read beyond the model's own documents."""

    def twin(read, own):
        return sum(read.values()) - sum(read[name] for name in read.keys() & own.keys())

    whole, part = {"a": 10, "b": 20, "c": 5}, {"b": 20}
    examples = ((whole, part), (part, whole), ({"d": 7}, part), ({}, whole))
    why = "a document that both have counts for neither; nothing extra is zero, never less."
    return rule(answer, twin, examples, why=why)
