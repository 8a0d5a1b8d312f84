"""Dynamic thresholding of the denoised prediction, for pixel-space models."""

from __future__ import annotations

import torch


def dynamic_threshold(denoised: torch.Tensor, ratio: float, maximum: float) -> torch.Tensor:
    """Clamp each image to a quantile of its own absolute values, and scale it back.

    Imagen (arXiv 2205.11487), section 2.3; `dynamic_thresholding_fn` in the authors' code.

    Args:
        denoised: [batch, ...].
        ratio: the quantile, in (0, 1].
        maximum: the smallest bound s, above 0. Values within it are not clamped, but divided by it.

    Returns:
        clamp(denoised, -s, s) / s with s = max(quantile(|denoised|, ratio), maximum) per image.
    """
    flat = denoised.reshape(len(denoised), -1)
    values = flat.to(torch.promote_types(flat.dtype, torch.float32))
    bound = _quantile(values.abs(), ratio).clamp_(min=maximum)
    return (values.clamp(-bound, bound) / bound).reshape(denoised.shape)


def _quantile(values: torch.Tensor, ratio: float) -> torch.Tensor:
    """torch.quantile(values, ratio, dim=1, keepdim=True), which refuses more than 2^24 numbers."""
    ranked = values.sort(dim=1).values
    position = ratio * (values.shape[1] - 1)
    low = int(position)
    high = min(low + 1, values.shape[1] - 1)
    return torch.lerp(ranked[:, low : low + 1], ranked[:, high : high + 1], position - low)
