"""webui's door: AUTOMATIC1111 and Forge run this file by its path, at the start and at each UI reload.

The clone's root is on sys.path for as long as that takes, or for good, and its `nodes` and `samplers`
are names that others use too: so the pack is loaded by path under a name of its own, and anew each
time, for a reload to show what an update brought.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from pathlib import Path

PACK = "dpm_solver_webui"
HOST = "modules"
"""The package of the program that runs this file."""


def load_pack() -> None:
    """Load the clone this file is in as PACK, in the place of an earlier one."""
    for name in [name for name in sys.modules if name.split(".")[0] == PACK]:
        del sys.modules[name]
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(PACK, root / "__init__.py")
    assert spec is not None and spec.loader is not None  # it is a file's
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])


load_pack()
try:
    menus = importlib.import_module(f"{PACK}.hosts.webui.menus")
except ImportError as error:
    if (error.name or "").partition(".")[0] != HOST:
        raise
    logging.getLogger("dpm_solver_nodes").warning(
        "DPM-Solver adds no samplers here, as this program lacks what they are built on (%s): use "
        "AUTOMATIC1111 1.9 or newer, Forge, reForge or Forge Neo.",
        error,
    )
else:
    menus.register()
