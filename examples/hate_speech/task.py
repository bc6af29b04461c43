"""The training task: a text classifier on the states of a frozen encoder or on top of one that is trained too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from examples.pipeline.errors import check_number, check_option, check_options
from examples.pipeline.optimizers import fused
from mmrobust import ASRM, ContrastiveASRM, PositionAwareASRM, SpanAwareASRM
from mmrobust.models.text import DualContrastiveTextClassifier

from .metrics import TextMetrics

ASRMS: dict[str, type[nn.Module] | None] = {
    "none": None,
    "asrm": ASRM,
    "span": SpanAwareASRM,
    "position": PositionAwareASRM,
    "contrastive": ContrastiveASRM,
}
# What the data decides: never an option of a configuration.
FROM_DATA = ("hidden_features", "classes", "weights", "encoder")
PARTS = ("classification", "supervised", "self_supervised", "class_separation")
Batch = dict[str, Tensor]


class HateTask(LightningModule):
    """Train `DualContrastiveTextClassifier` on batches of `TextData`.

    Selection and early stopping follow `val_select`, the macro F1 on the validation posts. The test posts are not read.

    Args:
        hidden_features: size of token states, from the data.
        classes: names of the classes, from the data.
        weights: weights of the classes, from the data.
        encoder: the encoder to fine-tune, from the data; None = batches hold the states of a frozen one.
        asrm: calibration of the tokens: "none", "asrm" (one gate for all tokens), "span", "position" or "contrastive".
        asrm_options: constructor options of the calibration; a name that it does not have is an error.
        pooling: "mean" over real tokens or "cls".
        dropout: dropout probability on tokens and pooled vectors.
        projection_features: width of the space of the contrastive losses.
        supervised_weight: weight of SupCon.
        self_supervised_weight: weight of NT-Xent between two dropout views. With both 0 there is no contrastive
            learning.
        class_separation_weight: weight of the class loss of the contrastive calibration; without it no effect.
        supervised_temperature: temperature of SupCon.
        self_supervised_temperature: temperature of NT-Xent.
        gamma: focusing of the focal loss; 0 = cross entropy.
        smoothing: label smoothing.
        balanced_loss: whether classes weigh by the inverse of their frequency.
        lr: learning rate of all but the encoder.
        encoder_lr: learning rate of an encoder that is fine-tuned.
        weight_decay: weight decay of matrices.
        warmup: share of all steps in which the learning rates rise linearly.
        schedule: after that "linear" to 0 at the last of `max_epochs`, or "constant".

    Raises:
        ValueError: for an unknown calibration or option, or a number out of range.
    """

    def __init__(
        self,
        hidden_features: int,
        classes: list[str],
        weights: list[float] | None = None,
        encoder: Any = None,
        asrm: Literal["none", "asrm", "span", "position", "contrastive"] = "none",
        asrm_options: dict[str, Any] | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        dropout: float = 0.1,
        projection_features: int = 128,
        supervised_weight: float = 0.0,
        self_supervised_weight: float = 0.0,
        class_separation_weight: float = 0.1,
        supervised_temperature: float = 0.1,
        self_supervised_temperature: float = 0.1,
        gamma: float = 2.0,
        smoothing: float = 0.0,
        balanced_loss: bool = True,
        lr: float = 1e-3,
        encoder_lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["encoder"])
        for name, high in (("warmup", 1.0), ("lr", 10.0), ("encoder_lr", 10.0), ("weight_decay", 10.0)):
            check_number(f"model.{name}", self.hparams[name], 0.0, high)
        self.classes = list(classes)
        self.model = DualContrastiveTextClassifier(
            encoder,
            hidden_features,
            len(self.classes),
            asrm=build_asrm(asrm, asrm_options, hidden_features, len(self.classes)),
            pooling=pooling,
            projection_features=projection_features,
            dropout=dropout,
            supervised_weight=supervised_weight,
            self_supervised_weight=self_supervised_weight,
            class_separation_weight=class_separation_weight,
            supervised_temperature=supervised_temperature,
            self_supervised_temperature=self_supervised_temperature,
            gamma=gamma,
            smoothing=smoothing,
            class_weight=weights if balanced_loss else None,
        )
        self.metrics = TextMetrics(len(self.classes))
        self.train()  # a loaded encoder comes in evaluation mode, and Lightning leaves it there

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(batch["inputs"], batch["mask"]).logits
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        found = self.model.loss(batch["inputs"], batch["mask"], batch["labels"])
        named = {"train_loss": found.loss, **{f"train_{name}": getattr(found, name) for name in PARTS}}
        for name, value in named.items():
            self.log(name, value.detach(), on_step=False, on_epoch=True, batch_size=len(batch["labels"]))
        loss: Tensor = found.loss
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch)
        self.metrics.update(logits, batch["labels"])
        known = int((batch["labels"] >= 0).sum())
        if known:
            loss = F.cross_entropy(logits.float(), batch["labels"])
            self.log("val_cross_entropy", loss, on_step=False, on_epoch=True, batch_size=known)

    def on_validation_epoch_end(self) -> None:
        scores = self.metrics.compute()
        for name, value in {**scores, "select": scores["macro_f1"]}.items():
            self.log(f"val_{name}", value, prog_bar=name == "select")
        self.metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the encoder was, whose weights a frozen one does not leave in the checkpoint."""
        checkpoint["encoder"] = self.trainer.datamodule.encoder.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with an encoder of other weights.

        Raises:
            ValueError: if it is not the one that the checkpoint was trained on.
        """
        now = self.trainer.datamodule.encoder.fingerprint
        if checkpoint.get("encoder", now) != now:
            raise ValueError(
                "--ckpt_path: expected the encoder that it was trained on, it has other weights or options now"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        settings = self.hparams
        optimizer = fused(torch.optim.AdamW, self._groups(), lr=settings["lr"])
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        rising = int(settings["warmup"] * steps)

        def share(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            return 1.0 if settings["schedule"] == "constant" else (steps - step) / max(steps - rising, 1)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(share(step), 0.0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """Sort the parameters by learning rate and decay; biases and norms do not decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                lr = self.hparams["encoder_lr" if name.startswith("encoder.") else "lr"]
                decay = self.hparams["weight_decay"] if parameter.dim() > 1 else 0.0
                groups.setdefault((lr, decay), []).append(parameter)
        return [{"params": found, "lr": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


def build_asrm(name: str, options: Mapping[str, Any] | None, hidden: int, classes: int) -> nn.Module | None:
    """Construct a calibration, naming the option and the allowed ones when a configuration is wrong."""
    kind = ASRMS[check_option("model.asrm", name, ASRMS)]
    if kind is None:
        if options:
            raise ValueError(f"model.asrm_options: expected none with asrm none, got {', '.join(options)}")
        return None
    sizes = {"hidden_features": hidden, **({"num_classes": classes} if kind is ContrastiveASRM else {})}
    checked = check_options(f"model.asrm_options (asrm {name})", options, kind, exclude=frozenset(sizes))
    if isinstance(checked.get("window_sizes"), Sequence):
        checked["window_sizes"] = tuple(checked["window_sizes"])
    try:
        return kind(**sizes, **checked)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.asrm_options: {error}") from None
