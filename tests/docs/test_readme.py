"""README and pages in docs tell the truth: tables are the code's, commands, names and links exist, the
script runs, and the Chinese README says the same.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from dpm_solver_nodes.hosts.model import OFFERED_SPACINGS
from dpm_solver_nodes.samplers.catalog import CATALOG, Entry
from dpm_solver_nodes.tools import translations

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", [*PAGES, "tests/README.md"])


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its blocks of code and formulas."""
    return FENCE.sub("", text_of(page))


def code(page: str) -> list[str]:
    """What stands between backticks, and the lines of blocks of code without their comments."""
    blocks = [block for language, block in FENCE.findall(text_of(page)) if language != "math"]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return re.findall(r"`([^`\n]+)`", prose(page)) + [line for line in lines if line]


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


@cache
def anchors(page: str) -> set[str]:
    """What links may lead to in a page: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


# --- the table of samplers -----------------------------------------------------------------------


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
    page = "docs/solvers.md"
    between = re.search(
        r"<!-- samplers: .*? -->\n(.*?)\n?<!-- /samplers -->", text_of(page), re.DOTALL
    )
    assert between, f"{page} has lost the marks around its table of samplers"
    assert between[1] == table(), f"put this between the marks:\n{table()}"


# --- what pages name -----------------------------------------------------------------------------


@every_page
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(str(path.relative_to(ROOT))), link


def test_the_readme_leads_to_every_page() -> None:
    assert {page for page in PAGES if page != "README.md"} <= set(links("README.md"))


@every_page
def test_commands_and_files_that_a_page_names_are_there(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for words in code(page):
        for target in re.findall(r"\bmake ([a-z-]+)", words):
            assert target in targets, words
        for module in re.findall(r"dpm_solver_nodes\.((?:benchmarks|tools)[\w.]*)", words):
            path = ROOT.joinpath(*module.split("."))
            assert path.is_dir() or path.with_suffix(".py").is_file(), words
        folders = "benchmarks|hosts|lab|samplers|script_examples|scripts|tests|tools|web|workflows"
        for name in re.findall(rf"(?:^| )((?:{folders})/[\w./]*)(?= |$)", words):
            assert (ROOT / name).exists(), words


NAMED = sorted(page for page in PAGES if page != "CHANGELOG.md")  # which has names of all versions


@pytest.mark.parametrize("page", NAMED)
def test_samplers_and_schedulers_that_a_page_names_are_in_the_menus(page: str) -> None:
    schedulers = {f"dpm_solver_{name.replace('logSNR', 'log_snr')}" for name in OFFERED_SPACINGS}
    known = {entry.id for entry in CATALOG} | schedulers | {"dpm_solver_nodes"}
    named = {words for words in code(page) if re.fullmatch(r"(sde_)?dpm_solver(\+\+)?_\w+", words)}
    assert named <= known


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_what_menus_do_not_list_by_default_is_marked(page: str) -> None:
    marked = dict(re.findall(r"^\| [^|]+ \| `((?:sde_)?dpm_solver\S+)`( \*)? ", prose(page), re.M))
    of_menus = {entry.id: entry.short for entry in CATALOG}
    assert len(marked) >= 5
    assert {name for name in marked if not of_menus[name]} == {
        n for n, star in marked.items() if star
    }


def test_every_node_and_template_is_listed() -> None:
    page = prose("docs/nodes.md")
    nodes = translations.read(translations.LOCALES / "en" / "nodeDefs.json")
    assert set(re.findall(r"^\| \*\*(.+?)\*\* \|", page, re.MULTILINE)) == {
        texts["display_name"] for texts in nodes.values()
    }
    listed = page.partition("| Template |")[2]
    rows = re.findall(r"^\| (`.+?) \|", listed, re.MULTILINE)
    templates = {path.stem for path in ROOT.glob("workflows/*.json")}
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == templates


# --- the README in Chinese -----------------------------------------------------------------------


def test_the_chinese_readme_names_and_links_the_same() -> None:
    """The same numbers, names, commands and links in as many sections."""
    english, chinese = "README.md", "README.zh.md"
    assert set(code(english)) == set(code(chinese))
    of_other = {english: chinese, chinese: english}
    for one, other in of_other.items():
        elsewhere = [link for link in links(one) if not link.startswith("#")]
        assert elsewhere[0] == other
        assert sorted(elsewhere[1:]) == sorted(
            link for link in links(other) if not link.startswith("#") and link != one
        )
    numbers = [set(re.findall(r"\d+(?:\.\d+)*", prose(page))) for page in of_other]
    assert numbers[0] == numbers[1]
    assert len(anchors(english)) == len(anchors(chinese))


# --- the script ----------------------------------------------------------------------------------


def test_script_example_runs_in_at_most_ten_lines() -> None:
    examples = [block for name, block in FENCE.findall(text_of("README.md")) if name == "python"]
    example, in_diffusers = examples
    assert "from_config(pipe.scheduler.config)" in in_diffusers  # tests/hosts runs such pipelines
    assert len(example.strip().splitlines()) <= 10
    names = {"network": lambda x, t: 0.5 * x}
    exec(example, names)  # the example itself is what is tested
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (1, 4, 64, 64)
    assert images.isfinite().all()
