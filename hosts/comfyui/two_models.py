"""One run on two models: one above a noise level, the other below it, as Wan 2.2's two experts.

The sampler sees a single model, so that every sampler of the host goes on over the seam with what it
knows. Each guider prepares its own model, prompts and options as the host has it do, and both stay
prepared for the whole run; but the weights of a model are loaded when it is first called.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...samplers.checks import between, one_of
from ...samplers.log import LOG
from .model import ComfyModel
from .sampling import options_of

NODE = "Sampler for two models"
BOUNDARIES = ("time", "sigma", "step")
ROUNDED = 1e-5  # sigmas are float32


def boundary_sigma(value: float, kind: str, sigmas: torch.Tensor, model: ComfyModel) -> float:
    """The least sigma of the model for high noise.

    Args:
        value: "time": a part of the model's own time, which is sigma on flows. "sigma": that sigma.
            "step": how many steps the first of the two models takes.
        kind: one of BOUNDARIES.

    Raises:
        ValueError: the value is out of its range.
    """
    one_of("boundary_is", kind, BOUNDARIES)
    if kind == "sigma":
        return value * (1.0 - ROUNDED)
    if kind == "time":
        between("boundary", value, 0.0, 1.0)
        return (value if model.flow else model.sigma_at(value)) * (1.0 - ROUNDED)
    falling = len(sigmas) < 2 or bool(sigmas[0] > sigmas[-1])
    steps = round(value)
    if not 0 < steps < len(sigmas) - 1:  # all of the steps are on one side
        return 0.0 if (steps > 0) == falling else float("inf")
    # Calls within a step, between its two sigmas, are made by the model that began it.
    return float(sigmas[steps]) * (1.0 + ROUNDED if falling else 1.0 - ROUNDED)


def check(high: Any, low: Any) -> None:
    """Raise ValueError if one run can't go through both models.

    Args:
        high, low: the models' patchers.
    """
    flows = [ComfyModel.of(patcher).flow for patcher in (high, low)]
    if flows[0] != flows[1]:
        names = ["a flow model" if flow else "a diffusion model" for flow in flows]
        raise ValueError(
            f"{NODE}: the model for high noise is {names[0]} and that for low noise {names[1]}: both "
            "must be of the same kind."
        )
    formats = [patcher.model.latent_format for patcher in (high, low)]
    channels = [getattr(one, "latent_channels", None) for one in formats]
    if channels[0] != channels[1]:
        raise ValueError(
            f"{NODE}: latents of the model for high noise have {channels[0]} channels, and those of "
            f"the model for low noise {channels[1]}: both must have the same latents."
        )


@dataclass(frozen=True)
class TwoGuiders:
    """A guider, as far as the host's SamplerCustomAdvanced needs it, made of two.

    Attributes:
        boundary, boundary_is: where `high` ends; see `boundary_sigma`.
    """

    high: Any
    low: Any
    boundary: float
    boundary_is: str = "sigma"

    @property
    def model_patcher(self) -> Any:
        return self.high.model_patcher

    def sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Any:
        """Sample as the host's guiders do."""
        model = ComfyModel.of(self.model_patcher)
        options = options_of(sampler)  # ours may run on a list for the image's size
        listed = sigmas if options is None else model.sized(options, latent_image, sigmas)[1]
        boundary = boundary_sigma(self.boundary, self.boundary_is, listed, model)
        begins = [sigma >= boundary for sigma in listed.tolist()]
        LOG.info(
            f"{NODE}: {sum(begins[:-1])} steps with the model for high noise, from sigma "
            f"{boundary:.4g} up, and {len(begins[:-1]) - sum(begins[:-1])} with the other."
        )
        high_first = all(begins[:1])
        called = [
            begin for begin, sigma in zip(begins, listed.tolist(), strict=True) if sigma > 0.0
        ]
        if len(set(called)) < 2:
            only = self.high if high_first else self.low
            return only.sample(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed
            )
        high, low = Side(self.high, deferred=not high_first), Side(self.low, deferred=high_first)
        first, second = (high, low) if high_first else (low, high)
        result: Any = None

        def with_first(guider: Any, its_sigmas: torch.Tensor, extra: Any, *others: Any) -> Any:
            """In the place of the sampler, when the first guider is prepared."""
            first.prepared(guider, extra["model_options"])

            def with_both(guider: Any, _: Any, extra_of_second: Any, *__: Any) -> Any:
                nonlocal result
                second.prepared(guider, extra_of_second["model_options"])
                model = OneOfTwo(first, high, low, boundary)
                result = sampler.sample(model, its_sigmas, extra, *others)
                return result

            stand_in = _like(sampler, with_both)
            second.guider.sample(
                noise, latent_image, stand_in, sigmas, denoise_mask, disable_pbar=True, seed=seed
            )
            return result

        stand_in = _like(sampler, with_first)
        return first.guider.sample(
            noise, latent_image, stand_in, sigmas, denoise_mask, callback, disable_pbar, seed
        )


def _like(sampler: Any, sample: Any) -> Any:
    """A SAMPLER with another function, and all else that other packs may look for in it."""
    made = copy.copy(sampler)
    made.sample = sample
    return made


class Side:
    """A guider in such a run, and when its model is loaded.

    Attributes:
        guider: a copy of the one that was given, with options of its own.
        deferred: whether its model is left unloaded until it is called.
    """

    def __init__(self, guider: Any, deferred: bool) -> None:
        self.guider = copy.copy(guider)
        self.guider.model_options = create_model_options_clone(guider.model_options)
        add_wrapper_with_key(
            WrappersMP.PREPARE_SAMPLING,
            "dpm_solver_two_models",
            self._prepare,
            self.guider.model_options,
            is_model_options=True,
        )
        self.deferred = deferred
        self._models: list[Any] = []

    def _prepare(
        self, executor: Any, patcher: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Instead of the host's function that loads a model and what its prompts need."""
        self._load = lambda: executor(patcher, noise_shape, conds, *args, **kwargs)
        if self.deferred:
            return patcher.model, conds, self._models
        return self._load()

    def prepared(self, guider: Any, model_options: Mapping[str, Any]) -> None:
        """To be called when the host has prepared the guider, with what it calls it with."""
        self.model = guider
        self.options = model_options
        self.options_before = {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in model_options.items()
        }

    def load(self) -> None:
        """Load the model, if it isn't; the host then may unload the other one."""
        _, _, self._models[:] = self._load()
        patcher = self.guider.model_patcher
        if hasattr(patcher.model, "current_patcher"):
            patcher.model.current_patcher = patcher  # both may be patches of one model


class OneOfTwo:
    """What the sampler sees as its model; its attributes are those of the guider that comes first."""

    def __init__(self, first: Side, high: Side, low: Side, boundary: float) -> None:
        self._first, self._high, self._low = first, high, low
        self._boundary = boundary
        self._loaded: Side | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first.model, name)

    def __call__(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Any:
        side = self._high if float(sigma.max()) >= self._boundary else self._low
        if side is not self._loaded:
            side.load()
            self._loaded = side
        given, before = model_options or {}, self._first.options_before
        options = given if side is self._first else with_additions(side.options, given, before)
        return side.model(x, sigma, model_options=options, seed=seed)


def with_additions(
    own: Mapping[str, Any], given: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any]:
    """A guider's options, with what a sampler added to the other's for this call, as CFG++ ones do.

    Args:
        own: the options of this guider.
        given: those that the sampler calls the model with.
        before: the same before the sampler had them.
    """
    options = dict(own)
    for key, value in given.items():
        known = before.get(key)
        if value is known:
            continue
        if isinstance(value, dict):
            options[key] = with_additions(own.get(key) or {}, value, known or {})
        elif isinstance(value, list):
            new = [one for one in value if not any(one is other for other in known or ())]
            options[key] = [*own.get(key, ()), *new]
        else:
            options[key] = value
    return options
