"""The list of samplers, and how names become samplers."""

from __future__ import annotations

import functools
from typing import Any

import k_diffusion.sampling

from modules import sd_samplers_common, sd_samplers_kdiffusion, sd_schedulers, shared

all_samplers = [
    sd_samplers_common.SamplerData(
        name,
        functools.partial(
            sd_samplers_kdiffusion.KDiffusionSampler, getattr(k_diffusion.sampling, function)
        ),
        [],
        {"scheduler": "karras"},
    )
    for name, function in (("DPM++ 2M", "sample_dpmpp_2m"), ("Euler", "sample_euler"))
]
all_samplers_map = {data.name: data for data in all_samplers}
samplers: list[Any] = []
samplers_map: dict[str, str] = {}


def create_sampler(name: str, model: Any) -> Any:
    config = all_samplers_map[name]
    sampler = config.constructor(model)
    sampler.config = config
    return sampler


def set_samplers() -> None:
    global samplers
    samplers = all_samplers
    samplers_map.clear()
    for data in all_samplers:
        for name in (data.name, *data.aliases):
            samplers_map[name.lower()] = data.name


@functools.cache
def get_sampler_and_scheduler(name: str, scheduler_name: str | None) -> tuple[str, str]:
    found = sd_schedulers.schedulers_map.get(scheduler_name, sd_schedulers.schedulers[0])
    for scheduler in sd_schedulers.schedulers:
        for option in (scheduler.label, scheduler.name, *(scheduler.aliases or [])):
            if name.endswith(" " + option):
                found, name = scheduler, name.removesuffix(" " + option)
                break
    data = all_samplers_map.get(name, samplers[0])
    return data.name, found.label


if shared.FORGE:

    def add_sampler(data: Any) -> None:
        raise AssertionError("it appends, and a reload would then leave the old one in place")


set_samplers()
