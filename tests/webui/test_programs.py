"""Which program WEBUI_PATH names is told by its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpm_solver_nodes.tests.webui import programs, server
from dpm_solver_nodes.tools.server import HostError

FILES = {
    "Forge": ["backend/modules/k_prediction.py", "k_diffusion/external.py"],
    "Forge Neo": [
        "backend/modules/k_prediction.py",
        "modules_forge/packages/k_diffusion/external.py",
    ],
    "AUTOMATIC1111": [
        "extensions-builtin/Lora/network_lora.py",
        "modules/sd_schedulers.py",
        "modules/models/sd3/sd3_model.py",
    ],
    "AUTOMATIC1111 1.9": ["extensions-builtin/Lora/network_lora.py", "modules/sd_schedulers.py"],
}
OTHERS = {
    "AUTOMATIC1111 1.8": ["extensions-builtin/Lora/network_lora.py"],
    "reForge": ["ldm_patched/modules/model_sampling.py", "modules/sd_schedulers.py"],
    "nothing": [],
}


def folder(path: Path, files: list[str]) -> Path:
    for name in [*files, "launch.py"]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_program_is_told(name: str, tmp_path: Path) -> None:
    assert programs.program(folder(tmp_path, FILES[name])).name == name


@pytest.mark.parametrize("name", OTHERS)
def test_another_is_refused_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBUI_PATH", str(folder(tmp_path, OTHERS[name])))
    with pytest.raises(HostError, match=r"none of the programs that the tests know: Forge, "):
        server.installed()
