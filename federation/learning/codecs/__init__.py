"""How tensors travel: one file a codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from federation.errors import SettingsError
from federation.learning.codecs.codec import Codec
from federation.learning.codecs.encoding import decode_sets, encode_sets, flatten, unflatten, wire_signature
from federation.learning.codecs.float16 import Float16
from federation.learning.codecs.float32 import Float32
from federation.learning.codecs.int8 import Int8
from federation.learning.codecs.topk import TopK
from federation.learning.named_kinds import check_named, kind_of

__all__ = [
    "CODECS",
    "CODEC_SETTINGS",
    "Codec",
    "build_codec",
    "check_codec",
    "codec_class",
    "decode_sets",
    "encode_sets",
    "flatten",
    "unflatten",
    "wire_signature",
]

CODECS: Mapping[str, type[Codec]] = {"float16": Float16, "float32": Float32, "int8": Int8, "topk": TopK}
"""Every codec by the name a run file calls it."""

CODEC_SETTINGS: Mapping[str, type[Codec.Settings]] = {name: kind.Settings for name, kind in CODECS.items()}


def codec_class(name: str) -> type[Codec]:
    """Return the codec of a name.

    Raises:
        SettingsError: there is none.
    """
    return kind_of(name, CODECS, Codec, word="codec")


def check_codec(values: object) -> Codec.Settings:
    """Return a codec's settings, checked by the codec itself: what a run file's `[codec]` may say.

    Raises:
        ValueError: there is no such codec, or a setting is not one of its own or out of bounds.
    """
    return check_named(values, Codec.Settings, default="float32", settings_of=lambda name: codec_class(name).Settings)


def build_codec(name: str, settings: Mapping[str, Any]) -> Codec:
    """Return a codec with its settings.

    Raises:
        SettingsError: there is no such codec, or a setting is not one of its own or out of bounds.
    """
    try:
        checked = check_codec({**settings, "name": name})
    except ValueError as error:
        raise SettingsError(f"codec.{error}") from None
    return codec_class(name)(checked)
