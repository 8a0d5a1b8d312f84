"""Bad input ends in one clear sentence, and no later than it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.support.digits import (
    ADAPTIVE,
    FIXED,
    MENU,
    Node,
    adaptive,
    complaint,
    custom,
    custom_advanced,
    ksampler,
    listed,
    menu,
    multistep,
    node,
    sample,
    scheduled,
    sde,
    spaced,
    watched,
)
from dpm_solver_nodes.tools.server import PromptError, Server


@pytest.mark.parametrize("name", MENU)
@pytest.mark.parametrize(
    ("sigmas", "word"),
    [
        ("14, 1, 5, 0", "direction"),
        ("1, 5, 2", "direction"),
        ("0, 1, 5", "0"),
        ("10, 5, -1", "negative"),
        ("5, 0, 0.5", "direction"),
    ],
)
def test_lists_that_lead_nowhere(host: Server, name: str, sigmas: str, word: str) -> None:
    message, calls = complaint(host, custom(menu(name), listed(sigmas)))
    assert word in message
    assert message.endswith(".")
    assert calls == 0


def test_lists_joined_the_wrong_way(host: Server) -> None:
    """A first sigma below the second, as SetFirstSigma makes it."""
    bad = node("SetFirstSigma", sigmas=["good", 0], sigma=1.0)
    for around in (custom, custom_advanced):
        graph = around(node("DPMSolver_2M"), bad, good=scheduled("karras", 10))
        message, calls = complaint(host, graph)
        assert "direction" in message
        assert calls == 0


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("first_bad", [0, 7])
def test_nan_ends_the_adaptive_solver(host: Server, name: str, first_bad: int) -> None:
    broken = node("DPMSolverTest_NaN", call=first_bad)
    message, calls = complaint(host, ksampler(name, patches=[broken]))
    # Old hosts keep an account of a model that failed, and collect garbage at each later prompt.
    host.post("/free", {"unload_models": True, "free_memory": True})
    assert "NaN" in message
    assert message.endswith(".")
    assert first_bad < calls <= first_bad + 3  # by the end of the attempt


@pytest.mark.parametrize("name", FIXED)
def test_nan_runs_through_the_others(host: Server, name: str) -> None:
    """As with the host's own samplers, and in as many calls."""
    broken = node("DPMSolverTest_NaN", call=2)
    result = sample(host, ksampler(name, patches=[broken], steps=6))
    assert result.calls == 6
    assert torch.isnan(result.latent).all()


def changed(sampler: Node, **inputs: Any) -> Node:
    return node(sampler["class_type"], **{**sampler["inputs"], **inputs})


SINGLESTEP = node(
    "DPMSolver_Singlestep",
    **{"algorithm": "dpmsolver++", "order": 2, "solver_type": "dpmsolver", "grouping": "fast"},
)


@pytest.mark.parametrize(
    ("sampler", "bad"),
    [
        (multistep(), {"order": 4}),
        (multistep(), {"order": 0}),
        (multistep(), {"algorithm": "euler"}),
        (multistep(), {"solver_type": "heun"}),
        (multistep(), {"lower_order_final": "maybe"}),
        (SINGLESTEP, {"order": 4}),
        (SINGLESTEP, {"solver_type": "exact"}),
        (SINGLESTEP, {"grouping": "slow"}),
        (sde(), {"order": 4}),
        (sde(), {"method": "adaptive"}),
        (sde(), {"eta": -0.5}),
        (sde(), {"s_noise": -1.0}),
        (sde(), {"noise_device": "tpu"}),
        (adaptive(), {"order": 1}),
        (adaptive(), {"max_calls": 0}),
        (adaptive(), {"rtol": -1.0}),
        (adaptive(), {"h_init": 0.0}),
        (adaptive(), {"controller": "none"}),
    ],
    ids=lambda value: " ".join(map(str, [*value, *value.values()])) if len(value) == 1 else "",
)
def test_values_outside_the_menu(host: Server, sampler: Node, bad: dict[str, Any]) -> None:
    message, calls = complaint(host, custom(changed(sampler, **bad), spaced(5)))
    assert next(iter(bad)) in message
    assert calls == 0


@pytest.mark.parametrize("bad", [{"steps": 0}, {"denoise": 1.5}, {"spacing": "cosine"}], ids=str)
def test_sigmas_outside_the_menu(host: Server, bad: dict[str, Any]) -> None:
    message, calls = complaint(host, custom(menu("euler"), changed(spaced(), **bad)))
    assert next(iter(bad)) in message
    assert calls == 0


@pytest.mark.parametrize(
    ("sampler", "word"),
    [
        (multistep(order=4), "solver_type"),
        (multistep(cfg_pp=True, corrector="unic"), "cfg_pp"),
        (sde(algorithm="dpmsolver", order=4), "order"),
        (adaptive(rtol=0.0, atol=0.0), "rtol"),
    ],
    ids=["order", "cfg_pp", "sde", "tolerance"],
)
def test_settings_are_refused_by_the_node_they_are_in(
    host: Server, sampler: Node, word: str
) -> None:
    """And not by the one that samples, so that the page marks the right one."""
    with pytest.raises(PromptError) as refused:
        host.run(watched(custom(sampler, spaced(5)))[0])
    assert word in refused.value.message
    assert refused.value.node_type in ("", sampler["class_type"])  # "": before anything ran


@pytest.mark.parametrize(
    ("sampler", "sigmas", "remark"),
    [
        (menu("dpm_solver++_recommended"), scheduled("karras", 7), "sigmas of another scheduler"),
        (menu("dpm_solver++_2m"), spaced(6, direction="rising"), "the sigmas rise"),
        (adaptive(max_calls=7), spaced(5), "max_calls = 7 ran short"),
    ],
    ids=["not its sigmas", "rising", "few calls"],
)
def test_what_is_no_error_is_remarked_in_the_log(
    host: Server, sampler: Node, sigmas: Node, remark: str
) -> None:
    before = host.log().count(remark)
    sample(host, custom(sampler, sigmas))
    assert host.log().count(remark) == before + 1
    sample(host, custom(menu("dpm_solver++_recommended"), scheduled("dpm_solver_recommended", 7)))
    assert host.log().count(remark) == before + 1


def test_no_tolerance_at_all(host: Server) -> None:
    message, calls = complaint(host, custom(adaptive(rtol=0.0, atol=0.0), spaced(5)))
    assert "rtol" in message and "atol" in message
    assert calls == 0


@pytest.mark.parametrize("name", FIXED)
def test_sigmas_above_a_flows_one(host: Server, name: str) -> None:
    """As nodes that multiply sigmas make them; the sentence says what to do."""
    flow = node("ModelSamplingSD3", shift=3.0)
    message, calls = complaint(
        host, custom(menu(name), listed("1.05, 0.8, 0.4, 0"), patches=[flow])
    )
    assert message.startswith("sigmas[0] is 1.05")
    assert "at most 1" in message and "scheduler made for this model" in message
    assert calls == 0


def test_an_unfinished_graph(host: Server) -> None:
    graph = custom(node("DPMSolver_2M"), spaced(5))
    del graph["sigmas"]["inputs"]["model"]
    message, calls = complaint(host, graph)
    assert "model" in message
    assert calls == 0
