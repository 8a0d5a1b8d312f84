"""Sigmas for samplers with their own weights, several prompts and calls, and the converged teacher."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpm_solver_nodes.benchmarks.digits import denoiser
from dpm_solver_nodes.lab.calibration import calibrate, files, sampler, teacher, texts
from dpm_solver_nodes.lab.calibration.__main__ import main
from dpm_solver_nodes.lab.calibration.model import Model
from dpm_solver_nodes.lab.metrics import distance
from dpm_solver_nodes.samplers import NoiseSchedule, sample_multistep
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.samplers.schedules.sigma_lists import log_snr
from dpm_solver_nodes.samplers.solvers.fitted import Calibration, Fitted
from dpm_solver_nodes.tests.lab.test_calibrate import (
    ENDS,
    VE,
    Counted,
    both_kinds,
    results,
    settings_of,
    starts,
)

SHAPE = (2, 12, 12)


def euler(model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = x + (x - model(x, sigma * x.new_ones(len(x)))) / sigma * (sigma_next - sigma)
    return x


def two_m(schedule: NoiseSchedule) -> sampler.Sampler:
    return lambda model, x, sigmas: sample_multistep(
        model, x, sigmas, schedule=schedule, disable=True
    )


def coarse_to_fine(schedule: NoiseSchedule) -> tuple[Any, torch.Tensor]:
    """The exact denoiser of normal images whose variance falls with the frequency; it, and noise."""
    axes = np.meshgrid(*[np.fft.fftfreq(size) * size for size in SHAPE[1:]], indexing="ij")
    frequency = torch.from_numpy(np.sqrt(sum(np.square(axis) for axis in axes))).clamp_min(0.5)
    variance = 20.0 * frequency**-2.5

    def model(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        level = float(sigma[0])
        alpha = schedule.alpha(level)
        gain = alpha * variance / (alpha**2 * variance + level**2)
        return teacher.spectrum(teacher.spectrum(x.double()) * gain).to(x)

    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    return model, noise * ENDS[schedule][0]


@cache
def records(schedule: NoiseSchedule) -> teacher.Records:
    model, noise = coarse_to_fine(schedule)
    lists = teacher.refinements(teacher.teacher_sigmas(schedule, *ENDS[schedule]))
    counted = Model([model], 8, lambda *_: None)
    return teacher.teach(counted, noise, lists, schedule, bands=sampler.BANDS)


# --- sigmas for a sampler ------------------------------------------------------------------------


@both_kinds
def test_the_surrogate_predicts_the_errors_of_images_coarse_to_fine(
    schedule: NoiseSchedule,
) -> None:
    """Without a call of the model, on lists of any kind; it is exact but for the bands' width."""
    model, _ = coarse_to_fine(schedule)
    counted = Model([model], 8, lambda *_: None)
    for own in (euler, two_m(schedule)):
        predicts = sampler.SamplerSurrogate(records(schedule), schedule, 6, own)
        for indices in ((0, 10, 20, 30, 40, 50), (0, 3, 9, 27, 41, 60), (0, 20, 35, 45, 52, 57)):
            predicted = predicts.error(indices)
            true = sampler.run(counted, predicts, indices).error
            assert predicted == pytest.approx(true, rel=0.25)
            assert predicts.error(indices) == pytest.approx(true, rel=0.12)  # it has learned


def test_a_single_call_teaches_nothing_and_ends_nothing() -> None:
    schedule = next(iter(ENDS))
    predicts = sampler.SamplerSurrogate(records(schedule), schedule, 1, euler)
    model, _ = coarse_to_fine(schedule)
    counted = Model([model], 8, lambda *_: None)
    before = predicts.gains.copy()
    assert math.isfinite(sampler.run(counted, predicts, (0,)).error)
    assert (predicts.gains == before).all()


@both_kinds
def test_sigmas_for_a_sampler_are_better_than_even_ones(schedule: NoiseSchedule) -> None:
    model, noise = coarse_to_fine(schedule)
    for own in (euler, two_m(schedule)):
        asked = calibrate.Settings(
            schedule,
            teacher.teacher_sigmas(schedule, *ENDS[schedule]),
            [6],
            batch=8,
            budget=4000,
            sampler=own,
            fitted=Fitted(sampler="own"),
        )
        even = torch.tensor([*log_snr(schedule, *ENDS[schedule], 5, 0.95), 0.0])
        rivals = {"even": partial(_on, own, even)}
        ((found, best),) = calibrate.calibrate(
            [model], noise[:5], noise[5:], partial(_same, rivals), asked
        )
        errors = found.fitted.errors
        assert best == calibrate.CALIBRATED and errors[best] < 0.8 * errors["even"]
        assert found.steps == () and found.calls == 6 and found.sigmas[0] == ENDS[schedule][0]


def _same(rivals: dict[str, Any], calls: int) -> dict[str, Any]:
    return rivals


def _on(own: sampler.Sampler, sigmas: torch.Tensor, model: Any, x: torch.Tensor) -> torch.Tensor:
    return own(model, x, sigmas)


def heun(model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    for sigma, sigma_next in itertools.pairwise(sigmas):
        slope = (x - model(x, sigma * x.new_ones(len(x)))) / sigma
        ahead = x + slope * (sigma_next - sigma)
        model(ahead, sigma_next.clamp_min(1e-3) * x.new_ones(len(x)))
        x = ahead
    return x


def noisy(model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    x = euler(model, x, sigmas)
    return x + torch.randn_like(x)


def clipped(model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    return euler(lambda x, sigma: model(x, sigma).clamp(-0.01, 0.01), x, sigmas)


def broken(model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no")


@both_kinds
def test_samplers_that_no_list_can_be_found_for_are_told(schedule: NoiseSchedule) -> None:
    sampler.check_sampler(euler, "euler", schedule)
    sampler.check_sampler(two_m(schedule), "2m", schedule)
    state = torch.get_rng_state()
    for own, why in (
        (heun, "not call the model once"),
        (noisy, "adds noise"),
        (clipped, "not linear"),
        (broken, "does not run here"),
    ):
        with pytest.raises(ValueError, match=why) as caught:
            sampler.check_sampler(own, "it", schedule)
        assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_kept_stands_for_all() -> None:
    """A few of an image's numbers have its mean products, and those of the coarse bands exactly."""
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    x = x + 3.0 * torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(1))
    all_of_it = teacher.Kept.choose(x.shape[1:], 10**6, 8)
    some = teacher.Kept.choose(x.shape[1:], 3000, 8)
    assert len(some.numbers) == 3000 and len(all_of_it.numbers) == x.numel()
    whole, part = (kept.products(kept.of(x))[:, 0, 0] for kept in (all_of_it, some))
    assert whole.sum() == pytest.approx(float(x.double().square().mean()))
    assert part[:4] == pytest.approx(whole[:4])
    assert part.sum() == pytest.approx(whole.sum(), rel=0.1)


# --- prompts and calls ---------------------------------------------------------------------------


def test_several_calls_share_the_teacher_and_several_prompts_the_noises() -> None:
    models = [Counted(VE), Counted(VE)]
    told: list[str] = []
    asked = settings_of(
        VE, [3, 5, 8], budget=4000, batch=2, tick=lambda n, what: told.append(what) if n else None
    )
    found = results(asked, models)
    assert [one.calibration.calls for one in found] == [3, 5, 8]
    images = sum(model.images for model in models)
    assert images == found[-1].calibration.fitted.model_calls <= 4000
    assert models[0].images == models[1].images and max(models[0].batches) == 2
    assert found[0].calibration.fitted.prompts == 2
    errors = [one.calibration.fitted.errors[calibrate.CALIBRATED] for one in found]
    assert errors == sorted(errors, reverse=True)
    assert len([key for key, _ in itertools.groupby(told)]) == 5  # each of the three only once


def test_each_image_has_its_prompt_and_its_place_in_the_batch() -> None:
    seen: list[tuple[int, list[int]]] = []

    def of(prompt: int) -> Any:
        def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            seen.append((prompt, x[:, 0].int().tolist()))
            return x + 100 * prompt

        return model

    model = Model([of(0), of(1)], 2, lambda *_: None)
    x = torch.arange(7.0)[:, None]
    whole = model(x, x[:, 0])
    assert whole[:, 0].tolist() == [0, 101, 2, 103, 4, 105, 6]
    batches, seen[:] = list(seen), []
    parts = torch.cat([model(part, part[:, 0]) for part in x.split(model.part)])
    assert torch.equal(parts, whole) and seen == batches


# --- the teacher ---------------------------------------------------------------------------------


def stiff(rate: float) -> Any:
    """A model that swings faster than 64 steps see."""

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = math.log(float(sigma[0]))
        return torch.full_like(x, math.sin(rate * level)) + 0.2 * torch.tanh(x)

    return model


def solved(model: Any, limit: float, images: int = 4) -> tuple[teacher.Solved, int]:
    lists = teacher.refinements(teacher.teacher_sigmas(VE, *ENDS[VE]))
    counted = Model([model], 8, lambda *_: None)
    x = starts(VE, images)
    kept = teacher.Kept.choose(x.shape[1:], 1000)
    result = teacher.solve(counted, x, lists, VE, kept, limit)
    return result, counted.meter.images // images


def test_the_teacher_is_refined_where_it_has_not_converged() -> None:
    lists = teacher.refinements(teacher.teacher_sigmas(VE, *ENDS[VE]))
    calls = [sum(map(len, lists[:n])) for n in (2, 3, 4)]
    smooth, of_smooth = solved(denoiser(False), math.inf)
    assert of_smooth == calls[0] and smooth.converged.all()
    swinging, of_swinging = solved(stiff(24.0), math.inf)
    assert of_swinging > calls[0] and swinging.converged.all()
    bounded, of_bounded = solved(stiff(24.0), 0.0)
    assert of_bounded == calls[0]
    assert (
        bounded.converged.all() and bounded.unconverged == 4
    )  # all count, as too few would be left


def test_images_that_do_not_converge_are_left_out_and_told() -> None:
    smooth, broken = denoiser(False), stiff(32.0)

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        found = smooth(x, sigma)
        return torch.cat([found[:-1], broken(x[-1:].clone(), sigma) * found[-1:].std() * 3.0])

    result, _ = solved(model, math.inf)
    assert result.converged.tolist() == [True, True, True, False]
    asked = settings_of(VE, [4], budget=20000, batch=8)
    ((found, _),) = results(asked, [model])
    assert 1 <= found.fitted.unconverged <= 2
    assert f"{found.fitted.unconverged} of the images did not converge" in texts.described(found)
    assert found.fitted.errors[calibrate.CALIBRATED] < 0.2


@both_kinds
def test_finer_lists_hold_the_teachers_own(schedule: NoiseSchedule) -> None:
    sigmas = teacher.teacher_sigmas(schedule, *ENDS[schedule])
    half, own, *finer = teacher.refinements(sigmas)
    assert own == sigmas and set(half) < set(sigmas) and (half[0], half[-1]) == (own[0], own[-1])
    for list_, parts in zip(finer, teacher.REFINED, strict=True):
        assert set(sigmas) < set(list_) and len(list_) == parts * (len(sigmas) - 1) + 1
        assert all(a > b for a, b in itertools.pairwise(list_))


# --- files with several --------------------------------------------------------------------------


def of(calls: int, guidance: float = 7.0, weight: float = 0.5, kind: str = "flow") -> Calibration:
    sigmas = (*np.linspace(1.0, 0.1, calls).tolist(), 0.0)
    steps = tuple(Weights(weight, (-0.1,)) for _ in range(calls))
    return Calibration(kind, sigmas, steps, Fitted("Flux", guidance, 20, 900, {"euler": 0.2}))


def test_the_one_for_so_many_calls_and_the_nearest_guidance_is_chosen() -> None:
    parts = [of(8), of(5), of(8, 3.0)]
    assert texts.choose(parts) == texts.choose(parts, 8) == texts.choose(parts, 0, 6.0) == parts[0]
    assert texts.choose(parts, 5, 2.0) == parts[1] and texts.choose(parts, 8, 4.0) == parts[2]
    with pytest.raises(ValueError, match=r"is for 5, 8 model calls, not for 9\.$"):
        texts.choose(parts, 9)


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(list(map(str, arguments)))
    return code, capsys.readouterr().out


def test_files_are_listed_checked_and_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, new = (tmp_path / "sub" / f"{name}.safetensors" for name in ("one", "two", "new"))
    files.save([of(8), of(5)], one)
    files.save([of(5), of(8, 3.0)], two)
    assert run_main(capsys, "merge", new, one, two) == (0, f"{new}: 3 calibrations.\n")
    assert files.load(new) == (of(8), of(5), of(8, 3.0))
    code, text = run_main(capsys, "list", tmp_path)
    assert code == 0 and text.count("model calls, for Flux, CFG") == 7
    code, text = run_main(capsys, "check", new)
    assert code == 0 and text.count("Distance to the converged image") == 3
    (tmp_path / "x.safetensors").write_bytes(b"x")
    code, text = run_main(capsys, "list", tmp_path)
    assert code == 1 and "x.safetensors is no calibration" in text
    others: Sequence[Calibration]
    for others, why in (
        ([of(8, weight=0.4)], "for the same use and differ"),
        ([of(8, kind="diffusion")], "either for flow models or for others"),
    ):
        other = tmp_path / f"{why[:3]}.safetensors"
        files.save(others, other)
        code, text = run_main(capsys, "merge", tmp_path / "no.safetensors", one, other)
        assert code == 1 and why in text and not (tmp_path / "no.safetensors").exists()
    code, text = run_main(capsys, "merge", new, one)
    assert code == 1 and text.startswith("Nothing was written: ")


def test_a_file_says_what_it_is_for(tmp_path: Path) -> None:
    about = Fitted(
        "SD3", 4.0, 20, 8000, {"calibrated": 0.02, "euler simple": 0.2}, sampler="euler",
        shape=(16, 64, 64), shift=3.0, prompts=3, version="2.0.0",
    )  # fmt: skip
    text = texts.described(Calibration("flow", (1.0, 0.5, 0.0), (), about))
    for part in (
        "2 model calls, sigmas for euler, for SD3, shift 3, CFG 4, latents of 16x64x64",
        "20 seeds and 3 prompts with 8000 model calls, DPM-Solver 2.0.0",
        "0.0200  calibrated",
        "0.2000  euler simple",
        "Sigmas: 1, 0.5, 0",
    ):
        assert part in text


def test_names_may_lead_to_subfolders(tmp_path: Path) -> None:
    path = files.free_path(tmp_path, "flux/dev/8 calls")
    assert path == tmp_path / "flux" / "dev" / "8 calls.safetensors"
    files.save([of(2)], path)
    assert files.free_path(tmp_path, "flux/dev/8 calls").stem == "8 calls_2"
    for name in ("a//b", "/a", "a/", "../a", "a/../b", "a/NUL/b", "a\\b", "/".join("abcdef")):
        with pytest.raises(ValueError, match="name"):
            files.free_path(tmp_path, name)


def test_the_distance_of_the_kept_numbers_is_that_of_the_images() -> None:
    a, b = (torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    kept = teacher.Kept.choose(SHAPE, 10**6, 8)
    assert distance(kept.of(a), kept.of(b)) == pytest.approx(distance(a, b), rel=1e-5)
