"""A Gaussian mixture whose denoiser is exact, and the authors' runs on it (`tests/data`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dpm_solver_nodes.samplers import NoiseSchedule, VarianceExploding

DATA = Path(__file__).parents[1] / "data"
SIGMA_MAX, SIGMA_MIN = 14.614641229333621, 0.029167158151720367
"""The ends of every run in the data: those of Stable Diffusion's schedule."""

Sampler = Callable[..., Any]


@cache
def tensors(name: str = "official_public") -> dict[str, torch.Tensor]:
    return load_file(DATA / f"{name}.safetensors")


@cache
def cases(name: str = "official_public") -> list[dict[str, Any]]:
    return json.loads((DATA / f"{name}.json").read_text())["cases"]


@cache
def component_std() -> float:
    return json.loads((DATA / "official_public.json").read_text())["component_std"]


def start() -> torch.Tensor:
    """The common state at SIGMA_MAX, float64 [3, 4, 4, 4]."""
    return tensors()["x_init"].clone()


class Mixture:
    """The exact denoiser. It keeps the sigma of every call.

    Where x = alpha x0 + sigma noise and x0 lies about one mean with standard deviation s, the
    posterior mean of x0 is mean + alpha s^2 / (alpha^2 s^2 + sigma^2) (x - alpha mean).

    Args:
        schedule: gives alpha for sigma.
        shape: shape of one image; by default the data's. Another shape takes the data's first numbers.
    """

    def __init__(
        self,
        schedule: NoiseSchedule | None = None,
        shape: tuple[int, ...] = (4, 4, 4),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.schedule = schedule or VarianceExploding()
        size = torch.Size(shape).numel()
        self.means = tensors()["means"].flatten(1)[:, :size].to(dtype)
        self.log_weights = tensors()["log_weights"].to(dtype)
        self.sigmas: list[float] = []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.shape == (len(x),)
        level = sigma[0].item()
        self.sigmas.append(level)
        alpha, spread = self.schedule.alpha(level), component_std() ** 2
        variance = alpha**2 * spread + level**2
        offsets = x.flatten(1).unsqueeze(1) - alpha * self.means
        evidence = self.log_weights - offsets.square().sum(2) / (2.0 * variance)
        posterior = self.means + (alpha * spread / variance) * offsets
        weights = torch.softmax(evidence, 1).unsqueeze(1)
        return torch.bmm(weights, posterior).reshape(x.shape)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()
