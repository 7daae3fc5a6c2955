"""broker/start, the broker's container from its first moment: what it survives, and that it ends when told."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from fedmq.site import Site
from tests.broker.emptying import emptying_mosquitto
from tests.requirements import require
from tests.security.conftest import RunningBroker, running_broker

pytestmark = pytest.mark.mosquitto

WAIT_SECONDS = 20.0


def test_damaged_saved_file_is_set_aside(site: Site, tmp_path: Path) -> None:
    """Mosquitto refuses such a file for ever; a site would be without a broker until a person came."""
    saved = tmp_path / "data" / "broker.db"
    saved.parent.mkdir()
    saved.write_bytes(b"torn in the middle of a write" * 100)
    with running_broker(site, tmp_path) as broker:
        assert _comes(broker, " running\n")
        assert "trying without it" in broker.log
    assert (tmp_path / "data" / "broker.db.damaged").read_bytes().startswith(b"torn")


def test_a_file_that_is_not_to_blame_stays(site: Site, tmp_path: Path) -> None:
    (site.folder / "broker" / "server.crt").write_text("no certificate")
    saved = tmp_path / "data" / "broker.db"
    saved.parent.mkdir()
    saved.write_bytes(b"what it holds is all there is")
    with running_broker(site, tmp_path) as broker:
        assert broker.process.wait(WAIT_SECONDS) != 0
        assert "`fedmq init HOST --renew-server`" in broker.log
    assert saved.read_bytes() == b"what it holds is all there is"


def test_what_a_broker_that_cannot_start_emptied_comes_back(site: Site, tmp_path: Path) -> None:
    """As Mosquitto 2.1 does: a wrong certificate must not cost the retained rounds."""
    (site.folder / "broker" / "server.crt").write_text("no certificate")
    saved = tmp_path / "data" / "broker.db"
    saved.parent.mkdir()
    saved.write_bytes(b"what it holds is all there is")
    with running_broker(site, tmp_path, program=emptying_mosquitto(tmp_path / "bin", saved)) as broker:
        assert broker.process.wait(WAIT_SECONDS) != 0
        assert "emptied" in broker.log
    assert [path.name for path in saved.parent.iterdir()] == ["broker.db"]
    assert saved.read_bytes() == b"what it holds is all there is"


def test_saved_file_that_does_not_fit_into_memory_is_set_aside(site: Site, tmp_path: Path) -> None:
    """Filled by an attacker; Mosquitto then ends with 255 at each start, and the script fell over two names of one file."""
    saved = tmp_path / "data" / "broker.db"
    saved.parent.mkdir()
    saved.write_bytes(b"more than there is memory for")
    program = tmp_path / "bin" / "mosquitto"
    program.parent.mkdir()
    real = require("mosquitto")
    program.write_text(f"#!/bin/sh\nif [ -e {saved} ]; then echo 'Error: Out of memory.' >&2; exit 255; fi\nexec {real} \"$@\"\n")
    program.chmod(0o755)
    with running_broker(site, tmp_path, program=program) as broker:
        assert _comes(broker, " running\n"), broker.log
        assert "trying without it" in broker.log
    assert saved.with_name("broker.db.damaged").read_bytes() == b"more than there is memory for"


def test_told_to_end_at_once_it_ends(site: Site, tmp_path: Path) -> None:
    with running_broker(site, tmp_path) as broker:
        assert _comes(broker, "mosquitto version")
        broker.process.send_signal(signal.SIGTERM)
        broker.process.wait(WAIT_SECONDS)
        # Told before it listens to signals, it ends by this one.
        assert "terminating" in broker.log or broker.process.returncode == 128 + signal.SIGTERM


def _comes(broker: RunningBroker, text: str) -> bool:
    give_up_at = time.monotonic() + WAIT_SECONDS
    while text not in broker.log:
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.05)
    return True
