"""Reads what the nodes in `probe_nodes/` recorded."""

from __future__ import annotations

import safetensors.torch
import torch

from dpm_solver_nodes.tools.server import Server


def counts(server: Server) -> dict[str, int]:
    """Model calls so far, by the `key` of the DPMSolverTest_Count nodes."""
    return dict(server.get("/dpm_solver_test/counts"))


def reset_counts(server: Server) -> None:
    server.post("/dpm_solver_test/counts", {})


def latent(server: Server, name: str = "latent") -> torch.Tensor:
    """The latent that DPMSolverTest_SaveLatent saved under this name."""
    path = server.work / "output" / f"{name}.safetensors"
    return safetensors.torch.load_file(path)["samples"]
