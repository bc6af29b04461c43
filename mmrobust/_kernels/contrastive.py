r"""The contrastive core as Triton kernels: reductions over all pairs of two sets of vectors, in linear memory.

For vectors u ``(A, D)`` and v ``(K, D)``, half squared lengths :math:`n_i = |u_i|^2 / 2 + l_i` and :math:`n'_j`, and a
temperature t

.. math:: e_{ij} = u_i v_j - n_i - n'_j = -|u_i - v_j|^2 / 2 - l_i - l'_j, \qquad s_{ij} = e_{ij} / t

where the offsets l are 0 unless ``u_lost`` and ``v_lost`` give them. Values of invalid rows must be finite.

Precision: float32 is multiplied as ``"ieee"``, ``"tf32x3"`` (three products of TF32, close to float32) or ``"tf32"``;
bfloat16 as it is, and float16 as TF32, into which it fits (its own range is too small for gradients of 1e-8). Where
operands are rounded, lengths are those of the rounded ones, so that a vector keeps the distance 0 from itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import check_option, check_shape
from . import is_interpreted
from .plans import Plan, plan, processor, share

NO_KEY = -1e30  # logsumexp over nothing
PRECISIONS = ("ieee", "tf32x3", "tf32")


@torch.no_grad()
def row_logsumexp(
    u: Tensor,
    v: Tensor,
    temperature: Tensor,
    *,
    u_lost: Tensor | None = None,
    v_lost: Tensor | None = None,
    key_valid: Tensor | None = None,
    skip: int | None = None,
    precision: str | None = None,
    programs: int | None = None,
) -> Tensor:
    r"""Compute :math:`\log \sum_j e^{s_{ij}}` over the valid keys j of each row, at any temperature.

    Args:
        u: Rows ``(A, D)``, float32, bfloat16 or float16, on a device that :func:`mmrobust._kernels.available` allows.
        v: Keys ``(K, D)`` of the same dtype. Neither has to be contiguous: a copy is made if it is not.
        temperature: A positive float32 tensor without dimensions, on the device: it is never read by the host.
        u_lost: Float32 ``(A,)``, added to :math:`n_i`.
        v_lost: Float32 ``(K,)``, added to :math:`n'_j`.
        key_valid: Bool ``(K,)``, True = the key counts.
        skip: The pair ``j = i + skip`` of each row is left out; None = no pair is.
        precision: ``"ieee"``, ``"tf32x3"`` or ``"tf32"``; None = TF32 for float16, and for float32 if PyTorch's own
            settings allow it.
        programs: At most so many programs share the keys of a tile of rows; None = as the GPU's size suggests.

    Returns:
        Float32 ``(A,)``, -1e30 for a row without keys.
    """
    where = "row_logsumexp"
    sides = _Sides.of(where, u, v, u_lost, v_lost, precision)
    layout, rows, keys = sides.layout, len(u), len(v)
    flags = _vector(where, "key_valid", key_valid, keys)
    if rows == 0 or keys == 0:
        return torch.full((rows,), NO_KEY, dtype=torch.float32, device=u.device)
    blocks = -(-rows // layout.rows)
    span = share(blocks, keys, layout, programs or 4 * processor(u.device).multiprocessors)
    out = _empty(u, -(-keys // span), rows)
    from .triton_pairs import logsumexp_kernel

    with _on(u):
        logsumexp_kernel[blocks, len(out)](
            *sides.operands(temperature), flags, out, rows, keys, skip, span,
            PRECISION=sides.products, **sides.options(),
        )  # fmt: skip
    return out[0] if len(out) == 1 else out.logsumexp(0)


@torch.no_grad()
def weighted_sums(
    u: Tensor,
    v: Tensor,
    temperature: Tensor,
    *,
    a: Tensor,
    lse_a: Tensor,
    b: Tensor | None = None,
    lse_b: Tensor | None = None,
    u_lost: Tensor | None = None,
    v_lost: Tensor | None = None,
    query_valid: Tensor | None = None,
    key_valid: Tensor | None = None,
    skip: int | None = None,
    precision: str | None = None,
    programs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sum the keys with the weights that the gradient of logsumexps gives to the pairs.

    .. math:: G_{ij} = a_i e^{s_{ij} - \mathrm{lse}^a_i} [j \text{ valid}]
        + b_j e^{s_{ij} - \mathrm{lse}^b_j} [i \text{ valid}]

    and 0 for the pair that ``skip`` leaves out. The sums of the keys' own gradient, over rows i, are those of the same
    call with the sides exchanged and ``-skip``. A weight whose lse is -1e30 counts as 0.

    Args:
        u: Rows ``(A, D)``, as in :func:`row_logsumexp`, like all that is not named here.
        v: Keys ``(K, D)``.
        temperature: Float32 without dimensions.
        a: Float32 ``(A,)``, weights of the rows' logsumexps over keys.
        lse_a: Float32 ``(A,)``, these logsumexps.
        b: Float32 ``(K,)``, weights of the keys' logsumexps over rows; None = there are none.
        lse_b: Float32 ``(K,)``, given with ``b``.
        u_lost: Float32 ``(A,)``.
        v_lost: Float32 ``(K,)``.
        query_valid: Bool ``(A,)``, True = the row counts in the keys' logsumexps.
        key_valid: Bool ``(K,)``, True = the key counts in the rows' logsumexps.
        skip: The pair ``j = i + skip`` is left out; None = no pair is.
        precision: As in :func:`row_logsumexp`; the weights are rounded like the operands.
        programs: As in :func:`row_logsumexp`.

    Returns:
        Float32 :math:`\sum_j G_{ij} v_j` ``(A, D)``, :math:`\sum_j G_{ij}` ``(A,)``, and
        :math:`\sum_j G_{ij} e_{ij}` ``(A,)``. The same inputs give the same bits.
    """
    where = "weighted_sums"
    sides = _Sides.of(where, u, v, u_lost, v_lost, precision)
    layout, rows, keys = sides.layout, len(u), len(v)
    ours = (_vector(where, name, x, rows) for name, x in (("a", a), ("lse_a", lse_a)))
    theirs = (_vector(where, name, x, keys) for name, x in (("b", b), ("lse_b", lse_b)))
    flags = _vector(where, "query_valid", query_valid, rows), _vector(where, "key_valid", key_valid, keys)
    if rows == 0 or keys == 0:
        empty = u.new_zeros(u.shape, dtype=torch.float32)
        return empty, empty.new_zeros(rows), empty.new_zeros(rows)
    blocks, parts = -(-rows // layout.rows), layout.width // layout.out
    span = share(blocks * parts, keys, layout, programs or 2 * processor(u.device).multiprocessors)
    shares = -(-keys // span)
    sums, totals, energies = _empty(u, shares, rows, layout.width), _empty(u, shares, rows), _empty(u, shares, rows)
    from .triton_pairs import sums_kernel

    with _on(u):
        sums_kernel[blocks, shares, parts](
            *sides.operands(temperature), *ours, *theirs, *flags, sums, totals, energies, rows, keys, skip, span,
            OUT=layout.out, PRECISION=sides.products, ROUND=sides.precision, **sides.options(),
        )  # fmt: skip
    if shares == 1:
        return sums[0, :, : u.shape[1]], totals[0], energies[0]
    return sums.sum(0)[:, : u.shape[1]], totals.sum(0), energies.sum(0)


class _Sides(NamedTuple):
    """Both sides of the pairs as the kernels read them."""

    x: Tensor
    y: Tensor
    half_x: Tensor
    half_y: Tensor
    precision: str
    layout: Plan

    @classmethod
    def of(
        cls, where: str, u: Tensor, v: Tensor, u_lost: Tensor | None, v_lost: Tensor | None, precision: str | None
    ) -> _Sides:
        """Round, measure and fill up both matrices."""
        check_shape(where, "u", u, A=None, D=None)
        check_shape(where, "v", v, K=None, D=u.shape[1])
        check_option(where, "precision", precision, (None, *PRECISIONS))
        precision = _resolve(u.dtype, precision)
        layout = plan(where, u.shape[1], precision, processor(u.device).hopper)
        x, half_x = _operand(u, precision, layout.width)
        y, half_y = (x, half_x) if v is u else _operand(v, precision, layout.width)
        lost = _vector(where, "u_lost", u_lost, len(u)), _vector(where, "v_lost", v_lost, len(v))
        half_x, half_y = (
            half if more is None else half + more for half, more in zip((half_x, half_y), lost, strict=True)
        )
        return cls(x, y, half_x, half_y, precision, layout)

    @property
    def products(self) -> str:
        """The precision of products; bfloat16 is what its operands say."""
        return "ieee" if self.precision == "bf16" else self.precision

    def operands(self, temperature: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments with which every kernel begins."""
        return self.x, self.y, self.half_x, self.half_y, temperature.to(torch.float32)

    def options(self) -> dict[str, Any]:
        """Return the arguments with which every kernel ends."""
        layout = self.layout
        return {
            "D": layout.width,
            "CHUNK": layout.chunk,
            "ROWS": layout.rows,
            "KEYS": layout.keys,
            "EMULATED": self.precision == "bf16" and is_interpreted(),
            "num_warps": layout.warps,
            "num_stages": layout.stages,
        }


def _resolve(dtype: torch.dtype, precision: str | None) -> str:
    """Return how products are computed: one of ``PRECISIONS``, or "bf16" for operands in bfloat16."""
    if dtype == torch.bfloat16:
        return "bf16"
    if precision is None:
        return "tf32" if dtype == torch.float16 or _allows_tf32() else "ieee"
    return precision


def _allows_tf32() -> bool:
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # from PyTorch 2.9 on
    if setting is None:
        return torch.get_float32_matmul_precision() != "highest"
    return bool((getattr(torch.backends, "fp32_precision", setting) if setting == "none" else setting) == "tf32")


def _operand(x: Tensor, precision: str, width: int) -> tuple[Tensor, Tensor]:
    """Return a matrix ``(rows, width)``, contiguous and rounded, and half the squared lengths of its rows."""
    x = x.contiguous()
    wide = x.float()
    if precision == "tf32" and x.dtype == torch.float32:
        # To the nearest of 11 bits. The hardware cuts off what is behind them, which would shorten every vector.
        shifted = wide * 8193.0
        wide = shifted - (shifted - wide)
    matrix = x if precision == "bf16" else wide
    missing = width - x.shape[1]
    return F.pad(matrix, (0, missing)) if missing else matrix, wide.square().sum(1) / 2


def _vector(where: str, name: str, x: Tensor | None, size: int) -> Tensor | None:
    """Return what a kernel reads of a vector: float32, or a byte for a bool. It would not notice a wrong length."""
    if x is None:
        return None
    check_shape(where, name, x, N=size)
    return x.contiguous().view(torch.uint8) if x.dtype == torch.bool else x.to(torch.float32).contiguous()


def _empty(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the device of ``x``."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
