"""The combinations of ComfyUI, Python and torch that are measured."""

from __future__ import annotations

from typing import NamedTuple


class Combination(NamedTuple):
    comfyui: str
    python: str
    torch: str

    @property
    def name(self) -> str:
        """As the command line takes it."""
        return f"{self.comfyui}-{self.python}-{self.torch}"


REFERENCE = Combination("0.30.0", "3.11", "2.13.0")
"""The combination with which all others are compared."""

COMBINATIONS = (
    *(
        Combination(version, "3.11", "2.13.0")
        for version in ("0.16.3", "0.18.2", "0.24.0", "0.27.0")
    ),
    REFERENCE,
    Combination("0.30.0", "3.10", "2.5.1"),
    Combination("0.30.0", "3.11", "2.6.0"),
    Combination("0.30.0", "3.10", "2.7.1"),
    Combination("0.30.0", "3.12", "2.8.0"),
    Combination("0.30.0", "3.12", "2.10.0"),
    Combination("0.30.0", "3.13", "2.13.0"),
)
