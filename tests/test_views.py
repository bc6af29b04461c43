"""Several views of one batch: which subsets they hold, and that one call is as many calls as there are views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mmrobust import FusionClassifierOutput, VariationalFusionClassifier, all_presence_patterns, presence_views

SIZES = {"z": 3, "s": 4, "a": 5}  # "s" is a sequence
B, T, V = 7, 4, 6
NAN = float("nan")
presences = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestPresenceViews:
    @pytest.mark.parametrize("modalities", [1, 2, 3, 5])
    @pytest.mark.parametrize("more", [0, 1, 1000])
    def test_all_subsets_come_in_order_and_draw_nothing(self, modalities: int, more: int) -> None:
        state = torch.get_rng_state()
        views = presence_views(torch.ones(2, modalities, dtype=torch.bool), 2**modalities - 2 + more)
        assert torch.equal(views[:, 0], all_presence_patterns(modalities))
        assert torch.equal(views[:, 1], views[:, 0])
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(("modalities", "count"), [(3, 0), (3, 4), (5, 7), (16, 3)])
    def test_drawn_ones_differ_and_are_those_of_every_sample(self, modalities: int, count: int) -> None:
        views = presence_views(torch.ones(4, modalities, dtype=torch.bool), count, generator=generator())
        assert views.shape == (1 + count, 4, modalities)
        assert views[0].all()
        assert torch.equal(views, views[:, :1].expand_as(views))
        patterns = {tuple(view) for view in views[:, 0].tolist()}
        assert len(patterns) == 1 + count
        assert all(any(pattern) for pattern in patterns)

    def test_every_subset_is_equally_likely(self) -> None:
        source, present = generator(), torch.ones(1, 3, dtype=torch.bool)
        codes = torch.stack([presence_views(present, 2, generator=source)[1:, 0] for _ in range(3000)]).long()
        codes = (codes * torch.tensor([4, 2, 1])).sum(-1)
        for place in codes.unbind(1):
            assert stats.chisquare(torch.bincount(place, minlength=7)[1:].numpy()).pvalue > 1e-4
        assert (codes[:, 0] != codes[:, 1]).all()

    @settings(max_examples=40)
    @given(rows=presences, count=st.integers(0, 7), seed=st.integers(0, 9))
    def test_never_resurrects_and_never_takes_the_last(self, rows: list[list[bool]], count: int, seed: int) -> None:
        present = torch.tensor(rows)
        views = presence_views(present, count, generator=generator(seed))
        assert torch.equal(views[0], present)
        assert not (views & ~present).any()
        assert torch.equal(views.any(-1), present.any(-1).expand(len(views), -1))

    def test_the_generator_decides(self) -> None:
        present, state = torch.ones(2, 5, dtype=torch.int64), torch.get_rng_state()
        first, second, other = (presence_views(present, 4, generator=generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(3)
        drawn = presence_views(present, 4)
        torch.manual_seed(3)
        assert torch.equal(presence_views(present, 4), drawn)

    def test_more_modalities_than_subsets_can_be_listed(self) -> None:
        with pytest.raises(
            ValueError, match=r"presence_views: expected the modalities of present in \[1, 16\], got 17"
        ):
            presence_views(torch.ones(2, 17, dtype=torch.bool), 3)


def batch(count: int = B, seed: int = 0) -> dict[str, Tensor]:
    source = generator(seed)
    shapes = {name: (count, T, size) if name == "s" else (count, size) for name, size in SIZES.items()}
    return {name: torch.randn(shape, generator=source, dtype=torch.float64) for name, shape in shapes.items()}


def masks(count: int = B) -> dict[str, Tensor]:
    mask = torch.rand(count, T, generator=generator(7)) < 0.7
    mask[1:2] = False  # an empty sequence is absent, whatever presence says
    return {"s": mask}


def looks(count: int = B, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Presence ``(B, M)`` and views ``(V, B, M)``, of which some keep nothing, and some what is not there."""
    present = torch.rand(count, 3, generator=generator(seed + 1)) < 0.8
    views = torch.rand(V, count, 3, generator=generator(seed + 2)) < 0.5
    views[0], views[1, :2] = True, False
    return present, views


def build(**options: Any) -> VariationalFusionClassifier:
    """Build a model whose stds and weights are far from their special initial values."""
    torch.manual_seed(0)
    model = VariationalFusionClassifier(
        SIZES, 8, **{"num_classes": 3, "num_values": 2, "num_heads": 2, "sequences": ["s"], **options}
    ).double()
    if model.quality is not None:
        model.fit_quality(batch(60, 5), teach=model.freeze_quality)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


OPTIONS = [
    {},
    {"attention": "per_modality", "fusion": "mean"},
    {"attention": "none", "fusion": "gated", "per_dimension": True, "prior_expert": True},
    {"weighting": "softmax_inverse_std", "num_values": 0},
    {"quality": "scale", "num_classes": None},
    {"quality": "replace", "freeze_quality": True, "attention": "none"},
]
ANY = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())) or "default")


def compare(got: FusionClassifierOutput, want: list[FusionClassifierOutput]) -> None:
    """Every field but the auxiliary loss holds, view by view, what the separate calls gave."""
    for name in got._fields:
        parts = [getattr(one, name) for one in want]
        if name == "aux_loss":
            continue
        assert (getattr(got, name) is None) == (parts[0] is None), name
        if parts[0] is not None:
            torch.testing.assert_close(getattr(got, name), torch.stack(parts), rtol=1e-12, atol=1e-12, msg=name)


@ANY
def test_one_call_is_as_many_as_there_are_views(options: dict[str, Any]) -> None:
    """Logits, values, weights, means, stds and presence; whatever each view leaves out is nothing known in it."""
    model, x, mask = build(**options).eval(), batch(), masks()
    present, views = looks()
    separate = [model(x, present & view, mask) for view in views]
    compare(model(x, present, mask, views=views), separate)
    compare(model(x, present.int(), mask, views=views.int()), separate)
    assert len({tuple(one.weights.flatten().tolist()) for one in separate}) == V, "the views are all alike"
    assert separate[0].std.std() > 0.01


@ANY
def test_gradients_are_those_of_all_calls_together(options: dict[str, Any]) -> None:
    model, mask, (present, views) = build(**options).eval(), masks(), looks()
    found = []
    for together in (True, False):
        x = {name: value.requires_grad_() for name, value in batch().items()}
        model.zero_grad()
        if together:
            outputs = [model(x, present, mask, views=views).features]
        else:
            outputs = [model(x, present & view, mask).features for view in views]
        sum(out.square().sum() for out in outputs).backward()
        leaves = {**x, **dict(model.named_parameters())}
        found.append({name: torch.zeros_like(v) if v.grad is None else v.grad.clone() for name, v in leaves.items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-9, atol=1e-10, msg=name)
    assert all(found[0][name].any() for name in SIZES)


@ANY
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_nan_in_what_no_view_keeps_reaches_nothing(options: dict[str, Any], training: bool) -> None:
    """Present, but in no view: neither outputs nor gradients know of it."""
    model, mask = build(**options).train(training), masks()
    present, views = looks()
    views[:, :, 2] &= torch.arange(B) % 2 == 0
    kept = views.any(0) & present
    there = {"z": kept[:, :1], "s": (kept[:, 1:2] & mask["s"]).unsqueeze(-1), "a": kept[:, 2:]}
    assert any((present & ~kept)[:, m].any() for m in range(3))
    found = []
    for fill in (0.0, NAN):
        x = {name: torch.where(there[name], value, fill).requires_grad_() for name, value in batch().items()}
        model.zero_grad()
        torch.manual_seed(0)
        out = model(x, present, mask, {name: value.detach() for name, value in x.items()}, views=views)
        (out.features.square().sum() + out.aux_loss).backward()
        parameters = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
        found.append([*(part for part in out if part is not None), *(v.grad for v in x.values()), *parameters])
        for name, value in x.items():
            assert (value.grad[~there[name].expand_as(value)] == 0).all(), name
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)
        assert clean.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"contrastive_weight": 0.3, "free_bits": 0.1},
        {"fusion": "gated", "classify_from": "sample"},
        {"quality": "replace", "quality_weight": 0.7},
        {"reconstruct_from": "fused"},
    ],
    ids=["contrastive", "sample", "quality", "fused"],
)
def test_the_auxiliary_loss_is_that_of_the_first_view(options: dict[str, Any]) -> None:
    """In training, with the same noise: the other views add nothing to it."""
    model, x, mask, (present, views) = build(**options), batch(), masks(), looks()
    if "reconstruct_from" not in options:  # there what the first view lacks would still be a target
        views[0, :, 0] = torch.arange(B) % 2 == 0
    some = (torch.arange(B) % 3 == 0).double()
    targets = {name: value + torch.einsum("b,b...->b...", some, torch.ones_like(value)) for name, value in x.items()}
    torch.manual_seed(1)
    want = model(x, present & views[0], mask, targets).aux_loss
    for others in (views, views[:1], views[[0, 3]]):
        torch.manual_seed(1)
        # What the first view lacks is encoded for the others, but draws no other noise for what it has.
        torch.testing.assert_close(model(x, present, mask, targets, views=others).aux_loss, want, rtol=1e-12, atol=0.0)
    assert want > 0.01
    assert model.eval()(x, present, mask, targets, views=views).aux_loss == 0


def test_what_the_first_view_lacks_is_rebuilt_from_the_fused_sample() -> None:
    """As with modality dropout: what is present is a target of reconstruct_from="fused", whatever the views keep."""
    x, present = batch(), torch.ones(B, 3, dtype=torch.bool)
    views = present.expand(1, B, 3).clone()
    views[..., 2] = False
    for source, moves in (("own", False), ("fused", True)):
        model, found = build(reconstruct_from=source), []
        for shift in (0.0, 5.0):
            torch.manual_seed(0)
            found.append(model(x, present, None, {"a": x["a"] + shift}, views=views).aux_loss)
        assert (found[1] > found[0] + 0.01) == moves


def test_views_take_the_place_of_modality_dropout() -> None:
    model, x, (present, views) = build(modality_dropout=1.0), batch(), looks()
    assert torch.equal(model(x, present, views=views).present, views & present)
    assert not torch.equal(model(x, present).present, present)
    absent = model({name: x[name] for name in ("z", "s")}, present, views=views).present
    assert torch.equal(absent[..., :2], (views & present)[..., :2]) and not absent[..., 2].any()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_small_batches(count: int, training: bool) -> None:
    for options in OPTIONS:
        model, x, (present, views) = build(**options).train(training), batch(count), looks(count)
        out = model(x, present, masks(count), views=views)
        for part in out:
            assert part is None or not part.dim() or part.shape[:2] == (V, count)
            assert part is None or part.isfinite().all()
        (out.features.sum() + out.aux_loss).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_every_modality_is_encoded_once() -> None:
    model, calls = build(), []
    for encoder in model.encoders:
        encoder.register_forward_hook(lambda *_: calls.append(1))
    present, views = looks()
    loss = F.cross_entropy(model(batch(), present, views=views).logits.flatten(0, 1), torch.arange(V * B) % 3)
    loss.backward()
    assert len(calls) == 3


def test_zero_filling_knows_no_views() -> None:
    model, (present, views) = build(absence="zero_fill", attention="none"), looks()
    with pytest.raises(ValueError, match="VariationalFusionClassifier: expected views=None with absence='zero_fill'"):
        model(batch(), present, views=views)
