"""Every option of the task reaches what it is about."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from examples.omics.task import FROM_DATA, TIE, OmicsTask
from mmrobust.models import TwoBranchPrototypeClassifier
from mmrobust.prototypes import SubspacePrototypeClassifier
from tests.examples.test_omics_task import SIZES, TINY, make_batch, make_task

# Of each option a value that is not the default.
OTHER: dict[str, Any] = {
    "deep": [14, 10, 12],
    "shallow": [11, 12],
    "deep_dropout": 0.3,
    "shallow_dropout": 0.1,
    "deep_branches": ["proteins"],
    "subspace_dim": 3,
    "token_features": 6,
    "num_heads": 2,
    "projection_features": 7,
    "head": "linear",
    "temperature": 0.7,
    "normalize": True,
    "orthogonality": "exact",
    "contrastive_weight": 0.2,
    "contrastive_temperature": 0.4,
    "orthonormality_weight": 0.3,
    "separation_weight": 0.6,
    "bank": 5,
    "bank_warmup": 2,
    "accept": 0.6,
    "select_by": "likelihood",
    "lr": 0.2,
    "weight_decay": 0.3,
    "warmup": 0.2,
    "schedule": "linear",
}


def quiet(task: OmicsTask) -> dict[str, Any]:
    """Catch what a task logs."""
    logged: dict[str, Any] = {}
    task.log = lambda name, value, **_: logged.update({name: value})
    return logged


class TestModel:
    @pytest.fixture
    def task(self) -> OmicsTask:
        return OmicsTask(SIZES, ["x", "y", "z"], **{**OTHER, "head": "subspace"})

    def test_no_option_is_forgotten_here(self) -> None:
        names = set(inspect.signature(OmicsTask).parameters) - set(FROM_DATA)
        assert names == set(OTHER)
        for name, value in OTHER.items():
            assert inspect.signature(OmicsTask).parameters[name].default != value

    def test_has_deep_and_shallow_extractors(self, task: OmicsTask) -> None:
        found = {}
        for name, encoder in zip(SIZES, task.model.encoders, strict=True):
            widths = [layer.out_features for layer in encoder.modules() if isinstance(layer, nn.Linear)]
            found[name] = widths, {layer.p for layer in encoder.modules() if isinstance(layer, nn.Dropout)} - {0.0}
        assert found == {"genes": ([11, 12], {0.1}), "proteins": ([14, 10, 12], {0.3})}

    def test_has_a_head_of_subspaces(self, task: OmicsTask) -> None:
        head = task.model.head
        assert isinstance(head, SubspacePrototypeClassifier)
        found = head.subspace_dim, head.temperature, head.normalize, head.orthogonality
        assert found == (3, 0.7, True, "exact")
        assert isinstance(make_task(head="linear").model.head, nn.Linear)

    def test_is_the_model_of_these_options(self, task: OmicsTask) -> None:
        expected = TwoBranchPrototypeClassifier(
            SIZES,
            {"genes": [11, 12], "proteins": [14, 10, 12]},
            3,
            3,
            token_features=6,
            num_heads=2,
            projection_features=7,
            temperature=0.7,
            normalize=True,
            orthogonality="exact",
            contrastive_weight=0.2,
            contrastive_temperature=0.4,
            orthonormality_weight=0.3,
            separation_weight=0.6,
        ).eval()
        with torch.no_grad():
            task.eval().model.head.weight.normal_()  # bases that overlap
        expected.load_state_dict(task.model.state_dict())
        batch = make_batch()
        words = batch["inputs"], batch["label"], batch["present"]
        with torch.no_grad():
            found, wanted = task.model.loss(*words), expected.loss(*words)
        assert all(part > 0 for part in (found.contrastive, found.separation))
        assert [float(x) for x in found[:5]] == [float(x) for x in wanted[:5]]
        assert task.model.fusion.num_heads == 2

    def test_weighs_the_penalty_on_bases(self) -> None:
        task, batch = make_task(orthonormality_weight=0.3, contrastive_weight=0.0).eval(), make_batch()
        with torch.no_grad():
            task.model.head.weight.mul_(2.0)
            found = task.model.loss(batch["inputs"], batch["label"], batch["present"])
        assert found.orthonormality > 0
        assert float(found.loss) == pytest.approx(float(found.classification + 0.3 * found.orthonormality))

    def test_without_widths_is_the_default_and_none_is_an_error(self) -> None:
        assert make_task(deep=None, shallow=None).model.hidden_features == 128
        for name in ("deep", "shallow"):
            with pytest.raises(ValueError, match=rf"model.{name}: expected at least one width"):
                make_task(**{name: []})


class TestBank:
    @pytest.fixture
    def task(self) -> OmicsTask:
        task = make_task(bank=4, bank_warmup=0).eval()
        quiet(task)
        return task

    @staticmethod
    def update(task: OmicsTask, batch: dict[str, Any]) -> None:
        task.training_step(batch, 0).backward()
        task.on_after_backward()

    def test_has_its_options(self) -> None:
        bank = make_task(bank=5, bank_warmup=2).bank
        assert bank is not None
        assert (bank.size, bank.num_classes, bank.warmup_updates) == (15, 3, 2)

    def test_keeps_the_branches_of_a_sample_under_its_class(self, task: OmicsTask) -> None:
        batch = make_batch(3)
        self.update(task, batch)
        keys = task.bank.keys()
        for row, projected in enumerate(task(batch).projections):
            held = keys.features[keys.present & (keys.labels == row)]
            assert held.shape[0] == 2
            torch.testing.assert_close(held.sort(0).values, projected.sort(0).values)

    def test_keeps_no_branch_that_is_absent(self, task: OmicsTask) -> None:
        batch = make_batch(3)
        batch["present"][1, 0] = False
        self.update(task, batch)
        keys = task.bank.keys()
        assert keys.labels[keys.present].bincount().tolist() == [2, 1, 2]

    def test_gives_the_loss_its_keys(self, task: OmicsTask) -> None:
        self.update(task, make_batch(6))
        batch = make_batch(6)
        words = batch["inputs"], batch["label"], batch["present"]
        with torch.no_grad():
            with_keys, without = task.model.loss(*words, keys=task.bank.keys()).loss, task.model.loss(*words).loss
            assert float(with_keys) != float(without)
            assert float(task.training_step(batch, 0)) == float(with_keys)


class TestSelection:
    @staticmethod
    def validate(task: OmicsTask) -> dict[str, Any]:
        logged = quiet(task.eval())
        torch.manual_seed(1)
        for rows in (9, 6, 12):
            task.validation_step(make_batch(rows), 0)
        task.on_validation_epoch_end()
        return logged

    def test_is_by_balanced_accuracy_or_by_likelihood(self) -> None:
        found = self.validate(make_task())
        expected = found["val_balanced_accuracy"] - TIE * min(found["val_nll"], 10.0)
        assert found["val_select"] == expected
        assert self.validate(make_task(select_by="likelihood"))["val_select"] == -found["val_nll"]

    @pytest.mark.parametrize("accept", [0.3, 0.95])
    def test_threshold_accepts_a_share_of_what_is_right(self, accept: float) -> None:
        task = make_task(accept=accept)
        self.validate(task)
        torch.manual_seed(1)
        batches = [make_batch(rows) for rows in (9, 6, 12)]
        label = torch.cat([batch["label"] for batch in batches])
        with torch.no_grad():
            residual = torch.cat([task.answer(batch)[1] for batch in batches])
        nearest, said = residual.min(1)
        right = nearest[said == label].sort().values
        assert 1 < len(right) < len(label)
        limit = float(right[math.ceil(accept * len(right)) - 1])
        assert float(task.prototypes.threshold) == pytest.approx(limit, rel=1e-5)
        assert limit != pytest.approx(float(nearest.sort().values[math.ceil(accept * len(label)) - 1]), rel=1e-5)

    def test_accepts_more_than_nothing(self) -> None:
        with pytest.raises(ValueError, match=r"model.accept: expected a share in \(0, 1\], got 0"):
            make_task(accept=0.0)


class TestOptimizer:
    @staticmethod
    def configure(steps: int = 100, **options: Any) -> dict[str, Any]:
        trainer = SimpleNamespace(precision="32-true", estimated_stepping_batches=steps)
        task = make_task(**options)
        task.trainer = trainer
        return {"task": task, **task.configure_optimizers()}

    def test_decays_matrices_alone(self) -> None:
        found = self.configure(lr=0.2, weight_decay=0.3)
        decay = {id(x): group["weight_decay"] for group in found["optimizer"].param_groups for x in group["params"]}
        for name, x in found["task"].model.named_parameters():
            assert decay[id(x)] == (0.3 if x.dim() > 1 else 0.0), name
        assert all(group["initial_lr"] == 0.2 for group in found["optimizer"].param_groups)

    @pytest.mark.parametrize(("schedule", "half", "end"), [("cosine", 0.5, 0), ("linear", 0.5, 0), ("constant", 1, 1)])
    def test_follows_its_schedule(self, schedule: str, half: float, end: float) -> None:
        share = self.configure(schedule=schedule, warmup=0.2)["lr_scheduler"]["scheduler"].lr_lambdas[0]
        assert [share(0), share(9), share(20)] == pytest.approx([1 / 21, 10 / 21, 1.0])
        assert [share(60), share(100)] == pytest.approx([half, end])

    def test_schedules_differ(self) -> None:
        shares = [
            self.configure(schedule=name, warmup=0.0)["lr_scheduler"]["scheduler"].lr_lambdas[0](25)
            for name in ("cosine", "linear", "constant")
        ]
        assert shares == pytest.approx([0.5 + 0.5 * math.cos(math.pi / 4), 0.75, 1.0])


@pytest.mark.parametrize(("name", "value"), [("bank_warmup", -3), ("bank", -1)])
def test_names_the_option_that_is_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"model.{name}: expected 0"):
        make_task(**{"bank": 4, name: value})


def test_widths_of_the_small_model_are_not_the_defaults() -> None:
    assert make_task().model.hidden_features == TINY["deep"][-1]
