"""Models with an exact denoiser that are hard to solve: substitutes for large models.

Each is called like a model; `converged` gives the converged image of a start.
"""

from __future__ import annotations

import math

import torch


class TwoValues:
    """Numbers near -1 or +1, with a deviation."""

    def __init__(self, flow: bool, deviation: float = 0.3) -> None:
        self.flow, self.deviation = flow, deviation

    def start(self, sigma: float) -> torch.Tensor:
        """[8, 64] noise of level sigma."""
        return noise(8, 64) * sigma

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        s = sigma[0].item()
        alpha = 1.0 - s if self.flow else 1.0
        variance = (alpha * self.deviation) ** 2 + s**2
        mean = torch.tanh(alpha * x / variance)
        return mean + alpha * self.deviation**2 / variance * (x - alpha * mean)


class Fields:
    """A mixture of Gaussian fields with a natural image's spectrum, |f|^-power, in its modes.

    Args:
        guidance: scale of the guidance of each image to a class of its own; 0 for none.
    """

    def __init__(self, flow: bool, size: int, power: float, guidance: float, seed: int = 0) -> None:
        self.flow, self.guidance = flow, guidance
        f = torch.fft.fftfreq(size, 1.0 / size, dtype=torch.float64)
        frequency = (f[:, None] ** 2 + f**2).sqrt()
        frequency[0, 0] = 0.5
        spectrum = (frequency**-power).flatten()
        spectrum /= spectrum.mean()
        self.means = noise(8, size**2, seed) * (0.5 * spectrum).sqrt()
        self.variance = 0.5 * spectrum

    def start(self, sigma: float) -> torch.Tensor:
        """[8, modes] noise of level sigma."""
        return noise(8, self.means.shape[1], 1) * sigma

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        s = sigma[0].item()
        alpha = 1.0 - s if self.flow else 1.0
        precision = 1.0 / (alpha**2 * self.variance + s**2)
        gain = alpha * self.variance * precision
        evidence = alpha * (x * precision) @ self.means.T
        share = torch.softmax(evidence - alpha**2 / 2.0 * (self.means**2 @ precision), 1)
        mean = share @ self.means
        mean = mean + self.guidance * (self.means[: len(x)] - mean)
        return mean + gain * (x - alpha * mean)


Model = TwoValues | Fields


def noise(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def converged(model: Model, sigma: float, steps: int = 300) -> torch.Tensor:
    """The ODE's solution from `model.start(sigma)`, by classical Runge-Kutta in log(sigma / alpha)."""

    def slope(level: float, z: torch.Tensor) -> torch.Tensor:
        return z - denoised(level, z)

    def denoised(level: float, z: torch.Tensor) -> torch.Tensor:
        ratio = math.exp(level)  # sigma / alpha
        s = ratio / (1.0 + ratio) if model.flow else ratio
        return model(z * (1.0 - s if model.flow else 1.0), torch.tensor([s]))

    x = model.start(sigma)
    if model.flow and sigma == 1.0:  # an Euler step leaves sigma = 1, where alpha is 0
        sigma = 0.9995
        x = sigma * x + (1.0 - sigma) * model(x, torch.tensor([1.0]))
    alpha = 1.0 - sigma if model.flow else 1.0
    z, last = x / alpha, math.log(2e-3)
    level = math.log(sigma / alpha)
    h = (last - level) / steps
    for _ in range(steps):
        k1 = slope(level, z)
        k2 = slope(level + h / 2.0, z + h / 2.0 * k1)
        k3 = slope(level + h / 2.0, z + h / 2.0 * k2)
        k4 = slope(level + h, z + h * k3)
        z, level = z + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), level + h
    return denoised(last, z)


def distance(images: torch.Tensor, others: torch.Tensor) -> float:
    """The geometric mean over images of their root mean square distance."""
    return (images - others).square().mean(1).sqrt().log().mean().exp().item()
