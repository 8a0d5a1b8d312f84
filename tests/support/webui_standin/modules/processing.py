"""One job: from what the panel says to latents and their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from modules import sd_samplers, shared


@dataclass
class Processing:
    sampler_name: str
    steps: int = 10
    seeds: Sequence[int] = (1,)
    scheduler: str = "Automatic"
    eta: float | None = None
    s_noise: float = 1.0
    cfg_scale: float = 1.0
    init_latent: torch.Tensor | None = None
    denoising_strength: float = 0.6
    iteration: int = 0
    is_hr_pass: bool = False
    extra_generation_params: dict[str, Any] = field(default_factory=dict)

    @property
    def all_seeds(self) -> list[int]:
        return list(self.seeds)

    @property
    def batch_size(self) -> int:
        return len(self.seeds)


def process(p: Processing) -> torch.Tensor:
    """The latents; `p.sampler` is the sampler that made them."""
    name, p.scheduler = sd_samplers.get_sampler_and_scheduler(p.sampler_name, p.scheduler)
    p.sampler_name = name
    p.sampler = sampler = sd_samplers.create_sampler(name, shared.sd_model)  # type: ignore[attr-defined]
    noise = torch.stack(
        [
            torch.randn(shared.sd_model.shape, generator=torch.Generator().manual_seed(seed))
            for seed in p.seeds
        ]
    )
    with torch.inference_mode():
        if p.init_latent is None:
            latents: torch.Tensor = sampler.sample(p, noise)
        else:
            latents = sampler.sample_img2img(p, p.init_latent.expand_as(noise), noise)
    return latents


def infotext(p: Processing) -> dict[str, str]:
    """What the image's text holds, as pasting reads it."""
    params = {
        "Steps": p.steps,
        "Sampler": p.sampler_name,
        "Schedule type": p.scheduler,
        **p.extra_generation_params,
    }
    return {key: str(value) for key, value in params.items()}


def paste(text: dict[str, str]) -> dict[str, Any]:
    """The overrides of options that pasting a text brings."""
    overrides = {}
    for key, info in shared.opts.data_labels.items():
        if info.infotext in text:
            value = type(info.default)(text[info.infotext])
            if value != getattr(shared.opts, key):
                overrides[key] = value
    return overrides
