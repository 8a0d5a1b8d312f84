"""Trained networks as problems."""

from __future__ import annotations

import math

import torch

from ...demo import network
from .fields import Pullback


class Demo:
    """The demo's network in z and s, which is given the time that belongs to s exactly.

    Image k is of class k; float32 within.
    """

    values = network.IMAGE_SIZE**2

    def __init__(self, guidance: float = 0.0) -> None:
        self.network = network.load().requires_grad_(False)
        self.guidance = guidance
        self.levels = network.schedule_sigmas().log()

    def __call__(self, z: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        level = torch.as_tensor(s, dtype=torch.float64)
        scaled = (z / (1.0 + level**2) ** 0.5).float()
        scaled = scaled.reshape(len(z), 1, network.IMAGE_SIZE, network.IMAGE_SIZE)
        times = self._time(level).float().expand(len(z))
        eps = self.network(scaled, times)
        if self.guidance:
            classes = network.class_context([k % network.CLASSES for k in range(len(z))])
            eps = torch.lerp(eps, self.network(scaled, times, classes), self.guidance)
        return z - level * eps.double().reshape(z.shape)

    def linearised(self, z: torch.Tensor, s: float) -> tuple[torch.Tensor, Pullback]:
        """The denoised images, and how a gradient at them goes back to z and s."""
        state = z.detach().requires_grad_(True)
        level = torch.tensor(s, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            denoised = self(state, level)

        def pullback(gradient: torch.Tensor) -> tuple[torch.Tensor, float]:
            at_state, at_level = torch.autograd.grad(denoised, (state, level), gradient)
            return at_state, float(at_level)

        return denoised.detach(), pullback

    def _time(self, s: torch.Tensor) -> torch.Tensor:
        """From 0 to 999, even in log s between whole ones; differentiable."""
        level, last = s.log(), len(self.levels) - 1
        low = int(torch.searchsorted(self.levels, math.log(float(level.detach()))).clamp(1, last)) - 1
        below, above = self.levels[low], self.levels[low + 1]
        return (low + (level - below) / (above - below)).clamp(0.0, float(last))
