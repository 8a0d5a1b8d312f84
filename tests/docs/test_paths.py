"""Names of files hold on every system: what the pack writes, what workflows hold, what it ships."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from dpm_solver_nodes.lab.calibration import files
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.samplers.solvers.fitted import Calibration, Fitted

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    ".",
    "demo",
    "hosts",
    "lab",
    "samplers",
    "scripts",
    "tests/support/probe_nodes",
    "tools",
)
FORBIDDEN = set('<>:"/\\|?*') | {chr(code) for code in range(32)}
"""In a file's name on Windows."""


def holds_on_windows(name: str) -> bool:
    device = name.partition(".")[0].rstrip().upper() in files.DEVICES
    return not (device or FORBIDDEN & set(name) or name.endswith((" ", ".")))


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(
            "CON",
            "nul",
            "Aux",
            "prn",
            "com1",
            "LPT9",
            "COM¹",
            "con.v2",
            "NUL .x",
            "nul.safetensors",
        ),
        *("a\\b", "a//b", "..\\b", "C:x", "C:\\x", "\\\\server\\share", "a:b", "a|b", 'a"b', "a?b"),
        *(
            "a*b",
            "a<b",
            "a>b",
            "a\tb",
            "a\nb",
            "x.",
            "x ",
            ".",
            "..",
            "",
            " x",
            "x" * 101,
            "é" * 51,
        ),
        *("x .safetensors", "..safetensors"),
    ],
)
def test_names_that_some_system_refuses(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name is "):
        files.free_path(tmp_path, name)


@pytest.mark.parametrize(
    "name",
    ["a", "SDXL_8calls_cfg7.5", "flow +1-2", "Дом", "猫", "console", "com10", "lpt", "x" * 100],
)
def test_names_that_all_systems_hold(tmp_path: Path, name: str) -> None:
    path = files.free_path(tmp_path, name)
    assert path == tmp_path / f"{name}.safetensors"
    assert holds_on_windows(path.name)
    assert PureWindowsPath("C:\\models", path.name).name == path.name
    assert files.free_path(tmp_path, path.name) == path


def test_names_that_differ_in_case_alone_are_one(tmp_path: Path) -> None:
    """Or copying the folder to Windows would lose one of them."""
    for name in ("Digits", "digits", "DIGITS", "Straße", "STRASSE"):
        files.free_path(tmp_path, name).touch()
    names = [path.name for path in tmp_path.iterdir()]
    assert len({name.casefold() for name in names}) == len(names) == 5
    assert {"Digits.safetensors", "digits_2.safetensors", "DIGITS_3.safetensors"} < set(names)


def test_the_folder_is_made_when_it_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "dpm_solver"
    path = files.free_path(folder, "first")
    assert not folder.exists()
    steps = (Weights(0.5, (0.5,)), Weights(0.0, (1.0, 0.0)))
    calibration = Calibration(
        "diffusion", (14.0, 1.0, 0.0), steps, Fitted("Дом", None, 1, 10, {"猫": 0.1})
    )
    files.save([calibration], path)
    assert files.load(path) == (calibration,)
    assert files.free_path(folder, "FIRST").name == "FIRST_2.safetensors"


@pytest.mark.parametrize("system", [PureWindowsPath, PurePosixPath])
def test_names_in_subfolders_are_the_same_on_every_system(
    system: type[PureWindowsPath | PurePosixPath],
) -> None:
    """A workflow made on one is opened on the other."""
    listed = str(system("mine", "sdxl", "ten calls.safetensors"))
    assert files.portable(listed) == "mine/sdxl/ten calls.safetensors"
    assert files.portable(files.portable(listed)) == files.portable(listed)


# --- what is shipped -----------------------------------------------------------------------------


def shipped() -> list[str]:
    """Every file of the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this is no clone")
    return done.stdout.decode().strip("\0").split("\0")


def test_the_clone_can_be_checked_out_on_windows() -> None:
    names = shipped()
    assert len({name.casefold() for name in names}) == len(names)
    assert [name for name in names if not all(map(holds_on_windows, name.split("/")))] == []
    # The longest path there, 259, less a folder such as C:\Users\somebody\...\custom_nodes.
    assert max(map(len, names)) < 100


def test_workflows_hold_no_path_of_one_system() -> None:
    for path in [*ROOT.glob("workflows/*.json"), *ROOT.glob("demo/workflows/*.json")]:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            values = node.get("widgets_values") or ()
            words = [value for value in values if isinstance(value, str) and "\n" not in value]
            assert not [word for word in words if "\\" in word or PureWindowsPath(word).drive], path
            assert not [word for word in words if PurePosixPath(word).is_absolute()], path


LOAD_AS_WINDOWS_DOES = r"""
import importlib.util, sys
name = r"C:\ComfyUI_x_0\custom nodes\dpm-solver"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
pack = importlib.util.module_from_spec(spec)
sys.modules[name] = pack
spec.loader.exec_module(pack)
files = importlib.import_module(name + ".lab.calibration.files")
assert files.portable("a\\b") == "a/b"
"""


def test_loads_under_the_name_of_a_windows_path() -> None:
    """Which the host makes the module's name, dots aside."""
    command = [sys.executable, "-c", LOAD_AS_WINDOWS_DOES, str(ROOT / "__init__.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SOURCES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_say_their_encoding(path: Path) -> None:
    """Windows' own is another, in which our texts can't be written."""
    bare = []
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        modes = [mode.value for mode in call.args if isinstance(mode, ast.Constant)]
        binary = any(isinstance(mode, str) and mode in ("rb", "wb", "xb", "ab") for mode in modes)
        given = {keyword.arg for keyword in call.keywords}
        whose = getattr(getattr(call.func, "value", None), "id", "")
        if whose in ("Image", "tarfile", "safetensors", "urllib"):
            continue
        if name in ("open", "read_text", "write_text") and not binary and "encoding" not in given:
            bare.append(call.lineno)
    assert bare == []
