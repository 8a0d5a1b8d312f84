"""The model as a calibration calls it: in small batches, with every call counted and reported."""

from __future__ import annotations

import math
from collections.abc import Callable

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

    Raises:
        NotFiniteError: a call's output is not finite; no further calls are made.
    """

    def __init__(
        self, model: Denoiser, batch: int, tick: Tick, device: torch.device | str = "cpu"
    ) -> None:
        self.model, self.batch, self.tick, self.device = model, batch, tick, device
        self.doing = ""
        self.meter = Meter(limit=math.inf)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra: object) -> torch.Tensor:
        outputs = []
        for part, level in zip(x.split(self.batch), sigma.split(self.batch), strict=True):
            output = self.model(part.to(self.device), level.to(self.device), **extra)
            outputs.append(output.cpu().to(x.dtype))
            self.meter(len(part))
            self.tick(len(part), self.doing)
            if not outputs[-1].isfinite().all():
                raise NotFiniteError(
                    f"The model returned NaN or infinity at sigma {float(level[0]):.4g}: nothing "
                    "can be fitted to that. Check the model's precision and its guidance."
                )
        return torch.cat(outputs)
