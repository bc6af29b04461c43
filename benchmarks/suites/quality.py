"""Input quality: fitting what a modality looks like, and measuring how far inputs are from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from mmrobust import ModalityQuality, Reference, fit_reference, novelty_statistics, quality_loss

_RANK, _EXPLAINED, _FLOOR = 8, 0.9, 1e-3
_TOY = {"B": 6, "D": 9, "R": 5}
_VECTORS = (
    Size({"B": 32, "D": 1024, "R": 256}),
    Size({"B": 4096, "D": 1024, "R": 256}, compile=True),
    Size({"B": 65536, "D": 1024, "R": 256}, cpu="never"),
)
_SEQUENCES = (
    Size({"B": 32, "T": 50, "D": 128, "R": 256}),
    Size({"B": 256, "T": 200, "D": 256, "R": 256}, cpu="full", compile=True),
)
_MER = {"A": 1024, "T": 5120, "V": 768}


def low_rank(setup: Setup, rows: int, features: int) -> Tensor:
    plane = setup.normal(rows, _RANK, grad=False) @ setup.normal(_RANK, features, grad=False)
    return plane + 0.3 * setup.normal(rows, features, shift=1.0, grad=False)


def plain_fit(x: Tensor, components: int, examples: int) -> Reference:
    """Write out the fit with a singular value decomposition of at most 2048 rows."""
    mean, scale = x.mean(0), x.std(0, correction=0)
    z = (x - mean) / torch.where(scale > 0, scale, 1.0)
    part = z[:: -(-len(z) // 2048)]
    _, singular, directions = torch.linalg.svd(part - part.mean(0), full_matrices=False)
    variances = singular.square() / len(part)
    most = max(1, min(components, x.shape[1] - 1, len(part) // 8))
    before = (variances.cumsum(0) - variances)[:most] / variances.sum()
    used = before < _EXPLAINED
    rest = variances.sum() - variances[:most][used].sum()
    rows = z[torch.arange(examples, device=x.device) * len(z) // examples]
    kept, spread = torch.zeros_like(z[:components]), torch.ones_like(variances[:components])
    kept[:most], spread[:most] = directions[:most] * used.unsqueeze(1), torch.where(used, variances[:most], 1.0)
    return Reference(mean, scale, kept, spread, rest, rows)


def build_fit_reference(setup: Setup) -> Problem:
    rows, features = setup["N D"]
    components, examples = min(64, features - 1), min(256, rows)

    def ours(x: Tensor) -> Reference:
        return fit_reference(x, max_components=components, explained=_EXPLAINED, num_rows=examples)

    def measured(run: Callable[..., Reference]) -> Reference:
        """Compare the projection onto the components, whose signs are free."""
        found = run(x)
        return found._replace(components=found.components.mT @ found.components)

    x = low_rank(setup, rows, features)
    contenders = {
        "ours": Contender(ours, "ours", check=measured),
        "eager": Contender(lambda x: plain_fit(x, components, examples), "eager", check=measured),
    }
    return Problem(contenders, (x,), gradients=False, compiles="no")


def plain_statistics(x: Tensor, known: Any, mask: Tensor) -> Tensor:
    """Write out the four statistics of vectors ``(B, D)`` or sequences ``(B, T, D)``."""
    z = (torch.where(mask.unsqueeze(-1), x, 0.0) - known.mean) / known.scale
    inside = z @ known.components.T
    residual = (z - inside @ known.components).square().sum(-1) / known.rest
    used = known.components.any(1).sum().clamp(min=1)
    spread = (inside.square() / known.variances).sum(-1) / used
    energy, nearest = z.square().mean(-1), torch.cdist(z, known.rows).amin(-1).square() / z.shape[-1]
    parts = torch.stack([residual, spread, energy, nearest], -1)
    if x.dim() == 3:
        parts = torch.where(mask.unsqueeze(-1), parts, 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        mask = mask.any(1)
    return torch.where(mask.unsqueeze(1), (parts + _FLOOR).log(), 0.0)


def build_novelty_statistics(setup: Setup) -> Problem:
    batch, features, examples = setup["B D R"]
    shape = (batch, setup["T"]) if "T" in setup.dims else (batch,)
    fitted = fit_reference(low_rank(setup, 4 * examples, features).double(), num_rows=examples)
    known = Reference(*(part.to(setup.dtype) for part in fitted))
    x, mask = setup.normal(*shape, features, grad=False), setup.mask(*shape)
    contenders = {
        "ours": Contender(lambda x, mask: novelty_statistics(x, known, mask), "ours"),
        "eager": Contender(lambda x, mask: plain_statistics(x, known, mask), "eager"),
    }
    products = known.components.numel() * 2 + known.rows.numel()
    return Problem(contenders, (x, mask), gradients=False, flops=2.0 * products * mask.numel())


def plain_quality(quality: Any, features: list[Tensor], present: Tensor) -> Tensor:
    columns = []
    for known, head, x, there in zip(quality.references, quality.heads, features, present.unbind(1), strict=True):
        z = ((plain_statistics(x, known, there) - known.usual) / known.spread).clamp(-12.0, 12.0)
        hidden = F.gelu(F.linear(z, head[0].weight, head[0].bias))
        logvar = F.linear(hidden, head[2].weight, head[2].bias).squeeze(1)
        columns.append(torch.where(there, F.softplus(8 * torch.tanh(logvar / 8)), 0.0))
    return torch.stack(columns, 1)


def build_modality_quality(setup: Setup) -> Problem:
    batch, sizes = setup["B"], [setup[name] for name in "ATV"]
    rows = [low_rank(setup, 12 if setup.toy else 300, size).float().cpu() for size in sizes]

    def build() -> ModalityQuality:
        module = ModalityQuality(sizes, num_rows=5 if setup.toy else 256)
        module.fit(rows)
        return module

    quality = setup.module(build)
    features, present = [setup.normal(batch, size, grad=False) for size in sizes], setup.mask(batch, len(sizes))
    contenders = {
        "ours": Contender(quality, "ours"),
        "eager": Contender(lambda features, present: plain_quality(quality, features, present), "eager"),
    }
    products = sum(2 * known.components.numel() + known.rows.numel() for known in quality.references)
    # There is nothing to differentiate but the small heads.
    return Problem(
        contenders, (features, present), (quality,), flops=2.0 * batch * products, training_flops=2.0 * batch * products
    )


def build_quality_loss(setup: Setup) -> Problem:
    shape = setup["B M"]
    logvar, spoilt, present = setup.normal(*shape, scale=3.0), setup.mask(*shape, keep=0.3), setup.mask(*shape)
    logvar = F.softplus(logvar.detach()).requires_grad_()

    def eager(logvar: Tensor, spoilt: Tensor, present: Tensor) -> Tensor:
        terms = torch.where(spoilt, -torch.log(-torch.expm1(-logvar)), logvar)
        return torch.where(present, terms, 0.0).sum() / present.sum().clamp(min=1)

    contenders = {"ours": Contender(quality_loss, "ours"), "eager": Contender(eager, "eager")}
    return Problem(contenders, (logvar, spoilt, present))


CASES = (
    Case(
        "fit_reference",
        build_fit_reference,
        {"N": 40, "D": 6},
        (Size({"N": 2000, "D": 128}), Size({"N": 20000, "D": 1024}, cpu="full")),
    ),
    Case("novelty_statistics", build_novelty_statistics, _TOY, _VECTORS),
    Case(
        "novelty_statistics sequences",
        build_novelty_statistics,
        {**_TOY, "T": 4},
        _SEQUENCES,
        ("novelty_statistics",),
    ),
    Case(
        "ModalityQuality",
        build_modality_quality,
        {"B": 4, "A": 6, "T": 9, "V": 5},
        (Size({"B": 32, **_MER}), Size({"B": 1024, **_MER}, compile=True)),
    ),
    Case(
        "quality_loss",
        build_quality_loss,
        {"B": 5, "M": 3},
        (Size({"B": 32, "M": 3}), Size({"B": 65536, "M": 3}, compile=True)),
    ),
)
