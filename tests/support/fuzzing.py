"""Random graphs: valid ones with any settings, and ones with a fault.

Nodes, inputs, limits and menus are read from the host's /object_info, so that new ones are used at
once.  The same seed makes the same case on the same host.

The time of each case is bounded: long lists are cut before they are sampled, and images are tiny.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dpm_solver_nodes.tests.support.digits import (
    MODEL,
    Graph,
    Node,
    custom,
    custom_advanced,
    ksampler,
    listed,
    menu,
    node,
    scheduled,
)

NUMBERS = ("INT", "FLOAT", "BOOLEAN")
STEPS = 5
"""The most steps in a list that is sampled as it is; a call of the model takes some 10 ms."""
CALLS = 24
"""The most that an adaptive node is allowed."""

NAN, INF = math.nan, math.inf
BAD_NUMBERS: Sequence[Any] = (
    *(NAN, INF, -INF, 1e308, -1e308, -0.0, 5e-324, 1e-30, 1e-9, 0, -1, 4, 2.5, 10**30, -(10**30)),
    *("", "abc", "nan", "-inf", "1e999", "7", " 3 ", "1,5", "½"),
    *(None, True, False, [], {}, [1.0], [1, 2, 3], {"a": 1}, {"__value__": NAN}, {"__value__": []}),
)
BAD_OPTIONS: Sequence[Any] = (
    *("", " ", "nope", "None", "karras ", "DPM_SOLVER++_2M", "dpm_solver", 0, 3, -1, NAN),
    *(None, True, [], ["auto"], {}, {"__value__": "auto"}),
)
LINKED: Mapping[str, Sequence[Any]] = {
    "INT": (-(10**18), -7, -1, 0, 1, 2, 4, 5, 2**31, 10**18),
    "FLOAT": (
        *(NAN, INF, -INF, 1e308, -1e308, -0.0, 5e-324, 1e-30, 1e-9, -1.0, -1e-9),
        0.3,
        1.5,
        1e6,
    ),
    "BOOLEAN": (True, False),
    "STRING": ("", "nope", "2", "taylor", "nan"),
}
"""Nodes that output one value: the host doesn't check it against the limits of the next input."""

LATENTS: Mapping[str, torch.Tensor] = {
    "one": torch.linspace(-1.0, 1.0, 256).reshape(1, 1, 16, 16),
    "three": torch.linspace(-1.0, 1.0, 768).reshape(3, 1, 16, 16),
    "wide": torch.linspace(-1.0, 1.0, 192).reshape(1, 1, 8, 24),
    "odd": torch.linspace(-1.0, 1.0, 255).reshape(1, 1, 15, 17),
    "no-image": torch.zeros(0, 1, 16, 16),
    "no-height": torch.zeros(1, 1, 0, 16),
    "no-channel": torch.zeros(1, 0, 16, 16),
    "four-channels": torch.linspace(-1.0, 1.0, 1024).reshape(1, 4, 16, 16),
    "video": torch.linspace(-1.0, 1.0, 512).reshape(1, 1, 2, 16, 16),
    "audio": torch.linspace(-1.0, 1.0, 16).reshape(1, 1, 16),
    "flat": torch.linspace(-1.0, 1.0, 16),
    "half": torch.linspace(-1.0, 1.0, 256).reshape(1, 1, 16, 16).half(),
    "whole-numbers": torch.arange(256).reshape(1, 1, 16, 16),
    "nan": torch.full((1, 1, 16, 16), NAN),
    "infinite": torch.full((1, 1, 16, 16), INF),
    "huge": torch.full((1, 1, 16, 16), 1e30),
}
"""Latents to load with LoadLatent, as fuzz-<name>.latent."""
TAME_LATENTS = ("one", "three", "wide", "half")

# --- what the host offers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """An input of a node.

    Attributes:
        kind: INT, FLOAT, BOOLEAN, STRING, COMBO or the type of a link.
        choices: the choices of a COMBO.
        limits: default, min, max, ...
    """

    name: str
    kind: str
    required: bool
    choices: tuple[Any, ...]
    limits: Mapping[str, Any]


class Offer:
    """The host's nodes, from its /object_info."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.info = info
        pack = info["DPMSolver_2M"]["python_module"]
        self.ours = [name for name in info if info[name]["python_module"] == pack]
        self.sampler_nodes = [name for name in self.ours if "SAMPLER" in info[name]["output"]]
        self.sigmas_nodes = [name for name in self.ours if "SIGMAS" in info[name]["output"]]
        self.sampler_names = self._choices("KSampler", "sampler_name")
        self.menu = [name for name in self.sampler_names if "dpm_solver" in name]
        self.schedulers = self._choices("KSampler", "scheduler")
        known = {"MODEL", "SIGMAS", "COMBO", *NUMBERS}
        spacers = [
            name
            for name in info
            if info[name]["output"][:1] == ["SIGMAS"]
            and name not in self.ours
            and {field.kind for field in self.fields(name) if field.required} <= known
        ]
        self.spacers = [name for name in spacers if not self._takes(name, "SIGMAS")]
        self.sigmas_patches = [name for name in spacers if self._takes(name, "SIGMAS")]
        self.model_patches = [
            name
            for name in info
            if name.startswith("ModelSampling") and info[name]["output"] == ["MODEL"]
        ]
        self.holders = {
            kind: name
            for kind, name in (
                (info[name]["output"][0], name) for name in info if name.startswith("Primitive")
            )
            if [(field.name, field.kind) for field in self.fields(name)] == [("value", kind)]
        }
        """Type -> a node that outputs a value of this type."""

    def fields(self, class_type: str) -> list[Field]:
        """A node's inputs; none if the host does not know it."""
        fields = []
        for group in ("required", "optional"):
            entries = self.info.get(class_type, {}).get("input", {}).get(group, {})
            for name, (kind, *details) in entries.items():
                limits = details[0] if details else {}
                listed_here = isinstance(kind, list)
                choices = kind if listed_here else limits.get("options", ())
                kind = "COMBO" if listed_here else str(kind)
                fields.append(Field(name, kind, group == "required", tuple(choices), limits))
        return fields

    def is_ours(self, sampler: Node) -> bool:
        """Whether this SAMPLER or KSampler node runs one of our samplers."""
        name = sampler.get("inputs", {}).get("sampler_name")
        return sampler.get("class_type") in self.sampler_nodes or name in self.menu

    def is_adaptive(self, sampler: Node) -> bool:
        """Whether one of ours chooses its number of calls by itself."""
        fields = (field.name for field in self.fields(sampler["class_type"]))
        return "adaptive" in str(sampler["inputs"].get("sampler_name")) or "max_calls" in fields

    def _choices(self, class_type: str, name: str) -> list[str]:
        (choices,) = (field.choices for field in self.fields(class_type) if field.name == name)
        return list(choices)

    def _takes(self, class_type: str, kind: str) -> bool:
        return any(field.kind == kind for field in self.fields(class_type))


# --- drawing a case ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A graph to be run.

    Attributes:
        seed: the seed that makes it again.
        name: names the saved samples and the counted calls; `<name>-start` is the latent before.
        changes: what is wrong in it, in words; empty for a valid graph.
        tame: no setting is so extreme that infinity or NaN may result; this leaves out sigmas, which
            only the run shows.
    """

    seed: str
    graph: Graph
    name: str
    changes: tuple[str, ...]
    tame: bool


def draw(offer: Offer, seed: str) -> Case:
    return _Draw(offer, seed).case()


def draw_long(offer: Offer, seed: str) -> Case:
    """A valid case that takes minutes, to be interrupted."""
    return _Draw(offer, seed).long_case()


UNKNOWN_LENGTH = ("DPMSolver_Calibrate", "DPMSolver_Calibrated")
"""Samplers that need a file, or minutes of their own, before a run begins."""


class _Draw:
    def __init__(self, offer: Offer, seed: str) -> None:
        self.offer = offer
        self.seed = seed
        self.random = random.Random(seed)
        self.tame = True
        self.may_change = True
        """Not where the graph relies on its values to stay short."""

    def case(self) -> Case:
        graph = self.graph()
        changes: list[str] = []
        if self.may_change and self.chance(0.55):
            for _ in range(self.random.choice((1, 1, 1, 2, 3))):
                changes += self.change(graph)
        return self.finished(graph, changes)

    def long_case(self) -> Case:
        options: dict[str, Any] = {
            "latent": self.node("EmptyLatentImage", width=128, height=128, batch_size=1)
        }
        fixed = [name for name in self.offer.menu if "adaptive" not in name]
        sampler = self.sampler()
        while sampler["class_type"] in UNKNOWN_LENGTH:
            sampler = self.sampler()
        if "max_calls" in sampler["inputs"]:
            sampler["inputs"] |= {"rtol": 1e-12, "atol": 1e-12, "max_calls": 100000, "h_init": 1e-4}
        elif "sampler_name" in sampler["inputs"]:
            # An adaptive sampler of the menu takes few calls, whatever the list is.
            sampler["inputs"]["sampler_name"] = self.random.choice(fixed)
        elif "method" in sampler["inputs"]:  # not every setting goes with every method
            sampler["inputs"] |= {"method": "multistep", "cfg_pp": False, "r": 0.0}
        sigmas = scheduled(self.random.choice(self.offer.schedulers[:3]), 10000)
        around = self.random.choice((custom, custom_advanced, None))
        graph = around(sampler, sigmas, **options) if around else None
        if graph is None:
            graph = ksampler(self.random.choice(fixed), steps=10000, **options)
        return self.finished(graph, [])

    def finished(self, graph: Graph, changes: Sequence[str]) -> Case:
        """With its calls counted, and the latent before and after and the sigmas told."""
        name = f"fuzz-{self.random.getrandbits(64):016x}"
        if "model" in graph:
            graph["model"]["inputs"]["key"] = name
        inputs = graph.get("sample", {}).get("inputs")
        inputs = inputs if isinstance(inputs, dict) else {}
        graph["save"] = node("DPMSolverTest_SaveLatent", samples=["sample", 0], name=name)
        start = node("DPMSolverTest_SaveLatent", name=f"{name}-start")
        graph["start"] = start
        start["inputs"]["samples"] = inputs.get("latent_image", ["latent", 0])
        told = inputs.get("sigmas")
        if "scheduler" in inputs:  # a KSampler: the list that it makes for itself
            same = {key: inputs[key] for key in ("model", "scheduler", "steps") if key in inputs}
            denoise = inputs.get("denoise", 1.0)
            graph["twin"] = node("BasicScheduler", **same, denoise=denoise)
            told = ["twin", 0]
        if told is not None:
            graph["text"] = node("PreviewAny", source=told)
        return Case(self.seed, graph, name, tuple(changes), self.tame and not changes)

    # --- valid graphs ---

    def graph(self) -> Graph:
        options: dict[str, Any] = {
            "latent": self.latent(),
            "patches": self.patches(),
            "digit": self.random.choice(("3", "", "0,1,2", "7, 7")),
        }
        graph = self.ksampler(options) if self.chance(0.4) else self.custom(options)
        if self.chance(0.15):
            self.mask(graph)
        return graph

    def ksampler(self, options: dict[str, Any]) -> Graph:
        name = self.random.choice(self.sampler_names())
        settings: dict[str, Any] = {"scheduler": self.scheduler(), "steps": self.steps()}
        settings["cfg"] = self.cfg()
        if self.chance(0.5):
            denoise = self.random.choice((1.0, 1.0, 0.9999, 0.7, 0.3, 0.05, 0.002, 0.0))
            return ksampler(name, **options, **settings, denoise=denoise, seed=self.noise_seed())
        start, end = self.random.choice(((0, 10000), (2, 10000), (0, 3), (1, 2), (4, 2), (50, 60)))
        if self.chance(0.04):  # thousands of steps, of which three are taken
            settings["steps"] = self.random.choice((1000, 1000, 1000, 10000))
            start, end = settings["steps"] - 3, 10000
            self.may_change = False
        sides = ("enable", "disable")
        settings |= {"start_at_step": start, "end_at_step": end, "noise_seed": self.noise_seed()}
        settings["add_noise"] = self.random.choice(sides)
        settings["return_with_leftover_noise"] = self.random.choice(sides)
        return ksampler(name, **options, **settings)

    def custom(self, options: dict[str, Any]) -> Graph:
        around = self.random.choice((custom, custom_advanced))
        *before, sigmas = self.sigmas()
        others: dict[str, Any] = {f"sigmas{i}": other for i, other in enumerate(before)}
        noise: dict[str, Any] = {"add_noise": self.chance(0.8), "cfg": self.cfg()}
        graph = around(self.sampler(), sigmas, **options, **noise, **others)
        outputs = len(self.offer.info[sigmas["class_type"]]["output"])
        graph["sample"]["inputs"]["sigmas"] = ["sigmas", self.random.randrange(outputs)]
        if len(before) > 0 and before[0]["inputs"].get("steps", 0) > 100:
            self.cut(graph, before[0]["inputs"]["steps"])
        return graph

    def sampler_names(self) -> list[str]:
        """Nearly always ours."""
        return self.offer.menu if self.chance(0.95) else self.offer.sampler_names

    def scheduler(self) -> str:
        own = [name for name in self.offer.schedulers if "dpm_solver" in name]
        return str(self.random.choice(own if self.chance(0.4) else self.offer.schedulers))

    def sampler(self) -> Node:
        if self.chance(0.4):
            return menu(self.random.choice(self.sampler_names()))
        return self.node(self.random.choice(self.offer.sampler_nodes))

    def sigmas(self) -> list[Node]:
        """A node that makes a list, and up to two that change it."""
        kind = self.random.random()
        if kind < 0.04:  # too long a list: all but an end of it is cut
            steps = self.random.choice((1000, 1000, 1000, 10000))
            self.may_change = False
            node_ = self.node(self.random.choice(self.offer.sigmas_nodes), steps=steps, denoise=1.0)
            if self.chance(0.5):
                node_ = scheduled(self.scheduler(), steps)
            return [node_, node("SplitSigmas", sigmas=["sigmas0", 0], step=0)]
        if kind < 0.4:
            nodes = [self.node(self.random.choice(self.offer.sigmas_nodes))]
        elif kind < 0.6:
            nodes = [scheduled(self.scheduler(), self.steps(), self.random.choice((1.0, 0.4)))]
        elif kind < 0.7:
            nodes = [self.node(self.random.choice(self.offer.spacers))]
        else:
            nodes = [listed(self.sigma_text())]
        while len(nodes) < 3 and self.chance(0.2):
            patch = self.random.choice(self.offer.sigmas_patches)
            nodes.append(self.node(patch, sigmas=[f"sigmas{len(nodes) - 1}", 0]))
        return nodes

    def cut(self, graph: Graph, steps: int) -> None:
        """Keep the first or the last few of a long list."""
        few, low = self.random.randint(0, STEPS), self.chance(0.5)
        graph["sigmas"]["inputs"]["step"] = steps - few if low else few
        graph["sample"]["inputs"]["sigmas"] = ["sigmas", int(low)]

    def sigma_text(self) -> str:
        """What a user might write into ManualSigmas, and much that he would not."""
        some = [
            math.exp(self.random.uniform(math.log(0.03), math.log(top)))
            for top in [self.random.choice((14.6, 0.99))]
            for _ in range(self.random.randint(1, STEPS))
        ]
        falling = sorted(some, reverse=True)
        middle = falling[len(falling) // 2]
        kinds: Sequence[tuple[float, Callable[[], Sequence[float | str]]]] = (
            (6, lambda: [*falling, 0]),
            (3, lambda: falling),
            (2, lambda: falling[::-1]),
            (2, lambda: [1, *(sigma for sigma in falling if sigma < 1), 0]),
            (2, lambda: some),
            (1, lambda: sorted([*falling, middle, middle], reverse=True)),
            (1, lambda: [middle] * 4),
            (1, lambda: [middle, middle, 0, 0]),
            (1, lambda: [*falling, middle * (1 - 1e-7), 0]),
            (1, lambda: [0, *falling[::-1]]),
            (1, lambda: [*falling[::-1], 1]),
            (1, lambda: [*falling, -middle]),
            (1, lambda: [-sigma for sigma in falling]),
            (1, lambda: ["9" * 30, *falling, 0]),
            (1, lambda: ["9" * 400, *falling, 0]),  # infinity
            (1, lambda: [*falling, "9" * 400]),
            (1, lambda: [*falling, "0." + "0" * 30 + "1", 0]),
            (1, lambda: [*falling, "0." + "0" * 41 + "1", 0]),  # below float32's normal numbers
            (1, lambda: ["0." + "0" * 41 + "3", "0." + "0" * 41 + "1"]),
            (1, lambda: ["1.0000001", 1, "0.9999999", 0.5, 0]),
            (1, lambda: [3, 1, 0.5, 0]),
            (1, lambda: [middle]),
            (1, lambda: [0]),
            (1, lambda: [0, 0, 0]),
            (1, lambda: [middle, 0]),
            (1, lambda: []),
            (1, lambda: ["nan"]),
            (1, lambda: ["one", "two"]),
            # Ten thousand steps that are refused before the first.
            (1, lambda: [*(f"{20 - i / 1000:.3f}" for i in range(10000)), 99, 0]),
        )
        (make,) = self.random.choices([make for _, make in kinds], [weight for weight, _ in kinds])
        parts = [part if isinstance(part, str) else f"{part:.7f}" for part in make()]
        return self.random.choice((", ", " ", ",", "\n")).join(parts)

    def latent(self) -> Node:
        if self.chance(0.7):
            sizes = (128, 128, 128, 64, 96, 160)
            size = {side: self.random.choice(sizes) for side in ("width", "height")}
            return node("EmptyLatentImage", **size, batch_size=self.random.choice((1, 1, 2, 3)))
        tame = self.chance(0.6)
        name = self.random.choice(TAME_LATENTS if tame else list(LATENTS))
        self.tame &= name in TAME_LATENTS
        return node("LoadLatent", latent=f"fuzz-{name}.latent")

    def patches(self) -> list[Node]:
        """Another kind of model, or one that is broken from some call on."""
        patches = []
        if self.chance(0.45):
            # Stable Cascade's takes the host half a second to make.
            slow = [0.1 if "Cascade" in name else 1.0 for name in self.offer.model_patches]
            (name,) = self.random.choices(self.offer.model_patches, slow)
            patch = self.node(name)
            for field in self.offer.fields(patch["class_type"]):
                default = field.limits.get("default")
                if field.kind in ("INT", "FLOAT") and patch["inputs"].get(field.name) != default:
                    self.tame = False
            patches.append(patch)
        if self.chance(0.1):
            patches.append(
                node("DPMSolverTest_NaN", call=self.random.choice((0, 0, 1, 3, 10, 1000)))
            )
            self.tame = False
        return patches

    def mask(self, graph: Graph) -> None:
        """Only a part of the latent is sampled."""
        side = self.random.choice((16, 16, 8, 1, 128))
        solid = {"value": self.random.choice((0.0, 0.5, 1.0)), "width": side, "height": side}
        graph["mask"] = node("SolidMask", **solid)
        graph["unmasked"] = graph["latent"]
        graph["latent"] = node("SetLatentNoiseMask", samples=["unmasked", 0], mask=["mask", 0])

    # --- their numbers ---

    def node(self, class_type: str, **given: Any) -> Node:
        """With random settings within the limits; optional ones may be left out."""
        inputs = {}
        for field in self.offer.fields(class_type):
            if field.name in given:
                inputs[field.name] = given[field.name]
            elif field.kind == "MODEL":
                inputs[field.name] = MODEL
            elif (field.kind in NUMBERS or field.kind == "COMBO") and (
                field.required or self.chance(0.5)
            ):
                inputs[field.name] = self.fitting(field)
        return node(class_type, **inputs)

    def fitting(self, field: Field) -> Any:
        """A value within the field's limits."""
        default, low = field.limits.get("default"), field.limits.get("min", 0)
        high = field.limits.get("max", 1 << 32)
        if field.kind == "COMBO":
            return self.random.choice(field.choices)
        if field.kind == "BOOLEAN":
            return self.chance(0.5)
        if field.kind == "INT":
            if field.name == "steps":
                return min(max(self.steps(), low), high)
            if field.name == "max_calls":
                return self.random.choice((low, 2, 3, 5, 7, 20, CALLS))
            if default is not None and self.chance(0.4):
                return default
            return self.random.randint(low, min(high, low + 8))
        if default is not None and self.chance(0.5):
            return default
        if field.name == "denoise":  # much smaller ones make lists without an end, also the host's
            return self.random.choice((1.0, 0.99, 0.5, 0.1, 0.01, 0.0))
        if self.chance(0.4):
            return self.random.choice(
                (low, high, math.nextafter(low, high), math.nextafter(high, low))
            )
        return self.random.uniform(low, min(high, low + 20.0))

    def steps(self) -> int:
        return self.random.randint(1, STEPS)

    def cfg(self) -> float:
        return self.random.choice((2.0, 2.0, 1.0, 0.0, 7.5))

    def noise_seed(self) -> int:
        return self.random.choice((0, 1, self.random.getrandbits(64)))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    # --- what may be wrong ---

    def change(self, graph: Graph) -> list[str]:
        """Do something to the graph, and say what; nothing where it does not apply."""
        kinds: Sequence[tuple[float, Callable[[Graph], str]]] = (
            (22, self.wrong_number),
            (34, self.linked_value),
            (8, self.wrong_option),
            (12, self.wrong_link),
            (4, self.missing_input),
            (2, self.unknown_input),
            (3, self.missing_node),
            (4, self.wrong_class),
            (1, self.no_node_at_all),
        )
        (change,) = self.random.choices([do for _, do in kinds], [weight for weight, _ in kinds])
        said = change(graph)
        return [said] if said else []

    def pick(self, graph: Graph, kinds: Sequence[str] = ()) -> tuple[str, Field] | None:
        """A node and one of its inputs: those of samplers and of sigmas more often than others."""
        found = []
        for name, entry in graph.items():
            if not isinstance(entry, dict) or not isinstance(entry.get("inputs"), dict):
                continue
            for field in self.offer.fields(str(entry.get("class_type"))):
                if (not kinds or field.kind in kinds) and field.name != "key":
                    heavy = name in ("sampler", "sigmas", "sample", "sigmas0")
                    found += [(name, field)] * (6 if heavy else 1)
        return self.random.choice(found) if found else None

    def put(self, graph: Graph, name: str, field: Field, value: Any) -> str:
        graph[name]["inputs"][field.name] = value
        return f"{name}.{field.name} = {value!r}"

    def wrong_number(self, graph: Graph) -> str:
        if not (picked := self.pick(graph, NUMBERS)):
            return ""
        name, field = picked
        value = self.random.choice(BAD_NUMBERS)
        allowed = not isinstance(value, (int, float)) or value <= field.limits.get("max", INF)
        if allowed and self.endless(graph[name]["class_type"], field, value):
            return ""
        return self.put(graph, name, field, copy.deepcopy(value))

    def linked_value(self, graph: Graph) -> str:
        """A number from another node, which may also be of another type behind a switch."""
        if not (picked := self.pick(graph, (*NUMBERS, "COMBO"))):
            return ""
        name, field = picked
        kind = field.kind
        switched = kind not in self.offer.holders or self.chance(0.15)
        if switched:
            kind = self.random.choice(list(LINKED))
        if kind not in self.offer.holders or "ComfySwitchNode" not in self.offer.info:
            return ""
        value = self.random.choice(LINKED[kind])
        if self.endless(graph[name]["class_type"], field, value):
            return ""
        source = f"value{len(graph)}"
        graph[source] = node(self.offer.holders[kind], value=value)
        if switched:
            link = [source, 0]
            source = f"switch{len(graph)}"
            graph[source] = node("ComfySwitchNode", switch=True, on_true=link, on_false=link)
        return f"{self.put(graph, name, field, [source, 0])}: {value!r}"

    def endless(self, class_type: str, field: Field, value: Any) -> bool:
        """Whether a bad value would make the host itself work for hours."""
        if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
            return False
        if field.name in ("width", "height", "batch_size", "max_calls"):
            return bool(field.limits["min"] <= value) and value > CALLS
        if class_type in self.offer.ours:
            return False
        if field.name == "denoise":
            return 0.0 < value < 1e-3
        return field.name == "steps" and value > CALLS

    def wrong_option(self, graph: Graph) -> str:
        picked = self.pick(graph, ("COMBO",))
        return self.put(graph, *picked, self.random.choice(BAD_OPTIONS)) if picked else ""

    def wrong_link(self, graph: Graph) -> str:
        if not (picked := self.pick(graph)):
            return ""
        name, field = picked
        other = self.random.choice(list(graph))
        values: Sequence[Any] = (
            [other, 0],
            [other, 0],
            [other, 1],
            [other, 99],
            [other, -1],
            [name, 0],
            ["sample", 0],
            ["nowhere", 0],
            [other, "0"],
            [other, None],
            [other, 0.5],
            [other],
            [other, 0, 0],
            [None, 0],
            [[], {}],
        )
        return self.put(graph, name, field, self.random.choice(values))

    def missing_input(self, graph: Graph) -> str:
        if not (picked := self.pick(graph)):
            return ""
        name, field = picked
        graph[name]["inputs"].pop(field.name, None)
        return f"no {name}.{field.name}"

    def unknown_input(self, graph: Graph) -> str:
        name = self.random.choice(("sampler", "sigmas", "sample"))
        if name not in graph or not isinstance(graph[name].get("inputs"), dict):
            return ""
        field = self.random.choice(("bogus", "schedule", "return_info", "callback", "x", "self"))
        graph[name]["inputs"][field] = self.random.choice((1, "1", True, None, ["model", 0]))
        return f"{name} is given an input {field}"

    def missing_node(self, graph: Graph) -> str:
        name = self.random.choice(list(graph))
        del graph[name]
        return f"no {name}"

    def wrong_class(self, graph: Graph) -> str:
        name = self.random.choice(list(graph))
        value = self.random.choice((*self.offer.ours, *self.offer.ours, "NoSuchNode", "", None))
        if isinstance(graph[name], dict) and value is not None:
            graph[name]["class_type"] = value
        elif isinstance(graph[name], dict):
            graph[name].pop("class_type", None)
        return f"{name} is a {value}"

    def no_node_at_all(self, graph: Graph) -> str:
        name = self.random.choice(
            [name for name in graph if name not in ("model", "sample")] or [""]
        )
        if not name:
            return ""
        # One with a class and without inputs would end the host's only worker, if an output that
        # does without it is asked for.
        nothing: Sequence[Any] = (
            None,
            [],
            "node",
            {},
            {"class_type": self.offer.ours[0], "inputs": {}},
        )
        value = self.random.choice(nothing)
        if isinstance(value, dict):
            graph[name] = dict(value)
        else:
            graph[name] = value
        return f"{name} is {value!r}"
