"""The noise of an interval, with unit variance: one Brownian path per image, fixed by its seed alone.

A path is a function of the log-SNR, not of the list of sigmas: runs of the same seed with other
numbers of steps, or starting later, see the same path, and images keep theirs in a batch of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch

from .devices import to_device
from .schedules.process import NoiseSchedule

NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`noise_sampler(sigma, sigma_next)` as k-diffusion and the hosts know it."""

NoiseDevice = Literal["cpu", "gpu"]
Seed = int | Sequence[int] | None

TIME_SCALE = 16.0
RESOLUTION = 1e-6
NODES_KEPT = 26
"""Of each path's binary tree, as many latents: its depth and a few more. Fewer would be drawn anew."""


class Noise(Protocol):
    """Noise of unit variance, shaped like the state, for the interval from sigma to sigma_next."""

    def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor: ...


def noise_of(noise_sampler: NoiseSampler, x: torch.Tensor) -> Noise:
    """A caller's own noise sampler, given its sigmas as scalar tensors like x."""

    def noise(sigma: float, sigma_next: float) -> torch.Tensor:
        return noise_sampler(x.new_full((), sigma), x.new_full((), sigma_next))

    return noise


class BrownianNoise:
    """Increments of Brownian motions, from torchsde, divided by their standard deviation.

    The path's time is tanh(lambda_ / 16): from -1 to 1 for every schedule, and even enough in between
    that the steps of any solver are far apart.

    Args:
        x: [batch, ...], whose shape, dtype and device the noise has.
        schedule: gives lambda_ for sigma.
        seed: a whole number of any size, from which and from k alone the path of image k is drawn; or
            one for each image, whose path then is that of a single image with this seed. None takes
            one from torch's global generator.
        device: where it is drawn. "cpu" gives the same noise on every machine; "gpu" draws on x's
            device, which is faster for large latents.

    Raises:
        ImportError: torchsde is not installed.
        ValueError: a seed is no whole number, or their number is not the batch's.
    """

    def __init__(
        self,
        x: torch.Tensor,
        schedule: NoiseSchedule,
        seed: Seed = None,
        device: NoiseDevice = "cpu",
    ) -> None:
        interval = _brownian_interval()
        self.dtype, self.device = x.dtype, x.device
        self.schedule = schedule
        self.paths = [
            interval(
                -1.0,
                1.0,
                size=tuple(x.shape[1:]),
                dtype=torch.float32,  # whatever x is: the same path in every precision
                device=x.device if device == "gpu" else torch.device("cpu"),
                entropy=entropy,
                tol=RESOLUTION,
                cache_size=NODES_KEPT,
                halfway_tree=True,  # the path then does not depend on which intervals are asked for
            )
            for entropy in entropies(seed, len(x))
        ]

    def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor:
        start, end = self.time(sigma), self.time(sigma_next)
        first, last = min(start, end), max(start, end)
        if first == last:  # nearer to each other than the path is resolved
            first, last = (first, first + 1) if first < 0 else (first - 1, first)
        increments = [path(first * RESOLUTION, last * RESOLUTION) for path in self.paths]
        scale = math.copysign(1.0, end - start) / math.sqrt((last - first) * RESOLUTION)
        return to_device(torch.stack(increments).mul_(scale), self.device, self.dtype)

    def time(self, sigma: float) -> int:
        """The path's time, in multiples of its resolution."""
        return round(math.tanh(self.schedule.lambda_(sigma) / TIME_SCALE) / RESOLUTION)


def entropies(seed: Seed, batch: int) -> list[int]:
    """What the paths of a batch's images are drawn from."""
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    if hasattr(seed, "tolist"):  # a tensor's or an array's numbers
        seed = seed.tolist()
    per_image = isinstance(seed, Sequence)
    seeds: list[Any] = [*seed] if isinstance(seed, Sequence) else [seed]
    if not all(isinstance(one, int) for one in seeds):
        raise ValueError(f"seed must be a whole number, or one for each image, not {seed!r}.")
    words = [one % 2**64 for one in seeds]  # as torch's generators take them; negative ones wrap
    if not per_image:
        return [words[0] | k << 64 for k in range(batch)]
    if len(words) != batch:
        raise ValueError(f"seed holds {len(words)} numbers for a batch of {batch} images.")
    return words


def _brownian_interval() -> Any:
    try:
        from torchsde import BrownianInterval
    except ImportError as error:
        raise ImportError(
            "eta above 0 draws its noise with the package torchsde, which is not installed: run "
            "`pip install torchsde`, or pass a noise_sampler."
        ) from error
    return BrownianInterval
