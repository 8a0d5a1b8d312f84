"""The workflow files, as the host's page converts them, and the ordinary graph, to a saved image."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from dpm_solver_nodes.demo.run import page as demo_page
from dpm_solver_nodes.lab.calibration.cost import FIRST_TRIALS
from dpm_solver_nodes.lab.calibration.teacher import HALF, POINTS
from dpm_solver_nodes.tests.support import sd15 as sd15_file
from dpm_solver_nodes.tests.support.graphs import text_to_image
from dpm_solver_nodes.tests.support.probing import counts, latent, reset_counts
from dpm_solver_nodes.tools import browser
from dpm_solver_nodes.tools.on_digits import on_digits
from dpm_solver_nodes.tools.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "workflows").glob("*.json"))
DEMO_FILES = sorted((ROOT / "demo" / "workflows").glob("*.json"))
# The files of every released version, and in api/ what the page of that time made of them.
RELEASED = sorted((ROOT / "tests" / "data" / "workflows").glob("*/*.json"))
# `make test` runs these, WORKFLOWS=all (as in `make test-all`) every one.
QUICK = ("dpmpp_2m_custom_sampling", "flow_flux")
ON_DIGITS = ("two_models", "which_sampler_flow")
"""Run on the demo model, as there is no small stand-in for what they load."""
NOTES = {"Note", "MarkdownNote"}  # nodes of the page alone
PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff"
CHECKPOINTS = (
    "v1-5-pruned-emaonly-fp16.safetensors",
    "flux1-dev-fp8.safetensors",
    "sd_xl_base_1.0.safetensors",
)
LARGE = ("flow_flux", "which_sampler_sdxl")
"""Made for pictures of 1024 x 1024."""
SAVED_BY = {"which_sampler_sdxl": "DPMSolver_Compare"}
"""The node that saves the picture, where it isn't SaveImage."""
# Model calls (None: as many as it takes), and the nodes that hold the size of the picture.
Runs = dict[str, tuple[int | range, tuple[str, ...]]]
RUNS: Runs = {
    "dpmpp_2m_custom_sampling": (20, ("EmptyLatentImage",)),
    "ksampler_menu": (20, ("EmptyLatentImage",)),
    "image_to_image": (12, ("ImageScale",)),
    "inpainting": (20, ()),
    "adaptive": (range(11, 100), ("EmptyLatentImage",)),
    "sde": (30, ("EmptyLatentImage",)),
    "inversion": (60, ("ImageScale",)),
    "flow_flux": (12, ("EmptySD3LatentImage", "ModelSamplingFlux")),
    "solver_compare": (6 * (2 + 3) + 10, ("EmptyLatentImage",)),
    # and those of saved calibrations
    "which_sampler_sdxl": (range(11, 100), ("EmptyLatentImage",)),
    "plot_sigmas": (0, ()),
    "recommended": (20, ("EmptyLatentImage",)),
    # Of two images each: two teachers, up to four fits of two calls, and three solvers to measure.
    "calibrate": (
        range(2 * (POINTS + HALF) + 4 + 6 + 2, 2 * (POINTS + HALF) + FIRST_TRIALS * 2 + 6 + 3),
        ("EmptyLatentImage",),
    ),
    "calibrated": (2, ("EmptyLatentImage",)),
}
# Where an earlier version's file made others.
OLD_RUNS: Runs = {
    **RUNS,
    "image_to_image": (20, ("ImageScale",)),
    "flow_flux": (16, ("EmptySD3LatentImage", "ModelSamplingFlux")),
    "recommended": (12, ("EmptyLatentImage",)),
    "solver_compare": (range(35, 41, 5), ("EmptyLatentImage",)),  # of 5 or 6 candidates
}
# What is made smaller for the test besides the picture, by the node it is set in.
SMALLER = {
    "solver_compare": ("DPMSolver_Compare", {"calls": "2, 3", "reference_calls": 10}),
    "which_sampler_sdxl": ("DPMSolver_Compare", {"calls": "2, 3", "reference_calls": 10}),
    "calibrate": (
        "DPMSolver_Calibrate",
        {
            "calls": 2,
            "seeds": 2,
            "held_out": 2,
            "model_calls": 4 * (POINTS + HALF) + 16 + 12,
            "batch": 2,
        },
    ),
}

chosen = pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if path.stem not in ON_DIGITS
        and (os.environ.get("WORKFLOWS") == "all" or path.stem in QUICK)
    ],
    ids=lambda path: path.stem,
)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def supplied(host: Server) -> Server:
    """The host with what the workflows ask for by name: checkpoints (random), and its own example."""
    for name in CHECKPOINTS:
        link = host.work / "models" / "checkpoints" / name
        if not link.exists():
            link.symlink_to(sd15_file.checkpoint())
    side = torch.linspace(0.0, 255.0, 64)
    pixels = torch.stack((side.expand(64, 64), side.expand(64, 64).T, side.flip(0).expand(64, 64)))
    picture = Image.fromarray(pixels.permute(1, 2, 0).byte().numpy())
    picture.putalpha(Image.linear_gradient("L").resize((64, 64)))  # LoadImage's mask
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    assert host.upload("example.png", stream.getvalue()) == "example.png"
    return host


@pytest.fixture(scope="module")
def page(supplied: Server) -> Iterator[Page]:
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.opened(supplied) as page:
        yield page


def test_the_files_are_there() -> None:
    assert {*RUNS, *ON_DIGITS} == {path.stem for path in FILES}
    assert {"0.1.0", "0.2.0", "0.3.0"} <= {path.parent.name for path in RELEASED}


@pytest.mark.parametrize("files", [FILES, DEMO_FILES], ids=["pack", "demo"])
def test_listed_as_templates(host: Server, files: list[Path]) -> None:
    known = host.object_info("DPMSolver_2M" if files is FILES else "DPMSolverDemo_Model")
    pack = next(iter(known.values()))["python_module"].partition(".")[2]
    listed = host.get("/workflow_templates")[pack]
    assert sorted(listed) == [path.stem for path in files]
    for path in files:
        assert host.get(f"/api/workflow_templates/{pack}/{path.name}") == read(path)
        if files is FILES:  # the name the page asks for
            thumbnail = host.request(f"/api/workflow_templates/{pack}/{path.stem}.jpg")
            assert thumbnail.startswith(JPEG) and len(thumbnail) < 100_000


@pytest.mark.parametrize("path", [*FILES, *DEMO_FILES], ids=lambda path: path.stem)
def test_the_file_is_whole(host: Server, path: Path) -> None:
    """Only nodes that exist, links that both ends know, and no node upon another."""
    workflow = read(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    known = host.object_info()
    assert {node["type"] for node in nodes.values()} <= known.keys() | NOTES
    assert len(nodes) == len(workflow["nodes"])
    ends = {
        (link, node["id"], slot)
        for node in nodes.values()
        for slot, field in enumerate(node["inputs"])
        if (link := field["link"]) is not None
    }
    assert ends == {(link, target, slot) for link, _, _, target, slot, _ in workflow["links"]}
    for link, source, slot, *_, kind in workflow["links"]:
        output = nodes[source]["outputs"][slot]
        assert link in output["links"] and output["type"] == kind
    boxes = [(*node["pos"], *node["size"]) for node in nodes.values()]
    assert not [(a, b) for a in boxes for b in boxes if a is not b and overlap(a, b)]


def overlap(a: tuple[float, ...], b: tuple[float, ...], title: float = 30.0) -> bool:
    """Boxes are (left, top, width, height), with a title above the top."""
    return all(
        start < other + size_b and other < start + size_a
        for start, size_a, other, size_b in (
            (a[0], a[2], b[0], b[2]),
            (a[1] - title, a[3] + title, b[1] - title, b[3] + title),
        )
    )


def of_type(graph: dict[str, Any], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, node) for name, node in graph.items() if node["class_type"] == kind)


def with_count(graph: dict[str, Any], loader: str) -> dict[str, Any]:
    """The graph with the calls of the loader's model counted under "calls"."""
    count = {"class_type": "DPMSolverTest_Count", "inputs": {"model": [loader, 0], "key": "calls"}}
    for node in graph.values():
        for field, value in node["inputs"].items():
            if value == [loader, 0]:
                node["inputs"][field] = ["count", 0]
    return graph | {"count": count}


def made_small(graph: dict[str, Any], name: str, sizes: Sequence[str]) -> dict[str, Any]:
    """The graph on a picture of 64 x 64, with what SMALLER says, and the model's calls counted."""
    ((loader, _),) = of_type(graph, "CheckpointLoaderSimple")
    for kind in sizes:
        ((_, node),) = of_type(graph, kind)
        size = 1024 if name in LARGE else 512
        assert (node["inputs"]["width"], node["inputs"]["height"]) == (size, size)
        node["inputs"] |= {"width": 64, "height": 64}
    if name in SMALLER:
        kind, inputs = SMALLER[name]
        ((_, node),) = of_type(graph, kind)
        node["inputs"] |= inputs
    return with_count(graph, loader)


def files_missing(host: Server) -> set[str]:
    """What the page says of a flow's files that are not there. That of ComfyUI 0.16 says nothing."""
    loaders = () if host.version == "0.16.3" else ("UNET", "CLIP", "VAE")
    return {f"{loader}Loader is red" for loader in loaders}


def run(host: Server, graph: dict[str, Any], name: str, runs: Runs = RUNS) -> None:
    """To a saved picture, in the number of model calls that the workflow promises."""
    calls, sizes = runs[name]
    ((save, _),) = of_type(graph, SAVED_BY.get(name, "SaveImage"))
    reset_counts(host)
    outputs = host.run(made_small(graph, name, sizes))
    (image,) = outputs[save]["images"]
    assert image["type"] == "output"
    assert host.image(image).startswith(PNG)
    made = counts(host).get("calls", 0)
    assert made in calls if isinstance(calls, range) else made == calls


@chosen
def test_workflow_runs(supplied: Server, page: Page, path: Path) -> None:
    """As it is, on a small image, and what SMALLER says."""
    if path.stem == "calibrated":  # by a file that the workflow "calibrate" makes
        saved = supplied.work / "models" / "dpm_solver" / "my_model_8_calls.safetensors"
        if not saved.exists():
            run(supplied, browser.to_api(page, read(path.with_stem("calibrate"))), "calibrate")
        assert saved.exists()
    run(supplied, browser.to_api(page, read(path)), path.stem)


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_old_files_keep_their_meaning(page: Page, path: Path) -> None:
    """Every value lands in the input it was meant for; inputs that came later have their defaults."""
    now = browser.to_api(page, read(path))
    then = read(path.parent / "api" / path.name)
    assert now.keys() == then.keys()
    for name, node in then.items():
        assert now[name]["class_type"] == node["class_type"]
        kept = {field: now[name]["inputs"].get(field) for field in node["inputs"]}
        assert kept == node["inputs"]


@pytest.mark.skipif(os.environ.get("WORKFLOWS") != "all", reason="WORKFLOWS is not all")
def test_old_files_run(supplied: Server) -> None:
    """Each in the API form of its time, as it may lie on somebody's disk."""
    graphs = {
        json.dumps(read(path.parent / "api" / path.name)): path.stem for path in reversed(RELEASED)
    }
    assert len(graphs) >= 8
    for graph, name in graphs.items():
        run(supplied, json.loads(graph), name, OLD_RUNS)


@pytest.mark.parametrize("name", QUICK[:1])
def test_a_click_on_run(supplied: Server, page: Page, name: str) -> None:
    """On the demo model: the page queues it itself, and shows the pictures in its node."""
    digits = on_digits(read(ROOT / "workflows" / f"{name}.json"), "1, 2")
    assert browser.load(page, digits) == []
    browser.run(supplied, page)
    shown = page.evaluate(
        "() => window.app.graph._nodes.find((node) => node.type === 'SaveImage').imgs?.length"
    )
    assert shown == 2


def test_two_models(supplied: Server, page: Page) -> None:
    """As it is, only the models' files are missing; on two demo models each predicts on its side."""
    workflow = read(ROOT / "workflows" / "two_models.json")
    assert set(browser.load(page, workflow)) == files_missing(supplied)
    ((_, sampler),) = of_type(browser.converted(page), "DPMSolver_TwoModels")
    assert (sampler["inputs"]["boundary"], sampler["inputs"]["boundary_is"]) == (0.875, "time")
    graph = browser.to_api(page, on_digits(workflow, "1, 2"))
    guiders = dict(of_type(graph, "CFGGuider"))
    for name, guider in guiders.items():
        count = {"model": guider["inputs"]["model"], "key": name}
        graph[f"count {name}"] = {"class_type": "DPMSolverTest_Count", "inputs": count}
        guider["inputs"]["model"] = [f"count {name}", 0]
    reset_counts(supplied)
    ((save, _),) = of_type(graph, "SaveImage")
    assert len(supplied.run(graph)[save]["images"]) == 2
    made = counts(supplied)
    assert made.keys() == guiders.keys()
    assert sum(made.values()) == 12


def test_which_sampler_flow_as_it_is(supplied: Server, page: Page) -> None:
    """Only the models' files are missing; on the demo model test_lab_nodes.py runs it."""
    workflow = read(ROOT / "workflows" / "which_sampler_flow.json")
    assert set(browser.load(page, workflow)) == files_missing(supplied)
    graph = browser.converted(page)
    ((_, compare),) = of_type(graph, "DPMSolver_Compare")
    model = graph[compare["inputs"]["model"][0]]
    assert model["class_type"] == "ModelSamplingAuraFlow"
    assert compare["inputs"]["filename_prefix"] == "which_sampler/z_image"
    assert "guider" not in compare["inputs"]


def test_the_hosts_2m_becomes_ours_in_one_field(host: Server, sd15: str) -> None:
    """KSampler's sampler_name, and KSamplerSelect's: the image stays the same."""
    custom = dict(
        text_to_image(sd15),
        **{
            "20": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpmpp_2m"}},
            "21": {
                "class_type": "BasicScheduler",
                "inputs": {"model": ["10", 0], "scheduler": "karras", "steps": 12, "denoise": 1.0},
            },
        },
    )
    ends = {name: custom["3"]["inputs"][name] for name in ("positive", "negative", "latent_image")}
    custom["3"] = {
        "class_type": "SamplerCustom",
        "inputs": {
            **ends,
            **{"model": ["10", 0], "sampler": ["20", 0], "sigmas": ["21", 0]},
            **{"add_noise": True, "noise_seed": 1, "cfg": 5.0},
        },
    }
    menu = text_to_image(sd15, sampler_name="dpmpp_2m", scheduler="karras", steps=12)
    for graph, holder in ((menu, "3"), (custom, "20")):
        made = []
        for name in ("dpmpp_2m", "dpm_solver++_2m"):
            graph[holder]["inputs"]["sampler_name"] = name
            reset_counts(host)
            host.run(graph)
            assert counts(host) == {"calls": 12}
            made.append(latent(host))
        torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-4)


def test_inversion_comes_back_the_way_it_went(page: Page) -> None:
    """What the picture is found again by; how well it is, test_inversion.py says."""
    graph = browser.to_api(page, read(ROOT / "workflows" / "inversion.json"))

    def source(name: str, field: str) -> dict[str, Any]:
        return dict(graph[graph[name]["inputs"][field][0]])

    ((up, up_inputs), (down, down_inputs)) = (
        (name, node["inputs"]) for name, node in of_type(graph, "SamplerCustomAdvanced")
    )
    assert down_inputs["latent_image"] == [up, 0]
    assert source(up, "latent_image")["class_type"] == "VAEEncode"
    assert source(down, "sigmas")["class_type"] == "FlipSigmas"
    assert source(down, "sigmas")["inputs"]["sigmas"] == up_inputs["sigmas"]
    assert source(up, "sigmas")["inputs"]["direction"] == "rising"
    assert up_inputs["sampler"] == down_inputs["sampler"]
    for name in (up, down):
        assert source(name, "noise")["class_type"] == "DisableNoise"
        guider = source(name, "guider")
        assert guider["class_type"] == "BasicGuider"  # a CFG of 1
        prompt = graph[guider["inputs"]["conditioning"][0]]
        assert prompt["inputs"]["text"] == "a photo"  # the same, until it is edited


DEMO_RUNS = {
    "digits": ("DPMSolverDemo_Model", 10, 20),
    "emoji": ("DPMSolverDemo_EmojiModel", 8, 12),
}
"""The demo's workflows: the node that loads the model, images and model calls."""


@pytest.mark.parametrize("path", DEMO_FILES, ids=[path.stem for path in DEMO_FILES])
def test_the_demos_workflows_run(host: Server, page: Page, path: Path) -> None:
    loading, images, calls = DEMO_RUNS[path.stem]
    graph = browser.to_api(page, read(path))
    ((loader, _),) = of_type(graph, loading)
    ((show, _),) = of_type(graph, "PreviewImage")
    reset_counts(host)
    outputs = host.run(with_count(graph, loader))
    assert len(outputs[show]["images"]) == images
    assert host.image(outputs[show]["images"][-1]).startswith(PNG)
    assert counts(host) == {"calls": calls}


def test_make_demo_ui_opens_the_demos_graph(host: Server, page: Page) -> None:
    assert page.context.browser is not None
    context = page.context.browser.new_context()
    opened = context.new_page()
    try:
        opened.goto(demo_page(host))
        opened.wait_for_function(
            "window.app?.graph?.nodes?.some(n => n.type === 'DPMSolverDemo_EmojiModel')",
            timeout=60_000,
        )
    finally:
        context.close()


def test_the_ordinary_graph(host: Server, sd15: str) -> None:
    reset_counts(host)
    graph = text_to_image(
        sd15, sampler_name="dpm_solver++_2m", scheduler="dpm_solver_log_snr", steps=10
    )
    outputs = host.run(graph)
    (image,) = outputs["9"]["images"]
    assert host.image(image).startswith(PNG)
    assert torch.isfinite(latent(host)).all()
    assert counts(host) == {"calls": 10}
