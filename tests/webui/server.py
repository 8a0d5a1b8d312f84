"""A real webui for the tests in this folder: installed by its user, and started once.

WEBUI_PATH names its folder, and WEBUI_PYTHON the Python it runs with (by default that of its venv).
Which program it is, `programs` tells by its files.
Nothing is written there: models, extensions and settings are in a folder of the tests'.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import subprocess
import time
import urllib.error
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from PIL import Image

from dpm_solver_nodes.hosts.own_models import fingerprint
from dpm_solver_nodes.lab.calibration import files
from dpm_solver_nodes.samplers import Calibration
from dpm_solver_nodes.samplers.solvers.fitted import Fitted
from dpm_solver_nodes.tests.support import sd15
from dpm_solver_nodes.tests.webui import test_stand_in
from dpm_solver_nodes.tests.webui.programs import FORGE, Program, program
from dpm_solver_nodes.tools import server as harness

ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS = {"dpm-solver": ROOT, "dpm-solver-tests": Path(__file__).parent / "probe"}
CHECKPOINTS = ("sd15", "refiner")
"""Two names for the same random weights."""

OPTIONS = {
    "sd_model_checkpoint": "sd15.safetensors",
    # Only what is in the user's file is put back after a job that overrides it.
    **{"eta_ancestral": 1.0, "s_noise": 1.0, "sgm_noise_multiplier": False},
}

OWN, NETWORK = "own", "model.diffusion_model."
"""The name of a calibration of the model itself, and what its network's weights begin with."""

CALIBRATED = "DPM-Solver(calibrated-sd15_6_calls)"
"""A calibrated solver: exact weights, as if they had been fitted."""

FLAGS = [
    *("--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check"),
    *("--skip-python-version-check", "--no-hashing"),
    *("--server-name", "127.0.0.1", "--api"),
]


def webui() -> Path | None:
    """Where it is installed."""
    given = os.environ.get("WEBUI_PATH")
    return Path(given).expanduser().resolve() if given else None


def python(tree: Path) -> Path:
    given = os.environ.get("WEBUI_PYTHON")
    return Path(given) if given else tree / "venv" / "bin" / "python"


def installed() -> Program:
    """The program that WEBUI_PATH names, and Forge if it names none: then its tests are skipped."""
    tree = webui()
    return FORGE if tree is None else program(tree)


@dataclass(frozen=True)
class Result:
    """A job's images, [height, width, 3] of 0 to 255, each with its text as the host parses it."""

    images: list[np.ndarray]
    texts: list[str]

    @property
    def text(self) -> dict[str, str]:
        """Of the first image; no value here holds a comma."""
        pairs = (pair.partition(": ") for pair in self.texts[0].splitlines()[-1].split(", "))
        return {key: value for key, _, value in pairs}


class WebUI(harness.Server):
    """A running webui; made by `start`."""

    def wait_until_up(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self._check_alive()
            with contextlib.suppress(OSError):
                self.get("/probe/last")
                return
            if time.monotonic() > deadline:
                raise harness.HostError(f"webui did not answer in {timeout:g} s:\n{self.log(40)}")
            time.sleep(0.5)

    def txt2img(self, **settings: Any) -> Result:
        return self.job("txt2img", settings)

    def img2img(self, image: np.ndarray, **settings: Any) -> Result:
        return self.job("img2img", {"init_images": [encoded(image)], **settings})

    def job(self, path: str, settings: Mapping[str, Any]) -> Result:
        """Run a job of small images; HostError with the host's words if it fails."""
        usual = {
            "prompt": "a cat",
            "seed": 7,
            "steps": 5,
            "width": 64,
            "height": 64,
            "cfg_scale": 3,
        }
        return self._run(path, {**usual, **settings})

    def pasted(self, text: str) -> Result:
        """The job that a text describes, which is all that is given.

        Save for lists, over which Forge f2.0.1 stumbles when it reads a text.
        """
        return self._run("txt2img", {"infotext": text, "styles": []})

    def _run(self, path: str, settings: Mapping[str, Any]) -> Result:
        try:
            answer = self.post(f"/sdapi/v1/{path}", settings)
        except urllib.error.HTTPError as error:
            raise harness.HostError(error.read().decode()) from None
        texts = json.loads(answer["info"])["infotexts"]
        return Result([decoded(image) for image in answer["images"]], texts)

    def last(self) -> Any:
        """What the tests' extension saw of the last job."""
        return self.get("/probe/last")

    def names(self) -> list[str]:
        return [sampler["name"] for sampler in self.get("/sdapi/v1/samplers")]


def encoded(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def decoded(image: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")).astype(int)


def own_calibration() -> Calibration:
    """One that was made on the very model, as the fingerprint of its network says."""
    weights = safetensors.torch.load_file(sd15.checkpoint())
    network = {
        name.removeprefix(NETWORK): one for name, one in weights.items() if name.startswith(NETWORK)
    }
    fitted = Fitted(
        "BaseModel", guidance=13.0, errors={"it": 0.1}, fingerprint=fingerprint(network, {})
    )
    return test_stand_in.calibration(test_stand_in.Model(), calls=9, fitted=fitted)


@contextlib.contextmanager
def start(work: Path, timeout: float = 300.0) -> Iterator[WebUI]:
    """Start it on the CPU, on a free port of this machine only; stop it whatever happens."""
    tree, this = webui(), installed()
    assert tree is not None
    if not python(tree).exists():
        raise harness.HostError(
            f"there is no Python at {python(tree)}: name {this.name}'s own in WEBUI_PYTHON"
        )
    (work / "extensions").mkdir(parents=True)
    for name, pack in EXTENSIONS.items():
        (work / "extensions" / name).symlink_to(pack, target_is_directory=True)
    models = work / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    for name in CHECKPOINTS:
        checkpoint = models / f"{name}.safetensors"
        checkpoint.symlink_to(sd15.checkpoint())
        this.beside(checkpoint, tree, work)
    calibration = test_stand_in.calibration(test_stand_in.Model(), fitted=Fitted("BaseModel"))
    files.save([calibration], work / "models" / "dpm_solver" / "sd15 6 calls.safetensors")
    files.save([own_calibration()], work / "models" / "dpm_solver" / f"{OWN}.safetensors")
    (work / "config.json").write_text(json.dumps({**OPTIONS, **this.options}))
    port = harness.free_port()
    # Without the permission gradio would not serve the host's own scripts to its page.
    folders = ["--data-dir", str(work), "--gradio-allowed-path", str(tree)]
    flags = [*FLAGS, *this.flags, "--port", str(port), *folders]
    command = [str(python(tree)), "launch.py", *flags]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (
        harness.signals_as_exceptions(),
        (work / "host.log").open("w") as output,
        contextlib.ExitStack() as stack,
    ):
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=variables | harness.OFFLINE,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stack.callback(harness.stop, process)
        server = WebUI(f"http://127.0.0.1:{port}", work, process)
        server.wait_until_up(timeout)
        yield server
