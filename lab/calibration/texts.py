"""What a calibration says of itself: for which model and settings it is, and what it won against."""

from __future__ import annotations

from collections.abc import Sequence

from ...samplers.solvers.fitted import Calibration

MOST_ERRORS = 12
"""The most errors in a text: the smallest ones."""


def made_for(found: Calibration) -> str:
    """In a line: what it is, and what it was fitted on."""
    fitted = found.fitted
    parts = [f"{found.calls} model calls"]
    if fitted.sampler:
        parts.append(f"sigmas for {fitted.sampler}")
    parts.append(f"for {fitted.model or 'any model'}")
    if fitted.shift is not None:
        parts.append(f"shift {fitted.shift:g}")
    if fitted.guidance is not None:
        parts.append(f"CFG {fitted.guidance:g}")
    if fitted.shape:
        parts.append(f"latents of {'x'.join(map(str, fitted.shape))}")
    return ", ".join(parts)


def described(found: Calibration) -> str:
    """What it is for, how it was fitted, its errors and others', and a sampler's sigmas."""
    fitted = found.fitted
    prompts = f" and {fitted.prompts} prompts" if fitted.prompts > 1 else ""
    version = f", DPM-Solver {fitted.version}" if fitted.version else ""
    lines = [
        f"{made_for(found)}; fitted on {fitted.seeds} seeds{prompts} with {fitted.model_calls} model "
        f"calls{version}."
    ]
    if fitted.unconverged:
        lines.append(
            f"{fitted.unconverged} of the images did not converge, even in many steps. They were left "
            "out, unless they were the most: more model calls, or a lower CFG, may help."
        )
    if fitted.stopped:
        lines.append(
            "Not measured, as its calibration was stopped: compare it with other samplers, or "
            "calibrate again."
        )
    if fitted.errors:
        lines.append("Distance to the converged image, on other seeds than it was fitted on:")
        nearest = sorted(fitted.errors, key=fitted.errors.__getitem__)[:MOST_ERRORS]
        lines += [
            f"  {error:.4f}  {name}" for name, error in fitted.errors.items() if name in nearest
        ]
    if fitted.sampler:
        lines.append("Sigmas: " + ", ".join(f"{sigma:.4g}" for sigma in found.sigmas))
    return "\n".join(lines)


def of_file(parts: Sequence[Calibration]) -> str:
    """All that a file holds."""
    return "\n\n".join(map(described, parts))


def solvers(parts: Sequence[Calibration]) -> list[Calibration]:
    """Those that bring their weights; others are sigmas for ComfyUI's samplers."""
    return [one for one in parts if one.steps]


def choose(parts: Sequence[Calibration], calls: int = 0, guidance: float = 0.0) -> Calibration:
    """The calibration of a file for so many calls, made at the nearest guidance.

    Args:
        calls: 0 for those of the first one.
        guidance: 0 for that of the first one with so many calls.

    Raises:
        ValueError: the file has none for so many calls.
    """
    wanted = calls or parts[0].calls
    fitting = [one for one in parts if one.calls == wanted]
    if not fitting:
        there = ", ".join(map(str, sorted({one.calls for one in parts})))
        raise ValueError(f"This calibration is for {there} model calls, not for {calls}.")
    if not guidance:
        return fitting[0]
    return min(fitting, key=lambda one: abs((one.fitted.guidance or 1.0) - guidance))


def merged(files: Sequence[Sequence[Calibration]]) -> tuple[Calibration, ...]:
    """All calibrations of some files, each only once.

    Raises:
        ValueError: two of them are for the same use, and are not the same.
    """
    found: dict[tuple[object, ...], Calibration] = {}
    for one in (one for parts in files for one in parts):
        fitted = one.fitted
        use = (
            *(one.kind, one.calls, fitted.model, fitted.sampler, fitted.guidance),
            *(fitted.shape, fitted.fingerprint),
        )
        if found.setdefault(use, one) != one:
            raise ValueError(f"Two of them are for the same use and differ: {made_for(one)}.")
    return tuple(found.values())
