"""What a jump of the guidance within a run costs (CFGOverride, adaptive guidance, guidance intervals).

    python -m dpm_solver_nodes.benchmarks.guidance_jumps

A multistep solver extrapolates from earlier outputs, and after a jump those are of another guidance.
The models are exact fields, whose guidance jumps where CFGOverride's percents have it. It jumps early,
since later the image of a field is decided and guidance changes nothing. Printed are distances to the
solution: of ComfyUI's `euler` and `dpmpp_2m`, and of ours. Behind each of ours is the distance of a
run that drops its earlier outputs at the jump, in units of it: above 1 they are worth keeping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..samplers import RectifiedFlow, VarianceExploding
from ..samplers.options import Options
from ..samplers.solvers.multistep import Multistep
from ..samplers.solvers.recommended import Recommended, recommended_sigmas
from .peers import host, model_sampling
from .problems.processes import PROCESSES, Process
from .two_models import Pair, shifted

CALLS = (8, 12, 20, 30)
PERCENTS = (0.05, 0.1)
"""Where the guidance jumps, in parts of the model's time."""

JUMPS = ((4.0, 4.0), (4.0, 1.0), (7.0, 1.0), (1.0, 4.0))
"""The guidance before and after it; 1 is the prompt's alone. The first is no jump."""


def karras(process: Process, steps: int) -> list[float]:
    """Karras' spacing, as hosts have it."""
    ends = process.sigma_max ** (1 / 7), process.sigma_min ** (1 / 7)
    return [*(level**7 for level in torch.linspace(*ends, steps).double().tolist()), 0.0]


def recommended(process: Process, steps: int) -> list[float]:
    schedule = (RectifiedFlow if process.flow else VarianceExploding)(process.sigma_min)
    return recommended_sigmas(schedule, process.sigma_max, process.sigma_min, steps)


LISTS = {"flow3": shifted, "sd": karras}
"""Process -> the spacing for samplers that have none of their own: simple, and karras."""


def theirs(model: Pair, sampler: str, sigmas: Sequence[float]) -> float:
    """The distance of a sampler of ComfyUI's."""
    function = getattr(host().k_diffusion.sampling, f"sample_{sampler}")
    levels = torch.tensor(sigmas, dtype=torch.float64)
    return model.distance(function(model, model.start, levels, disable=True))


def ours(model: Pair, options: Options, sigmas: Sequence[float]) -> str:
    """The distance, and that of a run which drops its outputs at the jump in units of it."""
    kept, dropped = (model.error(options, sigmas, anew) for anew in (False, True))
    return f"{kept:.4f} {dropped / kept:5.2f}"


def main() -> None:
    for name, make in LISTS.items():
        process = PROCESSES[name]
        for before, after in JUMPS:
            for percent in PERCENTS:
                sigma = float(model_sampling(process.flow).percent_to_sigma(percent))
                model = Pair(process, sigma, (before, after), 0.0, exponent=2.4)
                print(f"\n{name}, guidance {before:g}, then {after:g} from {percent:g} on")
                for calls in CALLS:
                    sigmas = make(process, calls)
                    cells = [
                        f"{one} {theirs(model, one, sigmas):.4f}" for one in ("euler", "dpmpp_2m")
                    ]
                    cells.append(f"2M {ours(model, Multistep(), sigmas)}")
                    own = recommended(process, calls)
                    cells.append(f"recommended {ours(model, Recommended(), own)}")
                    print(f"  {calls:2} calls: " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
