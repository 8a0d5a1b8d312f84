"""The benchmarks of errors measure what they say; their numbers are not judged here."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dpm_solver_nodes.benchmarks import (
    calibration_transfer,
    diffusers_peers,
    judge_catalogue,
    judge_image_to_image,
    references,
)
from dpm_solver_nodes.benchmarks.problems import PROCESSES, Problem, Process, problems
from dpm_solver_nodes.benchmarks.problems.images import model_of, shape_of
from dpm_solver_nodes.benchmarks.problems.problems import digits, fields
from dpm_solver_nodes.lab.calibration.teacher import spectrum
from dpm_solver_nodes.lab.metrics import distance
from dpm_solver_nodes.samplers.sample import sample
from dpm_solver_nodes.samplers.solvers.multistep import Multistep

SD, FLOW = PROCESSES["sd"], PROCESSES["flow3"]
DIGITS = replace(digits(0.25, 2.0, 5), fine=200)
FIELD = replace(fields((8, 8), 2.0, 2.0, 5, channels=2, images=3), fine=200)
both = pytest.mark.parametrize("process", [SD, FLOW], ids=["diffusion", "flow"])


@pytest.fixture(autouse=True)
def nothing_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (references, problems):
        monkeypatch.setattr(module, "CACHE", tmp_path)


@both
@pytest.mark.parametrize("problem", [DIGITS, FIELD], ids=str)
def test_the_same_ode_is_solved_in_every_program(problem: Problem, process: Process) -> None:
    """Ours, ComfyUI's and diffusers' solvers go to the converged images with more steps."""
    solution = problem.solution(process)

    def ours(calls: int) -> torch.Tensor:
        run = partial(sample, Multistep().on(process.schedule), schedule=process.schedule)
        sigmas = references.host_sigmas(process, "euler", "karras", calls)
        images, made = references.result(problem, process, run, sigmas, problem.noise())
        assert made == calls
        return images

    def comfy(calls: int) -> torch.Tensor:
        sigmas = references.host_sigmas(process, "dpmpp_2m", "karras", calls)
        images, made = references.result(problem, process, "dpmpp_2m", sigmas, problem.noise())
        assert made == calls
        return images

    def diffusers(calls: int) -> torch.Tensor:
        kinds = {
            (name, spacing): (kind, settings)
            for name, spacing, kind, settings in diffusers_peers.candidates(process)
        }
        spacing = "flow" if process.flow else "karras"
        images, made = diffusers_peers.result(
            problem, process, *kinds["DPMSolverMultistep 2", spacing], calls
        )
        assert made == calls
        return images

    for program in (ours, comfy, diffusers):
        few, many = (distance(program(calls), solution) for calls in (10, 80))
        assert many < 0.15 * few < 0.2, (program.__name__, few, many)


@both
def test_the_catalogue_has_a_row_for_each_solver(process: Process) -> None:
    found = judge_catalogue.errors(FIELD, process, 6)
    programs = {name.split()[0].strip(",") for name in found}
    assert programs == {"ours", "ComfyUI", "diffusers"}
    assert {f"ours {entry.label}" for entry in judge_catalogue.OURS} <= set(found)
    assert all(map(math.isfinite, found.values()))


@both
def test_images_and_their_problem_are_one_model(process: Process) -> None:
    for problem in (DIGITS, FIELD):
        shape = shape_of(problem)
        assert shape is not None
        model = model_of(problem, process, shape)
        start = torch.randn(3, *shape, dtype=torch.float64)
        sigma = start.new_full((3,), 0.6)
        alpha = process.alpha(0.6)
        denoised = model(start, sigma)
        if problem is DIGITS:
            flat = start.flatten(2).transpose(1, 2).reshape(3, -1)
            expected = problem.model(flat / alpha, 0.6 / alpha)
            assert torch.allclose(denoised.flatten(2).transpose(1, 2).reshape(3, -1), expected)
        else:
            modes = spectrum(start).reshape(3, -1)
            expected = problem.model(modes / alpha, 0.6 / alpha)
            assert torch.allclose(spectrum(denoised).reshape(3, -1), expected)


@both
def test_image_to_image_is_what_a_ksampler_runs(process: Process) -> None:
    options, sigmas = judge_image_to_image.own(FIELD, process, 6)
    simple = references.host_sigmas(process, "euler", "simple", 6, 0.5)
    assert len(sigmas) == 7 and sigmas[-1] == 0.0
    assert sigmas[0] == pytest.approx(float(simple[0]), rel=0.01)
    assert options.positions == 64


def test_a_guided_problem_takes_a_multiple_of_its_guidance() -> None:
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    sigma = x.new_full((2,), 3.0)
    usual, more = (
        calibration_transfer.guided(DIGITS, SD, guidance)(x, sigma) for guidance in (1.0, 1.3)
    )
    plain = model_of(digits(0.25, 0.0, 5), SD, (1, 8, 8))(x, sigma)
    assert not torch.allclose(usual, more)
    assert float((more - plain).norm()) > float((usual - plain).norm())
