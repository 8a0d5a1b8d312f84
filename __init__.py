"""DPM-Solver: the whole family of fast solvers for diffusion models, for ComfyUI, webui and scripts.

ComfyUI loads this folder by path and calls `comfy_entrypoint`. webui runs `scripts/`, which loads the
folder under another name. Scripts import `dpm_solver_nodes.samplers`. Importing this module needs
neither ComfyUI nor webui.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger("dpm_solver_nodes")

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """ComfyUI's entry point: registers the menus, then the nodes, then the lab.

    If one of them can't be imported or registered, the log names it and the others still work.
    """
    from comfy_api.latest import ComfyExtension

    nodes: list[Any] = []
    for name, register in (("menu entries", _menus), ("nodes", _nodes), ("lab", _lab)):
        try:
            nodes += register()
        except Exception as error:
            logger.error(f"DPM-Solver runs without its {name}: {error!a}")
            logger.debug(f"Why DPM-Solver runs without its {name}:", exc_info=error)

    class DPMSolverExtension(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            return nodes

    return DPMSolverExtension()


def _menus() -> list[Any]:
    from .hosts.comfyui.page import register_routes
    from .hosts.comfyui.sampling import register_menus

    register_menus()
    register_routes()
    return []


def _nodes() -> list[Any]:
    from .nodes import sampling_nodes

    folder = Path(__file__).parent.name
    if not re.fullmatch(r"[A-Za-z0-9_-]+", folder):
        logger.warning(
            f"DPM-Solver: ComfyUI's page finds no help for nodes in a folder named {folder!a}: "
            'rename it, with letters from A to Z, digits, "-" and "_" only.'
        )
    return _with_schemas(sampling_nodes())


def _lab() -> list[Any]:
    from .hosts.comfyui.calibrations import register_folder
    from .nodes import lab_nodes

    register_folder()
    return _with_schemas(lab_nodes())


def _with_schemas(nodes: list[Any]) -> list[Any]:
    """The nodes, after checking that the host can list each of them."""
    for node in nodes:
        node.define_schema()
    return nodes
