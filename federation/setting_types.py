"""What all settings have in common, whoever defines them: run files, methods, codecs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, no silent coercion of text or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ChosenByName:
    """Marks a field whose settings are those of the method or codec that its `name` names.

    Args:
        table: name -> the settings of what is called so.
        default: what a table without a name means.
        check_own: returns the settings of what is named `package.module:Name`; raises a ValueError where they are wrong.
    """

    def __init__(self, table: Mapping[str, type[Settings]], *, default: str, check_own: Callable[[Any], Settings]) -> None:
        self._table = table
        self._default = default
        self._check_own = check_own

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a union that is told apart by the name; errors are named as the run file spells the key."""
        common = [(name, field) for name, field in source.model_fields.items() if name != "name"]
        choices: dict[Any, CoreSchema] = {f"({name})": handler.generate_schema(kind) for name, kind in self._table.items()}
        # Under a wrong name only what all have in common can be looked at.
        fields = {name: core_schema.typed_dict_field(handler.generate_schema(field.annotation), required=False) for name, field in common}
        fields["name"] = core_schema.typed_dict_field(core_schema.literal_schema(sorted(self._table)), required=True)
        choices["(unknown)"] = core_schema.typed_dict_schema(fields, extra_behavior="ignore", config=core_schema.CoreConfig(strict=True))
        choices["(own)"] = core_schema.no_info_plain_validator_function(self._check_own)
        return core_schema.tagged_union_schema(choices, self._tag_of)

    def _tag_of(self, value: Any) -> str:
        name = value.get("name", self._default) if isinstance(value, Mapping) else getattr(value, "name", None)
        if not isinstance(name, str):
            return "(unknown)"
        return f"({name})" if name in self._table else "(own)" if ":" in name else "(unknown)"


def describe_settings_error(error: ValidationError, owner: str) -> str:
    """Return the first thing that is wrong with the settings of a method or codec, as `key: what`."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {owner} has no such setting" if problem["type"] == "extra_forbidden" else f"{place}: {problem['msg']}"
