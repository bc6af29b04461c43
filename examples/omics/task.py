"""The training task: the two-branch classifier, its memory bank, its optimiser and its validation metrics."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from examples.pipeline.errors import check_number, check_option
from examples.pipeline.optimizers import fused
from mmrobust import MemoryBank
from mmrobust.models import TwoBranchPrototypeClassifier
from mmrobust.models.two_branch import PrototypeClassifierOutput
from mmrobust.prototypes import SubspacePrototypeClassifier

from .metrics import ClassMetrics
from .parts import members_state

# What the data decides: never an option of a configuration.
FROM_DATA = ("in_features", "classes")
PARTS = ("classification", "contrastive", "orthonormality", "separation")
TIE = 1e-4
LIMITS = {"warmup": 1.0, "lr": 10.0, "weight_decay": 10.0, "accept": 1.0, "bank": 1e6, "bank_warmup": 1e9}
SCHEDULES = ("cosine", "linear", "constant")
Batch = dict[str, Any]


class OmicsTask(LightningModule):
    """Train `TwoBranchPrototypeClassifier` on batches of `OmicsData`.

    Selection and early stopping follow `val_select`: balanced accuracy on the validation rows, or their likelihood.
    The test rows are not read.

    Args:
        in_features: features by branch, from the data.
        classes: names of the classes, from the data.
        deep: widths of the extractor of the deep branches.
        shallow: widths of the extractor of the others; ends in the same width.
        deep_dropout: dropout of the deep branches.
        shallow_dropout: dropout of the others.
        deep_branches: names of the deep branches; None = the one of the most features, the first of equals.
        subspace_dim: basis vectors of each class.
        token_features: width of a token in the attention between features; 0 = no attention.
        num_heads: heads of the attention.
        projection_features: width of the contrastive space.
        head: "subspace", or "linear" to compare with.
        temperature: temperature of the prototypes.
        normalize: whether embeddings have unit length before they are compared with subspaces.
        orthogonality: "penalty" or "exact".
        contrastive_weight: weight of SupCon over the branches of all samples; 0 = off.
        contrastive_temperature: its temperature.
        orthonormality_weight: weight of the penalty on bases.
        separation_weight: weight of the overlap of subspaces.
        bank: rows per class that a memory bank adds to SupCon as keys; 0 = no bank.
        bank_warmup: updates of the bank before it is used.
        accept: share of the rightly classified validation rows that the threshold of rejection lets pass.
        select_by: "balanced_accuracy" (equal ones by likelihood), or "likelihood" of the validation rows.
        lr: learning rate.
        weight_decay: weight decay of matrices.
        warmup: share of all steps in which the learning rate rises linearly.
        schedule: after that "cosine" or "linear" to 0 at the last of `max_epochs`, or "constant".

    Raises:
        ValueError: for an option out of range; subspaces of more vectors than there are features among them.
    """

    def __init__(
        self,
        in_features: dict[str, int],
        classes: list[str],
        deep: list[int] | None = None,
        shallow: list[int] | None = None,
        deep_dropout: float = 0.5,
        shallow_dropout: float = 0.2,
        deep_branches: list[str] | None = None,
        subspace_dim: int = 4,
        token_features: int = 8,
        num_heads: int = 1,
        projection_features: int = 64,
        head: Literal["subspace", "linear"] = "subspace",
        temperature: float = 1.0,
        normalize: bool = False,
        orthogonality: Literal["penalty", "exact"] = "penalty",
        contrastive_weight: float = 0.1,
        contrastive_temperature: float = 0.1,
        orthonormality_weight: float = 0.1,
        separation_weight: float = 0.0,
        bank: int = 0,
        bank_warmup: int = 20,
        accept: float = 0.95,
        select_by: Literal["balanced_accuracy", "likelihood"] = "balanced_accuracy",
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        schedule: Literal["cosine", "linear", "constant"] = "cosine",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for name, high in LIMITS.items():
            check_number(f"model.{name}", self.hparams[name], 0.0, high)
        if not accept:
            raise ValueError(f"model.accept: expected a share in (0, 1], got {accept}")
        check_option("model.schedule", schedule, SCHEDULES)
        self.classes, self.branches = list(classes), list(in_features)
        deep, shallow = (find_widths(*one) for one in (("deep", deep, [256, 128]), ("shallow", shallow, [128])))
        check_prototypes(head, len(classes), subspace_dim, deep[-1])
        is_deep = find_deep(in_features, deep_branches)
        self.model = TwoBranchPrototypeClassifier(
            in_features,
            {name: deep if is_deep[name] else shallow for name in in_features},
            len(classes),
            subspace_dim,
            dropout={name: deep_dropout if is_deep[name] else shallow_dropout for name in in_features},
            token_features=token_features,
            num_heads=num_heads,
            projection_features=projection_features,
            head=head,
            temperature=temperature,
            normalize=normalize,
            orthogonality=orthogonality,
            contrastive_weight=contrastive_weight,
            contrastive_temperature=contrastive_temperature,
            orthonormality_weight=orthonormality_weight,
            separation_weight=separation_weight,
        )
        self.bank = self._bank(bank, bank_warmup, projection_features)
        self.metrics = ClassMetrics(len(classes))
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.waiting: tuple[Tensor, Tensor, Tensor] | None = None

    def _bank(self, rows: int, warmup: int, features: int) -> MemoryBank | None:
        if not rows or not self.hparams["contrastive_weight"]:
            return None
        classes = len(self.classes)
        return MemoryBank(rows * classes, features, num_classes=classes, warmup_updates=warmup)

    @property
    def prototypes(self) -> SubspacePrototypeClassifier | None:
        """The head, if it is one of subspaces."""
        head = self.model.head
        return head if isinstance(head, SubspacePrototypeClassifier) else None

    def forward(self, batch: Batch) -> PrototypeClassifierOutput:
        output: PrototypeClassifierOutput = self.model(batch["inputs"], batch["present"])
        return output

    def answer(self, batch: Batch) -> tuple[PrototypeClassifierOutput, Tensor | None]:
        """Return the output and, for a head of subspaces, the residuals ``(B, C)``."""
        output = self(batch)
        return output, None if self.prototypes is None else self.prototypes.residuals(output.embedding)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        keys = None if self.bank is None else self.bank.keys()
        found = self.model.loss(batch["inputs"], batch["label"], batch["present"], keys=keys)
        if self.bank is not None:
            rows = found.output.projections.detach().flatten(0, 1), found.output.present.flatten()
            self.waiting = rows[0], batch["label"].repeat_interleave(len(self.branches)), rows[1]
        named = {"train_loss": found.loss, **{f"train_{name}": getattr(found, name) for name in PARTS}}
        for name, value in named.items():
            self.log(name, value.detach(), on_step=False, on_epoch=True, batch_size=len(batch["label"]))
        loss: Tensor = found.loss
        return loss

    def on_after_backward(self) -> None:
        # Only now: the backward pass reads the memory of the bank.
        if self.bank is not None and self.waiting is not None:
            features, label, present = (x[-self.bank.size :] for x in self.waiting)
            self.bank.update(features, label, present=present)
            self.waiting = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output = self(batch)
        self.metrics.update(output.logits, batch["label"])
        self.seen.append((output.embedding, batch["label"]))

    def on_validation_epoch_end(self) -> None:
        scores = self.metrics.compute()
        by = self.hparams["select_by"]
        # Among few validation rows many epochs are equal: then the likelihood decides. It changes the score by at most
        # a thousandth: less than one row does, unless there are about as many as that in validation.
        tie = TIE * min(scores["nll"], 10.0)
        select = scores["balanced_accuracy"] - tie if by == "balanced_accuracy" else -scores["nll"]
        for name, value in {**scores, "select": select}.items():
            self.log(f"val_{name}", value, prog_bar=name == "select")
        if self.prototypes is not None and math.isfinite(select):
            # In every epoch, so that the checkpoint of the best one holds the threshold that belongs to it.
            embedding, label = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
            self.prototypes.fit_threshold(embedding, label, accept=self.hparams["accept"])
        self.seen.clear()
        self.metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what new samples need, and who was in which part: neither may be found again otherwise."""
        data = self.trainer.datamodule
        checkpoint["preparation"], checkpoint["members"] = data.preparation.state(), members_state(data.members())

    def configure_optimizers(self) -> dict[str, Any]:
        matrices = [x for x in self.model.parameters() if x.dim() > 1]
        others = [x for x in self.model.parameters() if x.dim() <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        settings = self.hparams
        optimizer = fused(torch.optim.AdamW, groups, lr=settings["lr"], weight_decay=settings["weight_decay"])
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        rising = int(settings["warmup"] * steps)
        schedule = settings["schedule"]

        def share(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            done = min((step - rising) / max(steps - rising, 1), 1.0)
            return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[schedule]

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def find_widths(name: str, widths: list[int] | None, default: list[int]) -> list[int]:
    if widths is not None and not widths:
        raise ValueError(f"model.{name}: expected at least one width, got none; leave it out for {default}")
    return widths or default


def find_deep(in_features: dict[str, int], names: list[str] | None) -> dict[str, bool]:
    """Tell which branches are deep: those named, or the widest."""
    if names is None:
        names = [max(in_features, key=lambda name: in_features[name])]
    for name in names:
        check_option("model.deep_branches", name, list(in_features))
    return {name: name in names for name in in_features}


def check_prototypes(head: str, classes: int, dim: int, features: int) -> None:
    """Raise unless the subspaces of all classes fit beside each other into the space of the embedding."""
    if head == "subspace" and classes * dim > features:
        raise ValueError(
            f"model.subspace_dim: expected at most {features // classes} for {classes} classes and embeddings of"
            f" {features} features, which have to hold classes x subspace_dim, got {dim}"
        )
