"""Assembled models beyond the contracts: the training loss, absence by name, published behaviour, resumed runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrobust import AttentionFusionClassifier, FusionClassifierOutput, VariationalFusionClassifier
from tests.contract import make
from tests.rows.models import ROWS

SIZES = {"z": 3, "a": 4, "m": 5}  # not in alphabetical order
B, H = 6, 8


def _batch(batch: int = B) -> dict[str, Tensor]:
    return {name: torch.randn(batch, size) for name, size in SIZES.items()}


def _variational(**options: Any) -> VariationalFusionClassifier:
    torch.manual_seed(0)
    return VariationalFusionClassifier(SIZES, H, **{"num_classes": 3, "num_values": 1, **options})


def _attention(**options: Any) -> AttentionFusionClassifier:
    torch.manual_seed(0)
    return AttentionFusionClassifier(SIZES, H, **{"num_classes": 3, "num_values": 1, **options})


BOTH = pytest.mark.parametrize("build", [_attention, _variational], ids=["attention", "variational"])


def _same(got: FusionClassifierOutput, want: FusionClassifierOutput) -> None:
    for name, a, b in zip(got._fields, got, want, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name


@BOTH
def test_output_order_is_fixed(build: Any) -> None:
    assert FusionClassifierOutput._fields[:4] == ("features", "logits", "values", "aux_loss")
    out = build().eval()(_batch())
    assert out.features.shape == (B, H)
    assert out.logits.shape == (B, 3)
    assert out.values.shape == (B, 1)
    assert out.aux_loss.shape == ()
    assert out.weights.shape == (B, 3)
    assert out.present.dtype == torch.bool


@BOTH
def test_heads_are_optional(build: Any) -> None:
    assert build(num_values=0)(_batch()).values is None
    assert build(num_classes=None)(_batch()).logits is None


@BOTH
def test_modalities_keep_the_order_of_the_constructor(build: Any) -> None:
    """The order of the inputs does not matter; that of the constructor is the order of present and weights."""
    model, batch = build().eval(), _batch()
    assert model.modalities == ("z", "a", "m")
    present = torch.rand(B, 3) < 0.6
    out = model(batch, present)
    _same(model({name: batch[name] for name in ("m", "z", "a")}, present), out)
    assert torch.equal(out.present, present)
    assert torch.equal(out.weights > 0, present)


@BOTH
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_missing_name_is_an_absent_modality(build: Any, training: bool) -> None:
    model, batch = build().train(training), _batch()
    present = torch.tensor([True, False, True]).expand(B, 3)
    torch.manual_seed(0)
    want = model({**batch, "a": torch.full((B, 4), float("nan"))}, present)
    torch.manual_seed(0)
    got = model({"z": batch["z"], "m": batch["m"]})
    _same(got, want)
    assert not got.present[:, 1].any()
    assert (got.weights[:, 1] == 0).all()


@BOTH
def test_one_modality_is_enough(build: Any) -> None:
    kind = type(build())
    model = kind({"only": 4}, H, num_classes=2, modality_dropout=0.9)
    out = model({"only": torch.randn(B, 4)})
    assert out.present.all()
    assert torch.equal(out.weights, torch.ones(B, 1))


@BOTH
def test_zero_fill_reads_zeros_as_if_present(build: Any) -> None:
    """The published option: an absent modality is a zero vector with weight; the default leaves it out."""
    batch = _batch()
    present = torch.tensor([True, False, True]).expand(B, 3)
    zeros = {**batch, "a": torch.zeros(B, 4)}
    for absence, equal in (("zero_fill", True), ("exclude", False)):
        model = build(absence=absence).eval()
        assert torch.equal(model(batch, present).logits, model(zeros).logits) == equal
        assert bool((model(batch, present).weights[:, 1] == 0).all()) != equal


@BOTH
def test_modality_dropout_keeps_one_and_stops_in_eval(build: Any) -> None:
    model, batch = build(modality_dropout=1.0, modality_dropout_warmup=2), _batch(64)
    assert model(batch).present.all()
    model.set_epoch(2)
    out = model(batch)
    assert out.present.any(1).all()
    assert not out.present.all(1).any()
    assert torch.equal(out.weights > 0, out.present)
    assert model.eval()(batch).present.all()


def test_classify_from_a_sample_is_noisy_in_training_only() -> None:
    batch = _batch()
    for source, noisy in (("mean", False), ("sample", True)):
        model = _variational(classify_from=source)
        assert torch.equal(model(batch).logits, model(batch).logits) != noisy
        model.eval()
        assert torch.equal(model(batch).logits, model(batch).logits)
    _same(_variational(classify_from="sample").eval()(batch), _variational().eval()(batch))


def test_no_reconstruction_means_no_decoders() -> None:
    model = _variational(reconstruction_weight=0.0)
    assert model.decoders is None
    assert model(_batch()).aux_loss.isfinite()


@pytest.mark.parametrize(
    "options",
    [{}, {"fusion": "gated", "contrastive_weight": 0.1}, {"attention": "none", "per_dimension": True}],
    ids=["default", "gated", "per-dimension"],
)
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    model, batch = _variational(**options), _batch(32)
    out = model(batch)
    (F.cross_entropy(out.logits, torch.arange(32) % 3) + out.values.square().mean() + out.aux_loss).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_absent_modalities_get_no_gradient() -> None:
    """Neither the encoder of what is absent nor its decoder and projection move."""
    model = _variational(contrastive_weight=0.1)
    out = model({"z": torch.randn(B, 3), "m": torch.randn(B, 5)})
    (out.logits.sum() + out.aux_loss).backward()
    for part in (model.encoders[1], model.decoders[1], model.contrastive.heads[1]):
        assert all(p.grad is None or not p.grad.any() for p in part.parameters())
    assert all(p.grad.any() for p in model.encoders[0].layer1.parameters())


@BOTH
def test_sizes_of_a_checkpoint_must_fit(build: Any) -> None:
    other = type(build())({"z": 3, "a": 9, "m": 5}, H, num_classes=3, num_values=1)
    with pytest.raises(RuntimeError, match=r"encoders\.1"):
        other.load_state_dict(build().state_dict())


def test_rows_of_the_contract_build_every_option() -> None:
    """The rows cover both values of the options that change what is computed."""
    assert {make(row).absence for row in ROWS} == {"exclude", "zero_fill"}
    variational = [make(row) for row in ROWS if "Variational" in row.name]
    assert {model.reconstruct_from for model in variational} == {"own", "fused"}
    assert {model.classify_from for model in variational} == {"mean", "sample"}
    assert {model.attention is None for model in variational} == {True, False}
