"""Stand-ins for large models: mixtures of Gaussian fields with a natural image's spectrum.

In orthonormal modes the variance S falls with the frequency f, in cycles, as f^-exponent (0.5 for the
mean), scaled to 1 in the mean. Class k has mean m_k ~ N(0, share S), its images N(m_k, (1 - share) S).
The low frequencies of a large field are decided at high noise, as a large model's are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, float]]
"""From the gradient at a model's output to those at its state and at s."""


def spectrum(shape: Sequence[int], exponent: float, slow: float = 1.0) -> torch.Tensor:
    """Variances of the modes of a field, flattened.

    Args:
        shape: height and width, or frames, height and width.
        slow: how much faster than in space the variance falls with the frequency in time.
    """
    axes = [np.fft.fftfreq(n) * n for n in shape]
    if len(axes) == 3:
        axes[0] = axes[0] * slow
    grids = np.meshgrid(*axes, indexing="ij")
    frequency = np.sqrt(sum(np.square(grid) for grid in grids))
    frequency.flat[0] = 0.5
    variances = frequency**-exponent
    return torch.tensor(variances / variances.mean(), dtype=torch.float64).flatten()


def thinned(variances: torch.Tensor, kept: int = 400, every: int = 4) -> torch.Tensor:
    """The largest variances, and every fourth of the others: a large field that costs less."""
    falling = variances.sort(descending=True).values
    return torch.cat([falling[:kept], falling[kept::every]])


class Fields:
    """The exact denoiser in z and s, z of shape [batch, values].

    Args:
        variances: of the modes; several channels are repetitions of them.
        guidance: 0 for none; otherwise image k is guided towards class k.
        seed: of the classes' means.
        share: of the variance that lies between the classes.
    """

    def __init__(
        self,
        variances: torch.Tensor,
        guidance: float = 0.0,
        seed: int = 0,
        classes: int = 16,
        share: float = 0.5,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        unit = torch.randn(classes, len(variances), generator=generator, dtype=torch.float64)
        self.means = unit * (share * variances).sqrt()
        self.transposed = self.means.T.contiguous()
        self.squares = 0.5 * self.means.square()
        self.variances = (1.0 - share) * variances
        self.guidance = guidance
        self.values = len(variances)

    def __call__(self, z: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        return self.linearised(z, float(s))[0]

    def linearised(self, z: torch.Tensor, s: float) -> tuple[torch.Tensor, Pullback]:
        """The denoised images, and how a gradient at them goes back to z and s."""
        precision = 1.0 / (self.variances + s * s)
        gain = self.variances * precision
        rest = 1.0 - gain
        p = torch.softmax((z * precision) @ self.transposed - self.squares @ precision, 1)
        mean = p @ self.means
        if self.guidance:
            # free + guidance * (asked - free), whose parts differ in the mean only
            own = self.means[torch.arange(len(z)) % len(self.means)]
            mean = torch.lerp(mean, own, self.guidance)

        def pullback(gradient: torch.Tensor) -> tuple[torch.Tensor, float]:
            at_class = (gradient * rest) @ self.transposed
            at_logits = p * (at_class - (p * at_class).sum(1, keepdim=True))
            at_logits *= 1.0 - self.guidance
            back = (at_logits @ self.means) * precision
            of_gain = ((gradient * (z - mean)).sum(0) * gain * precision).sum()
            of_precision = ((z * back).sum(0) * precision).sum()
            of_squares = at_logits.sum(0) @ (self.squares @ precision.square())
            at_s = -2.0 * s * float(of_gain + of_precision - of_squares)
            return back.addcmul_(gradient, gain), at_s

        return torch.lerp(mean, z, gain), pullback
