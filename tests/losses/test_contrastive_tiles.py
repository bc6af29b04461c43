"""Batches of many tiles, as the library cuts them, against the matrix of all pairs in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrobust._similarity import dense, tiles, units
from mmrobust.losses import info_nce_loss, modality_contrastive_loss, nt_xent_loss, sup_con_loss
from tests.losses.contrastive_cases import (
    definition,
    info_nce_definition,
    nt_xent_definition,
    sup_con_definition,
)

CPU = torch.device("cpu")
N = 301


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[(256, 1 << 22), (256, 1 << 12), (96, 1 << 12)], ids=["1 tile", "256x16", "96x42"])
def _cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tiles into strips that are narrower than high, none of which divides N."""
    height, elements = request.param
    monkeypatch.setattr(dense, "_PAIRS", -1)
    monkeypatch.setattr(tiles, "_ROWS", height)
    monkeypatch.setitem(tiles._ELEMENTS, "cpu", elements)


def compare(function: Callable[..., Tensor], want: Callable[..., Tensor], temperature: float, *rows: Tensor) -> None:
    found = []
    for each in (function, want):
        leaves = [x.clone().requires_grad_() for x in (*rows, torch.tensor(temperature, dtype=torch.float64))]
        value = each(*leaves)
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for got, expected in zip(*found, strict=True):
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-10 * scale)


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("temperature", [1e-3, 0.2])
class TestManyTiles:
    @pytest.mark.parametrize("inside", [False, True])
    def test_sup_con(self, temperature: float, inside: bool) -> None:
        labels, option = torch.arange(N) % 7, {"aggregation": "in" if inside else "out"}
        compare(
            lambda x, t: sup_con_loss(x, labels, temperature=t, **option),
            lambda x, t: sup_con_definition(x, labels, t, inside),
            temperature,
            normal(N, 5),
        )

    def test_sup_con_with_more_keys_and_masks(self, temperature: float) -> None:
        generator = torch.Generator().manual_seed(3)
        labels, key_labels = (torch.randint(4, (rows,), generator=generator) for rows in (N, 57))
        present, key_present = (torch.rand(rows, generator=generator) < 0.8 for rows in (N, 57))
        everyone, here = torch.cat([labels, key_labels]), torch.cat([present, key_present])
        counts = here & ~torch.eye(N, N + 57, dtype=torch.bool)
        positive = labels.unsqueeze(1) == everyone

        def got(x: Tensor, keys: Tensor, t: Tensor, **more: Any) -> Tensor:
            options = {"present": present, "key_present": key_present, "temperature": t, "reduction": "sum"}
            return sup_con_loss(x, labels, keys=keys, key_labels=key_labels, **options, **more)

        def want(x: Tensor, keys: Tensor, t: Tensor, inside: bool = False) -> Tensor:
            return definition(x, torch.cat([x, keys]), t, positive, counts, inside)[present].sum()

        rows = normal(N, 5), normal(57, 5, seed=1)
        compare(got, want, temperature, *rows)
        compare(lambda *x: got(*x, aggregation="in"), lambda *x: want(*x, inside=True), temperature, *rows)

    def test_pairs(self, temperature: float) -> None:
        one, other = normal(N, 5), normal(N, 5, seed=1)
        compare(lambda a, b, t: info_nce_loss(a, b, temperature=t), info_nce_definition, temperature, one, other)
        compare(lambda a, b, t: nt_xent_loss(a, b, temperature=t), nt_xent_definition, temperature, one, other)

    def test_modalities(self, temperature: float) -> None:
        """Three comparisons in one batch of tiles, each with rows of its own."""
        present = torch.rand(N, 3, generator=torch.Generator().manual_seed(0)) < 0.7

        def want(x: Tensor, t: Tensor) -> Tensor:
            parts = []
            for a, b in ((0, 1), (0, 2), (1, 2)):
                both = present[:, a] & present[:, b]
                parts.append(info_nce_definition(x[both, a], x[both, b], t))
            return torch.stack(parts).mean()

        compare(lambda x, t: modality_contrastive_loss(x, present, temperature=t), want, temperature, normal(N, 3, 5))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 5000])
@pytest.mark.parametrize("rows", [0, 1, 41, 257, 1271])
def test_tiles_cover_every_pair_once(monkeypatch: pytest.MonkeyPatch, rows: int, batch: int, half: bool) -> None:
    monkeypatch.setitem(tiles._ELEMENTS, "cpu", 1 << 16)
    for columns in (rows,) if half else (rows, 0, 1, 700):
        count = torch.zeros(rows, columns, dtype=torch.int32)
        for i, j in tiles.ranges(rows, columns, batch, CPU, half):
            count[i, j] += 1
            assert batch * count[i, j].numel() <= max(1 << 16, batch << 12), "a tile is larger than it may be"
        if half:
            # Tiles on the diagonal are whole squares, those below it are left out.
            assert (count[torch.ones_like(count).triu().bool()] == 1).all()
            assert (count.T + count - count * count.T == 1).all()
        else:
            assert (count == 1).all()


@pytest.mark.parametrize("way", ["dense", "tiles"])
def test_rows_held_in_float64_at_a_time(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Normalised chunk by chunk, a batch has the same losses and gradients, some rows without a direction included."""
    monkeypatch.setattr(dense, "_PAIRS", -1 if way == "tiles" else 1 << 62)
    x, labels = normal(50, 5), torch.arange(50) % 3
    x[7] = x[33] = 0.0

    def results() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        loss = sup_con_loss(leaf, labels) + nt_xent_loss(leaf[:25], leaf[25:]) + info_nce_loss(leaf[:25], leaf[25:])
        loss.backward()
        return [loss.detach(), leaf.grad]

    want = results()
    monkeypatch.setattr(units, "_ROWS", 8)
    for got, expected in zip(results(), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dtype", "lowest"), [(torch.float32, 1 / 32), (torch.float64, 1 / 300)], ids=str)
def test_no_maximum_is_needed_above_a_temperature(dtype: torch.dtype, lowest: float) -> None:
    """There no sum of exponentials underflows or overflows, nor the inverse of one; below it a maximum is taken."""
    for temperature in (lowest * 1.001, 0.5, 10.0):
        assert tiles.is_fast(torch.tensor(temperature, dtype=dtype), 0.0)
    for temperature in (lowest * 0.999, 1e-3):
        assert not tiles.is_fast(torch.tensor(temperature, dtype=dtype), 1.0)
    least = torch.exp(torch.tensor(-2 / lowest, dtype=dtype))
    assert (1e6 / least).isfinite()
    assert least / 1e6 > torch.finfo(dtype).tiny
