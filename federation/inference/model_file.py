"""Model files on disk: read with a clear error, replaced whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from federation.codec import sync
from federation.errors import ModelFileError

MAX_MODEL_BYTES = 2 << 30
"""An ONNX file without external data can't be larger (protobuf's limit)."""


def read_model(path: Path) -> bytes:
    """Return a model file's bytes.

    Raises:
        ModelFileError: it can't be read, or is too large to be one.
    """
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ModelFileError(f"{path}: larger than 2 GiB: no ONNX file of ours")
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(
            f"{path}: no such model; a node writes models/current.onnx after each round, and `fedmq export` one from a run's folder"
        ) from None
    except OSError as error:
        raise ModelFileError(f"{path}: can't be read: {error.strerror or error}") from None


def replace_file(path: Path, payload: bytes) -> None:
    """Write a file so that readers see the old one or the new one whole, also after a power cut.

    Raises:
        OSError: the folder can't be written, or the disk is full; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
