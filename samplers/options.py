"""The settings of a sampler: checked when they are made, and turned into a plan for a list of sigmas.

Each family of solvers has a frozen class of its own, beside its formulas in `solvers/`. This module
holds what the classes share.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from .checks import at_least, between, one_of
from .coefficients import Algorithm
from .grid import Grid
from .integrate import Threshold
from .plan import Plan
from .schedules.process import NoiseSchedule
from .thresholding import dynamic_threshold

ALGORITHMS = ("dpmsolver++", "dpmsolver")
SOLVER_TYPES = ("dpmsolver", "taylor", "exact")
SOLVER_TYPE_ALIASES = {"midpoint": "dpmsolver", "heun": "taylor"}
NOISE_DEVICES = ("cpu", "gpu")
MOST_NOISE = 1e6  # for eta and s_noise: float32 may not hold the weights of larger values

Self = TypeVar("Self", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options(ABC):
    """Settings that all samplers have; see `sample_multistep` for their meaning.

    Attributes:
        s_tmin, s_tmax: noise is added only to states whose sigma is between them.

    Raises:
        ValueError: a setting is out of its range, or two settings don't go together.
    """

    eta: float = 0.0
    s_noise: float = 1.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    noise_device: str = "cpu"
    thresholding: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        between("eta", self.eta, 0.0, MOST_NOISE)
        between("s_noise", self.s_noise, 0.0, MOST_NOISE)
        at_least("s_tmin", self.s_tmin, 0.0)
        at_least("s_tmax", self.s_tmax, 0.0)
        one_of("noise_device", self.noise_device, NOISE_DEVICES)
        if self.thresholding is not None:
            self._set(thresholding=_checked_thresholding(self.thresholding))

    @abstractmethod
    def plan(self, grid: Grid) -> Plan | None:
        """The plan for a list of sigmas; None if the sampler chooses its steps during the run.

        Raises:
            ValueError: the list does not go with the settings.
        """

    def on(self: Self, schedule: NoiseSchedule) -> Self:
        """These settings, adapted to the noise schedule of a host's model."""
        return self

    @property
    def stochastic(self) -> bool:
        """Whether noise is added."""
        return self.eta > 0.0

    def eta_to(self, sigma: float) -> float:
        """The eta of a step to this sigma: 0, that of the ODE, outside of s_tmin and s_tmax."""
        return self.eta if self.s_tmin <= sigma <= self.s_tmax else 0.0

    @property
    def needs_unconditional(self) -> bool:
        """Whether the model's unconditional prediction is needed beside its denoised output."""
        return False

    @property
    def threshold(self) -> Threshold | None:
        """The function to apply to each denoised output: dynamic thresholding, or None."""
        if self.thresholding is None:
            return None
        ratio, maximum = self.thresholding
        return partial(dynamic_threshold, ratio=ratio, maximum=maximum)

    def check_direction(self, grid: Grid) -> None:
        """Raise ValueError if noise is to be added while sigmas rise."""
        if self.eta > 0.0 and not grid.falls:
            raise ValueError(
                f"eta = {self.eta:g} with rising sigmas: a stochastic solver can't run from image to "
                "noise; set eta to 0 for inversion."
            )

    def _set(self, **values: object) -> None:
        """Replace a setting by its checked value; only for use in `__post_init__`."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def algorithm_of(name: str) -> Algorithm:
    """Check the name of an algorithm."""
    one_of("algorithm", name, ALGORITHMS)
    return cast(Algorithm, name)


def solver_type_of(name: str) -> str:
    """Check the name of a solver type, and replace k-diffusion's and diffusers' names by ours."""
    one_of("solver_type", name, (*SOLVER_TYPES, *SOLVER_TYPE_ALIASES))
    return SOLVER_TYPE_ALIASES.get(name, name)


def order_of(order: int, allowed: tuple[int, ...]) -> int:
    """Check an order, and make it an int: a host's linked input may give a float."""
    one_of("order", order, allowed)
    return int(order)


def _checked_thresholding(thresholding: object) -> tuple[float, float]:
    try:
        ratio, maximum = map(float, cast("tuple[float, float]", thresholding))
    except (TypeError, ValueError):
        ratio = maximum = math.nan
    if not (0.0 < ratio <= 1.0 and maximum > 0.0):
        raise ValueError(
            "thresholding takes (ratio, maximum) with 0 < ratio <= 1 and maximum above 0, "
            f"not {thresholding!r}."
        )
    return ratio, maximum
