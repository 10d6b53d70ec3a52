"""Every arm at a glance: what was measured of it, in one row."""

import math

import pandas as pd

from rtl_core.analysis.awareness import check_one_group
from rtl_core.analysis.significance import HEADLINES, headline_effects
from rtl_core.comparison import compare
from rtl_core.findings import findings_of
from rtl_core.results import Results
from rtl_core.storage import StudyError
from rtl_core.tables import labels

PROBE_WORDS = 200  # after which the state is probed


def overview(results: Results) -> pd.DataFrame:
    """Returns `compare` without its bounds and, where they were measured, effects of slices, probe accuracy, purity.

    The effects of `significance.HEADLINES` are columns NAME, NAME low and NAME high, in per cent of perplexity;
    `probe`: how often a linear probe of the state after 200 words names the domain of the document; `purity`: how
    many of a word's nearest neighbours in the source's table are of its domain. NaN where nothing was measured;
    `attrs["missing"]` says why, by column.
    Raises: StudyError for more than one group of comparison.
    """
    table = compare(results)
    check_one_group(table)
    table = table.assign(label=labels(table))[table["role"] != "bound"]
    missing = {}
    try:
        effects = headline_effects(results)
    except StudyError as error:
        effects, missing = pd.DataFrame(columns=["arm", "slice"]), dict.fromkeys(HEADLINES, str(error))
    for name in HEADLINES:
        found = effects[effects["slice"] == name].set_index("arm")
        for end, column in (("", "effect_percent"), (" low", "low_percent"), (" high", "high_percent")):
            table[name + end] = table["label"].map(found.get(column, pd.Series(dtype=float)))
    for name, values in (("probe", _probed(table)), ("purity", _purity(table))):
        table[name] = [values.get(label, math.nan) for label in table["label"]]
        if table[name].isna().any():
            missing[name] = "rtl analyse needs the trained model of every seed"
    table.attrs["missing"] = missing
    return table


def _probed(table: pd.DataFrame) -> dict[str, float]:
    wanted = f"probe == 'state' and n == {PROBE_WORDS}"
    return _mean(table, "probes", lambda found: found.query(wanted)["correct"].mean())


def _purity(table: pd.DataFrame) -> dict[str, float]:
    wanted = "table == 'pretrained' and measure == 'purity'"
    return _mean(table, "geometry", lambda found: found.query(wanted)["value"].mean())


def _mean(table: pd.DataFrame, analysis: str, number) -> dict[str, float]:
    """Returns the mean over seeds of a number of an arm's findings, of those arms that have them for every seed."""
    names = [name for records in table["records"] for name in records.values()]
    values = {name: number(found) for name, found in findings_of(analysis, names).items()}
    arms = zip(table["label"], table["records"])
    whole = ((label, records.values()) for label, records in arms if set(records.values()) <= set(values))
    return {label: sum(values[name] for name in of) / len(of) for label, of in whole}
