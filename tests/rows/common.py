"""What several rows share: random inputs, masks with an all-absent row, and wrong uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.contract import Inputs, Wrong

H = 6  # latent width of every row


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def presence(rng: np.random.Generator, batch: int, *more: int) -> Tensor:
    """Masks of every kind: the last row has nothing, the first has everything, the others vary."""
    mask = torch.from_numpy(rng.random((batch, *more)) < 0.6)
    if batch > 1:
        mask[0] = True
        mask[-1] = False
    return mask


def row_presence(rng: np.random.Generator, batch: int) -> Tensor:
    """A mask ``(B,)`` that holds both values whenever two fit."""
    mask = torch.from_numpy(rng.random(batch) < 0.6)
    mask[:1] = True
    if batch > 1:
        mask[-1] = False
    return mask


def steps_mask(rng: np.random.Generator, batch: int, steps: int) -> Tensor:
    """Steps with holes, padding in front and behind; the last sequence is empty, the first complete."""
    return presence(rng, batch, steps)


def like(mask: Tensor, x: Tensor) -> Tensor:
    """Expand a mask whose shape begins that of ``x``."""
    return mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())).expand(x.shape)


def reads(**pairs: str) -> Callable[[Inputs], Inputs]:
    """Say which argument is read under which mask."""
    return lambda inputs: {name: like(inputs[mask], inputs[name]) for name, mask in pairs.items()}


def put(name: str, change: Callable[[Any], Any]) -> Callable[[nn.Module, Inputs], object]:
    """Call with one argument changed."""
    return lambda module, inputs: module(**{**inputs, name: change(inputs[name])})


def wrong(
    name: str, label: str, change: Callable[[Any], Any], *says: str, error: type[Exception] = ValueError
) -> Wrong:
    return Wrong(f"{name}-{label}", put(name, change), (name, *says), error)


def build_wrong(name: str, build: Callable[[], object], *says: str, error: type[Exception] = ValueError) -> Wrong:
    return Wrong(f"build-{name}", lambda module, inputs: build(), (name, *says), error)


def scaled(*names: str, by: float) -> Callable[[Inputs], Inputs]:
    from tests.contract import tree_map

    return lambda inputs: {k: tree_map(lambda x: x * by, v) if k in names else v for k, v in inputs.items()}


def pad_steps(value: Tensor, extra: int, fill: float | bool) -> Tensor:
    """Append steps along dimension 1."""
    return torch.cat([value, value.new_full((value.shape[0], extra, *value.shape[2:]), fill)], dim=1)


class Call(nn.Module):
    """A public function as a module, so that the same checks run on it."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs, **self.options)
