"""Which implementation of the core runs: the torch definition, or the Triton kernels."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from .gradients import Side
from .units import Units

is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # PyTorch 2.6 has no is_exporting


def resolve(where: str, impl: str, x: Tensor) -> str:
    """Return "torch" or "triton:DTYPE" for features ``x``; "triton" raises RuntimeError where it cannot run.

    "auto" is the torch definition: the kernels have not been measured on a device yet.
    """
    if impl != "triton":
        return "torch"
    from .._kernels import available

    reason = available(x)
    if reason is not None:
        raise RuntimeError(f"{where}: impl='triton' cannot run: {reason}")
    return "triton:" + str(x.dtype).removeprefix("torch.")


def rounded(units: Units, impl: str) -> Units:
    """Return units as kernels see them: positives have to be as rough as the scores that they are part of."""
    if impl in ("torch", "triton:float32", "triton:float64"):
        return units
    with torch.no_grad():
        moved = units.u.to(getattr(torch, impl.removeprefix("triton:"))).to(units.u.dtype) - units.u
    return Units(units.u + moved, units.lost)


def need_torch(where: str, impl: str, what: str) -> None:
    """Raise RuntimeError where kernels were asked for, of which there are none."""
    if impl != "torch":
        raise RuntimeError(f"{where}: impl='triton' cannot run: there is no kernel for {what}")


class Kernels:
    """The Triton kernels behind the functions of :mod:`.tiles`; features are rounded to the dtype of ``impl``."""

    def __init__(self, impl: str, queries: Units, keys: Units, temperature: Tensor, skip: int | None) -> None:
        dtype = getattr(torch, impl.removeprefix("triton:"))
        self._u, self._lost, self._temperature, self._skip = queries.u.to(dtype), queries.lost, temperature, skip
        same = keys.u is queries.u  # the kernels prepare it once then
        self._v, self._key_lost = self._u if same else keys.u.to(dtype), keys.lost

    def logsumexp(self, x_valid: Tensor | None, y_valid: Tensor | None, mode: str) -> tuple[Tensor, Tensor]:
        """Return the logsumexp of each row and, for "both", of each key."""
        from .._kernels import contrastive

        u, v, lost, key_lost, skip = self._u, self._v, self._lost, self._key_lost, self._skip
        rows = contrastive.row_logsumexp(
            u, v, self._temperature, u_lost=lost, v_lost=key_lost, key_valid=y_valid, skip=skip
        )
        if mode != "both":
            return rows, rows.new_empty(0)
        back = contrastive.row_logsumexp(v, u, self._temperature, u_lost=key_lost, v_lost=lost, key_valid=x_valid)
        return rows, back

    def gradients(self, rows: Side, columns: Side, mode: str, for_keys: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of u, v (empty unless ``for_keys``) and the temperature."""
        none = None if mode == "rows" else columns
        sums, totals, energies = self._sums(rows, none, rows.valid, columns.valid)
        t = self._temperature
        du = (sums - totals.unsqueeze(1) * self._u) / t
        dt = -energies.sum() / (t.square() * (2 if mode == "self" else 1))  # there every energy is counted twice
        if not for_keys:
            return du, du.new_empty(0), dt
        sums, totals, _ = self._exchanged()._sums(columns, rows, columns.valid, rows.valid)
        return du, (sums - totals.unsqueeze(1) * self._v) / t, dt

    def _exchanged(self) -> Kernels:
        """Return the same pairs seen from the keys."""
        other = copy(self)
        other._u, other._lost, other._v, other._key_lost = self._v, self._key_lost, self._u, self._lost
        other._skip = None if self._skip is None else -self._skip
        return other

    def _sums(
        self, rows: Side, columns: Side | None, x_valid: Tensor | None, y_valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        from .._kernels import contrastive

        return contrastive.weighted_sums(
            self._u,
            self._v,
            self._temperature,
            a=rows.weight,
            lse_a=rows.lse,
            b=None if columns is None else columns.weight,
            lse_b=None if columns is None else columns.lse,
            u_lost=self._lost,
            v_lost=self._key_lost,
            query_valid=x_valid,
            key_valid=y_valid,
            skip=self._skip,
        )
