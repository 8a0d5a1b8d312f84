"""Beside other packs that add samplers and schedulers, loaded before ours and after it.

The packs here are small ones that do what such packs do to the host's menus.  DPM_SOLVER_OTHER_PACKS
names a folder with clones of real ones (such as RES4LYF), and COMFYUI_PYTHON a Python that has what
ComfyUI and they require.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dpm_solver_nodes.tests.comfyui.conftest import OWN, PACKS, VERSIONS
from dpm_solver_nodes.tests.comfyui.test_menu import OUR_SCHEDULERS, options
from dpm_solver_nodes.tests.support.digits import (
    MENU,
    Graph,
    custom,
    ksampler,
    menu,
    sample,
    scheduled,
)
from dpm_solver_nodes.tools.server import PromptError, Server, start

OTHERS = os.environ.get("DPM_SOLVER_OTHER_PACKS", "")
STEPS = 6
OUR_FIRST_NODE = "DPMSolver_2M"
MENUS = {
    "samplers": ("KSampler", "sampler_name"),
    "schedulers": ("KSampler", "scheduler"),
    "custom samplers": ("KSamplerSelect", "sampler_name"),
    "custom schedulers": ("BasicScheduler", "scheduler"),
}

BEGIN = """
import importlib
import comfy.k_diffusion.sampling as sampling
import comfy.samplers as samplers
from comfy.samplers import KSampler, SchedulerHandler

NAME = __name__.replace("\\\\", "/").rpartition("/")[2]

def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return sampling.sample_euler(model, x, sigmas, extra_args, callback, disable)

def scheduler(model_sampling, steps):
    return samplers.calculate_sigmas(model_sampling, "karras", steps)

class Node:
    CATEGORY, FUNCTION, RETURN_TYPES = "other", "run", ()
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})

NODE_CLASS_MAPPINGS = {f"Node of {NAME}": Node}
"""
FUNCTION = """
setattr(sampling, f"sample_{NAME}", sample)
samplers.SCHEDULER_HANDLERS[NAME] = SchedulerHandler(scheduler)
"""
SMALL = {
    "other_appends": FUNCTION
    + """
samplers.SAMPLER_NAMES.append(NAME)
samplers.SCHEDULER_NAMES.append(NAME)
""",
    "other_inserts_and_reloads": FUNCTION
    + """
KSampler.SAMPLERS.insert(KSampler.SAMPLERS.index("uni_pc_bh2") + 1, NAME)
KSampler.SCHEDULERS.insert(1, NAME)
importlib.reload(sampling)
""",
    "other_rebinds": FUNCTION
    + """
KSampler.SAMPLERS = samplers.SAMPLER_NAMES = [*KSampler.SAMPLERS, NAME]
KSampler.SCHEDULERS = samplers.SCHEDULER_NAMES = [*KSampler.SCHEDULERS, NAME]
samplers.SCHEDULER_HANDLERS = {**samplers.SCHEDULER_HANDLERS}
""",
    "other_replaces_the_class": FUNCTION
    + """
class Replaced(KSampler):
    SAMPLERS = [*KSampler.SAMPLERS, NAME]
    SCHEDULERS = [*KSampler.SCHEDULERS, NAME]

samplers.KSampler = Replaced
""",
    "other_patches_functions": """
def patched(original, own):
    def function(*args, **kwargs):
        return own(*args, **kwargs) if NAME in args else original(*args, **kwargs)
    return function

samplers.ksampler = patched(samplers.ksampler, lambda *_: samplers.KSAMPLER(sample))
samplers.calculate_sigmas = patched(samplers.calculate_sigmas, lambda ms, _, n: scheduler(ms, n))
KSampler.SAMPLERS.append(NAME)
KSampler.SCHEDULERS.append(NAME)
""",
}
"""Packs by name: each adds a sampler and a scheduler of its name, which are Euler's and Karras's."""


@contextlib.contextmanager
def hosted(
    work: Path, version: str, *folders: Mapping[str, Path], arguments: Sequence[str] = ()
) -> Iterator[Server]:
    """A host with the packs of the first folder, and then those of the others, loaded in that order.

    Within a folder the order is the file system's; folders come as the host is told of them.
    """
    first, *others = folders
    config = ""
    for number, packs in enumerate(others):
        place = work / f"custom_nodes_{number}"
        place.mkdir(parents=True)
        for name, pack in packs.items():
            (place / name).symlink_to(pack, target_is_directory=True)
        config += f"folder{number}:\n  base_path: {work}\n  custom_nodes: {place.name}\n"
    if config:
        (work / "folders.yaml").write_text(config, encoding="utf-8")
        arguments = (*arguments, "--extra-model-paths-config", str(work / "folders.yaml"))
    with start(work, first, version=version, arguments=arguments) as server:
        yield server


@dataclass(frozen=True)
class Told:
    """What a host has in its menus, and what its samplers and schedulers gave: images, or errors."""

    menus: Mapping[str, frozenset[str]]
    samplers: Mapping[str, torch.Tensor | str]
    schedulers: Mapping[str, torch.Tensor | str]
    nodes: Sequence[tuple[str, str]]
    """Names and packs, in the order of loading."""


def asked(server: Server, samplers: Sequence[str], schedulers: Sequence[str]) -> Told:
    menus = {name: frozenset(options(server, *where)) for name, where in MENUS.items()}
    for name, (kind, field) in MENUS.items():
        assert len(options(server, kind, field)) == len(menus[name]), "an entry is listed twice"
    return Told(
        menus,
        {name: _outcome(server, ksampler(name, steps=STEPS)) for name in samplers},
        {
            name: _outcome(server, ksampler("dpm_solver++_2m", scheduler=name, steps=STEPS))
            for name in schedulers
        },
        [(name, info["python_module"]) for name, info in server.object_info().items()],
    )


def _outcome(server: Server, graph: Graph) -> torch.Tensor | str:
    try:
        return sample(server, graph).latent
    except PromptError as error:
        return error.message


def same(a: torch.Tensor | str, b: torch.Tensor | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) and isinstance(b, str)
    return a.shape == b.shape and bool(torch.allclose(a, b, atol=1e-6, equal_nan=True))


def our_place(told: Told) -> int:
    return [name for name, _ in told.nodes].index(OUR_FIRST_NODE)


@pytest.fixture(scope="module")
def ours(host: Server) -> Told:
    """Without any other pack."""
    return asked(host, [*MENU, "euler"], [*OUR_SCHEDULERS, "karras"])


# --- small packs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["ours first", "ours last"])
def among_small(
    request: pytest.FixtureRequest, host: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("small")
    for name, source in SMALL.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(BEGIN + source, encoding="utf-8")
    others = {name: folder / name for name in SMALL}
    ours_first = request.param == "ours first"
    folders = (PACKS, others) if ours_first else (others, PACKS)
    with hosted(tmp_path_factory.mktemp("host"), host.version, *folders) as server:
        nodes = list(server.object_info())
        theirs = [nodes.index(f"Node of {name}") for name in SMALL]
        place = nodes.index(OUR_FIRST_NODE)
        assert all(place < other for other in theirs) == ours_first
        assert all(place > other for other in theirs) != ours_first
        yield server


def test_no_entry_is_lost_among_small_packs(among_small: Server, ours: Told) -> None:
    for name in ("samplers", "schedulers"):
        assert set(options(among_small, *MENUS[name])) == ours.menus[name] | SMALL.keys()
    for name in ("custom samplers", "custom schedulers"):
        # Theirs are in the lists they put them into; ours are in all of them.
        assert set(options(among_small, *MENUS[name])) >= ours.menus[name]


def test_all_still_sample_among_small_packs(among_small: Server, ours: Told) -> None:
    told = asked(among_small, [*MENU, *SMALL], [*OUR_SCHEDULERS, *SMALL])
    for name in MENU:
        assert same(told.samplers[name], ours.samplers[name]), name
    for name in OUR_SCHEDULERS:
        assert same(told.schedulers[name], ours.schedulers[name]), name
    for name in SMALL:
        assert same(told.samplers[name], ours.samplers["euler"]), name
        assert same(told.schedulers[name], ours.schedulers["karras"]), name


def test_custom_sampling_among_small_packs(among_small: Server, ours: Told) -> None:
    for name in MENU:
        outcome = _outcome(among_small, custom(menu(name), scheduled("karras", STEPS)))
        assert same(outcome, ours.samplers[name]), name


# --- real packs ----------------------------------------------------------------------------------

needs_packs = pytest.mark.skipif(
    not OTHERS or OWN or len(VERSIONS) > 1,
    reason="name a folder with clones of other packs: DPM_SOLVER_OTHER_PACKS=<folder>, and a Python "
    "with what they require: COMFYUI_PYTHON=<its path>",
)
HELPERS = {name: pack for name, pack in PACKS.items() if pack != PACKS["dpm-solver-nodes"]}
"""The tests' own nodes, which change no menu."""


def real_packs() -> dict[str, Path]:
    return {path.name: path.resolve() for path in sorted(Path(OTHERS).iterdir()) if path.is_dir()}


@pytest.fixture(scope="module")
def theirs(host: Server, ours: Told, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The others without ours; what they add, they sample with."""
    with hosted(tmp_path_factory.mktemp("theirs"), host.version, HELPERS, real_packs()) as server:
        assert "IMPORT FAILED" not in server.log(), server.log()
        menus = {name: set(options(server, *where)) for name, where in MENUS.items()}
        samplers = sorted(menus["samplers"] - ours.menus["samplers"])
        schedulers = sorted(menus["schedulers"] - ours.menus["schedulers"])
        assert samplers
        return asked(server, samplers, schedulers)


@needs_packs
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "ours last"])
def test_real_packs(
    host: Server,
    ours: Told,
    theirs: Told,
    ours_first: bool,
    tmp_path: Path,
) -> None:
    """No entry of either is lost, and each gives the image that it gives alone, or fails as it does.

    A scheduler of theirs is asked for with a sampler of ours, which is not there when they are alone.
    """
    packs = real_packs()
    folders = (PACKS, packs) if ours_first else (packs, PACKS)
    with hosted(tmp_path, host.version, *folders) as server:
        told = asked(server, [*MENU, *theirs.samplers], [*OUR_SCHEDULERS, *theirs.schedulers])
        log = server.log()
    assert "IMPORT FAILED" not in log, log
    for name in MENUS:
        assert told.menus[name] == ours.menus[name] | theirs.menus[name], name
    place = our_place(told)
    places = [i for i, (_, pack) in enumerate(told.nodes) if pack.split(".")[-1] in packs]
    assert places and all((place < other) == ours_first for other in places)
    for name in MENU:
        assert same(told.samplers[name], ours.samplers[name]), name
    for name in OUR_SCHEDULERS:
        assert same(told.schedulers[name], ours.schedulers[name]), name
    for name, image in theirs.samplers.items():
        assert same(told.samplers[name], image), name
    sampled = [name for name, image in theirs.samplers.items() if not isinstance(image, str)]
    assert len(sampled) > len(theirs.samplers) / 2
    for name in theirs.schedulers:
        assert not isinstance(told.schedulers[name], str), told.schedulers[name]
