"""webui's entry point: AUTOMATIC1111 and Forge run this file by its path, at each start and UI reload.

The host puts the clone's root on sys.path, and other extensions, too, may have modules called `nodes`
or `samplers`. So the pack is loaded by path, under a name of its own. It is loaded again at each run,
so that a UI reload is enough after an update.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from pathlib import Path

PACK = "dpm_solver_webui"
HOST = "modules"
"""The package of the program that runs this file: webui's own modules."""


def load_pack() -> None:
    """Load the clone that holds this file as the module PACK, and replace an earlier one."""
    for name in [name for name in sys.modules if name.split(".")[0] == PACK]:
        del sys.modules[name]
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(PACK, root / "__init__.py")
    assert spec is not None and spec.loader is not None  # a file has both
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])


load_pack()
try:
    menus = importlib.import_module(f"{PACK}.hosts.webui.menus")
except ImportError as error:
    if (error.name or "").partition(".")[0] != HOST:
        raise
    logging.getLogger("dpm_solver_nodes").warning(
        "DPM-Solver adds no samplers here, as this program lacks what they need (%s): use "
        "AUTOMATIC1111 1.9 or newer, Forge, reForge or Forge Neo.",
        error,
    )
else:
    menus.register()
