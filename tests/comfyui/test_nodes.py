"""Our nodes in a real host: listed, documented, and in agreement with the menus and the host's own."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.support.digits import (
    FIXED,
    MENU,
    MODEL,
    Node,
    adaptive,
    custom,
    custom_advanced,
    distance,
    ksampler,
    listed,
    loaded,
    menu,
    multistep,
    node,
    sample,
    scheduled,
    sde,
    sigmas_of,
    spaced,
)
from dpm_solver_nodes.tools.server import Server

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"
NODES = {
    "DPMSolver_2M": "DPM++ 2M",
    "DPMSolver_3M": "DPM++ 3M",
    "DPMSolver_Multistep": "DPM-Solver Multistep",
    "DPMSolver_Singlestep": "DPM-Solver Singlestep",
    "DPMSolver_Adaptive": "DPM-Solver Adaptive",
    "DPMSolver_SDE": "DPM-Solver SDE",
    "DPMSolver_Sigmas": "DPM-Solver Sigmas",
    "DPMSolver_TwoModels": "Sampler for two models",
    "DPMSolver_Recommended": "DPM++ (recommended)",
    "DPMSolver_Calibrated": "DPM-Solver Calibrated",
    "DPMSolver_Calibrate": "DPM-Solver Calibrate",
    "DPMSolver_Compare": "Solver Compare",
    "DPMSolver_Candidate": "Solver Candidate",
    "DPMSolver_PlotSigmas": "Plot Sigmas",
}
LAB = (
    *("DPMSolver_Compare", "DPMSolver_Candidate", "DPMSolver_PlotSigmas"),
    "DPMSolver_Calibrate",
)
ALGORITHMS = ["dpmsolver++", "dpmsolver"]
SPACINGS = {
    "logSNR": "dpm_solver_log_snr",
    "time_uniform": "dpm_solver_time_uniform",
    "time_quadratic": "dpm_solver_time_quadratic",
    "recommended": "dpm_solver_recommended",
}


def singlestep(**settings: Any) -> Node:
    defaults = {"algorithm": "dpmsolver++", "order": 2, "solver_type": "dpmsolver"}
    return node("DPMSolver_Singlestep", **{**defaults, "grouping": "fast", **settings})


# The node that does what an entry of the menu does.
AS_NODES = {
    f"{prefix}_{suffix}": make(algorithm=algorithm, **settings)
    for prefix, algorithm in (("dpm_solver++", "dpmsolver++"), ("dpm_solver", "dpmsolver"))
    for suffix, make, settings in (
        ("2m", multistep, {}),
        ("3m", multistep, {"order": 3}),
        ("3m_exact", multistep, {"order": 3, "solver_type": "exact"}),
        ("2s", singlestep, {}),
        ("3s", singlestep, {"order": 3}),
        ("adaptive_12", adaptive, {"order": 2}),
        ("adaptive_23", adaptive, {"order": 3}),
    )
} | {
    "dpm_solver++_2m_cfg_pp": multistep(cfg_pp=True),
    "dpm_solver++_3m_cfg_pp": multistep(order=3, cfg_pp=True),
    "sde_dpm_solver++_2m": sde(),
    "sde_dpm_solver++_3m": sde(order=3, solver_type="taylor"),
    "sde_dpm_solver++_2s": sde(method="singlestep"),
    "sde_dpm_solver++_2m_cfg_pp": sde(cfg_pp=True),
    "sde_dpm_solver++_3m_cfg_pp": sde(order=3, solver_type="taylor", cfg_pp=True),
    "dpm_solver++_er_sde": sde(method="er_sde", order=3),
    "dpm_solver++_er_sde_cfg_pp": sde(method="er_sde", order=3, cfg_pp=True),
    "dpm_solver++_2s_ancestral": sde(method="2s_ancestral"),
    "dpm_solver++_2s_ancestral_cfg_pp": sde(method="2s_ancestral", cfg_pp=True),
    "sde_dpm_solver_2m": sde(algorithm="dpmsolver"),
    "sde_dpm_solver_2s": sde(algorithm="dpmsolver", method="singlestep"),
    "dpm_solver++_recommended": node("DPMSolver_Recommended", model=MODEL, steps=12, denoise=1.0),
}


# --- listed --------------------------------------------------------------------------------------


def test_the_pack_shows_its_nodes_and_no_others(host: Server) -> None:
    known = host.object_info()
    pack = known["DPMSolver_2M"]["python_module"]
    ours = {name: info for name, info in known.items() if info["python_module"] == pack}
    assert {name: info["display_name"] for name, info in ours.items()} == NODES
    beside = known["KSampler"]["category"]  # the host's own: "model/sampling" in newer ones
    assert {name: info["category"] for name, info in ours.items()} == {
        name: f"{beside}/DPM-Solver{'/lab' * (name in LAB)}" for name in NODES
    }
    assert all(info["description"] for info in ours.values())
    makers = [info for name, info in ours.items() if name not in LAB]
    assert {info["output"][0] for info in makers} == {"SAMPLER", "SIGMAS", "LATENT"}


@pytest.mark.parametrize("name", NODES)
def test_every_input_has_a_tooltip(host: Server, name: str) -> None:
    inputs = host.object_info(name)[name]["input"]
    described = {**inputs.get("required", {}), **inputs.get("optional", {})}
    assert described
    for field, (_, *options) in described.items():
        assert options and len(options[0]["tooltip"]) > 20, field


@pytest.mark.parametrize("name", NODES)
def test_help_page_is_served(host: Server, name: str) -> None:
    """Where the page looks for it."""
    pack = host.object_info(name)[name]["python_module"].partition(".")[2]
    text = host.request(f"/extensions/{pack}/docs/{name}.md").decode()
    assert text == (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {NODES[name]}\n")
    fields = host.object_info(name)[name]["input_order"]
    shown = {field for group in ("required", "optional") for field in fields.get(group, ())}
    assert {field for field in shown if field not in text} == set()


# --- as in the menu and as the host's own --------------------------------------------------------


def test_every_entry_has_its_node() -> None:
    assert sorted(AS_NODES) == sorted(MENU)


@pytest.mark.parametrize("name", MENU)
@pytest.mark.parametrize("around", [custom, custom_advanced])
def test_node_and_menu_agree(host: Server, name: str, around: Any) -> None:
    ours = sample(host, around(AS_NODES[name], scheduled("karras", 12)))
    theirs = sample(host, ksampler(name, steps=12))
    assert ours.calls == theirs.calls
    assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize(
    ("short", "name"),
    [("DPMSolver_2M", "dpm_solver++_2m"), ("DPMSolver_3M", "dpm_solver++_3m_exact")],
)
@pytest.mark.parametrize("steps", [6, 20])
def test_the_short_nodes(host: Server, short: str, name: str, steps: int) -> None:
    ours = sample(host, custom_advanced(node(short), scheduled("karras", steps)))
    assert ours.calls == steps
    assert distance(ours, sample(host, ksampler(name, steps=steps))) < 1e-6


@pytest.mark.parametrize("scheduler", ["karras", "normal", "exponential"])
@pytest.mark.parametrize("steps", [4, 11, 20])
def test_2m_is_the_hosts_dpmpp_2m(host: Server, steps: int, scheduler: str) -> None:
    """With published weights in every step."""
    published = node("DPMSolver_2M", lower_order_final="off")
    ours = sample(host, custom(published, scheduled(scheduler, steps)))
    theirs = sample(host, custom(menu("dpmpp_2m"), scheduled(scheduler, steps)))
    assert distance(ours, theirs) < 3e-6
    assert ours.calls == theirs.calls == steps


@pytest.mark.parametrize("scheduler", ["exponential", "karras"])
@pytest.mark.parametrize("steps", [7, 11, 20])
def test_2m_lowers_nothing_if_steps_grow_slowly(host: Server, steps: int, scheduler: str) -> None:
    ours = sample(host, custom(node("DPMSolver_2M"), scheduled(scheduler, steps)))
    theirs = sample(host, custom(menu("dpmpp_2m"), scheduled(scheduler, steps)))
    assert distance(ours, theirs) < 3e-6


@pytest.mark.parametrize("steps", [4, 7, 10])
def test_2m_has_lower_last_steps_if_that_is_asked_for(host: Server, steps: int) -> None:
    theirs = sample(host, custom(menu("dpmpp_2m"), scheduled("karras", steps)))
    lowered = node("DPMSolver_2M", lower_order_final="on")
    assert distance(sample(host, custom(lowered, scheduled("karras", steps))), theirs) > 1e-3


# --- every option --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor", "exact"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_multistep_options(host: Server, algorithm: str, order: int, solver_type: str) -> None:
    base = {"algorithm": algorithm, "order": order, "solver_type": solver_type}
    results = {
        how: sample(host, custom(multistep(**base, lower_order_final=how), spaced(8)))
        for how in ("auto", "on", "off")
    }
    assert {result.calls for result in results.values()} == {8}
    is_2m = (algorithm, order, solver_type) == ("dpmsolver++", 2, "dpmsolver")
    same_as = "off" if is_2m else "on"  # below 10 steps, which are about even here
    assert distance(results["auto"], results[same_as]) < 1e-6
    lowered = distance(results["on"], results["off"])
    assert lowered > 1e-4 if order > 1 else lowered == 0.0


@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_singlestep_options(host: Server, algorithm: str, order: int, solver_type: str) -> None:
    """On 9 or 27 steps above zero "fast" ends in 2 and 1 at order 3.

    Of the noise form only short steps make groups.
    """
    steps = 10 if algorithm == "dpmsolver++" else 28
    base = {"algorithm": algorithm, "order": order, "solver_type": solver_type}
    fast, fixed = (
        sample(host, custom(singlestep(**base, grouping=how), spaced(steps)))
        for how in ("fast", "fixed")
    )
    assert fast.calls == fixed.calls == steps
    different = distance(fast, fixed)
    assert different > 1e-5 if order == 3 else different == 0.0


@pytest.mark.parametrize("controller", ["authors", "pid"])
@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_adaptive_options(
    host: Server, algorithm: str, order: int, solver_type: str, controller: str
) -> None:
    settings = {"algorithm": algorithm, "order": order, "solver_type": solver_type}
    settings["controller"] = controller
    # The ends are all it takes from the list.
    loose = sample(host, custom(adaptive(**settings, rtol=0.2, atol=0.03), spaced(4)))
    same = sample(host, custom(adaptive(**settings, rtol=0.2, atol=0.03), spaced(9)))
    assert torch.isfinite(loose.latent).all()
    assert loose.calls % order == 1  # whole attempts, and the last denoising
    assert torch.equal(loose.latent, same.latent)


def test_a_tighter_tolerance_takes_more_calls_and_is_closer(host: Server) -> None:
    exact = sample(host, custom(multistep(order=3, solver_type="exact"), spaced(150)))
    results = [
        sample(host, custom(adaptive(rtol=rtol, atol=rtol / 6), spaced())) for rtol in (0.2, 0.02)
    ]
    assert results[0].calls < results[1].calls
    assert distance(results[0], exact) > distance(results[1], exact)
    assert distance(results[1], exact) < 0.02


@pytest.mark.parametrize(
    "settings",
    [
        {"h_init": 1.0},
        {"controller": "pid", "pcoeff": 0.3},
        {"controller": "pid", "icoeff": 0.4},
        {"controller": "pid", "dcoeff": 0.1},
        {"controller": "pid", "accept_safety": 0.1},
    ],
    ids=lambda settings: list(settings)[-1],
)
def test_the_adaptive_knobs_turn_something(host: Server, settings: dict[str, Any]) -> None:
    base = {"controller": settings.get("controller", "authors"), "h_init": 2.0}
    plain = sample(host, custom(adaptive(**base), spaced()))
    turned = sample(host, custom(adaptive(**{**base, **settings}), spaced()))
    assert torch.isfinite(turned.latent).all()
    assert not torch.equal(plain.latent, turned.latent)


@pytest.mark.parametrize("max_calls", [1, 5, 10])
def test_max_calls(host: Server, max_calls: int) -> None:
    result = sample(host, custom(adaptive(rtol=0.001, atol=0.0001, max_calls=max_calls), spaced()))
    assert result.calls <= max_calls
    assert torch.isfinite(result.latent).all()


@pytest.mark.parametrize("corrector", ["none", "unic"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_and_the_corrector(host: Server, order: int, corrector: str) -> None:
    exact = sample(host, custom(multistep(order=3, solver_type="exact"), spaced(100)))
    made = {
        algorithm: sample(
            host,
            custom(
                multistep(
                    algorithm=algorithm, order=order, solver_type="exact", corrector=corrector
                ),
                spaced(16),
            ),
        )
        for algorithm in (*ALGORITHMS, "adams")
    }
    assert {result.calls for result in made.values()} == {16}
    assert all(distance(result, exact) < 0.2 / order for result in made.values())
    if corrector == "unic":
        plain = sample(host, custom(multistep(order=order, solver_type="exact"), spaced(16)))
        assert distance(made["dpmsolver++"], plain) > 1e-4


# --- sigmas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_sigmas_are_the_schedulers(host: Server, spacing: str, denoise: float) -> None:
    ours = spaced(10, spacing=spacing, denoise=denoise)
    theirs = scheduled(SPACINGS[spacing], 10, denoise)
    assert len(sigmas_of(host, ours)) == 11
    assert sigmas_of(host, ours) == sigmas_of(host, theirs)
    a, b = (sample(host, custom(node("DPMSolver_2M"), sigmas)) for sigmas in (ours, theirs))
    assert (a.calls, b.calls) == (10, 10)
    assert torch.equal(a.latent, b.latent)


@pytest.mark.parametrize(
    ("spacing", "denoise", "final_zero", "direction"),
    list(itertools.product(SPACINGS, [1.0, 0.6], [True, False], ["falling", "rising"])),
)
def test_sigmas_options(
    host: Server, spacing: str, denoise: float, final_zero: bool, direction: str
) -> None:
    options = {"denoise": denoise, "final_zero": final_zero, "direction": direction}
    sigmas = sigmas_of(host, spaced(10, spacing=spacing, **options))
    largest, smallest = 14.6146, 0.0292
    assert len(sigmas) == len(set(sigmas)) == 11
    assert sigmas == sorted(sigmas, reverse=direction == "falling")
    low, high = min(sigmas), max(sigmas)
    assert low == (0.0 if final_zero and direction == "falling" else smallest)
    if spacing == "recommended":  # spends most of its steps at high noise
        assert high == largest if denoise == 1.0 else high < largest
    else:
        assert high == largest if denoise == 1.0 else high < largest / 2
    if direction == "falling":
        whole = spaced(int(10 / denoise), spacing=spacing, final_zero=final_zero)
        end = sigmas_of(host, whole)[-11:]
        own = spacing == "recommended" and denoise < 1.0  # a list for the later start
        assert (sigmas == end) != own
        result = sample(host, custom(node("DPMSolver_2M"), spaced(10, spacing=spacing, **options)))
        assert result.calls == 10
        assert torch.isfinite(result.latent).all()


def test_no_denoise_leaves_the_latent_alone(host: Server) -> None:
    start = torch.linspace(-1.0, 1.0, 256).reshape(1, 1, 16, 16)
    for around in (custom, custom_advanced):
        graph = around(node("DPMSolver_2M"), spaced(denoise=0.0), latent=loaded(host, start))
        result = sample(host, graph)
        assert result.calls == 0
        assert torch.equal(result.latent, start)


@pytest.mark.parametrize("name", MENU)
def test_unusual_lists(host: Server, name: str) -> None:
    """One sigma, two equal ones, nothing but the last step."""
    one = sample(host, custom(menu(name), listed("5")))
    assert one.calls == 0 and torch.isfinite(one.latent).all()
    equal = sample(host, custom(menu(name), listed("10, 5, 5, 1, 0")))
    assert equal.calls == 4 if name in FIXED else equal.calls > 0
    assert torch.isfinite(equal.latent).all()
    last = sample(host, custom(menu(name), listed("5, 0")))
    assert torch.isfinite(last.latent).all()
    if name in FIXED:
        assert last.calls == 1
        assert distance(last, sample(host, custom(menu("euler"), listed("5, 0")))) < 1e-6


# --- image to noise and back ---------------------------------------------------------------------


@pytest.mark.parametrize("around", [custom, custom_advanced])
@pytest.mark.parametrize("make", [multistep, singlestep])
def test_inversion_and_back(host: Server, make: Any, around: Any) -> None:
    """Up a rising list and down the same one: second order loses less on the way."""
    start = sample(host, ksampler("dpmpp_2m", steps=40)).latent
    plain = {"add_noise": False, "cfg": 1.0}
    lost = {}
    for order in (1, 2):
        up = spaced(20, direction="rising")
        noise = sample(host, around(make(order=order), up, latent=loaded(host, start), **plain))
        down = {"up": up, "latent": loaded(host, noise.latent), **plain}
        flipped = node("FlipSigmas", sigmas=["up", 0])
        back = sample(host, around(make(order=order), flipped, **down))
        assert (noise.calls, back.calls) == (20, 20)
        assert 5.0 < noise.latent.std() < 25.0  # about sigma_max
        lost[order] = distance(back.latent, start)
    assert lost[2] < 0.5 * lost[1]
    assert lost[2] < 0.1


RELEASED = {
    "DPMSolver_2M": ["lower_order_final"],
    "DPMSolver_3M": ["lower_order_final"],
    "DPMSolver_Multistep": [
        *("algorithm", "order", "solver_type"),
        *("lower_order_final", "thresholding", "threshold_ratio", "threshold_max"),
        *("cfg_pp", "corrector"),
    ],
    "DPMSolver_Singlestep": [
        *("algorithm", "order", "solver_type", "grouping"),
        *("thresholding", "threshold_ratio", "threshold_max"),
    ],
    "DPMSolver_Adaptive": [
        *("algorithm", "order", "solver_type", "rtol", "atol", "max_calls"),
        *("controller", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety"),
        *("thresholding", "threshold_ratio", "threshold_max"),
    ],
    "DPMSolver_Sigmas": ["model", "steps", "denoise", "spacing", "final_zero", "direction"],
    "DPMSolver_Compare": [
        *("latent_image", "noise_seed", "candidates", "calls", "reference_calls", "cfg"),
        *("guider", "model", "positive", "negative", "vae"),
        *("more_candidates", "reference_sampler", "reference_sigmas"),
    ],
    "DPMSolver_Candidate": ["sampler", "scheduler", "label", "sigmas", "previous"],
    "DPMSolver_PlotSigmas": ["sigmas", "model", "sampler"],
    "DPMSolver_Recommended": ["model", "steps", "denoise"],
    "DPMSolver_Calibrate": [
        *("latent_image", "calls", "cfg", "seeds", "held_out", "model_calls", "batch"),
        *("noise_seed", "name", "guider", "model", "positive", "negative"),
    ],
    "DPMSolver_Calibrated": ["calibration", "model", "denoise"],
}


@pytest.mark.parametrize("name", RELEASED)
def test_inputs_keep_their_places(host: Server, name: str) -> None:
    """Workflow files hold values only by their place: new inputs come after the released ones."""
    order = host.object_info(name)[name]["input_order"]
    inputs = [*order.get("required", ()), *order.get("optional", ())]
    assert inputs[: len(RELEASED[name])] == RELEASED[name]
