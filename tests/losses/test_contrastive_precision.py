"""Half precision, autocast, determinism and threads, for small and for large batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from mmrobust._similarity import dense
from mmrobust.losses import info_nce_loss, modality_contrastive_loss, nt_xent_loss, sup_con_loss

pytestmark = pytest.mark.filterwarnings("ignore:CPU autocast:UserWarning")

N, D = 40, 16
LABELS = torch.arange(N) % 4
SEVERAL = torch.stack([LABELS == 0, LABELS > 1, LABELS == 3], dim=1)
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "classes": lambda x: sup_con_loss(x, LABELS, weight=torch.arange(N) + 1.0),
    "classes, keys": lambda x: sup_con_loss(x, LABELS, keys=x.flip(1), key_labels=LABELS.flip(0)),
    "several labels, L_in": lambda x: sup_con_loss(x, SEVERAL, aggregation="in"),
    "pairs": lambda x: info_nce_loss(x, x.roll(1, 1), negatives=x.flip(1)),
    "pairs, no negatives": lambda x: info_nce_loss(x, x.roll(1, 1)),
    "views": lambda x: nt_xent_loss(x, x.roll(1, 1)),
    "modalities": lambda x: modality_contrastive_loss(torch.stack([x, x.roll(1, 1), x.flip(1)], dim=1)),
}


@pytest.fixture(params=["dense", "tiles"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(dense, "_PAIRS", 1 << 62 if request.param == "dense" else -1)
    return str(request.param)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_at_the_ends_alone(name: str, dtype: torch.dtype) -> None:
    x = normal(N, D).to(dtype)
    value, grad = run(LOSSES[name], x)
    want, want_grad = run(LOSSES[name], x.double())
    assert (value.dtype, grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value.double(), want, rtol=1e-6, atol=0.0)
    # Rows that serve two sides get their gradient in two parts, which are rounded and added in half precision.
    error, eps = (grad.double() - want_grad).abs(), torch.finfo(dtype).eps
    assert error.max() <= 4 * eps * want_grad.abs().max() + torch.finfo(dtype).smallest_normal


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    """Not a bit, whether the backward pass runs inside of it or outside."""
    x = normal(N, D)
    want = run(LOSSES[name], x)
    with torch.autocast("cpu", dtype=dtype):
        inside = run(LOSSES[name], x)
        leaf = x.clone().requires_grad_()
        loss = LOSSES[name](leaf)
    loss.backward()
    assert leaf.grad is not None
    for value, grad in (inside, (loss.detach(), leaf.grad)):
        assert value.dtype == torch.float32
        assert torch.equal(value, want[0])
        assert torch.equal(grad, want[1])


def test_features_of_an_autocast_encoder() -> None:
    """bfloat16 from a layer under autocast: the loss is that of the same rows in float64."""
    torch.manual_seed(0)
    layer, x = nn.Linear(D, D), normal(N, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(x)
        loss = sup_con_loss(z, LABELS)
        loss.backward()
    assert z.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), sup_con_loss(z.detach().double(), LABELS), rtol=1e-6, atol=0.0)
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


@pytest.fixture
def _strict() -> Iterator[None]:
    """Refuse what is not deterministic; fill fresh memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("name", LOSSES)
def test_deterministic(name: str) -> None:
    x = normal(N, D)
    first, second = run(LOSSES[name], x), run(LOSSES[name], x)
    for one, other in zip(first, second, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", LOSSES)
def test_eight_threads(name: str) -> None:
    """Each with rows of its own, forward and backward: nothing is shared."""
    cases = [normal(N, D, seed=seed) for seed in range(8)]
    want = [run(LOSSES[name], x) for x in cases]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda x: [run(LOSSES[name], x) for _ in range(3)], cases))
    finally:
        sys.setswitchinterval(interval)
    for results, expected in zip(found, want, strict=True):
        for result in results:
            assert torch.equal(result[0], expected[0])
            assert torch.equal(result[1], expected[1])


@pytest.mark.parametrize("name", LOSSES)
def test_strided_rows(name: str) -> None:
    """Not contiguous, transposed, or one row many times over."""
    x = normal(N, D)
    wide = normal(2 * N, 2 * D)
    for strided in (wide[::2, ::2], normal(D, N).T, x[:1].expand(N, D), normal(N, D + 3)[:, 3:]):
        for one, other in zip(run(LOSSES[name], strided), run(LOSSES[name], strided.contiguous()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
