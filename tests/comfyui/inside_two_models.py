"""Run by test_two_models.py inside a host's Python: python inside_two_models.py COMFYUI PACK

Samples with two models of the demo and tells when the host was asked to load which, and between which
of their calls; then with two patches of the weights of one model, against two models of their own.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import inside  # type: ignore[import-not-found]

PACK = Path(sys.argv[2])
inside.boot()

import comfy.model_management  # noqa: E402
import comfy.patcher_extension  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402

inside.load_pack(str(PACK), "pack")
spec = importlib.util.spec_from_file_location("demo", PACK / "demo" / "__init__.py")
assert spec and spec.loader
sys.modules["demo"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["demo"])
load_model = importlib.import_module("demo.model").load_model
digit = importlib.import_module("demo.nodes").DemoDigit.execute
two_models = sys.modules["pack.hosts.comfyui.two_models"]

SIGMAS = torch.tensor([14.6, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.0])
happened: list[str] = []


def guider(patcher: Any, name: str, cfg: float = 2.0) -> Any:
    """A guider whose calls are told."""

    def predict(executor: Any, *args: Any, **kwargs: Any) -> Any:
        happened.append(f"call {name}")
        return executor(*args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    patcher.add_wrapper_with_key(kind, "told", predict)
    patcher.told = name
    made = comfy.samplers.CFGGuider(patcher)
    made.set_conds(*(digit(text)[0] for text in ("3", "")))
    made.set_cfg(cfg)
    return made


def patched(patcher: Any) -> Any:
    """The model with its weights 1.1 times as large, as a LoRA might have it."""
    clone = patcher.clone()
    weights = {
        name: (0.1 * value,)
        for name, value in patcher.model.state_dict().items()
        if name.startswith("diffusion_model.") and value.is_floating_point()
    }
    clone.add_patches(weights)
    return clone


def run(high: Any, low: Any, sigmas: torch.Tensor = SIGMAS) -> torch.Tensor:
    happened.clear()
    both = two_models.TwoGuiders(guider(high, "high"), guider(low, "low"), 1.5)
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    sampler = comfy.samplers.sampler_object("dpm_solver++_2m")
    made: torch.Tensor = both.sample(
        noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1
    )
    return made


def told() -> list[str]:
    """What happened, with what was repeated only once."""
    return [one for before, one in zip(["", *happened], happened, strict=False) if one != before]


load = comfy.model_management.load_models_gpu


def loading(models: list[Any], *args: Any, **kwargs: Any) -> Any:
    happened.append(f"load {models[0].told}")
    return load(models, *args, **kwargs)


comfy.model_management.load_models_gpu = loading
with torch.inference_mode():
    high, low = load_model(), load_model()
    run(high, low)
    falling = told()
    run(high, low, SIGMAS[:-1].flip(0))
    rising = told()
    run(high, low, SIGMAS[4:])
    only_low = told()
    one = load_model()
    clones = run(one, patched(one))
    apart = run(load_model(), patched(load_model()))
    same = run(load_model(), load_model())
print(
    json.dumps(
        {
            "falling": falling,
            "rising": rising,
            "only low": only_low,
            "clones differ by": float((clones - apart).abs().max()),
            "patch differs by": float((apart - same).abs().max()),
        }
    )
)
