"""An exact denoiser in closed form: handwritten digits smoothed with a Gaussian.

The data are scikit-learn's 1797 digits (8x8), standardised; the distribution is a Gaussian of
standard deviation 0.25 around each. Its denoiser is the posterior mean, with classes and guidance. So
all of the error comes from the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sklearn.datasets import load_digits

from ..samplers.schedules.networks import DiscreteSchedule

SMOOTHING = 0.25
FLOW_SHIFT = 3.0
STABLE_DIFFUSION = DiscreteSchedule.scaled_linear()

Denoiser = Callable[..., torch.Tensor]


class ExactDenoiser:
    """The exact `model(x, sigma)`, float64, x of shape [batch, 64]; see `denoiser`."""

    def __init__(
        self, flow: bool, guidance: float = 0.0, classes: Sequence[int] = range(10)
    ) -> None:
        data = load_digits()
        labels = torch.tensor(data.target)
        points = torch.tensor(data.data, dtype=torch.float64)
        points = (points - points.mean()) / points.std()
        self.flow = flow
        self.guidance = guidance
        # Sorted by class, so that a class is a slice of what is computed for all.
        self.points = points[labels.argsort(stable=True)]
        self.transposed = self.points.T.contiguous()
        self.half_squares = 0.5 * (self.points**2).sum(1)
        ends = torch.bincount(labels, minlength=10).cumsum(0).tolist()
        slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self.classes = [slices[digit] for digit in classes]

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        return self.predictions(x, sigma)[0]

    def predictions(
        self, x: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The denoised output with guidance, and without."""
        level = float(sigma.flatten()[0])
        alpha = 1.0 - level if self.flow else 1.0
        variance = level**2 + (alpha * SMOOTHING) ** 2
        closeness = torch.addmm(
            self.half_squares * (-(alpha**2) / variance), x, self.transposed, alpha=alpha / variance
        )
        centre = torch.softmax(closeness, -1) @ self.points
        pull = alpha * SMOOTHING**2 / variance
        # centre + pull * (x - alpha * centre); only the centre depends on the class
        free = centre.mul(1.0 - alpha * pull).add_(x, alpha=pull)
        if not self.guidance:
            return free, free
        count = len(self.classes)
        for i, members in enumerate(self.classes):
            weights = torch.softmax(closeness[i::count, members], -1)
            centre[i::count] -= weights @ self.points[members]
        return free.add(centre, alpha=-self.guidance * (1.0 - alpha * pull)), free


def denoiser(flow: bool, guidance: float = 0.0, classes: Sequence[int] = range(10)) -> Denoiser:
    """The exact `model(x, sigma)`, float64, x of shape [batch, 64].

    Args:
        flow: for x = (1 - sigma) x0 + sigma noise, otherwise for x = x0 + sigma noise.
        guidance: 0 is unconditional; otherwise image k is guided towards classes[k % len(classes)].
    """
    return ExactDenoiser(flow, guidance, classes)


def noise(images: int, seed: int = 0, values: int = 64) -> torch.Tensor:
    """Unit noise, float64, [images, values]; an image's is the same for any number of images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, values, generator=generator, dtype=torch.float64)


def diffusion_sigmas() -> torch.Tensor:
    """Stable Diffusion's 1000 noise levels, rising."""
    count = len(STABLE_DIFFUSION.log_alphas)
    return STABLE_DIFFUSION.sigma(torch.arange(1, count + 1, dtype=torch.float64) / count)


def diffusion_sigma(time: float) -> float:
    """Stable Diffusion's sigma at a time in (0, 1]."""
    return STABLE_DIFFUSION.sigma_at(time)


def flow_sigma(time: float) -> float:
    """The shifted flow's sigma at a time in [0, 1]."""
    return FLOW_SHIFT * time / (1.0 + (FLOW_SHIFT - 1.0) * time)
