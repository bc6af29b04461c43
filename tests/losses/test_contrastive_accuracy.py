"""Float32 against float64: random embeddings, and those on which the usual formulas lose all digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmrobust._similarity import dense
from mmrobust.losses import info_nce_loss, nt_xent_loss, sup_con_loss
from tests.losses.contrastive_cases import info_nce_definition, nt_xent_definition, sup_con_definition

D = 64
KINDS = ["random", "antipodal", "collapsed 1e-1", "collapsed 1e-2", "collapsed 1e-3", "classes 1e-1", "classes 1e-2"]


def embeddings(kind: str, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return rows and labels; all rows, or those of a class, may be one vector and a little noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=generator)
    x = torch.randn(rows, D, generator=generator)
    name, _, noise = kind.partition(" ")
    if name == "antipodal":
        x = torch.cat([x[: rows // 2], -x[: rows - rows // 2]])
    elif name == "collapsed":
        x = torch.randn(D, generator=generator) + float(noise) * x
    elif name == "classes":
        x = torch.randn(classes, D, generator=generator)[labels] + float(noise) * x
    return x, labels


class Loss:
    """A loss of the library and its definition, as functions of all rows and the temperature."""

    def __init__(self, name: str, kind: str, rows: int) -> None:
        self.x, labels = embeddings(kind, rows, rows // 3 if name == "sup_con, many labels" else 5)
        half = rows // 2
        losses: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
            "info_nce": (info_nce_loss, info_nce_definition),
            "nt_xent": (nt_xent_loss, nt_xent_definition),
        }
        if name in losses:
            got, want = losses[name]
            self.got = lambda x, t: got(x[:half], x[half:], temperature=t)
            self.want = lambda x, t: want(x[:half], x[half:], t)
        else:
            inside = "L_in" in name
            option = {"aggregation": "in" if inside else "out"}
            self.got = lambda x, t: sup_con_loss(x, labels, temperature=t, **option)
            self.want = lambda x, t: sup_con_definition(x, labels, t, inside)


LOSSES = ["sup_con", "sup_con, many labels", "sup_con, L_in", "info_nce", "nt_xent"]


def differentiate(function: Callable[..., Tensor], x: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    leaf, t = x.clone().requires_grad_(), torch.tensor(temperature, dtype=x.dtype, requires_grad=True)
    loss = function(leaf, t)
    return loss.detach().double(), *(grad.double() for grad in torch.autograd.grad(loss, [leaf, t]))


@pytest.mark.parametrize(("way", "rows"), [("dense", 300), ("tiles", 300), ("tiles", 1500)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_float32(monkeypatch: pytest.MonkeyPatch, kind: str, name: str, way: str, rows: int) -> None:
    """The loss has seven digits, whatever the embeddings.

    Gradients have them in units of what pulls at a row: its distance from the common centre, over the temperature.
    Where embeddings are where the loss wants them these forces cancel, and what is left is of the size of their error;
    elsewhere errors are small compared with the gradient itself.
    """
    monkeypatch.setattr(dense, "_PAIRS", -1 if way == "tiles" else 1 << 62)
    loss = Loss(name, kind, rows)
    for temperature in (0.05, 0.5) if rows == 300 else (0.1,):
        rounded = float(torch.tensor(temperature))
        value, grad, slope = differentiate(loss.got, loss.x, temperature)
        want, want_grad, want_slope = differentiate(loss.want, loss.x.double(), rounded)
        assert abs(value - want) <= 1e-6 * want
        norm = loss.x.double().norm(dim=1, keepdim=True)
        distance = loss.x / norm - (loss.x / norm).mean(0)
        assert (grad - want_grad).norm() <= 3e-6 * (distance / norm).norm() / (rounded * rows)
        assert abs(slope - want_slope) <= 1e-6 * distance.square().sum(1).mean() / rounded**2
        if kind in {"random", "collapsed 1e-1", "collapsed 1e-2"}:
            assert (grad - want_grad).norm() <= 5e-6 * want_grad.norm()


@pytest.mark.parametrize("way", ["dense", "tiles"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_temperature_is_finite(monkeypatch: pytest.MonkeyPatch, kind: str, name: str, way: str) -> None:
    monkeypatch.setattr(dense, "_PAIRS", -1 if way == "tiles" else 1 << 62)
    loss = Loss(name, kind, 60)
    for temperature in (1e-3, 3e-3, 0.01, 0.02, 1 / 32, 1.0, 10.0):
        value, grad, slope = differentiate(loss.got, loss.x, temperature)
        want, want_grad, _ = differentiate(loss.want, loss.x.double(), float(torch.tensor(temperature)))
        assert abs(value - want) <= 2e-6 * (want + 1 / temperature)
        assert (grad - want_grad).norm() <= 2e-3 * want_grad.norm() + 1e-5
        assert slope.isfinite()
