"""The pack imports without a host, under any name; there is nothing to install."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MATHS = sorted((ROOT / "samplers").rglob("*.py"))
RUNNING = [
    ROOT / "nodes.py",
    *(p for d in ("samplers", "lab", "hosts") for p in (ROOT / d).rglob("*.py")),
]


def python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("module", ["dpm_solver_nodes", "dpm_solver_nodes.samplers"])
def test_imports_without_any_host(module: str) -> None:
    loaded = python("-c", f"import {module}, sys; print(*sys.modules)").split()
    assert module in loaded
    assert not {"comfy", "comfy_api", "modules", "nodes", "k_diffusion", "torchsde"} & set(loaded)


def test_plain_import_of_the_root_loads_neither_torch_nor_its_rooms() -> None:
    loaded = python("-c", "import dpm_solver_nodes, sys; print(*sys.modules)").split()
    assert not {"torch", "dpm_solver_nodes.nodes", "dpm_solver_nodes.samplers"} & set(loaded)


@pytest.mark.parametrize("path", MATHS, ids=lambda path: path.name)
def test_the_maths_imports_neither_hosts_nor_siblings(path: Path) -> None:
    outside = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            depth = len(path.relative_to(ROOT / "samplers").parts)
            assert node.level <= depth, f"line {node.lineno} leaves samplers/"
            if node.level == 0:
                assert node.module is not None
                outside.add(node.module.split(".")[0])
    assert outside <= {"torch", "numpy", "tqdm"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_run_leaves_the_warnings_of_its_process_alone(path: Path) -> None:
    """Their filters and what is recorded belong to all threads: what we have to say is in the log."""
    imported = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    assert "warnings" not in imported


LOAD_BY_PATH = """
import asyncio, importlib.util, sys
samplers = []
for name in ("custom_nodes_a_x_dot_y", "/some/path/custom_nodes/dpm-solver"):
    spec = importlib.util.spec_from_file_location(name, sys.argv[1])
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)
    assert asyncio.iscoroutinefunction(pack.comfy_entrypoint)
    samplers.append(importlib.import_module(name + ".samplers").sample_multistep)
assert samplers[0] is not samplers[1]
assert "dpm_solver_nodes" not in sys.modules
"""


def test_loads_by_path_under_two_mangled_names() -> None:
    assert python("-c", LOAD_BY_PATH, str(ROOT / "__init__.py")) == ""


def contents() -> dict[str, str]:
    """Digest of every file of the pack, tools' folders and caches aside."""
    files = [
        path
        for folder in (".", "samplers", "lab", "hosts")
        for path in ((ROOT / folder).iterdir() if folder == "." else (ROOT / folder).rglob("*"))
        if path.is_file()
    ]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_install_runs_twice_on_the_standard_library_and_changes_nothing() -> None:
    before = contents()
    # -S: no site-packages, hence no torch
    outputs = [python("-S", "-I", str(ROOT / "install.py")) for _ in range(2)]
    assert outputs == ["", ""]
    assert contents() == before


def test_users_have_one_thing_to_install() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    entries = [entry for line in lines if (entry := line.partition("#")[0].strip())]
    assert entries == ["matplotlib"]


@pytest.mark.parametrize("path", sorted((ROOT / "lab").rglob("*.py")), ids=lambda path: path.name)
def test_the_lab_imports_no_host_and_matplotlib_late(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    folders: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            (folders if node.level else names).add(node.module.split(".")[0])
    at_the_top = {
        node.module.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert (
        names
        <= {*("torch", "numpy", "PIL", "einops", "matplotlib"), "safetensors"}
        | sys.stdlib_module_names
    )
    assert "hosts" not in folders and "nodes" not in folders
    assert not {"matplotlib", "einops"} & at_the_top


def test_webui_finds_one_script_under_a_name_of_its_own() -> None:
    assert [path.name for path in (ROOT / "scripts").glob("*.py")] == ["dpm_solver_samplers.py"]
