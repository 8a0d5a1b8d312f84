"""The tests' own extension: it shows what happens inside the host, and changes what a test needs."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import k_diffusion.external
import torch
from modules import script_callbacks, scripts, sd_schedulers, shared

PACK = "dpm_solver_webui"


# --- kinds of model, as each program has them ----------------------------------------------------


class Forge:
    """Forge's and Forge Neo's models: a predictor says what the network's output means."""

    discrete: ClassVar[dict[str, Any]] = {
        **{"sigma_data": 1.0, "beta_schedule": "linear", "timesteps": 1000},
        **{"linear_start": 0.00085, "linear_end": 0.012},
    }

    def predictor(self, kind: str) -> Any:
        from backend.modules import k_prediction  # type: ignore[import-not-found]

        if kind == "edm":
            return k_prediction.PredictionContinuousEDM(prediction_type=kind)
        if kind in ("sd3", "flux"):
            made = {"sd3": k_prediction.PredictionDiscreteFlow, "flux": k_prediction.PredictionFlux}
            if hasattr(k_prediction, "PredictionContinuousEDM"):  # Forge
                return made[kind](**({"shift": 3.0} if kind == "sd3" else {}))
            shift = {"sd3": 3.0, "flux": 1.15}[kind]
            return made[kind](SimpleNamespace(sampling_settings={"shift": shift}))
        return k_prediction.Prediction(prediction_type=kind, **self.discrete)

    def wrap(self, kind: str) -> Any:
        """A model of a kind, as samplers and schedulers know it."""
        return k_diffusion.external.ForgeScheduleLinker(self.predictor(kind))

    def become(self, kind: str) -> None:
        """Have the loaded model be of another kind; its network is as good for any."""
        shared.sd_model.forge_objects.unet.model.predictor = self.predictor(kind)


class Automatic1111:
    """AUTOMATIC1111's: a class of k-diffusion's denoisers for each, or the model's own."""

    def wrap(self, kind: str) -> Any:
        if kind == "sd3":
            from modules.models.sd3 import sd3_impls, sd3_model

            sampling = sd3_impls.ModelSamplingDiscreteFlow(shift=3.0)
            loaded = SimpleNamespace(model=SimpleNamespace(model_sampling=sampling))
            return sd3_model.SD3Inferencer.create_denoiser(loaded)
        made = {
            "epsilon": k_diffusion.external.CompVisDenoiser,
            "v_prediction": k_diffusion.external.CompVisVDenoiser,
        }
        return made[kind](shared.sd_model, quantize=shared.opts.enable_quantization)

    def become(self, kind: str) -> None:
        shared.sd_model.parameterization = {"epsilon": "eps", "v_prediction": "v"}[kind]


models = Forge() if importlib.util.find_spec("backend") else Automatic1111()


# --- what happens in a job -----------------------------------------------------------------------


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

    @app.post("/probe/kind/{kind}")
    def set_kind(kind: str) -> None:
        models.become(kind)

    @app.get("/probe/schedule/{kind}")
    def show_schedule(kind: str) -> dict[str, Any]:
        wrap = models.wrap(kind)
        schedule = sys.modules[f"{PACK}.hosts.webui.model"].WebuiModel(wrap).schedule
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

    @app.get("/probe/schedulers")
    def show_schedulers() -> list[str]:
        return [scheduler.label for scheduler in sd_schedulers.schedulers]

    @app.post("/probe/reload")
    def reload() -> None:
        """Load all scripts again, as the page's button for it does; the page itself stays."""
        page = scripts.scripts_txt2img, scripts.scripts_img2img
        scripts.load_scripts()
        scripts.scripts_txt2img, scripts.scripts_img2img = page
        script_callbacks.before_ui_callback()


script_callbacks.on_cfg_denoiser(on_call)
script_callbacks.on_app_started(add_routes)
