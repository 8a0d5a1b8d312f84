"""Keeps this version's workflow files: later versions are tested on them.

    python -m dpm_solver_nodes.tools.release

copies workflows/*.json to tests/data/workflows/<version>/. The page of a real ComfyUI converts each of
them to the API format, in which inputs have names; these go to the folder api/ there.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from ..demo.run import PACKS, ROOT
from ..lab.report import pack_version
from . import browser
from .server import HostError, start


def main() -> int:
    if reason := browser.missing():
        print(f"nothing kept: {reason}", file=sys.stderr)
        return 1
    folder = ROOT / "tests" / "data" / "workflows" / pack_version()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "api").mkdir(parents=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="dpm-solver-release-") as work,
            start(Path(work), PACKS) as server,
            browser.opened(server) as page,
        ):
            for path in sorted((ROOT / "workflows").glob("*.json")):
                workflow = json.loads(path.read_text(encoding="utf-8"))
                browser.load(page, workflow)  # a picture that it loads may be missing
                graph = browser.converted(page)
                shutil.copy(path, folder)
                text = json.dumps(graph, indent=1, ensure_ascii=False)
                (folder / "api" / path.name).write_text(f"{text}\n", encoding="utf-8", newline="\n")
    except HostError as error:
        print(f"nothing kept: {error}", file=sys.stderr)
        return 1
    print(folder.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
