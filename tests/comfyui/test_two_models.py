"""Sampler for two models: on two models of the demo, against one model that changes by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.comfyui.conftest import VERSIONS
from dpm_solver_nodes.tests.comfyui.measured_inside import measured
from dpm_solver_nodes.tests.comfyui.test_menu import heard
from dpm_solver_nodes.tests.support.digits import (
    Graph,
    Node,
    Sampled,
    complaint,
    custom_advanced,
    distance,
    ksampler,
    listed,
    loaded,
    menu,
    node,
    sample,
    scheduled,
    watched,
)
from dpm_solver_nodes.tests.support.probing import counts, latent
from dpm_solver_nodes.tools.server import Server, events

ALWAYS = 1e6  # a sigma that all others lie below
BOUNDARY = 3.0
SAMPLERS = [
    *("dpm_solver++_recommended", "dpm_solver++_2m", "dpm_solver++_3m_exact", "dpm_solver++_2s"),
    *("dpm_solver++_adaptive_23", "sde_dpm_solver++_2m", "dpm_solver++_2m_cfg_pp"),
    *("euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "uni_pc", "euler_ancestral_cfg_pp"),
]
SD3 = node("ModelSamplingSD3", shift=3.0)


def two(sampler: Node, sigmas: Node, boundary: float, kind: str, **options: Any) -> Graph:
    """The demo's model for high noise, and for low noise the same after `Switch`; both are counted."""
    patches = options.get("patches", ())
    graph = custom_advanced(sampler, sigmas, **options)
    last = f"model{len(patches)}"
    other = node("DPMSolverTest_Switch", model=[last, 0], below=ALWAYS)
    low = node("DPMSolverTest_Count", model=["other", 0], key="low")
    guider = graph.pop("guider")
    of_low = {**guider["inputs"], "model": ["low", 0]}
    inputs = graph["sample"]["inputs"]
    del inputs["guider"]
    ends = {"high_noise_guider": ["high_guider", 0], "low_noise_guider": ["low_guider", 0]}
    return graph | {
        "other": other,
        "low": low,
        "high_guider": guider,
        "low_guider": node("CFGGuider", **of_low),
        "sample": node(
            "DPMSolver_TwoModels", **inputs, **ends, boundary=boundary, boundary_is=kind
        ),
    }


def one(sampler: Node, sigmas: Node, boundary: float, **options: Any) -> Graph:
    """SamplerCustomAdvanced on one model that changes at the boundary by itself."""
    patches = [*options.pop("patches", ()), node("DPMSolverTest_Switch", below=boundary)]
    return custom_advanced(sampler, sigmas, patches=patches, **options)


def low_calls(host: Server, graph: Graph) -> tuple[Sampled, int]:
    """What the graph gives, and the calls of the model for low noise."""
    before = counts(host).get("low", 0)
    return sample(host, graph), counts(host)["low"] - before


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_is_one_run_on_a_model_that_changes(host: Server, name: str) -> None:
    made, low = low_calls(host, two(menu(name), scheduled("karras", 12), BOUNDARY, "sigma"))
    expected = sample(host, one(menu(name), scheduled("karras", 12), BOUNDARY))
    assert distance(made, expected) < 1e-6
    assert made.calls > 0 and low > 0
    assert made.calls + low == expected.calls
    another = sample(host, custom_advanced(menu(name), scheduled("karras", 12)))
    assert distance(made, another) > 0.01


@pytest.mark.parametrize("case", ["batch", "image to image", "mask", "no noise", "rising"])
def test_in_other_ways_to_start(host: Server, case: str) -> None:
    sampler, sigmas = menu("dpm_solver++_2m"), scheduled("karras", 10)
    start = loaded(host, torch.linspace(-1.0, 1.0, 256).reshape(1, 1, 16, 16))
    masked = node("SetLatentNoiseMask", samples=["start", 0], mask=["mask", 0])
    place: dict[str, Any] = {"destination": ["nothing", 0], "source": ["half", 0], "x": 8, "y": 0}
    cases: dict[str, dict[str, Any]] = {
        "batch": {"latent": node("EmptyLatentImage", width=128, height=128, batch_size=3)},
        "image to image": {"latent": start},
        "no noise": {"latent": start, "add_noise": False},
        "rising": {"latent": start, "add_noise": False},
        "mask": {
            "latent": masked,
            "start": start,
            "half": node("SolidMask", value=1.0, width=8, height=16),
            "nothing": node("SolidMask", value=0.0, width=16, height=16),
            "mask": node("MaskComposite", **place, operation="add"),
        },
    }
    options = cases[case]
    if case == "image to image":
        sigmas = scheduled("karras", 10, denoise=0.7)
    if case == "rising":
        sigmas = listed("0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 14.0")
    made, low = low_calls(host, two(sampler, sigmas, BOUNDARY, "sigma", **options))
    expected = sample(host, one(sampler, sigmas, BOUNDARY, **options))
    assert distance(made, expected) < 1e-6
    assert made.calls > 0 and low > 0


@pytest.mark.parametrize(
    ("boundary", "kind", "high"),
    [
        *((0.0, "step", 0), (4.0, "step", 4), (8.0, "step", 8), (100.0, "step", 8)),
        *((0.875, "time", 3), (0.0, "time", 8), (1.0, "time", 1), (0.6, "sigma", 6)),
    ],
)
def test_the_boundary_of_a_flow(host: Server, boundary: float, kind: str, high: int) -> None:
    """simple with shift 3 and 8 steps: 1, .955, .9, .833, .75, .643, .5, .3."""
    sigmas = scheduled("simple", 8)
    graph = two(menu("dpm_solver++_2m"), sigmas, boundary, kind, patches=[SD3])
    before = counts(host).get("low", 0)
    made = sample(host, graph)
    assert (made.calls, counts(host).get("low", 0) - before) == (high, 8 - high)


@pytest.mark.parametrize("high", [3, 6, 9])
def test_steps_are_those_of_the_list_for_small_images(host: Server, high: int) -> None:
    """The recommended sampler moves its list, and the boundary with it."""
    sigmas = scheduled("dpm_solver_recommended", 12)
    graph = two(menu("dpm_solver++_recommended"), sigmas, float(high), "step")
    made, low = low_calls(host, graph)
    assert (made.calls, low) == (high, 12 - high)


def test_time_is_the_models_own(host: Server) -> None:
    """normal is even in the time of a diffusion model, from 1 to nearly 0."""
    graph = two(menu("dpm_solver++_2m"), scheduled("normal", 10), 0.5, "time")
    assert sample(host, graph).calls == 5


def test_two_ksampler_advanced_lose_the_history(host: Server) -> None:
    """At order 1 there is none to lose."""
    sigmas = scheduled("karras", 10)
    for name, lost in (("euler", False), ("dpm_solver++_2m", True)):
        whole = sample(host, two(menu(name), sigmas, 5.0, "step"))
        half = ksampler(name, steps=10, start_at_step=0, end_at_step=5)
        first = sample(host, half)
        other = [node("DPMSolverTest_Switch", below=ALWAYS)]
        rest = ksampler(
            name,
            patches=other,
            steps=10,
            start_at_step=5,
            end_at_step=100,
            add_noise="disable",
            latent=loaded(host, first.latent),
        )
        assert (distance(whole, sample(host, rest)) > 1e-3) == lost


def test_progress_and_previews(host: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = two(menu("dpm_solver++_2m"), scheduled("karras", 8), 4.0, "step")
    seen = heard(host, graph, monkeypatch)
    assert seen["values"] == list(range(1, 9))
    assert seen["max"] == [8]
    assert len(seen["previews"]) >= 8


def test_interruption(host: Server) -> None:
    """In the second half; it ends within one more model call, and the next run is none the worse."""
    graph = two(menu("dpm_solver++_2m"), scheduled("karras", 8), 4.0, "step")
    graph["low"] = node("DPMSolverTest_Interrupt", model=["counted", 0], call=2)
    graph["counted"] = node("DPMSolverTest_Count", model=["other", 0], key="until")
    graph, name = watched(graph)
    assert events(host, graph)[-1][0] == "execution_interrupted"
    assert counts(host)[name] == 4
    assert 2 <= counts(host)["until"] <= 3
    again = sample(host, two(menu("dpm_solver++_2m"), scheduled("karras", 8), 4.0, "step"))
    assert torch.isfinite(again.latent).all()


def test_the_denoised_output(host: Server) -> None:
    graph = two(menu("dpm_solver++_2m"), listed("14.0, 8.0, 2.0, 0.5"), BOUNDARY, "sigma")
    graph, name = watched(graph)
    graph["denoised"] = node("DPMSolverTest_SaveLatent", samples=["sample", 1], name="denoised")
    host.run(graph)
    noisy, denoised = latent(host, name), latent(host, "denoised")
    assert 0.1 < distance(noisy, denoised) < 1.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"boundary": 1.5}, "boundary must be"),
        ({"low": node("ModelSamplingSD3", model=["other", 0], shift=3.0)}, "of the same kind"),
    ],
)
def test_what_can_not_be_is_said_in_a_sentence(
    host: Server, changes: dict[str, Any], sentence: str
) -> None:
    graph = two(menu("dpm_solver++_2m"), scheduled("karras", 4), 0.5, "time")
    if "boundary" in changes:
        graph["sample"]["inputs"] |= changes
    else:
        graph |= changes
    message, calls = complaint(host, graph)
    assert sentence in message
    assert calls == 0


# --- inside the host -----------------------------------------------------------------------------

versions = pytest.mark.parametrize("version", VERSIONS)


def told(version: str) -> dict[str, Any]:
    return measured("inside_two_models.py", version)


@versions
def test_a_model_is_loaded_when_it_is_first_called(version: str) -> None:
    turns = {name: told(version)[name] for name in ("falling", "rising", "only low")}
    high, low = ["load high", "call high"], ["load low", "call low"]
    assert turns == {"falling": high + low, "rising": low + high, "only low": low}


@versions
def test_two_patches_of_one_model_are_as_two_models(version: str) -> None:
    assert told(version)["clones differ by"] < 1e-5
    assert told(version)["patch differs by"] > 0.01
