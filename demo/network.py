"""The demo's network: a small class-conditional U-Net that draws handwritten digits.

It needs only torch, and runs without ComfyUI. ``model.py`` puts it into the host's model classes.

Images are ``[batch, 1, 16, 16]``, ink +1 and paper -1. Noise levels are Stable Diffusion's: 1000
discrete times on the "scaled linear" schedule, sigma (noise over signal) from 0.029 to 14.6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
IMAGE_SIZE = 16
TIMESTEPS = 1000
SIZE_MULTIPLE = 4
"""Height and width must be multiples of this: the network halves them twice."""

WEIGHTS = Path(__file__).resolve().parent / "digits.safetensors"


def schedule_sigmas(linear_start: float = 0.00085, linear_end: float = 0.012) -> Tensor:
    """Sigma of every discrete time, rising, float64, shape ``[1000]``.

    The betas are squares of evenly spaced roots (diffusers' "scaled_linear", which ComfyUI calls
    "linear"); sigma = sqrt((1 - alpha_bar) / alpha_bar) with alpha_bar their running product.
    """
    roots = torch.linspace(linear_start**0.5, linear_end**0.5, TIMESTEPS, dtype=torch.float64)
    alpha_bar = torch.cumprod(1.0 - roots**2, dim=0)
    return ((1.0 - alpha_bar) / alpha_bar).sqrt()


def class_context(labels: Sequence[int | None]) -> Tensor:
    """One-hot class rows, float32, shape ``[len(labels), 1, 10]``; None is the null class.

    The null class (no class asked for) is a row of zeros, so that a host's "zero out" of a
    conditioning means unconditional here too. The middle axis is the token axis that a host's
    cross-attention conditioning has.
    """
    context = torch.zeros(len(labels), 1, CLASSES)
    for row, label in enumerate(labels):
        if label is None:
            continue
        if not 0 <= label < CLASSES:
            raise ValueError(f"A digit class is a whole number from 0 to 9, not {label}.")
        context[row, 0, label] = 1.0
    return context


def time_features(timesteps: Tensor, size: int) -> Tensor:
    """Cosines and sines of the time at ``size / 2`` frequencies, ``[batch]`` to ``[batch, size]``.

    The fastest makes about 16 turns over the whole schedule, unlike Stable Diffusion's, which turns
    within 6 steps of 1000: a slow embedding keeps the network smooth in time, which high-order
    solvers need.
    """
    half = size // 2
    rates = torch.exp(torch.linspace(0.0, math.log(100.0), half, device=timesteps.device))
    angles = timesteps.float()[:, None] / TIMESTEPS * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def check_inputs(x: Tensor, context: Tensor | None) -> None:
    """Raise an error if a graph is connected wrongly (shapes as for ``forward``)."""
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(
            "The digit model draws latents of shape [batch, 1, height, width], not "
            f"{list(x.shape)}: start from an empty latent or from its own result."
        )
    if x.shape[2] % SIZE_MULTIPLE or x.shape[3] % SIZE_MULTIPLE:
        raise ValueError(
            f"The digit model needs sides that are multiples of {8 * SIZE_MULTIPLE} pixels (it was "
            f"trained on {8 * IMAGE_SIZE}x{8 * IMAGE_SIZE}), not {8 * x.shape[3]}x{8 * x.shape[2]}."
        )
    if context is not None and (context.ndim != 3 or context.shape[2] != CLASSES):
        raise ValueError(
            "The digit model takes its conditioning from the DPM-Solver Demo Digit node, not "
            "from a text encoder."
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a scale and shift given by time and class."""

    def __init__(self, inputs: int, outputs: int, embedding: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.norm1 = ops.GroupNorm(8, inputs, **kw)
        self.conv1 = ops.Conv2d(inputs, outputs, 3, padding=1, **kw)
        self.modulation = ops.Linear(embedding, 2 * outputs, **kw)
        self.norm2 = ops.GroupNorm(8, outputs, **kw)
        self.conv2 = ops.Conv2d(outputs, outputs, 3, padding=1, **kw)
        nn.init.zeros_(self.conv2.weight)  # training starts from the identity
        self.skip = ops.Conv2d(inputs, outputs, 1, **kw) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``x`` [batch, inputs, h, w], ``embedding`` [batch, e] -> [batch, outputs, h, w]."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1.0 + scale) + shift
        return self.skip(x) + self.conv2(functional.silu(h))


class AttentionBlock(nn.Module):
    """Self-attention over all positions of a small feature map."""

    def __init__(self, channels: int, heads: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ops.GroupNorm(8, channels, **kw)
        self.qkv = ops.Conv2d(channels, 3 * channels, 1, **kw)
        self.out = ops.Conv2d(channels, channels, 1, **kw)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [batch, channels, h, w] -> the same shape."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, -1, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(dim=1)  # [batch, heads, positions, size]
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(-1, -2).reshape(batch, channels, height, width))


class DigitNetwork(nn.Module):
    """Predicts the noise in a digit's image.

    The network works on 8x8 cells of 2x2 pixels (the data has no finer detail) and on 4x4 below
    that; ``digits.safetensors`` was trained with the default sizes. ``operations`` names the layer
    classes, ``torch.nn`` or a host's ``comfy.ops``; ``device`` and ``dtype`` are for the layers.
    """

    def __init__(
        self,
        channels: int = 32,
        embedding: int = 128,
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
        wide, ops = 2 * channels, operations
        self.time = nn.Sequential(
            ops.Linear(embedding, embedding, **kw),
            nn.SiLU(),
            ops.Linear(embedding, embedding, **kw),
        )
        self.digit = ops.Linear(CLASSES, embedding, bias=False, **kw)
        self.stem = ops.Conv2d(4, channels, 3, padding=1, **kw)
        self.down1 = ResidualBlock(channels, channels, embedding, ops, **kw)
        self.down2 = ResidualBlock(channels, channels, embedding, ops, **kw)
        self.shrink = ops.Conv2d(channels, wide, 3, stride=2, padding=1, **kw)
        self.middle1 = ResidualBlock(wide, wide, embedding, ops, **kw)
        self.attention = AttentionBlock(wide, heads, ops, **kw)
        self.middle2 = ResidualBlock(wide, wide, embedding, ops, **kw)
        self.middle3 = ResidualBlock(wide, wide, embedding, ops, **kw)
        self.widen = ops.Conv2d(wide, 4 * channels, 1, **kw)
        self.up1 = ResidualBlock(2 * channels, channels, embedding, ops, **kw)
        self.up2 = ResidualBlock(channels, channels, embedding, ops, **kw)
        self.norm = ops.GroupNorm(8, channels, **kw)
        self.head = ops.Conv2d(channels, 4, 3, padding=1, **kw)
        nn.init.zeros_(self.head.weight)
        self.log_sigmas: Tensor
        self.register_buffer("log_sigmas", schedule_sigmas().log().float(), persistent=False)

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale of each time (their squares sum to 1), each ``[batch, 1, 1, 1]``.

        Times between two whole ones are interpolated in log sigma.
        """
        times = timesteps.float().clamp(0, TIMESTEPS - 1)
        lower = times.floor().long().clamp(max=TIMESTEPS - 2)
        # A host that streams weights may leave buffers where they were made.
        table = self.log_sigmas.to(times.device)
        log_sigma = torch.lerp(table[lower], table[lower + 1], times - lower)
        # sigma^2 = noise^2 / signal^2, so signal^2 is the logistic function of -2 log sigma.
        signal = torch.sigmoid(-2.0 * log_sigma).sqrt()
        noise = torch.sigmoid(2.0 * log_sigma).sqrt()
        return signal[:, None, None, None], noise[:, None, None, None]

    def velocity(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        """v = signal * noise image - noise * clean image: what the layers are trained to give.

        Arguments as for :meth:`forward`.
        """
        condition = self.time(time_features(timesteps, self.embedding).to(x.dtype))
        if context is not None:
            condition = condition + self.digit(context.to(x.dtype).mean(dim=1))
        condition = functional.silu(condition)
        cells = functional.pixel_unshuffle(x, 2)
        # Channels last: a quarter faster on the CPU.
        h = self.stem(cells.contiguous(memory_format=torch.channels_last))
        h = skip = self.down2(self.down1(h, condition), condition)
        h = self.attention(self.middle1(self.shrink(h), condition))
        h = self.middle3(self.middle2(h, condition), condition)
        h = torch.cat([functional.pixel_shuffle(self.widen(h), 2), skip], dim=1)
        h = self.up2(self.up1(h, condition), condition)
        return functional.pixel_shuffle(self.head(functional.silu(self.norm(h))), 2)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_host: Any
    ) -> Tensor:
        """The predicted noise, the shape of ``x``.

        Args:
            x: ``[batch, 1, height, width]``, the noisy image over sqrt(sigma^2 + 1).
            timesteps: ``[batch]``, from 0 to 999.
            context: ``[batch, tokens, 10]`` from :func:`class_context`; several tokens are
                averaged. None is the null class for all.
            _host: what ComfyUI passes to every network (``control``, ``transformer_options``).
        """
        check_inputs(x, context)
        signal, noise = self.signal_and_noise(timesteps)
        # Predicting v inside and returning eps keeps the clean image accurate at high noise,
        # where an error in eps would be multiplied by up to sigma = 14.6.
        return noise.to(x.dtype) * x + signal.to(x.dtype) * self.velocity(x, timesteps, context)


def read_weights(path: str | Path = WEIGHTS) -> dict[str, Tensor]:
    """The trained weights as float32 (they are stored as float16), by parameter name."""
    from safetensors.torch import load_file

    return {name: value.float() for name, value in load_file(str(path)).items()}


def read_metadata(path: str | Path = WEIGHTS) -> Mapping[str, str]:
    """What ``train.py`` wrote about the weights: seed, steps, data and its licence, ..."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return file.metadata() or {}


def load(path: str | Path = WEIGHTS) -> DigitNetwork:
    """The trained network on the CPU, float32, ready for inference."""
    network = DigitNetwork()
    network.load_state_dict(read_weights(path))
    return network.eval().requires_grad_(False)


class Denoiser:
    """The network as k-diffusion's samplers call it, with classifier-free guidance.

    ``denoiser(x, sigma)`` returns the clean image that the network sees in ``x``: ``x`` is
    ``[batch, 1, 16, 16]``, clean image plus sigma times unit noise; ``sigma`` is ``[batch]``.
    """

    def __init__(
        self, network: DigitNetwork, labels: Sequence[int | None], cfg: float = 1.0
    ) -> None:
        self.network = network
        self.cfg = cfg
        self.context = class_context(labels)

    def __call__(self, x: Tensor, sigma: Tensor, **_extra: Any) -> Tensor:
        log_sigmas = self.network.log_sigmas.to(sigma.device)
        # The nearest discrete time, as ComfyUI's ModelSamplingDiscrete chooses it.
        times = (sigma.log()[:, None] - log_sigmas).abs().argmin(dim=1)
        scale = sigma[:, None, None, None]
        scaled = x / (scale**2 + 1.0).sqrt()
        context = self.context.to(x)
        if self.cfg == 1.0:
            eps = self.network(scaled, times, context)
        else:
            both = torch.cat([context, torch.zeros_like(context)])
            asked, free = self.network(scaled.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
            eps = free + self.cfg * (asked - free)
        return x - scale * eps
