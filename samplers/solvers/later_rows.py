"""The recommended sampler's data for runs from a later start, as in image to image.

`later.json` has rows as those of `rows.py`, for several starts and numbers of calls. They begin at an
image with noise and end at the image, so that they are no ends of whole rows: their first steps lack
earlier outputs, and their first sigma is given. `benchmarks/fit_later.py` fitted them. A run between
two starts, two ends or two numbers of calls takes a mean.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

from .rows import SIZES, SIZES_KEPT, Row, mean_of_neighbours, mixed, of_share, read_row, within

DATA = Path(__file__).with_name("later.json")

ENDS = "0.003", "0.029"
"""The smallest s of the models that the rows were fitted on: of a flow of shift 3, and of Stable
Diffusion. From a later start models differ in nothing else; one between them takes a mean."""


@cache
def later_rows(end: str, size: str) -> dict[str, dict[int, Row]]:
    """One of ENDS, and one of SIZES -> s of the start -> calls -> row."""
    data = json.loads(DATA.read_text(encoding="utf-8"))[end]
    return {
        start: {int(calls): read_row(two[size], float(end)) for calls, two in rows.items()}
        for start, rows in data.items()
    }


@lru_cache(SIZES_KEPT)
def _of_share(end: str, share: float) -> dict[float, dict[int, Row]]:
    """Log s of the start -> calls -> row."""
    small, large = (later_rows(end, size) for size in SIZES)
    return {math.log(float(at)): of_share(small[at], large[at], share) for at in small}


@lru_cache(512)
def later_row(calls: int, share: float, start: float, low: float) -> Row:
    """The row for a run of so many calls that starts at log s = start.

    Args:
        share: of the image's size; see `share_of`.
        low: log s of the model's sigma_min; minus infinity if it is not known.
    """
    lowest, highest = (math.log(float(end)) for end in ENDS)
    between = min(max((low - lowest) / (highest - lowest), 0.0), 1.0)
    lower, higher = (_from(start, calls, _of_share(end, share)) for end in ENDS)
    row = mixed(lower, higher, between)
    levels = within([math.log(s) for s in row.s], math.inf, low)
    return replace(row, s=tuple(map(math.exp, levels)))


def _from(start: float, calls: int, known: dict[float, dict[int, Row]]) -> Row:
    """From a start between two fitted ones, or from beyond them."""
    lowest, highest = min(known), max(known)
    inside = min(max(start, lowest), highest)
    below = max(each for each in known if each <= inside)
    above = min(each for each in known if each >= inside)
    between = (inside - below) / (above - below) if below < above else 0.0
    lower, upper = (mean_of_neighbours(known[each], calls, 0) for each in (below, above))
    row = mixed(lower, upper, between)
    if start < lowest:  # all of the image is decided: what is left is alike at any scale
        scale = math.exp(start - lowest)
        return replace(row, s=tuple(scale * s for s in row.s))
    # Above the highest nothing is decided: only the first call moves there.
    return replace(row, s=(math.exp(start), *row.s[1:]))
