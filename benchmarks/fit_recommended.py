"""Fits the recommended sampler: one list of sigmas and step weights on many models at once.

    python -m dpm_solver_nodes.benchmarks.fit_recommended flow|diffusion|edm|zero-snr [CALLS ...]

The solver (`samplers/solvers/recommended.py`) interpolates x0: with lambda_ = -log s, it takes the
exact step through the newest three outputs, slope and curvature each times a gain of the step's own.
(1, 0) is a second-order multistep, (1, 1/2) the published third-order one. Each number of calls has
two solvers, for small and for large images; an image between them takes a mean of the two. Free are
all s but the first, and all gains. The aim is the near-worst model of `problems.TUNE`: the logsumexp
of SHARPNESS times each model's log error relative to the best peer's on it, and penalties that keep
the lengths of the steps and the gains smooth along the run, so that models that are not in the list
profit as well. Its gradient is found by back-propagation through the whole run, and BFGS takes it
from there. Each number of calls starts from its neighbour's solver. Hosts move a diffusion model's
sigmas to whole times, so its rows end there and their gains are fitted again. Results go to the file
of the sampler's data, where rows that are not asked for stay. EDM's rows and those for zero terminal
SNR were fitted with --iterations 40, some of EDM's twice.

Networks came into the fits later. Stable Diffusion's rows from 8 to 25 calls were fitted with
--networks --counts 2 --iterations 40 --again 40 (10 and 15 calls with 60 of each), two images of each
network, and without the last three of NETWORKS and TUNE's tables. From there 8, 9, 10, 12, 15, 20 and
25 calls were fitted with --networks --iterations 40 --again 40, and 12 once more with --counts 2
beside these (8 and 10 so cost large images too much); the large row of 8 is still the first. Flows'
from 5 to 40 calls were fitted with --networks --counts 2 --iterations 60, which cost large images too
much. Their large rows were then set half way to those of before, in log s and gains, and all fitted
with --networks --iterations 40 (9 and 13 calls only so). Rows between those were left out: on
networks a mean of neighbours is closer than a row that was fitted without them. Not each fit with
networks gained: Stable Diffusion's row of 30 was twice as far on two of CHECK_NETWORKS as that which
is here, and was not taken. All seeds are in `problems.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from ..samplers.solvers.any_list import WIDE
from ..samplers.solvers.row_weights import FIRST_STEP
from ..samplers.solvers.rows import SIZES, share_of
from .problems import CHECK, CHECK_NETWORKS, NETWORKS, PROCESSES, TUNE, Problem, Process
from .problems.fields import Pullback
from .problems.problems import Denoiser
from .references import model_sampling, reference

DATA = Path(__file__).parent.parent / "samplers" / "solvers" / "recommended.json"
EARLIER = 2
SHARPNESS = 2.0
IMAGES = 3
"""Of each network in `NETWORKS`, as it takes far longer than an exact model."""

SEVERAL_BELOW = 8
"""With fewer calls there are several valleys: the best of several starts is taken."""

USUAL = 1.0, 0.5
"""Gains that are drawn to."""

PULL, SMOOTH_GAINS, SMOOTH_STEPS, APART = 0.02, 0.02, 0.1, 0.02
"""Of the squares of: gains less the usual ones, their differences from step to step, second
differences of the logs of the steps, and differences between the gains for the two sizes."""

FREE_BELOW = 20
"""With fewer calls the penalties count less: there is less to be smooth."""

TOLERANCE = 1e-3
"""Of the aim: less is no gain."""

ORDER = (8, 6, 5, 4, 3, 7, *range(9, 21), 50, 40, 38, 35, 33, *range(30, 20, -1), 60)
"""Of the fits: each begins at the nearest number of calls that is there."""

DIGITS = 6
KINDS = {
    "flow": ("flow3", "flow1", "flow6"),
    "diffusion": ("sd",),
    "edm": ("edm",),
    "zero-snr": ("zero-snr",),
}
"""The processes of a kind. The first is fitted on; the models are the same in all, the peers not."""

BEGUN_BY = {"edm": "diffusion", "zero-snr": "flow"}
"""Kind -> the kind whose rows its fits begin with."""


@dataclass
class Solver:
    """Levels in log s, [calls], and gains, [calls, 2].

    Attributes:
        pure: it starts from nothing but noise.
    """

    levels: torch.Tensor
    gains: torch.Tensor
    pure: bool

    @property
    def calls(self) -> int:
        return len(self.levels)

    def c(self) -> torch.Tensor:
        """Weights of the earlier outputs, [calls, EARLIER]: see `weights` in the sampler's module."""
        levels = self.levels
        if self.pure:
            levels = torch.cat([levels[1:2] + FIRST_STEP, levels[1:]])
        steps = -levels.diff()
        h = torch.cat([steps, steps.new_ones(1)])
        full = h / -torch.expm1(-h)
        slope = full - 1.0
        square = h * full - 2.0 * slope
        before = torch.cat([steps.new_ones(1), steps])
        before_that = torch.cat([steps.new_ones(2), steps[:-1]])
        last = torch.arange(self.calls) == self.calls - 1
        slope = torch.where(last, before, slope)
        curvature = torch.where(last, 2.0 * before.square(), square + before * slope)
        first, second = self.gains.unbind(1)
        first = first * (torch.arange(self.calls) > 0)
        second = second * (torch.arange(self.calls) > 1)
        newer = first * slope / before + second * curvature / (before * before_that)
        older = -second * curvature / ((before + before_that) * before_that)
        return torch.stack([newer, older], 1)


Pair = tuple[Solver, Solver]
"""For small and for large images: see SIZES."""


def mixed(pair: Pair, share: float) -> Solver:
    """The solver for images that are so far between small ones, 0, and large ones, 1."""
    small, large = pair
    return Solver(
        torch.lerp(small.levels, large.levels, share),
        torch.lerp(small.gains, large.gains, share),
        small.pure,
    )


def run(model: Denoiser, z: torch.Tensor, solver: Solver) -> torch.Tensor:
    return Run(model, z, solver).images


class Run:
    """A run of a solver, which can take a gradient back."""

    def __init__(self, model: Denoiser, z: torch.Tensor, solver: Solver) -> None:
        self.solver = solver
        self.s = solver.levels.exp().tolist()
        self.c = solver.c().tolist()
        self.kept: list[tuple[torch.Tensor, torch.Tensor, Pullback]] = []
        outputs: list[torch.Tensor] = []
        for i, (s, c) in enumerate(zip(self.s, self.c, strict=True)):
            denoised, pullback = model.linearised(z, s)
            outputs = [denoised, *outputs[:EARLIER]]
            mixed = denoised * (1.0 + sum(c[:i]))
            for weight, output in zip(c, outputs[1:], strict=False):
                mixed.sub_(output, alpha=weight)
            self.kept.append((denoised, z - mixed, pullback))
            z = mixed if i + 1 == solver.calls else torch.lerp(mixed, z, self.s[i + 1] / s)
        self.images = z

    def gradient(self, at_images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From the gradient at the images to those at the levels and c of the solver."""
        calls = self.solver.calls
        levels, c = [0.0] * calls, torch.zeros(calls, EARLIER, dtype=torch.float64)
        at_state = at_images
        at_outputs: list[torch.Tensor | None] = [None] * calls
        for i in reversed(range(calls)):
            _, way, pullback = self.kept[i]
            r = 0.0 if i + 1 == calls else self.s[i + 1] / self.s[i]
            if r:
                at_level = r * float((at_state * way).sum())
                levels[i + 1] += at_level
                levels[i] -= at_level
            at_mixed = at_state * (1.0 - r)
            earlier = min(i, EARLIER)
            own = at_mixed * (1.0 + sum(self.c[i][:earlier]))
            for j in range(earlier):
                before = self.kept[i - 1 - j][0]
                c[i, j] = float((at_mixed * (self.kept[i][0] - before)).sum())
                add_to = at_outputs[i - 1 - j]
                if add_to is None:
                    at_outputs[i - 1 - j] = at_mixed * -self.c[i][j]
                else:
                    add_to.sub_(at_mixed, alpha=self.c[i][j])
            later = at_outputs[i]
            if later is not None:
                own += later
            at_z, at_s = pullback(own)
            levels[i] += self.s[i] * at_s
            at_state = at_z.add_(at_state, alpha=r)
        return torch.tensor(levels, dtype=torch.float64), c


@dataclass(frozen=True)
class Case:
    """A problem with its process: start, converged images and the best peer's error.

    Attributes:
        share: where its images' size lies between small, 0, and large, 1.
        counts: as so many models.
    """

    model: Denoiser
    share: float
    start: torch.Tensor
    solution: torch.Tensor
    reference: float
    counts: float = 1.0

    @classmethod
    def of(
        cls,
        problem: Problem,
        processes: Sequence[str],
        calls: int,
        counts: float = 1.0,
        images: int | None = None,
    ) -> Case:
        kind = PROCESSES[processes[0]]
        return cls(
            problem.model,
            share_of(problem.positions),
            kind.start(problem.noise())[:images],
            problem.solution(kind)[:images],
            reference(problem, processes, calls),
            counts,
        )

    def ratio(self, solver: Solver) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Log of the error over the best peer's, and its gradients at the levels and c."""
        made = Run(self.model, self.start, solver)
        off = made.images - self.solution
        squares = off.square().mean(1, keepdim=True).clamp_min(1e-12)
        value = 0.5 * float(squares.log().mean()) - math.log(self.reference)
        return value, *made.gradient(off / (squares * off.numel()))


def multistep_2m(first: float, calls: int) -> Solver:
    """A second-order multistep on Karras' spacing in s."""
    pure = first > WIDE
    top, count = (40.0, calls - 1) if pure else (first, calls)
    ends = top ** (1.0 / 7.0), 0.04 ** (1.0 / 7.0)
    s = [(ends[0] + (ends[1] - ends[0]) * i / (count - 1)) ** 7 for i in range(count)]
    levels = torch.tensor([first] * pure + s, dtype=torch.float64).log()
    gains = torch.zeros(calls, 2, dtype=torch.float64)
    gains[1:-1, 0] = 1.0
    return Solver(levels, gains, pure)


def stretched(solver: Solver, calls: int) -> Solver:
    """A solver of another number of calls, each step at the place that it has in the run."""

    def spread(values: np.ndarray, count: int) -> np.ndarray:
        new, old = np.linspace(0.0, 1.0, count), np.linspace(0.0, 1.0, len(values))
        return np.interp(new, old, values)

    fixed = int(solver.pure)
    levels, gains = solver.levels.numpy(), solver.gains.numpy()
    levels = np.concatenate([levels[:fixed], spread(levels[fixed:], calls - fixed)])
    between = np.stack([spread(gains[1:, j], calls - 1) for j in range(2)], 1)
    gains = np.concatenate([np.zeros((1, 2)), between])
    gains[:2, 1] = 0.0
    return Solver(torch.tensor(levels), torch.tensor(gains), solver.pure)


def at_whole_times(solver: Solver, process: Process) -> Solver:
    """With the levels of a diffusion model moved to the nearest whole times, as hosts do."""
    table = model_sampling(process).sigmas.double().log()
    nearest = (solver.levels[:, None] - table).abs().argmin(1)
    for i in reversed(range(len(nearest) - 1)):  # no time twice
        nearest[i] = max(nearest[i], nearest[i + 1] + 1)
    return Solver(table[nearest], solver.gains, solver.pure)


def descend(
    cases: Sequence[Case], start: Pair, iterations: int, move: bool = True
) -> tuple[Pair, float]:
    """BFGS on the logs of the steps and on the gains: Adam crawls along such a narrow valley.

    Args:
        move: False leaves the levels where they are.
    """
    pure, calls = start[0].pure, start[0].calls
    count = calls - 1
    counts = torch.tensor([case.counts for case in cases], dtype=torch.float64).log()

    def pair_of(free: torch.Tensor) -> Pair:
        small, large = (solver(part, one) for part, one in zip(free.chunk(2), start, strict=True))
        return small, large

    def solver(free: torch.Tensor, begun: Solver) -> Solver:
        first = begun.levels[:1]
        levels = torch.cat([first, first - free[:count].exp().cumsum(0)]) if move else begun.levels
        ones, twos = free[count : 2 * count], free[2 * count :]
        gains = torch.stack(
            [torch.cat([ones.new_zeros(1), ones]), torch.cat([twos.new_zeros(2), twos])], 1
        )
        return Solver(levels, gains, pure)

    def penalty(free: torch.Tensor) -> torch.Tensor:
        small, large = free.chunk(2)
        value = APART * (small[count:] - large[count:]).square().sum()
        for part in (small, large):
            value = value + SMOOTH_STEPS * part[pure:count].diff(n=2).square().sum()
            for gains, usual in zip(
                (part[count : 2 * count], part[2 * count :]), USUAL, strict=True
            ):
                inner = gains[int(pure) : -1]
                value = value + PULL * (inner - usual).square().sum()
                value = value + SMOOTH_GAINS * inner.diff().square().sum()
        return value * min(1.0, (calls / FREE_BELOW) ** 2)

    def aim(values: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(values, requires_grad=True)
        pair = pair_of(free)
        solvers = [mixed(pair, case.share) for case in cases]
        ratios, at_levels, at_c = zip(
            *(
                case.ratio(Solver(one.levels.detach(), one.gains.detach(), pure))
                for case, one in zip(cases, solvers, strict=True)
            ),
            strict=True,
        )
        scaled = SHARPNESS * torch.tensor(ratios, dtype=torch.float64) + counts
        shares = torch.softmax(scaled, 0).tolist()
        extra = penalty(free)
        tensors: list[torch.Tensor] = [extra]
        gradients: list[torch.Tensor | None] = [None]
        for one, share, of_levels, of_c in zip(solvers, shares, at_levels, at_c, strict=True):
            tensors += [one.c(), one.levels][: 1 + move]
            gradients += [share * of_c, share * of_levels][: 1 + move]
        torch.autograd.backward(tensors, gradients)
        assert free.grad is not None
        value = float(torch.logsumexp(scaled, 0)) / SHARPNESS + float(extra.detach())
        return value, free.grad.numpy()

    free = torch.cat([of for one in start for of in _free(one)]).numpy()
    lowest = math.inf
    while iterations > 0:  # float32 may end a search early: it goes on with a fresh Hessian
        found = minimize(aim, free, jac=True, method="BFGS", options={"maxiter": iterations})
        free, iterations = found.x, iterations - max(found.nit, 1)
        gain, lowest = lowest - found.fun, found.fun
        if gain < TOLERANCE:
            break
    return pair_of(torch.tensor(free)), lowest


def _free(solver: Solver) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (-solver.levels.diff()).log(), solver.gains[1:, 0], solver.gains[2:, 1]


def read(kind: str, path: Path = DATA) -> dict[int, Pair]:
    """Calls -> its solvers. A kind without rows begins with another's."""
    data = json.loads(path.read_text()) if path.exists() else {}
    rows = data.get(kind) or data.get(BEGUN_BY.get(kind), {})
    first = PROCESSES[KINDS[kind][0]].s_max

    def solver(row: dict[str, list[float]]) -> Solver:
        return Solver(
            torch.tensor([first, *row["s"][1:]], dtype=torch.float64).log(),
            torch.tensor([row["slope"], row["curvature"]], dtype=torch.float64).T,
            first > WIDE,
        )

    return {int(calls): (solver(two["small"]), solver(two["large"])) for calls, two in rows.items()}


def write(kind: str, rows: dict[int, Pair], path: Path = DATA) -> None:
    data = json.loads(path.read_text()) if path.exists() else {}

    data[kind] = {str(calls): written(rows[calls]) for calls in sorted(rows)}
    text = json.dumps(data)
    for mark in (*KINDS, *SIZES, "s", "slope", "curvature"):
        text = text.replace(f'"{mark}"', f'\n"{mark}"')
    path.write_text(text + "\n")


def written(pair: Pair) -> dict[str, dict[str, list[float]]]:
    """A pair of solvers as the sampler's data has them."""

    def short(values: torch.Tensor) -> list[float]:
        return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]

    def row(solver: Solver) -> dict[str, list[float]]:
        return {
            "s": short(solver.levels.exp()),
            "slope": short(solver.gains[:, 0]),
            "curvature": short(solver.gains[:, 1]),
        }

    return dict(zip(SIZES, map(row, pair), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("calls", nargs="*", type=int)
    parser.add_argument("--fresh", action="store_true", help="forget the row, start from others")
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--again", type=int, default=250, help="iterations at whole times")
    parser.add_argument("--networks", action="store_true", help="with NETWORKS in the fit")
    parser.add_argument("--counts", type=float, default=1.0, help="each as so many exact models")
    parser.add_argument("--data", type=Path, default=DATA, help="the file of rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    processes = KINDS[options.kind]
    process = PROCESSES[processes[0]]
    tune, networks, held_out = (
        [problem for problem in part if set(processes) & set(problem.processes)]
        for part in (TUNE, NETWORKS * options.networks, (*CHECK, *CHECK_NETWORKS))
    )
    print(f"{len(tune)} models, {len(networks)} networks", flush=True)
    for calls in options.calls or ORDER:
        began = time.time()
        cases, others = ([Case.of(p, processes, calls) for p in part] for part in (tune, held_out))
        cases += [Case.of(p, processes, calls, options.counts, IMAGES) for p in networks]
        rows = read(options.kind, options.data)
        starts = [rows[calls]] if calls in rows and not options.fresh else []
        neighbours = [n for n in rows if n != calls]
        if neighbours and not starts:
            nearest = min(neighbours, key=lambda n: abs(math.log(n / calls)))
            small, large = rows[nearest]
            starts.append((stretched(small, calls), stretched(large, calls)))
        if not starts or calls < SEVERAL_BELOW:
            starts.append((multistep_2m(process.s_max, calls),) * 2)
        found, _ = min(
            (descend(cases, start, options.iterations) for start in starts),
            key=lambda result: result[1],
        )
        if process.whole_times:
            small, large = (at_whole_times(one, process) for one in found)
            found, _ = descend(cases, (small, large), options.again, move=False)
        rows = read(options.kind, options.data)
        rows[calls] = found
        write(options.kind, rows, options.data)
        ratios, check = (
            [math.exp(case.ratio(mixed(found, case.share))[0]) for case in group]
            for group in (cases, others)
        )
        print(
            f"{options.kind} {calls:2d}: worst {max(ratios):.2f}, mean "
            f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}  |",
            " ".join(f"{r:.2f}" for r in ratios),
            "| check",
            " ".join(f"{r:.2f}" for r in check),
            f"| {time.time() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
