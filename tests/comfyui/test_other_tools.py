"""Under tools that skip or change model calls: what docs/other-tools.md promises.

Everything is measured once per host, inside the host's own Python (inside_other_tools.py), and judged
here. DPM_SOLVER_OTHER_PACKS names a folder that may hold a clone of ComfyUI-Detail-Daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dpm_solver_nodes.samplers.catalog import CATALOG, Entry
from dpm_solver_nodes.samplers.solvers.ancestral import Ancestral
from dpm_solver_nodes.tests.comfyui.conftest import PACKS, VERSIONS
from dpm_solver_nodes.tests.comfyui.measured_inside import measured
from dpm_solver_nodes.tests.comfyui.test_beside_packs import hosted
from dpm_solver_nodes.tests.support.digits import (
    FIXED,
    MENU,
    Graph,
    Node,
    custom,
    distance,
    menu,
    multistep,
    node,
    sample,
    scheduled,
)
from dpm_solver_nodes.tools.server import Server

SCRIPT = "inside_other_tools.py"
RECOMMENDED = "dpm_solver++_recommended"
SMALL = ("digits", "emoji flow")
"""Models of small images, to which the recommended sampler moves its own list."""

MODELS = (*SMALL, "unet", "mmdit")
TOOLS = (
    *("RescaleCFG", "CFGNorm", "CFGZeroStar", "SkipLayerGuidanceSD3"),
    *("SkipLayerGuidanceDiTSimple", "FreeU_V2", "CFGOverride"),
)
LATER_THAN_0_16 = {"CFGOverride"}
CACHES = ("EasyCache", "LazyCache")
ROUNDING = 1e-5
"""Of float32, relative to the size of the images."""

NO_FARTHER = 1.6
"""How much farther a cache may move an image than that of the host's own sampler."""

versions = pytest.mark.parametrize("version", VERSIONS)
entries = pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.id)


# --- one call a step, at the listed sigma, in order ----------------------------------------------


@entries
@versions
def test_one_call_a_step_at_the_listed_sigma(version: str, entry: Entry) -> None:
    """The exceptions are the page's: adaptive, 2S ancestral, and a list moved to small images."""
    for name in MODELS:
        for scheduler in ("beta", "dpm_solver_recommended"):
            ran = measured(SCRIPT, version)["contract"].get(f"{name}, {scheduler}, {entry.id}")
            if ran is None:
                continue
            calls, sigmas = ran["calls"], ran["sigmas"]
            assert ran["finite"]
            if entry.adaptive:
                assert entry.calls == "as many as it takes"
                assert calls[0] == sigmas[0] and max(calls) == sigmas[0]
                continue
            assert entry.calls == "1 per step"
            assert len(calls) == len(sigmas) - 1
            assert calls == sorted(calls, reverse=True)
            if isinstance(entry.options, Ancestral):
                # The second call of a pair lies between the listed sigmas.
                assert 2 * len(set(calls) & set(sigmas)) >= len(calls)
            elif (entry.id, scheduler) == (RECOMMENDED, "dpm_solver_recommended"):
                assert calls[0] == sigmas[0] and calls != sigmas[:-1]
            else:
                assert calls == sigmas[:-1]


@entries
@versions
def test_tools_find_each_call_in_the_hosts_list(version: str, entry: Entry) -> None:
    """Context windows and other packs look up the step in `sample_sigmas`, by equality."""
    if entry.adaptive or isinstance(entry.options, Ancestral):
        pytest.skip("its calls lie between the listed sigmas")
    found = measured(SCRIPT, version)["contract"]
    assert all(ran["told"] for case, ran in found.items() if case.endswith(f", {entry.id}"))


# --- tools that change the prediction only -------------------------------------------------------


def under(version: str, tool: str) -> dict[str, Any]:
    found = measured(SCRIPT, version)["predictions"][tool]
    if found is None:
        assert tool in LATER_THAN_0_16
        pytest.skip(f"ComfyUI {version} has no {tool}")
    return dict(found)


@pytest.mark.parametrize("tool", TOOLS)
@versions
def test_the_solver_sees_the_changed_prediction_and_nothing_else(version: str, tool: str) -> None:
    found = under(version, tool)
    assert found["from no tool"] > 0.01 * found["size"]  # the tool tells
    assert found["from dpmpp_2m"] < ROUNDING * found["size"]
    ran = {name: one for name, one in found.items() if isinstance(one, dict)}
    assert {one.id for one in CATALOG if not (one.stochastic or one.adaptive)} == set(ran)
    for name, one in ran.items():
        assert one["finite"] and one["calls"] == one["sigmas"][:-1], name
        assert one.get("from the solver by itself", 0.0) < ROUNDING * found["size"], name


# --- tools that skip calls -----------------------------------------------------------------------


@pytest.mark.parametrize("tool", CACHES)
@pytest.mark.parametrize("model", SMALL)
@versions
def test_caches_skip_what_they_skip_of_the_hosts_samplers(
    version: str, model: str, tool: str
) -> None:
    """All calls of the solver are made; the cache answers some of them instead of the network."""
    found = measured(SCRIPT, version)["caches"][model][tool]
    for name, one in found.items():
        assert one["finite"], name
        assert len(one["calls"]) == len(one["sigmas"]) - 1, name
        assert 0.4 * len(one["calls"]) < one["networks"] < 0.8 * len(one["calls"]), name
    same = abs(found["dpm_solver++_2m"]["moved"] - found["dpmpp_2m"]["moved"])
    assert same < 1e-3
    worst = max(found["euler"]["moved"], found["dpmpp_2m"]["moved"])
    for name, one in found.items():
        if "cfg_pp" not in name:
            assert one["moved"] < NO_FARTHER * worst, name
        elif tool == "EasyCache":  # LazyCache has no prediction without the prompt
            assert one["moved"] < NO_FARTHER * found["euler_cfg_pp"]["moved"], name


# --- a list made for another shift ---------------------------------------------------------------


@versions
def test_a_shift_after_the_sigmas_changes_nothing(version: str) -> None:
    """A flow's shift decides its list, which is there already; one line says what is taken."""
    found = measured(SCRIPT, version)["shifts"]
    assert len({case.split(", ")[0] for case in found}) == 3
    for case, one in found.items():
        assert one["finite"] and one["told"], case
        assert len(one["calls"]) == len(one["sigmas"]) - 1, case
        assert one["moved"] < ROUNDING, case
        (line,) = one["lines"]
        own = "its own sigmas and weights" in line
        assert own == ("dpm_solver_recommended" in case), (case, line)
        assert own or "on other sigmas than its own" in line, (case, line)


# --- Detail Daemon -------------------------------------------------------------------------------

OTHERS = os.environ.get("DPM_SOLVER_OTHER_PACKS", "")
DETAIL_DAEMON = Path(OTHERS, "ComfyUI-Detail-Daemon")
STEPS = 12


@pytest.fixture(scope="module")
def with_detail_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not OTHERS or not DETAIL_DAEMON.is_dir():
        pytest.skip("DPM_SOLVER_OTHER_PACKS names no folder with a clone of ComfyUI-Detail-Daemon")
    packs = {**PACKS, DETAIL_DAEMON.name: DETAIL_DAEMON.resolve()}
    with hosted(tmp_path_factory.mktemp("daemon"), VERSIONS[0], packs) as server:
        assert "IMPORT FAILED" not in server.log(), server.log()
        yield server


def daemon(sampler: Node) -> Graph:
    amount = {"detail_amount": 0.5, "start": 0.2, "end": 0.8, "bias": 0.5, "exponent": 1.0}
    rest = {"start_offset": 0.0, "end_offset": 0.0, "fade": 0.0, "smooth": True}
    inputs = {**amount, **rest, "cfg_scale_override": 0.0}
    wrapped = node("DetailDaemonSamplerNode", sampler=["own", 0], **inputs)
    return custom(wrapped, scheduled("karras", STEPS), own=sampler)


def test_detail_daemon_changes_2m_as_it_changes_the_hosts(with_detail_daemon: Server) -> None:
    server, plain = with_detail_daemon, multistep(lower_order_final="off")
    ours, theirs = (sample(server, daemon(one)) for one in (plain, menu("dpmpp_2m")))
    assert distance(ours, theirs) < ROUNDING
    assert distance(ours, sample(server, custom(plain, scheduled("karras", STEPS)))) > 1e-3


@pytest.mark.parametrize("name", MENU)
def test_detail_daemon_around_every_sampler(with_detail_daemon: Server, name: str) -> None:
    ran = sample(with_detail_daemon, daemon(menu(name)))
    assert ran.calls == STEPS if name in FIXED else ran.calls > 0
    assert torch.isfinite(ran.latent).all()
