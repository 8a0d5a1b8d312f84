"""Turns latents and drawings into the host's images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...lab import compare, grid
from .guiding import Bench


def as_image(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [height, width, 3] -> the host's image, [1, height, width, 3] from 0 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]


class Pictures:
    """Turns latents into pictures: by a VAE if there is one, otherwise by the host's quick previews.

    Attributes:
        remark: says so if the pictures are only previews, or missing; otherwise empty.
    """

    def __init__(self, bench: Bench, vae: Any) -> None:
        self._bench = bench
        self._vae = vae
        self.remark = "" if vae is not None else "previews: connect a VAE for the real pictures"

    def __call__(self, latent: torch.Tensor) -> np.ndarray:
        """[batch, ...] -> [batch, height, width, 3], from 0 to 1; the middle frame of each video."""
        latent = self._bench.first_part(latent)[: compare.MOST_IMAGES]
        if self._vae is None:
            return self._preview(latent)
        images = self._vae.decode(latent)
        if images.ndim == 5:  # [batch, frames, height, width, 3]
            images = images[:, images.shape[1] // 2]
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
