"""What `quality.py` measures on: models, the noise they start from, and their converged solutions.

To add a model, add a `Scenario` to SCENARIOS: its denoiser, one sigma_max and sigma_min, and sigma as
a function of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from ..demo import network
from ..lab.metrics import Meter
from ..samplers import NoiseSchedule, RectifiedFlow, VarianceExploding, sample_multistep
from ..samplers.schedules.sigma_lists import flow_first, log_snr
from . import digits

LAST_TIME = 0.001
"""The last time of both schedules, whose first is 1: hosts' lists end there, before their zero."""


class GuidedDenoiser(Protocol):
    """The interface of a scenario's model; x is float64, with one sigma for all images."""

    def predictions(
        self, x: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The denoised output with guidance, and without."""


@dataclass(frozen=True)
class Scenario:
    """A model with its guidance.

    Attributes:
        flow: x = (1 - sigma) x0 + sigma noise instead of x = x0 + sigma noise.
        guidance: the scale of classifier-free guidance, 0 for none.
        shape: the shape of one image.
        sigma_of_time: for times from 0.001 (sigma_min) to 1 (sigma_max).
        make: the model; with `classes`, image k of classes[k % len(classes)].
        leaders: scenarios whose best samplers run here; () runs all samplers.
        fine: how many log-SNR steps the converged solution takes.
    """

    name: str
    title: str
    flow: bool
    guidance: float
    shape: tuple[int, ...]
    sigma_of_time: Callable[[float], float]
    make: Callable[..., GuidedDenoiser]
    leaders: tuple[str, ...] = ()
    fine: int = 2000

    @property
    def sigma_max(self) -> float:
        return self.sigma_of_time(1.0)

    @property
    def sigma_min(self) -> float:
        return self.sigma_of_time(LAST_TIME)

    @property
    def schedule(self) -> NoiseSchedule:
        kind = RectifiedFlow if self.flow else VarianceExploding
        return kind(self.sigma_min)

    def noise(self, images: int, seed: int) -> torch.Tensor:
        """Unit noise, float64; image k is the same for any number of images."""
        return digits.noise(images, seed, math.prod(self.shape)).reshape(images, *self.shape)

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """The state at sigma_max, scaled as in hosts: the variance of an image (1) is added."""
        return noise if self.flow else noise * (1.0 + self.sigma_max**2) ** 0.5

    def log_snr(self, calls: int) -> list[float]:
        """Sigmas for this many calls, even in log-SNR from sigma_max to sigma_min, and 0."""
        first = flow_first(self.sigma_of_time, 1.0, calls - 1) if self.flow else None
        ends = self.sigma_max, self.sigma_min
        return [*log_snr(self.schedule, *ends, calls - 1, first), 0.0]


class Counted:
    """A scenario's model as samplers call it, counting."""

    def __init__(self, model: GuidedDenoiser) -> None:
        self.model = model
        self.meter = Meter(limit=math.inf)

    def predictions(
        self, x: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.meter(len(x))
        denoised, free = self.model.predictions(x.double(), sigma)
        return denoised.to(x), free.to(x)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        return self.predictions(x, sigma)[0]


class Blank:
    """A model that costs nothing, to count a sampler's calls with."""

    def predictions(
        self, x: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        zero = torch.zeros_like(x)
        return zero, zero


def converged(scenario: Scenario, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """The ODE's solution from this noise: `steps` exact third-order steps, then one denoising call."""
    return sample_multistep(
        Counted(scenario.make()),
        scenario.start(noise),
        scenario.log_snr(steps + 1),
        order=3,
        solver_type="exact",
        lower_order_final="off",
        schedule=scenario.schedule,
        disable=True,
    )


class DemoDenoiser:
    """The demo's network, image k of classes[k % len(classes)], float32 within.

    The network gets the exact time of sigma, fractions included: with the host's rounding to whole
    times the ODE's right-hand side would jump.
    """

    def __init__(self, guidance: float = 0.0, classes: Sequence[int] = range(10)) -> None:
        self.network = network.load()
        self.guidance = guidance
        self.classes = classes
        self.levels = network.schedule_sigmas().log()

    def time(self, sigma: float) -> float:
        """The time from 0 to 999, linear in log sigma between whole times."""
        level, last = math.log(sigma), len(self.levels) - 1
        low = int(torch.searchsorted(self.levels, level).clamp(1, last)) - 1
        below, above = self.levels[low].item(), self.levels[low + 1].item()
        return min(max(low + (level - below) / (above - below), 0.0), float(last))

    def predictions(
        self, x: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        level = float(sigma.flatten()[0])
        scaled = (x / (1.0 + level**2) ** 0.5).float()
        times = torch.full((len(x),), self.time(level))
        free = x - level * self.network(scaled, times).double()
        if not self.guidance:
            return free, free
        asked = [self.classes[k % len(self.classes)] for k in range(len(x))]
        eps = self.network(scaled, times, network.class_context(asked)).double()
        return free + self.guidance * (x - level * eps - free), free


_DIGITS = Scenario(
    name="digits",
    title="exact digits, unconditional",
    flow=False,
    guidance=0.0,
    shape=(64,),
    sigma_of_time=digits.diffusion_sigma,
    make=partial(digits.ExactDenoiser, False),
)
_DEMO = replace(
    _DIGITS,
    name="demo",
    title="demo network, unconditional",
    shape=(1, network.IMAGE_SIZE, network.IMAGE_SIZE),
    make=DemoDenoiser,
    leaders=("digits", "digits-cfg7.5"),
    fine=500,
)
_ALL = (
    _DIGITS,
    replace(
        _DIGITS,
        name="digits-cfg7.5",
        title="exact digits, guidance 7.5",
        guidance=7.5,
        make=partial(digits.ExactDenoiser, False, 7.5),
    ),
    replace(
        _DIGITS,
        name="digits-flow",
        title="exact digits, flow of shift 3, guidance 4",
        flow=True,
        guidance=4.0,
        sigma_of_time=digits.flow_sigma,
        make=partial(digits.ExactDenoiser, True, 4.0),
    ),
    _DEMO,
    replace(
        _DEMO,
        name="demo-cfg4",
        title="demo network, guidance 4",
        guidance=4.0,
        make=partial(DemoDenoiser, 4.0),
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
