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

from ..coefficients import Algorithm, Level

FAR: dict[Algorithm, float] = {"dpmsolver++": 0.1, "dpmsolver": 0.5, "adams": 0.5}
"""No step up to this length in lambda_ counts as long. An error of x0 matters most at the end of a
step, an error of the noise or the slope at its start."""

LINEAR = 0.9
"""If less than this share of a step is read, a line through two outputs is more accurate than a
parabola through three."""

FAR_IN_GROUP = 1.0
"""No interval of a singlestep group up to this length in lambda_ counts as long."""

MOST_GROWTH = 0.5
"""How far, in lambda_, the error of an output may grow if the output makes its own step again."""


def reach(far: float, before: Level, start: Level, end: Level) -> float:
    """The share of the step from start to end up to which a polynomial is read: 1 unless it is long.

    A step is long if it is longer than both `far` and the step before it, from `before` to start. The
    longer it is, the smaller the share: 1/4 for a step twice as long as the larger of the two.
    """
    known, ahead = abs(start.lambda_ - before.lambda_), abs(end.lambda_ - start.lambda_)
    return min(1.0, max(far, known) / ahead) ** 2


def grows(algorithm: Algorithm, start: Level, end: Level) -> bool:
    """Whether an output at `end` has too large an error to make the step from `start` again."""
    h = end.lambda_ - start.lambda_
    return (-h if algorithm == "dpmsolver++" else h) > MOST_GROWTH


def is_group(algorithm: Algorithm, levels: tuple[Level, ...]) -> bool:
    """Whether the intervals between these levels can be one singlestep group."""
    triples = zip(levels, levels[1:], levels[2:], strict=False)
    return not grows(algorithm, levels[0], levels[-2]) and all(
        reach(FAR_IN_GROUP, *triple) == 1.0 for triple in triples
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
