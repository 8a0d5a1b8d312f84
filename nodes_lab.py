"""ComfyUI nodes of the lab: names, inputs and tooltips, and a call into hosts/. No maths."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io, ui

from .hosts.comfyui import (
    calibrate,
    calibrations,
    candidates,
    compare,
    guiding,
    plot_sigmas,
)

CATEGORY = "sampling/DPM-Solver/lab"
CALIBRATED_CATEGORY = "sampling/DPM-Solver"
CANDIDATES = io.Custom("DPM_SOLVER_CANDIDATES")
DEFAULT_CANDIDATES = """euler karras
dpmpp_2m karras
dpm_solver++_2m dpm_solver_log_snr
dpm_solver++_3m_exact dpm_solver_log_snr
dpm_solver++_recommended dpm_solver_recommended"""
# hiddenswitch's ComfyUI knows only whether there is such a control, not where it begins.
FIXED = getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True)


class DPMSolver_Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Compare",
            display_name="Solver Compare",
            category=CATEGORY,
            description="Which sampler is closest on your own model? Runs each candidate from the "
            "same noise at several numbers of model calls, and measures how far it is from the "
            "converged result. Gives a plot, a grid of the images, and a table. It says beforehand "
            "how many model calls that takes. Connect a guider, or model, positive and negative.",
            search_aliases=[
                "solver compare",
                "sampler comparison",
                "compare samplers",
                "benchmark",
                "xy plot",
                "convergence",
            ],
            inputs=[
                io.Latent.Input(
                    "latent_image",
                    tooltip="What to start from, as for a sampler: an empty latent of the size you "
                    "use. A batch gives steadier numbers: errors are averaged over its images.",
                ),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=FIXED,
                    tooltip="The noise that every candidate starts from. Keep it fixed, so that the "
                    "reference is kept between runs; try another one before you trust a small lead.",
                ),
                io.String.Input(
                    "candidates",
                    default=DEFAULT_CANDIDATES,
                    multiline=True,
                    tooltip="One candidate per line: a sampler and a scheduler by their names in "
                    "KSampler's menus, such as: dpmpp_2m karras. Lines from a # on are not read.",
                ),
                io.String.Input(
                    "calls",
                    default="5, 8, 10, 15, 20, 25",
                    tooltip="Numbers of model calls to compare at, with commas between them. A "
                    "sampler that calls the model twice in a step gets half the steps, so that all "
                    "have the same cost. At most 120 runs: candidates times numbers of calls.",
                ),
                io.Int.Input(
                    "reference_calls",
                    default=200,
                    min=10,
                    max=10000,
                    tooltip="Model calls for the converged result that errors are measured against. "
                    "200 is enough below 50 calls; take eight times your largest number of calls.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance with model, positive and negative, as in KSampler. A guider "
                    "brings its own, and this has no effect.",
                ),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip="What predicts: CFGGuider, BasicGuider or any other. In place of model, "
                    "positive and negative; flow models without a negative prompt need one.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model to sample with, where no guider is connected.",
                ),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="The prompt, where no guider is connected."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The negative prompt, where no guider is connected; an empty one will do.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the images of the grid. Without it the grid shows small "
                    "previews; plot and table are the same, as errors are measured in the latent.",
                ),
                CANDIDATES.Input(
                    "more_candidates",
                    optional=True,
                    tooltip="Samplers with settings of their own, from Solver Candidate nodes.",
                ),
                io.Sampler.Input(
                    "reference_sampler",
                    optional=True,
                    tooltip="Makes the reference in place of dpm_solver++_3m_exact. To judge "
                    "stochastic or CFG++ samplers, connect one of their own kind: they converge to "
                    "another image.",
                ),
                io.Sigmas.Input(
                    "reference_sigmas",
                    optional=True,
                    tooltip="Exactly this list for the reference, for example one that starts later, "
                    "for image to image. reference_calls then has no effect.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="Error against model calls."),
                io.Image.Output(display_name="grid", tooltip="The images, labelled."),
                io.String.Output(display_name="table", tooltip="The errors as aligned text."),
                io.String.Output(
                    display_name="csv", tooltip="Every run in a line, for a spreadsheet."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        latent_image: dict[str, Any],
        noise_seed: int,
        candidates: str,
        calls: str,
        reference_calls: int,
        cfg: float,
        guider: Any = None,
        model: Any = None,
        positive: Any = None,
        negative: Any = None,
        vae: Any = None,
        more_candidates: Any = None,
        reference_sampler: Any = None,
        reference_sigmas: Any = None,
        **_: Any,
    ) -> io.NodeOutput:
        used = guiding.guider_of(guider, model, positive, negative, cfg)
        outputs = compare.solver_compare(
            guiding.Bench(used, latent_image, noise_seed),
            candidates,
            more_candidates or (),
            calls,
            reference_calls,
            vae=vae,
            reference_sampler=reference_sampler,
            reference_sigmas=reference_sigmas,
            node_id=cls.hidden.unique_id,
        )
        return io.NodeOutput(*outputs)


class DPMSolver_Candidate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Candidate",
            display_name="Solver Candidate",
            category=CATEGORY,
            description="A sampler with settings of its own for Solver Compare. Chain several: "
            "candidates of one into previous of the next.",
            search_aliases=["solver candidate", "compare samplers"],
            inputs=[
                io.Sampler.Input("sampler", tooltip="The sampler, from any node that makes one."),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="karras",
                    tooltip="Where its steps are put, at each number of model calls. karras is good "
                    "on Stable Diffusion; dpm_solver_log_snr from 15 calls up. Has no effect where "
                    "sigmas is connected.",
                ),
                io.String.Input(
                    "label",
                    default="",
                    tooltip="Its name in plot, grid and table. Empty: sampler and scheduler.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Exactly this list of sigmas, in place of the scheduler. The candidate "
                    "then is one point in the plot, whatever numbers of calls are compared.",
                ),
                CANDIDATES.Input(
                    "previous",
                    optional=True,
                    tooltip="Candidates from another Solver Candidate, to which this one is added.",
                ),
            ],
            outputs=[
                CANDIDATES.Output(
                    display_name="candidates", tooltip="For Solver Compare's more_candidates."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        sampler: Any,
        scheduler: str,
        label: str,
        sigmas: Any = None,
        previous: Any = None,
        **_: Any,
    ) -> io.NodeOutput:
        entry = candidates.entry(label, sampler, scheduler, sigmas)
        return io.NodeOutput([*(previous or ()), entry])


class DPMSolver_PlotSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_PlotSigmas",
            display_name="Plot Sigmas",
            category=CATEGORY,
            description="Shows a schedule: the noise level of each step, its log-SNR, and, for the "
            "samplers of this pack, how much each step takes of the model's outputs. Calls no model.",
            search_aliases=[
                "plot sigmas",
                "show sigmas",
                "plot schedule",
                "sigma curve",
                "log snr",
                "solver weights",
            ],
            inputs=[
                io.Sigmas.Input("sigmas", tooltip="The list, from any scheduler node."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connect it for flow models (SD3, Flux, Wan), whose log-SNR is another. "
                    "Without it: Stable Diffusion's kind.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Adds the weights of each step, if it is a sampler of this pack.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The schedule as a picture."),
                io.String.Output(display_name="table", tooltip="The same in numbers."),
            ],
        )

    @classmethod
    def execute(
        cls, sigmas: Any, model: Any = None, sampler: Any = None, **_: Any
    ) -> io.NodeOutput:
        return io.NodeOutput(*plot_sigmas.plot_sigmas(sigmas, model, sampler))


class DPMSolver_Calibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Calibrate",
            display_name="DPM-Solver Calibrate",
            category=CATEGORY,
            description="Fits a solver of few model calls to your own model: it solves some noises "
            "finely, chooses where the steps go, fits their weights, and measures on other noises "
            "what that brings. Run it once; the result is saved and serves every later graph through "
            "DPM-Solver Calibrated. Other seeds and prompts, and a CFG up to 30 % higher or lower, "
            "gain too.",
            search_aliases=[
                "dpm-solver calibrate",
                "calibration",
                "fit sampler",
                "optimise sampler",
                "optimize sampler",
                "few steps",
            ],
            inputs=[
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the size you make images in."
                ),
                io.Int.Input(
                    "calls",
                    default=8,
                    min=2,
                    max=30,
                    tooltip="Model calls of the solver you want, which are its steps. 5 to 10 gain "
                    "the most over other samplers.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The CFG you will sample with. A guider brings its own, and this has no "
                    "effect.",
                ),
                io.Int.Input(
                    "seeds",
                    default=20,
                    min=2,
                    max=256,
                    tooltip="Noises to fit on. 20 is enough; fewer for very large latents: each takes "
                    "eight times its latent of main memory, and all of them 4 GiB at most.",
                ),
                io.Int.Input(
                    "held_out",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="Further noises that it is not fitted on, to measure what it brings.",
                ),
                io.Int.Input(
                    "model_calls",
                    default=5000,
                    min=100,
                    max=1000000,
                    step=100,
                    tooltip="Single-image model calls that the fit may take at most. 5000 is about "
                    "five minutes for SD 1.5 at 512 pixels on a current GPU. The log and the node "
                    "say beforehand how many it will be.",
                ),
                io.Int.Input(
                    "batch",
                    default=4,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Images in a model call, and so on the device at a time. 1 for the least "
                    "memory.",
                ),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFF,
                    control_after_generate=FIXED,
                    tooltip="The first of the seeds.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the file in models/dpm_solver. Empty: model, calls and CFG. An "
                    "older file is never overwritten: a number is added.",
                ),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip="What predicts: CFGGuider, BasicGuider or any other. In place of model, "
                    "positive and negative; flow models without a negative prompt need one.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model to calibrate on, where no guider is connected.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="A prompt of the kind you use; the fit holds for others too.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="The negative prompt; an empty one will do."
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="The calibrated solver."),
                io.Sigmas.Output(tooltip="The sigmas that belong to it, and no others."),
                io.String.Output(display_name="report", tooltip="What it brought, measured."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        latent_image: dict[str, Any],
        calls: int,
        cfg: float,
        seeds: int,
        held_out: int,
        model_calls: int,
        noise_seed: int,
        name: str,
        batch: int = 4,
        guider: Any = None,
        model: Any = None,
        positive: Any = None,
        negative: Any = None,
        **_: Any,
    ) -> io.NodeOutput:
        used = guiding.guider_of(guider, model, positive, negative, cfg, "DPM-Solver Calibrate")
        asked = calibrate.Asked(calls, noise_seed, seeds, held_out, model_calls, batch, name)
        pair = calibrate.run(used, latent_image, asked, cls.hidden.unique_id)
        return io.NodeOutput(*pair, ui=ui.PreviewText(pair.text))


class DPMSolver_Calibrated(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Calibrated",
            display_name="DPM-Solver Calibrated",
            category=CALIBRATED_CATEGORY,
            description="A solver that DPM-Solver Calibrate fitted to this model. Connect both "
            "outputs: its weights hold for its own sigmas alone.",
            search_aliases=[
                "dpm-solver calibrated",
                "load calibration",
                "few steps",
                "fast sampler",
            ],
            inputs=[
                io.Combo.Input(
                    "calibration",
                    options=calibrations.names(),
                    tooltip="A file in models/dpm_solver. Files can be shared: copy them there, and "
                    "press R.",
                ),
                io.Model.Input(
                    "model",
                    tooltip="The model it will run on; a calibration for another kind is refused.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 for image to image: start on the list where about this part of "
                    "the way is left. Fewer model calls are made then.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="The calibrated solver. It takes these sigmas alone."),
                io.Sigmas.Output(tooltip="The sigmas that belong to it. Connect both."),
                io.String.Output(display_name="report", tooltip="What it was fitted on."),
            ],
        )

    @classmethod
    def validate_inputs(cls, calibration: str) -> bool:
        return True  # execute tells more of a name that is missing than the host would

    @classmethod
    def fingerprint_inputs(cls, calibration: str, **_: Any) -> str:
        return calibrations.fingerprint(calibration)

    @classmethod
    def execute(cls, calibration: str, model: Any, denoise: float = 1.0, **_: Any) -> io.NodeOutput:
        return io.NodeOutput(*calibrations.load(calibration, model, denoise))


NODES: list[type[io.ComfyNode]] = [
    DPMSolver_Compare,
    DPMSolver_Candidate,
    DPMSolver_PlotSigmas,
    DPMSolver_Calibrate,
    DPMSolver_Calibrated,
]
