"""The same checkpoint, prompt and seed give the same latent in a real webui and in a real ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.comfyui.conftest import PACKS
from dpm_solver_nodes.tests.support import probing, sd15
from dpm_solver_nodes.tests.support.graphs import text_to_image
from dpm_solver_nodes.tests.webui.server import WebUI, installed
from dpm_solver_nodes.tests.webui.test_stand_in import label
from dpm_solver_nodes.tools.server import Server
from dpm_solver_nodes.tools.server import start as start_comfyui

SCALE = 0.18215
"""Of Stable Diffusion 1.5's latents: ComfyUI's nodes hold them without it."""

ROUNDING = 2e-4
"""Of latents up to 45: each host computes its network in an order of its own, in float32."""

DETERMINISTIC = [
    *("dpm_solver++_2m", "dpm_solver++_3m_exact", "dpm_solver++_2s", "dpm_solver_3s"),
    *("dpm_solver++_recommended", "dpm_solver++_adaptive_23"),
]
CFG_PP = ["dpm_solver++_2m_cfg_pp", "dpm_solver++_3m_cfg_pp"]
SPACINGS = {
    "dpm_solver_log_snr": "DPM-Solver log-SNR",
    "dpm_solver_time_uniform": "DPM-Solver uniform time",
    "dpm_solver_time_quadratic": "DPM-Solver quadratic time",
    "dpm_solver_recommended": "DPM-Solver recommended",
    "karras": "Karras",
}


@pytest.fixture(scope="module")
def comfyui(webui: WebUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if installed().like_comfyui is None:
        pytest.skip(f"{installed().name} computes its network otherwise, with any sampler")
    with start_comfyui(tmp_path_factory.mktemp("comfyui"), PACKS) as server:
        link = server.work / "models" / "checkpoints" / "sd15.safetensors"
        link.symlink_to(sd15.checkpoint())
        yield server


def furthest(
    webui: WebUI, comfyui: Server, id_: str, scheduler: str, cfg: float = 3.0, negative: str = ""
) -> float:
    sampling: dict[str, Any] = {
        "seed": 7,
        "steps": 8,
        "cfg": cfg,
        "sampler_name": id_,
        "scheduler": scheduler,
    }
    graph = text_to_image("sd15.safetensors", **sampling)
    graph["7"]["inputs"]["text"] = negative
    comfyui.run(graph)
    there = probing.latent(comfyui) * SCALE
    # The first noise is as large with this option.
    like = {"sgm_noise_multiplier": True, **(installed().like_comfyui or {})}
    webui.txt2img(
        sampler_name=label(id_),
        scheduler=SPACINGS[scheduler],
        steps=8,
        cfg_scale=cfg,
        negative_prompt=negative,
        override_settings=like,
    )
    here = torch.tensor(webui.last()["latents"][0])
    assert here.shape == there.shape
    return float((here - there).abs().max())


@pytest.mark.parametrize("id_", DETERMINISTIC)
def test_samplers(webui: WebUI, comfyui: Server, id_: str) -> None:
    assert furthest(webui, comfyui, id_, "dpm_solver_log_snr") < ROUNDING


@pytest.mark.parametrize("scheduler", SPACINGS)
def test_schedulers(webui: WebUI, comfyui: Server, scheduler: str) -> None:
    assert furthest(webui, comfyui, "dpm_solver++_2m", scheduler) < ROUNDING


@pytest.mark.parametrize("id_", CFG_PP)
@pytest.mark.parametrize("cfg", [1.0, 1.5, 7.0])
def test_cfg_pp(webui: WebUI, comfyui: Server, id_: str, cfg: float) -> None:
    if cfg == 1.0 and installed().cfg_1_leaves_out:
        pytest.skip("at a CFG of 1 it leaves out the negative prompt, and ComfyUI doesn't")
    assert furthest(webui, comfyui, id_, "dpm_solver_log_snr", cfg, "a dog") < ROUNDING
