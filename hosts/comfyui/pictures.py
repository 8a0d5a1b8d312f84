"""Turns latents and drawings into the host's images."""

from __future__ import annotations

import importlib
from typing import Any

import comfy.model_management
import numpy as np
import torch

from ...lab import compare, grid
from ...samplers.checks import escaped
from ...samplers.log import LOG
from .guiding import Bench

# In hiddenswitch's ComfyUI the interrupt has a module of its own.
_INTERRUPTS = comfy.model_management
if not hasattr(_INTERRUPTS, "InterruptProcessingException"):
    _INTERRUPTS = importlib.import_module("comfy.interruption")

PASSING = (_INTERRUPTS.InterruptProcessingException,)
"""The host's interrupt; an ordinary Exception in old hosts, but no failure of a sampler."""


def as_image(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [height, width, 3] -> the host's image, [1, height, width, 3] from 0 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]


class Pictures:
    """Turns latents into pictures: by a VAE if there is one, otherwise by the host's quick previews.

    A VAE that fails, as one of another model does, ends no comparison.

    Attributes:
        remark: says so if the pictures are only previews, or missing; otherwise empty.
    """

    def __init__(self, bench: Bench, vae: Any) -> None:
        self._bench = bench
        self._vae = vae
        self.remark = "" if vae is not None else "previews: connect a VAE for the real pictures"

    @property
    def decoded(self) -> bool:
        """Whether the pictures are a VAE's."""
        return self._vae is not None

    def __call__(self, latent: torch.Tensor) -> np.ndarray:
        """[batch, ...] -> [batch, height, width, 3], from 0 to 1; the middle frame of each video."""
        latent = self._bench.first_part(latent)[: compare.MOST_IMAGES]
        if self._vae is not None:
            try:
                return self._decode(latent)
            except PASSING:
                raise
            except Exception as error:  # of any type: it is the host's code, or another pack's
                LOG.warning(f"Solver Compare: the VAE could not decode: {escaped(str(error), 200)}")
                self._vae = None
                self.remark = "previews: the VAE could not decode these latents"
        return self._preview(latent)

    def _decode(self, latent: torch.Tensor) -> np.ndarray:
        images = self._vae.decode(latent)
        if images.ndim == 5:  # [batch, frames, height, width, 3]
            images = images[:, images.shape[1] // 2]
        if images.ndim != 4 or images.shape[-1] < 3:
            raise ValueError(f"it gave {tuple(images.shape)}, which are no pictures")
        return images[..., :3].float().cpu().numpy()

    def _preview(self, latent: torch.Tensor) -> np.ndarray:
        form = self._bench.patcher.get_model_object("latent_format")
        factors = getattr(form, "latent_rgb_factors", None)
        latent = form.process_in(latent.float())
        reshape = getattr(form, "latent_rgb_factors_reshape", None)
        if reshape is not None:
            latent = reshape(latent)
        if latent.ndim == 5:
            latent = latent[:, :, latent.shape[2] // 2]
        if factors is None or latent.ndim != 4 or latent.shape[1] != len(factors):
            self.remark = "no pictures: connect a VAE"
            return np.full((len(latent), 8, 8, 3), grid.EMPTY[0] / 255.0, np.float32)
        bias = getattr(form, "latent_rgb_factors_bias", None)
        colours = latent.movedim(1, -1) @ torch.tensor(factors)
        if bias is not None:
            colours = colours + torch.tensor(bias)
        return ((colours + 1.0) / 2.0).clamp(0.0, 1.0).numpy()
