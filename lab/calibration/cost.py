"""What a calibration costs: model calls and main memory, known before the first call."""

from __future__ import annotations

from typing import NamedTuple

from .fit import SLOPES
from .surrogate import SPREADS

FIRST_TRIALS = 1 + len(SPREADS)
"""The fewest fits on the model: on the recommended sigmas, and on each result of the search."""

MOST_TRIALS = 40
"""The most fits on the model: more gain little."""

MOST_BYTES = 2**32
"""The most main memory that the noises, and the students' states and slopes, may take."""


class Cost(NamedTuple):
    """How many single-image model calls a calibration takes.

    Attributes:
        teacher: calls of the teacher, for all noises.
        trial: calls of one fit.
        trials: how many fits there will be.
        check: calls of the measurement on held-out noises.
    """

    teacher: int
    trial: int
    trials: int
    check: int

    @property
    def total(self) -> int:
        return self.teacher + self.trials * self.trial + self.check


def cost(budget: int, calls: int, seeds: int, held_out: int, points: int, rivals: int) -> Cost:
    """Plan a calibration within a budget of single-image model calls.

    Raises:
        ValueError: the budget is too small.
    """
    teacher, trial = (seeds + held_out) * points, seeds * calls
    check = held_out * calls * (1 + rivals)
    trials = min(MOST_TRIALS, (budget - teacher - check) // trial)
    if trials < FIRST_TRIALS:
        least = teacher + check + FIRST_TRIALS * trial
        raise ValueError(
            f"A budget of {budget} model calls is too small for {calls} calls and {seeds} seeds: "
            f"allow at least {least}, or take fewer seeds."
        )
    return Cost(teacher, trial, trials, check)


def check_memory(size: int, seeds: int, held_out: int, slopes: int = SLOPES) -> None:
    """Raise ValueError if latents of `size` numbers would take more than MOST_BYTES of main memory.

    For each seed there are, at once, the noise, the state and the next one, the slopes and the model's
    output.
    """
    of_seed, of_held_out = 4 * size * (slopes + 4), 4 * size
    if seeds * of_seed + held_out * of_held_out > MOST_BYTES:
        most = max(MOST_BYTES - held_out * of_held_out, 0) // of_seed
        raise ValueError(
            f"{seeds} seeds of latents of {size} numbers take more than {MOST_BYTES >> 30} GiB of "
            f"main memory: take at most {most} seeds, or smaller latents."
        )
