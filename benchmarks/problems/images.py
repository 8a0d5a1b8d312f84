"""The problems as models of images, [batch, channels, height, width], as the lab takes them."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...lab.calibration.teacher import spectrum
from .problems import Denoiser, Problem
from .processes import Process


def shape_of(problem: Problem) -> tuple[int, ...] | None:
    """An image's channels, height and width; None if it is no whole square."""
    side = math.isqrt(problem.positions)
    if side * side != problem.positions or problem.values % problem.positions:
        return None
    return problem.values // problem.positions, side, side


def model_of(
    problem: Problem,
    process: Process,
    shape: tuple[int, ...],
    denoiser: Denoiser | None = None,
) -> Any:
    """The exact model on images; the problem has a field's modes, or pixels with all channels.

    Args:
        denoiser: in place of the problem's own, as with another guidance.
    """
    exact = denoiser or problem.model
    by_pixel = shape[1] * shape[2], shape[0]

    def model(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        level, fields = float(sigma.flatten()[0]), problem.family == "fields"
        alpha = process.alpha(level)
        state = spectrum(x.double()) if fields else x.double().flatten(2).transpose(1, 2)
        denoised = exact(state.reshape(len(x), -1) / alpha, level / alpha)
        if fields:
            return spectrum(denoised.reshape(x.shape)).to(x)
        return denoised.reshape(len(x), *by_pixel).transpose(1, 2).reshape(x.shape).to(x)

    return model
