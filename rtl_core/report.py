"""README's table and figure and results/README.md, generated from the committed records."""

import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rtl_core import figures
from rtl_core.analysis import awareness, generation, limits, probes
from rtl_core.analysis.curves import size_curve, size_trend
from rtl_core.analysis.intrinsic import correlations, summary
from rtl_core.analysis.overview import overview
from rtl_core.analysis.significance import HEADLINES, slice_effects, smallest_effect
from rtl_core.catalogue import table_of
from rtl_core.comparison import compare
from rtl_core.config import SCORE_CONTEXTS
from rtl_core.findings import collect_findings, load_findings
from rtl_core.results import Results, collect, load_results
from rtl_core.storage import StudyError, atomic, project_root, results_dir
from rtl_core.studies import CUT_SHORT, NAMED, PUBLISHED, STUDY_SIZES, StudySize
from rtl_core.tables import (
    captured_rows,
    control_rows,
    markdown_rows,
    markdown_table,
    overview_rows,
    source_rows,
)

# README.md shows what answers the main question; results/README.md also what these studies ask.
MAIN = ("laptop", "tasks")
QUESTIONS = {
    "objective": "Is it the objective? One encoder, one text, as many updates; only the pre-training loss differs",
    "transfer": "How should a pre-trained table enter the model?",
    "welch": "Initialising, tying and freezing, at the input and at the output (Welch et al. 2020, table 1)",
    "global": "The preceding text of the document as an input, or its domain as a second task",
    "criteria": "Which criterion trains the language model?",
    "contexts": "Where should the state be reset in training?",
    "lm-sizes": "How much text of the language model's own makes pre-training needless?",
    "pretrain-sizes": "How much text should the pre-training read?",
}
# Sources that a figure shows where all are too many for it.
SHOWN = ("random", "word2vec-sg", "bilm", "domain-paragraph", "permuted:word2vec-sg")
OF_TABLES = (
    "Of the pre-trained table: purity, the share of a word's nearest that are of its domain; silhouette, how much "
    "nearer it is to these than to words of the nearest other domain; CKA and Procrustes, how alike and how far "
    "apart it and its fine-tuned form are; mean cosine, how far all words point one way; participation ratio and "
    "effective rank, how many dimensions it uses; the others, how well it solves what people did."
)


class Section(NamedTuple):
    """What one analysis adds to results/README.md: a figure of a table, and both in words."""

    name: str  # of its figure's file
    title: str
    table: Callable  # of the records of `studies`; its StudyError says what was not measured
    plot: Callable
    describe: Callable
    studies: tuple[str, ...] = MAIN
    text: Callable | None = None  # before the figure, of the same records

    def figure(self, table):
        """Returns the Axes of the figure and its description."""
        return self.plot(table), self.describe(table)


def _few_slices(results: Results):
    plain = [r for r in results.records if r.experiment["input_mode"] == "finetuned"]
    few = results.select(r.name for r in plain if r.experiment["source"] in SHOWN)
    return slice_effects(few, ("frequency", "position", "recurrence"))


def _few(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of the arms that are looked into, of a table of all: Holm's correction is for all."""
    plain = (table["input_mode"] == "finetuned") & (table["role"] != "bound")
    return table[plain & table["source"].isin([*SHOWN, "lsa"])]


def _changed_contexts(results: Results):
    found = _few(awareness.summary(results, _tables(results, "awareness")))
    return found[found["n"].between(5, 200)]


def _of_kind(shown: Callable, table: pd.DataFrame, kind: str):
    return shown(table[table["kind"] == kind], column="difference")


def _continued(results: Results):
    found = generation.summary(_tables(results, "generation"), results)
    return found[found["opening"] == found["opening"].max()]


def _captured(results: Results) -> str:
    models = results.select(r.name for r in results.records if r.experiment["model"] == "lstm")
    found = limits.captured(models, _tables(models, "awareness"))
    table = markdown_rows(captured_rows(found[found["n"].isin([5, 20])]))
    return (
        f"{table}\n\nshare beyond n words: what an arm loses when its context is cut to the last n, in parts of what "
        "the best model there can be loses, of the same tokens, with its 95 % interval. A model that makes little of "
        "its last n words has a large one too: read it beside how far its loss, a token of these, is above the best."
    )


def _tables(results: Results, *analyses: str):
    names = [record.name for record in results.records]
    return pd.concat([load_findings(name, names, every=False) for name in analyses], ignore_index=True)


OVERLAP = Section(
    "topicworld-overlap", "As domains share more of their words, when does a table pay?",
    limits.between, figures.plot_overlap, figures.describe_overlap, ("topicworld-overlap",),
)  # fmt: skip
SECTIONS = (
    Section("slices", "Where the gain sits: by frequency, by position in the document, in words new or repeated",
            _few_slices, figures.plot_slices, figures.describe_slices),
    Section("slices-all", "Every arm: the word that is predicted and the word that was read, by frequency",
            lambda results: slice_effects(results, ("frequency", "word before")),
            figures.plot_slice_table, figures.describe_slice_table),
    Section("purity", "Do a word's neighbours come from its domain?",
            lambda results: summary(_tables(results, "geometry"), results),
            partial(figures.plot_measure, measure="purity"), partial(figures.describe_measure, measure="purity")),
    Section("correlations", "Does anything that is measured of a table foretell the gain?",
            lambda results: correlations(_tables(results, "geometry", "intrinsic"), results),
            figures.plot_correlations, figures.describe_correlations,
            text=lambda results: OF_TABLES),
    Section("awareness", "Is it aware? What is lost when the context is cut",
            _changed_contexts, partial(_of_kind, figures.plot_awareness, kind=awareness.CUT),
            partial(_of_kind, figures.describe_awareness, kind=awareness.CUT)),
    Section("transplanted", "And when the text before the last words is another document's",
            _changed_contexts, partial(_of_kind, figures.plot_awareness, kind=awareness.FOREIGN),
            partial(_of_kind, figures.describe_awareness, kind=awareness.FOREIGN)),
    Section("probes", "Does the model's state say what the document is about?",
            lambda results: _few(probes.summary(results, _tables(results, "probes"))),
            figures.plot_probes, figures.describe_probes),
    Section("generation", "Does a text that the model writes stay in the domain of its opening?",
            _continued, lambda table: figures.plot_generation(table)[0], figures.describe_generation),
    Section("topicworld", "A language with known limits: how near does each arm come?",
            limits.between, figures.plot_limits, figures.describe_limits, ("topicworld",), text=_captured),
    OVERLAP,
)  # fmt: skip
BEGIN, END = "<!-- generated by `rtl report --write`: begin -->", "<!-- generated: end -->"
FIGURE = "figures/perplexity.svg"


def generated() -> dict[str, bytes]:
    """Returns what every generated file must hold, by its path below the project's root.

    Raises: StudyError when README.md has lost its markers.
    """
    results = load_results("reference")
    main = results.of(*MAIN)
    readme = (project_root() / "README.md").read_text(encoding="utf-8")
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise StudyError(f"README.md must hold each of these lines once: {BEGIN} and {END}.")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    sections, drawn, captions = [_overview(main)], {}, {}
    for name, text, draw in _parts(results):
        if draw is not None:
            drawn[f"figures/{name}.svg"], captions[name] = _drawn(draw)
            text += f"\n{_shown(f'../figures/{name}.svg', captions[name])}\n"
        sections.append(text)
    block = f"{BEGIN}\n{markdown_table(compare(main))}\n{_shown(FIGURE, captions['perplexity'])}\n{END}"
    return {
        "README.md": f"{before}{block}{after}".encode(),
        "docs/sources.md": _sources_page(results).encode(),
        "results/README.md": _results_page(results, "\n".join(sections)).encode(),
        **drawn,
    }


def study_figures() -> dict[str, Callable]:
    """Returns every figure of the committed records by name, as a function that draws it: Axes and description."""
    return {name: draw for name, _, draw in _parts(load_results("reference")) if draw is not None}


def _parts(results: Results) -> list[tuple[str, str, Callable | None]]:
    """Returns what results/README.md shows: a figure's name, the text before it, what draws it (None: no figure)."""
    main = results.of(*MAIN)
    table = compare(main)
    parts = [("perplexity", f"## Perplexities\n\n{markdown_table(table)}", partial(_perplexities, table))]
    made = cache(lambda part, studies: part(results.of(*studies)))  # two sections show parts of one table
    parts += [_found(section, made) for section in SECTIONS]
    parts += [_answer(results, name) for name in QUESTIONS if _is_there(results, name)]
    return [*parts, _named_runs(results)]


def _overview(results: Results) -> str:
    """Returns the first section: every arm in one row, with what stands in its columns and what is missing."""
    table = overview(results)
    missing = "".join(f" {name}: {why}." for name, why in table.attrs["missing"].items())
    least = smallest_effect(table)
    return (
        f"## Every arm at a glance\n\n{markdown_rows(overview_rows(table, HEADLINES))}\n\n"
        "Changes are per cent of the baseline's perplexity (context document) over all tokens, over words that the "
        "language model's own text has fewer than ten times, over content words, and over tokens with 200 or more of "
        "their document before them. p: of no effect, by Holm's correction for the number of arms. probe: how often "
        "a linear probe of the model's state after 200 words names the domain of the document; purity: the share of "
        "a word's nearest neighbours in the source's table that are of its domain; extra text: running tokens beyond "
        "the language model's own; cost: seconds of pre-training + training, one thread. A dash: not measured."
        f"{missing}\n\nThe smallest effect that this design ({least['n_seeds']} seeds, {least['n_documents']} "
        f"documents) would have shown with a power of {least['power']:.0%}: {least['smallest_nats']:.3f} nats, "
        f"{-least['smallest_percent']:.1f} % of perplexity.\n"
    )


def _found(section: Section, made: Callable) -> tuple[str, str, Callable | None]:
    try:
        table = made(section.table, section.studies)
    except StudyError as error:  # nothing was measured
        return section.name, f"## {section.title}\n\nNot shown: {error}\n", None
    text = f"## {section.title}\n"
    if section.text:
        try:
            text += f"\n{made(section.text, section.studies)}\n"
        except StudyError as error:
            text += f"\nNot shown: {error}\n"
    return section.name, text, partial(section.figure, table)


def _perplexities(table):
    return figures.plot_perplexity(table), figures.describe_perplexity(table)


def study_figure(study: StudySize, results: Results, table):
    """Returns the Axes of a study and their description: of its arms, or of their effect as text grows."""
    if not study.along:
        return _perplexities(table)
    if study.along == "corpus":
        return OVERLAP.figure(OVERLAP.table(results))
    curve, trend = size_curve(results, study.along), size_trend(results, study.along)
    return figures.plot_size_curve(curve), figures.describe_size_curve(curve, trend)


def _is_there(results: Results, name: str) -> bool:
    """Returns whether a further study has records of its own."""
    own, main = results.of(name).records, results.of(*MAIN).records
    return bool({record.name for record in own} - {record.name for record in main})


def _answer(results: Results, name: str) -> tuple[str, str, Callable]:
    study, found = STUDY_SIZES[name], results.of(name)
    table = compare(found, across=study.across, leaky=study.leaky)
    text = f"The study `{name}` (`make study SIZE={name}`).\n\n{markdown_table(table)}"
    return name, f"## {QUESTIONS[name]}\n\n{text}", partial(study_figure, study, found, table)


def _shown(path: str, caption: str) -> str:
    """Returns a figure in Markdown, its caption also its alternative text."""
    return f"![{caption}]({path})\n\n*{caption}*"


def _named_runs(results: Results) -> tuple[str, str, Callable | None]:
    """Returns the section of the named experiments: what each reached, and how CUT_SHORT was trained."""
    runs = [(name, r) for name in NAMED for r in results.of(name).records if r.status == "done"]
    rows = [
        {"experiment": name, "corpus": r.experiment["corpus"], "published": PUBLISHED.get(name)}
        | {f"test perplexity ({c})": f"{r.scores[f'test_perplexity_{c}']:.1f}" for c in SCORE_CONTEXTS}
        | {"epochs": len(r.history), "training (min)": f"{r.training_seconds / 60:.1f}"}
        for name, r in runs
    ]
    text = f"## Named experiments\n\n`rtl run NAME`.\n\n{markdown_rows(rows)}\n" if rows else ""
    history = next((r.history for name, r in runs if name == CUT_SHORT), None)
    if history is None:
        return "", text, None
    text += f"\nHow `{CUT_SHORT}` was trained:\n"
    return f"{CUT_SHORT}-training", text, partial(_training, history)


def _training(history: list[dict]):
    return figures.plot_history(history), figures.describe_history(history)


def _results_page(results: Results, text: str) -> str:
    """Returns results/README.md: where records come from, the table, the pre-training tasks' own scores."""
    scores = {}
    for record in results.of(*MAIN).records:
        if record.experiment["source"] != table_of(record.experiment["source"]):
            continue
        for name, value in record.pretrained.get("scores", {}).items():
            scores.setdefault(record.experiment["source"], {}).setdefault(name, []).append(value)
    lines = [
        f"- `{source}`: "
        + ", ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in of.items())
        + " (mean of seeds)"
        for source, of in scores.items()
    ]
    made = sorted({r.environment["commit"][:10] for r in results.records})
    return (
        "# Results\n\n"
        "This page is generated from the records in `reference/` by `rtl report --write`; a test fails when it "
        "is stale. `reference/` holds one JSON for each finished run of `make study SIZE=laptop`, of SIZE=tasks (the "
        "sources that need labelled files), of the further studies below, and of topicworld; the sums of their token "
        "ledgers by document, and what `rtl analyse` found in their models; your own runs go to `local/`, which git "
        "ignores. What we find, in plain sentences, is in [README](../README.md#what-we-find); terms are in the "
        "[glossary](../docs/glossary.md).\n\n"
        f"{text}\n## What the pre-training tasks reached on their own test text\n\n"
        + "\n".join(lines)
        + f"\n\nMade by commit {', '.join(made)}.\n"
    )


def _sources_page(results: Results) -> str:
    """Returns docs/sources.md: every source and control, from the catalogue."""
    return (
        "# Sources of word embeddings\n\n"
        "Generated from rtl_core/catalogue.py by `rtl report --write`; a test fails when it is stale. `rtl sources` "
        "prints the same. Seconds: pre-training of one table in the committed records (docstrings, 128 dimensions, "
        "one thread); a dash where no record says.\n\n"
        f"{markdown_rows(source_rows(results))}\n\n"
        "`A+B` joins two sources side by side, each at the same size, and reduces them by PCA to the dimension that "
        "is asked for.\n\n## Controls\nA control is a source too, with a source X behind the colon; `untrained:` "
        "takes the sources that have an encoder, `shuffled-labels:` those that have labels:\n\n"
        f"{markdown_rows(control_rows())}\n\n"
        "`pretrain_on` says which text the pre-training reads: `corpus` (all training text of the corpus), "
        "`lm-split` (the language model's own training text only), or another corpus by name. `pretrain_tokens` says "
        "how much of it: a seeded subset, the language model's own documents first.\n\n"
        "`code:PATH` is a source of your own: a Python file with a function `pretrain(corpus, vocabulary, config)`, "
        "which is given no test text; [notebook 13](../notebooks/13_your_own_corpus.ipynb) writes one.\n"
    )


def _drawn(draw: Callable) -> tuple[bytes, str]:
    """Returns a figure as SVG and its description."""
    import matplotlib.pyplot as plt

    with tempfile.TemporaryDirectory() as folder, figures.style():
        path = Path(folder) / "figure.svg"
        ax, words = draw()
        figures.save_figure(ax, path)
        plt.close(ax.figure)  # one of many
        return path.read_bytes(), words


def write() -> list[Path]:
    """Writes every generated file; returns those that changed."""
    changed = _stale(generated())
    for path, content in changed.items():
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    return list(changed)


def stale_files() -> list[Path]:
    """Returns the generated files that differ from what the committed records say."""
    return list(_stale(generated()))


def _stale(contents: dict[str, bytes]) -> dict[Path, bytes]:
    paths = {project_root() / name: content for name, content in contents.items()}
    return {path: new for path, new in paths.items() if not path.exists() or path.read_bytes() != new}


def promote(results: Results) -> Path:
    """Makes `results` the reference records, in place of the old ones; returns their folder.

    Raises: StudyError when the studies that README.md shows are not among them; the old ones stay.
    """
    if not results.of(*MAIN).records:
        raise StudyError(
            f"README.md shows the studies {' and '.join(MAIN)}, which these records are not of; promote them too: "
            f"rtl report --promote {' '.join(MAIN)} …"
        )
    compare(results.of(*MAIN))
    folder, new = results_dir() / "reference", results_dir() / "reference.new"
    shutil.rmtree(new, ignore_errors=True)
    collect(results, new)  # whole, before the old ones go
    collect_findings([record.name for record in results.records], new)
    shutil.rmtree(folder, ignore_errors=True)
    return new.rename(folder)
