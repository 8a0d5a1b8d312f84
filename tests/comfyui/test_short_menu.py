"""The page's menus: short by default, whole by a setting, and never without the value that is set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.tests.comfyui.test_languages import ALONE
from dpm_solver_nodes.tests.support import page_menus
from dpm_solver_nodes.tests.support.digits import MENU
from dpm_solver_nodes.tools import browser, translations
from dpm_solver_nodes.tools.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHORT = [entry.id for entry in CATALOG if entry.short]
HIDDEN = [entry.id for entry in CATALOG if not entry.short]
SETTING = "DPMSolver.ShowAllSamplers"
NODES = ("KSampler", "KSamplerAdvanced", "KSamplerSelect")
SAMPLER = "window.app.graph._nodes.at(-1).widgets.find((one) => one.name === 'sampler_name')"


@pytest.fixture(scope="module", params=page_menus.WAYS)
def shown(request: pytest.FixtureRequest, host: Server) -> Iterator[tuple[Page, str]]:
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.opened(host, Comfy_VueNodes_Enabled=page_menus.WAYS[request.param]) as page:
        yield page, request.param
    host.post("/settings", {"Comfy.VueNodes.Enabled": False, SETTING: False})


def set_all(page: Page, value: bool) -> None:
    page.evaluate(
        "async ([name, value]) => { await app.extensionManager.setting.set(name, value) }",
        [SETTING, value],
    )


def ours(names: list[str]) -> list[str]:
    return [name for name in names if name in MENU]


def listed(page: Page) -> list[str]:
    """The entries of ours that the only node's menu has."""
    return ours(page.evaluate(f"() => {SAMPLER}.options.values"))


def opened(shown: tuple[Page, str]) -> list[str]:
    """The entries of ours that a click on the menu of KSamplerSelect shows."""
    page, way = shown
    at = page.evaluate(ALONE, "KSamplerSelect")
    return ours(page_menus.opened(page, way, "sampler_name", at))


def test_the_short_menu_is_what_most_people_need() -> None:
    assert SHORT[:2] == ["dpm_solver++_recommended", "dpm_solver++_2m"]
    assert 6 <= len(SHORT) <= 10


def test_the_host_says_what_is_hidden(host: Server) -> None:
    for prefix in ("", "/api"):
        assert host.get(f"{prefix}/dpm_solver/hidden_samplers") == HIDDEN


def test_a_menu_is_short_until_all_are_asked_for(shown: tuple[Page, str]) -> None:
    page, _ = shown
    assert opened(shown) == SHORT
    set_all(page, True)
    assert opened(shown) == MENU
    set_all(page, False)
    assert opened(shown) == SHORT


def test_every_sampler_node_has_it_after_a_refresh_too(shown: tuple[Page, str]) -> None:
    page, _ = shown
    for name in NODES:
        page.evaluate(ALONE, name)
        assert listed(page) == SHORT, name
        page.evaluate("async () => { await window.app.refreshComboInNodes() }")
        assert listed(page) == SHORT, name


def test_a_hidden_value_is_kept_shown_and_sent(shown: tuple[Page, str]) -> None:
    page, way = shown
    workflow: dict[str, Any] = page.evaluate(
        """(name) => {
            const { graph } = window.app
            graph.clear()
            const node = LiteGraph.createNode("KSamplerSelect")
            graph.add(node)
            node.widgets[0].value = name
            return graph.serialize()
        }""",
        HIDDEN[0],
    )
    assert browser.load(page, workflow) == []
    (node,) = browser.converted(page).values()
    assert node["inputs"]["sampler_name"] == HIDDEN[0]
    assert set(listed(page)) == {*SHORT, HIDDEN[0]}
    if way == "vue":
        field = page.locator('[aria-label="sampler_name"]').first
        field.wait_for(timeout=10_000)
        assert field.inner_text().strip() == HIDDEN[0]
        assert field.get_attribute("aria-invalid") is None
    page.evaluate(f"() => {{ {SAMPLER}.value = 'euler' }}")
    assert listed(page) == SHORT


def test_the_settings_texts_are_those_of_the_page(shown: tuple[Page, str]) -> None:
    page, _ = shown
    name, tooltip = page.evaluate(
        """(id) => {
            const of_ours = window.app.extensions.find((one) => one.name === "DPMSolver.Menus")
            const found = of_ours.settings.find((one) => one.id === id)
            return [found.name, found.tooltip]
        }""",
        SETTING,
    )
    texts = translations.read(translations.LOCALES / "en" / "settings.json")
    assert texts == {SETTING.replace(".", "_"): {"name": name, "tooltip": tooltip}}
