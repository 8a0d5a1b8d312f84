"""Calibration in a real host: made, saved, loaded, used on other noises, and refused."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dpm_solver_nodes.lab import metrics
from dpm_solver_nodes.lab.calibration import cost, files, teacher, texts
from dpm_solver_nodes.samplers.solvers.fitted import Calibration
from dpm_solver_nodes.tests.comfyui.test_languages import ALONE
from dpm_solver_nodes.tests.support.digits import (
    MODEL,
    Graph,
    Patches,
    Sampled,
    complaint,
    custom,
    custom_advanced,
    listed,
    loaded,
    menu,
    multistep,
    node,
    sample,
    scheduled,
    spaced,
)
from dpm_solver_nodes.tests.support.probing import counts, reset_counts
from dpm_solver_nodes.tools import browser
from dpm_solver_nodes.tools.server import PromptError, Server, events

SD3 = node("ModelSamplingSD3", shift=3.0)
EDM = node("ModelSamplingContinuousEDM", sampling="edm", sigma_max=80.0, sigma_min=0.002)
ZSNR = node("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True)
CALLS = 5
DEMO_MODEL = Path(__file__).resolve().parents[2] / "demo" / "digits.safetensors"
IMAGES = node("EmptyLatentImage", width=128, height=128, batch_size=8)
"""To measure on; more than one tells little by chance."""


def calibrate_graph(patches: Patches = (), guider: bool = False, **inputs: Any) -> Graph:
    """DPM-Solver Calibrate (node "calibrate") for a digit, its report shown.

    Seeds, and those held out, are whole batches, so that every prediction is of as many images.
    """
    settings: dict[str, Any] = {"calls": CALLS, "cfg": 2.0, "seeds": 6, "held_out": 4}
    settings |= {"model_calls": 1400, "batch": 2, "noise_seed": 100, "name": ""}
    ends = {"model": MODEL, "positive": ["positive", 0], "negative": ["negative", 0]}
    given: dict[str, Any] = {"guider": ["guider", 0]} if guider else ends
    graph = custom(menu("euler"), scheduled("karras", 1), patches=patches, cfg=inputs.get("cfg", 2))
    for name in ("sample", "sampler", "sigmas"):
        del graph[name]
    graph["model"]["inputs"]["key"] = "calibrate"
    if guider:
        graph["guider"] = node("CFGGuider", **ends, cfg=2.0)
    inputs = {**settings, **given, "latent_image": ["latent", 0], **inputs}
    return graph | {
        "calibrate": node("DPMSolver_Calibrate", **inputs),
        "report": node("PreviewAny", source=["calibrate", 2]),
    }


def calibrated(name: str, denoise: float = 1.0, **options: Any) -> Graph:
    """SamplerCustom with both outputs of DPM-Solver Calibrated."""
    loader = node("DPMSolver_Calibrated", calibration=name, model=MODEL, denoise=denoise)
    graph = custom(loader, spaced(1), **options)
    graph["sample"]["inputs"]["sigmas"] = ["sampler", 1]
    return graph


def report(host: Server, name: str, denoise: float = 1.0) -> str:
    """The text of DPM-Solver Calibrated."""
    graph = {
        "load": node("DPMSolver_Calibrated", calibration=name, model=["model", 0], denoise=denoise),
        "model": node("DPMSolverDemo_Model"),
        "report": node("PreviewAny", source=["load", 2]),
    }
    return str(host.run(graph)["report"]["text"][0])


def refused(host: Server, graph: Graph) -> str:
    """The sentence that a graph of `calibrate_graph` ends with, after no model call."""
    reset_counts(host)
    with pytest.raises(PromptError) as caught:
        host.run(graph)
    assert counts(host) == {}
    assert "\n" not in caught.value.message and len(caught.value.message) < 300
    return str(caught.value.message)


def folder(host: Server) -> Path:
    return host.work / "models" / "dpm_solver"


def saved(host: Server) -> set[str]:
    there = (path for path in folder(host).rglob("*") if not path.is_dir())
    return {path.relative_to(folder(host)).as_posix() for path in there}


def distance(a: Sampled, b: Sampled) -> float:
    """As the calibration measures it: a geometric mean over images."""
    return metrics.distance(a.latent, b.latent)


def converged(host: Server, **options: Any) -> Sampled:
    fine = multistep(order=3, solver_type="exact", corrector="unic")
    return sample(host, custom(fine, spaced(100), **options))


@dataclass(frozen=True)
class Made:
    name: str
    events: list[tuple[str, Any]]
    calls: int
    log: str
    found: Calibration


def make(host: Server, name: str, **settings: Any) -> Made:
    reset_counts(host)
    seen = events(host, calibrate_graph(name=name, **settings))
    (found,) = files.load(folder(host) / f"{name}.safetensors")
    return Made(f"{name}.safetensors", seen, counts(host)["calibrate"], host.log(), found)


@pytest.fixture(scope="module")
def diffusion(host: Server) -> Made:
    return make(host, "digits 5.2")


@pytest.fixture(scope="module")
def flow(host: Server) -> Made:
    """From a guider."""
    return make(host, "flow", patches=[SD3], guider=True)


# --- making --------------------------------------------------------------------------------------


def test_it_says_beforehand_what_it_will_cost_and_keeps_to_it(diffusion: Made) -> None:
    said = r"Calibrate: at most (\d+) single-image model calls: [^\n]*"
    announced = list(re.finditer(said, diffusion.log))[-1]
    total = int(announced[1])
    assert 2 * diffusion.calls <= total <= 1400
    assert diffusion.found.fitted.model_calls == 2 * diffusion.calls
    texts = [data.decode() for kind, data in diffusion.events if kind == "binary"]
    assert any(announced[0] in text for text in texts)
    assert any("left: solving finely" in text for text in texts)
    bars = [data for kind, data in diffusion.events if kind == "progress"]
    values = [data["value"] for data in bars]
    assert values == sorted(values)
    assert bars[0]["max"] == total
    assert bars[-1]["value"] == bars[-1]["max"] <= total


def test_the_report(diffusion: Made) -> None:
    (text,) = (
        data["output"]["text"][0]
        for kind, data in diffusion.events
        if kind == "executed" and data["node"] == "report"
    )
    first, *lines = text.splitlines()
    assert first.startswith(f"Saved as {diffusion.name} in ")
    assert (
        f"{CALLS} model calls, for BaseModel, CFG 2, latents of 1x16x16; fitted on 6 seeds"
        in lines[0]
    )
    names = ["calibrated", "DPM++ (recommended)", "DPM++ 2M Karras"]
    assert [line.split("  ")[-1] for line in lines[2:]] == names
    errors = list(diffusion.found.fitted.errors.values())
    assert errors[0] < min(errors[1:])


def test_the_file_is_in_the_menu(host: Server, diffusion: Made, flow: Made) -> None:
    """Anew in each answer, but for a link that leads nowhere."""

    def menu_of() -> list[str]:
        info = host.object_info("DPMSolver_Calibrated")["DPMSolver_Calibrated"]
        kind, *details = info["input"]["required"]["calibration"]
        return list(details[0]["options"] if kind == "COMBO" else kind)

    assert {diffusion.name, flow.name} <= set(menu_of())
    other = folder(host) / "copied.safetensors"
    shutil.copy(folder(host) / diffusion.name, other)
    assert other.name in menu_of()
    other.unlink()
    assert other.name not in menu_of()
    other.symlink_to(folder(host) / "nowhere")
    assert other.name not in menu_of()
    message, calls = complaint(host, calibrated(other.name))
    assert message.startswith(f'There is no calibration "{other.name}" in ') and calls == 0
    other.unlink()


def test_the_page_shows_what_a_file_is_for(host: Server, diffusion: Made, flow: Made) -> None:
    """In the tooltip of the menu, for the value that is set."""
    about = "/dpm_solver/calibration?name="
    assert "5 model calls, for BaseModel, shift 3, CFG 2" in host.get(f"{about}{flow.name}")
    assert host.get(f"{about}..%2Fx") == ""
    if reason := browser.missing():
        pytest.skip(reason)
    menu_of = "window.app.graph._nodes.at(-1).widgets.find((one) => one.name === 'calibration')"
    with browser.opened(host) as page:
        page.evaluate(ALONE, "DPMSolver_Calibrated")
        for made in (flow, diffusion):
            page.evaluate(
                f"(name) => {{ const menu = {menu_of}; menu.value = name; menu.callback(name) }}",
                made.name,
            )
            text = texts.described(made.found)
            page.wait_for_function(f"(text) => {menu_of}.tooltip === text", arg=text)


def test_a_file_name_that_is_no_utf_8(host: Server, diffusion: Made) -> None:
    path = folder(host) / os.fsdecode(b"caf\xe9.safetensors")
    shutil.copy(folder(host) / diffusion.name, path)
    assert sample(host, calibrated(path.name)).calls == CALLS
    path.write_bytes(b"damaged")
    message, calls = complaint(host, calibrated(path.name))
    assert message.startswith(r"caf\udce9.safetensors is no calibration") and calls == 0
    path.unlink()
    message, calls = complaint(host, calibrated(path.name))
    assert message.startswith(r'There is no calibration "caf\udce9.safetensors" in ')


def test_an_older_file_is_never_overwritten(host: Server) -> None:
    inputs: dict[str, Any] = {**QUICK, "name": "twice", "model_calls": TEACHER + FITS + 18}
    texts = [
        host.run(calibrate_graph(noise_seed=seed, **inputs))["report"]["text"][0] for seed in (1, 2)
    ]
    assert texts[0].startswith("Saved as twice.safetensors")
    assert texts[1].startswith("Saved as twice_2.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/tmp/x",
        "a//b",
        "a\\b",
        ".hidden",
        "x\0y",
        "a:b",
        "a\nb",
        "x" * 101,
        "..",
        "é" * 60,
        "eu\ud800ler",
        "caf\udce9",
    ],
)
def test_names_that_lead_elsewhere(host: Server, name: str) -> None:
    before = saved(host)
    assert "name is" in refused(host, calibrate_graph(name=name))
    assert saved(host) == before


def test_a_budget_that_is_too_small(host: Server) -> None:
    message = refused(host, calibrate_graph(model_calls=500))
    assert "too small" in message and "allow" in message


def test_a_model_that_returns_nan(host: Server) -> None:
    before = saved(host)
    reset_counts(host)
    with pytest.raises(PromptError, match="returned NaN or infinity at sigma") as caught:
        host.run(calibrate_graph([node("DPMSolverTest_NaN", call=20)]))
    assert "\n" not in caught.value.message
    assert counts(host)["calibrate"] == 21
    assert saved(host) == before


# Seeds and those held out are one batch each, of 2 images: one prediction for each sigma.
QUICK: dict[str, Any] = {"seeds": 2, "held_out": 2, "calls": 3}
TEACHER = 2 * 2 * (teacher.POINTS + teacher.HALF)
FITS = cost.FIRST_TRIALS * 2 * 3


@pytest.mark.parametrize(
    ("when", "images"),
    [("solving finely", 20), ("choosing", TEACHER + 8), ("measuring", TEACHER + FITS + 2)],
)
def test_an_interrupt_keeps_the_best_so_far(host: Server, when: str, images: int) -> None:
    before = saved(host)
    ended = node("DPMSolverTest_Interrupt", call=images // 2)
    inputs: dict[str, Any] = {
        **QUICK,
        "name": f"stopped {when}",
        "model_calls": TEACHER + FITS + 18,
    }
    assert events(host, calibrate_graph([ended], **inputs))[-1][0] == "execution_interrupted"
    new = saved(host) - before
    if when == "solving finely":
        assert new == set()
        return
    assert new == {f"stopped {when}_unmeasured.safetensors"}
    (name,) = new
    (only,) = files.load(folder(host) / name)
    fitted = only.fitted
    assert fitted.errors == {} and fitted.stopped
    result = sample(host, calibrated(name))
    assert result.calls == 3 and result.latent.isfinite().all()
    assert "Not measured, as its calibration was stopped" in report(host, name)
    assert "was stopped: the best calibration so far was not measured. Saved as" in host.log()


def test_what_brings_nothing_is_not_kept(host: Server) -> None:
    """A model that breaks when the calibrated solver is measured: what comes out is recommended."""
    before = saved(host)
    first = (TEACHER + FITS) // 2
    broken = [node("DPMSolverTest_NaN", call=first, until=first + 1)]
    graph = calibrate_graph(broken, **QUICK, model_calls=TEACHER + FITS + 18)
    text = host.run(graph)["report"]["text"][0]
    assert re.match(
        r"Calibration found nothing better here for 3 calls: DPM\+\+ .* is closer ", text
    )
    assert "No file was written" in text and "inf  calibrated" in text
    assert saved(host) == before
    together = custom(menu("euler"), spaced(1)) | graph
    together["sample"]["inputs"] |= {"sampler": ["calibrate", 0], "sigmas": ["calibrate", 1]}
    together["sample"]["inputs"]["model"] = ["model0", 0]
    del together["report"]
    recommended = custom(
        menu("dpm_solver++_recommended"), scheduled("dpm_solver_recommended", QUICK["calls"])
    )
    assert distance(sample(host, together), sample(host, recommended)) < 1e-6


def test_sigmas_for_a_sampler_of_the_host(host: Server, diffusion: Made) -> None:
    """In a file with those for another number of calls; both are loaded with the sampler."""
    own: dict[str, Any] = {"sampler": "euler", "more_calls": "8", "model_calls": 3000}
    made = make_all(host, "lists/euler", **own)
    assert [found.calls for found in made] == [CALLS, 8]
    for found in made:
        fitted = found.fitted
        assert (found.steps, fitted.sampler, fitted.shape) == ((), "euler", (1, 16, 16))
        best, *others = fitted.errors
        assert best == "calibrated" and {"euler karras", "euler simple"} <= set(others)
        options: dict[str, Any] = {"latent": IMAGES}
        exact = converged(host, **options)
        graph = calibrated("lists/euler.safetensors", **options)
        graph["sampler"]["inputs"]["calls"] = found.calls
        ours = sample(host, graph)
        same = sample(host, custom(menu("euler"), listed(str(found.sigmas)[1:-1]), **options))
        theirs = sample(host, custom(menu("euler"), scheduled("simple", found.calls), **options))
        assert ours.calls == found.calls and distance(ours, same) < 1e-4
        assert distance(ours, exact) < distance(theirs, exact)


def make_all(host: Server, name: str, **settings: Any) -> tuple[Calibration, ...]:
    host.run(calibrate_graph(name=name, **settings))
    return files.load(folder(host) / f"{name}.safetensors")


def test_several_prompts(host: Server) -> None:
    graph = calibrate_graph(name="prompts", **{**QUICK, "seeds": 4}, model_calls=1000)
    graph["other"] = node("DPMSolverDemo_Digit", digit="8")
    pair = {"first": ["positive", 0], "second": ["other", 0]}
    graph["both"] = node("DPMSolverTest_List", **pair)
    graph["calibrate"]["inputs"]["positive"] = ["both", 0]
    reset_counts(host)
    host.run(graph)
    (found,) = files.load(folder(host) / "prompts.safetensors")
    assert found.fitted.prompts == 2 and found.fitted.seeds == 4
    # Each prompt has half of the images, and so calls of one or two of them.
    assert counts(host)["calibrate"] >= found.fitted.model_calls // 2


def test_guiders_of_other_models_or_guidance_are_refused(host: Server) -> None:
    before = saved(host)
    graph = calibrate_graph(guider=True, name="guiders")
    own = graph["guider"]["inputs"]
    graph["both"] = node("DPMSolverTest_List", first=["guider", 0], second=["other", 0])
    graph["calibrate"]["inputs"]["guider"] = ["both", 0]
    graph["patched"] = node("ModelSamplingDiscrete", model=own["model"], sampling="eps", zsnr=True)
    for other in ({"cfg": 3.0}, {"model": ["patched", 0]}):
        graph["other"] = node("CFGGuider", **{**own, **other})
        assert "guiders of different models, LoRAs or CFGs" in refused(host, graph)
    assert saved(host) == before


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({"sampler": "heun"}, "not call the model once"),
        ({"sampler": "euler_ancestral"}, "adds noise"),
        ({"more_calls": "5; 8"}, "more_calls is"),
        ({"more_calls": "500"}, "calls must be from 1 to 100"),
    ],
)
def test_what_no_list_can_be_found_for(host: Server, inputs: dict[str, Any], word: str) -> None:
    assert word in refused(host, calibrate_graph(**inputs))


# --- using ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"digit": "0,1,2,4,5,6,7,8"},
        {"cfg": 1.4, "digit": "8"},
        {"cfg": 2.6, "digit": "5"},
    ],
    ids=["seeds", "digits", "cfg lower", "cfg higher"],
)
def test_it_is_closer_beyond_what_it_was_fitted_on(
    host: Server, diffusion: Made, options: dict[str, Any]
) -> None:
    options = {"latent": IMAGES, **options}
    exact = converged(host, **options)
    ours = sample(host, calibrated(diffusion.name, **options))
    assert ours.calls == CALLS
    other = sample(host, custom(menu("dpmpp_2m"), scheduled("karras", CALLS), **options))
    assert distance(ours, exact) < 0.8 * distance(other, exact)


def test_a_flow_is_closer_too(host: Server, flow: Made) -> None:
    options: dict[str, Any] = {"latent": IMAGES, "patches": [SD3]}
    assert flow.found.kind == "flow" and flow.found.sigmas[0] == 1.0
    exact = converged(host, **options)
    ours = sample(host, calibrated(flow.name, **options))
    other = sample(host, custom(menu("dpmpp_2m"), scheduled("beta", CALLS), **options))
    assert ours.calls == CALLS
    assert distance(ours, exact) < distance(other, exact)


def test_image_to_image_runs_the_recommended_sampler(host: Server, diffusion: Made) -> None:
    """With as many calls as the calibration has from there on."""
    start = sample(host, custom(menu("dpmpp_2m"), spaced(20), latent=IMAGES))
    latent = loaded(host, start.latent)
    made = {}
    for denoise in (0.0, 0.3, 0.6, 1.0):
        graph = calibrated(diffusion.name, denoise, latent=latent)
        result = sample(host, graph)
        assert result.latent.isfinite().all()
        made[denoise] = result
        if 0.0 < denoise < 1.0:
            inputs = {"steps": result.calls, "denoise": denoise, "use_calibrations": False}
            graph["sampler"] = node("DPMSolver_Recommended", model=MODEL, **inputs)
            assert torch.equal(result.latent, sample(host, graph).latent)
            said = (
                f"these are DPM++ (recommended) and its sigmas for this start, with {result.calls} "
            )
            assert said in report(host, diffusion.name, denoise)
    calls = {denoise: result.calls for denoise, result in made.items()}
    assert calls[0.0] == 0 < calls[0.3] < calls[0.6] < calls[1.0] == CALLS


def test_other_sigmas_are_refused(host: Server, diffusion: Made) -> None:
    loader = node("DPMSolver_Calibrated", calibration=diffusion.name, model=MODEL, denoise=1.0)
    for sigmas in (scheduled("karras", CALLS), spaced(20), listed("5, 1, 0")):
        message, calls = complaint(host, custom(loader, sigmas))
        assert message.startswith("sigmas are not those of this calibration")
        assert calls == 0


def test_the_other_kind_of_model_is_refused(host: Server, diffusion: Made, flow: Made) -> None:
    for name, patches, word in (
        (diffusion.name, [SD3], "noise- or v-prediction"),
        (flow.name, [], "flow"),
        (diffusion.name, [EDM], "starts at sigma 14.61, and the loaded model at 80"),
        (diffusion.name, [ZSNR], "starts at sigma 14.61, and the loaded model at"),
    ):
        message, calls = complaint(host, calibrated(name, patches=patches))
        assert word in message and message.endswith(".")
        assert calls == 0
        _, _, fitting = message.partition("Those that fit it: ")
        assert name not in fitting and (patches or diffusion.name in fitting)


@pytest.mark.parametrize(
    "name",
    [
        "gone.safetensors",
        "../checkpoints/x.safetensors",
        "/etc/passwd",
        "",
        "(none yet: run DPM-Solver Calibrate)",
    ],
)
def test_a_name_that_is_not_there(host: Server, diffusion: Made, name: str) -> None:
    message, calls = complaint(host, calibrated(name))
    which = "yet" if name.startswith("(none yet") else f'"{name}"'
    assert message.startswith(f"There is no calibration {which} in ")
    assert "run DPM-Solver Calibrate, or copy" in message
    assert calls == 0


def test_damaged_files_are_refused(host: Server, diffusion: Made) -> None:
    path = folder(host) / "damaged.safetensors"
    good = (folder(host) / diffusion.name).read_bytes()
    tensors, fitted = safetensors.torch.load(good), diffusion.found.fitted
    metadata = {"format": files.FORMAT, "version": "1", "kind": "diffusion", "fitted": "{}"}

    def with_weight(value: float) -> bytes:
        weights = tensors["weights"].clone()
        weights[1, 0] = value
        return safetensors.torch.save({**tensors, "weights": weights}, metadata)

    other = folder(host) / "other.safetensors"
    files.save([replace(diffusion.found, fitted=replace(fitted, model="SDXL"))], other)
    for content, word in (
        (good[:-9], "damaged.safetensors is no calibration"),
        (b"\x80\x04." + good, "damaged.safetensors is no calibration"),
        (DEMO_MODEL.read_bytes(), "damaged.safetensors is no calibration"),
        (good + bytes(files.MOST_BYTES), "too large"),
        (with_weight(torch.nan), "not finite"),
        (safetensors.torch.save(tensors, {**metadata, "version": "3"}), "update the pack"),
        (safetensors.torch.save(tensors, {**metadata, "fitted": "[]"}), "description"),
        (other.read_bytes(), "SDXL"),
    ):
        path.write_bytes(content)
        message, calls = complaint(host, calibrated(path.name))
        assert word in message and calls == 0
    # The host keeps what nodes gave: it must look again where the file is another one.
    path.write_bytes(good)
    assert sample(host, calibrated(path.name)).calls == CALLS
    other.unlink()
    path.unlink()


# --- the recommended solver ----------------------------------------------------------------------


def test_recommended_takes_the_calibration_of_this_very_model(
    host: Server, diffusion: Made
) -> None:
    """From the menu and from its node, for its number of calls and CFG; nothing else takes it."""
    ours = sample(host, calibrated(diffusion.name))
    own_list = scheduled("dpm_solver_recommended", CALLS)

    def taken(graph: Graph) -> bool:
        return torch.equal(sample(host, graph).latent, ours.latent)

    def of_node(**inputs: Any) -> Graph:
        pair = node("DPMSolver_Recommended", model=MODEL, steps=CALLS, denoise=1.0, **inputs)
        graph = custom(pair, spaced(1))
        graph["sample"]["inputs"]["sigmas"] = ["sampler", 1]
        return graph

    assert taken(custom(menu("dpm_solver++_recommended"), own_list))
    assert taken(of_node()) and taken(of_node(use_calibrations=True))
    said = f"takes the calibration {diffusion.name}, which was made on this model for {CALLS} calls"
    assert said in host.log()
    assert not taken(of_node(use_calibrations=False))
    before = host.log().count(said)
    recommended = menu("dpm_solver++_recommended")
    for sigmas, options in (
        (own_list, {"cfg": 2.7}),
        (scheduled("karras", CALLS), {}),
        (scheduled("dpm_solver_recommended", CALLS, 0.5), {}),
        (scheduled("dpm_solver_recommended", CALLS + 1), {}),
        (own_list, {"patches": [SD3]}),
    ):
        sample(host, custom(recommended, sigmas, **options))
    graph = custom(recommended, own_list)  # on a model whose weights are patched
    one = ["model0", 0]
    graph["merged"] = node("ModelMergeSimple", model1=one, model2=one, ratio=0.5)
    graph["model"]["inputs"]["model"] = ["merged", 0]
    sample(host, graph)
    first = node("SetFirstSigma", sigmas=["own", 0], sigma=14.6)
    sample(host, custom(recommended, first, own=own_list))
    with_two_cfgs = custom_advanced(recommended, own_list)
    given = with_two_cfgs["guider"]["inputs"]
    with_two_cfgs["guider"] = node(
        "DualCFGGuider",
        **{"model": given["model"], "cond1": given["positive"], "cond2": given["positive"]},
        **{"negative": given["negative"], "cfg_conds": 2.0, "cfg_cond2_negative": 2.0},
        style="regular",
    )
    sample(host, with_two_cfgs)
    both = custom_advanced(recommended, own_list)
    inputs = both["sample"]["inputs"]
    del inputs["guider"]
    guiders = {"high_noise_guider": ["guider", 0], "low_noise_guider": ["guider", 0]}
    both["sample"] = node(
        "DPMSolver_TwoModels", **inputs, **guiders, boundary=3.0, boundary_is="sigma"
    )
    sample(host, both)
    assert host.log().count(said) == before
    sample(host, custom(recommended, own_list, cfg=2.5))
    sample(host, custom_advanced(recommended, own_list))
    assert host.log().count(said) == before + 2


def test_recommended_reports_what_it_takes(host: Server, diffusion: Made) -> None:
    def said(**inputs: Any) -> str:
        settings: dict[str, Any] = {"steps": CALLS, "denoise": 1.0, **inputs}
        graph = {
            "model": node("DPMSolverDemo_Model"),
            "shifted": node("ModelSamplingSD3", model=["model", 0], shift=3.0),
            "pair": node("DPMSolver_Recommended", **{"model": ["model", 0], **settings}),
            "report": node("PreviewAny", source=["pair", 2]),
        }
        return str(host.run(graph)["report"]["text"][0])

    own = f"diffusion model, {CALLS} calls: its own sigmas and weights"
    offered = f"With a CFG of 1.4 to 2.6: the calibration {diffusion.name} in its place."
    assert said() == f"{own}\n{offered}"
    assert said(use_calibrations=False) == own
    assert said(steps=40) == own.replace(f" {CALLS} ", " 40 ")
    assert said(denoise=0.5).startswith(f"diffusion model, {CALLS} calls from sigma ")
    assert said(denoise=0.0) == ""
    flow = said(model=["shifted", 0], steps=7)
    assert flow == "flow model, 7 calls: its own sigmas and weights, shift 3"


@pytest.mark.parametrize("patches", [[], [SD3]], ids=["diffusion", "flow"])
@pytest.mark.parametrize(("steps", "denoise"), [(1, 1.0), (8, 1.0), (8, 0.5)])
def test_recommended_is_the_menus(
    host: Server, steps: int, denoise: float, patches: Patches
) -> None:
    pair = node("DPMSolver_Recommended", model=MODEL, steps=steps, denoise=denoise)
    graph = custom(pair, spaced(1), patches=patches)
    graph["sample"]["inputs"]["sigmas"] = ["sampler", 1]
    ours = sample(host, graph)
    sampler = menu("dpm_solver++_recommended")
    sigmas = scheduled("dpm_solver_recommended", steps, denoise)
    theirs = sample(host, custom(sampler, sigmas, patches=patches))
    assert ours.calls == theirs.calls == steps
    assert torch.equal(ours.latent, theirs.latent)
