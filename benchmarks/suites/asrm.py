"""Calibration of tokens against the written-out formulas, and against the convolutions that it consists of."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size, Target
from mmrobust import ASRM, ContrastiveASRM, DualContrastiveTextClassifier, PositionAwareASRM, SpanAwareASRM

_CLASSES = 3


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    kept = mask.unsqueeze(2)
    return (x * kept).sum(1) / kept.sum(1).clamp(min=1)


def plain_uniform(module: Any, x: Tensor, mask: Tensor) -> Tensor:
    gate = torch.sigmoid(module.excite(F.relu(module.squeeze(_mean(x, mask)))))
    return x * gate.unsqueeze(1) * mask.unsqueeze(2)


def convolve(module: Any, x: Tensor, mask: Tensor) -> list[Tensor]:
    """Run the convolutions of the span-aware gate, through PyTorch alone: ``(B, H, T)`` each."""
    channels = (x * mask.unsqueeze(2)).mT
    found = [
        F.conv1d(channels, window.weight, window.bias, padding=k // 2, groups=module.groups)
        for k, window in zip(module.window_sizes, module.windows, strict=True)
    ]
    return [mix(one.mT).mT for mix, one in zip(module.mixers, found, strict=True)] if len(module.mixers) else found


def plain_span(module: Any, x: Tensor, mask: Tensor) -> Tensor:
    logits = module.bias
    for scale, found in zip(module.scale, convolve(module, x, mask), strict=True):
        logits = logits + scale * F.gelu(found.mT)
    return x * 2 * torch.sigmoid(logits) * mask.unsqueeze(2)


def plain_position(module: Any, x: Tensor, mask: Tensor) -> Tensor:
    upto = mask.float().cumsum(1)
    places = torch.stack([upto - mask.float(), upto[:, -1:] - upto], 2).unsqueeze(3)
    count = module.position_features // 4
    angles = places * torch.exp(-math.log(10_000.0) * torch.arange(count, device=x.device) / count)
    waves = torch.cat([angles.sin(), angles.cos()], 3).flatten(2).to(x.dtype)
    meaning = module.token(x) + module.context(_mean(x, mask)).unsqueeze(1)
    semantic = torch.sigmoid(module.semantic(F.gelu(meaning)))
    return x * 4 * semantic * torch.sigmoid(module.positional(F.gelu(module.position(waves)))) * mask.unsqueeze(2)


def _opened(module: nn.Module) -> nn.Module:
    """Move a gate away from its start, where zeros would hide the convolutions from the gradient."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.fill_(0.1)
    return module


def _inputs(setup: Setup) -> tuple[Tensor, Tensor]:
    batch, steps, width = setup["B T H"]
    return setup.normal(batch, steps, width), setup.mask(batch, steps)


def _flops(setup: Setup, *layers: Any) -> float:
    """Count the products of layers that every token passes through."""
    return 2.0 * setup["B"] * setup["T"] * sum(layer.weight.numel() for layer in layers)


def _problem(setup: Setup, module: Any, plain: Any, **more: Any) -> Problem:
    contenders = {"ours": Contender(module, "ours"), "eager": Contender(partial(plain, module), "eager")}
    return Problem(contenders, _inputs(setup), (module,), **more)


def build_uniform(setup: Setup) -> Problem:
    return _problem(setup, setup.module(lambda: ASRM(setup["H"])), plain_uniform)


def build_span(convolution: Any, setup: Setup) -> Problem:
    batch, steps, width = setup["B T H"]
    module = setup.module(lambda: _opened(SpanAwareASRM(width, convolution=convolution)))
    flops = _flops(setup, *module.windows, *module.mixers)
    targets = ()
    if setup.device.type == "cpu" and (batch, steps, width) == (64, 128, 768):
        claim = "the span-aware gate takes at most 1.5 times as long as its convolutions"
        targets = (Target(claim, versus="its convolutions", at_least=1 / 1.5),)
    problem = _problem(setup, module, plain_span, flops=flops, targets=targets)
    alone = Contender(
        partial(convolve, module),
        reference="its convolutions",
        note="convolutions (and mixes of channels), nothing else",
    )
    problem.contenders["its convolutions"] = alone
    return problem


def build_position(setup: Setup) -> Problem:
    module = setup.module(lambda: _opened(PositionAwareASRM(setup["H"])))
    flops = _flops(setup, module.token, module.semantic, module.position, module.positional)
    return _problem(setup, module, plain_position, flops=flops)


def build_contrastive(setup: Setup) -> Problem:
    """Time calibration and class loss, with centres that stay where they are."""
    batch, width = setup["B"], setup["H"]
    module: Any = setup.module(lambda: _opened(ContrastiveASRM(width, _CLASSES))).eval()
    labels = torch.arange(batch, device=setup.device) % _CLASSES
    module.centres.copy_(setup.normal(_CLASSES, width, grad=False))
    module.seen.fill_(True)

    def ours(x: Tensor, mask: Tensor) -> Tensor:
        loss: Tensor = module.class_loss(module(x, mask), labels, mask)
        return loss

    def plain(x: Tensor, mask: Tensor) -> Tensor:
        pooled = _mean(plain_span(module.calibration, x, mask), mask)
        scores = F.normalize(pooled, dim=1) @ F.normalize(module.centres, dim=1).mT / module.temperature
        return F.cross_entropy(scores, labels)

    contenders = {"ours": Contender(ours, "ours"), "eager": Contender(plain, "eager")}
    x, mask = _inputs(setup)
    mask[:, 0] = True
    return Problem(contenders, (x, mask), flops=_flops(setup, *module.calibration.windows))


def build_classifier(setup: Setup) -> Problem:
    """Classify states that are there already."""
    width = setup["H"]
    module: Any = setup.module(
        lambda: DualContrastiveTextClassifier(None, width, _CLASSES, asrm=_opened(SpanAwareASRM(width)), dropout=0.0)
    )

    def ours(x: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = module(x, mask).logits
        return logits

    def plain(x: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = module.head(_mean(plain_span(module.asrm, x, mask), mask))
        return logits

    contenders = {"ours": Contender(ours, "ours"), "eager": Contender(plain, "eager")}
    used = nn.ModuleList([module.asrm, module.head])
    return Problem(contenders, _inputs(setup), (used,), flops=_flops(setup, *module.asrm.windows))


_TOY = {"B": 3, "T": 5, "H": 8}
_SIZES = (
    Size({"B": 32, "T": 32, "H": 384}),
    Size({"B": 64, "T": 128, "H": 768}, compile=True),
)

CASES = (
    Case("ASRM", build_uniform, _TOY, _SIZES, ("ASRM",)),
    Case("SpanAwareASRM", partial(build_span, "grouped"), _TOY, _SIZES, ("SpanAwareASRM",)),
    Case("SpanAwareASRM dense", partial(build_span, "dense"), _TOY, _SIZES, ("SpanAwareASRM",)),
    Case("SpanAwareASRM depthwise", partial(build_span, "depthwise"), _TOY, _SIZES, ("SpanAwareASRM",)),
    Case("PositionAwareASRM", build_position, _TOY, _SIZES, ("PositionAwareASRM",)),
    Case("ContrastiveASRM", build_contrastive, _TOY, _SIZES[:1], ("ContrastiveASRM",)),
    Case("DualContrastiveTextClassifier", build_classifier, _TOY, _SIZES[:1], ("DualContrastiveTextClassifier",)),
)
