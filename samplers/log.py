"""The pack's logger. Its name is the same however a host imports the pack."""

from __future__ import annotations

import logging

LOG = logging.getLogger("dpm_solver_nodes")
