"""Subspace prototypes: exactness for any basis, what is invariant, how exact float32 is, starts, and rejection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrobust import SubspacePrototypeClassifier, orthonormality_penalty, subspace_residual, subspace_separation
from tests.references import prototypes as reference


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def orthonormal(classes: int, size: int, width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(classes, width, size, seed=seed))[0].mT.contiguous()


FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "orthonormality_penalty": (orthonormality_penalty, reference.orthonormality_penalty),
    "subspace_separation": (subspace_separation, reference.subspace_separation),
}


@pytest.mark.parametrize(("classes", "size", "width"), [(1, 1, 1), (3, 2, 5), (4, 3, 7), (5, 4, 4), (0, 2, 3)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_measures_of_bases(name: str, classes: int, size: int, width: int) -> None:
    """Also of bases that are not orthonormal, and with more basis vectors than features."""
    if not classes and name == "orthonormality_penalty":
        pytest.skip("the mean over no class is not defined")
    function, want = FUNCTIONS[name]
    basis = normal(classes, size, width)
    np.testing.assert_allclose(float(function(basis).detach()), want(basis.numpy()), rtol=1e-10)
    assert torch.autograd.gradcheck(function, basis.requires_grad_())


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize(
    ("batch", "classes", "size", "width"), [(4, 3, 2, 5), (1, 1, 1, 1), (0, 2, 2, 3), (3, 5, 4, 4)]
)
def test_residual_is_exact_for_any_basis(batch: int, classes: int, size: int, width: int, precise: bool) -> None:
    x, basis = normal(batch, width), normal(classes, size, width, seed=1)
    want = reference.subspace_residual(x.numpy(), basis.numpy())
    np.testing.assert_allclose(subspace_residual(x, basis, precise=precise).numpy(), want, rtol=1e-10, atol=1e-12)
    if batch:
        inputs = (x.requires_grad_(), (2 * basis).requires_grad_())
        assert torch.autograd.gradcheck(lambda x, u: subspace_residual(x, u, precise=precise), inputs)


def test_residual_lies_between_zero_and_the_square_of_the_length() -> None:
    x, basis = normal(200, 16, dtype=torch.float32), orthonormal(7, 5, 16).float()
    residual, square = subspace_residual(x, basis), x.square().sum(1, keepdim=True)
    assert (residual >= 0).all()
    assert (residual <= square * (1 + 1e-6)).all()


def test_only_the_span_counts() -> None:
    """Turning an orthonormal basis within its span changes neither residuals nor separation."""
    x, basis = normal(6, 8), orthonormal(3, 4, 8)
    turned = torch.linalg.qr(normal(3, 4, 4, seed=2))[0] @ basis
    torch.testing.assert_close(subspace_residual(x, turned), subspace_residual(x, basis))
    torch.testing.assert_close(subspace_separation(turned), subspace_separation(basis))


def test_exact_bases_are_the_span_of_their_rows() -> None:
    """Any mix of the rows, orthogonal or not, is the same classifier."""
    model = SubspacePrototypeClassifier(8, 3, 2, orthogonality="exact").double()
    x = normal(6, 8)
    before = model(x)
    with torch.no_grad():
        model.weight.copy_(normal(3, 2, 2, seed=3) @ model.weight)
    torch.testing.assert_close(model(x), before)
    assert float(model.orthonormality_penalty().detach()) < 1e-20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_vectors_inside_a_subspace(dtype: torch.dtype) -> None:
    """The true residual is rounding of x alone: within 2e-6 of the square of the length in float32, never negative.

    Half precision is computed in float32; ``precise`` in float64, to 1e-12 beside the rounding of the result.
    """
    basis = orthonormal(5, 8, 256).to(dtype)
    x = (normal(300, 8, seed=1).to(dtype) @ basis[2]).to(dtype)
    square = x.double().square().sum(1)
    want = torch.from_numpy(reference.subspace_residual(x.double().numpy(), basis.double().numpy()))
    for precise, bound in ((False, 2e-6), (True, 1e-12)):
        got = subspace_residual(x, basis, precise=precise)
        assert got.dtype == torch.float32
        assert (got >= 0).all()
        rounding = bound * square.unsqueeze(1) + 1e-7 * want  # the result is float32
        assert ((got.double() - want).abs() <= rounding).all()


def test_precise_residuals_beside_a_subspace() -> None:
    basis = orthonormal(5, 8, 256)
    x = normal(300, 8, seed=1) @ basis[2] + 1e-6 * normal(300, 256, seed=2)
    got = subspace_residual(x.float(), basis.float(), precise=True).double()[:, 2]
    wide = reference.subspace_residual(x.float().double().numpy(), basis.float().double().numpy())[:, 2]
    assert (got - torch.from_numpy(wide)).abs().max() <= 1e-12 * float(x.square().sum(1).max()) + 1e-7 * wide.max()


def test_autocast_does_not_round_residuals() -> None:
    x, basis = normal(50, 64, dtype=torch.float32), orthonormal(3, 4, 64).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = subspace_residual(x, basis)
    assert torch.equal(got, subspace_residual(x, basis))


def test_overlap_is_never_negative() -> None:
    """Of orthogonal subspaces a difference of two equal sums is left."""
    for seed in range(50):
        flat = torch.linalg.qr(normal(128, 80, seed=seed, dtype=torch.float32))[0].mT
        assert float(subspace_separation(flat.reshape(10, 8, 128))) >= 0


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("length", [1e-10, 1e-3, 1e20, 1e30])
def test_only_the_direction_of_unit_rows_counts(length: float, precise: bool) -> None:
    torch.manual_seed(0)
    model = SubspacePrototypeClassifier(16, 3, 2, normalize=True, precise=precise)
    x = normal(5, 16, dtype=torch.float32)
    torch.testing.assert_close(model.residuals(x * length), model.residuals(x), rtol=1e-5, atol=1e-6)
    assert model.residuals(x).dtype == torch.float32


def test_the_classifier_is_precise_on_request() -> None:
    torch.manual_seed(0)
    for normalize in (False, True):
        model = SubspacePrototypeClassifier(256, 5, 8, normalize=normalize, precise=True)
        other = SubspacePrototypeClassifier(256, 5, 8, normalize=normalize)
        other.load_state_dict(model.state_dict())
        x = normal(100, 8, seed=1, dtype=torch.float32) @ model.weight[2].detach()
        wide = x.double() / x.double().norm(dim=1, keepdim=True) if normalize else x.double()
        want = torch.from_numpy(reference.subspace_residual(wide.numpy(), model.weight.detach().double().numpy()))
        error, rough = ((m.residuals(x).detach().double() - want).abs()[:, 2].max() for m in (model, other))
        assert error < 1e-4 * rough


@pytest.mark.parametrize("options", [{}, {"orthogonality": "exact"}])
def test_rows_without_a_direction_are_far_from_every_class(options: dict[str, Any]) -> None:
    """A sample of which nothing is known must not be the surest of all."""
    torch.manual_seed(0)
    model = SubspacePrototypeClassifier(8, 3, 2, normalize=True, **options)
    x = normal(20, 8, dtype=torch.float32)
    x[3] = 0.0
    x.requires_grad_()
    assert torch.equal(model.residuals(x)[3], torch.ones(3))
    model.fit_threshold(x[4:], accept=1.0)
    prediction = model.predict(x)
    assert prediction.classes[3] == -1
    assert (prediction.classes[4:] >= 0).all()
    model(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[3].any()


def test_exact_bases_have_no_penalty() -> None:
    penalty = SubspacePrototypeClassifier(8, 3, 2, orthogonality="exact").orthonormality_penalty()
    assert float(penalty) == 0.0
    assert not penalty.requires_grad


@pytest.mark.parametrize(("classes", "size", "width"), [(3, 2, 6), (4, 3, 8), (10, 8, 16), (1, 5, 5)])
@pytest.mark.parametrize("orthogonality", ["penalty", "exact"])
def test_starts(classes: int, size: int, width: int, orthogonality: Any) -> None:
    """Rows of a class start orthonormal for any sizes, and all classes orthogonal where that is possible."""
    torch.manual_seed(0)
    model = SubspacePrototypeClassifier(width, classes, size, orthogonality=orthogonality)
    assert float(model.orthonormality_penalty().detach()) < 1e-10
    if classes * size <= width:
        assert float(model.separation().detach()) < 1e-6
    else:
        assert 0 < float(model.separation().detach()) < 1


def test_the_penalty_keeps_lengths() -> None:
    """Rows that are normalised first could grow without cost."""
    assert float(orthonormality_penalty(3 * orthonormal(2, 3, 6))) == pytest.approx(3 * 64)


@pytest.mark.parametrize("options", [{}, {"orthogonality": "exact"}, {"normalize": True, "temperature": 0.1}])
def test_it_learns(options: dict[str, Any]) -> None:
    """Three classes that are planes through the origin, which no linear classifier can tell apart."""
    planes = orthonormal(3, 2, 10, seed=4)
    labels = torch.arange(600) % 3
    x = torch.einsum("bk,bkd->bd", normal(600, 2, seed=5), planes[labels]).float()
    x = x + 0.05 * normal(600, 10, seed=6).float()
    torch.manual_seed(0)
    model = SubspacePrototypeClassifier(10, 3, 2, **options)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(model(x), labels) + 0.1 * model.orthonormality_penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(1) == labels).float().mean() > 0.95


class TestRejection:
    x = normal(40, 6, dtype=torch.float32)

    def model(self) -> SubspacePrototypeClassifier:
        torch.manual_seed(0)
        return SubspacePrototypeClassifier(6, 3, 1)

    @pytest.mark.parametrize(("accept", "count"), [(0.95, 38), (0.5, 20), (1.0, 40), (0.01, 1), (0.96, 39)])
    def test_coverage(self, accept: float, count: int) -> None:
        model = self.model()
        threshold = model.fit_threshold(self.x, accept=accept)
        assert torch.equal(threshold, model.threshold)
        assert int((model.predict(self.x).classes >= 0).sum()) == count

    def test_false_rejections_among_rows_classified_rightly(self) -> None:
        model = self.model()
        labels = model(self.x).argmax(1)
        labels[:10] = (labels[:10] + 1) % 3
        model.fit_threshold(self.x, labels, accept=0.9)
        assert int((model.predict(self.x[10:]).classes >= 0).sum()) == 27

    def test_nothing_is_rejected_before(self) -> None:
        model = self.model()
        prediction = model.predict(self.x)
        assert torch.equal(prediction.classes, model(self.x).argmax(1))
        torch.testing.assert_close(prediction.residual, model.residuals(self.x).amin(1))
        assert (model.predict(self.x, threshold=0.0).classes == -1).all()

    def test_the_threshold_is_saved(self) -> None:
        model, other = self.model(), self.model()
        model.fit_threshold(self.x, accept=0.5)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.predict(self.x).classes, model.predict(self.x).classes)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("accept", [0.07, 0.5, 0.55, 0.95, 1.0])
    def test_coverage_holds_in_coarse_dtypes(self, accept: float, dtype: torch.dtype) -> None:
        """A residual that is rounded down on its way into the buffer would reject its own row."""
        for seed in range(20):
            x = normal(100, 6, seed=seed, dtype=torch.float64 if dtype == torch.float32 else torch.float32).to(dtype)
            model = self.model().to(dtype)
            x = x.double() if dtype == torch.float32 else x
            model.fit_threshold(x, accept=accept)
            accepted = int((model.predict(x).classes >= 0).sum())
            assert accepted >= round(accept * 100)
            assert dtype != torch.float32 or accepted == round(accept * 100)

    def test_rows_that_are_not_finite_do_not_count(self) -> None:
        model, x = self.model(), self.x.clone()
        want = model.fit_threshold(x[4:], accept=0.9).clone()
        x[:4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30]).unsqueeze(1)
        assert torch.equal(model.fit_threshold(x, accept=0.9), want)
        assert (model.predict(x).classes[:4] == -1).all()

    def test_a_new_start_forgets_the_threshold(self) -> None:
        model = self.model()
        model.fit_threshold(self.x, accept=0.5)
        model.reset_parameters()
        assert model.threshold.isinf()

    def test_no_row_counts(self) -> None:
        model = self.model()
        assert model.fit_threshold(self.x, torch.full((40,), -1)).isinf()
        with pytest.raises(ValueError, match="with a row at least"):
            model.fit_threshold(self.x[:0])
        with pytest.raises(ValueError, match="accept"):
            model.fit_threshold(self.x, accept=0.0)
        with pytest.raises(TypeError, match="labels"):
            model.fit_threshold(self.x, torch.zeros(40))


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: subspace_residual(torch.ones(2, 3), torch.ones(2, 2, 4)), ValueError, r"basis of shape \(C, K, D\)"),
        (lambda: subspace_residual(torch.ones(3), torch.ones(2, 2, 3)), ValueError, r"x of shape \(B, D\)"),
        (lambda: subspace_residual(torch.ones(2, 3).long(), torch.ones(2, 2, 3)), TypeError, "x to be a floating"),
        (lambda: orthonormality_penalty(torch.ones(2, 3)), ValueError, "orthonormality_penalty: expected basis"),
        (lambda: subspace_separation(torch.ones(2, 2, 3).int()), TypeError, "subspace_separation: expected basis"),
        (lambda: SubspacePrototypeClassifier(3, 2, 4), ValueError, "subspace_dim of at most in_features = 3, got 4"),
    ],
)
def test_wrong_uses(use: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use()
