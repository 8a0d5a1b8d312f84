"""The benchmark of errors measures what it says; its numbers are not judged here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dpm_solver_nodes.benchmarks import digits, quality
from dpm_solver_nodes.benchmarks.measure import (
    Cell,
    best,
    count,
    measure,
    summary,
)
from dpm_solver_nodes.benchmarks.pack_samplers import OURS, prepare
from dpm_solver_nodes.benchmarks.peers import Candidate, Run
from dpm_solver_nodes.benchmarks.quality import shortlist
from dpm_solver_nodes.benchmarks.report import report
from dpm_solver_nodes.benchmarks.scenarios import (
    SCENARIOS,
    Counted,
    DemoDenoiser,
    Scenario,
    converged,
)
from dpm_solver_nodes.lab.metrics import most_steps, rms
from dpm_solver_nodes.samplers.schedules.sigma_lists import SPACINGS

FEW = 3
DIGITS = SCENARIOS["digits"]


def cell(sampler: str, scheduler: str, calls: int, mean: float | None) -> Cell:
    return Cell("digits", "a family", sampler, scheduler, calls, calls, calls, mean, mean, mean)


def calling(per_step: int) -> Candidate:
    """Calls the model at every step so often, and returns the last output."""

    def prepare(scenario: Scenario, steps: int) -> Run:
        def run(model: Counted, noise: torch.Tensor) -> torch.Tensor:
            for _ in range(steps * per_step):
                x = model(scenario.start(noise), noise.new_tensor([scenario.sigma_max]))
            return x

        return run

    return Candidate("a family", f"{per_step} calls per step", "plain", prepare)


# --- the measure -----------------------------------------------------------------------------------


def test_the_error_is_the_root_mean_square_of_each_image() -> None:
    solution = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    x = solution.clone()
    x[0], x[1], x[2] = 1.0, -10.0, torch.tensor([[20.0, 0.0], [0.0, 0.0]])
    errors = rms(x, solution)
    assert errors.tolist() == pytest.approx([1.0, 10.0, 10.0])
    mean, median, p90 = summary(errors)
    assert mean == pytest.approx(100.0 ** (1.0 / 3.0))
    assert (median, p90) == (10.0, 10.0)


@pytest.mark.parametrize(
    ("calls", "steps", "calls_of"),
    [
        (10, 10, lambda steps: steps),
        (10, 5, lambda steps: 2 * steps),
        (10, 5, lambda steps: 2 * steps - 1),  # as heun, whose last step is an Euler step
        (10, 9, lambda steps: steps + 1),
        (10, 12, lambda steps: steps - 2),
        (10, 0, lambda steps: 11),
    ],
)
def test_a_budget_holds_as_many_steps_as_it_pays(
    calls: int, steps: int, calls_of: Callable[[int], int]
) -> None:
    assert most_steps(calls, calls_of) == steps


def test_cells_say_what_was_used_and_a_run_above_the_budget_has_no_result() -> None:
    model, noise = DIGITS.make(), DIGITS.noise(FEW, 0)
    solution = torch.zeros_like(noise)

    def used(candidate: Candidate) -> list[tuple[int, int, bool]]:
        cells = measure(DIGITS, candidate, (1, 5), model, noise, solution)
        return [(cell.used, cell.steps, cell.mean is not None) for cell in cells]

    assert used(calling(1)) == [(1, 1, True), (5, 5, True)]
    assert used(calling(2)) == [(0, 0, False), (4, 2, True)]
    assert used(replace(calling(2), as_asked=True)) == [(2, 1, False), (10, 5, False)]


def test_a_failure_is_a_cell_that_says_why() -> None:
    def prepare(scenario: Scenario, steps: int) -> Run:
        raise KeyError("no such option")

    failing = Candidate("a family", "failing", "plain", prepare)
    noise = DIGITS.noise(FEW, 0)
    (found,) = measure(DIGITS, failing, (5,), DIGITS.make(), noise, noise)
    assert found.mean is None
    assert found.reason == "KeyError: 'no such option'"


def test_counting_costs_no_calls_of_the_model() -> None:
    demo = replace(DIGITS, make=lambda **_: pytest.fail("the model was made"))
    assert count(demo, calling(2))(7) == 14


# --- the scenarios ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "digits-cfg7.5", "digits-flow"])
def test_the_solution_is_converged_and_samplers_come_to_it(name: str) -> None:
    scenario = SCENARIOS[name]
    noise = scenario.noise(FEW, 0)
    solution = converged(scenario, noise, 400)

    def error(x: torch.Tensor) -> float:
        return float(rms(x, solution).max())

    assert error(converged(scenario, noise, 200)) < 1e-4
    build = OURS["dpm_solver++_2m, logSNR"]
    errors = []
    for calls in (30, 120):
        sampler, sigmas = build(scenario, calls)
        assert len(sigmas) == calls + 1
        x = scenario.start(noise)
        errors.append(error(sampler(Counted(scenario.make()), x, sigmas, disable=True)))
    assert errors[1] < errors[0] / 8.0


def test_the_demo_network_is_handed_its_own_schedule_without_rounding() -> None:
    demo = SCENARIOS["demo"]
    model = DemoDenoiser()
    levels = model.levels.exp().tolist()
    assert demo.sigma_max == pytest.approx(levels[-1])
    assert demo.sigma_min == pytest.approx(levels[0])
    assert [model.time(levels[i]) for i in (0, 1, 500, 999)] == pytest.approx([0, 1, 500, 999])
    assert model.time((levels[3] * levels[4]) ** 0.5) == pytest.approx(3.5)
    x = demo.start(demo.noise(FEW, 0))
    assert model.predictions(x, x.new_tensor([demo.sigma_max]))[0].dtype == torch.float64


def test_guidance_goes_to_the_classes_given_and_noise_does_not_depend_on_the_number_of_images() -> (
    None
):
    x, sigma = 2.0 * digits.noise(4), torch.tensor([2.0])
    whole = digits.denoiser(False, 3.0, classes=(7, 2))(x, sigma)
    for k in range(4):
        alone = digits.denoiser(False, 3.0, classes=((7, 2)[k % 2],))(x[k : k + 1], sigma)
        assert (whole[k : k + 1] - alone).abs().max() < 1e-12
    assert torch.equal(digits.noise(64, 5)[:10], digits.noise(10, 5))


# --- choosing and reporting ------------------------------------------------------------------------


def test_the_best_is_the_smallest_mean_of_those_with_a_result() -> None:
    cells = [cell("a", "x", 5, 0.2), cell("a", "y", 5, 0.1), cell("b", "x", 5, None)]
    assert best(cells) is cells[1]
    assert best(cells[2:]) is None


def test_the_shortlist_holds_the_winners_and_then_the_steadiest() -> None:
    cells = [
        *(cell("fast", "x", 5, 0.1), cell("fast", "x", 10, 0.9)),
        *(cell("steady", "x", 5, 0.2), cell("steady", "x", 10, 0.02)),
        *(cell("good", "x", 5, 0.3), cell("good", "x", 10, 0.01)),
        *(cell("broken", "x", 5, None), cell("broken", "x", 10, 0.012)),
    ]
    names = [sampler for _, sampler, _ in shortlist(cells, 3)]
    assert names == ["fast", "good", "steady"]


def test_the_report_shows_ratios_targets_and_what_did_not_run() -> None:
    peer = cell("dpmpp_2m", "karras", 10, 0.08)
    own = [
        replace(peer, family="ours", sampler=name, scheduler="", mean=0.02)
        for name in ("recommended", "calibrated")
    ]
    text = report(
        "a title", [peer, *own, replace(peer, mean=None, reason="broken")], [], {"digits": 1e-7}
    )
    assert "0.25" in text
    assert text.count(" met") == 2  # each of the two at 10 calls
    assert "broken" in text


def test_a_tiny_run_writes_its_table_its_cells_and_its_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Our candidates on our spacings, one of them in a peer's place: no ComfyUI is imported here.
    def candidates(family: str, sampler: str) -> list[Candidate]:
        builds = {spacing: OURS[f"{sampler}, {spacing}"] for spacing in SPACINGS}
        return [
            Candidate(family, sampler, spacing, partial(prepare, build))
            for spacing, build in builds.items()
        ]

    families = {"ours": "dpm_solver++_2m", "ComfyUI": "dpm_solver++_2s"}
    monkeypatch.setattr(
        quality,
        "CANDIDATES",
        {
            family: lambda _, family=family, sampler=sampler: (candidates(family, sampler), [])
            for family, sampler in families.items()
        },
    )
    monkeypatch.setattr(quality, "_quiet", lambda: None)
    quality.candidates.cache_clear()
    try:
        options = ["--scenarios", "digits", "--images", "2", "--calls", "3", "6", "--jobs", "1"]
        quality.main([*options, "--out", str(tmp_path)])
    finally:
        quality.candidates.cache_clear()
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "quality.json").read_text())
    assert content["scenarios"]["digits"]["converged to"] < 1e-6
    cells = [Cell(**found) for found in content["cells"]]
    assert len(cells) == len(families) * len(SPACINGS) * 2
    for found in cells:
        assert found.mean is not None, found
        assert found.used == found.calls == found.steps
    least = min(c.mean for c in cells if c.calls == 6 and c.family == "ComfyUI" and c.mean)
    row = next(line for line in printed.splitlines() if line.startswith("best peer"))
    assert row.endswith(f"{least:9.4f}")
    assert (tmp_path / "quality.txt").read_text().strip() in printed
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
