"""Run by test_inversion.py, test_stochastic_nodes.py and test_cfg_pp_nodes.py inside a host's Python:

    python inside_solvers.py COMFYUI PACK

The host's KSAMPLER around an exact denoiser, in float64: what no network and no rounded time
hides, and where one noise can be given to our samplers and to the host's. What was measured is
printed as JSON, and judged there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import inside  # type: ignore[import-not-found]

PACK = sys.argv[2]
inside.boot()

import comfy.model_sampling  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy.model_base import ModelType  # noqa: E402

HOST, CATALOG = inside.load_pack(PACK, "/custom_nodes/dpm-solver-nodes")
Multistep, Singlestep = CATALOG.Multistep, CATALOG.Singlestep
Ancestral, ErSde = CATALOG.Ancestral, CATALOG.ErSde
KINDS = {
    "eps": inside.sampling(ModelType.EPS),
    "flow": inside.sampling(ModelType.FLOW, shift=3.0),
}
SHAPE = (2, 1, 64, 64)
STD = 0.2
PROMPTED = ((0.7, -0.8), (0.3, 1.0))
"""What a prompt asks for: each pixel by itself is near one of these means, (weight, mean)."""
UNPROMPTED = ((0.3, -1.0), (0.4, 0.0), (0.3, 1.2))


def denoise(
    x: torch.Tensor, sigma: float, alpha: float, mixture: tuple[tuple[float, float], ...]
) -> torch.Tensor:
    """The posterior mean of a pixel x0 in x = alpha x0 + sigma noise."""
    variance = (alpha * STD) ** 2 + sigma**2
    weights = torch.tensor([weight for weight, _ in mixture], dtype=torch.float64)
    means = torch.tensor([mean for _, mean in mixture], dtype=torch.float64)
    off = x.unsqueeze(-1) - alpha * means
    shares = torch.softmax(weights.log() - off.square() / (2.0 * variance), -1)
    return (shares * (means + alpha * STD**2 / variance * off)).sum(-1)


class Guider:
    """What the host's KSAMPLER needs of a guider."""

    def __init__(self, model_sampling: Any, cfg: float = 1.0) -> None:
        self.inner_model = SimpleNamespace(model_sampling=model_sampling)
        self.model_patcher = SimpleNamespace(
            get_model_object=lambda name: getattr(self.inner_model, name),
            model=self.inner_model,
        )
        self.flow = isinstance(model_sampling, comfy.model_sampling.CONST)
        self.scale = getattr(model_sampling, "noise_scale", 1.0)
        self.cfg = cfg

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, model_options: Any, seed: int | None = None
    ) -> torch.Tensor:
        level = sigma[0].item()
        alpha = 1.0 - level if self.flow else 1.0
        asked, free = (
            denoise(x, level * self.scale, alpha, mixture) for mixture in (PROMPTED, UNPROMPTED)
        )
        there: Any = [[]]  # a prompt, of which the host only asks whether there is one
        return comfy.samplers.cfg_function(
            *(None, asked, free, self.cfg, x, sigma), model_options, cond=there, uncond=there
        )


def run(
    kind: Any, sampler: Any, sigmas: torch.Tensor, latent: torch.Tensor, **options: Any
) -> torch.Tensor:
    """As the host's guider runs a sampler, without noise unless some is given."""
    noise = options.pop("noise", torch.zeros_like(latent))
    seed = options.pop("seed", 1)
    guider = Guider(kind, **options)
    extra = {"seed": seed, "model_options": {}}
    return sampler.sample(guider, sigmas.double(), extra, None, noise.clone(), latent, None, True)


def drawn(mixture: tuple[tuple[float, float], ...], seed: int = 7) -> torch.Tensor:
    """Images whose pixels are drawn from the mixture."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([weight for weight, _ in mixture], dtype=torch.float64)
    means = torch.tensor([mean for _, mean in mixture], dtype=torch.float64)
    count = torch.Size(SHAPE).numel()
    which = torch.multinomial(weights, count, replacement=True, generator=generator)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return (means[which] + STD * noise).reshape(SHAPE)


def rms(difference: torch.Tensor) -> float:
    return difference.square().mean().sqrt().item()


# --- image to noise and back ---------------------------------------------------------------------

CALLS = (20, 41, 161)  # "fast" groups of 3 keep their order where calls % 3 = 2
DETERMINISTIC = {
    entry.id: (entry.options, entry.order)
    for entry in CATALOG.CATALOG
    if not (entry.adaptive or entry.stochastic or entry.cfg_pp)
} | {
    f"{algorithm}, order 1": (Multistep(algorithm=algorithm, order=1), 1)
    for algorithm in ("dpmsolver++", "dpmsolver")
}


def round_trips() -> dict[str, Any]:
    """Kind, solver -> its order, and the loss of a way up and down again at each number of calls."""
    image = drawn(PROMPTED)[:1]
    found: dict[str, Any] = {}
    for kind, model_sampling in KINDS.items():
        found[kind] = {}
        for name, (options, order) in DETERMINISTIC.items():
            lost = []
            for calls in CALLS:
                up = inside.listed(HOST, model_sampling, "logSNR", calls, rising=True)
                sampler = HOST.sampler(options)
                noise = run(model_sampling, sampler, up, image)
                lost.append(rms(run(model_sampling, sampler, up.flip(0), noise) - image))
            found[kind][name] = {"order": order, "lost": lost}
    return found


# --- the host's samplers with the same noise -----------------------------------------------------


def shared(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    """Noise that depends on the step alone."""
    generator = torch.Generator().manual_seed(round(1e6 * float(sigma)))
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


class Twin(NamedTuple):
    """A sampler of ours that is one of the host's.

    Attributes:
        theirs: the host's name of it, and settings for it.
        ours: our settings.
        pairs: the host counts a pair of our steps as one.
    """

    theirs: tuple[str, dict[str, Any]]
    ours: Any
    pairs: bool = False


def of_rate(power: float) -> Any:
    """The host's "Reverse-time SDE" for er_sde."""
    return lambda s: s ** (1.0 + power)


def multistep(**settings: Any) -> Any:
    return Multistep(lower_order_final="off", **settings)


SDE: dict[str, Any] = {"eta": 1.0}
TWINS = {
    "2m sde": Twin(("dpmpp_2m_sde", SDE), multistep(order=2, **SDE)),
    "2m sde heun": Twin(
        ("dpmpp_2m_sde_heun", SDE), multistep(order=2, solver_type="taylor", **SDE)
    ),
    "3m sde": Twin(("dpmpp_3m_sde", SDE), multistep(order=3, solver_type="taylor", **SDE)),
    "euler a cfg++": Twin(("euler_ancestral_cfg_pp", SDE), multistep(order=1, cfg_pp=True, **SDE)),
    **{
        f"er sde {order}": Twin(("er_sde", {"max_stage": order}), ErSde(order=order))
        for order in (1, 2, 3)
    },
    "er sde, reverse time": Twin(
        ("er_sde", {"noise_scaler": of_rate(0.7)}), ErSde(noise_type="reverse_time", eta=0.7)
    ),
    "er sde, ode": Twin(("er_sde", {"noise_scaler": of_rate(0.0), "max_stage": 3}), ErSde(eta=0.0)),
    **{
        f"sde, r {r}, eta {eta}": Twin(
            ("dpmpp_sde", {"r": r, "eta": eta}), Singlestep(order=2, r=r, eta=eta), pairs=True
        )
        for r, eta in ((0.5, 1.0), (0.3, 0.7))
    },
    **{
        f"2s a, eta {eta}": Twin(
            ("dpmpp_2s_ancestral", {"eta": eta}), Ancestral(eta=eta), pairs=True
        )
        for eta in (0.0, 0.6, 1.0)
    },
    "euler a": Twin(("euler_ancestral", {"eta": 0.6}), Ancestral(order=1, eta=0.6)),
}


def with_middles(sigmas: torch.Tensor) -> torch.Tensor:
    """The sigmas, with one more between each two that are above 0."""
    above = sigmas[sigmas > 0.0]
    middles = torch.stack((above[:-1], (above[:-1] + above[1:]) / 2.0), 1).flatten()
    return torch.cat((middles, sigmas[len(above) - 1 :]))


def twins() -> dict[str, float]:
    """How far ours is from the host's; "/ 1.5": with a flow's noise scale of 1.5."""
    found = {}
    start = 2.0 * drawn(UNPROMPTED, seed=3)
    for kind, scale in (("eps", 1.0), ("flow", 1.0), ("flow", 1.5)):
        model_sampling = KINDS[kind]
        if scale != 1.0:
            if not hasattr(model_sampling, "set_noise_scale"):
                continue
            model_sampling = inside.sampling(ModelType.FLOW, shift=3.0, noise_scale=scale)
        # Below a flow's 1, where the host's samplers start a little later.
        sigmas = inside.listed(HOST, model_sampling, "logSNR", 13).double()[kind == "flow" :]
        for name, ((theirs, settings), options, pairs) in TWINS.items():
            for s_noise in (1.0, 0.9):
                ours = HOST.sampler(replace(options, s_noise=s_noise))
                ours.extra_options["noise_sampler"] = shared
                noise = {"s_noise": s_noise, "noise_sampler": shared}
                lists = with_middles(sigmas) if pairs else sigmas, sigmas
                one, other = (
                    run(model_sampling, sampler, its_list, start, cfg=1.5)
                    for sampler, its_list in zip(
                        (ours, comfy.samplers.ksampler(theirs, settings | noise)),
                        lists,
                        strict=True,
                    )
                )
                found[f"{kind} / {scale} / {name} / {s_noise}"] = rms(one - other) / rms(other)
    return found


# --- what the noise comes to ---------------------------------------------------------------------


def statistics() -> dict[str, Any]:
    """Mean, standard deviation and share of light pixels that the stochastic entries draw."""

    def of(images: torch.Tensor) -> list[float]:
        return [images.mean().item(), images.std().item(), (images > 0.1).double().mean().item()]

    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    found: dict[str, Any] = {"exact": of(drawn(PROMPTED))}
    for kind, model_sampling in KINDS.items():
        sigmas = inside.listed(HOST, model_sampling, "logSNR", 60)
        for entry in CATALOG.CATALOG:
            if entry.stochastic and not entry.cfg_pp:
                sampler = comfy.samplers.sampler_object(entry.id)
                images = run(model_sampling, sampler, sigmas, torch.zeros_like(noise), noise=noise)
                found[f"{kind} / {entry.id}"] = of(images)
    return found


if __name__ == "__main__":
    print(json.dumps({"round trips": round_trips(), "twins": twins(), "statistics": statistics()}))
