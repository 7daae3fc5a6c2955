"""`fedmq metrics import`, `fedmq report` and `fedmq watch` on a real run."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from federation.messages import NodeStatus, RunState
from fedmq import report_page
from fedmq.cli import app
from fedmq.private_broker import PrivateBroker
from fedmq.report_figures import to_svg
from fedmq.watch_state import WatchState, sparkline
from tests.broker.client import connected
from tests.requirements import require
from tests.telemetry.influx import InfluxServer
from tests.telemetry.run_fixture import NUM_ROUNDS, RUN, MeasuredRun

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no variable of this machine to the commands but the data folder."""
    import os

    for name in list(os.environ):
        if name.startswith("FEDMQ_") and name != "FEDMQ_DATA_DIR":
            monkeypatch.delenv(name)


def call(*arguments: str | Path) -> Result:
    """Run the command line."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A file with a token."""
    path = tmp_path / "token"
    path.write_text("secret")
    return path


def test_an_offline_run_fills_a_database_and_again_changes_nothing(
    measured: MeasuredRun, influx: InfluxServer, bucket: str, token: Path
) -> None:
    lines = [json.loads(line) for line in (measured.out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for _ in range(2):
        result = call("metrics", "import", measured.out_dir, "--url", influx.url, "--token-file", token, "--bucket", bucket, "--json")
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert answer["written"] == len(lines) + answer["hourly_means"]
        assert (answer["refused"], answer["skipped_lines"], answer["renamed"]) == (0, 0, {})
        assert influx.count("round", bucket) == NUM_ROUNDS
        assert influx.count("device", f"{bucket}_samples") == sum(line["measurement"] == "device" for line in lines)


def test_import_says_what_it_skipped(influx: InfluxServer, bucket: str, token: Path, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    good = '{"measurement":"round","tags":{"run":"r","strategy":"s"},"fields":{"loss":1.0},"time_ns":1700000000000000000}'
    file.write_text(f"{good}\nnonsense\n")
    result = call("metrics", "import", file, "--url", influx.url, "--token-file", token, "--bucket", bucket, "--json")
    answer = json.loads(result.stdout)
    # The run's course is derived from its one round: how it began, and that round.
    assert (answer["refused"], answer["skipped_lines"]) == (0, 1)
    assert influx.count("round", bucket) == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["metrics", "import", "nowhere.jsonl"], 2, "--url"),
        (["metrics", "import", "nowhere.jsonl", "--url", "http://localhost:1", "--token-file", "TOKEN"], 1, "no such file"),
        (["metrics", "import", "FOLDER", "--url", "http://localhost:1", "--token-file", "TOKEN"], 1, "metrics.jsonl"),
        (["metrics", "import", "JUNK", "--url", "http://localhost:1", "--token-file", "TOKEN"], 1, "no point"),
        (["metrics", "import", "GOOD", "--url", "http://localhost:1", "--token-file", "TOKEN"], 1, "does not answer"),
        (["report", "./nowhere"], 1, "no such folder"),
        (["report", "FOLDER"], 1, "summary.json"),
        (["watch", "some-run", "--port", "1", "--seconds", "0.1", "--json"], 1, "can't reach"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], exit_code: int, words: str, tmp_path: Path, token: Path) -> None:
    (tmp_path / "junk.jsonl").write_text("junk\n")
    good = '{"measurement":"round","tags":{"run":"r","strategy":"s"},"fields":{"loss":1.0},"time_ns":1}'
    (tmp_path / "good.jsonl").write_text(f"{good}\n")
    (tmp_path / "empty").mkdir()
    places = {"TOKEN": token, "FOLDER": tmp_path / "empty", "JUNK": tmp_path / "junk.jsonl", "GOOD": tmp_path / "good.jsonl"}
    result = call(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == exit_code, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_every_field_is_listed() -> None:
    rows = json.loads(call("metrics", "fields", "--json").stdout)
    assert {"measurement", "field", "unit", "meaning", "sender"} <= rows[0].keys()
    assert {row["measurement"] for row in rows} >= {"round", "train", "inference", "device", "broker"}


def test_the_report_is_one_file_with_the_runs_figures(measured: MeasuredRun, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = call("report", measured.out_dir, "--html", page, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    final = measured.summary["final"]
    assert answer["table_3"][0]["accuracy"] == final["accuracy"]
    assert {row["node"] for row in answer["table_7"]} >= {"node-0", "node-1", "node-2"}
    for row in answer["table_7"]:
        assert row["speedup"] == pytest.approx(row["torch"] / row["onnx"])
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!#|data:)', text), "fetches something"
    assert "<script" not in text
    words = html.unescape(text)
    assert f"{100 * final['accuracy']:.2f} %" in words
    for heading in ("Table 3", "Figure 4", "Figures 2 and 7", "Figure 6", "Table 4", "Tables 6 and 7", "Confusion matrix", "Every round"):
        assert heading in words
    assert text.count("<svg") >= 6
    assert str(measured.out_dir) not in text


def test_the_report_escapes_names_in_attributes_and_runs_nothing() -> None:
    figure = Figure(figsize=(1, 1))
    drawn = to_svg(figure, label='"><script>alert(1)</script>')
    assert "<script>" not in drawn
    assert 'aria-label="&quot;&gt;&lt;script&gt;' in drawn
    assert "Content-Security-Policy" in report_page.page("<b>run</b>", [])
    assert "default-src 'none'" in report_page.page("run", [])
    assert "<b>" not in report_page.page("<b>run</b>", [])


def test_reports_of_several_runs_stand_side_by_side(measured: MeasuredRun, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(measured.out_dir, other)
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"run": "second", "strategy": "fedprox"}))
    page = tmp_path / "report.html"
    assert call("report", measured.out_dir, other, "--html", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "second (fedprox)" in text
    assert "The runs side by side" in text


@pytest.mark.browser
def test_the_report_is_drawn_by_a_browser(measured: MeasuredRun, tmp_path: Path) -> None:
    browser = require("browser")
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    assert call("report", measured.out_dir, "--html", page).exit_code == 0
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1200,5000",
        f"--user-data-dir={tmp_path}/profile",
    ]
    subprocess.run([browser, *options, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(picture) as image:
        assert image.width == 1200
        colours = image.convert("RGB").resize((300, 1250)).getcolors(maxcolors=1 << 20)
    assert colours is not None
    # Text, lines, bars and heatmaps: a blank or broken page has a handful of colours.
    assert len(colours) > 500
    assert max(count for count, _ in colours) < 0.95 * 300 * 1250


def test_watch_shows_what_the_broker_holds(mosquitto: PrivateBroker, run_name: str, tmp_path: Path) -> None:
    values = {"run": run_name, "phase": "training", "round_number": 2, "num_rounds": 5, "epoch": 1, "method": "fedavg", "model": {}}
    with connected(mosquitto, "aggregator") as aggregator:
        aggregator.publish(f"fedmq/v2/{run_name}/state", RunState.model_validate(values).to_payload())
        status = NodeStatus(node="node-1", online=True, instance="i1", num_examples=7)
        aggregator.publish(f"fedmq/v2/{run_name}/nodes/node-1/status", status.to_payload())
        aggregator.publish(f"fedmq/v2/{run_name}/rounds/1/result", b"not a result")
        password = tmp_path / "password"
        password.write_text(mosquitto.passwords["observer"])
        login = ["--host", mosquitto.host, "--port", mosquitto.port, "--username", "observer", "--password-file", password]
        result = call("watch", run_name, *map(str, login), "--seconds", "1.5", "--json")
        for topic in ("state", "nodes/node-1/status", "rounds/1/result"):
            aggregator.publish(f"fedmq/v2/{run_name}/{topic}", b"")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["state"]["round_number"] == 2
    assert [node["node"] for node in answer["nodes"]] == ["node-1"]
    assert answer["rounds"] == []


def test_watch_draws_a_whole_run(measured: MeasuredRun) -> None:
    state = WatchState(run=RUN)
    for topic, payload in messages(measured):
        state.take(topic, payload)
    console = Console(width=120, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - ends with the test
    console.print(state.render())
    console.file.close()
    text = console.export_text()
    assert f"{measured.summary['final']['accuracy']:.4f}" in text
    for word in ("node-0", "node-2", "finished", "onnx-int8", "speed-up"):
        assert word in text


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(sparkline([0.1] * 100)) == 60


def messages(measured: MeasuredRun) -> list[tuple[str, bytes]]:
    """Return what the run's broker carried, kept by the fixture."""
    return [(topic, base64.b64decode(payload)) for topic, payload in json.loads((measured.out_dir / "heard.json").read_text())]
