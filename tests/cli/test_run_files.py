"""Wrong run files: every field wrong in turn, each named with what is allowed, all at once, exit status 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from federation.settings import RunSettings
from tests.cli.command import Outcome, fedmq

WRONG_TYPES: dict[Any, Any] = {int: "five", float: "five", str: 5, bool: "yes", dict: "five", list: "five"}


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section of the file."""
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def leaves(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield (path, field) of every setting of a run file, sections not counted."""
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from leaves(section, (*prefix, name))
        else:
            yield (*prefix, name), field


def wrong_type(field: FieldInfo) -> Any:
    """Return a value of a type that the field never takes."""
    kind = field.annotation
    if get_origin(kind) in {Union, UnionType}:
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return [1]
    return WRONG_TYPES[get_origin(kind) or kind]


def out_of_range(field: FieldInfo) -> Any:
    """Return a value of the right type outside the field's range; None for a field that has no range."""
    if get_origin(field.annotation) in {Union, UnionType}:
        return "none-such"
    if get_origin(field.annotation) is Literal:
        return 29 if isinstance(get_args(field.annotation)[0], int) else "none-such"
    for bound in field.metadata:
        for name, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            limit = getattr(bound, name, None)
            if limit is not None:
                return type(limit)(limit + step)
        if getattr(bound, "pattern", None):
            return "Not/A Name"
        if getattr(bound, "min_length", None):
            return ""
    return None


LEAVES = dict(leaves(RunSettings))
RANGED = {path: value for path, field in LEAVES.items() if (value := out_of_range(field)) is not None}
SECTIONS = [name for name, field in RunSettings.model_fields.items() if section_of(field)]


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return {first: {second: value}} of a path."""
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def simulate(folder: Path, values: dict[str, Any]) -> Outcome:
    """Run `fedmq simulate` on a run file of these values."""
    run_file = folder / "run.toml"
    run_file.write_text(tomli_w.dumps(values), encoding="utf-8")
    return fedmq("simulate", run_file, "--out", folder / "out")


def check_named(outcome: Outcome, *keys: str) -> None:
    """The settings are refused with a line for each key, and nothing else is said."""
    assert outcome.status == 2
    assert outcome.stdout == ""
    lines = outcome.stderr.splitlines()
    assert f"{len(keys)} problem(s)" in lines[0]
    assert sorted(line.strip().partition(": ")[0] for line in lines[1:]) == sorted(keys)


def by_name(path: tuple[str, ...]) -> str:
    return ".".join(path)


@pytest.mark.parametrize("path", LEAVES, ids=by_name)
def test_a_value_of_the_wrong_type_is_named(path: tuple[str, ...], tmp_path: Path) -> None:
    check_named(simulate(tmp_path, nested(path, wrong_type(LEAVES[path]))), by_name(path))


@pytest.mark.parametrize("path", RANGED, ids=by_name)
def test_a_value_out_of_range_is_named_with_what_is_allowed(path: tuple[str, ...], tmp_path: Path) -> None:
    outcome = simulate(tmp_path, nested(path, RANGED[path]))
    check_named(outcome, by_name(path))
    assert "should" in outcome.stderr
    assert f"(got {str(RANGED[path])!r})" in outcome.stderr


def test_every_setting_but_a_truth_value_has_a_range() -> None:
    """A number without bounds lets a slip of the finger through."""
    assert {path for path in LEAVES if path not in RANGED and LEAVES[path].annotation is not bool} == {("data", "class_names")}


def test_a_class_named_twice_is_named(tmp_path: Path) -> None:
    outcome = simulate(tmp_path, {"data": {"class_names": ["benign", "benign"]}})
    check_named(outcome, "data.class_names")
    assert "no two the same" in outcome.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("path", [path for path, field in LEAVES.items() if field.annotation is float], ids=by_name)
def test_numbers_that_are_none_are_named(path: tuple[str, ...], value: float, tmp_path: Path) -> None:
    check_named(simulate(tmp_path, nested(path, value)), by_name(path))


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_an_unknown_name_is_named_in_every_section(section: str, tmp_path: Path) -> None:
    path = (section, "learnig_rate") if section else ("learnig_rate",)
    outcome = simulate(tmp_path, nested(path, 1))
    check_named(outcome, by_name(path))
    assert "check its spelling" in outcome.stderr


@pytest.mark.parametrize(
    ("values", "key", "meant"),
    [
        ({"training": {"learnig_rate": 0.1}}, "training.learnig_rate", "learning_rate"),
        ({"num_round": 3}, "num_round", "num_rounds"),
        ({"training": {"augmentation": {"horizontl_flip": True}}}, "training.augmentation.horizontl_flip", "horizontal_flip"),
    ],
)
def test_an_unknown_name_is_answered_with_the_one_that_is_meant(values: dict[str, Any], key: str, meant: str, tmp_path: Path) -> None:
    outcome = simulate(tmp_path, values)
    check_named(outcome, key)
    assert f"did you mean {meant}?" in outcome.stderr


def test_augmentation_takes_a_name_or_a_table(tmp_path: Path) -> None:
    check_named(
        simulate(tmp_path, {"training": {"augmentation": {"zoom_share": 2.0, "colour": -1.0}}}),
        *(f"training.augmentation.{name}" for name in ("zoom_share", "colour")),
    )


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_none_is_named(section: str, tmp_path: Path) -> None:
    check_named(simulate(tmp_path, {section: 5}), section)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    values: dict[str, Any] = {"learnig_rate": 1}
    for path, field in LEAVES.items():
        *parents, name = path
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = wrong_type(field)
    check_named(simulate(tmp_path, values), "learnig_rate", *map(by_name, LEAVES))


def test_settings_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    outcome = simulate(tmp_path, {"rounds": {"grace_seconds": 60.0, "deadline_seconds": 10.0}})
    assert outcome.status == 2
    assert "rounds.grace_seconds is longer than rounds.deadline_seconds" in outcome.stderr


def test_rounds_that_would_wait_for_more_nodes_than_there_are_are_refused(tmp_path: Path) -> None:
    values = {"data": {"name": "digits"}, "partition": {"num_nodes": 2}, "rounds": {"min_nodes": 3}}
    outcome = simulate(tmp_path, values)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert "lower rounds.min_nodes to 2 or less" in outcome.stderr


def test_a_run_file_that_is_no_toml_is_named_with_its_line(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text('run = "demo"\n\n[training\nlocal_epochs = 1\n', encoding="utf-8")
    outcome = fedmq("simulate", run_file)
    assert outcome.status == 2
    assert f"{run_file}: not valid TOML" in outcome.stderr
    assert "at line 3" in outcome.stderr


@pytest.mark.parametrize("command", ["simulate", "run"])
def test_a_missing_run_file_is_named(command: str, tmp_path: Path) -> None:
    outcome = fedmq(command, tmp_path / "none.toml", "--out", tmp_path / "out")
    assert outcome.status == 2
    assert "none.toml: no such run file; experiments/ holds ready ones" in outcome.stderr


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00run"], ids=["folder", "binary"])
def test_a_run_file_that_is_no_text_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    outcome = fedmq("simulate", path)
    assert outcome.status == 2
    assert f"{path}: can't be read" in outcome.stderr
