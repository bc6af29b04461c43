"""Every option of the contrastive losses against loops in NumPy: values and all gradients, on every way of the code."""

from __future__ import annotations

import pytest
import torch

from mmrobust.losses import info_nce_loss, nt_xent_loss, sup_con_loss
from tests.losses.contrastive_cases import WAYS, B, Case, Tensors, assert_same, case, expected, results, take
from tests.references import contrastive as reference

LABELS = "features labels"
SUP_CON = [
    case("sup_con", LABELS),
    case("sup_con", LABELS, aggregation="in"),
    case("sup_con", LABELS, without_positives="zero"),
    case("sup_con", f"{LABELS} present", without_positives="zero", reduction="sum"),
    case("sup_con", f"{LABELS} present weight", reduction="none"),
    case("sup_con", f"{LABELS} weight", without_positives="zero"),
    case("sup_con", "features labels=ignored present weight", ignore_index=-100),
    case("sup_con", "features labels=ignored", ignore_index=-100, aggregation="in", reduction="sum"),
    case("sup_con", "features labels=several present"),
    case("sup_con", "features labels=several weight", aggregation="in", reduction="none"),
    case("sup_con", "features labels=several excluded"),
    case("sup_con", "features positives"),
    case("sup_con", "features positives present", aggregation="in", without_positives="zero"),
    case("sup_con", f"{LABELS} excluded present"),
    case("sup_con", "features positives excluded present", aggregation="in", reduction="none"),
    case("sup_con", f"{LABELS} keys key_labels"),
    case("sup_con", f"{LABELS} keys key_labels key_present"),
    case("sup_con", f"{LABELS} present keys key_labels", aggregation="in"),
    case(
        "sup_con", "features labels=ignored present weight keys key_labels=key_ignored key_present", ignore_index=-100
    ),
    case("sup_con", "features labels=several keys key_labels=key_several key_present", aggregation="in"),
    case("sup_con", "features positives=wide_positives excluded=wide_excluded present keys key_present"),
    case("sup_con", f"{LABELS} excluded=wide_excluded keys key_labels", aggregation="in", reduction="sum"),
    case("sup_con", f"{LABELS} keys key_labels key_present key_excluded"),
    case("sup_con", f"{LABELS} present weight keys key_labels key_excluded", reduction="none"),
    case("sup_con", f"{LABELS} excluded=wide_excluded keys key_labels key_excluded"),
    case("sup_con", f"{LABELS} present keys key_labels key_excluded", aggregation="in"),
    case("sup_con", "features labels=several keys key_labels=key_several key_present key_excluded"),
    case("sup_con", "features positives=wide_positives keys key_excluded", without_positives="zero"),
]
PAIRS = [
    case("info_nce", "query key"),
    case("info_nce", "query key", symmetric=False),
    case("info_nce", "query key present weight"),
    case("info_nce", "query key present", symmetric=False, reduction="sum"),
    case("info_nce", "query key present weight", reduction="none"),
    case("info_nce", "query key negatives"),
    case("info_nce", "query key present negatives negatives_present", symmetric=False, reduction="none"),
    case("info_nce", "query key present weight negatives negatives_present"),
    case("info_nce", "query key negatives negatives_excluded"),
    case("info_nce", "query key present negatives negatives_present negatives_excluded", reduction="none"),
    case("nt_xent", "z1 z2 present weight negatives negatives_present negatives_excluded"),
    case("nt_xent", "z1 z2"),
    case("nt_xent", "z1 z2 present weight"),
    case("nt_xent", "z1 z2 present", reduction="sum"),
    case("nt_xent", "z1 z2 weight", reduction="none"),
    case("nt_xent", "z1 z2 negatives", reduction="none"),
    case("nt_xent", "z1 z2 present weight negatives negatives_present"),
    case("modality", "features=modalities"),
    case("modality", "features=modalities present=modal_present"),
    case("modality", "features=modalities weight"),
    case("modality", "features=modalities present=modal_present weight"),
    case("modality", "features=modalities present=modal_present", reduction="sum"),
    case("modality", "features=modalities present=modal_present weight", reduction="none"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", SUP_CON + PAIRS, ids=str)
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, case: Case, way: str) -> None:
    take(monkeypatch, way)
    assert_same(results(case, 0.3), expected(case, 0.3))


# Below 1/300 exponentials of scores underflow in float64, and a running maximum takes over.
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [1e-3, 0.02, 10.0])
@pytest.mark.parametrize("case", [SUP_CON[i] for i in (0, 9, 18, 20)] + [PAIRS[i] for i in (2, 7, 8, 13, 15)], ids=str)
def test_temperatures(monkeypatch: pytest.MonkeyPatch, case: Case, temperature: float, way: str) -> None:
    take(monkeypatch, way)
    assert_same(results(case, temperature), expected(case, temperature))


def test_the_cases_hold_every_kind_of_row() -> None:
    """Positives many and none, absent and ignored rows, also among the keys: or the tests above say little."""
    known = {name: x.numpy() for name, x in Tensors().known.items()}
    rows = reference.sup_con_rows(known["features"], known["labels"], present=known["present"])
    assert 0 < rows.counted.sum() < known["present"].sum() < B
    assert (known["ignored"] == -100).any()
    several = reference.sup_con_rows(known["features"], known["several"])
    assert 0 < several.counted.sum() < B
    for name in ("positives", "wide_positives"):
        rows = reference.sup_con_rows(known["features"], positives=known[name])
        assert rows.counted.sum() > 0
    assert known["positives"].diagonal().any()
    assert not known["key_present"].all()
    assert (~known["modal_present"]).sum(0).min() > 0


@pytest.mark.parametrize("way", WAYS)
def test_how_many_rows_count(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    take(monkeypatch, way)
    known = Tensors().known
    for extra in ({}, {"labels": known["several"]}, {"present": known["present"]}, {"without_positives": "zero"}):
        options = {"labels": known["labels"], **extra}
        loss, anchors = sup_con_loss(known["features"], **options, return_anchors=True)
        arrays = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
        want = reference.sup_con_rows(known["features"].numpy(), **arrays)
        assert (anchors.dtype, anchors.shape, int(anchors)) == (torch.int64, (), want.counted.sum())
        assert torch.equal(loss, sup_con_loss(known["features"], **options))
    for function, factor in ((info_nce_loss, 1), (nt_xent_loss, 2)):
        loss, anchors = function(known["z1"], known["z2"], present=known["present"], return_anchors=True)
        assert int(anchors) == factor * int(known["present"].sum())
        assert torch.equal(loss, function(known["z1"], known["z2"], present=known["present"]))
