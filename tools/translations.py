"""The nodes' texts for translation: collects the English ones, and checks other languages.

    python -m dpm_solver_nodes.tools.translations               # write locales/en, list missing texts
    python -m dpm_solver_nodes.tools.translations --confirm zh    # zh is up to date

The first starts a real ComfyUI and copies our nodes' texts from its `/object_info`. A language is a
folder beside `locales/en`: copy that, translate its files (`settings.json` holds the texts of
`web/menus.js`), write a help page `web/docs/<node>/<language>.md` for each node, and confirm.
`translated.json`, which `--confirm` writes, holds a digest of each English text, to find texts that
changed since.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .server import HostError, start

ROOT = Path(__file__).resolve().parents[1]
LOCALES = ROOT / "locales"
DOCS = ROOT / "web" / "docs"
FILES = ("nodeDefs", "main", "settings")
"""The files of texts, as the host names them."""
# Combos whose options are the host's samplers, schedulers or files: names, which are not translated.
NOT_OURS = {
    ("DPMSolver_Candidate", "scheduler"),
    ("DPMSolver_Calibrate", "sampler"),
    ("DPMSolver_Calibrated", "calibration"),
}


# --- English -------------------------------------------------------------------------------------


def ours(known: Mapping[str, Any]) -> dict[str, Any]:
    """Our part of the host's `/object_info`."""
    pack = known["DPMSolver_2M"]["python_module"]
    return {name: info for name, info in known.items() if info["python_module"] == pack}


def node_definitions(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """nodeDefs.json in English, in the format that the host's page reads.

    Pages up to 1.47 show options untranslated; `options` is for later ones.
    """
    return {name: _node(name, nodes[name]) for name in sorted(nodes)}


def _node(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    fields = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    inputs: dict[str, Any] = {}
    for field, (kind, *rest) in fields.items():
        settings = rest[0] if rest else {}
        inputs[field] = {
            "name": settings.get("display_name") or field,
            "tooltip": settings.get("tooltip", ""),
        }
        options = kind if isinstance(kind, list) else settings.get("options", [])
        if options and (name, field) not in NOT_OURS:
            inputs[field]["options"] = {option: option for option in options}
    tooltips = info.get("output_tooltips") or [""] * len(info["output_name"])
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": {
            str(index): {"name": label, "tooltip": tooltip or ""}
            for index, (label, tooltip) in enumerate(
                zip(info["output_name"], tooltips, strict=True)
            )
        },
    }


def menu(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """main.json in English: our folders of the list of nodes ("sampling" is the host's)."""
    inside = (info["category"].partition("sampling/")[2] for info in nodes.values())
    folders = {part for path in inside for part in path.split("/")}
    return {"nodeCategories": {folder: folder for folder in sorted(folders)}}


# --- other languages -----------------------------------------------------------------------------


def languages() -> list[str]:
    return sorted(path.name for path in LOCALES.iterdir() if path.is_dir())


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def texts(language: str) -> dict[str, str]:
    """All texts of a language, such as {"DPMSolver_2M inputs lower_order_final tooltip": "Take"}.

    Help pages are among them, as "DPMSolver_2M page".
    """
    folder = LOCALES / language
    found: dict[str, str] = {}
    for name in FILES:
        found |= _flat(read(folder / f"{name}.json"))
    for node in read(LOCALES / "en" / "nodeDefs.json"):
        if (path := page(node, language)).exists():
            found[f"{node} page"] = path.read_text(encoding="utf-8")
    return found


def page(node: str, language: str) -> Path:
    """The file in which the host's page looks for a node's help in a language."""
    return DOCS / (f"{node}.md" if language == "en" else f"{node}/{language}.md")


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{above}{key} ") if isinstance(value, dict) else {above + key: value}
    return flat


def marks() -> dict[str, str]:
    """A digest of each English text, to recognise a change."""
    return {key: hashlib.sha256(text.encode()).hexdigest()[:8] for key, text in texts("en").items()}


def differences(language: str) -> list[str]:
    """A line for each text that a language lacks, has too much, or must check as English changed."""
    english, translated = texts("en"), texts(language)
    confirmed = read(LOCALES / language / "translated.json")
    lines = [f"missing: {key}" for key in english if not translated.get(key)]
    lines += [f"superfluous: {key}" for key in translated if key not in english]
    lines += [
        f"English has changed: {key}" if key in confirmed else f"not confirmed: {key}"
        for key, mark in marks().items()
        if translated.get(key) and confirmed.get(key) != mark
    ]
    return lines


# --- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dpm_solver_nodes.tools.translations")
    parser.add_argument(
        "--confirm", metavar="LANGUAGE", help="confirm that this language is up to date"
    )
    language = parser.parse_args(arguments).confirm
    try:
        if language:
            if language == "en" or language not in languages():
                raise HostError(f"there is no translation {language} in {LOCALES}")
            write(LOCALES / language / "translated.json", marks())
        else:
            with (
                tempfile.TemporaryDirectory(prefix="dpm-solver-locales-") as work,
                start(Path(work), {"dpm-solver-nodes": ROOT}) as server,
            ):
                nodes = ours(server.object_info())
            write(LOCALES / "en" / "nodeDefs.json", node_definitions(nodes))
            write(LOCALES / "en" / "main.json", menu(nodes))
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    except HostError as error:
        print(f"no texts: {error}", file=sys.stderr)
        return 1
    others = [name for name in languages() if name != "en"]
    left = {name: differences(name) for name in others}
    for name, lines in left.items():
        print(f"{name}: {len(lines) or 'nothing'} to do")
        print("".join(f"  {line}\n" for line in lines), end="")
    return 1 if any(left.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
