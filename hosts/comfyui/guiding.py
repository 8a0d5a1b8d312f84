"""A guider, a latent and a seed: all that a run in the host starts with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP

from ...lab import compare
from ...lab.compare import Sigmas
from ...lab.memory import Fingerprint
from ...lab.metrics import Meter


def guider_of(
    guider: Any, model: Any, positive: Any, negative: Any, cfg: float, node: str = "Solver Compare"
) -> Any:
    """The given guider, or a CFGGuider made of the model and its prompts.

    Args:
        node: the node's name, for errors.

    Raises:
        ValueError: neither is given completely, or both.
    """
    given = [
        name
        for name, value in (("model", model), ("positive", positive), ("negative", negative))
        if value is not None
    ]
    if guider is not None:
        if given:
            raise ValueError(
                f"{node} has both a guider and {' and '.join(given)}: connect only the "
                "guider, or model, positive and negative without it."
            )
        return guider
    if len(given) < 3:
        has = f" (only {' and '.join(given)} there)" if given else ""
        raise ValueError(
            f"{node} has nothing to sample with{has}: connect a guider, or all of model, "
            "positive and negative."
        )
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative)
    made.set_cfg(cfg)
    return made


def distilled_guidance_of(guider: Any) -> float | None:
    """The guidance that the prompts hand to the network (Flux Guidance), if it is one number."""
    prompts = getattr(guider, "original_conds", {}).values()
    found = {one.get("guidance") for prompt in prompts for one in prompt} - {None}
    (value,) = found if len(found) == 1 else (None,)
    return float(value) if isinstance(value, (int, float)) else None


def fitting_latent(patcher: Any, latent: Mapping[str, Any], samples: torch.Tensor) -> torch.Tensor:
    """The samples with the model's number of channels and size, if they are an empty latent.

    The host's sampler nodes do the same: an empty latent may have been made for another model.
    """
    ratios = [latent.get(f"downscale_ratio_{name}") for name in ("spacial", "temporal")]
    while ratios and ratios[-1] is None:  # older hosts know only the first, or neither
        ratios.pop()
    return comfy.sample.fix_empty_latent_channels(patcher, samples, *ratios)


class Bench:
    """The common start of all runs: a guider, a latent, a seed.

    Args:
        latent: the host's LATENT.
    """

    def __init__(self, guider: Any, latent: dict[str, Any], seed: int) -> None:
        self.guider = guider
        self.seed = seed
        self.patcher = guider.model_patcher
        self.mask = latent.get("noise_mask")
        self._batch_index = latent.get("batch_index")
        self.start = fitting_latent(self.patcher, latent, latent["samples"])

    @property
    def model_sampling(self) -> Any:
        return self.patcher.get_model_object("model_sampling")

    def sample(self, sampler: Any, sigmas: Sigmas, meter: Meter) -> torch.Tensor:
        """Sample as the host's own nodes do, from the seed's noise, with the calls metered.

        Returns:
            [batch, ...]; latents of several parts come packed, [batch, 1, length].
        """
        # Then torch's global random state is the same for each run, too.
        noise = comfy.sample.prepare_noise(self.start, self.seed, self._batch_index)
        samples = watched(self.guider, meter).sample(
            noise,
            self.start,
            sampler,
            torch.as_tensor(sigmas, dtype=torch.float32),
            denoise_mask=self.mask,
            disable_pbar=True,
            seed=self.seed,
        )
        if samples.is_nested:
            samples, _ = comfy.utils.pack_latents(samples.unbind())
        return samples

    @property
    def shown_bytes(self) -> int:
        """The memory of the latents that are kept of a run, to be shown."""
        parts = self.start.unbind() if self.start.is_nested else [self.start]
        return 4 * sum(part[: compare.MOST_IMAGES].numel() for part in parts)

    def first_part(self, latent: torch.Tensor) -> torch.Tensor:
        """A latent of `sample` as a VAE takes it; if it has several parts, the first."""
        if not self.start.is_nested:
            return latent
        shapes = [part.shape for part in self.start.unbind()]
        return comfy.utils.unpack_latents(latent, shapes)[0]

    def listed(self, scheduler: str, steps: int, sampler_name: str | None = None) -> torch.Tensor:
        """The list of sigmas that KSampler would take for this scheduler and sampler."""
        if sampler_name is None:
            return comfy.samplers.calculate_sigmas(self.model_sampling, scheduler, steps)
        return comfy.samplers.KSampler(
            self.patcher, steps=steps, device="cpu", sampler=sampler_name, scheduler=scheduler
        ).sigmas

    def fingerprint(self, *others: Any) -> Fingerprint:
        """All that a result on this bench depends on, besides `others`."""
        # The host gives each use of a conditioning an id, which doesn't change the result.
        found = Fingerprint(self.seed, self._batch_index, leave_out=frozenset({"uuid"}))
        found.add_identity(type(self.guider))
        for name, value in sorted(vars(self.guider).items()):
            found.add(name)
            if value is not self.patcher:
                found.add(value)
        for name in ("object_patches", "model_options", "wrappers", "callbacks"):
            found.add(getattr(self.patcher, name, None))
        found.add(str(getattr(self.patcher, "patches_uuid", "")))
        found.add_identity(self.patcher)
        found.add_identity(self.patcher.model)
        found.add(self.mask)
        for part in self.start.unbind() if self.start.is_nested else [self.start]:
            found.add(part)
        found.add(others)
        return found


def watched(guider: Any, meter: Meter) -> Any:
    """A copy of the guider that counts its predictions, and makes none in a dry run."""
    watched = copy.copy(guider)
    options = create_model_options_clone(guider.model_options)
    its_own = len(options.get("sampler_post_cfg_function", ()))

    def predict(executor: Any, x: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        comfy.model_management.throw_exception_if_processing_interrupted()
        meter()
        if not meter.dry:
            return executor(x, timestep, *args, **kwargs)
        given = args[0] if args else kwargs.get("model_options", {})
        denoised = torch.zeros_like(x)
        # CFG++ samplers add a function that reads the predictions: it must be called.
        for function in given.get("sampler_post_cfg_function", ())[its_own:]:
            seen = {"denoised": denoised, "cond_denoised": denoised, "uncond_denoised": denoised}
            context = {"model": watched.inner_model, "model_options": given, "cond_scale": 1.0}
            place = {"input": x, "sigma": timestep, "cond": [], "uncond": []}
            denoised = function({**seen, **context, **place})
        return denoised

    # As the outermost wrapper it sees the sampler's calls, whatever other packs do with them.
    wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    others = wrappers.get(WrappersMP.PREDICT_NOISE, {})
    wrappers[WrappersMP.PREDICT_NOISE] = {"dpm_solver_lab": [predict], **others}
    watched.model_options = options
    return watched
