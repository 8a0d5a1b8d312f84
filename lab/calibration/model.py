"""The model as a calibration calls it: in small batches, with every call counted and reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ...samplers.integrate import Denoiser
from ..metrics import Meter

Tick = Callable[[int, str], None]
"""Called with the number of images of a model call, and what it was for."""


class NotFiniteError(RuntimeError):
    """The model returned NaN or infinity."""


class Model:
    """Calls a model in small batches, and counts and reports every call.

    No more than a batch is ever on the device; everything else stays in the main memory.

    Args:
        models: one for each prompt; image k is of model k % len(models).
        batch: the most images of a call.

    Attributes:
        part: how many images make up whole batches of all models. If runs of more are split into such
            parts, each image has the same place in its batch in every run: a host may give each image
            of a batch a prompt of its own.

    Raises:
        NotFiniteError: a call's output is not finite; no further calls are made.
    """

    def __init__(
        self,
        models: Sequence[Denoiser],
        batch: int,
        tick: Tick,
        device: torch.device | str = "cpu",
    ) -> None:
        self.models, self.batch, self.tick, self.device = models, batch, tick, device
        self.part = batch * len(models)
        self.doing = ""
        self.meter = Meter(limit=math.inf)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra: object) -> torch.Tensor:
        output = torch.empty_like(x)
        count = len(self.models)
        for begin in range(0, len(x), self.part):
            end = begin + self.part
            for k, model in enumerate(self.models):
                part, level = x[begin + k : end : count], sigma[begin + k : end : count]
                if len(part):
                    output[begin + k : end : count] = self._called(model, part, level, extra)
        return output

    def _called(
        self, model: Denoiser, x: torch.Tensor, sigma: torch.Tensor, extra: dict[str, object]
    ) -> torch.Tensor:
        output = model(x.to(self.device), sigma.to(self.device), **extra).cpu().to(x.dtype)
        self.meter(len(x))
        self.tick(len(x), self.doing)
        if not output.isfinite().all():
            raise NotFiniteError(
                f"The model returned NaN or infinity at sigma {float(sigma[0]):.4g}: nothing can be "
                "fitted to that. Check the model's precision and its guidance."
            )
        return output
