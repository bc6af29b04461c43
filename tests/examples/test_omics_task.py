"""Training, metrics and verdicts of the omics pipeline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as oracle

from examples.omics import metrics
from examples.omics.history import COLUMNS, History, history_text, read_history, verdict
from examples.omics.metrics import Answers, ClassMetrics, class_scores, open_scores, rejection_scores
from examples.omics.plot import own_and_other
from examples.omics.report import columns_of
from examples.omics.task import TIE, OmicsTask, find_deep

SIZES = {"genes": 12, "proteins": 6}
TINY: dict[str, Any] = {
    "deep": [16, 8],
    "shallow": [8],
    "subspace_dim": 2,
    "token_features": 4,
    "projection_features": 8,
}


def make_task(**options: Any) -> OmicsTask:
    torch.manual_seed(0)
    return OmicsTask(SIZES, ["x", "y", "z"], **{**TINY, **options})


def make_batch(rows: int = 9) -> dict[str, Any]:
    inputs = {name: torch.randn(rows, width) for name, width in SIZES.items()}
    return {"inputs": inputs, "present": torch.ones(rows, 2, dtype=torch.bool), "label": torch.arange(rows) % 3}


class TestTask:
    def test_makes_the_widest_branch_deep(self) -> None:
        assert find_deep(SIZES, None) == {"genes": True, "proteins": False}
        assert find_deep({"a": 5, "b": 5}, None) == {"a": True, "b": False}
        assert find_deep(SIZES, ["proteins"]) == {"genes": False, "proteins": True}
        with pytest.raises(ValueError, match=r"model.deep_branches: expected one of genes, proteins, got 'rna'"):
            find_deep(SIZES, ["rna"])

    def test_refuses_subspaces_that_do_not_fit(self) -> None:
        with pytest.raises(
            ValueError, match=r"model.subspace_dim: expected at most 2 for 3 classes and embeddings of 8"
        ):
            make_task(subspace_dim=3)
        make_task(subspace_dim=3, head="linear")

    def test_updates_the_bank_after_the_backward_pass(self) -> None:
        task = make_task(bank=8, bank_warmup=0)
        task.log = lambda *_, **__: None
        assert task.bank is not None
        for _ in range(3):
            before = task.bank.keys().features.clone()
            loss = task.training_step(make_batch(), 0)
            assert torch.equal(task.bank.keys().features, before)
            loss.backward()
            task.on_after_backward()
            assert not torch.equal(task.bank.keys().features, before)
        assert task.bank.keys().present.all(), "three batches of 18 rows fill its 24 slots"
        assert not task.bank.keys().features.requires_grad

    def test_a_batch_may_be_larger_than_the_bank(self) -> None:
        task = make_task(bank=2, bank_warmup=0)
        task.log = lambda *_, **__: None
        task.training_step(make_batch(30), 0).backward()
        task.on_after_backward()
        assert task.bank is not None
        assert task.bank.keys().present.all()

    def test_has_no_bank_without_a_contrastive_loss(self) -> None:
        assert make_task(bank=8, contrastive_weight=0.0).bank is None
        assert make_task(bank=0).bank is None

    @pytest.mark.parametrize("head", ["subspace", "linear"])
    def test_trains_on_a_batch_of_one(self, head: str) -> None:
        task = make_task(head=head, bank=4)
        task.log = lambda *_, **__: None
        loss = task.training_step(make_batch(1), 0)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(x.grad is None or torch.isfinite(x.grad).all() for x in task.parameters())

    @pytest.mark.parametrize("name", ["lr", "warmup", "accept"])
    def test_names_a_number_out_of_range(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"model.{name}: expected 0.0 to"):
            make_task(**{name: -1.0})


class TestScores:
    @pytest.fixture
    def found(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        label = rng.integers(0, 3, 40)
        return rng.normal(size=(40, 3)) + 1.5 * np.eye(3)[label], label

    def test_agree_with_scikit_learn(self, found: tuple[np.ndarray, np.ndarray]) -> None:
        logits, label = found
        said, p = logits.argmax(1), torch.from_numpy(logits).softmax(1).numpy()
        scores = class_scores(logits, label, embedding=logits)
        assert scores["accuracy"] == pytest.approx(oracle.accuracy_score(label, said))
        assert scores["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(label, said))
        assert scores["macro_f1"] == pytest.approx(oracle.f1_score(label, said, average="macro"))
        assert scores["weighted_f1"] == pytest.approx(oracle.f1_score(label, said, average="weighted"))
        assert scores["auroc"] == pytest.approx(np.mean([oracle.roc_auc_score(label == c, p[:, c]) for c in range(3)]))
        assert scores["nll"] == pytest.approx(oracle.log_loss(label, p))
        assert scores["ari"] == pytest.approx(oracle.adjusted_rand_score(label, said))
        assert "f1" not in scores

    def test_of_two_classes(self, found: tuple[np.ndarray, np.ndarray]) -> None:
        logits, label = found[0][:, :2], found[1] % 2
        scores, p = class_scores(logits, label), torch.from_numpy(logits).softmax(1).numpy()
        assert scores["f1"] == pytest.approx(oracle.f1_score(label, logits.argmax(1)))
        assert scores["auroc"] == pytest.approx(oracle.roc_auc_score(label, p[:, 1]))

    def test_of_validation_are_the_same_in_batches(self, found: tuple[np.ndarray, np.ndarray]) -> None:
        logits, label = map(torch.from_numpy, found)
        running = ClassMetrics(3)
        for part in (slice(0, 7), slice(7, 40)):
            running.update(logits[part], label[part])
        expected = class_scores(*found)
        for name, value in running.compute().items():
            assert value == pytest.approx(expected[name], rel=1e-5), name
        running.update(torch.full((1, 3), torch.nan), label[:1])
        assert math.isnan(running.compute()["balanced_accuracy"])

    def test_leave_out_rows_of_unknown_classes(self, found: tuple[np.ndarray, np.ndarray]) -> None:
        logits, label = found
        more = class_scores(np.concatenate([logits, logits[:5]]), np.concatenate([label, np.full(5, -1)]))
        assert more == class_scores(logits, label)
        assert class_scores(logits, np.full(40, -1)) == {"rows": 0.0}

    def test_of_unknown_classes_and_rejection(self) -> None:
        residual = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.3], [0.6, 0.8]])
        answers = Answers(-10 * residual, None, residual, np.array([0, 1, 0, -1]))
        assert open_scores(answers) == {"rows": 1.0, "softmax": 1.0, "residual": 1.0}
        found = rejection_scores(answers, 0.25)
        assert (found["coverage"], found["accuracy"]) == (pytest.approx(2 / 3), 1.0)
        assert found["rejected_unknown"] == 1.0
        assert "residual" not in open_scores(answers._replace(residual=None))


class TestAnswer:
    def test_is_the_same_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task, batch = make_task(), make_batch(10)
        batch["present"][3, 1] = False
        label, asked = batch["label"].numpy(), []
        whole = metrics.answer(task, batch, label)
        ask = task.answer
        monkeypatch.setattr(task, "answer", lambda part: (asked.append(len(part["label"])), ask(part))[1])
        monkeypatch.setattr(metrics, "ROWS_AT_ONCE", 4)
        for one, other in zip(metrics.answer(task, batch, label), whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert asked == [4, 4, 2]

    def test_of_no_rows(self) -> None:
        found = metrics.answer(make_task(head="linear"), make_batch(0), np.zeros(0, dtype=np.int64))
        assert (found.logits.shape, found.residual) == ((0, 3), None)

    def test_has_an_own_and_another_class(self) -> None:
        residual = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.4, 0.2, 0.3]])
        found = own_and_other(Answers(-residual, None, residual, np.array([0, 1, -1])))
        assert found.tolist() == [[0.1, 0.5], [0.9, 0.1], [0.2, 0.3]]

    def test_of_unknown_rows_has_a_paired_difference(self) -> None:
        views = {"open": {"a": {"residual": 0.9, "softmax": 0.7}, "b": {"softmax": 0.6}}, "test": {"": {"nll": 1.0}}}
        found = columns_of(views)
        assert found["open[a].difference"] == pytest.approx(0.2)
        assert "open[b].difference" not in found
        assert found["test.nll"] == 1.0
        assert "difference" not in views["open"]["a"]


def history(train: list[float], val: list[float], loss: list[float], rows: int = 400) -> pd.DataFrame:
    lines = zip(range(len(val)), [0.1] * len(val), loss, train, val, val, strict=True)
    frame = pd.DataFrame(lines, columns=["epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "select"])
    return frame.assign(lr=0.1, val_rows=rows, classes=2)


class TestVerdict:
    @pytest.mark.parametrize(
        ("train", "val", "loss", "kind"),
        [
            ([0.6, 0.7, 0.7], [0.6, 0.7, 0.6], [0.7, 0.6, 0.6], "underfitting"),
            ([0.9, 1.0, 1.0], [0.6, 0.7, 0.6], [0.5, 0.9, 1.0], "overfitting"),
            ([0.9, 1.0, 1.0], [0.6, 0.7, 0.6], [0.6, 0.5, 0.6], "gap"),
            ([0.8, 0.85, 0.9], [0.8, 0.85, 0.9], [0.6, 0.5, 0.4], "too short"),
            ([0.8, 0.92, 0.95], [0.8, 0.9, 0.85], [0.5, 0.4, 0.8], "stopped in time"),
            ([0.8, 0.92, 0.95], [0.8, 0.9, 0.85], [0.5, 0.4, 0.42], "good"),
        ],
    )
    def test_follows_the_rules(self, train: list[float], val: list[float], loss: list[float], kind: str) -> None:
        found = verdict(history(train, val, loss))
        assert found.kind == kind
        assert found.text.startswith(f"{kind} at epoch {found.best + 1} of 3: ")

    def test_knows_that_few_rows_say_little(self) -> None:
        found = [verdict(history([0.9, 1.0], [0.6, 0.9], [0.6, 0.5], rows)).kind for rows in (20, 400)]
        assert found == ["too short", "gap"]

    def test_reads_only_what_fit_writes(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"history.csv: no such file; `fit` writes it"):
            read_history(tmp_path / "history.csv")
        (tmp_path / "history.csv").write_text("epoch,val_loss\n0,1\n")
        with pytest.raises(ValueError, match=r"it lacks train_loss, train_accuracy"):
            read_history(tmp_path / "history.csv")
        history([1.0], [1.0], [0.1])[list(COLUMNS)].to_csv(tmp_path / "history.csv", index=False)
        assert len(read_history(tmp_path / "history.csv")) == 1

    def test_finds_the_epoch_that_was_kept_by_a_tie_break(self, tmp_path: Path) -> None:
        lines = history([0.9] * 3, [0.9] * 3, [0.30002, 0.3, 0.30001]).to_dict("records")
        for line in lines:
            line["select"] = line["val_accuracy"] - TIE * line["val_loss"]
        (tmp_path / "history.csv").write_text(history_text(lines))
        frame = read_history(tmp_path / "history.csv")
        assert frame["select"].tolist() == pytest.approx([line["select"] for line in lines], rel=1e-14)
        assert verdict(frame).best == 1

    def test_history_goes_on_after_a_resumed_run(self) -> None:
        one, other = History(), History()
        one.lines = [{"epoch": 0.0}]
        other.load_state_dict(one.state_dict())
        assert other.lines == one.lines
