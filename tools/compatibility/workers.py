"""Two workers of hiddenswitch's pip-installable ComfyUI on one machine, served from one queue.

    python -m dpm_solver_nodes.tools.compatibility.workers ENVIRONMENT [--broker amqp://guest:guest@127.0.0.1]

ENVIRONMENT is a virtual environment with that ComfyUI (https://github.com/hiddenswitch/ComfyUI) and
matplotlib; the broker is a RabbitMQ that runs.  Each menu entry and each node is queued twice through
the frontend's API. Both images must be equal, and both workers must have made some.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch

from dpm_solver_nodes.tests.comfyui.conftest import PACKS
from dpm_solver_nodes.tests.comfyui.test_menu import options
from dpm_solver_nodes.tests.support.digits import MENU, watched
from dpm_solver_nodes.tools.compatibility.checks import NODES, lab, sampling
from dpm_solver_nodes.tools.server import OFFLINE, HostError, Server, free_port, stop

WORKERS = ("worker1", "worker2")
LISTENING = "health check"
"""What a worker's log says when it waits for the queue."""


@contextlib.contextmanager
def started(environment: Path, broker: str, work: Path) -> Iterator[Server]:
    """Start the frontend and the workers, each worker with an output folder of its own."""
    for name in ("custom_nodes", "input", "models"):
        (work / name).mkdir(parents=True)
    for name, pack in PACKS.items():
        (work / "custom_nodes" / name).symlink_to(pack, target_is_directory=True)
    with contextlib.ExitStack() as stack:
        for name in WORKERS:
            (work / name).mkdir()
            _run(stack, environment / "bin" / "comfyui-worker", broker, work, name, free_port())
        port = free_port()
        (work / "front").mkdir()
        program = environment / "bin" / "comfyui"
        front = _run(stack, program, broker, work, "front", port, "--distributed-queue-frontend")
        server = Server(f"http://127.0.0.1:{port}", work, front)
        (work / "host.log").symlink_to(work / "front.log")  # where Server looks for it
        server.wait_until_up(300.0)
        deadline = time.monotonic() + 300.0
        while not all(
            LISTENING in (work / f"{name}.log").read_text(encoding="utf-8") for name in WORKERS
        ):
            if time.monotonic() > deadline:
                raise HostError("a worker did not start")
            time.sleep(0.5)
        yield server


def _run(
    stack: contextlib.ExitStack,
    program: Path,
    broker: str,
    work: Path,
    name: str,
    port: int,
    *arguments: str,
) -> subprocess.Popen[bytes]:
    command = [str(program), "--cpu", "--cwd", str(work), "--port", str(port), *arguments]
    command += ["--output-directory", str(work / name), "--disable-api-nodes"]
    command += ["--distributed-queue-connection-uri", broker, "--distributed-queue-name", work.name]
    log = stack.enter_context((work / f"{name}.log").open("wb"))
    process = subprocess.Popen(
        command,
        env=os.environ | OFFLINE | {"OTEL_SDK_DISABLED": "true"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stack.callback(stop, process)
    return process


def queue_all(server: Server, rounds: int = 2) -> list[str]:
    """Queue everything, wait for it, and return the faults."""
    files: dict[str, list[str]] = {}
    prompts = []
    for _ in range(rounds):
        for name, graph in sampling().items():
            graph, file = watched(graph)
            prompts.append(server.queue(graph))
            files.setdefault(name, []).append(file)
    failures, made = [], Counter[str]()
    for prompt in prompts:
        failures += _failed(server, prompt)
    for name, of_one in files.items():
        paths = [path for file in of_one for path in server.work.glob(f"*/{file}.safetensors")]
        made.update(path.parent.name for path in paths)
        images = [safetensors.torch.load_file(path)["samples"] for path in paths]
        if len(images) != rounds or not all(torch.equal(image, images[0]) for image in images):
            failures.append(f"{name} differs, or is not there {rounds} times")
    print("Images:", ", ".join(f"{worker} {made[worker]}" for worker in WORKERS))
    return failures + [f"{worker} made none" for worker in WORKERS if not made[worker]]


def run_lab(server: Server) -> list[str]:
    """Faults of the lab's graphs, run one after the other: the last one loads the calibration."""
    return [line for graph in lab().values() for line in _failed(server, server.queue(graph))]


def _failed(server: Server, prompt: str) -> list[str]:
    status = server.wait(prompt)["status"]
    return [] if status["status_str"] == "success" else [str(status["messages"])]


def missing(server: Server) -> list[str]:
    """Faults in the frontend's nodes and menus."""
    nodes = server.object_info().keys()
    listed = options(server, "KSampler", "sampler_name")
    return [f"{name} is not listed" for name in sorted((NODES - nodes) | (set(MENU) - set(listed)))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment", type=Path)
    parser.add_argument("--broker", default="amqp://guest:guest@127.0.0.1")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "queue")
        with started(given.environment.absolute(), given.broker, work) as server:
            failures = missing(server) + queue_all(server) + run_lab(server)
    print("\n".join(failures) or f"passed: {len(NODES)} nodes, {len(MENU)} samplers, two workers")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
