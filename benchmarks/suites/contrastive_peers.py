"""What the contrastive losses are measured against: published formulas, installed libraries, and float64 references."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Loss = Callable[..., Tensor]
Positives = Callable[[slice], Tensor]


def _directions(x: Tensor) -> Tensor:
    """Normalise in float32 at least, and return to the dtype in which products are taken."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1).to(x.dtype)


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def sup_contrast(x: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Write out Khosla et al., arXiv:2004.11362, eq. 2, with the arithmetic that its authors published.

    Scores are shifted by the largest of the row, the row itself among them; masks are multiplied. Theirs leaves the
    normalisation to the model.
    """
    z = _directions(x)
    scores = _wide(z @ z.T) / temperature
    scores = scores - scores.max(1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(z), dtype=scores.dtype, device=z.device)
    positive = (labels.unsqueeze(1) == labels).to(scores.dtype) * others
    log_p = scores - torch.log((scores.exp() * others).sum(1, keepdim=True))
    return -((positive * log_p).sum(1) / positive.sum(1).clamp(min=1)).mean()


def clip(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Write out the loss of CLIP, arXiv:2103.00020, with one product for each direction, as open_clip takes them."""
    left, right = _directions(query), _directions(key)
    forth, back = _wide(left / temperature @ right.T), _wide(right / temperature @ left.T)
    labels = torch.arange(len(query), device=query.device)
    return (F.cross_entropy(forth, labels) + F.cross_entropy(back, labels)) / 2


def clip_transposed(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Write out the same with one product, whose transpose serves the other direction."""
    logits = _wide(_directions(query) @ _directions(key).T) / temperature
    labels = torch.arange(len(query), device=query.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def masked_cross_entropy(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Write out SimCLR, arXiv:2002.05709, eq. 1, as the cross entropy of all pairs without the diagonal."""
    z = _directions(torch.cat([z1, z2]))
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    scores = (_wide(z @ z.T) / temperature).masked_fill(own, -torch.inf)
    return F.cross_entropy(scores, torch.arange(len(z), device=z.device).roll(len(z1)))


def log_softmax_sup_con(x: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Write out eq. 2 with a masked log-softmax, which is safe at every temperature."""
    z = _directions(x)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels.unsqueeze(1) == labels) & ~own
    log_p = (_wide(z @ z.T) / temperature).masked_fill(own, -torch.inf).log_softmax(1)
    return -(torch.where(positive, log_p, 0.0).sum(1) / positive.sum(1).clamp(min=1)).mean()


def exact_rows(
    query: Tensor, key: Tensor, temperature: float, positives: Positives, skip_self: bool, pairs: int = 1 << 24
) -> Tensor:
    """Return the mean loss of the rows of ``query`` against ``key``, some rows at a time.

    ``positives(rows)`` is the bool mask ``(rows, K)``. Nothing of the size of all pairs is ever held: each block is
    computed again in the backward pass.
    """
    z, w = F.normalize(query, dim=1), F.normalize(key, dim=1)

    def block(z: Tensor, w: Tensor, rows: slice) -> Tensor:
        scores, positive = z[rows] @ w.T / temperature, positives(rows)
        if skip_self:
            own = torch.zeros_like(positive)
            own.diagonal(rows.start).fill_(True)
            scores, positive = scores.masked_fill(own, -torch.inf), positive & ~own
        log_p = scores - scores.logsumexp(1, keepdim=True)
        return -torch.where(positive, log_p, 0.0).sum(1) / positive.sum(1)

    step = max(1, pairs // len(w))
    parts = [slice(start, min(start + step, len(z))) for start in range(0, len(z), step)]
    return torch.cat([checkpoint(block, z, w, rows, use_reentrant=False) for rows in parts]).mean()


def _same(labels: Tensor) -> Positives:
    return lambda rows: labels[rows].unsqueeze(1) == labels


def exact_sup_con(x: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return exact_rows(x, x, temperature, _same(labels), skip_self=True)


def exact_info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    own = _same(torch.arange(len(query), device=query.device))
    both = (exact_rows(*sides, temperature, own, skip_self=False) for sides in ((query, key), (key, query)))
    return sum(both, start=query.new_zeros(())) / 2


def exact_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    z, sample = torch.cat([z1, z2]), torch.arange(len(z1), device=z1.device).repeat(2)
    return exact_rows(z, z, temperature, _same(sample), skip_self=True)


def metric_learning_sup_con(temperature: float) -> nn.Module:
    """Return the SupConLoss of pytorch-metric-learning; ImportError where it is not installed."""
    from pytorch_metric_learning.losses import SupConLoss

    loss: nn.Module = SupConLoss(temperature=temperature)
    return loss


def lightly_nt_xent(temperature: float) -> nn.Module:
    """Return the NTXentLoss of lightly; ImportError where it is not installed."""
    loss: nn.Module = _lightly().NTXentLoss(temperature=temperature, memory_bank_size=0)
    return loss


@functools.cache
def _lightly() -> Any:
    """Import the module of that loss alone.

    The packages above it import all of lightly, which needs torchvision; empty ones stand in for them meanwhile, so
    that ``pip install --no-deps`` is enough.
    """
    spec = importlib.util.find_spec("lightly")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'lightly'", name="lightly")
    root = Path(spec.submodule_search_locations[0])
    before = {name: sys.modules[name] for name in sys.modules if name.partition(".")[0] == "lightly"}
    try:
        for name in ("loss", "models", "models.modules", "models.utils"):
            empty = types.ModuleType(f"lightly.{name}")
            empty.__path__ = [str(root.joinpath(*name.split(".")))]
            sys.modules[empty.__name__] = empty
        sys.modules["lightly.models"].utils = sys.modules["lightly.models.utils"]  # type: ignore[attr-defined]
        return importlib.import_module("lightly.loss.ntx_ent_loss")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lightly"]:
            del sys.modules[name]
        sys.modules.update(before)
