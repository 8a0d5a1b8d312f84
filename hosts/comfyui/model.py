"""ComfyUI's models: noise and time, read from their `model_sampling`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import comfy.model_sampling
import torch

from ...samplers import NoiseSchedule, RectifiedFlow, VarianceExploding
from ..model import HostModel, Times


class ComfyModel(HostModel):
    """A model of ComfyUI, with its patches.

    Args:
        model_sampling: the host's object of this name.
        kind: the name of the host's class for the model.
    """

    def __init__(self, model_sampling: Any, kind: str = "") -> None:
        self.model_sampling = model_sampling
        self._kind = kind

    @classmethod
    def of(cls, patcher: Any) -> ComfyModel:
        """Make it from a MODEL, a patcher in the host's terms."""
        return cls(patcher.get_model_object("model_sampling"), type(patcher.model).__name__)

    @property
    def kind(self) -> str:
        return self._kind

    @cached_property
    def schedule(self) -> NoiseSchedule:
        model_sampling = self.model_sampling
        # isinstance is False for an empty tuple: hiddenswitch's ComfyUI has no such models.
        if isinstance(model_sampling, getattr(comfy.model_sampling, "IMG_TO_IMG_FLOW", ())):
            raise ValueError(
                "This model maps one image to another (IMG_TO_IMG_FLOW): its sampling is not a "
                "diffusion ODE, so DPM-Solver does not apply; take a sampler and a scheduler of the "
                "host's own."
            )
        sigma_min = self.sigma_min
        if isinstance(model_sampling, comfy.model_sampling.CONST):
            scale = float(getattr(model_sampling, "noise_scale", 1.0))  # newer hosts have it
            return RectifiedFlow(sigma_min if 0.0 < sigma_min < 1.0 else None, scale)
        return VarianceExploding(sigma_min if sigma_min > 0.0 else None)

    @property
    def own_sigma_max(self) -> float:
        return float(self.model_sampling.sigma_max)

    @property
    def sigma_min(self) -> float:
        return float(self.model_sampling.sigma_min)

    @property
    def shift(self) -> float | None:
        """The shift of a flow's times, if the host has one."""
        shift = getattr(self.model_sampling, "shift", None)
        return float(shift) if self.flow and isinstance(shift, (int, float)) else None

    def sigma_after(self, share: float) -> float:
        """The sigma after this share of a run, as the host's start_percent and end_percent mean it."""
        return float(self.model_sampling.percent_to_sigma(share))

    def whole(self, sigmas: Sequence[float]) -> list[float] | None:
        timestep = getattr(self.model_sampling, "timestep", None)
        if timestep is None:  # as of some packs' models
            return None
        times = timestep(torch.tensor(sigmas))
        return None if times.is_floating_point() else self.model_sampling.sigma(times).tolist()

    def times(self, sigma_max: float, sigma_min: float) -> Times:
        """The time between the model's own ends, whatever the arguments: the host uses no others."""
        model_sampling = self.model_sampling

        def sigma(timestep: float) -> float:
            return float(model_sampling.sigma(torch.tensor(timestep)))

        first_sigma = model_sampling.sigma_max.cpu()
        last_sigma = model_sampling.sigma_min.cpu()
        first, last = (model_sampling.timestep(each) for each in (first_sigma, last_sigma))
        if not first.is_floating_point():  # index i into a table is the time (i + 1) / count
            count = getattr(model_sampling, "num_timesteps", len(model_sampling.sigmas))
            ends = (int(first) + 1) / count, (int(last) + 1) / count
            return Times(lambda t: sigma(t * count - 1.0), *ends)
        # Flows and Stable Cascade: timestep() is the network's input, after the shift. sigma() takes
        # the time before the shift, in which the table is even. Cascade clamps it at both ends.
        table = model_sampling.sigmas.cpu()
        multiplier = float(getattr(model_sampling, "multiplier", 1.0))
        start = 1.0 - (int((table >= first_sigma).sum()) - 1) / len(table)
        end = int((table <= last_sigma).sum()) / len(table)
        if math.isclose(sigma(start * multiplier), first_sigma, rel_tol=1e-3) and math.isclose(
            sigma(end * multiplier), last_sigma, rel_tol=1e-3
        ):
            return Times(lambda t: sigma(t * multiplier), start, end)
        # EDM's time is a logarithm, which may be negative: count from the last time.
        origin = min(float(last), 0.0)
        return Times(lambda t: sigma(t + origin), float(first) - origin, float(last) - origin)
