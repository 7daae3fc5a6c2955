"""Signatures: made by one key, checked with that key, over every field."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.errors import RejectReason, RemoteProtocolError, SettingsError
from federation.messages import RoundResult, UpdateManifest
from federation.signing import Signer, TrustedKeys
from tests.replay.keys import make_keys

D = "ab" * 32
MANIFEST = UpdateManifest.model_validate(
    {
        "run": "r",
        "round_number": 1,
        "total_bytes": 1024,
        "chunk_bytes": 1024,
        "sha256": D,
        "chunk_sha256": [D],
        "node": "n0",
        "base_digest": D,
        "num_examples": 10,
        "metrics": {"loss": 0.5, "download_seconds": 0.1, "train_seconds": 1.0, "samples_per_second": 10.0},
    }
)
RESULT = RoundResult.model_validate(
    {
        "run": "r",
        "round_number": 1,
        "epoch": 1,
        "previous_result_digest": None,
        "method": "fedavg",
        "aggregated": True,
        "global_digest": D,
        "next_global_digest": D,
        "outcomes": [],
        "evaluation": None,
        "accepted": 0,
        "rejected": 0,
        "discarded": 0,
        "stragglers": 0,
        "seconds": 1.0,
        "phase_seconds": {},
        "bytes_up": 0,
        "bytes_down": 0,
    }
)


def test_signed_message_is_trusted_and_the_same_message_signs_the_same(tmp_path: Path) -> None:
    signers = make_keys(tmp_path, "n0", "aggregator")
    trusted = TrustedKeys(tmp_path / "trusted")
    trusted.check(signers["n0"].sign(MANIFEST))
    trusted.check(signers["aggregator"].sign(RESULT))
    assert signers["n0"].sign(MANIFEST) == signers["n0"].sign(signers["n0"].sign(MANIFEST))


@pytest.mark.parametrize("change", [{"num_examples": 11}, {"node": "n1"}, {"round_number": 2}, {"sha256": "cd" * 32}, {"run": "s"}])
def test_changed_field_breaks_the_signature(tmp_path: Path, change: dict[str, object]) -> None:
    signers = make_keys(tmp_path, "n0", "n1")
    changed = signers["n0"].sign(MANIFEST).model_copy(update=change)
    with pytest.raises(RemoteProtocolError) as caught:
        TrustedKeys(tmp_path / "trusted").check(changed)
    assert caught.value.reason == RejectReason.BAD_SIGNATURE


def test_unsigned_foreign_and_unknown_are_told_apart(tmp_path: Path) -> None:
    signers = make_keys(tmp_path, "n0", "n1")
    trusted = TrustedKeys(tmp_path / "trusted")
    with pytest.raises(RemoteProtocolError, match="n0 did not sign it"):
        trusted.check(MANIFEST)
    with pytest.raises(RemoteProtocolError, match="not n0's"):
        trusted.check(signers["n1"].sign(MANIFEST))
    (tmp_path / "trusted" / "n0.pub").unlink()
    with pytest.raises(RemoteProtocolError, match=r"no n0\.pub"):
        trusted.check(signers["n0"].sign(MANIFEST))


def test_former_key_in_the_same_file_still_counts(tmp_path: Path) -> None:
    former = make_keys(tmp_path, "n0")["n0"].sign(MANIFEST)
    renewed = make_keys(tmp_path, "n0")["n0"].sign(MANIFEST)
    assert former != renewed
    for message in (former, renewed):
        TrustedKeys(tmp_path / "trusted").check(message)


def test_key_file_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    with pytest.raises(SettingsError, match="FEDMQ_SIGNING_KEY"):
        Signer(tmp_path / "key")
    with pytest.raises(SettingsError, match="fedmq init"):
        TrustedKeys(tmp_path / "nowhere")
