"""Tables and pictures from the JSON files alone: nothing is measured here, wins and losses are treated alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Document = dict[str, Any]
MODES = {"forward": "forward", "forward_backward": "forward + backward", "training_step": "training step"}


@dataclass(frozen=True)
class Row:
    """One case at one size in one mode: the timing of ours and those of the others by contender name."""

    case: str
    size: str
    mode: str
    ours: dict[str, Any]
    others: dict[str, dict[str, Any]]

    def ratio(self, contender: str) -> float:
        """Return how many times longer a contender takes than ours."""
        return float(self.others[contender]["seconds"]["median"] / self.ours["seconds"]["median"])

    def strongest(self) -> str | None:
        """Return the fastest of the others."""
        return min(self.others, key=lambda name: self.others[name]["seconds"]["median"], default=None)

    def verdict(self) -> str:
        """Return faster, slower or equal, against the strongest; equal when the quartile ranges overlap."""
        name = self.strongest()
        if name is None:
            return "alone"
        ours, other = self.ours["seconds"], self.others[name]["seconds"]
        if ours["q25"] <= other["q75"] and other["q25"] <= ours["q75"]:
            return "equal"
        return "faster" if ours["median"] < other["median"] else "slower"


def rows(document: Document) -> Iterator[Row]:
    """Walk over the timed rows of a result."""
    for record in document["cases"]:
        for mode in MODES:
            timed = {t["contender"]: t for t in record["timings"] if t["mode"] == mode}
            if "ours" in timed:
                ours = timed.pop("ours")
                yield Row(record["case"], record["size"]["name"], mode, ours, timed)


def markdown(documents: list[Document], pictures: dict[str, str]) -> str:
    """Return the whole report; ``pictures`` maps "device-suite" to a file name."""
    sections = [_section(document, pictures.get(key(document))) for document in documents]
    return "\n".join(["# Benchmark report\n", _reading(), _overview(documents), *sections])


def key(document: Document) -> str:
    return f"{document['environment']['device']}-{document['suite']}"


def _reading() -> str:
    return (
        "Times are medians, with the quartiles in brackets. A ratio says how many times longer the other takes than\n"
        "ours: above 1 ours is faster, **below 1 ours is slower** (bold). Memory is the peak above what was held\n"
        "before the call. *% of floor* is the time of one plain copy of the bytes that must move, or of a matrix\n"
        "product of the operations that must be done, over the time of ours.\n"
    )


def _overview(documents: list[Document]) -> str:
    lines = ["| suite | device | rows | faster | equal | slower | failed |", "|---|---|---|---|---|---|---|"]
    for document in documents:
        verdicts = [row.verdict() for row in rows(document)]
        broken = sum(record["status"] != "ok" for record in document["cases"])
        counts = " | ".join(str(verdicts.count(word)) for word in ("faster", "equal", "slower"))
        device = document["environment"]["device"]
        state = "" if document["complete"] else " (interrupted)"
        state += " (a part)" if "only" in document["settings"] else ""
        lines.append(f"| {document['suite']}{state} | {device} | {len(verdicts)} | {counts} | {broken} |")
    note = "Verdicts compare ours with the fastest other contender; equal means that the quartile ranges overlap.\n"
    return "\n".join(["## Overview\n", note, *lines, "", *_targets(documents)])


def _targets(documents: list[Document]) -> list[str]:
    lines = [
        f"| {_target(target, record, document)} |"
        for document in documents
        for record in document["cases"]
        for target in record["targets"]
    ]
    if not lines:
        return []
    return ["| promise | size | device | target | reached | met |", "|---|---|---|---|---|---|", *lines, ""]


def _target(target: dict[str, Any], record: dict[str, Any], document: Document) -> str:
    """Write the cells of one promise; limits are found in the order of their keys."""
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "at_least": (">=", lambda ratio: f"{ratio:.3g} x"),
        "seconds_at_most": ("<=", duration),
        "bytes_at_most": ("<=", amount),
        "error_at_most": ("<=", lambda error: f"{error:.1e}"),
    }
    limit = next(name for name in shown if target.get(name) is not None)
    sign, write = shown[limit]
    reached = "not measured" if target["met"] is None else "not finite"
    if target["measured"] is not None:
        reached = write(target["measured"])
    met = {True: "yes", False: "**no**", None: "unknown"}[target["met"]]
    device = document["environment"]["device"]
    return " | ".join([target["claim"], record["size"]["name"], device, f"{sign} {write(target[limit])}", reached, met])


def _section(document: Document, picture: str | None) -> str:
    environment = document["environment"]
    lines = [f"## {document['suite']} on {environment['device']}\n", _provenance(document)]
    if picture:
        lines.append(f"![{document['suite']} on {environment['device']}]({picture})\n")
    lines += [*_table(list(rows(document))), ""]
    lines += [*_problems(document)]
    return "\n".join(lines)


def _provenance(document: Document) -> str:
    e, s = document["environment"], document["settings"]
    threads = f"{e['threads']} thread{'s' if e['threads'] > 1 else ''}"
    commit = (e["commit"] or "unknown")[:12] + (" with local changes" if e["dirty"] else "")
    fastest = max(document["ceilings"]["copy"], key=lambda copy: copy["bytes_per_second"])
    matmul = document["ceilings"]["matmul"]["flops_per_second"]
    return (
        f"{e['device_name']}, {threads}, torch {e['torch']}, Python {e['python']}, {e['date']}; commit "
        f"{commit}, source {e['source_sha256'][:12]}; sizes `{s['sizes']}`, torch.compile backend "
        f"`{s['compile_backend']}`. Measured ceilings: copy {fastest['bytes_per_second'] / 1e9:.3g} GB/s (at "
        f"{amount(fastest['bytes'])}), float32 matrix product {matmul / 1e12:.3g} TFLOP/s.\n"
    )


def _table(found: list[Row]) -> list[str]:
    lines = [
        "| case | size | mode | ours | vs eager | vs compile | vs peers | memory: ours / eager | % of floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        peers = [name for name, timing in row.others.items() if timing["kind"] == "peer"]
        cells = [
            row.case,
            row.size,
            MODES[row.mode],
            _times(row.ours["seconds"]),
            _ratio(row, "eager"),
            _ratio(row, "compile"),
            "<br>".join(f"{name} {_ratio(row, name)}" for name in peers) or "-",
            _memory(row),
            "-" if row.ours["percent_of_floor"] is None else f"{row.ours['percent_of_floor']:.2g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _times(seconds: dict[str, float]) -> str:
    return f"{duration(seconds['median'])} [{duration(seconds['q25'])}, {duration(seconds['q75'])}]"


def _ratio(row: Row, contender: str) -> str:
    if contender not in row.others:
        return "-"
    ratio = row.ratio(contender)
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def _memory(row: Row) -> str:
    eager = row.others.get("eager", {}).get("peak_bytes")
    ours = row.ours["peak_bytes"]
    return "-" if ours is None else amount(ours) + ("" if eager is None else f" / {amount(eager)}")


def _problems(document: Document) -> Iterable[str]:
    """List what failed and what was left out, with the reasons."""
    failed = [
        f"- **{r['case']}** ({r['size']['name']}) {r['status']}: {r['message']}"
        for r in document["cases"]
        if r["status"] != "ok"
    ]
    skipped: dict[tuple[str, str], list[str]] = {}
    for r in document["cases"]:
        for item in r["skipped"]:
            skipped.setdefault((item["contender"], item["reason"]), []).append(f"{r['case']} ({r['size']['name']})")
    notes = dict.fromkeys((t["contender"], t["note"]) for r in document["cases"] for t in r["timings"] if t["note"])
    yield from ["Failed, and therefore not timed:\n", *failed, ""] if failed else []
    parts = [_parts(r, mode, found) for r in document["cases"] for mode, found in r.get("profile", {}).items()]
    yield from ["Where the time of ours goes:\n", *parts, ""] if parts else []
    if notes:
        yield from ["Contenders:\n", *(f"- *{name}*: {note}" for name, note in notes), ""]
    if skipped:
        lines = [f"- {name}, {reason}: {', '.join(where)}" for (name, reason), where in skipped.items()]
        yield from ["Left out:\n", *lines, ""]


def _parts(record: dict[str, Any], mode: str, found: list[dict[str, Any]]) -> str:
    shares = ", ".join(f"{part['part']} {part['share']:.0%}" for part in found)
    total = sum(part["seconds"] for part in found)
    return f"- {record['case']} ({record['size']['name']}), {MODES[mode]}, {duration(total)} in the profiler: {shares}"


def duration(seconds: float) -> str:
    """Write seconds with three digits and a fitting unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale * 0.9995:
            return f"{seconds / scale:.3g} {unit}" if seconds < scale * 999.5 else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def amount(size: float) -> str:
    """Write a number of bytes with a fitting unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def make(documents: list[Document], folder: Path) -> list[Path]:
    """Write ``report.md`` and one picture per suite and device into ``folder``; return the files."""
    from .pictures import draw

    pictures = {}
    for document in documents:
        found = list(rows(document))
        if any(row.ours["peak_bytes"] is not None for row in found):  # nothing to see in two numbers of a process
            name = f"{key(document)}.png"
            draw(document, found, folder / name)
            pictures[key(document)] = name
    report = folder / "report.md"
    report.write_text(markdown(documents, pictures), encoding="utf-8")
    return [report, *(folder / name for name in pictures.values())]
