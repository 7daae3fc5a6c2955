"""Changes messages as somebody does who knows their form: a field at a time, or the bytes."""

from __future__ import annotations

import json
from random import Random
from typing import Any

EXTREMES: tuple[str, ...] = (
    "null",
    "true",
    "-1",
    "0",
    "9007199254740993",
    "9" * 400,
    "1e308",
    "1e999",
    "NaN",
    "-Infinity",
    '""',
    '"' + "a" * 501 + '"',
    '"' + "a" * 100_000 + '"',
    '"line\\nlevel=ERROR forged\\u001b[31m"',
    '"\\ud800"',
    '"\\u0000"',
    "[]",
    "[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]",
    "{}",
    '{"a": {"a": {"a": {"a": 1}}}}',
    "[" + ",".join(["0"] * 10_001) + "]",
)
"""JSON texts that a field does not expect."""

_MARK = "__here__"


def random_bytes(random: Random, count: int) -> bytes:
    """Return bytes that mean nothing."""
    return random.randbytes(count)


def mutate_json(random: Random, payload: bytes) -> bytes:
    """Return a message with one of its values, its form or its bytes changed."""
    match random.choice(["value", "value", "value", "missing", "unknown", "deep", "bytes", "short", "empty"]):
        case "value":
            message = json.loads(payload)
            holder, key = random.choice(_places(message))
            holder[key] = _MARK
            return json.dumps(message).replace(f'"{_MARK}"', random.choice(EXTREMES)).encode()
        case "missing":
            message = json.loads(payload)
            del message[random.choice(sorted(message))]
            return json.dumps(message).encode()
        case "unknown":
            return json.dumps({**json.loads(payload), "isAdmin": True}).encode()
        case "deep":
            return b'{"a":' * 50_000 + b"1" + b"}" * 50_000
        case "bytes":
            changed = bytearray(payload)
            for _ in range(random.randint(1, 5)):
                changed[random.randrange(len(changed))] = random.randrange(256)
            return bytes(changed)
        case "short":
            return payload[: random.randrange(1, len(payload))]
        case _:
            return b"{}"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in a message: what holds it, and its name or number there."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in entries for place in ((value, key), *_places(entry))]
