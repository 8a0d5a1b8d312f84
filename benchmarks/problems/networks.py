"""Trained networks as problems: the demo's, and small ones that cost little enough to be fitted on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

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


class Trained:
    """A network of a few layers in z and s, trained on pictures with EDM's preconditioning.

    Image k is guided towards class k. float32 within; trained on one thread by a fixed seed and kept
    on disk.

    Args:
        name: of the pictures, for the file.
        load: the pictures and their classes.
        iterations: of training, with 256 noisy pictures each.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        guidance: float,
        seed: int,
        iterations: int = 2500,
    ) -> None:
        points, labels = load()
        self.guidance, self.values = guidance, points.shape[1]
        self.classes = int(labels.max()) + 1
        torch.manual_seed(seed)
        self.layers = _Layers(self.values, self.classes, width=320, depth=4)
        key = f"{name} {seed} {iterations}"
        kept = CACHE / f"network-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
        if not kept.exists():
            self._train(points.float(), labels, iterations)
            torch.save(self.layers.state_dict(), kept)
        self.layers.load_state_dict(torch.load(kept))
        self.layers.requires_grad_(False)

    def _train(self, points: torch.Tensor, labels: torch.Tensor, iterations: int) -> None:
        optimiser = torch.optim.AdamW(self.layers.parameters(), 1e-3, weight_decay=0.01)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, 1e-5)
        for _ in range(iterations):
            chosen = torch.randint(len(points), (256,))
            asked = torch.where(torch.rand(256) < 0.15, self.classes, labels[chosen])
            level = torch.randn(256) * 1.6 - 0.4
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
        return scale.square() * z + scale * s * self.layers(z * scale, level, label)

    def __call__(self, z: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        level = torch.as_tensor(s, dtype=torch.float32).reshape(1, 1)
        free = torch.full((len(z),), self.classes)
        denoised = self._denoised(z.float(), level, free)
        if self.guidance:
            asked = self._denoised(z.float(), level, torch.arange(len(z)) % self.classes)
            denoised = torch.lerp(denoised, asked, self.guidance)
        return denoised.to(z)

    linearised = Demo.linearised
