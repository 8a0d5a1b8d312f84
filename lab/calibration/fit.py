"""Fits a student's weights step by step, so that its states come close to the teacher's.

Each fit is a regularised weighted least squares problem of a few unknowns, with the exact weights as
its prior. Images with larger errors count less, so that a few outliers don't decide for all: the fit
minimises the geometric mean of the errors (iteratively reweighted least squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ...samplers import NoiseSchedule
from ...samplers.plan import Weights
from ...samplers.solvers.fitted import exact_weights
from ..metrics import geometric_mean
from .model import Model
from .teacher import Array, Records, mean_products

SLOPES = 4
"""The most slopes that a step uses."""

RIDGE = 1e-4
"""How strongly a weight is pulled to the exact one, relative to its slope's size in the fit."""

PRIOR_ORDER = 3
"""The order of these exact weights."""

ROUNDS, SOFTENING = 4, 0.05
"""How often images are reweighted, and the fraction of the mean square error that each counts for at
least."""


def reweighted(products: Array, prior: Array, rounds: int = ROUNDS) -> tuple[Array, Array]:
    """Fit the last of some vectors by the others, with a weight for each image.

    Args:
        products: [S, m + 1, m + 1], mean products of the m vectors and, last, the target.
        prior: [m], what the weights are pulled to.

    Returns:
        The weights [m], and each image's mean square error [S].
    """
    of_image = np.full(len(products), 1.0 / len(products))
    for _ in range(rounds):
        total = np.tensordot(of_image, products, 1)
        matrix, target = total[:-1, :-1], total[:-1, -1]
        pull = RIDGE * np.diag(matrix) + 1e-12 * np.trace(matrix)
        weights = np.linalg.solve(matrix + np.diag(pull), target + pull * prior)
        residual = np.append(-weights, 1.0)
        errors = np.maximum(products @ residual @ residual, 1e-18)
        of_image = 1.0 / (errors + SOFTENING * errors.mean())
        of_image /= of_image.sum()
    return weights, errors


def prior(schedule: NoiseSchedule, sigmas: Sequence[float], slopes: int) -> Array:
    """The exact weights of a list's last step, [1 + number of slopes], padded with zeros."""
    exact = exact_weights(schedule, sigmas, PRIOR_ORDER)
    used = min(len(sigmas) - 1, slopes)
    weights = np.zeros(1 + used)
    weights[: 1 + min(used, len(exact.outputs))] = (exact.state, *exact.outputs[:used])
    return weights


class Student(NamedTuple):
    """Sigmas, the weights fitted on them, and the geometric mean error on the noises of the fit.

    A sampler that has its own weights gets none.
    """

    indices: tuple[int, ...]
    steps: tuple[Weights, ...]
    error: float


def fit(
    model: Model, records: Records, schedule: NoiseSchedule, indices: tuple[int, ...], slopes: int
) -> Student:
    """Run a student on the model, and fit each step's weights as it goes."""
    nodes = (*indices, len(records.sigmas))
    sigmas = [*(records.sigmas[index] for index in indices), 0.0]
    x, kept = records.starts, list[torch.Tensor]()
    numbers = list[torch.Tensor]()  # of each slope, those that enter the fit
    steps: list[Weights] = []
    for i in range(len(indices)):
        kept.insert(0, (x - model(x, x.new_full((len(x),), sigmas[i]))) / sigmas[i])
        numbers.insert(0, records.of(kept[0]))
        del kept[slopes:], numbers[slopes:]
        target = records.states[nodes[i + 1]]
        vectors = torch.stack([records.of(x), *numbers, target], 1)[records.counted]
        products = np.stack([mean_products(of_image) for of_image in vectors])
        exact = prior(schedule, sigmas[: i + 2], slopes)
        weights, errors = reweighted(products, exact)
        steps.append(Weights(float(weights[0]), tuple(map(float, weights[1:]))))
        x = steps[-1].state * x
        for weight, slope in zip(steps[-1].outputs, kept, strict=True):
            x.add_(slope, alpha=weight)
    return Student(indices, tuple(steps), geometric_mean(np.sqrt(errors)))
