"""The views of one model: subsets, missing rates, corruption."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import robustness
from benchmarks.robustness import (
    CORRUPTIONS,
    Corruption,
    Evaluator,
    Prediction,
    clean_view,
    corrupt,
    corrupted_predictions,
    corruption_view,
    evaluate_views,
    missing_view,
    run_row,
    subset_view,
)
from benchmarks.robustness.views import lose


@dataclass
class Toy:
    features: dict[str, Tensor]
    present: Tensor
    label: Tensor
    score: Tensor | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Recorder:
    """A model that is right on a row exactly when it sees modality `a` unspoilt (its first entry equals the label)."""

    rows: int = 0
    calls: list[tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]] = field(default_factory=list)

    def __call__(self, features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]) -> Prediction:
        self.rows += len(present)
        self.calls.append((features, present, masks))
        guess = torch.where(present[:, 0], features["a"].flatten(1)[:, 0].round(), 0.0).long().clamp(0, 2)
        logits = torch.nn.functional.one_hot(guess, 3).float()
        weights = present / present.sum(1, keepdim=True)
        return Prediction(logits, guess.float(), weights, torch.full(present.shape, 2.0))


def toy(rows: int = 30, *, natural: bool = False) -> Toy:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(rows) % 2 + 1
    a = torch.randn(rows, 4, generator=generator)
    a[:, 0] = label
    features = {"a": a, "b": torch.randn(rows, 2, generator=generator), "c": torch.randn(rows, 3, generator=generator)}
    present = torch.ones(rows, 3, dtype=torch.bool)
    if natural:
        present[:10, 0] = False  # ten rows without `a`, one of them without anything
        present[0] = False
    return Toy(features, present, label)


def test_subset_view_scores_each_subset_on_the_rows_that_keep_something() -> None:
    view = subset_view(Evaluator(Recorder(), toy(natural=True)))
    assert sorted(view) == sorted(["a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"])
    assert view["a"] | {"accuracy": 1.0, "rows": 20.0} == view["a"]
    assert view["b+c"] | {"accuracy": 0.0, "rows": 29.0} == view["b+c"]
    assert view["a+b"]["rows"] == 29.0 and view["a+b"]["accuracy"] == pytest.approx(20 / 29)


def test_named_subsets_and_too_many_modalities() -> None:
    evaluator = Evaluator(Recorder(), toy())
    assert list(subset_view(evaluator, [["b", "a"]])) == ["a+b"]
    with pytest.raises(ValueError, match="non-empty subset of a, b, c, got"):
        subset_view(evaluator, [["a", "d"]])
    data = toy()
    many = Toy({f"m{i}": data.features["b"] for i in range(9)}, torch.ones(30, 9, dtype=torch.bool), data.label)
    with pytest.raises(ValueError, match="at most 8 modalities, or named subsets"):
        subset_view(Evaluator(Recorder(), many))


def test_subset_without_any_row_is_empty_not_wrong() -> None:
    data = toy()
    data.present[:, 2] = False
    view = subset_view(Evaluator(Recorder(), data))
    assert view["c"]["rows"] == 0.0 and np.isnan(view["c"]["accuracy"])


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_each_row_and_pattern_is_predicted_once_and_in_its_place(batch_size: int) -> None:
    data, model = toy(natural=True), Recorder()
    evaluator = Evaluator(model, data, batch_size=batch_size)
    rows = torch.tensor([5, 20, 5, 12])
    present = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 1, 1], [0, 1, 0]]).bool()
    prediction = evaluator.predict(rows, present)
    assert model.rows == 3
    assert prediction.logits.argmax(1).tolist() == [0, int(data.label[20]), 0, 0]
    assert prediction.weights is not None
    assert prediction.weights.tolist() == [[0, 0.5, 0.5], [1, 0, 0], [0, 0.5, 0.5], [0, 1, 0]]
    again = evaluator.predict(torch.tensor([12, 21]), torch.tensor([[0, 1, 0], [1, 1, 1]]).bool())
    assert model.rows == 4 and again.logits.argmax(1).tolist() == [0, int(data.label[21])]


def test_missing_view_needs_no_prediction_beyond_the_subsets() -> None:
    model = Recorder()
    evaluator = Evaluator(model, toy(natural=True))
    subset_view(evaluator)
    rows = model.rows
    # 20 complete rows have 7 patterns, 9 rows with b and c have 3; the row with nothing has none.
    assert rows == 20 * 7 + 9 * 3
    missing_view(evaluator, draws=20)
    clean_view(evaluator)
    assert model.rows == rows


def test_missing_view_rates_mean_and_seed() -> None:
    evaluator = Evaluator(Recorder(), toy(300))
    view = missing_view(evaluator, draws=20)
    assert list(view) == [f"{rate / 10:.1f}" for rate in range(10)] + ["mean"]
    assert view["0.0"] == clean_view(evaluator)[""]
    # `a` is kept with 1 - rate, or as the last of three that all fell.
    for rate in (0.3, 0.9):
        assert view[f"{rate:.1f}"]["accuracy"] == pytest.approx(1 - rate + rate**3 / 3, abs=0.02)
    rates = [view[f"{rate / 10:.1f}"]["accuracy"] for rate in range(10)]
    assert view["mean"]["accuracy"] == pytest.approx(np.mean(rates))
    assert missing_view(evaluator, draws=20) == view != missing_view(evaluator, draws=20, seed=1)


def test_lose_never_resurrects_never_drops_the_last_and_keeps_it_uniformly() -> None:
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    kept = lose(present.repeat(20_000, 1), 0.9, torch.Generator().manual_seed(0))
    assert not (kept & ~present.repeat(20_000, 1)).any()
    assert torch.equal(kept.any(1), present.any(1).repeat(20_000))
    share = kept.reshape(-1, 4, 3).double().mean(0)
    expected = torch.tensor([[0.1 + 0.9**3 / 3] * 3, [0.1 + 0.9**2 / 2, 0, 0.1 + 0.9**2 / 2], [0, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(share, expected.double(), atol=0.015, rtol=0)


def test_corruption_view_spoils_one_modality_of_its_rows_and_does_not_tell() -> None:
    data, model = toy(natural=True), Recorder()
    before = {name: x.clone() for name, x in data.features.items()}
    views = corruption_view(Evaluator(model, data))
    assert all(torch.equal(data.features[name], x) for name, x in before.items())
    labels = ["clean", "noise@10dB", "noise@5dB", "noise@0dB", "noise@-5dB", "replace", "zeros", "shuffle"]
    assert list(views["corrupt"]) == [f"{name}:{label}" for name in "abc" for label in labels]
    assert views["corrupt"]["a:clean"]["accuracy"] == 1.0 and views["corrupt"]["a:zeros"]["accuracy"] == 0.0
    assert views["corrupt"]["a:clean"]["rows"] == 20.0 and views["corrupt"]["b:zeros"]["rows"] == 29.0
    assert views["corrupt"]["b:replace"]["accuracy"] == pytest.approx(20 / 29)
    # Rows without `a` are not counted in the mean weight of `a`; they put 1/2 on each of the others.
    expected = {"a": 1 / 3, "b": (20 / 3 + 9 / 2) / 29, "c": (20 / 3 + 9 / 2) / 29}
    assert views["weight"]["b:zeros"] == pytest.approx(expected)
    assert views["std"]["a:shuffle"] == {"a": 2.0, "b": 2.0, "c": 2.0}


def test_corrupted_inputs_are_what_they_are_called() -> None:
    data, model = toy(400), Recorder()
    evaluator = Evaluator(model, data)
    spoilt = {}
    for modality, corruption, rows, _ in corrupted_predictions(evaluator, CORRUPTIONS):
        features, present, _ = model.calls[-1]
        assert present.all() and len(rows) == 400
        if modality == 1 and corruption is not None:
            spoilt[corruption.label] = features["b"]
            assert torch.equal(features["a"], data.features["a"])
    clean = data.features["b"]
    for level in (10, 5, 0, -5):
        noise = spoilt[f"noise@{level}dB"] - clean
        measured = 10 * torch.log10(clean.square().sum() / noise.square().sum())
        assert measured == pytest.approx(level, abs=0.5)
    assert not spoilt["zeros"].any()
    assert torch.equal(spoilt["shuffle"].sort(0).values, clean.sort(0).values)
    assert not (spoilt["shuffle"] == clean).any()
    assert abs(spoilt["replace"].std() - 1) < 0.1 and abs((spoilt["replace"] * clean).mean()) < 0.1


def test_shuffled_sequences_bring_their_mask_and_noise_stays_off_the_padding() -> None:
    x = torch.arange(1.0, 13.0).reshape(3, 4, 1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    shuffled, moved = corrupt(x, mask, Corruption("shuffle"), torch.Generator().manual_seed(0))
    assert moved is not None
    source = (shuffled[:, 0, 0] - 1).long() // 4
    assert torch.equal(moved, mask[source]) and not (source == torch.arange(3)).any()
    noisy, same = corrupt(x, mask, Corruption("noise", 0.0), torch.Generator())
    assert same is mask and not noisy[~mask].any() and (noisy != x)[mask].all()


@pytest.mark.parametrize(
    ("corruption", "message"),
    [
        (Corruption("blur"), "kind one of noise, replace, zeros, shuffle, got 'blur'"),
        (Corruption("noise"), "snr_db with kind 'noise' and only there, got None"),
        (Corruption("zeros", 3.0), "snr_db with kind 'noise' and only there, got 3.0 with 'zeros'"),
    ],
)
def test_wrong_corruption(corruption: Corruption, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(torch.ones(2, 2), None, corruption, torch.Generator())


def test_corruption_is_the_same_for_every_model_and_seed_changes_it() -> None:
    def spoilt(seed: int) -> Tensor:
        model = Recorder()
        for _ in corrupted_predictions(Evaluator(model, toy()), [Corruption("noise", 0.0)], seed=seed):
            pass
        return model.calls[1][0]["a"]

    assert torch.equal(spoilt(0), spoilt(0)) and not torch.equal(spoilt(0), spoilt(1))


def test_row_of_all_views_has_stable_names() -> None:
    data = toy()
    data.score = data.label.float()
    row = run_row(evaluate_views(Recorder(), data, draws=2))
    wanted = {
        "test.accuracy",
        "test.combined",
        "subset[a+b].weighted_f1",
        "missing[0.3].macro_f1",
        "missing[mean].valence_mse",
        "corrupt[a:noise@-5dB].accuracy",
        "weight[a:noise@0dB].a",
        "std[b:shuffle].c",
    }
    assert wanted <= row.keys()
    # Scores; weight and std; AUROC of both; calibration and mean; reliability; selective accuracy.
    assert len(row) == 6 * (1 + 7 + 11 + 24) + 24 * 3 * 2 + 21 * 2 + 3 * 8 + 3 * 7 * 10 + 6
    assert list(row) == list(run_row(evaluate_views(Recorder(), data, draws=2)))
    only = evaluate_views(Recorder(), data, clean="val", views=["subset"])
    assert list(only) == ["val", "subset"]


def bad_model(**parts: Tensor) -> Recorder:
    class Bad(Recorder):
        def __call__(self, features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]) -> Prediction:
            return super().__call__(features, present, masks)._replace(**parts)

    return Bad()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (bad_model(logits=torch.zeros(30)), r"logits of shape \(N, C\) = \(30, C\), got \(30,\)"),
        (bad_model(values=torch.zeros(30, 1)), r"values of shape \(30,\), got \(30, 1\)"),
        (bad_model(weights=torch.zeros(30, 2)), r"weights of shape \(30, 3\), got \(30, 2\)"),
        (bad_model(logits=torch.full((30, 3), torch.nan)), "finite logits, got NaN or infinity in 30 of 30 rows"),
    ],
)
def test_wrong_predictions_are_refused(model: Recorder, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clean_view(Evaluator(model, toy()))


def test_wrong_sets_are_refused() -> None:
    data = toy()
    with pytest.raises(ValueError, match=r"present of shape \(N, M\) = \(30, 3\), got \(30, 2\)"):
        Evaluator(Recorder(), Toy(data.features, data.present[:, :2], data.label))
    with pytest.raises(ValueError, match=r"features\['b'\] with N = 30 rows, got 29"):
        Evaluator(Recorder(), Toy({**data.features, "b": data.features["b"][1:]}, data.present, data.label))
    with pytest.raises(ValueError, match=r"modality name without any of .* got 'a\+b'"):
        Evaluator(Recorder(), Toy({"a+b": data.features["a"]}, data.present[:, :1], data.label))
    with pytest.raises(ValueError, match="at least one row and one modality, got 0 and 3"):
        Evaluator(Recorder(), toy(0))
    with pytest.raises(ValueError, match="views among subset, missing, corrupt, calibration, got all"):
        evaluate_views(Recorder(), data, views=["all"])


def test_example_of_the_readme_runs() -> None:
    text = (Path(robustness.__file__).parent / "README.md").read_text()
    names: dict[str, object] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    row = names["row"]
    assert isinstance(row, dict) and row["weight[audio:noise@0dB].audio"] == 0.5
