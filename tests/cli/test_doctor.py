"""What `fedmq doctor` says of a machine that a run would fail on."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from fedmq import doctor
from tests.cli.command import fedmq


def finding(check: str) -> dict[str, str]:
    """Return one finding of a doctor who leaves the broker out; the examination has failed."""
    outcome = fedmq("doctor", "--no-broker", "--json")
    assert outcome.status == 1
    (found,) = [entry for entry in outcome.json if entry["check"] == check]
    assert isinstance(found, dict)
    return found


def test_full_disk_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10 << 20))
    found = finding("disk")
    assert found["verdict"] == "failed"
    assert "free at least 1 GiB" in found["advice"]


def test_clock_that_was_never_set_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class UnsetClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime(1970, 1, 1, 0, 5, tzinfo=tz or UTC)

    monkeypatch.setattr(doctor, "datetime", UnsetClock)
    found = finding("clock")
    assert (found["verdict"], found["found"][:4]) == ("failed", "1970")
    assert "set the clock" in found["advice"]
