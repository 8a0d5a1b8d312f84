"""What a jump of the guidance within a run costs (CFGOverride, adaptive guidance, guidance intervals).

    python -m dpm_solver_nodes.benchmarks.guidance_jumps

A multistep solver extrapolates from earlier outputs, and after a jump those are of another guidance.
The models are exact fields, whose guidance jumps where CFGOverride's percents have it. It jumps
early, since later the image of a field is decided and guidance changes nothing. Printed are distances
to the solution: of ComfyUI's `euler` and `dpmpp_2m` on the scheduler that people use, and of ours.
Behind each of ours is the distance of a run that drops its earlier outputs at the jump, in units of
it: above 1 they are worth keeping. At the end are geometric means over all cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, starmap

import torch

from ..lab.metrics import geometric_mean
from ..samplers.options import Options
from ..samplers.solvers.multistep import Multistep
from ..samplers.solvers.recommended import Recommended
from .comfyui_import import host
from .judge_recommended import sigmas_of
from .problems.processes import PROCESSES
from .references import USUAL, host_sigmas, model_sampling
from .two_models import Pair

NAMES = "flow3", "sd"
CALLS = (8, 12, 20, 30)
PERCENTS = (0.05, 0.1)
"""Where the guidance jumps, in parts of the model's time."""

JUMPS = {"none": [(4.0, 4.0)], "falling": [(4.0, 1.0), (7.0, 1.0)], "rising": [(1.0, 4.0)]}
"""The guidance before and after it; 1 is the prompt's alone."""

OURS: dict[str, Options] = {"2M": Multistep(), "recommended": Recommended()}


def theirs(model: Pair, sampler: str, sigmas: Sequence[float]) -> float:
    """The distance of a sampler of ComfyUI's."""
    function = getattr(host().k_diffusion.sampling, f"sample_{sampler}")
    levels = torch.tensor(sigmas, dtype=torch.float64)
    return model.distance(function(model, model.start, levels, disable=True))


@dataclass(frozen=True)
class Case:
    """Distances to the solution; dropped: of runs that drop their outputs at the jump."""

    euler: float
    dpmpp_2m: float
    ours: dict[str, float]
    dropped: dict[str, float]

    @classmethod
    def of(cls, model: Pair, calls: int) -> Case:
        process = model.process
        sigmas = host_sigmas(process, "dpmpp_2m", USUAL[process.flow][1], calls).tolist()
        lists = {"2M": sigmas, "recommended": sigmas_of(process, calls).tolist()}
        kept, dropped = (
            {name: model.error(options, lists[name], anew) for name, options in OURS.items()}
            for anew in (False, True)
        )
        return cls(theirs(model, "euler", sigmas), theirs(model, "dpmpp_2m", sigmas), kept, dropped)

    def __str__(self) -> str:
        cells = [f"euler {self.euler:.4f}", f"dpmpp_2m {self.dpmpp_2m:.4f}"]
        for name, kept in self.ours.items():
            cells.append(f"{name} {kept:.4f} {self.dropped[name] / kept:5.2f}")
        return "  ".join(cells)


def cases(before: float, after: float) -> Iterator[Case]:
    for name in NAMES:
        process = PROCESSES[name]
        for percent in PERCENTS:
            sigma = float(model_sampling(process).percent_to_sigma(percent))
            model = Pair(process, sigma, (before, after), 0.0, exponent=2.4)
            print(f"\n{name}, guidance {before:g}, then {after:g} from {percent:g} on")
            for calls in CALLS:
                case = Case.of(model, calls)
                print(f"  {calls:2} calls: {case}", flush=True)
                yield case


def main() -> None:
    found = {name: [*chain.from_iterable(starmap(cases, jumps))] for name, jumps in JUMPS.items()}
    print("\nover dpmpp_2m, mean and worst; outputs dropped over kept, mean, least and most")
    for name, of_jump in found.items():
        for solver in OURS:
            over = [case.ours[solver] / case.dpmpp_2m for case in of_jump]
            drops = [case.dropped[solver] / case.ours[solver] for case in of_jump]
            print(
                f"{name:8} {solver:12} {geometric_mean(over):5.2f} {max(over):5.2f}   "
                f"{geometric_mean(drops):5.2f} {min(drops):5.2f} {max(drops):5.2f}"
            )


if __name__ == "__main__":
    main()
