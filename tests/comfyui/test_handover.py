"""A run in parts: a first model or node hands its noisy latent over to a second.

A sampler that starts in the middle of a list knows nothing of the steps before. So parts equal the
whole run where no step reaches back across the seam: at order 1, and for singlestep solvers at the
boundary of a group. Elsewhere something is lost, and `test_what_a_seam_costs` prints how much.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpm_solver_nodes.tests.support.digits import (
    Graph,
    Node,
    Sampled,
    custom_advanced,
    distance,
    ksampler,
    menu,
    multistep,
    node,
    sample,
    scheduled,
    spaced,
)
from dpm_solver_nodes.tools.server import Server

SD3 = node("ModelSamplingSD3", shift=3.0)
ALGORITHMS = ("dpmsolver++", "dpmsolver")
FIVE = {
    "digit": "0,3,4,7,8",
    "latent": node("EmptyLatentImage", width=128, height=128, batch_size=5),
}
STEPS = 20


def singlestep(**settings: Any) -> Node:
    defaults = {"algorithm": "dpmsolver++", "solver_type": "dpmsolver", "grouping": "fixed"}
    return node("DPMSolver_Singlestep", **{**defaults, **settings})


def in_parts(sampler: Node, sigmas: Node, *splits: int, **options: Any) -> Graph:
    """SplitSigmas and one SamplerCustomAdvanced per part, in one graph."""
    graph = custom_advanced(sampler, sigmas, **options)
    whole = graph["sample"]
    graph["quiet"] = node("DisableNoise")
    rest, done, before = ["sigmas", 0], 0, whole["inputs"]["latent_image"]
    for i, split in enumerate((*splits, None)):
        inputs = {**whole["inputs"], "latent_image": before, "sigmas": rest}
        if i > 0:
            inputs["noise"] = ["quiet", 0]
        if split is not None:
            graph[f"split{i}"] = node("SplitSigmas", sigmas=rest, step=split - done)
            inputs["sigmas"], rest, done = [f"split{i}", 0], [f"split{i}", 1], split
        name = "sample" if split is None else f"part{i}"
        graph[name] = node(whole["class_type"], **inputs)
        before = [name, 0]
    return graph


def in_two_nodes(name: str, split: int, **options: Any) -> Graph:
    """Two KSamplerAdvanced, of which the first leaves its noise in."""
    graph = ksampler(name, start_at_step=0, end_at_step=split, steps=STEPS, **options)
    first = graph["sample"]
    second = {"start_at_step": split, "end_at_step": 10000, "latent_image": ["first", 0]}
    second |= {"add_noise": "disable", "return_with_leftover_noise": "disable"}
    return graph | {
        "first": first,
        "sample": node("KSamplerAdvanced", **{**first["inputs"], **second}),
    }


ON_MODELS: dict[str, tuple[Node, list[Node]]] = {
    "digits": (scheduled("karras", STEPS), []),
    "flow": (spaced(STEPS), [SD3]),
}
# On a flow the first step, from sigma 1, is a group of its own.
LOSSLESS: dict[str, tuple[Node, dict[str, tuple[int, ...]]]] = {
    "multistep, order 1": (multistep(order=1), {"digits": (1, 10, 19), "flow": (1, 10, 19)}),
    "noise, order 1": (
        multistep(order=1, algorithm="dpmsolver"),
        {"digits": (10,), "flow": (10,)},
    ),
    "singlestep, order 1": (singlestep(order=1), {"digits": (7,), "flow": (7,)}),
    **{
        f"{algorithm}, singlestep, order {order}": (
            singlestep(order=order, algorithm=algorithm),
            {
                "digits": (order, order * (10 // order), order * (18 // order)),
                "flow": (1, 1 + order, 1 + order * (10 // order)),
            },
        )
        for algorithm in ALGORITHMS
        for order in (2, 3)
    },
}


@pytest.mark.parametrize("kind", ON_MODELS)
@pytest.mark.parametrize("solver", LOSSLESS)
def test_where_nothing_is_lost(host: Server, solver: str, kind: str) -> None:
    (sampler, splits), (sigmas, patches) = LOSSLESS[solver], ON_MODELS[kind]
    whole = sample(host, custom_advanced(sampler, sigmas, patches=patches))
    parts = sample(host, in_parts(sampler, sigmas, *splits[kind], patches=patches))
    assert parts.calls == whole.calls == STEPS
    assert distance(parts, whole) < 1e-5 * float(whole.latent.abs().max())


@pytest.mark.parametrize("name", ["dpm_solver++_2s", "dpm_solver_2s"])
def test_two_ksamplers_at_the_boundary_of_a_pair(host: Server, name: str) -> None:
    whole = sample(host, ksampler(name, steps=STEPS))
    parts = sample(host, in_two_nodes(name, 14))
    assert parts.calls == STEPS
    assert distance(parts, whole) < 1e-5
    inside_a_pair = sample(host, in_two_nodes(name, 7))
    assert inside_a_pair.calls == STEPS
    assert distance(inside_a_pair, whole) > 1e-4


SEAMED = [f"dpm_solver++_{kind}" for kind in ("2m", "3m", "3m_exact", "3s")]


@pytest.fixture(scope="module")
def converged(host: Server) -> Sampled:
    solver = menu("dpm_solver++_3m_exact")
    return sample(host, custom_advanced(solver, scheduled("karras", 100), **FIVE))


@pytest.mark.parametrize("scheduler", ["karras", "dpm_solver_log_snr"])
def test_what_a_seam_costs(host: Server, converged: Sampled, scheduler: str) -> None:
    """20 steps split at 10, over five digits, beside the error of the whole run itself.

    `pytest -s` shows the table; the help pages quote it.
    """
    sigmas = scheduled(scheduler, STEPS)
    rows = []
    for name in SEAMED:
        whole = sample(host, custom_advanced(menu(name), sigmas, **FIVE))
        parts = sample(host, in_two_nodes(name, 10, scheduler=scheduler, **FIVE))
        assert parts.calls == whole.calls == STEPS
        lost, error = distance(parts, whole), distance(whole, converged)
        rows.append((name, lost, error, distance(parts, converged)))
    print(f"\n{scheduler}: halves to whole, whole to converged, halves to converged, lost / error")
    for name, lost, error, then in rows:
        print(f"{name:24} {lost:9.5f} {error:9.5f} {then:9.5f} {lost / error:7.2f}")
    for name, lost, error, then in rows:
        assert 1e-4 < lost < 2.5 * error, (name, lost, error)
        assert then < 2.5 * error, (name, then, error)


@pytest.mark.parametrize("name", ["dpm_solver++_2m", "dpm_solver++_3s"])
def test_both_ways_of_splitting_agree(host: Server, name: str) -> None:
    split = sample(host, in_parts(menu(name), scheduled("karras", STEPS), 9))
    assert distance(split, sample(host, in_two_nodes(name, 9))) < 1e-5


def test_a_batch_is_handed_over_image_by_image(host: Server) -> None:
    """With leftover noise, and each image the one that it is alone."""
    two = node("EmptyLatentImage", width=128, height=128, batch_size=2)
    together = sample(host, in_two_nodes("dpm_solver++_2m", 9, latent=two, digit="4,9"))
    for k, digit in enumerate("49"):
        one = node("LatentFromBatch", samples=["two", 0], batch_index=k, length=1)
        graph = in_two_nodes("dpm_solver++_2m", 9, latent=one, digit=digit) | {"two": two}
        alone = sample(host, graph)
        assert alone.calls == STEPS
        assert torch.isfinite(alone.latent).all()
        assert distance(alone, together.latent[k : k + 1]) < 1e-5
