"""A Mosquitto of our own: on a free loopback port, with random passwords, gone when we are.

    with PrivateBroker(folder, nodes=["node-0", "node-1"]) as broker:
        connect(broker.host, broker.port, "node-0", broker.passwords["node-0"])

The demo and the tests use it. A server's broker is configured by the same files of `broker/`.
"""

from __future__ import annotations

import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from federation.errors import SettingsError, TransportError
from fedmq.broker_files import write_private_broker
from fedmq.mosquitto import ensure_mosquitto

AGGREGATOR = "aggregator"
OBSERVER = "observer"
"""The two users of `broker/acl` that are no nodes."""

PORT_ATTEMPTS = 10
"""Between finding a port free and Mosquitto's taking it another process may; ten times in a row it does not."""

START_SECONDS = 30.0
"""Mosquitto is up in about 10 ms; reading a gigabyte of retained rounds from a slow card takes longer."""

STOP_SECONDS = 30.0
"""A broker told to stop writes its retained rounds out first."""

SAVED_NAME = "broker.db"
"""Where it keeps retained messages (fedmq/broker_files.py)."""

KEPT_NAME = "broker.db.kept"
"""A second name of that file until the broker is up: Mosquitto 2.1 that can't start replaces what it had saved by an empty file."""

POLL_SECONDS = 0.01
PROBE_SECONDS = 2.0

_NODE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_CONNACK_ACCEPTED = bytes([0x20, 2, 0, 0])


class PrivateBroker:
    """Runs one Mosquitto process; a context manager that stops it, and only it, at the end.

    Args:
        folder: where its configuration, passwords, log and retained messages live; made if it is missing, and
            closed to other users. A folder used before brings its retained messages back, with new passwords.
        nodes: names that may log in as nodes.
        program: the broker program; by default it is found, or installed where that is allowed.

    Raises:
        SettingsError: a node's name fits no topic level, or is one of the two other users'.
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path, *, nodes: Iterable[str] = (), program: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.log_file = self.folder / "broker.log"
        self.passwords: Mapping[str, str] = MappingProxyType(
            {user: secrets.token_urlsafe(24) for user in (AGGREGATOR, OBSERVER, *map(_checked, nodes))}
        )
        self._program = program
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the broker."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the broker."""
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port; the same one across restarts."""
        if self._port is None:
            raise TransportError("the private broker was never started: call start() or enter it with `with`")
        return self._port

    @property
    def process_id(self) -> int | None:
        """The running broker's process, or None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the broker and return once it lets our users in.

        Raises:
            TransportError: there is no Mosquitto and none may be installed, or it does not come up; the text
                holds the line to type, or the end of its log.
        """
        if self.process_id is not None:
            return
        if self._program is None:
            self._program = ensure_mosquitto()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        keeps_port = self._port is not None
        for _ in range(PORT_ATTEMPTS):
            port = self._port or free_port()
            if self._try_start(self._program, port):
                self._port = port
                return
            if keeps_port:
                # Our clients know this port: wait for whoever holds it rather than move.
                time.sleep(START_SECONDS / PORT_ATTEMPTS / 10)
        raise TransportError(f"Mosquitto found no free port on {self.host} in {PORT_ATTEMPTS} attempts:\n{self._log_tail()}")

    def stop(self) -> None:
        """Let the broker write out what it holds, and end it. Does nothing if it is not running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the broker as a power cut would (SIGKILL): what it has not saved yet is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop and start it again on the same port with the same users and retained messages."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop it and delete its folder, retained messages included."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _try_start(self, program: Path, port: int) -> bool:
        """Start a process on `port`, without what it had saved if that is damaged; return False if another holds that port."""
        configuration = write_private_broker(self.folder, port=port, passwords=self.passwords)
        saved, kept = self.folder / SAVED_NAME, self.folder / KEPT_NAME
        kept.unlink(missing_ok=True)
        if saved.exists():
            kept.hardlink_to(saved)
        log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            # In a session of its own, so that Ctrl-C in the terminal reaches us first and we end it in order.
            self._process = subprocess.Popen(
                [program, "-c", configuration], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        try:
            self._wait_until_up(self._process, port)
        except BaseException as error:
            self.kill()
            logged = self.log_file.read_bytes()[log_start:]
            if kept.exists():
                kept.replace(saved)
                kept.unlink(missing_ok=True)  # two names of one file: replacing does nothing
            if isinstance(error, TransportError) and b"Address already in use" in logged:
                return False
            if isinstance(error, TransportError) and b"Couldn't open database" in logged and saved.exists():
                # Torn by a full disk or a power cut, it would keep the broker down for ever; an aggregator puts back what is lost.
                saved.replace(saved.with_suffix(".damaged"))
                return self._try_start(program, port)
            raise
        kept.unlink(missing_ok=True)
        return True

    def _wait_until_up(self, process: subprocess.Popen[bytes], port: int) -> None:
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            if process.poll() is not None:
                raise TransportError(f"Mosquitto ended at once with exit code {process.returncode}:\n{self._log_tail()}")
            with suppress(OSError):
                if _lets_in(self.host, port, OBSERVER, self.passwords[OBSERVER]):
                    return
            time.sleep(POLL_SECONDS)
        raise TransportError(f"Mosquitto did not come up within {START_SECONDS:.0f} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines() if self.log_file.exists() else []
        return "\n".join(lines[-10:]) or "(it logged nothing)"


def _checked(node: str) -> str:
    if not _NODE_NAME.fullmatch(node):
        raise SettingsError(f"node name {node!r}: use 1 to 63 of a-z, 0-9, '-' and '_', and begin with a letter or digit")
    if node in {AGGREGATOR, OBSERVER}:
        raise SettingsError(f"node name {node!r} is the broker's name for another user: choose another")
    return node


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((PrivateBroker.host, 0))
        return int(probe.getsockname()[1])


def _lets_in(host: str, port: int, user: str, password: str) -> bool:
    """Log in as a client would; another program on that port, or another's broker, does not let us in.

    One MQTT 3.1.1 CONNECT, section 3.1 of the standard: user name, password, clean session, no will.
    """
    fields = b"".join(len(field).to_bytes(2, "big") + field for field in (b"fedmq-probe", user.encode(), password.encode()))
    body = b"\x00\x04MQTT\x04\xc2\x00\x0a" + fields
    with socket.create_connection((host, port), timeout=PROBE_SECONDS) as connection:
        connection.sendall(bytes([0x10, len(body)]) + body)
        reply = connection.recv(len(_CONNACK_ACCEPTED))
        connection.sendall(b"\xe0\x00")  # DISCONNECT, section 3.14
    return reply == _CONNACK_ACCEPTED
