"""Run by test_latents.py inside a host's Python: python inside_latents.py COMFYUI PACK

Samples latents of every shape the host knows with every sampler of the pack: images, video, audio and
several latents packed into one. The model works number by number, so that its results do not depend
on the shape, and stands behind the host's own model classes, patcher and guider.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import inside  # type: ignore[import-not-found]

PACK = sys.argv[2]
inside.boot()

import comfy.cli_args  # noqa: E402
import comfy.conds  # noqa: E402
import comfy.k_diffusion.sampling  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import torch  # noqa: E402
from comfy.model_base import ModelType  # noqa: E402
from comfy.nested_tensor import NestedTensor  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402

STEPS = 5
SPREAD = 0.3
IMAGE = (3, 4, 6, 5)
VIDEO = (2, 4, 3, 6, 5)
AUDIO = (2, 8, 7)
KINDS = {"eps": ModelType.EPS, "flow": ModelType.FLOW}
ROUNDING = 2e-5
"""Of float32, over some steps of numbers up to 60."""


# --- the model -----------------------------------------------------------------------------------


class Numbers(torch.nn.Module):
    """Predicts the noise exactly where every number is +1 or -1, give or take SPREAD, or the flow.

    The conditioning, [batch, 1, 1], shifts both.
    """

    sigma: Callable[[torch.Tensor], torch.Tensor]
    flow: bool

    def __init__(self, device: Any = None, dtype: Any = None, operations: Any = None) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Any, timesteps: torch.Tensor, context: torch.Tensor, **_host: Any) -> Any:
        latents = x if isinstance(x, list) else [x]  # a list: packed ones, unpacked by the host
        self.shapes += [tuple(latent.shape) for latent in latents]
        outputs = [self.predict(latent, timesteps, context) for latent in latents]
        return outputs if isinstance(x, list) else outputs[0]

    def predict(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        def spread_out(values: torch.Tensor) -> torch.Tensor:
            return values.reshape(-1, *[1] * (x.ndim - 1))

        sigma, shift = spread_out(self.sigma(timesteps)), spread_out(context.mean((1, 2)))
        if self.flow:
            alpha = 1.0 - sigma
        else:
            x = x * (sigma**2 + 1.0).sqrt()
            alpha = torch.ones_like(sigma)
        variance = (alpha * SPREAD) ** 2 + sigma**2
        offset = x - alpha * shift
        mean = torch.tanh(alpha * offset / variance)
        denoised = shift + mean + alpha * SPREAD**2 / variance * (offset - alpha * mean)
        return (x - denoised) / sigma


class Config(comfy.supported_models_base.BASE):
    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.LatentFormat
    supported_inference_dtypes = [torch.float32]
    memory_usage_factor = 0.01


class Model(comfy.model_base.BaseModel):
    """As the host's models of video with sound: they ask for the shapes of packed latents."""

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        conds = super().extra_conds(**kwargs)
        shapes = kwargs.get("latent_shapes")
        if shapes is not None and len(shapes) > 1:
            conds["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        return conds


def patcher(kind: str) -> Any:
    config = Config(Config.unet_config)
    config.set_inference_dtype(torch.float32, None)
    model = Model(config, model_type=KINDS[kind], unet_model=Numbers)
    network = model.diffusion_model
    network.flow = kind == "flow"
    sampling = model.model_sampling
    network.sigma = lambda t: t / sampling.multiplier if kind == "flow" else sampling.sigma(t)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


# --- runs ----------------------------------------------------------------------------------------


@dataclass
class Result:
    samples: Any
    calls: int
    reports: list[tuple[int, ...]]
    """The shapes of the denoised outputs (of packed ones, the first) that the host's callback got."""


def sample(
    model: Any,
    name: str,
    latent: Any,
    noise: Any,
    mask: Any = None,
    *,
    seed: int = 1,
    steps: int = STEPS,
    shifts: tuple[float, ...] = (0.2, -0.1, 0.05),
) -> Result:
    """With guidance; image k of the batch is asked for shifts[k]."""
    made: list[None] = []
    reports: list[tuple[int, ...]] = []

    def count(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(None)
        return executor(*args, **kwargs)

    def callback(_step: int, denoised: Any, _x: Any, _total: int) -> None:
        reports.append(tuple(parts(denoised)[0].shape))

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "count", count)
    batch = parts(latent)[0].shape[0]
    asked = [[torch.tensor(shifts[:batch]).reshape(-1, 1, 1), {}]]
    free = [[torch.zeros(1, 1, 1), {}]]
    sampling = model.get_model_object("model_sampling")
    samples = comfy.sample.sample_custom(
        *(model, noise, 2.0, comfy.samplers.sampler_object(name)),
        *(comfy.samplers.calculate_sigmas(sampling, "simple", steps), asked, free, latent),
        noise_mask=mask,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return Result(samples, len(made), reports)


def parts(latent: Any) -> list[torch.Tensor]:
    return latent.unbind() if isinstance(latent, NestedTensor) else [latent]


def flat(latent: Any) -> torch.Tensor:
    """[batch, 1, 1, n], an image of one line."""
    return torch.cat([part.flatten(1) for part in parts(latent)], 1)[:, None, None]


def difference(a: Any, b: Any) -> float:
    pairs = zip(parts(a), parts(b), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def random(*shapes: tuple[int, ...], seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return NestedTensor(made) if len(made) > 1 else made[0]


LATENTS = {
    "images": (IMAGE,),
    "video": (VIDEO,),
    "audio": (AUDIO,),
    "video with audio": (VIDEO, AUDIO),
    "two sounds": (AUDIO, (2, 3, 5)),
}
FEW = ("audio", "video with audio")
"""For the adaptive solvers, which take ten times as many calls as STEPS, and for flows."""


class Case:
    """A sampler on a kind of model, and what is known of it."""

    def __init__(self, entry: Any, kind: str) -> None:
        self.entry, self.kind, self.model = entry, kind, patcher(kind)
        self.adaptive = entry.adaptive
        self.sized = type(entry.options).__name__ == "Recommended"
        """Its weights depend on the number of positions, which differs between the shapes."""

        names = FEW if self.adaptive or kind == "flow" else LATENTS
        self.latents = {name: LATENTS[name] for name in names}
        self.results: dict[str, Result] = {}
        self.stochastic = False
        if not self.adaptive:
            one, other = (self.run(*self.given("audio"), seed=seed) for seed in (1, 2))
            self.stochastic = difference(one.samples, other.samples) > ROUNDING

    def given(self, name: str) -> tuple[Any, Any]:
        """A latent and its noise."""
        return random(*LATENTS[name], seed=1) * 0.5, random(*LATENTS[name], seed=2)

    def plain(self, name: str) -> Result:
        """Their result, sampled once."""
        if name not in self.results:
            self.results[name] = self.run(*self.given(name))
        return self.results[name]

    def run(self, latent: Any, noise: Any, mask: Any = None, **options: Any) -> Result:
        result = sample(self.model, self.entry.id, latent, noise, mask, **options)
        for part, asked in zip(parts(result.samples), parts(latent), strict=True):
            self.check(part.shape == asked.shape, "shape", part.shape)
            self.check(torch.isfinite(part).all(), "not finite")
        if not self.adaptive:
            self.check(result.calls == STEPS, "calls", result.calls)
            self.check(len(result.reports) == STEPS, "callbacks", len(result.reports))
        return result

    def check(self, true: Any, *told: object) -> None:
        assert true, (self.entry.id, self.kind, *told)

    def close(self, a: Any, b: Any, *told: object) -> None:
        self.check(difference(a, b) < ROUNDING, *told, difference(a, b))


def check_shapes(case: Case) -> None:
    """A latent is sampled as the image that holds the same numbers, and packed ones as each alone."""
    for name, shapes in case.latents.items():
        latent, noise = case.given(name)
        network = case.model.model.diffusion_model
        network.shapes.clear()
        result = case.run(latent, noise)
        seen = {shape[1:] for shape in network.shapes}
        case.check(seen == {shape[1:] for shape in shapes}, name, seen)
        if len(shapes) == 1:
            case.check(set(result.reports) == set(shapes), name, result.reports)
        image = case.run(flat(latent), flat(noise))
        case.check(image.calls == result.calls, name, image.calls, result.calls)
        if case.sized:
            continue
        case.close(flat(result.samples), image.samples, name, "as one image")
        # The adaptive solver steps as the whole latent asks for, and noise is drawn for it all.
        if len(shapes) > 1 and not (case.adaptive or case.stochastic):
            for packed, *alone in zip(*map(parts, (result.samples, latent, noise)), strict=True):
                case.close(packed, case.run(*alone).samples, name, "as each alone")


def check_batch(case: Case) -> None:
    """A batch is its images; the adaptive solver's steps are those of its worst image."""
    for name, ((images, *rest), *others) in case.latents.items():
        if others:
            continue
        latent, noise = case.given(name)
        shifts = (0.2, -0.1, 0.05)
        if case.adaptive:
            shape = (images, *rest)
            latent, noise = (values[:1].expand(shape).clone() for values in (latent, noise))
            shifts = (0.2, 0.2, 0.2)
            batch = case.run(latent, noise, shifts=shifts)
        else:
            batch = case.plain(name)
        # The noise of a sampler with noise of its own depends on the image's place in the batch.
        for k in range(1 if case.stochastic or case.adaptive else images):
            one = case.run(latent[k : k + 1], noise[k : k + 1], shifts=shifts[k:])
            case.close(one.samples, batch.samples[k : k + 1], name, "image", k)
            case.check(one.calls == batch.calls, name, one.calls, batch.calls)


def masks(shape: tuple[int, ...]) -> torch.Tensor:
    """The first image's is all ones, the second's half, the third's soft."""
    mask = torch.ones(shape[0], 1, *shape[2:])
    mask[1:2, ..., shape[-1] // 2 :] = 0.0
    mask[2:3] = torch.linspace(0.0, 1.0, shape[-1])
    return mask


def check_masks(case: Case) -> None:
    for name, shapes in case.latents.items():
        latent, noise = case.given(name)
        made = [masks(shape) for shape in shapes]
        result = case.run(latent, noise, NestedTensor(made) if len(made) > 1 else made[0])
        for drawn, free, start, mask in zip(
            *map(parts, (result.samples, case.plain(name).samples, latent)), made, strict=True
        ):
            kept = mask.expand(start.shape) == 0.0
            case.check(kept.any(), name)
            case.close(drawn[kept], start[kept], name, "kept")
            case.check(difference(drawn[1], start[1]) > 0.1, name, "drawn")
            if not case.adaptive:
                case.close(drawn[0], free[0], name, "all ones")


def check_half_precision_between_nodes(case: Case) -> None:
    """What --fp16-intermediates does: nodes pass float16 on, and samplers compute in float32."""
    latent, noise = ((random(IMAGE, seed=k) * 0.5).half() for k in (1, 2))
    single = case.run(latent.float(), noise.float()).samples
    comfy.cli_args.args.fp16_intermediates = True
    try:
        half = case.run(latent, noise).samples
    finally:
        comfy.cli_args.args.fp16_intermediates = False
    case.check(single.dtype == torch.float32 and half.dtype == torch.float16, half.dtype)
    case.check(torch.equal(half, single.half()), difference(half, single))


def check_compiled(case: Case) -> None:
    """A compiled network is compiled for the first step, and not again for the others."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    latent, noise = random(IMAGE, seed=1) * 0.5, random(IMAGE, seed=2)
    plain = case.run(latent, noise)
    network = case.model.model.diffusion_model
    torch._dynamo.reset()
    try:
        network.predict = torch.compile(network.predict, backend=backend)
        result = case.run(latent, noise)
    finally:
        del network.predict
    case.check(0 < len(compiled) <= 2, "compiled", len(compiled))
    case.check(result.calls == plain.calls)
    case.close(result.samples, plain.samples, "compiled")


def main() -> None:
    catalog = inside.load_pack(PACK, "/somewhere/custom_nodes/dpm-solver-nodes")[1].CATALOG
    checks = [check_shapes, check_batch, check_masks]
    if hasattr(comfy.cli_args.args, "fp16_intermediates"):
        checks.append(check_half_precision_between_nodes)
    for entry in catalog:
        case = Case(entry, "eps")
        for check in checks:
            check(case)
        if not case.adaptive:
            check_shapes(Case(entry, "flow"))
    for entry in catalog[:: len(catalog) // 2]:
        check_compiled(Case(entry, "eps"))
    print("checked", len(catalog), "samplers:", *(check.__name__ for check in checks))


with torch.inference_mode():
    main()
