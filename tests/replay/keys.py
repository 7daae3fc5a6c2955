"""Signing keys as a site has them."""

from __future__ import annotations

from pathlib import Path

from federation.signing import Signer
from fedmq.certificates import create_signing_pair


def make_keys(folder: Path, *names: str) -> dict[str, Signer]:
    """Write a pair for each name; return the signers."""
    (folder / "trusted").mkdir(exist_ok=True)
    signers = {}
    for name in names:
        pair = create_signing_pair()
        (folder / f"{name}.key").write_bytes(pair.private)
        with (folder / "trusted" / f"{name}.pub").open("ab") as file:
            file.write(pair.public)
        signers[name] = Signer(folder / f"{name}.key")
    return signers
