"""DPM-Solver: the whole family of fast solvers for diffusion models, for ComfyUI, webui and scripts.

ComfyUI loads this folder by path and calls `comfy_entrypoint`; webui runs `scripts/`, which loads it
under a name of its own; scripts import `dpm_solver_nodes.samplers`. None needs another, and importing
this module needs none.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """ComfyUI's door: put the samplers into its menus and hand it the nodes."""
    from .hosts.comfyui.calibrations import register_folder
    from .hosts.comfyui.sampling import register_menus
    from .nodes import DPMSolverExtension

    register_menus()
    register_folder()
    return DPMSolverExtension()
