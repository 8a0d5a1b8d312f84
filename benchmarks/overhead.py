"""What a sampler costs besides its model: time per step and memory, ours and others' in one run.

    python -m dpm_solver_nodes.benchmarks.overhead [--device cuda] [--latents "SD 1.5" 1x16x64x64]

The others are the samplers of a real ComfyUI (see `tools.server`) and of the package k-diffusion, in
this very process. All get the host's "normal" list of 20 steps, the same model, a callback that does
nothing and no progress bar, and run in inference mode as in a host.

**Time** is a whole run, planning included, divided by its model calls. The model returns tensors made
beforehand; the cost of calling it is measured and subtracted. In each round every sampler runs once,
in an order that rotates, with Python's garbage collector off. Ratios are taken within a round; their
median and quartiles are shown. "planning" is the part before the first model call. On one thread of
the CPU the clock is that thread's own, so that other work of the machine does not count.

**The limit** is the time to move the data that must be moved: per step, the state and the outputs (and
noise) of its formula are read once and the new state is written once. Each round times copies of a
latent as well. The fair copy goes into a new tensor, since neither the state nor what the callback got
may be overwritten; the ratio with copies into the same tensor is shown, too. There is no limit for
adaptive runs and for samplers that draw their own noise.

**Memory** is the peak of what was allocated since the start and is still alive, in latents. Here the
model returns new tensors, as real ones do: outputs that a sampler keeps count, and for every sampler
the newest one, too. "at calls" is the peak at the model calls: the model can't use this memory. On
the CPU a dispatch mode sees the tensors that each operation returns, and which are still alive (the
profiler's record of the allocator agrees to a hundredth of a latent); it doesn't see what an operation
allocates only for its own duration. On a GPU the allocator counts.

The model is of SD 1.5's kind whatever the latent. Its outputs differ a little from call to call, so
that an adaptive run finds errors that keep its steps short; all times are per call.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..samplers import sample_adaptive, sample_multistep
from .comfyui_import import comfyui_importable

LATENTS = {
    "SD 1.5": (1, 4, 64, 64),
    "SDXL": (8, 4, 128, 128),
    "Flux": (1, 16, 128, 128),
    "Wan": (1, 16, 21, 60, 104),
}
SMALL = LATENTS["SD 1.5"]
STEPS = 20
OUTPUTS = 3
DIFFERENCE = 0.02
"""The difference between the model's outputs, which are of size one themselves."""

EXTRA_ARGS = {"seed": 0}
FEWEST_ROUNDS = 3

# Ours / ComfyUI's time per step of 2M, of anybody's, and time / limit.
SMALL_2M, LARGE_2M, ANY, LIMIT = 0.25, 0.15, 1.0, 2.5
KERNELS = 4.0


# --- the model and the samplers --------------------------------------------------------------------


class Model:
    """A model that costs almost nothing: each call returns the next of a few tensors.

    Args:
        model_sampling: the attribute that ComfyUI's stochastic samplers read.
        watch: called at each call.
        fresh: return copies, as a real model returns new tensors.
    """

    def __init__(
        self,
        outputs: Sequence[torch.Tensor],
        model_sampling: object,
        watch: Callable[[], object] | None = None,
        fresh: bool = False,
    ) -> None:
        patcher = SimpleNamespace(get_model_object=lambda name: model_sampling)
        self.inner_model = SimpleNamespace(model_patcher=patcher)
        self.outputs = outputs
        self.watch = watch
        self.fresh = fresh
        self.calls = 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: object) -> torch.Tensor:
        self.calls += 1
        if self.watch is not None:
            self.watch()
        output = self.outputs[self.calls % OUTPUTS]
        return output.clone() if self.fresh else output


def ignore(_: object) -> None:
    """The callback of every run."""


Run = Callable[[Model], object]


@dataclass(frozen=True)
class Contest:
    """One of our samplers and its peers.

    Attributes:
        runs: the runs by name, ours first.
        order: order of the multistep formula; None if there is no limit to compare with.
        noise: whether a step reads a noise tensor, too.
    """

    name: str
    runs: Mapping[str, Run]
    order: int | None = None
    noise: bool = False

    def moved(self) -> int:
        """How many latents a run must read and write."""
        assert self.order is not None
        # Reads the state, the outputs and the noise, writes the new state; at last the denoised.
        steps = (2 + min(i + 1, self.order) + self.noise for i in range(STEPS - 1))
        return sum(steps) + 2


@dataclass(frozen=True)
class Peers:
    """The modules of others' samplers, and the host's model_sampling of a model like SD 1.5."""

    comfy: Any
    k_diffusion: Any
    model_sampling: Any
    sigmas: torch.Tensor

    @classmethod
    def load(cls, device: str) -> Peers:
        with comfyui_importable(["--cpu"] if device == "cpu" else []):
            import comfy.k_diffusion.sampling
            import comfy.model_sampling
            import comfy.samplers

            kind = (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS)
            model_sampling = type("ModelSampling", kind, {})()
            sigmas = comfy.samplers.calculate_sigmas(model_sampling, "normal", STEPS)
        import k_diffusion.sampling

        theirs = comfy.k_diffusion.sampling
        return cls(theirs, k_diffusion.sampling, model_sampling, sigmas.to(device))

    def contests(self, x: torch.Tensor, noise: torch.Tensor) -> list[Contest]:
        both = {"ComfyUI": self.comfy, "k-diffusion": self.k_diffusion}
        common: dict[str, Any] = {
            "extra_args": EXTRA_ARGS,
            "callback": ignore,
            "disable": True,
        }
        sigmas, ends = self.sigmas, (float(self.sigmas[-2]), float(self.sigmas[0]))

        def multistep(theirs: str, settings: dict[str, Any], **given: Any) -> dict[str, Run]:
            def run(sampler: Callable[..., object], model: Model, **settings: Any) -> object:
                return sampler(model, x, sigmas, **common, **given, **settings)

            peers: dict[str, Run] = {
                f"{name} {theirs}": partial(run, getattr(module, f"sample_{theirs}"))
                for name, module in both.items()
            }
            return {"ours": partial(run, sample_multistep, **settings), **peers}

        def adaptive(sampler: Callable[..., object], model: Model) -> object:
            return sampler(model, x, *ends, **common)

        def our_adaptive(model: Model) -> object:
            return sample_adaptive(model, x, sigmas, algorithm="dpmsolver", order=3, **common)

        two: dict[str, Any] = {"order": 2}
        two_sde: dict[str, Any] = {"order": 2, "eta": 1.0}
        three_sde: dict[str, Any] = {"order": 3, "solver_type": "taylor", "eta": 1.0}
        given = {"noise_sampler": lambda sigma, sigma_next: noise}
        return [
            Contest("2M", multistep("dpmpp_2m", two), 2),
            Contest("2M SDE, noise given", multistep("dpmpp_2m_sde", two_sde, **given), 2, True),
            Contest("3M SDE, noise given", multistep("dpmpp_3m_sde", three_sde, **given), 3, True),
            Contest("2M SDE, own noise", multistep("dpmpp_2m_sde", two_sde)),
            Contest("3M SDE, own noise", multistep("dpmpp_3m_sde", three_sde)),
            Contest(
                "adaptive",
                {"ours": our_adaptive}
                | {
                    f"{name} dpm_adaptive": partial(adaptive, module.sample_dpm_adaptive)
                    for name, module in both.items()
                },
            ),
        ]


# --- measuring -------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        now = self.now()
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._made:
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                now += storage.nbytes()
        self.peak = max(self.peak, now)
        return result

    def now(self) -> int:
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        return sum(size for _, size in self._made.values())


def _storages(tree: object) -> Iterable[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@dataclass
class Row:
    """What was measured of one sampler; times in seconds, memory in latents.

    Attributes:
        ratios: quartiles of ours / this one's time per call.
        to_limit: quartiles of its time / the limit, for ours.
        to_reused: the median of the same with copies into one and the same tensor.
        kernels: launched per call; None on the CPU.
        waits: whether the loop waits for the device; None on the CPU, and if noise is drawn.
    """

    contest: str
    name: str
    calls: int = 0
    rounds: int = 0
    time: float = 0.0
    planning: float = 0.0
    ratios: tuple[float, float, float] | None = None
    to_limit: tuple[float, float, float] | None = None
    to_reused: float | None = None
    peak: float = 0.0
    at_calls: float = 0.0
    kernels: float | None = None
    waits: bool | None = None

    @property
    def ours(self) -> bool:
        return self.name == "ours"


class _FirstCallError(Exception):
    pass


class Bench:
    """Measures every sampler on one latent.

    Args:
        repeats: the most rounds of a contest.
        seconds: no further round begins after this time.
    """

    def __init__(
        self, peers: Peers, shape: tuple[int, ...], device: str, repeats: int, seconds: float
    ) -> None:
        self.peers = peers
        self.device = device
        alone = device == "cpu" and torch.get_num_threads() == 1
        self.seconds_now = time.thread_time if alone else time.perf_counter
        self.repeats = repeats
        self.seconds = seconds
        generator = torch.Generator().manual_seed(0)

        def normal() -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device)

        self.x = normal() * float(peers.sigmas[0])
        image = normal()
        self.outputs = [image + DIFFERENCE * normal() for _ in range(OUTPUTS)]
        self.noise = normal()
        self.model_cost = min(self.call_the_model() for _ in range(100))
        self.copies: dict[str, list[float]] = {"fresh": [], "reused": []}

    def model(self, watch: Callable[[], object] | None = None, fresh: bool = False) -> Model:
        return Model(self.outputs, self.peers.model_sampling, watch, fresh)

    def rows(self) -> Iterator[Row]:
        for contest in self.peers.contests(self.x, self.noise):
            yield from self.contest(contest)

    def contest(self, contest: Contest) -> Iterator[Row]:
        runs = dict(contest.runs)
        rows = {name: Row(contest.name, name) for name in runs}
        for name, row in rows.items():
            self.look_at(contest, runs[name], row)
        times = self.times(runs)
        for name, taken in times.items():
            if name not in runs:
                continue
            row = rows[name]
            row.rounds, row.time = len(taken), statistics.median(taken)
            if row.ours and contest.order is not None:
                limits = [contest.moved() / STEPS / 2 * copy for copy in times["fresh"]]
                row.to_limit = _quartiles(taken, limits)
                reused = [contest.moved() / STEPS / 2 * copy for copy in times["reused"]]
                row.to_reused = _quartiles(taken, reused)[1]
            if not row.ours and "ours" in runs:
                row.ratios = _quartiles(times["ours"], taken)
        yield from rows.values()

    def look_at(self, contest: Contest, run: Run, row: Row) -> None:
        """Measure what needs no rounds: calls, planning, memory, and on a GPU kernels and waits.

        It also warms up for the rounds.
        """
        row.peak, row.at_calls = self.memory(run)
        model = self.model()
        run(model)
        row.calls = model.calls
        row.planning = statistics.median(self.planning(run) for _ in range(min(self.repeats, 50)))
        if self.device != "cpu":
            row.kernels = self.kernels(run) / row.calls
            if contest.order is not None:
                row.waits = self.waits(run)

    def planning(self, run: Run) -> float:
        """Seconds before the first model call; the run is stopped there."""

        def stop() -> None:
            raise _FirstCallError

        model = self.model(stop)
        start = self.seconds_now()
        try:
            run(model)
        except _FirstCallError:
            return self.seconds_now() - start
        raise AssertionError("a run without a model call")

    def times(self, runs: Mapping[str, Run]) -> dict[str, list[float]]:
        """Seconds per call of each run, and per copy, by round."""
        reused = torch.empty_like(self.x)

        def sampler(run: Run) -> float:
            model = self.model()
            taken = self.clock(lambda: run(model))
            return taken / model.calls - self.model_cost

        def copies(fresh: bool) -> float:
            def work() -> None:
                kept = reused
                for _ in range(STEPS):  # as the last state is kept until the next is written
                    kept = (torch.empty_like(self.x) if fresh else reused).copy_(self.x)
                del kept

            return self.clock(work) / STEPS

        everybody: dict[str, Callable[[], float]] = {
            **{name: partial(sampler, run) for name, run in runs.items()},
            "fresh": partial(copies, True),
            "reused": partial(copies, False),
        }
        names, times = list(everybody), {name: list[float]() for name in everybody}
        gc.collect()
        gc.disable()
        try:
            end = time.perf_counter() + self.seconds
            for i in range(self.repeats):
                if i >= FEWEST_ROUNDS and time.perf_counter() > end:
                    break
                first = i % len(names)
                for name in (*names[first:], *names[:first]):
                    times[name].append(everybody[name]())
        finally:
            gc.enable()
        for name, seen in self.copies.items():
            seen += times[name]
        return times

    def call_the_model(self) -> float:
        """Seconds that a call of the model takes."""
        model, sigma = self.model(), self.peers.sigmas[:1]

        def calls() -> None:
            for _ in range(STEPS):
                model(self.x, sigma, **EXTRA_ARGS)

        return self.clock(calls) / STEPS

    def clock(self, work: Callable[[], object]) -> float:
        self.wait()
        start = self.seconds_now()
        work()
        self.wait()
        return self.seconds_now() - start

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def memory(self, run: Run) -> tuple[float, float]:
        """The peak, and the most at a call, in latents."""
        at_calls: list[int] = []
        gc.collect()
        if self.device == "cpu":
            alive = Alive()
            with alive:
                run(self.model(lambda: at_calls.append(alive.now()), fresh=True))
            peak = alive.peak
        else:
            run(self.model())  # for what is allocated only once
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run(
                self.model(
                    lambda: at_calls.append(torch.cuda.memory_allocated() - before), fresh=True
                )
            )
            peak = torch.cuda.max_memory_allocated() - before
        return peak / self.x.nbytes, max(at_calls) / self.x.nbytes

    def kernels(self, run: Run) -> int:
        """How many kernels and copies a run launches on the GPU."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            run(self.model())
            torch.cuda.synchronize()
        return sum(event.device_type.name == "CUDA" for event in profile.events() or ())

    def waits(self, run: Run) -> bool:
        """Whether anything after the first model call waits for the GPU."""
        try:
            run(self.model(lambda: torch.cuda.set_sync_debug_mode("error")))
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return False


def _quartiles(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float, float]:
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, method="inclusive")
    return low, middle, high


# --- reporting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A claim, and the value measured for it.

    Attributes:
        value: the worst value, or None if there was nothing to measure.
    """

    text: str
    value: float | None
    at_most: float

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.value <= self.at_most

    def __str__(self) -> str:
        verdict = {True: "met", False: "NOT met", None: "not measured"}[self.met]
        value = "-" if self.value is None else f"{self.value:.2f}"
        return f"  {self.text:58s}{value:>8s}  at most {self.at_most:<6g}{verdict}"


def targets(tables: dict[str, list[Row]], shapes: dict[str, tuple[int, ...]]) -> list[Target]:
    def worst(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    found = []
    for latent, rows in tables.items():
        on = f"on {latent}"
        ours = {row.contest: row for row in rows if row.ours}
        theirs = [row for row in rows if not row.ours and row.contest in ours]
        comfy = [row for row in theirs if row.contest == "2M" and row.name.startswith("ComfyUI")]
        small = torch.Size(shapes[latent]).numel() <= torch.Size(SMALL).numel()
        found += [
            Target(
                f"2M: time / ComfyUI's {on}",
                worst(row.ratios and row.ratios[1] for row in comfy),
                SMALL_2M if small else LARGE_2M,
            ),
            Target(
                f"all: time / any peer's {on}",
                worst(row.ratios and row.ratios[1] for row in theirs),
                ANY,
            ),
            Target(
                f"all: peak memory / any peer's {on}",
                worst(ours[row.contest].peak / row.peak for row in theirs),
                ANY,
            ),
            Target(
                f"2M: time / limit {on}",
                worst(row.to_limit and row.to_limit[1] for row in rows if row.contest == "2M"),
                LIMIT,
            ),
            Target(
                f"SDE, noise given: time / limit {on}",
                worst(row.to_limit and row.to_limit[1] for row in rows if row.contest != "2M"),
                LIMIT,
            ),
        ]
        if any(row.kernels is not None for row in rows):
            found += [
                Target(
                    f"2M: kernels per step {on}",
                    worst(row.kernels for row in rows if row.ours and row.contest == "2M"),
                    KERNELS,
                ),
                Target(
                    f"2M, SDE with noise given: loops that wait {on}",
                    float(sum(bool(row.waits) for row in ours.values())),
                    0.0,
                ),
            ]
    return found


def table(title: str, bench: Bench, rows: Sequence[Row]) -> str:
    on_gpu = any(row.kernels is not None for row in rows)
    size = bench.x.nbytes
    copy = {name: statistics.median(times) for name, times in bench.copies.items()}
    lines = [
        f"{title}: {'x'.join(map(str, bench.x.shape))}, float32, {size / 2**20:.3g} MiB",
        "a copy takes "
        + ", ".join(
            f"{taken * 1e6:.1f} us into a {name} tensor ({2 * size / taken / 1e9:.1f} GB/s)"
            for name, taken in copy.items()
        )
        + f"; a model call {bench.model_cost * 1e6:.2f} us, taken off",
        f"{'':28s}{'calls':>6s}{'time/step':>12s}{'planning':>11s}"
        f"{'ours / it (quartiles)':>25s}{'memory':>9s}{'at calls':>10s}{'/ limit':>9s}"
        f"{'/ reused':>10s}" + (f"{'kernels':>9s}{'waits':>7s}" if on_gpu else ""),
    ]
    contest = ""
    for row in rows:
        if row.contest != contest:
            contest = row.contest
            lines.append(f"{contest}, {max(r.rounds for r in rows if r.contest == contest)} rounds")
        ratio = "" if row.ratios is None else "{1:.3f} ({0:.3f}-{2:.3f})".format(*row.ratios)
        lines.append(
            f"  {row.name:26s}{row.calls:6d}{row.time * 1e6:9.1f} us{row.planning * 1e6:8.0f} us"
            f"{ratio:>25s}{row.peak:9.2f}{row.at_calls:10.2f}"
            + ("" if row.to_limit is None else f"{row.to_limit[1]:9.2f}{row.to_reused:10.2f}")
        )
        if on_gpu:
            waits = {None: "", True: "yes", False: "no"}[row.waits]
            lines[-1] = f"{lines[-1]:120s}{row.kernels:9.2f}{waits:>7s}"
    return "\n".join(lines)


def shape_of(latent: str) -> tuple[int, ...]:
    """A name of LATENTS, or a shape such as 1x4x8x8."""
    if latent in LATENTS:
        return LATENTS[latent]
    try:
        shape = tuple(int(size) for size in latent.split("x"))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(
            f"{latent!r} is neither one of {', '.join(LATENTS)} nor a shape such as 1x4x64x64"
        )
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of samplers beside their model.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (%(default)s)")
    parser.add_argument("--repeats", type=int, default=400, help="at most (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="per comparison, about (%(default)s)"
    )
    parser.add_argument("--latents", nargs="+", default=list(LATENTS), help="names or shapes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    options = parser.parse_args()
    try:
        shapes = {latent: shape_of(latent) for latent in options.latents}
    except ValueError as error:
        parser.error(str(error))

    peers = Peers.load(options.device)
    torch.set_num_threads(options.threads)
    gc.freeze()  # so that collections skip all the modules of a host
    warnings.filterwarnings("ignore", module="torchsde")
    machine = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{platform.machine()} CPU, {options.threads} thread(s)"
    )
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{machine}, {versions}, {STEPS} steps\n", flush=True)

    tables: dict[str, list[Row]] = {}
    copies: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for latent, shape in shapes.items():
            bench = Bench(peers, shape, options.device, options.repeats, options.seconds)
            tables[latent] = list(bench.rows())
            copies[latent] = {name: statistics.median(t) for name, t in bench.copies.items()}
            print(table(latent, bench, tables[latent]), end="\n\n", flush=True)
    claims = targets(tables, shapes)
    print("targets", *claims, sep="\n")
    if options.json:
        content = {
            "machine": machine,
            "versions": versions,
            "shapes": shapes,
            "copies": copies,
            "rows": {latent: [asdict(row) for row in rows] for latent, rows in tables.items()},
            "targets": [asdict(claim) | {"met": claim.met} for claim in claims],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
