"""The noise of an interval, with unit variance: one Brownian path per image, defined by its seed.

A path is a function of the log-SNR, not of the list of sigmas. So runs with the same seed see the same
path, whatever their number of steps or their start, and an image keeps its path in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch

from .devices import to_device
from .schedules.process import NoiseSchedule

NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`noise_sampler(sigma, sigma_next)`, as in k-diffusion and the hosts."""

NoiseDevice = Literal["cpu", "gpu"]
Seed = int | Sequence[int] | None

TIME_SCALE = 16.0
DIGITS = 6
RESOLUTION = 10.0**-DIGITS


class Noise(Protocol):
    """Noise of unit variance, shaped like the state, for the interval from sigma to sigma_next."""

    def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor: ...


def noise_of(noise_sampler: NoiseSampler, x: torch.Tensor) -> Noise:
    """A caller's own noise sampler, given its sigmas as scalar tensors like x."""

    def noise(sigma: float, sigma_next: float) -> torch.Tensor:
        return noise_sampler(x.new_full((), sigma), x.new_full((), sigma_next))

    return noise


class BrownianNoise:
    """Increments of Brownian motions, divided by their standard deviation.

    The time of a path is tanh(lambda_ / 16). It runs from -1 to 1 for every schedule, and the steps of
    any solver are well apart in it.

    Memory: no latent is kept between calls; a call takes the result and at most four latents of one
    image.

    Args:
        x: [batch, ...]; the noise has its shape, dtype and device.
        schedule: gives lambda_ for sigma.
        seed: a whole number of any size; the path of image k depends only on it and on k. Or one
            number for each image: its path is then that of a single image with this seed. None: a
            seed from torch's global generator.
        device: where the noise is drawn. "cpu" gives the same noise on every machine; "gpu" draws on
            x's device, which is faster for large latents.

    Raises:
        ValueError: a seed is no whole number, or there are not as many seeds as images.
    """

    def __init__(
        self,
        x: torch.Tensor,
        schedule: NoiseSchedule,
        seed: Seed = None,
        device: NoiseDevice = "cpu",
    ) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.schedule = schedule
        self.drawn_on = x.device if device == "gpu" else torch.device("cpu")
        self.entropies = entropies(seed, len(x))

    def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor:
        start, end = self.time(sigma), self.time(sigma_next)
        first, last = min(start, end), max(start, end)
        if first == last:  # nearer to each other than the resolution
            first, last = (first, first + 1) if first < 0 else (first - 1, first)
        # float32 whatever x is: the same path in every precision
        noise = torch.zeros(self.shape, dtype=torch.float32, device=self.drawn_on)
        for image, entropy in zip(noise, self.entropies, strict=True):
            add_increment(image, entropy, first * RESOLUTION, last * RESOLUTION)
        noise.mul_(math.copysign(1.0, end - start) / math.sqrt((last - first) * RESOLUTION))
        return to_device(noise, self.device, self.dtype)

    def time(self, sigma: float) -> int:
        """The path's time, in multiples of its resolution."""
        return round(math.tanh(self.schedule.lambda_(sigma) / TIME_SCALE) / RESOLUTION)


def entropies(seed: Seed, batch: int) -> list[int]:
    """The number from which the path of each image is drawn."""
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
        raise ValueError(
            f"seed holds {len(words)} numbers for a batch of {batch} images: give one number, or "
            "one for each image."
        )
    return words


class Part(NamedTuple):
    """An interval of a path's binary tree: its ends, the path's increment over it, and its place."""

    left: float
    right: float
    increment: torch.Tensor
    place: int = 0
    depth: int = 0


def add_increment(total: torch.Tensor, entropy: int, start: float, end: float) -> None:
    """Add W(end) - W(start) of a Brownian motion W on [-1, 1] to a tensor, in place.

    The entropy defines W. The increment over an interval is drawn first, then that over its left half,
    given the whole (a Brownian bridge), each from a seed of its own. Parts within [start, end] are
    added as soon as they are drawn, so that the tree is never kept. The paths are those of torchsde's
    BrownianInterval with halfway_tree, which keeps some thirty latents for each.

    Args:
        start, end: multiples of RESOLUTION.
    """
    start, end = round(start, DIGITS), round(end, DIGITS)

    def covered(part: Part) -> bool:
        return start <= part.left and part.right <= end

    waiting = [Part(-1.0, 1.0, _randn(total, entropy).mul_(math.sqrt(2.0)))]
    while waiting:
        part = waiting.pop()
        if covered(part):
            total.add_(part.increment)
            continue
        left, right, whole, place, depth = part
        middle = round(0.5 * (left + right), DIGITS)
        share = (middle - left) / (right - left)
        half = _randn(total, entropy, (place, depth))
        half.mul_(math.sqrt((middle - left) * (1.0 - share))).add_(whole, alpha=share)
        halves = (
            Part(left, middle, half, 2 * place, depth + 1),
            Part(middle, right, whole.sub_(half), 2 * place + 1, depth + 1),
        )
        # Covered parts are taken first, so that their memory is free again.
        waiting += sorted((p for p in halves if p.left < end and start < p.right), key=covered)


def _randn(like: torch.Tensor, entropy: int, key: tuple[int, ...] = ()) -> torch.Tensor:
    """Normal numbers, shaped like a tensor and on its device, from a seed of their own."""
    seeds = np.random.SeedSequence(entropy, spawn_key=key, pool_size=8)
    generator = torch.Generator(like.device).manual_seed(int(seeds.generate_state(1)[0]))
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
