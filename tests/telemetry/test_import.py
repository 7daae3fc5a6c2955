"""`fedmq metrics import`: what becomes of points too old, of another kind, of no kind, and of a hundred runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from aggregator.database import OTHER_KIND, TOO_OLD, refusals_of
from aggregator.database_address import DatabaseAddress
from federation.errors import MessageError
from federation.metrics import Point, parse_line
from fedmq.cli import app
from fedmq.derived_points import History
from fedmq.hourly_means import HOUR_NS, HourlyMeans
from fedmq.journal_import import BATCH_POINTS, import_journal
from fedmq.metrics_command import complete_url
from fedmq.run_data import read_points
from tests.telemetry.influx import InfluxServer
from tests.telemetry.scripted_run import SECOND, Script, age, play

DAY_NS = 86_400 * SECOND
GOOD = '{"measurement":"round","tags":{"run":"r","strategy":"s"},"fields":{"loss":1.0},"time_ns":1700000000000000000}'


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no variable of this machine to the command."""
    import os

    for name in list(os.environ):
        if name.startswith("FEDMQ_"):
            monkeypatch.delenv(name)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A file with a token."""
    path = tmp_path / "token"
    path.write_text("secret\n")
    return path


def call(*arguments: str | Path) -> Result:
    """Import by the command line."""
    return CliRunner().invoke(app, ["metrics", "import", *(str(argument) for argument in arguments), "--json"])


def measurements(out_dir: Path) -> dict[str, int]:
    """Return how many points of each measurement a journal holds."""
    counts: dict[str, int] = {}
    for point in read_points([out_dir / "metrics.jsonl"]):
        counts[point.measurement] = counts.get(point.measurement, 0) + 1
    return counts


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """The folder of a run of forty days ago: its samples are older than the bucket keeps."""
    script = Script(run="old", started_ns=time.time_ns() - 40 * DAY_NS, round_seconds=1500, sample_seconds=60)
    return play(tmp_path, script)


@pytest.mark.database
@pytest.mark.slow
def test_samples_that_are_too_old_are_dropped_by_name_and_their_hours_kept(
    old_run: Path, influx: InfluxServer, bucket: str, token: Path
) -> None:
    counts = measurements(old_run)
    num_samples = sum(counts[name] for name in ("device", "node", "run", "broker", "telemetry"))
    result = call(old_run, "--url", influx.url, "--token-file", token, "--bucket", bucket)
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["reasons"] == {TOO_OLD: num_samples}
    assert answer["written"] == sum(counts.values()) - num_samples + answer["hourly_means"]
    num_batches = -(-num_samples // BATCH_POINTS) + -(-answer["written"] // BATCH_POINTS)
    assert answer["requests"] == num_batches, "a partial write is an answer, not a search"
    assert influx.count("device", f"{bucket}_samples") == 0
    assert influx.count("round", bucket) == 5
    hours = influx.query('SELECT count("cpu") FROM "device_hourly" GROUP BY "node"', database=bucket)
    assert {entry["tags"]["node"] for entry in hours} == {"pi-0", "pi-1", "pi-2"}
    assert influx.query('SELECT * FROM "broker_hourly"', database=bucket)


@pytest.mark.database
@pytest.mark.slow
def test_who_is_content_with_the_hours_gets_status_0(old_run: Path, influx: InfluxServer, bucket: str, token: Path) -> None:
    result = call(old_run, "--url", influx.url, "--token-file", token, "--bucket", bucket, "--keep-samples")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["hourly_means"] > 0


@pytest.mark.database
@pytest.mark.slow
def test_a_hundred_runs_take_a_request_a_batch(tmp_path: Path, influx: InfluxServer, bucket: str) -> None:
    address = DatabaseAddress(url=influx.url, token="secret", bucket=bucket)
    num_points = num_requests = 0
    for index in range(100):
        out_dir = play(tmp_path, Script(run=f"run-{index}", started_ns=time.time_ns() - 40 * DAY_NS + index, num_rounds=2, seed=index))
        imported = import_journal([out_dir / "metrics.jsonl"], address)
        num_points += measurements(out_dir)["outcome"]
        num_requests += imported.num_requests
    assert num_requests == 200, "one for what is kept for ever, one for the samples"
    assert influx.count("outcome", bucket) == num_points
    assert len(influx.query('SELECT last("state") FROM "run_summary" GROUP BY "run"', database=bucket)) == 100


@pytest.mark.database
def test_a_field_of_another_kind_is_counted_and_the_rest_is_written(tmp_path: Path, influx: InfluxServer, bucket: str, token: Path) -> None:
    out_dir = play(tmp_path, Script(run="r", started_ns=time.time_ns() - 3600 * SECOND))
    # Another program has written text where this one has numbers.
    poison = Point(
        measurement="round", tags={"run": "r", "strategy": "fedavg"}, fields={"loss": "high"}, time_ns=time.time_ns() - 3600 * SECOND
    )
    from aggregator.database import Database

    database = Database(DatabaseAddress(url=influx.url, token="secret", bucket=bucket))
    database.write([poison])
    database.close()
    result = call(out_dir, "--url", influx.url, "--token-file", token, "--bucket", bucket)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["reasons"] == {OTHER_KIND: 5}
    assert influx.count("class_accuracy", bucket) == 10
    kept = call(out_dir, "--url", influx.url, "--token-file", token, "--bucket", bucket, "--keep-samples")
    assert kept.exit_code == 1, "hourly means make up for age alone"


def test_what_influxdb_2_and_1_answer_is_read() -> None:
    two = '{"code":"unprocessable entity","message":"partial write: dropped 273 points outside retention policy"}'
    one = '{"error":"partial write: points beyond retention policy dropped=12"}'
    kind = '{"error":"partial write: field type conflict: input field is type float, already exists as type string dropped=1"}'
    lines = "{\"error\":\"partial write: unable to parse 'x': missing fields\\nunable to parse 'y': missing fields dropped=0\"}"
    assert refusals_of(two) == {TOO_OLD: 273}
    assert refusals_of(one) == {TOO_OLD: 12}
    assert refusals_of(kind) == {OTHER_KIND: 1}
    assert refusals_of(lines) == {"not a point": 2}


def test_a_journal_of_before_says_what_a_run_of_today_says(tmp_path: Path) -> None:
    """Labels, what a class is taken for, states and the run's course are found again from the older points."""
    started_ns = time.time_ns() - DAY_NS
    script = Script(run="r", started_ns=started_ns, num_classes=8)
    today = play(tmp_path / "today", script)
    before = play(tmp_path / "before", script)
    age(before)
    points = list(read_points([today / "metrics.jsonl"]))
    old = list(read_points([before / "metrics.jsonl"]))
    names = json.loads((before / "settings.json").read_text())["class_names"]
    history = History(old, class_names=names, dataset="bloodmnist")
    derived = {point.identity: point for point in map(history.current, old)}
    for point in points:
        if point.measurement != "run_summary":
            assert derived[point.identity] == point
    ours = [point for point in points if point.measurement == "run_summary"]
    theirs = list(history.summaries())
    assert (theirs[0].fields["life"], theirs[0].fields["started_ms"]) == (1, ours[0].fields["started_ms"])
    known = {"state", "note", "dataset", "method", "num_classes", "rounds", "accuracy", "worst_class", "worst_accuracy"}
    assert {name: theirs[-1].fields[name] for name in known} == {name: ours[-1].fields[name] for name in known}
    assert theirs[-1].time_ns == pytest.approx(ours[-1].time_ns, abs=SECOND)
    assert read_run_state(before) == read_run_state(today) == ("finished", "all rounds done")


def read_run_state(out_dir: Path) -> tuple[str, str] | None:
    """Return what the report says of a run."""
    from fedmq.run_data import RunData

    last = RunData(summary={}, points=list(read_points([out_dir / "metrics.jsonl"]))).last_known()
    return (last[0].word, last[1]) if last else None


@pytest.mark.parametrize(("ends", "word"), [("stopped", "stopped"), ("failed", "failed"), ("silent", "training")])
def test_how_an_older_run_ended_is_found_again(tmp_path: Path, ends: Any, word: str) -> None:
    out_dir = play(tmp_path, Script(run="r", started_ns=time.time_ns() - DAY_NS, num_done=2, ends=ends))
    age(out_dir)
    state = read_run_state(out_dir)
    assert state is not None
    assert state[0] == word


def test_hourly_means_are_those_of_the_databases_task() -> None:
    means = HourlyMeans()
    start = 500_000 * HOUR_NS
    for offset, cpu in ((0, 0.2), (HOUR_NS - 1, 0.4), (HOUR_NS, 0.9)):
        point = Point(
            measurement="device",
            tags={"run": "r", "strategy": "s", "node": "n"},
            fields={"cpu": cpu, "throttled": 1},
            time_ns=start + offset,
        )
        means.add(point)
    means.add(Point(measurement="round", tags={"run": "r", "strategy": "s"}, fields={"loss": 1.0}, time_ns=start))
    first, second = means.points()
    assert (first.measurement, first.time_ns, first.fields) == (
        "device_hourly",
        start + HOUR_NS,
        {"cpu": pytest.approx(0.3), "throttled": 1.0},
    )
    assert (second.time_ns, second.fields["cpu"]) == (start + 2 * HOUR_NS, 0.9)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 5_000,
        '{"measurement":"round","tags":{"run":"\\ud800","strategy":"s"},"fields":{"loss":1.0},"time_ns":1}',
        '{"measurement":"class_accuracy","tags":{"run":"r","strategy":"s","class":"00","label":"\\ud800"},"fields":{"value":1.0},"time_ns":1}',
        GOOD.replace("1700000000000000000", "9" * 30),
        GOOD.replace("1.0", "1e999"),
    ],
    ids=["nested lists", "nested objects", "half a letter", "half a letter in a label", "a time beyond all", "infinite"],
)
def test_a_hostile_line_is_no_point(line: str) -> None:
    with pytest.raises(MessageError):
        parse_line(line)


def test_half_a_letter_in_a_text_becomes_one_that_can_be_written() -> None:
    tags = '{"run":"r","strategy":"s","node":"n","kind":"node_lost"}'
    line = f'{{"measurement":"event","tags":{tags},"fields":{{"text":"gone \\ud800"}},"time_ns":1}}'
    assert parse_line(line).to_line().encode()
    assert parse_line(line).fields["text"] == "gone ?"


@pytest.mark.parametrize(
    ("content", "words"),
    [("one\ntwo", "one line"), ("비밀", "plain letters"), ("", "one token"), ("a b", "one token")],
)
def test_a_token_that_is_none_is_a_sentence(tmp_path: Path, content: str, words: str) -> None:
    token, file = tmp_path / "token", tmp_path / "metrics.jsonl"
    token.write_text(content, encoding="utf-8")
    file.write_text(GOOD + "\n")
    result = call(file, "--url", "http://localhost:1", "--token-file", token)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("stated", "url"),
    [
        ("localhost:8086", "http://localhost:8086"),
        ("http://db:8086/", "http://db:8086"),
        ("https://db", "https://db"),
        ("192.168.0.7:8086", "http://192.168.0.7:8086"),
    ],
)
def test_an_address_without_a_scheme_is_plain_http(stated: str, url: str) -> None:
    assert complete_url(stated) == url


def test_a_name_that_no_run_can_have_is_a_sentence(tmp_path: Path, token: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(GOOD + "\n")
    result = call(file, "--url", "localhost:1", "--token-file", token, "--as", "Not A Name")
    assert result.exit_code == 2
    assert "--as" in result.output


def test_importing_needs_neither_torch_nor_onnx_runtime() -> None:
    """In a process of its own: a machine that only fills a database has neither."""
    code = "import sys, fedmq.cli, fedmq.journal_import; print(*sorted({'torch', 'onnx', 'onnxruntime', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
