"""What a run file may say, told by the settings themselves: docs/run-files.md, and a JSON Schema for editors."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from federation.learning.algorithms import ALGORITHMS
from federation.learning.codecs import CODECS
from federation.settings import AugmentationSettings, RunSettings

SCHEMA_DIALECT = "http://json-schema.org/draft-07/schema#"
"""What the TOML plug-ins of editors understand."""

UNITS = {"seconds": "seconds", "bytes": "bytes", "degrees": "degrees", "rounds": "rounds", "epochs": "epochs", "share": "share"}
"""Last word of a key -> its unit, where the table says one."""

CHOICES: Mapping[str, Mapping[str, type[BaseModel]]] = {
    "method": {name: kind.Settings for name, kind in ALGORITHMS.items()},
    "codec": {name: kind.Settings for name, kind in CODECS.items()},
}
"""Sections whose `name` chooses which settings they have."""

HEAD = "| key | default | allowed | |\n|---|---|---|---|\n"

INTRODUCTION = """# Run files

A run file is TOML: what is trained, on what, how, and when a round closes. Every key has a default, so a file says only what
differs. `fedmq check FILE` checks one and shows what it would run; a wrong key is named with what is allowed, or with the one that is
meant. `experiments/` holds ready ones. This page is written by `python -m tests.cli.run_file_page`, from the settings.

```toml
run = "blood-1"
num_rounds = 20
recipe = "best"

[data]
name = "bloodmnist"

[training]
local_epochs = 3

[method]
name = "fedprox"
mu = 0.01
```

An editor completes and checks such a file with [run-file.schema.json](run-file.schema.json): with Taplo or Even Better TOML, write
`#:schema` and the path of that file on the first line.
"""


def reference_page() -> str:
    """Return docs/run-files.md."""
    parts = [INTRODUCTION, "## The run\n", _table(RunSettings)]
    for name, field in RunSettings.model_fields.items():
        model = _section(field)
        if name in {"method", "codec"} or model is None:
            continue
        parts += [f"## `[{name}]`\n", _story(model), _table(model)]
        if name == "training":
            parts += ["### `[training.augmentation]`\n", _story(AugmentationSettings), _table(AugmentationSettings)]
    parts += ["## `[method]`\n", "`name` chooses the method ([methods.md](methods.md)); each has settings of its own.\n"]
    parts += _choices(CHOICES["method"], default="fedavg")
    parts += ["## `[codec]`\n", "How updates travel.\n", *_choices(CHOICES["codec"], default="float32")]
    return "\n".join(parts)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a run file, each key with its meaning."""
    schema = RunSettings.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for section, models in CHOICES.items():
        variants = []
        for name, model in models.items():
            inner = model.model_json_schema()
            definitions.update(inner.pop("$defs", {}))
            _describe(inner, model)
            inner["properties"]["name"] = {"const": name, "type": "string"}
            variants.append(inner)
        schema["properties"][section] = {"anyOf": variants}
    _describe(schema, RunSettings)
    for field in RunSettings.model_fields.values():
        if (part := _section(field)) is not None and part.__name__ in definitions:
            _describe(definitions[part.__name__], part)
    _describe(definitions[AugmentationSettings.__name__], AugmentationSettings)
    return {"$schema": SCHEMA_DIALECT, "title": "FedMQ run file", **{key: schema[key] for key in sorted(schema) if key != "title"}}


def meanings(model: type[BaseModel]) -> Mapping[str, str]:
    """Return what each field of a model means: the docstring below it, its own or its parent's."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not issubclass(kind, BaseModel) or kind is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        statements: Sequence[ast.stmt] = body.body if isinstance(body, ast.ClassDef) else ()
        for field, told in pairwise(statements):
            match field, told:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(inspect.cleandoc(text).split())
    return found


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    schema["description"] = inspect.cleandoc(model.__doc__ or "")
    for name, text in meanings(model).items():
        if name in schema.get("properties", {}):
            schema["properties"][name]["description"] = text


def _choices(models: Mapping[str, type[BaseModel]], *, default: str) -> Iterator[str]:
    for name, model in models.items():
        yield f'### `name = "{name}"`{", the default" if name == default else ""}\n'
        table = _table(model, without=("name",))
        yield table if table != HEAD else "No settings of its own.\n"


def _story(model: type[BaseModel]) -> str:
    return f"{inspect.cleandoc(model.__doc__ or '')}\n"


def _table(model: type[BaseModel], *, without: Sequence[str] = ()) -> str:
    told = meanings(model)
    rows = []
    for name, field in model.model_fields.items():
        if name in without or _section(field) is not None:
            continue
        default = field.get_default(call_default_factory=True)
        cells = (f"`{name}`", "" if default is None else f"`{_toml(default)}`", _allowed(name, field), told.get(name, ""))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return HEAD + "".join(rows)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _allowed(name: str, field: FieldInfo) -> str:
    """Return what a field takes, in words, with its unit."""
    kind: Any = field.annotation
    if get_origin(kind) in {Union, UnionType}:
        kind = get_args(kind)[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{_toml(value)}`" for value in get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    low = next((f"{word} {_number(getattr(bound, key))}" for bound in field.metadata for key, word in _LOW if hasattr(bound, key)), "")
    high = next((f"{word} {_number(getattr(bound, key))}" for bound in field.metadata for key, word in _HIGH if hasattr(bound, key)), "")
    span = " ".join(part for part in (low, high) if part)
    unit = UNITS.get(name.rpartition("_")[2], "")
    if any(getattr(bound, "pattern", None) for bound in field.metadata):
        return "lower-case letters, digits, `-`, `_`; 63 at most"
    plain = "text" if kind is str else "a list of names"
    return ", ".join(part for part in (span or plain, unit) if part)


_LOW = (("ge", "from"), ("gt", "above"))
_HIGH = (("le", "to"), ("lt", "below"))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case list():
            return f"[{', '.join(_toml(entry) for entry in value)}]"
        case _:
            return str(value)
