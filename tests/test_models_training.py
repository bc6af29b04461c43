"""Training of the assembled models: the auxiliary loss, denoising, resumed runs, a small problem."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrobust import VariationalFusionClassifier
from tests.contract import Size, draw, numpy_tree
from tests.references import models as reference
from tests.rows.models import ROWS, fitted
from tests.test_models import BOTH, SIZES, _attention, _batch, _variational


@pytest.mark.parametrize(
    ("label", "options", "given"),
    [
        ("", {"contrastive_weight": 0.2}, {"heads": 2, "contrastive_weight": 0.2}),
        ("[sequences]", {"kl_weight": 0.3, "free_bits": 0.1}, {"kind": "mean", "source": "fused"}),
        ("[sequences]", {"reconstruct_from": "own", "cross_kl_weight": 0.5}, {"kind": "mean"}),
        ("[published]", {"kl_weight": 0.5}, {"mode": "per_modality", "heads": 2, "absence": "zero_fill"}),
        (
            "[sequences]",
            {"fusion": "uncertainty", "reconstruct_from": "own", "quality": "replace", "quality_weight": 0.7},
            {"quality": "replace", "quality_weight": 0.7},
        ),
        ("[views]", {"contrastive_weight": 0.2}, {"heads": 2, "contrastive_weight": 0.2}),
    ],
    ids=["contrastive", "sequences-fused", "sequences-own", "published", "quality", "views"],
)
def test_training_loss_equals_the_reference(label: str, options: dict[str, Any], given: dict[str, Any]) -> None:
    """KL, denoising reconstruction, KL between modalities and contrast, with the very noise that the model drew."""
    row = next(row for row in ROWS if row.name == f"VariationalFusionClassifier{label}")
    inputs = draw(row, Size(batch=5), torch.float64)
    published = label == "[published]"
    named = {"latent_reduction": "sum", "symmetric": False} if published else {}
    weighing = {"weighting": "softmax_inverse_std"} if published else {}
    size = Size()
    torch.manual_seed(1)
    extra = {"weighting": "softmax_inverse_std", "logvar_bound": "clamp", "latent_reduction": "sum"}
    extra |= {"symmetric_cross_kl": False, "absence": "zero_fill", "attention": "per_modality"}
    extra = extra if published else {"fusion": "mean", "attention": "none"} if label == "[sequences]" else {}
    extra |= {"reconstruct_from": "fused"} if given.get("source") else {}
    steps = ("m1",) if label == "[sequences]" else ()
    model = VariationalFusionClassifier(
        {"m0": 3, "m1": 4, "m2": 3}, 6, num_classes=size.classes, num_heads=2, sequences=steps, **{**extra, **options}
    ).double()
    if model.quality is not None:
        fitted(model)
        for parameter in model.quality.parameters():
            torch.nn.init.normal_(parameter)
    torch.manual_seed(2)
    out = model(**inputs)
    torch.manual_seed(2)
    noise = torch.stack([torch.randn(5, 6, dtype=torch.float64) for _ in range(3)], dim=1)
    loss = {k: v for k, v in options.items() if k in {"kl_weight", "cross_kl_weight", "free_bits"}}
    want = (reference.variational_views if label == "[views]" else reference.variational_fusion)(
        {key: value.double().numpy() for key, value in model.state_dict().items()},
        **numpy_tree(inputs),
        noise=noise.numpy(),
        bound="clamp" if published else "soft",
        weighing=weighing,
        loss={**loss, **named, "cross_reduction": "mean"},
        **given,
    )
    assert float(want[3]) > 0.01
    torch.testing.assert_close(out.aux_loss, torch.from_numpy(np.asarray(want[3])), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.features, torch.from_numpy(want[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("contrast", [0.0, 0.1])
def test_auxiliary_loss_is_for_training(contrast: float) -> None:
    model, batch = _variational(contrastive_weight=contrast), _batch()
    assert model(batch).aux_loss > 0
    out = model.eval()(batch)
    assert out.aux_loss == 0
    assert out.aux_loss.dtype == torch.float32
    assert not _attention()(batch).aux_loss.requires_grad


def test_denoising_targets_change_the_auxiliary_loss_only() -> None:
    model, batch = _variational(), _batch()
    torch.manual_seed(0)
    plain = model(batch)
    torch.manual_seed(0)
    other = model(batch, targets={name: x + 1 for name, x in batch.items()})
    assert other.aux_loss > plain.aux_loss
    assert torch.equal(other.logits, plain.logits)
    targets = {name: x.clone().requires_grad_() for name, x in batch.items()}
    model(batch, targets=targets).aux_loss.backward()
    assert all(x.grad is None for x in targets.values())
    with pytest.raises(ValueError, match="VariationalFusionClassifier: expected targets"):
        model(batch, targets={"smell": batch["a"]})
    with pytest.raises(ValueError, match=r"targets\[1\]"):
        model(batch, targets={"a": batch["a"][:, 1:]})


def test_dropped_modalities_are_rebuilt_from_the_fused_sample() -> None:
    """With reconstruct_from="fused" what modality dropout hides is still a target; what was never there is not."""
    batch = _batch(200)
    present = torch.tensor([True, True, False]).expand(200, 3)
    for source, counted in (("own", False), ("fused", True)):
        model = _variational(reconstruct_from=source, modality_dropout=1.0, kl_weight=0.0, cross_kl_weight=0.0)
        moved = {}
        for shift in (0.0, 5.0):
            torch.manual_seed(0)
            out = model(
                batch, present, targets={"z": torch.where(_kept(model, batch, present), 0.0, shift) + batch["z"]}
            )
            moved[shift] = float(out.aux_loss.detach())
        assert (moved[5.0] > moved[0.0] + 0.01) == counted
        torch.manual_seed(0)
        spoilt = model(batch, present, targets={"m": torch.full((200, 5), float("nan"))})
        assert abs(float(spoilt.aux_loss.detach()) - moved[0.0]) < 1e-6


def _kept(model: nn.Module, batch: dict[str, Tensor], present: Tensor) -> Tensor:
    """Return which samples keep "z" under the seed that follows."""
    torch.manual_seed(0)
    kept = model(batch, present).present[:, :1]
    torch.manual_seed(0)
    return kept


@BOTH
def test_resumed_training_is_the_same_training(build: Any) -> None:
    """Four epochs in one go, or two, a checkpoint through a file, and two more: the same parameters to the bit."""
    data, label = _batch(32), torch.arange(32) % 3

    def epochs(model: nn.Module, optimizer: torch.optim.Optimizer, which: range) -> None:
        for epoch in which:
            model.set_epoch(epoch)
            out = model(data)
            optimizer.zero_grad()
            (F.cross_entropy(out.logits, label) + out.aux_loss).backward()
            optimizer.step()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = build(dropout=0.2, modality_dropout=0.5, modality_dropout_warmup=1, modality_dropout_ramp=2)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, optimizer = fresh()
    epochs(model, optimizer, range(4))
    first, optimizer = fresh()
    epochs(first, optimizer, range(2))
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    second, optimizer = fresh()
    second.load_state_dict(saved[0][0])
    optimizer.load_state_dict(saved[0][1])
    torch.set_rng_state(saved[1])
    epochs(second, optimizer, range(2, 4))
    for name, value in model.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


@BOTH
def test_a_small_problem_is_learned_with_half_of_it_missing(build: Any) -> None:
    """Every modality tells the class; training and test each miss half of the entries."""
    torch.manual_seed(0)
    centres = {name: 3 * torch.randn(3, size) for name, size in SIZES.items()}
    label = torch.randint(0, 3, (256,))
    x = {name: centre[label] + 0.5 * torch.randn(256, centre.shape[1]) for name, centre in centres.items()}
    present = torch.rand(256, 3) < 0.5
    present[~present.any(1), 0] = True
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        out = model(
            {name: torch.where(present[:, [m]], x[name], float("nan")) for m, name in enumerate(SIZES)}, present
        )
        optimizer.zero_grad()
        (F.cross_entropy(out.logits, label) + out.aux_loss).backward()
        optimizer.step()
    model.eval()
    assert (model(x, present).logits.argmax(1) == label).float().mean() > 0.95
