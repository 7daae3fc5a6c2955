"""`fedmq replay` and `fedmq rounds` against a real broker, as the observer."""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from federation.broker_address import BrokerAddress
from federation.mqtt import MqttTransport
from federation.transport import TransportEvent
from fedmq.cli import app
from fedmq.private_broker import PrivateBroker
from tests.replay.recorded_run import RUN, RecordedRun

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return RecordedRun(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def out_dir(recorded: RecordedRun) -> Path:
    return recorded.archive.folder.parent


@pytest.fixture
def invoke(recorded: RecordedRun, own_mosquitto: PrivateBroker, tmp_path: Path, out_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command against a broker that holds the recorded run, but for round 2, which it has cleared."""
    publish(own_mosquitto, {topic: payload for topic, payload in recorded.retained.items() if "/rounds/2/" not in topic})
    password = tmp_path / "password"
    password.write_text(own_mosquitto.passwords["observer"])
    environment = {
        "FEDMQ_BROKER_HOST": own_mosquitto.host,
        "FEDMQ_BROKER_PORT": str(own_mosquitto.port),
        "FEDMQ_BROKER_USERNAME": "observer",
        "FEDMQ_BROKER_PASSWORD_FILE": str(password),
        "FEDMQ_TRUSTED_KEYS": str(recorded.folder / "trusted"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [command, RUN, "--out", str(out_dir), *arguments])
        return result.exit_code, result.stdout, result.stderr

    return run


def publish(broker: PrivateBroker, payloads: dict[str, bytes]) -> None:
    """Put retained payloads on a broker, with the aggregator's identity."""
    inbox: queue.Queue[TransportEvent] = queue.Queue()
    address = BrokerAddress(host=broker.host, port=broker.port, username="aggregator", password=broker.passwords["aggregator"])
    transport = MqttTransport(address, client_id="publisher", on_event=inbox.put)
    transport.start()
    for topic, payload in payloads.items():
        transport.publish(topic, payload, retain=True)
    transport.stop(20.0)
    assert transport.num_pending == 0


def test_replay_takes_each_round_from_where_it_is(invoke: Invoke) -> None:
    status, out, _ = invoke("replay", "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["agrees"]
    assert answer["signatures"] == "checked"
    assert [entry["round_number"] for entry in answer["rounds"]] == [1, 2, 3, 4, 5]


def test_replay_from_the_broker_alone_names_the_round_that_is_gone(invoke: Invoke) -> None:
    status, out, err = invoke("replay", "--from", "broker", "--json")
    assert status == 1
    assert json.loads(out)["fault"] == "round 2: result: the broker does not hold it"
    assert "does not agree: round 2" in err
    assert invoke("replay", "--from", "broker", "--round", "3-5")[0] == 0


def test_replay_names_the_chunk_that_was_changed_on_the_broker(invoke: Invoke, recorded: RecordedRun, own_mosquitto: PrivateBroker) -> None:
    topic = f"fedmq/v2/{RUN}/rounds/4/updates/n1/chunks/2"
    payload = bytearray(recorded.retained[topic])
    payload[-1] ^= 1
    publish(own_mosquitto, {topic: bytes(payload)})
    status, _, err = invoke("replay")
    assert status == 1
    assert "round 4: updates/n1/chunks/2" in err


def test_rounds_lists_what_is_where(invoke: Invoke, recorded: RecordedRun) -> None:
    status, out, _ = invoke("rounds", "--json")
    entries: list[dict[str, Any]] = json.loads(out)["rounds"]
    assert status == 0
    assert [entry["round_number"] for entry in entries[:5]] == [1, 2, 3, 4, 5]
    assert entries[1]["broker_bytes"] is None
    for entry in entries[:5]:
        assert entry["archive_bytes"] == recorded.archive.bundle_file(entry["round_number"]).stat().st_size
    held = sum(len(payload) for topic, payload in recorded.retained.items() if "/rounds/3/" in topic)
    assert entries[2]["broker_bytes"] == held
    # The model that the last round ended with.
    assert (entries[5]["round_number"], entries[5]["archive_bytes"]) == (6, None)


def test_without_broker_the_archive_is_read(invoke: Invoke, own_mosquitto: PrivateBroker) -> None:
    own_mosquitto.stop()
    assert invoke("replay")[0] == 0
    status, _, err = invoke("replay", "--from", "broker")
    assert status == 1
    assert "broker can't be reached" in err


def test_folder_of_a_run_stands_for_its_name_and_is_read_without_a_broker(recorded: RecordedRun, out_dir: Path, tmp_path: Path) -> None:
    """As README has it: `fedmq replay out/five-nodes`."""
    folder = copy_of(out_dir, tmp_path / "copy", recorded)
    for command in ("replay", "rounds"):
        result = CliRunner().invoke(app, [command, str(folder), "--json"])
        assert result.exit_code == 0, result.stderr
        answer = json.loads(result.stdout)
        assert (answer["run"], [entry["round_number"] for entry in answer["rounds"]]) == (RUN, [1, 2, 3, 4, 5])
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "holds no run" in result.stderr


def test_first_round_dropped_from_the_archive_is_named(recorded: RecordedRun, out_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(out_dir, tmp_path / "copy", recorded)
    for file in (folder / "rounds").glob("000001.*"):
        file.unlink()
    result = CliRunner().invoke(app, ["replay", str(folder)])
    assert result.exit_code == 1
    assert "round 1: 000001.tar.zst" in result.stderr
    assert CliRunner().invoke(app, ["replay", str(folder), "--round", "2-5"]).exit_code == 0


def test_newest_round_dropped_from_broker_and_archive_is_missed(
    invoke: Invoke, recorded: RecordedRun, own_mosquitto: PrivateBroker, tmp_path: Path
) -> None:
    """The run's state names the newest result."""
    publish(own_mosquitto, {topic: b"" for topic in recorded.retained if "/rounds/5/" in topic})
    folder = copy_of(recorded.archive.folder.parent, tmp_path / "copy", recorded)
    for file in (folder / "rounds").glob("000005.*"):
        file.unlink()
    status, _, err = invoke("replay", "--out", str(folder))
    assert status == 1
    assert "the run's state names another newest result" in err


def copy_of(out_dir: Path, folder: Path, recorded: RecordedRun) -> Path:
    """Copy a run's folder, with its settings as `fedmq run` leaves them there."""
    shutil.copytree(out_dir, folder)
    described = {"settings": recorded.pair.settings.model_dump(mode="json")}
    (folder / "settings.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--round", "x"], "neither a number"),
        (["--round", "5-3"], "no range"),
        (["--round", "9"], "round 9"),
        (["--from", "memory"], "none of broker, archive, auto"),
        (["--method", "fedsum"], "there is no method"),
        (["--method", "fedprox", "--set", "mu"], "not key=value"),
        (["--method", "fedprox", "--set", "nu=1"], "no such setting"),
        (["--set", "mu=1"], "name one"),
        (["--continue", RUN], "name of its own"),
    ],
)
def test_wrong_arguments_are_answered_with_a_sentence(invoke: Invoke, arguments: list[str], word: str) -> None:
    status, _, err = invoke("replay", *arguments)
    assert status in {1, 2}
    assert word in " ".join(err.split())
