"""How many calls of the recommended sampler come as close as 25 of what people use.

    python -m dpm_solver_nodes.benchmarks.fewer_calls

For each large stand-in of `problems.JUDGE`, which it was not fitted on: the error of 25 calls of
dpmpp_2m on the scheduler that people take, and those of the recommended sampler at fewer calls.
"""

from __future__ import annotations

import torch

from .judge_recommended import ours
from .problems import JUDGE, PROCESSES
from .references import CALLS, errors

USUAL = {"flow3": "dpmpp_2m simple", "sd": "dpmpp_2m karras"}
FEWER = (8, 10, 12, 15, 20)


def main() -> None:
    torch.set_num_threads(1)
    for name, usual in USUAL.items():
        print(f"{name}: error of 25 calls of {usual}; of ours at {FEWER} calls, and over that")
        for problem in JUDGE:
            if problem.family != "fields" or name not in problem.processes:
                continue
            process = PROCESSES[name]
            theirs = errors(problem, process, CALLS)["25"][usual]
            found = [ours(problem, process, calls) for calls in FEWER]
            cells = "  ".join(f"{error:.4f} ({error / theirs:.2f})" for error in found)
            print(f"{problem.name:48s} {theirs:.4f}  {cells}", flush=True)


if __name__ == "__main__":
    main()
