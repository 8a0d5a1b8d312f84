"""The menu of DPM-Solver Calibrated: only files that were made for a model like the connected one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dpm_solver_nodes.lab.calibration import files
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.samplers.solvers.fitted import Calibration, Fitted
from dpm_solver_nodes.tests.support import page_menus
from dpm_solver_nodes.tools import browser
from dpm_solver_nodes.tools.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

MADE_FOR = {"for 1.5": "BaseModel", "for any": "", "for XL": "SDXL", "sub/for Flux": "Flux"}
FITTING = {f"{name}.safetensors" for name in ("for 1.5", "for any")}
ROUTE = "/dpm_solver/fitting_calibrations"
MENU = "window.app.graph._nodes.at(-1).widgets.find((one) => one.name === 'calibration')"
# The node, after so many others, and where on the screen its menu is.
GRAPH = f"""([loader, file, between]) => {{
    const {{ graph }} = window.app
    graph.clear()
    const nodes = [loader, ...between, "DPMSolver_Calibrated"].map((name, i) => {{
        const node = LiteGraph.createNode(name)
        node.pos = [300 * (i - between.length), 200]
        graph.add(node)
        return node
    }})
    if (nodes[0].widgets?.length) nodes[0].widgets[0].value = file
    for (const [i, node] of nodes.slice(1).entries())
        nodes[i].connect(0, node, node.findInputSlot("model") >= 0 ? "model" : 0)
    return ({page_menus.PLACE})(nodes.at(-1))
}}"""


@pytest.fixture(scope="module", autouse=True)
def saved(host: Server) -> Iterator[set[str]]:
    """Names of files for several kinds of models, in the host's folder."""
    folder = host.work / "models" / "dpm_solver"
    made = []
    for name, model in MADE_FOR.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        euler = Weights(0.0, (1.0,))
        files.save([Calibration("diffusion", (14.6, 0.0), (euler,), Fitted(model))], path)
        made.append(path)
    yield {path.relative_to(folder).as_posix() for path in made}
    for path in made:
        path.unlink()


@pytest.fixture(scope="module", params=page_menus.WAYS)
def shown(
    request: pytest.FixtureRequest, host: Server, saved: set[str]
) -> Iterator[tuple[Page, str]]:
    if reason := browser.missing():
        pytest.skip(reason)
    way = request.param
    with browser.opened(host, Comfy_VueNodes_Enabled=page_menus.WAYS[way]) as page:
        yield page, way
    host.post("/settings", {"Comfy.VueNodes.Enabled": False})


def offered(
    shown: tuple[Page, str],
    saved: set[str],
    expected: set[str],
    loader: str,
    file: str,
    between: tuple[str, ...] = (),
) -> set[str]:
    """Those of `saved` that the menu behind this loader shows, once its list is these."""
    page, way = shown
    at = page.evaluate(GRAPH, [loader, file, between])
    page.evaluate(f"() => {{ {MENU}.value = '' }}")
    page.wait_for_function(
        f"""([saved, expected]) => String(expected)
            === String({MENU}.options.values.filter((one) => saved.includes(one)).sort())""",
        arg=[sorted(saved), sorted(expected)],
        timeout=10_000,
    )
    page.wait_for_timeout(200)  # Vue's nodes are drawn after that
    return saved & set(page_menus.opened(page, way, "calibration", at))


def test_the_host_tells_what_fits_a_file(host: Server, saved: set[str], sd15: str) -> None:
    asked: dict[str, Any] = {
        f"?file=default&file={sd15}": FITTING,
        f"?file={sd15}&file=default": FITTING,
        "?file=none.safetensors": None,
        "?file=..%2Fdpm_solver%2Ffor+XL.safetensors": None,
        "": None,
    }
    for question, expected in asked.items():
        answer = host.get(f"{ROUTE}{question}")
        assert (answer and saved & set(answer)) == expected


def test_only_fitting_files_are_offered(
    shown: tuple[Page, str], saved: set[str], sd15: str
) -> None:
    between = ("LoraLoaderModelOnly", "Reroute", "ModelSamplingDiscrete")
    assert offered(shown, saved, FITTING, "CheckpointLoaderSimple", sd15) == FITTING
    assert offered(shown, saved, FITTING, "CheckpointLoaderSimple", sd15, between) == FITTING


def test_all_are_offered_where_the_model_is_not_known(
    shown: tuple[Page, str], saved: set[str]
) -> None:
    assert offered(shown, saved, saved, "CheckpointLoaderSimple", "none.safetensors") == saved
    assert offered(shown, saved, saved, "DPMSolverDemo_Model", "none") == saved


def test_the_value_that_is_set_is_offered(
    shown: tuple[Page, str], saved: set[str], sd15: str
) -> None:
    page, _ = shown
    assert offered(shown, saved, FITTING, "CheckpointLoaderSimple", sd15) == FITTING
    other = "for XL.safetensors"
    page.evaluate(f"(name) => {{ {MENU}.value = name }}", other)
    assert saved & set(page.evaluate(f"() => {MENU}.options.values")) == {*FITTING, other}


def test_a_new_file_is_offered_after_a_refresh(
    shown: tuple[Page, str], saved: set[str], sd15: str, host: Server
) -> None:
    page, _ = shown
    folder = host.work / "models" / "dpm_solver"
    new = folder / "new.safetensors"
    assert offered(shown, saved, FITTING, "CheckpointLoaderSimple", sd15) == FITTING
    new.write_bytes((folder / "for 1.5.safetensors").read_bytes())
    try:
        page.evaluate("async () => { await window.app.refreshComboInNodes() }")
        page.wait_for_function(f"(name) => {MENU}.options.values.includes(name)", arg=new.name)
        assert offered(shown, saved, FITTING, "CheckpointLoaderSimple", sd15) == FITTING
    finally:
        new.unlink()
