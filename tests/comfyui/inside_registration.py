"""Run by test_registration.py inside a host's Python:

    python inside_registration.py COMFYUI PACK FOLDERS...

Loads the pack again and again with other parts of it, or of the host, missing, and under the names
FOLDERS. What is there then,
and what the log says, is printed as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.abc
import importlib.util
import inspect
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import inside  # type: ignore[import-not-found]

PACK, FOLDERS = Path(sys.argv[2]), sys.argv[3:]
FOLDER = "dpm_solver"
inside.boot()

import comfy.k_diffusion.sampling as sampling  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

NODES = ".hosts.comfyui.nodes"
OF_THE_NODES = [
    f"{NODES}.{name}"
    for name in ("solvers", "adaptive", "stochastic", "sigmas", "recommended", "two_models")
]
OF_THE_LAB = [
    *(".hosts.comfyui.compare", ".hosts.comfyui.calibrate"),
    *(f"{NODES}.{name}" for name in ("compare", "calibrate", "plot_sigmas")),
]


class Missing(importlib.abc.MetaPathFinder):
    """Whatever is named so can't be imported."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, *_: Any) -> None:
        if name in self.names:
            raise ImportError(f"no {name.rpartition('.')[2]} today")


class Lines(logging.Handler):
    """What was logged: (logger, level, text)."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[str, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, record.levelname, self.format(record)))


@contextlib.contextmanager
def replaced(values: dict[Any, Any], name: str, value: Any) -> Iterator[None]:
    before = {name: values[name]} if name in values else {}
    values[name] = value
    try:
        yield
    finally:
        del values[name]
        values.update(before)


def load(name: str, root: Path = PACK) -> dict[str, Any]:
    """What there is after the pack was loaded under this name."""
    log = Lines()
    logging.getLogger().addHandler(log)
    logging.getLogger().setLevel(logging.INFO)
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        extension = asyncio.run(module.comfy_entrypoint())
        listed = asyncio.run(extension.get_node_list())
        nodes = [node.GET_SCHEMA().node_id for node in listed]
    finally:
        logging.getLogger().removeHandler(log)
    first = comfy.samplers.KSampler.SAMPLERS[-1]
    function = getattr(sampling, f"sample_{first}")
    return {
        "nodes": nodes,
        "menus": function.__module__.startswith(f"{name}."),
        "folder": FOLDER in folder_paths.folder_names_and_paths,
        "log": log.lines,
    }


def without(*modules: str) -> dict[str, Any]:
    """Without these modules, where `.` at the beginning stands for the pack."""
    name = f"without {modules}".replace(".", "_x_")  # as the host does
    finder = Missing(*(f"{name}{module}" if module[0] == "." else module for module in modules))
    kept = {module: sys.modules.pop(module) for module in modules if module in sys.modules}
    sys.meta_path.insert(0, finder)
    try:
        return load(name)
    finally:
        sys.meta_path.remove(finder)
        sys.modules.update(kept)


def with_server(server: ModuleType) -> dict[str, Any]:
    with replaced(sys.modules, "server", server):
        return load(f"with {vars(server).keys()}")


def with_named_folder(path: str) -> dict[str, Any]:
    """With a folder for calibrations that extra_model_paths.yaml names, as the host registers it."""
    known = folder_paths.folder_names_and_paths
    with replaced(known, FOLDER, None):
        del known[FOLDER]
        folder_paths.add_model_folder_path(FOLDER, path)
        load("with a named folder")
        paths, endings = known[FOLDER]
    return {"paths": paths, "endings": sorted(endings)}


def modules_of(folder: str) -> list[str]:
    """The modules in a folder of the pack, as they are named in it."""
    paths = (path.relative_to(PACK) for path in (PACK / folder).rglob("[a-z]*.py"))
    return ["." + ".".join(path.with_suffix("").parts) for path in paths]


def hinted(model_sampling: Any) -> list[tuple[str, str, str]]:
    """What the log says of a run of the recommended sampler on a model like this."""
    load("hinting")
    log = Lines()
    logging.getLogger().addHandler(log)
    patcher = SimpleNamespace(get_model_object=lambda _: model_sampling, model=None)

    def model(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        return x / (1.0 + sigma**2)

    model.inner_model = SimpleNamespace(model_patcher=patcher)  # type: ignore[attr-defined]
    sample = getattr(sampling, "sample_dpm_solver++_recommended")
    try:
        result = sample(model, torch.ones(1, 1), torch.tensor([10.0, 3.0, 1.0, 0.0]), {"seed": 1})
    finally:
        logging.getLogger().removeHandler(log)
    assert torch.isfinite(result).all()
    return log.lines


def in_folder(folder: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        place = Path(work, folder)
        place.symlink_to(PACK, target_is_directory=True)
        return load(f"folder {folder!a}".replace(".", "_x_"), place)


def shown() -> dict[str, dict[str, Any]]:
    """What the signature of each entry shows to set, with a number for what isn't one."""
    load("shown")
    catalog = sys.modules["shown.samplers.catalog"].CATALOG
    return {
        entry.id: {
            name: repr(parameter.default)
            for name, parameter in inspect.signature(
                getattr(sampling, f"sample_{entry.id}")
            ).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        for entry in catalog
    }


OTHER_VALUES = {
    **{"eta": 0.5, "s_noise": 0.9, "noise_device": "gpu", "solver_type": "heun"},
    **{"lower_order_final": "off", "grouping": "fixed", "thresholding": (0.99, 1.0)},
    **{"max_calls": 100, "rtol": 0.1, "atol": 0.01, "h_init": 0.1, "pcoeff": 0.1, "icoeff": 0.9},
    **{"dcoeff": 0.1, "accept_safety": 0.7},
    "noise_sampler": lambda sigma, sigma_next: torch.ones(1, 4),
}


def taken() -> dict[str, list[str]]:
    """Of what is shown, the settings that each entry also runs with."""
    load("taken")
    patcher = SimpleNamespace(
        get_model_object=lambda _: inside.sampling(comfy.model_base.ModelType.EPS), model=None
    )

    def model(
        x: torch.Tensor, sigma: torch.Tensor, model_options: Any = None, **_: Any
    ) -> torch.Tensor:
        denoised = x / (1.0 + sigma**2)
        for function in (model_options or {}).get("sampler_post_cfg_function", ()):
            function({"denoised": denoised, "uncond": [], "uncond_denoised": 0.9 * denoised})
        return denoised

    model.inner_model = SimpleNamespace(model_patcher=patcher)  # type: ignore[attr-defined]
    x, sigmas = torch.linspace(-9.0, 9.0, 4)[None], torch.linspace(10.0, 0.0, 9)
    found: dict[str, list[str]] = {}
    for entry in sys.modules["taken.samplers.catalog"].CATALOG:
        sample = getattr(sampling, f"sample_{entry.id}")
        found[entry.id] = []
        for name, parameter in inspect.signature(sample).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                given = {name: OTHER_VALUES[name]}
                assert torch.isfinite(sample(model, x, sigmas, {"seed": 1}, **given)).all()
                found[entry.id].append(name)
    return found


told = {
    "shown": shown(),
    "taken": taken(),
    "whole": load("whole"),
    "no server": without("server"),
    "no PromptServer": with_server(ModuleType("server")),
    "no instance": with_server(SimpleNamespace(PromptServer=type("PromptServer", (), {}))),  # type: ignore[arg-type]
    "lab": {name: without(name) for name in [*modules_of("lab"), *OF_THE_LAB]},
    "nodes": {name: without(name) for name in OF_THE_NODES},
    "named folder": with_named_folder("/shared/solvers"),
    "inputs": without(f"{NODES}.inputs"),
    "folders": {name: in_folder(name) for name in FOLDERS},
    "hints": hinted(SimpleNamespace(sigma_max=10.0, sigma_min=0.1)),
}
print(json.dumps(told))
