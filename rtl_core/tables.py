"""The words and numbers of a comparison as people read them: names of arms, effects, Markdown."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from rtl_core.catalogue import CONTROLS, OUTSIDE, PLACEHOLDERS, SOURCES
from rtl_core.choices import ORACLE
from rtl_core.config import Experiment
from rtl_core.results import Results

GROUP = ["corpus", "lm_tokens", "settings"]  # rows that share these are compared
BOUNDS = {"lstm": "random, all text", "kneser-ney": "Kneser-Ney 5-gram", "unigram": "unigram"}
DASH = "–"
MODES = {"finetuned": "fine-tuned", "l2sp": "L2-SP"}  # the others go by their own names


def labels(table: pd.DataFrame) -> list[str]:
    """Returns the name of each row of `compare`, as tables and figures show it."""
    arms, across = table[table["role"] != "bound"], table.attrs.get("across", ())
    several = arms.groupby("source")["pretrain_epochs"].nunique(dropna=False).max() > 1
    return [_label(row, several, across) for _, row in table.iterrows()]


def _label(row, with_epochs: bool, across: tuple) -> str:
    mark = "" if pd.isna(row["converged"]) or row["converged"] else " (not converged)"
    if row["role"] == "bound":
        return f"bound: {BOUNDS[row['model']]}{mark}"
    read = None if pd.isna(row["pretrain_tokens"]) else f"pre-trained on {row['pretrain_tokens']:,} tokens"
    # a file's name without its folders
    source = re.sub("(file|code|hub):(.*)", lambda found: f"{found[1]}:{Path(found[2]).name}", row["source"])
    notes = {
        "input layer": row["readout"] == "input-layer",
        f"{row['occurrences']} occurrences": not pd.isna(row["occurrences"]),
        f"{row['pretrain_epochs']} epochs": with_epochs and not pd.isna(row["pretrain_epochs"]),
        f"on {row['pretrain_on']}": row["pretrain_on"] != "corpus",
        read: read,
        f"{row['encoder_layers']} layers": not pd.isna(row["encoder_layers"]),
        f"layer {row['layer']}": not pd.isna(row["layer"]),
        f"folded {row['fold']}": row["fold"] != "nothing",
        f"{row['encoder']} encoder": row["encoder"] != "own",
    }
    details = ", ".join(note for note, shown in notes.items() if shown)
    return ", ".join([f"{source}{f' ({details})' if details else ''}", *_entering(row, across)]) + mark


def _entering(row, across: tuple) -> list[str]:
    """Returns how the table of an arm enters the model, and what else tells the arm from others."""
    mode = MODES.get(row["input_mode"], row["input_mode"])
    output = " ".join(MODES.get(part, part) for part in (row["output_init"], row["output_mode"]))
    notes = {
        mode: row["input_init"] == "pretrained",
        f"{mode} random input": row["input_init"] != "pretrained",
        f"held by {row['l2sp']:g}": row["input_mode"] == "l2sp",
        f"frozen for {row['warmup_frozen']} epochs": row["warmup_frozen"],
        "tied": row["output_init"] == "tied",
        f"output {output}": row["output_init"] == "pretrained" or row["output_mode"] != "finetuned",
        row["context_feature"]: row["context_feature"] not in ("none", ORACLE),
        f"told the document's label ({ORACLE})": row["context_feature"] == ORACLE,
        f"learns the {row['auxiliary']} too (weight {row['auxiliary_weight']:g})": row["auxiliary"] != "none",
    }
    # the first setting that arms differ in is always told, the others where they are not at their default
    told = [name for name in across if name == across[0] or row[name] != getattr(Experiment, name)]
    return [note for note, shown in notes.items() if shown] + [f"{name} {row[name]}" for name in told]


def caption(table: pd.DataFrame) -> str:
    """Returns what the perplexities of one group of arms were measured on."""
    row = table.iloc[0]
    lm_text = f"{'all ' if pd.isna(row['lm_tokens']) else ''}{row['lm_tokens_used']:,} tokens"
    settings = f"; {row['settings']}" if row["settings"] else ""
    return (
        f"{row['corpus']}: LM text {lm_text}, vocabulary {row['vocab_size']:,}; test text "
        f"{row['test_tokens']:,} tokens in {row['test_documents']:,} documents, "
        f"{100 * row['unk_share']:.1f} % unknown words{settings}"
    )


def effect_text(row) -> str:
    """Returns an effect and its interval in words: "−12.3 % (−14.0 to −10.5)", or "baseline"."""
    if row["role"] == "baseline":
        return "baseline"
    if pd.isna(row["effect_percent"]):
        return "no baseline"
    return change_text(*(row[f"{name}_percent"] for name in ("effect", "low", "high")), unit=" %")


def change_text(value: float, low: float, high: float, unit: str = "") -> str:
    """Returns a change in per cent with its interval, where it has one: "−12.3 (−14.0 to −10.5)"."""
    if pd.isna(value):
        return DASH
    interval = "" if pd.isna(low) else f" ({low:+.1f} to {high:+.1f})"
    return f"{value:+.1f}{unit}{interval}".replace("-", "−")


def p_text(p: float) -> str:
    """Returns a p-value in words: "0.015", "< 0.001", or a dash where there is none."""
    return DASH if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def tokens_text(tokens) -> str:
    """Returns a number of tokens in words: "2.7 M", "12,000", or "unknown"."""
    return "unknown" if pd.isna(tokens) else f"{tokens / 1e6:.1f} M" if tokens >= 1e5 else f"{tokens:,}"


def overview_rows(table: pd.DataFrame, changes: Iterable[str]) -> list[dict]:
    """Returns the rows of `analysis.overview` as people read them; `changes`: its columns with low and high."""
    rows = []
    for _, row in table.iterrows():
        cells = {
            "arm": row["label"],
            "perplexity (95 %)": f"{row['perplexity']:.1f} ({row['low_perplexity']:.1f} to "
            f"{row['high_perplexity']:.1f})",
            "change, % (95 %)": change_text(*(row[f"{x}_percent"] for x in ("effect", "low", "high"))),
            "p": p_text(row["p_holm"]),
        }
        cells |= {f"{x}, %": change_text(row[x], row[f"{x} low"], row[f"{x} high"]) for x in changes}
        probe = DASH if pd.isna(row["probe"]) else f"{100 * row['probe']:.1f} %"
        cells |= {"probe": probe, "purity": DASH if pd.isna(row["purity"]) else f"{row['purity']:.2f}"}
        seconds = f"{row['pretraining_seconds']:.0f} + {row['training_seconds']:.0f}"
        rows.append(cells | {"extra text": tokens_text(row["extra_tokens"]), "cost (s)": seconds})
    return rows


def markdown_table(table: pd.DataFrame) -> str:
    """Returns the table of `compare` in Markdown: for each group a caption and its arms in a fixed order."""
    groups = table.groupby(GROUP, sort=False, dropna=False)
    parts = [f"**{caption(group)}**\n\n{_markdown_rows(group)}" for _, group in groups]
    notes = (
        "Perplexity: exact, per token with `<unk>` and `<eos>`, geometric mean over seeds; in brackets, where the"
        " model's state is reset (stream: nowhere). Effect: per cent of the baseline's perplexity (document),"
        " paired by seed and document; in brackets its 95 % interval, which joins a bootstrap over documents with"
        " the spread over seeds, each by its own Student's t; one seed has none. p: of no effect, by Holm's"
        " correction for the number of arms. Rows stand in a fixed order and are not ranked."
    )
    if not table["converged"].fillna(True).all():
        notes += " Not converged: the last epoch still gained over 1 %."
    failed = table.attrs.get("failed", 0)
    return "\n\n".join([*parts, notes + (f" Failed and left out: {failed} runs." if failed else "")]) + "\n"


def _markdown_rows(table: pd.DataFrame) -> str:
    header = (
        "arm", "perplexity (document)", "each seed (document)", "effect on perplexity", "p",
        "perplexity (stream)", "perplexity (sentence)", "extra tokens", "training (s)",
    )  # fmt: skip
    lines = [header, ("---", *["---:"] * (len(header) - 1))]
    for name, (_, row) in zip(labels(table), table.iterrows()):
        lines.append((
            name,
            f"{row['perplexity']:.1f}",
            ", ".join(f"{value:.1f}" for value in row["seeds"]),
            effect_text(row),
            p_text(row["p_holm"]),
            f"{row['perplexity_stream']:.1f}",
            f"{row['perplexity_sentence']:.1f}",
            tokens_text(row["extra_tokens"]),
            f"{row['training_seconds']:.0f}",
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def source_rows(results: Results | None = None) -> list[dict]:
    """Returns one row a source of the catalogue; its cost is the mean seconds of a table in the records."""
    seconds: dict[str, dict] = {}
    default = {name: getattr(Experiment, name) for name in ("corpus", "encoder")}
    for record in (r for r in results.records if default.items() <= r.experiment.items()) if results else ():
        account = record.pretrained.get("provenance", {})
        seconds.setdefault(record.experiment["source"], {})[account.get("seed")] = record.pretraining_seconds
    rows = []
    for name, source in (SOURCES | OUTSIDE).items():
        of = seconds.get(name, {}).values()
        rows.append({
            "source": PLACEHOLDERS.get(name, name), "predicts": source.task, "objective": source.objective,
            "sees around a word": source.context, "needs": source.data, "idea": source.idea,
            "seconds a table": round(sum(of) / len(of)) if any(of) else None,
        })  # fmt: skip
    return rows


def control_rows() -> list[dict]:
    """Returns one row a control: the prefix with any source X behind it, and what it is."""
    return [{"control": f"{prefix}X", "what it is": text} for prefix, text in CONTROLS.items()]


def markdown_rows(rows: list[dict]) -> str:
    """Returns rows as a Markdown table, None as a dash."""
    lines = [tuple(rows[0]), ("---",) * len(rows[0])]
    lines += [tuple(DASH if value is None else str(value) for value in row.values()) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def captured_rows(found: pd.DataFrame) -> list[dict]:
    """Returns a row an arm: the share of the available global information that it captures.

    `found`: of `limits.captured`, of one corpus.
    """
    rows: dict[str, dict] = {}
    for _, one in found.iterrows():
        row = rows.setdefault(
            one["name"], {"arm": one["name"], "above the best (nats)": f"{one['above_full']:.3f}"}
        )
        ends = "" if pd.isna(one["share_low"]) else f" ({one['share_low']:.2f} to {one['share_high']:.2f})"
        row[f"share beyond {one['n']} words"] = f"{one['share']:.2f}{ends}"
    return list(rows.values())
