"""A real Forge for the tests in this folder; without one they are skipped, saying so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dpm_solver_nodes.tests.webui import server


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.WebUI]:
    """The server, with this clone among its extensions and its scripts loaded twice."""
    if why := server.missing():
        pytest.skip(why)
    with server.start(tmp_path_factory.mktemp("webui") / "data") as running:
        running.request("/probe/reload", b"{}")
        yield running
