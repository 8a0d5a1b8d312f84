"""The models that samplers are fitted and judged on: exact denoisers, and the demo's network.

`problems.py` lists them; `TUNE` and `NETWORKS` are what the recommended sampler may be fitted on,
`CHECK` and `CHECK_NETWORKS` what the settings of a fit are chosen by, `JUDGE` what it is judged on.
"""

from .problems import CHECK, CHECK_NETWORKS, JUDGE, NETWORKS, TUNE, Problem
from .processes import PROCESSES, Process

__all__ = [
    "CHECK",
    "CHECK_NETWORKS",
    "JUDGE",
    "NETWORKS",
    "PROCESSES",
    "TUNE",
    "Problem",
    "Process",
]
