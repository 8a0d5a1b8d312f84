"""The colour model: a small class-conditional U-Net that draws emoji of eight classes.

A noisy picture is z = clean + s noise, whatever process it comes from: Stable Diffusion's (signal
alpha, noise sigma) at s = sigma / alpha, a flow (signal 1 - t, noise t) at s = t / (1 - t). So one
network, which is told log s, serves both: :class:`NoisePrediction` gives its answer as the noise at
one of Stable Diffusion's 1000 times, :class:`FlowPrediction` as a flow's velocity at a time in [0, 1].
Both have the same weights, trained once; nothing but scales differs between them.

It needs only torch, and runs without ComfyUI. ``model.py`` puts it into the host's model classes.
Images are ``[batch, 3, 32, 32]``, black -1 and white +1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .network import AttentionBlock, ResidualBlock, read_weights, schedule_sigmas

CLASSES = ("heart", "smiley", "cat", "animal", "person", "flower", "fruit", "car")
IMAGE_SIZE = 32
SIZE_MULTIPLE = 4
"""Height and width must be multiples of this: the network halves them twice."""

WEIGHTS = Path(__file__).resolve().parent / "emoji.safetensors"


def class_context(labels: Sequence[int | None]) -> Tensor:
    """One-hot class rows, float32, ``[len(labels), 1, 8]``; None, no class, is a row of zeros."""
    context = torch.zeros(len(labels), 1, len(CLASSES))
    for row, label in enumerate(labels):
        if label is not None:
            context[row, 0, label] = 1.0
    return context


def level_features(log_s: Tensor, size: int) -> Tensor:
    """Cosines and sines of the noise level at ``size / 2`` frequencies: ``[batch, size]``.

    tanh(log s / 3) stays in [-1, 1], from no noise to nothing but noise. The fastest frequency
    makes eight turns over that range: a slow embedding keeps the network smooth in s, which
    high-order solvers need.
    """
    rates = torch.exp(torch.linspace(0.0, math.log(16.0), size // 2, device=log_s.device))
    angles = torch.tanh(log_s.float() / 3.0)[:, None] * (math.pi / 2.0) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def signal_and_noise(log_s: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of each s, whose squares sum to 1, each ``[batch, 1, 1, 1]``."""
    # s^2 = sigma^2 / alpha^2, so alpha^2 is the logistic function of -2 log s.
    alpha = torch.sigmoid(-2.0 * log_s).sqrt()
    sigma = torch.sigmoid(2.0 * log_s).sqrt()
    return alpha[:, None, None, None], sigma[:, None, None, None]


def check_inputs(x: Tensor, context: Tensor | None) -> None:
    """Raise an error if a graph is connected wrongly (shapes as for ``velocity``)."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(
            "The emoji model draws latents of shape [batch, 3, height, width], not "
            f"{list(x.shape)}: start from an empty latent or from its own result."
        )
    if x.shape[2] % SIZE_MULTIPLE or x.shape[3] % SIZE_MULTIPLE:
        raise ValueError(
            f"The emoji model needs sides that are multiples of {8 * SIZE_MULTIPLE} pixels (it was "
            f"trained on {8 * IMAGE_SIZE}x{8 * IMAGE_SIZE}), not {8 * x.shape[3]}x{8 * x.shape[2]}."
        )
    if context is not None and (context.ndim != 3 or context.shape[2] != len(CLASSES)):
        raise ValueError(
            "The emoji model takes its conditioning from the DPM-Solver Demo Emoji node, not "
            "from a text encoder."
        )


class EmojiNetwork(nn.Module):
    """Predicts the velocity v = alpha noise - sigma clean of x = alpha clean + sigma noise.

    alpha and sigma are those of :func:`signal_and_noise`. The network works on 16x16 cells of 2x2
    pixels, and on 8x8 below that; ``emoji.safetensors`` was trained with the default sizes.
    ``operations`` names the layer classes, ``torch.nn`` or a host's ``comfy.ops``; ``device`` and
    ``dtype`` are for the layers.
    """

    def __init__(
        self,
        channels: int = 64,
        wide: int = 128,
        embedding: int = 192,
        heads: int = 4,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        self.dtype = dtype if dtype is not None else torch.float32  # ComfyUI asks for it
        self.embedding = embedding
        kw: dict[str, Any] = {"dtype": dtype, "device": device}
        ops = operations
        self.level = nn.Sequential(
            ops.Linear(embedding, embedding, **kw),
            nn.SiLU(),
            ops.Linear(embedding, embedding, **kw),
        )
        self.kind = ops.Linear(len(CLASSES), embedding, bias=False, **kw)
        self.stem = ops.Conv2d(12, channels, 3, padding=1, **kw)
        self.down1 = ResidualBlock(channels, channels, embedding, ops, **kw)
        self.down2 = ResidualBlock(channels, channels, embedding, ops, **kw)
        self.shrink = ops.Conv2d(channels, wide, 3, stride=2, padding=1, **kw)
        self.middle1 = ResidualBlock(wide, wide, embedding, ops, **kw)
        self.attention1 = AttentionBlock(wide, heads, ops, **kw)
        self.middle2 = ResidualBlock(wide, wide, embedding, ops, **kw)
        self.attention2 = AttentionBlock(wide, heads, ops, **kw)
        self.middle3 = ResidualBlock(wide, wide, embedding, ops, **kw)
        self.widen = ops.Conv2d(wide, 4 * channels, 1, **kw)
        self.up1 = ResidualBlock(2 * channels, channels, embedding, ops, **kw)
        self.up2 = ResidualBlock(channels, channels, embedding, ops, **kw)
        self.norm = ops.GroupNorm(8, channels, **kw)
        self.head = ops.Conv2d(channels, 12, 3, padding=1, **kw)
        nn.init.zeros_(self.head.weight)

    def velocity(self, x: Tensor, log_s: Tensor, context: Tensor | None = None) -> Tensor:
        """v, the shape of ``x``.

        Args:
            x: ``[batch, 3, height, width]``, signal and noise with squares that sum to 1.
            log_s: ``[batch]``, the logarithm of noise over signal; infinity is nothing but noise.
            context: ``[batch, tokens, 8]`` from :func:`class_context`; several tokens are averaged.
                None is no class for all.
        """
        check_inputs(x, context)
        condition = self.level(level_features(log_s, self.embedding).to(x.dtype))
        if context is not None:
            condition = condition + self.kind(context.to(x.dtype).mean(dim=1))
        condition = functional.silu(condition)
        cells = functional.pixel_unshuffle(x, 2)
        # Channels last: a quarter faster on the CPU.
        h = self.stem(cells.contiguous(memory_format=torch.channels_last))
        h = skip = self.down2(self.down1(h, condition), condition)
        h = self.attention1(self.middle1(self.shrink(h), condition))
        h = self.attention2(self.middle2(h, condition))
        h = self.middle3(h, condition)
        h = torch.cat([functional.pixel_shuffle(self.widen(h), 2), skip], dim=1)
        h = self.up2(self.up1(h, condition), condition)
        return functional.pixel_shuffle(self.head(functional.silu(self.norm(h))), 2)

    def clean_and_noise(
        self, x: Tensor, log_s: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The picture and the noise that the network sees in ``x``; arguments as for ``velocity``."""
        alpha, sigma = (scale.to(x.dtype) for scale in signal_and_noise(log_s))
        v = self.velocity(x, log_s, context)
        return alpha * x - sigma * v, sigma * x + alpha * v


class NoisePrediction(EmojiNetwork):
    """The network as Stable Diffusion's are called: noise, at one of 1000 times."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_sigmas: Tensor
        self.register_buffer("log_sigmas", schedule_sigmas().log().float(), persistent=False)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_host: Any
    ) -> Tensor:
        """The noise in ``x``, which is the noisy picture over sqrt(sigma^2 + 1).

        Args:
            x: ``[batch, 3, height, width]``.
            timesteps: ``[batch]``, whole numbers from 0 to 999.
            context: as for ``velocity``.
            _host: what ComfyUI passes to every network (``control``, ``transformer_options``).
        """
        # A host that streams weights may leave buffers where they were made.
        log_s = self.log_sigmas.to(x.device)[timesteps.long()]
        return self.clean_and_noise(x, log_s, context)[1]


class FlowPrediction(EmojiNetwork):
    """The network as flow models are called: noise minus picture, at a time from 0 to 1000."""

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_host: Any
    ) -> Tensor:
        """The velocity of x = (1 - t) clean + t noise at t = ``timesteps`` / 1000, ``[batch]``.

        The other arguments are those of :meth:`NoisePrediction.forward`.
        """
        t = timesteps.float() / 1000.0
        log_s = t.log() - (1.0 - t).log()  # infinite at t = 1, which the network is made for
        scale = (t.square() + (1.0 - t).square()).rsqrt().to(x.dtype)
        clean, noise = self.clean_and_noise(x * scale[:, None, None, None], log_s, context)
        return noise - clean


def load(path: str | Path = WEIGHTS) -> EmojiNetwork:
    """The trained network on the CPU, float32, ready for inference."""
    network = EmojiNetwork()
    network.load_state_dict(read_weights(path))
    return network.eval().requires_grad_(False)


class Denoiser:
    """The network as k-diffusion's samplers call it, with classifier-free guidance.

    ``denoiser(x, sigma)`` returns the clean picture that the network sees in ``x``: ``x`` is
    ``[batch, 3, 32, 32]``, clean picture plus sigma times unit noise; ``sigma`` is ``[batch]``.
    """

    def __init__(self, network: EmojiNetwork, labels: Sequence[int], cfg: float) -> None:
        self.network = network
        self.cfg = cfg
        self.context = torch.cat([class_context(labels), class_context([None] * len(labels))])

    def __call__(self, x: Tensor, sigma: Tensor, **_extra: Any) -> Tensor:
        scaled = x / (sigma.square() + 1.0).sqrt()[:, None, None, None]
        clean, _ = self.network.clean_and_noise(
            scaled.repeat(2, 1, 1, 1), sigma.log().repeat(2), self.context.to(x)
        )
        asked, free = clean.chunk(2)
        return free + self.cfg * (asked - free)
