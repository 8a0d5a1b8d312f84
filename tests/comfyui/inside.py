"""What the scripts that run inside a host's Python share: its modules, the pack, model_sampling.

python inside_....py COMFYUI PACK
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def boot() -> None:
    """Make the host's modules importable, as its main.py does; they are imported after it."""
    comfyui = sys.argv[1]
    sys.argv[:] = ["main.py", "--cpu"]
    sys.path.insert(0, comfyui)
    os.chdir(comfyui)

    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401  # first, as the host does: others have a module of that name


def load_pack(root: str, name: str) -> tuple[Any, Any]:
    """Load the pack as the host does: by path, under a mangled name.

    Returns:
        Its modules hosts.comfyui.sampling and samplers.catalog.
    """
    spec = importlib.util.spec_from_file_location(name, Path(root, "__init__.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    asyncio.run(module.comfy_entrypoint())
    return sys.modules[f"{name}.hosts.comfyui.sampling"], sys.modules[f"{name}.samplers.catalog"]


def sampling(model_type: Any, **settings: float) -> Any:
    """The `model_sampling` that the host makes for one of its ModelTypes."""
    import comfy.model_base

    return comfy.model_base.model_sampling(SimpleNamespace(sampling_settings=settings), model_type)


def listed(host: Any, model_sampling: Any, *arguments: Any, **settings: Any) -> Any:
    """The pack's list of sigmas for a model, as its nodes hand it on."""
    import torch

    return torch.FloatTensor(host.ComfyModel(model_sampling).sigmas(*arguments, **settings))
