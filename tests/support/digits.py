"""Graphs on the demo's digit model, and their results: the latent and the number of calls."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch

from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.tests.support.probing import counts, latent
from dpm_solver_nodes.tools.server import PromptError, Server

Node = dict[str, Any]
Graph = dict[str, Node]
Patches = Sequence[Node]

MENU = [entry.id for entry in CATALOG]
FIXED = [entry.id for entry in CATALOG if not entry.adaptive]
ADAPTIVE = [entry.id for entry in CATALOG if entry.adaptive]
STOCHASTIC = [entry.id for entry in CATALOG if entry.stochastic]
CFG_PP = [entry.id for entry in CATALOG if entry.cfg_pp]
ODE = [name for name in MENU if name not in STOCHASTIC + CFG_PP]
"""Samplers that solve the same ODE: from the same noise they converge to the same image."""
ODE_FIXED = [name for name in ODE if name in FIXED]
SCHEDULERS = ["dpm_solver_log_snr", "karras", "normal", "simple"]

MODEL = ["model", 0]
"""The demo model with its calls counted, and with patches if asked for. Every sampler gets it."""
EMPTY = {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}}
ADAPTIVE_NODE = {
    **{"algorithm": "dpmsolver++", "order": 3, "solver_type": "dpmsolver", "rtol": 0.05},
    **{"atol": 0.0078, "max_calls": 500, "controller": "authors", "h_init": 0.05},
    **{"pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0, "accept_safety": 0.81},
}
"""The Adaptive node's defaults."""
SDE_NODE = {
    **{"algorithm": "dpmsolver++", "method": "multistep", "order": 2, "eta": 1.0, "s_noise": 1.0},
    **{"solver_type": "dpmsolver", "noise_device": "cpu", "lower_order_final": "auto"},
    "cfg_pp": False,
}
"""The SDE node's defaults."""


@dataclass(frozen=True)
class Sampled:
    latent: torch.Tensor = field(repr=False)
    calls: int


def node(class_type: str, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs}


def multistep(**settings: Any) -> Node:
    defaults = {"algorithm": "dpmsolver++", "order": 2, "solver_type": "dpmsolver"}
    return node("DPMSolver_Multistep", **{**defaults, "lower_order_final": "auto", **settings})


def adaptive(**settings: Any) -> Node:
    return node("DPMSolver_Adaptive", **{**ADAPTIVE_NODE, **settings})


def sde(**settings: Any) -> Node:
    return node("DPMSolver_SDE", **{**SDE_NODE, **settings})


def spaced(steps: int = 20, **settings: Any) -> Node:
    defaults = {"denoise": 1.0, "spacing": "logSNR", "final_zero": True, "direction": "falling"}
    return node("DPMSolver_Sigmas", model=MODEL, steps=steps, **{**defaults, **settings})


def scheduled(scheduler: str, steps: int, denoise: float = 1.0) -> Node:
    inputs = {"model": MODEL, "scheduler": scheduler, "steps": steps, "denoise": denoise}
    return node("BasicScheduler", **inputs)


def listed(sigmas: str) -> Node:
    """A node that gives exactly these sigmas."""
    return node("ManualSigmas", sigmas=sigmas)


def menu(sampler_name: str) -> Node:
    return node("KSamplerSelect", sampler_name=sampler_name)


def ksampler(
    sampler_name: str,
    *,
    latent: Node = EMPTY,
    patches: Patches = (),
    digit: str = "3",
    **inputs: Any,
) -> Graph:
    """KSampler, or KSamplerAdvanced if `start_at_step` is among the inputs."""
    advanced = "start_at_step" in inputs
    settings: dict[str, Any] = {"steps": 20, "cfg": 2.0, "scheduler": "karras"}
    if advanced:
        settings |= {"add_noise": "enable", "noise_seed": 1, "return_with_leftover_noise": "enable"}
    else:
        settings |= {"seed": 1, "denoise": 1.0}
    ends = {"model": MODEL, "positive": ["positive", 0], "negative": ["negative", 0]}
    sampler = node(
        "KSamplerAdvanced" if advanced else "KSampler",
        **{
            **settings,
            **ends,
            "latent_image": ["latent", 0],
            "sampler_name": sampler_name,
            **inputs,
        },
    )
    return _with_model(sampler, patches, digit) | {"latent": latent}


def custom(
    sampler: Node,
    sigmas: Node,
    *,
    latent: Node = EMPTY,
    patches: Patches = (),
    digit: str = "3",
    add_noise: bool = True,
    cfg: float = 2.0,
    seed: int = 1,
    **others: Node,
) -> Graph:
    """SamplerCustom.  `others` are further nodes that `sigmas` refers to."""
    sample = node(
        "SamplerCustom",
        **{"model": MODEL, "positive": ["positive", 0], "negative": ["negative", 0]},
        **{"sampler": ["sampler", 0], "sigmas": ["sigmas", 0], "latent_image": ["latent", 0]},
        **{"add_noise": add_noise, "noise_seed": seed, "cfg": cfg},
    )
    return _with_model(sample, patches, digit) | {
        "latent": latent,
        "sampler": sampler,
        "sigmas": sigmas,
        **others,
    }


def custom_advanced(sampler: Node, sigmas: Node, **options: Any) -> Graph:
    """SamplerCustomAdvanced with a CFGGuider, otherwise as `custom`."""
    graph = custom(sampler, sigmas, **options)
    inputs = graph["sample"]["inputs"]
    guider = {name: inputs[name] for name in ("model", "positive", "negative", "cfg")}
    rest = {name: inputs[name] for name in ("sampler", "sigmas", "latent_image")}
    seed = inputs["noise_seed"]
    noise = node("RandomNoise", noise_seed=seed) if inputs["add_noise"] else node("DisableNoise")
    return graph | {
        "noise": noise,
        "guider": node("CFGGuider", **guider),
        "sample": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], **rest),
    }


def _with_model(sampler: Node, patches: Patches, digit: str) -> Graph:
    """The model with patches. Each is a node from a model to a model; its model input is filled in."""
    graph = {"model0": node("DPMSolverDemo_Model")}
    for i, patch in enumerate(patches):
        inputs = {**patch["inputs"], "model": [f"model{i}", 0]}
        graph[f"model{i + 1}"] = node(patch["class_type"], **inputs)
    return graph | {
        "model": node("DPMSolverTest_Count", model=[f"model{len(patches)}", 0]),
        "positive": node("DPMSolverDemo_Digit", digit=digit),
        "negative": node("DPMSolverDemo_Digit", digit=""),
        "sample": sampler,
    }


def watched(graph: Graph) -> tuple[Graph, str]:
    """The graph with counted calls and saved samples, and the name of both."""
    name = f"run-{uuid.uuid4().hex}"
    count = node("DPMSolverTest_Count", **{**graph["model"]["inputs"], "key": name})
    save = node("DPMSolverTest_SaveLatent", samples=["sample", 0], name=name)
    return graph | {"model": count, "save": save}, name


def sample(host: Server, graph: Graph) -> Sampled:
    graph, name = watched(graph)
    host.run(graph)
    return Sampled(latent(host, name), counts(host).get(name, 0))


def complaint(host: Server, graph: Graph) -> tuple[str, int]:
    """The sentence that a graph fails with, and the calls it made until then."""
    graph, name = watched(graph)
    try:
        host.run(graph)
    except PromptError as error:
        message = error.message
    else:
        raise AssertionError("the graph ran without an error")
    assert "\n" not in message and len(message) < 300, message
    return message, counts(host).get(name, 0)


def sigmas_of(host: Server, sigmas: Node, patches: Patches = ()) -> list[float]:
    """A SIGMAS output's values, to four digits."""
    graph = custom(menu("euler"), sigmas, patches=patches)
    graph["text"] = node("PreviewAny", source=["sigmas", 0])
    graph["model"]["inputs"]["key"] = "sigmas"
    for name in ("sample", "sampler", "latent", "positive", "negative"):
        del graph[name]
    (text,) = host.run(graph)["text"]["text"]
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text)]


def loaded(host: Server, samples: torch.Tensor) -> Node:
    """A latent of our own, [batch, 1, 16, 16], as a node's output."""
    name = f"start-{uuid.uuid4().hex}.latent"
    file = {"latent_tensor": samples.contiguous(), "latent_format_version_0": torch.tensor([])}
    safetensors.torch.save_file(file, host.work / "input" / name)
    return node("LoadLatent", latent=name)


def distance(a: Sampled | torch.Tensor, b: Sampled | torch.Tensor) -> float:
    """Root mean square of the difference."""
    a, b = (value.latent if isinstance(value, Sampled) else value for value in (a, b))
    return float((a.double() - b.double()).square().mean().sqrt())
