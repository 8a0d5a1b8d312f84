"""What the history of outputs is worth at the seam of two models (Wan 2.2's two experts).

    python -m dpm_solver_nodes.benchmarks.two_models

The stand-ins are exact models of fields: one for the noise levels above the boundary, one below it.
They differ in their guidance, or in the data that they know, as if each had been trained for itself:
a `difference` of 0.1 moves the second one's class means by a tenth of their spread. The first pair
are one and the same model, which shows what a new start costs where there is no seam. The solution is
that of both models in turn, with the seam exactly at the boundary. A run either goes on over the seam
with the outputs of the first model, or starts anew there, as two KSamplerAdvanced do. Printed is the
distance to the solution of a run that goes on, and that of one that starts anew in units of it: above
1 the outputs are worth keeping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from ..samplers.options import Options
from ..samplers.sample import sample
from ..samplers.schedules.sigma_lists import flow_first, log_snr
from ..samplers.solvers.multistep import Multistep
from ..samplers.solvers.recommended import Recommended
from ..samplers.solvers.recommended_lists import recommended_sigmas
from ..samplers.solvers.rows import LARGEST
from .problems.fields import Fields, spectrum
from .problems.problems import Problem
from .problems.processes import PROCESSES, Process

CALLS = (8, 12, 20, 30)
SAMPLERS: dict[str, Options] = {
    "2M": Multistep(),
    "3M exact": Multistep(order=3, solver_type="exact"),
    "2M unic": Multistep(corrector="unic"),
    "recommended": Recommended(),
}


@dataclass(frozen=True)
class Pair:
    """Two models and the sigma below which the second one counts.

    Attributes:
        guidance: of each.
        difference: how far the second model's classes lie from the first's, in parts of their spread.
    """

    process: Process
    boundary: float
    guidance: tuple[float, float]
    difference: float
    size: int = 64
    exponent: float = 2.5

    @cached_property
    def problems(self) -> tuple[Problem, Problem]:
        variances = spectrum((self.size, self.size), self.exponent)
        high, low, other = (
            Fields(variances, guidance, seed)
            for guidance, seed in zip((*self.guidance, 0.0), (0, 0, 7), strict=True)
        )
        d = self.difference
        low.means = math.sqrt(1.0 - d * d) * low.means + d * other.means
        low.transposed, low.squares = low.means.T.contiguous(), 0.5 * low.means.square()
        return _problem(high), _problem(low)

    @cached_property
    def solution(self) -> torch.Tensor:
        high, low = self.problems
        process, seam = self.process, self.process.s(self.boundary)
        z = process.start(high.noise())
        z = high.carry(z, process.s_max, seam, 600)
        return low.solve(z, seam, process.s_min, 600)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_extra: object) -> torch.Tensor:
        value = float(sigma[0])
        model = self.problems[value < self.boundary].model
        return model(x / self.process.alpha(value), self.process.s(value))

    @property
    def start(self) -> torch.Tensor:
        process = self.process
        return process.start(self.problems[0].noise()) * process.alpha(process.sigma_max)

    def error(self, options: Options, sigmas: Sequence[float], anew: bool) -> float:
        """Distance to the solution; anew: of a run that drops its earlier outputs at the seam."""
        schedule = self.process.schedule
        run = partial(sample, options.on(schedule), self, disable=True, schedule=schedule)
        x = self.start
        seam = next(i for i, sigma in enumerate(sigmas) if sigma < self.boundary)
        parts = [sigmas[: seam + 1], sigmas[seam:]] if anew else [sigmas]
        for part in parts:
            x = run(x, part)
        return self.distance(x)

    def distance(self, images: torch.Tensor) -> float:
        """Distance to the solution, as the geometric mean over images."""
        distance = (images - self.solution).square().mean(1).sqrt()
        return float(distance.log().mean().exp())

    def __str__(self) -> str:
        above, below = self.guidance
        return (
            f"shift {self.process.shift:g}, boundary {self.boundary:g}, guidance {above:g} and "
            f"{below:g}, difference {self.difference:g}"
        )


def _problem(model: Fields) -> Problem:
    return Problem("", "fields", model.guidance, LARGEST, lambda: model, (), 1)


def shifted(process: Process, steps: int) -> list[float]:
    """The hosts' "simple": even in the time before the shift."""
    times = [(steps - i) / steps for i in range(steps)]
    shift = process.shift
    return [*(shift * time / (1.0 + (shift - 1.0) * time) for time in times), 0.0]


def in_log_snr(process: Process, steps: int) -> list[float]:
    """The scheduler dpm_solver_log_snr."""

    def sigma(time: float) -> float:
        return process.shift * time / (1.0 + (process.shift - 1.0) * time)

    first = flow_first(sigma, 1.0, steps - 1)
    return [*log_snr(process.schedule, 1.0, process.sigma_min, steps - 1, first), 0.0]


def recommended(process: Process, steps: int) -> list[float]:
    return recommended_sigmas(process.schedule, 1.0, process.sigma_min, steps)


LISTS = {"simple": shifted, "log_snr": in_log_snr, "recommended": recommended}
PAIRS = [
    Pair(PROCESSES[process], boundary, guidance, difference)
    for process, boundary in (("flow6", 0.9), ("flow12", 0.875))
    for guidance, difference in (
        ((3.5, 3.5), 0.0),
        ((4.0, 3.0), 0.0),
        ((3.5, 3.5), 0.1),
        ((3.5, 3.5), 0.3),
        ((4.0, 1.0), 0.3),
    )
]


def main() -> None:
    for pair in PAIRS:
        print(f"\n{pair}")
        for name, options in SAMPLERS.items():
            for list_name, make in LISTS.items():
                if (list_name == "recommended") != (name == "recommended"):
                    continue
                cells = []
                for calls in CALLS:
                    sigmas = make(pair.process, calls)
                    on, anew = (pair.error(options, sigmas, anew) for anew in (False, True))
                    cells.append(f"{on:8.4f} {anew / on:5.2f}")
                print(f"  {name:20}{list_name:12}" + "  ".join(cells))


if __name__ == "__main__":
    main()
