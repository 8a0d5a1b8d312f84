"""webui: calibrated solvers, from files in the folder `dpm_solver` among the host's models.

DPM-Solver Calibrate in ComfyUI makes them. Each is a sampler that brings its own sigmas.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from modules import paths, sd_samplers_kdiffusion

from ...lab.calibration import files
from ...samplers.integrate import Callback
from ...samplers.sample import sample_calibrated
from ...samplers.solvers.fitted import Calibration
from .sigmas import noise_schedule

LOG = logging.getLogger("dpm_solver_nodes")

FOLDER, PATTERN = "dpm_solver", "*.safetensors"

SAME_START = 0.01
"""How far, relatively, a model's sigma_max may be from that of the calibration."""

KINDS = {"is_sd1": "BaseModel", "is_sd2": "BaseModel", "is_sdxl": "SDXL", "is_sd3": "SD3"}
"""The host's marks of a model -> ComfyUI's name for its kind, which the files hold."""


def calibrations() -> dict[str, Path]:
    """The calibration files that can be used, by the name of their sampler.

    Each file has a name of its own, whatever the host does with names: a file whose name needs no
    change keeps it, and others that would be called the same are numbered. A file that can't be used
    is left out, and the log says why.
    """
    found: dict[str, Path] = {}
    taken: set[str] = set()
    there = sorted((Path(paths.models_path) / FOLDER).glob(PATTERN))
    for path in sorted(there, key=lambda path: label_of(path) != path.stem):
        try:
            files.load(path)
        except ValueError as error:
            LOG.warning("No sampler is made of a calibration: %s", error)
            continue
        label, number = label_of(path), 2
        while label.casefold() in taken:  # the host finds samplers by lower case, too
            label, number = f"{label_of(path)}_{number}", number + 1
        taken.add(label.casefold())
        found[f"DPM-Solver(calibrated-{label})"] = path
    return dict(sorted(found.items()))


def label_of(path: Path) -> str:
    """A file's name as part of a sampler's.

    It holds no space, before which the host splits off a schedule type, no comma, at which X/Y/Z plot
    splits its values, and nothing that can't be printed or encoded.
    """
    kept = (char if char.isprintable() and char != "," else " " for char in path.stem)
    return "_".join("".join(kept).split())


class CalibratedSampler(sd_samplers_kdiffusion.KDiffusionSampler):
    """The host's sampler of a calibration.

    Args:
        name: in the panel.
        path: its file, read anew for each run.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, name: str, path: Path, sd_model: Any) -> None:
        self.name, self.calibration = name, files.load(path)
        super().__init__(self._sample, sd_model)

    def get_sigmas(self, p: Any, steps: int) -> torch.Tensor:
        """The calibration's own, whatever the panel's schedule; image to image takes the last of them.

        Raises:
            ValueError: another number of steps is asked for, or the file was made for another kind of
                model, which is known only now: reForge may have changed it.
        """
        check(self.calibration, self.name, self.model_wrap)
        calls = self.calibration.calls
        if steps != calls:
            raise ValueError(
                f"{self.name} is made for {calls} steps, and {steps} are asked for: set Sampling "
                f"steps to {calls}, or take another sampler, as for the hires pass and where image to "
                "image is set to do exactly as many steps as the slider says."
            )
        if not p.is_hr_pass:  # in the image's text: no schedule of the panel's
            p.extra_generation_params["Schedule type"] = "Automatic"
        return torch.tensor(self.calibration.sigmas, dtype=torch.float32)

    def _sample(
        self,
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
    ) -> torch.Tensor:
        schedule = noise_schedule(model.inner_model)
        return sample_calibrated(
            model,
            x,
            sigmas,
            extra_args,
            callback,
            disable,
            calibration=self.calibration,
            schedule=schedule,
        )


def check(calibration: Calibration, name: str, model_wrap: Any) -> None:
    """Raise ValueError if a calibration was made for another kind of model."""
    calibration.fits(noise_schedule(model_wrap))
    model = model_wrap.inner_model
    kind = next((kind for mark, kind in KINDS.items() if getattr(model, mark, False)), "")
    made_for = calibration.fitted.model
    if kind and made_for and kind != made_for:
        raise ValueError(
            f"{name} was made on a model of the kind {made_for}, and the loaded one is of the kind "
            f"{kind}: take another sampler, or calibrate anew."
        )
    start, sigma_max = calibration.sigmas[0], float(model_wrap.sigmas[-1])
    if abs(start - sigma_max) > SAME_START * sigma_max:
        raise ValueError(
            f"{name} starts at sigma {start:.4g}, and the loaded model at {sigma_max:.4g}: take "
            "another sampler, or calibrate anew."
        )
