"""Packs that set eta, s_noise, the noise or the solver type: they go by the signature of a sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpm_solver_nodes.samplers.catalog import CATALOG, entry
from dpm_solver_nodes.tests.comfyui.conftest import VERSIONS
from dpm_solver_nodes.tests.comfyui.test_registration import told
from dpm_solver_nodes.tests.support.digits import (
    MENU,
    SDE_NODE,
    STOCHASTIC,
    Graph,
    Node,
    custom,
    distance,
    menu,
    node,
    sample,
    scheduled,
    sde,
)
from dpm_solver_nodes.tools.server import Server

STEPS = 14
NOISE = {"eta", "s_noise", "noise_sampler"}
HOSTS_NOISE = {"eta": 0.6, "s_noise": 0.9}


def override(sampler: Node, **values: Any) -> Graph:
    inputs = {"eta": 1.0, "s_noise": 1.0, "solver_type": "midpoint", "noise": False, **values}
    wrapped = node("DPMSolverTest_Override", sampler=["own", 0], **inputs)
    return custom(wrapped, scheduled("karras", STEPS), own=sampler)


def node_of(name: str, **settings: Any) -> Node:
    """The SDE node with the settings of a stochastic entry, and these."""
    own, family = vars(entry(name).options), type(entry(name).options).__name__
    method = {"ErSde": "er_sde", "Ancestral": "2s_ancestral"}.get(family, family.lower())
    return sde(
        **{**{key: own[key] for key in SDE_NODE if key in own}, "method": method, **settings}
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("one", CATALOG, ids=lambda one: one.id)
def test_what_is_shown_is_taken_and_no_more(version: str, one: Any) -> None:
    shown = told(version)["shown"][one.id]
    assert set(shown) == set(told(version)["taken"][one.id])
    assert NOISE & shown.keys() == (NOISE if one.stochastic else set())
    assert ("solver_type" in shown) == (getattr(one.options, "solver_type", "") == "dpmsolver")
    assert ("rtol" in shown) == one.adaptive
    assert not shown.keys() & {"algorithm", "order", "schedule", "unconditional", "cfg_pp"}
    if one.stochastic:
        assert shown["eta"] == repr(one.options.eta) and shown["s_noise"] == "1.0"


@pytest.mark.parametrize("name", STOCHASTIC)
def test_eta_and_s_noise_are_those_of_the_node(host: Server, name: str) -> None:
    ours = sample(host, override(menu(name), **HOSTS_NOISE))
    same = sample(host, custom(node_of(name, **HOSTS_NOISE), scheduled("karras", STEPS)))
    assert ours.calls == same.calls == STEPS
    assert torch.equal(ours.latent, same.latent)
    untouched = sample(host, custom(menu(name), scheduled("karras", STEPS)))
    assert distance(ours, untouched) > 1e-3
    assert torch.equal(sample(host, override(menu(name))).latent, untouched.latent)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_of_others(host: Server, name: str) -> None:
    untouched = sample(host, custom(menu(name), scheduled("karras", STEPS)))
    assert distance(sample(host, override(menu(name), noise=True)), untouched) > 1e-3


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_it_is_the_hosts_2m_sde_then(host: Server, solver_type: str) -> None:
    """With the same noise in both."""
    values = {**HOSTS_NOISE, "solver_type": solver_type, "noise": True}
    ours, theirs = (
        sample(host, override(menu(name), **values))
        for name in ("sde_dpm_solver++_2m", "dpmpp_2m_sde")
    )
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", [name for name in MENU if name not in STOCHASTIC])
def test_no_noise_comes_to_a_sampler_that_adds_none(host: Server, name: str) -> None:
    untouched = sample(host, custom(menu(name), scheduled("karras", STEPS)))
    given = sample(host, override(menu(name), noise=True))
    assert torch.equal(given.latent, untouched.latent)
    assert given.calls == untouched.calls


def test_a_node_keeps_what_was_set_in_it(host: Server) -> None:
    exact = sde(order=3, solver_type="exact", eta=0.3)
    set_anew = sde(order=3, solver_type="exact", eta=0.8)
    ours = sample(host, override(exact, eta=0.8))
    assert torch.equal(
        ours.latent, sample(host, custom(set_anew, scheduled("karras", STEPS))).latent
    )
