"""The classifier of branches: its loss against its parts, a branch that is missing, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrobust import MemoryBank, TwoBranchPrototypeClassifier, sup_con_loss

SIZES = {"deep": 20, "shallow": 6}
WIDTHS = {"deep": [16, 8], "shallow": [8]}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(**options: Any) -> TwoBranchPrototypeClassifier:
    torch.manual_seed(0)
    options = {"token_features": 4, "projection_features": 5, "dropout": {"deep": 0.5, "shallow": 0.2}, **options}
    return TwoBranchPrototypeClassifier(SIZES, WIDTHS, 3, 2, **options)


def inputs(rows: int = 12) -> dict[str, Tensor]:
    return {name: normal(rows, size, seed=size) for name, size in SIZES.items()}


def test_the_loss_is_the_sum_of_its_parts() -> None:
    """SupCon sees the branches of a sample as its views, and the keys of a bank."""
    model = build(
        classification_weight=0.9,
        contrastive_weight=0.3,
        contrastive_temperature=0.2,
        orthonormality_weight=0.2,
        separation_weight=0.4,
    ).eval()
    labels, present = torch.arange(12) % 3, torch.rand(12, 2, generator=torch.Generator().manual_seed(1)) < 0.8
    bank = MemoryBank(16, 5)
    bank.update(normal(10, 5), torch.arange(10) % 3)
    parts, output = model.loss(inputs(), labels, present, keys=bank.keys()), model(inputs(), present)
    keys = bank.keys()
    want = [
        F.cross_entropy(output.logits, labels),
        sup_con_loss(
            output.projections.flatten(0, 1),
            labels.repeat_interleave(2),
            temperature=0.2,
            present=present.flatten(),
            keys=keys.features,
            key_labels=keys.labels,
            key_present=keys.present,
        ),
        model.head.orthonormality_penalty(),
        model.head.separation(),
    ]
    torch.testing.assert_close(torch.stack(parts[1:5]), torch.stack(want))
    torch.testing.assert_close(parts.loss, sum(w * x for w, x in zip((0.9, 0.3, 0.2, 0.4), want, strict=True)))


def test_what_is_off_is_zero() -> None:
    parts = build(contrastive_weight=0.0, head="linear").loss(inputs(), torch.arange(12) % 3)
    assert float(parts.contrastive) == float(parts.orthonormality) == float(parts.separation) == 0.0
    torch.testing.assert_close(parts.loss, parts.classification)


@pytest.mark.parametrize("options", [{}, {"head": "linear"}, {"token_features": 0}, {"orthogonality": "exact"}])
def test_it_learns_and_a_branch_may_be_missing(options: dict[str, Any]) -> None:
    labels = torch.arange(120) % 3
    centres = {name: 2 * normal(3, size, seed=9) for name, size in SIZES.items()}
    rows = {name: centres[name][labels] + normal(120, size, seed=1) for name, size in SIZES.items()}
    model = build(**options)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(2)
    for _ in range(60):
        present = torch.rand(120, 2, generator=generator) < 0.7
        present[:, 0] |= ~present.any(1)
        loss = model.loss(rows, labels, present).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for shown in (rows, {"deep": rows["deep"]}, {"shallow": rows["shallow"]}):
        assert (model(shown).logits.argmax(1) == labels).float().mean() > 0.9


def test_a_sample_without_any_branch() -> None:
    present = torch.ones(12, 2, dtype=torch.bool)
    present[3] = False
    spoilt = {name: x.clone() for name, x in inputs().items()}
    for x in spoilt.values():
        x[3] = float("nan")
    model = build()
    output = model.eval()(spoilt, present)
    assert not output.embedding[3].any()
    assert output.logits[3].isfinite().all()
    parts = model.train().loss(spoilt, torch.arange(12) % 3, present)
    parts.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"head": "linear"}, {"contrastive_weight": 0.0}])
def test_samples_without_any_branch_leave_the_loss(options: dict[str, Any]) -> None:
    model = build(dropout=0.0, **options)
    present, labels = torch.ones(12, 2, dtype=torch.bool), torch.arange(12) % 3
    present[8:] = False
    unread = torch.where(present[:, 0], labels, -7)
    whole = model.loss(inputs(), unread, present)
    some = model.loss({name: x[:8] for name, x in inputs().items()}, labels[:8])
    torch.testing.assert_close(whole.loss, some.loss)
    for nothing in (
        model.loss(inputs(), labels, ~present.any()[None, None].expand(12, 2)),
        model.loss(inputs(0), labels[:0]),
    ):
        assert float(nothing.classification.detach()) == 0.0
        nothing.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_options_reach_the_parts() -> None:
    options = {"temperature": 0.3, "normalize": False, "orthogonality": "exact"}
    model = build(**options)
    assert {name: getattr(model.head, name) for name in options} == options
    assert (model.head.num_classes, model.head.subspace_dim) == (3, 2)
    rates = [[m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)] for encoder in model.encoders]
    assert [max(found) for found in rates] == [0.5, 0.2]
    one = TwoBranchPrototypeClassifier(SIZES, 8, 3, 2)
    assert [sum(isinstance(m, torch.nn.Linear) for m in encoder.modules()) for encoder in one.encoders] == [1, 1]
    assert (
        one.double().loss({k: x.double() for k, x in inputs().items()}, torch.arange(12) % 3).loss.dtype
        == torch.float64
    )


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: build().loss(inputs(), torch.zeros(12)), TypeError, "labels"),
        (lambda: build().loss(inputs(), torch.zeros(11, dtype=torch.int64)), ValueError, "labels"),
        (lambda: build(dropout={"deep": 0.5}), ValueError, "dropout of each branch, got none of 'shallow'"),
        (lambda: build(dropout={**dict.fromkeys(SIZES, 0.1), "other": 0.1}), ValueError, "one of 'other'"),
        (
            lambda: TwoBranchPrototypeClassifier(SIZES, {**WIDTHS, "x": [8]}, 3, 2),
            ValueError,
            "hidden_features of deep",
        ),
        (lambda: TwoBranchPrototypeClassifier(SIZES, 8, 0, 2, head="linear"), ValueError, "num_classes of at least 1"),
        (lambda: build(separation_weight=-1.0), ValueError, "separation_weight"),
    ],
)
def test_wrong_uses(use: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use()
