"""The pack on every kind of `model_sampling` the host has, each around an exact denoiser.

Everything is measured once per host, inside the host's own Python (inside_models.py), and judged here
kind by kind against the converged solution of the kind's ODE.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.tests.comfyui.conftest import VERSIONS
from dpm_solver_nodes.tests.comfyui.measured_inside import measured

WITHIN = 0.2  # of a claimed order, as in test_order.py
SINCE_0_24 = {
    "v ddpm, zero terminal SNR",
    "flow, shift 3, noise scale 1.1",
    "flow, shift 3, noise scale 8",
}
KINDS = (
    "eps",
    "v",
    "v, zero terminal SNR",
    "v ddpm, zero terminal SNR",
    "x0",
    "image to image",
    "lcm",
    "edm",
    "edm, v",
    "edm, discrete",
    "continuous v",
    "cascade",
    "cascade, shift 2",
    "cosmos",
    "flow",
    "flow, shift 1.73, multiplier 1",
    "flow, shift 3",
    "flow, shift 13",
    "flow, shift 3, noise scale 1.1",
    "flow, shift 3, noise scale 8",
    "flux",
)
versions = pytest.mark.parametrize("version", VERSIONS)
kinds = pytest.mark.parametrize("kind", KINDS)


def of_kind(version: str, kind: str) -> dict[str, Any]:
    found = measured("inside_models.py", version)
    if kind in found["missing"]:
        pytest.skip(f"ComfyUI {version} has no such kind")
    return found["kinds"][kind]


@versions
def test_all_kinds_are_measured(version: str) -> None:
    found = measured("inside_models.py", version)
    assert set(found["kinds"]) == set(KINDS) - set(found["missing"])
    assert set(found["missing"]) <= SINCE_0_24


@versions
def test_zero_terminal_snr_starts_far_out(version: str) -> None:
    assert 4000.0 < of_kind(version, "v, zero terminal SNR")["ends"][0] < 5000.0


@kinds
@versions
def test_error_falls_through_the_whole_host(version: str, kind: str) -> None:
    """10, 20 and 40 calls in a KSampler, with the host's guider and model around the denoiser."""
    for sampler, errors in of_kind(version, kind)["through the host"].items():
        assert all(less < 0.6 * more for more, less in pairwise(errors)), (sampler, errors)


@kinds
@versions
def test_error_falls_for_every_sampler_and_list(version: str, kind: str) -> None:
    """10, 20 and 40 calls."""
    for case, errors in of_kind(version, kind)["few calls"].items():
        assert all(less < more for more, less in pairwise(errors)), (case, errors)
        # "normal" has a last step of 4 times the one before, and more the larger a flow's shift is.
        slowest = 0.6 if case == "dpm_solver++_2m, normal" else 0.4
        assert errors[-1] < slowest * errors[0], (case, errors)


@kinds
@versions
def test_order_is_the_claimed_one(version: str, kind: str) -> None:
    """From 500 to 2000 calls, to a fixed last sigma above zero, on flows from below 1."""
    for sampler, (claim, order, error) in of_kind(version, kind)["orders"].items():
        assert order > claim - WITHIN, (sampler, order, error)
        assert error < 1e-4, (sampler, error)


@pytest.mark.parametrize("kind", ["eps", "edm", "flow, shift 3"])
@versions
def test_calibrate_measures_against_what_the_menus_run(version: str, kind: str) -> None:
    """On small images too, for which the recommended sampler moves its sigmas."""
    for name, off in of_kind(version, kind)["rivals"].items():
        assert off < 1e-6, name  # sigmas in float32, there in float64


@versions
def test_order_from_a_flows_one(version: str) -> None:
    """The first step is of first order there, and so short that little is lost to it.

    The list is even in log-SNR from 1 - 1 / n on: its steps are about log(n) / n long, which takes
    some tenths off the fitted order.
    """
    orders = of_kind(version, "flow, shift 3")["orders from 1"]
    claims = {
        sampler: claim
        for sampler, (claim, *_) in of_kind(version, "flow, shift 3")["orders"].items()
    }
    for sampler, (order, error) in orders.items():
        assert order > claims[sampler] - 0.35, (sampler, order, error)


@kinds
@versions
def test_adaptive_error_falls_with_the_tolerance(version: str, kind: str) -> None:
    """Tolerances of 0.05, 0.005 and 0.0005."""
    for sampler, errors in of_kind(version, kind)["adaptive"].items():
        assert all(less < 0.5 * more for more, less in pairwise(errors)), (sampler, errors)
        assert errors[-1] < 1e-3, (sampler, errors)


@versions
def test_image_to_image_models_are_refused_in_a_clear_word(version: str) -> None:
    said = measured("inside_models.py", version)["refusals"]
    assert {f"{entry.id}, simple" for entry in CATALOG} < set(said)
    for case, message in said.items():
        assert "IMG_TO_IMG_FLOW" in message, case
        assert message.endswith("."), case


@versions
def test_a_noise_scale_changes_the_start_alone(version: str) -> None:
    equal = measured("inside_models.py", version)["noise scales"]
    if not equal:
        pytest.skip(f"ComfyUI {version} has no noise scale")
    assert all(equal.values()), equal
