"""An ejabberd as an MQTT 5 broker of our own: on a free loopback port, everybody let in, gone when we are.

Debian's package `ejabberd` holds a second, independent MQTT 5 broker (`mod_mqtt`): written in Erlang, retained messages in a
database on disk, no `$SYS` topics, and retained messages of different topics in an order of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from fedmq.private_broker import free_port

START_SECONDS = 60.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05

CONFIGURATION = """\
hosts: [localhost]
loglevel: info
listen:
  - {{port: {port}, ip: "127.0.0.1", module: mod_mqtt, backlog: 1000, tls: false}}
auth_method: [anonymous]
anonymous_protocol: login_anon
allow_multiple_connections: true
modules:
  mod_mqtt:
    access_publish: {{"#": [{{allow: all}}]}}
    access_subscribe: {{"#": [{{allow: all}}]}}
    max_queue: 100000
    max_topic_depth: 16
    session_expiry: 3600 s
"""
"""Any password is right: what is tested is the protocol, not ejabberd's accounts. Topics of FedMQ are up to ten levels deep."""


class EjabberdBroker:
    """Runs one ejabberd; a context manager that stops it, and only it, at the end. Used like `fedmq.private_broker.PrivateBroker`.

    Args:
        folder: where its configuration, log and retained messages live.
        program: `ejabberdctl`.
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path, *, program: Path) -> None:
        self.folder = folder.resolve()
        self.port = free_port()
        self._own_port = free_port()
        self.passwords: Mapping[str, str] = defaultdict(lambda: "any")
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def process_id(self) -> int | None:
        """The running broker's process, or None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it and return once it listens; what it had retained is there again."""
        if self.process_id is not None:
            return
        for name in ("configuration", "spool", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "configuration" / "ejabberd.yml").write_text(CONFIGURATION.format(port=self.port), encoding="utf-8")
        (self.folder / "configuration" / "inetrc").touch()
        # A port for Erlang's own talk: otherwise it leaves a daemon behind that tells others' ports.
        (self.folder / "configuration" / "ejabberdctl.cfg").write_text(
            f"ERL_DIST_PORT={self._own_port}\nINET_DIST_INTERFACE=127.0.0.1\n", encoding="ascii"
        )
        user = group = None
        extra_groups: list[str] | None = None
        if os.geteuid() == 0:
            # Started by root, Debian's ejabberdctl goes on as this user in a session that could not be ended from here.
            user = group = "ejabberd"
            extra_groups = []
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, "ejabberd", "ejabberd")
            _let_through(self.folder)
        command: list[str | Path] = [
            self._program,
            *("--config-dir", self.folder / "configuration"),
            *("--config", self.folder / "configuration" / "ejabberd.yml"),
            *("--ctl-config", self.folder / "configuration" / "ejabberdctl.cfg"),
            *("--spool", self.folder / "spool"),
            *("--logs", self.folder / "log"),
            *("--node", f"fedmq{self.port}@localhost"),
            "foreground",
        ]
        with (self.folder / "out.log").open("ab") as log:
            # In a session of its own: `ejabberdctl` is a shell around the Erlang machine, and both must go.
            process = self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder)},
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=extra_groups,
            )
        give_up_at = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError), socket.create_connection((self.host, self.port), timeout=1.0):
                return
            if process.poll() is not None or time.monotonic() > give_up_at:
                self.kill()
                raise RuntimeError(f"ejabberd does not come up:\n{(self.folder / 'out.log').read_text(encoding='utf-8')[-2000:]}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start it again on the same port with what it retained."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        give_up_at = time.monotonic() + STOP_SECONDS
        # The shell ends at once, the machine that it started later: the session is gone when nobody is left in it.
        is_there = _signal_session(process, number)
        while is_there:
            process.poll()
            time.sleep(POLL_SECONDS)
            is_there = _signal_session(process, signal.SIGKILL if time.monotonic() > give_up_at else 0)
        process.wait()


def _let_through(folder: Path) -> None:
    """Let another user reach a folder under the test's own, which pytest closes to everybody else."""
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)


def _signal_session(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal (0: none) to all processes of a session; return whether there is any."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
