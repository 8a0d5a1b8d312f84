"""Checks on one host: all of the pack is there and runs. Keeps the images that it makes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from dpm_solver_nodes.tests.comfyui.conftest import PACKS, ROOT
from dpm_solver_nodes.tests.comfyui.test_calibrate_nodes import calibrate_graph, calibrated
from dpm_solver_nodes.tests.comfyui.test_lab_nodes import compare_graph, plot_graph
from dpm_solver_nodes.tests.comfyui.test_menu import OUR_SCHEDULERS, options
from dpm_solver_nodes.tests.comfyui.test_nodes import AS_NODES
from dpm_solver_nodes.tests.support.digits import (
    FIXED,
    MENU,
    Graph,
    Sampled,
    custom,
    custom_advanced,
    ksampler,
    sample,
    scheduled,
    watched,
)
from dpm_solver_nodes.tools.compatibility.combinations import Combination
from dpm_solver_nodes.tools.server import HostError, PromptError, Server, start

STEPS = 12
NODES = frozenset(page.stem for page in (ROOT / "web" / "docs").glob("DPMSolver_*.md"))
"""Each node has its help page."""

MENUS = {
    ("KSampler", "sampler_name"): MENU,
    ("KSampler", "scheduler"): OUR_SCHEDULERS,
    ("KSamplerSelect", "sampler_name"): MENU,
    ("BasicScheduler", "scheduler"): OUR_SCHEDULERS,
}


@dataclass(frozen=True)
class Measured:
    """A host's results; each of `failures` is a sentence about one fault."""

    nodes: int = 0
    images: Mapping[str, Sampled] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def samplers(self) -> int:
        """How many samplers of the menu made the right number of calls."""
        return sum(_calls_fit(name, self.images[name]) for name in MENU if name in self.images)


def measure(combination: Combination) -> Measured:
    """Start that host with the pack and check it. Faults are among the failures."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _started(combination, Path(folder), PACKS) as server:
                return _checked(server)
        except HostError as error:
            with_it = _last_line(error)
        try:
            with _started(combination, Path(folder), {}):
                return Measured(failures=(f"starts only without the pack: {with_it}",))
        except HostError as error:
            return Measured(failures=(f"ComfyUI itself does not start: {_last_line(error)}",))


def _started(
    combination: Combination, work: Path, packs: Mapping[str, Path]
) -> AbstractContextManager[Server]:
    version, python, torch = combination
    return start(work, packs, version=version, python=python, torch=torch)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _checked(server: Server) -> Measured:
    images: dict[str, Sampled] = {}
    failures = [*_missing(server)]
    for name, graph in sampling().items():
        try:
            images[name] = sample(server, graph)
        except PromptError as error:
            failures.append(f"{name}: {error.message}")
    for name, graph in lab().items():
        try:
            server.run(graph)
        except PromptError as error:
            failures.append(f"{name}: {error.message}")
    nodes = sum(name in server.object_info() for name in NODES)
    failures += [
        f"{name}: {image.calls} calls"
        for name, image in images.items()
        if not _calls_fit(name.rpartition(" ")[2], image)
    ]
    return Measured(nodes, images, (*failures, *complaints(server.log())))


def _missing(server: Server) -> Iterator[str]:
    for name in sorted(NODES - server.object_info().keys()):
        yield f"no node {name}"
    for (kind, field_name), ours in MENUS.items():
        for name in sorted(set(ours) - set(options(server, kind, field_name))):
            yield f"{kind} lacks {name}"


def _calls_fit(name: str, image: Sampled) -> bool:
    finite = bool(image.latent.isfinite().all())
    return finite and (
        image.calls > 0 if name in MENU and name not in FIXED else image.calls == STEPS
    )


def sampling() -> dict[str, Graph]:
    """A graph for each menu entry, in KSampler and as a node; names end with the entry."""
    samplers = {name: ksampler(name, steps=STEPS) for name in MENU}
    schedulers = {
        f"scheduler {name}": ksampler("dpm_solver++_2m", scheduler=name, steps=STEPS)
        for name in OUR_SCHEDULERS
    }
    nodes = {
        f"node {'advanced ' * advanced}{name}": around(node, scheduled("karras", STEPS))
        for advanced, around in enumerate((custom, custom_advanced))
        for name, node in AS_NODES.items()
    }
    return samplers | schedulers | nodes


def lab() -> dict[str, Graph]:
    """A graph for each node of the lab, and one that loads the saved calibration."""
    return {
        "Solver Compare": compare_graph("dpm_solver++_2m karras\neuler karras"),
        "Plot Sigmas": plot_graph(),
        "Calibrate": calibrate_graph(name="compatible", seeds=4, held_out=2, model_calls=800),
        "Calibrated": watched(calibrated("compatible.safetensors"))[0],
    }


def complaints(log: str) -> list[str]:
    """Lines of a host's log that name a file of the pack, as warnings and tracebacks do."""
    lines = [line.strip() for line in log.splitlines()]
    named = [line for line in lines if re.search(r"custom_nodes[/\\]dpm.solver", line)]
    # All packs are named with the time they took to load.
    return [f"log: {line}" for line in named if not re.search(r"\d seconds: ", line)]
