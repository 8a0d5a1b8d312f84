"""A scheduler for diffusers' pipelines that runs the pack's samplers.

from dpm_solver_nodes.hosts.diffusers import DPMSolverScheduler

pipe.scheduler = DPMSolverScheduler.from_config(pipe.scheduler.config)
images = pipe("a cat", num_inference_steps=12).images

A pipeline calls its model once per step, at a time that the scheduler named before the run. So all
samplers run that do this: recommended, multistep, singlestep, SDE, ER-SDE, and calibrations. Adaptive
samplers choose their steps during a run, 2S ancestral calls the model between the steps, and CFG++
needs the prediction without the prompt, which a scheduler is not given: they are refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

try:
    from diffusers import (
        ConfigMixin,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        SchedulerMixin,
    )
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
except ImportError as error:
    raise ImportError(
        "DPMSolverScheduler needs diffusers, which is not installed: pip install diffusers."
    ) from error

from ..lab.calibration import files, texts
from ..samplers import DiscreteSchedule, FlowSchedule, NoiseSchedule
from ..samplers.catalog import CATALOG
from ..samplers.checks import one_of, quoted
from ..samplers.denoiser import PREDICTIONS
from ..samplers.devices import as_float64
from ..samplers.grid import Grid
from ..samplers.integrate import Stepper, at_least_float32
from ..samplers.noise import BrownianNoise, Seed
from ..samplers.options import Options
from ..samplers.plan import Plan
from ..samplers.schedules.networks import TrainingSchedule
from ..samplers.solvers.fitted import Calibrated
from ..samplers.solvers.recommended import Recommended
from .callers import callers_variables
from .model import OFFERED_SPACINGS, RECOMMENDED, HostModel, Times

PREDICTION_TYPES = {
    "epsilon": "noise",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
"""diffusers' name of what a model predicts -> ours."""

FLOW = "flow_prediction"

AUTO, CONFIG = "auto", "config"
SPACINGS = (AUTO, CONFIG, *OFFERED_SPACINGS)

SAME_SIGMA = 1e-4
"""The largest relative difference between a step's sigma on the list and in the plan."""

NEARLY_WHOLE = 1e-4
"""How far rounding may move a whole time."""

EVEN = 1e-6
"""How far it may move an even list."""

UNSUPPORTED = {
    "sigma_data": "preconditions its model as EDM does",
    "snr_shift_scale": "shifts the noise of its model (CogVideoX)",
    "scaling_t": "is not made of sigmas",
    "stage_range": "samples in stages of its own (Helios)",
}
"""A key of a config that we can't follow -> what its scheduler does."""


SAY_THE_NOISE = ("beta_start", "beta_schedule", "trained_betas", "shift", "use_flow_sigmas")
"""Keys of a config, one of which every scheduler has whose noise we know."""

OF_THE_MODEL = (*SAY_THE_NOISE, "beta_end", "prediction_type")
"""Keys that stay as the other scheduler has them, where its default is not ours."""


class DiffusersModel(HostModel):
    """A pipeline's model, as its scheduler's config describes it.

    Args:
        training: the noise it was trained with.
        ends: its largest and its smallest sigma.
    """

    kind = ""

    def __init__(self, training: TrainingSchedule, ends: tuple[float, float]) -> None:
        self.training = training
        self._sigma_max, self._sigma_min = ends

    @cached_property
    def schedule(self) -> NoiseSchedule:
        return self.training.noise_schedule

    @property
    def own_sigma_max(self) -> float:
        return self._sigma_max

    @property
    def sigma_min(self) -> float:
        return self._sigma_min

    def times(self, sigma_max: float, sigma_min: float) -> Times:
        start, end = (float(self.training.time(one)) for one in as_float64((sigma_max, sigma_min)))
        return Times(self.training.sigma_at, start, end)

    def whole(self, sigmas: Sequence[float]) -> None:
        """None: diffusers' models take any time."""


class DPMSolverScheduler(SchedulerMixin, ConfigMixin):
    """diffusers' interface to the pack's samplers.

    A state of a pipeline is alpha x0 + sigma noise with alpha^2 + sigma^2 = 1, or that of a flow. Make
    it by `from_config` or `from_pretrained` of any of diffusers' schedulers for such models. Then
    the model, its noise and, unless the sampler has a list of its own, its steps stay as they were.

    Args:
        sampler: an id of the catalogue (the README's table), or the path of a calibration.
        settings: settings of the sampler to change, such as {"order": 3} or {"eta": 0.5}.
        spacing: "auto": a list of the sampler's own if it has one, otherwise "config". The recommended
            list is that for large images, as a scheduler doesn't know the image's size.
            "config": diffusers' steps for this config (timestep_spacing, use_karras_sigmas, ...).
            "logSNR", "time_uniform", "time_quadratic", "recommended": as in the node DPM-Solver
            Sigmas.
        prediction_type: "epsilon", "sample", "v_prediction", or "flow_prediction" for flow models.
        shift, flow_shift: of a flow's time; 1 is none. flow_shift is another scheduler's name of it,
            and counts if shift is 1.
        others: as in `DPMSolverMultistepScheduler` and `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: a setting is out of its range, or the sampler can't run in a pipeline.
    """

    num_inference_steps: int | None
    timesteps: torch.Tensor
    sigmas: torch.Tensor
    _step_index: int | None
    _begin_index: int | None
    _stepper: Stepper | None
    _own_model: DiffusersModel | None  # of a run on the recommended list

    _compatibles = [one.name for one in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        sampler: str = CATALOG[0].id,
        settings: Mapping[str, Any] | None = None,
        spacing: str = AUTO,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: Literal["zero", "sigma_min"] = "zero",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        time_shift_type: Literal["exponential", "linear"] = "exponential",
    ) -> None:
        one_of("prediction_type", prediction_type, tuple(PREDICTION_TYPES))
        one_of("spacing", spacing, SPACINGS)
        self.flow = prediction_type == FLOW
        self._options = _options(sampler, settings or {})
        self._shift = flow_shift if shift == 1.0 else shift
        self._lists = self._scheduler_for_lists()
        self.init_noise_sigma = 1.0
        model = self._model(self._shift)  # until set_timesteps, every step of the training
        times = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float64) / num_train_timesteps
        self._adopt(model, [*model.training.sigma(times).tolist(), 0.0])

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make it from the config of any of diffusers' schedulers; see the class.

        Args:
            kwargs: settings that replace those of the config.

        Raises:
            ValueError: the config is of a scheduler whose models are of another kind.
        """
        for key, what in UNSUPPORTED.items():
            if config is not None and config.get(key) is not None:
                raise ValueError(
                    f"This config's scheduler {what} ({key}), which DPMSolverScheduler can't follow: "
                    "keep the pipeline's own scheduler."
                )
        given = {**(config or {}), **kwargs}
        if all(given.get(key) is None for key in SAY_THE_NOISE):
            raise ValueError(
                "This config does not say which noise its model was trained with (none of "
                f"{', '.join(SAY_THE_NOISE)}): keep the pipeline's own scheduler, or add one of them, "
                'such as prediction_type="flow_prediction", shift=1.0 for a flow model.'
            )
        if config is not None and config.get("invert_sigmas"):
            raise ValueError(
                "This config's scheduler turns its time around (invert_sigmas), which "
                "DPMSolverScheduler can't follow: keep the pipeline's own scheduler."
            )
        if config is not None and "shift" in config and "prediction_type" not in config:
            kwargs.setdefault("prediction_type", FLOW)  # FlowMatchEuler, which says nothing of it
        # diffusers leaves out what is another scheduler's default.
        kwargs = {key: given[key] for key in OF_THE_MODEL if given.get(key) is not None} | kwargs
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def begin_index(self) -> int | None:
        """Where a run starts on the list, as the pipeline says it."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The number of the next step; None before the first one."""
        return self._step_index

    @property
    def shift(self) -> float:
        return float(self._shift)

    def set_shift(self, shift: float) -> None:
        self._shift = shift

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which step the run starts: image to image starts on a later one.

        For a pipeline's `strength` the recommended list then becomes one for that start. It is put in
        the same tensor, as the pipeline already holds its part of `timesteps`.
        """
        model, held = self._own_model, self.timesteps
        if model is not None and 0 < begin_index < len(held) and _by_strength():
            listed = model.asked_for(RECOMMENDED, len(held), len(held) - begin_index)
            self._adopt(model, listed, held.device)
            self._own_model, self.timesteps = model, held.copy_(self.timesteps)
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the steps of a run: as many model calls.

        Args:
            sigmas, timesteps: steps of the caller's own, without the last zero. A flow's are shifted,
                as in `FlowMatchEulerDiscreteScheduler`. A sampler or spacing with a list of its own
                is used only without them; those that many pipelines pass if the user passes none,
                evenly from 1 to 1 / steps, do not count.
            mu: of dynamic shifting, which the pipeline finds from the image's size.

        Raises:
            ValueError: the sampler can't run on these steps, or there are none.
        """
        shift = self._shift
        if self.config.use_dynamic_shifting:
            if mu is None:
                raise ValueError("mu is missing: this config shifts by it (use_dynamic_shifting).")
            shift = math.exp(mu) if self.config.time_shift_type == "exponential" else float(mu)
        model = self._model(shift)
        own = [one for one in (sigmas, timesteps) if one is not None]
        count = num_inference_steps if num_inference_steps is not None or not own else len(own[0])
        if count is None or count < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {quoted(count)}.")
        chosen = own and not (self.flow and timesteps is None and _even(own[0]))
        own_list = None if chosen else self._own_list(model, count)
        listed = own_list or self._config_list(count, sigmas, timesteps, mu)
        self._adopt(model, listed, device)
        if own_list and self._spacing == RECOMMENDED:
            self._own_model = model
        called = self._plan(0).sigmas
        if any(abs(a - b) > SAME_SIGMA * b for a, b in zip(called, self._sigmas, strict=False)):
            raise ValueError(
                f"{self.config.sampler} calls the model between the steps of the list, which a "
                "pipeline can't do: take another sampler."
            )

    def scale_model_input(self, sample: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The model's input for a state: the state."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state: a SchedulerOutput with it as prev_sample, or a tuple of it.

        Args:
            model_output: the model's prediction for `sample` at `timestep`.
            generator: the noise of stochastic samplers comes from its seed, with a list from each
                image's: a path of noise for each image, whatever the batch and the number of steps.
            variance_noise: the noise of this step, of unit variance, in place of that.

        Raises:
            ValueError: there is no step left, or the run starts between steps.
        """
        if self._step_index is None:
            self._step_index = self._first_index(timestep)
        i = self._step_index
        if i >= len(self._factors):
            raise ValueError("The run has no step left: call set_timesteps for another one.")
        z = at_least_float32(sample)
        factors = self._factors[i]
        x = z / factors.scale
        if self._stepper is None:
            self._stepper = Stepper(self._plan(i), x, s_noise=self._options.s_noise)
            self._noise = BrownianNoise(x, self._schedule, _seed(generator))
        stepper = self._stepper
        stepper.make_room()
        stepper.replace(x)
        given = variance_noise
        stepper.noise = self._noise if given is None else lambda *_: given.to(x)
        denoised = self._denoised(model_output, z, factors)
        stepper.take(denoised, denoised)
        self._step_index += 1
        result = (stepper.x * factors.scale_next).to(sample.dtype)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Images with the noise of their times, for image to image, inpainting and training.

        Args:
            timesteps: [batch] or [1].
        """
        x = at_least_float32(original_samples)
        sigma = self._sigma_of(timesteps.to(x)).reshape(-1, *[1] * (x.ndim - 1))
        _, alpha, std = self._training.state(sigma)
        return (alpha * x + std * noise).to(original_samples.dtype)

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """`add_noise`, as schedulers of flows call it."""
        return self.add_noise(sample, noise, timestep)

    # --- the model, as the config has it ----------------------------------------------------------

    def _scheduler_for_lists(self) -> Any:
        """The scheduler of diffusers' own whose steps are those of "config"."""
        kind = FlowMatchEulerDiscreteScheduler if self.flow else DPMSolverMultistepScheduler
        own = inspect.signature(kind.__init__).parameters
        given = {name: value for name, value in self.config.items() if name in own}
        return kind(**given | ({"shift": self._shift} if self.flow else {}))

    def _model(self, shift: float) -> DiffusersModel:
        count = int(self.config.num_train_timesteps)
        training: TrainingSchedule
        if self.flow:
            training = FlowSchedule(shift, t_end=1.0 / count)
        else:
            training = DiscreteSchedule.from_alphas_cumprod(self._lists.alphas_cumprod)
        return DiffusersModel(training, (training.sigma_at(1.0), training.sigma_at(1.0 / count)))

    def _own_list(self, model: DiffusersModel, count: int) -> list[float] | None:
        """The sampler's or the spacing's list; None for the config's."""
        if isinstance(self._options, Calibrated):
            calibration = self._options.calibration
            model.check(calibration, self.config.sampler)
            if count != calibration.calls:
                raise ValueError(
                    f"{self.config.sampler} is made for {calibration.calls} steps, and {count} are "
                    f"asked for: set num_inference_steps to {calibration.calls}, or take another "
                    "sampler."
                )
            return list(calibration.sigmas)
        return None if self._spacing == CONFIG else model.sigmas(self._spacing, count)

    @property
    def _spacing(self) -> str:
        """One of SPACINGS but AUTO."""
        if self.config.spacing != AUTO:
            return str(self.config.spacing)
        return RECOMMENDED if isinstance(self._options, Recommended) else CONFIG

    def _config_list(
        self,
        count: int,
        sigmas: Sequence[float] | None,
        timesteps: Sequence[float] | None,
        mu: float | None,
    ) -> list[float]:
        """The list that diffusers makes for the config, or for the caller's own steps."""
        if self.flow:
            self._lists.set_shift(self._shift)
            self._lists.set_timesteps(count, sigmas=sigmas, mu=mu, timesteps=timesteps)
        elif sigmas is not None:
            own = [float(sigma) for sigma in sigmas]
            return own if own[-1] == 0.0 else [*own, 0.0]
        else:
            steps = {"timesteps": timesteps} if timesteps is not None else {}
            self._lists.set_timesteps(None if steps else count, **steps)
        listed: list[float] = self._lists.sigmas.tolist()
        return listed

    # --- a run --------------------------------------------------------------------------------------

    def _adopt(
        self,
        model: DiffusersModel,
        sigmas: Sequence[float],
        device: str | torch.device | None = None,
    ) -> None:
        """Take a list of sigmas for the next run."""
        self._training, self._schedule = model.training, model.schedule
        self._sigmas = Grid.of(sigmas, self._schedule).sigmas
        levels = as_float64(self._sigmas)
        scales, alphas, stds = self._training.state(levels)
        of_state, of_output = PREDICTIONS[PREDICTION_TYPES[self.config.prediction_type]](
            alphas[:-1], stds[:-1]
        )
        rows = (scales[:-1], scales[1:], of_state, of_output)
        self._factors = [Factors(*row) for row in zip(*(row.tolist() for row in rows), strict=True)]
        labels = self._training.label(levels[:-1])
        if self.flow:
            labels = labels * self.config.num_train_timesteps
        whole = labels.round()
        labels = torch.where((labels - whole).abs() < NEARLY_WHOLE, whole, labels)
        self.timesteps = labels.to(device, torch.float32)
        self.sigmas = levels.float()
        self.num_inference_steps = len(labels)
        self._step_index = self._begin_index = self._stepper = self._own_model = None

    def _plan(self, first: int) -> Plan:
        """The plan of a run that starts at this step."""
        grid = Grid.of(self._sigmas[first:], self._schedule)
        plan = self._options.on(self._schedule).plan(grid)
        assert plan is not None  # no adaptive sampler is taken
        return plan

    def _first_index(self, timestep: float | torch.Tensor) -> int:
        if self._begin_index is not None:
            return self._begin_index
        return int((self.timesteps.cpu() - float(timestep)).abs().argmin())

    def _sigma_of(self, timesteps: torch.Tensor) -> torch.Tensor:
        count = self.config.num_train_timesteps
        if self.flow:
            return timesteps / count
        return self._training.sigma((timesteps + 1.0) / count)

    def _denoised(
        self, model_output: torch.Tensor, z: torch.Tensor, factors: Factors
    ) -> torch.Tensor:
        if self.config.variance_type in ("learned", "learned_range"):
            model_output = model_output[:, : z.shape[1]]
        denoised = factors.of_state * z + factors.of_output * model_output
        if self.config.thresholding and not self.flow:
            denoised = self._lists._threshold_sample(denoised)
        return denoised


class Factors(NamedTuple):
    """What makes of a pipeline's state z, and of its model's output, those of the samplers.

    Attributes:
        scale, scale_next: x is z / scale, before and after the step.
        of_state, of_output: x0 is of_state * z + of_output * output.
    """

    scale: float
    scale_next: float
    of_state: float
    of_output: float


def _options(sampler: str, settings: Mapping[str, Any]) -> Options:
    """The settings of a sampler that a pipeline can run.

    Raises:
        ValueError: there is no such sampler or setting, or a pipeline can't run it.
    """
    if Path(sampler).suffix == files.EXTENSION:
        usable = texts.solvers(files.load(Path(sampler)))
        if not usable:
            raise ValueError(
                f"{quoted(Path(sampler).name)} holds only sigmas for a sampler of ComfyUI: take the "
                "path of another calibration."
            )
        return Calibrated(calibration=usable[0])
    known = {entry.id: entry for entry in CATALOG}
    if sampler not in known:
        names = ", ".join(name for name, one in known.items() if not (one.adaptive or one.cfg_pp))
        raise ValueError(
            f"sampler is {quoted(sampler)}: take the path of a calibration, or one of {names}."
        )
    entry = known[sampler]
    if entry.adaptive:
        raise ValueError(
            f"{sampler} chooses its steps during a run, which a pipeline can't do: take another "
            "sampler."
        )
    if entry.cfg_pp:
        raise ValueError(
            f"{sampler} needs the prediction without the prompt, which a pipeline doesn't hand to its "
            "scheduler: take another sampler."
        )
    try:
        return replace(entry.options, **settings)
    except TypeError:
        own = [field.name for field in fields(entry.options)]
        raise ValueError(
            f"settings of {sampler} are {quoted(dict(settings))}: it has only {', '.join(own)}."
        ) from None


def _by_strength() -> bool:
    """Whether a pipeline that calls starts late by its `strength`.

    With `denoising_start` SDXL's refiner goes on where another run stopped, on the same list.
    """
    if callers_variables("strength") is None:
        return False
    return (callers_variables("strength", "denoising_start") or (None, None))[1] is None


def _even(sigmas: Sequence[float]) -> bool:
    """Whether these are the sigmas that pipelines of flows pass if the user passes none."""
    count = len(sigmas)
    return all(abs(float(one) - (1.0 - i / count)) < EVEN for i, one in enumerate(sigmas))


def _seed(generator: torch.Generator | list[torch.Generator] | None) -> Seed:
    if isinstance(generator, list):
        return [one.initial_seed() for one in generator]
    return None if generator is None else generator.initial_seed()
