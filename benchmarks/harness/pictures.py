"""One picture per suite and device: time and memory of the others over ours, and how near ours is to the floor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .report import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHORT = {"forward": "fwd", "forward_backward": "fwd+bwd", "training_step": "step"}
# Shape and colour both tell contenders apart: for print and for colour-blind readers.
_KINDS = {"eager": ("o", "#0072B2"), "compile": ("s", "#E69F00")}
_PEERS = (("D", "#009E73"), ("^", "#CC79A7"), ("v", "#7F7F7F"), ("P", "#D55E00"), ("X", "#000000"), ("*", "#56B4E9"))
_LABELS = {"eager": "eager PyTorch", "compile": "torch.compile of eager"}


class Style(NamedTuple):
    marker: str
    colour: str
    label: str


def draw(document: dict[str, Any], rows: list[Row], path: Path) -> None:
    """Draw the rows of one result into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    height = 1.9 + 0.27 * len(rows)
    figure, (times, memory, floor) = plt.subplots(
        1, 3, figsize=(13, height), sharey=True, gridspec_kw={"width_ratios": [2.2, 1.4, 1.0]}, layout="constrained"
    )
    styles = _styles(rows)
    _ratios(times, rows, styles, "seconds", "time of the other / time of ours")
    _ratios(memory, rows, styles, "peak_bytes", "peak memory, other / ours")
    _floors(floor, rows)
    _labels(times, rows)
    figure.suptitle(_title(document), fontsize=11)
    figure.legend(_handles(styles), [style.label for style in styles.values()], loc="outside lower center", ncols=6,
                  frameon=False, fontsize=9)  # fmt: skip
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _title(document: dict[str, Any]) -> str:
    environment = document["environment"]
    threads = environment["threads"]
    where = f"{environment['device_name']}, {threads} thread{'s' if threads > 1 else ''}, torch {environment['torch']}"
    return f"{document['suite']} on {where}: right of the line, ours is better"


def _styles(rows: list[Row]) -> dict[str, Style]:
    """Give every contender of the picture a marker: fixed ones for eager and compile, the next free one for a peer."""
    names = {name: timing["kind"] for row in rows for name, timing in row.others.items()}
    ordered = sorted(names, key=lambda name: list(_KINDS).index(names[name]) if names[name] in _KINDS else len(_KINDS))
    peers = iter(_PEERS * len(names))
    return {name: Style(*(_KINDS.get(names[name]) or next(peers)), _LABELS.get(name, name)) for name in ordered}


def _ratios(axes: Axes, rows: list[Row], styles: dict[str, Style], quantity: str, title: str) -> None:
    positions: list[float] = []
    for place, row in enumerate(rows):
        shown = [name for name in styles if name in row.others]
        for index, name in enumerate(shown):
            ratio = _ratio(row.others[name][quantity], row.ours[quantity])
            if ratio is None:
                continue
            style, height = styles[name], place + 0.5 * ((index + 0.5) / len(shown) - 0.5)  # side by side, not on top
            if quantity == "seconds":
                spread = _spread(row.others[name]["seconds"], row.ours["seconds"])
                axes.hlines(height, *spread, color=style.colour, alpha=0.5, lw=2)
            axes.plot(ratio, height, style.marker, color=style.colour, ms=6.5, mec="white", mew=0.6)
            positions.append(ratio)
    low, high = min([0.8, *positions]) / 1.25, max([1.25, *positions]) * 1.25
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.axvspan(low, 1, color="#D55E00", alpha=0.07, lw=0)
    axes.axvline(1, color="black", lw=1)
    _ticks(axes, low, high)
    axes.set_title(title, fontsize=10)


def _ratio(other: Any, ours: Any) -> float | None:
    """Return other / ours for medians or bytes; None where one of them is unknown or nothing was allocated."""
    if isinstance(ours, dict):
        return float(other["median"] / ours["median"])
    return other / ours if ours and other else None


def _spread(other: dict[str, float], ours: dict[str, float]) -> tuple[float, float]:
    """Return the widest range that the quartiles of both allow for the ratio."""
    return other["q25"] / ours["q75"], other["q75"] / ours["q25"]


def _ticks(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    steps = (1, 2, 5) if high / low < 100 else (1,)
    marks = [digit * 10.0**power for power in range(-6, 7) for digit in steps]
    axes.xaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="0.88", lw=0.7)
    axes.set_axisbelow(True)


def _floors(axes: Axes, rows: list[Row]) -> None:
    values = [row.ours["percent_of_floor"] for row in rows]
    low = min([1.0, *(value for value in values if value)]) / 1.6
    high = max([100.0, *(value for value in values if value)]) * 6
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    for place, value in enumerate(values):
        if value:
            axes.barh(place, value - low, left=low, height=0.5, color="#56B4E9")
            axes.text(value * 1.15, place, f"{value:.2g} %", va="center", fontsize=8)
    axes.axvline(100, color="black", lw=1)
    _ticks(axes, low, 100.0)
    axes.set_title("ours: % of the floor", fontsize=10)


def _labels(axes: Axes, rows: list[Row]) -> None:
    """Name the rows, and shade every second case to hold its rows together."""
    names = [f"{row.case}  {row.size}  {_SHORT[row.mode]}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    cases = list(dict.fromkeys(row.case for row in rows))
    for place, row in enumerate(rows):
        if cases.index(row.case) % 2:
            for panel in axes.figure.axes:
                panel.axhspan(place - 0.5, place + 0.5, color="0.5", alpha=0.07, lw=0)


def _handles(styles: dict[str, Style]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], marker=s.marker, color=s.colour, linestyle="none", ms=7) for s in styles.values()]
