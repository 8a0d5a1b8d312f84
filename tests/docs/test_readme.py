"""The README tells the truth: its table is the catalogue's, and its script runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from dpm_solver_nodes.samplers.catalog import CATALOG, Entry

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def table() -> str:
    """The image forms; the text below the table says which have a twin without ++.

    Those of the short menus are in bold.
    """
    image_forms = [entry for entry in CATALOG if "++_" in entry.id]
    rows = [
        f"| {_label(entry)} | `{entry.id}` | {_order(entry)} | {entry.calls} | {entry.help} |"
        for entry in image_forms
    ]
    assert all(entry in image_forms for entry in CATALOG if entry.short)
    without_twin = {entry.id for entry in image_forms if entry.cfg_pp}
    without_twin |= {"sde_dpm_solver++_3m", "dpm_solver++_recommended"}
    without_twin |= {"dpm_solver++_er_sde", "dpm_solver++_2s_ancestral"}
    assert {entry.id for entry in CATALOG if entry not in image_forms} == {
        entry.id.replace("++", "") for entry in image_forms if entry.id not in without_twin
    }
    return "\n".join(
        [
            "| Sampler | Menu name | Order | Model calls | |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def _label(entry: Entry) -> str:
    return f"**{entry.label}**" if entry.short else entry.label


def _order(entry: Entry) -> str:
    if entry.order is None:
        return "–"
    return f"{entry.order} (weak)" if entry.stochastic else str(entry.order)


def test_table_of_samplers_is_the_catalogue() -> None:
    between = re.search(r"<!-- samplers: .*? -->\n(.*?)\n?<!-- /samplers -->", README, re.DOTALL)
    assert between, "the README has lost the marks around its table of samplers"
    assert between[1] == table(), f"put this between the marks:\n{table()}"


def test_script_example_runs_in_at_most_ten_lines() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    assert len(code[1].strip().splitlines()) <= 10
    names = {"network": lambda x, t: 0.5 * x}
    exec(code[1], names)  # the example itself is what is tested
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (1, 4, 64, 64)
    assert images.isfinite().all()


def test_pictures_and_folders_it_links_to_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
