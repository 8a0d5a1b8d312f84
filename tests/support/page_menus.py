"""The menus of the host's page, in each of its two ways to draw nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

WAYS = {"canvas": False, "vue": True}
"""The way -> the page's setting Comfy.VueNodes.Enabled."""

PLACE = """(node) => {
    const { canvas } = window.app
    node.pos = [300, 200]
    canvas.ds.scale = 1
    canvas.ds.offset = [0, 0]
    canvas.selectItems ? canvas.selectItems([node]) : canvas.selectNode(node)
    canvas.draw(true, true)
    const box = canvas.canvas.getBoundingClientRect()
    return [box.x + node.pos[0] + 60, box.y + node.pos[1] + node.widgets[0].y + 10]
}"""
"""Shows a node, and says where on the screen its first widget is."""

ENTRIES = {"canvas": ".litecontextmenu .litemenu-entry", "vue": "[role=option]"}


def opened(page: Page, way: str, name: str, at: tuple[float, float]) -> list[str]:
    """The entries that a click on a node's menu shows.

    Args:
        name: of the input.
        at: where on the screen it is on the canvas.
    """
    if way == "canvas":
        page.mouse.click(*at)
    else:
        page.locator(f'[aria-label="{name}"]').first.click()
    entries = page.locator(ENTRIES[way])
    entries.first.wait_for(timeout=10_000)
    names: list[str] = []
    # Newer pages draw only the entries in view.
    while new := [
        entry for text in entries.all_inner_texts() if (entry := text.strip()) not in names
    ]:
        names += new
        entries.last.scroll_into_view_if_needed()
        page.wait_for_timeout(200)
    page.keyboard.press("Escape")
    if way == "canvas":  # where a short list has no filter to be left, it stays open
        page.evaluate("() => LiteGraph.closeAllContextMenus(window)")
    return names
