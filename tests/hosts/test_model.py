"""What follows from a host's model, whichever host it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dpm_solver_nodes.hosts.model import RECOMMENDED, HostModel, Times
from dpm_solver_nodes.samplers import NoiseSchedule, RectifiedFlow
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.solvers.multistep import Multistep
from dpm_solver_nodes.samplers.solvers.recommended import Recommended
from dpm_solver_nodes.samplers.solvers.recommended_parts import Part, part_of
from dpm_solver_nodes.samplers.solvers.rows import row_of, share_of

SCHEDULE = RectifiedFlow(sigma_min=0.001)


@dataclass(frozen=True)
class Flow(HostModel):
    """A flow of shift 1."""

    schedule: NoiseSchedule = SCHEDULE
    kind: str = "Flow"
    own_sigma_max: float = 1.0
    sigma_min: float = 0.001

    def times(self, sigma_max: float, sigma_min: float) -> Times:
        return Times(float, sigma_max, sigma_min)

    def whole(self, sigmas: Sequence[float]) -> list[float] | None:
        return None


SMALL, LARGE = torch.zeros(2, 3, 16, 16), torch.zeros(1, 4, 64, 64)


@pytest.mark.parametrize("calls", [2, 5, 12, 40])
def test_a_recommended_list_is_moved_for_small_images(calls: int) -> None:
    model = Flow()
    listed = torch.tensor(model.sigmas(RECOMMENDED, calls))
    options, sigmas = model.sized(Recommended(), SMALL, listed)
    assert sigmas.dtype == listed.dtype and sigmas.shape == listed.shape
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0 and bool((sigmas[1:-1] < listed[1:-1]).all())
    share = share_of(16 * 16)
    assert part_of(Grid.of(sigmas, model.schedule), share) == Part(
        row_of("flow", calls, share), 0, True
    )
    assert options == Recommended(positions=256)


@pytest.mark.parametrize("steps", [12, 20])
def test_all_other_lists_stay(steps: int) -> None:
    model = Flow()
    own = torch.tensor(model.sigmas(RECOMMENDED, steps))
    even = torch.linspace(1.0, 0.0, steps + 1)
    for x, sigmas in ((LARGE, own), (SMALL, even), (SMALL, own[3:]), (SMALL, own[:5])):
        assert model.sized(Recommended(), x, sigmas)[1] is sigmas
    below = torch.tensor([0.8, 0.0])
    assert model.sized(Recommended(), SMALL, below)[1] is below
    assert model.sized(Multistep(), SMALL, own) == (Multistep(), own)


def test_image_to_image_starts_where_so_much_of_the_time_is_left() -> None:
    """And not at the noise in the middle of a list of twice the steps, which is far more."""
    model = Flow()
    own = model.sigmas(RECOMMENDED, 10, 0.5)
    assert len(own) == 11 and own[0] == pytest.approx(0.5) and own[-1] == 0.0
    assert model.sigmas(RECOMMENDED, 20)[10] > 0.6
    assert model.asked_for(RECOMMENDED, 20, 10)[10:] == own
    whole = model.asked_for(RECOMMENDED, 20, 10)
    assert len(whole) == 21 and sorted(set(whole), reverse=True) == whole
    assert model.asked_for(RECOMMENDED, 20, 20) == model.sigmas(RECOMMENDED, 20)
    assert model.asked_for("logSNR", 20, 10) == model.sigmas("logSNR", 20)
    above = model.sigmas(RECOMMENDED, 10, 0.5, final_zero=False)
    assert len(set(above)) == 11 and sorted(above, reverse=True) == above
    assert above[0] == own[0] and above[-1] == 0.001


@pytest.mark.parametrize("calls", [3, 10, 25])
def test_image_to_image_of_small_images(calls: int) -> None:
    model = Flow()
    listed = torch.tensor(model.sigmas(RECOMMENDED, calls, 0.5))
    _, sigmas = model.sized(Recommended(), SMALL, listed)
    assert sigmas[0] == listed[0] and sigmas[-1] == 0.0
    assert bool((sigmas[1:-1] != listed[1:-1]).all())
    part = part_of(Grid.of(sigmas, model.schedule), share_of(16 * 16))
    assert part is not None and part.row.calls - part.first == calls
    assert model.sized(Recommended(), LARGE, listed) == (Recommended(positions=4096), listed)


def test_a_time_that_is_rounded_twice_is_one() -> None:
    """ComfyUI's sigma_min and its sigma at time 0 differ by a float32's rounding."""

    @dataclass(frozen=True)
    class Rounded(Flow):
        def whole(self, sigmas: Sequence[float]) -> list[float] | None:
            return [sigma * (1.0 + 1e-7) for sigma in sigmas]

    found = Rounded().on_whole_times([1.0, 1.0 - 1e-7, 0.5, 0.3, 0.3])
    assert found == pytest.approx([1.0, 0.5, 0.3]) and len(found) == 3


def test_final_zero_may_be_any_number() -> None:
    """A linked input may be."""
    model = Flow()
    many: Any = 10**18
    assert model.sigmas("logSNR", 8, final_zero=many) == model.sigmas("logSNR", 8)
