"""Tables and pictures from a CSV of runs alone."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from benchmarks.robustness import difference_table, read_rows, regret_view, run_row, summary_table, view_table
from benchmarks.robustness import write_rows as write
from benchmarks.robustness.__main__ import main
from benchmarks.robustness.drawing import save_figure, spread
from benchmarks.robustness.plots import plot_corruption, plot_missing, plot_subsets
from benchmarks.robustness.report import write_report
from benchmarks.robustness.tables import markdown

NAMES = ("audio", "text", "video")
LEVELS = ("clean", "noise@10dB", "noise@0dB", "zeros")


def views(base: float, *, std: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Make the views of a run whose scores all follow from its clean accuracy `base`."""
    subsets = {"+".join(s): base - 0.1 * (3 - len(s)) for n in (3, 2, 1) for s in combinations(NAMES, n)}
    subset = {name: {"accuracy": value, "rows": 50.0} for name, value in subsets.items()}
    spoilt = {
        f"{name}:{level}": {"accuracy": base - 0.05 * i - 0.01 * (name == "video")}
        for name in NAMES
        for i, level in enumerate(LEVELS)
    }
    inner = {label: dict.fromkeys(NAMES, 0.5) for label in spoilt}
    missing = {f"{rate / 10:.1f}": {"accuracy": base - rate / 50} for rate in range(10)}
    missing["mean"] = {"accuracy": base - 0.09}
    special = {name: {"accuracy": 0.7, "rows": 50.0} for name in subset}
    parts = {"test": {"": {"accuracy": base}}, "subset": subset, "missing": missing, "corrupt": spoilt, "weight": inner}
    return {**parts, "regret": regret_view(subset, special), **({"std": inner} if std else {})}


def runs(shift: float = 0.1, seeds: int = 4) -> pd.DataFrame:
    rows = []
    for config, offset in (("baseline", 0.0), ("robust", shift)):
        for seed in range(seeds):
            scores = run_row(views(0.7 + offset + 0.01 * seed, std=config == "robust"))
            rows.append({"config": config, "data": "toy", "seed": seed, "fold": 0, **scores})
    return pd.DataFrame(rows)


def cells(table: str, config: str) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return dict(zip(lines[0], next(line for line in lines if line[0] == config), strict=True))


def test_summary_has_the_figures_computed_by_hand() -> None:
    line = cells(summary_table(runs(), "accuracy"), "baseline")
    assert line["runs"] == "4"
    assert line["clean"].startswith("0.715 ± 0.013 [0.7")
    assert line["mean over subsets"].startswith(f"{0.715 - (3 * 0.1 + 3 * 0.2) / 7:.3f} ± 0.013")
    assert line["worst subset"].startswith("0.515") and line["worst subset"].endswith("(audio)")
    assert line["mean over missing rates"].startswith("0.625")
    # Clean rows of the corruption view are no corruption.
    assert line["mean over corruptions"].startswith(f"{0.715 - 0.1 - 0.01 / 3:.3f}")
    assert line["worst corruption"].startswith("0.555") and line["worst corruption"].endswith("(video:zeros)")
    assert line["mean regret"].startswith(f"{-0.015 + 0.9 / 7:.3f}") and line["worst regret"].startswith("0.185")


def test_differences_are_paired_and_bold_where_the_interval_excludes_zero() -> None:
    line = cells(difference_table(runs(0.1, seeds=5), "baseline", "accuracy"), "robust")
    assert line["pairs"] == "5" and line["clean"] == "**+0.100 [+0.100, +0.100]**"
    assert line["worst regret"] == "**-0.100 [-0.100, -0.100]**"
    table = difference_table(runs(0.0), "baseline", "accuracy")
    assert cells(table, "robust")["clean"] == "+0.000 [+0.000, +0.000]"
    assert "| baseline |" not in table


def test_fewer_than_five_clusters_prove_nothing() -> None:
    line = cells(difference_table(runs(0.1, seeds=4), "baseline", "accuracy"), "robust")
    assert line["clean"] == "+0.100 [+0.100, +0.100]"


def test_errors_get_their_highest_as_worst() -> None:
    frame = runs().rename(columns=lambda name: name.replace("accuracy", "valence_mse"))
    assert cells(summary_table(frame, "valence_mse"), "baseline")["worst subset"].startswith("0.715")


def test_one_run_prints_no_interval_and_empty_cells_a_dash() -> None:
    frame = runs(seeds=1)
    frame.loc[frame["config"] == "robust", "test.accuracy"] = np.nan
    table = summary_table(frame, "accuracy")
    assert cells(table, "baseline")["clean"] == "0.700" and cells(table, "robust")["clean"] == "–"


def test_subset_table_has_a_line_per_subset_and_no_summaries() -> None:
    lines = view_table(runs(), "accuracy", "regret").splitlines()
    assert len(lines) == 2 + 7 and lines[0] == "| subset | baseline | robust |"
    assert lines[2].startswith("| audio+text+video | -0.015 ± 0.013 [")


@pytest.mark.parametrize(
    ("view", "head", "count", "first", "value"),
    [("missing", "missing rate", 10, "0.0", "0.715"), ("corrupt", "corruption", 12, "audio:clean", "0.715")],
)
def test_missing_rates_and_corruptions_have_tables_of_the_same_form(
    view: str, head: str, count: int, first: str, value: str
) -> None:
    lines = view_table(runs(), "accuracy", view).splitlines()
    assert len(lines) == 2 + count and lines[0] == f"| {head} | baseline | robust |"
    assert lines[2].startswith(f"| {first} | {value} ± 0.013 [")


def test_markdown_escapes_its_own_sign() -> None:
    assert markdown(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


def test_wrong_requests() -> None:
    frame = runs()
    with pytest.raises(ValueError, match=r"score among accuracy, .*got 'f1'"):
        summary_table(frame, "f1")
    with pytest.raises(ValueError, match="one data set, got toy, other"):
        summary_table(pd.concat([frame, frame.assign(data="other")]), "accuracy")
    with pytest.raises(ValueError, match="config among baseline, robust, got 'bse'"):
        difference_table(frame, "bse", "accuracy")
    with pytest.raises(ValueError, match=r"columns such as missing\[...\].f1"):
        plot_missing(frame, "f1")
    with pytest.raises(ValueError, match=r"columns such as corrupt\[...\].f1"):
        plot_corruption(frame, ("f1",))
    with pytest.raises(ValueError, match="config among baseline, robust, got 'x'"):
        plot_missing(frame, "accuracy", ["x"])


def test_missing_picture_draws_what_the_file_says() -> None:
    axes = plot_missing(runs(), "accuracy").axes[0]
    drawn = {tuple(np.round(line.get_ydata(), 3)) for line in axes.lines}
    assert drawn == {tuple(np.round(base - np.arange(10) / 50, 3)) for base in (0.715, 0.815)}
    assert len(axes.collections) == 2 and "Missing rate" in axes.get_xlabel() and axes.get_ylabel()
    assert sorted(text.get_text() for text in axes.texts) == ["baseline", "robust"]


def test_names_at_the_line_ends_do_not_overlap_and_are_not_cut() -> None:
    frame = pd.concat([runs().query("config == 'robust'").assign(config=f"config_{i}") for i in range(9)])
    figure = plot_missing(frame, "accuracy")
    FigureCanvasAgg(figure).draw()
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 9
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_heat_map_shows_configurations_by_subset_smallest_first() -> None:
    upper = plot_subsets(runs(), "accuracy").axes[0]
    shown = np.asarray(upper.images[0].get_array())
    assert shown.shape == (2, 7)
    assert shown[0] == pytest.approx([0.515] * 3 + [0.615] * 3 + [0.715])
    assert [label.get_text() for label in upper.get_yticklabels()] == ["baseline", "robust"]
    assert upper.texts[0].get_text() == ".52"


def test_corruption_picture_leaves_out_what_no_run_has() -> None:
    frame = runs()
    assert len(plot_corruption(frame).axes) == 6
    without = frame[[column for column in frame if not column.startswith("std")]]
    figure = plot_corruption(without)
    assert len(figure.axes) == 3 and figure.axes[0].get_title() == "audio spoilt"
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["clean", "10 dB", "0 dB", "zeros"]


@pytest.mark.parametrize("weight", [-4.0, 0.6])
def test_weights_that_are_no_shares_do_not_flatten_the_others(weight: float) -> None:
    """Negative ones, and those of three modalities that are 0.6 each."""
    frame = runs()
    weights = [column for column in frame if column.startswith("weight")]
    frame[weights] /= 3
    frame.loc[frame["config"] == "baseline", weights] = weight
    figure, span = plot_corruption(frame), f"{weight:.2f} to {weight:.2f}".replace("-", "−")
    assert "left out: the weights of baseline" in figure.get_suptitle() and span in figure.get_suptitle()
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < high < 0.5
    assert figure.axes[0].get_ylabel() == "Fusion weight\nof the spoilt modality"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["robust"]
    alone = plot_corruption(frame[frame["config"] == "baseline"].dropna(axis=1))
    assert "left out" not in alone.get_suptitle()
    low, high = alone.axes[0].get_ylim()
    assert low < weight < high


def test_spread_is_the_least_squares_solution() -> None:
    assert spread(np.array([0.0, 10.0]), 1.0).tolist() == [0.0, 10.0]
    assert spread(np.array([1.0, 1.0, 1.0]), 1.0) == pytest.approx([0.0, 1.0, 2.0])
    moved = spread(np.sort(np.random.default_rng(0).random(20)), 0.1)
    assert (np.diff(moved) > 0.1 - 1e-9).all()


def test_report_is_written_from_the_file_alone(tmp_path: Path) -> None:
    write(tmp_path / "runs.csv", runs())
    paths = write_report(read_rows(tmp_path / "runs.csv"), tmp_path, score="accuracy", reference="baseline")
    names = ["summary.md", "missing_rate.png", "subsets.png", "regret.png", "corruption.png", "weights.png"]
    assert [path.name for path in paths] == names
    text = paths[0].read_text()
    assert all(f"]({name})" in text for name in names[1:])
    assert all(title in text for title in ("Difference to baseline", "### Missing rates", "### Corruptions"))
    for path in paths[1:]:
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_set_without_the_reference_has_no_table_of_differences(tmp_path: Path) -> None:
    first, second = runs(), runs()
    second["data"] = "other"
    frame = pd.concat([first, second[second["config"] == "robust"]], ignore_index=True)
    text = write_report(frame, tmp_path, score="accuracy", reference="baseline")[0].read_text()
    assert text.count("Difference to baseline") == 1 and "## other" in text


def test_notes_stand_under_their_tables_and_nothing_is_written_for_an_unknown_reference(tmp_path: Path) -> None:
    frame = runs()[["config", "data", "seed", "fold", "test.accuracy", "subset[text].accuracy"]]
    notes = {"": "About all.", "subset": "About subsets.", "regret": "About what is not there."}
    parts = write_report(frame, tmp_path, score="accuracy", notes=notes)[0].read_text().split("\n\n")
    assert parts.index("About subsets.") == parts.index("### Each subset of the modalities") + 2
    assert parts[3] == "About all." and not any("not there" in part for part in parts)
    with pytest.raises(ValueError, match="reference: expected one of baseline, robust, got 'nope'"):
        write_report(frame, tmp_path / "none", score="accuracy", reference="nope")
    assert not (tmp_path / "none").exists()


def test_pictures_are_the_same_every_time(tmp_path: Path) -> None:
    for name in "ab":
        save_figure(plot_subsets(runs(), "accuracy"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_two_data_sets_get_a_section_and_pictures_each(tmp_path: Path) -> None:
    frame = runs()[["config", "data", "seed", "fold", "test.accuracy", *(f"missing[0.{i}].accuracy" for i in range(3))]]
    paths = write_report(pd.concat([frame, frame.assign(data="b/2")]), tmp_path, score="accuracy")
    assert [path.name for path in paths] == ["summary.md", "toy_missing_rate.png", "b_2_missing_rate.png"]
    assert paths[0].read_text().count("| config |") == 2


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs.csv", runs()[["config", "data", "seed", "fold", "test.accuracy"]])
    assert main([str(tmp_path / "runs.csv"), "--out", str(tmp_path / "out"), "--score", "accuracy"]) == 0
    printed = capsys.readouterr().out
    assert "0.715" in printed and "![" not in printed
    assert main([str(tmp_path / "none.csv"), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "none.csv" in error and error.count("\n") == 1
    assert main([str(tmp_path / "runs.csv"), "--out", str(tmp_path / "new"), "--score", "f1"]) == 1
    assert not (tmp_path / "new").exists()


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "regret.png").write_bytes(b"old")
    frame = runs()
    write_report(frame[[column for column in frame if "regret" not in column]], tmp_path, score="accuracy")
    assert not (tmp_path / "regret.png").exists() and (tmp_path / "subsets.png").exists()
