"""The tests' own extension: it shows what happens inside the host, and changes what a test needs."""

from __future__ import annotations

import sys
from typing import Any

import torch
from backend.modules import k_prediction  # type: ignore[import-not-found]
from k_diffusion.external import ForgeScheduleLinker
from modules import script_callbacks, scripts, sd_schedulers, shared

PACK = "dpm_solver_webui"
PREDICTORS = {
    "epsilon": lambda: k_prediction.Prediction(prediction_type="epsilon"),
    "v_prediction": lambda: k_prediction.Prediction(prediction_type="v_prediction"),
    "edm": lambda: k_prediction.PredictionContinuousEDM(prediction_type="edm"),
    "sd3": lambda: k_prediction.PredictionDiscreteFlow(shift=3.0),
    "flux": lambda: k_prediction.PredictionFlux(),
}


class Run:
    """What was seen of the last job."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.calls: list[float] = []
        self.steps: list[int] = []
        self.shown = 0
        self.latents: list[torch.Tensor] = []


# A reload of the scripts runs this file again, and the routes of the first time stay.
last: Run = vars(shared).setdefault("dpm_solver_tests_last", Run())


class Probe(scripts.Script):
    def title(self) -> str:
        return "DPM-Solver tests"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def before_process(self, p: Any, *args: Any) -> None:
        last.reset()

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        last.latents.append(ps.samples.float().cpu())


def on_call(params: Any) -> None:
    last.calls.append(float(params.sigma[0]))
    last.steps.append(params.denoiser.step)


def count_shown(total: Any) -> None:
    """Have the bar for the whole job count its updates."""
    update = type(total).update

    def counted() -> None:
        last.shown += 1
        update(total)

    total.update = counted


def add_routes(_: Any, app: Any) -> None:
    count_shown(shared.total_tqdm)

    @app.get("/probe/last")
    def show_last() -> dict[str, Any]:
        latents = [latent.tolist() for latent in last.latents]
        seen = {"calls": last.calls, "steps": last.steps, "shown": last.shown}
        return {**seen, "latents": latents}

    @app.post("/probe/forget")
    def forget() -> None:
        last.reset()

    @app.post("/probe/predictor/{kind}")
    def set_predictor(kind: str) -> None:
        """Have the loaded model be of another kind; its network is as good for any."""
        shared.sd_model.forge_objects.unet.model.predictor = PREDICTORS[kind]()

    @app.get("/probe/schedule/{kind}")
    def show_schedule(kind: str) -> dict[str, Any]:
        wrap = ForgeScheduleLinker(PREDICTORS[kind]())
        schedule = sys.modules[f"{PACK}.hosts.webui.sigmas"].noise_schedule(wrap)
        ends = {"sigma_min": wrap.sigmas[0].item(), "sigma_max": wrap.sigmas[-1].item()}
        ours = [one for one in sd_schedulers.schedulers if one.name.startswith("dpm_solver")]
        return {
            "schedule": type(schedule).__name__,
            "sigma_min": schedule.sigma_min,
            "sigmas": {
                one.label: one.function(n=10, **ends, inner_model=wrap, device="cpu").tolist()
                for one in ours
            },
        }

    @app.post("/probe/reload")
    def reload() -> None:
        """Load all scripts again, as the page's button for it does; the page itself stays."""
        page = scripts.scripts_txt2img, scripts.scripts_img2img
        scripts.load_scripts()
        scripts.scripts_txt2img, scripts.scripts_img2img = page
        script_callbacks.before_ui_callback()


script_callbacks.on_cfg_denoiser(on_call)
script_callbacks.on_app_started(add_routes)
