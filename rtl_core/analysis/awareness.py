"""How much of what stands before a word a language model uses: its loss when that text is cut, shuffled, exchanged.

Every loss is of the same words, each far enough into its document that the longest context of the curve is there.
A context is read from `<eos>` and a zero state, as a document is scored: a model has met no other beginning, and any
other would charge it for the surprise. What is cut so looks like a document that begins there.
Source: Khandelwal et al. 2018, sections 3 to 5, where a cut text begins without a mark.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rtl_core.comparison import compare, effect, holm, renamed
from rtl_core.config import Experiment, derive_seed
from rtl_core.corpora.vocabulary import Encoded
from rtl_core.findings import model_dir
from rtl_core.language_model import LSTMLanguageModel
from rtl_core.results import Record, Results
from rtl_core.scoring import states
from rtl_core.storage import StudyError
from rtl_core.tables import GROUP, labels
from rtl_core.texts import Text, text_of
from rtl_core.transfer import load_model

LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # tokens that a cut context keeps
INTACT = (20, 50, 200)  # last tokens that stay as they are where those beyond are shuffled or exchanged
FULL, CUT, SHUFFLED, FOREIGN = "full", "truncated", "shuffled", "transplanted"
PER_DOCUMENT = 16  # words whose loss is taken
FEWEST = 30  # documents that must be longer than the longest context, or half of a smaller text's
LANES, WINDOW = 64, 256  # contexts side by side and tokens at a time; change speed, never a number


def loaded(record: Record) -> tuple[LSTMLanguageModel, Text]:
    """Returns the trained model behind a record, and the text of its experiment.

    Raises: StudyError when the record is no plain language model, when its model is gone, or its corpus has changed.
    """
    experiment = Experiment.from_dict(record.experiment)
    if record.status != "done" or experiment.model != "lstm":
        raise StudyError(
            f"{record.name} ({experiment.model}, {record.status}) has no recurrent state to look into; leave it out."
        )
    model, vocabulary, _ = load_model(model_dir(record.name))
    if model.built_from["n_features"]:
        raise StudyError(
            f"{record.name} is told of the preceding text by features, which would still say what a changed context "
            "no longer does; leave it out."
        )
    text = text_of(experiment)
    if text.vocabulary.words != vocabulary.words:
        raise StudyError(
            f"the model of {record.name} knows {len(vocabulary):,} words of another text than corpus "
            f"{experiment.corpus} has today; delete the record {record.name}.json and run its study again."
        )
    return model, text


def longest(lengths: np.ndarray, choices: tuple[int, ...], fewest: int) -> int:
    """Returns the largest of `choices` that enough documents are longer than: `fewest`, or half of a smaller text's.

    Shapes: lengths (n_documents,), in tokens. Raises: StudyError when even the smallest is too large.
    """
    needed = min(fewest, math.ceil(len(lengths) / 2))
    fitting = [n for n in choices if (lengths > n).sum() >= max(needed, 2)]
    if not fitting:
        raise StudyError(
            f"a context of {choices[0]} tokens needs at least {max(needed, 2)} longer documents and found "
            f"{(lengths > choices[0]).sum()} of {len(lengths)}; use more test text, or longer documents."
        )
    return max(fitting)


def chosen_targets(text: Encoded, n: int, rng: np.random.Generator) -> np.ndarray:
    """Returns where the words stand whose loss is taken: up to PER_DOCUMENT a document, n tokens before each."""
    bounds = zip(text.document_starts + n, text.document_starts[1:])
    free = (np.arange(first, end) for first, end in bounds if first < end)
    return np.concatenate([np.sort(rng.permutation(places)[:PER_DOCUMENT]) for places in free])


def drawn_targets(text: Encoded, seed: int) -> tuple[np.ndarray, int, np.random.Generator]:
    """Returns a seed's targets, the longest context of the curve, and the generator for what changes contexts."""
    rng = np.random.default_rng(derive_seed(seed, "awareness"))
    most = longest(np.diff(text.document_starts), LENGTHS, FEWEST)
    return chosen_targets(text, most, rng), most, rng


def truncated(text: Encoded, targets: np.ndarray, n: int) -> list[np.ndarray]:
    """Returns for each target itself behind the `n` tokens before it, or those that its document has."""
    starts = text.document_starts[text.document_of(targets)]
    return [text.tokens[max(start, t - n) : t + 1] for start, t in zip(starts, targets)]


def shuffled(text: Encoded, targets: np.ndarray, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns for each target its whole context, in which all but the last `n` tokens stand in any order."""
    starts = text.document_starts[text.document_of(targets)]
    words = text.tokens
    return [
        np.append(rng.permutation(words[a : t - n]), words[t - n : t + 1]) for a, t in zip(starts, targets)
    ]


def transplanted(text: Encoded, targets: np.ndarray, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns for each target the last `n` tokens behind as many of another document as stood before them.

    The other document is one of those with targets, of another domain where there is one; it may be shorter than
    what it replaces, but is as long as the longest context.
    """
    here, words, starts = text.document_of(targets), text.tokens, text.document_starts
    hosts = np.unique(here)
    # a document without a domain is of none that any other has
    domain = np.where(text.domains >= 0, text.domains, -1 - np.arange(len(text.domains)))
    found = []
    for document, target in zip(here, targets):
        others = hosts[domain[hosts] != domain[document]]
        other = rng.choice(others if len(others) else hosts[hosts != document])
        end = min(starts[other] + target - n - starts[document], starts[other + 1])
        found.append(np.append(words[starts[other] : end], words[target - n : target + 1]))
    return found


def as_documents(sequences: Sequence[np.ndarray]) -> Encoded:
    """Returns sequences of word ids as a text, a document each, of no domain."""
    starts = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    nowhere, names = np.full(len(sequences), -1), tuple(map(str, range(len(sequences))))
    return Encoded(np.concatenate(sequences), starts, starts, starts, nowhere, names)


@torch.no_grad()
def states_at(model: LSTMLanguageModel, text: Encoded, places: np.ndarray) -> torch.Tensor:
    """Returns the states that predict the tokens at these places (context document). Shapes: (n,) -> (n, H)."""
    row = np.full(len(text), -1)
    row[places] = np.arange(len(places))
    rows, found = [], []
    for hidden, _, positions in states(model, text, "document", LANES, WINDOW):
        of_these = row[positions]
        rows.append(of_these[of_these >= 0])
        found.append(hidden[torch.from_numpy(of_these >= 0)])
    return torch.cat(found)[torch.from_numpy(np.argsort(np.concatenate(rows)))]


@torch.no_grad()
def last_nats(model: LSTMLanguageModel, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Returns -log p of the last token of each sequence of word ids behind the others. Shape (n,), float32.

    A sequence is read from `<eos>` and a zero state. The softmax is only taken once a sequence.
    """
    text = as_documents(sequences)
    ends = text.document_starts[1:] - 1
    hidden = states_at(model, text, ends)
    last = torch.from_numpy(text.tokens[ends].astype(np.int64)).to(hidden.device)
    return model.output.nats(hidden, last).cpu().numpy()


def contexts(text: Encoded, targets: np.ndarray, most: int, rng: np.random.Generator):
    """Yields (kind, n, sequences): what the targets are predicted from, first all that there is."""
    yield FULL, 0, truncated(text, targets, len(text))
    for n in (n for n in LENGTHS if n <= most):
        yield CUT, n, truncated(text, targets, n)
    for n in (n for n in INTACT if n < most):
        yield SHUFFLED, n, shuffled(text, targets, n, rng)
        yield FOREIGN, n, transplanted(text, targets, n, rng)


def losses(model: LSTMLanguageModel, text: Encoded, seed: int) -> pd.DataFrame:
    """Returns a model's loss of the same words in every context, summed by document: see `measure`."""
    targets, most, rng = drawn_targets(text, seed)
    names = np.array(text.document_ids, dtype=object)[text.document_of(targets)]
    parts = []
    for kind, n, sequences in contexts(text, targets, most, rng):
        nats = pd.Series(last_nats(model, sequences).astype(np.float64)).groupby(names)
        part = nats.agg(tokens="size", nats="sum").rename_axis("document").reset_index()
        parts.append(part.assign(kind=kind, n=n))
    frame = pd.concat(parts, ignore_index=True)[["kind", "n", "document", "tokens", "nats"]]
    return frame.astype(
        {"document": "str", "kind": "str", "n": "int32", "tokens": "int32", "nats": "float32"}
    )


def measure(record: Record) -> pd.DataFrame:
    """Returns the loss of the model behind a record in every context: kind, n, document, tokens, nats.

    `n` is what a cut context keeps (truncated), or the last tokens that stay where those beyond are changed
    (shuffled, transplanted); 0 for the full context.
    """
    model, text = loaded(record)
    return losses(model, text.test, record.experiment["seed"])


def summary(results: Results, findings: pd.DataFrame, *, lost: bool = True, **options) -> pd.DataFrame:
    """Returns what every arm loses with a changed context, in nats a token: a row an arm, kind and n; see `by_arm`.

    `value` is what is lost against the arm's own full context, `difference` how much more that is than what the
    baseline loses: above zero the arm made more of what was taken away. `lost` False: both are of the losses
    themselves, so that `difference` compares arm and baseline in the same context. `findings`: of `load_findings`.
    """
    values = findings.astype({"nats": "float64"}).rename(columns={"nats": "total", "tokens": "count"})
    if lost:
        full = values[values["kind"] == FULL].set_index(["record", "document"])["total"].rename("full")
        values = values[values["kind"] != FULL].join(full, on=["record", "document"])
        values["total"] -= values["full"]
    return by_arm(results, values, ["kind", "n"], **options)


def by_arm(results: Results, values: pd.DataFrame, keys: list[str], **options) -> pd.DataFrame:
    """Returns the mean of a value in every arm and how far it is from the baseline's, for each of `keys`.

    Columns: arm, role, source, input_mode, n_seeds, the keys, documents, count (of what the mean is over), value and
    its 95 % interval low and high; difference, difference_low, difference_high, p_value and p_holm, corrected for all
    arms and keys that share the first key. Intervals are those of `comparison.effect`, the arms in the order of
    `compare`, to which `options` go; arms that were not measured are left out, and groups whose baseline was not.
    Shapes: values has a row for each record, document and key, with columns total and count.
    Raises: StudyError without a baseline, and for more than one group of comparison.
    """
    table = compare(results, **options)
    measured, rows = set(values["record"]), []
    known = [bool(names) and set(names.values()) <= measured for names in table["records"]]
    table = table.assign(arm=labels(table))[known]
    check_one_group(table[table["role"] == "baseline"])
    for _, group in table.groupby(GROUP, sort=False, dropna=False):
        base = group.loc[group["role"] == "baseline", "records"]
        own = values[values["record"].isin({name for names in group["records"] for name in names.values()})]
        for key, part in own.groupby(keys, sort=False) if len(base) else ():
            rows += [dict(zip(keys, key)) | row for row in _against(group, base.iloc[0], part)]
    if not rows:
        raise StudyError("no baseline was measured; measure it too, with `rtl analyse`.")
    frame = pd.DataFrame(rows)
    tested = frame["p_value"].where(frame["role"] == "arm")
    return frame.assign(p_holm=tested.groupby(frame[keys[0]]).transform(holm))


def check_one_group(table: pd.DataFrame) -> None:
    """Raises: StudyError when these rows of `compare` are of several groups, which are not compared."""
    groups = table[GROUP].drop_duplicates()
    if len(groups) > 1:
        rows = groups.astype(object).fillna("all").to_numpy()
        found = "; ".join(", ".join(str(part) for part in row if part) for row in rows)
        raise StudyError(
            f"one group of comparison is needed, but the records are of {len(groups)} (corpus, LM tokens, "
            f"settings: {found}); select the records of one study."
        )


def _against(group: pd.DataFrame, base: dict[int, str], values: pd.DataFrame):
    """Yields the row of each arm of a group, for one key. `base`: seed -> record."""
    sums = values.pivot(index="document", columns="record", values=["total", "count"])
    for _, arm in group.iterrows():
        own = arm["records"]
        ours, count = sums["total"][list(own.values())].to_numpy(), sums["count"][base[min(base)]].to_numpy()
        shared = [seed for seed in own if seed in base and arm["role"] != "baseline"]
        alone = effect(ours, np.zeros_like(ours), count)
        apart = effect(
            *(sums["total"][[of[seed] for seed in shared]].to_numpy() for of in (own, base)), count
        )
        yield {name: arm[name] for name in ("arm", "role", "source", "input_mode", "n_seeds")} | {
            "documents": len(count), "count": int(count.sum()),
            **renamed(alone, "value"), **renamed(apart, "difference"), "p_value": apart["p_value"],
        }  # fmt: skip
