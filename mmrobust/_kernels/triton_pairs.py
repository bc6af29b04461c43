"""Triton kernels over all pairs of rows of two matrices; :mod:`.contrastive` launches them and says what they compute.

Matrices are contiguous ``(rows, D)`` with D a multiple of the feature tiles. A program owns ``ROWS`` rows of u and
walks its share of the keys, ``KEYS`` at a time: every sum has one owner and a fixed order, without atomics.

Scores are powers of two: ``exp(e_ij / t) = exp2(scale e_ij)`` with ``scale = log2(e) / t``. A pair that does not count
has the energy -1e30: its power is exactly 0 and, as it is finite, makes no NaN on the way.
"""

# Triton's decorators and arguments have no types.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

_NONE = tl.constexpr(-1e30)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)

# What must not make Triton compile anew: sizes that change from batch to batch, and where a slice of a vector begins.
_GENERAL = {
    "do_not_specialize": ("A", "K", "skip", "span"),
    "do_not_specialize_on_alignment": (
        "half_u", "half_v", "temperature", "a", "lse_a", "b", "lse_b", "query_valid", "key_valid", "out", "totals",
        "energies",
    ),
}  # fmt: skip


@triton.jit
def _tile(
    matrix, first, count, column, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, EMULATED: tl.constexpr
):  # fmt: skip
    """Load ``ROWS`` rows from ``first`` on, ``WIDTH`` features from ``column`` on; rows from ``count`` on are zero."""
    row = tl.arange(0, ROWS)[:, None]
    # 64 bits say where the tile begins, 32 suffice inside of it.
    begin = matrix + tl.cast(first, tl.int64) * D + column
    tile = tl.load(begin + row * D + tl.arange(0, WIDTH)[None, :], mask=row < count - first, other=0.0)
    return tile.to(tl.float32) if EMULATED else tile


@triton.jit
def _energies(
    u, v, own, half_own, half, rows, keys, first, start, A, K, skip,
    D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Return the energies ``(ROWS, KEYS)`` and, when the tile of keys was loaded whole, that tile."""
    if CHUNK == D:
        y = _tile(v, start, K, 0, D, KEYS, D, EMULATED)
        e = tl.dot(own, tl.trans(y), input_precision=PRECISION)
    else:
        y = own  # nothing; None cannot be returned
        e = tl.zeros((ROWS, KEYS), tl.float32)
        for column in range(0, D, CHUNK):
            x = _tile(u, first, A, column, D, ROWS, CHUNK, EMULATED)
            z = _tile(v, start, K, column, D, KEYS, CHUNK, EMULATED)
            e = tl.dot(x, tl.trans(z), e, input_precision=PRECISION)
    e = e - half_own[:, None] - half[None, :]
    if skip is not None:
        e = tl.where(keys[None, :] == rows[:, None] + skip, _NONE, e)
    return e, y


@triton.jit(**_GENERAL)
def logsumexp_kernel(
    u, v, half_u, half_v, temperature, key_valid, out, A, K, skip, span,
    D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Write the logsumexp of a share of the keys, ``out (shares, A)``, with a running maximum."""
    first, share = tl.program_id(0) * ROWS, tl.program_id(1)
    rows = first + tl.arange(0, ROWS)
    scale = _LOG2_E / tl.load(temperature)
    half_own = tl.load(half_u + rows, mask=rows < A, other=0.0)
    own = _tile(u, first, A, 0, D, ROWS, CHUNK, EMULATED)
    top = tl.full((ROWS,), _NONE, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(share * span, tl.minimum(share * span + span, K), KEYS):
        keys = start + tl.arange(0, KEYS)
        half = tl.load(half_v + keys, mask=keys < K, other=-_NONE)
        if key_valid is not None:
            half = tl.where(tl.load(key_valid + keys, mask=keys < K, other=0) != 0, half, -_NONE)
        e, _ = _energies(
            u, v, own, half_own, half, rows, keys, first, start, A, K, skip, D, CHUNK, ROWS, KEYS, PRECISION, EMULATED
        )
        after = tl.maximum(top, tl.max(e, 1) * scale)
        total = total * tl.exp2(top - after) + tl.sum(tl.exp2(e * scale - after[:, None]), 1)
        top = after
    # A sum of NaN alone has no maximum either, and stays NaN.
    nothing = (top <= _NONE / 2 * tl.minimum(scale, 1.0)) & (total == total)
    lse = tl.where(nothing, _NONE, (top + tl.log2(tl.where(nothing, 1.0, total))) * _LN_2)
    tl.store(out + tl.cast(share, tl.int64) * A + rows, lse, mask=rows < A)


@triton.jit
def _side(weight, lse, index, count):
    """Load weights and logsumexps, these to base 2; who had nothing to sum over has weight 0."""
    lse = tl.load(lse + index, mask=index < count, other=0.0)
    weight = tl.load(weight + index, mask=index < count, other=0.0)
    nothing = lse <= _NONE / 2
    return tl.where(nothing, 0.0, weight), tl.where(nothing, 0.0, lse * _LOG2_E)


@triton.jit
def _gradient(
    e, scale, own_weight, own_lse, own_valid, b, lse_b, key_valid, keys, K, ROUND: tl.constexpr, EMULATED: tl.constexpr
):  # fmt: skip
    """Return G of a tile, rounded to what the second product reads: so its sums belong to the same weights."""
    ours = e
    if key_valid is not None:
        ours = tl.where(tl.load(key_valid + keys, mask=keys < K, other=0)[None, :] != 0, e, _NONE)
    g = own_weight[:, None] * tl.exp2(ours * scale - own_lse[:, None])
    if b is not None:
        weight, lse = _side(b, lse_b, keys, K)
        theirs = e
        if own_valid is not None:
            theirs = tl.where(own_valid[:, None] != 0, e, _NONE)
        g += weight[None, :] * tl.exp2(theirs * scale - lse[None, :])
    if ROUND == "tf32":
        g = (g.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # as the hardware cuts it off
    elif ROUND == "bf16":
        # The interpreter's own conversion does not round to nearest.
        g = g * 65537.0 - (g * 65537.0 - g) if EMULATED else g.to(tl.bfloat16)
    return g


@triton.jit(**_GENERAL)
def sums_kernel(
    u, v, half_u, half_v, temperature, a, lse_a, b, lse_b, query_valid, key_valid, sums, totals, energies,
    A, K, skip, span,
    D: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, ROUND: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Write the sums of a share of the keys: ``sums (shares, A, D)``, ``totals`` and ``energies (shares, A)``."""
    first, share, column = tl.program_id(0) * ROWS, tl.program_id(1), tl.program_id(2) * OUT
    rows = first + tl.arange(0, ROWS)
    scale = _LOG2_E / tl.load(temperature)
    half_own = tl.load(half_u + rows, mask=rows < A, other=0.0)
    weight, lse = _side(a, lse_a, rows, A)
    valid = tl.load(query_valid + rows, mask=rows < A, other=0) if query_valid is not None else None
    own = _tile(u, first, A, 0, D, ROWS, CHUNK, EMULATED)
    out = tl.zeros((ROWS, OUT), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    energy = tl.zeros((ROWS,), tl.float32)
    for start in range(share * span, tl.minimum(share * span + span, K), KEYS):
        keys = start + tl.arange(0, KEYS)
        half = tl.load(half_v + keys, mask=keys < K, other=-_NONE)
        e, y = _energies(
            u, v, own, half_own, half, rows, keys, first, start, A, K, skip, D, CHUNK, ROWS, KEYS, PRECISION, EMULATED
        )
        g = _gradient(e, scale, weight, lse, valid, b, lse_b, key_valid, keys, K, ROUND, EMULATED)
        total += tl.sum(g.to(tl.float32), 1)
        energy += tl.sum(g.to(tl.float32) * e, 1)
        z = y if CHUNK == D else _tile(v, start, K, column, D, KEYS, OUT, EMULATED)
        out = tl.dot(g, z, out, input_precision=PRECISION)
    at = tl.cast(share, tl.int64) * A + rows
    mine = (rows < A) & (column == 0)
    tl.store(totals + at, total, mask=mine)
    tl.store(energies + at, energy, mask=mine)
    features = column + tl.arange(0, OUT)
    tl.store(sums + at[:, None] * D + features[None, :], out, mask=(rows < A)[:, None])
