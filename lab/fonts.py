"""Fonts for pictures. Labels may be in Chinese, Japanese or Korean, and the usual fonts lack those."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from PIL import ImageFont

FIRST = "\u2e80"
"""The first of the letters that the usual fonts lack."""

FILES = (
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.ttf", "SourceHanSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf"),
    *("msyh.ttc", "YuGothM.ttc", "malgun.ttf", "simhei.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf"),
)
"""Fonts that have them: of Linux, Windows and macOS."""


SMALLER = 0.88
"""Times its size such a font is about as large as Pillow's."""


def has_east_asian(text: str) -> bool:
    return any(letter >= FIRST for letter in text)


@cache
def east_asian() -> str:
    """The file of a font of this system with such letters; "" if it has none."""
    for name in FILES:
        try:
            return str(ImageFont.truetype(name).path)
        except OSError:
            continue
    return ""


def font(size: int, texts: Iterable[str]) -> ImageFont.FreeTypeFont:
    """A font of this size for all these texts: Pillow's, unless it lacks some of their letters."""
    if any(map(has_east_asian, texts)) and (path := east_asian()):
        return ImageFont.truetype(path, round(SMALLER * size))
    return ImageFont.load_default(size)
