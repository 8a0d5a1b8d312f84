"""Imports modules of ComfyUI, which is a program and no installed package."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..tools.server import comfyui


@contextmanager
def comfyui_importable(arguments: Sequence[str]) -> Iterator[None]:
    """Put ComfyUI's folder on sys.path, and set its command line, while its modules are imported."""
    tree = str(comfyui())
    argv, sys.argv = sys.argv, ["main.py", *arguments]
    sys.path.insert(0, tree)
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        yield
    finally:
        sys.path.remove(tree)
        sys.argv = argv


@cache
def host() -> Any:
    """ComfyUI's `comfy` package on the CPU, with what is needed of it imported."""
    with comfyui_importable(["--cpu"]):
        import comfy.model_sampling
        import comfy.samplers
    return comfy
