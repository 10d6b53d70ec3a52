"""Speed and memory, as ratios in one run; `make bench`."""


def row(name: str, ratio: float, target: float, measured: str) -> dict:
    """Returns one line of the table: what was compared, the ratio found, the least that is asked, the numbers."""
    return {"what": name, "ratio": round(ratio, 2), "at_least": round(target, 2), "measured": measured}
