"""Methods and codecs by the names that run files call them: the table's own, or one of the site's (federation/learning/own_code.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from federation.errors import SettingsError
from federation.learning.own_code import is_own, load_own
from federation.setting_types import describe_settings_error

K = TypeVar("K")
S = TypeVar("S", bound=BaseModel)


def kind_of(name: str, kinds: Mapping[str, type[K]], base: type[Any], *, word: str) -> type[K]:
    """Return the kind of a name.

    Args:
        name: as a run file has it.
        kinds: the table's.
        base: what one of the site's own must be.
        word: what they are, for the error.

    Raises:
        SettingsError: there is none.
    """
    if is_own(name):
        own: type[K] = load_own(name, base)
        return own
    kind = kinds.get(name)
    if kind is None:
        raise SettingsError(f"there is no {word} {name!r}; there are {', '.join(sorted(kinds))}")
    return kind


def check_named(values: object, base: type[S], *, default: str, settings_of: Callable[[str], type[S]]) -> S:
    """Return the settings of one kind, checked by the kind itself.

    Args:
        values: a table with its name, or settings that were checked already.
        base: of all such settings.
        default: the name where none is given.
        settings_of: name -> the settings of that kind.

    Raises:
        ValueError: there is no such kind, or a setting is not one of its own or out of bounds.
    """
    if isinstance(values, base):
        return values
    if not isinstance(values, Mapping) or not isinstance(name := values.get("name", default), str):
        raise ValueError("give a table with a name")  # noqa: TRY004 - pydantic takes ValueErrors alone
    try:
        return settings_of(name).model_validate({"name": name, **values})
    except ValidationError as error:
        raise ValueError(describe_settings_error(error, name)) from None
    except SettingsError as error:
        raise ValueError(f"name: {error}") from None
