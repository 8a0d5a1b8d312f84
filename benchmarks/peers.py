"""Others' samplers for `quality.py`: ComfyUI's, diffusers' and those of the package k-diffusion.

Each runs through its own program's code. The exact model is handed the state and sigma directly, in
float64 where that code lets it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch

from . import digits
from .comfyui_import import comfyui_importable
from .scenarios import Counted, Scenario

SEED = 0
"""The seed of the stochastic samplers' noise."""

Run = Callable[[Counted, torch.Tensor], torch.Tensor]
"""Takes unit noise, [batch, ...], and returns the result."""


@dataclass(frozen=True)
class Candidate:
    """A sampler with a spacing.

    Attributes:
        family: the program it comes from.
        prepare: (scenario, steps in a host's panel) -> a run.
        as_asked: take the steps as the calls: it promises one call per step, or it is adaptive.
    """

    family: str
    sampler: str
    scheduler: str
    prepare: Callable[[Scenario, int], Run]
    as_asked: bool = False

    @property
    def name(self) -> str:
        return f"{self.family} {self.sampler}, {self.scheduler}"


@dataclass(frozen=True)
class Omitted:
    """A sampler that isn't run, and why."""

    family: str
    sampler: str
    reason: str


# --- ComfyUI -----------------------------------------------------------------------------------------

COMFY = "ComfyUI"
COMFY_OMITTED = {
    name: f"{name.removesuffix('_gpu')} with its noise drawn on the GPU"
    for name in ("dpmpp_sde_gpu", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun_gpu")
}


@cache
def host() -> Any:
    """ComfyUI's `comfy` package on the CPU, with what is needed of it imported."""
    with comfyui_importable(["--cpu"]):
        import comfy.model_sampling
        import comfy.samplers
    return comfy


@cache
def model_sampling(flow: bool) -> Any:
    """ComfyUI's model_sampling, for Stable Diffusion's schedule or the flow of the digits."""
    kinds = host().model_sampling
    if flow:
        config = SimpleNamespace(sampling_settings={"shift": digits.FLOW_SHIFT})
        return type("Flow", (kinds.ModelSamplingDiscreteFlow, kinds.CONST), {})(config)
    return type("Diffusion", (kinds.ModelSamplingDiscrete, kinds.EPS), {})()


@cache
def host_sigmas(flow: bool, scheduler: str, steps: int, sampler: str = "euler") -> torch.Tensor:
    """The sigmas of ComfyUI's KSampler for a panel's settings, in float64."""
    model = SimpleNamespace(get_model_object=lambda name: model_sampling(flow))
    return host().samplers.KSampler(model, steps, "cpu", sampler, scheduler).sigmas.double()


class Guider:
    """The part of a guider that ComfyUI's KSAMPLER uses; CFG++ gets the unconditional prediction."""

    cfg = 1.0

    def __init__(self, model: Counted, flow: bool) -> None:
        self.counted = model
        sampling = model_sampling(flow)
        self.inner_model = SimpleNamespace(model_sampling=sampling)
        self.model_patcher = SimpleNamespace(
            model=self.inner_model, get_model_object=lambda name: sampling
        )

    def __call__(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: Mapping[str, Any],
        seed: int | None = None,
    ) -> torch.Tensor:
        denoised, free = self.counted.predictions(x, sigma)
        for look in model_options.get("sampler_post_cfg_function", ()):
            prediction = {"denoised": denoised, "uncond_denoised": free, "cond_denoised": denoised}
            denoised = look({**prediction, "input": x, "sigma": sigma, "cond_scale": self.cfg})
        return denoised


def _comfy(sampler: str, scheduler: str, scenario: Scenario, steps: int) -> Run:
    # Its code mixes the two otherwise.
    dtype = torch.float32 if sampler.startswith("uni_pc") else torch.float64
    sigmas = host_sigmas(scenario.flow, scheduler, steps, sampler).to(dtype)

    def run(model: Counted, noise: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(SEED)
        noise = noise.to(dtype, copy=True)
        entry = host().samplers.sampler_object(sampler)
        extra_args = {"seed": SEED, "model_options": {}}
        guider, latent = Guider(model, scenario.flow), torch.zeros_like(noise)
        given = (guider, sigmas.clone(), extra_args, None, noise, latent)  # uni_pc writes to sigmas
        return entry.sample(*given, denoise_mask=None, disable_pbar=True)

    return run


def comfy_candidates(scenario: Scenario) -> tuple[list[Candidate], list[Omitted]]:
    samplers = host().samplers
    found = [
        Candidate(COMFY, name, scheduler, partial(_comfy, name, scheduler), name == "dpm_adaptive")
        for name in samplers.SAMPLER_NAMES
        if name not in COMFY_OMITTED
        for scheduler in samplers.SCHEDULER_NAMES
    ]
    omitted = [Omitted(COMFY, name, reason) for name, reason in COMFY_OMITTED.items()]
    return found, omitted


# --- k-diffusion -------------------------------------------------------------------------------------

K_DIFFUSION = "k-diffusion"


def _k_diffusion(name: str, scheduler: str, scenario: Scenario, steps: int) -> Run:
    import k_diffusion.sampling

    sampler = getattr(k_diffusion.sampling, f"sample_{name}")
    sigmas = host_sigmas(scenario.flow, scheduler, steps)
    arguments: tuple[Any, ...] = (sigmas,)
    if "sigma_min" in inspect.signature(sampler).parameters:
        arguments = (float(sigmas[-2]), float(sigmas[0]), *((steps,) if name == "dpm_fast" else ()))

    def run(model: Counted, noise: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(SEED)
        sampling = model_sampling(scenario.flow)
        whole = float(sigmas[0]) >= float(sampling.sigma_max) * (1.0 - 1e-5)
        x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), whole)
        return sampler(model, x, *arguments, extra_args={"seed": SEED}, disable=True)

    return run


def k_diffusion_candidates(scenario: Scenario) -> tuple[list[Candidate], list[Omitted]]:
    """With ComfyUI's schedulers, which include the package's own for such models."""
    warnings.filterwarnings("ignore", module="k_diffusion|clip|torchsde")
    import k_diffusion.sampling

    names = [
        name.removeprefix("sample_")
        for name in vars(k_diffusion.sampling)
        if name.startswith("sample_")
    ]
    found = [
        Candidate(
            *(K_DIFFUSION, name, scheduler, partial(_k_diffusion, name, scheduler)),
            as_asked=name == "dpm_adaptive",
        )
        for name in names
        for scheduler in host().samplers.SCHEDULER_NAMES
    ]
    return found, []


# --- diffusers ---------------------------------------------------------------------------------------

DIFFUSERS = "diffusers"
DIFFUSERS_SPACINGS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
DIFFUSERS_FLOW: dict[str, dict[str, Any]] = {
    "flow": {"use_flow_sigmas": True, "flow_shift": digits.FLOW_SHIFT},
}
# Each class with its options for a spacing; singlestep's default is linspace.
_MULTISTEP = ("DPMSolverMultistepScheduler", DIFFUSERS_SPACINGS)
_SINGLESTEP: tuple[str, dict[str, dict[str, Any]]] = (
    "DPMSolverSinglestepScheduler",
    {"linspace": {}}
    | {name: DIFFUSERS_SPACINGS[name] for name in ("karras", "exponential", "beta")},
)
_UNIPC = (
    "UniPCMultistepScheduler",
    {name: options for name, options in DIFFUSERS_SPACINGS.items() if name != "lu"},
)
_LOWERED = {"lower_order_final": True}  # without it, singlestep wants a multiple of its order
DIFFUSERS_SAMPLERS: dict[str, tuple[tuple[str, dict[str, dict[str, Any]]], dict[str, Any]]] = {
    "DPMSolverMultistep 2": (_MULTISTEP, {"solver_order": 2}),
    "DPMSolverMultistep 2 heun": (_MULTISTEP, {"solver_order": 2, "solver_type": "heun"}),
    "DPMSolverMultistep 3": (_MULTISTEP, {"solver_order": 3}),
    "DPMSolverSinglestep 2": (_SINGLESTEP, {"solver_order": 2, **_LOWERED}),
    "DPMSolverSinglestep 3": (_SINGLESTEP, {"solver_order": 3, **_LOWERED}),
    "UniPC 2": (_UNIPC, {"solver_order": 2}),
    "UniPC 3": (_UNIPC, {"solver_order": 3}),
    "UniPC 3 bh1": (_UNIPC, {"solver_order": 3, "solver_type": "bh1"}),
}


def _diffusers(kind: str, settings: Mapping[str, Any], scenario: Scenario, steps: int) -> Run:
    import diffusers

    def run(model: Counted, noise: torch.Tensor) -> torch.Tensor:
        solver = getattr(diffusers, kind)(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="sample",
            **settings,
        )
        solver.set_timesteps(steps)
        x = noise * float(solver.init_noise_sigma)
        for i, time in enumerate(solver.timesteps):
            sigma = solver.sigmas[i].double()
            # Its states on diffusion are of variance 1: ours over sqrt(1 + sigma^2).
            state = x if scenario.flow else x * (1.0 + sigma**2).sqrt()
            x = solver.step(model(state, sigma.expand(len(x))), time, x).prev_sample
        return x

    return run


def diffusers_candidates(scenario: Scenario) -> tuple[list[Candidate], list[Omitted]]:
    found = [
        Candidate(DIFFUSERS, name, spacing, partial(_diffusers, kind, settings | options))
        for name, ((kind, spacings), settings) in DIFFUSERS_SAMPLERS.items()
        for spacing, options in (DIFFUSERS_FLOW if scenario.flow else spacings).items()
    ]
    return found, []


FAMILIES: Mapping[str, Callable[[Scenario], tuple[list[Candidate], list[Omitted]]]] = {
    COMFY: comfy_candidates,
    DIFFUSERS: diffusers_candidates,
    K_DIFFUSION: k_diffusion_candidates,
}
