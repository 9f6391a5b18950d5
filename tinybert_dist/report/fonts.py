"""Names in any script on a picture: fonts that have their characters, or the names without them."""

import logging
from collections.abc import Iterable
from functools import lru_cache

DEFAULT = "DejaVu Sans"  # comes with matplotlib


def families_for(text: str) -> tuple[list[str], set[str]]:
    """(font families to try in order, the characters of `text` that none of the installed fonts has)."""
    # one without a bold version is drawn as it is; nobody needs to hear of it at every word
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    families, missing = [DEFAULT], set(text) - _characters(_default_file())
    missing = {character for character in missing if not character.isspace()}
    for name, file in _installed() if missing else ():
        found = missing & _characters(file)
        if found:
            families.append(name)
            missing -= found
        if not missing:
            break
    return families, missing


def drawable(name: str, missing: Iterable[str], instead: str) -> str:
    """`name` without the characters no font has; `instead` if little is left of it."""
    kept = "".join(character for character in name if character not in set(missing)).strip()
    return name if kept == name.strip() else kept if len(kept) > len(name) / 2 else instead


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters wide, wide ones (Chinese) counted twice, cut in the middle."""
    if _width(text) <= limit:
        return text
    head = tail = ""
    for character in text:
        if _width(head + character) > limit * 2 // 3 - 1:
            break
        head += character
    for character in reversed(text):
        if _width(head + tail + character) > limit - 1:
            break
        tail = character + tail
    return f"{head}\u2026{tail}"


def _width(text: str) -> int:
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _default_file() -> str:
    from matplotlib.font_manager import findfont

    return findfont(DEFAULT)


def _installed() -> list[tuple[str, str]]:
    from matplotlib.font_manager import fontManager

    # Last Resort has a frame for every character
    usable = [f for f in fontManager.ttflist if f.style == "normal" and not f.name.startswith("Last Resort")]
    usable.sort(key=lambda font: (str(font.weight) not in ("400", "normal", "regular"), font.name))
    return [(font.name, font.fname) for font in usable]


@lru_cache(maxsize=512)
def _characters(file: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()  # damaged, or of a kind matplotlib cannot read
