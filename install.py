"""The install hook of ComfyUI-Manager and webui. There is nothing to install.

The pack runs on what both hosts bring, and never installs or changes torch. This hook only warns if
the Python is too old. It needs no network and no package.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    print("DPM-Solver needs Python 3.10 or newer; this is", sys.version.split()[0])
