"""An exact denoiser in closed form: handwritten digits smoothed with a Gaussian.

The data are scikit-learn's 1797 digits (8x8), standardised; the distribution is a Gaussian of
standard deviation 0.25 around each. Its denoiser is the posterior mean, with classes and guidance, so
that a solver's error is the solver's alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits

SMOOTHING = 0.25
FLOW_SHIFT = 3.0

Denoiser = Callable[..., torch.Tensor]


def denoiser(flow: bool, guidance: float = 0.0) -> Denoiser:
    """The exact `model(x, sigma)`, float64, x of shape [batch, 64].

    Args:
        flow: for x = (1 - sigma) x0 + sigma noise, otherwise for x = x0 + sigma noise.
        guidance: 0 is unconditional; otherwise image k is guided towards class k % 10.
    """
    data = load_digits()
    points = torch.tensor(data.data, dtype=torch.float64)
    points = (points - points.mean()) / points.std()
    labels = torch.tensor(data.target)

    def posterior(points: torch.Tensor, x: torch.Tensor, sigma: float) -> torch.Tensor:
        alpha = 1.0 - sigma if flow else 1.0
        variance = sigma**2 + (alpha * SMOOTHING) ** 2
        closeness = alpha * (x @ points.T) - 0.5 * alpha**2 * (points**2).sum(1)
        centre = torch.softmax(closeness / variance, -1) @ points
        return centre + alpha * SMOOTHING**2 / variance * (x - alpha * centre)

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = float(sigma[0])
        free = posterior(points, x, level)
        if not guidance:
            return free
        guided = torch.empty_like(x)
        for digit in range(10):
            guided[digit::10] = posterior(points[labels == digit], x[digit::10], level)
        return free + guidance * (guided - free)

    return model


def noise(images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 64, generator=generator, dtype=torch.float64)


def diffusion_sigmas() -> torch.Tensor:
    """Stable Diffusion's 1000 noise levels, rising."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas_cumprod = torch.cumprod(1.0 - betas, 0)
    return ((1.0 - alphas_cumprod) / alphas_cumprod).sqrt()


def diffusion_sigma(time: float) -> float:
    """Stable Diffusion's sigma at a time in (0, 1], between its levels in log sigma."""
    levels = diffusion_sigmas().log()
    index = min(max(time * len(levels) - 1.0, 0.0), len(levels) - 1.0)
    low = min(int(index), len(levels) - 2)
    return math.exp(float(torch.lerp(levels[low], levels[low + 1], index - low)))


def flow_sigma(time: float) -> float:
    """The shifted flow's sigma at a time in [0, 1]."""
    return FLOW_SHIFT * time / (1.0 + (FLOW_SHIFT - 1.0) * time)


def distance(x: torch.Tensor, converged: torch.Tensor) -> float:
    """Geometric mean over images of the root mean square distance."""
    return (x - converged).square().mean(1).sqrt().log().mean().exp().item()
