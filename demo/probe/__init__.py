"""Nodes for the demonstration and the tests: they count, slow down or break the model's predictions.

One prediction is one call of the guider, whatever the host makes of it (conditional and
unconditional together).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from aiohttp import web
from comfy.patcher_extension import WrappersMP
from server import PromptServer

Predict = Callable[[], torch.Tensor]
COUNTS: Counter[str] = Counter()


@PromptServer.instance.routes.get("/dpm_solver_test/counts")
async def _counts(_request: web.Request) -> web.Response:
    return web.json_response(COUNTS)


@PromptServer.instance.routes.post("/dpm_solver_test/counts")
async def _reset(_request: web.Request) -> web.Response:
    COUNTS.clear()
    return web.json_response({})


class _AroundPrediction:
    """A MODEL -> MODEL node whose `around(predict, **inputs)` stands in for each prediction."""

    CATEGORY = "_for_testing/dpm-solver"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    INPUTS: dict[str, Any] = {}
    around: Callable[..., torch.Tensor]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {"required": {"model": ("MODEL",), **cls.INPUTS}}

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


class Slow(_AroundPrediction):
    INPUTS = {"seconds": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 60.0, "step": 0.01})}

    def around(self, predict: Predict, seconds: float) -> torch.Tensor:
        time.sleep(seconds)
        return predict()


class NaN(_AroundPrediction):
    """Every prediction from number `call` on (counted from 0) is not a number."""

    INPUTS = {"call": ("INT", {"default": 0, "min": 0, "max": 10000})}

    def patch(self, model: Any, **inputs: Any) -> tuple[Any]:
        self.calls = 0
        return super().patch(model, **inputs)

    def around(self, predict: Predict, call: int) -> torch.Tensor:
        self.calls += 1
        denoised = predict()
        return torch.full_like(denoised, torch.nan) if self.calls > call else denoised


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


NODE_CLASS_MAPPINGS = {
    f"DPMSolverTest_{node.__name__}": node for node in (Count, Slow, NaN, SaveLatent)
}
