"""Losses: classification and variational."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from mmrobust import (
    FocalLabelSmoothingLoss,
    FocalLoss,
    LabelSmoothingCrossEntropy,
    VariationalLoss,
    cross_modal_kl,
    gaussian_kl,
    reconstruction_loss,
)

_GAMMA, _SMOOTHING = 2.0, 0.1
_CLASSES = (
    Size({"B": 32, "C": 6}),
    Size({"B": 65536, "C": 6}, compile=True),
    Size({"B": 8192, "C": 1000}, cpu="full"),
)
_LATENTS = (
    Size({"B": 32, "M": 3, "H": 128}),
    Size({"B": 4096, "M": 3, "H": 256}, compile=True),
    Size({"B": 65536, "M": 3, "H": 256}, cpu="full"),
)


def _classification(
    setup: Setup,
    loss: nn.Module,
    eager: Callable[[Tensor, Tensor], Tensor],
    peers: dict[str, Contender],
    **missing: str,
) -> Problem:
    logits = setup.normal(*setup["B C"], scale=2.0)
    labels = setup.labels(setup["B"], classes=setup["C"])
    contenders = {"ours": Contender(loss, "ours"), "eager": Contender(eager, "eager"), **peers}
    return Problem(contenders, (logits, labels), missing=missing)


def build_focal(setup: Setup) -> Problem:
    def eager(logits: Tensor, labels: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, labels, reduction="none")
        return ((1 - torch.exp(-nll)) ** _GAMMA * nll).mean()

    try:
        from kornia.losses import focal_loss as kornia_focal_loss
    except ImportError:
        return _classification(setup, FocalLoss(_GAMMA), eager, {}, kornia="not installed")

    def kornia(logits: Tensor, labels: Tensor) -> Tensor:
        # Its mean divides by the number of classes too.
        result: Tensor = kornia_focal_loss(logits, labels, alpha=None, gamma=_GAMMA, reduction="sum") / len(logits)
        return result

    return _classification(setup, FocalLoss(_GAMMA), eager, {"kornia": Contender(kornia)})


def build_smoothing(setup: Setup) -> Problem:
    def eager(logits: Tensor, labels: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, -1)
        picked = log_p.gather(1, labels[:, None]).squeeze(1)
        return -((1 - _SMOOTHING) * picked + _SMOOTHING * log_p.mean(1)).mean()

    def torch_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=_SMOOTHING)

    peers = {"F.cross_entropy": Contender(torch_loss)}
    return _classification(setup, LabelSmoothingCrossEntropy(_SMOOTHING), eager, peers)


def build_focal_smoothing(setup: Setup) -> Problem:
    """Compare with one-hot targets, smoothed, and the focal factor on every class term."""

    def eager(logits: Tensor, labels: Tensor) -> Tensor:
        classes = logits.shape[1]
        target = F.one_hot(labels, classes).to(logits.dtype) * (1 - _SMOOTHING) + _SMOOTHING / classes
        log_p = torch.log_softmax(logits, -1)
        return -(target * (1 - log_p.exp()) ** _GAMMA * log_p).sum(1).mean()

    note = "without focal factor and smoothing: what the extras cost"
    peers = {"F.cross_entropy": Contender(F.cross_entropy, reference="F.cross_entropy", note=note)}
    return _classification(setup, FocalLabelSmoothingLoss(_GAMMA, _SMOOTHING), eager, peers)


def _latents(setup: Setup) -> tuple[Tensor, Tensor, Tensor]:
    batch, modalities, width = setup["B M H"]
    logvar = setup.normal(batch, modalities, width, scale=0.5)
    return setup.normal(batch, modalities, width), logvar, setup.mask(batch, modalities)


def plain_kl(mu: Tensor, logvar: Tensor, present: Tensor) -> Tensor:
    rows = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1)
    return torch.where(present, rows, 0.0).sum() / present.sum().clamp(min=1)


def build_gaussian_kl(setup: Setup) -> Problem:
    contenders = {"ours": Contender(gaussian_kl, "ours"), "eager": Contender(plain_kl, "eager")}
    return Problem(contenders, _latents(setup))


def plain_cross_kl(mu: Tensor, logvar: Tensor, present: Tensor) -> Tensor:
    """Write out the loop over ordered pairs of modalities."""
    total, count = mu.new_zeros(()), mu.new_zeros(())
    for a, b in combinations(range(mu.shape[1]), 2):
        both = present[:, a] & present[:, b]
        for p, q in ((a, b), (b, a)):
            ratio = logvar[:, p] - logvar[:, q]
            shift = (mu[:, p] - mu[:, q]).square() / logvar[:, q].exp()
            kl = 0.5 * (ratio.exp() + shift - 1 - ratio).sum(-1)
            total, count = total + torch.where(both, kl, 0.0).sum(), count + both.sum()
    return total / count.clamp(min=1)


def build_cross_kl(setup: Setup) -> Problem:
    contenders = {"ours": Contender(cross_modal_kl, "ours"), "eager": Contender(plain_cross_kl, "eager")}
    return Problem(contenders, _latents(setup))


def plain_reconstruction(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    rows = (prediction - target.detach()).square().sum(-1)
    return torch.where(mask, rows, 0.0).sum() / mask.sum().clamp(min=1)


def build_reconstruction(setup: Setup) -> Problem:
    inputs = (setup.normal(*setup["B D"]), setup.normal(*setup["B D"], grad=False), setup.mask(setup["B"]))
    contenders = {
        "ours": Contender(reconstruction_loss, "ours"),
        "eager": Contender(plain_reconstruction, "eager"),
        "F.mse_loss": Contender(
            lambda prediction, target, mask: F.mse_loss(prediction, target),
            reference="F.mse_loss",
            note="mean over everything, no mask",
        ),
    }
    return Problem(contenders, inputs)


def build_variational(setup: Setup) -> Problem:
    """Compare all three terms, mean-reduced, for modalities of H features each."""
    batch, modalities, width = setup["B M H"]
    mu, logvar, present = _latents(setup)
    rebuilt = [setup.normal(batch, width) for _ in range(modalities)]
    targets = [setup.normal(batch, width, grad=False) for _ in range(modalities)]
    loss = VariationalLoss(0.01, 0.1, 0.01)

    def eager(mu: Tensor, logvar: Tensor, present: Tensor, rebuilt: Any, targets: Any) -> Tensor:
        parts = [
            plain_reconstruction(*pair, present[:, m]) for m, pair in enumerate(zip(rebuilt, targets, strict=True))
        ]
        kl, cross = plain_kl(mu, logvar, present), plain_cross_kl(mu, logvar, present)
        return (0.01 * kl + 0.1 * sum(parts) / modalities + 0.01 * cross) / width

    contenders = {
        "ours": Contender(
            lambda mu, logvar, present, rebuilt, targets: loss(mu, logvar, rebuilt, targets, present).total, "ours"
        ),
        "eager": Contender(eager, "eager"),
    }
    return Problem(contenders, (mu, logvar, present, rebuilt, targets))


_TOY = {"B": 4, "M": 3, "H": 5}
_TOY_CLASSES = {"B": 5, "C": 3}

CASES = (
    Case("FocalLoss", build_focal, _TOY_CLASSES, _CLASSES, ("FocalLoss", "focal_loss")),
    Case(
        "LabelSmoothingCrossEntropy",
        build_smoothing,
        _TOY_CLASSES,
        _CLASSES,
        ("LabelSmoothingCrossEntropy", "label_smoothing_cross_entropy"),
    ),
    Case(
        "FocalLabelSmoothingLoss",
        build_focal_smoothing,
        _TOY_CLASSES,
        _CLASSES,
        ("FocalLabelSmoothingLoss", "focal_label_smoothing_loss"),
    ),
    Case("gaussian_kl", build_gaussian_kl, _TOY, _LATENTS),
    Case("cross_modal_kl", build_cross_kl, _TOY, _LATENTS),
    Case(
        "reconstruction_loss",
        build_reconstruction,
        {"B": 4, "D": 5},
        (
            Size({"B": 32, "D": 5120}),
            Size({"B": 2048, "D": 5120}, compile=True),
            Size({"B": 32768, "D": 5120}, cpu="never"),
        ),
    ),
    Case("VariationalLoss", build_variational, _TOY, _LATENTS),
)
