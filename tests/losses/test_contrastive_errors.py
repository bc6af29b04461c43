"""What contrastive losses refuse at the door: the error, and what its message says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmrobust import ModalityContrastiveLoss, _kernels
from mmrobust._similarity import pairs as pairs_operators
from mmrobust.losses import (
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    info_nce_loss,
    modality_contrastive_loss,
    nt_xent_loss,
    sup_con_loss,
)

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])
SEVERAL, MASK = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]]).bool(), torch.ones(4, 4).bool()
KEYS, KEY_LABELS = torch.ones(5, 3), torch.tensor([0, 1, 0, 1, 2])
KEY_SEVERAL, KEY_MASK = torch.ones(5, 2).bool(), torch.ones(5).bool()
INTEGER, FLOATING, A_MASK = "to be an integer tensor", "to be a floating-point tensor", "to be a bool (or integer 0/1)"
BANK = {"keys": KEYS, "key_labels": KEY_LABELS}

# Arguments, the error, and pieces of its message.
SUP_CON: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"features": [[1.0]]}, TypeError, ("features to be a tensor", "list")),
    ({"features": X.long()}, TypeError, ("features " + FLOATING, "torch.int64")),
    ({"features": X[0]}, ValueError, ("features of shape (B, D)", "(3,)")),
    ({"features": X[None]}, ValueError, ("features of shape (B, D)", "(1, 4, 3)")),
    ({"labels": [0, 0, 1, 1]}, TypeError, ("labels to be a tensor", "list")),
    ({"labels": Y.float()}, TypeError, ("labels " + INTEGER, "torch.float32")),
    ({"labels": Y.bool()}, TypeError, ("labels " + INTEGER, "torch.bool")),
    ({"labels": Y[1:]}, ValueError, ("labels of shape (B,) = (4,)", "(3,)")),
    ({"labels": Y[0]}, ValueError, ("labels of shape (B,) = (4,)", "()")),
    ({"labels": Y[:, None]}, ValueError, ("labels of shape (B,) or several per row", "(4, 1)")),
    ({"labels": SEVERAL.float()}, TypeError, ("labels " + A_MASK, "torch.float32")),
    ({"labels": SEVERAL[1:]}, ValueError, ("labels of shape (B, C) = (4, any)", "(3, 2)")),
    ({"labels": SEVERAL[None]}, ValueError, ("labels of shape (B,) = (4,)", "(1, 4, 2)")),
    ({"labels": None}, ValueError, ("either labels or positives", "got none")),
    ({"positives": MASK}, ValueError, ("either labels or positives", "got both")),
    ({"labels": None, "positives": MASK.float()}, TypeError, ("positives " + A_MASK, "torch.float32")),
    ({"labels": None, "positives": MASK[1:]}, ValueError, ("positives of shape (B, B + K) = (4, 4)", "(3, 4)")),
    (
        {"labels": None, "positives": MASK, "keys": KEYS},
        ValueError,
        ("positives of shape (B, B + K) = (4, 9)", "(4, 4)"),
    ),
    ({"labels": None, "positives": MASK, "ignore_index": 0}, ValueError, ("no ignore_index with positives", "got 0")),
    ({"labels": None, "positives": MASK, **BANK}, ValueError, ("no key_labels with positives", "got both")),
    ({"excluded": MASK.float()}, TypeError, ("excluded " + A_MASK, "torch.float32")),
    ({"excluded": MASK[:, 1:]}, ValueError, ("excluded of shape (B, B + K) = (4, 4)", "(4, 3)")),
    ({"excluded": MASK, **BANK}, ValueError, ("excluded of shape (B, B + K) = (4, 9)", "(4, 4)")),
    ({"labels": SEVERAL, "ignore_index": -1}, ValueError, ("no ignore_index with several labels", "got -1")),
    ({"keys": KEYS}, ValueError, ("key_labels in the form of labels", "got none")),
    ({"key_labels": KEY_LABELS}, ValueError, ("keys with key_labels", "got none")),
    ({"key_present": KEY_MASK}, ValueError, ("keys with key_", "got none")),
    ({**BANK, "keys": KEYS.long()}, TypeError, ("keys " + FLOATING, "torch.int64")),
    ({**BANK, "keys": KEYS[0]}, ValueError, ("keys of shape (K, D)", "(3,)")),
    ({**BANK, "keys": KEYS[:, 1:]}, ValueError, ("keys of shape (K, D) = (any, 3)", "(5, 2)")),
    ({**BANK, "key_labels": KEY_LABELS.float()}, TypeError, ("key_labels " + INTEGER, "torch.float32")),
    ({**BANK, "key_labels": Y}, ValueError, ("key_labels of shape (K,) = (5,)", "(4,)")),
    ({**BANK, "key_labels": KEY_LABELS[:, None]}, ValueError, ("key_labels of shape (K,) or several", "(5, 1)")),
    ({**BANK, "key_labels": KEY_SEVERAL}, ValueError, ("key_labels in the form of labels", "(5, 2) with (4,)")),
    ({**BANK, "labels": SEVERAL}, ValueError, ("key_labels in the form of labels", "(5,) with (4, 2)")),
    (
        {"labels": SEVERAL, "keys": KEYS, "key_labels": KEY_SEVERAL.repeat(1, 2)},
        ValueError,
        ("key_labels of shape (K, C) = (any, 2)", "(5, 4)"),
    ),
    ({**BANK, "key_present": MASK[0]}, ValueError, ("key_present of shape (K,) = (5,)", "(4,)")),
    ({**BANK, "key_present": KEY_MASK.float()}, TypeError, ("key_present " + A_MASK, "torch.float32")),
    ({"key_excluded": MASK}, ValueError, ("keys with key_", "got none")),
    ({**BANK, "key_excluded": MASK}, ValueError, ("key_excluded of shape (B, K) = (4, 5)", "(4, 4)")),
    ({**BANK, "key_excluded": torch.ones(4, 5)}, TypeError, ("key_excluded " + A_MASK, "torch.float32")),
    ({"ignore_index": 1.5}, TypeError, ("ignore_index to be an integer", "float")),
    ({"ignore_index": True}, TypeError, ("ignore_index to be an integer", "bool")),
    ({"aggregation": "mean"}, ValueError, ("aggregation", "'out', 'in'", "'mean'")),
    ({"without_positives": "drop"}, ValueError, ("without_positives", "'skip', 'zero'", "'drop'")),
    ({"gather": True, "excluded": MASK}, ValueError, ("neither positives nor excluded", "got gather=True")),
    ({"gather": "ring", "excluded": MASK}, ValueError, ("neither positives nor excluded", "got gather='ring'")),
    ({"gather": True, "labels": None, "positives": MASK}, ValueError, ("neither positives nor excluded",)),
    ({"gather": "ring", "aggregation": "in"}, ValueError, ("aggregation='out'", "got aggregation='in'")),
    ({"gather": "ring", "labels": SEVERAL}, ValueError, ("one label per row", "several labels")),
]
ANY: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"present": torch.ones(4)}, TypeError, ("present " + A_MASK, "torch.float32")),
    ({"present": MASK[0, 1:]}, ValueError, ("present of shape (B,) = (4,)", "(3,)")),
    ({"present": MASK[:, :1]}, ValueError, ("present of shape (B,) = (4,)", "(4, 1)")),
    ({"weight": torch.ones(4).long()}, TypeError, ("weight " + FLOATING, "torch.int64")),
    ({"weight": [1.0] * 4}, TypeError, ("weight to be a tensor", "list")),
    ({"weight": torch.ones(5)}, ValueError, ("weight of shape (B,) = (4,)", "(5,)")),
    ({"weight": torch.ones(2, 4)}, ValueError, ("weight of shape (B,) = (4,)", "(2, 4)")),
    ({"temperature": 0.0}, ValueError, ("temperature in (0.0, inf)", "got 0.0")),
    ({"temperature": -1}, ValueError, ("temperature in (0.0, inf)", "got -1")),
    ({"temperature": float("nan")}, ValueError, ("temperature in (0.0, inf)", "got nan")),
    ({"temperature": float("inf")}, ValueError, ("temperature in (0.0, inf)", "got inf")),
    ({"temperature": "0.1"}, TypeError, ("temperature to be a number", "str")),
    ({"temperature": None}, TypeError, ("temperature to be a number", "NoneType")),
    ({"temperature": torch.ones(2)}, ValueError, ("temperature to be a scalar", "(2,)")),
    ({"temperature": torch.tensor(1)}, TypeError, ("temperature " + FLOATING, "torch.int64")),
    ({"reduction": "max"}, ValueError, ("reduction", "'mean', 'sum', 'none'", "'max'")),
    ({"reduction": None}, ValueError, ("reduction", "'mean', 'sum', 'none'", "None")),
    ({"gather": "all"}, ValueError, ("gather", "False, True, 'ring'", "'all'")),
    ({"gather": None}, ValueError, ("gather", "False, True, 'ring'", "None")),
    ({"gather": True, "weight": torch.ones(4).requires_grad_()}, ValueError, ("weight that wants no gradient",)),
    ({"impl": "cuda"}, ValueError, ("impl", "'auto', 'torch', 'triton'", "'cuda'")),
    ({"impl": "triton"}, RuntimeError, ("impl='triton' cannot run",)),
]


def pairs(first: str, second: str) -> list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]]:
    shape = f"{second} of shape (B, D) = (4, 3)"
    return [
        ({first: None}, TypeError, (f"{first} to be a tensor", "NoneType")),
        ({first: X.long()}, TypeError, (f"{first} {FLOATING}", "torch.int64")),
        ({first: X[0]}, ValueError, (f"{first} of shape (B, D)", "(3,)")),
        ({second: torch.arange(4)}, TypeError, (f"{second} {FLOATING}", "torch.int64")),
        ({second: X[1:]}, ValueError, (shape, "(3, 3)")),
        ({second: X[:, 1:]}, ValueError, (shape, "(4, 2)")),
        ({second: X[None]}, ValueError, (shape, "(1, 4, 3)")),
        ({"negatives": KEYS.long()}, TypeError, ("negatives " + FLOATING, "torch.int64")),
        ({"negatives": KEYS[:, 1:]}, ValueError, ("negatives of shape (N, D) = (any, 3)", "(5, 2)")),
        ({"negatives_present": KEY_MASK}, ValueError, ("negatives with negatives_present", "got none")),
        ({"negatives_excluded": MASK}, ValueError, ("negatives with negatives_excluded", "got none")),
        ({"negatives": KEYS, "negatives_excluded": MASK}, ValueError, ("of shape (B, N) = (4, 5)", "(4, 4)")),
        ({"negatives": KEYS, "negatives_present": MASK[0]}, ValueError, ("of shape (N,) = (5,)", "(4,)")),
    ]


FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any], list[Any]]] = {
    "sup_con_loss": (sup_con_loss, {"features": X, "labels": Y}, SUP_CON + ANY),
    "info_nce_loss": (info_nce_loss, {"query": X, "key": X}, pairs("query", "key") + ANY),
    "nt_xent_loss": (nt_xent_loss, {"z1": X, "z2": X}, pairs("z1", "z2") + ANY),
}
CASES = [
    pytest.param(name, wrong, error, says, id=f"{name}-{'-'.join(wrong)}-{index}")
    for name, (_, _, cases) in FUNCTIONS.items()
    for index, (wrong, error, says) in enumerate(cases)
]


@pytest.mark.parametrize(("name", "wrong", "error", "says"), CASES)
def test_wrong_arguments(name: str, wrong: dict[str, Any], error: type[Exception], says: tuple[str, ...]) -> None:
    function, right, _ = FUNCTIONS[name]
    function(**right)
    with pytest.raises(error) as caught:
        function(**{**right, **wrong})
    assert caught.type is error
    message = str(caught.value)
    assert message.startswith(f"{name}: "), message
    assert "\n" not in message
    for piece in says:
        assert piece in message


@pytest.mark.parametrize("kind", [SupConLoss, InfoNCELoss, NTXentLoss])
def test_wrong_modules(kind: Callable[..., Any]) -> None:
    name = kind.__name__  # type: ignore[attr-defined]
    for wrong, error, says in ANY:
        if not set(wrong) <= {"temperature", "reduction", "gather", "impl"} or wrong.get("impl") == "triton":
            continue
        if isinstance(wrong.get("temperature"), torch.Tensor):
            error, says = TypeError, ("temperature to be a number", "Tensor")
        with pytest.raises(error) as caught:
            kind(**wrong)
        message = str(caught.value)
        assert message.startswith(f"{name}: ")
        for piece in says:
            assert piece in message
    module = kind(impl="triton")  # whether it can run is known with the tensors
    with pytest.raises(RuntimeError, match="cannot run"):
        module(X, Y if kind is SupConLoss else X)
    if kind is SupConLoss:
        for wrong, piece in (({"aggregation": 1}, "'out', 'in', got 1"), ({"without_positives": 0}, "'zero', got 0")):
            with pytest.raises(ValueError, match=piece):
                kind(**wrong)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (
            {"learnable_temperature": True, "temperature": 5.0},
            ValueError,
            "a learnable temperature within temperature_range = [0.01, 1.0], got 5.0",
        ),
        (
            {"learnable_temperature": True, "temperature": 1e-3},
            ValueError,
            "a learnable temperature within temperature_range = [0.01, 1.0], got 0.001",
        ),
        ({"temperature_range": (1.0, 0.01)}, ValueError, "temperature_range[1] in [1.0, inf), got 0.01"),
        ({"temperature_range": (0.0, 1.0)}, ValueError, "temperature_range[0] in (0.0, inf), got 0.0"),
        ({"temperature_range": ("a", 1.0)}, TypeError, "temperature_range[0] to be a number, got str"),
        ({"temperature_range": (0.1,)}, ValueError, "temperature_range to be two numbers, got (0.1,)"),
        ({"temperature_range": None}, ValueError, "temperature_range to be two numbers, got None"),
    ],
    ids=str,
)
def test_wrong_ranges(options: dict[str, Any], error: type[Exception], says: str) -> None:
    for kind in (SupConLoss, InfoNCELoss, NTXentLoss):
        with pytest.raises(error) as caught:
            kind(**options)
        assert str(caught.value) == f"{kind.__name__}: expected {says}"
    with pytest.raises(error) as caught:
        ModalityContrastiveLoss(3, 2, **options)
    assert str(caught.value) == f"ModalityContrastiveLoss: expected {says}"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), torch.ones(2), "0.1", True])
def test_wrong_temperature_of_modalities(temperature: Any) -> None:
    error = TypeError if isinstance(temperature, (str, bool)) else ValueError
    with pytest.raises(error, match=r"^modality_contrastive_loss: expected temperature "):
        modality_contrastive_loss(torch.ones(2, 2, 3), temperature=temperature)


def test_what_looks_wrong_and_is_not() -> None:
    """One label of which all rows have it or not, a temperature of one element, keys of another dtype."""
    several = torch.tensor([[1], [0], [1], [0]]).bool()
    by_mask = sup_con_loss(X, positives=several & several.T)
    torch.testing.assert_close(sup_con_loss(X, several), by_mask)
    torch.testing.assert_close(sup_con_loss(X, Y, temperature=torch.tensor([0.1])), sup_con_loss(X, Y))
    torch.testing.assert_close(sup_con_loss(X, Y, temperature=1), sup_con_loss(X, Y, temperature=1.0))
    for dtype in (torch.float64, torch.bfloat16):
        other = {**BANK, "keys": KEYS.to(dtype)}
        torch.testing.assert_close(sup_con_loss(X, Y, **other), sup_con_loss(X, Y, **BANK))
        negatives = info_nce_loss(X, X, negatives=KEYS.to(dtype))
        torch.testing.assert_close(negatives, info_nce_loss(X, X, negatives=KEYS))
        assert negatives.dtype == torch.float32


NO_KERNEL: list[tuple[str, dict[str, Any], str]] = [
    ("sup_con_loss", {"aggregation": "in"}, "aggregation='in'"),
    ("sup_con_loss", {"labels": SEVERAL}, "several labels per row"),
    ("sup_con_loss", {"labels": None, "positives": MASK}, "masks of pairs"),
    ("sup_con_loss", {"excluded": MASK}, "masks of pairs"),
    ("sup_con_loss", {**BANK, "key_excluded": torch.ones(4, 5).bool()}, "key_excluded"),
    ("sup_con_loss", {"gather": "ring"}, "gather='ring'"),
    ("info_nce_loss", {"gather": "ring"}, "gather='ring'"),
    ("info_nce_loss", {"negatives": KEYS, "negatives_excluded": torch.ones(4, 5).bool()}, "negatives_excluded"),
    ("nt_xent_loss", {"gather": "ring"}, "gather='ring'"),
]


@pytest.mark.parametrize(("name", "options", "says"), NO_KERNEL)
def test_what_has_no_kernel_says_so(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], says: str
) -> None:
    """Where kernels run, they never silently do not."""
    monkeypatch.setattr(_kernels, "available", lambda x: None)
    monkeypatch.setattr(pairs_operators, "Kernels", TorchInstead)
    function, right, _ = FUNCTIONS[name]
    with pytest.raises(RuntimeError, match=f"{name}: impl='triton' cannot run: there is no kernel for .*{says}"):
        function(**{**right, "impl": "triton", **options})


class TorchInstead:
    """In the place of the kernels, which need a device."""

    def __init__(self, impl: str, queries: Any, keys: Any, temperature: Any, skip: Any) -> None:
        self.rows, self.keys = queries.lost, keys.lost

    def logsumexp(self, x_valid: Any, y_valid: Any, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(self.rows), torch.zeros_like(self.keys if mode == "both" else self.keys[:0])


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_sides_of_different_precision(dtypes: tuple[torch.dtype, torch.dtype], reduction: Any) -> None:
    """The wider of both counts, whatever the way."""
    a, b = (X.to(dtype) for dtype in dtypes)
    for function in (info_nce_loss, nt_xent_loss):
        loss = function(a, b, reduction=reduction)
        assert loss.dtype == dtypes[1]
        torch.testing.assert_close(loss, function(a.to(dtypes[1]), b, reduction=reduction))


def test_one_modality_still_attaches_a_learned_temperature() -> None:
    loss = ModalityContrastiveLoss(3, 1, learnable_temperature=True)
    loss(X[:, None]).backward()
    assert loss.temperature.log_temperature is not None
    assert loss.temperature.log_temperature.grad is not None
