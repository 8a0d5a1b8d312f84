"""What there is in ComfyUI where a part of the pack, or of the host, is missing."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from dpm_solver_nodes.tests.comfyui.conftest import ROOT, VERSIONS
from dpm_solver_nodes.tests.comfyui.measured_inside import measured

SAMPLING = [
    *("DPMSolver_Recommended", "DPMSolver_2M", "DPMSolver_3M", "DPMSolver_Multistep"),
    *("DPMSolver_Singlestep", "DPMSolver_Adaptive", "DPMSolver_SDE", "DPMSolver_Sigmas"),
    "DPMSolver_TwoModels",
]
LAB = [
    *("DPMSolver_Compare", "DPMSolver_Candidate", "DPMSolver_PlotSigmas"),
    *("DPMSolver_Calibrate", "DPMSolver_Calibrated"),
]
GOOD_FOLDERS = ["dpm-solver-nodes", "DPM_Solver-2"]
BAD_FOLDERS = ["a#b", "50%", "späth", "日本", "a b", "dpm.solver", "dpm@1"]
versions = pytest.mark.parametrize("version", VERSIONS)


def told(version: str) -> dict[str, Any]:
    return measured("inside_registration.py", version, *GOOD_FOLDERS, *BAD_FOLDERS)


def errors(case: dict[str, Any]) -> list[str]:
    """What was logged as an error."""
    return [text for name, level, text in case["log"] if level == "ERROR"]


@versions
def test_the_whole_pack(version: str) -> None:
    case = told(version)["whole"]
    assert case["nodes"] == SAMPLING + LAB
    assert case["menus"] and case["folder"]
    assert case["log"] == []


@versions
def test_a_folder_that_the_user_names_is_read_beside_the_hosts_own(version: str) -> None:
    case = told(version)["named folder"]
    own, shared = map(Path, case["paths"])
    assert (own.parent.name, own.name) == ("models", "dpm_solver")
    assert shared == Path("/shared/solvers")
    assert case["endings"] == [".safetensors"]


@versions
@pytest.mark.parametrize("missing", ["no server", "no PromptServer", "no instance"])
def test_without_the_hosts_server_nothing_is_missing(version: str, missing: str) -> None:
    case = told(version)[missing]
    assert case["nodes"] == SAMPLING + LAB
    assert case["menus"]
    assert errors(case) == []


@versions
def test_without_a_part_of_the_lab_the_rest_is_there(version: str) -> None:
    cases = told(version)["lab"]
    assert len(cases) >= 8
    for name, case in cases.items():
        assert case["menus"], name
        if errors(case):
            assert case["nodes"] == SAMPLING, name
            (line,) = errors(case)
            assert line.startswith("DPM-Solver runs without its lab: ImportError"), name
            assert "\n" not in line and "today" in line
        else:  # nothing imports it before a node runs
            assert case["nodes"] == SAMPLING + LAB, name
    assert any(errors(case) for case in cases.values())


@versions
def test_without_the_nodes_the_menus_and_the_lab_are_there(version: str) -> None:
    cases = told(version)["nodes"]
    assert len(cases) == 6
    for name, case in cases.items():
        assert case["menus"], name
        assert case["nodes"] == LAB, name
        (line,) = errors(case)
        assert line.startswith("DPM-Solver runs without its nodes: ImportError")


@versions
def test_without_any_node_the_menus_are_there(version: str) -> None:
    case = told(version)["inputs"]
    assert case["menus"]
    assert case["nodes"] == []
    parts = [line.partition(": ")[0] for line in errors(case)]
    assert parts == ["DPM-Solver runs without its nodes", "DPM-Solver runs without its lab"]


@versions
@pytest.mark.parametrize("folder", [*GOOD_FOLDERS, *BAD_FOLDERS])
def test_a_folder_whose_help_the_page_can_not_find(version: str, folder: str) -> None:
    case = told(version)["folders"][folder]
    assert case["nodes"] == SAMPLING + LAB
    warnings = [text for _, _, text in case["log"] if "finds no help" in text]
    assert len(warnings) == (folder in BAD_FOLDERS)
    assert all(ascii(folder) in text for text in warnings)


@versions
def test_a_hint_never_ends_a_run(version: str) -> None:
    """The run inside is on a model without `timestep`, as other packs make them."""
    assert [line for line in told(version)["hints"] if line[0] != "dpm_solver_nodes"] == []


SOURCES = [*ROOT.glob("*.py"), *(ROOT / "hosts").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_root_logger_is_not_used(path: Path) -> None:
    used = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "logging"
        and node.func.attr in ("debug", "info", "warning", "error", "exception", "log")
    ]
    assert used == []
