"""The kernels on a GPU, against float64: what the interpreter cannot show."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from mmrobust._kernels import available, contrastive, is_interpreted
from tests.kernels.reference import Pairs, check_row_logsumexp, check_weighted_sums, unit_pairs

pytestmark = [
    pytest.mark.skipif(is_interpreted(), reason="TRITON_INTERPRET=1 runs nothing on a GPU"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _runs_here() -> None:
    reason = available(torch.zeros(1, device=DEVICE))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def sync_mode() -> Iterator[Callable[[str], None]]:
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


def check(pairs: Pairs) -> None:
    check_row_logsumexp(pairs)
    check_weighted_sums(pairs)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rows", "keys"), [(1, 41), (41, 1), (1271, 4097), (4097, 1271), (4097, 4097)])
def test_sizes(rows: int, keys: int, precision: str) -> None:
    check(unit_pairs(rows, keys, 128, precision=precision, device=DEVICE))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("features", [1, 16, 64, 200, 256, 512, 768, 1024])
def test_features(features: int, precision: str) -> None:
    check(unit_pairs(300, 1271, features, precision=precision, device=DEVICE))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 1.0, 10.0])
def test_temperatures(temperature: float, precision: str) -> None:
    check(unit_pairs(513, 1271, 128, temperature, precision, device=DEVICE))


@pytest.mark.parametrize("skip", [None, -600, 0, 3])
@pytest.mark.parametrize("masks", [True, False])
def test_skipped_pairs(skip: int | None, masks: bool) -> None:
    check(unit_pairs(1271, 1271, 64, precision="tf32", skip=skip, masks=masks, device=DEVICE))


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_float16(precision: str) -> None:
    check(unit_pairs(513, 1271, 128, precision=precision, dtype=torch.float16, device=DEVICE))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_few_rows_against_many_keys(precision: str) -> None:
    check(unit_pairs(65, 65537, 128, precision=precision, device=DEVICE))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_deterministic(precision: str) -> None:
    pairs = unit_pairs(4097, 4097, 128, precision=precision, device=DEVICE)
    a, lse = torch.rand(4097, device=DEVICE), pairs.row_logsumexp()
    assert torch.equal(lse, pairs.row_logsumexp())
    first, second = (
        contrastive.weighted_sums(pairs.u, pairs.v, pairs.t, a=a, lse_a=lse, b=a, lse_b=lse, **pairs.shared)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_is_not_hidden(precision: str) -> None:
    pairs = unit_pairs(300, 513, 64, precision=precision, masks=False, device=DEVICE)
    pairs.u[3, 2] = torch.nan
    lse = pairs.row_logsumexp()
    broken = torch.arange(300, device=DEVICE) == 3
    assert torch.equal(lse.isnan(), broken)
    a = torch.ones(300, device=DEVICE)
    sums = contrastive.weighted_sums(pairs.u, pairs.v, pairs.t, a=a, lse_a=lse, **pairs.shared)
    assert all(torch.equal(x.isnan().reshape(300, -1).any(1), broken) for x in sums)


def test_the_host_never_waits(sync_mode: Callable[[str], None]) -> None:
    pairs = unit_pairs(513, 1271, 128, precision="tf32", device=DEVICE)
    t, a, b = pairs.t, torch.rand(513, device=DEVICE), torch.rand(1271, device=DEVICE)
    for mode in ("default", "error"):  # the first call compiles
        sync_mode(mode)
        lse = contrastive.row_logsumexp(pairs.u, pairs.v, t, **pairs.shared)
        contrastive.weighted_sums(pairs.u, pairs.v, t, a=a, lse_a=lse, b=b, lse_b=b, **pairs.shared)


def test_more_elements_than_32_bits_count() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs a GPU of 24 GB")
    rows, features = 2**21 + 300, 1024
    u = torch.zeros(rows, features, dtype=torch.bfloat16, device=DEVICE)
    tail = unit_pairs(300, 64, features, precision="bf16", masks=False, skip=None, device=DEVICE)
    u[-300:] = tail.u
    assert torch.equal(contrastive.row_logsumexp(u, tail.v, tail.t)[-300:], tail.row_logsumexp())
    a = torch.ones(rows, device=DEVICE)
    lse = tail.row_logsumexp()
    lse_all = torch.cat([torch.zeros(rows - 300, device=DEVICE), lse])
    sums, _, _ = contrastive.weighted_sums(u, tail.v, tail.t, a=a, lse_a=lse_all)
    expected, _, _ = contrastive.weighted_sums(tail.u, tail.v, tail.t, a=a[-300:], lse_a=lse)
    torch.testing.assert_close(sums[-300:], expected)


def test_on_the_gpu_of_the_tensors() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        check(unit_pairs(41, 127, 64, device="cuda:1"))
