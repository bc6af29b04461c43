"""What README and documentation show runs, and what they name exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
from fractions import Fraction
from pathlib import Path

import pytest

from mmrobust import ModalityDropout

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]
NOTES = [page for folder in ("benchmarks", "examples") for page in (ROOT / folder).rglob("README*.md")]
PAGES = sorted([*GUIDES, *NOTES])
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WRITTEN = ("runs", "docs/_build")  # what commands make, not what they need


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(page.read_text()) if name == language]


def names(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


def commands() -> list[tuple[str, list[str]]]:
    """Return (page, words) of every command line in a bash block, comments dropped, continued lines joined."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(names([page])[0], words) for line in lines if (words := shlex.split(line, comments=True))]
    return found


def missing_path(word: str) -> bool:
    path = word.partition("=")[2] if word.startswith("--") else word
    looks_like_one = re.fullmatch(r"\.?[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(py|md|txt|yaml|toml)", path)
    return bool(looks_like_one) and not path.startswith(WRITTEN) and not (ROOT / path).exists()


def missing_module(words: list[str]) -> bool:
    if "-m" not in words or not words[0].startswith("python"):
        return False
    module = words[words.index("-m") + 1]
    spec = importlib.util.find_spec(module)
    package = spec is not None and spec.submodule_search_locations is not None
    return spec is None or (package and importlib.util.find_spec(f"{module}.__main__") is None)


@pytest.mark.parametrize("name", names([page for page in GUIDES if blocks(page, "python")]))
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(ROOT / name, "python")):
        exec(compile(block, f"{name}, python block {number}", "exec"), namespace)


@pytest.mark.parametrize(("name", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_name_what_exists(name: str, words: list[str]) -> None:
    missing = [word for word in words if missing_path(word)]
    assert not missing, f"{name}: `{' '.join(words)}` names {missing}, which is not there"
    assert not missing_module(words), f"{name}: `{' '.join(words)}` runs a module that is not there"
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word and word != "&&"]
        unknown = {target for target in targets if target != "make"} - TARGETS
        assert not unknown, f"{name}: `{' '.join(words)}`: the Makefile has no {sorted(unknown)}"


@pytest.mark.parametrize("name", names(PAGES))
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken, f"{name} links to {broken}"


def test_schedule_table_is_exact() -> None:
    table = (ROOT / "docs" / "concepts.md").read_text().partition("| epoch |")[2].partition("\n\n")[0]
    header, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    schedules = [tuple(map(int, re.findall(r"\d+", cell))) for cell in header]
    assert len(schedules) == 4
    assert len(rows) > 5
    for epoch, *shares in rows:
        for (delay, ramp), share in zip(schedules, shares, strict=True):
            drop = ModalityDropout(0.5, warmup_epochs=delay, ramp_epochs=ramp)
            drop.set_epoch(int(epoch))
            assert float(drop.schedule.factor()) == pytest.approx(float(Fraction(share)))


def test_first_page_has_an_example() -> None:
    assert blocks(ROOT / "README.md", "python")
    assert any(words[:2] == ["make", "test"] for name, words in commands() if name == "README.md")


def test_paths_and_modules_are_noticed() -> None:
    assert missing_path("examples/mer/configs/nonexistent.yaml")
    assert missing_path("--config=examples/nonexistent.yaml")
    assert not any(map(missing_path, ["$MMROBUST_DATA/x.npz", "runs/x/y.csv", "constraints.txt", "tests/conftest.py"]))
    assert missing_module(["python", "-m", "tests.nonexistent"])
    assert not missing_module(["python", "-m", "pytest", "-x"])
