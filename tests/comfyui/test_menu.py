"""Our entries in the menus of every KSampler: listed, and sampled in each way a user may ask for."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.support.digits import (
    ADAPTIVE,
    CFG_PP,
    EMPTY,
    FIXED,
    MENU,
    ODE,
    SCHEDULERS,
    STOCHASTIC,
    Graph,
    Sampled,
    custom,
    distance,
    ksampler,
    loaded,
    menu,
    multistep,
    node,
    sample,
    scheduled,
    watched,
)
from dpm_solver_nodes.tests.support.probing import counts, latent
from dpm_solver_nodes.tools.server import Server, comfyui, environment, events

ROOT = Path(__file__).resolve().parents[2]
OUR_SCHEDULERS = [
    *("dpm_solver_log_snr", "dpm_solver_time_uniform", "dpm_solver_time_quadratic"),
    "dpm_solver_recommended",
]
# The distance at 20 steps to the converged image: the last steps of "normal" and "simple" are long.
CLOSE = {"dpm_solver_log_snr": 0.025, "karras": 0.025, "normal": 0.1, "simple": 0.05}
# Each entry with one scheduler, each scheduler with several entries.
SPREAD = [(name, SCHEDULERS[i % len(SCHEDULERS)]) for i, name in enumerate(MENU)]
OTHERS = [*STOCHASTIC, *(name for name in CFG_PP if name not in STOCHASTIC)]
"""Those whose image is another one than the ODE's."""
# In the noise form an SDE leaves noise in the image where the last step above zero is as long as that
# of "normal", as the host's dpmpp_3m_sde does; the less, the more steps there are.
NO_LONG_LAST_STEP = ["sde_dpm_solver_2m", "sde_dpm_solver_2s"]


@pytest.fixture(scope="module")
def converged(host: Server) -> Sampled:
    """The digit of `ksampler(...)` as the host's own sampler draws it with 200 calls."""
    return sample(host, ksampler("dpmpp_2m", steps=200))


@pytest.fixture(scope="module")
def digits(host: Server) -> torch.Tensor:
    """What each digit looks like on the average, [10, 256]."""
    latent = node("EmptyLatentImage", width=128, height=128, batch_size=60)
    graph = ksampler("dpmpp_2m", latent=latent, digit="0,1,2,3,4,5,6,7,8,9", steps=12)
    return sample(host, graph).latent.reshape(6, 10, 256).mean(0)


def digit_of(result: Sampled, digits: torch.Tensor) -> int:
    """The digit whose average is most like the image."""
    image, averages = result.latent.reshape(1, 256), digits - digits.mean(0)
    return int(((image - digits.mean(0)) @ averages.T - 0.5 * averages.square().sum(1)).argmax())


# --- listed --------------------------------------------------------------------------------------


def options(host: Server, class_type: str, name: str) -> list[str]:
    """The entries of a node's menu; the host writes them in two ways."""
    kind, *details = host.object_info(class_type)[class_type]["input"]["required"][name]
    return list(details[0]["options"] if kind == "COMBO" else kind)


def own_entries(host: Server) -> dict[str, Any]:
    """The host's menus before and after the pack is loaded, twice and under two names."""
    script = textwrap.dedent(
        """
        import asyncio, importlib.util, json, sys
        import comfy.options
        root, *ids = json.loads(sys.argv.pop())
        sys.argv.append("--cpu")
        comfy.options.enable_args_parsing()
        import utils.extra_config  # first, as the host does: others have a module of that name
        import comfy.samplers
        import comfy.k_diffusion.sampling as sampling
        menus = {
            "samplers": comfy.samplers.KSampler.SAMPLERS,
            "schedulers": comfy.samplers.KSampler.SCHEDULERS,
            "sampler names": comfy.samplers.SAMPLER_NAMES,
            "scheduler names": comfy.samplers.SCHEDULER_NAMES,
        }
        told = {"own": {name: list(menu) for name, menu in menus.items()}}
        told["taken"] = [name for name in ids if hasattr(sampling, "sample_" + name)]
        for name in ("one", "two"):
            spec = importlib.util.spec_from_file_location(
                name, root + "/__init__.py", submodule_search_locations=[root]
            )
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
            asyncio.run(module.comfy_entrypoint())
        told["then"] = menus  # the lists that others hold, not the ones that stand there now
        told["missing"] = [name for name in ids if not hasattr(sampling, "sample_" + name)]
        print(json.dumps(told))
        """
    )
    tree = comfyui(host.version)
    command = [str(environment(host.version)), "-c", script, json.dumps([str(ROOT), *MENU])]
    told = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    return dict(json.loads(told.stdout.splitlines()[-1]))


def test_each_entry_is_listed_once_behind_the_hosts_own(host: Server) -> None:
    told = own_entries(host)
    assert told["taken"] == told["missing"] == []
    for menus, ours in (("sampler", MENU), ("scheduler", OUR_SCHEDULERS)):
        for list_name in (f"{menus}s", f"{menus} names"):
            assert told["then"][list_name] == told["own"][list_name] + ours
    nodes = {
        ("KSampler", "sampler_name"): told["own"]["samplers"] + MENU,
        ("KSamplerAdvanced", "sampler_name"): told["own"]["samplers"] + MENU,
        ("KSamplerSelect", "sampler_name"): told["own"]["sampler names"] + MENU,
        ("KSampler", "scheduler"): told["own"]["schedulers"] + OUR_SCHEDULERS,
        ("KSamplerAdvanced", "scheduler"): told["own"]["schedulers"] + OUR_SCHEDULERS,
        ("BasicScheduler", "scheduler"): told["own"]["scheduler names"] + OUR_SCHEDULERS,
    }
    assert {key: options(host, *key) for key in nodes} == nodes


# --- sampled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ODE)
def test_full_denoise(host: Server, converged: Sampled, name: str, scheduler: str) -> None:
    result = sample(host, ksampler(name, scheduler=scheduler))
    assert result.calls == 20 if name in FIXED else 10 < result.calls < 60
    assert distance(result, converged) < CLOSE[scheduler]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", OTHERS)
def test_full_denoise_to_another_image(
    host: Server, converged: Sampled, digits: torch.Tensor, name: str, scheduler: str
) -> None:
    """The digit that was asked for, clean, but not the ODE's."""
    result = sample(host, ksampler(name, scheduler=scheduler))
    assert result.calls == 20
    assert digit_of(result, digits) == 3
    if scheduler != "normal" or name not in NO_LONG_LAST_STEP:
        assert result.latent.abs().max() < (2.0 if name in CFG_PP else 1.5)
    assert distance(result, converged) > 0.05


@pytest.mark.parametrize("scheduler", OUR_SCHEDULERS)
def test_our_schedulers_with_the_hosts_samplers(
    host: Server, converged: Sampled, scheduler: str
) -> None:
    result = sample(host, ksampler("dpmpp_2m", scheduler=scheduler, steps=40))
    assert result.calls == 40
    assert distance(result, converged) < 0.05


@pytest.mark.parametrize(("name", "scheduler"), SPREAD)
def test_image_to_image(
    host: Server, converged: Sampled, digits: torch.Tensor, name: str, scheduler: str
) -> None:
    start = loaded(host, converged.latent)
    settings: dict[str, Any] = {
        "latent": start,
        "scheduler": scheduler,
        "steps": 10,
        "denoise": 0.5,
        "seed": 5,
    }
    result = sample(host, ksampler(name, **settings))
    assert result.calls == 10 if name in FIXED else result.calls > 0
    if name in ODE:
        exact = sample(host, ksampler("dpmpp_2m", **settings))
        assert distance(result, exact) < 0.05
    else:
        assert digit_of(result, digits) == 3
    assert distance(result, converged) > 0.1  # it is another digit than the one it came from


@pytest.mark.parametrize(("name", "scheduler"), SPREAD)
def test_start_and_end_steps(
    host: Server, converged: Sampled, digits: torch.Tensor, name: str, scheduler: str
) -> None:
    """From 0 to 10 with the noise left in, and on from 10 to the end."""
    first = sample(host, ksampler(name, scheduler=scheduler, start_at_step=0, end_at_step=10))
    rest: dict[str, Any] = {
        "add_noise": "disable",
        "latent": loaded(host, first.latent),
        "scheduler": scheduler,
    }
    second = sample(host, ksampler(name, start_at_step=10, end_at_step=10000, **rest))
    if name in FIXED:
        assert (first.calls, second.calls) == (10, 10)
    else:
        assert first.calls > 0 and second.calls > 0
    assert distance(first, converged) > 0.1  # the noise is still there
    if name in ODE:
        assert distance(second, converged) < CLOSE[scheduler]
    else:
        assert digit_of(second, digits) == 3
    if name.endswith("_2s"):  # both halves are whole groups: nothing is lost at the seam
        whole = sample(host, ksampler(name, scheduler=scheduler))
        assert distance(second, whole) < 1e-5


def test_two_halves_at_order_one_are_the_whole(host: Server) -> None:
    sigmas, halves = scheduled("karras", 20), node("SplitSigmas", sigmas=["all", 0], step=10)
    whole = sample(host, custom(multistep(order=1), sigmas))
    first = sample(host, custom(multistep(order=1), halves, all=sigmas))
    graph = custom(
        multistep(order=1), halves, all=sigmas, latent=loaded(host, first.latent), add_noise=False
    )
    graph["sample"]["inputs"]["sigmas"] = ["sigmas", 1]
    second = sample(host, graph)
    assert (first.calls, second.calls) == (10, 10)
    assert distance(second, whole) < 1e-5


@pytest.mark.parametrize("name", FIXED)
def test_an_early_end_without_leftover_noise(host: Server, name: str) -> None:
    """The host then replaces the last sigma of the slice by zero."""
    slice_: dict[str, Any] = {
        "start_at_step": 5,
        "end_at_step": 15,
        "return_with_leftover_noise": "disable",
    }
    ours = sample(host, ksampler(name, **slice_))
    assert ours.calls == 10
    if name in ODE:
        assert distance(ours, sample(host, ksampler("dpmpp_2m", **slice_))) < 0.1
    else:  # as clean as the ODE's
        assert ours.latent.abs().max() < 2.0


@pytest.mark.parametrize(("name", "scheduler"), SPREAD)
def test_inpainting(host: Server, converged: Sampled, name: str, scheduler: str) -> None:
    """The left half is kept, the right half is drawn anew."""
    graph = ksampler(name, scheduler=scheduler, seed=5, steps=12) | right_half(host, converged)
    result = sample(host, graph)
    assert result.calls == 12 if name in FIXED else result.calls > 0
    difference = (result.latent - converged.latent).abs()
    assert difference[..., :8].max() < 1e-5
    assert difference[..., 8:].mean() > 0.03


def right_half(host: Server, base: Sampled) -> Graph:
    """The latent of a digit with a mask on its right half."""
    return {
        "base": loaded(host, base.latent),
        "nothing": node("SolidMask", value=0.0, width=16, height=16),
        "half": node("SolidMask", value=1.0, width=8, height=16),
        "mask": node(
            "MaskComposite",
            **{"destination": ["nothing", 0], "source": ["half", 0], "x": 8, "y": 0},
            operation="add",
        ),
        "latent": node("SetLatentNoiseMask", samples=["base", 0], mask=["mask", 0]),
    }


@pytest.mark.parametrize(("name", "scheduler"), SPREAD)
def test_batch(host: Server, name: str, scheduler: str) -> None:
    """Image k of a batch is the image that its own noise gives alone."""
    three = node("EmptyLatentImage", width=128, height=128, batch_size=3)
    settings: dict[str, Any] = {"scheduler": scheduler, "steps": 12}
    batch = sample(host, ksampler(name, latent=three, digit="0,1,2", **settings))
    assert batch.calls == 12 if name in FIXED else batch.calls > 0
    assert len(batch.latent) == 3
    # Alone, an image is the first of its batch, and that is what the noise of an SDE goes by.
    for k in range(1 if name in STOCHASTIC else 3):
        one = node("LatentFromBatch", samples=["three", 0], batch_index=k, length=1)
        graph = ksampler(name, latent=one, digit=str(k), **settings) | {"three": three}
        # The worst image of a batch decides on the adaptive solver's steps.
        assert distance(sample(host, graph), batch.latent[k : k + 1]) < (
            1e-4 if name in FIXED else 0.05
        )


# --- as it runs ----------------------------------------------------------------------------------


def heard(host: Server, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the page was told while sampling, with previews on: values of progress, pictures."""
    with monkeypatch.context() as patch:
        patch.setattr(host, "post", _post_with_previews(host))
        seen = events(host, watched(graph)[0])
    assert seen[-1][0] == "execution_success"
    progress = [data for kind, data in seen if kind == "progress" and data["node"] == "sample"]
    return {
        "values": [data["value"] for data in progress],
        "max": sorted({data["max"] for data in progress}),
        "previews": [data for kind, data in seen if kind in ("preview", "binary")],
    }


def _post_with_previews(host: Server) -> Any:
    post = host.post

    def with_previews(path: str, content: Any) -> Any:
        return post(path, {**content, "extra_data": {"preview_method": "latent2rgb"}})

    return with_previews


@pytest.mark.parametrize("name", FIXED)
def test_progress_and_previews(host: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (
        heard(host, ksampler(kind, steps=8), monkeypatch) for kind in (name, "dpmpp_2m")
    )
    assert ours["values"] == theirs["values"] == list(range(1, 9))
    assert ours["max"] == [8]
    assert len(ours["previews"]) == len(theirs["previews"]) >= 8


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("steps", [3, 20])
def test_adaptive_progress(
    host: Server, name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = heard(host, ksampler(name, steps=steps), monkeypatch)
    assert ours["values"] == sorted(ours["values"])
    assert ours["values"][-1] == steps and ours["max"] == [steps]
    assert len(set(ours["values"])) > 2
    assert len(ours["previews"]) >= len(ours["values"])


@pytest.mark.parametrize(
    "name",
    [
        *("dpm_solver++_2m", "dpm_solver++_3s", "dpm_solver++_adaptive_23"),
        *("sde_dpm_solver++_2m", "sde_dpm_solver++_2s", "sde_dpm_solver++_3m_cfg_pp"),
    ],
)
def test_interrupt(host: Server, name: str) -> None:
    """It ends within one more model call, and the next prompt is none the worse for it."""
    graph, key = watched(ksampler(name, patches=[node("DPMSolverTest_Interrupt", call=3)]))
    ended = events(host, graph)
    assert ended[-1][0] == "execution_interrupted"
    assert 3 <= counts(host)[key] <= 4
    result = sample(host, ksampler(name, steps=5))
    assert torch.isfinite(result.latent).all()
    assert not (host.work / "output" / f"{key}.safetensors").exists()


def test_the_sampler_of_the_menu_in_custom_sampling(host: Server) -> None:
    """KSamplerSelect gives what KSampler does."""
    for name in MENU:
        direct = sample(host, ksampler(name, steps=6))
        selected = sample(host, custom(menu(name), scheduled("karras", 6), latent=EMPTY))
        assert distance(direct, selected) < 1e-6, name


def test_latent_is_read_back(host: Server) -> None:
    """That `loaded` gives the samplers what it was given; other tests rest on it."""
    start = torch.linspace(-1.0, 1.0, 256).reshape(1, 1, 16, 16)
    graph, name = watched(
        ksampler("euler", latent=loaded(host, start), add_noise="disable", start_at_step=20) | {}
    )
    graph["sample"]["inputs"]["end_at_step"] = 20
    host.run(graph)
    assert torch.equal(latent(host, name), start)
