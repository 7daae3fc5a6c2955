"""The main job: `fedmq demo` trains over a real Mosquitto, and `simulate` of the same run file gives the same model."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from PIL import Image

from federation.settings import load_run_file
from fedmq.console import program
from fedmq.simulate import run_simulation
from tests.cli.command import fedmq
from tests.end_to_end.processes import WAIT_SECONDS, Processes, alive, descendants, read_json, rounds_done, wait_until
from tests.requirements import require

pytestmark = pytest.mark.mosquitto

NUM_NODES = 3
NUM_OTHERS = 2
"""Processes beside the command itself and its nodes: aggregator and broker."""

ENDLESS = ("--data", "digits", "--nodes", "2", "--rounds", "500", "--epochs", "1")
"""A demo that only its test ends."""

ROUND_KEYS = {"round_number", "accuracy", "f1_macro", "f1_weighted", "auc", "loss", "seconds", "accepted", "rejected", "discarded"}
BYTE_KEYS = {"bytes_up", "bytes_down"}
FINAL_KEYS = {"accuracy", "f1_macro", "f1_weighted", "auc", "class_accuracy", "confusion_matrix"}
RUN_KEYS = {"run", "strategy", "data", "num_nodes", "seed", "global_digest", "rounds", "final"}
EXTRA_KEYS = {"class_names", "rejected_payloads"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A demo that has ended, and what there was of it while it ran."""

    out: Path
    exit_status: int
    output: str
    processes: set[psutil.Process]
    left_behind: list[str]
    """Names in the folder that was its place for temporary files."""

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary.json."""
        return read_json(self.out / "summary.json")


def run_demo(folder: Path, *arguments: str | Path, disturb: Callable[[subprocess.Popen[bytes], Path], None] | None = None) -> Demo:
    """Run a demo to its end in a folder of its own; `disturb` is called once while it trains."""
    require("mosquitto")
    temporary, out = folder / "temporary", folder / "out"
    temporary.mkdir(parents=True)
    seen: set[psutil.Process] = set()
    with Processes(folder) as processes:
        demo = processes.start("fedmq.cli", "demo", "--out", out, *arguments, log="demo.log", TMPDIR=str(temporary))

        def is_training() -> bool:
            seen.update(descendants(demo))
            return rounds_done(out) >= 1

        wait_until(is_training, "the first round", [demo])
        if disturb is not None:
            disturb(demo, out)
        give_up_at = time.monotonic() + WAIT_SECONDS
        while demo.poll() is None and time.monotonic() < give_up_at:
            seen.update(descendants(demo))
            time.sleep(0.1)
        assert demo.returncode is not None, "the demo did not end"
    return Demo(
        out=out,
        exit_status=demo.returncode,
        output=(folder / "demo.log").read_text(encoding="utf-8"),
        processes=seen,
        left_behind=sorted(path.name for path in temporary.iterdir()),
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Two rounds of one local epoch on digits, undisturbed."""
    return run_demo(tmp_path_factory.mktemp("demo"), "--data", "digits", "--rounds", "2", "--epochs", "1", "--seed", "7")


def simulate(demo: Demo, out: Path, **changes: Any) -> str:
    """Return the digest that the simulator gives for the demo's run file."""
    settings = load_run_file(demo.out / "run.toml").model_copy(update=changes)
    return str(run_simulation(settings, out_dir=out, data_dir=None, cache_dir=out, is_shown=False)["global_digest"])


def test_ends_well_and_shows_its_results(demo: Demo) -> None:
    assert demo.exit_status == 0, demo.output
    assert demo.summary["global_digest"] in demo.output
    assert str(demo.out) in demo.output


def test_summary_has_exactly_the_promised_shape(demo: Demo) -> None:
    summary = demo.summary
    assert set(summary) == RUN_KEYS | EXTRA_KEYS
    assert re.fullmatch(r"demo-\d{8}-[0-9a-f]{6}", summary["run"])
    assert (summary["strategy"], summary["data"], summary["num_nodes"], summary["seed"]) == (
        "fedavg",
        "digits",
        NUM_NODES,
        7,
    )
    assert [entry["round_number"] for entry in summary["rounds"]] == [1, 2]
    for entry in summary["rounds"]:
        assert set(entry) == ROUND_KEYS | BYTE_KEYS | {"stragglers"}
        assert (entry["accepted"], entry["rejected"], entry["discarded"], entry["stragglers"]) == (NUM_NODES, 0, 0, 0)
        assert 0 <= entry["accuracy"] <= 1
        assert entry["seconds"] > 0
        assert entry["loss"] > 0
    assert set(summary["final"]) == FINAL_KEYS
    assert summary["rejected_payloads"] == {}


def test_final_scores_agree_with_the_confusion_matrix(demo: Demo) -> None:
    """Rows are true classes: the diagonal over the whole is the accuracy, over its row a class's own."""
    final = demo.summary["final"]
    matrix = final["confusion_matrix"]
    assert len(matrix) == len(final["class_accuracy"]) == len(demo.summary["class_names"]) == 10
    hits = [row[index] for index, row in enumerate(matrix)]
    assert final["accuracy"] == pytest.approx(sum(hits) / sum(map(sum, matrix)))
    assert final["accuracy"] == demo.summary["rounds"][-1]["accuracy"]
    assert final["class_accuracy"] == pytest.approx([hit / sum(row) for hit, row in zip(hits, matrix, strict=True)])


def test_bytes_of_a_round_are_three_models_and_little_more(demo: Demo) -> None:
    model_bytes = (demo.out / "model.safetensors").stat().st_size
    for entry in demo.summary["rounds"]:
        for key in BYTE_KEYS:
            assert NUM_NODES * model_bytes <= entry[key] < 1.05 * NUM_NODES * model_bytes


def test_model_file_is_the_digest(demo: Demo) -> None:
    content = (demo.out / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == demo.summary["global_digest"]


def test_curves_are_a_picture(demo: Demo) -> None:
    with Image.open(demo.out / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) >= 400
        assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 10, "nothing is drawn"


def test_metrics_are_one_json_point_a_line(demo: Demo) -> None:
    points = [json.loads(line) for line in (demo.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(set(point) == {"measurement", "tags", "fields", "time_ns"} and point["fields"] for point in points)
    assert {point["tags"]["run"] for point in points} == {demo.summary["run"]}
    rounds = [point["fields"] for point in points if point["measurement"] == "round"]
    assert [fields["accuracy"] for fields in rounds] == [entry["accuracy"] for entry in demo.summary["rounds"]]
    trained = {(point["tags"]["node"]) for point in points if point["measurement"] == "train"}
    assert trained == {f"node-{index}" for index in range(NUM_NODES)}


def test_every_process_and_file_of_it_is_gone(demo: Demo) -> None:
    assert len(demo.processes) >= NUM_NODES + NUM_OTHERS
    assert alive(demo.processes) == set()
    assert demo.left_behind == []


def test_once_more_gives_the_same_digest(demo: Demo, tmp_path: Path) -> None:
    again = run_demo(tmp_path, "--file", demo.out / "run.toml", "--json")
    assert again.exit_status == 0, again.output
    assert json.loads(again.output) == again.summary, "--json prints the summary and nothing else"
    assert again.summary["global_digest"] == demo.summary["global_digest"]


def test_simulating_its_run_file_gives_the_same_digest(demo: Demo, tmp_path: Path) -> None:
    assert simulate(demo, tmp_path) == demo.summary["global_digest"]


def test_its_folder_replays_and_answers_what_if_on_the_test_images(demo: Demo) -> None:
    """The recorded rule makes what happened, scores included; another rule or one node less makes something else."""
    replayed = fedmq("replay", demo.out, "--json")
    assert (replayed.status, replayed.json["agrees"], replayed.json["signatures"]) == (0, True, "checked")
    assert replayed.json["rounds"][-1]["digest"] == demo.summary["global_digest"]
    for entry, told in zip(fedmq("replay", demo.out, "--method", "fedavg", "--json").json["rounds"], demo.summary["rounds"], strict=True):
        assert entry["is_same"]
        assert entry["what_if"] == entry["recorded"]
        assert entry["recorded"]["accuracy"] == told["accuracy"]
    for change in (("--method", "fedmedian"), ("--without", "node-1")):
        for entry in fedmq("replay", demo.out, *change, "--json").json["rounds"]:
            assert not entry["is_same"]
            assert entry["what_if"]["loss"] != entry["recorded"]["loss"]
            assert entry["updates"] == (2 if "--without" in change else NUM_NODES)


def test_another_seed_gives_another_digest(demo: Demo, tmp_path: Path) -> None:
    assert simulate(demo, tmp_path, seed=8) != demo.summary["global_digest"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_in_mid_run_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    def interrupt(demo: subprocess.Popen[bytes], _out: Path) -> None:
        demo.send_signal(number)

    demo = run_demo(tmp_path, *ENDLESS, disturb=interrupt)
    assert demo.exit_status == 3
    assert "interrupted" in demo.output
    assert "Traceback" not in demo.output
    assert len(demo.processes) >= 2 + NUM_OTHERS
    assert alive(demo.processes) == set()
    assert demo.left_behind == []
    assert len(demo.summary["rounds"]) >= 1, "what was done stays recorded"
    assert f"go on with: {program()} demo --resume {demo.out}" in demo.output
    model = (demo.out / "model.safetensors").read_bytes()
    assert hashlib.sha256(model).hexdigest() == demo.summary["global_digest"]
    assert (demo.out / "curves.png").stat().st_size > 0
    assert "final accuracy" in demo.output


@pytest.mark.slow
def test_an_interrupted_demo_goes_on_to_the_model_of_an_undisturbed_run(tmp_path: Path) -> None:
    def interrupt(demo: subprocess.Popen[bytes], _out: Path) -> None:
        demo.send_signal(signal.SIGINT)

    demo = run_demo(tmp_path / "first", "--data", "digits", "--nodes", "2", "--rounds", "4", "--epochs", "1", disturb=interrupt)
    assert demo.exit_status == 3, demo.output
    assert len(demo.summary["rounds"]) < 4
    resumed = fedmq("demo", "--resume", demo.out, "--json")
    assert resumed.status == 0, resumed.stderr
    assert [entry["round_number"] for entry in resumed.json["rounds"]] == [1, 2, 3, 4]
    assert not (demo.out / "state").exists(), "what it needed to go on is gone"
    assert resumed.json["global_digest"] == simulate(demo, tmp_path / "undisturbed")


@pytest.mark.slow
def test_an_interrupted_simulation_goes_on_to_the_model_of_an_undisturbed_one(tmp_path: Path) -> None:
    run_file, out = tmp_path / "run.toml", tmp_path / "out"
    values = {"run": "small", "num_rounds": 4, "recipe": "best", "data": {"name": "digits"}}
    run_file.write_text(tomli_w.dumps({**values, "partition": {"num_nodes": 2}, "training": {"local_epochs": 1}}), encoding="utf-8")
    with Processes(tmp_path) as processes:
        simulation = processes.start("fedmq.cli", "simulate", run_file, "--out", out, log="simulation.log")
        wait_until(lambda: rounds_done(out) >= 1, "the first round", [simulation])
        simulation.send_signal(signal.SIGINT)
        assert simulation.wait(WAIT_SECONDS) == 3
    output = (tmp_path / "simulation.log").read_text(encoding="utf-8")
    assert f"go on with: {program()} simulate --resume {out}" in output
    assert "Traceback" not in output
    assert (out / "model.safetensors").exists()
    resumed = fedmq("simulate", "--resume", out, "--json")
    assert resumed.status == 0, resumed.stderr
    undisturbed = fedmq("simulate", run_file, "--out", tmp_path / "undisturbed", "--json")
    assert resumed.json["global_digest"] == undisturbed.json["global_digest"]


def test_a_folder_without_an_interrupted_run_is_refused(tmp_path: Path) -> None:
    refused = fedmq("demo", "--resume", tmp_path)
    assert (refused.status, "holds no interrupted run" in refused.stderr) == (2, True)
    beside = fedmq("simulate", "--resume", tmp_path, "--seed", "3")
    assert (beside.status, "leave out --seed" in beside.stderr) == (2, True)


def test_a_node_that_dies_ends_the_demo_with_a_sentence(tmp_path: Path) -> None:
    """On a real site a round waits for a lost node; here nobody would bring it back."""

    def kill_a_node(demo: subprocess.Popen[bytes], _out: Path) -> None:
        nodes = [process for process in descendants(demo) if "edge_node" in process.cmdline()]
        assert len(nodes) == 2
        nodes[0].kill()

    demo = run_demo(tmp_path, *ENDLESS, disturb=kill_a_node)
    assert demo.exit_status == 1
    assert "failed with exit status -9" in demo.output
    assert "Traceback" not in demo.output
    assert alive(demo.processes) == set()
    assert demo.left_behind == []
