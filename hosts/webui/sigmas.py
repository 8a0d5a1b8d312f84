"""webui: a model's noise schedule, and our spacings as the host's schedulers call them.

The host's `model_wrap`, k-diffusion's denoiser in AUTOMATIC1111 and a stand-in for it in Forge, has
the model's table of sigmas, rising, which is even in the model's time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch

from ...samplers import NoiseSchedule, RectifiedFlow, VarianceExploding
from ...samplers.schedules.sigma_lists import TIME_POWERS, dense, flow_first, in_time, log_snr
from ...samplers.solvers.recommended import recommended

RECOMMENDED = "recommended"

SAME_SIGMA = 1e-5
"""How far, relatively, a flow's largest sigma may be from 1: hosts round to float32."""


ADDS_NOISE = (
    "predictor",  # Forge, Forge Neo
    "model_sampling",  # reForge's flows
    "inner_model.forge_objects.unet.model.model_sampling",  # reForge's other models
    "inner_model.model.model_sampling",  # AUTOMATIC1111's Stable Diffusion 3
)
"""Where a host's denoiser has an object with the model's own formula for adding noise,
`noise_scaling(sigma, noise, image)`. AUTOMATIC1111 has none for diffusion models."""


def is_flow(model_wrap: Any) -> bool:
    """Whether the model is a flow: its sigmas end at 1, and its noised image is
    sigma noise + (1 - sigma) image, where a diffusion model's is image + sigma noise.

    Raises:
        ValueError: the model is neither.
    """
    largest = float(model_wrap.sigmas[-1])
    ends_at_one = largest < 1.0 + SAME_SIGMA
    kept = _image_kept(model_wrap, 0.5)
    if kept == 0.5 and ends_at_one:
        return True
    if kept == 1.0 or (kept is None and not ends_at_one):
        return False
    raise ValueError(
        "DPM-Solver can't tell whether this model is a flow or a diffusion model, as its largest "
        f"sigma is {largest:.4g} and it adds noise in its own way: take one of the host's samplers."
    )


def _image_kept(model_wrap: Any, sigma: float) -> float | None:
    """Which part of the image is left in the noised one, by the model's own formula if it has one."""
    for place in ADDS_NOISE:
        try:
            noise_scaling = attrgetter(f"{place}.noise_scaling")(model_wrap)
        except AttributeError:
            continue
        return float(noise_scaling(torch.tensor([sigma]), torch.zeros(1), torch.ones(1)))
    return None


def noise_schedule(model_wrap: Any) -> NoiseSchedule:
    """The schedule of a model; noise-, v- and EDM predictions all reach us as x0 at a sigma."""
    sigma_min = float(model_wrap.sigmas[0])
    if is_flow(model_wrap):
        return RectifiedFlow(sigma_min if 0.0 < sigma_min < 1.0 else None)
    return VarianceExploding(sigma_min if sigma_min > 0.0 else None)


def scheduler(spacing: str) -> Callable[..., torch.Tensor]:
    """A function for the host's list of schedulers, which calls it with its parameters by name."""

    def sigmas(
        n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any
    ) -> torch.Tensor:
        falling = above_zero(spacing, n - 1, sigma_min, sigma_max, inner_model) if n > 0 else []
        return torch.tensor([*falling, 0.0], dtype=torch.float32, device=device)

    return sigmas


def above_zero(
    spacing: str, intervals: int, sigma_min: float, sigma_max: float, model_wrap: Any
) -> list[float]:
    """intervals + 1 sigmas, from sigma_max to sigma_min, or for the recommended ones above it.

    Args:
        spacing: RECOMMENDED or one of `samplers.spacing.SPACINGS`.
        sigma_min, sigma_max: the model's own, or the user's.
    """
    schedule = noise_schedule(model_wrap)
    if isinstance(schedule, RectifiedFlow) and math.isclose(sigma_max, 1.0, rel_tol=SAME_SIGMA):
        sigma_max = 1.0
    if spacing == RECOMMENDED:
        density = recommended(schedule, intervals + 1).density
        even = dense(density, sigma_max, sigma_min, intervals)
        if intervals < 2 or isinstance(schedule, RectifiedFlow):
            return even
        own = on_table(model_wrap, even)
        return own if len(own) == len(even) else even
    table = Table(model_wrap)
    if spacing == "logSNR":
        first = flow_first(table.sigma, table.time(sigma_max), intervals)
        return log_snr(schedule, sigma_max, sigma_min, intervals, first)
    ends = table.time(sigma_max), table.time(sigma_min)
    between = in_time(table.sigma, *ends, intervals, TIME_POWERS[spacing])[1:-1]
    return [sigma_max, *between, sigma_min][: intervals + 1]


def on_table(model_wrap: Any, sigmas: Sequence[float]) -> list[float]:
    """The nearest of a diffusion model's own sigmas to each, if the host knows whole times only.

    Forge's are such models, and AUTOMATIC1111's with its setting for quantization: between the table's
    sigmas the prediction is that for another noise level. Flows take any time, whatever `sigma_to_t`
    says. Both ends stay; sigmas that fall together become one.
    """
    first, *inner, last = sigmas
    table = model_wrap.sigmas
    times = model_wrap.sigma_to_t(torch.tensor(inner, dtype=table.dtype, device=table.device))
    if times.is_floating_point():
        return list(sigmas)
    own = {sigma for sigma in table[times].tolist() if last < sigma < first}
    return [first, *sorted(own, reverse=True), last]


class Table:
    """The model's sigma as a function of the paper's time: entry i of its table is (i + 1) / count.

    Between entries a flow's sigma is taken as even in time, the others' logarithm, as the hosts do.
    """

    def __init__(self, model_wrap: Any) -> None:
        self.even = is_flow(model_wrap)
        sigmas = model_wrap.sigmas.tolist()
        self.values = sigmas if self.even else [math.log(sigma) for sigma in sigmas]

    def sigma(self, time: float) -> float:
        place = min(max(time * len(self.values) - 1.0, 0.0), len(self.values) - 1.0)
        low = min(int(place), len(self.values) - 2)
        lower, upper = self.values[low : low + 2]
        value = lower + (place - low) * (upper - lower)
        return value if self.even else math.exp(value)

    def time(self, sigma: float) -> float:
        """The inverse of sigma, for sigmas on the table."""
        value = sigma if self.even else math.log(sigma)
        high = min(max(bisect_left(self.values, value), 1), len(self.values) - 1)
        lower, upper = self.values[high - 1 : high + 1]
        part = min(max((value - lower) / (upper - lower), 0.0), 1.0)
        return (high + part) / len(self.values)
