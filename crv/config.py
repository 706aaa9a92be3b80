"""A config declared by a dataclass: default, meaning, type and range of every field, in one place.

`default_config` makes the ConfigDict that a config file begins with; `read_config` checks one. A field that is a
dataclass is a section; a `Mapping[str, SomeDataclass]` has a section for each of its `choices`.
"""

import collections.abc
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from cogpo_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import config_dict

T = TypeVar("T")
_ABSENT = object()


def option(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    free: bool = False,
) -> Any:
    """A field: its default, what it means (with its unit), its range or choices.

    `free`: it may change between two starts of one run, since it says where and how fast, not what comes out.
    """
    about = {"meaning": meaning, "low": low, "high": high, "choices": choices, "free": free}
    make = (lambda: dict(default)) if isinstance(default, dict) else (lambda: default)
    return dataclasses.field(default_factory=make, metadata=about)


def default_config(kind: type) -> "config_dict.ConfigDict":
    """A ConfigDict with every field of `kind` at its default; an optional one is None (unset)."""
    from ml_collections import config_dict

    config = config_dict.ConfigDict()
    for field, hint in _fields(kind):
        if dataclasses.is_dataclass(hint):
            config[field.name] = default_config(typing.cast(type, hint))
        elif named := _named(hint):
            config[field.name] = config_dict.ConfigDict({n: default_config(named) for n in field.metadata["choices"]})
        elif types.NoneType in (kinds := typing.get_args(hint)):
            config[field.name] = config_dict.placeholder(_plain_type(kinds[0]))
        elif isinstance(value := _default(field), dict):  # --config.pool.extra_body="{'top_k': 20}"
            config[field.name] = config_dict.FieldReference(value or None, field_type=object)
        else:
            config[field.name] = value
    return config


def read_config(kind: type[T], config: Mapping[str, Any], prefix: str = "") -> T:
    """A dataclass of options from a config; a missing field has its default. UserError names the first bad field."""
    rows = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    values: dict[str, Any] = {}
    for field, hint in _fields(kind):
        name, value = prefix + field.name, rows.pop(field.name, _ABSENT)
        named = _named(hint)
        if dataclasses.is_dataclass(hint) or named:
            value = {} if value is _ABSENT else value
            if not isinstance(value, Mapping):
                raise UserError(f"{name}: {value!r}: must be a section with fields of its own")
            if named:
                values[field.name] = _read_named(named, value, name, field.metadata["choices"])
            else:
                values[field.name] = read_config(typing.cast(type, hint), value, f"{name}.")
        elif value is not _ABSENT:
            values[field.name] = _checked(name, value, hint, field.metadata)
    if rows:
        raise UserError(f"{prefix}{min(rows, key=str)}: no such config field; `{kind.__module__}` has the known ones")
    return kind(**values)


def _read_named(kind: type, config: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """The sections of a mapping in which anything is set."""
    for choice in config:
        if choice not in choices:
            raise UserError(f"{name}.{choice}: there is no such one; there are {', '.join(choices)}")
    found: dict[str, Any] = {
        choice: read_config(kind, fields, f"{name}.{choice}.") for choice, fields in sorted(config.items())
    }
    return {choice: own for choice, own in found.items() if own != kind()}


def _fields(kind: type) -> list[tuple["dataclasses.Field[Any]", Any]]:
    hints = typing.get_type_hints(kind)
    return [(field, hints[field.name]) for field in dataclasses.fields(typing.cast(Any, kind))]


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _named(hint: Any) -> type | None:
    """The dataclass of a `Mapping[str, SomeDataclass]`; None for any other type."""
    if typing.get_origin(hint) is not collections.abc.Mapping:
        return None
    inner = typing.get_args(hint)[1]
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def _plain_type(hint: Any) -> type:
    origin = typing.get_origin(hint) or hint
    return object if origin is collections.abc.Mapping else origin


def _checked(name: str, value: Any, hint: Any, about: Mapping[str, Any]) -> Any:
    """The value of one field, of its type and in its range."""
    if types.NoneType in typing.get_args(hint):
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    if hint is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name}: {value!r}: must be True or False")
    elif hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        low, high = about["low"], about["high"]
        wanted = "a whole number" if hint is int else "a number"
        wanted += "" if low is None else f" of at least {low}"
        wanted += "" if high is None else f" and at most {high}"
        if isinstance(value, bool) or not isinstance(value, kinds) or not abs(value) < float("inf"):
            raise UserError(f"{name}: {value!r}: must be {wanted}")
        if (low is not None and value < low) or (high is not None and value > high):
            raise UserError(f"{name}: {value}: must be {wanted}")
        value = hint(value)
    elif hint == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{name}: {value!r}: must be a tuple of texts")
        value = tuple(value)
    elif typing.get_origin(hint) is collections.abc.Mapping:
        value = {} if value is None else value.to_dict() if hasattr(value, "to_dict") else value
        try:
            if not isinstance(value, Mapping):
                raise TypeError("no names")
            value = dict(json.loads(json.dumps(value)))
        except TypeError as error:
            raise UserError(f"{name}: {value!r}: must be named JSON values, e.g. {{'top_k': 20}}") from error
    elif not isinstance(value, str):
        raise UserError(f"{name}: {value!r}: must be a text")
    if about["choices"] and value not in about["choices"]:
        raise UserError(f"{name}: {value!r}: must be {' or '.join(about['choices'])}")
    return value
