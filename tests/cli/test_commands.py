"""The commands' outside: help, usage, JSON, exit statuses."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedmq.cli import app
from tests.cli.command import commands, fedmq, options_of

COMMANDS = commands()
GROUPS = sorted({name.rpartition(" ")[0] for name in COMMANDS})


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    """A run file of one round on scikit-learn's digits."""
    values: dict[str, Any] = {
        "run": "small",
        "num_rounds": 1,
        "data": {"name": "digits"},
        "partition": {"num_nodes": 2, "scheme": "iid"},
        "training": {"local_epochs": 1, "device": "cpu"},
    }
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(values))
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_every_option(name: str) -> None:
    shown = fedmq(*name.split(), "--help")
    assert shown.status == 0
    assert (COMMANDS[name].help or "").split("\n")[0][:60] in re.sub(r"\s+", " ", shown.stdout)
    for option in options_of(COMMANDS[name]):
        assert option in shown.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(name: str) -> None:
    assert "--json" in options_of(COMMANDS[name])


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_shows_its_commands(group: str) -> None:
    shown = fedmq(*group.split())
    assert shown.status == 2
    below = {name.removeprefix(group).split()[0] for name in COMMANDS if name.startswith(f"{group} ".lstrip())}
    assert below
    assert all(command in shown.stdout + shown.stderr for command in below)


def test_the_exit_statuses_are_told_in_the_help() -> None:
    assert str(app.info.epilog).startswith("Exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 interrupted.")


def test_version_is_one_line() -> None:
    shown = fedmq("--version")
    assert shown.status == 0
    assert re.fullmatch(r"fedmq \d+\.\d+\.\d+\S*\n", shown.stdout)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dmeo"], "dmeo"),
        (["demo", "extra"], "extra"),
        (["demo", "--nodes", "0"], "--nodes"),
        (["demo", "--rounds", "many"], "--rounds"),
        (["demo", "--seed", "-1"], "--seed"),
        (["simulate"], "RUN_FILE"),
        (["run"], "RUN_FILE"),
        (["data", "fetch"], "NAME"),
        (["data", "partition", "digits", "--sheme", "iid"], "--sheme"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_status_2_and_named(arguments: list[str], text: str) -> None:
    outcome = fedmq(*arguments)
    assert outcome.status == 2
    assert text.lower() in outcome.stderr.lower()
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    ("flags", "key"),
    [(["--alpha", "nan"], "partition.alpha"), (["--alpha", "0"], "partition.alpha"), (["--seed", str(2**40)], "seed")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_demo_flags_are_validated_as_a_run_files_settings(flags: list[str], key: str, tmp_path: Path) -> None:
    outcome = fedmq("demo", "--data", "digits", "--out", tmp_path / "out", *flags)
    assert outcome.status == 2
    assert f"  {key}: " in outcome.stderr


def test_demo_refuses_flags_that_its_run_file_would_override(small_run: Path, tmp_path: Path) -> None:
    outcome = fedmq("demo", "--file", small_run, "--seed", "3", "--out", tmp_path / "out")
    assert outcome.status == 2
    assert "leave out --seed" in outcome.stderr


def test_demo_refuses_a_partition_with_an_empty_node_before_it_starts_anything(tmp_path: Path) -> None:
    """Its node would sit out, and the run wait for it for ever."""
    outcome = fedmq("demo", "--data", "digits", "--nodes", "200", "--alpha", "0.001", "--out", tmp_path / "out")
    assert outcome.status == 1
    assert "raise partition.alpha" in outcome.stderr
    assert list((tmp_path / "out" / "logs").iterdir()) == []


def test_simulate_json_is_the_summary_and_nothing_else(small_run: Path, tmp_path: Path) -> None:
    outcome = fedmq("simulate", small_run, "--out", tmp_path / "out", "--json")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.json["global_digest"] == hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest()
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"summary.json", "model.safetensors", "metrics.jsonl", "curves.png"}


def test_simulate_shows_a_table_and_takes_flags_over_the_file(small_run: Path, tmp_path: Path) -> None:
    shown = fedmq("simulate", small_run, "--out", tmp_path / "out", "--seed", "9", "--rounds", "2")
    assert shown.status == 0
    for text in ("seed 9", "final accuracy", "global_digest", "curves.png"):
        assert text in shown.stdout


def test_a_folder_that_holds_a_run_is_not_overwritten(small_run: Path, tmp_path: Path) -> None:
    assert fedmq("simulate", small_run, "--out", tmp_path / "out", "--json").status == 0
    before = (tmp_path / "out" / "summary.json").read_bytes()
    for command in (("simulate", small_run), ("run", small_run), ("demo", "--file", small_run)):
        outcome = fedmq(*command, "--out", tmp_path / "out")
        assert outcome.status == 2
        assert "holds a run already" in outcome.stderr
    assert (tmp_path / "out" / "summary.json").read_bytes() == before


@pytest.mark.parametrize("command", [("simulate",), ("run",), ("demo", "--file")], ids=" ".join)
def test_a_folder_that_can_not_be_made_is_named(command: tuple[str, ...], small_run: Path) -> None:
    outcome = fedmq(*command, small_run, "--out", small_run / "out")
    assert outcome.status == 2
    assert f"--out: {small_run / 'out'} can't be made a folder" in outcome.stderr


def test_a_misspelt_variable_is_named(small_run: Path) -> None:
    outcome = fedmq("simulate", small_run, FEDMQ_DATA_DRI="somewhere")
    assert outcome.status == 2
    assert "FEDMQ_DATA_DRI: unknown variable" in outcome.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have that device")
def test_a_device_that_is_not_there_is_named(small_run: Path, tmp_path: Path) -> None:
    small_run.write_text(small_run.read_text().replace('"cpu"', '"mps"'))
    outcome = fedmq("simulate", small_run, "--out", tmp_path / "out")
    assert outcome.status == 2
    assert "training.device is 'mps'" in outcome.stderr


def test_a_centralised_run_trains_in_one_place(small_run: Path, tmp_path: Path) -> None:
    small_run.write_text('mode = "centralised"\n' + small_run.read_text())
    summary = fedmq("simulate", small_run, "--out", tmp_path / "out", "--json").json
    assert (summary["num_nodes"], summary["rounds"][0]["accepted"]) == (1, 1)
