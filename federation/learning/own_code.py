"""Methods and codecs of one's own: named `package.module:Name`, installed where they run, told apart by their source.

Code never crosses the broker. A plan names the object and the SHA-256 of its module's source; a node imports it only where its
owner has named it (`FEDMQ_EXTENSIONS`), and takes part only where its own source is the same.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from federation.errors import SettingsError

DIGEST_CHARACTERS = 12
"""Of a source's digest in a capability: enough that no two versions are taken for each other."""


def is_own(name: str) -> bool:
    """Return whether a name is of an object outside FedMQ."""
    return ":" in name


def load_own(name: str, kind: type) -> Any:
    """Import a class.

    Args:
        name: `package.module:Name`.
        kind: what it must be a subclass of.

    Raises:
        SettingsError: there is no such module or class here, importing it failed, or it is something else.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise SettingsError(f"{name}: {error}: install it here, or add its folder to PYTHONPATH") from None
    except Exception as error:  # noqa: BLE001 - whatever a module of others raises as it is imported
        raise SettingsError(f"{name} can't be used: {type(error).__name__}: {error}") from None
    if not isinstance(found, type) or not issubclass(found, kind):
        raise SettingsError(f"{name} is no {kind.__name__}: let it derive from fedmq.extend.{kind.__name__}")
    return found


@cache
def source_digest(name: str) -> str:
    """Return the SHA-256 of the source file of an object's module, as it was when it was first asked for.

    Raises:
        SettingsError: there is no such module here, or it is no file.
    """
    module_name = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise SettingsError(f"{name}: there is no module {module_name!r} here: install it, or add its folder to PYTHONPATH")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def capability_of(name: str, digest: str | None = None) -> str:
    """Return by what a node says that it knows a method or codec: its name, and of one's own the beginning of its source's digest."""
    return f"{name}@{(digest or source_digest(name))[:DIGEST_CHARACTERS]}" if is_own(name) else name
