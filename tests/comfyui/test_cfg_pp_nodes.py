"""CFG++ through the server: beside the host's own, without guidance, and under other guiders."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.support.digits import (
    CFG_PP,
    Graph,
    Node,
    complaint,
    custom,
    custom_advanced,
    distance,
    ksampler,
    menu,
    multistep,
    node,
    sample,
    scheduled,
    sde,
    spaced,
)
from dpm_solver_nodes.tools.server import Server

SD3 = node("ModelSamplingSD3", shift=3.0)
STEPS = 12
CFGS = (1.0, 1.5, 2.0)
EULER = multistep(order=1, cfg_pp=True)
PATCHES = {
    "RescaleCFG": node("RescaleCFG", multiplier=0.7),
    "Mahiro": node("Mahiro"),
    "CFGNorm": node("CFGNorm", strength=1.0),
    "CFGZeroStar": node("CFGZeroStar"),
    "APG": node("APG", eta=1.0, norm_threshold=5.0, momentum=0.0),
}
"""Patches of the host that change the guidance, before, in and after it."""


# --- beside the host's own -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("cfg", CFGS)
def test_order_1_is_the_hosts_euler(host: Server, cfg: float, kind: str) -> None:
    """With the stochastic ones it shares no noise here: see `twins` in inside_solvers.py."""
    v = node("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False)
    patches: list[Node] = {"eps": [], "v": [v], "flow": [SD3]}[kind]
    ours, theirs = (
        sample(host, custom(sampler, spaced(STEPS), cfg=cfg, patches=patches))
        for sampler in (EULER, menu("euler_cfg_pp"))
    )
    assert ours.calls == theirs.calls == STEPS
    assert distance(ours, theirs) < 1e-5 * max(1.0, float(theirs.latent.std()))


@pytest.mark.parametrize("cfg", CFGS)
@pytest.mark.parametrize("name", CFG_PP)
def test_with_ksampler(host: Server, name: str, cfg: float) -> None:
    result = sample(host, ksampler(name, cfg=cfg, steps=STEPS))
    assert result.calls == STEPS
    assert torch.isfinite(result.latent).all()
    assert result.latent.abs().max() < 2.0
    plain = sample(host, ksampler(name.removesuffix("_cfg_pp"), cfg=cfg, steps=STEPS))
    assert distance(result, plain) > 0.01


def test_the_guidance_goes_far_at_a_low_cfg(host: Server) -> None:
    """At 1, where the ordinary sampler knows of no negative prompt, this one steers by it."""
    results = {}
    for name in ("dpm_solver++_2m", "dpm_solver++_2m_cfg_pp"):
        for negative in ("", "8"):
            graph = ksampler(name, cfg=1.0, steps=STEPS)
            graph["negative"] = node("DPMSolverDemo_Digit", digit=negative)
            results[name, negative] = sample(host, graph)
    plain, steered = (
        distance(results[name, ""], results[name, "8"])
        for name in ("dpm_solver++_2m", "dpm_solver++_2m_cfg_pp")
    )
    assert plain == 0.0
    assert steered > 0.05


# --- where it changes nothing --------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("name", CFG_PP)
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_one_prompt_twice_is_the_plain_sampler(
    host: Server, kind: str, name: str, cfg: float
) -> None:
    patches = [SD3] if kind == "flow" else []

    def of(sampler: str) -> torch.Tensor:
        graph = custom(menu(sampler), spaced(STEPS), cfg=cfg, patches=patches)
        graph["sample"]["inputs"]["negative"] = ["positive", 0]
        return sample(host, graph).latent

    plain = of(name.removesuffix("_cfg_pp"))
    assert distance(of(name), plain) < 1e-5 * max(1.0, float(plain.std()))


# --- guiders -------------------------------------------------------------------------------------


def guided(sampler: Node, guider: Node, **others: Node) -> Graph:
    return custom_advanced(sampler, scheduled("karras", STEPS)) | {"guider": guider, **others}


def cfg_guider(cfg: float = 2.0) -> Node:
    ends = {"positive": ["positive", 0], "negative": ["negative", 0]}
    return node("CFGGuider", model=["model", 0], cfg=cfg, **ends)


@pytest.mark.parametrize("sampler", [EULER, multistep(cfg_pp=True), sde(cfg_pp=True)])
def test_a_guider_without_a_negative_prompt(host: Server, sampler: Node) -> None:
    guider = node("BasicGuider", model=["model", 0], conditioning=["positive", 0])
    message, calls = complaint(host, guided(sampler, guider))
    assert "negative prompt" in message and "CFGGuider" in message
    assert message.endswith(".")
    assert calls == 1  # the first call is what shows it
    for plain in (multistep(), sde()):
        assert sample(host, guided(plain, guider)).calls == STEPS


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg(host: Server, style: str) -> None:
    """Regular: what is noised again is the negative's prediction; nested: the second prompt's.

    So with an empty second prompt, of no weight against the negative, both are CFGGuider.
    """
    options: dict[str, Any] = {"cond1": ["positive", 0], "negative": ["negative", 0]}
    options |= {"cfg_conds": 1.5, "cfg_cond2_negative": 1.0, "style": style}

    def of(sampler: Node, **second: Node) -> torch.Tensor:
        conds = {"cond2": ["second", 0], **options}
        guider = node("DualCFGGuider", model=["model", 0], **conds)
        result = sample(host, guided(sampler, guider, **second))
        assert result.calls == STEPS
        return result.latent

    empty = node("DPMSolverDemo_Digit", digit="")
    usual = sample(host, guided(multistep(cfg_pp=True), cfg_guider(1.5))).latent
    assert distance(of(multistep(cfg_pp=True), second=empty), usual) < 1e-5
    other = node("DPMSolverDemo_Digit", digit="8")
    for sampler in (multistep(cfg_pp=True), sde(cfg_pp=True)):
        assert torch.isfinite(of(sampler, second=other)).all()


def test_perp_neg(host: Server) -> None:
    """What is noised again is the negative's prediction, as in the host's own CFG++."""

    def of(sampler: Node, negative: str) -> torch.Tensor:
        ends = {"positive": ["positive", 0], "negative": ["other", 0]}
        guider = node(
            "PerpNegGuider",
            **{"model": ["model", 0], **ends, "empty_conditioning": ["negative", 0]},
            **{"cfg": 1.5, "neg_scale": 1.0},
        )
        other = node("DPMSolverDemo_Digit", digit=negative)
        result = sample(host, guided(sampler, guider, other=other))
        assert result.calls == STEPS
        return result.latent

    usual = sample(host, guided(multistep(cfg_pp=True), cfg_guider(1.5))).latent
    assert distance(of(multistep(cfg_pp=True), ""), usual) < 1e-5
    theirs = of(menu("euler_cfg_pp"), "8")
    assert distance(of(EULER, "8"), theirs) < 1e-5


# --- patches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("name", PATCHES)
def test_patches_of_the_guidance(host: Server, name: str, cfg: float) -> None:
    """They change the image as they change the host's own CFG++."""
    if not host.object_info(name):
        pytest.skip(f"this host has no {name}")
    options: dict[str, Any] = {"cfg": cfg, "patches": [PATCHES[name]]}
    ours, theirs = (
        sample(host, custom(sampler, scheduled("karras", STEPS), **options))
        for sampler in (EULER, menu("euler_cfg_pp"))
    )
    assert ours.calls == theirs.calls == STEPS
    assert distance(ours, theirs) < 1e-5
    second = sample(host, custom(multistep(cfg_pp=True), scheduled("karras", STEPS), **options))
    assert second.calls == STEPS and torch.isfinite(second.latent).all()
    bare = sample(host, custom(EULER, scheduled("karras", STEPS), cfg=cfg))
    if cfg > 1.0:
        assert distance(ours, bare) > 1e-3


@pytest.mark.parametrize("cfg", [1.0, 1.5])
@pytest.mark.parametrize("flow", [False, True], ids=["diffusion", "flow"])
@pytest.mark.parametrize("cache", ["LazyCache", "EasyCache"])
def test_caches(host: Server, cache: str, flow: bool, cfg: float) -> None:
    """A call that a cache answers shows no prediction: the last one stays, as in the host's own."""
    if not host.object_info(cache):
        pytest.skip(f"this host has no {cache}")
    window = {"start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    patches = [*([SD3] if flow else []), node(cache, reuse_threshold=0.2, **window)]
    options: dict[str, Any] = {"cfg": cfg, "patches": patches}
    # In its first run on a model the host reads the window off the model as it was before its patches.
    sample(host, custom(EULER, scheduled("karras", STEPS), **options))
    before = host.log()
    ours, theirs = (
        sample(host, custom(sampler, scheduled("karras", STEPS), **options))
        for sampler in (EULER, menu("euler_cfg_pp"))
    )
    skipped = [int(steps) for steps in re.findall(r"skipped (\d+)/", host.log()[len(before) :])]
    if cache == "LazyCache":
        assert min(skipped) > 0
        assert [ours.calls, theirs.calls] == [STEPS - steps for steps in skipped]
    assert ours.calls == theirs.calls
    assert distance(ours, theirs) < 1e-5 * max(1.0, float(theirs.latent.std()))
    for name in CFG_PP:
        assert torch.isfinite(sample(host, ksampler(name, steps=STEPS, **options)).latent).all()


def test_it_leaves_the_model_as_it_was(host: Server) -> None:
    """The look at the guider's prediction is the run's own: the next run has none of it."""
    before = sample(host, ksampler("dpmpp_2m", cfg=1.0))
    sample(host, ksampler("dpm_solver++_2m_cfg_pp", cfg=1.0))
    after = sample(host, ksampler("dpmpp_2m", cfg=1.0))
    assert torch.equal(before.latent, after.latent)
