"""What the tests of contrastive losses share: arguments of every kind, ways through the code, and a definition."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrobust._similarity import dense, pairs, tiles
from mmrobust.losses import info_nce_loss, modality_contrastive_loss, nt_xent_loss, sup_con_loss
from tests.references import contrastive as reference

B, K, D, C = 17, 8, 4, 3
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sup_con": (sup_con_loss, reference.sup_con_loss),
    "info_nce": (info_nce_loss, reference.info_nce_loss),
    "nt_xent": (nt_xent_loss, reference.nt_xent_loss),
    "modality": (modality_contrastive_loss, reference.modality_contrastive_loss),
}
# Name of a way -> rows and columns of a tile; the tiles of the library itself hold all rows of these tests.
WAYS: dict[str, tuple[int, int] | None] = {
    "dense": None,
    "tiles": None,
    "7x13": (7, 13),
    "6x2": (6, 2),
    "7x13, recomputed": (7, 13),
    "6x2, recomputed": (6, 2),
}


class Tensors:
    """Arguments by name, each drawn once."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape))

        def mask(share: float, *shape: int) -> Tensor:
            return torch.from_numpy(rng.random(shape) < share)

        # Four labels, one of them on a single row.
        labels = torch.from_numpy(rng.permutation([3, *(np.arange(B - 1) % 3)]))
        x, y = normal(B, D), normal(B, D)
        self.known: dict[str, Tensor] = {
            **dict.fromkeys(("features", "query", "z1"), x),
            **dict.fromkeys(("key", "z2"), y),
            **dict.fromkeys(("keys", "negatives"), normal(K, D)),
            **dict.fromkeys(("key_present", "negatives_present"), mask(0.7, K)),
            "labels": labels,
            "ignored": torch.where(mask(0.2, B), -100, labels),
            "several": mask(0.4, B, C),
            "key_labels": torch.from_numpy(rng.integers(0, 4, K)),
            "key_ignored": torch.tensor([0, -100, 1, -100, 2, 0, 1, 3]),
            "key_several": mask(0.4, K, C),
            "positives": mask(0.2, B, B),
            "excluded": mask(0.2, B, B),
            "wide_positives": mask(0.2, B, B + K),
            "wide_excluded": mask(0.2, B, B + K),
            "present": mask(0.8, B),
            "weight": torch.from_numpy(rng.random(B) + 0.1),
            "modalities": normal(B, 3, D),
            "modal_present": mask(0.7, B, 3),
            **dict.fromkeys(("negatives_excluded", "key_excluded"), mask(0.2, B, K)),
        }


class Case(NamedTuple):
    """A loss and its arguments: names of tensors as ``argument=tensor`` or simply ``argument``, and options."""

    loss: str
    tensors: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.loss, self.tensors, *(f"{key}={value}" for key, value in self.options)])

    def arguments(self) -> dict[str, Tensor]:
        known = Tensors().known
        pairs = [name.split("=") for name in self.tensors.split()]
        return {pair[0]: known[pair[-1]].clone() for pair in pairs}


def case(loss: str, tensors: str, **options: Any) -> Case:
    return Case(loss, tensors, tuple(options.items()))


def scalar(loss: Any, like: Any = np.cos) -> Any:
    """Return the loss, or the sum of the losses of rows, all with different coefficients."""
    return (loss * like(np.arange(np.prod(loss.shape)).reshape(loss.shape))).sum() if loss.ndim else loss


def results(case: Case, temperature: float, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return value and all gradients of the library."""
    arguments = {name: x.to(dtype) if x.is_floating_point() else x for name, x in case.arguments().items()}
    arguments["temperature"] = torch.tensor(temperature, dtype=dtype)
    leaves = {name: x.requires_grad_() for name, x in arguments.items() if x.is_floating_point()}
    value = FUNCTIONS[case.loss][0](**arguments, **dict(case.options))
    total = scalar(value, lambda x: torch.from_numpy(np.cos(x)).to(value.dtype))
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"value": value.detach(), **dict(zip(leaves, grads, strict=True))}


@functools.cache
def expected(case: Case, temperature: float) -> dict[str, Tensor]:
    """Return the same from the reference and its complex steps."""
    arguments = {name: x.numpy() for name, x in case.arguments().items()} | {"temperature": np.float64(temperature)}
    function = functools.partial(FUNCTIONS[case.loss][1], **dict(case.options))
    found = {"value": function(**arguments)}
    for name, x in arguments.items():
        if x.dtype.kind == "f":
            found[name] = reference.derivative(lambda **given: scalar(function(**given)), arguments, name)
    return {name: torch.from_numpy(np.array(x)) for name, x in found.items()}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == want.keys()
    for name in want:
        scale = max(1.0, float(want[name].abs().max())) if want[name].numel() else 1.0
        torch.testing.assert_close(
            got[name], want[name], rtol=0.0, atol=tolerance * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


def take(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Make the losses go one of the WAYS."""
    monkeypatch.setattr(dense, "_PAIRS", 1 << 62 if way == "dense" else -1)
    shape = WAYS[way]
    if "recomputed" in way:
        monkeypatch.setattr(pairs, "_KEPT", -1)
    if shape is not None:
        monkeypatch.setattr(tiles, "ranges", functools.partial(_ranges, shape))


def _ranges(
    shape: tuple[int, int], rows: int, columns: int, batch: int, device: torch.device, half: bool = False
) -> Iterator[tuple[slice, slice]]:
    height, width = shape
    for top in range(0, rows, height):
        for left in range(top if half else 0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


# Definitions on matrices of all pairs, for batches that are too large for loops -----------------------------------


def definition(
    query: Tensor,
    key: Tensor,
    temperature: Tensor | float,
    positive: Tensor,
    counts: Tensor | None = None,
    inside: bool = False,
) -> Tensor:
    """Return the loss of every query, 0 without positives, from the matrix of all pairs."""
    scores = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(key).mT / temperature
    if counts is not None:
        scores, positive = scores.masked_fill(~counts, -torch.inf), positive & counts
    number = positive.sum(1).clamp(min=1).to(scores.dtype)
    if inside:
        friends = scores.masked_fill(~positive, -1e300).logsumexp(1) - number.log()
    else:
        friends = torch.where(positive, scores, 0.0).sum(1) / number
    return torch.where(positive.any(1), scores.logsumexp(1) - friends, 0.0)


def sup_con_definition(x: Tensor, labels: Tensor, temperature: Tensor, inside: bool = False) -> Tensor:
    others = ~torch.eye(len(x), dtype=torch.bool)
    positive = (labels.unsqueeze(1) == labels) & others
    rows = definition(x, x, temperature, positive, others, inside)
    return rows.sum() / positive.any(1).sum()


def info_nce_definition(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
    own = torch.eye(len(query), dtype=torch.bool)
    there, back = definition(query, key, temperature, own), definition(key, query, temperature, own)
    return (there + back).mean() / 2


def nt_xent_definition(z1: Tensor, z2: Tensor, temperature: Tensor) -> Tensor:
    return sup_con_definition(torch.cat([z1, z2]), torch.arange(len(z1)).repeat(2), temperature)
