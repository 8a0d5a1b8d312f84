"""Every sampler on a real webui, through its API."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dpm_solver_nodes.samplers import VarianceExploding
from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.samplers.solvers.recommended_lists import recommended_sigmas
from dpm_solver_nodes.tests.webui import server
from dpm_solver_nodes.tests.webui.server import CALIBRATED, OWN, WebUI, encoded, own_calibration
from dpm_solver_nodes.tests.webui.test_stand_in import label
from dpm_solver_nodes.tools.server import HostError

NAMES = [label(entry.id) for entry in CATALOG]
TWO_M, RECOMMENDED = label("dpm_solver++_2m"), label("dpm_solver++_recommended")
ADAPTIVE, SDE = label("dpm_solver++_adaptive_23"), label("sde_dpm_solver++_2m")
TWO_M_CFG_PP = label("dpm_solver++_2m_cfg_pp")
SOME = (TWO_M, label("dpm_solver++_3s"), ADAPTIVE, SDE, RECOMMENDED, TWO_M_CFG_PP)
SCHEDULERS = [f"DPM-Solver {name}" for name in ("log-SNR", "uniform time", "quadratic time")]
SCHEDULERS.append("DPM-Solver recommended")
PROGRAM = server.installed()
SD = VarianceExploding(), 14.6146, 0.0292
SAME = 2  # levels of 8 bits: the network's rounding depends on the batch


def furthest(a: np.ndarray, b: np.ndarray) -> float:
    return float(abs(a - b).max())


def test_samplers_and_schedulers_come_once_and_after_the_hosts(webui: WebUI) -> None:
    names = webui.names()
    assert names[-len(NAMES) - 2 :] == [*NAMES, f"DPM-Solver(calibrated-{OWN})", CALIBRATED]
    assert len(set(names)) == len(names) > len(NAMES) + 10
    labels = webui.get("/probe/schedulers")
    assert labels[-4:] == SCHEDULERS
    assert len(set(labels)) == len(labels) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_runs_and_the_text_says_so(webui: WebUI, name: str) -> None:
    result = webui.txt2img(sampler_name=name)
    assert result.images[0].std() > 1
    text, last = result.text, webui.last()
    assert (text["Sampler"], text["Steps"]) == (name, "5")
    assert text["Schedule type"] == SCHEDULERS[-1 if name == RECOMMENDED else 0]
    assert last["shown"] == 5
    if "adaptive" not in name:
        assert last["steps"] == list(range(5))
    else:
        assert text["DPM-Solver model calls"] == str(len(last["calls"]))
    assert max(last["steps"]) == 4


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_is_used_by_the_hosts_samplers_too(webui: WebUI, scheduler: str) -> None:
    result = webui.txt2img(sampler_name="Euler", scheduler=scheduler, steps=8)
    assert result.text["Schedule type"] == scheduler
    calls = webui.last()["calls"]
    assert len(calls) == 8
    assert calls[0] == pytest.approx(14.6146, rel=1e-4)


@pytest.mark.parametrize("name", SOME)
def test_an_image_of_a_batch_is_the_single_image_of_its_seed(webui: WebUI, name: str) -> None:
    batch = webui.txt2img(sampler_name=name, batch_size=3)
    single = webui.txt2img(sampler_name=name, seed=9)
    assert furthest(batch.images[-1], single.images[0]) <= (12 if name == ADAPTIVE else SAME)
    assert "Seed: 9" in batch.texts[-1]


@pytest.mark.parametrize("name", SOME)
def test_image_to_image_and_inpainting(webui: WebUI, name: str) -> None:
    image = webui.txt2img(sampler_name="Euler").images[0]
    settings: dict[str, Any] = {"sampler_name": name, "steps": 10, "denoising_strength": 0.6}
    changed = webui.img2img(image, **settings)
    assert changed.text["Sampler"] == name
    last = webui.last()
    assert last["shown"] == 7  # int(0.6 * 10) + 1, as with the host's own
    assert name == ADAPTIVE or len(last["calls"]) == 7
    assert furthest(changed.images[0], image) > 10
    if name == RECOMMENDED:  # it adds as much noise as other schedulers do
        webui.img2img(image, **settings, scheduler=SCHEDULERS[1])
        assert last["calls"][0] == pytest.approx(webui.last()["calls"][0], rel=0.2)
    mask = np.zeros_like(image)
    mask[16:48, 16:48] = 255
    painted = webui.img2img(image, mask=encoded(mask), mask_blur=0, inpainting_fill=1, **settings)
    assert furthest(painted.images[0][:12], image[:12]) <= SAME
    assert furthest(painted.images[0][20:44, 20:44], image[20:44, 20:44]) > 10
    assert len(webui.last()["calls"]) < 100


def test_a_calibrated_solver_brings_its_own_sigmas(webui: WebUI) -> None:
    result = webui.txt2img(sampler_name=CALIBRATED, steps=6, scheduler="Karras")
    assert result.text["Sampler"] == CALIBRATED
    assert result.text["Schedule type"] == "Automatic"
    calls = webui.last()["calls"]
    recommended = webui.txt2img(sampler_name=RECOMMENDED, steps=6)
    # It was made of the list for large images, but for the model's whole times.
    assert calls == pytest.approx(recommended_sigmas(*SD, 6)[:-1], rel=0.05)
    assert furthest(result.images[0], recommended.images[0]) < 30
    webui.img2img(result.images[0], sampler_name=CALIBRATED, steps=6, denoising_strength=0.5)
    assert webui.last()["calls"] == pytest.approx(calls[2:])
    with pytest.raises(
        HostError, match="made for 6 steps, and 20 are asked for: set Sampling steps"
    ):
        webui.txt2img(sampler_name=CALIBRATED, steps=20)


def test_recommended_takes_a_calibration_of_this_very_model(webui: WebUI) -> None:
    settings = {"sampler_name": RECOMMENDED, "steps": 9}
    assert "DPM-Solver calibration" not in webui.txt2img(**settings, cfg_scale=2.0).text
    usual = webui.last()["calls"]
    assert webui.txt2img(**settings, cfg_scale=13.0).text["DPM-Solver calibration"] == OWN
    own = own_calibration()
    assert webui.last()["calls"] == pytest.approx(own.sigmas[:-1], rel=1e-4) != usual


HIRES = {
    "enable_hr": True,
    "hr_scale": 2,
    "hr_upscaler": PROGRAM.upscaler,
    "denoising_strength": 0.6,
    "hr_second_pass_steps": 4,
    "hr_additional_modules": ["Use same choices"],
}


@pytest.mark.parametrize("name", SOME)
def test_hires_fix(webui: WebUI, name: str) -> None:
    result = webui.txt2img(sampler_name=name, **HIRES)
    assert result.images[0].shape == (128, 128, 3)
    last = webui.last()
    assert last["shown"] == 5 + 4
    if name == ADAPTIVE:
        took = [result.text[f"{which}DPM-Solver model calls"] for which in ("", "Hires ")]
        assert sum(map(int, took)) == len(last["calls"])
    else:
        assert len(last["calls"]) == 5 + 4


def test_as_the_hires_pass_alone(webui: WebUI) -> None:
    others = {"hr_sampler_name": SDE, "hr_scheduler": SCHEDULERS[2]}
    text = webui.txt2img(sampler_name="Euler", **HIRES, **others).text
    assert (text["Hires sampler"], text["Hires schedule type"]) == (SDE, SCHEDULERS[2])
    assert text["Eta"] == "1.0"


@pytest.mark.parametrize("name", SOME)
def test_the_refiner_takes_over_where_the_panel_says(webui: WebUI, name: str) -> None:
    alone = webui.txt2img(sampler_name=name, steps=10)
    calls = webui.last()["calls"]
    refined = webui.txt2img(
        sampler_name=name, steps=10, refiner_checkpoint="refiner", refiner_switch_at=0.8
    )
    last = webui.last()
    assert refined.text["Refiner"].startswith("refiner")
    assert last["calls"] == pytest.approx(calls, rel=1e-3)  # the same weights under another name
    assert furthest(alone.images[0], refined.images[0]) <= SAME
    assert 8 in last["steps"] or name == ADAPTIVE


def test_eta_and_noise_of_the_panel(webui: WebUI) -> None:
    usual = webui.txt2img(sampler_name=SDE)
    assert (usual.text["Eta"], usual.text["Sigma noise"]) == ("1.0", "1.0")
    less = webui.txt2img(sampler_name=SDE, eta=0.3, override_settings={"s_noise": 1.05})
    assert (less.text["Eta"], less.text["Sigma noise"]) == ("0.3", "1.05")
    assert furthest(usual.images[0], less.images[0]) > 10
    without = [webui.txt2img(sampler_name=TWO_M, eta=eta) for eta in (0.0, 1.0)]
    assert furthest(without[0].images[0], without[1].images[0]) == 0
    assert "Eta" not in without[0].text


CHANGED: dict[str, dict[str, Any]] = {
    TWO_M: {"dpm_solver_lower_order_final": "off", "dpm_solver_solver_type": "taylor"},
    label("dpm_solver++_3s"): {"dpm_solver_grouping": "fixed"},
    ADAPTIVE: {"dpm_solver_rtol": 0.005, "dpm_solver_atol": 0.001},
    SDE: {"eta_ancestral": 0.4, "s_noise": 1.03},
    RECOMMENDED: {},
    TWO_M_CFG_PP: {"dpm_solver_solver_type": "taylor"},
}


@pytest.mark.parametrize("name", CHANGED)
def test_pasting_the_text_brings_the_image_back(webui: WebUI, name: str) -> None:
    settings = CHANGED[name]
    scheduler = {"scheduler": "Karras"} if name == TWO_M else {}
    made = webui.txt2img(sampler_name=name, steps=7, override_settings=settings, **scheduler)
    pasted = webui.pasted(made.texts[0])
    assert pasted.text == made.text
    assert furthest(made.images[0], pasted.images[0]) == 0
    again = webui.txt2img(sampler_name=name, steps=7, **scheduler)
    assert (made.text != again.text) == bool(settings)
    # On AUTOMATIC1111's small network another grouping changes less than a level of 8 bits.
    if "dpm_solver_grouping" not in settings or not PROGRAM.name.startswith("AUTOMATIC1111"):
        assert (furthest(made.images[0], again.images[0]) > 0) == bool(settings)


def test_xyz_plot_picks_samplers_and_schedulers_by_name(webui: WebUI) -> None:
    title = "x/y/z plot"
    fields = next(
        one["args"]
        for one in webui.get("/sdapi/v1/script-info")
        if one["name"] == title and not one["is_img2img"]
    )
    kinds = fields[0]["choices"]
    axes = [
        *(kinds.index("Sampler"), "", [TWO_M, ADAPTIVE]),
        *(kinds.index("Schedule type"), "", SCHEDULERS[:2]),
        *(kinds.index("Nothing"), "", []),
    ]
    others = [
        True if field["label"] == "Include Sub Images" else field["value"]
        for field in fields[len(axes) :]
    ]
    arguments = [*axes, *others]
    result = webui.txt2img(script_name=title, script_args=arguments, steps=3)
    pairs = {
        (text.split("Sampler: ")[1].split(", ")[0], scheduler_of(text)) for text in result.texts
    }
    assert pairs == {(name, one) for name in (TWO_M, ADAPTIVE) for one in SCHEDULERS[:2]}


def scheduler_of(text: str) -> str:
    return text.split("Schedule type: ")[1].split(", ")[0]


@pytest.mark.parametrize("name", [TWO_M, ADAPTIVE, TWO_M_CFG_PP])
@pytest.mark.parametrize("button", ["interrupt", "skip"])
def test_interrupt_and_skip(webui: WebUI, name: str, button: str) -> None:
    close = {"dpm_solver_rtol": 0.001, "dpm_solver_atol": 0.0001}
    settings = {"sampler_name": name, "steps": 150, "override_settings": close}
    results = []
    webui.request("/probe/forget", b"{}")
    job = threading.Thread(target=lambda: results.append(webui.txt2img(**settings)))
    job.start()
    while not webui.last()["calls"]:
        time.sleep(0.1)
    webui.request(f"/sdapi/v1/{button}", b"{}")
    calls = len(webui.last()["calls"])
    job.join()
    assert len(webui.last()["calls"]) <= calls + 1
    assert len(results[0].images) == 1


# --- CFG++ ---------------------------------------------------------------------------------------

CFG_PP = [label(entry.id) for entry in CATALOG if entry.cfg_pp]


ROUNDING = 2e-4  # of latents up to 45


def plain_twin(name: str) -> str:
    return name.replace("-CFG++", "")


def furthest_latent(webui: WebUI, latents: list[Any], **settings: Any) -> float:
    """The largest difference of a job's last latents from others; images have too few levels."""
    webui.txt2img(**settings)
    return furthest(np.array(latents[-1]), np.array(webui.last()["latents"][-1]))


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_uses_the_prediction_for_the_negative_prompt(webui: WebUI, name: str) -> None:
    """In steps for which the host makes none it is the plain sampler."""
    twin, usual = plain_twin(name), {"steps": 8, "negative_prompt": "a dog"}
    guided = webui.txt2img(sampler_name=name, **usual)
    text, latents = guided.text, webui.last()["latents"]
    assert furthest_latent(webui, latents, sampler_name=twin, **usual) > ROUNDING
    assert furthest_latent(webui, latents, sampler_name=name, **usual) == 0
    assert text["Sampler"] == name
    skip = {"s_min_uncond": 15.0, "override_settings": {"s_min_uncond_all": True}, **usual}
    webui.txt2img(sampler_name=name, **skip)
    unguided = webui.last()["latents"]
    assert furthest_latent(webui, unguided, sampler_name=twin, **skip) < ROUNDING


def test_cfg_pp_at_a_cfg_of_1(webui: WebUI) -> None:
    """Forge and Forge Neo then leave the negative prompt out, and AUTOMATIC1111 does not."""
    webui.txt2img(sampler_name=TWO_M_CFG_PP, cfg_scale=1)
    one, leaves_out = webui.last()["latents"], PROGRAM.cfg_1_leaves_out
    plain = furthest_latent(webui, one, sampler_name=TWO_M, cfg_scale=1)
    above = furthest_latent(webui, one, sampler_name=TWO_M_CFG_PP, cfg_scale=1.00001)
    assert (plain < ROUNDING, above < ROUNDING) == (leaves_out, not leaves_out)


@pytest.mark.parametrize("cfg", [1.5, 7.0])
def test_two_steps_of_cfg_pp_are_the_hosts_own(webui: WebUI, cfg: float) -> None:
    """The first has order 1, and the last gives the guided prediction. Forge Neo has Euler CFG++."""
    theirs = "Euler CFG++"
    if theirs not in webui.names():
        pytest.skip("the host has no such sampler")
    job: dict[str, Any] = {"cfg_scale": cfg, "steps": 2, "scheduler": "Karras"}
    webui.txt2img(sampler_name=TWO_M_CFG_PP, **job)
    ours = webui.last()["latents"]
    assert furthest_latent(webui, ours, sampler_name=theirs, **job) < ROUNDING
    assert furthest_latent(webui, ours, sampler_name=TWO_M, **job) > ROUNDING


def test_cfg_pp_in_both_passes_of_hires_fix(webui: WebUI) -> None:
    settings: dict[str, Any] = {"cfg_scale": 15, "hr_cfg": 15, "negative_prompt": "a dog", **HIRES}
    guided = webui.txt2img(sampler_name=TWO_M_CFG_PP, **settings)
    assert guided.images[0].shape == (128, 128, 3)
    for first, second in ((TWO_M_CFG_PP, TWO_M), (TWO_M, TWO_M_CFG_PP)):
        passes = {"sampler_name": first, "hr_sampler_name": second, **settings}
        assert furthest(webui.txt2img(**passes).images[0], guided.images[0]) > 0
    assert (
        furthest(webui.txt2img(sampler_name=TWO_M_CFG_PP, **settings).images[0], guided.images[0])
        == 0
    )


def test_cfg_pp_with_several_prompts(webui: WebUI) -> None:
    """Each image of a batch has its own prompt, and a prompt may be made of several."""
    settings: dict[str, Any] = {"sampler_name": TWO_M_CFG_PP, "cfg_scale": 1.5, "steps": 8}
    matrix = {"script_name": "prompt matrix", "script_args": [False, False, "positive", "comma", 0]}
    batch = webui.txt2img(prompt="a cat|a hat", batch_size=2, **matrix, **settings)
    for image, prompt in zip(batch.images[-2:], ("a cat", "a cat, a hat"), strict=True):
        assert furthest(image, webui.txt2img(prompt=prompt, **settings).images[0]) <= SAME
    both = "a cat AND a hat :0.5"
    pair = webui.txt2img(prompt=both, batch_size=2, **settings)
    single = webui.txt2img(prompt=both, seed=8, **settings)
    assert furthest(pair.images[-1], single.images[0]) <= SAME
    assert furthest(pair.images[-2], batch.images[-2]) > 1


# --- other kinds of model ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROGRAM.kinds)
def test_the_hosts_own_predictions_have_the_right_log_snr(webui: WebUI, kind: str) -> None:
    found = webui.get(f"/probe/schedule/{kind}")
    assert found["schedule"] == PROGRAM.kinds[kind]
    for sigmas in found["sigmas"].values():
        assert len(sigmas) == 11
        assert sigmas[-1] == 0.0
        assert all(later < sooner for sooner, later in pairwise(sigmas))
    assert found["sigmas"][SCHEDULERS[0]][-2] == pytest.approx(found["sigma_min"])
    if found["schedule"] == "RectifiedFlow":
        assert found["sigmas"][SCHEDULERS[0]][0] == 1.0


@pytest.mark.parametrize("kind", PROGRAM.becomes)
def test_samplers_on_other_kinds_of_model(webui: WebUI, kind: str) -> None:
    try:
        webui.request(f"/probe/kind/{kind}", b"{}")
        for name in SOME:
            result = webui.txt2img(sampler_name=name, steps=6)
            assert result.text["Sampler"] == name
            last = webui.last()
            assert name == ADAPTIVE or len(last["calls"]) == 6
            assert last["shown"] == 6
            assert np.isfinite(np.array(last["latents"])).all()
    finally:
        webui.request("/probe/kind/epsilon", b"{}")


def test_an_error_is_a_sentence(webui: WebUI) -> None:
    with pytest.raises(HostError, match="rtol must be a number of at least 0"):
        webui.txt2img(sampler_name=ADAPTIVE, override_settings={"dpm_solver_rtol": -1.0})
