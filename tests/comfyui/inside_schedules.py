"""Run by test_schedules.py inside a host's Python: python inside_schedules.py COMFYUI PACK

Builds every kind of `model_sampling` the host has and checks the pack's lists of sigmas for each.
"""

import math
import sys
from itertools import pairwise
from typing import Any

import inside  # type: ignore[import-not-found]

PACK = sys.argv[2]
inside.boot()

import comfy.k_diffusion.sampling  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy.model_base import ModelType  # noqa: E402
from inside import listed, load_pack, sampling  # noqa: E402

KINDS = {
    "eps": sampling(ModelType.EPS),
    "v": sampling(ModelType.V_PREDICTION),
    "v, zero terminal SNR": sampling(ModelType.V_PREDICTION, zsnr=True),
    "edm": sampling(ModelType.EDM),
    "v, edm": sampling(ModelType.V_PREDICTION_EDM),
    "continuous v": sampling(ModelType.V_PREDICTION_CONTINUOUS),
    "cascade": sampling(ModelType.STABLE_CASCADE),
    "cascade, shift 2": sampling(ModelType.STABLE_CASCADE, shift=2.0),
    "cosmos": sampling(ModelType.FLOW_COSMOS),
    "flow": sampling(ModelType.FLOW),
    "flow, shift 3": sampling(ModelType.FLOW, shift=3.0),
    "flow, shift 1.1": sampling(ModelType.FLOW, shift=1.1),
    "flow, multiplier 1": sampling(ModelType.FLOW, shift=1.73, multiplier=1.0),
    "flux": sampling(ModelType.FLUX),
}


SPACINGS = ("logSNR", "time_uniform", "time_quadratic")


def check_list(host: Any, kind: str, spacing: str, steps: int, denoise: float, zero: bool) -> None:
    model_sampling, case = KINDS[kind], (kind, spacing, steps, denoise, zero)
    sigmas = listed(host, model_sampling, spacing, steps, denoise, zero)
    assert sigmas.dtype == torch.float32, case
    assert len(sigmas) == steps + 1, case
    assert (sigmas[1:] < sigmas[:-1]).all(), (case, sigmas)
    assert (sigmas[-1] == 0.0) == zero, case
    whole = listed(host, model_sampling, spacing, int(steps / denoise), 1.0, zero)
    assert torch.equal(sigmas, whole[-(steps + 1) :]), case
    assert math.isclose(whole[0], model_sampling.sigma_max, rel_tol=1e-5), case
    above = whole[whole > 0.0]
    if len(above) > 1:
        assert math.isclose(above[-1], model_sampling.sigma_min, rel_tol=1e-6), case
    schedule = host.ComfyModel(model_sampling).schedule
    if spacing == "logSNR":
        lambdas = [schedule.lambda_(s) for s in above.tolist()]
        even = lambdas[1:] if math.isinf(lambdas[0]) else lambdas
        steps_in_lambda = [b - a for a, b in pairwise(even)]
        if steps_in_lambda:
            assert max(steps_in_lambda) - min(steps_in_lambda) < 2e-3, (case, steps_in_lambda)


def check_rising(host: Any, kind: str, spacing: str, steps: int) -> None:
    model_sampling, case = KINDS[kind], (kind, spacing, steps)
    rising = listed(host, model_sampling, spacing, steps, rising=True)
    assert len(rising) == steps + 1, case
    assert (rising[1:] > rising[:-1]).all(), (case, rising)
    assert math.isclose(rising[0], model_sampling.sigma_min, rel_tol=1e-6), case
    if "flow" in kind or kind == "flux":
        assert 0.0 < rising[-1] < 1.0, case
    else:
        assert math.isclose(rising[-1], model_sampling.sigma_max, rel_tol=1e-6), case


def main() -> None:
    lists = [comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SCHEDULER_NAMES]
    before = [list(names) for names in lists]
    host, catalog = load_pack(PACK, "/first/custom_nodes/dpm-solver-nodes")
    load_pack(PACK, "/second/custom_nodes/dpm-solver-nodes")
    added = [[entry.id for entry in catalog.CATALOG], list(host.SCHEDULER_NAMES)]
    for names, old, new in zip(lists, before, added, strict=True):
        assert names == old + new, "menus are appended to in place, and once"
    assert comfy.samplers.KSampler.SAMPLERS is lists[0]
    assert comfy.samplers.KSampler.SCHEDULERS is lists[1]

    for kind, model_sampling in KINDS.items():
        flow = "flow" in kind or kind == "flux"
        assert (
            type(host.ComfyModel(model_sampling).schedule).__name__ == "RectifiedFlow"
        ) == flow, kind
        for spacing in SPACINGS:
            for steps in (1, 2, 3, 7, 10, 25, 40):
                for denoise in (1.0, 0.5, 0.33):
                    for zero in (True, False):
                        check_list(host, kind, spacing, steps, denoise, zero)
                check_rising(host, kind, spacing, steps)
            assert len(listed(host, model_sampling, spacing, 10, denoise=0.0)) == 0
        for name, spacing in host.SCHEDULER_NAMES.items():
            menu = comfy.samplers.calculate_sigmas(model_sampling, name, 12)
            assert torch.equal(menu, listed(host, model_sampling, spacing, 12)), (kind, name)

    try:
        _ = host.ComfyModel(sampling(ModelType.IMG_TO_IMG_FLOW)).schedule
    except ValueError as error:
        assert "IMG_TO_IMG_FLOW" in str(error)
    else:
        raise AssertionError("IMG_TO_IMG_FLOW was taken for an ODE")
    print("checked", len(KINDS), "kinds")


main()
