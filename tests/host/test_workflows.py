"""The workflow files, as the host's page converts them, and the ordinary graph, to a saved image."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dpm_solver_nodes.demo.host import Server
from dpm_solver_nodes.lab.calibrate import FIRST_TRIALS, POINTS
from dpm_solver_nodes.tests.host import frontend
from dpm_solver_nodes.tests.host.graphs import text_to_image
from dpm_solver_nodes.tests.host.probing import counts, latent, reset_counts

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "workflows").glob("*.json"))
DEMO_FILES = sorted((ROOT / "demo" / "workflows").glob("*.json"))
NOTES = {"Note", "MarkdownNote"}  # nodes of the page alone
PNG = b"\x89PNG"
# Model calls, and the nodes that hold the size of the picture.
RUNS = {
    "dpmpp_2m_custom_sampling": (20, "EmptyLatentImage"),
    "ksampler_menu": (20, "EmptyLatentImage"),
    "sde": (30, "EmptyLatentImage"),
    "inversion": (60, "ImageScale"),
    "solver_compare": (5 * (2 + 3) + 10, "EmptyLatentImage"),
    "plot_sigmas": (0, ""),
    "recommended": (12, "EmptyLatentImage"),
    # Of two images each: two teachers, four fits of two calls, and three solvers to measure.
    "calibrate": (2 * POINTS + FIRST_TRIALS * 2 + 3 * 2 + 2, "EmptyLatentImage"),
}
# What is made smaller for the test besides the picture, by the node it is set in.
SMALLER = {
    "solver_compare": ("DPMSolver_Compare", {"calls": "2, 3", "reference_calls": 10}),
    "calibrate": (
        "DPMSolver_Calibrate",
        {"calls": 2, "seeds": 2, "held_out": 2, "model_calls": 4 * POINTS + 16 + 12, "batch": 2},
    ),
}


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def example(host: Server) -> bytes:
    """A picture under the name of the host's own example, for LoadImage."""
    side = torch.linspace(0.0, 255.0, 64)
    pixels = torch.stack((side.expand(64, 64), side.expand(64, 64).T, side.flip(0).expand(64, 64)))
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).byte().numpy()).save(stream, "PNG")
    assert host.upload("example.png", stream.getvalue()) == "example.png"
    return stream.getvalue()


def test_the_files_are_there() -> None:
    assert RUNS.keys() == {path.stem for path in FILES}


@pytest.mark.parametrize("files", [FILES, DEMO_FILES], ids=["pack", "demo"])
def test_listed_as_templates(host: Server, files: list[Path]) -> None:
    known = host.object_info("DPMSolver_2M" if files is FILES else "DPMSolverDemo_Model")
    pack = next(iter(known.values()))["python_module"].partition(".")[2]
    listed = host.get("/workflow_templates")[pack]
    assert sorted(listed) == [path.stem for path in files]
    for path in files:
        assert host.get(f"/api/workflow_templates/{pack}/{path.name}") == read(path)


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


def converted(host: Server, path: Path) -> dict[str, Any]:
    if reason := frontend.missing():
        pytest.skip(reason)
    return frontend.to_api(host, read(path))


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_workflow_runs(host: Server, sd15: str, example: bytes, path: Path) -> None:
    """On a small image, with the tests' checkpoint and what SMALLER says, but otherwise as it is."""
    calls, sized = RUNS[path.stem]
    graph = converted(host, path)
    ((loader, checkpoint),) = of_type(graph, "CheckpointLoaderSimple")
    checkpoint["inputs"]["ckpt_name"] = sd15
    sizes = list(of_type(graph, sized))
    assert len(sizes) == bool(sized)
    for _, size in sizes:
        assert (size["inputs"]["width"], size["inputs"]["height"]) == (512, 512)
        size["inputs"] |= {"width": 64, "height": 64}
    if path.stem in SMALLER:
        kind, inputs = SMALLER[path.stem]
        ((_, smaller),) = of_type(graph, kind)
        smaller["inputs"] |= inputs
    ((save, _),) = of_type(graph, "SaveImage")
    reset_counts(host)
    outputs = host.run(with_count(graph, loader))
    (image,) = outputs[save]["images"]
    assert image["type"] == "output"
    assert host.image(image).startswith(PNG)
    assert counts(host).get("calls", 0) == calls


def test_inversion_comes_back_the_way_it_went(host: Server, example: bytes) -> None:
    """What the picture is found again by; how well it is, test_inversion.py says."""
    graph = converted(host, ROOT / "workflows" / "inversion.json")

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


def test_the_demos_workflow_runs(host: Server) -> None:
    (path,) = DEMO_FILES
    graph = converted(host, path)
    ((loader, _),) = of_type(graph, "DPMSolverDemo_Model")
    ((show, _),) = of_type(graph, "PreviewImage")
    reset_counts(host)
    outputs = host.run(with_count(graph, loader))
    assert len(outputs[show]["images"]) == 10
    assert host.image(outputs[show]["images"][9]).startswith(PNG)
    assert counts(host) == {"calls": 20}


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
