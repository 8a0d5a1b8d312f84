"""The examples run as their texts say, and their numbers make sense."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dpm_solver_nodes.samplers import DiscreteSchedule, NetworkDenoiser, sample_multistep
from dpm_solver_nodes.tests.support.mixture import difference

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "script_examples").glob("*.py"))
K_DIFFUSION, DIFFUSERS = "k_diffusion_sampling", "diffusers_unet"


def run(name: str, *arguments: str) -> dict[str, Any]:
    """Run the script as `python script_examples/<name>.py` does; its globals."""
    path = str(ROOT / "script_examples" / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *arguments])
        return runpy.run_path(path, run_name="__main__")


def rows(text: str) -> dict[str, list[float]]:
    """The table at the end of what a script prints."""
    table = text[text.index("model calls") :].splitlines()
    cells = [re.split(r"\s{2,}", line) for line in table]
    return {name: [float(number) for number in numbers] for name, *numbers in cells}


def test_there_is_one_for_each_library() -> None:
    assert [path.stem for path in EXAMPLES] == sorted((K_DIFFUSION, DIFFUSERS))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_a_page_that_says_what_it_shows_and_imports_nothing_else(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert f"python script_examples/{path.name}" in (ast.get_docstring(tree) or "")
    assert len(text.splitlines()) <= 120
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            imported.add(node.module)
    ours = {module for module in imported if module.startswith("dpm_solver_nodes")}
    assert ours == {"dpm_solver_nodes.samplers"}
    others = {module.partition(".")[0] for module in imported - ours} - sys.stdlib_module_names
    assert others == {"torch", "k_diffusion" if path.stem == K_DIFFUSION else "diffusers"}


def test_k_diffusion(capsys: pytest.CaptureFixture[str]) -> None:
    calls = 0

    def count(module: object, *_: object) -> None:
        nonlocal calls
        calls += type(module).__name__ == "VDenoiser" and not torch.is_grad_enabled()

    with torch.nn.modules.module.register_module_forward_pre_hook(count):
        script = run(K_DIFFUSION, "--train-steps", "150", "--points", "200")
    table = rows(capsys.readouterr().out)
    assert table.pop("model calls") == [5, 10, 20]
    assert list(table) == list(script["SAMPLERS"])
    assert calls == script["CONVERGED"] + len(table) * (5 + 10 + 20)
    for name, errors in table.items():
        assert errors[0] > errors[-1] > 0.0, name
        assert errors[-1] < 0.1, name
    # What is published is the same formula in both libraries.
    theirs, ours = table["k-diffusion's sample_dpmpp_2m"], table["sample_multistep, as published"]
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_diffusers(capsys: pytest.CaptureFixture[str]) -> None:
    script = run(DIFFUSERS, "--train-steps", "2", "--images", "3")
    printed = capsys.readouterr().out
    assert all(len(line) == 3 * 16 + 2 * 2 for line in printed.splitlines()[:8])
    table = rows(printed)
    assert table.pop("model calls") == [5, 10, 20]
    assert list(table) == ["order 1 (DDIM)", "order 2", "order 3"]
    for name, errors in table.items():
        assert errors[0] > errors[1] > errors[2] > 0.0, name
    assert table["order 2"][2] < table["order 1 (DDIM)"][2]
    agrees_with_the_scheduler_of_diffusers(script)


def agrees_with_the_scheduler_of_diffusers(script: dict[str, Any]) -> None:
    """What diffusers' own loop draws with the example's network, at the times it chooses."""
    from diffusers import DPMSolverMultistepScheduler  # as slow to import as the example

    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", lower_order_final=False
    )
    scheduler.set_timesteps(10)
    unet = script["make_unet"]().eval()
    labels: list[float] = []

    def predict(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        labels.append(t[0].item())
        return unet(z, t).sample

    model = NetworkDenoiser(predict, DiscreteSchedule.scaled_linear())
    sigmas = scheduler.sigmas
    x = model.noise((2, 1, 16, 16), seed=0, sigma=sigmas[0].item())
    ours = sample_multistep(
        model, x, sigmas, schedule=model.schedule, lower_order_final="off", disable=True
    )
    assert labels == pytest.approx(scheduler.timesteps.tolist(), abs=1e-2)
    sample = x * model.training.state(sigmas[:1].double())[0].float()
    with torch.no_grad():
        for t in scheduler.timesteps:
            sample = scheduler.step(unet(sample, t).sample, t, sample).prev_sample
    assert difference(ours, sample) <= 2e-3 * ours.std().item()
