"""Ed25519 signatures of what is kept for ever: each node's update manifests, the aggregator's results.

Whoever runs the broker can change what it retains, digests included. What a signature covers it can't change
unseen: a manifest names its chunks' digests, a result the plan's, the updates' and the result before it.
The signature is a field of the message; signed is its payload with that field empty, after a line that says
what kind of message it is. The same message gives the same signature (RFC 8032).
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from federation.errors import RejectReason, RemoteProtocolError, SettingsError
from federation.messages import RoundResult, UpdateManifest, parse

AGGREGATOR = "aggregator"
"""Under this name the aggregator's public key is filed; no node may have it."""

MAX_KEY_FILE_BYTES = 64 << 10
_PEM_BEGIN = b"-----BEGIN PUBLIC KEY-----"

Signed = TypeVar("Signed", UpdateManifest, RoundResult)


class Signer:
    """Signs with one private key.

    Args:
        path: a PEM file as `fedmq init` and `fedmq node add` make it.

    Raises:
        SettingsError: it can't be read, or holds no Ed25519 key.
    """

    def __init__(self, path: Path) -> None:
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"FEDMQ_SIGNING_KEY: {path} can't be used: {error}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"FEDMQ_SIGNING_KEY: {path} holds no Ed25519 key; `fedmq init` and `fedmq node add` make them")
        self._key = key

    def sign(self, message: Signed) -> Signed:
        """Return the message with its signature, as its receiver will read it."""
        whole = parse(type(message), message.to_payload())
        return whole.model_copy(update={"signature": self._key.sign(_signed_bytes(whole)).hex()})


class TrustedKeys:
    """The public keys of a site, `NAME.pub` each; a file may hold several, of which any will do.

    Args:
        folder: read anew at each check, so that a node enrolled meanwhile is known.

    Raises:
        SettingsError: it is no folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SettingsError(f"FEDMQ_TRUSTED_KEYS: {folder} is not a folder; `fedmq init` makes it")
        self._folder = folder

    def check(self, message: UpdateManifest | RoundResult) -> None:
        """Raise unless the message, as it was parsed, is signed by whom it names.

        Raises:
            RemoteProtocolError: `bad_signature`: none, not this message's, or of somebody whose key is not here.
        """
        name = message.node if isinstance(message, UpdateManifest) else AGGREGATOR
        if not message.signature:
            raise RemoteProtocolError(f"{name} did not sign it", reason=RejectReason.BAD_SIGNATURE)
        signature, signed = bytes.fromhex(message.signature), _signed_bytes(message)
        for key in self._keys_of(name):
            try:
                key.verify(signature, signed)
            except InvalidSignature:
                continue
            return
        raise RemoteProtocolError(f"the signature is not {name}'s, by the keys in {name}.pub", reason=RejectReason.BAD_SIGNATURE)

    def _keys_of(self, name: str) -> list[Ed25519PublicKey]:
        try:
            content = (self._folder / f"{name}.pub").read_bytes()[:MAX_KEY_FILE_BYTES]
        except OSError:
            raise RemoteProtocolError(f"there is no {name}.pub among the trusted keys", reason=RejectReason.BAD_SIGNATURE) from None
        keys = []
        for part in content.split(_PEM_BEGIN)[1:]:
            try:
                key = load_pem_public_key(_PEM_BEGIN + part)
            except ValueError:
                continue
            if isinstance(key, Ed25519PublicKey):
                keys.append(key)
        return keys


def _signed_bytes(message: UpdateManifest | RoundResult) -> bytes:
    kind = "update manifest" if isinstance(message, UpdateManifest) else "round result"
    unsigned = message.model_copy(update={"signature": ""})
    # Only what the payload holds: a field that a later version knows was not signed.
    return f"fedmq v2 {kind}\n".encode() + unsigned.model_dump_json(exclude_unset=True).encode()
