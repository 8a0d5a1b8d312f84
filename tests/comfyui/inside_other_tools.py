"""Run by test_other_tools.py inside a host's Python: python inside_other_tools.py COMFYUI PACK

Runs every sampler of the catalogue under the host's nodes that skip or change model calls. It tells at
which sigmas the model was called, how often the network ran, and how far images are from each other.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import inside  # type: ignore[import-not-found]

PACK = Path(sys.argv[2])
inside.boot()

import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers  # noqa: E402

HOST, CATALOG = inside.load_pack(str(PACK), "pack")
SAMPLE, MODELS = sys.modules["pack.samplers.sample"], sys.modules["pack.hosts.comfyui.model"]
LOG = sys.modules["pack.samplers.log"].LOG
LOG.setLevel(logging.INFO)
spec = importlib.util.spec_from_file_location("demo", PACK / "demo" / "__init__.py")
assert spec and spec.loader
sys.modules["demo"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["demo"])
demo = importlib.import_module("demo.model")
digit = importlib.import_module("demo.network").class_context
emoji = importlib.import_module("demo.emoji").class_context

STEPS, CACHED_STEPS, CFG = 6, 20, 3.0


# --- models --------------------------------------------------------------------------------------


def wrapped(network: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """A network of the demo that runs the host's wrappers, as the host's own networks do."""

    class Wrapped(network):  # type: ignore[valid-type, misc]
        def forward(
            self,
            x: torch.Tensor,
            timesteps: torch.Tensor,
            context: torch.Tensor | None = None,
            control: Any = None,
            transformer_options: Any = None,
            **_others: Any,
        ) -> torch.Tensor:
            options = transformer_options or {}
            if self.time_is_sigma:  # whatever the shift's node makes the host pass
                timesteps = 1000.0 * options["sigmas"].repeat(len(x) // len(options["sigmas"]))
            wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
            run = WrapperExecutor.new_class_executor(self.called, self, wrappers)
            # EasyCache changes its input in place, which in float32 is the host's own state.
            return run.execute(x.clone(), timesteps, context, control, options)

        def called(
            self, x: torch.Tensor, timesteps: torch.Tensor, context: Any, *_options: Any
        ) -> torch.Tensor:
            RAN.append(1)
            return super().forward(x, timesteps, context)

    Wrapped.time_is_sigma = network.__name__ == "FlowPrediction"
    return Wrapped


RAN: list[int] = []
"""An entry for each time that a network of the demo ran."""


@dataclass(frozen=True)
class Kind:
    """A model of the tests' own.

    Attributes:
        conditions: the positive and the negative conditioning.
        shape: of a latent.
    """

    patcher: Any
    conditions: tuple[Any, Any]
    shape: tuple[int, ...]


def patcher_of(model: Any) -> Any:
    model.requires_grad_(False)
    devices = comfy.model_management.get_torch_device(), torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, *devices)


def trained(name: str, positive: Any, negative: Any, shape: tuple[int, ...]) -> Kind:
    kept = demo.MODELS[name]
    demo.MODELS[name] = replace(kept, network=wrapped(kept.network))
    try:
        patcher = demo.load_model(name, disable_dynamic=True)
    finally:
        demo.MODELS[name] = kept
    return Kind(patcher, ([[positive, {}]], [[negative, {}]]), shape)


def random(network: Any, model: type[Any], kind: Any, settings: dict[str, Any]) -> Kind:
    """A model of one of the host's own networks, small and with random weights."""

    class Config(comfy.supported_models_base.BASE):
        unet_config: dict[str, Any] = {}
        unet_extra_config: dict[str, Any] = {}
        latent_format = comfy.latent_formats.SD15
        sampling_settings = {"shift": 3.0}
        memory_usage_factor = 0.05

    config = Config(settings)
    config.set_inference_dtype(torch.float32, None)
    config.unet_config = {**settings, "disable_unet_model_creation": True}
    made = model(config, model_type=kind)
    made.diffusion_model = network(**settings, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(1)
    for name, weight in made.diffusion_model.named_parameters():
        if weight.ndim > 1:
            scale = weight[0].numel() ** -0.5
            weight.data = scale * torch.randn(weight.shape, generator=generator)
        else:
            weight.data = torch.full_like(weight, float("norm" in name and "weight" in name))
    for module in made.diffusion_model.modules():
        if (
            isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
            and module.weight is not None
        ):
            torch.nn.init.ones_(module.weight)
    context = torch.randn(2, 1, 4, 16, generator=generator)
    pooled = {"pooled_output": torch.randn(1, 16, generator=generator)}
    positive, negative = ([[one, pooled]] for one in context)
    return Kind(patcher_of(made), (positive, negative), (1, 4, 8, 8))


def operations(network: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **settings: network(**settings, operations=comfy.ops.manual_cast)


UNET = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32},
    **{"num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 4], "num_heads": 2, "context_dim": 16},
    **{"use_spatial_transformer": True, "transformer_depth": [0, 1, 0]},
    **{"transformer_depth_output": [0, 0, 1, 1, 0, 0], "transformer_depth_middle": 1},
}
MMDIT = {
    **{"input_size": None, "in_channels": 4, "depth": 2, "num_blocks": 3, "adm_in_channels": 16},
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 16, "out_features": 128},
    },
}
ModelType = comfy.model_base.ModelType
KINDS: dict[str, Callable[[], Kind]] = {
    "digits": lambda: trained("digits", digit([3]), digit([None]), (1, 1, 16, 16)),
    "emoji flow": lambda: trained("emoji, flow", emoji([2]), emoji([None]), (1, 3, 16, 16)),
    "unet": lambda: random(operations(UNetModel), comfy.model_base.BaseModel, ModelType.EPS, UNET),
    "mmdit": lambda: random(
        operations(OpenAISignatureMMDITWrapper), comfy.model_base.SD3, ModelType.FLOW, MMDIT
    ),
}


# --- tools ---------------------------------------------------------------------------------------


def patched(module: str, name: str, **inputs: Any) -> Callable[[Any], Any]:
    """A node of the host's from a model to a model; LookupError if it has no such node."""

    def patch(patcher: Any) -> Any:
        kind = getattr(importlib.import_module(f"comfy_extras.{module}"), name, None)
        if kind is None:
            raise LookupError(name)
        run = getattr(kind, "execute", None) or getattr(kind(), kind.FUNCTION)
        return run(model=patcher, **inputs)[0]

    return patch


RANGE = {"start_percent": 0.0, "end_percent": 1.0}
CACHE = {"start_percent": 0.15, "end_percent": 0.95, "verbose": False}
PREDICTION: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "RescaleCFG": ("digits", patched("nodes_model_advanced", "RescaleCFG", multiplier=0.7)),
    "CFGNorm": ("emoji flow", patched("nodes_cfg", "CFGNorm", strength=1.0)),
    "CFGZeroStar": ("emoji flow", patched("nodes_cfg", "CFGZeroStar")),
    "SkipLayerGuidanceSD3": (
        "mmdit",
        patched("nodes_sd3", "SkipLayerGuidanceSD3", layers="1", scale=3.0, **RANGE),
    ),
    "SkipLayerGuidanceDiTSimple": (
        "mmdit",
        patched(
            "nodes_slg", "SkipLayerGuidanceDiTSimple", double_layers="1", single_layers="", **RANGE
        ),
    ),
    "FreeU_V2": ("unet", patched("nodes_freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2)),
    "CFGOverride": (
        "digits",
        patched("nodes_custom_sampler", "CFGOverride", cfg=1.0, start_percent=0.5, end_percent=1.0),
    ),
}
"""Tools that change predictions only, each with the model that it is tried on."""

CACHES: dict[str, Callable[[Any], Any]] = {
    "EasyCache": patched("nodes_easycache", "EasyCacheNode", reuse_threshold=0.2, **CACHE),
    "LazyCache": patched("nodes_easycache", "LazyCacheNode", reuse_threshold=0.1, **CACHE),
}
SHIFTS: dict[str, Callable[[Any], Any]] = {
    "ModelSamplingSD3, 8": patched("nodes_model_advanced", "ModelSamplingSD3", shift=8.0),
    "ModelSamplingSD3, 1": patched("nodes_model_advanced", "ModelSamplingSD3", shift=1.0),
    "ModelSamplingAuraFlow": patched("nodes_model_advanced", "ModelSamplingAuraFlow", shift=1.73),
    "ModelSamplingFlux": patched(
        "nodes_model_advanced",
        "ModelSamplingFlux",
        max_shift=1.15,
        base_shift=0.5,
        width=1024,
        height=1024,
    ),
}


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What happened in a run.

    Attributes:
        calls: the sigmas at which the sampler called the model.
        told: whether the host's `sample_sigmas` had each of them.
        networks: how often a network of the demo ran.
        lines: what our log said.
    """

    latent: torch.Tensor
    calls: list[float]
    told: bool
    networks: int
    lines: list[str]

    def told_of(self, sigmas: torch.Tensor) -> dict[str, Any]:
        """What the test asks about a run on these sigmas."""
        return {
            **{"calls": self.calls, "sigmas": sigmas.tolist(), "networks": self.networks},
            **{"finite": bool(torch.isfinite(self.latent).all()), "told": self.told},
        }


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def run(
    kind: Kind,
    sampler: Any,
    sigmas: torch.Tensor,
    tool: Callable[[Any], Any] = lambda patcher: patcher,
) -> Ran:
    calls, told = [], []

    def predict(executor: Any, x: Any, timestep: Any, model_options: Any, *others: Any) -> Any:
        calls.append(float(timestep[0]))
        known = model_options["transformer_options"]["sample_sigmas"]
        told.append(calls[-1] in known.tolist())
        return executor(x, timestep, model_options, *others)

    model = kind.patcher.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "recorded", predict)
    guider = comfy.samplers.CFGGuider(tool(model))
    guider.set_conds(*kind.conditions)
    guider.set_cfg(CFG)
    noise = torch.randn(kind.shape, generator=torch.Generator().manual_seed(2))
    lines = Lines()
    LOG.addHandler(lines)
    RAN.clear()
    try:
        latent = guider.sample(
            noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1
        )
    finally:
        LOG.removeHandler(lines)
    return Ran(latent, calls, all(told), len(RAN), lines.said)


def listed(patcher: Any, scheduler: str, steps: int = STEPS) -> torch.Tensor:
    model_sampling = patcher.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(model_sampling, scheduler, steps)


def in_menu(name: str) -> Any:
    return comfy.samplers.sampler_object(name)


def by_itself(entry: Any) -> Any:
    """The solver on the guider's own predictions, with nothing in between."""

    def sample(
        model: Any, x: Any, sigmas: Any, extra_args: Any, *_others: Any, **_more: Any
    ) -> Any:
        host_model = MODELS.ComfyModel.of(model.inner_model.model_patcher)
        schedule = host_model.schedule
        options, sigmas = host_model.sized(entry.options.on(schedule), x, sigmas)

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return model.inner_model(x, sigma, extra_args["model_options"], 1)

        return SAMPLE.sample(options, denoise, x, sigmas, disable=True, schedule=schedule)

    return comfy.samplers.KSAMPLER(sample)


def rms(a: Ran, b: Ran) -> float:
    return float((a.latent - b.latent).double().square().mean().sqrt())


FIXED = [one for one in CATALOG.CATALOG if not (one.stochastic or one.adaptive)]
CACHED = (
    *("dpm_solver++_recommended", "dpm_solver++_2m", "dpm_solver++_3m_exact", "dpm_solver++_2s"),
    "dpm_solver++_2m_cfg_pp",
)
HOSTS = ("euler", "dpmpp_2m", "euler_cfg_pp")


def contract(kinds: dict[str, Kind]) -> dict[str, Any]:
    """Model, list and sampler -> the calls of a run, and the list.

    On networks with random weights only those run that take one call a step and add no noise.
    """
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        small = name in ("digits", "emoji flow")
        for scheduler in ("beta", *("dpm_solver_recommended",) * small):
            sigmas = listed(kind.patcher, scheduler)
            for entry in CATALOG.CATALOG:
                if small or entry in FIXED:
                    ran = run(kind, in_menu(entry.id), sigmas)
                    found[f"{name}, {scheduler}, {entry.id}"] = ran.told_of(sigmas)
    return found


def predictions(kinds: dict[str, Kind]) -> dict[str, Any]:
    """Tool -> sampler -> a run, and its distance to the solver by itself; None: the host lacks it."""
    found: dict[str, Any] = {}
    for tool, (name, patch) in PREDICTION.items():
        kind = kinds[name]
        sigmas = listed(kind.patcher, "beta")
        try:
            patch(kind.patcher)
        except LookupError:
            found[tool] = None
            continue
        found[tool] = {}
        for entry in FIXED:
            ran = run(kind, in_menu(entry.id), sigmas, patch)
            found[tool][entry.id] = ran.told_of(sigmas)
            if not entry.cfg_pp:
                alone = run(kind, by_itself(entry), sigmas, patch)
                found[tool][entry.id]["from the solver by itself"] = rms(ran, alone)
        plain = CATALOG.Multistep(lower_order_final="off")
        ours = run(kind, HOST.sampler(plain), sigmas, patch)
        found[tool]["size"] = float(ours.latent.square().mean().sqrt())
        found[tool]["from dpmpp_2m"] = rms(ours, run(kind, in_menu("dpmpp_2m"), sigmas, patch))
        found[tool]["from no tool"] = rms(ours, run(kind, HOST.sampler(plain), sigmas))
    return found


def caches(kinds: dict[str, Kind]) -> dict[str, Any]:
    """Model -> cache -> sampler -> a run, and its distance to the run without the cache."""
    found: dict[str, Any] = {}
    for name, usual in {"digits": "karras", "emoji flow": "simple"}.items():
        kind = kinds[name]
        found[name] = {tool: {} for tool in CACHES}
        for sampler in (*CACHED, *HOSTS):
            own = sampler == "dpm_solver++_recommended"
            sigmas = listed(kind.patcher, "dpm_solver_recommended" if own else usual, CACHED_STEPS)
            plain = run(kind, in_menu(sampler), sigmas)
            for tool, patch in CACHES.items():
                ran = run(kind, in_menu(sampler), sigmas, patch)
                found[name][tool][sampler] = {**ran.told_of(sigmas), "moved": rms(ran, plain)}
    return found


def shifts(kinds: dict[str, Kind]) -> dict[str, Any]:
    """Shift's node and list -> a run with the list of the model as it was before the node."""
    kind, found = kinds["emoji flow"], {}
    sampler = in_menu("dpm_solver++_recommended")
    for scheduler in ("dpm_solver_recommended", "simple", "beta"):
        for steps in (4, 12):
            sigmas = listed(kind.patcher, scheduler, steps)
            plain = run(kind, sampler, sigmas)
            for tool, patch in SHIFTS.items():
                ran = run(kind, sampler, sigmas, patch)
                found[f"{tool}, {scheduler}, {steps}"] = {
                    **ran.told_of(sigmas),
                    **{"lines": ran.lines, "moved": rms(ran, plain)},
                }
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # more are slower on networks of this size
    with torch.inference_mode():
        made = {name: make() for name, make in KINDS.items()}
        found = {
            "contract": contract(made),
            "predictions": predictions(made),
            "caches": caches(made),
            "shifts": shifts(made),
        }
    print(json.dumps(found))
