"""What a row of the contract tests is, and the few helpers that every check uses.

A row says how to build a component and its inputs; a check (``tests/test_contracts_*.py``) takes any row. Arguments
are a dict whose values are tensors, sequences or mappings of tensors, or None: ``tree_map`` walks all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large the inputs of a row are; every letter of the design that a test varies."""

    batch: int = 4
    modalities: int = 3
    steps: int = 4
    classes: int = 3

    def but(self, **changes: int) -> Size:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Wrong:
    """A wrong use: what to do, the error it must raise, and the pieces its message must contain."""

    id: str
    use: Callable[[nn.Module, Inputs], object]
    says: tuple[str, ...]
    error: type[Exception] = ValueError


@dataclass(frozen=True, repr=False)
class Row:
    """One public component, or one option of it."""

    name: str  # the test id; the part before "[" is the public name
    build: Callable[[Size], nn.Module]
    inputs: Callable[[Size, np.random.Generator], Inputs]  # float64 tensors and masks, an all-absent row among them
    reference: Callable[..., object] | None = None  # (state, **numpy inputs) -> outputs in the order of the component
    real: Callable[[Inputs], Inputs] | None = None  # for each float argument: True where it may be read
    function: Callable[[nn.Module, Inputs], object] | None = None  # the same call through the public function
    wrong: tuple[Wrong, ...] = ()
    letters: str = "B"  # the axes that a test may vary: B, M, T, C
    masks: tuple[str, ...] = ()  # arguments that are masks, True = real
    fixed: tuple[str, ...] = ()  # float arguments that take no gradient (detached inside)
    partly: tuple[str, ...] = ()  # float arguments that a part of it detaches: differences see more than autograd does
    detached: bool = False  # passes no gradient on at all: fixed arguments, no parameters
    fits: bool = False  # is called once on a training set, and not inside of a model
    smallest: int = 0  # batches below this raise ValueError
    per_row: bool = True  # dimension 0 of every output but the scalars is the batch, or the one that is named next
    batch_axis: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of arguments, and of all outputs as "out"
    unlabelled: float = 0.0  # the value of every output when no label counts
    labels: str | None = "target"  # the labels, of which -100 does not count; None = there is no such number
    stochastic: bool = False  # draws random numbers in training
    extremes: Mapping[str, Callable[[Inputs], Inputs]] = dataclasses.field(default_factory=dict)
    modality_axis: Mapping[str, int] | None = None  # equivariance: axis of M in arguments and outputs
    pad: Callable[[Inputs, int], Inputs] | None = None  # append steps that are no steps
    per_step: bool = False  # outputs of three dimensions have the steps of the input, zero where it has none
    also: str = ""  # the public function that the row covers too; errors may name either
    graph_breaks: bool = False  # torch.compile(fullgraph=True) is known to fail
    half_factor: float = 24.0  # tolerance in units of the epsilon of the dtype
    saved_factor: float = 12.0  # bytes kept for backward, in units of the bytes of inputs and parameters
    wide: frozenset[str] = frozenset()  # outputs in float32 at least
    scalars: frozenset[str] = frozenset()  # outputs that are sums over the batch
    nothing: Callable[[Inputs], Inputs] | None = None  # make everything absent, where masks are not what does it
    integer: bool = False  # all outputs are bool or integer

    @property
    def public(self) -> str:
        return self.name.split("[")[0]

    def axis(self, argument: str) -> int:
        """Return the dimension of the batch in an argument, or in the outputs for ``"out"``."""
        return self.batch_axis.get(argument, 0)

    def __repr__(self) -> str:
        return self.name


def tree_map(fn: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply ``fn`` to every tensor of a nest of mappings and sequences; anything else stays."""
    if isinstance(tree, Tensor):
        return fn(tree, *others)
    if isinstance(tree, Mapping):
        return {key: tree_map(fn, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [tree_map(fn, value, *(other[i] for other in others)) for i, value in enumerate(tree)]
    return tree


def along_batch(row: Row, fn: Callable[[Tensor, int], Tensor], inputs: Inputs) -> Inputs:
    """Apply ``fn`` to every tensor and the dimension of its batch."""
    return {name: tree_map(functools.partial(_swapped, fn, row.axis(name)), value) for name, value in inputs.items()}


def _swapped(fn: Callable[[Tensor, int], Tensor], axis: int, x: Tensor) -> Tensor:
    return fn(x, axis)


def tensors(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a nest (NamedTuples by field) with its path."""
    if isinstance(tree, Tensor):
        yield path or "out", tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (list, tuple)):
        names = getattr(tree, "_fields", range(len(tree)))
        for key, value in zip(names, tree, strict=True):
            yield from tensors(value, f"{path}.{key}" if path else str(key))


def signature(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a component's forward, or of the function that a row wraps."""
    return inspect.signature(getattr(module, "function", module.forward)).parameters


def numpy_tree(tree: Any) -> Any:
    return tree_map(lambda x: x.detach().double().numpy() if x.is_floating_point() else x.numpy(), tree)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Return fresh leaves of another floating dtype; masks and labels stay."""
    return tree_map(lambda x: x.detach().to(dtype).clone() if x.is_floating_point() else x.clone(), inputs)


def make(row: Row, size: Size | None = None, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Build the component of a row with parameters that are all away from their special initial values."""
    torch.manual_seed(seed)
    module = row.build(size or Size()).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(dtype))
    return module.eval()


def draw(row: Row, size: Size | None = None, dtype: torch.dtype = torch.float64, seed: int = 0) -> Inputs:
    return cast(row.inputs(size or Size(), np.random.default_rng(seed)), dtype)


def call(module: nn.Module, inputs: Inputs, seed: int = 0) -> dict[str, Tensor]:
    """Run a component and return its tensors by name; the global random state is the same at every call."""
    torch.manual_seed(seed)
    return dict(tensors(module(**inputs)))


def loss_of(outputs: Mapping[str, Tensor]) -> Tensor:
    """Return one scalar to which every floating output contributes with different coefficients."""
    total = torch.zeros((), dtype=torch.float64)
    for index, out in enumerate(outputs.values()):
        if out.is_floating_point():
            generator = torch.Generator().manual_seed(index)
            weight = torch.rand(out.shape, generator=generator, dtype=torch.float64) + 0.5
            total = total + (out.double() * weight.to(out.device)).sum().cpu()
    return total


def with_grad(row: Row, inputs: Inputs) -> Inputs:
    """Return the inputs with gradients on, except where the component detaches them."""
    on = {key: value for key, value in inputs.items() if key not in row.fixed}
    on = tree_map(lambda x: x.detach().clone().requires_grad_() if x.is_floating_point() else x, on)
    return {key: on.get(key, value) for key, value in inputs.items()}


def gradients(
    row: Row, module: nn.Module, inputs: Inputs, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return outputs and all gradients: ``input.`` ones and ``parameter.`` ones (missing = zeros)."""
    inputs = with_grad(row, inputs)
    for parameter in module.parameters():
        parameter.grad = None
    outputs = call(module, inputs, seed)
    total = loss_of(outputs)
    if total.requires_grad:
        total.backward()
    named = {f"input.{name}": x for name, x in tensors(inputs) if x.requires_grad}
    named |= {f"parameter.{name}": x for name, x in module.named_parameters()}
    grads = {name: torch.zeros_like(x) if x.grad is None else x.grad.clone() for name, x in named.items()}
    return {name: out.detach() for name, out in outputs.items()}, grads


def assert_close(
    got: Mapping[str, Tensor], want: Mapping[str, Tensor], rtol: float, atol: float, what: str = ""
) -> None:
    assert got.keys() == want.keys(), f"{what}: {sorted(got)} against {sorted(want)}"
    for name in want:
        torch.testing.assert_close(
            got[name].double(),
            want[name].double(),
            rtol=rtol,
            atol=atol,
            msg=lambda text, n=name: f"{what} {n}: {text}",
        )


def assert_equal(got: Mapping[str, Tensor], want: Mapping[str, Tensor], what: str = "") -> None:
    """Bit equality, NaN nowhere."""
    assert got.keys() == want.keys(), f"{what}: {sorted(got)} against {sorted(want)}"
    for name in want:
        assert got[name].shape == want[name].shape, f"{what} {name}: {got[name].shape} against {want[name].shape}"
        assert torch.equal(got[name], want[name]), f"{what} {name} differs: {got[name]} against {want[name]}"


def assert_finite(values: Mapping[str, Tensor], what: str = "") -> None:
    for name, value in values.items():
        assert not value.is_floating_point() or value.isfinite().all(), f"{what} {name} is not finite: {value}"
