"""The programs that WEBUI_PATH may name, told by their files, and what the tests must know of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from dpm_solver_nodes.tools import server
from dpm_solver_nodes.tools.server import HostError

DIFFUSION = {"epsilon": "VarianceExploding", "v_prediction": "VarianceExploding"}

NO_DOWNLOADS = ("--no-download-sd-model", "--do-not-download-clip")


def nothing(_checkpoint: Path, _tree: Path, _work: Path) -> None:
    """A program reads all it needs from the checkpoint."""


def write_network(checkpoint: Path, tree: Path, work: Path) -> None:
    """Put beside a checkpoint what AUTOMATIC1111 can't read from it: its smaller UNet's levels, and
    where the tokenizer is, which it would look for in a cache of Hugging Face's.
    """
    config = yaml.safe_load((tree / "configs" / "v1-inference.yaml").read_text())
    parts = config["model"]["params"]
    levels = {"channel_mult": [1, 1], "num_res_blocks": 1, "attention_resolutions": [1, 2]}
    parts["unet_config"]["params"].update(levels)
    parts["cond_stage_config"]["params"] = {"version": str(_text_encoder(work))}
    checkpoint.with_suffix(".yaml").write_text(json.dumps(config))


def _text_encoder(work: Path) -> Path:
    """A folder with CLIP's tokenizer and sizes, from ComfyUI's files."""
    folder, source = work / "clip", server.comfyui() / "comfy"
    if not folder.is_dir():
        folder.mkdir()
        for file in (source / "sd1_tokenizer").iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "config.json").symlink_to(source / "sd1_clip_config.json")
    return folder


@dataclass(frozen=True)
class Program:
    """A program of webui's family.

    Attributes:
        marks: files that it has, and no program after it in PROGRAMS.
        flags: for the CPU, in float32.
        upscaler: for the hires pass.
        kinds: the kinds of model that it knows -> our noise schedule for them.
        becomes: those of them that the probe can have the loaded model be.
        options: in its settings file, beside those of all programs.
        like_comfyui: options with which it computes as ComfyUI does; None: it never does.
        cfg_1_leaves_out: whether it leaves out the negative prompt at a CFG of 1.
        beside: writes what a checkpoint needs beside it.
    """

    name: str
    marks: tuple[str, ...]
    flags: tuple[str, ...]
    upscaler: str
    kinds: Mapping[str, str]
    becomes: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    like_comfyui: Mapping[str, Any] | None = field(default_factory=dict)
    cfg_1_leaves_out: bool = True
    beside: Callable[[Path, Path, Path], None] = nothing


FORGE = Program(
    name="Forge",
    marks=("k_diffusion/external.py", "backend/modules/k_prediction.py"),
    flags=("--always-cpu", "--all-in-fp32", "--disable-xformers", *NO_DOWNLOADS),
    upscaler="Latent",
    kinds={
        **DIFFUSION,
        "edm": "VarianceExploding",
        "sd3": "RectifiedFlow",
        "flux": "RectifiedFlow",
    },
    becomes=("v_prediction", "edm", "sd3", "flux"),
)
NEO = Program(
    name="Forge Neo",
    marks=("modules_forge/packages/k_diffusion/external.py",),
    flags=(
        *("--cpu", "--fp32-unet", "--fp32-vae", "--fp32-text-enc", "--disable-xformers"),
        *("--disable-sage", "--disable-flash"),
    ),
    upscaler="None",  # resizes; each other one is a file
    kinds={**DIFFUSION, "sd3": "RectifiedFlow", "flux": "RectifiedFlow"},
    becomes=("v_prediction", "sd3", "flux"),
    options={"VERSION_UID": "PY313", "show_refiner": True, "refiner_use_steps": True},
    like_comfyui=None,  # its Euler's one step is 0.5 from ComfyUI's, of latents up to 45
)
AUTOMATIC1111_1_9 = Program(
    name="AUTOMATIC1111 1.9",
    marks=("extensions-builtin/Lora/network_lora.py", "modules/sd_schedulers.py"),
    flags=("--use-cpu", "all", "--no-half", "--precision", "full", *NO_DOWNLOADS),
    upscaler="Latent",
    kinds=DIFFUSION,
    becomes=("v_prediction",),
    options={"emphasis": "No norm"},  # with random weights the usual one divides 0 by 0
    like_comfyui={"enable_quantization": True},
    cfg_1_leaves_out=False,
    beside=write_network,
)
AUTOMATIC1111 = replace(
    AUTOMATIC1111_1_9,
    name="AUTOMATIC1111",
    marks=(*AUTOMATIC1111_1_9.marks, "modules/models/sd3/sd3_model.py"),
    kinds={**DIFFUSION, "sd3": "RectifiedFlow"},
)
PROGRAMS = (FORGE, NEO, AUTOMATIC1111, AUTOMATIC1111_1_9)


def program(tree: Path) -> Program:
    """The program that is installed in a folder.

    Raises:
        HostError: the tests know no such program.
    """
    for known in PROGRAMS:
        if all((tree / mark).exists() for mark in known.marks):
            return known
    names = ", ".join(known.name for known in PROGRAMS)
    raise HostError(f"WEBUI_PATH: {tree} holds none of the programs that the tests know: {names}.")
