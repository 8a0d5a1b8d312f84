"""Hints in the log: of the recommended sampler's scheduler, and none where they would be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from dpm_solver_nodes.tests.support.digits import (
    Graph,
    custom,
    ksampler,
    listed,
    menu,
    node,
    sample,
    scheduled,
)
from dpm_solver_nodes.tools.server import Server

NAME = "dpm_solver++_recommended"
OURS = "dpm_solver_recommended"
SD3 = node("ModelSamplingSD3", shift=3.0)


def kept(start: int, end: int, leftover: str, scheduler: str = OURS) -> Graph:
    part: dict[str, Any] = {"start_at_step": start, "end_at_step": end, "steps": 12}
    return ksampler(NAME, scheduler=scheduler, return_with_leftover_noise=leftover, **part)


def split(half: int, scheduler: str) -> Graph:
    sigmas = node("SplitSigmas", sigmas=["all", 0], step=6)
    graph = custom(menu(NAME), sigmas, all=scheduled(scheduler, 12))
    graph["sample"]["inputs"]["sigmas"] = ["sigmas", half]
    return graph


def hints(host: Server, graph: Graph) -> list[str]:
    before = host.log()
    sample(host, graph)
    return [line for line in host.log()[len(before) :].splitlines() if "dpm_solver++" in line]


@pytest.mark.parametrize("flow", [False, True], ids=["diffusion", "flow"])
@pytest.mark.parametrize("scheduler", ["karras", "normal", "simple", "beta", "dpm_solver_log_snr"])
def test_another_scheduler_is_told(host: Server, scheduler: str, flow: bool) -> None:
    patches = [SD3] if flow else []
    (line,) = hints(host, ksampler(NAME, scheduler=scheduler, steps=7, patches=patches))
    assert "the sigmas of another scheduler" in line and f"scheduler {OURS}," in line
    whole: dict[str, Any] = {"start_at_step": 0, "end_at_step": 10000, "steps": 7}
    assert len(hints(host, ksampler(NAME, scheduler=scheduler, patches=patches, **whole))) == 1


@pytest.mark.parametrize(
    "graph",
    [
        ksampler(NAME, scheduler=OURS, steps=7),
        ksampler(NAME, scheduler=OURS, steps=7, patches=[SD3]),
        ksampler(NAME, scheduler=OURS, steps=1),
        ksampler(NAME, scheduler=OURS, steps=7, denoise=0.5),
        ksampler(NAME, scheduler="karras", steps=7, denoise=0.5),
        *(kept(0, 6, leftover) for leftover in ("enable", "disable")),
        *(kept(6, 12, leftover) for leftover in ("enable", "disable")),
        kept(3, 9, "disable"),
        kept(0, 10000, "disable"),
        *(split(half, OURS) for half in (0, 1)),
        custom(menu(NAME), listed("14.6146, 5, 1, 0.2, 0")),
    ],
)
def test_no_hint_for_parts_and_for_the_recommended_scheduler(host: Server, graph: Graph) -> None:
    assert hints(host, graph) == []


@pytest.mark.parametrize("flow", [False, True], ids=["diffusion", "flow"])
@pytest.mark.parametrize("ready", [False, True], ids=["BasicScheduler", "KSampler"])
def test_image_to_image_runs_on_a_list_of_its_own(host: Server, ready: bool, flow: bool) -> None:
    patches = [SD3] if flow else []
    if ready:
        graph = ksampler(NAME, scheduler=OURS, steps=7, denoise=0.5, patches=patches)
    else:
        graph = custom(menu(NAME), scheduled(OURS, 7, 0.5), patches=patches)
    before = host.log()
    sample(host, graph)
    kind, sigma = ("flow", "0.75") if flow else ("diffusion", "1.6")
    said = host.log()[len(before) :]
    assert f"DPM++ (recommended): {kind} model, 7 calls from sigma {sigma}" in said
    assert ": its own sigmas and weights" in said
