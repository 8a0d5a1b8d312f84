"""The teacher: the model's ODE solved finely, with its states kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ...samplers import NoiseSchedule, RectifiedFlow, sample_multistep
from .model import Model

POINTS = 64
"""How many sigmas the teacher's list has; the student's are chosen among them."""

MOST_NUMBERS, MOST_NUMBERS_OF_ALL = 16384, 2**20
"""The most numbers of each image, and of all seeds, that enter a fit: a random choice if there are
more. The teacher's states then take at most 260 MiB."""

TEACHER = partial(sample_multistep, order=3, solver_type="exact", corrector="unic", disable=True)

Array = np.ndarray


def teacher_sigmas(
    schedule: NoiseSchedule, sigma_max: float, sigma_min: float, points: int = POINTS
) -> tuple[float, ...]:
    """The teacher's sigmas: evenly spaced in lambda_; on flows half of them evenly in sigma.

    Args:
        sigma_max: the first one, where sampling starts; it comes back exactly.
        sigma_min: the last one.
    """
    if not isinstance(schedule, RectifiedFlow):
        return tuple(np.geomspace(sigma_max, sigma_min, points).tolist())
    first, last = schedule.lambda_(min(sigma_max, 0.995)), schedule.lambda_(sigma_min)
    even_in_lambda = [schedule.sigma(each) for each in np.linspace(first, last, points // 2)]
    even_in_sigma = np.linspace(sigma_max, sigma_min, points - points // 2).tolist()
    chosen: list[float] = []
    for sigma in sorted([*even_in_lambda, *even_in_sigma], reverse=True):
        if not chosen or chosen[-1] - sigma > 1e-3 * chosen[-1] * (1.0 - 0.9 * sigma):
            chosen.append(sigma)
    return (*chosen[:-1], sigma_min)


@dataclass(frozen=True)
class Records:
    """The teacher's run.

    Attributes:
        sigmas: M sigmas, its list without the final 0.
        starts: [S, ...], the noises it started from.
        states: [M + 1, S, d], at each sigma and at the end; d numbers are kept of each image.
        products: [S, 2M + 1, 2M + 1], each image's mean products of those states and of the M
            denoised outputs.
        numbers: [d], which numbers of an image are kept.
    """

    sigmas: tuple[float, ...]
    starts: torch.Tensor
    states: torch.Tensor
    products: Array
    numbers: torch.Tensor

    @property
    def variance(self) -> float:
        """The variance of the numbers of the finished images."""
        return self.states[-1].double().var().item()

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The kept numbers of a batch: [S, d]."""
        return _numbers(x, self.numbers)


def _numbers(x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return x.cpu().flatten(1)[:, which].float()


def teach(
    model: Model, starts: torch.Tensor, sigmas: Sequence[float], schedule: NoiseSchedule
) -> Records:
    """Solve the ODE in many steps from each start."""
    points = len(sigmas)
    generator = torch.Generator("cpu").manual_seed(0)
    order = torch.randperm(starts[0].numel(), generator=generator, device="cpu")
    most = min(MOST_NUMBERS, MOST_NUMBERS_OF_ALL // len(starts))
    numbers = order[:most].sort().values
    states = torch.empty(points + 1, len(starts), len(numbers), device="cpu")
    products: list[Array] = []
    for part, kept in zip(starts.split(model.batch), states.split(model.batch, 1), strict=True):
        outputs = torch.empty_like(kept[1:])

        def keep(
            report: Mapping[str, Any],
            kept: torch.Tensor = kept,
            outputs: torch.Tensor = outputs,
        ) -> None:
            kept[report["i"]] = _numbers(report["x"], numbers)
            outputs[report["i"]] = _numbers(report["denoised"], numbers)

        end = TEACHER(model, part, [*sigmas, 0.0], callback=keep, schedule=schedule)
        kept[points] = _numbers(end, numbers)
        for k in range(len(part)):
            products.append(mean_products(torch.cat([kept[:, k], outputs[:, k]])))
    return Records(tuple(sigmas), starts, states, np.stack(products), numbers)


def mean_products(rows: torch.Tensor) -> Array:
    """[m, m]: mean products of one image's m vectors, [m, d]."""
    rows = rows.double()
    return (rows @ rows.T / rows.shape[1]).numpy()
