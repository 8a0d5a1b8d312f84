"""The lab's pictures: Solver Compare and Plot Sigmas on the demo model, in a real ComfyUI.

`make lab-pictures` runs both nodes through the host's HTTP API, prints their tables, and saves
demo/convergence.png, demo/compare_grid.png and demo/sigmas.png, which the README shows.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from .host import Graph, HostError, PromptError, start
from .run import CFG, DIGITS, PACKS, ROOT, SEED

CANDIDATES = """euler karras
heun karras
dpmpp_2m karras
dpm_solver++_2m dpm_solver_log_snr
dpm_solver++_3m_exact dpm_solver_log_snr"""
CALLS = "5, 8, 10, 15, 20, 25"
REFERENCE_CALLS = 300
PICTURES = {"convergence": "plot", "compare_grid": "grid", "sigmas": "sigmas"}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph() -> Graph:
    """Both nodes on digits from one seed, their pictures saved and their tables shown."""
    ends = {"model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0]}
    settings = {"candidates": CANDIDATES, "calls": CALLS, "reference_calls": REFERENCE_CALLS}
    return {
        "model": _node("DPMSolverDemo_Model"),
        "positive": _node("DPMSolverDemo_Digit", digit=DIGITS),
        "negative": _node("DPMSolverDemo_Digit", digit=""),
        "latent": _node("EmptyLatentImage", width=128, height=128, batch_size=10),
        "compare": _node(
            "DPMSolver_Compare",
            **{**ends, **settings, "latent_image": ["latent", 0], "noise_seed": SEED, "cfg": CFG},
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
                path = ROOT / "demo" / f"{name}.png"
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
