"""Samplers of k-diffusion's form: arguments are passed by the names in a function's signature."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from k_diffusion.sampling import BrownianTreeNoiseSampler

from modules import script_callbacks, sd_samplers_common, sd_schedulers, shared

sampler_extra_params = {"sample_euler": ["s_churn", "s_tmin", "s_tmax", "s_noise"]}


class CFGDenoiser:
    """What a sampler knows as the model."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.p: Any = None
        self.step = 0
        self.total_steps = 0
        self.steps_seen: list[int] = []

    @property
    def inner_model(self) -> Any:
        return shared.sd_model.model_wrap

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, cond_scale: float, uncond: str | None
    ) -> torch.Tensor:
        if shared.state.interrupted or shared.state.skipped:
            raise sd_samplers_common.InterruptedException
        self.steps_seen.append(self.step)
        for callback in script_callbacks.cfg_denoiser:
            callback(script_callbacks.CFGDenoiserParams(x, self))
        skip = self.step / self.total_steps < shared.opts.skip_early_cond
        forge = getattr(shared.sd_model, "forge_objects", None)
        guide = _guided if forge is None else partial(_guided_by_forge, forge.unet.model_options)
        denoised = guide(x, sigma, 1.0 if skip else cond_scale, skip or uncond is None)
        self.sampler.last_latent = denoised
        self.step += 1
        return denoised


def _guided(x: torch.Tensor, sigma: torch.Tensor, cond_scale: float, skip: bool) -> torch.Tensor:
    """As AUTOMATIC1111 combines its outputs: the conditional ones come before the others."""
    cond = shared.sd_model.denoise(x, sigma)
    outputs = torch.cat([cond, cond if skip else shared.sd_model.without_prompt(x, sigma)])
    for callback in script_callbacks.cfg_denoised:
        callback(script_callbacks.CFGDenoisedParams(outputs))
    uncond = outputs[-len(x) :]
    return torch.clone(uncond).add_((cond - uncond) * cond_scale)


def _guided_by_forge(
    model_options: dict[str, Any],
    x: torch.Tensor,
    sigma: torch.Tensor,
    cond_scale: float,
    skip: bool,
) -> torch.Tensor:
    cond, uncond = shared.sd_model.denoise(x, sigma), torch.zeros_like(x)
    if not (skip or math.isclose(cond_scale, 1.0)):
        uncond = shared.sd_model.without_prompt(x, sigma)
    denoised: torch.Tensor = uncond + (cond - uncond) * cond_scale
    for function in model_options.get("sampler_post_cfg_function", []):
        predictions = {"denoised": denoised, "cond_denoised": cond, "uncond_denoised": uncond}
        denoised = function({**predictions, "uncond": "negative", "input": x, "sigma": sigma})
    return denoised


class KDiffusionSampler:
    def __init__(self, funcname: Any, sd_model: Any, options: Any = None) -> None:
        assert callable(funcname), "the stand-in has no functions of its own"
        self.func: Callable[..., torch.Tensor] = funcname
        self.extra_params: list[str] = sampler_extra_params.get(funcname, [])
        self.options = options or {}
        self.config: Any = None
        self.last_latent: Any = None
        self.model_wrap_cfg = CFGDenoiser(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p: Any, steps: int) -> torch.Tensor:
        name = p.scheduler if p.scheduler != "Automatic" else self.config.options.get("scheduler")
        scheduler = sd_schedulers.schedulers_map[name]
        p.extra_generation_params["Schedule type"] = scheduler.label
        ends = {
            "sigma_min": self.model_wrap.sigmas[0].item(),
            "sigma_max": self.model_wrap.sigmas[-1].item(),
        }
        model = {"inner_model": self.model_wrap} if scheduler.need_inner_model else {}
        sigmas: torch.Tensor = scheduler.function(n=steps, **ends, **model, device="cpu")
        return sigmas

    def initialize(self, p: Any) -> dict[str, Any]:
        self.model_wrap_cfg.p = p
        named = inspect.signature(self.func).parameters
        arguments = {}
        if "eta" in named:
            arguments["eta"] = eta = shared.opts.eta_ancestral if p.eta is None else p.eta
            if eta != 1.0:
                p.extra_generation_params["Eta"] = eta
        for name in ("s_noise", "s_tmin", "s_tmax"):
            if name in self.extra_params and name in named:
                value = getattr(shared.opts, name)
                arguments[name] = (value or float("inf")) if name == "s_tmax" else value
        return arguments

    def callback_state(self, d: dict[str, Any]) -> None:
        shared.state.sampling_step = d["i"]
        shared.total_steps_shown.append(d["i"])

    def sample(self, p: Any, x: torch.Tensor) -> torch.Tensor:
        sigmas = self.get_sigmas(p, p.steps)
        return self._launch(p, x * sigmas[0], x, sigmas, sigmas, p.steps)

    def sample_img2img(self, p: Any, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        steps, t_enc = sd_samplers_common.setup_img2img_steps(p)
        sigmas = self.get_sigmas(p, steps)
        part = sigmas[steps - t_enc - 1 :]
        noisy = shared.sd_model.noised(x, noise, part[0])
        return self._launch(p, noisy, x, sigmas, part, t_enc + 1)

    def _launch(
        self,
        p: Any,
        x: torch.Tensor,
        like: torch.Tensor,
        sigmas: torch.Tensor,
        part: torch.Tensor,
        steps: int,
    ) -> torch.Tensor:
        arguments = {**self.initialize(p), "sigmas": part}
        if self.config.options.get("brownian_noise", False):
            seeds = p.all_seeds[p.iteration * p.batch_size : (p.iteration + 1) * p.batch_size]
            arguments["noise_sampler"] = BrownianTreeNoiseSampler(
                like, sigmas[sigmas > 0].min(), sigmas.max(), seed=seeds
            )
        self.model_wrap_cfg.step, self.model_wrap_cfg.total_steps = 0, steps
        shared.state.sampling_step, shared.state.sampling_steps = 0, steps
        try:
            return self.func(
                self.model_wrap_cfg,
                x,
                extra_args={"cond_scale": p.cfg_scale, "uncond": _negative(p)},
                disable=True,  # the hosts show it; tests need not
                callback=self.callback_state,
                **arguments,
            )
        except sd_samplers_common.InterruptedException:
            latent: torch.Tensor = self.last_latent
            return latent


def _negative(p: Any) -> str | None:
    """Forge leaves the negative prompt out at a CFG of 1."""
    left_out = hasattr(shared.sd_model, "forge_objects") and p.cfg_scale == 1.0
    return None if left_out else "negative"
