"""Makes the pictures of templates, help pages and README, with a real ComfyUI and its page.

`make pictures` runs the workflow files with the demo model instead of their checkpoint, and
writes workflows/*.jpg (what the page shows for a template), web/docs/pictures/*.png (each node in a
workflow), docs/pictures/graph.png, docs/pictures/help.png and docs/pictures/templates.png.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from ..demo.run import PACKS, ROOT
from . import browser
from .on_digits import on_digits
from .server import Graph, HostError, PromptError, Server, start

if TYPE_CHECKING:
    from playwright.sync_api import Page

WORKFLOWS = ROOT / "workflows"
PAPER, INK, DARK = (250, 250, 250), (24, 24, 27), (0, 0, 0)

# --- the pictures of the templates ---------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """What a workflow draws for its picture, and the caption below."""

    caption: str
    digits: str = "1,2,3,4,5,6,7,8,9"
    before_and_after: bool = False
    saved_by: str = "SaveImage"
    values: Mapping[str, Mapping[int, Any]] | None = None


COMPARED = {
    "DPMSolver_Compare": {2: "dpmpp_2m karras\ndpm_solver++_recommended dpm_solver_recommended"}
}
NAMED = {"DPMSolver_Compare": {6: "which_sampler/the demo model"}}
# "calibrated" loads what "calibrate" has saved.
TEMPLATES = {
    "ksampler_menu": Template("Recommended in KSampler, 20 calls"),
    "dpmpp_2m_custom_sampling": Template("DPM++ 2M, 20 calls"),
    "recommended": Template("Recommended, 20 calls"),
    "adaptive": Template("Adaptive: as many calls as it takes"),
    "sde": Template("2M SDE, 30 calls"),
    "image_to_image": Template("Image to image: a 4 becomes a 6", "6", True),
    "inpainting": Template("Inpainting the upper half", "9", True),
    "inversion": Template("To its noise and back", "4", True),
    "calibrate": Template("Calibrate on your own model", values={"DPMSolver_Calibrate": {5: 28}}),
    "calibrated": Template("Calibrated, 8 calls"),
    "solver_compare": Template("Which sampler is closest?", values=COMPARED),
    "which_sampler_flow": Template(
        "Which sampler for my flow model?", "3", saved_by="DPMSolver_Compare", values=NAMED
    ),
    "which_sampler_sdxl": Template(
        "Which sampler for my SDXL?", "8", saved_by="DPMSolver_Compare", values=NAMED
    ),
    "plot_sigmas": Template("A schedule and its weights"),
    "two_models": Template("Two models in one run, as Wan 2.2"),
}
SIDE, BAND, GAP = 480, 44, 18


def thumbnails(server: Server, page: Page) -> None:
    """Write workflows/<name>.jpg for all of them."""
    picture = a_digit(server, page)
    for name, template in TEMPLATES.items():
        graph = browser.to_api(page, _on_digits(name, template))
        ((save, _),) = _of_type(graph, template.saved_by)
        made = _images(server, server.run(graph)[save])
        if template.before_and_after:
            made = [picture.convert("RGB"), *made]
        _thumbnail(made, template.caption).save(WORKFLOWS / f"{name}.jpg", quality=88)
        print(f"workflows/{name}.jpg", flush=True)
    sigmas = _images(server, server.run(_flow_sigmas())["save"])
    _thumbnail(sigmas, "Flow models: Flux, SD3, Wan").save(WORKFLOWS / "flow_flux.jpg", quality=88)


def a_digit(server: Server, page: Page) -> Image.Image:
    """Upload a picture of a four, its upper half masked, as the example.png of the workflows."""
    graph = browser.to_api(page, _on_digits("ksampler_menu", Template("", "4")))
    ((save, _),) = _of_type(graph, "SaveImage")
    (picture,) = _images(server, server.run(graph)[save])
    mask = Image.new("L", picture.size, 255)
    mask.paste(0, (0, 0, picture.width, picture.height // 2))
    masked = picture.convert("RGB")
    masked.putalpha(mask)
    stream = io.BytesIO()
    masked.save(stream, "PNG")
    server.upload("example.png", stream.getvalue())
    page.evaluate("async () => { await window.app.refreshComboInNodes() }")  # as the key R does
    return masked


def _on_digits(name: str, template: Template) -> dict[str, Any]:
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    return on_digits(workflow, template.digits, template.values or {})


def _flow_sigmas() -> Graph:
    """A plot of the recommended sigmas on a flow; the demo model is no flow and can't run it."""
    size = {"width": 1024, "height": 1024}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "model": ("DPMSolverDemo_Model", {}),
        "flux": (
            "ModelSamplingFlux",
            {"model": ["model", 0], "max_shift": 1.15, "base_shift": 0.5, **size},
        ),
        "pair": ("DPMSolver_Recommended", {"model": ["flux", 0], "steps": 12, "denoise": 1.0}),
        "plot": (
            "DPMSolver_PlotSigmas",
            {"model": ["flux", 0], "sampler": ["pair", 0], "sigmas": ["pair", 1]},
        ),
        "save": ("SaveImage", {"images": ["plot", 0], "filename_prefix": "flow"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def _of_type(graph: Graph, kind: str) -> list[tuple[str, Any]]:
    return [(name, node) for name, node in graph.items() if node["class_type"] == kind]


def _images(server: Server, outputs: Mapping[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(server.image(one))).convert("RGB") for one in outputs["images"]]


def _thumbnail(images: Sequence[Image.Image], caption: str) -> Image.Image:
    """A square: nine images, two with an arrow between them, or one, and the caption below."""
    photographs = images[0].width == images[0].height
    page = Image.new("RGB", (SIDE, SIDE), DARK if photographs else PAPER)
    draw = ImageDraw.Draw(page)
    top = SIDE - BAND
    if len(images) == 2:
        side = (SIDE - 60) // 2
        y = (top - side) // 2
        for x, image in ((0, images[0]), (SIDE - side, images[1])):
            page.paste(image.resize((side, side), Image.Resampling.BICUBIC), (x, y))
        _arrow(draw, (SIDE // 2, top // 2))
    elif photographs:
        side = top // 3
        for place, image in enumerate(images[:9]):
            x, y = place % 3 * side + (SIDE - 3 * side) // 2, place // 3 * side
            digit = image.resize((side - GAP, side - GAP), Image.Resampling.BICUBIC)
            page.paste(digit, (x + GAP // 2, y + GAP // 2))
    else:
        image = images[0].copy()
        image.thumbnail((SIDE - 12, top - 12), Image.Resampling.LANCZOS)
        page.paste(image, ((SIDE - image.width) // 2, (top - image.height) // 2))
    draw.rectangle((0, top, SIDE, SIDE), PAPER)
    draw.text((SIDE // 2, top + BAND // 2), caption, INK, ImageFont.load_default(24), anchor="mm")
    return page


def _arrow(draw: ImageDraw.ImageDraw, middle: tuple[int, int]) -> None:
    x, y = middle
    draw.line((x - 22, y, x + 14, y), PAPER, 4)
    draw.polygon(((x + 22, y), (x + 8, y - 10), (x + 8, y + 10)), PAPER)


# --- the pictures of the help pages --------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A node in a workflow: which one, what else the picture shows, and whether it has run.

    `instead` is the type of the node in the workflow that it replaces.
    """

    workflow: str
    beside: tuple[str, ...] = ("SamplerCustomAdvanced",)
    instead: str = ""
    ran: bool = False


IN_PLACE_OF_2M = View(
    "dpmpp_2m_custom_sampling", ("DPMSolver_Sigmas", "SamplerCustomAdvanced"), "DPMSolver_2M"
)
VIEWS = {
    "DPMSolver_2M": View("dpmpp_2m_custom_sampling", ("DPMSolver_Sigmas", "SamplerCustomAdvanced")),
    "DPMSolver_3M": IN_PLACE_OF_2M,
    "DPMSolver_Multistep": IN_PLACE_OF_2M,
    "DPMSolver_Singlestep": IN_PLACE_OF_2M,
    "DPMSolver_Adaptive": View("adaptive"),
    "DPMSolver_SDE": View("sde"),
    "DPMSolver_Sigmas": View("dpmpp_2m_custom_sampling", ("DPMSolver_2M", "SamplerCustomAdvanced")),
    "DPMSolver_TwoModels": View(
        "two_models", ("CFGGuider", "DPMSolver_Recommended", "RandomNoise")
    ),
    "DPMSolver_Recommended": View("recommended", ("SamplerCustom", "SaveImage"), ran=True),
    "DPMSolver_Compare": View("solver_compare", ("SaveImage",), ran=True),
    "DPMSolver_Candidate": View("solver_compare", ("DPMSolver_3M", "DPMSolver_Compare")),
    "DPMSolver_PlotSigmas": View("plot_sigmas", ("DPMSolver_Sigmas", "SaveImage"), ran=True),
    "DPMSolver_Calibrate": View("calibrate", ("SamplerCustom", "PreviewAny"), ran=True),
    "DPMSolver_Calibrated": View("calibrated", ("SamplerCustom", "PreviewAny"), ran=True),
}
# Replaces a node by another one, and moves the nodes below by the difference in height.
REPLACE = """([type, instead]) => {
    const graph = window.app.graph, nodes = [...graph._nodes]
    const old = nodes.find((node) => node.type === instead)
    const made = LiteGraph.createNode(type)
    graph.add(made)
    made.pos = [...old.pos]
    made.size = [old.size[0], made.size[1]]
    for (const link of [...old.outputs[0].links]) {
        const { target_id, target_slot } = graph.links[link]
        made.connect(0, graph.getNodeById(target_id), target_slot)
    }
    for (const node of nodes)
        if (node.pos[0] === old.pos[0] && node.pos[1] > old.pos[1])
            node.pos[1] += made.size[1] - old.size[1]
    graph.remove(old)
}"""
# Moves nodes of these types to the middle of the window; returns the box that they fill there.
SHOW = """([types, scale, width, height]) => {
    const canvas = window.app.canvas
    const boxes = window.app.graph._nodes.filter((node) => types.includes(node.type))
        .map((node) => [node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0],
                        node.pos[1] + node.size[1]])
    const box = [0, 1].map((i) => Math.min(...boxes.map((one) => one[i])) - 24)
        .concat([2, 3].map((i) => Math.max(...boxes.map((one) => one[i])) + 24))
    const size = [box[2] - box[0], box[3] - box[1]]
    scale = Math.min(scale, (width - 360) / size[0], (height - 260) / size[1])
    const corner = [(width - size[0] * scale) / 2, (height - size[1] * scale) / 2]
    canvas.ds.scale = scale
    canvas.ds.offset = [corner[0] / scale - box[0], corner[1] / scale - box[1]]
    canvas.setDirty(true, true)
    return { x: corner[0], y: corner[1], width: size[0] * scale, height: size[1] * scale }
}"""
WINDOW = (1600, 1200)


def node_pictures(server: Server, page: Page) -> None:
    """Write web/docs/pictures/<NodeId>.png for all of them."""
    folder = ROOT / "web" / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    for name, view in VIEWS.items():
        template = TEMPLATES[view.workflow]
        browser.load(page, _on_digits(view.workflow, template))
        if view.instead and view.instead != name:
            page.evaluate(REPLACE, [name, view.instead])
        if view.ran:
            browser.run(server, page)
        box = page.evaluate(SHOW, [[name, *view.beside], 1.0, *WINDOW])
        page.wait_for_timeout(700)
        _save(page.screenshot(clip=box), folder / f"{name}.png")
        print(f"web/docs/pictures/{name}.png", flush=True)


def _save(png: bytes, path: Path) -> None:
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)


# --- the pictures of the README ------------------------------------------------------------------


SELECT = """(type) => {
    const { canvas, graph } = window.app
    canvas.selectItems([...graph._nodes].filter((node) => node.type === type))
}"""
OPEN_TEMPLATES = "() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')"


def readme_pictures(server: Server, page: Page) -> None:
    """Write docs/pictures/graph.png, docs/pictures/help.png and docs/pictures/templates.png."""
    browser.load(page, _on_digits("recommended", TEMPLATES["recommended"]))
    browser.run(server, page)
    kinds = page.evaluate("() => window.app.graph._nodes.map((node) => node.type)")
    box = page.evaluate(SHOW, [kinds, 1.0, *WINDOW])
    page.wait_for_timeout(700)
    _save(page.screenshot(clip=box), ROOT / "docs" / "pictures" / "graph.png")

    page.evaluate(SELECT, "DPMSolver_Recommended")
    page.get_by_test_id("info-button").click()
    page.locator(".node-help-content img").first.wait_for()
    page.wait_for_timeout(1500)
    right = page.screenshot(clip={"x": WINDOW[0] - 920, "y": 0, "width": 920, "height": 900})
    _save(right, ROOT / "docs" / "pictures" / "help.png")

    page.evaluate(OPEN_TEMPLATES)
    page.get_by_text(next(iter(PACKS)), exact=True).last.click()
    page.wait_for_timeout(3000)
    _save(page.get_by_role("dialog").screenshot(), ROOT / "docs" / "pictures" / "templates.png")


PARTS = {"templates": thumbnails, "nodes": node_pictures, "readme": readme_pictures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all, if none is named")
    parts = parser.parse_args().parts or list(PARTS)
    if reason := browser.missing():
        print(f"no pictures: {reason}", file=sys.stderr)
        return 1
    try:
        print("starting ComfyUI ...", flush=True)
        with (
            tempfile.TemporaryDirectory(prefix="dpm-solver-pictures-") as work,
            start(Path(work), PACKS) as server,
            browser.opened(server, size=WINDOW, Comfy_Minimap_Visible=False) as page,
        ):
            if "templates" not in parts:
                a_digit(server, page)
            for part in parts:
                PARTS[part](server, page)
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    except (HostError, PromptError) as error:
        print(f"the pictures failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
