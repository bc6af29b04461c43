"""Memory of contrastive losses, forward and backward, over that of their inputs: it grows with the rows alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mmrobust.losses import info_nce_loss, modality_contrastive_loss, nt_xent_loss, sup_con_loss
from tests.losses.contrastive_cases import sup_con_definition

D = 128


def peak(step: Callable[[], object]) -> float:
    """Return the most megabytes that were allocated at a time, inside of operators too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert len(events) > 10, "the profiler saw nothing"
    return most / 1e6


def differentiate(loss: Callable[..., Tensor], *rows: Tensor) -> Callable[[], object]:
    def step() -> None:
        torch.autograd.grad(loss(*rows), rows)

    return step


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), requires_grad=True)


def sup_con(rows: int, aggregation: str = "out") -> Callable[[], object]:
    labels = torch.arange(rows) % 10
    return differentiate(lambda x: sup_con_loss(x, labels, aggregation=aggregation), normal(rows, D))


def sup_con_with_keys(rows: int) -> Callable[[], object]:
    labels, keys = torch.arange(rows) % 10, torch.randn(rows, D)
    return differentiate(lambda x: sup_con_loss(x, labels, keys=keys, key_labels=labels), normal(rows, D))


def sup_con_of_several(rows: int) -> Callable[[], object]:
    labels = torch.rand(rows, 20, generator=torch.Generator().manual_seed(0)) < 0.1
    return differentiate(lambda x: sup_con_loss(x, labels), normal(rows, D))


def info_nce(pairs: int) -> Callable[[], object]:
    return differentiate(info_nce_loss, normal(pairs, D), normal(pairs, D).detach().clone().requires_grad_())


def nt_xent(pairs: int) -> Callable[[], object]:
    return differentiate(nt_xent_loss, normal(pairs, D), normal(pairs, D).detach().clone().requires_grad_())


def modalities(rows: int) -> Callable[[], object]:
    return differentiate(modality_contrastive_loss, normal(rows, 3, D))


BOUNDS = [
    pytest.param(sup_con, 4096, 25, id="sup_con"),
    pytest.param(sup_con, 16384, 100, id="sup_con, large", marks=pytest.mark.slow),
    pytest.param(lambda rows: sup_con(rows, "in"), 4096, 40, id="sup_con, L_in"),
    pytest.param(sup_con_of_several, 4096, 40, id="sup_con, several labels"),
    pytest.param(sup_con_with_keys, 4096, 45, id="sup_con, keys"),
    pytest.param(nt_xent, 2048, 25, id="nt_xent"),
    pytest.param(nt_xent, 8192, 100, id="nt_xent, large", marks=pytest.mark.slow),
    pytest.param(info_nce, 4096, 30, id="info_nce"),
    pytest.param(info_nce, 8192, 51, id="info_nce, large", marks=pytest.mark.slow),
    pytest.param(modalities, 2048, 70, id="modalities"),
]


@pytest.mark.parametrize(("loss", "rows", "megabytes"), BOUNDS)
def test_peak(loss: Callable[[int], Callable[[], object]], rows: int, megabytes: float) -> None:
    """One matrix of all pairs in float32 is 67 MB at 4096 rows, and 1074 MB at 16384."""
    assert peak(loss(rows)) <= megabytes


def test_small_batches_hold_one_matrix_or_three() -> None:
    """At the size where tiles take over, and just above it."""
    below, above = peak(sup_con(512)), peak(sup_con(513))
    assert max(below, above) < 8


def test_what_is_kept_for_the_backward_pass() -> None:
    """Per row its unit vector, the sums over its class (in float64) and a few numbers."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    rows = 4096
    labels = torch.arange(rows) % 10
    for loss in (
        lambda x: sup_con_loss(x, labels),
        lambda x: sup_con_loss(x, labels, aggregation="in"),
        lambda x: nt_xent_loss(x[: rows // 2], x[rows // 2 :]),
        lambda x: info_nce_loss(x[: rows // 2], x[rows // 2 :]),
    ):
        kept.clear()
        x = normal(rows, D)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            value = loss(x)
        assert value.requires_grad
        assert sum(kept.values()) <= 4.5 * x.nbytes


def test_the_measure_sees_a_matrix_of_all_pairs() -> None:
    labels = torch.arange(1024) % 10
    dense = differentiate(lambda x: sup_con_definition(x, labels, torch.tensor(0.1)), normal(1024, D))
    assert peak(dense) > 3 * 4 * 1024**2 / 1e6
