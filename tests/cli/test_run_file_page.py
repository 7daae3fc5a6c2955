"""The run files' reference and schema: as the settings are, nothing left out, and true of the run files that ship."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from federation.settings import AugmentationSettings, RunSettings
from fedmq.run_file_reference import CHOICES, json_schema, meanings
from tests.cli.command import fedmq
from tests.cli.run_file_page import PAGE, SCHEMA, page, schema

EXPERIMENTS = sorted((PAGE.parents[1] / "experiments").rglob("*.toml"))


def models() -> Iterator[type[Any]]:
    """Yield every class of settings that a run file reaches."""
    yield RunSettings
    yield AugmentationSettings
    for field in RunSettings.model_fields.values():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield field.annotation
    for choices in CHOICES.values():
        yield from choices.values()


def agrees(values: dict[str, Any]) -> None:
    """Raise unless a run file's values agree with the schema."""
    fastjsonschema.validate(json_schema(), values)


def test_page_and_schema_are_as_the_settings_are() -> None:
    """Else: `python -m tests.cli.run_file_page`."""
    assert PAGE.read_text(encoding="utf-8") == page()
    assert SCHEMA.read_text(encoding="utf-8") == schema()


@pytest.mark.parametrize("model", list(models()), ids=lambda model: model.__qualname__)
def test_every_key_says_what_it_does(model: type[Any]) -> None:
    """Else: put a docstring below it."""
    told = meanings(model)
    sections = {name for name, field in model.model_fields.items() if hasattr(field.annotation, "model_fields")}
    choices = {"name"} if model.__qualname__.count(".") else set()
    assert set(model.model_fields) - sections - choices <= set(told)
    for name in set(model.model_fields) - sections - choices:
        assert f"| `{name}` |" in page()
        assert len(told[name]) > 3


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_run_file_that_ships_agrees_with_the_schema(path: Path) -> None:
    agrees(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "values",
    [
        {"training": {"learnig_rate": 0.1}},
        {"training": {"learning_rate": 0.0}},
        {"training": {"augmentation": "upside-down"}},
        {"method": {"name": "fedavg", "mu": 0.1}},
        {"method": {"name": "fedbest"}},
        {"num_rounds": "five"},
    ],
    ids=str,
)
def test_what_the_settings_refuse_the_schema_refuses(values: dict[str, Any]) -> None:
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        agrees(values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"training": {"augmentation": {"zoom_share": 0.1}}},
        {"method": {"name": "fedprox", "mu": 0.1}},
        {"codec": {"name": "topk", "share": 0.1}},
    ],
    ids=str,
)
def test_what_the_settings_take_the_schema_takes(values: dict[str, Any]) -> None:
    RunSettings.model_validate(values)
    agrees(values)


def test_check_shows_what_differs_and_begins_nothing(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text('run = "night"\nrecipe = "best"\n[method]\nname = "fedprox"\nmu = 0.3\n')
    shown = fedmq("check", run_file)
    assert shown.status == 0, shown.stderr
    for text in ("is a sound run file", "training.learning_rate", "0.03", "method.mu", "augmentation"):
        assert text in shown.stdout
    assert "num_rounds" not in shown.stdout, "what is as it always is goes without saying"
    assert fedmq("check", run_file, "--json").json["training"]["schedule"] == "cosine"
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_check_names_every_fault_and_how_to_ask_it(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text("num_round = 3\n[training]\nbatch_size = 0\n")
    refused = fedmq("check", run_file)
    assert refused.status == 2
    assert "did you mean num_rounds?" in refused.stderr
    assert "training.batch_size" in refused.stderr
    assert fedmq("check").status == 2
    assert fedmq("check", tmp_path / "absent.toml").status == 2
    assert fedmq("check", run_file, "--schema").status == 2


def test_check_hands_an_editor_its_schema() -> None:
    assert fedmq("check", "--schema").json == json_schema()


def test_a_fleets_run_file_is_sound_whatever_its_simulation_lacks(tmp_path: Path) -> None:
    """A real node brings its own data: how many nodes a partition makes is nothing to it."""
    run_file = tmp_path / "run.toml"
    run_file.write_text("[rounds]\nmin_nodes = 20\n")
    shown = fedmq("check", run_file)
    assert shown.status == 0
    assert "partition.num_nodes is 3" in shown.stdout
