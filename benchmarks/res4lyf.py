"""RES4LYF's samplers and schedulers in ComfyUI's lists, where a clone of that pack is given.

    RES4LYF_PATH=<its folder> python -m dpm_solver_nodes.benchmarks.judge_catalogue

It needs pywavelets and opencv-python-headless in this environment.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from . import references
from .comfyui_import import comfyui_importable
from .problems import Problem, Process

SAMPLERS = ("res_2m_ode", "res_3m_ode", "res_2s_ode")
"""Those without noise of the samplers that people name."""

SCHEDULERS = ("beta57", "bong_tangent")


@cache
def given() -> bool:
    """Whether there is a clone; its samplers and schedulers then are in ComfyUI's lists."""
    if not (path := os.environ.get("RES4LYF_PATH")):
        return False
    with comfyui_importable(["--cpu"]):
        import server

        import nodes  # noqa: F401  # ComfyUI's, which the pack imports

        server.PromptServer(asyncio.new_event_loop())  # for the pack's settings
        entry = Path(path) / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            "RES4LYF", entry, submodule_search_locations=[path]
        )
        assert spec is not None and spec.loader is not None
        module = sys.modules["RES4LYF"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return True


def results(
    problem: Problem, process: Process, calls: int
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Of each sampler and scheduler: its name, the images and the model calls it made.

    Its samplers make more calls than steps, how many more depends on the list. Each takes the most
    steps for which these calls are enough.
    """
    if not given():
        return
    for sampler in SAMPLERS:
        for scheduler in SCHEDULERS:
            for steps in range(calls, 0, -1):
                sigmas = references.host_sigmas(process, "euler", scheduler, steps)
                images, made = references.result(problem, process, sampler, sigmas, problem.noise())
                if made <= calls:
                    yield f"RES4LYF {sampler} {scheduler}", images, made
                    break
