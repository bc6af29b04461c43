"""Result files: strict JSON (no NaN), written whole or not at all, and checked against the schema."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_SCHEMA = Path(__file__).with_name("result.schema.json")


class ResultError(ValueError):
    """A result file that cannot be used; the message names the file."""


def schema() -> dict[str, Any]:
    """Return the JSON schema of a result file."""
    loaded: dict[str, Any] = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return loaded


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document, replacing the old file in one move; NaN and Inf are errors."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def validate(document: Any, name: str = "document") -> None:
    """Raise ResultError unless the document fits the schema (needs jsonschema, in the ``bench`` extra)."""
    import jsonschema

    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(document))
    if problem is not None:
        where = "/".join(map(str, problem.absolute_path)) or "the top level"
        raise ResultError(f"{name}: at {where}: {problem.message[:200]}")


def read(path: Path) -> dict[str, Any]:
    """Read and check one result file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: expected a strict JSON result file: {error}") from None
    validate(document, str(path))
    return dict(document)


def read_folder(folder: Path) -> list[dict[str, Any]]:
    """Read every result of a folder, in the order of device and suite."""
    if not folder.is_dir():
        raise ResultError(f"{folder}: expected a folder with the JSON files of a benchmark run")
    documents = [read(path) for path in sorted(folder.glob("*.json"))]
    if not documents:
        raise ResultError(f"{folder}: expected at least one .json file, found none")
    return documents


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
