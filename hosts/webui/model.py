"""webui's models: noise and time, read from their denoiser.

The host's `model_wrap` (k-diffusion's denoiser in AUTOMATIC1111, a replacement in Forge) has the
model's table of sigmas, rising and evenly spaced in the model's time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch

from ...samplers import NoiseSchedule, RectifiedFlow, VarianceExploding
from ..callers import callers_variables
from ..model import RECOMMENDED, ROUNDED, HostModel, Times

KINDS = {"is_sd1": "BaseModel", "is_sd2": "BaseModel", "is_sdxl": "SDXL", "is_sd3": "SD3"}
"""The host's flag of a model -> the name of its class in ComfyUI, which calibrations hold."""

ADDS_NOISE = (
    "predictor",  # Forge, Forge Neo
    "model_sampling",  # reForge's flows
    "inner_model.forge_objects.unet.model.model_sampling",  # reForge's other models
    "inner_model.model.model_sampling",  # AUTOMATIC1111's Stable Diffusion 3
)
"""Attributes of a host's denoiser that may have the model's own formula for adding noise,
`noise_scaling(sigma, noise, image)`. AUTOMATIC1111 has none for diffusion models."""


def is_flow(model_wrap: Any) -> bool:
    """Whether the model is a flow. Its sigmas then end at 1, and its noised image is
    sigma noise + (1 - sigma) image; a diffusion model's is image + sigma noise.

    Raises:
        ValueError: the model is neither.
    """
    largest = float(model_wrap.sigmas[-1])
    ends_at_one = largest < 1.0 + ROUNDED
    kept = _image_kept(model_wrap, 0.5)
    if kept == 0.5 and ends_at_one:
        return True
    if kept == 1.0 or (kept is None and not ends_at_one):
        return False
    raise ValueError(
        "DPM-Solver can't tell whether this model is a flow or a diffusion model from its largest "
        f"sigma, {largest:.4g}, and how it adds noise: take one of the host's samplers."
    )


def _image_kept(model_wrap: Any, sigma: float) -> float | None:
    """The weight of the image in the noised one, by the model's own formula if it has one."""
    for place in ADDS_NOISE:
        try:
            noise_scaling = attrgetter(f"{place}.noise_scaling")(model_wrap)
        except AttributeError:
            continue
        return float(noise_scaling(torch.tensor([sigma]), torch.zeros(1), torch.ones(1)))
    return None


class WebuiModel(HostModel):
    """A model of webui, read from its denoiser, `model_wrap`."""

    def __init__(self, model_wrap: Any) -> None:
        self.model_wrap = model_wrap

    @property
    def kind(self) -> str:
        model = self.model_wrap.inner_model
        return next((kind for mark, kind in KINDS.items() if getattr(model, mark, False)), "")

    @cached_property
    def schedule(self) -> NoiseSchedule:
        sigma_min = self.sigma_min
        if is_flow(self.model_wrap):
            return RectifiedFlow(sigma_min if 0.0 < sigma_min < 1.0 else None)
        return VarianceExploding(sigma_min if sigma_min > 0.0 else None)

    @property
    def shift(self) -> float | None:
        if not self.flow:
            return None
        for place in ADDS_NOISE:
            try:
                return float(attrgetter(f"{place}.shift")(self.model_wrap))
            except AttributeError:
                continue
        return None

    @property
    def own_sigma_max(self) -> float:
        return float(self.model_wrap.sigmas[-1])

    @property
    def sigma_min(self) -> float:
        return float(self.model_wrap.sigmas[0])

    def whole(self, sigmas: Sequence[float]) -> list[float] | None:
        """Diffusion models take only whole times in Forge, and in AUTOMATIC1111 with its setting for
        quantization. Flows take any time, whatever `sigma_to_t` says."""
        if self.flow:
            return None
        table = self.model_wrap.sigmas
        given = torch.tensor(sigmas, dtype=table.dtype, device=table.device)
        times = self.model_wrap.sigma_to_t(given)
        return None if times.is_floating_point() else table[times].tolist()

    def times(self, sigma_max: float, sigma_min: float) -> Times:
        table = Table(self.model_wrap.sigmas.tolist(), self.flow)
        return Times(table.sigma, table.time(sigma_max), table.time(sigma_min))


def scheduler(spacing: str) -> Callable[..., torch.Tensor]:
    """A function for the host's list of schedulers. The host passes the arguments by their names."""

    def sigmas(
        n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any
    ) -> torch.Tensor:
        model = WebuiModel(inner_model)
        if spacing == RECOMMENDED and 0 < (kept := steps_kept(n)) < n:
            return torch.tensor(
                model.asked_for(spacing, n, kept), dtype=torch.float32, device=device
            )
        falling = model.above_zero(spacing, n - 1, True, sigma_max, sigma_min) if n > 0 else []
        return torch.tensor([*falling, 0.0], dtype=torch.float32, device=device)

    return sigmas


def steps_kept(total: int) -> int:
    """How many of these steps the function takes that asks for a list of so many.

    For image to image, and in the second pass of hires fix, that is `sample_img2img`: it takes the
    last t_enc + 1. If it leaves out the last sigma but one, the list has one step more.
    """
    found = callers_variables("steps", "t_enc")
    if found is None:
        return total
    steps, t_enc = found
    more = total - steps
    return int(t_enc) + 1 + more if more in (0, 1) else total


class Table:
    """The model's sigma as a function of the paper's time: entry i of its table is (i + 1) / count.

    Between entries a flow's sigma is linear in time, and log sigma for other models, as in the hosts.
    """

    def __init__(self, sigmas: Sequence[float], flow: bool) -> None:
        self.even = flow
        self.values = list(sigmas) if flow else [math.log(sigma) for sigma in sigmas]

    def sigma(self, time: float) -> float:
        place = min(max(time * len(self.values) - 1.0, 0.0), len(self.values) - 1.0)
        low = min(int(place), len(self.values) - 2)
        lower, upper = self.values[low : low + 2]
        value = lower + (place - low) * (upper - lower)
        return value if self.even else math.exp(value)

    def time(self, sigma: float) -> float:
        """The inverse of `sigma`, for sigmas of the table."""
        value = sigma if self.even else math.log(sigma)
        high = min(max(bisect_left(self.values, value), 1), len(self.values) - 1)
        lower, upper = self.values[high - 1 : high + 1]
        part = min(max((value - lower) / (upper - lower), 0.0), 1.0)
        return (high + part) / len(self.values)
