"""How the gain of pre-trained vectors changes with the amount of text: of the language model, or of the pre-training.

An effect is a mean of differences in nats. What it changes from one size to the next, its slope and a point of the
line fitted to it are means of weighted sums of such differences, so `comparison.effect` gives the interval of each:
over documents and seeds together, the same documents at every size.
"""

from itertools import pairwise

import numpy as np
import pandas as pd

from rtl_core.comparison import effect
from rtl_core.results import BASELINE, Results, grouped, select_arm
from rtl_core.storage import StudyError, unknown

ALONG = ("lm_tokens", "pretrain_tokens")  # what grows: the language model's own training text, or the other
LAST = 3  # sizes that a line is fitted to: the first ones may rise where the last ones fall
DOUBLINGS = 6  # how far beyond the largest size it is followed


def size_curve(results: Results, along: str) -> pd.DataFrame:
    """Returns the effect of each source at each size of text, one row each, in order of source and size.

    `along` says whose text grows: lm_tokens or pretrain_tokens; `tokens` is what was read. Beside the effect against
    the baseline, with as much LM text, and its 95 % interval stands its change since the size before (change_percent
    and its interval; NaN at the smallest size).
    Raises: StudyError when the records have no baseline, two arms of a source share a size, or test texts differ.
    """
    gains, tokens = _gains(results, along)
    rows = []
    for sizes in gains.values():
        changes = [(sizes[b] - sizes[a]).dropna(axis=1) for a, b in pairwise(sizes)]
        for n, change in zip(sizes, [sizes[min(sizes)] * np.nan, *changes]):
            rows.append(sizes[n].attrs | _effect(sizes[n], tokens) | _effect(change, tokens, "change_"))
    return pd.DataFrame(rows)


def size_trend(results: Results, along: str) -> pd.DataFrame:
    """Returns a line through the effects at the LAST sizes of each source, a row a source that has as many.

    Least squares of the effect in nats on log2 of the tokens: slope_percent is the change of the effect a doubling.
    `ends` is the size at which the line reaches zero, `ends_from` the first at which its interval does and `ends_by`
    the first at which it has left it behind, all sought from the largest size on, in quarters of a doubling; NaN:
    not up to `farthest`. Whatever lies beyond the largest size is extrapolated.
    Raises: StudyError as `size_curve`.
    """
    gains, tokens = _gains(results, along)
    rows = []
    for source, whole in gains.items():
        if len(whole) < LAST:
            continue
        sizes = dict(list(whole.items())[-LAST:])
        at = [round(max(sizes) * 2 ** (k / 4)) for k in range(4 * DOUBLINGS + 1)]
        reach = {"smallest": min(sizes), "largest": max(sizes), "farthest": at[-1]}
        line = pd.DataFrame([_effect(_line(sizes, np.log2(n)), tokens) for n in at], at)
        slope = _effect(_line(sizes, 1) - _line(sizes, 0), tokens, "slope_")
        reached = {"ends_from": "high_percent", "ends": "effect_percent", "ends_by": "low_percent"}
        ends = {name: next(iter(line.index[line[end] >= 0]), np.nan) for name, end in reached.items()}
        rows.append({"along": along, "source": source} | reach | slope | ends)
    return pd.DataFrame(rows)


def _gains(results: Results, along: str) -> tuple[dict[str, dict[int, pd.DataFrame]], np.ndarray]:
    """Returns source → size → nats beyond the baseline's, a row a document and a column a seed; documents' tokens."""
    if along not in ALONG:
        raise unknown("text to follow", along, ALONG)
    sums = results.documents.pivot(index="document", columns="record", values=["tokens", "nats_document"])
    if sums.isna().any(axis=None):
        raise StudyError("the records were not scored on the same test text; select those of one study.")
    nats, tokens = sums["nats_document"], sums["tokens"].iloc[:, 0].to_numpy()
    found: dict[str, dict[int, pd.DataFrame]] = {}
    for arms in grouped(results).values():
        base = select_arm(arms, BASELINE)
        for seeds in (seeds for seeds in arms.values() if base and seeds is not base):
            first, common = next(iter(seeds.values())), [seed for seed in seeds if seed in base]
            source, own = first.experiment["source"], first.text["lm_tokens"]
            n = own if along == "lm_tokens" else first.pretrained["provenance"]["tokens_read"]
            if n in found.setdefault(source, {}):
                raise StudyError(f"two arms of {source} read {n:,} tokens; leave one out.")
            names = ([of[seed].name for seed in common] for of in (seeds, base))
            ours, theirs = (nats[each].set_axis(common, axis=1) for each in names)
            found[source][n] = ours - theirs
            facts = {"along": along, "source": source, "tokens": n, "lm_tokens": own, "n_seeds": len(common)}
            perplexity = float(np.exp((theirs.sum() / tokens.sum()).mean()))
            found[source][n].attrs = facts | {"baseline_perplexity": perplexity}
    if not found:
        raise StudyError("no baseline with another arm; `rtl study --size lm-sizes` makes such records.")
    return {source: dict(sorted(sizes.items())) for source, sizes in found.items()}, tokens


def _effect(difference: pd.DataFrame, tokens: np.ndarray, prefix: str = "") -> dict[str, float]:
    values = difference.to_numpy()
    found = effect(values, np.zeros_like(values), tokens)
    names = {"effect_percent": f"{prefix or 'effect_'}percent"}
    names |= {end: f"{prefix}{end}" for end in ("low_percent", "high_percent")}
    return {new: found[old] for old, new in names.items()}


def _line(sizes: dict[int, pd.DataFrame], at: float) -> pd.DataFrame:
    """Returns the least-squares line at log2(tokens) = `at`, of every document and seed: a weighted sum of sizes."""
    x = np.log2(list(sizes))
    weights = 1 / len(x) + (at - x.mean()) * (x - x.mean()) / np.square(x - x.mean()).sum()
    return sum(weight * gain for weight, gain in zip(weights, sizes.values())).dropna(axis=1)
