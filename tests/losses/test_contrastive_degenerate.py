"""The empty, the single, the absent, the equal, and NaN: defined values and gradients on every way of the code."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmrobust._similarity import dense
from mmrobust.losses import (
    InfoNCELoss,
    ModalityContrastiveLoss,
    NTXentLoss,
    SupConLoss,
    info_nce_loss,
    modality_contrastive_loss,
    nt_xent_loss,
    sup_con_loss,
)

# Every loss as a function of one batch of rows, its presence and the temperature.
Loss = Callable[..., Tensor]


def _classes(rows: int) -> Tensor:
    return torch.arange(rows) % 2


def _groups(x: Tensor, present: Tensor | None = None, **options: object) -> Tensor:
    same = _classes(len(x)).unsqueeze(1) == _classes(len(x))
    return sup_con_loss(x, positives=same, present=present, **options)


LOSSES: dict[str, Loss] = {
    "sup_con": lambda x, present=None, **options: sup_con_loss(x, _classes(len(x)), present=present, **options),
    "sup_con, L_in": lambda x, present=None, **options: sup_con_loss(
        x, _classes(len(x)), present=present, aggregation="in", **options
    ),
    "sup_con, masks": _groups,
    "info_nce": lambda x, present=None, **options: info_nce_loss(x, x.roll(1, 1), present=present, **options),
    "info_nce, one way": lambda x, present=None, **options: info_nce_loss(
        x, x.roll(1, 1), present=present, symmetric=False, **options
    ),
    "nt_xent": lambda x, present=None, **options: nt_xent_loss(x, x.roll(1, 1), present=present, **options),
    "modality": lambda x, present=None, **options: modality_contrastive_loss(
        torch.stack([x, x.roll(1, 1), x.flip(1)], dim=1),
        None if present is None else present.unsqueeze(1).expand(-1, 3),
        **options,
    ),
}


@pytest.fixture(params=["dense", "tiles"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(dense, "_PAIRS", 1 << 62 if request.param == "dense" else -1)
    return str(request.param)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Loss, x: Tensor, *args: object, **options: object) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf, *args, **options)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_compare(name: str, rows: int, temperature: float, way: str) -> None:
    """No row, or one: 0 and a zero gradient, whatever the vector."""
    value, grad = gradient(LOSSES[name], normal(rows, 4), temperature=temperature)
    # One pair is its own only candidate, which tiles find out by subtracting.
    tolerance = 1e-15 / temperature**2 if rows and not name.startswith("sup_con") and way == "tiles" else 0.0
    assert abs(value) <= tolerance
    assert grad.shape == (rows, 4)
    assert (grad.abs() <= tolerance).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_nobody_is_present(name: str, fill: float) -> None:
    x, nobody = torch.full((6, 4), fill, dtype=torch.float64), torch.zeros(6, dtype=torch.bool)
    value, grad = gradient(LOSSES[name], x, nobody)
    assert value == 0
    assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e300])
def test_absent_rows_are_not_there(name: str, fill: float) -> None:
    """The same as a batch without them; bit by bit the same as with zeros in their place."""
    x = normal(9, 4)
    present = torch.tensor([True, True, False, False, True, True, True, True, False])
    assert torch.equal(_classes(len(x))[present], _classes(int(present.sum())))
    kept = gradient(LOSSES[name], x[present])
    value, grad = gradient(LOSSES[name], torch.where(present.unsqueeze(1), x, fill), present)
    clean, clean_grad = gradient(LOSSES[name], torch.where(present.unsqueeze(1), x, 0.0), present)
    assert torch.equal(value, clean)
    assert torch.equal(grad, clean_grad)
    assert (grad[~present] == 0).all()
    torch.testing.assert_close(value, kept[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad[present], kept[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_without_a_direction(name: str) -> None:
    """A zero vector has similarity 0 to everything and gets no gradient; so has one shorter than 1e-12."""
    x = normal(8, 4)
    spoiled = x.clone()
    spoiled[2] = 0.0
    value, grad = gradient(LOSSES[name], spoiled)
    # A fifth feature that no other row has is at right angles to all of them.
    wide = torch.cat([spoiled, torch.zeros(8, 4, dtype=torch.float64)], dim=1)
    wide[2, 4] = 1.0
    if name.startswith("sup_con"):
        want, want_grad = gradient(LOSSES[name], wide)
        torch.testing.assert_close(value, want, rtol=1e-12, atol=0.0)
        others = torch.arange(8) != 2
        torch.testing.assert_close(grad[others], want_grad[others, :4], rtol=1e-10, atol=1e-12)
    assert (grad[2] == 0).all()
    assert grad.isfinite().all()
    assert grad.any(1).sum() == 7
    spoiled[2] = 1e-13 * x[2]
    tiny, tiny_grad = gradient(LOSSES[name], spoiled)
    assert tiny == value
    assert torch.equal(tiny_grad, grad)
    value, grad = gradient(LOSSES[name], 0.0 * x)
    count = {"info_nce": 8, "info_nce, one way": 8, "nt_xent": 15, "modality": 8}.get(name, 7)
    assert math.isclose(float(value), math.log(count), rel_tol=1e-12)
    assert not grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_equal_rows(name: str) -> None:
    """All rows equal: as many keys as there are, none better than the others."""
    x = normal(1, 1).expand(7, 4) + 0.0
    value, grad = gradient(LOSSES[name], x)
    count = {"info_nce": 7, "info_nce, one way": 7, "nt_xent": 13, "modality": 7}.get(name, 6)
    assert math.isclose(float(value), math.log(count), rel_tol=1e-12)
    assert grad.abs().max() < 1e-12
    twice = torch.cat([normal(3, 4), normal(3, 4)])
    value, grad = gradient(LOSSES[name], twice, temperature=1e-3)
    assert value.isfinite()
    torch.testing.assert_close(LOSSES[name](twice.float(), temperature=1e-3).double(), value, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_nan_is_not_hidden(name: str, temperature: float, spoil: float) -> None:
    """A real row that is not finite makes the loss NaN: no error, and no number that looks right."""
    for dtype in (torch.float64, torch.float32):
        x = normal(6, 4).to(dtype)
        x[3, 1] = spoil
        value, grad = gradient(LOSSES[name], x, temperature=temperature)
        assert value.isnan()
        assert grad.isnan().any()


@pytest.mark.parametrize("name", LOSSES)
def test_validation_names_the_row(name: str) -> None:
    x = normal(6, 4)
    LOSSES[name](x, validate=True)
    x[2] = float("nan")
    x[4, 1] = float("inf")
    with pytest.raises(ValueError, match=r"^\w+: expected (features|query|z1) to be finite, row 2 is not$"):
        LOSSES[name](x, validate=True)
    present = torch.ones(6, dtype=torch.bool)
    present[2] = False
    with pytest.raises(ValueError, match="row 4 is not"):
        LOSSES[name](x, present, validate=True)
    present[4] = False
    assert LOSSES[name](x, present, validate=True).isfinite()


def test_validation_looks_at_a_temperature_that_is_a_tensor() -> None:
    for temperature in (0.0, -0.1, float("nan")):
        for name in LOSSES:
            with pytest.raises(ValueError, match=r"expected temperature in \(0\.0, inf\), got (0|-0\.1|nan)"):
                LOSSES[name](normal(4, 3), validate=True, temperature=torch.tensor(temperature))


def test_validation_looks_at_everything() -> None:
    """Both sides of pairs, extra keys and negatives; not at those that are absent."""
    x, bad = normal(4, 3), normal(4, 3)
    bad[1, 0] = float("nan")
    labels = torch.zeros(4, dtype=torch.int64)
    present = torch.tensor([True, False, True, True])
    for use, name in (
        (lambda m: info_nce_loss(x, bad, present=m, validate=True), "key"),
        (lambda m: nt_xent_loss(x, bad, present=m, validate=True), "z2"),
        (lambda m: info_nce_loss(x, x, negatives=bad, negatives_present=m, validate=True), "negatives"),
        (lambda m: nt_xent_loss(x, x, negatives=bad, negatives_present=m, validate=True), "negatives"),
        (
            lambda m: sup_con_loss(x, labels, keys=bad, key_labels=labels, key_present=m, validate=True),
            "keys",
        ),
    ):
        with pytest.raises(ValueError, match=f"expected {name} to be finite, row 1 is not"):
            use(None)
        assert use(present).isfinite()
    with pytest.raises(ValueError, match="expected features to be finite, row 1 is not"):
        modality_contrastive_loss([x, bad], validate=True)
    both = torch.stack([torch.ones(4, dtype=torch.bool), present], dim=1)
    assert modality_contrastive_loss([x, bad], both, validate=True).isfinite()


# What only the supervised loss has -------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["out", "in"])
def test_labels_that_make_no_positive(aggregation: str) -> None:
    """Every row its own class: 0 anchors, loss 0, zero gradients; ``"zero"`` counts them with loss 0."""
    x, labels = normal(5, 3).requires_grad_(), torch.arange(5)
    for option, anchors in (("skip", 0), ("zero", 5)):
        loss, count = sup_con_loss(
            x, labels, aggregation=aggregation, without_positives=option, temperature=1e-3, return_anchors=True
        )
        assert (float(loss.detach()), int(count)) == (0.0, anchors)
        (grad,) = torch.autograd.grad(loss, x)
        assert not grad.any()


@pytest.mark.parametrize("aggregation", ["out", "in"])
def test_rows_without_positives_leave_the_mean_but_stay_keys(aggregation: str) -> None:
    x, labels = normal(5, 3), torch.tensor([0, 0, 1, 1, 2])
    rows = sup_con_loss(x, labels, aggregation=aggregation, reduction="none")
    assert rows[4] == 0
    torch.testing.assert_close(sup_con_loss(x, labels, aggregation=aggregation), rows[:4].mean())
    diluted = sup_con_loss(x, labels, aggregation=aggregation, without_positives="zero")
    torch.testing.assert_close(diluted, rows.sum() / 5)
    assert rows[0] > sup_con_loss(x[:4], labels[:4], aggregation=aggregation, reduction="none")[0]


def test_one_class_is_the_mean_over_all_other_rows() -> None:
    x = normal(6, 3)
    value = sup_con_loss(x, torch.full((6,), 7), temperature=0.2)
    z = torch.nn.functional.normalize(x)
    scores = (z @ z.T / 0.2).masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    log_p = scores.log_softmax(1)[~torch.eye(6, dtype=torch.bool)]
    torch.testing.assert_close(value, -log_p.mean())


def test_a_row_is_never_its_own_positive() -> None:
    """Not by its label, nor by a mask that says so: a lone row of ones on the diagonal counts nothing."""
    x = normal(4, 3)
    loss, anchors = sup_con_loss(x, positives=torch.eye(4, dtype=torch.bool), return_anchors=True)
    assert (float(loss), int(anchors)) == (0.0, 0)
    both = torch.eye(4, dtype=torch.bool)
    both[0, 1] = True
    loss, anchors = sup_con_loss(x, positives=both, return_anchors=True)
    assert int(anchors) == 1
    torch.testing.assert_close(loss, sup_con_loss(x, positives=both & ~torch.eye(4, dtype=torch.bool)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_are_names(dtype: torch.dtype) -> None:
    """Negative, sparse and huge ones are as good as 0, 1 and 2."""
    x, plain = normal(6, 3), torch.tensor([0, 1, 0, 2, 1, 0])
    names = torch.tensor([-7, 100, -7, 3, 100, -7]) if dtype.is_signed else torch.tensor([7, 200, 7, 3, 200, 7])
    if dtype == torch.int64:
        names = names * 10**15
    torch.testing.assert_close(sup_con_loss(x, names.to(dtype)), sup_con_loss(x, plain), rtol=1e-12, atol=0.0)
    more = sup_con_loss(x, names.to(dtype), keys=x[:3] + 1.0, key_labels=names.to(dtype)[3:])
    torch.testing.assert_close(more, sup_con_loss(x, plain, keys=x[:3] + 1.0, key_labels=plain[3:]))


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", LOSSES)
def test_validation_looks_at_weights(name: str, wrong: float) -> None:
    weight = torch.tensor([1.0, 0.0, wrong, 2.0])
    with pytest.raises(ValueError, match="expected weight to be finite and at least 0, row 2 is not"):
        LOSSES[name](normal(4, 3), weight=weight, validate=True)
    present = torch.tensor([True, True, False, True])
    assert LOSSES[name](normal(4, 3), present, weight=weight, validate=True).isfinite()


def test_validation_looks_at_several_labels_per_row() -> None:
    x, several = normal(4, 3), torch.tensor([[1, 0], [1, 1], [-100, 0], [1, 0]])
    with pytest.raises(ValueError, match="sup_con_loss: expected labels to be 0 or 1, row 2 is not"):
        sup_con_loss(x, several, validate=True)
    present = torch.tensor([True, True, False, True])
    assert sup_con_loss(x, several, present=present, validate=True).isfinite()
    keys = {"keys": x, "key_labels": several}
    with pytest.raises(ValueError, match="sup_con_loss: expected key_labels to be 0 or 1, row 2 is not"):
        sup_con_loss(x, several.clamp(min=0), **keys, validate=True)
    assert sup_con_loss(x, several.clamp(min=0), **keys, key_present=present, validate=True).isfinite()


@pytest.mark.parametrize("kind", [SupConLoss, InfoNCELoss, NTXentLoss])
def test_modules_validate(kind: type[torch.nn.Module]) -> None:
    x = torch.full((4, 3), float("nan"))
    other = torch.arange(4) % 2 if kind is SupConLoss else x
    assert kind()(x, other).isnan()
    with pytest.raises(ValueError, match="to be finite, row 0 is not"):
        kind(validate=True)(x, other)


def test_modality_module_validates() -> None:
    x = torch.full((4, 2, 3), float("nan"))
    with pytest.raises(ValueError, match="to be finite, row 0 is not"):
        ModalityContrastiveLoss(3, 2, validate=True)(x)
