"""The teacher: the model's ODE solved finely, with its states kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ...samplers import NoiseSchedule, RectifiedFlow, sample_multistep
from .model import Model

POINTS = 64
"""How many sigmas the teacher's list has; the student's are chosen among them."""

HALF = POINTS // 2 + 1
"""How many sigmas the list has with which it is compared first."""

REFINED = (2, 4)
"""How many times as many steps the teacher takes where these are not enough."""

TOLERANCE = 0.08
"""The largest difference between an image and the same with half the steps, relative to its size. On
exact models the finer one is then, as a rule, ten times as near to the solution."""

MOST_NUMBERS, MOST_NUMBERS_OF_ALL = 16384, 2**20
"""The most numbers of each image, and of all seeds, that enter a fit: a random choice if there are
more. The teacher's states then take at most 260 MiB, and its outputs as much if they are kept."""

FIRST_BELOW_1 = 0.9995
"""A flow's largest sigma but 1, from which its sigmas are even in lambda_: in large images the low
frequencies are decided soon after 1."""

TEACHER = partial(sample_multistep, order=3, solver_type="exact", corrector="unic", disable=True)

Array = np.ndarray
Whole = Callable[[Sequence[float]], Sequence[float]]
"""Moves falling sigmas to those that the host can pass to the model, both ends excepted."""


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
    first, last = schedule.lambda_(min(sigma_max, FIRST_BELOW_1)), schedule.lambda_(sigma_min)
    even_in_lambda = [schedule.sigma(each) for each in np.linspace(first, last, points // 2)]
    even_in_sigma = np.linspace(sigma_max, sigma_min, points - points // 2).tolist()
    chosen: list[float] = []
    for sigma in sorted([*even_in_lambda, *even_in_sigma], reverse=True):
        if not chosen or chosen[-1] - sigma > 1e-3 * chosen[-1] * (1.0 - 0.9 * sigma):
            chosen.append(sigma)
    return (*chosen[:-1], sigma_min)


def refinements(sigmas: Sequence[float], whole: Whole = list) -> tuple[tuple[float, ...], ...]:
    """Lists for the teacher to solve on, from every second of its sigmas to REFINED times as many.

    All but the first hold all of the sigmas.
    """
    finer = [
        [a + (b - a) * i / parts for a, b in itertools.pairwise(sigmas) for i in range(parts)]
        for parts in REFINED
    ]
    return (
        (*sigmas[:-1:2], sigmas[-1]),
        tuple(sigmas),
        *(tuple(sorted({*sigmas, *whole([*each, sigmas[-1]])}, reverse=True)) for each in finer),
    )


@dataclass(frozen=True)
class Kept:
    """Which numbers of an image enter a fit: of its spectrum, so that they tell coarse from fine.

    The transform is orthonormal, and numbers that stand for others count as much as those together:
    mean products of what is kept are, in the mean over the choice, those of the images.

    Attributes:
        numbers: [d], which are kept.
        scale: [d], what they are multiplied by.
        band: [d], a number from 0 up for each, by frequency.
    """

    numbers: torch.Tensor
    scale: torch.Tensor
    band: torch.Tensor

    @classmethod
    def choose(cls, shape: Sequence[int], most: int, bands: int = 1) -> Kept:
        """At most so many of an image's numbers: all of the coarse bands, and some of the fine ones.

        Args:
            shape: of one image: channels, then its axes.
        """
        band = _bands(shape, bands)
        generator = torch.Generator("cpu").manual_seed(0)
        members = [torch.nonzero(band == k).flatten() for k in range(bands)]
        left, chosen, shares = min(most, len(band)), [], []
        order = sorted(range(bands), key=lambda k: len(members[k]))
        for done, k in enumerate(order):
            count = min(len(members[k]), left // (bands - done))
            left -= count
            drawn = torch.randperm(len(members[k]), generator=generator, device="cpu")[:count]
            chosen.append(members[k][drawn])
            shares.append(torch.full((count,), len(members[k]) / max(count, 1)))
        numbers, at = torch.cat(chosen).sort()
        share = torch.cat(shares)[at] * len(numbers) / len(band)
        return cls(numbers, share.sqrt(), band[numbers])

    @property
    def bands(self) -> int:
        return int(self.band.max()) + 1

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The kept numbers of a batch: [S, d]; one image is transformed after the other."""
        spectra = (spectrum(image.cpu().float()).flatten() for image in x.split(1))
        return torch.stack([each[self.numbers] for each in spectra]) * self.scale

    def products(self, rows: torch.Tensor) -> Array:
        """[bands, m, m]: mean products of one image's m vectors, [m, d], in each band."""
        parts = (rows[:, self.band == k] for k in range(self.bands))
        return np.stack([mean_products(part, rows.shape[1]) for part in parts])


def spectrum(x: torch.Tensor) -> torch.Tensor:
    """The Hartley transform over an image's axes, which is real and orthonormal.

    Args:
        x: [batch, channels, ...].
    """
    axes = tuple(range(2, x.ndim))
    if not axes:
        return x
    transformed = torch.fft.fftn(x, dim=axes, norm="ortho")
    return transformed.real - transformed.imag


def _bands(shape: Sequence[int], bands: int) -> torch.Tensor:
    """The band of each number of a spectrum, by its frequency, evenly in its logarithm."""
    axes = [np.fft.fftfreq(size) * 2.0 for size in shape[1:]]
    squares = [np.square(grid) for grid in np.meshgrid(*axes, indexing="ij")]
    frequency = np.sqrt(sum(squares)) if squares else np.zeros(())
    if bands > 1 and frequency.max() > 0.0:
        lowest = 1.5 / max(shape[1:])
        edges = np.geomspace(min(lowest, 0.5), frequency.max() * 1.001, bands)[:-1]
        band = np.digitize(frequency, edges)
    else:
        band = np.zeros(frequency.shape, int)
    return torch.from_numpy(np.broadcast_to(band, tuple(shape)).reshape(-1).copy())


class Solved(NamedTuple):
    """Solutions from some starts.

    Attributes:
        ends: [S, d], the kept numbers of the images.
        differences: [S], from the same with half the steps, relative to the image's size.
    """

    ends: torch.Tensor
    differences: torch.Tensor

    @property
    def converged(self) -> Array:
        """[S], which images count: those that converged, or all if fewer than half did."""
        good: Array = (self.differences <= TOLERANCE).numpy()
        return good if 2 * good.sum() >= len(good) else np.ones_like(good)

    @property
    def unconverged(self) -> int:
        """How many did not converge."""
        return int((self.differences > TOLERANCE).sum())


@dataclass(frozen=True)
class Records:
    """The teacher's run.

    Attributes:
        sigmas: M sigmas, its list without the final 0.
        starts: [S, ...], the noises it started from.
        states: [M + 1, S, d], at each sigma and at the end; d numbers are kept of each image.
        outputs: [M, S, d], the denoised outputs; None if not asked for.
        products: [S, bands, 2M + 1, 2M + 1], each image's mean products of those states and of the M
            denoised outputs.
        kept: which numbers are kept.
        solved: the ends and how near they are.
    """

    sigmas: tuple[float, ...]
    starts: torch.Tensor
    states: torch.Tensor
    outputs: torch.Tensor | None
    products: Array
    kept: Kept
    solved: Solved

    @property
    def counted(self) -> Array:
        """[S], which images a fit counts."""
        return self.solved.converged

    @property
    def variance(self) -> float:
        """The variance of the numbers of the finished images."""
        return self.states[-1].double().var().item()

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The kept numbers of a batch: [S, d]."""
        return self.kept.of(x)


Keep = Callable[[Mapping[str, Any]], None]


def solve(
    model: Model,
    part: torch.Tensor,
    lists: Sequence[Sequence[float]],
    schedule: NoiseSchedule,
    kept: Kept,
    limit: float,
    keep: Keep = lambda report: None,
) -> Solved:
    """Solve the ODE for some images on finer and finer lists, until they don't change any more.

    Args:
        lists: see `refinements`.
        limit: how many images the model may have been called with in all, on the lists after the
            second.
        keep: called with the model's calls at the sigmas of the second list, "i" their number.
    """

    def on(list_: Sequence[float]) -> torch.Tensor:
        recorded = lists[1] if len(list_) >= len(lists[1]) else ()
        places = {list_.index(sigma): i for i, sigma in enumerate(recorded)}

        def callback(report: Mapping[str, Any]) -> None:
            if report["i"] in places:
                keep({**report, "i": places[report["i"]]})

        return kept.of(TEACHER(model, part, [*list_, 0.0], callback=callback, schedule=schedule))

    before, end = (on(each) for each in lists[:2])
    differences = _relative(end, before)
    for list_ in lists[2:]:
        needed = len(part) * len(list_)
        if differences.max() <= TOLERANCE or model.meter.images + needed > limit:
            break
        before, end = end, on(list_)
        differences = _relative(end, before)
    return Solved(end, differences)


def _relative(end: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    size = end.square().mean(1).sqrt().clamp_min(1e-6)
    return (end - before).square().mean(1).sqrt() / size


def together(parts: Sequence[Solved]) -> Solved:
    return Solved(*map(torch.cat, zip(*parts, strict=True)))


def teach(
    model: Model,
    starts: torch.Tensor,
    lists: Sequence[Sequence[float]],
    schedule: NoiseSchedule,
    limit: float = 0.0,
    bands: int = 1,
) -> Records:
    """Solve the ODE in many steps from each start.

    Args:
        lists: see `refinements`; the second is the one that is recorded.
        limit: see `solve`.
        bands: how many bands of frequencies the products are kept of; the outputs are kept if there
            is more than one.
    """
    sigmas = lists[1]
    points = len(sigmas)
    most = min(MOST_NUMBERS, MOST_NUMBERS_OF_ALL // len(starts))
    kept = Kept.choose(starts.shape[1:], most, bands)
    states = torch.empty(points + 1, len(starts), len(kept.numbers), device="cpu")
    all_outputs = torch.empty(points, len(starts), len(kept.numbers)) if bands > 1 else None
    products: list[Array] = []
    solved: list[Solved] = []
    for part, own in zip(starts.split(model.part), states.split(model.part, 1), strict=True):
        outputs = torch.empty_like(own[1:])

        def keep(
            report: Mapping[str, Any],
            own: torch.Tensor = own,
            outputs: torch.Tensor = outputs,
        ) -> None:
            own[report["i"]] = kept.of(report["x"])
            outputs[report["i"]] = kept.of(report["denoised"])

        solved.append(solve(model, part, lists, schedule, kept, limit, keep))
        own[points] = solved[-1].ends
        if all_outputs is not None:
            all_outputs[:, len(products) : len(products) + len(part)] = outputs
        for k in range(len(part)):
            products.append(kept.products(torch.cat([own[:, k], outputs[:, k]])))
    return Records(
        tuple(sigmas), starts, states, all_outputs, np.stack(products), kept, together(solved)
    )


def mean_products(rows: torch.Tensor, size: int | None = None) -> Array:
    """[m, m]: mean products of one image's m vectors, [m, d].

    Args:
        size: how many numbers the mean is over; by default d.
    """
    rows = rows.double()
    return (rows @ rows.T / (size or rows.shape[1])).numpy()
