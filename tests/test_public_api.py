"""The inventory of public names and signatures: nothing changes or disappears without a line of diff here.

After a wanted change: ``python -m tests.test_public_api`` rewrites ``tests/public_api.txt``.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmrobust
import mmrobust.distributed
import mmrobust.functional

INVENTORY = Path(__file__).with_name("public_api.txt")
DOCS = INVENTORY.parents[1] / "docs"
NAMESPACES = {"mmrobust": mmrobust, "mmrobust.functional": mmrobust.functional}
DOCUMENTED = {**NAMESPACES, "mmrobust.distributed": mmrobust.distributed}


class Raw(str):
    """An annotation that prints itself without the quotes of postponed evaluation."""

    __repr__ = str.__str__


def signature(function: object) -> str:
    """Return the signature with annotations as they are written."""
    assert callable(function)
    whole = inspect.signature(function)

    def bare(annotation: object) -> object:
        return Raw(annotation) if isinstance(annotation, str) else annotation

    parameters = [p.replace(annotation=bare(p.annotation)) for p in whole.parameters.values() if p.name != "self"]
    return str(whole.replace(parameters=parameters, return_annotation=bare(whole.return_annotation)))


def entries(name: str, value: object) -> Iterator[str]:
    if isinstance(value, types.ModuleType):
        yield f"module {name}"
    elif isinstance(value, type) and hasattr(value, "_fields"):
        yield f"namedtuple {name}({', '.join(value._fields)})"
    elif isinstance(value, type):
        yield f"class {name}{signature(value)}"
        for method, member in sorted(vars(value).items()):
            if inspect.isfunction(member) and not method.startswith("_") and method != "extra_repr":
                yield f"  {method}{signature(member)}"
            elif isinstance(member, property):
                yield f"  {method}: property"
    elif inspect.isfunction(value):
        yield f"def {name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def inventory() -> str:
    lines = ["# mmrobust"]
    for name in sorted(mmrobust.__all__):
        lines += entries(name, getattr(mmrobust, name))
    lines += ["# mmrobust.functional", *sorted(mmrobust.functional.__all__)]
    lines += ["# mmrobust.distributed"]
    for name in sorted(mmrobust.distributed.__all__):
        lines += entries(name, getattr(mmrobust.distributed, name))
    return "\n".join(lines) + "\n"


def test_inventory() -> None:
    diff = difflib.unified_diff(
        INVENTORY.read_text().splitlines(), inventory().splitlines(), "tests/public_api.txt", "the package", lineterm=""
    )
    text = "\n".join(diff)
    assert not text, f"{text}\n\nIf this is wanted: python -m tests.test_public_api, and a line in CHANGELOG.md."


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_all_is_whole(namespace: str) -> None:
    module = NAMESPACES[namespace]
    assert len(module.__all__) == len(set(module.__all__))
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("mmrobust.")
    }
    assert public <= set(module.__all__), f"{namespace}.__all__ lacks {sorted(public - set(module.__all__))}"


def test_functional_holds_every_function_and_nothing_else() -> None:
    functions = {name for name in mmrobust.__all__ if inspect.isfunction(getattr(mmrobust, name))}
    assert set(mmrobust.functional.__all__) == functions
    for name in functions:
        assert getattr(mmrobust.functional, name) is getattr(mmrobust, name)


@pytest.mark.parametrize("namespace", DOCUMENTED)
def test_everything_public_is_documented(namespace: str) -> None:
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    for name in DOCUMENTED[namespace].__all__:
        value = getattr(DOCUMENTED[namespace], name)
        if inspect.isfunction(value) or isinstance(value, type):
            assert (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"
            assert re.search(rf":: (\S+\.)?{name}$", pages, re.MULTILINE), f"docs/api lists no {name}"


if __name__ == "__main__":
    INVENTORY.write_text(inventory())
