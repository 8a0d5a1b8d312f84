"""The demonstration: digits sampled in a real ComfyUI, as a grid of pictures and a table.

`make demo` runs every sampler of ROWS at every number of model calls in CALLS through the host's
HTTP API, measures each result's distance to the converged image, and saves demo/out/grid.png.
`make demo-ui` keeps the same host running, to be used in a browser.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image, ImageDraw, ImageFont

from ..lab.metrics import distance
from ..tools.server import Graph, HostError, PromptError, Server, start

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "demo" / "out"
PACKS = {"dpm-solver-nodes": ROOT, "dpm_solver_demo": ROOT / "demo"}
PROBE = {
    "dpm_solver_test": ROOT / "tests" / "support" / "probe_nodes"
}  # nodes that count calls and save latents

DIGITS = "0,1,2,3,4,5,6,7,8,9"
SEED = 7
CFG = 2.0
SCHEDULER = "karras"  # the host's own; the best of them for dpmpp_2m here
CONVERGED_CALLS = 500
CALLS = (5, 10, 15, 20, 25)
MARGIN = 1  # pixels around each digit in the picture
TOLERANCES = (0.5, 0.2, 0.05, 0.02, 0.01)  # rtol of the adaptive row


def _host_sampler(name: str) -> dict[str, Any]:
    return {"class_type": "KSamplerSelect", "inputs": {"sampler_name": name}}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


ROWS: dict[str, dict[str, Any]] = {
    "Euler": _host_sampler("euler"),
    "DPM++ 2M (ComfyUI's)": _host_sampler("dpmpp_2m"),
    "DPM++ 2M": _node("DPMSolver_2M"),
    "DPM++ 3M": _node("DPMSolver_3M"),
    "DPM++ 2S singlestep": _node(
        "DPMSolver_Singlestep",
        algorithm="dpmsolver++",
        order=2,
        solver_type="dpmsolver",
        grouping="fast",
    ),
}
RECOMMENDED = "DPM++ recommended"
ROWS[RECOMMENDED] = _host_sampler("dpm_solver++_recommended")
SCHEDULERS = {RECOMMENDED: "dpm_solver_recommended"}  # rows that don't use SCHEDULER
ADAPTIVE = "DPM++ adaptive"


def _adaptive(rtol: float) -> dict[str, Any]:
    return _node(
        "DPMSolver_Adaptive",
        **{"algorithm": "dpmsolver++", "order": 3, "solver_type": "dpmsolver"},
        **{"rtol": rtol, "atol": rtol * 0.156, "max_calls": 500},
    )


@dataclass(frozen=True)
class Cell:
    """The result of a run: samples [batch, 1, height, width], and the number of model calls."""

    row: str
    samples: np.ndarray
    calls: int
    distance: float = 0.0


def graph(sampler: dict[str, Any], steps: int, key: str, scheduler: str = SCHEDULER) -> Graph:
    """Ten digits from one seed, with the model's calls counted under `key`."""
    return {
        "model": _node("DPMSolverDemo_Model"),
        "counted": _node("DPMSolverTest_Count", model=["model", 0], key=key),
        "positive": _node("DPMSolverDemo_Digit", digit=DIGITS),
        "negative": _node("DPMSolverDemo_Digit", digit=""),
        "latent": _node("EmptyLatentImage", width=128, height=128, batch_size=10),
        "noise": _node("RandomNoise", noise_seed=SEED),
        "guider": _node(
            "CFGGuider",
            **{"model": ["counted", 0], "positive": ["positive", 0]},
            **{"negative": ["negative", 0], "cfg": CFG},
        ),
        "sampler": sampler,
        "sigmas": _node(
            "BasicScheduler", model=["model", 0], scheduler=scheduler, steps=steps, denoise=1.0
        ),
        "sample": _node(
            "SamplerCustomAdvanced",
            **{"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0]},
            **{"sigmas": ["sigmas", 0], "latent_image": ["latent", 0]},
        ),
        "save": _node("DPMSolverTest_SaveLatent", samples=["sample", 0], name=key),
    }


def run(server: Server, row: str, sampler: dict[str, Any], steps: int, key: str) -> Cell:
    server.run(graph(sampler, steps, key, SCHEDULERS.get(row, SCHEDULER)))
    file = server.work / "output" / f"{key}.safetensors"
    samples = safetensors.numpy.load_file(file)["samples"]
    return Cell(row, samples, server.get("/dpm_solver_test/counts")[key])


def cells(server: Server) -> Iterator[Cell]:
    """Run every cell of the grid, row by row."""
    print(f"the converged image ({CONVERGED_CALLS} calls) ...", flush=True)
    reference = ROWS["DPM++ 2M (ComfyUI's)"]
    converged = run(server, "", reference, CONVERGED_CALLS, "converged").samples
    jobs = [(row, sampler, steps) for row, sampler in ROWS.items() for steps in CALLS]
    jobs += [(ADAPTIVE, _adaptive(rtol), 20) for rtol in TOLERANCES]
    for i, (row, sampler, steps) in enumerate(jobs):
        began = time.monotonic()
        cell = run(server, row, sampler, steps, f"cell{i}")
        if row != ADAPTIVE and cell.calls != steps:
            raise HostError(f"{row} took {cell.calls} model calls for {steps} steps")
        error = distance(torch.from_numpy(cell.samples), torch.from_numpy(converged))
        took = time.monotonic() - began
        print(
            f"{i + 1:3d}/{len(jobs)}  {row:22s} {cell.calls:3d} calls  "
            f"distance {error:.4f}  {took:4.1f} s",
            flush=True,
        )
        yield Cell(row, cell.samples, cell.calls, error)


def table(rows: dict[str, list[Cell]]) -> str:
    """The table of distances; the adaptive row shows its own numbers of calls."""
    lines = [f"{'distance to the converged image':32s}" + "".join(f"{n:>12d}" for n in CALLS)]
    for name, row in rows.items():
        texts = (
            f"{cell.distance:.4f}" + (f" ({cell.calls})" if name == ADAPTIVE else "")
            for cell in row
        )
        lines.append(f"{name:32s}" + "".join(f"{text:>12s}" for text in texts))
    return "\n".join(lines)


def picture(rows: dict[str, list[Cell]]) -> Image.Image:
    """The picture: each cell shows its digits, five by two, and below them the distance."""
    zoom, gap, left, top, caption = 3, 14, 190, 44, 22
    ink, faint, paper = (24, 24, 27), (113, 113, 122), (250, 250, 250)
    tile = (next(iter(rows.values()))[0].samples.shape[-1] + 2 * MARGIN) * zoom
    width, height = 5 * tile, 2 * tile
    size = (left + len(CALLS) * (width + gap), top + len(rows) * (height + caption + gap))
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for column, calls in enumerate(CALLS):
        x = left + column * (width + gap)
        draw.text((x + width // 2, top // 2), f"{calls} model calls", ink, font, anchor="mm")
    for line, (name, row) in enumerate(rows.items()):
        y = top + line * (height + caption + gap)
        draw.text((left - 16, y + height // 2), name, ink, font, anchor="rm")
        for column, cell in enumerate(row):
            x = left + column * (width + gap)
            image.paste(_mosaic(cell.samples, zoom), (x, y))
            text = f"distance {cell.distance:.4f}"
            if name == ADAPTIVE:
                text = f"{cell.calls} calls, {text}"
            draw.text((x + width // 2, y + height + 10), text, faint, small, anchor="mm")
    return image


def _mosaic(samples: np.ndarray, zoom: int) -> Image.Image:
    grey = (np.clip((samples[:, 0] + 1.0) / 2.0, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    grey = np.pad(grey, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))  # keeps digits apart
    strips = [np.concatenate(list(half), axis=1) for half in (grey[:5], grey[5:])]
    tiles = np.concatenate(strips, axis=0)
    return Image.fromarray(tiles.repeat(zoom, axis=0).repeat(zoom, axis=1))


def demonstrate(work: Path) -> None:
    print("starting ComfyUI ...", flush=True)
    with start(work, PACKS | PROBE) as server:
        rows: dict[str, list[Cell]] = {}
        for cell in cells(server):
            rows.setdefault(cell.row, []).append(cell)
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / "grid.png"
    picture(rows).save(path)
    print(f"\n{table(rows)}\n\npicture: {path}")


def serve(work: Path) -> None:
    print("starting ComfyUI ...", flush=True)
    with start(work, PACKS) as server:
        print(f"ComfyUI runs at {server.url}\nWorkflows are under Templates; Ctrl-C stops it.")
        signal.pause()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ui", action="store_true", help="leave ComfyUI running for the browser")
    ui = parser.parse_args().ui
    try:
        with tempfile.TemporaryDirectory(prefix="dpm-solver-demo-") as work:
            (serve if ui else demonstrate)(Path(work))
    except KeyboardInterrupt:
        print("\nstopped")
        return 0 if ui else 130
    except (HostError, PromptError) as error:
        print(f"the demonstration failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
