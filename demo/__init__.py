"""DPM-Solver demo: small diffusion models, of emoji and of handwritten digits, for ComfyUI.

This folder is a node package of its own: ``make demo`` links it into ``custom_nodes``. The DPM-Solver
pack itself does not show these nodes. Importing this module needs neither ComfyUI nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's entry point: called once when the host loads its custom nodes."""
    from .nodes import DemoExtension

    return DemoExtension()


__all__ = ["comfy_entrypoint"]
