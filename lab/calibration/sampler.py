"""Sigmas for a sampler that has its own weights: euler, dpmpp_2m, uni_pc, ...

Lists as "Align Your Steps" and OptimalSteps have published for some models, but for the user's own
model and for the sampler in question. The sampler's own code runs in the surrogate, too: the samplers
that fit are linear in the state and the model's outputs, so they run on the coefficients of a linear
combination as they run on images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...samplers import NoiseSchedule
from ...samplers.integrate import Denoiser
from ..metrics import geometric_mean, rms
from .fit import Student
from .model import Model
from .teacher import Array, Records

Sampler = Callable[[Denoiser, torch.Tensor, torch.Tensor], torch.Tensor]
"""A sampler of the host: (model, start, sigmas) -> images."""

SAME = 1e-6
"""The largest relative difference between two results that count as the same."""


BANDS = 8
"""How many bands of frequencies the surrogate tells apart."""

SMOOTH, PRIOR_WEIGHT = 2.5, 0.05
"""Over how many of the teacher's sigmas a gain that was seen counts, and how much the first do."""


class NotSuitableError(ValueError):
    """A sampler that no list of sigmas can be found for, and why."""


def check_sampler(sampler: Sampler, name: str, schedule: NoiseSchedule, calls: int = 6) -> None:
    """Raise NotSuitableError unless a sampler can be predicted from the teacher's run.

    It must call the model once at each sigma of its list, in order, add no noise, and be linear in the
    state and the model's outputs. All is found out on a small model that costs nothing.

    Args:
        calls: how many the list for this has.
    """
    largest = min(schedule.sigma_limit, 10.0)
    sigmas = torch.tensor([largest * 0.6**i for i in range(calls)] + [0.0])
    generator = torch.Generator("cpu").manual_seed(0)
    start = largest * torch.randn(1, 1, 4, 4, generator=generator, device="cpu")

    def run(x: torch.Tensor, seed: int) -> tuple[torch.Tensor, list[float]]:
        called: list[float] = []

        def model(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
            called.append(float(sigma.flatten()[0]))
            return x / (1.0 + called[-1] ** 2)

        torch.manual_seed(seed)
        return sampler(model, x.clone(), sigmas.clone()), called

    state = torch.get_rng_state()
    try:
        (once, called), (other_noise, _), (twice, _) = (
            run(start, 0),
            run(start, 1),
            run(2 * start, 0),
        )
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise NotSuitableError(f"{name} can't be fitted: it does not run here ({error}).") from None
    finally:
        torch.set_rng_state(state)

    def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
        return not torch.allclose(a, b, rtol=SAME, atol=10 * SAME * float(once.abs().max()))

    same_list = len(called) == calls and np.allclose(called, sigmas[:-1], rtol=1e-4)
    if not same_list:
        why = f"it does not call the model once at each sigma, but {len(called)} times for {calls}"
    elif differ(once, other_noise):
        why = "it adds noise"
    elif differ(twice, 2 * once):
        why = "it is not linear in the model's outputs"
    else:
        return
    raise NotSuitableError(f"No sigmas can be fitted for {name}: {why}; take another sampler.")


class SamplerSurrogate:
    """Predicts the error of a sampler on a list of sigmas, from the teacher's run.

    At the teacher's states the model's outputs are known. Away from them the output is assumed to
    change in proportion to the state, by a gain of its own in each band of frequencies: at first that
    for Gaussian data with the images' variance in the band, later what runs on the model have shown.
    """

    def __init__(
        self, records: Records, schedule: NoiseSchedule, calls: int, sampler: Sampler
    ) -> None:
        self.records, self.calls, self.sampler = records, calls, sampler
        self.points = len(records.sigmas)
        self.products = records.products[records.counted]
        self.bands = self.products.shape[1]
        self.unit = np.eye(2 * self.points + 1 + calls)
        band = records.kept.band.numpy()
        count = np.bincount(band, minlength=self.bands) / len(band)
        share = np.bincount(band, records.kept.scale.double().square().numpy(), self.bands) / len(
            band
        )
        share = np.where(count > 0.0, share, 1.0)
        variance = self.products[:, :, self.points, self.points].mean(0) / share
        sigmas = np.array(records.sigmas)[:, None]
        alpha = np.array([schedule.alpha(sigma) for sigma in records.sigmas])[:, None]
        self.prior: Array = alpha * variance / (alpha**2 * variance + sigmas**2)
        """[M, bands], the first gains."""
        self.gains = self.prior
        self.unexplained = np.zeros_like(self.prior)
        """[M, bands], mean square of the output's other changes, relative to that of the state's."""
        self.seen: list[tuple[int, Array, Array]] = []
        self.errors: dict[tuple[int, ...], float] = {}

    def sigma(self, index: int) -> float:
        return self.records.sigmas[index] if index < self.points else 0.0

    def error(self, indices: tuple[int, ...]) -> float:
        """The predicted error of the sampler on these sigmas, one for each call."""
        if indices not in self.errors:
            self.errors[indices] = self._run(indices)
        return self.errors[indices]

    def _run(self, indices: tuple[int, ...]) -> float:
        known, call = 2 * self.points + 1, -1
        unknown = np.zeros((len(self.products), self.bands, self.calls))

        def model(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
            """On the coefficients of vectors, [bands, vectors], in place of images."""
            nonlocal call
            call += 1
            index = indices[call]
            output = np.repeat(self.unit[None, self.points + 1 + index], self.bands, 0)
            if call:
                away = x.double().numpy() - self.unit[index]
                square = self._squares(away, unknown)
                unknown[:, :, call] = self.unexplained[index] * square
                output += self.gains[index][:, None] * away + self.unit[known + call]
            return torch.from_numpy(output).to(x)

        sigmas = torch.tensor([*(self.sigma(index) for index in indices), 0.0])
        start = torch.from_numpy(np.repeat(self.unit[None, indices[0]], self.bands, 0))
        end = self.sampler(model, start.float(), sigmas).double().numpy()
        square = self._squares(end - self.unit[self.points], unknown).sum(1)
        return geometric_mean(np.sqrt(np.maximum(square, 1e-18)))

    def _squares(self, vectors: Array, unknown: Array) -> Array:
        """[S, bands], mean squares of a vector in each band."""
        known = 2 * self.points + 1
        squares = np.einsum("bk,sbk->sb", vectors[:, known:] ** 2, unknown)
        for band, vector in enumerate(vectors[:, :known]):
            used = np.flatnonzero(vector)
            part = self.products[:, band][:, used[:, None], used]
            squares[:, band] += part @ vector[used] @ vector[used]
        return squares

    def learn(self, index: int, away: torch.Tensor, change: torch.Tensor) -> None:
        """Note what the model did away from the teacher.

        Args:
            index: of the sigma.
            away: [S, d], the state's difference from the teacher's, in the kept numbers.
            change: [S, d], the output's.
        """
        away, change = (part[self.records.counted].double() for part in (away, change))
        bands = self.records.kept.band
        products = [(away * away), (away * change), (change * change)]
        sums = np.array(
            [
                [float(product[:, bands == k].sum()) for k in range(self.bands)]
                for product in products
            ]
        )
        square = np.maximum(sums[0], 1e-30)
        gain = sums[1] / square
        self.seen.append((index, gain, np.maximum(sums[2] / square - gain**2, 0.0)))

    def update(self) -> None:
        """Take the gains that were seen; between sigmas they are smooth."""
        if not self.seen:  # a single call teaches none
            return
        at = np.array([index for index, _, _ in self.seen])
        gains, unexplained = (np.array([one[k] for one in self.seen]) for k in (1, 2))
        weights = np.exp(-0.5 * ((np.arange(self.points)[:, None] - at) / SMOOTH) ** 2)
        weights /= weights.sum(1, keepdims=True) + PRIOR_WEIGHT
        self.gains = self.prior + weights @ (gains - self.prior[at])
        self.unexplained = weights @ unexplained
        self.errors.clear()


def run(model: Model, surrogate: SamplerSurrogate, indices: tuple[int, ...]) -> Student:
    """Run the sampler on the model, from the teacher's starts; the surrogate learns from it."""
    records = surrogate.records
    runs = [
        _run(model, surrogate, indices, begin)
        for begin in range(0, len(records.starts), model.part)
    ]
    for call, index in enumerate(indices[1:]):
        away, change = (torch.cat([part[k][call] for part in runs]) for k in (1, 2))
        surrogate.learn(index, away, change)
    surrogate.update()
    ends = torch.cat([part[0] for part in runs])
    return Student(indices, (), geometric_mean(rms(ends, records.states[-1])[records.counted]))


def _run(
    model: Model, surrogate: SamplerSurrogate, indices: tuple[int, ...], begin: int
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """A part of the images: the ends, and how far states and outputs are from the teacher's."""
    records = surrogate.records
    assert records.outputs is not None
    states, known = (
        each[:, begin : begin + model.part] for each in (records.states, records.outputs)
    )
    sigmas = torch.tensor([*(surrogate.sigma(index) for index in indices), 0.0])
    away: list[torch.Tensor] = []
    change: list[torch.Tensor] = []
    call = -1

    def watched(x: torch.Tensor, sigma: torch.Tensor, **extra: object) -> torch.Tensor:
        nonlocal call
        call += 1
        output = model(x, sigma, **extra)
        if call:
            away.append(records.of(x) - states[indices[call]])
            change.append(records.of(output) - known[indices[call]])
        return output

    start = records.starts[begin : begin + model.part]
    return records.of(surrogate.sampler(watched, start, sigmas)), away, change
