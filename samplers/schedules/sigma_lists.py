"""Where to put the steps: the spacings of the DPM-Solver paper (section 3.4 and appendix D).

The functions return a list of sigmas from one end of a schedule to the other. They add no final zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .process import NoiseSchedule

TIME_POWERS = {"time_uniform": 1, "time_quadratic": 2}
"""Spacing in time -> k: the k-th roots of the times are evenly spaced."""

SPACINGS = ("logSNR", *TIME_POWERS)
"""The names of all spacings, as in the authors' code."""


def log_snr(
    schedule: NoiseSchedule,
    sigma_start: float,
    sigma_end: float,
    intervals: int,
    sigma_first: float | None = None,
) -> list[float]:
    """Sigmas evenly spaced in lambda_, `intervals` + 1 of them ("logSNR" in the authors' code).

    Args:
        sigma_start, sigma_end: both ends, above zero, in either direction; they come back exactly.
        sigma_first: needed if sigma_start is a flow's 1, whose lambda_ is infinite: the end of the
            exact first step. The spacing is even from there on.
    """
    if intervals < 1:
        return [sigma_start]
    if math.isinf(schedule.lambda_(sigma_start)):
        if sigma_first is None:
            raise ValueError(
                f"The log-SNR at sigma = {sigma_start:g} is infinite: give sigma_first, where even "
                "spacing starts."
            )
        if intervals == 1:
            return [sigma_start, sigma_end]
        return [sigma_start, *log_snr(schedule, sigma_first, sigma_end, intervals - 1)]
    start, end = schedule.lambda_(sigma_start), schedule.lambda_(sigma_end)
    inner = [schedule.sigma(start + (end - start) * i / intervals) for i in range(1, intervals)]
    return [sigma_start, *inner, sigma_end]


def flow_first(sigma_of_time: Callable[[float], float], t_start: float, intervals: int) -> float:
    """The sigma at which even spacing in lambda_ starts on a flow, whose list starts at 1.

    With m sigmas above zero the exact first step leads to the time 1 - 1 / m, which measured best
    (benchmarks/defaults.py).
    """
    return sigma_of_time(t_start * (1.0 - 1.0 / max(intervals + 1, 2)))


def in_time(
    sigma_of_time: Callable[[float], float],
    t_start: float,
    t_end: float,
    intervals: int,
    power: int = 1,
) -> list[float]:
    """Sigmas at evenly spaced power-th roots of time ("time_uniform", "time_quadratic").

    Args:
        sigma_of_time: the model's sigma at a time.
        t_start, t_end: the times of both ends, not negative.
    """
    if intervals < 1:
        return [sigma_of_time(t_start)]
    start, end = t_start ** (1.0 / power), t_end ** (1.0 / power)
    inner = [
        sigma_of_time((start + (end - start) * i / intervals) ** power) for i in range(1, intervals)
    ]
    return [sigma_of_time(t_start), *inner, sigma_of_time(t_end)]
