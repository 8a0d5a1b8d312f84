"""The user's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class OptionInfo:
    default: Any = None
    label: str = ""
    component: Any = None
    component_args: Any = None
    onchange: Any = None
    section: tuple[str, str] | None = None
    category_id: str | None = None
    infotext: str | None = None
    comment_after: str = ""

    def info(self, text: str) -> OptionInfo:
        self.comment_after += text
        return self


class Options:
    def __init__(self, **data: Any) -> None:
        self.data_labels: dict[str, OptionInfo] = {}
        self.data = data

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["data"][key]
        except KeyError:
            raise AttributeError(key) from None

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)
