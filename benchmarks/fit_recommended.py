"""Fits the recommended sampler: one list of sigmas and step weights on many models at once.

    python -m dpm_solver_nodes.benchmarks.fit_recommended flow|diffusion [CALLS ...]

The solver interpolates x0 and is written in the coordinates of `problems.processes`, z = x / alpha and
s = sigma / alpha, with r = s' / s (0 in the last step):

    z' = r z + (1 - r) ((1 + sum_j c_ij) D_i - sum_j c_ij D_{i-j}),   j = 1 .. 3

c_i1 = (h_i / h_{i-1}) / 2 with h the steps in log s, and nothing else, is DPM-Solver++ 2M. Free are all
s but the first, and all c. The aim is the near-worst model of `problems.TUNE`: the logsumexp, times
SHARPNESS, of each model's log error relative to the best peer's on it; its gradient is found by
back-propagation through the whole run. Each number of calls starts from its neighbour's solver, or from
2M, and is drawn to it. Results go to samplers/fitted.json, where rows that are not asked for stay.
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
from torch.nn import functional

from .problems import PROCESSES, TUNE, Problem
from .problems.fields import Pullback
from .problems.problems import Denoiser
from .problems.processes import PURE_NOISE
from .references import reference

DATA = Path(__file__).parent.parent / "samplers" / "fitted.json"
EARLIER = 3
SHARPNESS = 2.0
ITERATIONS, WARM_ITERATIONS = 300, 150
RATE = 0.02
PULL = 1e-3
"""Of the squares of c less those of the start."""

DIGITS = 6
FIRST_CALLS = 8
KINDS = {"flow": ("flow3", "flow1", "flow6", "flow12"), "diffusion": ("sd",)}
"""The processes of a kind. The first is fitted on; the models are the same in all, the peers not."""


@dataclass
class Solver:
    """Levels in log s, [calls], and c, [calls, EARLIER]."""

    levels: torch.Tensor
    c: torch.Tensor

    @property
    def calls(self) -> int:
        return len(self.levels)


def run(model: Denoiser, z: torch.Tensor, solver: Solver) -> torch.Tensor:
    return Run(model, z, solver).images


class Run:
    """A run of a solver, which can take a gradient back."""

    def __init__(self, model: Denoiser, z: torch.Tensor, solver: Solver) -> None:
        self.solver = solver
        self.s = solver.levels.exp().tolist()
        self.c = solver.c.tolist()
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
    """A problem with its process, in float32: start, converged images and the best peers' errors."""

    model: Denoiser
    start: torch.Tensor
    solution: torch.Tensor
    references: dict[int, float]

    @classmethod
    def of(cls, problem: Problem, processes: Sequence[str], calls: Sequence[int]) -> Case:
        kind = PROCESSES[processes[0]]
        return cls(
            problem.make(torch.float32),
            kind.start(problem.noise()).float(),
            problem.solution(kind).float(),
            {n: reference(problem, processes, n) for n in calls},
        )

    def ratio(self, solver: Solver) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Log of the error over the best peer's, and its gradients at the solver's levels and c."""
        made = Run(self.model, self.start, solver)
        off = made.images - self.solution
        squares = off.square().mean(1, keepdim=True).clamp_min(1e-12)
        value = 0.5 * float(squares.log().mean()) - math.log(self.references[solver.calls])
        return value, *made.gradient(off / (squares * off.numel()))


def multistep_2m(flow: bool, calls: int) -> Solver:
    """DPM-Solver++ 2M on Karras' spacing in s."""
    first = PURE_NOISE if flow else PROCESSES["sd"].s_max
    top, count = (40.0, calls - 1) if flow else (first, calls)
    ends = top ** (1.0 / 7.0), 0.04 ** (1.0 / 7.0)
    s = [(ends[0] + (ends[1] - ends[0]) * i / (count - 1)) ** 7 for i in range(count)]
    levels = torch.tensor([first] * flow + s, dtype=torch.float64).log()
    c = torch.zeros(calls, EARLIER, dtype=torch.float64)
    steps = -levels.diff()
    for i in range(1 + flow, calls - 1):
        c[i, 0] = steps[i] / steps[i - 1] / 2.0
    return Solver(levels, c)


def stretched(solver: Solver, calls: int) -> Solver:
    """A solver of another number of calls, each step at the place that it has in the run."""
    old = np.linspace(0.0, 1.0, solver.calls - 1)
    new = np.linspace(0.0, 1.0, calls - 1)
    first, c = solver.levels[0], solver.c.numpy()
    levels = np.interp(new, old, solver.levels[1:].numpy())
    between = np.stack([np.interp(new, old, c[1:, j]) for j in range(EARLIER)], 1)
    rows = torch.tensor(np.concatenate([np.zeros((1, EARLIER)), between]))
    for i in range(calls):
        rows[i, min(i, EARLIER) :] = 0.0
    return Solver(torch.cat([first[None], torch.tensor(levels)]), rows)


def descend(cases: Sequence[Case], start: Solver, iterations: int) -> Solver:
    steps = -start.levels.diff()
    free_steps = torch.where(steps < 30.0, steps.clamp(1e-3, 30.0).expm1().log(), steps)
    free_steps, c = (p.clone().requires_grad_(True) for p in (free_steps, start.c))
    allowed = torch.tensor(
        [[float(j < i) for j in range(EARLIER)] for i in range(start.calls)], dtype=torch.float64
    )
    optimiser = torch.optim.Adam([free_steps, c], lr=RATE)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, eta_min=RATE / 100)
    best, lowest = start, math.inf
    for _ in range(iterations):
        optimiser.zero_grad()
        levels = start.levels[0] - functional.softplus(free_steps).cumsum(0)
        solver = Solver(torch.cat([start.levels[:1], levels]), c * allowed)
        at = Solver(solver.levels.detach(), solver.c.detach())
        ratios, at_levels, at_c = zip(*(case.ratio(at) for case in cases), strict=True)
        scaled = SHARPNESS * torch.tensor(ratios, dtype=torch.float64)
        shares = torch.softmax(scaled, 0).tolist()
        pull = PULL * (solver.c - start.c).square().sum()
        aim = float(torch.logsumexp(scaled, 0)) / SHARPNESS + float(pull.detach())
        if aim < lowest:
            best, lowest = at, aim
        gradients = [
            sum(share * gradient for share, gradient in zip(shares, parts, strict=True))
            for parts in (at_levels, at_c)
        ]
        torch.autograd.backward((solver.levels, solver.c, pull), (*gradients, None))
        torch.nn.utils.clip_grad_norm_([free_steps, c], 1.0)
        optimiser.step()
        rates.step()
    return best


def read(kind: str) -> dict[int, Solver]:
    if not DATA.exists():
        return {}
    rows = json.loads(DATA.read_text()).get(kind, {})
    return {
        int(calls): Solver(
            torch.tensor(row["s"], dtype=torch.float64).log(),
            torch.tensor(row["c"], dtype=torch.float64),
        )
        for calls, row in rows.items()
    }


def write(kind: str, rows: dict[int, Solver]) -> None:
    data = json.loads(DATA.read_text()) if DATA.exists() else {}

    def short(value: float) -> float:
        return float(f"{value:.{DIGITS}g}")

    data[kind] = {
        str(calls): {
            "s": [short(s) for s in rows[calls].levels.exp().tolist()],
            "c": [[short(v) for v in row] for row in rows[calls].c.tolist()],
        }
        for calls in sorted(rows)
    }
    text = json.dumps(data, indent=1)
    DATA.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("calls", nargs="*", type=int)
    parser.add_argument("--fresh", action="store_true", help="start from 2M and neighbours")
    parser.add_argument("--networks", action="store_true", help="fit on trained networks too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = options.calls or [8, 10, 12, 15, 20, 25, 30, 6, 5, 4]
    processes = KINDS[options.kind]
    problems = [p for p in TUNE if options.networks or p.family != "network"]
    cases = [Case.of(p, processes, wanted) for p in problems if set(processes) & set(p.processes)]
    print(f"{len(cases)} models", flush=True)
    for calls in wanted:
        began = time.time()
        rows = read(options.kind)
        if calls in rows and not options.fresh:
            start, iterations = rows[calls], WARM_ITERATIONS
        elif rows:
            nearest = min(rows, key=lambda n: abs(math.log(n / calls)))
            start, iterations = stretched(rows[nearest], calls), WARM_ITERATIONS
        else:
            start, iterations = multistep_2m(options.kind == "flow", calls), ITERATIONS
        found = descend(cases, start, iterations)
        rows = read(options.kind)
        rows[calls] = found
        write(options.kind, rows)
        ratios = [math.exp(case.ratio(found)[0]) for case in cases]
        print(
            f"{options.kind} {calls:2d}: worst {max(ratios):.2f}, mean "
            f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}  |",
            " ".join(f"{r:.2f}" for r in ratios),
            f"| {time.time() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
