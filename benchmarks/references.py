"""Errors of ComfyUI's own samplers on the problems, by sampler, scheduler and number of calls.

    python -m dpm_solver_nodes.benchmarks.references [--judge]

Errors are kept on disk, one file for each problem and process, so that fits and judgements find them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..lab.metrics import distance
from .comfyui_import import host
from .problems import JUDGE, PROCESSES, TUNE, Problem, Process
from .problems.pictures import CACHE

SAMPLERS = (
    "euler",
    "dpmpp_2m",
    "uni_pc",
    "uni_pc_bh2",
    "res_multistep",
    "ipndm",
    "ipndm_v",
    "deis",
    "lms",
    "gradient_estimation",
    "heun",
)
CALLS = (5, 8, 10, 12, 15, 20, 25)
FIT_CALLS = (4, 8, 14, 30)
"""Numbers of calls for a fit's references; between them log errors are interpolated in log calls."""

USUAL = {True: ("euler", "simple"), False: ("dpmpp_2m", "karras")}
"""The samplers that people use: on flows, and on other models."""


@cache
def model_sampling(process: Process) -> Any:
    """ComfyUI's model_sampling for a process."""
    kinds = host().model_sampling
    if process.flow:
        config = SimpleNamespace(sampling_settings={"shift": process.shift})
        return type("Flow", (kinds.ModelSamplingDiscreteFlow, kinds.CONST), {})(config)
    if process.name == "edm":
        settings = {"sigma_min": process.sigma_min, "sigma_max": process.sigma_max}
        config = SimpleNamespace(sampling_settings=settings)
        return type("EDM", (kinds.ModelSamplingContinuousEDM, kinds.EDM), {})(config)
    if process.name == "zero-snr":
        kind = type("V", (kinds.ModelSamplingDiscrete, kinds.V_PREDICTION), {})
        return kind(zsnr=True)
    return type("Diffusion", (kinds.ModelSamplingDiscrete, kinds.EPS), {})()


def host_sigmas(
    process: Process, sampler: str, scheduler: str, steps: int, denoise: float = 1.0
) -> torch.Tensor:
    model = SimpleNamespace(get_model_object=lambda name: model_sampling(process))
    return (
        host().samplers.KSampler(model, steps, "cpu", sampler, scheduler, denoise).sigmas.double()
    )


class Guider:
    """The part of a guider that ComfyUI's KSAMPLER uses, for a problem's model."""

    cfg = 1.0

    def __init__(self, problem: Problem, process: Process) -> None:
        self.problem, self.process, self.calls = problem, process, 0
        sampling = model_sampling(process)
        self.inner_model = SimpleNamespace(  # the last two for other packs' samplers
            model_sampling=sampling, device=torch.device("cpu"), diffusion_model=None
        )
        self.model_patcher = SimpleNamespace(
            model=self.inner_model, get_model_object=lambda name: sampling
        )

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        self.calls += 1
        level = float(sigma.flatten()[0])
        alpha = self.process.alpha(level)
        return self.problem.model(x.double() / alpha, level / alpha).to(x)


def result(
    problem: Problem,
    process: Process,
    sampler: Callable[..., torch.Tensor] | str,
    sigmas: torch.Tensor,
    noise: torch.Tensor,
    latent: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """Run ComfyUI's KSAMPLER; return the images and the number of calls.

    Args:
        sampler: its name, or a sampler function.
        latent: the image to start from in image to image.
    """
    comfy = host()
    name = sampler if isinstance(sampler, str) else ""
    dtype = torch.float32 if name.startswith("uni_pc") else torch.float64
    entry = comfy.samplers.sampler_object(name) if name else comfy.samplers.KSAMPLER(sampler)
    guider = Guider(problem, process)
    latent = torch.zeros_like(noise) if latent is None else latent
    extra_args = {"seed": 0, "model_options": {}}
    with torch.inference_mode():
        images = entry.sample(
            guider,
            sigmas.to(dtype, copy=True),
            extra_args,
            None,
            noise.to(dtype, copy=True),
            latent.to(dtype, copy=True),
            denoise_mask=None,
            disable_pbar=True,
        )
    return images.double(), guider.calls


def errors(problem: Problem, process: Process, calls: Iterable[int]) -> dict[str, dict[str, float]]:
    """Calls -> "sampler scheduler" -> error, if it makes that many calls; kept on disk."""
    key = f"{problem} {process}"
    kept = CACHE / f"peers-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    missing = [n for n in calls if str(n) not in found]
    for n in missing:
        found[str(n)] = {}
        for sampler in SAMPLERS:
            steps = (n + 1) // 2 if sampler == "heun" else n
            for scheduler in host().samplers.SCHEDULER_NAMES:
                value = _error(problem, process, sampler, scheduler, steps, n)
                if value is not None:
                    found[str(n)][f"{sampler} {scheduler}"] = value
    if missing:
        kept.write_text(json.dumps(found))
    return found


def _error(
    problem: Problem, process: Process, sampler: str, scheduler: str, steps: int, most: int
) -> float | None:
    try:
        sigmas = host_sigmas(process, sampler, scheduler, steps)
        if not 1 < len(sigmas) <= steps + 1:
            return None
        images, made = result(problem, process, sampler, sigmas, problem.noise())
    except Exception:  # of any type: it is another program's code
        return None
    value = distance(images, problem.solution(process))
    return value if made <= most and math.isfinite(value) else None


def best(problem: Problem, process: Process, calls: int) -> float:
    return min(errors(problem, process, [calls])[str(calls)].values())


def reference(problem: Problem, processes: Iterable[str], calls: int) -> float:
    """The best peer's error on the process where it is least, interpolated between FIT_CALLS."""
    names = [name for name in processes if name in problem.processes]
    logs = [math.log(min(best(problem, PROCESSES[name], n) for name in names)) for n in FIT_CALLS]
    return math.exp(np.interp(math.log(calls), np.log(FIT_CALLS), logs))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--judge", action="store_true", help="those to judge on, all calls")
    parser.add_argument("--processes", nargs="*", help="only these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    calls = CALLS if options.judge else FIT_CALLS
    for problem in JUDGE if options.judge else TUNE:
        for name in problem.processes:
            if options.processes and name not in options.processes:
                continue
            began = time.time()
            found = errors(problem, PROCESSES[name], calls)
            print(f"{problem}, {name}, {time.time() - began:.0f} s", flush=True)
            for n in calls:
                cells = found[str(n)]
                top = sorted(cells, key=cells.__getitem__)[:3]
                print(f"  {n:2d}: " + "; ".join(f"{c} {cells[c]:.4f}" for c in top), flush=True)


if __name__ == "__main__":
    main()
