"""What the samplers need to know of a host's model, and what follows from it for every host.

Each host has one subclass of `HostModel`, which reads the facts from that host's objects.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ..samplers import Calibration, NoiseSchedule, RectifiedFlow
from ..samplers.checks import at_least, between, escaped, one_of
from ..samplers.grid import Grid
from ..samplers.options import Options
from ..samplers.schedules.sigma_lists import (
    SPACINGS,
    TIME_POWERS,
    flow_first,
    in_time,
    log_snr,
)
from ..samplers.solvers.recommended import Recommended
from ..samplers.solvers.recommended_lists import later_sigmas, recommended_sigmas
from ..samplers.solvers.recommended_parts import part_of
from ..samplers.solvers.rows import LARGEST, positions_of, share_of

MOST_STEPS = 1_000_000
RECOMMENDED = "recommended"
OFFERED_SPACINGS = (*SPACINGS, RECOMMENDED)
"""The spacings that the sigmas node and the hosts' lists of schedulers offer."""

ROUNDED = 1e-5
"""The largest relative difference of a sigma from the same one: hosts hold them in float32."""

SAME_START = 0.01
"""The largest relative difference between a model's sigma_max and the first sigma of a list for it."""


class Times(NamedTuple):
    """A model's time: as in the paper, 1 at the noise and near 0 at the image, if the host has it so.

    Attributes:
        sigma: time -> sigma.
        start, end: the times of the first and of the last sigma above 0.
    """

    sigma: Callable[[float], float]
    start: float
    end: float


class HostModel(ABC):
    """A model as its host has loaded it."""

    @property
    @abstractmethod
    def schedule(self) -> NoiseSchedule:
        """Its noise schedule. ValueError if sampling it is no ODE that these solvers solve."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name of its class in ComfyUI; "" if the host can't tell."""

    @property
    @abstractmethod
    def own_sigma_max(self) -> float:
        """Its largest sigma, as the host rounds it."""

    @property
    @abstractmethod
    def sigma_min(self) -> float:
        """Its smallest sigma above 0."""

    @property
    def shift(self) -> float | None:
        """The shift of a flow's times, if the host tells one."""
        return None

    @abstractmethod
    def times(self, sigma_max: float, sigma_min: float) -> Times:
        """Its time between two of its sigmas."""

    @abstractmethod
    def whole(self, sigmas: Sequence[float]) -> list[float] | None:
        """The sigmas of the whole times nearest to given sigmas; None if the host passes any time."""

    @property
    def flow(self) -> bool:
        return isinstance(self.schedule, RectifiedFlow)

    @property
    def sigma_max(self) -> float:
        """Its largest sigma; a flow's is 1 exactly."""
        return self._exact(self.own_sigma_max)

    def above_zero(
        self,
        spacing: str,
        intervals: int,
        finishes: bool = True,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        positions: int = LARGEST,
    ) -> list[float]:
        """intervals + 1 sigmas above 0, from sigma_max to sigma_min.

        Args:
            spacing: one of OFFERED_SPACINGS.
            finishes: a 0 follows; the recommended spacing then ends above sigma_min.
            sigma_max, sigma_min: the ends that the user sets; by default the model's own.
            positions: of the image, for the recommended spacing.
        """
        sigma_max = self.sigma_max if sigma_max is None else self._exact(sigma_max)
        sigma_min = self.sigma_min if sigma_min is None else sigma_min
        if spacing == RECOMMENDED:
            calls = intervals + finishes
            own = recommended_sigmas(self.schedule, sigma_max, sigma_min, calls, positions)
            *falling, _ = self._moved(own)
            if finishes:
                return falling
            if falling[-1] <= sigma_min * (1.0 + ROUNDED):  # a row may end at sigma_min itself
                falling[-1] = math.sqrt(falling[-2] * sigma_min)
            return [*falling, sigma_min]
        times = self.times(sigma_max, sigma_min)
        if spacing == "logSNR":
            first = flow_first(times.sigma, times.start, intervals)
            return log_snr(self.schedule, sigma_max, sigma_min, intervals, first)
        power = TIME_POWERS[spacing]
        inner = in_time(times.sigma, times.start, times.end, intervals, power)[1:-1]
        return [sigma_max, *inner, sigma_min][: intervals + 1]

    def sigmas(
        self,
        spacing: str,
        steps: int,
        denoise: float = 1.0,
        final_zero: bool = True,
        rising: bool = False,
    ) -> list[float]:
        """A list of steps + 1 sigmas.

        Args:
            spacing: one of OFFERED_SPACINGS.
            denoise: as in the hosts; below 1 the list is the last steps + 1 sigmas of one of
                int(steps / denoise) steps, at 0 it is empty. The recommended list then is one made
                for the later start; see `end_of_list`.
            final_zero: end at 0, which the last step reaches; otherwise at the model's sigma_min.
            rising: from sigma_min up, for inversion. Such a list has no zero and, on a flow model, no
                sigma of 1.

        Raises:
            ValueError: a setting is out of its range, as a linked input may be, or the list is too
                long.
        """
        one_of("spacing", spacing, OFFERED_SPACINGS)
        at_least("steps", steps, 1)
        between("denoise", denoise, 0.0, 1.0)
        if denoise == 0.0:
            return []
        if not 1 <= steps / denoise <= MOST_STEPS:
            raise ValueError(
                f"{steps} steps at denoise = {denoise:g} are the last of a list of "
                f"{steps / denoise:g}: take 1 to {MOST_STEPS} steps, or raise denoise."
            )
        total, final_zero = int(steps / denoise), bool(final_zero)
        if spacing == RECOMMENDED and steps < total and not rising:
            return self.end_of_list(steps, total, final_zero)
        if rising:
            falling = self.above_zero(spacing, total + self.flow, False)
            return falling[-(steps + 1) :][::-1]
        falling = self.above_zero(spacing, total - final_zero, final_zero)
        return (falling + [0.0] * final_zero)[-(steps + 1) :]

    def asked_for(self, spacing: str, total: int, kept: int) -> list[float]:
        """A list of total + 1 sigmas for a host that takes only the last steps of it."""
        if spacing != RECOMMENDED or kept >= total:
            return self.sigmas(spacing, total)
        before = self.sigmas("time_uniform", total)[: total - kept]
        return [*before, *self.end_of_list(kept, total)]

    def end_of_list(self, steps: int, total: int, final_zero: bool = True) -> list[float]:
        """The recommended list for the last steps of so many in all, steps + 1 sigmas.

        It starts where that part of the model's time is left, as with the host's "simple". The end of
        the recommended list for all the steps would start at far more noise, and change the image more
        than the same denoise does with other schedulers.
        """
        start = self.sigma_at(steps / total)
        *_, start = self.whole([start]) or [start]
        if final_zero:
            return self._later(start, steps)
        *falling, _, _ = self._later(start, steps + 1)
        return [*falling, self.sigma_min]

    def _later(self, start: float, calls: int, positions: int = LARGEST) -> list[float]:
        return self._moved(later_sigmas(self.schedule, start, self.sigma_min, calls, positions))

    def _moved(self, sigmas: list[float]) -> list[float]:
        """A list on whole times, unless two of its sigmas would become one."""
        own = self.on_whole_times(sigmas)
        return own if len(own) == len(sigmas) else sigmas

    def sized(
        self, options: Options, x: torch.Tensor, sigmas: torch.Tensor
    ) -> tuple[Options, torch.Tensor]:
        """The settings and sigmas of a run, adapted to the size of its images, x.

        Hosts make a recommended list before they know the image, so it is the one for large images.
        For smaller ones than today's large models make, a whole list is moved to where it belongs.
        """
        if not isinstance(options, Recommended):
            return options, sigmas
        positions = positions_of(x.shape)
        options = replace(options, positions=positions)
        if share_of(positions) == 1.0:
            return options, sigmas
        grid = Grid.of(sigmas, self.schedule)
        if self.is_recommended(grid):
            _, *own = self.above_zero(RECOMMENDED, grid.calls - 1, positions=positions)
            own.append(0.0)
        elif (part := part_of(grid)) is not None and part.later:
            _, *own = self._later(grid.sigmas[0], grid.calls, positions=positions)
        else:
            return options, sigmas
        return options, sigmas.new_tensor([grid.sigmas[0], *own])

    def is_recommended(self, grid: Grid) -> bool:
        """Whether these sigmas are the model's whole recommended list, from its sigma_max to 0."""
        part = part_of(grid)
        starts = math.isclose(grid.sigmas[0], self.sigma_max, rel_tol=SAME_START)
        return part is not None and part.whole and starts and grid.sigmas[-1] == 0.0

    def on_whole_times(self, sigmas: Sequence[float]) -> list[float]:
        """The sigmas, each moved to the nearest whole time if the host passes only whole times.

        At other sigmas the model's prediction would be for another noise level, an error that counts
        if steps are few. Both ends stay. Sigmas that become equal are merged.
        """
        first, *inner, last = sigmas
        whole = self.whole(inner) if inner else None
        if whole is None:
            return list(sigmas)
        lowest, highest = last * (1.0 + ROUNDED), first * (1.0 - ROUNDED)
        own = {sigma for sigma in whole if lowest < sigma < highest}
        return [first, *sorted(own, reverse=True), last]

    def sigma_at(self, denoise: float) -> float:
        """The sigma from which image to image runs over this fraction of the model's time."""
        times = self.times(self.sigma_max, self.sigma_min)
        return times.sigma(times.start * denoise)

    def check(self, calibration: Calibration, name: str) -> None:
        """Raise ValueError if a calibration was not made for a model like this.

        Args:
            name: what the error calls the calibration.
        """
        calibration.fits(self.schedule)
        made_for = calibration.fitted.model
        if self.kind and made_for and made_for != self.kind:
            raise ValueError(
                f"{name} was made on a model of the type {escaped(made_for)}, and the loaded one is "
                f"of the type {self.kind}: choose another, or calibrate again."
            )
        start, sigma_max = calibration.sigmas[0], self.own_sigma_max
        if abs(start - sigma_max) > SAME_START * sigma_max:
            raise ValueError(
                f"{name} starts at sigma {start:.4g}, and the loaded model at {sigma_max:.4g}: choose "
                "another, or calibrate again."
            )

    def _exact(self, sigma_max: float) -> float:
        return 1.0 if self.flow and math.isclose(sigma_max, 1.0, rel_tol=ROUNDED) else sigma_max
