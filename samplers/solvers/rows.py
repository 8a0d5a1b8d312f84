"""The recommended sampler's data: a row of sigmas and gains by kind of model, calls and image size.

`recommended.json` has two rows for each kind of model (flow, Stable Diffusion's, EDM's, zero terminal
SNR) and number of calls: one for large images and one for the smallest; an image takes a mean of the
two. The larger it is, the higher the noise at which its coarse structure is decided. They were fitted
on many models at once, with and without guidance, by gradient descent through whole runs
(`benchmarks/fit_recommended.py`). What a row does in a run: `recommended.py`.

The rows hold s = sigma / alpha, in which a flow is a diffusion model, whatever its shift.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from ..schedules.process import NoiseSchedule, RectifiedFlow
from .any_list import WIDE

DATA = Path(__file__).with_name("recommended.json")

NO_SIGNAL = 1000.0
"""Diffusion models whose sigma_max is above this have zero terminal SNR, and rows of their own: their
sigma_min is as high as Stable Diffusion's, a flow's is lower."""

FARTHEST = 1e4
"""Stands for the s of a flow's sigma = 1, which is infinite."""

LOWS = {"flow": 0.003, "diffusion": 0.0292, "edm": 0.002, "zero-snr": 0.0292}
"""Kind of model -> the smallest s of those that its rows were fitted on."""

KINDS = tuple(LOWS)

SIZES = "small", "large"
SMALLEST, LARGEST = 8 * 8, 64 * 64
"""Positions of an image (height x width, and x frames) up to which it is small, and from which it is
large. All of today's large models make large ones: 512 x 512 pixels are 64 x 64 latents."""

CAUTION = 0.8
"""The part of the way from the small row to the large one that large images go. All
models of that size that they were fitted on are exact, and their fine detail is decided at once;
trained networks want more calls at low noise. By the rest of that way exact models gain little, and
networks lose much."""


ROWS_KEPT, SIZES_KEPT = 64, 16
"""Rows, and sizes of images with all their rows, that are kept in memory."""

NEAR_TOP = 2.5
"""In log s. For models whose largest sigma lies below the second of their row."""


@dataclass(frozen=True)
class Row:
    """A solver for one number of calls.

    Attributes:
        s: sigma / alpha of each call, falling; the first is the model's own.
        slope, curvature: the gains of the step after each call; 0 if there are too few outputs yet.
        low: the smallest s of the models that it was fitted on.
        made_of: if it is a mean of other rows, these, each with its share; they need not have as many
            calls.
    """

    s: tuple[float, ...]
    slope: tuple[float, ...]
    curvature: tuple[float, ...]
    low: float = 0.0
    made_of: tuple[tuple[float, Row], ...] = ()

    @property
    def calls(self) -> int:
        return len(self.s)

    def end(self, first: int) -> Row:
        """The row from this call on, without the earlier outputs."""
        slope, curvature = self.slope[first + 1 :], self.curvature[first + 2 :]
        return Row(
            self.s[first:], (0.0, *slope), (0.0, 0.0, *curvature)[: self.calls - first], self.low
        )


@cache
def rows(kind: str, size: str) -> dict[int, Row]:
    """One of KINDS and one of SIZES -> calls -> row."""
    data = json.loads(DATA.read_text(encoding="utf-8"))[kind]
    return {int(calls): read_row(two[size], LOWS[kind]) for calls, two in data.items()}


def read_row(data: Mapping[str, Sequence[float]], low: float) -> Row:
    s, slope, curvature = (tuple(data[name]) for name in ("s", "slope", "curvature"))
    return Row(s, slope, curvature, low)


def positions_of(shape: Sequence[int]) -> int:
    """The positions of an image, from a batch's shape, [batch, channels, ...] or [batch, values]."""
    return math.prod(shape[2:]) if len(shape) > 2 else math.prod(shape[1:])


def share_of(positions: int) -> float:
    """Where an image of this many positions lies between small, 0, and large, 1.

    The larger an image, the higher the noise at which its coarse structure is decided.
    """
    share = math.log(max(positions, 1) / SMALLEST) / math.log(LARGEST / SMALLEST)
    return min(max(share, 0.0), 1.0)


def kind_of(schedule: NoiseSchedule, sigma_max: float) -> str:
    """One of KINDS."""
    if isinstance(schedule, RectifiedFlow):
        return "flow"
    return "zero-snr" if sigma_max > NO_SIGNAL else "edm" if sigma_max > WIDE else "diffusion"


def kinds_of(schedule: NoiseSchedule) -> tuple[str, ...]:
    """Those of KINDS that a model of this schedule may be."""
    flow = isinstance(schedule, RectifiedFlow)
    return tuple(kind for kind in KINDS if (kind == "flow") is flow)


@lru_cache(ROWS_KEPT)
def row_of(kind: str, calls: int, share: float = 1.0) -> Row:
    """The row for a number of calls and a size of the image: see `share_of`."""
    return mean_of_neighbours(_of_share(kind, share), calls, 1)


def levels_of_row(kind: str, calls: int, share: float) -> list[float]:
    """log s of the calls of `row_of`, without the gains: for a search through many rows.

    They are a linear function of the share, so that nothing is kept for each size of image.
    """
    small, large = _levels_of_sizes(kind, calls)
    part = CAUTION * share
    return [a + part * (b - a) for a, b in zip(small, large, strict=True)]


@cache
def _levels_of_sizes(kind: str, calls: int) -> tuple[list[float], ...]:
    return tuple(
        [math.log(s) for s in mean_of_neighbours(rows(kind, size), calls, 1).s] for size in SIZES
    )


@lru_cache(SIZES_KEPT)
def _of_share(kind: str, share: float) -> dict[int, Row]:
    small, large = (rows(kind, size) for size in SIZES)
    return of_share(small, large, share)


def of_share(small: Mapping[int, Row], large: Mapping[int, Row], share: float) -> dict[int, Row]:
    """Calls -> row for images of this share. The two sizes were fitted with their means in view."""
    return {
        calls: replace(mixed(row, large[calls], CAUTION * share), made_of=())
        for calls, row in small.items()
    }


def mean_of_neighbours(known: Mapping[int, Row], calls: int, fixed: int) -> Row:
    """The row for a number of calls, or else a mean of those with the next fewer and more calls.

    Args:
        fixed: see `stretched`.
    """
    if calls in known:
        return known[calls]
    below = max((n for n in known if n < calls), default=min(known))
    above = min((n for n in known if n > calls), default=max(known))
    between = (math.log(calls / below) / math.log(above / below)) if below < above else 0.0
    few, many = (stretched(known[n], calls, fixed) for n in (below, above))
    return mixed(few, many, between)


def mixed(a: Row, b: Row, share: float) -> Row:
    """From a, at 0, to b, at 1."""

    def mean(x: Sequence[float], y: Sequence[float]) -> tuple[float, ...]:
        return tuple(v + share * (w - v) for v, w in zip(x, y, strict=True))

    levels = mean(tuple(map(math.log, a.s)), tuple(map(math.log, b.s)))
    gains = mean(a.slope, b.slope), mean(a.curvature, b.curvature)
    return Row(tuple(map(math.exp, levels)), *gains, a.low, ((1.0 - share, a), (share, b)))


def stretched(row: Row, calls: int, fixed: int) -> Row:
    """A row stretched to another number of calls: each step is read at its place in the run.

    Args:
        fixed: of the first sigmas, that stay where they are: 1 in a whole run, whose first step may
            start from nothing but noise, otherwise 0.
    """
    if calls < 2:
        return Row(row.s[:calls], row.slope[:calls], row.curvature[:calls], row.low)
    levels = _spread([math.log(s) for s in row.s[fixed:]], calls - fixed)
    return Row(
        (*row.s[:fixed], *map(math.exp, levels)),
        (0.0, *_spread(row.slope[1:], calls - 1)),
        (0.0, 0.0, *_spread(row.curvature[1:], calls - 1)[1:]),
        row.low,
        ((1.0, row),),
    )


def _spread(values: Sequence[float], count: int) -> list[float]:
    """So many values, evenly spread between the first and the last of the given ones."""
    return [interpolated(values, i * (len(values) - 1) / max(count - 1, 1)) for i in range(count)]


def interpolated(values: Sequence[float], place: float) -> float:
    """The value at a place between two whole ones; beyond the last, by the last difference."""
    if len(values) == 1:
        return values[0]
    low = min(int(place), len(values) - 2)
    return values[low] + (place - low) * (values[low + 1] - values[low])


def within(levels: Sequence[float], top: float, low: float) -> list[float]:
    """Levels of log s, compressed to lie between two ends if they would pass one.

    At the low end all are compressed; at the top only those within NEAR_TOP of it, since the others
    lie where the image is decided.
    """
    if not levels:
        return []
    levels = list(levels)
    if levels[-1] < low < levels[0]:
        scale = (levels[0] - low) / (levels[0] - levels[-1])
        levels = [levels[0] + scale * (level - levels[0]) for level in levels]
    if levels[0] >= top:
        pivot = max(top - NEAR_TOP, levels[-1] if levels[-1] < top else low)
        count = sum(level > pivot for level in levels)
        highest = top - (top - pivot) / (count + 1)  # the first step is as long as those after it
        scale = (highest - pivot) / (levels[0] - pivot or 1.0)
        levels = [pivot + scale * (level - pivot) if level > pivot else level for level in levels]
    return levels
