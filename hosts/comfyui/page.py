"""What the host's page asks the pack for, and the host's web server, which answers it."""

from __future__ import annotations

import asyncio
from typing import Any

from ...samplers.catalog import CATALOG

HIDDEN_SAMPLERS = "/dpm_solver/hidden_samplers"
"""Where `web/menus.js` asks for the samplers that menus don't show by default."""

CALIBRATION = "/dpm_solver/calibration"
"""Where `web/calibrations.js` asks for the text of a calibration file, `?name=`."""

FITTING = "/dpm_solver/fitting_calibrations"
"""Where it asks which files were made for a model like the connected one, `?file=` for each name that
the model's loader has. The answer is null if that can't be told."""


def server() -> Any:
    """The host's web server; None if its nodes run without one."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def register_routes() -> None:
    """Have the host's web server answer; of two copies of the pack, the first one answers."""
    routes = getattr(server(), "routes", None)
    if routes is None or any(getattr(route, "path", "") == HIDDEN_SAMPLERS for route in routes):
        return
    from aiohttp import web  # the server's own

    @routes.get(HIDDEN_SAMPLERS)
    async def hidden_samplers(_request: Any) -> Any:
        return web.json_response([entry.id for entry in CATALOG if not entry.short])

    @routes.get(CALIBRATION)
    async def calibration(request: Any) -> Any:
        from . import calibrations  # with the lab, without which the menus are registered, too

        return web.json_response(calibrations.about(request.query.get("name", "")))

    @routes.get(FITTING)
    async def fitting(request: Any) -> Any:
        from . import calibrations

        names = request.query.getall("file", [])
        return web.json_response(await asyncio.to_thread(calibrations.fitting, names))
