"""The rules of the source tree: what may import what, how long things get, and what never appears.

Every rule is a function from a module's source to a list of offences, so that the last test can show each of them
catching an offender.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "mmrobust").rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

MAX_FILE = 300
MAX_BODY = 35
TOO_LONG: set[str] = set()  # "file" or "file:function"; splitting is nearly always better than a name here

LEVELS = {
    **dict.fromkeys(["masking", "corruption", "distributed", "_kernels"], 0),
    **dict.fromkeys(["encoders", "fusion", "attention", "asrm", "prototypes", "presence"], 1),
    **dict.fromkeys(["losses", "memory", "data", "quality", "calibration", "gradient_cache"], 1),
    **dict.fromkeys(["models", "analysis"], 2),
    **dict.fromkeys(["", "functional"], 3),  # "" is mmrobust/__init__.py
}
ALLOWED = {"torch", "numpy", "typing_extensions", "mmrobust", *sys.stdlib_module_names}
KERNELS = {"triton"}  # allowed in mmrobust/_kernels alone
SYNCS = {"item", "cpu", "cuda"}
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


class Import(NamedTuple):
    module: str  # absolute
    line: int
    lazy: bool  # inside a function


def parts_of(name: str) -> list[str]:
    """Return the dotted parts of a file's package: ``mmrobust/losses/x.py`` -> ``[mmrobust, losses]``."""
    return list(Path(name).parent.parts)


def imports(name: str, tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = parts_of(name)
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            # `from . import x` names modules, `from .x import y` a module and what is in it.
            whole = [f"{module}.{alias.name}" for alias in node.names] if module == "mmrobust" else [module]
            yield from (Import(target, node.lineno, lazy) for target in whole)
        else:
            yield from imports(name, node, lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def unit_of(module: str) -> str:
    """Return the first part below the package: ``mmrobust.losses.variational`` -> ``losses``."""
    return [*module.split("."), ""][1].removesuffix("__init__")


def level_of(unit: str) -> int:
    if unit in LEVELS:
        return LEVELS[unit]
    # A private module is a helper of everybody; any other name below the package is one that mmrobust re-exports.
    return 0 if unit.startswith("_") else LEVELS[""]


def module_of(name: str) -> str:
    return ".".join(Path(name).with_suffix("").parts)


def arrows(name: str, tree: ast.Module) -> list[str]:
    unit = unit_of(module_of(name))
    level = level_of(unit)
    found = []
    for target in imports(name, tree):
        if not target.module.startswith("mmrobust"):
            continue
        other = unit_of(target.module)
        down = level_of(other) < level or other == unit or (level_of(other) == level == 0)
        if not down and level < 3:
            found.append(f"line {target.line}: {unit} (level {level}) imports {target.module} ({level_of(other)})")
    return found


def eager_kernels(name: str, tree: ast.Module) -> list[str]:
    if "_kernels" in parts_of(name):
        return []
    return [
        f"line {target.line}: {target.module} belongs inside the function that uses it"
        for target in imports(name, tree)
        if unit_of(target.module) == "_kernels" and not target.lazy
    ]


def foreign_imports(name: str, tree: ast.Module) -> list[str]:
    return [
        f"line {target.line}: {target.module} is no dependency of the package"
        for target in imports(name, tree)
        if target.module.partition(".")[0] not in (ALLOWED | KERNELS if "_kernels" in parts_of(name) else ALLOWED)
    ]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def long_bodies(name: str, tree: ast.Module) -> list[str]:
    found = []
    for function in functions(tree):
        body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        if lines > MAX_BODY and f"{name}:{function.name}" not in TOO_LONG:
            found.append(f"line {function.lineno}: the body of {function.name} has {lines} lines, at most {MAX_BODY}")
    return found


def mutable_defaults(name: str, tree: ast.Module) -> list[str]:
    found = []
    for function in functions(tree):
        for default in [*function.args.defaults, *function.args.kw_defaults]:
            made = isinstance(default, ast.Call) and isinstance(default.func, ast.Name)
            if isinstance(default, MUTABLE) or (made and default.func.id in {"list", "dict", "set"}):
                found.append(f"line {default.lineno}: {function.name} has a mutable default")
    return found


def prints(name: str, tree: ast.Module) -> list[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f"line {c.lineno}: print" for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def host_syncs(name: str, tree: ast.Module) -> list[str]:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f"line {f.lineno}: .{f.attr}()" for f in calls if isinstance(f, ast.Attribute) and f.attr in SYNCS]


def multihead_attention(name: str, tree: ast.Module) -> list[str]:
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [f"line {a.lineno}: nn.{a.attr}" for a in attributes if a.attr == "MultiheadAttention"]


Rule = Callable[[str, ast.Module], list[str]]
RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        arrows,
        eager_kernels,
        foreign_imports,
        long_bodies,
        mutable_defaults,
        prints,
        host_syncs,
        multihead_attention,
    )
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str, name: str) -> None:
    offences = RULES[rule](name, ast.parse((ROOT / name).read_text()))
    assert not offences, "\n".join(f"{name}, {offence}" for offence in offences)


@pytest.mark.parametrize("name", NAMES)
def test_file_length(name: str) -> None:
    lines = len((ROOT / name).read_text().splitlines())
    assert lines <= MAX_FILE or name in TOO_LONG, f"{name} has {lines} lines, at most {MAX_FILE}: split it"


def test_every_module_has_a_level() -> None:
    units = {unit_of(module_of(name)) for name in NAMES}
    unplaced = {unit for unit in units if unit not in LEVELS and not unit.startswith("_")}
    assert not unplaced, f"give {sorted(unplaced)} a level in LEVELS"


def test_no_import_cycle() -> None:
    modules = {module_of(name).removesuffix(".__init__"): name for name in NAMES}
    graph = {
        module: {t.module for t in imports(name, ast.parse((ROOT / name).read_text())) if t.module in modules}
        for module, name in modules.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules)


def test_there_is_something_to_check() -> None:
    assert {"mmrobust/__init__.py", "mmrobust/masking.py"} <= set(NAMES)
    assert {entry.partition(":")[0] for entry in TOO_LONG} <= set(NAMES), "TOO_LONG names a file that is gone"


OFFENDERS = {
    "arrows": [
        ("mmrobust/masking.py", "from .encoders import MLPEncoder"),
        ("mmrobust/fusion.py", "from .encoders import MLPEncoder"),
        ("mmrobust/losses/variational.py", "def f():\n    from ..models import text"),
        ("mmrobust/models/text.py", "from mmrobust import functional"),
        ("mmrobust/models/text.py", "from mmrobust import MLPEncoder"),
        ("mmrobust/_checks.py", "import mmrobust.fusion"),
    ],
    "eager_kernels": [("mmrobust/losses/contrastive.py", "from .._kernels import sup_con")],
    "foreign_imports": [
        ("mmrobust/fusion.py", "import scipy.stats"),
        ("mmrobust/fusion.py", "from einops import rearrange"),
        ("mmrobust/fusion.py", "def f():\n    import triton"),
    ],
    "long_bodies": [("mmrobust/fusion.py", "def f():\n" + "    x = 1\n" * (MAX_BODY + 1))],
    "mutable_defaults": [
        ("mmrobust/fusion.py", "def f(a, b=[]): ..."),
        ("mmrobust/fusion.py", "def f(*, b=dict()): ..."),
    ],
    "prints": [("mmrobust/fusion.py", "print(1)")],
    "host_syncs": [("mmrobust/fusion.py", "x.sum().item()"), ("mmrobust/fusion.py", "x.cpu()")],
    "multihead_attention": [("mmrobust/attention/proxy.py", "nn.MultiheadAttention(8, 2)")],
}
INNOCENT = """
from __future__ import annotations

import math
import numpy as np
import torch
from typing_extensions import Self
from .._checks import check_shape
from ..masking import masked_mean
from .classification import focal_loss

def f(x, y=(), z=None):
    '''Return x.'''
    from .._kernels import sup_con
    return x
"""


@pytest.mark.parametrize("rule", RULES)
def test_rules_catch_offenders(rule: str) -> None:
    for name, source in OFFENDERS[rule]:
        assert RULES[rule](name, ast.parse(source)), f"{rule} lets this pass in {name}:\n{source}"
    assert RULES[rule]("mmrobust/losses/contrastive.py", ast.parse(INNOCENT)) == []
