"""The prediction for the negative prompt, which CFG++ needs beside the guided one at each model call.

Forge and its relatives hand both to functions among a model's options (`sampler_post_cfg_function`).
AUTOMATIC1111 hands the network's outputs, before they are combined, to a callback (`on_cfg_denoised`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from modules import script_callbacks

from ...samplers.log import LOG

CALLBACKS = ("on_cfg_denoiser", "on_cfg_denoised")
"""The host's functions with which a script asks to be called before and after the network."""

POST_CFG = "sampler_post_cfg_function"
"""Among the options of a Forge model: functions of the predictions, which return the guided one."""


def readable() -> bool:
    """Whether the host has what CFG++ samplers are built on."""
    return all(hasattr(script_callbacks, name) for name in CALLBACKS)


def register() -> None:
    """Have the host tell us of each model call; one line in the log if it can't."""
    if not readable():
        LOG.warning(
            "The CFG++ samplers are left out: this program lacks the callbacks (%s) that they need.",
            ", ".join(CALLBACKS),
        )
        return
    script_callbacks.on_cfg_denoiser(_before)
    script_callbacks.on_cfg_denoised(_after)


_reader: GuidanceReader | None = None
"""Whose model call is being made; None between those of CFG++ samplers."""


def _before(params: Any) -> None:
    if _reader is not None:
        _reader.before(params.denoiser.inner_model.inner_model)


def _after(params: Any) -> None:
    if _reader is not None:
        _reader.after(params.x)


class GuidanceReader:
    """The host's denoiser, which keeps the unconditional prediction of its last call.

    A call for which the host makes none is unguided, and its unconditional prediction is the only one
    there is. The step after it is then that of the plain sampler. Hosts do so where the panel's
    settings leave the negative prompt out of a step, and Forge and its relatives at a CFG of 1.

    Args:
        model: the host's denoiser, `model(x, sigma, **extra_args)` -> denoised, [batch, ...].
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._last: torch.Tensor | None = None
        self._heard = False
        self._read: torch.Tensor | None = None
        self._batch = 0
        self._restore: list[Callable[[], None]] = []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        global _reader
        self._heard, self._read, self._batch = False, None, len(x)
        outer, _reader = _reader, self
        try:
            denoised: torch.Tensor = self.model(x, sigma, **extra_args)
        finally:
            _reader = outer
            while self._restore:
                self._restore.pop()()
        if not self._heard:
            raise ValueError(
                "A CFG++ sampler needs the prediction for the negative prompt, and this program does "
                "not give it: take a sampler without CFG++."
            )
        self._last = denoised
        if self._read is not None and extra_args.get("uncond") is not None:
            # Forge leaves zeros where it makes no prediction. Here the device need not be waited for.
            read = self._read.to(denoised)
            self._last = torch.where(read.any(), read, denoised)
        return denoised

    def unconditional(self) -> torch.Tensor:
        """The unconditional prediction of the last call, [batch, ...]."""
        assert self._last is not None
        return self._last

    def before(self, sd_model: Any) -> None:
        """Put our function among the model's options for this call, if it is a model of Forge's.

        The host has changed to the refiner by now if it does so at this call.
        """
        objects = getattr(sd_model, "forge_objects", None)
        if objects is None:
            return
        unet, options = objects.unet, objects.unet.model_options
        functions = [*options.get(POST_CFG, ()), self._keep]
        self._restore.append(lambda: setattr(unet, "model_options", options))
        unet.model_options = {**options, POST_CFG: functions}

    def _keep(self, args: Mapping[str, Any]) -> torch.Tensor:
        self._heard, self._read = True, args["uncond_denoised"]
        denoised: torch.Tensor = args["denoised"]
        return denoised

    def after(self, outputs: torch.Tensor) -> None:
        """Take the unconditional ones from the outputs of AUTOMATIC1111's network.

        Args:
            outputs: one for each prompt of each image, then an unconditional one for each image.
        """
        self._heard, self._read = True, outputs[-self._batch :]


def tell_if_unguided(label: str, extra_args: Mapping[str, Any]) -> None:
    """Log that a CFG++ sampler runs without guidance, if the host has left out the negative prompt."""
    if extra_args.get("uncond") is None:
        LOG.warning(
            "%s runs as the sampler without CFG++: at a CFG of 1 this program leaves out the negative "
            "prompt. For the least guidance set CFG to 1.01.",
            label,
        )
