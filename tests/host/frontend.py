"""The host's own page in headless Chromium: the one true converter of workflow files.

`workflows/*.json` hold the graph as the page draws it; `/prompt` takes the API form.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpm_solver_nodes.demo.host import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# The page is up when the host's nodes are registered and its first graph is drawn.
READY = """() => window.app?.vueAppReady && window.app.graph
    && window.LiteGraph?.registered_node_types?.KSampler"""


def missing() -> str:
    """Why there is no page to open here, for pytest.skip; empty if there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if _browser() is None:
        return "no Chromium on the PATH (Debian: apt install chromium)"
    return ""


def to_api(server: Server, workflow: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow (UI form) as the graph that `/prompt` takes, converted by the page itself."""
    with _loaded(server, workflow) as page:
        converted: dict[str, Any] = page.evaluate("async () => await window.app.graphToPrompt()")
        return dict(converted["output"])


def screenshot(server: Server, workflow: Mapping[str, Any], path: Path) -> None:
    """A picture (PNG) of the page with the whole workflow in view."""
    with _loaded(server, workflow) as page:
        page.keyboard.press("Escape")  # whatever the page wanted to say first
        page.evaluate("() => window.app.canvas.fitViewToSelectionAnimated?.({ duration: 1 })")
        page.wait_for_timeout(1500)
        page.screenshot(path=path)


@contextlib.contextmanager
def _loaded(server: Server, workflow: Mapping[str, Any]) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    # A first visit opens the templates and asks about telemetry and menus.
    # Text is to be drawn at any zoom.
    server.post(
        "/settings", {"Comfy.TutorialCompleted": True, "LiteGraph.Canvas.MinFontSizeForLOD": 0}
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_browser(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(120_000)
        page.route(  # nothing but this server is there
            lambda url: not url.startswith((server.url, "data:", "blob:")),
            lambda route: route.abort(),
        )
        page.goto(server.url, wait_until="load")
        page.wait_for_function(READY)
        page.wait_for_timeout(1000)
        page.evaluate("async (graph) => { await window.app.loadGraphData(graph) }", dict(workflow))
        yield page
        browser.close()


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)
