"""Nodes for the demonstration and the tests: they count, alter, break or interrupt the model's
predictions.

One prediction is one call of the guider, whatever the host makes of it (conditional and
unconditional together).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.controlnet
import comfy.samplers
import comfy.utils
import execution
import folder_paths
import torch
from aiohttp import web
from comfy.patcher_extension import WrappersMP
from server import PromptServer

import nodes

Predict = Callable[[], torch.Tensor]
COUNTS: Counter[str] = Counter()


@PromptServer.instance.routes.get("/dpm_solver_test/counts")
async def _counts(_request: web.Request) -> web.Response:
    return web.json_response(COUNTS)


@PromptServer.instance.routes.post("/dpm_solver_test/counts")
async def _reset(_request: web.Request) -> web.Response:
    COUNTS.clear()
    return web.json_response({})


@PromptServer.instance.routes.post("/dpm_solver_test/validate")
async def _validate(request: web.Request) -> web.Response:
    """What the host says of a graph before it would run it: one error, and those of each node."""
    _, error, _, failing = await execution.validate_prompt("validated", await request.json(), None)
    errors = {
        name: [
            {"type": one["type"], "input": one.get("extra_info", {}).get("input_name", "")}
            | {"details": one["details"][:200]}
            for one in node["errors"]
        ]
        for name, node in failing.items()
    }
    return web.json_response({"error": error and error["type"], "nodes": errors})


class _AroundPrediction:
    """A MODEL -> MODEL node whose `around(predict, **inputs)` stands in for each prediction."""

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    INPUTS: dict[str, Any] = {}
    OPTIONAL: dict[str, Any] = {}
    around: Callable[..., torch.Tensor]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"model": ("MODEL",), **cls.INPUTS}, "optional": cls.OPTIONAL}

    @classmethod
    def IS_CHANGED(cls, **_inputs: Any) -> float:  # noqa: N802
        return float("nan")  # never cached: every prompt samples again

    def patch(self, model: Any, **inputs: Any) -> tuple[Any]:
        def wrapped(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            return self.around(lambda: executor(*args, **kwargs), **inputs)

        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, type(self).__name__, wrapped)
        return (patched,)


class Count(_AroundPrediction):
    INPUTS = {"key": ("STRING", {"default": "calls"})}

    def around(self, predict: Predict, key: str) -> torch.Tensor:
        COUNTS[key] += 1
        return predict()


class Interrupt(_AroundPrediction):
    """Interrupts as the page's button does, after prediction number `call` (counted from 1).

    A button that is pressed from outside comes at another call on a slow machine.
    """

    INPUTS = {"call": ("INT", {"default": 1, "min": 1, "max": 100000})}

    def patch(self, model: Any, **inputs: Any) -> tuple[Any]:
        self.calls = 0
        return super().patch(model, **inputs)

    def around(self, predict: Predict, call: int) -> torch.Tensor:
        self.calls += 1
        denoised = predict()
        if self.calls == call:
            nodes.interrupt_processing()
        return denoised


class NaN(_AroundPrediction):
    """Predictions from number `call` (counted from 0) to before `until` are NaN."""

    INPUTS = {"call": ("INT", {"default": 0, "min": 0, "max": 10000})}
    OPTIONAL = {"until": ("INT", {"default": 10000, "min": 0, "max": 10000})}

    def patch(self, model: Any, **inputs: Any) -> tuple[Any]:
        self.calls = 0
        return super().patch(model, **inputs)

    def around(self, predict: Predict, call: int, until: int = 10000) -> torch.Tensor:
        self.calls += 1
        denoised = predict()
        broken = call < self.calls <= until
        return torch.full_like(denoised, torch.nan) if broken else denoised


class Nudge:
    """Changes the model's output a little, in each of the ways the host offers to other packs.

    "guidance" calls the model once more for every prediction, as perturbed-attention guidance does.
    """

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    WRAPPERS = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    PLACES = ("unet_function", "cfg_function", "pre_cfg", "post_cfg", "guidance", *WRAPPERS)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"model": ("MODEL",), "place": (list(cls.PLACES),)}}

    def patch(self, model: Any, place: str) -> tuple[Any]:
        def nudge(output: torch.Tensor) -> torch.Tensor:
            return 0.98 * output

        def guidance(args: dict[str, Any]) -> torch.Tensor:
            again = comfy.samplers.calc_cond_batch(
                args["model"],
                [args["uncond"]],
                args["input"],
                args["sigma"],
                args["model_options"],
            )[0]
            return args["denoised"] + 0.1 * (args["denoised"] - again)

        def guided(args: dict[str, Any]) -> torch.Tensor:
            """A cfg function takes and returns noise: the input minus the denoised output."""
            return nudge(args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"]))

        patched = model.clone()
        if place == "unet_function":
            patched.set_model_unet_function_wrapper(
                lambda apply, args: nudge(apply(args["input"], args["timestep"], **args["c"]))
            )
        elif place == "cfg_function":
            patched.set_model_sampler_cfg_function(guided)
        elif place == "pre_cfg":
            patched.set_model_sampler_pre_cfg_function(
                lambda args: [nudge(denoised) for denoised in args["conds_out"]]
            )
        elif place == "post_cfg":
            patched.set_model_sampler_post_cfg_function(lambda args: nudge(args["denoised"]))
        elif place == "guidance":
            patched.set_model_sampler_post_cfg_function(guidance)
        else:
            patched.add_wrapper_with_key(
                place, "nudge", lambda executor, *args, **kwargs: nudge(executor(*args, **kwargs))
            )
        return (patched,)


class Residual(comfy.controlnet.ControlBase):
    """A ControlNet without a network: it adds a constant to the U-Net's middle block."""

    def get_control(
        self, x_noisy: torch.Tensor, t: Any, cond: Any, batched_number: int, *_options: Any
    ) -> dict[str, list[torch.Tensor]]:
        residual = torch.full((len(x_noisy), 1, 1, 1), 0.3, dtype=x_noisy.dtype)
        return {"input": [], "middle": [residual.to(x_noisy.device)], "output": []}

    def copy(self) -> Residual:
        copy = Residual()
        self.copy_to(copy)
        return copy


class Control:
    """Attaches a `Residual`, as ControlNetApply attaches a ControlNet."""

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def apply(self, conditioning: list[Any]) -> tuple[Any]:
        options = {"control": Residual(), "control_apply_to_uncond": True}
        return ([[context, {**values, **options}] for context, values in conditioning],)


class Mask:
    """A latent's first channel as a batch of masks."""

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"samples": ("LATENT",)}}

    def mask(self, samples: dict[str, Any]) -> tuple[torch.Tensor]:
        return (samples["samples"][:, 0].float(),)


class Switch:
    """Below a sigma another model predicts, as with two-expert models.

    The other one is this model with its input halved.
    """

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"model": ("MODEL",), "below": ("FLOAT", {"default": 1.0})}}

    def patch(self, model: Any, below: float) -> tuple[Any]:
        def predict(apply: Callable[..., torch.Tensor], args: dict[str, Any]) -> torch.Tensor:
            sigma = args["timestep"]
            denoised = apply(args["input"], sigma, **args["c"])
            if sigma[0] >= below:
                return denoised
            return 0.5 * (denoised + apply(0.5 * args["input"], sigma, **args["c"]))

        patched = model.clone()
        patched.set_model_unet_function_wrapper(predict)
        return (patched,)


class Guidance:
    """A guider whose guidance ends at a sigma, as that of adaptive guidance does.

    From there on it predicts at a CFG of 1, or with no negative prompt, or with the positive one in
    its place, which is no guidance either.
    """

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "guide"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "cfg": ("FLOAT", {"default": 2.0}),
                "until": ("FLOAT", {"default": 1.0}),
                "then": (["cfg 1", "no negative", "positive twice"],),
            }
        }

    def guide(
        self, model: Any, positive: Any, negative: Any, cfg: float, until: float, then: str
    ) -> tuple[Any]:
        class Guider(comfy.samplers.CFGGuider):
            def predict_noise(
                self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None
            ) -> torch.Tensor:
                positive, negative = self.conds["positive"], self.conds["negative"]
                scale = self.cfg
                if timestep[0] < until:
                    instead = {"cfg 1": negative, "no negative": None, "positive twice": positive}
                    negative, scale = instead[then], 1.0
                return comfy.samplers.sampling_function(
                    self.inner_model, x, timestep, negative, positive, scale, model_options, seed
                )

        guider = Guider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return (guider,)


class _AroundSampler:
    """A SAMPLER -> SAMPLER node whose `around(sampler, model, x, sigmas, **inputs)` samples."""

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "wrap"
    INPUTS: dict[str, Any] = {}
    around: Callable[..., torch.Tensor]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"sampler": ("SAMPLER",), **cls.INPUTS}}

    def wrap(self, sampler: Any, **inputs: Any) -> tuple[Any]:
        def sample(model: Any, x: Any, sigmas: Any, **options: Any) -> torch.Tensor:
            return self.around(sampler, model, x, sigmas, options, **inputs)

        return (comfy.samplers.KSAMPLER(sample, sampler.extra_options, sampler.inpaint_options),)


class MoveSigmas(_AroundSampler):
    """Tells the model of another sigma than the sampler steps at, as Detail Daemon does."""

    INPUTS = {"factor": ("FLOAT", {"default": 0.95, "min": 0.0, "max": 2.0, "step": 0.001})}

    def around(
        self, sampler: Any, model: Any, x: Any, sigmas: Any, options: Any, factor: float
    ) -> torch.Tensor:
        given = sigmas.tolist()

        def moved(x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
            listed = sigma.max().item() in given[1:-1]
            return model(x, sigma * factor if listed else sigma, **extra_args)

        moved.inner_model = model.inner_model  # type: ignore[attr-defined]
        return sampler.sampler_function(moved, x, sigmas, **options)


class Override(_AroundSampler):
    """Sets what the sampler's signature shows, as packs with overrides of eta and noise do.

    Its noise, if it is asked for, is as strong as it should be, and the same in all places.
    """

    INPUTS = {
        "eta": ("FLOAT", {"default": 1.0}),
        "s_noise": ("FLOAT", {"default": 1.0}),
        "solver_type": ("STRING", {"default": "midpoint"}),
        "noise": ("BOOLEAN", {"default": False}),
    }

    def around(
        self,
        sampler: Any,
        model: Any,
        x: Any,
        sigmas: Any,
        options: Any,
        noise: bool,
        **inputs: Any,
    ) -> torch.Tensor:
        def everywhere(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(x)

        inputs |= {"noise_sampler": everywhere if noise else None, "s_churn": 0.0, "r": 0.5}
        shown = inspect.signature(sampler.sampler_function).parameters
        taken = {name: value for name, value in inputs.items() if name in shown}
        return sampler.sampler_function(model, x, sigmas, **{**options, **taken})


class SaveLatent:
    """Writes the samples as float32 into the output folder, under exactly this name."""

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"samples": ("LATENT",), "name": ("STRING", {"default": "latent"})}}

    def save(self, samples: dict[str, Any], name: str) -> dict[str, Any]:
        tensor = samples["samples"].detach().to("cpu", torch.float32).contiguous()
        path = Path(folder_paths.get_output_directory(), f"{name}.safetensors")
        comfy.utils.save_torch_file({"samples": tensor}, str(path))
        return {"ui": {"latents": [{"filename": path.name, "subfolder": "", "type": "output"}]}}


class List:
    """Two conditionings or guiders as a list, as nodes make it that handle many prompts."""

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("*",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "listed"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"first": ("*",), "second": ("*",)}}

    def listed(self, first: Any, second: Any) -> tuple[list[Any]]:
        return ([first, second],)


NODE_CLASS_MAPPINGS = {
    f"DPMSolverTest_{node.__name__}": node
    for node in (
        *(Count, Interrupt, NaN, Nudge, Switch, Guidance, MoveSigmas, Override),
        *(Control, Mask, SaveLatent, List),
    )
}
