"""The training task of the hate-speech pipeline: losses, parameter groups, schedule, options, configurations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml

from examples.hate_speech.ablate import ALL, CONFIGS, PLAIN
from examples.hate_speech.cli import HateCLI
from examples.hate_speech.data import TextData
from examples.hate_speech.report import pairs_of
from examples.hate_speech.task import HateTask
from examples.pipeline.arguments import find_parts
from mmrobust import ContrastiveASRM, SpanAwareASRM
from tests.examples import hate_sets as sets
from tests.examples.hate_runs import TINY


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[override]
    return sets.write_hatexplain(tmp_path_factory.mktemp("hatexplain"))


def cli_of(root: Path, folder: Path, *words: str, config: str = "span_aware") -> HateCLI:
    files = [word for path in find_parts(config, CONFIGS) for word in ("--config", str(path))]
    args = [*files, "--data.root", str(root), *TINY, "--trainer.default_root_dir", str(folder)]
    return HateCLI([*args, *words], trainer={"enable_progress_bar": False})


def make_task(**options: Any) -> HateTask:
    torch.manual_seed(0)
    task = HateTask(8, ["hatespeech", "normal", "offensive"], [0.5, 1.0, 1.5], **options)
    task.log = lambda *args, **more: None
    return task


def make_batch(rows: int = 6) -> dict[str, torch.Tensor]:
    mask = torch.arange(5) < torch.arange(1, rows + 1)[:, None]
    labels = torch.tensor([0, 1, 2, -100, 1, 0])[:rows]
    return {"inputs": torch.randn(rows, 5, 8), "mask": mask, "labels": labels, "index": torch.arange(rows)}


class TestLoss:
    def test_without_anything_is_weighted_cross_entropy(self) -> None:
        task, batch = make_task(gamma=0.0, dropout=0.0), make_batch()
        known = batch["labels"] >= 0
        logits = task(batch)[known]
        expected = F.cross_entropy(logits, batch["labels"][known], torch.tensor([0.5, 1.0, 1.5]))
        torch.testing.assert_close(task.training_step(batch, 0), expected)

    def test_classes_need_not_weigh(self) -> None:
        assert make_task(balanced_loss=False).model.focal.weight is None
        assert make_task().model.focal.weight.tolist() == [0.5, 1.0, 1.5]

    def test_contrastive_learning_is_off_until_it_is_asked_for(self) -> None:
        batch = make_batch()
        plain = make_task(dropout=0.0).training_step(batch, 0)
        same = make_task(dropout=0.0, supervised_temperature=0.5).training_step(batch, 0)
        torch.testing.assert_close(plain, same)
        both = make_task(dropout=0.0, supervised_weight=0.1, self_supervised_weight=0.1).training_step(batch, 0)
        assert both > plain

    @pytest.mark.parametrize("asrm", ["none", "asrm", "span", "position", "contrastive"])
    def test_batch_without_any_label_or_token(self, asrm: str) -> None:
        task, batch = make_task(asrm=asrm, supervised_weight=0.1, self_supervised_weight=0.1), make_batch()
        batch["labels"][:] = -100
        batch["mask"][0] = False
        loss = task.training_step(batch, 0)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


class Step(torch.nn.Module):
    """What DistributedDataParallel wraps: a training step."""

    def __init__(self, task: HateTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.task.training_step(batch, 0)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Join a group of one process."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    "weights",
    [{}, {"supervised_weight": 0.1}, {"self_supervised_weight": 0.1}],
    ids=["none", "supervised", "self-supervised"],
)
def test_no_parameter_is_without_a_gradient_in_data_parallel_training(weights: dict[str, float]) -> None:
    wrapped = torch.nn.parallel.DistributedDataParallel(Step(make_task(asrm="contrastive", **weights)))
    for _ in range(3):  # an unused parameter is an error at the next step
        wrapped(make_batch()).backward()
    parameters = [x for x in wrapped.parameters() if x.requires_grad]
    assert all(x.grad is not None for x in parameters)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"asrm": "spans"}, "model.asrm: expected one of none, asrm, span, position, contrastive, got 'spans'"),
            ({"asrm_options": {"reduction": 2}}, "model.asrm_options: expected none with asrm none, got reduction"),
            ({"asrm": "span", "asrm_options": {"windows": [1]}}, "unknown option 'windows'; allowed: convolution"),
            ({"asrm": "contrastive", "asrm_options": {"num_classes": 3}}, "unknown option 'num_classes'"),
            ({"asrm": "span", "asrm_options": {"groups": 3}}, "model.asrm_options: .*expected groups to divide"),
            ({"warmup": 1.5}, "model.warmup: expected 0.0 to 1.0, got 1.5"),
            ({"lr": -1.0}, "model.lr: expected 0.0 to"),
            ({"dropout": 1.0}, "dropout"),
        ],
    )
    def test_says_what_is_wrong(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_task(**options)

    def test_calibrations(self) -> None:
        task = make_task(asrm="span", asrm_options={"window_sizes": [1, 2], "convolution": "depthwise"})
        assert isinstance(task.model.asrm, SpanAwareASRM)
        assert task.model.asrm.window_sizes == (1, 2)
        contrastive = make_task(asrm="contrastive").model.asrm
        assert isinstance(contrastive, ContrastiveASRM)
        assert contrastive.num_classes == 3


class TestConfigurations:
    @pytest.mark.parametrize("name", ALL)
    def test_is_what_it_says(self, name: str, root: Path, tmp_path: Path) -> None:
        cli = cli_of(root, tmp_path, config=name)
        settings, plain = cli.config.model, name.removesuffix("+dcl")
        kinds = {
            "encoder_only": "none",
            "token_level": "span",
            "token_wide": "span",
            "span_aware": "span",
            "position_aware": "position",
        }
        assert settings.asrm == kinds.get(plain, plain)
        weights = (settings.supervised_weight, settings.self_supervised_weight)
        assert weights == ((0.1, 0.1) if name.endswith("+dcl") else (0.0, 0.0))
        assert cli.name == name.replace("+", "-")
        # All see the same data, in the same way, for as long.
        first = yaml.safe_load((CONFIGS / f"{PLAIN[0]}.yaml").read_text())["data"]
        assert yaml.safe_load((CONFIGS / f"{plain}.yaml").read_text())["data"] == first
        assert (cli.config.trainer.max_epochs, cli.config.early_stopping.patience) == (20, 5)

    def test_tokens_or_spans(self, root: Path, tmp_path: Path) -> None:
        windows = [
            cli_of(root, tmp_path, config=name).model.model.asrm.window_sizes for name in ("token_level", "span_aware")
        ]
        assert windows == [(1,), (1, 3, 5)]

    def test_fine_tuning(self, root: Path, tmp_path: Path) -> None:
        cli = cli_of(root, tmp_path, config="span_aware+finetune")
        assert not cli.config.data.frozen
        model = cli.model.model
        assert all(module.training for module in model.encoder.modules())
        assert all(parameter.requires_grad for parameter in model.encoder.parameters())

    def test_balanced_batches(self, root: Path, tmp_path: Path) -> None:
        cli = cli_of(root, tmp_path, "--data.batch_size", "6", config="encoder_only+balanced")
        assert cli.model.model.focal.weight is None
        for batch in cli.datamodule.train_dataloader():
            assert batch["labels"].bincount().tolist() == [2, 2, 2]

    def test_pairs(self) -> None:
        pairs = pairs_of(ALL)
        assert ("span_aware", "token_level") in pairs
        assert ("span_aware+dcl", "token_level+dcl") in pairs
        assert ("span_aware", "token_wide") in pairs
        assert ("asrm+dcl", "asrm") in pairs
        assert len(pairs) == 4 + 6


class TestOptimizer:
    def test_rates_and_decay(self, root: Path, tmp_path: Path) -> None:
        cli = cli_of(root, tmp_path, config="span_aware+finetune")
        groups = {(g["lr"], g["weight_decay"]): g["params"] for g in cli.model._groups()}
        assert set(groups) == {(2e-5, 0.01), (2e-5, 0.0), (1e-3, 0.01), (1e-3, 0.0)}
        assert sum(map(len, groups.values())) == sum(x.requires_grad for x in cli.model.model.parameters())
        assert all(p.dim() > 1 for (_, decay), params in groups.items() if decay for p in params)

    def test_rises_and_falls(self, root: Path, tmp_path: Path) -> None:
        cli = cli_of(root, tmp_path, "--trainer.max_epochs", "5", "--model.warmup", "0.4", "--data.batch_size", "12")
        task, data = cli.model, cli.datamodule
        cli.trainer.fit(task, datamodule=data)
        assert cli.trainer.global_step == 10
        found = task.configure_optimizers()
        rates = []
        for _ in range(10):
            rates.append(found["optimizer"].param_groups[0]["lr"])
            found["optimizer"].step()
            found["lr_scheduler"]["scheduler"].step()
        assert rates == pytest.approx([0.0002, 0.0004, 0.0006, 0.0008, *(0.001 * k / 6 for k in (6, 5, 4, 3, 2, 1))])
        assert found["optimizer"].param_groups[0]["lr"] == 0


def test_learns_what_a_word_tells(root: Path, tmp_path: Path) -> None:
    cli = cli_of(root, tmp_path, "--trainer.max_epochs", "30", "--model.lr", "0.02", "--early_stopping.patience", "30")
    best = cli.train()
    assert best["validation"]["macro_f1"] > 0.9
    assert best["validation"]["select"] == best["validation"]["macro_f1"]


def test_the_best_weights_are_put_back(root: Path, tmp_path: Path) -> None:
    cli = cli_of(root, tmp_path, "--trainer.max_epochs", "4", "--model.lr", "0.05")
    best = cli.train()
    state = cli.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in best["state_dict"].items())
    assert not cli.model.training


def test_corpus_of_one_class_has_nothing_to_train_on(tmp_path: Path) -> None:
    sets.write_spans(tmp_path / "spans")
    with pytest.raises(ValueError, match="expected a corpus of at least two classes to train on, toxic_spans has only"):
        cli_of(tmp_path / "spans", tmp_path / "run")


def test_weights_come_from_the_training_posts(root: Path, tmp_path: Path) -> None:
    cli = cli_of(root, tmp_path)
    data: TextData = cli.datamodule
    assert cli.model.model.focal.weight.tolist() == pytest.approx(data.class_weight().tolist())
