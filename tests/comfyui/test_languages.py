"""What the host and its page show of our texts: in every language, with the help and the search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from dpm_solver_nodes.tests.support import page_menus
from dpm_solver_nodes.tools import browser, translations
from dpm_solver_nodes.tools.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

LANGUAGES = translations.languages()
NODES: dict[str, Any] = translations.read(translations.LOCALES / "en" / "nodeDefs.json")
FOLDERS = {language: translations.LOCALES / language for language in LANGUAGES}
# All nodes with what is written on them.
SHOWN = """(names) => Object.fromEntries(names.map((name) => {
    const node = LiteGraph.createNode(name)
    const ends = Object.fromEntries(node.inputs.map((end) => [end.name, end.localized_name]))
    const labels = Object.fromEntries((node.widgets ?? []).map((one) => [one.name, one.label]))
    const outputs = node.outputs.map((end) => [end.type, end.name, end.localized_name])
    const category = node.constructor.category
    return [name, { title: node.title, category, ends, labels, outputs }]
}))"""
# One node alone in the graph, and where on the screen its first widget is.
ALONE = f"""(name) => {{
    const {{ graph }} = window.app
    graph.clear()
    const node = LiteGraph.createNode(name)
    graph.add(node)
    return ({page_menus.PLACE})(node)
}}"""
PICTURES = """() => [...document.querySelectorAll(".node-help-content img")]
    .map((one) => [new URL(one.src).pathname, one.complete, one.naturalWidth])"""
OVERFLOW = """() => [".node-help-content", ".node-help-content table"]
    .flatMap((what) => [...document.querySelectorAll(what)])
    .filter((one) => one.scrollWidth > one.clientWidth).length"""


def pack(host: Server) -> str:
    """The folder's name, under which the host serves what is in web/."""
    return str(host.object_info("DPMSolver_2M")["DPMSolver_2M"]["python_module"]).partition(".")[2]


# --- from the host -------------------------------------------------------------------------------


def test_english_is_what_the_nodes_say(host: Server) -> None:
    """If not, run: python -m dpm_solver_nodes.demo.translations."""
    nodes = translations.ours(host.object_info())
    assert translations.node_definitions(nodes) == NODES
    assert translations.menu(nodes) == translations.read(FOLDERS["en"] / "main.json")


def test_every_text_is_served(host: Server) -> None:
    served = host.get("/i18n")
    for language, folder in FOLDERS.items():
        texts = {name: translations.read(folder / f"{name}.json") for name in translations.FILES}
        texts |= texts.pop("main")
        assert texts.keys() == {"nodeDefs", "settings", "nodeCategories"}
        for kind, entries in texts.items():
            assert {name: served[language][kind][name] for name in entries} == entries


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_and_picture_is_served(host: Server, language: str) -> None:
    """Where the page looks for a language's text; English is what it falls back to."""
    docs = f"/extensions/{pack(host)}/docs"
    for node in NODES:
        name = node if language == "en" else f"{node}/{language}"
        text = host.request(f"{docs}/{name}.md").decode()
        assert text == translations.page(node, language).read_text(encoding="utf-8")
        assert host.request(f"{docs}/pictures/{node}.png").startswith(b"\x89PNG")


def test_nodes_are_found_by_other_names(host: Server) -> None:
    """By what other programs and papers call them, and by the English name in every language."""
    nodes = translations.ours(host.object_info())
    aliases = {name: info["search_aliases"] for name, info in nodes.items()}
    assert all(aliases.values())
    assert "unipc" in aliases["DPMSolver_Multistep"]
    assert "dpmpp_2m" in aliases["DPMSolver_2M"]
    for language, folder in FOLDERS.items():
        for name, texts in translations.read(folder / "nodeDefs.json").items():
            names = [texts["display_name"], *aliases[name]]
            english = str(NODES[name]["display_name"]).lower()
            assert any(english in other.lower() for other in names), (name, language)


# --- in the page ---------------------------------------------------------------------------------


class Opened(NamedTuple):
    """The host's page in a language, and our texts in it."""

    page: Page
    language: str
    texts: dict[str, Any]
    menu: dict[str, str]
    pack: str


@pytest.fixture(scope="module", params=LANGUAGES)
def shown(request: pytest.FixtureRequest, host: Server) -> Iterator[Opened]:
    if reason := browser.missing():
        pytest.skip(reason)
    language, folder = request.param, FOLDERS[request.param]
    settings = {"Comfy_Locale": language, "LiteGraph_Node_TooltipDelay": 0}
    texts = translations.read(folder / "nodeDefs.json")
    menu = translations.read(folder / "main.json")["nodeCategories"]
    with browser.opened(host, **settings) as page:
        page.keyboard.press("Escape")
        yield Opened(page, language, texts, menu, pack(host))
    host.post("/settings", {"Comfy.Locale": "en"})


def test_nodes_are_labelled(shown: Opened) -> None:
    found = shown.page.evaluate(SHOWN, list(NODES))
    for name, texts in shown.texts.items():
        node, names = found[name], {key: entry["name"] for key, entry in texts["inputs"].items()}
        assert node["title"] == texts["display_name"]
        assert {key: node["ends"][key] for key in names} == names
        assert (
            node["labels"].items()
            >= {key: label for key, label in names.items() if key in node["labels"]}.items()
        )
        for index, (kind, english, label) in enumerate(node["outputs"]):
            if kind != english:  # the others have the host's name of the type
                assert label == texts["outputs"][str(index)]["name"]
    ours = found["DPMSolver_Compare"]["category"].split("/")[-2:]
    assert ours == [shown.menu["DPM-Solver"], shown.menu["lab"]]


def test_a_tooltip(shown: Opened) -> None:
    x, y = shown.page.evaluate(ALONE, "DPMSolver_Singlestep")
    shown.page.mouse.move(x - 5, y)
    shown.page.mouse.move(x, y)
    tooltip = shown.texts["DPMSolver_Singlestep"]["inputs"]["algorithm"]["tooltip"]
    shown.page.get_by_text(tooltip).first.wait_for(timeout=10_000)


@pytest.mark.parametrize("node", ["DPMSolver_Multistep", "DPMSolver_Compare"])
def test_the_help_panel(shown: Opened, node: str) -> None:
    shown.page.evaluate(ALONE, node)
    content = shown.page.locator(".node-help-content")
    if not content.count():
        shown.page.get_by_test_id("info-button").click(timeout=10_000)
    title = content.get_by_role("heading", name=shown.texts[node]["display_name"], exact=True)
    title.wait_for(timeout=10_000)
    path = f"/extensions/{shown.pack}/docs/pictures/{node}.png"
    shown.page.wait_for_function(f"() => ({PICTURES})()[0]?.[1]", timeout=10_000)
    (picture, _, width), *_ = shown.page.evaluate(PICTURES)
    assert picture == path
    assert width > 100
    shows = content.inner_text()
    assert all(entry["name"] in shows for entry in shown.texts[node]["inputs"].values())
    assert "**" not in shows and "| " not in shows  # Markdown that was not understood
    assert shown.page.evaluate(OVERFLOW) == 0


def test_the_search(shown: Opened) -> None:
    shown.page.evaluate("() => window.app.graph.clear()")
    shown.page.keyboard.press("Escape")
    shown.page.mouse.dblclick(500, 500)
    shown.page.wait_for_timeout(500)
    shown.page.keyboard.type("unipc")
    name = shown.texts["DPMSolver_Multistep"]["display_name"]
    shown.page.get_by_text(name).first.wait_for(timeout=10_000)
    shown.page.keyboard.press("Escape")
