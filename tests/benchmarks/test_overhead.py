"""The benchmark of time and memory runs and measures what it says; its times are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import k_diffusion.sampling
import pytest
import torch

from dpm_solver_nodes.benchmarks import overhead
from dpm_solver_nodes.benchmarks.overhead import Alive, Contest, Peers, Target, shape_of

ROOT = Path(__file__).parents[2]
OPTIONS = ["--latents", "1x4x8x8", "--repeats", "1", "--json"]


def test_every_row_and_target_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The package k-diffusion in ComfyUI's place, which takes ten seconds to import.
    sigmas = k_diffusion.sampling.get_sigmas_karras(20, 0.03, 14.6)
    peers = Peers(k_diffusion.sampling, k_diffusion.sampling, None, sigmas)
    monkeypatch.setattr(Peers, "load", lambda device: peers)
    monkeypatch.setattr(sys, "argv", ["overhead", *OPTIONS, str(tmp_path / "overhead.json")])
    overhead.main()
    check(json.loads((tmp_path / "overhead.json").read_text()), capsys.readouterr().out)


@pytest.mark.skipif("BENCHMARK_PEERS" not in os.environ, reason="make test-all runs it")
def test_it_runs_beside_comfyui(tmp_path: Path) -> None:
    file = tmp_path / "overhead.json"
    command = [sys.executable, "-m", overhead.__name__, *OPTIONS, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    check(json.loads(file.read_text()), done.stdout)


def check(report: dict[str, Any], printed: str) -> None:
    rows = report["rows"]["1x4x8x8"]
    peers = {
        "2M": "dpmpp_2m",
        "2M SDE, noise given": "dpmpp_2m_sde",
        "3M SDE, noise given": "dpmpp_3m_sde",
        "2M SDE, own noise": "dpmpp_2m_sde",
        "3M SDE, own noise": "dpmpp_3m_sde",
        "adaptive": "dpm_adaptive",
    }
    assert [(row["contest"], row["name"]) for row in rows] == [
        (contest, name)
        for contest, peer in peers.items()
        for name in ("ours", f"ComfyUI {peer}", f"k-diffusion {peer}")
    ]
    for row in rows:
        assert row["name"] in printed
        assert row["contest"] in printed
        assert row["time"] > 0.0, row
        assert row["planning"] > 0.0, row
        assert row["peak"] >= row["at_calls"] > 0.0, row
        assert row["rounds"] == 1, row
        assert row["calls"] == 20 or row["contest"] == "adaptive", row
    by_name = {(row["contest"], row["name"]): row for row in rows}
    assert by_name["2M", "ours"]["to_limit"] is not None
    # A sum of products in one expression: x, two outputs, their slope, two products and the sum.
    assert by_name["2M", "ComfyUI dpmpp_2m"]["peak"] == pytest.approx(7.0, abs=0.1)
    for target in report["targets"]:
        assert target["text"] in printed


def test_memory_counts_what_is_alive_and_was_not_there_before() -> None:
    before = torch.zeros(256)
    with Alive() as alive:
        before.add_(1.0)
        view = before.view(16, 16)
        assert (alive.now(), alive.peak) == (0, 0)
        made = view * 2.0
        assert alive.now() == before.nbytes
        made = made + 1.0
        assert (alive.now(), alive.peak) == (before.nbytes, 2 * before.nbytes)
        del made
        assert (alive.now(), alive.peak) == (0, 2 * before.nbytes)


def test_the_limit_counts_each_tensor_of_a_step_once() -> None:
    first, between, to_zero = 3, 4, 2
    assert Contest("2M", {}, 2).moved() == first + 18 * between + to_zero
    # With noise in all but the last, and one output more from the third on.
    assert Contest("3M SDE", {}, 3, noise=True).moved() == 4 + 5 + 17 * 6 + 2


def test_a_target_without_a_measurement_is_neither_met_nor_missed() -> None:
    assert [Target("", value, 1.0).met for value in (1.0, 1.01, None)] == [True, False, None]


def test_latents_are_named_or_given_as_shapes() -> None:
    assert shape_of("Wan") == (1, 16, 21, 60, 104)
    assert shape_of("2x4x8x8") == (2, 4, 8, 8)
    with pytest.raises(ValueError, match="1x4x64x64"):
        shape_of("nothing")
