"""A site's broker as `broker/start` runs it: mutual TLS for the fleet, passwords inside, the real access list and limits."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from fedmq.enrolment import add_node
from fedmq.private_broker import PrivateBroker, _lets_in, free_port
from fedmq.site import create_site
from tests.security.mqtt_client import unpack

REPOSITORY = Path(__file__).resolve().parents[2]

START_SECONDS = 30.0
STOP_SECONDS = 30.0
SECRETS = ("aggregator", "observer", "guard")
"""Users with a password, where the site makes one for them."""


class SiteBroker(PrivateBroker):
    """The broker of a site of its own, its listeners moved to free loopback ports.

    Args:
        folder: site, bundles, configuration and data.
        nodes: who is enrolled.
        program: Mosquitto.
    """

    def __init__(self, folder: Path, *, nodes: Iterable[str], program: Path) -> None:
        super().__init__(folder, program=program)
        folder.mkdir(parents=True)
        now = datetime.now(UTC)
        owner = (os.getuid(), os.getgid())
        self.site = create_site(folder / "site", folder / ".env", name="hospital", hosts=["server.test"], now=now, user=owner)
        self.bundles = {node: unpack(add_node(self.site, node, now=now), folder / "bundles") for node in nodes}
        secrets = {user: self.site.folder / "secrets" / f"{user}_password" for user in SECRETS}
        self.passwords: Mapping[str, str] = {
            user: file.read_text(encoding="utf-8").strip() for user, file in secrets.items() if file.exists()
        }
        self.fleet_port = 0

    @property
    def trusted_keys(self) -> Path:
        """The site's public keys."""
        return self.site.folder / "trusted_keys"

    def start(self) -> None:
        """Start `broker/start` and return once it lets the observer in."""
        if self.process_id is not None:
            return
        if self._port is None:
            self._port, self.fleet_port = free_port(), free_port()
            self._configure({1883: self._port, 8883: self.fleet_port, 8884: free_port()})
        environment = os.environ | {
            "BROKER_CONFIG": str(self.folder / "config"),
            "BROKER_SITE": str(self.site.folder / "broker"),
            "BROKER_RUN": str(self.folder / "run"),
            "BROKER_SAVED": str(self.folder / "data" / "broker.db"),
            "PATH": f"{self._program_folder}:{os.environ['PATH']}",
        }
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [self.folder / "config" / "start"], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        give_up_at = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up_at:
            assert self._process.poll() is None, self.tail()
            try:
                if _lets_in(self.host, self._port, "observer", self.passwords["observer"]):
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(self.tail())

    def stop(self) -> None:
        """End it as `docker stop` does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End script and broker as a power cut would."""
        self._end(signal.SIGKILL)

    def tail(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])

    @property
    def _program_folder(self) -> Path:
        assert self._program is not None
        return self._program.parent

    def _configure(self, ports: Mapping[int, int]) -> None:
        config = self.folder / "config"
        shutil.copytree(REPOSITORY / "broker", config)
        for name in ("data", "run"):
            (self.folder / name).mkdir()
        text = (config / "server.conf").read_text(encoding="utf-8")
        for port, free in ports.items():
            text = re.sub(rf"^listener {port}( .*)?$", f"listener {free} 127.0.0.1", text, flags=re.MULTILINE)
        for inside, outside in (("site", self.site.folder / "broker"), ("config", config), ("data", self.folder / "data")):
            text = text.replace(f"/mosquitto/{inside}", str(outside))
        if os.geteuid() == 0:
            text = "user root\n" + text  # it would become the user `mosquitto`, who may not read this folder
        (config / "server.conf").write_text(text, encoding="utf-8")

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        if number is signal.SIGKILL:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
