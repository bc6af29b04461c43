"""Calibrated confidence: one temperature, fitted on held-out rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ._checks import check_floating, check_integers, check_range, check_shape
from ._precision import no_autocast, widen
from .masking import zero_missing

_COLDEST, _HOTTEST = 1e-2, 1e2
_HALVINGS = 40  # of the logarithm of 1e4: to float32's last digit
_NO_LOGIT = 1e30  # what must fit into float32: a difference of two, over _COLDEST, and the sum of 1e8 of them


def fit_temperature(logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    r"""Find the temperature that divides logits best: the one of least negative log-likelihood on these rows.

    With :math:`\beta = 1 / \tau` the likelihood :math:`\sum_i \log \mathrm{softmax}(\beta x_i)_{y_i}` is concave, and
    its maximum is found by halving an interval, between temperatures of 0.01 and 100. Fit on validation rows; the
    decision of a classifier does not change, only how sure it is.

    Args:
        logits: Floating ``(N, C)``.
        target: Integer labels ``(N,)`` in [0, C).
        ignore_index: Rows with this label do not count.

    Returns:
        A scalar in [0.01, 100], float32 (float64 for float64), without gradient; 1 if every temperature is as good,
        because no row counts or none prefers a class; NaN if a logit that counts is.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape does not fit.

    Source: Guo et al., arXiv:1706.04599, section 4.2.

    Example:
        >>> logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
        >>> (logits / fit_temperature(logits, torch.tensor([0, 0, 0, 1]))).softmax(1)[0]  # right in 3 of 4 cases
        tensor([0.7500, 0.2500])
    """
    where = "fit_temperature"
    check_floating(where, "logits", logits)
    check_shape(where, "logits", logits, N=None, C=None)
    check_integers(where, "target", target)
    check_shape(where, "target", target, N=logits.shape[0])
    with no_autocast(logits), torch.no_grad():
        x, label = widen(logits).clamp(-_NO_LOGIT, _NO_LOGIT), target.long()
        x = zero_missing(x, label != ignore_index)
        label = zero_missing(label, label != ignore_index).unsqueeze(1)
        x = x - x.gather(1, label) if x.shape[1] else x  # relative to the right class, whose logit becomes 0
        low = x.new_full((), math.log(_COLDEST))
        high = x.new_full((), math.log(_HOTTEST))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            # The slope in beta: positive where the wrong classes still weigh too much, so that it must be hotter.
            hotter = (torch.softmax(x / middle.exp(), dim=1) * x).sum() > 0
            low, high = torch.where(hotter, middle, low), torch.where(hotter, high, middle)
        found = ((low + high) / 2).exp().clamp(_COLDEST, _HOTTEST)
        return torch.where(x.isnan().any(), torch.nan, torch.where((x != 0).any(), found, 1.0))


class TemperatureScaling(nn.Module):
    """Divide logits by a temperature that :meth:`fit` finds on held-out rows: see :func:`fit_temperature`.

    Args:
        temperature: The temperature before that, positive.

    Raises:
        TypeError: If the temperature is no number.
        ValueError: If it is not positive.

    Example:
        >>> scale = TemperatureScaling()
        >>> scale.fit(torch.tensor([[9.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        >>> scale(torch.tensor([[9.0, 0.0]])).softmax(1)
        tensor([[0.7500, 0.2500]])
    """

    temperature: Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_range("TemperatureScaling", "temperature", temperature, 0.0, low_open=True)
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def extra_repr(self) -> str:
        """Return the temperature for ``repr``."""
        return "" if self.temperature.is_meta else f"temperature={float(self.temperature):.4g}"

    def fit(self, logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> None:
        """Fit the temperature to ``logits (N, C)`` and labels ``target (N,)``, as :func:`fit_temperature` does.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape does not fit.
        """
        self.temperature.copy_(fit_temperature(logits, target, ignore_index=ignore_index))

    def forward(self, logits: Tensor) -> Tensor:
        """Divide floating ``logits (..., C)``; the dtype stays.

        Raises:
            TypeError: If ``logits`` are not floating.
        """
        check_floating("TemperatureScaling", "logits", logits)
        with no_autocast(logits):
            return (widen(logits) / self.temperature).to(logits.dtype)
