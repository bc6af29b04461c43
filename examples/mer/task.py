"""The training task: a fusion model, its loss, its optimiser and its validation metrics."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmrobust.corruption import ModalityCorruption
from mmrobust.losses.classification import FocalLabelSmoothingLoss, FocalLoss, LabelSmoothingCrossEntropy
from mmrobust.models import AttentionFusionClassifier, FusionClassifierOutput, VariationalFusionClassifier

from .metrics import FusionMetrics
from .selection import looks

FAMILIES: dict[str, type[nn.Module]] = {
    "attention": AttentionFusionClassifier,
    "variational": VariationalFusionClassifier,
}
LOSSES: dict[str, type[nn.Module]] = {
    "cross_entropy": LabelSmoothingCrossEntropy,
    "focal": FocalLoss,
    "label_smoothing": LabelSmoothingCrossEntropy,
    "focal_label_smoothing": FocalLabelSmoothingLoss,
}
# What the data decides: never an option of a config.
FROM_DATA = frozenset({"in_features", "num_classes", "num_values", "sequences"})
Batch = dict[str, Any]


class FusionTask(LightningModule):
    """Train one of the assembled fusion models on batches of `MultimodalData`.

    The loss is the classification loss, plus `value_weight` times the mean squared error of the score over the rows
    that have one, plus the model's own auxiliary loss. Selection, early stopping and the learning rate follow
    `val_combined`, the validation value of weighted F1 - 0.25 * MSE (weighted F1 where the data has no score), or the
    mean of it over several views of the validation rows, see `selection`.

    Args:
        family: which assembled model, "attention" or "variational".
        options: constructor options of that model; a name that the model does not have is an error.
        in_features: feature size by modality, from the data.
        num_classes: number of classes, from the data.
        num_values: 1 when the data has a score, else 0.
        sequences: modalities given as frames, from the data.
        loss: the classification loss, "cross_entropy", "focal", "label_smoothing" or "focal_label_smoothing".
        loss_options: constructor options of that loss.
        value_weight: weight of the squared error of the score.
        corruption_rate: probability that a modality of a training row is spoilt; the variational family is still shown
            the unspoilt features as targets.
        corruption_kinds: how, see `ModalityCorruption`.
        corruption_snr_db: the lowest and highest signal-to-noise ratio of its noise.
        selection: the views of the validation rows that count: "clean", "subset" (other subsets of the modalities) and
            "corrupt" (one modality replaced by zeros or under noise at 0 dB).
        optimizer: "adamw", or "adam" (weight decay added to the gradient) as in the benchmark.
        lr: learning rate.
        weight_decay: weight decay.
        lr_patience: epochs without improvement before the learning rate is multiplied by `lr_factor`.
        lr_factor: see `lr_patience`.
        min_lr: the learning rate never falls below this.

    Raises:
        ValueError: for an unknown family, loss or option, or one that is missing.
    """

    def __init__(
        self,
        family: Literal["attention", "variational"],
        in_features: dict[str, int],
        num_classes: int,
        num_values: int = 0,
        sequences: list[str] | None = None,
        options: dict[str, Any] | None = None,
        loss: Literal["cross_entropy", "focal", "label_smoothing", "focal_label_smoothing"] = "cross_entropy",
        loss_options: dict[str, Any] | None = None,
        value_weight: float = 1.0,
        corruption_rate: float = 0.0,
        corruption_kinds: list[str] | None = None,
        corruption_snr_db: tuple[float, float] = (-20.0, 15.0),
        selection: list[Literal["clean", "subset", "corrupt"]] | None = None,
        optimizer: Literal["adamw", "adam"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        lr_patience: int = 10,
        lr_factor: float = 0.5,
        min_lr: float = 1e-6,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = build_model(
            family, options, in_features, num_classes=num_classes, num_values=num_values, sequences=sequences
        )
        self.classification_loss = build_loss(loss, loss_options)
        self.selection = tuple(selection or ["clean"])
        for view in self.selection:
            check_choice("model.selection", view, dict.fromkeys(("clean", "subset", "corrupt")))
        self.metrics = nn.ModuleDict({view: FusionMetrics(num_classes, num_values > 0) for view in self.selection})
        self.value_weight = value_weight
        self.corruption = ModalityCorruption(
            corruption_rate, kinds=corruption_kinds or ["noise", "zeros"], snr_db=tuple(corruption_snr_db)
        )

    def forward(self, batch: Batch) -> FusionClassifierOutput:
        inputs, masks = batch["inputs"], batch.get("masks") or None
        if self.training and self.corruption.rate > 0:
            return self._model(self.corruption(inputs, masks), batch["present"], masks, inputs)
        return self._model(inputs, batch["present"], masks, None)

    def _model(self, *args: Any) -> FusionClassifierOutput:
        output: FusionClassifierOutput = self.model(*args)
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self(batch)
        loss = self.classification_loss(output.logits, batch["label"]) + output.aux_loss
        score = batch.get("score")
        if output.values is not None and score is not None:
            loss = loss + self.value_weight * masked_squared_error(output.values.squeeze(1), score)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for look in looks(batch, self.selection, batch_idx):
            output = self._model(look.inputs, look.present, look.masks or None, None)
            rows, score = look.rows, batch.get("score")
            values = None if output.values is None else output.values[rows, 0]
            score = None if score is None else score[rows]
            self.metrics[look.view].update(output.logits[rows], batch["label"][rows], values, score)

    def on_validation_epoch_end(self) -> None:
        found = {view: metrics.compute() for view, metrics in self.metrics.items()}
        # The metrics of the first view, which is the clean one unless a configuration leaves it out.
        named = dict(found[self.selection[0]])
        named |= {f"{view}_combined": scores["combined"] for view, scores in found.items() if len(found) > 1}
        named["combined"] = torch.stack([scores["combined"] for scores in found.values()]).mean()
        for name, value in named.items():
            self.log(f"val_{name}", value, prog_bar=name == "combined")
        for metrics in self.metrics.values():
            metrics.reset()

    def on_fit_start(self) -> None:
        """Show the training rows to a model that reads the quality of its inputs."""
        if getattr(self.model, "quality", None) is not None:
            train = self.trainer.datamodule.sets["train"]
            self.model.fit_quality(train.features, train.present, train.masks or None)

    def on_train_epoch_start(self) -> None:
        self.model.set_epoch(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        # Here and not in Lightning's own step, which runs after the checkpoint of the epoch has been written: a
        # resumed run would miss it.
        self.lr_schedulers().step(self.trainer.callback_metrics["val_combined"])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Do nothing: `on_train_epoch_end` has already stepped."""

    def configure_optimizers(self) -> dict[str, Any]:
        settings = self.hparams
        kind = torch.optim.Adam if settings["optimizer"] == "adam" else torch.optim.AdamW
        # One kernel for all tensors; it forbids clipping gradients in mixed precision, which Lightning always does.
        fused = self.trainer.precision.endswith("-true")
        optimizer = kind(self.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"], fused=fused)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=settings["lr_factor"],
            patience=settings["lr_patience"],
            min_lr=settings["min_lr"],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_combined"}}


def masked_squared_error(values: Tensor, score: Tensor) -> Tensor:
    """Average the squared error over the rows whose score is not NaN; 0 when there is none."""
    known = ~score.isnan()
    error = torch.where(known, values.float() - score.nan_to_num().float(), 0.0)
    return error.square().sum() / known.sum().clamp(min=1)


def build_model(
    family: str, options: Mapping[str, Any] | None, in_features: Mapping[str, int], **from_data: Any
) -> nn.Module:
    """Construct a model of `family`, naming the option and the allowed ones when a config is wrong."""
    model = FAMILIES[check_choice("model.family", family, FAMILIES)]
    options = check_options(f"model.options (family {family})", options, model, exclude=FROM_DATA)
    from_data["sequences"] = tuple(from_data["sequences"] or ())
    return model(in_features, **from_data, **options)


def build_loss(loss: str, options: Mapping[str, Any] | None) -> nn.Module:
    """Construct a classification loss that leaves out the rows labelled -1."""
    kind = LOSSES[check_choice("model.loss", loss, LOSSES)]
    fixed = frozenset({"ignore_index", "reduction", "validate"})
    options = check_options(f"model.loss_options (loss {loss})", options, kind, exclude=fixed)
    if loss == "cross_entropy":
        options = {**options, "smoothing": 0.0}
    return kind(**options, ignore_index=-1)


def check_choice(where: str, value: str, allowed: Mapping[str, Any]) -> str:
    if value not in allowed:
        raise ValueError(f"{where}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


def check_options(
    where: str, options: Mapping[str, Any] | None, kind: type, *, exclude: frozenset[str]
) -> dict[str, Any]:
    """Check the names in `options` against the constructor of `kind`: none unknown, none missing."""
    options = dict(options or {})
    parameters = {
        name: parameter for name, parameter in inspect.signature(kind).parameters.items() if name not in exclude
    }
    for name in options:
        if name not in parameters:
            raise ValueError(f"{where}: unknown option {name!r}; allowed: {', '.join(sorted(parameters))}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise ValueError(f"{where}: option {name!r} is required")
    return options
