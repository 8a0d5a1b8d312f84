"""What a calibration costs: model calls and main memory, known before the first call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .fit import SLOPES
from .surrogate import SPREADS

FIRST_TRIALS = 1 + len(SPREADS)
"""The fewest fits on the model: on the recommended sigmas, and on each result of the search."""

MOST_TRIALS = 20
"""The most fits on the model for each number of calls: more gain little."""

REFINING = 0.8
"""How much of what the budget has beyond the least may go into a finer teacher."""

MOST_BYTES = 2**32
"""The most main memory that the noises, and the students' states and slopes, may take."""


class Cost(NamedTuple):
    """How many single-image model calls a calibration takes.

    Attributes:
        teacher: calls of the teacher, for all noises.
        refined: the most further calls of the teacher, where it has not converged.
        trial: calls of one fit for each number of calls, together.
        check: calls of the measurement on held-out noises.
        budget: the most calls of all.
    """

    teacher: int
    refined: int
    trial: int
    check: int
    budget: int

    @property
    def trials(self) -> int:
        """The most fits for each number of calls."""
        return self.trials_after(self.teacher)

    def trials_after(self, teacher: int) -> int:
        """The same, if the teacher took so many calls."""
        return min(MOST_TRIALS, (self.budget - teacher - self.check) // self.trial)

    @property
    def total(self) -> int:
        return min(self.budget, self.teacher + self.refined + self.trials * self.trial + self.check)


def cost(
    budget: int,
    calls: Sequence[int],
    seeds: int,
    held_out: int,
    lists: Sequence[Sequence[float]],
    rivals: int,
) -> Cost:
    """Plan a calibration within a budget of single-image model calls.

    Args:
        lists: the teacher's; see `teacher.refinements`.
        rivals: how many solvers are measured beside the calibrated one, for each number of calls.

    Raises:
        ValueError: the budget is too small.
    """
    first, further = (sum(map(len, part)) for part in (lists[:2], lists[2:]))
    teacher, trial = (seeds + held_out) * first, seeds * sum(calls)
    check = held_out * sum(calls) * (1 + rivals)
    spare = budget - teacher - check - FIRST_TRIALS * trial
    if spare < 0:
        raise ValueError(
            f"A budget of {budget} model calls is too small for {' and '.join(map(str, calls))} calls "
            f"and {seeds} seeds: allow at least {budget - spare}, or take fewer seeds."
        )
    refined = min((seeds + held_out) * further, int(spare * REFINING))
    return Cost(teacher, refined, trial, check, budget)


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
