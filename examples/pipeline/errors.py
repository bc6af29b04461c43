"""Errors of data and options: one line that says what was given and what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
DEBUG = "PIPELINE_DEBUG"  # this variable lets errors through with their traceback, in processes of `ablate` too


class DataError(ValueError):
    """Input that cannot be used; the message is one line: file, key or row, and what is expected."""


def check_option(name: str, value: T, allowed: Collection[object]) -> T:
    """Return ``value``; raise ``DataError`` unless it is one of ``allowed``."""
    if value not in allowed:
        raise DataError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {value!r}")
    return value


def check_number(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{where}: expected {low} to {high}, got {value}")


def check_options(
    where: str, options: Mapping[str, Any] | None, kind: type, *, exclude: frozenset[str]
) -> dict[str, Any]:
    """Check the names in `options` against the constructor of `kind`: none unknown, none missing."""
    options = dict(options or {})
    parameters = {
        name: parameter for name, parameter in inspect.signature(kind).parameters.items() if name not in exclude
    }
    for name in options:
        if name not in parameters:
            raise ValueError(f"{where}: unknown option {name!r}; allowed: {', '.join(sorted(parameters))}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise ValueError(f"{where}: option {name!r} is required")
    return options
