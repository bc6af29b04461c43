"""The kernels against the dense float64 reference, in Triton's interpreter: masks, tails, layouts and roundings.

The interpreter runs the same source with the layouts of a GPU. It cannot see races, and multiplies TF32 in full; that
operands and weights are rounded first makes no difference to it, and is what is tested.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmrobust._kernels import contrastive, is_interpreted, plans
from tests.kernels.reference import NO_KEY, Pairs, check_row_logsumexp, check_weighted_sums, unit_pairs

pytestmark = pytest.mark.skipif(not is_interpreted(), reason="needs TRITON_INTERPRET=1: make test-triton")

PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


def check(pairs: Pairs) -> None:
    check_row_logsumexp(pairs)
    check_weighted_sums(pairs)


@pytest.mark.parametrize("features", [1, 64])
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 41), (41, 1), (41, 127), (127, 41), (257, 129), (128, 256)])
def test_sizes(rows: int, keys: int, features: int) -> None:
    check(unit_pairs(rows, keys, features))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("features", [7, 16, 64, 128, 200, 512, 1024])
def test_features(features: int, precision: str) -> None:
    check(unit_pairs(41, 70, features, precision=precision))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("features", [64, 128, 300])
def test_layouts_of_smaller_gpus(features: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "processor", lambda _: plans.Processor(1, False))
    check(unit_pairs(70, 70, features, precision=precision))


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_float16(precision: str) -> None:
    check(unit_pairs(41, 70, 64, precision=precision, dtype=torch.float16))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 1.0, 10.0])
def test_temperatures(temperature: float, precision: str) -> None:
    check(unit_pairs(70, 127, 16, temperature, precision))


@pytest.mark.parametrize("temperature", [1e-3, 10.0])
def test_far_and_near_keys(temperature: float) -> None:
    # Keys opposite of their rows, so that every exponential underflows; and keys equal to them.
    u = torch.nn.functional.normalize(torch.randn(41, 8), dim=1)
    check(Pairs(u, -u[:1].expand(70, 8) * torch.linspace(0.9, 1.0, 70)[:, None], temperature))
    check(Pairs(u, u.clone(), temperature))


@pytest.mark.parametrize("skip", [None, -50, -3, 0, 3, 1000])
@pytest.mark.parametrize("masks", [True, False])
def test_skipped_pairs(skip: int | None, masks: bool) -> None:
    check(unit_pairs(70, 127, 16, skip=skip, masks=masks))


def test_without_weights_of_keys() -> None:
    check_weighted_sums(unit_pairs(41, 127, 16), with_keys=False)


@pytest.mark.parametrize("valid", ["query_valid", "key_valid"])
def test_one_mask_only(valid: str) -> None:
    pairs = unit_pairs(41, 127, 16)
    check(replace(pairs, **{valid: None}))


@pytest.mark.parametrize("temperature", [1e-3, 10.0])
def test_nothing_valid(temperature: float) -> None:
    pairs = unit_pairs(41, 70, 16, temperature)
    nothing = replace(pairs, key_valid=torch.zeros(70, dtype=torch.bool), query_valid=torch.zeros(41, dtype=torch.bool))
    assert (nothing.row_logsumexp() == NO_KEY).all()
    check(nothing)
    check(unit_pairs(1, 1, 16, temperature, masks=False, skip=0))


@pytest.mark.parametrize("programs", [2, 1000])
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_shares_of_keys(precision: str, programs: int) -> None:
    pairs = unit_pairs(41, 520, 16, precision=precision, programs=programs)
    layout = plans.plan("row_logsumexp", 16, precision, True)
    assert plans.share(1, 520, layout, programs) < 520
    check(pairs)
    # Whole shares may hold no valid key.
    check(replace(pairs, key_valid=torch.arange(520) < 3))


def test_deterministic() -> None:
    pairs = unit_pairs(70, 300, 64, programs=4)
    a, lse = torch.rand(70), pairs.row_logsumexp()
    assert torch.equal(lse, pairs.row_logsumexp())
    first, second = (contrastive.weighted_sums(pairs.u, pairs.v, pairs.t, a=a, lse_a=lse, programs=4) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_not_contiguous(precision: str) -> None:
    plain = unit_pairs(41, 70, 64, precision=precision)
    strided = replace(plain, u=plain.u.T.contiguous().T, v=plain.v.repeat_interleave(2, 0)[::2])
    assert not strided.u.is_contiguous() and not strided.v.is_contiguous()
    assert torch.equal(plain.row_logsumexp(), strided.row_logsumexp())
    check(replace(strided, key_valid=plain.key_valid.repeat_interleave(2)[::2]))
    check(replace(strided, u=plain.u[:1].expand(41, 64)))


@pytest.mark.parametrize(("rows", "keys"), [(0, 5), (5, 0), (0, 0)])
def test_empty(rows: int, keys: int) -> None:
    check(unit_pairs(rows, keys, 16))


def test_no_features() -> None:
    check(unit_pairs(5, 7, 0))


def test_lost_directions() -> None:
    lost = {"u_lost": (torch.arange(41) % 2) / 2, "v_lost": (torch.arange(70) % 3 == 0) / 2}
    check(unit_pairs(41, 70, 16, **lost))


def test_values_of_invalid_keys_do_not_matter() -> None:
    pairs = unit_pairs(41, 70, 16)
    other = replace(pairs, v=torch.where(pairs.key_valid[:, None], pairs.v, 1e3))
    assert torch.equal(pairs.row_logsumexp(), other.row_logsumexp())
    a, lse = torch.ones(41), pairs.row_logsumexp()
    first, second = (
        contrastive.weighted_sums(x.u, x.v, x.t, a=a, lse_a=lse, key_valid=x.key_valid) for x in (pairs, other)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_nan_is_not_hidden(precision: str) -> None:
    pairs = unit_pairs(41, 70, 16, precision=precision, masks=False)
    for name, index in (("u", 3), ("v", 5)):
        broken = replace(pairs, **{name: getattr(pairs, name).clone()})
        getattr(broken, name)[index, 2] = torch.nan
        lse = broken.row_logsumexp()
        expected = torch.arange(41) == 3 if name == "u" else torch.arange(41) != 5 - pairs.skip
        assert torch.equal(lse.isnan(), expected)
        sums = contrastive.weighted_sums(broken.u, broken.v, broken.t, a=torch.ones(41), lse_a=lse, skip=pairs.skip)
        assert all(x[expected].isnan().any() for x in sums)


def test_every_term_of_the_gradient() -> None:
    """The sums give the derivatives that autograd finds for weighted logsumexps of rows and of keys."""
    pairs = unit_pairs(41, 70, 16, 0.2, skip=2)
    a, b = torch.rand(41), torch.rand(70)
    u, v, t = (x.double().requires_grad_() for x in (pairs.u, pairs.v, pairs.t))
    in_rows, in_keys = pairs.counted()
    s = -(u[:, None] - v).square().sum(-1) / 2 / t
    lse_a = torch.where(in_rows, s, -torch.inf).logsumexp(1)
    lse_b = torch.where(in_keys, s, -torch.inf).logsumexp(0)
    expected = torch.autograd.grad((a * lse_a).sum() + (b * lse_b).sum(), (u, v, t))

    rows = {"a": a, "lse_a": lse_a.detach().float()}
    keys = {"b": b, "lse_b": lse_b.detach().float()}
    sums, totals, energies = contrastive.weighted_sums(
        pairs.u, pairs.v, pairs.t, **rows, **keys, query_valid=pairs.query_valid, key_valid=pairs.key_valid, skip=2
    )
    swapped = {"a": keys["b"], "lse_a": keys["lse_b"], "b": rows["a"], "lse_b": rows["lse_a"]}
    key_sums, key_totals, _ = contrastive.weighted_sums(
        pairs.v, pairs.u, pairs.t, **swapped, query_valid=pairs.key_valid, key_valid=pairs.query_valid, skip=-2
    )
    actual = (
        (sums - totals[:, None] * pairs.u) / pairs.t,
        (key_sums - key_totals[:, None] * pairs.v) / pairs.t,
        -energies.sum() / pairs.t**2,
    )
    for have, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=2e-6)


def bad(name: str, value: object) -> dict[str, object]:
    pairs = unit_pairs(5, 7, 4)
    arguments = {"u": pairs.u, "v": pairs.v, "temperature": pairs.t, "a": torch.ones(5), "lse_a": torch.ones(5)}
    return arguments | {name: value}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("v", torch.ones(7, 3), r"weighted_sums: expected v of shape \(K, D\) = \(any, 4\), got \(7, 3\)"),
        ("a", torch.ones(7), r"weighted_sums: expected a of shape \(N,\) = \(5,\), got \(7,\)"),
        ("key_valid", torch.ones(5, dtype=torch.bool), r"expected key_valid of shape \(N,\) = \(7,\), got \(5,\)"),
        ("precision", "tf16", "expected precision to be one of"),
    ],
)
def test_wrong_arguments(name: str, value: Tensor | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contrastive.weighted_sums(**bad(name, value))
