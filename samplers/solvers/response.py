"""Gains for sigmas that are not quite those of a row.

For an image whose values are Gaussian with variance v, the exact model multiplies its input z by
v / (v + s^2), and so a whole run multiplies its start by a number, its response. The exact response
is known in closed form. Details of an image have all kinds of variances, coarse ones large and fine
ones small, so the responses over VARIANCES say much of what a list of sigmas with its gains does.

The gains of a row belong to its sigmas to a few parts in a thousand. Hosts move sigmas to whole times,
and most runs take a mean of several rows. `adapted` therefore finds the gains that have the row's
responses on the sigmas of the run, and that are nearest to the row's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .row_weights import counted_as, weights
from .rows import Row

VARIANCES = np.geomspace(3e-3, 3e3, 40)
"""Of details of an image whose overall variance is 1."""

STAY = 0.05
"""How much a change of a gain counts beside a relative change of a response. Chosen on models of
`TUNE`, for image to image and for whole runs."""

SAME_LEVEL = 1e-6
"""In log s. Levels that are as near as this are a row's own, but for rounding."""

ROUNDS = 3
"""Of Gauss and Newton's method."""


@lru_cache(256)
def adapted(row: Row, levels: tuple[float, ...], low: float, exactly: bool = False) -> Row:
    """The row with these levels of log s, and with gains that suit them.

    Args:
        low: log s of the model's sigma_min, or minus infinity if it is not known.
        exactly: aim at the exact responses in place of the row's.
    """
    own = tuple(map(math.log, row.s))
    if not (exactly or row.made_of) and np.allclose(levels, own, rtol=0.0, atol=SAME_LEVEL):
        return row
    low = max(low, math.log(row.low))
    wanted = np.ones_like(VARIANCES) if exactly else _wanted(row)
    begun = np.array([row.slope, row.curvature]).T
    gains = begun
    exact = _exact(levels[0], low)
    for _ in range(ROUNDS):
        response, change = _response(levels, gains)
        rows = np.vstack([change.T / exact[:, None], STAY * np.eye(begun.size)])
        missing = [wanted - response / exact, STAY * (begun - gains).ravel()]
        step, *_ = np.linalg.lstsq(rows, np.concatenate(missing), rcond=None)
        gains = gains + step.reshape(gains.shape)
    slope, curvature = map(tuple, gains.T.tolist())
    return Row(tuple(map(math.exp, levels)), slope, curvature)


@lru_cache(1024)
def _wanted(row: Row) -> np.ndarray:
    """A row's responses over the exact ones; of a mean of rows the mean of theirs."""
    if row.made_of:
        return np.sum([share * _wanted(one) for share, one in row.made_of if share], axis=0)
    levels = tuple(map(math.log, row.s))
    response, _ = _response(levels, np.array([row.slope, row.curvature]).T)
    return response / _exact(levels[0], math.log(row.low))


def _exact(start: float, low: float) -> np.ndarray:
    """The responses of the converged run from log s = start, which ends with the output at low."""
    first, last = (math.exp(2.0 * level) for level in (start, low))
    return VARIANCES / np.sqrt((VARIANCES + first) * (VARIANCES + last))


def _response(levels: Sequence[float], gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The responses, [variances], and their derivatives by the gains, [gains, variances].

    Args:
        levels: log s of the calls.
        gains: of slope and curvature, [calls, 2].
    """
    z, change = np.ones_like(VARIANCES), np.zeros((gains.size, len(VARIANCES)))
    outputs: list[tuple[np.ndarray, np.ndarray]] = []
    counted = counted_as(levels)
    for i, level in enumerate(levels):
        kept = VARIANCES / (VARIANCES + math.exp(2.0 * level))
        outputs = [(kept * z, kept * change), *outputs[:2]]
        known = [*counted[max(i - 2, 0) : i + 2], -math.inf][: min(i, 2) + 2]
        mixed, of_mixed = (part.copy() for part in outputs[0])
        for gain, unit in enumerate(((1.0, 0.0), (0.0, 1.0))):
            for weight, (output, of_output) in zip(weights(known, *unit), outputs[1:], strict=True):
                beyond = outputs[0][0] - output
                mixed += gains[i, gain] * weight * beyond
                of_mixed += gains[i, gain] * weight * (outputs[0][1] - of_output)
                of_mixed[2 * i + gain] += weight * beyond
        left = math.exp(levels[i + 1] - level) if i + 1 < len(levels) else 0.0
        z, change = mixed + left * (z - mixed), of_mixed + left * (change - of_mixed)
    return z, change
