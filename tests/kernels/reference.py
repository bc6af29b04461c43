"""What the kernels compute, from its definition: dense, in float64, with distances taken from differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrobust._kernels import contrastive

NO_KEY = -1e30
# What rounding does to a factor of a product, relative to it: nearest for operands, for weights in TF32 it is cut off.
WEIGHT_ERROR = {"ieee": 0.0, "tf32x3": 2.0**-19, "tf32": 2.0**-10, "bf16": 2.0**-8}


def rounded(x: Tensor, precision: str) -> Tensor:
    """Return ``x`` in float64 as the products see it."""
    if precision != "tf32" or x.dtype != torch.float32:
        return x.double()
    mantissa, exponent = np.frexp(x.double().cpu().numpy())
    return torch.from_numpy(np.ldexp(np.round(mantissa * 2**11), exponent - 11)).to(x.device)


@dataclass
class Pairs:
    """Two sets of vectors, with everything that can be said about their pairs."""

    u: Tensor
    v: Tensor
    temperature: float
    precision: str = "ieee"
    query_valid: Tensor | None = None
    key_valid: Tensor | None = None
    skip: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> dict[str, Any]:
        """Return the keyword arguments of both functions."""
        named = None if self.precision == "bf16" else self.precision
        return {"key_valid": self.key_valid, "skip": self.skip, "precision": named, **self.options}

    @property
    def t(self) -> Tensor:
        return torch.tensor(self.temperature, device=self.u.device)

    def row_logsumexp(self) -> Tensor:
        return contrastive.row_logsumexp(self.u, self.v, self.t, **self.shared)

    def energies(self) -> Tensor:
        u, v = rounded(self.u, self.precision), rounded(self.v, self.precision)
        e = torch.stack([-(row - v).square().sum(-1) / 2 for row in u]) if len(u) else u.new_zeros(0, len(v))
        u_lost, v_lost = self.options.get("u_lost"), self.options.get("v_lost")
        return e - (0 if u_lost is None else u_lost[:, None].double()) - (0 if v_lost is None else v_lost.double())

    def counted(self) -> tuple[Tensor, Tensor]:
        """Return which pairs count in the rows' logsumexps and which in the keys'."""
        rows, keys = (torch.arange(len(x), device=x.device) for x in (self.u, self.v))
        kept = torch.ones(len(rows), len(keys), dtype=torch.bool, device=rows.device)
        if self.skip is not None:
            kept = keys != rows[:, None] + self.skip
        in_rows = kept if self.key_valid is None else kept & self.key_valid
        return in_rows, kept if self.query_valid is None else kept & self.query_valid[:, None]

    def logsumexps(self) -> tuple[Tensor, Tensor]:
        s, (in_rows, in_keys) = self.energies() / self.temperature, self.counted()
        return masked_logsumexp(s, in_rows), masked_logsumexp(s.T, in_keys.T)


def masked_logsumexp(s: Tensor, counts: Tensor) -> Tensor:
    lse = torch.where(counts, s, -torch.inf).logsumexp(1) if s.shape[1] else s.new_full((len(s),), -torch.inf)
    return torch.where(lse == -torch.inf, NO_KEY, lse)


def weights(pairs: Pairs, a: Tensor, lse_a: Tensor, b: Tensor | None, lse_b: Tensor | None) -> Tensor:
    """Return G ``(A, K)``."""
    s, (in_rows, in_keys) = pairs.energies() / pairs.temperature, pairs.counted()
    g = torch.where(in_rows, a.double()[:, None] * (s - lse_a.double()[:, None]).exp(), 0.0)
    return g if b is None else g + torch.where(in_keys, b.double() * (s - lse_b.double()).exp(), 0.0)


def rounding(pairs: Pairs) -> float:
    """Return what float32 costs a score: products of unit vectors have an error of 1e-7, which t divides.

    Tensor cores cut off their sums instead of rounding them.
    """
    return 2e-6 + (4e-6 if pairs.u.is_cuda else 6e-7) / pairs.temperature


def check_row_logsumexp(pairs: Pairs) -> None:
    expected, actual = pairs.logsumexps()[0], pairs.row_logsumexp()
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    assert torch.equal(actual == NO_KEY, expected == NO_KEY)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=rounding(pairs))


def check_weighted_sums(pairs: Pairs, *, with_keys: bool = True) -> None:
    """Compare the sums, and the gradient that they make, with bounds that hold for each value."""
    generator = torch.Generator().manual_seed(1)
    device = pairs.u.device
    a, b = (torch.rand(len(x), generator=generator).sub(0.3).to(device) for x in (pairs.u, pairs.v))
    lse_a, lse_b = (lse.float() for lse in pairs.logsumexps())
    sides = {"a": a, "lse_a": lse_a, **({"b": b, "lse_b": lse_b} if with_keys else {})}
    actual = contrastive.weighted_sums(
        pairs.u, pairs.v, pairs.t, **sides, query_valid=pairs.query_valid, **pairs.shared
    )
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in actual)
    sums, totals, energies = (x.double() for x in actual)
    g, e = weights(pairs, a, lse_a, b if with_keys else None, lse_b), pairs.energies()
    u, v = rounded(pairs.u, pairs.precision), rounded(pairs.v, pairs.precision)
    size = weights(pairs, a.abs(), lse_a, b.abs() if with_keys else None, lse_b)
    error = WEIGHT_ERROR[pairs.precision] + 2 * rounding(pairs)
    within("sums", sums, g @ v, error * (size @ v.abs()))
    within("totals", totals, g.sum(1), error * size.sum(1))
    within("energies", energies, (g * e).sum(1), error * (size * e.abs()).sum(1) + 1e-6 * size.sum(1))
    # What the gradient is made of: errors of the weights count by how far apart the vectors are, not by their length.
    apart = torch.stack([(size[i][:, None] * (v - u[i]).abs()).sum(0) for i in range(len(u))]) if len(u) else u
    within(
        "gradient", sums - totals[:, None] * u, g @ v - g.sum(1)[:, None] * u, error * apart + 2e-6 * size.sum(1, True)
    )


def within(name: str, actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    assert actual.shape == expected.shape, name
    excess = ((actual - expected).abs() - bound - 1e-7).clamp(min=0)
    assert not excess.any(), f"{name}: {excess.max():.2e} above the bound at {excess.flatten().argmax()}"


def unit_pairs(
    rows: int,
    keys: int,
    features: int,
    temperature: float = 0.1,
    precision: str = "ieee",
    *,
    dtype: torch.dtype | None = None,
    masks: bool = True,
    skip: int | None = 1,
    device: str = "cpu",
    **options: Any,
) -> Pairs:
    """Return pairs of random unit vectors, centred."""
    generator = torch.Generator().manual_seed(rows + keys + features)

    def units(count: int) -> Tensor:
        x = torch.nn.functional.normalize(torch.randn(count, features, generator=generator), dim=1)
        return (x - x.mean(0) if count > 1 else x).to(device, dtype or torch.float32)

    def valid(count: int) -> Tensor | None:
        mask = torch.rand(count, generator=generator) < 0.8
        return mask.to(device) if masks else None

    if precision == "bf16":
        dtype = torch.bfloat16
    return Pairs(units(rows), units(keys), temperature, precision, valid(rows), valid(keys), skip, options)
