"""What other nodes change within a run: the guidance, the model, and the sigmas it is told of."""

from __future__ import annotations

import pytest
import torch

from dpm_solver_nodes.tests.comfyui.test_menu import NO_LONG_LAST_STEP
from dpm_solver_nodes.tests.support.digits import (
    CFG_PP,
    FIXED,
    MENU,
    MODEL,
    Graph,
    Node,
    Sampled,
    custom,
    custom_advanced,
    distance,
    menu,
    multistep,
    node,
    sample,
    scheduled,
)
from dpm_solver_nodes.tools.server import Server

STEPS = 14
SIGMAS = scheduled("karras", STEPS)
TWINS = [
    (multistep(lower_order_final="off"), "dpmpp_2m"),
    (multistep(order=1), "euler"),
    (multistep(order=1, cfg_pp=True), "euler_cfg_pp"),
]
"""Samplers of ours that are the host's own."""
CHANGES = ["cfg override", "adaptive guidance", "another model", "moved sigmas"]


def guided(sampler: Node, then: str, cfg: float = 2.0) -> Graph:
    ends = {"positive": ["positive", 0], "negative": ["negative", 0]}
    inputs = {"model": MODEL, "cfg": cfg, "until": 1.5, "then": then}
    return custom_advanced(sampler, SIGMAS) | {
        "guider": node("DPMSolverTest_Guidance", **inputs, **ends)
    }


def changed(sampler: Node, change: str) -> Graph:
    if change == "adaptive guidance":
        return guided(sampler, "cfg 1")
    if change == "moved sigmas":
        moved = node("DPMSolverTest_MoveSigmas", sampler=["own", 0], factor=0.95)
        return custom(moved, SIGMAS, own=sampler)
    patches = {
        "cfg override": node("CFGOverride", cfg=1.0, start_percent=0.5, end_percent=1.0),
        "another model": node("DPMSolverTest_Switch", below=1.5),
    }
    return custom(sampler, SIGMAS, patches=[patches[change]])


def run(host: Server, sampler: Node, change: str) -> Sampled:
    if change == "cfg override" and not host.object_info("CFGOverride"):
        pytest.skip("this host has no CFGOverride")
    return sample(host, changed(sampler, change))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("ours", "theirs"), TWINS, ids=[name for _, name in TWINS])
def test_the_image_is_the_hosts(host: Server, ours: Node, theirs: str, change: str) -> None:
    result, expected = (run(host, sampler, change) for sampler in (ours, menu(theirs)))
    assert result.calls == expected.calls == STEPS
    assert distance(result, expected) < 1e-5
    assert distance(result, sample(host, custom(ours, SIGMAS))) > 1e-3  # the change tells


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MENU)
def test_one_call_in_each_step(host: Server, name: str, change: str) -> None:
    result = run(host, menu(name), change)
    assert result.calls == STEPS if name in FIXED else result.calls > 0
    assert torch.isfinite(result.latent).all()
    if name not in NO_LONG_LAST_STEP:  # these take more steps to get rid of their noise
        assert result.latent.abs().max() < 2.0


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_without_guidance_from_a_step_on(host: Server, name: str) -> None:
    """A guider that makes no negative prediction from there on guides no further."""
    none, twice = (
        sample(host, guided(menu(name), then)) for then in ("no negative", "positive twice")
    )
    assert none.calls == twice.calls == STEPS
    assert distance(none, twice) < 1e-5
