"""The training task: a fusion model, its loss, its optimiser and its validation metrics."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from examples.pipeline.optimizers import fused
from mmrobust.calibration import TemperatureScaling
from mmrobust.corruption import ModalityCorruption
from mmrobust.models import FusionClassifierOutput
from mmrobust.presence import presence_views

from .average import AveragedModel
from .build import build_loss, build_model, check_training
from .metrics import FusionMetrics
from .selection import Look, looks

Batch = dict[str, Any]


class FusionTask(LightningModule):
    """Train one of the assembled fusion models on batches of `MultimodalData`.

    The loss is the classification loss, plus `value_weight` times the mean squared error of the score over the rows
    that have one, plus the model's own auxiliary loss. Selection, early stopping and the learning rate follow
    `val_select`, a mean over the views of the validation rows in `selection`: of weighted F1 - 0.25 * MSE (weighted F1
    where the data has no score), or of the likelihood, see `select_by`.

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
        select_by: "combined", or "likelihood": the negative of what training minimises, cross-entropy and
            `value_weight` times the squared error. It tells neighbouring epochs apart with less noise than F1.
        views: number of subsets of the modalities that each training batch is also classified by, all from one
            encoding; 0 = none. Instead of modality dropout, and only for the variational family.
        full_weight: share of the batch as it is in the loss, the subsets share the rest; None = all views count alike.
        teach_quality: whether the model's quality networks learn before the training, on spoilt training rows; groups
            of the data stay together.
        average: decay of a moving average of the weights, which is what is validated, selected and tested; 0 = none.
            It forgets faster in the first steps.
        consistency: weight of the KL divergence between what the moving average says of a complete, unspoilt sample and
            what the model says of it in every view, at temperature 2.
        calibrate: whether logits are divided by the temperature that fits the validation rows, in every view of
            `selection` but "corrupt".
        optimizer: "adamw", or "adam" (weight decay added to the gradient) as in the benchmark.
        lr: learning rate.
        weight_decay: weight decay.
        lr_patience: epochs without improvement before the learning rate is multiplied by `lr_factor`.
        lr_factor: see `lr_patience`.
        min_lr: the learning rate never falls below this.

    Raises:
        ValueError: for an unknown family, loss or option, one that is missing, or settings that exclude each other.
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
        select_by: Literal["combined", "likelihood"] = "combined",
        views: int = 0,
        full_weight: float | None = None,
        teach_quality: bool = False,
        average: float = 0.0,
        consistency: float = 0.0,
        calibrate: bool = False,
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
        check_training(self.hparams, self.selection, self.model.absence)
        self.metrics = nn.ModuleDict(
            {view: FusionMetrics(num_classes, num_values > 0, value_weight) for view in self.selection}
        )
        self.select_by, self.views, self.full_weight, self.consistency = select_by, views, full_weight, consistency
        self.teach_quality, self.value_weight = teach_quality, value_weight
        self.averaged = AveragedModel(self.model, average) if average else None
        self.temperature = TemperatureScaling() if calibrate else None
        self.answers: list[tuple[Tensor, Tensor]] = []
        if calibrate:
            self.register_buffer("best_select", torch.tensor(float("-inf")))
        self.corruption = ModalityCorruption(
            corruption_rate, kinds=corruption_kinds or ["noise", "zeros"], snr_db=tuple(corruption_snr_db)
        )

    @property
    def final(self) -> nn.Module:
        """The model that is validated and tested: the moving average of the weights where there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def forward(self, batch: Batch) -> FusionClassifierOutput:
        inputs, masks, present = batch["inputs"], batch.get("masks") or None, batch["present"]
        given, more = inputs, {}
        if self.training and self.views:
            more["views"] = presence_views(present, self.views)
        if self.training and self.corruption.rate > 0:
            # The steps of an absent row are all masked.
            real = {name: (masks or {}).get(name, present[:, index]) for index, name in enumerate(inputs)}
            inputs = self.corruption(inputs, real)
        output: FusionClassifierOutput = self.model(inputs, present, masks, None if inputs is given else given, **more)
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self(batch)
        loss = self._task_loss(output, batch) + output.aux_loss
        if self.consistency > 0:
            loss = loss + self.consistency * self._disagreement(output.logits, batch)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch["label"]))
        return loss

    def _task_loss(self, output: FusionClassifierOutput, batch: Batch) -> Tensor:
        """Add up the losses of class and score; with views the mean over them, the first by its own weight."""
        assert output.logits is not None
        logits, values, score = output.logits, output.values, batch.get("score")
        if logits.dim() == 2:
            return self._row_loss(logits, values, batch["label"], score)
        count = len(logits)
        full = 1.0 / count if self.full_weight is None or count == 1 else self.full_weight
        losses = [
            weight
            * self._row_loss(
                logits[part].flatten(0, 1),
                None if values is None else values[part].flatten(0, 1),
                batch["label"].repeat(views),
                None if score is None else score.repeat(views),
            )
            for part, views, weight in ((slice(0, 1), 1, full), (slice(1, None), count - 1, 1.0 - full))
            if views
        ]
        return torch.stack(losses).sum()

    def _disagreement(self, logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher = self.final.eval()(batch["inputs"], batch["present"], batch.get("masks") or None).logits
        said, known = F.log_softmax(logits / 2, -1), F.log_softmax(teacher / 2, -1).expand_as(logits)
        return 4 * F.kl_div(said, known, reduction="none", log_target=True).sum(-1).mean()

    def _row_loss(self, logits: Tensor, values: Tensor | None, label: Tensor, score: Tensor | None) -> Tensor:
        loss: Tensor = self.classification_loss(logits, label)
        if values is not None and score is not None:
            loss = loss + self.value_weight * masked_squared_error(values.squeeze(1), score)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.averaged is not None:
            self.averaged.update(self.model)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        label, score = batch["label"], batch.get("score")
        for look in looks(batch, self.selection, batch_idx):
            repeats = look.present.shape[1] // len(label)
            labels = label.repeat(repeats)
            scores = None if score is None else score.repeat(repeats)
            for name, rows, (logits, values) in zip(look.names, look.rows, self._answers(look), strict=True):
                if not rows.any():
                    continue
                values = None if values is None else values[rows, 0]
                self.metrics[name].update(logits[rows], labels[rows], values, None if scores is None else scores[rows])
                if self.temperature is not None and name != "corrupt":
                    self.answers.append((logits[rows], labels[rows]))

    def _answers(self, look: Look) -> list[tuple[Tensor, Tensor | None]]:
        """Classify a look in each of its views."""
        found = []
        if self.views:
            output = self.final(look.inputs, None, look.masks or None, views=look.present)
            return [
                (logits, None if output.values is None else output.values[v]) for v, logits in enumerate(output.logits)
            ]
        for present in look.present:
            output = self.final(look.inputs, present, look.masks or None)
            found.append((output.logits, output.values))
        return found

    def on_validation_epoch_end(self) -> None:
        # A data set of one modality has no other subsets.
        found = {view: metrics.compute() for view, metrics in self.metrics.items() if metrics.rows.update_called}
        # The metrics of the first view, which is the clean one unless a configuration leaves it out.
        named = dict(next(iter(found.values())))
        named |= {f"{view}_combined": scores["combined"] for view, scores in found.items() if len(found) > 1}
        named["combined"] = torch.stack([scores["combined"] for scores in found.values()]).mean()
        named["select"] = named["combined"]
        if self.select_by == "likelihood":
            named["select"] = -torch.stack([scores["loss"] for scores in found.values()]).mean()
        for name, value in named.items():
            self.log(f"val_{name}", value, prog_bar=name == "select")
        for metrics in self.metrics.values():
            metrics.reset()
        # Without answers, of one modality and views that only several have, the temperature stays 1.
        if self.temperature is not None and self.answers and named["select"] > self.best_select:
            # As the checkpoint of the best epoch is written next, only this epoch's temperature matters.
            self.best_select.copy_(named["select"])
            logits, labels = (torch.cat(parts) for parts in zip(*self.answers, strict=True))
            self.temperature.fit(logits.float(), labels, ignore_index=-1)
        self.answers.clear()

    def on_fit_start(self) -> None:
        """Show the training rows to a model that reads the quality of its inputs, unless the run is a resumed one."""
        if getattr(self.model, "quality", None) is not None and self.trainer.ckpt_path is None:
            train = self.trainer.datamodule.sets["train"]
            rows = self.transfer_batch_to_device({**train.batch(slice(None)), "group": train.group}, self.device, 0)
            more = {"teach": True, "groups": rows["group"]} if self.teach_quality else {}
            self.model.fit_quality(rows["inputs"], rows["present"], rows["masks"] or None, **more)
        if self.averaged is not None:
            self.averaged.start(self.model)

    def on_train_epoch_start(self) -> None:
        self.model.set_epoch(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        # Here and not in Lightning's own step, which runs after the checkpoint of the epoch has been written: a
        # resumed run would miss it.
        self.lr_schedulers().step(self.trainer.callback_metrics["val_select"])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Do nothing: `on_train_epoch_end` has already stepped."""

    def configure_optimizers(self) -> dict[str, Any]:
        settings = self.hparams
        kind = torch.optim.Adam if settings["optimizer"] == "adam" else torch.optim.AdamW
        options = {"lr": settings["lr"], "weight_decay": settings["weight_decay"]}
        optimizer = fused(kind, self.model.parameters(), **options)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=settings["lr_factor"],
            patience=settings["lr_patience"],
            min_lr=settings["min_lr"],
            # A negative score is always better than itself times 1 + the relative threshold.
            threshold_mode="abs" if self.select_by == "likelihood" else "rel",
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_select"}}


def masked_squared_error(values: Tensor, score: Tensor) -> Tensor:
    """Average the squared error over the rows whose score is not NaN; 0 when there is none."""
    known = ~score.isnan()
    error = torch.where(known, values.float() - score.nan_to_num().float(), 0.0)
    return error.square().sum() / known.sum().clamp(min=1)
