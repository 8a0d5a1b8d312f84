"""Copies between the CPU, where plans are made in float64, and the device that a run computes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

CPU_FLOAT64: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
"""Arguments of torch's functions that make a tensor: torch's default device may be another one."""


def as_float64(values: torch.Tensor | np.ndarray | Sequence[float]) -> torch.Tensor:
    """Numbers as float64 on the CPU. A Mac's GPU has no float64, so a tensor is copied first."""
    if isinstance(values, torch.Tensor):
        values = values.cpu()
    elif isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values)  # torch takes no flipped one
    return torch.as_tensor(values, **CPU_FLOAT64)


def to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A tensor from the CPU on a run's device, in the run's precision.

    The precision changes on the CPU, as a Mac's GPU has no float64. Only copies to CUDA
    don't block: elsewhere the memory of a temporary tensor may be reused before it is read.
    """
    return tensor.to(dtype).to(device, non_blocking=device.type == "cuda")
