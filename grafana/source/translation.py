"""A page in another language: its words replaced, wherever a person sees them and wherever a setting names them.

A heading stands in more than one place: where a query names its column, where a transformation renames it, where a
setting or a link finds it. All of them change together, so that the page works as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

SEEN = frozenset({"title", "description", "noValue", "text", "displayName", "label", "content", "axisLabel", "custom.axisLabel", "tooltip"})
"""Keys whose text a person reads."""

NAMED = frozenset({"alias", "targetField", "fieldName", "byField"})
"""Keys whose text is the name of a curve or column."""

BY_NAME = frozenset({"renameByName", "indexByName", "excludeByName"})
"""Tables whose keys are names of columns."""

KEPT = frozenset({"round", "until"})
"""Names of columns that regular expressions and links find, and that nobody reads."""

_COLUMN = re.compile(r'(AS ")([^"]+)(")')
_FIELD = re.compile(r"\$\{__data\.fields\.([A-Za-z]+)")
_UNIT = re.compile(r"(suffix:|time:\[)([^\]]+)")


def translated(value: Any, words: Mapping[str, str], key: str = "") -> Any:
    """Return a page, or a part of one below `key`, with English words replaced; what the table lacks stays English."""
    if isinstance(value, list):
        return [translated(entry, words, key) for entry in value]
    if isinstance(value, dict):
        if key in BY_NAME:
            return {_name(name, words): _name(entry, words) if isinstance(entry, str) else entry for name, entry in value.items()}
        if value.keys() == {"id", "value"}:  # a property of an override
            return {"id": value["id"], "value": translated(value["value"], words, value["id"])}
        if value.get("id") in {"byFrameRefID", "byRegexp"}:
            return value
        below = "alias" if value.get("id") == "byName" else ""
        return {name: translated(entry, words, below if name == "options" and below else name) for name, entry in value.items()}
    if not isinstance(value, str):
        return value
    if key in SEEN:
        return _FIELD.sub(lambda found: _field(found, words), words.get(value, value))
    if key in NAMED:
        return _name(value, words)
    if key == "query":
        return _COLUMN.sub(lambda found: found[1] + _name(found[2], words) + found[3], value)
    if key == "url":
        return _FIELD.sub(lambda found: _field(found, words), value)
    if key == "unit":
        return _UNIT.sub(lambda found: found[1] + words.get(found[2], found[2]), value)
    return value


def seen_words(value: Any, key: str = "") -> Iterator[str]:
    """Yield every text of a page that a person reads, but for the names of curves."""
    if isinstance(value, list):
        for entry in value:
            yield from seen_words(entry, key)
    elif isinstance(value, dict):
        if value.get("id") in SEEN and isinstance(value.get("value"), str):
            yield value["value"]
        for name, entry in value.items():
            if name == "renameByName":
                yield from (shown for shown in entry.values() if shown not in KEPT)
            elif name == "alias" and entry and not entry.startswith(("$", "{")):
                yield entry
            elif name == "query":
                yield from (column for _, column, _ in _COLUMN.findall(entry) if column[:1].isupper() and column != "Value")
            else:
                yield from seen_words(entry, name)
    elif isinstance(value, str) and key in SEEN:
        yield value


def _name(name: str, words: Mapping[str, str]) -> str:
    return name if name in KEPT else words.get(name, name)


def _field(found: re.Match[str], words: Mapping[str, str]) -> str:
    named = _name(found[1], words)
    return "${__data.fields." + found[1] if named == found[1] else f'${{__data.fields["{named}"]'
