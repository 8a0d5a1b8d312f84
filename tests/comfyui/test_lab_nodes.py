"""The lab's nodes in a real host: what they call, measure, keep, refuse and show."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from dpm_solver_nodes.lab import compare, report
from dpm_solver_nodes.lab.calibration import files
from dpm_solver_nodes.samplers import checks
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.samplers.solvers.fitted import Calibration, Fitted
from dpm_solver_nodes.tests.support.digits import (
    Graph,
    Node,
    adaptive,
    listed,
    menu,
    multistep,
    node,
    sde,
    spaced,
)
from dpm_solver_nodes.tests.support.probing import counts, reset_counts
from dpm_solver_nodes.tools import browser
from dpm_solver_nodes.tools.on_digits import on_digits
from dpm_solver_nodes.tools.server import PromptError, Server, events

if TYPE_CHECKING:
    from playwright.sync_api import Page

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
ENDS = {"model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0]}
BATCH = {"width": 128, "height": 128, "batch_size": 2}


def compare_graph(
    candidates: str = "euler karras", *, counted: bool = True, **inputs: Any
) -> Graph:
    """Solver Compare on two digits (node "compare"), its texts shown and its pictures saved.

    A counted model is a new one in every prompt, so that nothing is kept of it.
    """
    settings: dict[str, Any] = {"noise_seed": 1, "calls": "4, 8", "reference_calls": 40, "cfg": 2.0}
    inputs = {"candidates": candidates, "latent_image": ["latent", 0], **settings, **ENDS, **inputs}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    loader = node("DPMSolverDemo_Model")
    return {
        "model0": loader,
        "model": node("DPMSolverTest_Count", model=["model0", 0], key="lab") if counted else loader,
        "positive": node("DPMSolverDemo_Digit", digit="3,8"),
        "negative": node("DPMSolverDemo_Digit", digit=""),
        "latent": node("EmptyLatentImage", **BATCH),
        "compare": node("DPMSolver_Compare", **inputs),
        "plot": node("SaveImage", images=["compare", 0], filename_prefix="plot"),
        "grid": node("SaveImage", images=["compare", 1], filename_prefix="grid"),
        "table": node("PreviewAny", source=["compare", 2]),
        "csv": node("PreviewAny", source=["compare", 3]),
    }


def candidate(sampler: str, label: str = "", scheduler: str = "karras", **inputs: Any) -> Node:
    fields = {"sampler": [sampler, 0], "label": label, "scheduler": scheduler}
    return node("DPMSolver_Candidate", **fields, **inputs)


def runs(outputs: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The lines of the CSV by candidate."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in csv.DictReader(io.StringIO(outputs["csv"]["text"][0])):
        found.setdefault(line["candidate"], []).append(line)
    return found


def picture(host: Server, outputs: dict[str, Any], name: str) -> np.ndarray:
    (image,) = outputs[name]["images"]
    return np.asarray(Image.open(io.BytesIO(host.image(image))))


# --- Solver Compare ------------------------------------------------------------------------------


def test_calls_are_counted_and_errors_fall(host: Server) -> None:
    names = [
        *("euler karras", "heun karras", "dpmpp_2m karras", "dpmpp_sde karras"),
        *("dpm_solver++_2m dpm_solver_log_snr", "dpm_solver++_2m_cfg_pp karras"),
        *("dpm_solver++_adaptive_12 karras", "uni_pc normal"),
    ]
    reset_counts(host)
    outputs = host.run(compare_graph("\n".join(names)))
    found = runs(outputs)
    assert list(found) == names
    made = {name: [int(line["calls"]) for line in lines] for name, lines in found.items()}
    assert made["heun karras"] == [3, 7]
    assert made["dpmpp_sde karras"] == [3, 7]
    assert len(made["dpm_solver++_adaptive_12 karras"]) == 1
    one_a_step = [names[0], names[2], names[4], names[5], names[7]]
    assert {tuple(made[name]) for name in one_a_step} == {(4, 8)}
    assert counts(host)["lab"] == 40 + sum(map(sum, made.values()))
    for name in (names[0], names[1], names[2], names[4]):
        few, many = (float(line["error"]) for line in found[name])
        assert 0.0 < many < few
    assert float(found[names[6]][0]["error"]) < 0.1
    table = outputs["table"]["text"][0]
    assert all(name in table for name in names)
    for name, width in (("plot", 1200), ("grid", 900)):
        image = picture(host, outputs, name)
        assert image.shape[1] >= width and image.shape[2] == 3
        assert image.std() > 10.0
        assert (image[1, 1] > 230).all()


def test_it_says_beforehand_what_it_will_cost(host: Server) -> None:
    graph = compare_graph("euler karras\nheun karras")
    reset_counts(host)
    seen = events(host, graph)
    sums = [data for kind, data in seen if kind == "progress" and data["node"] == "compare"]
    total = 4 + 8 + 3 + 7 + 40
    assert counts(host)["lab"] == total
    assert {data["max"] for data in sums} == {total}
    values = [data["value"] for data in sums]
    assert values == sorted(values) and values[-1] == total
    announced = f"Solver Compare: {total} model calls to make: 22 for 2 candidates"
    assert announced in host.log()
    texts = [data for kind, data in seen if kind == "binary"]
    assert any(announced.encode() in data for data in texts)


def test_candidates_of_nodes(host: Server) -> None:
    """A chain of two, one of them with a list of its own and so a single run."""
    graph = compare_graph("", more_candidates=["second", 0])
    graph |= {
        "sampler": multistep(order=3),
        "first": candidate("sampler", "third order"),
        "list": spaced(6),
        "second": candidate("sampler", sigmas=["list", 0], previous=["first", 0]),
    }
    found = runs(host.run(graph))
    assert list(found) == ["third order", "multistep dpmsolver++ order 3 own sigmas"]
    assert [[line["calls"] for line in lines] for lines in found.values()] == [["4", "8"], ["6"]]
    assert [line["calls_wanted"] for line in found["third order"]] == ["4", "8"]


def test_a_guider_gives_the_same(host: Server) -> None:
    by_model = runs(host.run(compare_graph()))
    graph = compare_graph(guider=["guider", 0], model=None, positive=None, negative=None)
    graph["guider"] = node("CFGGuider", **ENDS, cfg=2.0)
    by_guider = runs(host.run(graph))

    def errors(found: dict[str, list[dict[str, str]]]) -> list[float]:
        return [float(line["error"]) for lines in found.values() for line in lines]

    assert errors(by_model) == errors(by_guider)


def test_stochastic_samplers_get_the_seed(host: Server) -> None:
    text = "sde_dpm_solver++_2m karras\neuler_ancestral karras"
    graph = compare_graph(text, reference_sampler=["sampler", 0], reference_calls=30)
    graph["sampler"] = sde()
    first, again = (runs(host.run(graph)) for _ in range(2))
    errors = [[line["error"] for lines in one.values() for line in lines] for one in (first, again)]
    assert errors[0] == errors[1]
    ours = [float(line["error"]) for line in first["sde_dpm_solver++_2m karras"]]
    assert ours[1] < ours[0]  # towards its own converged image


@pytest.mark.parametrize("label", ["$\\frac$", "_x", "eu\ud800ler", "a\nb", "x" * 10_000])
def test_a_label_may_hold_anything(host: Server, label: str) -> None:
    graph = compare_graph("euler karras", more_candidates=["own", 0], calls="2", reference_calls=10)
    graph |= {"sampler": menu("heun"), "own": candidate("sampler", label)}
    outputs = host.run(graph)
    shown = checks.escaped(label, compare.LABEL_LENGTH)
    assert list(runs(outputs)) == ["euler karras", shown]
    assert picture(host, outputs, "plot").size


def test_a_failing_candidate_is_marked(host: Server) -> None:
    graph = compare_graph("euler karras", more_candidates=["broken", 0])
    graph |= {
        "sampler": sde(),
        "list": listed("1, 5, 0"),  # neither falls nor rises
        "broken": candidate("sampler", "broken", sigmas=["list", 0]),
    }
    outputs = host.run(graph)
    found = runs(outputs)
    (line,) = found["broken"]
    assert "change direction" in line["note"] and line["error"] == ""
    assert all(float(line["error"]) > 0.0 for line in found["euler karras"])
    assert "failed" in outputs["table"]["text"][0]
    assert picture(host, outputs, "grid").size


def test_the_reference_is_kept(host: Server) -> None:
    """Between prompts on the same model, and only while all that it depends on is the same."""

    def kept(**inputs: Any) -> bool:
        table = host.run(compare_graph(counted=False, **{"calls": "2", **inputs}))["table"]["text"]
        return "kept from an earlier run" in table[0]

    own = {"reference_calls": 31}
    assert not kept(**own)
    assert kept(**own, calls="3")
    assert kept(**own, candidates="heun karras")
    assert not kept(**own, noise_seed=2)
    assert not kept(**own, cfg=3.0)
    assert not kept(reference_calls=32)
    assert kept(**own, calls="4")


def test_interrupting_ends_it(host: Server) -> None:
    """In the reference, and in a candidate's run."""
    for call in (3, 45):
        graph = compare_graph("euler karras\ndpmpp_2m karras", model=["ended", 0])
        graph["ended"] = node("DPMSolverTest_Interrupt", model=["model", 0], call=call)
        reset_counts(host)
        assert events(host, graph)[-1][0] == "execution_interrupted"
        assert call <= counts(host)["lab"] <= call + 1


def test_a_broken_model_is_one_sentence(host: Server) -> None:
    graph = compare_graph(model=["broken", 0])
    graph["broken"] = node("DPMSolverTest_NaN", model=["model0", 0], call=0)
    with pytest.raises(PromptError, match=r"The reference .* could not be made") as caught:
        host.run(graph)
    assert "\n" not in caught.value.message


# --- what it saves to be shared ------------------------------------------------------------------


def test_it_saves_a_picture_with_its_settings_and_a_table(host: Server) -> None:
    """Twice, under two numbers; with no folder of this machine in either file, and no prompt."""
    inputs: dict[str, Any] = {
        "filename_prefix": "which/a $model$",
        "model": ["flow", 0],
        "noise_seed": 5,
    }
    graph = compare_graph("euler simple\nheun simple", more_candidates=["broken", 0], **inputs)
    graph |= {
        "flow": node("ModelSamplingSD3", model=["model", 0], shift=3.5),
        "sampler": sde(),
        "list": listed("1, 0.5, 0.7, 0"),
        "broken": candidate("sampler", "a | b", sigmas=["list", 0]),
    }
    outputs = host.run(graph)
    (shown,) = outputs["compare"]["images"]
    assert shown == {"filename": "a $model$_00001_.png", "subfolder": "which", "type": "output"}
    picture = host.work / "output" / "which" / shown["filename"]
    found = report.read(picture)
    setup = found["setup"]
    expected: dict[str, Any] = {
        "name": "a $model$",
        "prediction": "flow",
        "shift": 3.5,
        "cfg": 2.0,
        "seed": 5,
    }
    expected |= {"image": "", "latent": "2x1x16x16", "pack": report.pack_version(), "patched": 0}
    assert {key: setup[key] for key in expected} == expected
    assert setup["sigma_max"] == 1.0 and 0.0 < setup["sigma_min"] < 0.01
    assert found["calls"] == [4, 8] and found["reference"]["calls"] == 40
    errors = [run["error"] for run in found["runs"]]
    lines = [line for lines in runs(outputs).values() for line in lines]
    assert errors == [float(line["error"]) if line["error"] else None for line in lines]
    assert errors[-1] is None and min(errors[:-1]) > 0.0
    content = picture.read_bytes() + picture.with_suffix(".csv").read_bytes()
    assert str(host.work).encode() not in content and b"3,8" not in content
    table = outputs["table"]["text"][0]
    assert "Saved as which/a $model$_00001_.png and .csv" in table
    assert report.markdown_row(found) in table and "a \\| b failed" in table
    again = dict(graph, positive=node("DPMSolverDemo_Digit", digit="1"))
    (second,) = host.run(again)["compare"]["images"]
    assert second["filename"] == "a $model$_00002_.png"


def test_the_saved_picture_has_the_images_of_a_vae(host: Server, sd15: str) -> None:
    """And the settings then say how large they are."""
    graph = compare_graph("euler karras", calls="2", reference_calls=10, filename_prefix="with")
    graph["loader"] = node("CheckpointLoaderSimple", ckpt_name=sd15)
    for name in ("positive", "negative"):
        graph[name] = node("CLIPTextEncode", clip=["loader", 1], text="a")
    graph["latent"] = node("EmptyLatentImage", width=64, height=128, batch_size=1)
    graph["compare"]["inputs"]["model"] = ["loader", 0]
    graph["compare"]["inputs"] |= {"vae": ["loader", 2]}
    (shown,) = host.run(graph)["compare"]["images"]
    assert Image.open(io.BytesIO(host.image(shown))).width > 1400  # the plot's is 1200
    setup = report.read(host.work / "output" / shown["filename"])["setup"]
    assert (setup["image"], setup["prediction"]) == ("64x128", "noise")
    assert setup["shift"] is None and setup["model"] == "BaseModel"


def test_a_vae_that_fails_ends_no_comparison(host: Server, sd15: str) -> None:
    """As one for another model's latents does."""
    graph = compare_graph("euler karras", calls="2", reference_calls=10)
    graph["loader"] = node("CheckpointLoaderSimple", ckpt_name=sd15)
    graph["compare"]["inputs"] |= {"vae": ["loader", 2]}
    (line,) = runs(host.run(graph))["euler karras"]
    assert float(line["error"]) > 0.0
    assert "Solver Compare: the VAE could not decode: " in host.log()


def test_nothing_is_saved_without_a_name(host: Server) -> None:
    """As in older workflow files, which don't have the input."""
    outputs = host.run(compare_graph(calls="2", reference_calls=10))
    assert "compare" not in outputs
    assert "Saved" not in outputs["table"]["text"][0]


def test_calibrated_stands_for_the_files_that_fit(host: Server) -> None:
    folder = host.work / "models" / "dpm_solver"
    steps = (Weights(0.5, (0.5,)), Weights(0.0, (1.0, 0.0)))
    sigma_max = 14.614643
    fits = Calibration("diffusion", (sigma_max, 1.0, 0.0), steps, Fitted(guidance=7.0))
    nearer = Calibration("diffusion", (sigma_max, 2.0, 0.0), steps, Fitted(guidance=2.0))
    one_call = Calibration("diffusion", (sigma_max, 0.0), (Weights(0.0, (1.0,)),))
    flow = Calibration("flow", (1.0, 0.5, 0.0), steps)
    contents = {"fits": [fits], "fits twice": [fits, nearer, one_call], "misfit": [flow]}
    paths = [folder / f"{name}.safetensors" for name in contents]
    try:
        for path, content in zip(paths, contents.values(), strict=True):
            files.save(content, path)
        graph = compare_graph("euler karras\ncalibrated # those of this model", reference_calls=10)
        found = runs(host.run(graph))
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    names = ["calibrated fits", "calibrated fits twice 1", "calibrated fits twice 2"]
    assert sorted(name for name in found if "fit" in name) == names
    lines = [line for name in names for line in found[name]]
    assert [line["calls"] for line in lines] == ["2", "1", "2"]
    assert lines[0]["error"] != lines[2]["error"]  # of another CFG


BAD: list[tuple[dict[str, Any], str]] = [
    ({"candidates": "eu\ud800ler karras"}, r'candidates is "eu\\ud800ler"'),
    ({"candidates": "euler kar\udcffras"}, r'candidates is "kar\\udcffras"'),
    ({"candidates": "\ud800"}, r'candidates is "\\ud800"'),
    ({"calls": "5, \ud800"}, r'calls holds "\\ud800"'),
    (
        {"calls": ", ".join(map(str, range(1, 300)))},
        "are 299 runs, and the most at this size is 120",
    ),
    ({"candidates": "euler"}, 'line 1 of candidates is "euler": write a sampler and a scheduler'),
    ({"candidates": "\nulear karras"}, 'sampler in line 2 of candidates is "ulear".*"euler"'),
    ({"candidates": "euler karas"}, 'scheduler in line 1 of candidates is "karas".*"karras"'),
    ({"candidates": "# none"}, "Solver Compare has no candidates"),
    ({"calls": "5, many"}, 'calls holds "many"'),
    ({"calls": ""}, "calls is empty"),
    ({"negative": None}, r"only model and positive there.*connect a guider"),
    ({"model": None, "positive": None, "negative": None}, "nothing to sample with: connect"),
    ({"guider": ["guider", 0]}, "both a guider and model and positive and negative"),
    ({"reference_sigmas": ["none", 0]}, "reference_sigmas holds 0 sigmas"),
    *(
        ({"filename_prefix": prefix}, "filename_prefix is .* nothing can be saved there")
        for prefix in ("../up", "/tmp/up", "a/..", "C:\\up", "a|b", "a\nb", "\ud800")
    ),
    ({"candidates": "calibrated mine"}, 'sampler in line 1 of candidates is "calibrated"'),
]


@pytest.mark.parametrize(("inputs", "words"), BAD)
def test_bad_input_is_one_sentence(host: Server, inputs: dict[str, Any], words: str) -> None:
    graph = compare_graph(**inputs)
    graph["guider"] = node("CFGGuider", **ENDS, cfg=2.0)
    graph["none"] = spaced(denoise=0.0)
    reset_counts(host)
    with pytest.raises(PromptError, match=words) as caught:
        host.run(graph)
    assert "\n" not in caught.value.message and len(caught.value.message) < 300
    assert counts(host) == {}


# --- Plot Sigmas ---------------------------------------------------------------------------------


def plot_graph(sampler: Node | None = None, sigmas: Node | None = None) -> Graph:
    inputs: dict[str, Any] = {"sigmas": ["list", 0], "model": ["model", 0]}
    graph = {
        "model": node("DPMSolverDemo_Model"),
        "list": sigmas or spaced(8),
        "show": node("DPMSolver_PlotSigmas", **inputs),
        "plot": node("SaveImage", images=["show", 0], filename_prefix="sigmas"),
        "table": node("PreviewAny", source=["show", 1]),
    }
    if sampler is not None:
        graph["sampler"] = sampler
        graph["show"]["inputs"]["sampler"] = ["sampler", 0]
    return graph


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (None, "half log-SNR"),
        (multistep(), "sigma_next order"),
        (sde(), "sigma_next order"),
        (menu("dpm_solver++_3s"), "sigma_next order"),
        (menu("dpm_solver++_2m_cfg_pp"), "sigma_next order"),
        (adaptive(), "chooses its steps"),
        (menu("dpmpp_2m"), "dpmpp_2m is no sampler of this pack"),
    ],
    ids=["none", "2M", "SDE", "menu", "CFG++", "adaptive", "host's"],
)
def test_plot_sigmas(host: Server, sampler: Node | None, words: str) -> None:
    outputs = host.run(plot_graph(sampler))
    (text,) = outputs["table"]["text"]
    assert words in text
    assert len([line for line in text.split("\n\n")[0].splitlines() if line]) == 10
    image = picture(host, outputs, "plot")
    assert image.shape[1] == 1200 and image.std() > 10.0


def test_plot_sigmas_of_nothing(host: Server) -> None:
    with pytest.raises(PromptError, match="sigmas holds 0 sigmas, which is no step"):
        host.run(plot_graph(sigmas=spaced(denoise=0.0)))


# --- the workflows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "calls", "announced", "pictures"),
    [
        ("solver_compare", "5, 8, 10, 15, 20, 25", 698, 2),
        ("which_sampler_flow", "8, 12, 25", 325, 3),
        ("which_sampler_sdxl", "12, 20, 25", 385, 3),
    ],
)
def test_the_workflows_run_on_the_demo_model(
    host: Server, page: Page, name: str, calls: str, announced: int, pictures: int
) -> None:
    """As they are but for the model; and their notes say what they cost."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    graph = browser.to_api(page, on_digits(workflow, "3, 3"))
    (compare,) = (one["inputs"] for one in graph.values() if "reference_calls" in one["inputs"])
    assert compare["calls"] == calls
    own = len([node for node in workflow["nodes"] if node["type"] == "DPMSolver_Candidate"])
    chosen = [line for line in compare["candidates"].splitlines() if line != "calibrated"]
    each = sum(map(int, calls.split(",")))
    assert (len(chosen) + own) * each + compare["reference_calls"] == announced
    assert f"{announced} model calls**" in json.dumps(workflow)
    compare["calls"] = "3, 5"
    outputs = host.run(graph)
    assert len([image for out in outputs.values() for image in out.get("images", ())]) == pictures
