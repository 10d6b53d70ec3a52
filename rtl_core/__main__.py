"""The command line: rtl data | sources | pretrain | run | study | analyse | score | report | doctor."""

import argparse
import json
import sys
import textwrap
from dataclasses import fields
from functools import partial
from pathlib import Path

from rtl_core.arguments import add_command, add_settings
from rtl_core.config import SCORE_CONTEXTS, Experiment, PretrainConfig
from rtl_core.findings import VERSIONS
from rtl_core.storage import StudyError, results_dir, say, unknown
from rtl_core.studies import NAMED, STUDY_SIZES, grid

GRIDS = (*STUDY_SIZES, *NAMED)
FEW_DOCUMENTS = 30  # below, a bootstrap over documents is no interval to rely on
DESCRIPTION = "Can word embeddings trained for other tasks improve a neural language model?"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 a check failed, 2 something to mend, 130 Ctrl-C."""
    arguments, rest = _parser().parse_known_args(argv)
    try:
        if rest and not rest[0].startswith("-"):
            raise StudyError(
                f"{rest[0]!r} is one argument too many; see rtl {arguments.name_of_command} --help."
            )
        if rest:
            raise unknown("option", rest[0].partition("=")[0], arguments.options)
        return arguments.command(arguments) or 0
    except StudyError as error:
        print(f"rtl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rtl: interrupted; finished parts are kept, run the same command to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rtl", description=DESCRIPTION)
    add = partial(add_command, parser.add_subparsers(required=True, metavar="COMMAND"))

    data = add("data", _data, "list, get or check the corpora")
    data.add_argument("action", choices=("list", "get", "check"))
    data.add_argument("name", nargs="?", help="a corpus (get: required; check: all at hand if left out)")

    add("sources", _sources, "list the sources of embeddings and their controls")

    pre = add("pretrain", _pretrain, "train (or load) one embedding table")
    pre.add_argument("source", help="word2vec-sg, domain-paragraph, permuted:word2vec-sg, file:PATH, …")
    pre.add_argument("--corpus", default="docstrings", help="corpus to train on (default: %(default)s)")
    pre.set_defaults(**PretrainConfig().to_dict())
    add_settings(pre, PretrainConfig, leave_out=("source",))
    pre.add_argument(
        "--neighbors", nargs="*", default=[], metavar="WORD", help="show these words' neighbours"
    )
    pre.add_argument("--output", type=Path, help="also write the table here, in word2vec's text format")

    _add_studies(add)
    score = add("score", _score, "score a text of your own with a trained model")
    score.add_argument("model", help="the name (or its beginning) of a record, or a model's folder")
    score.add_argument("file", type=Path, help="a UTF-8 text file; - for standard input")
    score.add_argument("--words", action="store_true", help="also show the nats of every token")

    report = add("report", _report, "print the table of finished runs (--json: one row a record)")
    report.add_argument(
        "study", nargs="*", metavar="STUDY", help="only of these (default: all): " + ", ".join(GRIDS)
    )
    report.add_argument("--results", help="local, reference or a folder (default: local if it holds a study)")
    report.add_argument("--write", action="store_true", help="write README's and results' generated parts")
    report.add_argument(
        "--promote", nargs="+", choices=GRIDS, help="make finished studies the reference, with their findings"
    )

    add("doctor", _doctor, "say what is here: versions, device, corpora, how long a study takes")
    return parser


def _add_studies(add) -> None:
    """Adds the commands that train language models and look into them."""
    one = add("run", _run, "train and score one language model, or a named experiment")
    one.add_argument("name", nargs="?", help=f"a named experiment: {', '.join(NAMED)}")
    add_settings(one, Experiment)

    study = add("study", _study, "run every arm of the study and print the table")
    study.add_argument(
        "--size", choices=tuple(STUDY_SIZES), default="quick", help="which study (default: quick)"
    )
    study.add_argument(
        "--seconds",
        type=float,
        help="of --size criteria: train every arm about this long (timed anew at each call), not for as many epochs",
    )
    study.add_argument("--workers", type=int, help="processes (default: one a core)")
    study.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler to run on instead")

    analyse = add("analyse", _analyse, "measure what the trained models of a study have learnt")
    analyse.add_argument("study", nargs="+", choices=GRIDS, metavar="STUDY", help=", ".join(GRIDS))
    analyse.add_argument(
        "--only", nargs="+", choices=tuple(VERSIONS), default=(), help="these (default: all)"
    )
    analyse.add_argument("--workers", type=int, help="processes (default: one a core)")


def _show(arguments, rows, text: str | None = None) -> None:
    """Prints rows as JSON if asked for, else as text or an aligned table."""
    import pandas as pd

    if arguments.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print(text if text is not None else pd.DataFrame(rows).to_string(index=False))


def _data(arguments) -> int:
    from rtl_core import corpora

    if arguments.action == "get":
        if not arguments.name:
            raise StudyError("say which corpus to get: rtl data get NAME; `rtl data list` names them.")
        print(corpora.get(arguments.name))
        return 0
    if arguments.action == "list":
        rows = corpora.corpora_table()
        width = max(len(row["name"]) for row in rows)
        _show(arguments, rows, "\n".join(f"{r['name']:{width}}  {r['kind']:8}  {r['where']}" for r in rows))
        return 0
    rows = corpora.check(arguments.name)
    _show(arguments, rows)
    return int(any(row["ok"] is False for row in rows))


def _sources(arguments) -> None:
    from rtl_core.results import load_results
    from rtl_core.tables import control_rows, source_rows

    try:
        rows = source_rows(load_results("reference"))
    except StudyError:  # costs are not known without records
        rows = source_rows()
    lines = [
        f"{r['source']:16} predicts {r['predicts']}; sees: {r['sees around a word']}; needs: {r['needs']} "
        f"({r['idea']})" + (f"; about {r['seconds a table']} s" if r["seconds a table"] else "")
        for r in rows
    ]
    lines += [f"{r['control']:16} control: {r['what it is']}" for r in control_rows()]
    _show(arguments, rows + control_rows(), "\n".join(lines))


def _pretrain(arguments) -> None:
    from rtl_core import Vocabulary, load_corpus, pretrain

    # before a corpus is read for nothing
    settings = {f.name: getattr(arguments, f.name) for f in fields(PretrainConfig)}
    config = PretrainConfig(**settings)
    corpus = load_corpus(arguments.corpus)
    vocabulary = Vocabulary.build(corpus.split("train"), 10_000)
    made = pretrain(config, corpus, vocabulary)
    vectors, coverage = made.embeddings, made.embeddings.coverage(vocabulary)
    near = {word: vectors.neighbors(word, k=8) for word in arguments.neighbors}
    if arguments.output:
        vectors.to_word2vec(arguments.output)
    rows = {
        "words": len(vectors),
        "dim": vectors.dim,
        "coverage": coverage,
        "provenance": vectors.provenance,
        "scores": made.scores,
    }
    lines = [f"{len(vectors):,} words × {vectors.dim}", *(f"{k}: {v:.4g}" for k, v in made.scores.items())]
    lines += [
        f"covers {coverage['types']:,} of {len(vocabulary) - 2:,} types ({100 * coverage['type_share']:.1f} %), "
        f"{100 * coverage['token_share']:.1f} % of their running tokens; most frequent without a vector: "
        + (", ".join(coverage["missing"]) or "none")
    ]
    lines += [f"{word}: " + ", ".join(f"{w} {c:.2f}" for w, c in found) for word, found in near.items()]
    _show(arguments, rows | ({"neighbors": near} if near else {}), "\n".join(lines))


def _run(arguments) -> int:
    from rtl_core import run

    given = {f.name: getattr(arguments, f.name) for f in fields(Experiment) if hasattr(arguments, f.name)}
    base = Experiment()
    if arguments.name:
        if arguments.name in STUDY_SIZES:
            raise StudyError(f"{arguments.name} is a study size: rtl study --size {arguments.name}")
        base = grid(arguments.name)[0]
    e = base.replace(**given)
    settled = e.settled()
    for name in (name for name in given if getattr(settled, name) != getattr(e, name)):
        print(f"{name} changes nothing here and is left out: see rtl run --help", file=sys.stderr)
    record = run(e)
    row = {"record": record.name, "status": record.status, **record.scores, "converged": record.converged}
    row |= {"training_seconds": record.training_seconds, "epochs": len(record.history)}
    told = ("lm_tokens", "test_tokens", "test_documents", "left_out")  # the last: near-duplicate paragraphs
    row |= {name: record.text[name] for name in told if name in record.text}
    if record.status == "done" and record.text["test_documents"] < FEW_DOCUMENTS:
        more = "give more, or cut long ones into several" if e.test_tokens is None else "raise --test-tokens"
        say(
            f"too few documents of test text to tell arms apart: {record.text['test_documents']}. Intervals "
            f"are over documents and seeds; {more}"
        )
    lines = [f"{k:28} {v:.2f}" if isinstance(v, float) else f"{k:28} {v}" for k, v in row.items()]
    _show(arguments, row, "\n".join(lines))
    return int(record.status == "failed")


def _study(arguments) -> None:
    from rtl_core import compare, figures, report, run_all
    from rtl_core.results import load_results, record_rows
    from rtl_core.tables import markdown_table

    size, runs = STUDY_SIZES[arguments.size], grid(arguments.size)
    across, baseline = size.across, None
    if arguments.seconds is not None:
        from rtl_core.doctor import trained_for

        if "criterion" not in across:
            raise StudyError(
                "--seconds compares criteria at equal time: rtl study --size criteria --seconds N."
            )
        runs = trained_for(runs, arguments.seconds)
        baseline = {name: getattr(Experiment, name) for name in across}  # whatever its epochs
        across = (*across, "max_epochs")
    records = run_all(runs, arguments.workers, arguments.scheduler)
    results = load_results("local").select(r.name for r in records)
    table = compare(results, baseline, across=across, leaky=size.leaky)
    path = results_dir() / "local" / f"study-{arguments.size}.png"
    with figures.style():
        ax, words = report.study_figure(size, results, table)
        figures.save_figure(ax, path)
    rows = json.loads(record_rows(results).to_json(orient="records"))
    _show(arguments, rows, markdown_table(table))
    print(f"{words}\nFigure: {path}", file=sys.stderr)


def _analyse(arguments) -> int:
    from rtl_core.analysis import analyse
    from rtl_core.experiments import record_path
    from rtl_core.results import Record

    paths = dict.fromkeys(record_path(e) for name in arguments.study for e in grid(name))
    missing = [path for path in paths if not path.exists()]
    if len(missing) == len(paths):
        raise StudyError(f"there is nothing to analyse yet; rtl study --size {arguments.study[0]} makes it.")
    if missing:
        say(f"{len(missing)} of {len(paths)} runs are not finished and are left out, first {missing[0].stem}")
    rows = analyse((Record.load(p) for p in paths if p.exists()), arguments.only, arguments.workers)
    lines = [f"{r['analysis']:12} {r['there']} there, {r['measured']} measured now" for r in rows]
    for row in rows:
        for why in dict.fromkeys(row["refused"].values()):  # the same reason once
            names = [name for name, reason in row["refused"].items() if reason == why]
            more = f" and {len(names) - 1} more" * (len(names) > 1)
            lines.append(f"{row['analysis']} refused {names[0]}{more}: {why}")
    _show(arguments, rows, "\n".join(lines))
    return int(any(r["refused"] for r in rows))


def _model_folder(name: str) -> Path:
    """Returns the folder of a saved model. Raises: StudyError that lists the models there are."""
    if ((folder := Path(name)) / "experiment.json").is_file():
        return folder
    folders = sorted((results_dir() / "local" / "models").glob("*/"))
    found = [folder for folder in folders if folder.name.startswith(name)]
    if len(found) != 1:
        there = ", ".join(folder.name for folder in found or folders) or "none; `make study` trains some"
        raise StudyError(f"{len(found)} models have names that begin with {name!r}. There are: {there}.")
    return found[0]


def _score(arguments) -> None:
    from rtl_core.scoring import score_text

    row, words = score_text(_model_folder(arguments.model), arguments.file)
    lines = [f"perplexity ({context})  {row[f'perplexity_{context}']:.2f}" for context in SCORE_CONTEXTS]
    lines += [f"{row['tokens']:,} tokens with one <eos> a line; {100 * row['unk_share']:.1f} % unknown words"]
    if arguments.words:
        row["words"] = words
        lines += [f"{nats:7.2f}  {word}" for word, nats in words]
    _show(arguments, row, "\n".join(lines))


def _report(arguments) -> None:
    from rtl_core import compare, load_results, report
    from rtl_core.experiments import record_path
    from rtl_core.results import record_rows
    from rtl_core.tables import markdown_table

    if arguments.study and (arguments.write or arguments.promote):
        raise StudyError("--write and --promote make every generated part anew; name a STUDY without them.")
    if arguments.promote:
        names = {record_path(e).stem for size in arguments.promote for e in grid(size)}
        print(f"wrote {report.promote(load_results('local').select(names))}", file=sys.stderr)
    if arguments.write or arguments.promote:
        for path in report.write():
            print(f"wrote {path}", file=sys.stderr)
        return
    results = load_results(arguments.results)
    committed = (folder := results.folder) == results_dir() / "reference"
    sizes = [STUDY_SIZES[name] for name in arguments.study if name in STUDY_SIZES]
    if arguments.study:
        results = results.of(*arguments.study)
        if not results.records:
            raise StudyError(
                f"{folder} has no run of {', '.join(arguments.study)}; rtl study --size {arguments.study[0]} makes "
                f"them{'' if committed else ', --results reference shows what is committed'}."
            )
    if arguments.results is None and committed:
        print(
            "the committed records: your own are no study yet, a baseline and an arm (--results local shows them)",
            file=sys.stderr,
        )
    leaky = bool(sizes) and all(size.leaky for size in sizes)
    if (told := sorted({r.told for r in results.records} - {""})) and not leaky:
        print(f"left out, because the perplexity is no result: {', '.join(told)}", file=sys.stderr)
        results = results.honest
    rows = json.loads(record_rows(results).to_json(orient="records"))
    across = tuple(name for size in sizes for name in size.across)
    table = None if arguments.json else markdown_table(compare(results, across=across, leaky=leaky))
    _show(arguments, rows, table)


def _doctor(arguments) -> None:
    from rtl_core import doctor

    found = doctor.report()
    sizes = {k: f"about {v / 60:.1f} minutes" for k, v in found["study_seconds"].items()}
    lines = [
        f"python {found['python']} on {found['platform']}",
        ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        f"device {found['device']}, {found['cores']} cores, {found['threads']} threads; bf16 products "
        + ("in hardware" if found["bf16"] else "not in hardware: float32 is used"),
        *(
            f"{words}: " + (", ".join(c["name"] for c in found["corpora"] if c["at_hand"] is here) or "none")
            for words, here in (("data at hand", True), ("not here", False))
        ),
        "a study takes here: " + (", ".join(f"{k} {v}" for k, v in sizes.items()) or "not known, no records"),
    ]
    lines = [textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    _show(arguments, found, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
