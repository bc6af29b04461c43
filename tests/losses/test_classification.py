"""Where focal losses and label smoothing went wrong before, and how far they agree with torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrobust.losses import (
    FocalLabelSmoothingLoss,
    FocalLoss,
    LabelSmoothingCrossEntropy,
    focal_label_smoothing_loss,
    focal_loss,
    label_smoothing_cross_entropy,
)
from tests.references import losses as reference

LOSSES = (focal_loss, label_smoothing_cross_entropy, focal_label_smoothing_loss)
GAMMAS = (0.0, 1e-3, 0.3, 1.0, 2.0, 5.0)


def _batch(classes: int = 6, rows: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(3.0 * rng.standard_normal((rows, classes)))
    target = torch.from_numpy(rng.integers(0, classes, rows))
    target[3::5] = -100
    return logits, target


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dense", [False, True])
def test_without_focus_it_is_cross_entropy(dense: bool, smoothing: float, weighted: bool, reduction: str) -> None:
    """Without gamma it is F.cross_entropy in every option: the weighted mean, ignored items, dense predictions."""
    logits, target = _batch(rows=24)
    if dense:
        logits, target = logits.reshape(4, 2, 3, 6).movedim(-1, 1), target.reshape(4, 2, 3)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 1.0], dtype=torch.float64) if weighted else None
    options = {"weight": weight, "reduction": reduction}
    want = F.cross_entropy(logits, target, label_smoothing=smoothing, **options)
    for got in (
        focal_label_smoothing_loss(logits, target, gamma=0.0, smoothing=smoothing, **options),
        label_smoothing_cross_entropy(logits, target, smoothing=smoothing, **options),
        *([focal_loss(logits, target, gamma=0.0, **options)] if smoothing == 0.0 else []),
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("convention", ["uniform", "off_target"])
@pytest.mark.parametrize("focal_factor", ["per_class", "target"])
def test_reference_with_weights_and_dense(gamma: float, convention: str, focal_factor: str) -> None:
    logits, target = _batch(classes=4)
    logits, target = logits.reshape(3, 2, 2, 4).movedim(-1, 1), target.reshape(3, 2, 2)
    weight = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
    options = {"gamma": gamma, "smoothing": 0.3, "convention": convention, "focal_factor": focal_factor}
    for reduction in ("none", "mean", "sum"):
        got = focal_label_smoothing_loss(logits, target, weight=weight, reduction=reduction, **options)
        want = reference.focal_label_smoothing_loss(
            logits.numpy(), target.numpy(), weight=weight.numpy(), reduction=reduction, **options
        )
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_smoothing_conventions_agree_after_rescaling(classes: int) -> None:
    """eps/(K-1) off the target is eps*K/(K-1) spread uniformly: 0.1 and 0.12 for six classes; 0.1 and 0.1 differ."""
    logits, target = _batch(classes)
    off = label_smoothing_cross_entropy(logits, target, smoothing=0.1, convention="off_target")
    same = F.cross_entropy(logits, target, label_smoothing=0.1 * classes / (classes - 1))
    torch.testing.assert_close(off, same, rtol=1e-12, atol=1e-12)
    assert not math.isclose(off.item(), F.cross_entropy(logits, target, label_smoothing=0.1).item(), rel_tol=1e-3)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_focus_does_not_cancel_the_smoothing(gamma: float) -> None:
    """An over-confident correct answer is pulled back; the published factor leaves it alone."""
    logits = torch.tensor([[40.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0])
    loss = focal_label_smoothing_loss(logits, target, gamma=gamma)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss > 2.0
    assert grad[0, 0] > 0.01  # descending lowers the winning logit
    published = focal_label_smoothing_loss(logits, target, gamma=gamma, focal_factor="target")
    (grad,) = torch.autograd.grad(published, logits)
    assert 0.0 <= published < 1e-3
    assert grad.abs().max() < 1e-3


def test_published_factor_is_factor_times_smoothed_loss() -> None:
    logits, target = _batch()
    target = target.clamp(min=0)
    rest = 1 - logits.softmax(1).gather(1, target[:, None])[:, 0]
    want = rest**1.5 * F.cross_entropy(logits, target, label_smoothing=0.2, reduction="none")
    got = focal_label_smoothing_loss(logits, target, gamma=1.5, smoothing=0.2, focal_factor="target", reduction="none")
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("scale", [0.0, 20.0, 88.0, 1e4])
def test_gradient_is_finite_at_certainty(scale: float, gamma: float, dtype: torch.dtype) -> None:
    """(1 - p)^gamma has an infinite slope at p = 1 for 0 < gamma < 1; both right and wrong certainty are finite."""
    for loss in LOSSES:
        options = {} if loss is label_smoothing_cross_entropy else {"gamma": gamma}
        logits = torch.tensor([[scale, -scale, 0.0], [-scale, scale, 0.0]], dtype=dtype, requires_grad=True)
        value = loss(logits, torch.tensor([0, 0]), **options)
        value.backward()
        assert value.isfinite()
        assert logits.grad.isfinite().all()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert logits.grad.dtype == dtype


def test_certain_and_right_costs_nothing() -> None:
    """At p = 1 in float32 the focal loss and its gradient are zero, not tiny^gamma."""
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0]), gamma=1e-3)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_valid_is_zero_and_attached(loss, reduction: str) -> None:
    """F.cross_entropy gives NaN for a batch whose labels are all ignored, and for an empty one."""
    for rows in (0, 4):
        logits = torch.full((rows, 3), float("nan"), requires_grad=True)
        value = loss(logits, torch.full((rows,), -100), reduction=reduction)
        value.sum().backward()
        assert (value == 0).all()
        assert torch.equal(logits.grad, torch.zeros(rows, 3))


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_logits_of_ignored_items_are_unread(fill: float) -> None:
    logits, target = _batch()
    ignored = target == -100
    assert ignored.any()
    for loss in LOSSES:
        spoiled = torch.where(ignored[:, None], fill, logits).requires_grad_()
        value = loss(spoiled, target)
        value.backward()
        assert torch.equal(value, loss(logits, target))
        assert (spoiled.grad[ignored] == 0).all()
        assert spoiled.grad.isfinite().all()


def test_other_ignore_index() -> None:
    """A label that is a class elsewhere, or a dataset's own sentinel, can mean ignored."""
    logits, target = _batch()
    target = target.clamp(min=0)
    for index in (0, -1, 255):
        marked = torch.where(target == 2, index, target)
        want = F.cross_entropy(logits, marked, ignore_index=index)
        torch.testing.assert_close(focal_loss(logits, marked, gamma=0.0, ignore_index=index), want)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_normalise_the_mean(loss) -> None:
    """Scaling all weights changes no mean; only an item of weight zero is one more way to count nothing."""
    logits, target = _batch()
    weight = torch.tensor([0.5, 2.0, 0.1, 1.0, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(loss(logits, target, weight=weight), loss(logits, target, weight=7.0 * weight))
    assert loss(logits, target, weight=torch.zeros(6, dtype=torch.float64)) == 0.0


@pytest.mark.parametrize("convention", ["uniform", "off_target"])
def test_one_class_costs_nothing(convention: str) -> None:
    """K = 1 divided by zero in eps/(K-1)."""
    logits = torch.randn(3, 1, requires_grad=True)
    loss = focal_label_smoothing_loss(logits, torch.zeros(3, dtype=torch.long), smoothing=0.2, convention=convention)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_masked_classes_stay_masked() -> None:
    """A logit of -inf has probability 0; without smoothing it costs nothing, as in F.cross_entropy."""
    logits = torch.tensor([[1.0, -torch.inf, 2.0]], requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        loss = focal_loss(logits, torch.tensor([0]), gamma=gamma)
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_validate_names_the_wrong_label(loss) -> None:
    logits = torch.zeros(3, 4)
    assert loss(logits, torch.tensor([0, 3, -100]), validate=True).isfinite()
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=rf"{loss.__name__}: expected target in \[0, 3\].* -100, got {wrong}"):
            loss(logits, torch.tensor([0, wrong, -100]), validate=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_label_types(dtype: torch.dtype) -> None:
    logits, target = _batch()
    target = target.clamp(min=0)
    assert torch.equal(focal_loss(logits, target.to(dtype)), focal_loss(logits, target))


def test_column_of_labels_never_broadcasts() -> None:
    """(B, 1) against (B,) would have made a B x B loss."""
    with pytest.raises(ValueError, match=r"focal_loss: expected target of shape \(B,\) = \(32,\), got \(32, 1\)"):
        focal_loss(torch.zeros(32, 4), torch.zeros(32, 1, dtype=torch.long))


@pytest.mark.parametrize("module", [FocalLoss, LabelSmoothingCrossEntropy, FocalLabelSmoothingLoss])
def test_class_weights_are_a_buffer(module) -> None:
    """Weights follow .to and checkpoints, are copied, and are checked when the module is built."""
    given = torch.tensor([1.0, 2.0], dtype=torch.float64)
    loss = module(weight=given)
    given.zero_()
    assert loss.weight.tolist() == [1.0, 2.0]
    assert list(loss.state_dict()) == ["weight"]
    assert loss.half().weight.dtype == torch.float16
    assert module(weight=[1, 2]).weight.dtype == torch.float32
    assert list(module().state_dict()) == []
    for bad in ([1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match=rf"{module.__name__}: expected weight\[1\]"):
            module(weight=bad)


def test_options_reach_the_function() -> None:
    logits, target = _batch(classes=3)
    target = target.clamp(min=0)
    options = {"weight": [1.0, 2.0, 0.5], "ignore_index": 1, "reduction": "sum"}
    plain = {**options, "weight": torch.tensor([1.0, 2.0, 0.5])}
    pairs = (
        (FocalLoss(0.7, **options), focal_loss, {"gamma": 0.7}),
        (
            LabelSmoothingCrossEntropy(0.3, convention="off_target", **options),
            label_smoothing_cross_entropy,
            {"smoothing": 0.3, "convention": "off_target"},
        ),
        (
            FocalLabelSmoothingLoss(0.7, 0.3, convention="off_target", focal_factor="target", **options),
            focal_label_smoothing_loss,
            {"gamma": 0.7, "smoothing": 0.3, "convention": "off_target", "focal_factor": "target"},
        ),
    )
    for module, function, extra in pairs:
        assert torch.equal(module(logits, target), function(logits, target, **plain, **extra))
        for key, value in extra.items():
            assert f"{key}={value!r}" in repr(module)
    with pytest.raises(ValueError, match="got 3"):
        FocalLoss(validate=True)(torch.zeros(1, 3), torch.tensor([3]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"smoothing": 1.1}, "smoothing"),
        ({"convention": "torch"}, "convention"),
        ({"focal_factor": "all"}, "focal_factor"),
        ({"reduction": "avg"}, "reduction"),
    ],
)
def test_options_are_checked(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"FocalLabelSmoothingLoss: expected {says}"):
        FocalLabelSmoothingLoss(**options)
    with pytest.raises(ValueError, match=f"focal_label_smoothing_loss: expected {says}"):
        focal_label_smoothing_loss(torch.zeros(1, 2), torch.tensor([0]), **options)


def test_float32_keeps_its_digits_for_sharp_predictions() -> None:
    """Against float64 over the whole range of confidence; 1 - p is never formed from p."""
    logits = torch.linspace(-30.0, 30.0, 121)
    logits = torch.stack([logits, torch.zeros_like(logits)], 1)
    target = torch.zeros(121, dtype=torch.long)
    for gamma in (0.5, 1.0, 2.0):
        got = focal_loss(logits, target, gamma=gamma, reduction="none").double()
        want = focal_loss(logits.double(), target, gamma=gamma, reduction="none")
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
