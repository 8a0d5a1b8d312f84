"""What samplers share."""

from __future__ import annotations

from typing import Any, NamedTuple

from modules import shared


class SamplerData(NamedTuple):
    name: str
    constructor: Any
    aliases: list[str]
    options: dict[str, Any]


class InterruptedException(BaseException): ...


def setup_img2img_steps(p: Any) -> tuple[int, int]:
    if shared.opts.img2img_fix_steps:
        return int(p.steps / min(p.denoising_strength, 0.999)), p.steps - 1
    return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)
