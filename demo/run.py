"""The demonstration: emoji sampled in a real ComfyUI, as grids of pictures and tables.

`make demo` runs every sampler of ROWS at every number of model calls in CALLS through the host's
HTTP API, on the emoji model as a flow and predicting noise, and measures each result's distance to
the converged image. For each process it saves two pictures in demo/out/: a grid of the images, and
one of their differences from the converged image, amplified. `make demo-ui` keeps the same host
running, and opens the demo's graph in the browser.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import webbrowser
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
from .emoji import CLASSES

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "demo" / "out"
PACKS = {"dpm-solver-nodes": ROOT, "dpm_solver_demo": ROOT / "demo"}
PROBE = {
    "dpm_solver_test": ROOT / "tests" / "support" / "probe_nodes"
}  # nodes that count calls and save latents

PROCESSES = {"flow": "A flow, shift 3", "noise": "Noise prediction, Stable Diffusion's schedule"}
SCHEDULERS = {"flow": "simple", "noise": "karras"}
"""The host's own, for its samplers: what is used most on such models."""
SEED = 7
CFG = 3.0
CONVERGED_CALLS = 300
CALLS = (4, 6, 8, 10, 15, 20, 30)
CALIBRATED_CALLS = (4, 6, 8, 10)
"""Calibrating pays for few calls; it takes 10 to 20 seconds each."""
FITTED = "heart, cat, flower"  # the classes that the calibration sees; it has other noises, too
SHOWN = 4
"""The grid shows the first of CLASSES, in two columns; distances are measured on all."""
GAIN = 4.0  # of the second picture

CONVERGED = "converged"
CALIBRATED = "calibrated"
RECOMMENDED = "recommended"
ROWS = {
    "Euler": "euler",
    "DPM++ 2M": "dpmpp_2m",
    "UniPC": "uni_pc",
    RECOMMENDED: "dpm_solver++_recommended",
    CALIBRATED: "",
}


@dataclass(frozen=True)
class Cell:
    """The result of a run: samples [8, 3, height, width], and the number of model calls."""

    samples: np.ndarray
    calls: int
    distance: float = 0.0


Rows = dict[str, dict[int, Cell]]
"""The cells of each row by the steps that were asked for."""


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def pair(row: str, process: str, steps: int) -> Graph:
    """The nodes "sampler" and "sigmas" of a row, and the output of each that is used."""
    if row == CALIBRATED:
        return {
            "fitted": _node("DPMSolverDemo_Emoji", emoji=FITTED),
            "one": _node("EmptyLatentImage", width=256, height=256, batch_size=1),
            "calibrated": _node(
                "DPMSolver_Calibrate",
                **{"model": ["model", 0], "positive": ["fitted", 0], "negative": ["negative", 0]},
                **{"latent_image": ["one", 0], "calls": steps, "cfg": CFG, "seeds": 15},
                **{"held_out": 3, "model_calls": 2500, "batch": 18, "noise_seed": SEED + 1},
                **{"name": ""},
            ),
        }
    scheduler = "dpm_solver_recommended" if row == RECOMMENDED else SCHEDULERS[process]
    return {
        "sampler": _node("KSamplerSelect", sampler_name=ROWS[row]),
        "sigmas": _node(
            "BasicScheduler", model=["model", 0], scheduler=scheduler, steps=steps, denoise=1.0
        ),
    }


def graph(row: str, process: str, steps: int, key: str) -> Graph:
    """One emoji of each class from one seed, with the model's calls counted under `key`."""
    chosen = pair(row, process, steps)
    fitted = "calibrated" in chosen
    return {
        **chosen,
        "model": _node("DPMSolverDemo_EmojiModel", process=process),
        "counted": _node("DPMSolverTest_Count", model=["model", 0], key=key),
        "positive": _node("DPMSolverDemo_Emoji", emoji=", ".join(CLASSES)),
        "negative": _node("DPMSolverDemo_Emoji", emoji=""),
        "latent": _node("EmptyLatentImage", width=256, height=256, batch_size=len(CLASSES)),
        "noise": _node("RandomNoise", noise_seed=SEED),
        "guider": _node(
            "CFGGuider",
            **{"model": ["counted", 0], "positive": ["positive", 0]},
            **{"negative": ["negative", 0], "cfg": CFG},
        ),
        "sample": _node(
            "SamplerCustomAdvanced",
            **{"noise": ["noise", 0], "guider": ["guider", 0], "latent_image": ["latent", 0]},
            sampler=["calibrated" if fitted else "sampler", 0],
            sigmas=["calibrated", 1] if fitted else ["sigmas", 0],
        ),
        "save": _node("DPMSolverTest_SaveLatent", samples=["sample", 0], name=key),
    }


def run(server: Server, row: str, process: str, steps: int) -> Cell:
    key = f"{process}-{row}-{steps}".replace(" ", "").replace("+", "p")
    server.run(graph(row, process, steps, key))
    file = server.work / "output" / f"{key}.safetensors"
    samples = safetensors.numpy.load_file(file)["samples"]
    return Cell(samples, server.get("/dpm_solver_test/counts")[key])


def cells(server: Server) -> Iterator[tuple[str, str, int, Cell]]:
    """Run every cell: the process, the row, the steps, and the result; CONVERGED is a row."""
    jobs = [
        (process, row, steps)
        for process in PROCESSES
        for row in ROWS
        for steps in (CALIBRATED_CALLS if row == CALIBRATED else CALLS)
    ]
    converged: dict[str, torch.Tensor] = {}
    for i, (process, row, steps) in enumerate(jobs):
        if process not in converged:
            print(f"{process}: the converged image, {CONVERGED_CALLS} calls ...", flush=True)
            cell = run(server, "DPM++ 2M", process, CONVERGED_CALLS)
            converged[process] = torch.from_numpy(cell.samples)
            yield process, CONVERGED, CONVERGED_CALLS, cell
        began = time.monotonic()
        cell = run(server, row, process, steps)
        error = distance(torch.from_numpy(cell.samples), converged[process])
        print(
            f"{i + 1:3d}/{len(jobs)}  {process:5s}  {row:12s} {cell.calls:3d} calls  "
            f"distance {error:.4f}  {time.monotonic() - began:4.1f} s",
            flush=True,
        )
        yield process, row, steps, Cell(cell.samples, cell.calls, error)


def table(process: str, rows: Rows) -> str:
    """The distances; a run that took another number of calls than of steps says so."""
    title = f"{process}: distance to the converged image"
    lines = [f"{title:44s}" + "".join(f"{calls:>12d}" for calls in CALLS)]
    for row in ROWS:
        texts = (_measured(rows[row][calls], calls) for calls in CALLS if calls in rows[row])
        lines.append(f"{row:44s}" + "".join(f"{text:>12s}" for text in texts))
    return "\n".join(lines)


def _measured(cell: Cell, steps: int) -> str:
    return f"{cell.distance:.4f}" + (f" ({cell.calls})" if cell.calls != steps else "")


def images(cell: Cell, _converged: Cell) -> np.ndarray:
    """A cell's own images, from 0 to 1."""
    return (cell.samples + 1.0) / 2.0


def differences(cell: Cell, converged: Cell) -> np.ndarray:
    """How a cell's images differ from the converged ones, GAIN times larger; grey is no difference."""
    return 0.5 + GAIN * (cell.samples - converged.samples) / 2.0


PICTURES = {
    "grid": (images, "{}"),
    "difference": (differences, f"{{}}: difference from the converged image, times {GAIN:g}"),
}


def picture(process: str, rows: Rows, kind: str) -> Image.Image:
    """The grid: each cell shows the first SHOWN classes, two by two, and below them the distance."""
    show, title = PICTURES[kind]
    zoom, gap, left, top, caption = 3, 12, 150, 76, 24
    ink, faint, paper = (24, 24, 27), (113, 113, 122), (250, 250, 250)
    (converged,) = rows[CONVERGED].values()
    side = 2 * converged.samples.shape[-1] * zoom
    columns = [*CALLS, CONVERGED_CALLS]
    size = (left + len(columns) * (side + gap), top + len(ROWS) * (side + caption + gap))
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    large, font, small = (ImageFont.load_default(size) for size in (20, 17, 15))
    draw.text((gap, 12), title.format(PROCESSES[process]), ink, large)
    for column, calls in enumerate(columns):
        x = left + column * (side + gap)
        text = f"{calls} model calls" if calls in CALLS else f"converged ({calls} calls)"
        draw.text((x + side // 2, 58), text, ink, font, anchor="mm")
    for line, row in enumerate(ROWS):
        y = top + line * (side + caption + gap)
        draw.text((left - 14, y + side // 2), row, ink, font, anchor="rm")
        for column, calls in enumerate(columns):
            cell = rows[row].get(calls)
            x = left + column * (side + gap)
            if calls == CONVERGED_CALLS:
                image.paste(_mosaic(images(converged, converged), zoom), (x, y))
            elif cell is not None:
                image.paste(_mosaic(show(cell, converged), zoom), (x, y))
                text = _measured(cell, calls)
                draw.text((x + side // 2, y + side + 12), text, faint, small, anchor="mm")
    return image


def _mosaic(pictures: np.ndarray, zoom: int) -> Image.Image:
    """[n, 3, height, width] from 0 to 1 -> the first SHOWN, two by two, enlarged."""
    first = (np.clip(pictures[:SHOWN], 0.0, 1.0) * 255.0).round().astype(np.uint8)
    strips = [np.concatenate(list(first[i : i + 2]), axis=2) for i in range(0, SHOWN, 2)]
    tiles = Image.fromarray(np.concatenate(strips, axis=1).transpose(1, 2, 0))
    return tiles.resize((tiles.width * zoom, tiles.height * zoom), Image.Resampling.BICUBIC)


def demonstrate(work: Path) -> None:
    print("starting ComfyUI ...", flush=True)
    found: dict[str, Rows] = {process: {} for process in PROCESSES}
    with start(work, PACKS | PROBE) as server:
        for process, row, steps, cell in cells(server):
            found[process].setdefault(row, {})[steps] = cell
    OUTPUT.mkdir(exist_ok=True)
    paths = []
    for process, rows in found.items():
        print(f"\n{table(process, rows)}")
        for kind in PICTURES:
            paths.append(OUTPUT / f"{process}_{kind}.png")
            picture(process, rows, kind).save(paths[-1])
    print("\npictures:\n" + "\n".join(f"  {path}" for path in paths))


def page(server: Server) -> str:
    """The address of ComfyUI's page with the demo's own graph."""
    return f"{server.url}/?template=emoji&source=dpm_solver_demo"


def serve(work: Path) -> None:
    print("starting ComfyUI ...", flush=True)
    with start(work, PACKS) as server:
        print(f"ComfyUI runs at {server.url}, the demo's graph at\n{page(server)}")
        print("Other workflows are under Templates; Ctrl-C stops it.", flush=True)
        if (
            sys.platform != "linux"
            or os.environ.get("DISPLAY")
            or os.environ.get("WAYLAND_DISPLAY")
        ):
            webbrowser.open_new_tab(page(server))
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
