"""The list of problems: what the recommended sampler is fitted on, and what it is judged on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch

from . import networks, pictures, tables
from .fields import Fields, Pullback, spectrum, thinned
from .mixtures import Mixture
from .networks import NOISE, VELOCITY
from .pictures import CACHE
from .processes import Process


class Denoiser(Protocol):
    """A model in z and s.

    Attributes:
        values: of an image.
    """

    values: int

    def __call__(self, z: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        """From a state z = x / alpha, [batch, values], and s = sigma / alpha to denoised images."""

    def linearised(self, z: torch.Tensor, s: float) -> tuple[torch.Tensor, Pullback]:
        """The denoised images, and how a gradient at them goes back to z and s."""


FINE = 1200
"""Steps of the converged solution. With half of them it moves by less than 1e-6 of the best sampler's
error at 30 calls on exact models."""


@dataclass(frozen=True)
class Problem:
    """A model with its guidance, and the noises that it starts from.

    Attributes:
        family: what kind of model: "fields", "photographs", "emoji", "digits", "tables", "trees",
            "network".
        positions: of an image: height x width, and x frames.
        make: the denoiser; `values` is the size of an image.
        processes: names of those that samplers are compared on.
        images: image k is of class k, where there are classes.
        fine: steps of the converged solution.
    """

    name: str
    family: str
    guidance: float
    positions: int
    make: Callable[[], Denoiser]
    processes: tuple[str, ...]
    seed: int
    images: int = 8
    fine: int = FINE

    @cached_property
    def model(self) -> Denoiser:
        return self.make()

    @property
    def values(self) -> int:
        return self.model.values

    def noise(self) -> torch.Tensor:
        """Unit noise, float64, [images, values]."""
        return self._noise(self.seed)

    def other_noise(self) -> torch.Tensor:
        """Unit noise for image to image: not that which the images were made of."""
        return self._noise(self.seed + 1000)

    def _noise(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.images, self.values, generator=generator, dtype=torch.float64)

    def solution(self, process: Process) -> torch.Tensor:
        """The converged images; kept on disk."""
        key = f"{self} {process.s_max} {process.s_min} {self.fine}"
        kept = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
        if not kept.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            start = process.start(self.noise())
            torch.save(self.solve(start, process.s_max, process.s_min, self.fine), kept)
        return torch.load(kept)

    def solve(self, z: torch.Tensor, s_max: float, s_min: float, steps: int) -> torch.Tensor:
        """The converged images from a state: that at s_min, and one last denoising."""
        with torch.no_grad():
            return self.model(self.carry(z, s_max, s_min, steps), s_min)

    @torch.no_grad()
    def carry(self, z: torch.Tensor, s_max: float, s_min: float, steps: int) -> torch.Tensor:
        """The state at s_min from that at s_max, by classical Runge-Kutta."""
        levels = torch.linspace(math.log(s_max), math.log(s_min), steps + 1).tolist()
        for a, b in pairwise(levels):
            h, middle = b - a, math.exp((a + b) / 2.0)
            k1 = z - self.model(z, math.exp(a))
            z2 = z + h / 2.0 * k1
            k2 = z2 - self.model(z2, middle)
            z3 = z + h / 2.0 * k2
            k3 = z3 - self.model(z3, middle)
            z4 = z + h * k3
            k4 = z4 - self.model(z4, math.exp(b))
            z = z + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return z

    def __str__(self) -> str:
        return f"{self.name} {self.seed} {self.images}"


BOUNDED, FLOWS = ("sd", "zero-snr", "edm"), ("flow1", "flow3", "flow6", "flow12")


def fields(
    shape: Sequence[int],
    exponent: float,
    guidance: float,
    seed: int,
    channels: int = 1,
    share: float = 0.5,
    images: int = 8,
    thin: bool = False,
) -> Problem:
    slow = 4.0 if len(shape) == 3 else 1.0

    def make() -> Fields:
        variances = spectrum(shape, exponent, slow)
        variances = thinned(variances) if thin else variances
        return Fields(variances.repeat(channels), guidance, seed, share=share)

    size = "x".join(map(str, shape))
    flows = FLOWS[:3] if shape[-1] <= 48 else FLOWS[1:]
    return Problem(
        f"fields {channels}x{size} p {exponent:g} share {share:g} g {guidance:g}",
        "fields",
        guidance,
        math.prod(shape),
        make,
        (*BOUNDED, *flows),
        seed + 1,
        images,
    )


def points(
    family: str,
    name: str,
    positions: int,
    load: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    smoothing: float,
    guidance: float,
    seed: int,
    images: int = 8,
) -> Problem:
    return Problem(
        f"{family} {name} smoothing {smoothing:g} g {guidance:g}",
        family,
        guidance,
        positions,
        lambda: Mixture(*load(), smoothing, guidance),
        (*BOUNDED, *FLOWS),
        seed,
        images,
    )


def photographs(
    names: tuple[str, ...],
    size: int,
    smoothing: float,
    guidance: float,
    seed: int,
    count: int = 480,
    images: int = 8,
) -> Problem:
    title = f"{'+'.join(names)} {size}x{size}x3"
    return points(
        "photographs",
        title,
        size * size,
        lambda: pictures.patches(names, size, count, seed),
        smoothing,
        guidance,
        seed,
        images,
    )


def emoji(size: int, offset: int, smoothing: float, guidance: float, seed: int) -> Problem:
    return points(
        "emoji",
        f"{size}x{size}x3 from {offset}",
        size * size,
        lambda: pictures.emoji(size, 480, offset),
        smoothing,
        guidance,
        seed,
    )


def digits(smoothing: float, guidance: float, seed: int) -> Problem:
    return points("digits", "8x8", 8 * 8, pictures.digits, smoothing, guidance, seed)


def table(name: str, features: int, smoothing: float, guidance: float, seed: int) -> Problem:
    return points(
        "tables",
        f"{name}, {features} features",
        features,
        lambda: tables.table(name),
        smoothing,
        guidance,
        seed,
    )


def tree(dimensions: int, smoothing: float, guidance: float, seed: int) -> Problem:
    return points(
        "trees",
        f"{dimensions} dimensions",
        dimensions,
        lambda: tables.tree(dimensions, seed),
        smoothing,
        guidance,
        seed,
    )


def demo(guidance: float, seed: int) -> Problem:
    return Problem(
        f"demo g {guidance:g}",
        "network",
        guidance,
        networks.Demo.values,
        lambda: networks.Demo(guidance),
        ("sd",),
        seed,
    )


def emoji_network(guidance: float, seed: int, images: int = 4) -> Problem:
    return Problem(
        f"emoji network {networks.Emoji.size}x{networks.Emoji.size}x3 g {guidance:g}",
        "network",
        guidance,
        networks.Emoji.size**2,
        lambda: networks.Emoji(guidance, images),
        ("sd", "flow3"),
        seed,
        images,
        fine=300,
    )


def trained(
    name: str,
    size: int,
    load: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    guidance: float,
    seed: int,
    architecture: networks.Architecture = networks.DENSE,
    images: int = 6,
) -> Problem:
    dense = architecture is networks.DENSE
    kind = "" if dense else f" {architecture.name}"
    return Problem(
        f"trained {name}{kind} g {guidance:g}",
        "network",
        guidance,
        size * size,
        lambda: networks.Trained(name, load, guidance, seed, architecture),
        (*BOUNDED, *FLOWS) if dense else ("sd", "flow3") if architecture.velocity else ("sd",),
        seed,
        images,
        fine=FINE if dense else 300,
    )


def trained_on_patches(
    names: tuple[str, ...],
    size: int,
    guidance: float,
    seed: int,
    architecture: networks.Architecture = networks.DENSE,
    images: int = 6,
    cut: int = 3,
) -> Problem:
    """Args:
    cut: seed of the places that the patches are cut from.
    """
    return trained(
        f"{'+'.join(names)} {size}x{size}x3",
        size,
        lambda: pictures.patches(names, size, 3000, cut),
        guidance,
        seed,
        architecture,
        images,
    )


def trained_on_emoji(
    size: int,
    offset: int,
    guidance: float,
    seed: int,
    architecture: networks.Architecture = networks.DENSE,
    images: int = 6,
) -> Problem:
    return trained(
        f"emoji {size}x{size}x3 from {offset}",
        size,
        lambda: pictures.emoji(size, 1600, offset),
        guidance,
        seed,
        architecture,
        images,
    )


TUNE: tuple[Problem, ...] = (
    fields((20, 20), 1.4, 1.0, 100, channels=4, images=6),
    fields((32, 32), 2.0, 0.0, 102, images=6),
    fields((48, 48), 2.4, 5.0, 104, images=6),
    fields((64, 64), 2.5, 0.0, 106, images=6, thin=True),
    fields((64, 64), 2.2, 7.0, 108, images=6, thin=True),
    fields((48, 48), 3.0, 2.0, 110, images=6),
    fields((96, 96), 2.1, 4.0, 112, images=6, thin=True),
    fields((128, 128), 2.4, 3.0, 114, images=6, thin=True),
    fields((5, 16, 24), 2.3, 5.0, 116, images=6),
    fields((24, 24), 1.7, 3.0, 140, images=6),
    fields((40, 40), 2.2, 0.0, 142, images=6),
    fields((32, 32), 1.3, 5.0, 300, channels=3, images=6),
    fields((64, 64), 1.6, 7.0, 302, images=6, thin=True),
    fields((96, 96), 2.6, 0.0, 304, images=6, thin=True),
    fields((128, 128), 2.2, 5.0, 306, images=6, thin=True),
    fields((80, 80), 2.8, 3.0, 308, share=0.3, images=6, thin=True),
    fields((160, 160), 2.3, 4.0, 310, images=6, thin=True),
    fields((48, 48), 2.0, 8.0, 312, images=6),
    fields((64, 64), 2.4, 1.0, 314, images=6, thin=True),
    fields((7, 24, 32), 2.1, 3.0, 316, images=6),
    fields((36, 36), 2.5, 4.0, 318, channels=2, share=0.7, images=6),
    fields((128, 128), 1.3, 0.0, 326, images=6, thin=True),
    fields((32, 32), 1.8, 8.0, 328, channels=4, images=12),
    fields((40, 40), 1.6, 6.0, 330, channels=3, images=10),
    fields((28, 28), 1.9, 7.0, 332, channels=4, images=12),
    photographs(("china", "flower"), 8, 0.1, 8.0, 120),
    photographs(("china", "flower"), 8, 0.1, 7.0, 334, images=12),
    photographs(("china",), 8, 0.12, 8.0, 336, images=12),
    photographs(("flower",), 10, 0.1, 6.0, 338, images=12),
    photographs(("china", "flower"), 8, 0.25, 0.0, 122),
    photographs(("china", "flower"), 12, 0.1, 4.0, 124),
    photographs(("china",), 8, 0.15, 2.0, 144),
    photographs(("china", "flower"), 16, 0.25, 5.0, 320),
    photographs(("flower",), 12, 0.1, 0.0, 322),
    emoji(8, 0, 0.25, 5.0, 126),
    emoji(8, 0, 0.1, 0.0, 146),
    emoji(16, 0, 0.1, 4.0, 324),
    digits(0.25, 0.0, 128),
    digits(0.25, 7.5, 130),
    digits(0.12, 3.0, 138),
    trained_on_patches(("china", "flower"), 8, 4.0, 134),
    trained_on_emoji(8, 0, 0.0, 136),
    trained_on_patches(("china",), 12, 2.0, 148, cut=5),
    table("wine", 13, 0.25, 0.0, 360),
    table("wine", 13, 0.1, 3.0, 362),
)

NETWORKS: tuple[Problem, ...] = (
    trained_on_emoji(16, 0, 3.0, 340, VELOCITY, images=4),
    trained_on_patches(("china", "flower"), 16, 5.0, 342, NOISE, images=4),
    trained_on_patches(("china", "flower"), 32, 4.0, 344, VELOCITY, images=3),
    trained_on_emoji(32, 3, 2.0, 346, NOISE, images=3),
    trained("digits 8x8", 8, pictures.digits, 3.0, 350),
    trained_on_patches(("flower",), 24, 0.0, 352, NOISE, images=3, cut=7),
    trained_on_patches(("china",), 20, 7.0, 354, VELOCITY, images=3, cut=8),
    trained_on_patches(("china", "flower"), 16, 0.0, 372, VELOCITY, images=4, cut=9),
    trained_on_patches(("ihc", "china"), 16, 7.0, 380, NOISE, images=3, cut=10),
    trained_on_patches(("ihc", "flower"), 16, 2.0, 384, NOISE, images=3, cut=11),
)
"""For fits of whole runs, with those in TUNE. The images of large models are networks', too."""

CHECK_NETWORKS: tuple[Problem, ...] = (
    trained_on_emoji(16, 5, 5.0, 360, NOISE, images=4),
    trained_on_patches(("motorcycle_left", "hubble_deep_field"), 24, 2.5, 362, VELOCITY, images=3),
    trained_on_emoji(16, 2, 4.0, 382, NOISE, images=4),
)
"""What the weight of networks in a fit is chosen by."""

CHECK: tuple[Problem, ...] = (
    fields((40, 40), 1.9, 3.0, 50, images=6),
    fields((72, 72), 2.6, 6.0, 52, images=6, thin=True),
    photographs(("rocket",), 8, 0.15, 5.0, 54),
    digits(0.15, 2.0, 56),
    emoji(8, 2, 0.2, 3.0, 58),
)
"""What the penalties of a fit are chosen by."""

JUDGE: tuple[Problem, ...] = (
    fields((64, 64), 2.4, 0.0, 7),
    fields((64, 64), 2.2, 4.0, 9),
    fields((96, 96), 2.5, 4.0, 11),
    fields((32, 32), 1.7, 7.0, 13, channels=4),
    fields((80, 80), 2.1, 5.0, 15, share=0.3),
    fields((128, 128), 2.4, 3.0, 17, images=6),
    fields((7, 24, 40), 2.2, 6.0, 19),
    photographs(("coffee", "chelsea"), 16, 0.25, 4.0, 21),
    photographs(("astronaut", "rocket"), 8, 0.1, 7.5, 23),
    photographs(("coffee", "retina"), 8, 0.1, 0.0, 25),
    emoji(16, 1, 0.1, 4.0, 27),
    digits(0.2, 4.0, 29),
    table("breast_cancer", 30, 0.25, 0.0, 201),
    table("breast_cancer", 30, 0.1, 4.0, 203),
    tree(6, 0.1, 0.0, 205),
    tree(6, 0.25, 4.0, 207),
    trained_on_patches(("coffee", "chelsea", "astronaut"), 10, 3.0, 33, cut=4),
    trained_on_patches(("coffee", "chelsea", "astronaut"), 16, 3.0, 37, VELOCITY, images=4, cut=4),
    trained_on_patches(("retina", "coffee", "rocket"), 24, 5.0, 39, NOISE, images=4, cut=4),
    demo(0.0, 31),
    demo(4.0, 132),
    emoji_network(4.0, 35),
)
"""None of them is in a fit. They judged earlier versions of the sampler too. The fields, and the emoji
network from other starts, were in view when `CAUTION` was chosen."""
