"""Exact denoisers of real pictures: a Gaussian of one width around each of them."""

from __future__ import annotations

import torch

from .fields import Pullback


class Mixture:
    """The exact denoiser in z and s, z of shape [batch, values].

    Args:
        points: the pictures, [count, values], of variance 1.
        labels: the class of each.
        smoothing: standard deviation of the Gaussian around each picture.
        guidance: 0 for none; otherwise image k is guided towards class k.
    """

    def __init__(
        self,
        points: torch.Tensor,
        labels: torch.Tensor,
        smoothing: float,
        guidance: float = 0.0,
    ) -> None:
        order = labels.argsort(stable=True)
        self.points, labels = points[order], labels[order]
        self.transposed = self.points.T.contiguous()
        self.half_squares = 0.5 * self.points.square().sum(1)
        self.smoothing, self.guidance = smoothing, guidance
        self.values = points.shape[1]
        classes = labels.unique()
        self.others = torch.stack([labels != label for label in classes])

    def __call__(self, z: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        return self.linearised(z, float(s))[0]

    def linearised(self, z: torch.Tensor, s: float) -> tuple[torch.Tensor, Pullback]:
        """The denoised images, and how a gradient at them goes back to z and s."""
        variance = s * s + self.smoothing**2
        pull = self.smoothing**2 / variance
        closeness = (z @ self.transposed - self.half_squares) / variance
        free = torch.softmax(closeness, 1)
        parts = [(1.0 - self.guidance, free)]
        weights = free
        if self.guidance:
            others = self.others[torch.arange(len(z)) % len(self.others)]
            asked = torch.softmax(closeness.masked_fill(others, -torch.inf), 1)
            parts.append((self.guidance, asked))
            weights = torch.lerp(free, asked, self.guidance)
        centre = weights @ self.points

        def pullback(gradient: torch.Tensor) -> tuple[torch.Tensor, float]:
            at_weights = (gradient @ self.transposed) * (1.0 - pull)
            at_closeness = torch.zeros_like(at_weights)
            for share, p in parts:
                mean = (p * at_weights).sum(1, keepdim=True)
                at_closeness += share * p * (at_weights - mean)
            back = (at_closeness @ self.points) / variance
            of_pull = (gradient * (z - centre)).sum() * pull
            of_closeness = (at_closeness * closeness).sum()
            at_s = -2.0 * s / variance * float(of_pull + of_closeness)
            return back.add_(gradient, alpha=pull), at_s

        return torch.lerp(centre, z, pull), pullback
