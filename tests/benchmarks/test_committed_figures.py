"""The figures that the docs quote are those of the committed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEADER = "| forward + backward, D = 128 | ours | memory | against | times as long | memory |"
ROWS = (
    ("SupConLoss", 64, "eager", "the formula of SupContrast"),
    ("SupConLoss", 512, "eager", "the formula of SupContrast"),
    ("SupConLoss", 1024, "pytorch-metric-learning", "pytorch-metric-learning"),
    ("SupConLoss", 4096, "pytorch-metric-learning", "pytorch-metric-learning"),
    ("SupConLoss", 4096, "eager", "the formula of SupContrast"),
    ("SupConLoss", 4096, "compile", "`torch.compile` of it"),
    ("SupConLoss", 16384, "pytorch-metric-learning", "pytorch-metric-learning"),
    ("NTXentLoss", 64, "eager", "masked cross entropy"),
    ("NTXentLoss", 512, "eager", "masked cross entropy"),
    ("NTXentLoss", 2048, "lightly", "lightly"),
    ("NTXentLoss", 2048, "compile", "`torch.compile` of masked cross entropy"),
    ("InfoNCELoss", 64, "eager", "the formula of open_clip"),
    ("InfoNCELoss", 512, "eager", "the formula of open_clip"),
    ("InfoNCELoss", 4096, "eager", "the formula of open_clip"),
    ("InfoNCELoss", 8192, "eager", "the formula of open_clip"),
)


def _time(seconds: float) -> str:
    return (
        f"{seconds * 1e6:.0f} µs"
        if seconds < 1e-3
        else f"{seconds * 1e3:.3g} ms"
        if seconds < 1
        else f"{seconds:.3g} s"
    )


def _memory(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"


def contrastive_table() -> list[str]:
    """Return the table of docs/contrastive.md."""
    run = json.loads((ROOT / "benchmarks/results/cpu-contrastive.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for case in run["cases"]:
        for timing in case["timings"]:
            if timing["mode"] == "forward_backward" and case["dtype"] == "float32":
                found.setdefault((case["case"], case["size"]["dims"].get("B", 0), timing["contender"]), timing)
    lines = [HEADER, "|---|---|---|---|---|---|"]
    for loss, batch, peer, name in ROWS:
        ours, theirs = found[loss, batch, "ours"], found[loss, batch, peer]
        ratio = theirs["seconds"]["median"] / ours["seconds"]["median"]
        lines.append(
            f"| {loss}, B = {batch} | {_time(ours['seconds']['median'])} | {_memory(ours['peak_bytes'])} | {name} | "
            f"{ratio:.2f} | {_memory(theirs['peak_bytes'])} |"
        )
    return lines


def test_the_table_of_the_contrastive_losses() -> None:
    text = (ROOT / "docs/contrastive.md").read_text(encoding="utf-8").splitlines()
    start = text.index(HEADER)
    table = contrastive_table()
    assert text[start : start + len(table)] == table, "\n" + "\n".join(table)
