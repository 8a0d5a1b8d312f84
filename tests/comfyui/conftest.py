"""A real ComfyUI for the tests in this folder, started once per version.

COMFYUI_VERSIONS (comma-separated, default 0.30.0) says on which versions they run; COMFYUI_PATH
names a checkout of one's own instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dpm_solver_nodes.tests.support import sd15 as sd15_file
from dpm_solver_nodes.tools import browser
from dpm_solver_nodes.tools.server import DEFAULT, Server, start

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
OWN = "COMFYUI_PATH" in os.environ
VERSIONS = [DEFAULT] if OWN else os.environ.get("COMFYUI_VERSIONS", DEFAULT).split(",")
PACKS = {
    "dpm-solver-nodes": ROOT,
    "dpm_solver_demo": ROOT / "demo",
    "dpm_solver_test": ROOT / "tests" / "support" / "probe_nodes",
}


@pytest.fixture(scope="session", params=VERSIONS, ids=["own"] if OWN else VERSIONS)
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server, with this pack, the demo's pack and the tests' own nodes."""
    with start(tmp_path_factory.mktemp("comfyui"), PACKS, version=request.param) as server:
        yield server


@pytest.fixture(scope="module")
def page(host: Server) -> Iterator[Page]:
    """The host's page in a browser."""
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.opened(host) as page:
        yield page


@pytest.fixture(scope="session")
def sd15(host: Server) -> str:
    """The name of a Stable Diffusion 1.5 checkpoint (random weights) in the host's list."""
    link = host.work / "models" / "checkpoints" / "sd15.safetensors"
    if not link.exists():
        link.symlink_to(sd15_file.checkpoint())
    return link.name
