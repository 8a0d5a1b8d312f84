"""Latents of every kind, noise masks that differ within a batch, and what stands between sampler and
model: regional prompts, guiders, patches, wrappers. None of it changes the number of model calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import safetensors.torch
import torch

from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.tests.comfyui.conftest import VERSIONS
from dpm_solver_nodes.tests.comfyui.measured_inside import printed
from dpm_solver_nodes.tests.support.digits import (
    ADAPTIVE,
    FIXED,
    MENU,
    Graph,
    Node,
    Sampled,
    custom_advanced,
    distance,
    ksampler,
    loaded,
    menu,
    node,
    sample,
    scheduled,
)
from dpm_solver_nodes.tests.support.graphs import text_to_image
from dpm_solver_nodes.tests.support.probing import counts, latent, reset_counts
from dpm_solver_nodes.tools.server import Server

STEPS = 6


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_of_latent(version: str) -> None:
    assert f"checked {len(CATALOG)} samplers" in printed("inside_latents.py", version)


# --- noise masks ---------------------------------------------------------------------------------

BASE = torch.sin(torch.arange(4 * 256) / 20.0).reshape(4, 1, 16, 16)
MASKS = torch.ones(4, 1, 16, 16)
"""All ones, the right half, a soft slope, and nothing."""
MASKS[1, ..., :8] = 0.0
MASKS[2] = torch.linspace(0.0, 1.0, 16)
MASKS[3] = 0.0


@pytest.fixture(scope="module")
def stored(host: Server) -> dict[str, Node]:
    return {"base": loaded(host, BASE), "masks": loaded(host, MASKS)}


def masked(name: str, stored: dict[str, Node], only: int | None = None, **options: Any) -> Graph:
    """The batch of four, or only its image of this number, each with its own mask."""
    together = {
        **stored,
        "mask": node("DPMSolverTest_Mask", samples=["masks", 0]),
        "latent": node("SetLatentNoiseMask", samples=["base", 0], mask=["mask", 0]),
    }
    digit = "0,1,2,3"
    if only is not None:
        together["all"] = together["latent"]
        together["latent"] = node("LatentFromBatch", samples=["all", 0], batch_index=only, length=1)
        digit = str(only)
    return ksampler(name, digit=digit, steps=10, **options) | together


@pytest.mark.parametrize("name", MENU)
def test_each_image_of_a_batch_has_its_own_mask(
    host: Server, stored: dict[str, Node], name: str
) -> None:
    result = sample(host, masked(name, stored))
    assert result.calls == 10 if name in FIXED else result.calls > 0
    assert torch.isfinite(result.latent).all()
    changed = (result.latent - BASE).abs()
    assert changed[MASKS == 0.0].max() < 1e-5
    assert changed[0].mean() > 0.1
    assert changed[1, ..., 8:].mean() > 0.1
    left, right = changed[2, ..., 1:4].mean(), changed[2, ..., 12:].mean()
    assert 0.0 < left < 0.5 * right


@pytest.mark.parametrize("name", ["dpm_solver++_2m", "dpm_solver_3s"])
def test_an_image_with_its_mask_is_the_same_alone(
    host: Server, stored: dict[str, Node], name: str
) -> None:
    together = sample(host, masked(name, stored))
    for k in range(4):
        alone = sample(host, masked(name, stored, only=k))
        assert distance(alone, together.latent[k : k + 1]) < 1e-5


@pytest.mark.parametrize("name", [*FIXED, ADAPTIVE[0]])
def test_differential_diffusion(host: Server, stored: dict[str, Node], name: str) -> None:
    """A soft mask then says from which step on a part is drawn: black ones in the last step only."""
    patches = [node("DifferentialDiffusion")]
    result = sample(host, masked(name, stored, patches=patches))
    assert result.calls == 10 if name in FIXED else result.calls > 0
    assert torch.isfinite(result.latent).all()
    changed = (result.latent - BASE).abs()
    assert changed[0].mean() > 0.1
    if name.startswith("dpm_solver") and not name.endswith("_cfg_pp"):
        assert changed[3].mean() < 0.05
    if name == "dpm_solver++_2m":  # below 10 steps above zero its last step has order 1
        theirs = masked("dpmpp_2m", stored, patches=patches)
        assert distance(result, sample(host, theirs)) < 0.1


# --- what stands in between ----------------------------------------------------------------------


def pairs(names: Sequence[str], each: int = 2) -> list[tuple[str, str]]:
    """Each name with some of our samplers, so that every sampler has its turn."""
    return [
        (name, FIXED[(each * i + j) % len(FIXED)])
        for i, name in enumerate(names)
        for j in range(each)
    ]


@pytest.fixture(scope="module")
def plain(host: Server) -> dict[str, Sampled]:
    return {name: sample(host, ksampler(name, steps=STEPS)) for name in FIXED}


AREA = {"width": 64, "height": 128, "strength": 1.0}
REGIONS: dict[str, Graph] = {
    "areas": {
        "left": node("ConditioningSetArea", conditioning=["seven", 0], x=0, y=0, **AREA),
        "right": node("ConditioningSetArea", conditioning=["positive", 0], x=64, y=0, **AREA),
        "all": node("ConditioningCombine", conditioning_1=["left", 0], conditioning_2=["right", 0]),
    },
    "area over the whole": {
        "left": node("ConditioningSetArea", conditioning=["seven", 0], x=0, y=0, **AREA),
        "all": node(
            "ConditioningCombine", conditioning_1=["left", 0], conditioning_2=["positive", 0]
        ),
    },
    "masks": {
        "mask": node("SolidMask", value=0.5, width=16, height=16),
        "part": node(
            "ConditioningSetMask",
            **{"conditioning": ["seven", 0], "mask": ["mask", 0], "strength": 0.8},
            set_cond_area="default",
        ),
        "all": node(
            "ConditioningCombine", conditioning_1=["part", 0], conditioning_2=["positive", 0]
        ),
    },
    "masks with bounds": {
        "nothing": node("SolidMask", value=0.0, width=16, height=16),
        "half": node("SolidMask", value=1.0, width=8, height=16),
        "mask": node(
            "MaskComposite",
            **{"destination": ["nothing", 0], "source": ["half", 0], "x": 8, "y": 0},
            operation="add",
        ),
        "part": node(
            "ConditioningSetMask",
            **{"conditioning": ["seven", 0], "mask": ["mask", 0], "strength": 1.0},
            set_cond_area="mask bounds",
        ),
        "all": node(
            "ConditioningCombine", conditioning_1=["part", 0], conditioning_2=["positive", 0]
        ),
    },
    "first one, then the other": {
        "early": node(
            "ConditioningSetTimestepRange", conditioning=["seven", 0], start=0.0, end=0.4
        ),
        "late": node(
            "ConditioningSetTimestepRange", conditioning=["positive", 0], start=0.4, end=1.0
        ),
        "all": node("ConditioningCombine", conditioning_1=["early", 0], conditioning_2=["late", 0]),
    },
    "average": {
        "all": node(
            "ConditioningAverage",
            **{"conditioning_to": ["positive", 0], "conditioning_from": ["seven", 0]},
            conditioning_to_strength=0.6,
        ),
    },
    "default": {
        "all": node(
            "ConditioningSetDefaultCombine", cond=["left", 0], cond_DEFAULT=["positive", 0]
        ),
        "left": node("ConditioningSetArea", conditioning=["seven", 0], x=0, y=0, **AREA),
    },
}


@pytest.mark.parametrize(("region", "name"), pairs(list(REGIONS)))
def test_regional_prompts(host: Server, plain: dict[str, Sampled], region: str, name: str) -> None:
    graph = ksampler(name, steps=STEPS) | REGIONS[region]
    graph |= {"seven": node("DPMSolverDemo_Digit", digit="7")}
    graph["sample"]["inputs"]["positive"] = ["all", 0]
    result = sample(host, graph)
    assert result.calls == STEPS
    assert torch.isfinite(result.latent).all()
    assert distance(result, plain[name]) > 0.01


PLACES = ["unet_function", "cfg_function", "pre_cfg", "post_cfg", "guidance", "apply_model"]
PATCHES: dict[str, Node] = {
    **{place: node("DPMSolverTest_Nudge", place=place) for place in PLACES},
    "RescaleCFG": node("RescaleCFG", multiplier=0.7),
    "CFGZeroStar": node("CFGZeroStar"),
    "CFGNorm": node("CFGNorm", strength=1.0),
    "APG": node("APG", eta=0.5, norm_threshold=5.0, momentum=0.2),
    "T-CFG": node("TCFG"),
    "Mahiro": node("Mahiro"),
    "PerpNeg": node("PerpNeg", empty_conditioning=["seven", 0], neg_scale=1.0),
    "LoRA": node("LoraLoaderModelOnly", lora_name="head.safetensors", strength_model=0.5),
}


@pytest.fixture(scope="module")
def lora(host: Server) -> str:
    """A LoRA for the demo model's last layer."""
    folder = host.work / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(3)
    up = 0.1 * torch.randn(4, 2, 1, 1, generator=generator)
    down = 0.1 * torch.randn(2, 32, 3, 3, generator=generator)
    weights = {"diffusion_model.head.lora_up.weight": up}
    weights |= {"diffusion_model.head.lora_down.weight": down}
    safetensors.torch.save_file(weights, folder / "head.safetensors")
    return "head.safetensors"


@pytest.mark.parametrize(("patch", "name"), pairs(list(PATCHES)))
def test_patches_and_wrappers(
    host: Server, plain: dict[str, Sampled], lora: str, patch: str, name: str
) -> None:
    missing(host, PATCHES[patch]["class_type"])
    graph = ksampler(name, steps=STEPS, patches=[PATCHES[patch]])
    result = sample(host, graph | {"seven": node("DPMSolverDemo_Digit", digit="7")})
    assert result.calls == STEPS
    assert torch.isfinite(result.latent).all()
    assert distance(result, plain[name]) > 1e-4


def test_a_lora_as_a_hook_on_one_prompt(host: Server, lora: str) -> None:
    """The host then swaps weights between the parts of a single prediction."""
    hooks: Graph = {
        "hook": node("CreateHookLoraModelOnly", lora_name=lora, strength_model=0.5),
        "keyframe": node("CreateHookKeyframe", strength_mult=0.0, start_percent=0.5),
        "timed": node("SetHookKeyframes", hooks=["hook", 0], hook_kf=["keyframe", 0]),
        "hooked": node(
            "ConditioningSetProperties",
            **{"cond_NEW": ["positive", 0], "hooks": ["timed", 0], "strength": 1.0},
            set_cond_area="default",
        ),
    }
    for name in ("dpm_solver++_2m", "dpm_solver++_3s"):
        graph = ksampler(name, steps=STEPS) | hooks
        graph["sample"]["inputs"]["positive"] = ["hooked", 0]
        result = sample(host, graph)
        assert result.calls == STEPS
        assert torch.isfinite(result.latent).all()


CONDS = {"positive": ["positive", 0], "negative": ["negative", 0]}
GUIDERS: dict[str, Node] = {
    "BasicGuider": node("BasicGuider", conditioning=["positive", 0]),
    "CFGGuider": node("CFGGuider", **CONDS, cfg=3.0),
    "PerpNegGuider": node(
        "PerpNegGuider", **CONDS, empty_conditioning=["seven", 0], cfg=2.0, neg_scale=1.0
    ),
    **{
        f"DualCFGGuider, {style}": node(
            "DualCFGGuider",
            **{"cond1": ["positive", 0], "cond2": ["seven", 0], "negative": ["negative", 0]},
            **{"cfg_conds": 2.0, "cfg_cond2_negative": 1.5, "style": style},
        )
        for style in ("regular", "nested")
    },
    "DualModelGuider": node("DualModelGuider", **CONDS, cfg=2.0, model_negative=["other", 0]),
}


@pytest.mark.parametrize(("guider", "name"), pairs(list(GUIDERS)))
def test_guiders(host: Server, guider: str, name: str) -> None:
    missing(host, GUIDERS[guider]["class_type"])
    graph = custom_advanced(menu(name), scheduled("karras", STEPS))
    guided = GUIDERS[guider]
    graph["guider"] = node(guided["class_type"], **guided["inputs"], model=["model", 0])
    graph["seven"] = node("DPMSolverDemo_Digit", digit="7")
    graph["other"] = node("DPMSolverDemo_Model")
    result = sample(host, graph)
    assert result.calls == STEPS
    assert torch.isfinite(result.latent).all()


def missing(host: Server, class_type: str) -> None:
    if not host.object_info(class_type):
        pytest.skip(f"ComfyUI {host.version} has no {class_type}")


# --- on Stable Diffusion's U-Net -----------------------------------------------------------------

ON_UNET: dict[str, list[Node]] = {
    "none": [],
    "several": [
        node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
        node("HyperTile", tile_size=64, swap_size=2, max_depth=0, scale_depth=False),
        node("PerturbedAttentionGuidance", scale=3.0),
        node("DPMSolverTest_Nudge", place="diffusion_model"),
    ],
    "self-attention guidance": [node("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0)],
    "control": [],
}


def test_patches_and_control_of_the_unet(host: Server, sd15: str) -> None:
    results = []
    for kind, patches in ON_UNET.items():
        graph = text_to_image(
            sd15, sampler_name="dpm_solver++_2m", scheduler="dpm_solver_log_snr", steps=4
        )
        graph = {key: value for key, value in graph.items() if key not in ("8", "9")}
        for i, patch in enumerate(patches):
            inputs = {**patch["inputs"], "model": graph["10"]["inputs"]["model"]}
            graph[f"patch{i}"] = node(patch["class_type"], **inputs)
            graph["10"]["inputs"]["model"] = [f"patch{i}", 0]
        if kind == "control":
            graph["control"] = node("DPMSolverTest_Control", conditioning=["6", 0])
            graph["3"]["inputs"]["positive"] = ["control", 0]
        reset_counts(host)
        host.run(graph)
        assert counts(host)["calls"] == 4, kind
        results.append(latent(host))
        assert torch.isfinite(results[-1]).all(), kind
    for i, result in enumerate(results[1:]):
        assert all(distance(result, other) > 1e-5 for other in results[: i + 1]), i
