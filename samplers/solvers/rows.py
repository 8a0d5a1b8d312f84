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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..schedules.process import NoiseSchedule, RectifiedFlow
from .any_list import WIDE

DATA = Path(__file__).with_name("recommended.json")

NO_SIGNAL = 1000.0
"""Diffusion models whose sigma_max is above this have zero terminal SNR, and rows of their own: their
sigma_min is as high as Stable Diffusion's, a flow's is lower."""

FARTHEST = 1e4
"""Stands for the s of a flow's sigma = 1, which is infinite."""

KINDS = ("flow", "diffusion", "edm", "zero-snr")

SIZES = "small", "large"
SMALLEST, LARGEST = 8 * 8, 64 * 64
"""Positions of an image (height x width, and x frames) up to which it is small, and from which it is
large. All of today's large models make large ones: 512 x 512 pixels are 64 x 64 latents."""

CAUTION = 0.8
"""The part of the way from the small row to the large one that large images go. The large rows were
fitted on exact models alone, whose fine detail is decided at once; trained networks want more calls at
low noise. By the rest of that way exact models gain little, and networks lose much."""


@dataclass(frozen=True)
class Row:
    """A solver for one number of calls.

    Attributes:
        s: sigma / alpha of each call, falling; the first is the model's own.
        slope, curvature: the gains of the step after each call; 0 if there are too few outputs yet.
    """

    s: tuple[float, ...]
    slope: tuple[float, ...]
    curvature: tuple[float, ...]

    @property
    def calls(self) -> int:
        return len(self.s)


@cache
def rows(kind: str, size: str) -> dict[int, Row]:
    """One of KINDS and one of SIZES -> calls -> row."""
    data = json.loads(DATA.read_text(encoding="utf-8"))[kind]
    return {
        int(calls): Row(*(tuple(two[size][name]) for name in ("s", "slope", "curvature")))
        for calls, two in data.items()
    }


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


@cache
def row_of(kind: str, calls: int, share: float = 1.0) -> Row:
    """The row for a number of calls and a size of the image: see `share_of`."""
    small, large = (_row(kind, calls, size) for size in SIZES)
    return mixed(small, large, CAUTION * share) if share else small


def _row(kind: str, calls: int, size: str) -> Row:
    known = rows(kind, size)
    if calls in known:
        return known[calls]
    below = max((n for n in known if n < calls), default=min(known))
    above = min((n for n in known if n > calls), default=max(known))
    between = (math.log(calls / below) / math.log(above / below)) if below < above else 0.0
    return mixed(stretched(known[below], calls), stretched(known[above], calls), between)


def mixed(a: Row, b: Row, share: float) -> Row:
    """From a, at 0, to b, at 1."""

    def mean(x: Sequence[float], y: Sequence[float]) -> tuple[float, ...]:
        return tuple(v + share * (w - v) for v, w in zip(x, y, strict=True))

    levels = mean(tuple(map(math.log, a.s)), tuple(map(math.log, b.s)))
    return Row(tuple(map(math.exp, levels)), mean(a.slope, b.slope), mean(a.curvature, b.curvature))


def stretched(row: Row, calls: int) -> Row:
    """A row stretched to another number of calls: each step is read at its place in the run."""
    if calls < 2:
        return Row(row.s[:calls], row.slope[:calls], row.curvature[:calls])

    places = [i * (row.calls - 2) / max(calls - 2, 1) for i in range(calls - 1)]

    def between(values: Sequence[float]) -> list[float]:
        return [interpolated(values, place) for place in places]

    levels = between([math.log(s) for s in row.s[1:]])
    return Row(
        (row.s[0], *map(math.exp, levels)),
        (0.0, *between(row.slope[1:])),
        (0.0, 0.0, *between(row.curvature[1:])[1:]),
    )


def interpolated(values: Sequence[float], place: float) -> float:
    """The value at a place between two whole ones; beyond the last, by the last difference."""
    if len(values) == 1:
        return values[0]
    low = min(int(place), len(values) - 2)
    return values[low] + (place - low) * (values[low + 1] - values[low])
