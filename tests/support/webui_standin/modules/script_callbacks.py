"""Functions that scripts leave to be called later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

before_ui: list[Callable[[], None]] = []
app_started: list[Callable[[Any, Any], None]] = []
cfg_denoiser: list[Callable[[CFGDenoiserParams], None]] = []
cfg_denoised: list[Callable[[CFGDenoisedParams], None]] = []


@dataclass
class CFGDenoiserParams:
    x: torch.Tensor
    denoiser: Any


@dataclass
class CFGDenoisedParams:
    x: torch.Tensor


def on_before_ui(callback: Callable[[], None]) -> None:
    before_ui.append(callback)


def on_app_started(callback: Callable[[Any, Any], None]) -> None:
    app_started.append(callback)


def on_cfg_denoiser(callback: Callable[[CFGDenoiserParams], None]) -> None:
    cfg_denoiser.append(callback)


def on_cfg_denoised(callback: Callable[[CFGDenoisedParams], None]) -> None:
    cfg_denoised.append(callback)
