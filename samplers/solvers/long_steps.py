"""Steps that are long beside what the model outputs so far can tell.

A polynomial through model outputs goes wrong in two ways. Read far beyond the newest output, it
follows a trend that has ended by then: lists that are even in time close with a step several times as
long in lambda_ as the one before. And an output that is made at the far end of a long step, and then
used to make that step again, brings its own error with it, times e^growth. Inner nodes of singlestep
groups do so, and the corrector's outputs: for DPM-Solver++ where sigma rises, most of all in the first
step of a flipped list, and for the noise and slope forms where it falls.

The bounds were measured on exact models, with and without guidance; tests/test_long_steps.py holds
what they reach.
"""

from __future__ import annotations

from ..coefficients import Algorithm, Level

FAR: dict[Algorithm, float] = {"dpmsolver++": 0.1, "dpmsolver": 0.5, "adams": 0.5}
"""In lambda_: the length up to which no step counts as long. x0 matters most at the far end of a step,
the noise and the slope at its near end."""

LINEAR = 0.9
"""The share of a step below which a line through two outputs tells more than a curve through three."""

FAR_IN_GROUP = 1.0
"""The same for an interval of a singlestep group."""

MOST_GROWTH = 0.5
"""In lambda_: how much the error of an output may grow that makes its own step again."""


def reach(far: float, before: Level, start: Level, end: Level) -> float:
    """The share of the step from start to end up to which a polynomial is read; 1 unless it is long.

    A step is long if it is longer than the one before it and than `far`. The longer it is, the less of
    it is read: a step twice as long, to half of what is known.
    """
    known, ahead = abs(start.lambda_ - before.lambda_), abs(end.lambda_ - start.lambda_)
    return min(1.0, max(far, known) / ahead) ** 2


def grows(algorithm: Algorithm, start: Level, end: Level) -> bool:
    """Whether an output at end has too large an error to make the step from start again."""
    h = end.lambda_ - start.lambda_
    return (-h if algorithm == "dpmsolver++" else h) > MOST_GROWTH


def is_group(algorithm: Algorithm, levels: tuple[Level, ...]) -> bool:
    """Whether the intervals between these levels can be one singlestep group."""
    triples = zip(levels, levels[1:], levels[2:], strict=False)
    return not grows(algorithm, levels[0], levels[-2]) and all(
        reach(FAR_IN_GROUP, *triple) == 1.0 for triple in triples
    )


def groups(algorithm: Algorithm, levels: tuple[Level, ...]) -> list[int]:
    """The sizes of the singlestep groups that the intervals between these levels make, the first one
    as large as it can be."""
    sizes: list[int] = []
    while len(levels) > 1:
        size = next(
            n for n in range(len(levels) - 1, 0, -1) if is_group(algorithm, levels[: n + 1])
        )
        sizes.append(size)
        levels = levels[size:]
    return sizes
