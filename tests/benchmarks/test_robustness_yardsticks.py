"""The gap to specialists, and the tables and pictures of yardsticks and confidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.robustness import (
    auroc_table,
    calibration_measures,
    difference_table,
    gap_view,
    run_row,
    summary_table,
    view_table,
    yardstick_table,
)
from benchmarks.robustness.calibration_plots import plot_reliability, plot_selective, pool_bins
from benchmarks.robustness.report import write_report
from tests.benchmarks.test_robustness_report import cells

SPECIALISTS = {
    "a+b+c": {"accuracy": 0.9, "valence_mse": 1.0, "rows": 10.0},
    **{
        name: {"accuracy": 0.1 * i, "valence_mse": 2.0, "rows": 10.0} for i, name in enumerate(("a+b", "a+c", "b+c"), 5)
    },
    **{name: {"accuracy": 0.4, "valence_mse": 3.0, "rows": 10.0} for name in "abc"},
}


def test_gap_is_to_the_specialist_of_the_other_modalities_and_positive_where_the_model_is_better() -> None:
    spoilt = {"accuracy": 0.65, "valence_mse": 1.5, "rows": 10.0, "macro_f1": 0.3}
    view = gap_view({"b:clean": spoilt, "b:noise@-5dB": spoilt, "a:zeros": spoilt, "c:shuffle": spoilt}, SPECIALISTS)
    assert list(view) == ["b:clean", "b:noise@-5dB", "a:zeros", "c:shuffle"]
    # Of b the specialist is a+c (0.6), of a it is b+c (0.7), of c a+b (0.5); an error is better when it is lower.
    assert view["b:noise@-5dB"] == pytest.approx({"accuracy": 0.05, "valence_mse": 0.5, "rows": 0.0})
    assert view["a:zeros"]["accuracy"] == pytest.approx(-0.05)
    assert view["c:shuffle"]["accuracy"] == pytest.approx(0.15)
    assert "gap[b:noise@-5dB].accuracy" in run_row({"gap": view})


def test_gap_tells_how_many_more_rows_the_model_was_scored_on() -> None:
    view = gap_view({"b:zeros": {"accuracy": 0.5, "rows": 7.0}}, SPECIALISTS)
    assert view["b:zeros"]["rows"] == -3.0


def test_one_modality_has_no_gap_and_missing_specialists_are_named() -> None:
    scores = {"accuracy": 0.5}
    assert gap_view({"a:zeros": scores}, {"a": scores}) == {}
    with pytest.raises(ValueError, match="a specialist that sees all but b, among all subsets, got a\\+b, b"):
        gap_view({"b:zeros": scores}, {"a+b": scores, "b": scores})
    with pytest.raises(ValueError, match="all but d, among all subsets, got a"):
        gap_view({"d:zeros": scores}, {"a": scores, "b": scores, "a+b": scores})
    with pytest.raises(ValueError, match="got none"):
        gap_view({"a:zeros": scores}, {})


# Of config "ours", by seed: the columns of the tables, chosen so that the figures can be seen.
REGRET = {"a": [0.05, 0.06, 0.07, 0.06, 0.05], "b": [0.0, 0.03, -0.02, 0.04, 0.01], "a+b": [-0.1] * 5}
GAP = {
    "a:clean": [-0.9] * 5,
    "a:noise@0dB": [-0.02, -0.03, -0.02, -0.01, -0.02],
    "a:zeros": [0.1] * 5,
    "b:zeros": [-0.2, 0.1, 0.0, -0.1, 0.15],
    "b:shuffle": [-0.8] * 5,
}
CALIBRATION = {"ece": 0.125, "nll": 0.5, "aurc": 0.25}


def row(seed: int, config: str = "ours", *, std: bool = True, lift: float = 0.0) -> dict[str, str | int | float]:
    views = {
        "test": {"": {"accuracy": 0.7 + lift}},
        "regret": {name: {"accuracy": values[seed] - lift} for name, values in REGRET.items()},
        "gap": {label: {"accuracy": values[seed] + lift, "rows": 0.0} for label, values in GAP.items()},
        "auroc": {"a:zeros": {"weight": 0.25, **({"std": 0.75 + 0.01 * seed} if std else {})}},
        "calibration": {"a": {"ece": 0.9}, "mean": {name: value - lift for name, value in CALIBRATION.items()}},
        "selective": {f"{c / 10:.1f}": {"accuracy": 1.4 - c / 10 + 0.01 * seed + lift} for c in range(5, 11)},
        "reliability": reliability(seed),
    }
    return {"config": config, "data": "toy", "seed": seed, "fold": 0, **run_row(views)}


def reliability(seed: int) -> dict[str, dict[str, float]]:
    empty = {"confidence": np.nan, "accuracy": np.nan, "share": 0.0}
    bins = {f"{name}@{number:02d}": empty for name in ("a+b", "a", "b") for number in range(1, 11)}
    for name in ("a+b", "a", "b"):
        bins[f"{name}@05"] = {"confidence": 0.45, "accuracy": 0.1 * seed, "share": 0.1 * (seed + 1)}
        bins[f"{name}@10"] = {"confidence": 0.95, "accuracy": 0.9, "share": 0.9 - 0.1 * seed}
    return bins


def runs(seeds: int = 5) -> pd.DataFrame:
    ours = [row(seed) for seed in range(seeds)]
    return pd.DataFrame(ours + [row(seed, "other", std=False, lift=0.05) for seed in range(seeds)])


def test_yardsticks_in_one_line_per_configuration() -> None:
    line = cells(yardstick_table(runs(), "accuracy"), "ours")
    regret = np.mean([np.mean(values) for values in REGRET.values()])
    assert line["runs"] == "5" and line["mean regret"].startswith(f"{regret:.3f} [-0.0")
    assert line["worst subset regret"].startswith("0.058 [0.0") and line["worst subset regret"].endswith("] (a)")
    # Of a the interval is above 0.010, of b it is not, though its mean is.
    assert line["subsets with regret > 0.010"] == "1 of 3"
    gap = np.mean([np.mean(GAP[label]) for label in ("a:noise@0dB", "a:zeros", "b:zeros")])
    assert line["mean gap"].startswith(f"{gap:.3f} [")
    # Clean and shuffled rows do not count; b:zeros is below zero in the mean only.
    assert line["worst gap"].startswith("-0.020 [") and line["worst gap"].endswith("(a:noise@0dB)")
    assert line["corruptions with gap < 0"] == "1 of 3"
    other = cells(yardstick_table(runs(), "accuracy"), "other")
    assert other["subsets with regret > 0.010"] == "0 of 3" and other["corruptions with gap < 0"] == "0 of 3"


def test_yardsticks_count_nothing_without_intervals_and_need_no_gaps() -> None:
    frame = runs(1)
    line = cells(yardstick_table(frame, "accuracy"), "ours")
    assert line["mean regret"] == "-0.017"
    assert line["subsets with regret > 0.010"] == line["corruptions with gap < 0"] == "–"
    without = frame[[column for column in frame if not column.startswith("gap")]]
    line = cells(yardstick_table(without, "accuracy"), "ours")
    assert line["mean gap"] == line["worst gap"] == "–" and line["worst subset regret"] == "0.050 (a)"


def test_yardsticks_count_the_runs_that_have_a_regret() -> None:
    frame = runs()
    yardsticks = [column for column in frame if column.startswith(("regret", "gap"))]
    frame.loc[(frame["config"] == "ours") & (frame["seed"] > 2), yardsticks] = np.nan
    frame.loc[frame["config"] == "other", yardsticks] = np.nan
    table = yardstick_table(frame, "accuracy")
    assert cells(table, "ours")["runs"] == "3"
    assert list(cells(table, "other").values())[1:] == ["0", *["–"] * 6]


def test_summary_has_gaps_and_calibration_beside_the_score() -> None:
    line = cells(summary_table(runs(), "accuracy"), "ours")
    assert line["worst gap"].endswith("(a:noise@0dB)") and line["ECE"] == "0.125 ± 0.000 [0.125, 0.125]"
    difference = cells(difference_table(runs(), "ours", "accuracy"), "other")
    assert difference["ECE"] == "**-0.050 [-0.050, -0.050]**"
    assert difference["mean gap"] == "**+0.050 [+0.050, +0.050]**"
    with pytest.raises(ValueError, match="expected a score among"):  # the ECE alone is no summary of f1
        summary_table(runs(), "f1")


def test_auroc_takes_the_weight_of_a_model_without_std() -> None:
    frame = runs()
    table = auroc_table(frame)
    assert table.splitlines()[0] == "| corruption | ours | other (weight) |"
    line = cells(table, "a:zeros")
    assert line["ours"].startswith("0.770 [0.75") and line["other (weight)"] == "0.250 [0.250, 0.250]"
    only = auroc_table(frame[frame["config"] == "other"].dropna(axis=1, how="all"))
    assert only.splitlines()[0] == "| corruption | other |" and "0.250" in only


def test_calibration_measures_read_the_mean_and_three_coverages() -> None:
    line = cells(summary_table(runs(), measures=calibration_measures(runs())), "ours")
    assert [float(line[f"{name} (lower is better)"][:5]) for name in ("ECE", "NLL", "AURC")] == [0.125, 0.5, 0.25]
    assert [float(line[f"accuracy at coverage {c}"][:5]) for c in ("0.5", "0.8", "1.0")] == [0.92, 0.62, 0.42]
    assert calibration_measures(runs()[["config", "test.accuracy"]]) == []


def test_gap_table_has_a_line_per_corruption() -> None:
    lines = view_table(runs(), "accuracy", "gap").splitlines()
    assert len(lines) == 2 + 5 and lines[0] == "| corruption | ours | other |"
    assert lines[4].startswith("| a:zeros | 0.100 ± 0.000 [0.100, 0.100] | 0.150")


def test_report_has_all_sections_and_says_when_the_rows_differ(tmp_path: Path) -> None:
    notes = {"yardsticks": "About yardsticks.", "auroc": "About noticing.", "calibration": "About calibration."}
    paths = write_report(runs(), tmp_path, score="accuracy", notes=notes)
    assert [path.name for path in paths][-2:] == ["reliability.png", "selective.png"]
    text = paths[0].read_text()
    titles = ["### Yardsticks", "### Gap to the specialist that never sees the modality", "### AUROC of std"]
    places = [text.index(title) for title in [*titles, "### Calibration"]]
    assert places == sorted(places) and all(note in text for note in notes.values())
    assert "Columns marked (weight)" in text and "Not all samples have all modalities" not in text
    frame = runs().assign(**{"gap[a:zeros].rows": -3.0})
    assert "Not all samples have all modalities" in write_report(frame, tmp_path, score="accuracy")[0].read_text()


def test_report_of_models_without_std_tells_by_weight(tmp_path: Path) -> None:
    frame = runs().query("config == 'other'")
    text = write_report(frame, tmp_path, score="accuracy")[0].read_text()
    assert "### AUROC of weight" in text and "higher negated fusion weight" in text and "(weight)" not in text


def test_report_without_the_new_views_has_none_of_their_sections(tmp_path: Path) -> None:
    paths = write_report(runs()[["config", "data", "seed", "fold", "test.accuracy"]], tmp_path, score="accuracy")
    text = paths[0].read_text()
    assert len(paths) == 1 and not any(word in text for word in ("### Yard", "### AUROC", "### Calib", "### Gap"))


def test_bins_of_runs_are_pooled_by_their_rows() -> None:
    frame = runs().query("config == 'ours'")
    confidence, accuracy, share = pool_bins(frame, ["a@05", "a@06", "a@10"])
    # Runs with 1, 2, 3, 4, 5 tenths of the rows there are 0, 1, 2, 3, 4 tenths right.
    assert accuracy == pytest.approx([(2 + 6 + 12 + 20) / 150, np.nan, 0.9], nan_ok=True)
    assert confidence == pytest.approx([0.45, np.nan, 0.95], nan_ok=True) and share == pytest.approx([0.3, 0, 0.7])
    dropped = frame.dropna(axis=1, how="all")
    assert "reliability[a@06].accuracy" not in dropped
    assert pool_bins(dropped, ["a@06"])[2].tolist() == [0.0]


def test_reliability_picture_has_a_panel_per_subset_and_leaves_out_rare_bins() -> None:
    frame = runs()
    frame["reliability[a@03].share"] = 0.002
    frame["reliability[a@03].confidence"], frame["reliability[a@03].accuracy"] = 0.25, 1.0
    figure = plot_reliability(frame)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["a", "b", "a+b"]
    diagonal, ours, *_ = shown[0].lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert ours.get_xydata() == pytest.approx(np.array([[0.45, 40 / 150], [0.95, 0.9]]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "other"]
    one = plot_reliability(frame, ["other"])
    assert [text.get_text() for text in one.legends[0].get_texts()] == ["other"]


@pytest.mark.parametrize("names", [["2of6"], ["mod0+mod1+mod2+mod3"] * 15])
def test_titles_of_the_panels_stay_inside_the_picture(names: list[str]) -> None:
    frame = runs()[["config", "data", "seed", "fold"]].copy()
    labels = [f"{name}{'' if index == 0 else index}" for index, name in enumerate(names)]
    parts = {"share": 1.0, "confidence": 0.95, "accuracy": 0.8}
    frame = frame.assign(
        **{f"reliability[{label}@10].{name}": value for label in labels for name, value in parts.items()}
    )
    figure = plot_reliability(frame)
    FigureCanvasAgg(figure).draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_visible()]
    assert len(boxes) == len(names) and all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())
    assert not any(one.overlaps(two) for index, one in enumerate(boxes) for two in boxes[:index])
    assert names != ["2of6"] or figure.axes[0].get_title() == "2 of 6 modalities"


def test_selective_picture_draws_what_the_file_says() -> None:
    axes = plot_selective(runs()).axes[0]
    ours = next(line for line in axes.lines if len(line.get_xdata()) == 6)
    assert ours.get_xdata().tolist() == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert ours.get_ydata() == pytest.approx(1.42 - np.arange(5, 11) / 10)
    assert len(axes.collections) == 2 and sorted(text.get_text() for text in axes.texts) == ["other", "ours"]


def test_pictures_need_their_columns() -> None:
    frame = runs()[["config", "data", "seed", "fold", "test.accuracy"]]
    with pytest.raises(ValueError, match=r"columns such as selective\[...\].accuracy"):
        plot_selective(frame)
    with pytest.raises(ValueError, match=r"columns such as reliability\[...\].share"):
        plot_reliability(frame)
