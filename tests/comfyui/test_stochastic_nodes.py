"""The stochastic samplers through the server: whose noise it is, how much of it, and what it comes to.

Most runs start from a latent of noise of our own and add none to it, so that what two images differ
by is the noise of the SDE.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.comfyui.conftest import VERSIONS
from dpm_solver_nodes.tests.comfyui.measured_inside import measured
from dpm_solver_nodes.tests.support.digits import (
    STOCHASTIC,
    Graph,
    Node,
    complaint,
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
    spaced,
)
from dpm_solver_nodes.tools.server import Server

SD3 = node("ModelSamplingSD3", shift=3.0)
SIGMA_MAX = 14.6146
STEPS = 12


def noise(batch: int, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SIGMA_MAX * torch.randn(batch, 1, 16, 16, generator=generator)


def quiet(sampler: Node, start: Node, steps: int = STEPS, **options: Any) -> Graph:
    """SamplerCustom that adds no noise of its own."""
    return custom(sampler, scheduled("karras", steps), latent=start, add_noise=False, **options)


def singlestep(**settings: Any) -> Node:
    defaults = {"algorithm": "dpmsolver++", "order": 2, "solver_type": "dpmsolver"}
    return node("DPMSolver_Singlestep", **{**defaults, "grouping": "fast", **settings})


# --- the seed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_seed_is_the_noise(host: Server, name: str) -> None:
    start = loaded(host, noise(1))
    one, again, other = (
        sample(host, quiet(menu(name), start, seed=seed)).latent for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert distance(one, other) > 0.05
    inputs: dict[str, Any] = {"latent": start, "add_noise": "disable", "noise_seed": 1}
    inputs |= {"start_at_step": 0, "end_at_step": 10000, "steps": STEPS}
    advanced = ksampler(name, **inputs)
    assert torch.equal(one, sample(host, advanced).latent)


def test_large_and_neighbouring_seeds(host: Server) -> None:
    start = loaded(host, noise(1))
    seeds = (0, 1, 2**32, 2**63, 2**64 - 1)
    results = [sample(host, quiet(sde(), start, seed=seed)).latent for seed in seeds]
    for one, other in itertools.combinations(results, 2):
        assert distance(one, other) > 0.05


def test_disabled_noise_has_the_seed_0(host: Server) -> None:
    """That is what the host says for DisableNoise: a second stage always draws the same noise."""
    start = loaded(host, noise(1))
    options: dict[str, Any] = {"latent": start, "add_noise": False}
    advanced = sample(host, custom_advanced(sde(), scheduled("karras", STEPS), **options))
    plain = sample(host, quiet(sde(), start, seed=0))
    assert torch.equal(advanced.latent, plain.latent)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_an_image_has_its_noise_in_a_batch_of_any_size(host: Server, name: str) -> None:
    five = noise(5)
    batches = {
        n: sample(host, quiet(menu(name), loaded(host, five[:n]), digit="0,1,2,3,4")).latent
        for n in (1, 3, 5)
    }
    assert distance(batches[3], batches[5][:3]) < 1e-5
    assert distance(batches[1], batches[5][:1]) < 1e-5


def test_the_images_of_a_batch_have_noise_of_their_own(host: Server) -> None:
    start = noise(1).repeat(4, 1, 1, 1)
    ordinary = sample(host, quiet(sde(eta=0.0), loaded(host, start))).latent
    assert distance(ordinary[:1], ordinary[1:]) < 1e-5
    results = sample(host, quiet(sde(), loaded(host, start))).latent
    for one, other in itertools.combinations(results, 2):
        assert distance(one, other) > 0.05


def test_more_steps_refine_the_same_image(host: Server) -> None:
    start = loaded(host, noise(1))
    few, some, many, other = (
        sample(host, quiet(sde(), start, steps=steps, seed=seed))
        for steps, seed in ((20, 1), (60, 1), (240, 1), (240, 2))
    )
    assert distance(some, many) < distance(few, many)
    assert distance(some, many) < 0.5 * distance(other, many)


# --- how much noise ------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_noise_it_is_the_ordinary_solver(host: Server, order: int, algorithm: str) -> None:
    base = {"algorithm": algorithm, "order": order}
    for solver_type in ("dpmsolver", "taylor", "exact"):
        settings = {**base, "solver_type": solver_type}
        ours, theirs = (
            sample(host, custom_advanced(sampler, scheduled("karras", STEPS)))
            for sampler in (sde(eta=0.0, **settings), multistep(**settings))
        )
        assert ours.calls == theirs.calls == STEPS
        assert distance(ours, theirs) < 1e-6
    ours, theirs = (
        sample(host, custom_advanced(sampler, scheduled("karras", STEPS)))
        for sampler in (sde(eta=0.0, method="singlestep", **base), singlestep(**base))
    )
    assert ours.calls == theirs.calls == STEPS
    assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_eta_and_s_noise(host: Server, method: str) -> None:
    """A little eta changes the image a little; s_noise 0 takes the noise, but not what eta does."""
    start = loaded(host, noise(1))

    def of(**settings: float) -> torch.Tensor:
        return sample(host, quiet(sde(method=method, **settings), start)).latent

    plain, little, full = (of(eta=eta) for eta in (0.0, 0.02, 1.0))
    assert 0.0 < distance(plain, little) < 0.5 * distance(plain, full)
    silent = of(eta=1.0, s_noise=0.0)
    assert distance(silent, plain) > 0.01
    assert torch.equal(
        silent, sample(host, quiet(sde(method=method, s_noise=0.0), start, seed=2)).latent
    )
    assert 0.0 < distance(of(s_noise=0.9), full) < distance(silent, full)
    assert torch.isfinite(of(eta=4.0, s_noise=2.0)).all()


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_calls(host: Server, eta: float, order: int, method: str) -> None:
    sampler = sde(eta=eta, order=order, method=method)
    if method == "singlestep" and order == 3 and eta > 0.0:
        message, calls = complaint(host, custom(sampler, spaced(9)))
        assert "order 3" in message and "eta" in message and message.endswith(".")
        assert calls == 0
        return
    for steps in (1, 8):
        result = sample(host, custom(sampler, spaced(steps)))
        assert result.calls == steps
        assert torch.isfinite(result.latent).all()


@pytest.mark.parametrize("method", ["er_sde", "2s_ancestral"])
def test_methods_of_one_formula(host: Server, method: str) -> None:
    """They are the menu's, and take no noise form."""
    order = {"er_sde": 3, "2s_ancestral": 2}[method]
    start = loaded(host, noise(1))
    for cfg_pp in (False, True):
        name = f"dpm_solver++_{method}" + "_cfg_pp" * cfg_pp
        sampler = sde(method=method, order=order, cfg_pp=cfg_pp, solver_type="taylor")
        ours, listed = (sample(host, quiet(which, start)).latent for which in (sampler, menu(name)))
        assert torch.equal(ours, listed)
    message, calls = complaint(host, quiet(sde(method=method, algorithm="dpmsolver"), start))
    assert "algorithm" in message and method in message and message.endswith(".")
    assert calls == 0


@pytest.mark.parametrize("patches", [[], [SD3]], ids=["eps", "flow"])
@pytest.mark.parametrize("method", ["multistep", "singlestep", "er_sde", "2s_ancestral"])
def test_noise_in_a_part_of_the_run(host: Server, method: str, patches: list[Node]) -> None:
    """The host's SA-Solver has it by the same shares of the time."""
    settings: dict[str, Any] = {"method": method, "lower_order_final": "off"}
    settings["solver_type"] = (
        "taylor"  # 2M, of the type dpmsolver, has a variable of its own on flows
    )

    def of(seed: int = 1, **more: float) -> torch.Tensor:
        sampler, sigmas = sde(**settings, **more), scheduled("simple", STEPS)
        graph = custom(sampler, sigmas, patches=patches, seed=seed, cfg=1.0, add_noise=False)
        graph["latent"] = loaded(host, noise(1) / (SIGMA_MAX if patches else 1.0))
        return sample(host, graph).latent

    plain, whole = of(eta=0.0), of()
    assert torch.equal(of(noise_start=0.0, noise_end=1.0), whole)
    assert torch.equal(of(noise_start=0.999), plain)
    early, late = of(noise_end=0.4), of(noise_start=0.6)
    assert 0.0 not in (apart := [distance(plain, one) for one in (whole, early, late)])
    assert len(set(map(float, apart))) == 3


def test_settings_that_do_not_go_together(host: Server) -> None:
    for settings, name in (
        ({"noise_start": 0.6, "noise_end": 0.4}, "noise_end"),
        ({"r": 0.5}, "r = 0.5"),
        ({"r": 0.5, "method": "singlestep", "order": 1}, "r = 0.5"),
        ({"method": "2s_ancestral", "eta": 1.5}, "eta"),
        ({"method": "2s_ancestral", "order": 3}, "order"),
    ):
        message, calls = complaint(host, custom(sde(**settings), spaced(5)))
        assert name in message and message.endswith(".")
        assert calls == 0


def test_singlestep_has_no_cfg_pp(host: Server) -> None:
    message, calls = complaint(host, custom(sde(method="singlestep", cfg_pp=True), spaced(5)))
    assert "cfg_pp" in message and "multistep" in message and message.endswith(".")
    assert calls == 0


# --- beside the host's own -----------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_with_one_noise_it_is_the_hosts(version: str) -> None:
    """On either kind of model, flows with a noise scale included."""
    twins = measured("inside_solvers.py", version)["twins"]
    assert len(twins) >= 56
    for case, difference in twins.items():
        in_float32 = "er sde" in case and "er sde 1" not in case  # the host's sums of er_sde
        assert difference < (1e-6 if in_float32 else 1e-12), case


@pytest.mark.parametrize("version", VERSIONS)
def test_the_images_are_those_of_the_model(version: str) -> None:
    """An exact model's: their mean, their spread, and how many there are of which kind."""
    found = measured("inside_solvers.py", version)["statistics"]
    exact = found.pop("exact")
    assert len(found) == 14
    for case, numbers in found.items():
        assert numbers == pytest.approx(exact, abs=0.04), case


def moments(images: torch.Tensor, axes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation along each of the axes, which are [n, 256]."""
    along = images.flatten(1).double() @ axes.T
    return along.mean(0), along.std(0)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_many_images_are_spread_as_the_hosts(host: Server, kind: str) -> None:
    """Each sampler with noise of its own, so that only the distributions can be the same."""
    count, patches = 100, [SD3] if kind == "flow" else []
    latent = node("EmptyLatentImage", width=128, height=128, batch_size=count)
    # From a seed of its own each, as the starting noise too comes from it.
    theirs_node = node(
        "SamplerDPMPP_2M_SDE",
        **{"solver_type": "midpoint", "eta": 1.0, "s_noise": 1.0, "noise_device": "cpu"},
    )

    def images(sampler: Node, seed: int) -> torch.Tensor:
        sigmas = spaced(16)
        return sample(
            host, custom(sampler, sigmas, latent=latent, patches=patches, cfg=1.0, seed=seed)
        ).latent

    theirs = images(theirs_node, seed=3)
    centred = theirs.flatten(1).double() - theirs.flatten(1).double().mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:6]
    mean, spread = moments(theirs, axes)

    def differs(other: torch.Tensor) -> float:
        """The largest difference of a mean or a spread, in standard errors."""
        their_mean, their_spread = moments(other, axes)
        pooled = ((spread**2 + their_spread**2) / 2).sqrt() * (2 / count) ** 0.5
        means = (mean - their_mean).abs() / pooled
        spreads = (spread / their_spread).log().abs() / (1 / count) ** 0.5
        return float(torch.cat((means, spreads)).max())

    assert differs(images(menu("sde_dpm_solver++_2m"), seed=4)) < 4.0
    assert differs(images(sde(s_noise=0.5), seed=4)) > 5.0  # so it would have been seen


# --- flows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_flow_from_one(host: Server, name: str) -> None:
    """Every scheduler's list, finite; other seeds are other images."""
    for scheduler in ("simple", "dpm_solver_log_snr"):
        images = [
            sample(
                host,
                ksampler(name, patches=[SD3], scheduler=scheduler, steps=10, seed=seed, cfg=1.0),
            ).latent
            for seed in (1, 2)
        ]
        assert all(torch.isfinite(image).all() for image in images)
        assert distance(*images) > 0.01


@pytest.mark.parametrize(
    "name", [name for name in STOCHASTIC if "cfg_pp" not in name and "ancestral" not in name]
)
def test_all_noise_of_a_flows_first_step_is_fresh(host: Server, name: str) -> None:
    """From 1 to 0.6, eta 1: 0.4 of the denoised image, as the Euler step has it, and noise of 0.6."""
    sampler, steps = menu(name), listed("1, 0.6")
    options: dict[str, Any] = {"patches": [SD3]}
    batch = node("EmptyLatentImage", width=128, height=128, batch_size=40)
    result = sample(host, custom(sampler, steps, latent=batch, **options)).latent
    final = sample(host, custom(menu("euler"), listed("1, 0"), latent=batch, **options)).latent
    # The host returns both divided by 1 - sigma.
    fresh = (result - final) * (0.4 / 0.6)
    assert float(fresh.mean()) == pytest.approx(0.0, abs=0.04)
    assert float(fresh.std()) == pytest.approx(1.0, abs=0.02)
    old = sample(host, custom(menu("euler"), listed("1, 0.6"), latent=batch, **options)).latent
    old = (old - final) * (0.4 / 0.6)
    assert float((fresh * old).mean()) == pytest.approx(0.0, abs=0.04)
    assert float((old * old).mean()) == pytest.approx(1.0, abs=0.04)


def test_a_flows_noise_scale_multiplies_the_noise(host: Server) -> None:
    if not host.object_info("ModelNoiseScale"):
        pytest.skip("this host knows no noise scale")
    start, below_one = loaded(host, noise(1) / SIGMA_MAX), listed("0.9, 0.7, 0.4, 0.2, 0")

    def graph(scale: float, s_noise: float, method: str, seed: int = 1) -> Graph:
        patches = [SD3, node("ModelNoiseScale", noise_scale=scale)]
        sampler = sde(s_noise=s_noise, method=method)
        options: dict[str, Any] = {"latent": start, "add_noise": False, "seed": seed}
        return custom(sampler, below_one, patches=patches, **options)

    for method in ("multistep", "singlestep"):
        one, two, as_two, little, other_little = (
            sample(host, graph(*settings))
            for settings in (
                *((1.0, 1.0, method), (2.0, 1.0, method), (1.0, 2.0, method)),
                *((0.01, 1.0, method), (0.01, 1.0, method, 2)),
            )
        )
        assert distance(two, as_two) < 1e-5
        assert distance(two, one) > 1e-2
        assert 0.0 < distance(little, other_little) < 0.1 * distance(little, one)
    message, calls = complaint(host, graph(0.0, 1.0, "multistep"))
    assert "noise_scale" in message and message.endswith(".")
    assert calls == 0


# --- parts of an image ---------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [sde(), sde(method="singlestep"), sde(cfg_pp=True)])
def test_a_masked_part_is_kept(host: Server, sampler: Node) -> None:
    image = sample(host, ksampler("dpmpp_2m")).latent.repeat(2, 1, 1, 1)
    graph = custom(sampler, scheduled("karras", STEPS), digit="3,8") | {
        "base": loaded(host, image),
        "mask": node("SolidMask", value=1.0, width=8, height=16),
        "nothing": node("SolidMask", value=0.0, width=16, height=16),
        "half": node(
            "MaskComposite",
            **{"destination": ["nothing", 0], "source": ["mask", 0], "x": 8, "y": 0},
            operation="add",
        ),
        "latent": node("SetLatentNoiseMask", samples=["base", 0], mask=["half", 0]),
    }
    result = sample(host, graph)
    assert result.calls == STEPS
    difference = (result.latent - image).abs()
    assert difference[..., :8].max() < 1e-5
    assert difference[..., 8:].mean() > 0.03


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_image_to_image_goes_further_with_more_noise(host: Server, method: str) -> None:
    image = sample(host, ksampler("dpmpp_2m")).latent
    lengths = []
    for denoise in (0.1, 0.4, 0.9):
        sigmas = scheduled("karras", STEPS, denoise)
        graph = custom(sde(method=method), sigmas, latent=loaded(host, image), seed=7)
        result = sample(host, graph)
        assert result.calls == STEPS
        lengths.append(distance(result, image))
    assert lengths == sorted(lengths)
    assert lengths[0] < 0.2 < lengths[-1]
