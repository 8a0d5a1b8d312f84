"""The models that samplers are fitted and judged on: exact denoisers, and the demo's network.

`problems.py` lists them; `TUNE` is what the recommended sampler may be fitted on, `JUDGE` what it is
judged on, and nothing else.
"""

from .problems import CHECK, JUDGE, TUNE, Problem
from .processes import PROCESSES, Process

__all__ = ["CHECK", "JUDGE", "PROCESSES", "TUNE", "Problem", "Process"]
