"""ComfyUI's nodes: which there are, and in which file of `hosts/comfyui/nodes/` each is.

A list is imported when it is asked for, so that a failure in one leaves the other as it is.
"""

from __future__ import annotations

from typing import Any


def sampling_nodes() -> list[Any]:
    """Samplers and sigmas."""
    from .hosts.comfyui.nodes.adaptive import DPMSolver_Adaptive
    from .hosts.comfyui.nodes.recommended import DPMSolver_Recommended
    from .hosts.comfyui.nodes.sigmas import DPMSolver_Sigmas
    from .hosts.comfyui.nodes.solvers import (
        DPMSolver_2M,
        DPMSolver_3M,
        DPMSolver_Multistep,
        DPMSolver_Singlestep,
    )
    from .hosts.comfyui.nodes.stochastic import DPMSolver_SDE
    from .hosts.comfyui.nodes.two_models import DPMSolver_TwoModels

    return [
        DPMSolver_Recommended,  # the page's search shows the first ones first
        DPMSolver_2M,
        DPMSolver_3M,
        DPMSolver_Multistep,
        DPMSolver_Singlestep,
        DPMSolver_Adaptive,
        DPMSolver_SDE,
        DPMSolver_Sigmas,
        DPMSolver_TwoModels,
    ]


def lab_nodes() -> list[Any]:
    """Nodes that compare, plot and calibrate samplers."""
    from .hosts.comfyui.nodes.calibrate import DPMSolver_Calibrate, DPMSolver_Calibrated
    from .hosts.comfyui.nodes.compare import DPMSolver_Candidate, DPMSolver_Compare
    from .hosts.comfyui.nodes.plot_sigmas import DPMSolver_PlotSigmas

    return [
        DPMSolver_Compare,
        DPMSolver_Candidate,
        DPMSolver_PlotSigmas,
        DPMSolver_Calibrate,
        DPMSolver_Calibrated,
    ]
