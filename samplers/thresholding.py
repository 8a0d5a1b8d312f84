"""Dynamic thresholding of the denoised prediction, for pixel-space models."""

from __future__ import annotations

import torch


def dynamic_threshold(denoised: torch.Tensor, ratio: float, maximum: float) -> torch.Tensor:
    """Clamp each image to a quantile of its own absolute values, and scale it back.

    Imagen (arXiv 2205.11487), section 2.3; `dynamic_thresholding_fn` in the authors' code.

    Args:
        denoised: [batch, ...].
        ratio: the quantile, in (0, 1].
        maximum: the least bound; within it nothing is clamped, but all is divided by it.

    Returns:
        clamp(denoised, -s, s) / s with s = max(quantile(|denoised|, ratio), maximum) per image.
    """
    flat = denoised.reshape(len(denoised), -1)
    values = flat.to(torch.promote_types(flat.dtype, torch.float32))
    bound = values.abs().quantile(ratio, dim=1, keepdim=True).clamp_(min=maximum)
    return (values.clamp(-bound, bound) / bound).reshape(denoised.shape)
