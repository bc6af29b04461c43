"""Masking: the few lines that every other component begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from mmrobust import lengths_to_mask, masked_mean, masked_softmax, zero_missing

_TOY = {"B": 3, "T": 5, "H": 4}
_SIZES = (
    Size({"B": 32, "T": 50, "H": 128}),
    Size({"B": 256, "T": 200, "H": 256}, compile=True),
    Size({"B": 1024, "T": 500, "H": 256}, cpu="never", compile=True),
)


def build_zero_missing(setup: Setup) -> Problem:
    x, mask = setup.normal(*setup["B T H"]), setup.mask(*setup["B T"])

    def eager(x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.unsqueeze(-1), x, 0.0)

    def multiply(x: Tensor, mask: Tensor) -> Tensor:
        return x * mask.unsqueeze(-1)

    contenders = {
        "ours": Contender(zero_missing, "ours"),
        "eager": Contender(eager, "eager"),
        "masked_fill": Contender(lambda x, mask: x.masked_fill(~mask.unsqueeze(-1), 0.0)),
        "multiply": Contender(multiply, note="x * mask, which lets NaN through"),
    }
    return Problem(contenders, (x, mask))


def build_masked_softmax(setup: Setup) -> Problem:
    logits, mask = setup.normal(*setup["B H T"]), setup.mask(setup["B"], 1, setup["T"])

    def eager(logits: Tensor, mask: Tensor) -> Tensor:
        return torch.softmax(torch.where(mask, logits, -1e9), -1) * mask

    contenders = {
        "ours": Contender(masked_softmax, "ours"),
        "eager": Contender(eager, "eager"),
        "unmasked": Contender(
            lambda logits, mask: torch.softmax(logits, -1), reference="unmasked", note="torch.softmax, reads everything"
        ),
    }
    return Problem(contenders, (logits, mask))


def build_masked_mean(setup: Setup) -> Problem:
    x, mask = setup.normal(*setup["B T H"]), setup.mask(*setup["B T"])

    def eager(x: Tensor, mask: Tensor) -> Tensor:
        kept = torch.where(mask.unsqueeze(-1), x, 0.0)
        return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def product(x: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(x.dtype) / mask.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("bt,bth->bh", weights, x)

    contenders = {
        "ours": Contender(masked_mean, "ours"),
        "eager": Contender(eager, "eager"),
        "einsum": Contender(product, note="weights times x, which lets NaN through"),
    }
    return Problem(contenders, (x, mask))


def build_lengths_to_mask(setup: Setup) -> Problem:
    steps = setup["T"]
    lengths = setup.labels(setup["B"], classes=steps + 1)

    def eager(lengths: Tensor) -> Tensor:
        return torch.arange(steps, device=lengths.device)[None, :] < lengths[:, None]

    def loop(lengths: Tensor) -> Tensor:
        mask = torch.zeros(len(lengths), steps, dtype=torch.bool, device=lengths.device)
        for row, length in enumerate(lengths.tolist()):
            mask[row, :length] = True
        return mask

    contenders = {
        "ours": Contender(lambda lengths: lengths_to_mask(lengths, steps), "ours"),
        "eager": Contender(eager, "eager"),
        "loop": Contender(loop, note="one row after the other in Python"),
    }
    return Problem(contenders, (lengths,), gradients=False)


CASES = (
    Case("zero_missing", build_zero_missing, _TOY, _SIZES),
    Case("masked_softmax", build_masked_softmax, _TOY, _SIZES),
    Case("masked_mean", build_masked_mean, _TOY, _SIZES),
    Case(
        "lengths_to_mask",
        build_lengths_to_mask,
        {"B": 3, "T": 5},
        (Size({"B": 32, "T": 50}), Size({"B": 4096, "T": 500}, compile=True)),
    ),
)
