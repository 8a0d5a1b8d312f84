"""A real webui for the tests in this folder; if none is named they are skipped, saying so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dpm_solver_nodes.tests.webui import server


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.WebUI]:
    """The server, with this clone among its extensions and its scripts loaded twice."""
    if server.webui() is None:
        pytest.skip("WEBUI_PATH names no installed webui")
    with server.start(tmp_path_factory.mktemp("webui") / "data") as running:
        running.request("/probe/reload", b"{}")
        yield running
