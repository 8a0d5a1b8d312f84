"""What is released: pyproject's facts, the registry's archive and the wheel."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pathspec import PathSpec

from dpm_solver_nodes.tools.server import RELEASES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACK = "dpm_solver_nodes"

# comfy-cli reads .comfyignore under this older name of git's rules.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

# What a host runs, shows or loads: folders, with the kinds of files in them, and files of the root.
FOLDERS = {
    "samplers": {".py", ".json"},
    "lab": {".py"},
    "hosts": {".py"},
    "scripts": {".py"},
    "javascript": {".js"},
    "web": {".md", ".png", ".jpg", ".webp", ".svg", ".js", ".css"},
    "locales": {".json"},
    "workflows": {".json", ".jpg", ".png", ".webp"},
}
OF_THE_ROOT = {
    *("__init__.py", "nodes.py", "install.py", "requirements.txt"),
    *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"),
}


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def files() -> tuple[str, ...]:
    """All of the repository: what git holds, and what it would take up."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git repository")
    return tuple(sorted({name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}))


@cache
def archive() -> tuple[str, ...]:
    """What `comfy node pack` puts into its archive, by the same rules."""
    lines = [line.strip() for line in (ROOT / ".comfyignore").read_text().splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    ignored = PathSpec.from_lines("gitwildmatch", patterns)
    return tuple(name for name in files() if not ignored.match_file(name))


# pyproject


def test_the_version_is_the_newest_of_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", text, re.MULTILINE)
    assert len(entries) == len(re.findall("^## ", text, re.MULTILINE))
    versions = [tuple(map(int, version.split("."))) for version, _ in entries]
    assert versions == sorted(set(versions), reverse=True)
    assert [date for _, date in entries] == sorted((date for _, date in entries), reverse=True)
    assert entries[0][0] == project()["project"]["version"]


def test_what_the_registry_shows() -> None:
    about, comfy = project()["project"], project()["tool"]["comfy"]
    assert about["name"] == "dpm-solver-nodes"  # never changes: workflows name it
    assert (comfy["PublisherId"], comfy["DisplayName"]) == ("dpm-solver", "DPM-Solver")
    assert about["license"] == {"file": "LICENSE"}
    assert about["classifiers"] == ["Operating System :: OS Independent"]
    address = about["urls"]["Repository"]
    assert re.fullmatch(rf"https://github\.com/[\w-]+/{about['name']}", address)
    assert all(url.startswith(address) for url in about["urls"].values())
    assert 50 < len(about["description"]) < 500


def test_the_oldest_comfyui_is_the_oldest_that_is_tested() -> None:
    oldest = min(RELEASES, key=lambda version: tuple(map(int, version.split("."))))
    assert project()["tool"]["comfy"]["requires-comfyui"] == f">={oldest}"
    assert f"ComfyUI, {oldest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_new_versions_are_published_from_the_publishers_repository_alone() -> None:
    text = (ROOT / ".github/workflows/publish.yml").read_text()
    workflow = yaml.safe_load(text)
    triggers = workflow[True]  # what YAML makes of "on"
    assert triggers["push"] == {"branches": ["main"], "paths": ["pyproject.toml"]}
    (job,) = workflow["jobs"].values()
    owner = project()["project"]["urls"]["Repository"].split("/")[3]
    assert job["if"] == f"github.repository_owner == '{owner}'"
    assert re.findall(r"secrets\.(\w+)", text) == ["REGISTRY_ACCESS_TOKEN"]
    *_, publish = job["steps"]
    assert publish["uses"].startswith("Comfy-Org/publish-node-action@")


def test_each_push_and_pull_request_is_tested() -> None:
    text = (ROOT / ".github/workflows/test.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": None, "pull_request": None}  # every branch, forks too
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    (job,) = workflow["jobs"].values()
    assert "if" not in job
    commands = [step["run"] for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in commands} == {"setup", "test"} <= targets
    assert all(command.startswith("make ") for command in commands)
    (python,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert (
        python["with"]["python-version"] == "3.12"
    )  # the newest that is measured; see docs/compatibility.md
    cached = next(step for step in job["steps"] if "cache" in step.get("uses", ""))["with"]
    assert "~/.cache/dpm-solver-nodes" in cached["path"].split()
    for pattern in re.search(r"hashFiles\((.*)\)", cached["key"])[1].split(", "):  # type: ignore[index]
        assert list(ROOT.glob(pattern.strip("'"))), pattern


# the archive


def test_the_archive_holds_what_a_host_needs_and_nothing_else() -> None:
    for name in archive():
        folder = Path(name).parts[0]
        fits = Path(name).suffix in FOLDERS.get(folder, ()) if "/" in name else name in OF_THE_ROOT
        assert fits, f"{name} is neither needed at run time nor left out by .comfyignore"
    assert set(archive()) >= OF_THE_ROOT
    left_out = {name for name in files() if Path(name).parts[0] in FOLDERS} - set(archive())
    assert not left_out
    assert {Path(name).parts[0] for name in archive() if "/" in name} == set(FOLDERS)


def test_the_archive_is_small() -> None:
    assert sum((ROOT / name).stat().st_size for name in archive()) < 2_250_000


def imports(name: str) -> set[str]:
    """The files that the relative imports of a module name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        folder = (ROOT / name).parents[node.level - 1].joinpath(*(node.module or "").split("."))
        candidates = [folder / alias.name for alias in node.names] if folder.is_dir() else []
        candidates += [folder / "__init__"] if folder.is_dir() else [folder]
        paths = [path.with_name(f"{path.name}.py") for path in candidates]
        existing = {path.relative_to(ROOT) for path in paths if path.is_file()}
        assert existing, f"{name}, line {node.lineno}"
        packages = {folder / "__init__.py" for path in existing for folder in path.parents}
        existing |= {path for path in packages if (ROOT / path).is_file()}
        found |= {str(path) for path in existing}
    return found


def test_all_that_the_pack_imports_is_in_the_archive() -> None:
    modules = {name for name in archive() if name.endswith(".py")}
    for name in modules:
        assert imports(name) <= modules, name
    reached, new = (
        set(),
        {"__init__.py", "hosts/webui/menus.py", "hosts/diffusers.py"},
    )  # the entry points; the second by its name, the third by scripts
    while new:
        reached |= new
        new = {found for name in new for found in imports(name)} - reached
    commands = {"lab/calibration/__main__.py"}
    entry_points = {"install.py", "scripts/dpm_solver_samplers.py", *commands}
    assert modules - entry_points - reached == set(), "nothing imports these"


# the wheel


def test_every_folder_of_modules_is_a_package_of_the_wheel() -> None:
    modules = [Path(name) for name in archive() if re.fullmatch(r"\w+/.*\.py", name)]
    folders = {".".join(module.parent.parts) for module in modules} - {"scripts"}
    packages = {PACK, *(f"{PACK}.{folder}" for folder in folders)}
    assert set(project()["tool"]["setuptools"]["packages"]) == packages


def test_the_wheel_holds_the_modules_and_imports(tmp_path: Path) -> None:
    for name in archive():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "tree" / name)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    run(["-c", build], tmp_path / "tree")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"{PACK}-{project()['project']['version']}-py3-none-any")
    with zipfile.ZipFile(wheel) as contents:
        names = set(contents.namelist())
    modules = {name for name in names if name.endswith(".py")}
    of_the_pack = {name for name in archive() if name.endswith(".py") and "scripts/" not in name}
    assert modules == {f"{PACK}/{name}" for name in of_the_pack}
    data = {name for name in archive() if re.match(r"(samplers|lab|hosts)/.*\.json", name)}
    assert data and names >= {f"{PACK}/{name}" for name in data}
    first = f"import sys; sys.path.insert(0, {str(wheel)!r}); import {PACK} as it"
    assert run(["-c", f"{first}; print(it.__file__)"], tmp_path).startswith(str(wheel))


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("comfy") is None, reason="comfy-cli is not installed")
def test_the_registry_accepts_it() -> None:
    command = ["comfy", "--skip-prompt", "--no-enable-telemetry", "node", "validate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "All validation checks passed" in said
    assert "warning" not in said.lower(), said
