"""What all settings have in common, whoever defines them: run files, methods, codecs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, no silent coercion of text or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def describe_settings_error(error: ValidationError, owner: str) -> str:
    """Return the first thing that is wrong with the settings of a method or codec, as `key: what`."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {owner} has no such setting" if problem["type"] == "extra_forbidden" else f"{place}: {problem['msg']}"
