"""Random graphs, valid and broken: each ends in a result or one clear sentence.

After it the host goes on as before.

FUZZ_PROMPTS (default 300) says how many per version, FUZZ_SEED (default 0) which ones.  A failure
tells the seed of its case and the graph, which can be queued again as it is.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import safetensors.torch
import torch

from dpm_solver_nodes.tests.support.digits import Graph, ksampler, sample
from dpm_solver_nodes.tests.support.fuzzing import LATENTS, Case, Offer, draw, draw_long
from dpm_solver_nodes.tests.support.probing import counts, latent
from dpm_solver_nodes.tools.server import HostError, Server

CHUNK = 25
PROMPTS = int(os.environ.get("FUZZ_PROMPTS", "300"))
SEED = os.environ.get("FUZZ_SEED", "0")
CHUNKS = range(math.ceil(PROMPTS / CHUNK))
CALM = [chunk for chunk in CHUNKS if chunk % 5 != 4]
LONG = range(max(PROMPTS // 100, 1))
"""Long runs that are interrupted, besides."""
PATIENCE = 120.0
"""Seconds for a chunk, which takes two to ten."""

OURS = "/custom_nodes/dpm-solver-nodes/"
INTERNAL = (
    *("NoneType", "KeyError", "IndexError", "AttributeError", "list index", "index out of range"),
    *("division by zero", "has no attribute", "unsupported operand", "not subscriptable"),
    *(
        "not iterable",
        "not callable",
        "Expected all tensors",
        "expected scalar type",
        "cannot convert",
    ),
    *(
        "could not convert",
        "can't convert",
        "domain error",
        "math range",
        "Numerical result",
        "too large",
    ),
    *("must match", "size of tensor", "shape '[", "keyword argument", "positional argument", "0x"),
    *("Traceback", "<class", "<function", "object at", "tensor(", "invalid literal", "recursion"),
    *(
        "Dimension",
        "invalid for input",
        "not supported between",
        "must be real number",
        "unhashable",
    ),
    *(
        "is not defined",
        "local variable",
        "to unpack",
        "assert",
        "can't multiply",
        "object cannot be",
    ),
)
"""Words of an error that nobody expected."""
UNEXPECTED = re.compile(
    "Exception in thread|exception was never retrieved|Exception ignored|Fatal Python|Segmentation"
)
TRACEBACK = "Traceback (most recent call last):\n"
CHAINED = re.compile(
    r"\n(The above exception was the direct cause of the following exception|"
    rf"During handling of the above exception, another exception occurred):\n\n{re.escape(TRACEBACK)}"
)
"""Between the tracebacks of one error with its cause."""

Complaints = list[str]
_tally: dict[str, Counter[str]] = {}


@dataclass(frozen=True)
class Bench:
    """A host to run the cases on."""

    host: Server
    offer: Offer
    graph: Graph
    expected: torch.Tensor = field(repr=False)

    def still_works(self) -> None:
        """The same graph gives the same latent as at first, to the last bit."""
        assert torch.equal(sample(self.host, self.graph).latent, self.expected)

    @property
    def tally(self) -> Counter[str]:
        return _tally.setdefault(self.host.version, Counter())


@pytest.fixture(scope="module")
def bench(host: Server) -> Iterator[Bench]:
    for name, samples in LATENTS.items():
        file = {"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}
        safetensors.torch.save_file(file, host.work / "input" / f"fuzz-{name}.latent")
    offer = Offer(host.object_info())
    graph = ksampler(offer.menu[0], steps=4)
    yield Bench(host, offer, graph, sample(host, graph).latent)


def seed_of(bench: Bench, *parts: object) -> str:
    return "/".join(map(str, (SEED, bench.host.version, *parts)))


# --- queueing and waiting ------------------------------------------------------------------------


@dataclass(frozen=True)
class Queued:
    """A case and the host's answer to it: a prompt's id, or what it said instead."""

    case: Case
    prompt_id: str
    refusal: Mapping[str, Any]


def queue(host: Server, case: Case) -> Queued:
    content = {"prompt": case.graph, "client_id": host.client_id}
    try:
        answer = host.post("/prompt", content)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            return Queued(case, "", json.loads(text))
        except json.JSONDecodeError:  # an HTTP error 500, for what is no graph at all
            return Queued(case, "", {"error": {"message": text}})
    # Where one output can be made and another can't, the host runs the graph for the first.
    refused = {"node_errors": answer["node_errors"]} if answer["node_errors"] else {}
    return Queued(case, answer["prompt_id"], refused)


def wait(host: Server, queued: Queued, deadline: float) -> dict[str, Any]:
    """The entry in the host's history.  A host that hangs is ended: no other test could use it."""
    try:
        return host.wait(queued.prompt_id, max(deadline - time.monotonic(), 1.0))
    except TimeoutError:
        log = host.log(40)
        os.kill(host.python_pid, signal.SIGKILL)
        pytest.fail(f"the host hangs, and was ended\n{told(queued.case)}\n{log}")
    except HostError as error:
        pytest.fail(f"the host is down\n{told(queued.case)}\n{error}")


def told(case: Case) -> str:
    changes = "; ".join(case.changes) or "a valid graph"
    return f"seed {case.seed!r}: {changes}\n{json.dumps(case.graph)}"


# --- judging -------------------------------------------------------------------------------------


def judge(bench: Bench, queued: Queued, entry: Mapping[str, Any]) -> tuple[str, Complaints]:
    """What came of a case, in a word, and what is wrong with that."""
    wrong = refusal_complaints(queued.refusal)
    if not entry:
        return "refused", wrong
    outcome = "result" if "save" in entry["outputs"] else "refused"
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_interrupted":
            return "interrupted", wrong
        if kind == "execution_error":
            ours, complaints = judge_error(data)
            return ("our sentence" if ours else "the host's failure"), wrong + complaints
    if outcome == "result":
        wrong += result_complaints(bench, queued.case, entry["outputs"])
    return outcome, wrong


def refusal_complaints(refusal: Mapping[str, Any]) -> Complaints:
    """The host's validation has its own words, which may not come of an error in our code."""
    errors = [refusal["error"]] if refusal.get("error") else []
    errors += [
        error for node in refusal.get("node_errors", {}).values() for error in node["errors"]
    ]
    frames = [
        frame for error in errors for frame in (error.get("extra_info") or {}).get("traceback", ())
    ]
    wrong = [
        f"our code failed in the host's validation: {frame}" for frame in frames if is_ours(frame)
    ]
    if refusal and not any(error.get("message") for error in errors):
        wrong.append(f"refused without a word: {refusal}")
    return wrong


def is_ours(frame: str) -> bool:
    return OURS in frame.partition(", line ")[0]


def judge_error(data: Mapping[str, Any]) -> tuple[bool, Complaints]:
    """Whether an error was raised by our code, or on behalf of it, and what is wrong with it."""
    frames = data["traceback"]
    last = max((i for i, frame in enumerate(frames) if is_ours(frame)), default=None)
    if last is None:
        return False, []
    beyond = frames[last + 1 :]
    if beyond and re.search(
        r"comfy/samplers\.py\", line \d+, in (__call__|k_callback)\n", beyond[0]
    ):
        return False, []  # the model failed
    message = data["exception_message"].strip()
    complaints = [f"the sentence says {word!r}" for word in INTERNAL if word in message]
    if "\n" in message:
        complaints.append("there is more than one line")
    if len(message) >= 300:
        complaints.append(f"there are {len(message)} characters")
    if not re.fullmatch(r"(?s)\S.{20,}\.", message):
        complaints.append("it is no sentence with a period at its end")
    if beyond or not re.search(r"\n\s+raise ", frames[last]):
        complaints.append("it was not raised on purpose")
    if complaints:
        where = "".join(frames[last:])
        complaints = [f"{data['exception_type']}: {message!r}: {', '.join(complaints)}\n{where}"]
    return True, complaints


def result_complaints(bench: Bench, case: Case, outputs: Mapping[str, Any]) -> Complaints:
    wrong: Complaints = []
    result = latent(bench.host, case.name)
    start = latent(bench.host, f"{case.name}-start")
    if result.shape[0] != start.shape[0] or result.shape[2:] != start.shape[2:]:
        wrong.append(f"the latent went from {list(start.shape)} to {list(result.shape)}")
    sampler = case.graph["sample"]
    if "sampler_name" not in sampler["inputs"]:
        sampler = case.graph[sampler["inputs"]["sampler"][0]]
    sigmas = sigmas_told(outputs)
    if sigmas is None or not bench.offer.is_ours(sampler):
        return wrong
    tame = all(sigma == 0.0 or 1e-3 < sigma < 1e3 for sigma in sigmas)
    if case.tame and tame and not torch.isfinite(result).all():
        wrong.append("the latent is not finite")
    calls = counts(bench.host).get(case.name, 0)
    if bench.offer.is_adaptive(sampler):
        limit = sampler["inputs"].get("max_calls", 500)
        if isinstance(limit, int) and limit > 0 and calls > limit:
            wrong.append(f"{calls} calls, and {limit} were allowed")
    elif is_counted(case.graph):
        steps = steps_taken(case.graph, len(sigmas))
        if steps is not None and calls != steps:
            wrong.append(f"{calls} calls in {steps} steps")
    return wrong


def sigmas_told(outputs: Mapping[str, Any]) -> list[float] | None:
    """The list that was sampled, or the whole of a KSampler's; None where that is not told in full."""
    text = outputs.get("text", {}).get("text", [""])[0]
    inside = re.fullmatch(r"(?s)tensor\(\[(.*)\].*\)", text)
    if inside is None or "..." in text or "[" in inside[1]:
        return None
    return [float(number) for number in inside[1].split(",") if number.strip()]


def is_counted(graph: Graph) -> bool:
    """Whether the model that is sampled is the one whose calls are counted."""
    user = graph["guider"] if "guider" in graph["sample"]["inputs"] else graph["sample"]
    return bool(user["inputs"].get("model") == ["model", 0])


def steps_taken(graph: Graph, sigmas: int) -> int | None:
    """Of a list of so many sigmas; None where the inputs tell nothing."""
    inputs = graph["sample"]["inputs"]
    if inputs.get("scheduler") == "ddim_uniform":
        return None  # KSampler makes a step more of it than BasicScheduler
    if "start_at_step" not in inputs:
        return max(sigmas - 1, 0)
    start, end = inputs["start_at_step"], inputs.get("end_at_step")
    if not (isinstance(start, int) and isinstance(end, int) and start >= 0 and end >= 0):
        return None
    return max(min(end, sigmas - 1) - start, 0)


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CALM)
def test_random_graphs(bench: Bench, chunk: int) -> None:
    cases = [draw(bench.offer, seed_of(bench, chunk, i)) for i in range(CHUNK)]
    run_all(bench, cases)


@pytest.mark.parametrize("chunk", CHUNKS[4::5])
def test_interrupted_at_any_time(bench: Bench, chunk: int) -> None:
    """Interrupts come between and during random graphs, while others are queued."""
    cases = [draw(bench.offer, seed_of(bench, chunk, i)) for i in range(CHUNK)]
    run_all(bench, cases, random.Random(seed_of(bench, chunk, "moments")))


@pytest.mark.parametrize("number", LONG)
def test_interrupted_in_the_middle(bench: Bench, number: int) -> None:
    """Ten thousand steps, or a tolerance that needs as many, end at once."""
    case = draw_long(bench.offer, seed_of(bench, "long", number))
    moments = random.Random(case.seed)
    bench.host.wait_until_up(10.0)
    queued = queue(bench.host, case)
    assert queued.prompt_id, f"{queued.refusal}\n{told(case)}"
    deadline = time.monotonic() + PATIENCE
    while not counts(bench.host).get(case.name):
        assert time.monotonic() < deadline and not ended(bench.host, queued), told(case)
        time.sleep(0.01)
    time.sleep(moments.uniform(0.0, 0.2))
    bench.host.interrupt()
    start = time.monotonic()
    entry = wait(bench.host, queued, deadline)
    outcome, complaints = judge(bench, queued, entry)
    bench.tally[outcome] += 1
    assert (outcome, complaints) == ("interrupted", []), told(case)
    assert time.monotonic() - start < 5.0, told(case)
    bench.still_works()


def test_the_logs_tell_of_nothing_unhandled(bench: Bench) -> None:
    """What our code raised was raised while a prompt was run, and caught by the host."""
    assert bench.host.get("/queue") == {"queue_running": [], "queue_pending": []}
    log = bench.host.log()
    assert not UNEXPECTED.search(log), UNEXPECTED.findall(log)
    before = ""  # since the last traceback; other threads may have logged in between
    for block in CHAINED.sub("\n", log).split(TRACEBACK):
        frames = re.match(r"(?s)(  .*?\n)+(?=\S)", block)
        if before and frames and OURS in frames[0]:
            assert "!!! Exception during processing" in before, block
        before = block


def test_the_share_of_each_outcome(bench: Bench) -> None:
    """The generator still draws all kinds."""
    total = bench.tally.total()
    print(bench.host.version, dict(bench.tally), total)
    if total < PROMPTS:
        pytest.skip("not all of the random graphs were run")
    ended = total - bench.tally["interrupted"]  # a slow machine is interrupted in more of them
    for outcome, least in (("result", 0.3), ("refused", 0.1), ("our sentence", 0.05)):
        assert bench.tally[outcome] > least * ended, dict(bench.tally)


def run_all(bench: Bench, cases: Sequence[Case], moments: random.Random | None = None) -> None:
    """Queue all of the cases, judge each, and see that the host goes on as before."""
    host = bench.host
    host.wait_until_up(10.0)
    deadline = time.monotonic() + PATIENCE
    queued = [queue(host, case) for case in cases]
    failed = []
    for one in queued:
        while moments and one.prompt_id and not ended(host, one) and time.monotonic() < deadline:
            time.sleep(moments.uniform(0.0, 0.1))
            if moments.random() < 0.4:
                host.interrupt()
        entry = wait(host, one, deadline) if one.prompt_id else {}
        outcome, complaints = judge(bench, one, entry)
        bench.tally[outcome if not complaints else "complaint"] += 1
        if failed_in_sampling(entry):
            forget(host)
        if outcome == "interrupted" and not moments:
            complaints.append("nobody interrupted it")
        if complaints:
            failed.append("\n".join([*complaints, told(one.case)]))
    bench.still_works()
    assert not failed, f"{len(failed)} of {len(cases)} cases\n\n" + "\n\n".join(failed)


def failed_in_sampling(entry: Mapping[str, Any]) -> bool:
    messages = entry["status"]["messages"] if entry else ()
    return any(data.get("node_id") == "sample" for _, data in messages)


def forget(host: Server) -> None:
    """A model that failed: hosts keep an account of it, and collect garbage at each later prompt."""
    host.post("/free", {"unload_models": True, "free_memory": True})


def ended(host: Server, queued: Queued) -> bool:
    return queued.prompt_id in host.get(f"/history/{queued.prompt_id}")
