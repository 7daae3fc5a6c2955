"""The private broker: up on a port of its own, closed to others, and gone without a trace of a process."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from federation.errors import SettingsError, TransportError
from fedmq import private_broker
from fedmq.broker_files import password_line
from fedmq.private_broker import PrivateBroker
from tests.broker.client import connected
from tests.broker.emptying import emptying_mosquitto
from tests.requirements import require


def test_listens_on_loopback_alone(mosquitto: PrivateBroker) -> None:
    assert mosquitto.host == "127.0.0.1"
    assert f"listener {mosquitto.port} 127.0.0.1" in (mosquitto.folder / "mosquitto.conf").read_text().splitlines()


def test_its_folder_is_closed_to_other_users_and_holds_no_password(mosquitto: PrivateBroker) -> None:
    assert stat.S_IMODE(mosquitto.folder.stat().st_mode) == 0o700
    for name in ("mosquitto.conf", "acl", "passwords"):
        assert stat.S_IMODE((mosquitto.folder / name).stat().st_mode) == 0o600
        text = (mosquitto.folder / name).read_text()
        assert not [user for user, password in mosquitto.passwords.items() if password in text]


def test_passwords_are_random_per_user_and_per_broker(tmp_path: Path) -> None:
    brokers = [PrivateBroker(tmp_path / name, nodes=["node-0"]) for name in ("a", "b")]
    assert [set(broker.passwords) for broker in brokers] == [{"aggregator", "observer", "node-0"}] * 2
    assert len({password for broker in brokers for password in broker.passwords.values()}) == 6


def test_two_brokers_run_side_by_side_and_one_stops_alone(mosquitto: PrivateBroker, own_mosquitto: PrivateBroker) -> None:
    process_id = own_mosquitto.process_id
    assert process_id is not None
    assert own_mosquitto.port != mosquitto.port
    own_mosquitto.stop()
    assert own_mosquitto.process_id is None
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    with connected(mosquitto, "observer"):
        pass


def test_restart_keeps_port_users_and_retained_messages(own_mosquitto: PrivateBroker, run_name: str) -> None:
    topic, port, process_id = f"fedmq/v2/{run_name}/state", own_mosquitto.port, own_mosquitto.process_id
    with connected(own_mosquitto, "aggregator") as aggregator:
        assert aggregator.publish(topic, b"round 7")
    own_mosquitto.restart()
    assert own_mosquitto.port == port
    assert own_mosquitto.process_id != process_id
    with connected(own_mosquitto, "observer") as observer:
        observer.subscribe(topic)
        assert observer.receive_until(topic) == {topic: b"round 7"}


def test_stops_when_the_block_ends_in_an_error(tmp_path: Path) -> None:
    broker = PrivateBroker(tmp_path, program=require("mosquitto"))
    process_ids: list[int | None] = []

    def fail_inside() -> None:
        with broker:
            process_ids.append(broker.process_id)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert process_ids[0] is not None
    assert broker.process_id is None


def test_takes_another_port_when_one_is_snatched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program answers on the port found free: it must be neither mistaken for the broker nor fatal."""
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        taken = squatter.getsockname()[1]
        find = private_broker.free_port
        ports = iter([taken, taken])
        monkeypatch.setattr(private_broker, "free_port", lambda: next(ports, None) or find())
        monkeypatch.setattr(private_broker, "PROBE_SECONDS", 0.1)
        with PrivateBroker(tmp_path, program=require("mosquitto")) as broker:
            assert broker.port != taken
            with connected(broker, "observer"):
                pass


def test_a_start_that_fails_costs_no_retained_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_name: str) -> None:
    """Mosquitto 2.1 empties its saved file when the port is taken."""
    topic, folder = f"fedmq/v2/{run_name}/state", tmp_path / "broker"
    broker = PrivateBroker(folder, nodes=["node-0"], program=emptying_mosquitto(tmp_path / "bin", folder / private_broker.SAVED_NAME))
    with broker, connected(broker, "aggregator") as aggregator:
        assert aggregator.publish(topic, b"round 7")
        broker.stop()
        monkeypatch.setattr(private_broker, "PORT_ATTEMPTS", 2)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((broker.host, broker.port))
            other.listen()
            with pytest.raises(TransportError, match="found no free port"):
                broker.start()
        assert "emptied" in broker.log_file.read_text()
        broker.start()
        with connected(broker, "observer") as observer:
            observer.subscribe(topic)
            assert observer.receive_until(topic) == {topic: b"round 7"}
    assert not (folder / private_broker.KEPT_NAME).exists()


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'Error: the disk is on fire' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(TransportError, match="exit code 3:\nError: the disk is on fire"):
        PrivateBroker(tmp_path / "broker", program=program).start()


def test_port_before_start_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="never started"):
        _ = PrivateBroker(tmp_path).port


@pytest.mark.parametrize("name", ["", "Node", "a/b", "+", "#", "../x", "a b", "a:b", "-a", "x" * 64, "aggregator", "observer"])
def test_refuses_names_that_could_not_be_confined(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="node name"):
        PrivateBroker(tmp_path, nodes=[name])


def test_password_lines_are_salted_and_of_mosquittos_shape() -> None:
    first, second = (password_line("node-0", "secret") for _ in range(2))
    assert first != second
    user, kind, iterations, salt, digest = first.strip().replace(":", "$", 1).replace("$$", "$").split("$")
    assert (user, kind, int(iterations), len(salt), len(digest)) == ("node-0", "7", 101, 16, 88)
