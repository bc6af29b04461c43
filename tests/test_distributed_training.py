"""A model under DistributedDataParallel gets the gradients of one process with the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from mmrobust._similarity.pairs import row_logsumexp
from mmrobust._similarity.positives import class_energy
from mmrobust._similarity.ring import ring_class_energy, ring_logsumexp
from mmrobust._similarity.units import Units, centred_units, mean_direction
from mmrobust.distributed import gather_rows, global_mean, global_sum
from tests.ranks import Ranks, part


class Model(nn.Module):
    """A small encoder with its projection and a learnable temperature."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        self.log_temperature = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers(x), self.log_temperature.exp()


def dense_loss(x: Tensor, labels: Tensor, temperature: Tensor) -> Tensor:
    """Return the supervised contrastive loss from its definition."""
    z = normalize(x)
    scores = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    positive = (labels[:, None] == labels) & ~torch.eye(len(z), dtype=torch.bool)
    log_p = scores - scores.logsumexp(1, keepdim=True) if len(z) > 1 else scores
    rows = -torch.where(positive, log_p, 0.0).sum(1)
    count = positive.sum(1)
    return (rows / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def gathered_rows(own: Units, labels: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, offset, _ = gather_rows(own.u)
    keys = Units(rows, gather_rows(own.lost, "lost").rows)
    logsumexp = row_logsumexp(own, keys, temperature, skip=offset)
    return logsumexp, *class_energy(own, labels, keys, gather_rows(labels, "labels").rows)


def ring_rows(own: Units, labels: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logsumexp = ring_logsumexp(own, own, temperature, skip_own=True)
    return logsumexp, *ring_class_energy(own, labels, own, labels)


def local_rows(own: Units, labels: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return row_logsumexp(own, own, temperature, skip=0), *class_energy(own, labels, own, labels)


FORMS: dict[str, Any] = {"gather": gathered_rows, "ring": ring_rows, "local keys": local_rows, "local mean": ring_rows}


def train(form: str, sizes: tuple[int, ...], x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradients of a model under DistributedDataParallel."""
    model = DistributedDataParallel(Model())
    x, labels = part(x, sizes), part(labels, sizes)
    for _ in range(2):  # buckets of parameters are laid out anew after the first step
        model.zero_grad()
        features, temperature = model(x)
        total, count = mean_direction(features.detach())
        own = centred_units(features, global_sum(total) / global_sum(count).clamp(min=1))
        logsumexp, energy, count = FORMS[form](own, labels, temperature)
        count = count - 1  # without the row itself, whose energy is 0
        rows = torch.where(count > 0, logsumexp - energy / (count.clamp(min=1) * temperature), 0.0)
        if form == "local mean":
            loss = rows.sum() / (count > 0).sum().clamp(min=1)
        else:
            loss = global_mean(rows.sum(), (count > 0).sum())
        loss.backward()
    grads = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    return global_sum(loss) / len(sizes), grads


BATCHES = [(5, 3), (0, 6), (6, 0), (1, 0), (4, 5, 2), (0, 7, 3), (300, 0, 700)]
LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 0, 2, 1, 1, 2])
LONELY = torch.tensor([3, 4, 5, 6, 0, 0, 1, 1, 0, 7, 8])  # of (4, 5, 2) ranks 0 and 2 have no row with a positive


def worst(form: str, ranks: Ranks, sizes: tuple[int, ...], labels: Tensor) -> float:
    """Return by how much loss and gradients of any rank differ from those of one process."""
    labels = labels.repeat(100)[: sum(sizes)]
    x = torch.randn(sum(sizes), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Model()
    loss = dense_loss(model(x)[0], labels, model(x)[1])
    loss.backward()
    want = {name: parameter.grad for name, parameter in model.named_parameters()}
    return max(
        float((got - should).abs().max())
        for value, grads in ranks(len(sizes), train, form, sizes, x, labels)
        for got, should in [(value, loss.detach()), *((grads[name], want[name]) for name in want)]
    )


@pytest.mark.parametrize("form", ["gather", "ring"])
@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_data_parallel_gradients_are_those_of_one_process(ranks: Ranks, form: str, sizes: tuple[int, ...]) -> None:
    assert worst(form, ranks, sizes, LABELS) < 1e-10


@pytest.mark.parametrize("form", ["gather", "ring"])
def test_ranks_without_positives(ranks: Ranks, form: str) -> None:
    assert worst(form, ranks, (4, 5, 2), LONELY) < 1e-10


@pytest.mark.parametrize("form", ["local keys", "local mean"])
def test_the_usual_forms_are_something_else(ranks: Ranks, form: str) -> None:
    assert worst(form, ranks, (4, 5, 2), LABELS) > 1e-3
