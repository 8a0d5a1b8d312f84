"""The panel's menus: short by default, whole by a setting, and with the sampler that is set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.tests.webui.server import CALIBRATED, WebUI
from dpm_solver_nodes.tests.webui.test_stand_in import HIDDEN, NAMES, ROOT, label
from dpm_solver_nodes.tools import browser

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCRIPT = ROOT / "javascript" / "dpm_solver_menus.js"
SHORT = [label(entry.id) for entry in CATALOG if entry.short]
OTHERS = ["Euler", "DPM++ 2M"]
# What the script finds in the hosts' page: their functions, and menus as both versions of gradio draw
# them.
PAGE = """<ul id="txt2img_sampling"></ul><ul id="txt2img_other"></ul><div id="img2img_sampling"></div>
<script>
    const opts = {}, loaded = [], changed = []
    const onUiLoaded = (callback) => loaded.push(callback)
    const onOptionsChanged = (callback) => changed.push(callback)
</script>"""
FILL = """([names, chosen]) => {
    for (const id of ["txt2img_sampling", "txt2img_other"])
        for (const name of names) {
            const entry = document.createElement("li")
            entry.dataset.testid = "dropdown-option"
            entry.ariaLabel = entry.textContent = name
            entry.classList.toggle("selected", name === chosen)
            document.getElementById(id).append(entry)
        }
    for (const name of names) {
        const entry = document.createElement("label"), input = document.createElement("input")
        Object.assign(input, { type: "radio", name: "sampler", checked: name === chosen })
        input.setAttribute("value", name)
        entry.append(input, name)
        document.getElementById("img2img_sampling").append(entry)
    }
}"""
SHOWN = """(menu) => [...document.querySelectorAll(`${menu} li, ${menu} label`)]
    .filter((one) => one.checkVisibility()).map((one) => one.ariaLabel ?? one.textContent)"""
needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())


@pytest.fixture
def page() -> Iterator[Page]:
    """A page like the hosts', in which the script runs; the host's answer is given here."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = browser.launch(playwright)
        page = chromium.new_page()
        page.route("**/*", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
        page.route("**/dpm_solver/hidden_samplers", lambda route: route.fulfill(json=HIDDEN))
        page.goto("http://webui.invalid/")
        page.evaluate(FILL, [[*OTHERS, *NAMES], HIDDEN[1]])
        page.add_script_tag(content=SCRIPT.read_text(encoding="utf-8"))
        page.evaluate("async () => { for (const callback of loaded) await callback() }")
        yield page
        chromium.close()


@needs_browser
def test_what_the_script_hides(page: Page) -> None:
    for menu in ("#txt2img_sampling", "#img2img_sampling"):
        assert set(page.evaluate(SHOWN, menu)) == {*OTHERS, *SHORT, HIDDEN[1]}
    assert page.evaluate(SHOWN, "#txt2img_other") == [*OTHERS, *NAMES]
    page.evaluate("() => { opts.dpm_solver_show_all_samplers = true; changed.forEach((f) => f()) }")
    for menu in ("#txt2img_sampling", "#img2img_sampling"):
        assert page.evaluate(SHOWN, menu) == [*OTHERS, *NAMES]


# --- the real page -------------------------------------------------------------------------------


@pytest.fixture
def panel(webui: WebUI) -> Iterator[Page]:
    with browser.window(webui) as page:
        page.goto(webui.url, wait_until="load")
        with page.expect_response("**/dpm_solver/hidden_samplers", timeout=60_000):
            page.wait_for_selector("#txt2img_sampling")
        page.wait_for_timeout(1000)
        yield page
    webui.post("/sdapi/v1/options", {"dpm_solver_show_all_samplers": False})


def ours(page: Page) -> list[str]:
    """The entries of ours that a click on the list of sampling methods shows."""
    field = page.locator("#txt2img_sampling input").first
    field.click()
    page.locator("#txt2img_sampling li").first.wait_for(timeout=10_000)
    names = page.evaluate(SHOWN, "#txt2img_sampling")
    page.keyboard.press("Escape")
    field.blur()
    return [name for name in names if name in (*NAMES, CALIBRATED)]


@needs_browser
def test_the_panel(webui: WebUI, panel: Page) -> None:
    """The samplers that a user sees, with a text pasted that has a hidden one, and with all shown."""
    assert ours(panel) == [*SHORT, CALIBRATED]
    made = webui.txt2img(sampler_name=HIDDEN[0])
    assert made.text["Sampler"] == HIDDEN[0]
    panel.locator("#txt2img_prompt textarea").first.fill(made.texts[0])
    panel.locator("#txt2img_tools #paste").click()
    panel.wait_for_function(
        "(name) => document.querySelector('#txt2img_sampling input').value === name",
        arg=HIDDEN[0],
        timeout=20_000,
    )
    assert set(ours(panel)) == {*SHORT, CALIBRATED, HIDDEN[0]}
    webui.post("/sdapi/v1/options", {"dpm_solver_show_all_samplers": True})
    panel.reload()
    for _ in range(20):  # the page gets the settings some time after its menus
        panel.wait_for_timeout(1000)
        if (shown := ours(panel)) == [*NAMES, CALIBRATED]:
            break
    assert shown == [*NAMES, CALIBRATED]
