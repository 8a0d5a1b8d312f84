"""The lab's pictures: Solver Compare and Plot Sigmas on the demo model, in a real ComfyUI.

`make lab-pictures` runs both nodes through the host's HTTP API, prints their tables, and saves
convergence.png, compare_grid.png and sigmas.png in docs/pictures, which pages in docs show. Solvers
that it calibrates for 5, 8 and 10 calls are among the candidates.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from ..demo.run import PACKS, ROOT
from .server import Graph, HostError, PromptError, start

DIGITS = "0,1,2,3,4,5,6,7,8,9"
SEED = 7
CFG = 2.0

CANDIDATES = """dpmpp_2m karras
uni_pc karras
ipndm_v karras
dpm_solver++_recommended dpm_solver_recommended"""
CALIBRATED = (5, 8, 10)
"""Calls of the calibrated candidates; they are fitted on other seeds, and on only three digits."""

CALLS = "5, 8, 10, 15, 20, 25"
REFERENCE_CALLS = 300
PICTURES = {"convergence": "plot", "compare_grid": "grid", "sigmas": "sigmas"}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph() -> Graph:
    """Run both nodes on digits from one seed, save their pictures and print their tables."""
    ends = {"model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0]}
    settings = {"candidates": CANDIDATES, "calls": CALLS, "reference_calls": REFERENCE_CALLS}
    calibrated: dict[str, Any] = {}
    previous: dict[str, Any] = {}
    for calls in CALIBRATED:
        calibrated[f"fit{calls}"] = _node(
            "DPMSolver_Calibrate",
            **{**ends, "positive": ["three digits", 0], "latent_image": ["one", 0], "calls": calls},
            **{"cfg": CFG, "seeds": 20, "held_out": 8, "model_calls": 5000, "batch": 28},
            **{"noise_seed": SEED + 1, "name": ""},
        )
        calibrated[f"candidate{calls}"] = _node(
            "DPMSolver_Candidate",
            **{"sampler": [f"fit{calls}", 0], "sigmas": [f"fit{calls}", 1]},
            **{"scheduler": "karras", "label": f"calibrated for {calls}", **previous},
        )
        previous = {"previous": [f"candidate{calls}", 0]}
    return {
        **calibrated,
        "three digits": _node("DPMSolverDemo_Digit", digit="0, 3, 5"),
        "one": _node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "model": _node("DPMSolverDemo_Model"),
        "positive": _node("DPMSolverDemo_Digit", digit=DIGITS),
        "negative": _node("DPMSolverDemo_Digit", digit=""),
        "latent": _node("EmptyLatentImage", width=128, height=128, batch_size=10),
        "compare": _node(
            "DPMSolver_Compare",
            **{**ends, **settings, "latent_image": ["latent", 0], "noise_seed": SEED, "cfg": CFG},
            more_candidates=previous["previous"],
        ),
        "list": _node(
            "DPMSolver_Sigmas",
            **{"model": ["model", 0], "steps": 15, "denoise": 1.0, "spacing": "logSNR"},
            **{"final_zero": True, "direction": "falling"},
        ),
        "sampler": _node("DPMSolver_3M", lower_order_final="auto"),
        "show": _node(
            "DPMSolver_PlotSigmas",
            **{"sigmas": ["list", 0], "model": ["model", 0], "sampler": ["sampler", 0]},
        ),
        "plot": _node("SaveImage", images=["compare", 0], filename_prefix="plot"),
        "grid": _node("SaveImage", images=["compare", 1], filename_prefix="grid"),
        "sigmas": _node("SaveImage", images=["show", 0], filename_prefix="sigmas"),
        "table": _node("PreviewAny", source=["compare", 2]),
    }


def main() -> int:
    try:
        print("starting ComfyUI ...", flush=True)
        with (
            tempfile.TemporaryDirectory(prefix="dpm-solver-lab-") as work,
            start(Path(work), PACKS) as server,
        ):
            outputs = server.run(graph())
            print(outputs["table"]["text"][0])
            for name, node in PICTURES.items():
                path = ROOT / "docs" / "pictures" / f"{name}.png"
                path.write_bytes(server.image(outputs[node]["images"][0]))
                print(path)
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    except (HostError, PromptError) as error:
        print(f"the lab failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
