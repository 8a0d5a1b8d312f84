"""The lab without a host: it counts, fits, measures, remembers and draws."""

from __future__ import annotations

import csv
import gc
import io
import itertools
import math
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dpm_solver_nodes.lab import compare, grid, metrics, plots, table
from dpm_solver_nodes.lab.compare import Candidate, Cell, Reference, Sigmas
from dpm_solver_nodes.lab.memory import Fingerprint, Memory
from dpm_solver_nodes.lab.metrics import Meter, distance, most_steps, rms
from dpm_solver_nodes.samplers import RectifiedFlow, VarianceExploding, checks
from dpm_solver_nodes.samplers import sample as samplers
from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.solvers.multistep import Multistep
from dpm_solver_nodes.tests.support.like_mps import LikeMPS

BUDGETS = [4, 8, 16]
START = 10.0 * torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
Sampler = Callable[..., torch.Tensor]


class Interrupt(Exception):  # noqa: N818 (a host's interrupt, which old ones make an Exception)
    pass


def gaussian(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
    """The exact denoiser of normal data."""
    return x / (1.0 + sigma.reshape(-1, 1, 1, 1) ** 2)


def metered(model: Sampler, meter: Meter) -> Sampler:
    def counted(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        meter(len(x))
        return torch.zeros_like(x) if meter.dry else model(x, sigma)

    return counted


def spaced(steps: int) -> list[float]:
    return [*torch.logspace(1.0, -1.5, steps).tolist(), 0.0] if steps > 1 else [10.0, 0.0]


def candidate(label: str, sampler: Callable[..., Any], **settings: Any) -> Candidate:
    def sample(sigmas: Sigmas, meter: Meter) -> torch.Tensor:
        result: torch.Tensor = sampler(metered(gaussian, meter), START, sigmas, **settings)
        return result

    return Candidate(label, sample, spaced)


def two_calls(model: Sampler, x: torch.Tensor, sigmas: Sigmas) -> torch.Tensor:
    """Heun's method: two calls in each step but the last."""
    for sigma, after in itertools.pairwise(sigmas):
        slope = (x - model(x, x.new_full([len(x)], float(sigma)))) / sigma
        ahead = x + (after - sigma) * slope
        if after > 0.0:
            other = (ahead - model(ahead, x.new_full([len(x)], float(after)))) / after
            ahead = x + (after - sigma) * (slope + other) / 2.0
        x = ahead
    return x


def failing(*_: Any) -> torch.Tensor:
    raise RuntimeError("it does not\n work")


EULER = candidate("euler", samplers.sample_multistep, order=1)
SECOND = candidate("2M", samplers.sample_multistep, order=2)
THIRD = candidate("3M", samplers.sample_multistep, order=3, solver_type="exact")
HEUN = candidate("heun", two_calls)
ADAPTIVE = candidate("adaptive", samplers.sample_adaptive)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return compare.find_reference(THIRD, 200)


def run(*candidates: Candidate, reference: Reference) -> list[Cell]:
    return list(compare.run(compare.prepare(candidates, BUDGETS), reference))


# --- running -------------------------------------------------------------------------------------


def test_the_reference_is_what_it_says(reference: Reference) -> None:
    exact = START / math.sqrt(1.0 + 100.0)  # the ODE's solution for normal data
    assert (reference.label, reference.calls, reference.sigma_start) == ("3M", 200, 10.0)
    assert metrics.distance(exact, reference.latent) < 1e-2


def test_calls_are_the_budgets_and_errors_fall(reference: Reference) -> None:
    cells = run(EULER, SECOND, reference=reference)
    assert [cell.calls for cell in cells] == BUDGETS * 2
    for row in table.by_row(cells):
        errors = [cell.error for cell in row]
        assert errors == sorted(errors, reverse=True)
    assert cells[5].error < cells[2].error / 3  # 2M's at 16 calls, Euler's


def test_the_error_is_the_root_mean_square_of_each_image() -> None:
    solution = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    x = solution.clone()
    x[0], x[1], x[2] = 1.0, -10.0, torch.tensor([[20.0, 0.0], [0.0, 0.0]])
    assert rms(x, solution).tolist() == pytest.approx([1.0, 10.0, 10.0])
    assert distance(x, solution) == pytest.approx(100.0 ** (1.0 / 3.0))


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


def test_two_calls_a_step_fit_into_the_budget(reference: Reference) -> None:
    cells = run(HEUN, reference=reference)
    assert [cell.calls for cell in cells] == [3, 7, 15]
    assert [len(job.sigmas) - 1 for job in compare.prepare([HEUN], BUDGETS)] == [2, 4, 8]


def test_what_does_not_fit_says_so(reference: Reference) -> None:
    both = Candidate("slow", lambda sigmas, meter: _calls(3 * (len(sigmas) - 1), meter), spaced)
    (too_few, fits) = compare.prepare([both], [2, 6])
    assert too_few.failure == "it takes at least 3 model calls."
    assert fits.calls == 6


def _calls(count: int, meter: Meter) -> torch.Tensor:
    for _ in range(count):
        meter()
    return START


def test_a_solver_that_chooses_its_steps_runs_once(reference: Reference) -> None:
    (job,) = compare.prepare([ADAPTIVE], BUDGETS)
    assert job.chooses and job.budget is None
    (cell,) = compare.run([job], reference)
    assert cell.calls > 10 and cell.error < 0.1


def test_a_list_of_its_own_is_one_cell(reference: Reference) -> None:
    listed = Candidate("mine", SECOND.sample, spaced, [5.0, 1.0, 0.0])
    (cell,) = run(listed, reference=reference)
    assert cell.calls == 2
    assert "starts at sigma 5, the reference at 10" in cell.note


def test_dry_runs_call_no_model() -> None:
    def model(*_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("called")

    def sample(sigmas: Sigmas, meter: Meter) -> torch.Tensor:
        return samplers.sample_multistep(metered(model, meter), START, sigmas)

    jobs = compare.prepare([Candidate("dry", sample, spaced)], BUDGETS)
    assert [job.calls for job in jobs] == BUDGETS


def test_every_call_is_told(reference: Reference) -> None:
    told: list[tuple[str, int]] = []
    jobs = compare.prepare([EULER, HEUN], [4])
    list(compare.run(jobs, reference, on_call=lambda job, n: told.append((job.candidate.label, n))))
    assert told == [("euler", n) for n in (1, 2, 3, 4)] + [("heun", n) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (failing, "it does not work"),
        (lambda *_: START / 0.0, "NaN or infinity"),
        (lambda *_: START[:, :1], "shape"),
    ],
)
def test_a_failure_is_marked_and_the_rest_goes_on(
    sampler: Sampler, words: str, reference: Reference
) -> None:
    broken = Candidate("broken", sampler, spaced)
    cells = run(broken, EULER, reference=reference)
    failed, fine = table.by_row(cells)
    assert all(words in cell.failure and math.isnan(cell.error) for cell in failed)
    assert all(not cell.failure and cell.error > 0.0 for cell in fine)
    text = table.text(cells, BUDGETS, reference)
    assert "failed" in text and words in text


def test_an_endless_run_is_stopped(reference: Reference) -> None:
    def endless(_: Sigmas, meter: Meter) -> torch.Tensor:
        while True:
            meter()

    (cell,) = run(Candidate("endless", endless, spaced), reference=reference)
    assert cell.calls == metrics.MOST_CALLS
    assert "without an end" in cell.failure


@pytest.mark.parametrize("interrupt", [Interrupt, KeyboardInterrupt])
@pytest.mark.parametrize("dry", [True, False])
def test_interrupts_pass(interrupt: type[BaseException], dry: bool, reference: Reference) -> None:
    def stopped(sigmas: Sigmas, meter: Meter) -> torch.Tensor:
        if meter.dry == dry:
            raise interrupt
        return _calls(len(sigmas) - 1, meter)

    with pytest.raises(interrupt):
        jobs = compare.prepare([Candidate("stopped", stopped, spaced)], BUDGETS, (Interrupt,))
        list(compare.run(jobs, reference, (Interrupt,)))


def test_a_broken_reference_is_one_sentence() -> None:
    with pytest.raises(RuntimeError, match=r"The reference \(broken\) could not be made: it does"):
        compare.find_reference(Candidate("broken", failing, spaced), 20)


def test_distance_is_the_geometric_mean_over_images() -> None:
    zero = torch.zeros(2, 1, 4)
    far = torch.stack([torch.full((1, 4), 0.1), torch.full((1, 4), 10.0)])
    assert metrics.distance(far, zero) == pytest.approx(1.0)
    assert metrics.distance(zero, zero) == 0.0


# --- words ---------------------------------------------------------------------------------------


def test_calls_are_read() -> None:
    assert compare.parse_calls("10, 5;5  20") == [5, 10, 20]


@pytest.mark.parametrize("text", ["", " , ", "5, ten", "0", "-3", "2.5", "99999", "٣"])
def test_other_calls_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'calls .* such as "5, 10, 20"'):
        compare.parse_calls(text)


def test_labels_are_told_apart() -> None:
    assert compare.distinct(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


def test_table_and_csv_hold_every_cell(reference: Reference) -> None:
    cells = run(EULER, HEUN, ADAPTIVE, reference=reference)
    text = table.text(cells, BUDGETS, reference, kept=True)
    assert "kept from an earlier run" in text and "geometric mean of 3 images" in text
    assert "(7)" in text  # heun's calls at 8
    rows = list(csv.DictReader(io.StringIO(table.as_csv(cells))))
    assert tuple(rows[0]) == table.COLUMNS
    assert [int(row["calls"]) for row in rows] == [cell.calls for cell in cells]
    assert [float(row["error"]) for row in rows] == [cell.error for cell in cells]


# --- memory --------------------------------------------------------------------------------------


class Thing:
    pass


def test_equal_content_is_the_same_and_other_content_is_not() -> None:
    same = {"a": [1, 2.0, "x", None, torch.ones(2), np.zeros(3)], "uuid": "1"}
    again = {"a": [1, 2.0, "x", None, torch.ones(2), np.zeros(3)], "uuid": "2"}
    left_out = frozenset({"uuid"})
    digest = Fingerprint(same, leave_out=left_out).digest
    assert digest == Fingerprint(again, leave_out=left_out).digest
    others = [
        {"a": [1, 2.0, "x", None, torch.zeros(2), np.zeros(3)]},
        {"a": [1, 2.0, "x", None, torch.ones(2).double(), np.zeros(3)]},
        {"a": [1, 2.0, "x", None, torch.ones(2, 1), np.zeros(3)]},
        {"a": [True, 2.0, "x", None, torch.ones(2), np.zeros(3)]},
        {"a": [[1], 2.0, "x", None, torch.ones(2), np.zeros(3)]},
    ]
    assert len({digest, *(Fingerprint(one).digest for one in others)}) == 6


def test_objects_count_by_identity_while_they_live() -> None:
    thing, memory = Thing(), Memory[str]()
    memory.put(Fingerprint(thing), "kept")
    assert memory.get(Fingerprint(thing)) == "kept"
    assert memory.get(Fingerprint(Thing())) is None
    del thing
    gc.collect()
    memory.get(Fingerprint(1))
    assert len(memory) == 0


def test_methods_count_by_their_object() -> None:
    one, other = Meter(), Meter()
    assert Fingerprint(one.__call__).digest == Fingerprint(one.__call__).digest
    assert Fingerprint(one.__call__).digest != Fingerprint(other.__call__).digest


def test_nothing_is_kept_in_doubt() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for doubtful in (object(), endless, torch.ones(2).to_sparse()):
        memory = Memory[str]()
        memory.put(Fingerprint(doubtful), "kept")
        assert len(memory) == 0 and memory.get(Fingerprint(doubtful)) is None


def test_only_the_last_few_are_kept() -> None:
    memory = Memory[int](most=2)
    for number in range(3):
        memory.put(Fingerprint(number), number)
    assert [memory.get(Fingerprint(number)) for number in range(3)] == [None, 1, 2]


# --- texts from outside --------------------------------------------------------------------------

OUTSIDE = {
    "a lone surrogate": "eu\ud800ler",
    "no UTF-8": b"caf\xe9".decode(errors="surrogateescape"),
    "lines": "two\nlines\u2028three\r",
    "control": "a\0b\x1b[31m",
    "a formula": r"$\frac$ $x^2$ \alpha $",
    "hidden": "_nolegend_",
    "markup": "<b>&amp;</b> %s {0}",
    "long": "x" * 100_000,
    "letters": "Zürich 東京 😀",
}
outside = pytest.mark.parametrize("text", OUTSIDE.values(), ids=OUTSIDE)


def shown(text: str) -> None:
    """It is one line that any file, log or terminal can hold."""
    text.encode()
    assert len(text.splitlines()) <= 1
    assert not any(unicodedata.category(c) == "Cc" for c in text)


def test_what_can_be_shown_stays_as_it_is() -> None:
    for name in ("a formula", "hidden", "markup", "letters"):
        assert checks.escaped(OUTSIDE[name]) == OUTSIDE[name]
    assert checks.escaped(OUTSIDE["a lone surrogate"]) == r"eu\ud800ler"
    assert checks.escaped(OUTSIDE["long"], 20) == "x" * 17 + "..."
    assert checks.escaped(-1e-9, 20) == "-1e-09"  # of a linked input


@outside
def test_texts_from_outside_are_shown_plainly(text: str, reference: Reference) -> None:
    """In tables and pictures, be it a label, a candidate's error or a sampler's name."""

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError(text)

    fine = Candidate(text, SECOND.sample, spaced)
    cells = run(fine, Candidate(text, broken, spaced), reference=reference)
    own = replace(reference, label=text)
    for line in (*table.text(cells, BUDGETS, own).split("\n"), cells[0].label, own.label):
        shown(line)
    rows = list(csv.DictReader(io.StringIO(table.as_csv(cells))))
    assert len(rows) == len(cells)
    for row in rows:
        shown("".join(row.values()))
    assert plots.convergence(cells, BUDGETS, own).size
    assert plots.sigmas([1.0, 0.5, 0.0], VarianceExploding(), None, text).size
    assert grid.grid(cells, BUDGETS, {}, own, np.random.rand(3, 16, 16, 3)).size


@outside
def test_a_label_is_in_the_plot_whatever_it_holds(text: str, reference: Reference) -> None:
    """Letter by letter, so that it is neither a formula nor left out."""
    image, without = (
        plots.convergence([Cell(label, 0, 5, 5, 0.1, 0.1)], [5], reference)
        for label in (text[:20], "")
    )
    legend = slice(-60, None)
    assert (image[legend] != without[legend]).sum() > 500
    assert np.array_equal(image[: -legend.start], without[: -legend.start])


def test_runs_of_fewer_calls_than_wanted_are_within_the_axes(reference: Reference) -> None:
    """Samplers that call the model twice a step, whose first point lies below the first number."""
    cells = [Cell("heun", 0, n, n - 1, 0.1, 1.0 / n) for n in (4, 8)]
    plot = plots.convergence(cells, [4, 8], reference)
    blue = [int(plots.COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    columns = np.flatnonzero((plot[150:750] == blue).all(-1).any(0))
    assert columns.min() > 0.135 * plot.shape[1]


def test_a_formula_is_drawn_letter_by_letter(reference: Reference) -> None:
    plain, formula = (
        plots.convergence([Cell(label, 0, 5, 5, 0.1, 0.1)], [5], reference)
        for label in ("$xx$", "$x^2$")
    )
    ink = [np.flatnonzero((image[-60:] < 100).all(-1).any(0)) for image in (plain, formula)]
    assert ink[1].max() > ink[0].max()  # five characters are wider than four


@outside
def test_errors_hold_texts_from_outside_plainly(text: str) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError(text)

    def complaints() -> Iterator[Any]:
        yield lambda: compare.parse_calls(f"5, {text}")
        yield lambda: compare.find_reference(Candidate(text, broken, spaced), 5)
        yield lambda: checks.one_of("order", text, (1, 2))
        yield lambda: checks.one_of("order", Named(text), (1, 2))
        yield lambda: checks.at_least("order", text, 1)  # type: ignore[arg-type]
        yield lambda: checks.between("order", text, 1, 2)  # type: ignore[arg-type]

    for complaint in complaints():
        with pytest.raises((ValueError, RuntimeError)) as caught:
            complaint()
        shown(str(caught.value))
        assert len(str(caught.value)) < 500


class Named:
    """What a node of another pack may hand over."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


# --- memory of a comparison ----------------------------------------------------------------------


def test_a_comparison_is_bounded() -> None:
    calls = 0

    def counted(sigmas: Sigmas, meter: Meter) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return _calls(len(sigmas) - 1, meter)

    one = Candidate("one", counted, spaced)
    with pytest.raises(ValueError, match="20 candidates at 40 numbers of calls are 800 runs"):
        compare.prepare([one] * 20, range(1, 41))
    assert calls == 0
    fits = compare.MOST_RUNS // 4
    assert len(compare.prepare([one] * fits, [1, 2, 3, 4])) == compare.MOST_RUNS
    with pytest.raises(ValueError, match="the most at this size is 120"):
        compare.prepare([one] * (fits + 1), [1, 2, 3, 4])
    own = Candidate("own", counted, spaced, [5.0, 1.0, 0.0])
    assert len(compare.prepare([own] * 50, range(1, 41))) == 50  # one run each
    video = 4 * 16 * 21 * 90 * 160
    compare.check_size([one] * 10, range(1, 11), video)
    with pytest.raises(ValueError, match="or a smaller latent_image"):
        compare.check_size([one] * 10, range(1, 11), 6 * video)


def test_a_cell_keeps_the_images_that_are_shown(reference: Reference) -> None:
    many = torch.ones(40, 2, 4, 4)

    def sample(sigmas: Sigmas, meter: Meter) -> torch.Tensor:
        _calls(len(sigmas) - 1, meter)
        return 2.0 * many

    whole = replace(reference, latent=many)
    (cell,) = compare.run(compare.prepare([Candidate("many", sample, spaced)], [4]), whole)
    assert cell.error == pytest.approx(1.0)
    assert cell.latent is not None
    assert cell.latent.untyped_storage().nbytes() == many[: compare.MOST_IMAGES].nbytes


@pytest.mark.parametrize("columns", [1, 10, compare.MOST_RUNS])
@pytest.mark.parametrize("shape", [(8, 8), (4096, 16), (16, 4096)], ids=["square", "tall", "wide"])
def test_the_largest_grid_is_bounded(
    shape: tuple[int, int], columns: int, reference: Reference
) -> None:
    budgets = range(1, columns + 1)
    cells = [
        Cell("one", row, budget, budget, 0.1, 0.1)
        for row in range(compare.MOST_RUNS // columns)
        for budget in budgets
    ]
    small = grid.mosaic(np.random.rand(6, *shape, 3))
    assert small.shape[1] == grid.CELL
    assert small.shape[0] <= grid.TALLEST * grid.CELL
    pictures = dict.fromkeys(range(len(cells)), small)
    largest = grid.grid(cells, budgets, pictures, reference, np.random.rand(6, *shape, 3))
    assert 4 * largest.size <= 1.1 * 2**30  # as the host's image, in float32


def test_a_device_without_float64_can_compare() -> None:
    def on_device(sigmas: Sigmas, meter: Meter) -> torch.Tensor:
        found: torch.Tensor = SECOND.sample(sigmas, meter).as_subclass(LikeMPS)
        return found

    one = Candidate("one", on_device, spaced)
    reference = compare.find_reference(one, 40)
    cells = run(one, reference=reference)
    assert all(cell.error > 0.0 for cell in cells)
    latents = [cell.latent.as_subclass(LikeMPS) for cell in cells if cell.latent is not None]
    assert metrics.distance(latents[0], latents[1]) > 0.0


# --- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.id)
@pytest.mark.parametrize("schedule", [VarianceExploding(), RectifiedFlow()])
def test_the_plan_is_the_one_that_runs(
    entry: Any, schedule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []

    def note(plan: Any, *_: Any) -> torch.Tensor:
        ran.append(plan)
        return START

    monkeypatch.setattr(samplers, "run", note)
    sigmas = torch.linspace(1.0, 0.0, 15)
    plan = entry.options.plan(Grid.of(sigmas, schedule))
    if entry.adaptive:
        assert plan is None
        return
    look = {"unconditional": lambda: START} if entry.cfg_pp else {}
    noise = {"noise_sampler": lambda *_: START} if entry.stochastic else {}
    entry.function()(gaussian, START, sigmas, schedule=schedule, disable=True, **look, **noise)
    assert ran == [plan]


# --- pictures ------------------------------------------------------------------------------------


def test_pictures_have_their_own_light_background(reference: Reference) -> None:
    cells = [*run(EULER, HEUN, Candidate("broken", failing, spaced), reference=reference)]
    image = plots.convergence(cells, BUDGETS, reference)
    small = grid.mosaic(np.random.rand(3, 16, 16, 3))
    pictures = {i: small for i, cell in enumerate(cells) if not cell.failure}
    cards = grid.grid(cells, BUDGETS, pictures, reference, np.random.rand(3, 16, 16, 3))
    for picture in (image, cards):
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert tuple(picture[2, 2]) == grid.PAPER
        assert picture.std() > 5.0


@pytest.mark.parametrize("count", [1, 12])
def test_plots_hold_any_number_of_candidates(count: int, reference: Reference) -> None:
    cells = [
        Cell(f"a sampler with a rather long name {i}", i, budget, budget, 0.1, 0.1 / (budget + i))
        for i in range(count)
        for budget in (5, 10)
    ]
    assert plots.convergence(cells, [5, 10], reference).shape[1] == plots.WIDTH * plots.DPI


@pytest.mark.parametrize(
    "error", [0.0, math.nan], ids=["the reference itself", "nothing but failures"]
)
def test_plots_without_a_point(error: float, reference: Reference) -> None:
    cells = [Cell("one", 0, 5, 5, 0.1, error, "failed" if math.isnan(error) else "")]
    assert plots.convergence(cells, [5], reference).size


def test_mosaics_keep_shape_and_order() -> None:
    levels = torch.linspace(0.1, 0.9, 4).numpy()
    images = np.broadcast_to(levels[:, None, None, None], (4, 8, 8, 3))
    whole = grid.mosaic(images, 200)
    assert whole.shape[1] == 200
    quarters = [whole[40, 50], whole[40, 150], whole[150, 50], whole[150, 150]]
    assert [int(quarter[0]) for quarter in quarters] == [round(255 * level) for level in levels]


@pytest.mark.parametrize(
    "levels", [[14.6, 3.0, 0.5, 0.0], [0.03, 0.5, 14.6], [5.0, 5.0], [1e-3, 0.0]]
)
def test_any_list_can_be_drawn(levels: list[float]) -> None:
    plan = Multistep().plan(Grid.of(levels, VarianceExploding()))
    assert plots.sigmas(levels, VarianceExploding(), plan).size
    assert plots.sigmas(levels, VarianceExploding(), None, "weights of its own").size


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "adams"])
def test_flows_can_be_drawn(algorithm: str) -> None:
    levels = [1.0, 0.9, 0.5, 0.1, 0.0]
    plan = Multistep(algorithm=algorithm).plan(Grid.of(levels, RectifiedFlow()))
    assert plots.sigmas(levels, RectifiedFlow(), plan).size


def test_without_matplotlib_there_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plots.require()
