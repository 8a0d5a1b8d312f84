"""Steps so long that a polynomial through the model outputs is no longer to be trusted.

It goes wrong in two ways:

- It is extrapolated far beyond the newest output, where the trend may have ended. Lists that are even
  in time end with a step that is several times as long in lambda_ as the one before.
- An output at the far end of a long step is used to make that step again. Its error then comes in
  too, times e^growth. This concerns inner nodes of singlestep groups and outputs that a corrector
  uses: with DPM-Solver++ if sigma rises, most of all in the first step of a flipped list, and with
  DPM-Solver and Adams if it falls.

The bounds were measured on exact models, with and without guidance. tests/samplers/test_long_steps.py
checks what they achieve.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from ..coefficients import Algorithm, Level

FAR: dict[Algorithm, float] = {"dpmsolver++": 0.1, "dpmsolver": 0.5, "adams": 0.5}
"""No step up to this length in lambda_ counts as long. An error of x0 matters most at the end of a
step, an error of the noise or the slope at its start."""

LONG_WITH_NOISE = 1.5
"""If noise is added, a step up to so many times as long as the one before does not count as long: the
noise mends what a little too much of a trend does."""

LINEAR = 0.9
"""If less than this share of a step is read, a line through two outputs is more accurate than a
parabola through three."""

FAR_IN_GROUP = 1.0
"""No interval of a singlestep group up to this length in lambda_ counts as long."""

MOST_GROWTH = 0.5
"""How far, in lambda_, the error of an output may grow if the output makes its own step again."""


class Trend(NamedTuple):
    """How far ahead of the newest output the line of DPM-Solver++ 2M is extrapolated.

    All but `least` are in lengths of the step before, which counts as `least` if it is shorter.

    Attributes:
        least: a length in -log sigma.
        whole: a step up to this length uses all of the line's change, and a longer one as much.
        fades: a step longer than this uses less and less of it,
        ends: and one longer than this nothing.
    """

    least: float
    whole: float
    fades: float
    ends: float

    def reach(self, known: float, ahead: float) -> float:
        """As the function `reach`."""
        known = max(known, self.least)
        left = (self.ends - ahead / known) / (self.ends - self.fades)
        return min(1.0, self.whole * known / ahead) * min(1.0, max(0.0, left))


TREND = Trend(least=0.5, whole=1.5, fades=3.7, ends=5.5)
TREND_IN_NOISE = Trend(least=0.0, whole=1.4, fades=1.4, ends=3.2)

NEARLY_NOISE = -1.25
"""A half log-SNR below which a state tells little of the image."""


def reach(far: float, known: float, ahead: float) -> float:
    """The share of a step up to which a polynomial is read: 1 unless the step is long.

    A step is long if it is longer than both `far` and the step before it. The longer it is, the
    smaller the share: 1/4 for a step twice as long as the larger of the two.

    Args:
        far: of the algorithm, see FAR.
        known: the length of the step before.
        ahead: the length of the step.
    """
    return min(1.0, max(far, known) / ahead) ** 2


def reach_2m(known: float, ahead: float, start: Level, end: Level) -> float:
    """The same for DPM-Solver++ 2M. On no list may it be farther off than the published formula is,
    so that it takes fewer steps for long.

    Args:
        known, ahead: lengths in -log sigma.
        start, end: the levels of the step, with their log-SNR.
    """
    middle = (start.lambda_ + end.lambda_) / 2.0
    return (TREND_IN_NOISE if middle < NEARLY_NOISE else TREND).reach(known, ahead)


def grows(algorithm: Algorithm, start: Level, end: Level) -> bool:
    """Whether an output at `end` has too large an error to make the step from `start` again."""
    h = end.lambda_ - start.lambda_
    return (-h if algorithm == "dpmsolver++" else h) > MOST_GROWTH


def is_group(algorithm: Algorithm, levels: tuple[Level, ...]) -> bool:
    """Whether the intervals between these levels can be one singlestep group."""
    lengths = [abs(end.lambda_ - start.lambda_) for start, end in pairwise(levels)]
    return not grows(algorithm, levels[0], levels[-2]) and all(
        ahead <= max(FAR_IN_GROUP, known) for known, ahead in pairwise(lengths)
    )


def groups(algorithm: Algorithm, levels: tuple[Level, ...]) -> list[int]:
    """The sizes of the singlestep groups that cover the intervals between these levels. Each is as
    large as it can be, beginning with the first."""
    sizes: list[int] = []
    while len(levels) > 1:
        size = next(
            n for n in range(len(levels) - 1, 0, -1) if is_group(algorithm, levels[: n + 1])
        )
        sizes.append(size)
        levels = levels[size:]
    return sizes
