"""The exact limits of topicworld: the loss of the best model there can be, given what it knows.

Four models, which all know the language (`Law`), but not the same of a document: its type (`known`); the whole text
before a word, from which they infer the type (`inferred`); only the last n words before it (`last_n`); nothing at all
(`unigram`). The third knows where in its document it stands: before the words it sees, its belief is the distribution
of classes at that place, and every type is equally likely; where the document has no more than n words before the
one to predict, it is the second. In expectation known <= inferred <= last_n, falling in n, <= unigram.
"""

import math

import numpy as np
import pandas as pd

from rtl_core.analysis.awareness import CUT, FULL, drawn_targets
from rtl_core.comparison import compare, effect, renamed
from rtl_core.config import Experiment, identity
from rtl_core.corpora.topicworld import Law, World, document_types, law_of
from rtl_core.corpora.vocabulary import UNK_ID, Encoded, Vocabulary
from rtl_core.findings import VERSIONS, findings_of
from rtl_core.results import Record, Results, read_parquet
from rtl_core.scoring import ledger_of
from rtl_core.storage import StudyError, atomic, cache_dir
from rtl_core.tables import labels
from rtl_core.texts import text_of

N_WORDS = (1, 2, 5, 10, 20, 50, 100)
CHUNK = 256  # tokens whose preceding words are read at a time; changes speed, never a number
FEWEST_WORDS = 5  # of a cut context
LEAST = 0.005  # nats a token that there must be to capture, or a share of them says nothing
ALL, OF_AWARENESS = "all", "awareness"  # words of a test text: every one, and those that `awareness` measures


def law_over(law: Law, vocabulary: Vocabulary) -> Law:
    """Returns the law over the words of a vocabulary, in its order: words that it lacks are uttered as `<unk>`.

    So the limits are of the same distribution over words that a language model with this vocabulary predicts.
    """
    ids = np.array([vocabulary.ids.get(word, UNK_ID) for word in law.words])
    emissions = np.zeros((*law.emissions.shape[:2], len(vocabulary)))
    np.add.at(emissions, (slice(None), slice(None), ids), law.emissions)
    return Law(vocabulary.words, law.types, law.transitions, emissions)


def preceded_nats(law: Law, text: Encoded, prior: np.ndarray) -> np.ndarray:
    """Returns -log p of every token given all the text before it in its document, by the forward algorithm.

    Shapes: prior (n_documents, K), what is believed of the type before the first word; returns (N,).
    Raises: StudyError when the law cannot utter the text.
    """
    lengths = np.diff(text.document_starts)
    order = np.argsort(-lengths, kind="stable")  # documents that go on stay in front
    starts, uttered, nats = text.document_starts[:-1][order], _by_word(law), np.empty(len(text))
    belief = np.zeros((len(order), *law.emissions.shape[:2]))  # (n, K, C), of the class of the word before
    belief[:, :, 0] = prior[order]
    for t in range(lengths.max()):
        at = starts[: np.count_nonzero(lengths > t)] + t
        belief = belief[: len(at)] @ law.transitions * uttered[text.tokens[at]]
        probability = belief.sum((1, 2))
        if not probability.all():
            raise StudyError(
                f"the text holds a word at token {at[probability == 0][0]:,} that this world cannot utter there; "
                "take the world that the text is from."
            )
        nats[at] = -np.log(probability)
        belief /= probability[:, None, None]
    return nats


def _by_word(law: Law) -> np.ndarray:
    return np.ascontiguousarray(law.emissions.transpose(2, 0, 1))  # (V, K, C)


def joint_log_probabilities(law: Law, text: Encoded, sizes: set[int]) -> dict[int, np.ndarray]:
    """Returns for each size j the log probability of the last j tokens up to each one, at their place in a document.

    By the backward algorithm, which serves all sizes in one pass. Shapes: each (N,), NaN where a document has fewer.
    """
    uttered, n_types = _by_word(law), len(law.types)
    place = np.arange(len(text)) - text.document_starts[text.document_of(np.arange(len(text)))]
    before = np.eye(len(law.transitions))[:1]  # class of the word before each place
    for _ in range(place.max()):
        before = np.concatenate([before, before[-1:] @ law.transitions])
    found = {j: np.full(len(text), np.nan) for j in sizes}
    for start in range(0, len(text), CHUNK):
        at = np.arange(start, min(start + CHUNK, len(text)))
        future, scale = np.ones((len(at), *uttered.shape[1:])), np.zeros(len(at))  # of the words from here on
        for j in range(1, max(sizes) + 1):
            if not (there := place[at] >= j - 1).all():
                at, future, scale = at[there], future[there], scale[there]
            if not len(at):
                break
            future = (future * uttered[text.tokens[at - j + 1]]) @ law.transitions.T
            largest = future.max((1, 2))
            future /= largest[:, None, None]
            scale += np.log(largest)
            if j in sizes:
                mean = np.einsum("nkc,nc->n", future, before[place[at] - j + 1]) / n_types
                found[j][at] = scale + np.log(mean)
    return found


def last_words_nats(law: Law, text: Encoded, n_words: tuple[int, ...], inferred: np.ndarray) -> dict:
    """Returns -log p of every token given the last n tokens of its document, by n. Shapes: inferred, each (N,).

    `inferred`: given all of them, which is the same where there are no more than n.
    """
    joint = joint_log_probabilities(law, text, {j for n in n_words for j in (n, n + 1)} - {0})
    joint[0] = np.zeros(len(text))
    nats = {}
    for n in n_words:
        given = np.append(0.0, joint[n][:-1])  # the log probability of the last n tokens before each one
        nats[n] = np.where(np.isnan(joint[n + 1]), inferred, given - joint[n + 1])
    return nats


def limits(e: Experiment, n_words: tuple[int, ...] = N_WORDS) -> pd.DataFrame:
    """Returns the limits on the test text of an experiment: a ledger, as of a model, with nats_LIMIT of every token.

    The columns: nats_known, nats_inferred, nats_last_N for each N, nats_unigram; kept in the cache.
    Raises: StudyError when the corpus is not topicworld.
    """
    world, text = World.named(e.corpus), text_of(e)
    key = identity(
        text.corpus.fingerprint, text.vocabulary.fingerprint, e.test_tokens, n_words, VERSIONS["limits"]
    )
    path = cache_dir() / "limits" / f"{key[:16]}.parquet"
    if path.exists():
        return read_parquet(path)
    law = law_over(law_of(world), text.vocabulary)
    types = document_types(world)[[int(name.partition("-")[2]) for name in text.test.document_ids]]
    n_types = len(law.types)
    inferred = preceded_nats(law, text.test, np.full((len(types), n_types), 1 / n_types))
    nats = {"known": preceded_nats(law, text.test, np.eye(n_types)[types]), "inferred": inferred}
    nats |= {f"last_{n}": v for n, v in last_words_nats(law, text.test, n_words, inferred).items()}
    nats["unigram"] = -np.log((law.shares @ law.emissions.mean(0))[text.test.tokens])
    ledger = ledger_of(nats, text.test)
    with atomic(path) as temporary:
        ledger.to_parquet(temporary, compression="zstd", index=False)
    return ledger


def between(results: Results) -> pd.DataFrame:
    """Returns limits and arms of topicworld studies on one scale: corpus, overlap, kind, name, perplexity.

    kind: limit, baseline or arm. Of models beside it: n_seeds, seeds (perplexities); the effect against the baseline
    and what is still above the limit `inferred`, in per cent with 95 % intervals (effect, effect_low, effect_high;
    above, above_low, above_high); closed, the part of the baseline's distance to `inferred`, in nats, that is gone.
    Raises: StudyError as `compare` does, and for a corpus other than topicworld.
    """
    parts = []
    for corpus, arms in _arms(results).groupby("corpus", sort=False):
        exact = _sums(_records(arms.iloc[0], results)[0], ALL)
        names, tokens = exact.columns.drop("tokens"), exact["tokens"].to_numpy()
        nats = results.documents.pivot(index="document", columns="record", values="nats_document")
        mean, best = exact.sum() / tokens.sum(), exact["inferred"].to_numpy()[:, None]
        base = math.log(arms.loc[arms["role"] == "baseline", "perplexity"].iloc[0])
        rows = [{"kind": "limit", "name": name, "perplexity": math.exp(mean[name])} for name in names]
        for _, row in arms.iterrows():
            ours = nats.loc[exact.index, list(row["records"].values())].to_numpy()
            above = effect(ours, np.broadcast_to(best, ours.shape), tokens)
            closed = (base - math.log(row["perplexity"])) / (base - mean["inferred"])
            own = {"kind": row["role"], "closed": closed, **row[["name", "perplexity", "n_seeds", "seeds"]]}
            rows.append(own | renamed(above, "above", "percent") | renamed(row, "effect", "percent"))
        parts.append(pd.DataFrame(rows).assign(corpus=corpus, overlap=World.named(corpus).overlap))
    return pd.concat(parts).sort_values("overlap", kind="stable", ignore_index=True)


def _arms(results: Results) -> pd.DataFrame:
    """Returns the rows of `compare` that are language models, each with its name."""
    table = compare(results)
    table["name"] = [label.replace(", fine-tuned", "") for label in labels(table)]
    return table[table["role"] != "bound"]


def _records(row, results: Results) -> list[Record]:
    return [record for record in results.records if record.name in row["records"].values()]


def captured(results: Results, findings: pd.DataFrame) -> pd.DataFrame:
    """Returns how much of the available global information each arm captures: corpus, name, n, share and interval.

    share: what an arm loses when its context is cut to n words, in parts of what the best model loses (`available`:
    `last_n` less `inferred`, in nats a token), over the same tokens, so that mistakes in grammar are not charged;
    share_low, share_high: its 95 % interval over documents and seeds. Less than LEAST is not worth a row.
    above_full and above_cut: how far the arm is above these two limits, in nats a token. The share is 1 + (above_cut
    - above_full) / available: an arm that makes little of its last n words has a large one, so that it ranks no arms
    by itself. `findings`: of awareness, by `load_findings`.
    """
    sums, rows = findings.pivot(index="document", columns=["record", "kind", "n"], values="nats"), []
    for _, row in _arms(results).iterrows():
        there = pd.concat({record.name: available(record) for record in _records(row, results)}, axis=1)
        part, tokens = sums.loc[there.index], there.xs("tokens", axis=1, level=1).sum().sum()
        full = part.xs((FULL, 0), axis=1, level=(1, 2))[there.columns.unique(0)]
        above = (full.sum().sum() - there.xs("inferred", axis=1, level=1).sum().sum()) / tokens
        for n in there.columns.unique(1).drop(["tokens", "inferred"]):
            best = there.xs(n, axis=1, level=1)  # (n_documents, n_seeds)
            mean = best.sum().sum() / tokens
            if mean < LEAST:
                continue
            lost = part.xs((CUT, n), axis=1, level=(1, 2))[best.columns] - full
            even = best.mean(
                axis=1
            )  # each seed has its own words, and its share is of what was there in them
            scaled = (lost * even.sum() / best.sum()).to_numpy()
            share = effect(scaled, np.zeros_like(scaled), even.to_numpy())
            own = {**row[["corpus", "name"]], "n": n, "available": mean, "above_full": above}
            own["above_cut"] = above + lost.sum().sum() / tokens - mean
            rows.append(own | renamed(share, "share"))
    return pd.DataFrame(rows)


def available(record: Record) -> pd.DataFrame:
    """Returns what the best model loses, by document, at the words whose loss `awareness` measures for a record.

    A column for each number of words that a context is cut to, in nats; `inferred`, the nats of the limit; tokens. A
    context of fewer than FEWEST_WORDS is left out: cut text begins as a document does, which misleads a model about
    the grammar of the next words.
    """
    at = _sums(record, OF_AWARENESS)
    lost = {n: at[f"last_{n}"] - at["inferred"] for n in N_WORDS if n >= FEWEST_WORDS}
    return pd.DataFrame(lost).dropna(axis=1).join(at[["inferred", "tokens"]])


def measure(record: Record) -> pd.DataFrame:
    """Returns the nats of each limit in each document of a record's test text: a finding, which needs no model.

    Columns: words (ALL, or those OF_AWARENESS), document, known, inferred, last_N, unigram, tokens. Of awareness's
    words, no context is cut to more than they have before them: NaN.
    Raises: StudyError when the corpus is not topicworld.
    """
    e = Experiment.from_dict(record.experiment)
    ledger = limits(e)
    nats = ledger.filter(like="nats_").astype("float64").rename(columns=lambda name: name[len("nats_") :])
    targets, most, _ = drawn_targets(text_of(e).test, e.seed)
    known = nats.drop(columns=[f"last_{n}" for n in N_WORDS if n > most])
    parts = []
    for words, table in ((ALL, nats), (OF_AWARENESS, known.iloc[targets])):
        groups = table.groupby(ledger["document"].astype("str"), sort=False)
        parts.append(groups.sum().assign(tokens=groups.size()).reset_index().assign(words=words))
    return pd.concat(parts, ignore_index=True).reindex(columns=["words", "document", *nats, "tokens"])


def _sums(record: Record, words: str) -> pd.DataFrame:
    """Returns a record's limits by document, as found before or found now."""
    there = findings_of("limits", [record.name]).get(record.name)
    table = measure(record) if there is None else there
    return (
        table[table["words"] == words]
        .set_index("document")
        .drop(columns=["words", "record"], errors="ignore")
    )
