"""The host's own page in headless Chromium, to convert workflow files and to take screenshots.

`workflows/*.json` hold the graph in the page's format. `/prompt` takes the API format, and only the
page can convert to it.

    with opened(server) as page:
        graph = to_api(page, workflow)
        screenshot(page, Path("graph.png"))
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# A first visit opens the templates and asks about telemetry and menus.  Text is to be drawn at any
# zoom.
SETTINGS = {"Comfy.TutorialCompleted": True, "LiteGraph.Canvas.MinFontSizeForLOD": 0}
# The page is up when the host's nodes are registered and its first graph is drawn.
READY = """() => window.app?.vueAppReady && window.app.graph
    && window.LiteGraph?.registered_node_types?.KSampler"""
# What a user sees as broken: unknown or red nodes, links that lead nowhere or don't fit.
FAULTS = """() => {
    const graph = window.app.graph, faults = []
    for (const node of graph.nodes ?? graph._nodes) {
        if (!(node.type in LiteGraph.registered_node_types)) faults.push(`no node ${node.type}`)
        if (node.has_errors) faults.push(`${node.type} is red`)
        for (const [slot, input] of (node.inputs ?? []).entries()) {
            if (input.link == null) continue
            const link = graph.getLink?.(input.link) ?? graph.links[input.link]
            const source = link && graph.getNodeById(link.origin_id)
            const output = source?.outputs?.[link.origin_slot]
            if (!output || link.target_id != node.id || link.target_slot != slot)
                faults.push(`${node.type}.${input.name} is linked to nothing`)
            else if (!LiteGraph.isValidConnection(output.type, input.type))
                faults.push(`${node.type}.${input.name} takes no ${output.type}`)
        }
    }
    return faults
}"""


def missing() -> str:
    """Why the page can't be opened here, for pytest.skip; empty if it can."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if _browser() is None:
        return "no Chromium on the PATH (Debian: apt install chromium)"
    return ""


@contextlib.contextmanager
def opened(
    server: Server, *, size: tuple[int, int] = (1600, 900), **settings: Any
) -> Iterator[Page]:
    """Open the page with an empty graph.

    Args:
        size: the window's size in pixels.
        settings: the page's settings, by their names with `_` for the dots (`Comfy_Locale="zh"`).
    """
    named = {name.replace("_", "."): value for name, value in settings.items()}
    server.post("/settings", SETTINGS | {"Comfy.Locale": "en"} | named)
    with window(server, size) as page:
        page.goto(server.url, wait_until="load")
        page.wait_for_function(READY)
        page.wait_for_timeout(1000)
        yield page


@contextlib.contextmanager
def window(server: Server, size: tuple[int, int] = (1600, 900)) -> Iterator[Page]:
    """A window of the browser, still empty, that reaches only this server."""
    from playwright.sync_api import sync_playwright

    width, height = size
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(120_000)
        page.route(  # block all other servers
            lambda url: not url.startswith((server.url, "data:", "blob:")),
            lambda route: route.abort(),
        )
        yield page
        browser.close()


def load(page: Page, workflow: Mapping[str, Any]) -> list[str]:
    """Load a workflow in place of the present graph; return what is broken in it."""
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph) }", dict(workflow))
    return list(page.evaluate(FAULTS))


def to_api(page: Page, workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a workflow (in the page's format) to the graph that `/prompt` takes."""
    if faults := load(page, workflow):
        raise ValueError(f"the page finds fault with the workflow: {'; '.join(faults)}")
    return converted(page)


def converted(page: Page) -> dict[str, Any]:
    """The graph that the page shows, in the format that `/prompt` takes."""
    graph: dict[str, Any] = page.evaluate("async () => await window.app.graphToPrompt()")
    return {
        name: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for name, node in graph["output"].items()
    }


def run(server: Server, page: Page, timeout: float = 600.0) -> None:
    """Run the graph as a click on Run does, so that the nodes show what they made."""
    page.evaluate("async () => { await window.app.queuePrompt(0, 1) }")
    deadline = time.monotonic() + timeout
    while any(server.get("/queue").values()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the page's graph did not end in {timeout:g} s")
        page.wait_for_timeout(250)
    page.wait_for_timeout(1500)


def screenshot(page: Page, path: Path) -> None:
    """A picture (PNG) of the page with the whole graph in view."""
    page.keyboard.press("Escape")  # close any dialog of the page
    page.evaluate("() => window.app.canvas.fitViewToSelectionAnimated?.({ duration: 1 })")
    page.wait_for_timeout(1500)
    page.screenshot(path=path)


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=_browser(), args=FLAGS)


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)
