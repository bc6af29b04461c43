"""Where variational losses went wrong before: reductions, order, broadcasting, overflow, absence, resumed epochs."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mmrobust.losses import VariationalLoss, cross_modal_kl, gaussian_kl, reconstruction_loss
from tests.references import losses as reference

B, M, H = 4, 3, 5


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _gaussians(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return _normal(B, M, H, seed=seed), _normal(B, M, H, seed=seed + 1)


def _normals(mu: torch.Tensor, logvar: torch.Tensor) -> Normal:
    return Normal(mu, (0.5 * logvar).exp())


# KL --------------------------------------------------------------------------------------------------------------


def test_kl_to_the_prior_is_torchs() -> None:
    mu, logvar = _gaussians()
    want = kl_divergence(_normals(mu, logvar), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), want.sum(-1).mean(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(gaussian_kl(mu, logvar, latent_reduction="mean"), want.mean(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("shape", [(B, H), (B, M, H), (B, M, 2, H)])
def test_kl_counts_present_rows_only(shape: tuple[int, ...]) -> None:
    mu, logvar = _normal(*shape), _normal(*shape, seed=1)
    present = _normal(*shape[:-1], seed=2) > 0
    want = reference.gaussian_kl(mu.numpy(), logvar.numpy(), present.numpy())
    assert math.isclose(gaussian_kl(mu, logvar, present).item(), want, rel_tol=1e-12)
    assert not math.isclose(gaussian_kl(mu, logvar).item(), want, rel_tol=1e-3)


def test_cross_kl_order() -> None:
    """Published: the earlier modality against the later. Symmetric: no order."""
    mu, logvar = _gaussians()
    a, b = (_normals(mu[:, m], logvar[:, m]) for m in (0, 1))
    there, back = kl_divergence(a, b).sum(-1).mean(), kl_divergence(b, a).sum(-1).mean()
    two, swapped = (mu[:, :2], logvar[:, :2]), (mu[:, [1, 0]], logvar[:, [1, 0]])
    torch.testing.assert_close(cross_modal_kl(*two, symmetric=False), there, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(cross_modal_kl(*swapped, symmetric=False), back, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(cross_modal_kl(*two), (there + back) / 2, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(cross_modal_kl(*swapped), (there + back) / 2, rtol=1e-12, atol=0.0)
    assert abs(there - back) > 0.1


def test_cross_kl_averages_the_pairs_that_exist() -> None:
    mu, logvar = _gaussians()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    rows = [(0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 0, 2)]
    values = [kl_divergence(_normals(mu[b, i], logvar[b, i]), _normals(mu[b, j], logvar[b, j])) for b, i, j in rows]
    want = torch.stack(values).sum(-1).mean()
    torch.testing.assert_close(cross_modal_kl(mu, logvar, present, symmetric=False), want, rtol=1e-12, atol=0.0)


def test_one_modality_has_no_pairs() -> None:
    mu = _normal(B, 1, H).requires_grad_()
    loss = cross_modal_kl(mu, torch.zeros(B, 1, H))
    loss.backward()
    assert loss == 0
    assert (mu.grad == 0).all()


def test_equal_gaussians_cost_nothing() -> None:
    """Exactly 0 in float32, also at large scales, and never below 0 nearby."""
    mu, logvar = (x[:, :1].float().expand(B, M, H) for x in _gaussians())
    assert cross_modal_kl(mu * 1e3, logvar * 8) == 0
    assert gaussian_kl(torch.zeros(B, H), torch.zeros(B, H)) == 0
    near = torch.linspace(-1e-2, 1e-2, 2001).unsqueeze(1)
    wide = 0.5 * (torch.expm1(near.double()) - near.double())
    assert gaussian_kl(torch.zeros_like(near), near) >= 0
    torch.testing.assert_close(gaussian_kl(torch.zeros_like(near), near).double(), wide.mean(), rtol=1e-4, atol=0.0)


def test_free_bits() -> None:
    """The floor acts per row and dimension: below it no gradient, above it the KL itself."""
    mu = torch.tensor([[0.1, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = gaussian_kl(mu, torch.zeros(1, 2, dtype=torch.float64), free_bits=0.5)
    loss.backward()
    assert math.isclose(loss.item(), 0.5 + 2.0)
    assert mu.grad.tolist() == [[0.0, 2.0]]
    nobody = torch.tensor([False])
    assert gaussian_kl(mu, torch.zeros_like(mu), nobody, free_bits=0.5) == 0


@pytest.mark.parametrize("size", [1e4, 200.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_variances(size: float, dtype: torch.dtype) -> None:
    """Exponentials overflow float32 at 88.7; value and gradient stay finite and still point home."""
    for signs in ([1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [1.0, -1.0, 0.0]):
        logvar = (size * torch.tensor(signs, dtype=dtype)).reshape(1, 3, 1).repeat(2, 1, 2).requires_grad_()
        mu = _normal(2, 3, 2).to(dtype).requires_grad_()
        for loss in (gaussian_kl(mu, logvar), cross_modal_kl(mu, logvar), cross_modal_kl(mu, logvar, symmetric=False)):
            grads = torch.autograd.grad(loss, (mu, logvar))
            assert loss.isfinite()
            assert all(grad.isfinite().all() for grad in grads)
        (grad,) = torch.autograd.grad(gaussian_kl(mu, logvar), logvar)
        assert (grad.sign() == logvar.sign()).all()


def test_two_collapsed_modalities_are_pulled_apart() -> None:
    """Both variances vanish beside a distance between the means: the gradient still widens them."""
    mu = torch.tensor([[[0.0], [1.0]]])
    logvar = torch.full((1, 2, 1), -1e4, requires_grad=True)
    (grad,) = torch.autograd.grad(cross_modal_kl(mu, logvar), logvar)
    assert grad.isfinite().all()
    assert (grad < 0).all()


def test_exponentials_are_exact_for_bounded_encoders() -> None:
    """Log-variances at opposite bounds of [-10, 10]: the published blow-up of 2.4e8, exact; the bend is smooth."""
    mu = torch.zeros(1, 2, 1, dtype=torch.float64)
    logvar = torch.tensor([[[10.0], [-10.0]]], dtype=torch.float64)
    want = 0.5 * (math.exp(20.0) - 1 - 20)
    assert math.isclose(cross_modal_kl(mu, logvar, symmetric=False).item(), want, rel_tol=1e-12)
    x = torch.tensor([[25.0 - 1e-6], [25.0 + 1e-6]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(gaussian_kl(torch.zeros_like(x), x) * 4, x)
    torch.testing.assert_close(grad[0], grad[1], rtol=1e-5, atol=0.0)
    assert math.isclose(grad[0].item(), math.exp(25.0), rel_tol=1e-5)


# Reconstruction --------------------------------------------------------------------------------------------------


def test_a_vector_never_meets_a_sequence() -> None:
    """(B, D) against (B, T, D) with T == B broadcast silently and trained on nonsense."""
    for prediction, target in (((B, H), (B, B, H)), ((B, 1, H), (B, B, H)), ((B, H), (1, H)), ((B, H), (B, 1))):
        with pytest.raises(ValueError, match=r"reconstruction_loss: expected target of the shape of prediction"):
            reconstruction_loss(torch.zeros(prediction), torch.zeros(target))
    mu = torch.zeros(B, 1, H)
    with pytest.raises(ValueError, match=r"VariationalLoss: expected targets\[0\] of the shape of reconstructions"):
        VariationalLoss()(mu, mu, [torch.zeros(B, H)], [torch.zeros(B, B, H)])


def test_reconstruction_of_everything_is_mse() -> None:
    prediction, target = _normal(B, 7, H), _normal(B, 7, H, seed=1)
    mse = torch.nn.functional.mse_loss(prediction, target)
    torch.testing.assert_close(reconstruction_loss(prediction, target, feature_reduction="mean"), mse)
    torch.testing.assert_close(reconstruction_loss(prediction, target), mse * H)


def test_denoising_counts_hidden_entries_only() -> None:
    """A mask over entries: mean over them; sum divides by the rows that hid anything."""
    prediction, target = torch.zeros(3, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    hidden = torch.tensor([[True, False], [True, True], [False, False]])
    assert reconstruction_loss(prediction, target, hidden, feature_reduction="mean") == (1 + 9 + 16) / 3
    assert reconstruction_loss(prediction, target, hidden, feature_reduction="sum") == (1 + 9 + 16) / 2


def test_steps_without_padding() -> None:
    """Appended padding, whatever stands there, changes nothing."""
    prediction, target = _normal(2, 3, H), _normal(2, 3, H, seed=1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    want = torch.cat([(prediction - target)[0, :2], (prediction - target)[1, :1]]).square().mean()
    target[~mask] = float("nan")
    padded = torch.nn.functional.pad(target, (0, 0, 0, 2), value=float("inf"))
    more = torch.nn.functional.pad(prediction, (0, 0, 0, 2))
    longer = torch.nn.functional.pad(mask, (0, 2))
    got = reconstruction_loss(more, padded, longer, feature_reduction="mean")
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0.0)


def test_the_target_is_detached() -> None:
    """Otherwise an encoder makes its features easy to reconstruct."""
    prediction, target = (x.requires_grad_() for x in (_normal(B, H), _normal(B, H, seed=1)))
    reconstruction_loss(prediction, target).backward()
    assert target.grad is None
    assert prediction.grad.abs().max() > 0


def test_half_precision_squares_in_float32() -> None:
    """300 squared does not fit into float16."""
    prediction = torch.full((2, 4), 300.0, dtype=torch.float16, requires_grad=True)
    loss = reconstruction_loss(prediction, torch.zeros_like(prediction), feature_reduction="mean")
    loss.backward()
    assert loss == 90000.0
    assert loss.dtype == torch.float32
    assert prediction.grad.isfinite().all()


# The sum ---------------------------------------------------------------------------------------------------------


def _parts(seed: int = 0):
    mu, logvar = _gaussians(seed)
    reconstructions = [_normal(B, 7, seed=seed + 2), _normal(B, 4, 6, seed=seed + 3), _normal(B, 2, seed=seed + 4)]
    targets = [_normal(*x.shape, seed=seed + 5 + i) for i, x in enumerate(reconstructions)]
    return mu, logvar, reconstructions, targets


def test_the_published_sum_can_be_rebuilt() -> None:
    """KL summed over H, error averaged over D, cross KL averaged and one-directional, each over three."""
    mu, logvar, reconstructions, targets = _parts()
    loss = VariationalLoss(latent_reduction="sum", cross_reduction="mean", symmetric=False)
    kl = sum(-0.5 * (1 + logvar[:, m] - mu[:, m] ** 2 - logvar[:, m].exp()).sum(1).mean() for m in range(3))
    mse = sum(torch.nn.functional.mse_loss(x, y) for x, y in zip(reconstructions, targets, strict=True))
    cross = sum(
        kl_divergence(_normals(mu[:, i], logvar[:, i]), _normals(mu[:, j], logvar[:, j])).mean()
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    got = loss(mu, logvar, reconstructions, targets)
    torch.testing.assert_close(got.total, 0.01 * kl / 3 + 0.1 * mse / 3 + 0.01 * cross / 3, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_are_consistent(reduction: str) -> None:
    """With the same reduction, the balance of KL and error does not depend on H and D.

    Every latent dimension and every feature is the same, so "mean" cannot depend on how many there are, and "sum"
    scales both parts alike. The published mixture (sum beside mean) shifts by a factor of H and freezes the stds.
    """

    def ratio(width: int) -> float:
        mu = torch.full((2, 2, width), 0.7, dtype=torch.float64)
        features = [torch.full((2, width), 0.3, dtype=torch.float64)] * 2
        loss = VariationalLoss(1.0, 1.0, 1.0, latent_reduction=reduction, feature_reduction=reduction)
        parts = loss(mu, torch.zeros_like(mu), features, [torch.zeros_like(x) for x in features])
        return (parts.kl / parts.reconstruction).item()

    assert math.isclose(ratio(1), ratio(128), rel_tol=1e-12)


def test_default_reductions_agree() -> None:
    loss = VariationalLoss()
    assert loss.latent_reduction == loss.feature_reduction == loss.cross_reduction
    assert VariationalLoss(latent_reduction="sum").cross_reduction == "sum"


def test_the_std_can_be_learned() -> None:
    """The optimal std of a decoder that needs the latent is well below 1; with the published weights it is not.

    A linear decoder x = A z with noise z: the error grows by std^2 per latent dimension, the KL pulls to 1.
    """

    def optimum(**options: str) -> float:
        width = 64
        logvar = torch.zeros(1, 1, width, requires_grad=True)
        loss = VariationalLoss(**options)
        optimizer = torch.optim.Adam([logvar], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            parts = loss(torch.zeros(1, 1, width), logvar, [(0.5 * logvar[:, 0]).exp()], [torch.zeros(1, width)])
            parts.total.backward()
            optimizer.step()
        return (0.5 * logvar).exp().mean().item()

    assert optimum() < 0.3
    assert optimum(latent_reduction="sum") > 0.8


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e38])
def test_absence_never_reaches_value_or_gradient(fill: float) -> None:
    mu, logvar, reconstructions, targets = _parts()
    present = torch.tensor([[True, False, True], [False, False, True], [True, True, True], [False, False, False]])
    known = torch.tensor([[True, True, False], [True, False, False], [True, True, False], [False, False, False]])
    steps = torch.tensor([[True, True, False, False]]).expand(B, 4)
    masks = [None, steps, None]

    def run(value: float):
        gone = [~known[:, 0, None], ~(known[:, 1, None] & steps)[..., None], ~known[:, 2, None]]
        leaves = [torch.where(present[..., None], x, value).requires_grad_() for x in (mu, logvar)]
        predictions = [torch.where(g, value, x).requires_grad_() for g, x in zip(gone, reconstructions, strict=True)]
        wanted = [torch.where(g, value, x) for g, x in zip(gone, targets, strict=True)]
        loss = VariationalLoss(1.0, 1.0, 1.0)
        parts = loss(*leaves, predictions, wanted, present, target_present=known, masks=masks)
        return parts, torch.autograd.grad(parts.total, [*leaves, *predictions])

    clean, clean_grads = run(0.0)
    parts, grads = run(fill)
    assert all(torch.equal(a, b) for a, b in zip(parts, clean, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, clean_grads, strict=True))
    assert (grads[0][~present] == 0).all()
    want = reference.variational_loss(
        mu.numpy(), logvar.numpy(), [x.numpy() for x in reconstructions], [x.numpy() for x in targets],
        present.numpy(), target_present=known.numpy(), masks=[None, steps.numpy(), None],
        kl_weight=1.0, reconstruction_weight=1.0, cross_kl_weight=1.0,
    )  # fmt: skip
    np.testing.assert_allclose([x.item() for x in parts], want, rtol=1e-12)


def test_a_modality_without_anything_to_count_leaves_the_mean() -> None:
    """Neither a modality that is not reconstructed nor one that nobody has halves the error of the others."""
    mu = torch.zeros(2, 3, 4)
    ones, zeros = torch.ones(2, 5), torch.zeros(2, 5)
    present = torch.tensor([[True, True, False], [True, True, False]])
    parts = VariationalLoss()(mu, mu, [ones, None, ones], [zeros, None, zeros], present)
    assert parts.reconstruction == 1.0
    parts = VariationalLoss()(mu, mu, [ones, ones, ones], [zeros, None, zeros], present)
    assert parts.reconstruction == 1.0


def test_denoising_targets_of_absent_inputs() -> None:
    """What was taken from the input can still be a target: target_present replaces present for the errors alone."""
    mu, logvar, reconstructions, targets = _parts()
    present = torch.tensor([[True, False, False]]).expand(B, 3)
    loss = VariationalLoss()
    masked = loss(mu, logvar, reconstructions, targets, present)
    denoising = loss(mu, logvar, reconstructions, targets, present, target_present=torch.ones(B, 3, dtype=torch.bool))
    assert torch.equal(masked.kl, denoising.kl)
    assert torch.equal(masked.reconstruction, reconstruction_loss(reconstructions[0], targets[0],
                                                                  feature_reduction="mean"))  # fmt: skip
    assert denoising.reconstruction != masked.reconstruction


def test_nothing_present_is_zero_and_attached() -> None:
    for batch in (0, 2):
        mu = torch.full((batch, 2, 3), float("nan"), requires_grad=True)
        prediction = torch.full((batch, 4), float("nan"), requires_grad=True)
        nobody = torch.zeros(batch, 2, dtype=torch.bool)
        loss = VariationalLoss(free_bits=0.1)
        parts = loss(mu, mu, [prediction, None], [torch.zeros(batch, 4), None], nobody)
        assert [x.item() for x in parts] == [0.0] * 4
        parts.total.backward()
        assert (mu.grad == 0).all()
        assert (prediction.grad == 0).all()


def test_warm_up_scales_the_kl_terms_only() -> None:
    mu, logvar, reconstructions, targets = _parts()
    loss = VariationalLoss(0.5, 2.0, 0.25, warmup_epochs=4, ramp_epochs=4)
    for epoch, beta in ((0, 0.0), (3, 0.0), (4, 0.0), (5, 0.25), (6, 0.5), (8, 1.0), (100, 1.0)):
        loss.set_epoch(epoch)
        parts = loss(mu, logvar, reconstructions, targets)
        want = beta * (0.5 * parts.kl + 0.25 * parts.cross_kl) + 2.0 * parts.reconstruction
        torch.testing.assert_close(parts.total, want, rtol=1e-12, atol=0.0)


def test_a_resumed_run_does_not_warm_up_again() -> None:
    loss = VariationalLoss(warmup_epochs=10)
    loss.set_epoch(12)
    resumed = VariationalLoss(warmup_epochs=10)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    inputs = _parts()
    assert torch.equal(resumed(*inputs).total, loss(*inputs).total)
    assert resumed(*inputs).total > VariationalLoss(warmup_epochs=10)(*inputs).total


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mu": torch.zeros(B, H)}, r"VariationalLoss: expected mu of shape \(B, M, H\), got \(4, 5\)"),
        ({"logvar": torch.zeros(B, M, 1)}, r"VariationalLoss: expected logvar of the shape of mu \(4, 3, 5\)"),
        ({"present": torch.ones(B, dtype=torch.bool)}, r"VariationalLoss: expected present .*\(4, 3\), got \(4,\)"),
        ({"target_present": torch.ones(M, B, dtype=torch.bool)}, r"expected target_present .*\(4, 3\), got \(3, 4\)"),
        ({"targets": [None]}, r"VariationalLoss: expected targets of length M = 3, got 1"),
        ({"masks": [None]}, r"VariationalLoss: expected masks of length M = 3, got 1"),
        (
            {"reconstructions": [torch.zeros(2, 7), None, None], "targets": [torch.zeros(2, 7), None, None]},
            r"VariationalLoss: expected reconstructions\[0\] of shape .* with B = 4, got \(2, 7\)",
        ),
        ({"masks": [torch.ones(B, 3), None, None]}, r"VariationalLoss: expected masks\[0\] to be a bool"),
    ],
)
def test_wrong_inputs_name_the_argument(change: dict, says: str) -> None:
    mu, logvar, reconstructions, targets = _parts()
    inputs = {"mu": mu, "logvar": logvar, "reconstructions": reconstructions, "targets": targets}
    with pytest.raises((ValueError, TypeError), match=says):
        VariationalLoss()(**{**inputs, **change})


def test_reconstruction_of_many_features_keeps_its_digits() -> None:
    """Millions of squares in one float32 accumulator would lose four digits."""
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 1000, 5000)
    exact = reconstruction_loss(prediction.double(), target.double())
    assert abs(reconstruction_loss(prediction, target).double() / exact - 1) < 1e-6
