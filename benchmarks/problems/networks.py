"""Trained networks as problems: the demo's, and small ones that cost little enough to be fitted on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ...demo import emoji, network
from .fields import Pullback
from .pictures import CACHE


class Demo:
    """The demo's network in z and s, which is given the time that belongs to s exactly.

    Image k is of class k; float32 within.
    """

    values = network.IMAGE_SIZE**2

    def __init__(self, guidance: float = 0.0) -> None:
        self.network = network.load().requires_grad_(False)
        self.guidance = guidance
        self.levels = network.schedule_sigmas().log()

    def __call__(self, z: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        level = torch.as_tensor(s, dtype=torch.float64)
        scaled = (z / (1.0 + level**2) ** 0.5).float()
        scaled = scaled.reshape(len(z), 1, network.IMAGE_SIZE, network.IMAGE_SIZE)
        times = self._time(level).float().expand(len(z))
        eps = self.network(scaled, times)
        if self.guidance:
            classes = network.class_context([k % network.CLASSES for k in range(len(z))])
            eps = torch.lerp(eps, self.network(scaled, times, classes), self.guidance)
        return z - level * eps.double().reshape(z.shape)

    def linearised(self, z: torch.Tensor, s: float) -> tuple[torch.Tensor, Pullback]:
        """The denoised images, and how a gradient at them goes back to z and s."""
        state = z.detach().requires_grad_(True)
        level = torch.tensor(s, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            denoised = self(state, level)

        def pullback(gradient: torch.Tensor) -> tuple[torch.Tensor, float]:
            at_state, at_level = torch.autograd.grad(denoised, (state, level), gradient)
            return at_state, float(at_level)

        return denoised.detach(), pullback

    def _time(self, s: torch.Tensor) -> torch.Tensor:
        """From 0 to 999, even in log s between whole ones; differentiable."""
        level, last = s.log(), len(self.levels) - 1
        low = int(torch.searchsorted(self.levels, float(level.detach())).clamp(1, last)) - 1
        below, above = self.levels[low], self.levels[low + 1]
        return (low + (level - below) / (above - below)).clamp(0.0, float(last))


class Emoji:
    """The demo's colour network in z and s; image k is guided towards class k. float32 within."""

    size = emoji.IMAGE_SIZE
    values = 3 * size**2

    def __init__(self, guidance: float, images: int) -> None:
        labels = [k % len(emoji.CLASSES) for k in range(images)]
        self.denoiser = emoji.Denoiser(emoji.load(), labels, guidance)

    def __call__(self, z: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        levels = torch.as_tensor(s, dtype=torch.float32).expand(len(z))
        pictures = z.float().reshape(len(z), 3, self.size, self.size)
        return self.denoiser(pictures, levels).reshape(z.shape).to(z)

    linearised = Demo.linearised


class _Layers(nn.Module):
    """Residual layers over a whole picture, told the noise level and the class."""

    def __init__(self, values: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(values, width), nn.Linear(width, values)
        self.frequencies = nn.Parameter(torch.linspace(0.5, 4.0, 16), requires_grad=False)
        self.level, self.label = nn.Linear(32, width), nn.Embedding(classes + 1, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        angles = level[:, None] * self.frequencies
        told = self.level(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(label)
        hidden = self.enter(x)
        for norm, inner, outer in zip(self.norms, self.inner, self.outer, strict=True):
            hidden = hidden + outer(nn.functional.silu(inner(norm(hidden)) + told))
        return self.leave(hidden)


class _Block(nn.Module):
    """Two convolutions over the feature maps, told the noise level and the class."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        self.told = nn.Linear(told, width)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        inner = self.inner(nn.functional.silu(self.norm1(x))) + self.told(told)[:, :, None, None]
        return x + self.outer(nn.functional.silu(self.norm2(inner)))


class _Convolutions(nn.Module):
    """A small U-Net on cells of 2 x 2 pixels, with the sizes and the told values of `_Layers`."""

    told = 128

    def __init__(self, values: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.size = math.isqrt(values // 3)
        self.frequencies = nn.Parameter(torch.linspace(0.5, 4.0, 16), requires_grad=False)
        self.level = nn.Linear(32, self.told)
        self.label = nn.Embedding(classes + 1, self.told)
        self.enter = nn.Conv2d(12, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 12, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.fine = nn.ModuleList(_Block(width, self.told) for _ in range(depth))
        self.coarse = nn.ModuleList(_Block(2 * width, self.told) for _ in range(depth))
        self.last = nn.ModuleList(_Block(width, self.told) for _ in range(depth))

    def forward(self, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        angles = level[:, None] * self.frequencies
        told = self.level(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(label)
        told = nn.functional.silu(told)
        pictures = x.reshape(len(x), self.size, self.size, 3).movedim(3, 1)
        hidden = self.enter(nn.functional.pixel_unshuffle(pictures, 2))
        for block in self.fine:
            hidden = block(hidden, told)
        below = self.down(hidden)
        for block in self.coarse:
            below = block(below, told)
        hidden = hidden + self.up(below)
        for block in self.last:
            hidden = block(hidden, told)
        made = nn.functional.pixel_shuffle(self.leave(hidden), 2)
        return made.movedim(1, 3).reshape(x.shape)


@dataclass(frozen=True)
class Architecture:
    """Of a network that is trained here.

    Attributes:
        name: for the file that it is kept in.
        layers: the class of the network.
        width, depth: its size.
        batch: noisy pictures in each iteration of training.
        velocity: it predicts the velocity of the noisy picture, as EDM's networks nearly do; otherwise
            the noise, as Stable Diffusion's.
    """

    name: str
    layers: type[_Layers | _Convolutions]
    width: int
    depth: int
    batch: int = 256
    velocity: bool = True


DENSE = Architecture("", _Layers, width=320, depth=4)
VELOCITY = Architecture("convolutions", _Convolutions, width=48, depth=2, batch=64)
NOISE = Architecture("convolutions, noise", _Convolutions, 40, 2, batch=64, velocity=False)


class Trained:
    """A small network in z and s, trained on pictures.

    Image k is guided towards class k. float32 within; trained on one thread by a fixed seed and kept
    on disk.

    Args:
        name: of the pictures, for the file.
        load: the pictures and their classes.
        iterations: of training.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        guidance: float,
        seed: int,
        architecture: Architecture = DENSE,
        iterations: int = 2500,
    ) -> None:
        points, labels = load()
        self.guidance, self.values = guidance, points.shape[1]
        self.classes = int(labels.max()) + 1
        self.architecture = architecture
        torch.manual_seed(seed)
        self.layers = architecture.layers(
            self.values, self.classes, architecture.width, architecture.depth
        )
        key = f"{name} {seed} {iterations}{architecture.name}"
        kept = CACHE / f"network-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
        if not kept.exists():
            self._train(points.float(), labels, iterations)
            torch.save(self.layers.state_dict(), kept)
        self.layers.load_state_dict(torch.load(kept))
        self.layers.requires_grad_(False)

    def _train(self, points: torch.Tensor, labels: torch.Tensor, iterations: int) -> None:
        batch = self.architecture.batch
        optimiser = torch.optim.AdamW(self.layers.parameters(), 1e-3, weight_decay=0.01)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, 1e-5)
        for _ in range(iterations):
            chosen = torch.randint(len(points), (batch,))
            asked = torch.where(torch.rand(batch) < 0.15, self.classes, labels[chosen])
            level = torch.randn(batch) * 1.6 - 0.4
            s = level.exp()[:, None]
            clean = points[chosen]
            denoised = self._denoised(clean + s * torch.randn_like(clean), s, asked)
            loss = ((denoised - clean).square() * (1.0 + 1.0 / s.square())).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.layers.parameters(), 1.0)
            optimiser.step()
            rates.step()

    def _denoised(self, z: torch.Tensor, s: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        scale = (1.0 + s.square()).rsqrt()
        level = s.log().expand(len(z), 1)[:, 0]
        predicted = self.layers(z * scale, level, label)
        if not self.architecture.velocity:
            return z - s * predicted
        return scale.square() * z + scale * s * predicted

    def __call__(self, z: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        level = torch.as_tensor(s, dtype=torch.float32).reshape(1, 1)
        free = torch.full((len(z),), self.classes)
        denoised = self._denoised(z.float(), level, free)
        if self.guidance:
            asked = self._denoised(z.float(), level, torch.arange(len(z)) % self.classes)
            denoised = torch.lerp(denoised, asked, self.guidance)
        return denoised.to(z)

    linearised = Demo.linearised
