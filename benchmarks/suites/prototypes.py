"""Subspace prototypes: residuals in coefficient form against projectors and written-out residual vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size, Target
from mmrobust import (
    SubspacePrototypeClassifier,
    TwoBranchPrototypeClassifier,
    orthonormality_penalty,
    subspace_residual,
    subspace_separation,
)


def by_projector(x: Tensor, basis: Tensor) -> Tensor:
    """Write out ``|x - P x|^2`` with a D x D projector of each class."""
    projector = basis.mT @ basis
    return (x - (x @ projector)).square().sum(2).mT


def by_vector(x: Tensor, basis: Tensor) -> Tensor:
    """Write out the residual vectors ``x - U^T U x`` (C, B, D)."""
    return (x - (x @ basis.mT) @ basis).square().sum(2).mT


def _bases(setup: Setup) -> Tensor:
    raw = setup.normal(setup["C"], setup["D"], setup["K"], grad=False).double()
    return torch.linalg.qr(raw)[0].mT.contiguous().to(setup.device, setup.dtype).requires_grad_()


def build_residual(setup: Setup) -> Problem:
    batch, classes, size, width = setup["B C K D"]
    contenders = {
        "ours": Contender(subspace_residual, "ours"),
        "eager": Contender(by_projector, "eager", note="a projector of each class"),
        "residual vectors": Contender(by_vector),
    }
    targets: tuple[Target, ...] = ()
    if setup.device.type == "cpu" and (batch, classes, size, width) == (4096, 20, 8, 256):
        targets = (
            Target("subspace_residual is 25 times faster than projectors", versus="eager", at_least=25),
            Target("subspace_residual takes at most 33 MB beside its inputs", bytes_at_most=33 * 10**6),
            Target("subspace_residual is within 1e-5 of float64", quantity="outputs", error_at_most=1e-5),
        )
    return Problem(
        contenders,
        (setup.normal(batch, width), _bases(setup)),
        flops=2.0 * batch * classes * size * width,
        targets=targets,
    )


def build_precise(setup: Setup) -> Problem:
    contenders = {
        "ours": Contender(partial(subspace_residual, precise=True), "ours"),
        "eager": Contender(by_vector, "eager", note="residual vectors"),
        "float32": Contender(subspace_residual, note="ours without precise=True"),
    }
    claim = "precise=True takes at most 2.5 times as long"
    big = setup.device.type == "cpu" and setup["B"] == 4096
    targets = (Target(claim, versus="float32", at_least=1 / 2.5),) if big else ()
    return Problem(contenders, (setup.normal(setup["B"], setup["D"]), _bases(setup)), targets=targets)


def build_classifier(orthogonality: Any, setup: Setup) -> Problem:
    classes, size, width = setup["C K D"]
    module: Any = setup.module(
        lambda: SubspacePrototypeClassifier(width, classes, size, normalize=True, orthogonality=orthogonality)
    )

    def plain(x: Tensor) -> Tensor:
        return -by_vector(F.normalize(x, dim=1), module.basis)

    contenders = {"ours": Contender(module, "ours"), "eager": Contender(plain, "eager", note="residual vectors")}
    return Problem(contenders, (setup.normal(setup["B"], width),), (module,))


def build_penalty(setup: Setup) -> Problem:
    def plain(basis: Tensor) -> Tensor:
        eye = torch.eye(basis.shape[1], device=basis.device, dtype=basis.dtype)
        return (torch.einsum("ckd,cld->ckl", basis, basis) - eye).square().sum((1, 2)).mean()

    basis = (1.1 * _bases(setup).detach()).requires_grad_()
    contenders = {"ours": Contender(orthonormality_penalty, "ours"), "eager": Contender(plain, "eager")}
    return Problem(contenders, (basis,))


def build_separation(setup: Setup) -> Problem:
    def plain(basis: Tensor) -> Tensor:
        classes, size, _ = basis.shape
        overlap = torch.einsum("ckd,eld->cekl", basis, basis).square().sum((2, 3))
        others = 1 - torch.eye(classes, device=basis.device, dtype=basis.dtype)
        return (overlap * others).sum() / (classes * (classes - 1) * size)

    contenders = {"ours": Contender(subspace_separation, "ours"), "eager": Contender(plain, "eager")}
    return Problem(contenders, (_bases(setup),))


def build_two_branch(setup: Setup) -> Problem:
    """Compare without attention between branches, where what is left is encoders and prototypes."""
    batch, wide, narrow = setup["B D E"]
    widths = {"wide": [512, 64], "narrow": [64]}
    module: Any = setup.module(
        lambda: TwoBranchPrototypeClassifier({"wide": wide, "narrow": narrow}, widths, 5, 4, token_features=0)
    )

    def encode(encoder: Any, x: Tensor) -> Tensor:
        found: Tensor = encoder.layers(x)
        return found

    def ours(first: Tensor, second: Tensor) -> Tensor:
        logits: Tensor = module({"wide": first, "narrow": second}).logits
        return logits

    def plain(first: Tensor, second: Tensor) -> Tensor:
        embedding = (encode(module.encoders[0], first) + encode(module.encoders[1], second)) / 2
        return -by_vector(F.normalize(embedding, dim=1), module.head.weight) / 0.1

    contenders = {"ours": Contender(ours, "ours"), "eager": Contender(plain, "eager")}
    used = torch.nn.ModuleList([*module.encoders, module.head])
    return Problem(contenders, (setup.normal(batch, wide), setup.normal(batch, narrow)), (used,))


_TOY = {"B": 3, "C": 3, "K": 2, "D": 8}
_SIZES = (
    Size({"B": 32, "C": 10, "K": 4, "D": 128}),
    Size({"B": 1, "C": 20, "K": 8, "D": 256}),
    Size({"B": 4096, "C": 20, "K": 8, "D": 256}, compile=True),
    Size({"B": 256, "C": 1000, "K": 8, "D": 256}),
)

CASES = (
    Case("subspace_residual", build_residual, _TOY, _SIZES, ("subspace_residual",)),
    Case("subspace_residual precise", build_precise, _TOY, (_SIZES[0], _SIZES[2]), ("subspace_residual",)),
    Case(
        "SubspacePrototypeClassifier",
        partial(build_classifier, "penalty"),
        _TOY,
        (_SIZES[0], _SIZES[2]),
        ("SubspacePrototypeClassifier",),
    ),
    Case(
        "SubspacePrototypeClassifier exact",
        partial(build_classifier, "exact"),
        _TOY,
        _SIZES[:1],
        ("SubspacePrototypeClassifier",),
    ),
    Case("orthonormality_penalty", build_penalty, _TOY, _SIZES[:1], ("orthonormality_penalty",)),
    Case("subspace_separation", build_separation, _TOY, _SIZES[:1], ("subspace_separation",)),
    Case(
        "TwoBranchPrototypeClassifier",
        build_two_branch,
        {"B": 3, "D": 6, "E": 4},
        (Size({"B": 32, "D": 1000, "E": 200}), Size({"B": 256, "D": 10000, "E": 3000})),
        ("TwoBranchPrototypeClassifier",),
    ),
)
