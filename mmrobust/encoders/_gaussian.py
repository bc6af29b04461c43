"""The Gaussian head that the variational encoders share."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_floating, check_option, check_range, check_same_shape, check_size
from .._precision import no_autocast, widen
from .._random import normal_like
from ..masking import zero_missing

LOGVAR_LIMIT = 10.0
_OVERFLOW = 1e6  # softsign(inf) is NaN; half precision reaches inf at 65504


class VariationalOutput(NamedTuple):
    """A diagonal Gaussian per sample and a draw from it, each ``(B, H)``."""

    z: Tensor
    mu: Tensor
    logvar: Tensor
    std: Tensor


def reparameterize(mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw :math:`z = \mu + e^{\ell / 2} \epsilon`, :math:`\epsilon \sim N(0, I)`, with gradients to both.

    Args:
        mu: Means, floating, any shape.
        logvar: Log-variances of the same shape.
        generator: Source of randomness; ``None`` = the global one.

    Returns:
        A sample of the shape and dtype of ``mu``.

    Raises:
        TypeError: If an argument is not floating.
        ValueError: If the shapes differ.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114, section 2.4.

    Example:
        >>> mu = torch.ones(2, 3)
        >>> reparameterize(mu, torch.full_like(mu, -torch.inf))
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    check_floating("reparameterize", "mu", mu)
    check_floating("reparameterize", "logvar", logvar)
    check_same_shape("reparameterize", "logvar", logvar, "mu", mu)
    with no_autocast(mu):
        std = (0.5 * widen(logvar)).exp()
        return _draw(mu, std, normal_like(std, generator))


def _draw(mu: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    return (widen(mu) + std * noise).to(mu.dtype)


class GaussianHead(nn.Module):
    """Two linear maps to mean and bounded log-variance; the latter starts constant at ``init_logvar``."""

    def __init__(self, where: str, features: int, logvar_bound: str, init_logvar: float) -> None:
        super().__init__()
        check_option(where, "logvar_bound", logvar_bound, ("soft", "clamp"))
        check_range(where, "init_logvar", init_logvar, -LOGVAR_LIMIT, LOGVAR_LIMIT, low_open=True, high_open=True)
        self.logvar_bound = logvar_bound
        self.mu = nn.Linear(features, features)
        self.logvar = nn.Linear(features, features)
        nn.init.zeros_(self.logvar.weight)
        share = init_logvar / LOGVAR_LIMIT
        nn.init.constant_(self.logvar.bias, init_logvar / (1 - abs(share)) if logvar_bound == "soft" else init_logvar)

    def forward(self, hidden: Tensor, present: Tensor | None, sample: bool) -> VariationalOutput:
        raw = widen(self.logvar(hidden))
        if self.logvar_bound == "soft":
            # softsign keeps a gradient everywhere: a saturated unit can come back, unlike after a clamp.
            bounded = LOGVAR_LIMIT * F.softsign(raw.clamp(-_OVERFLOW, _OVERFLOW) / LOGVAR_LIMIT)
        else:
            bounded = raw.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)
        mu = zero_missing(self.mu(hidden), present)
        logvar = zero_missing(bounded, present).to(mu.dtype)
        std, z = (0.5 * widen(logvar)).exp(), mu
        if sample:  # noise that is zero in absent rows keeps z there at mu, which is zero
            z = _draw(mu, std, zero_missing(normal_like(std, None), present))
        return VariationalOutput(z, mu, logvar, std.to(mu.dtype))


def check_widths(where: str, in_features: int, hidden_features: int) -> None:
    check_size(where, "in_features", in_features)
    check_size(where, "hidden_features", hidden_features)


def check_dropout(where: str, p: float, name: str = "dropout") -> None:
    check_range(where, name, p, 0.0, 1.0, high_open=True)
