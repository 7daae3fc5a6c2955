"""How tensors travel: one file a codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from federation.errors import SettingsError
from federation.learning.codecs.codec import Codec
from federation.learning.codecs.encoding import decode_sets, encode_sets, flatten, unflatten, wire_signature
from federation.learning.codecs.float16 import Float16
from federation.learning.codecs.float32 import Float32
from federation.learning.codecs.int8 import Int8
from federation.learning.codecs.topk import TopK

__all__ = ["CODECS", "Codec", "build_codec", "decode_sets", "encode_sets", "flatten", "unflatten", "wire_signature"]

CODECS: Mapping[str, type[Codec]] = {"float16": Float16, "float32": Float32, "int8": Int8, "topk": TopK}
"""Every codec by the name a run file calls it."""


def build_codec(name: str, settings: Mapping[str, Any]) -> Codec:
    """Return a codec with its settings.

    Raises:
        SettingsError: there is no such codec, or a setting is not one of its own or out of bounds.
    """
    kind = CODECS.get(name)
    if kind is None:
        raise SettingsError(f"codec.name: there is no codec {name!r}; there are {', '.join(sorted(CODECS))}")
    try:
        checked = kind.Settings.model_validate({"name": name, **settings})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        detail = f"{name} has no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        raise SettingsError(f"codec.{place}: {detail}") from None
    return kind(checked)
