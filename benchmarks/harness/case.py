"""What a benchmark case is: a problem built at a size, and the contenders that solve it.

A case builds its problem twice from the same random numbers: once in the precision under test and once in float64.
The float64 twin of a plain, written-out contender is the reference that everything is compared with before timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["ours", "eager", "compile", "peer"]
Tier = Literal["default", "full", "never"]


@dataclass(frozen=True)
class Size:
    """The sizes of a problem, and from which ``--sizes`` on they run on each kind of device."""

    dims: Mapping[str, int]
    cpu: Tier = "default"
    cuda: Tier = "default"
    compile: bool = False

    @property
    def name(self) -> str:
        return " ".join(f"{letter}={size}" for letter, size in self.dims.items())


@dataclass(frozen=True)
class Contender:
    """One way to solve the problem.

    ``run`` takes the inputs of the problem. ``reference`` names the contender whose float64 output it must equal.
    ``check`` replaces run's outputs in that comparison, for what is random: it returns statistics of ``run``.
    ``step`` turns a ``run`` into a whole training step without arguments, which is then timed instead of forward +
    backward. ``own`` holds the modules of a contender that cannot share the parameters of the problem's modules.
    """

    run: Callable[..., Any]
    kind: Kind = "peer"
    reference: str = "eager"
    check: Callable[[Callable[..., Any]], Any] | None = None
    step: Callable[[Callable[..., Any]], Callable[[], Any]] | None = None
    own: tuple[nn.Module, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Target:
    """A promise about ours that the run judges, with one limit of four.

    ``at_least``: the median of ``versus`` over that of ours. ``seconds_at_most``: the median. ``bytes_at_most``: the
    peak memory. ``error_at_most``: the relative error of ``quantity``, "outputs" or "gradients", against float64.
    """

    claim: str
    mode: str = "forward_backward"
    versus: str | None = None
    at_least: float | None = None
    seconds_at_most: float | None = None
    bytes_at_most: int | None = None
    error_at_most: float | None = None
    quantity: str | None = None


@dataclass
class Problem:
    """Inputs and contenders at one size.

    Forward alone means inference: ``modules`` in eval mode, no gradients. ``stochastic`` says that they draw random
    numbers in training, so that gradients are checked in eval mode too. ``timer="self"``: ``run`` returns seconds.
    ``modes`` are all that are timed (empty = all there are), ``rounds`` the fewest rounds. ``own_process``: on a CPU,
    peak memory is that of a fresh process for each contender, which sees the workspaces of libraries too.
    """

    contenders: dict[str, Contender]
    inputs: tuple[Any, ...] = ()
    modules: tuple[nn.Module, ...] = ()
    gradients: bool = True
    stochastic: bool = False
    flops: float = 0.0  # least operations of one forward pass
    training_flops: float | None = None  # and of forward + backward; None = three times as many
    tolerance: float = 1e-5
    gradient_tolerance: float = 1e-4
    compiles: Literal["whole", "with breaks", "no"] = "whole"
    timer: Literal["device", "self"] = "device"
    targets: tuple[Target, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)  # contenders left out, and why
    modes: tuple[str, ...] = ()
    rounds: int = 7
    own_process: bool = False
    dtype: str = "float32"  # of the inputs, as the record says it
    known: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)  # what a reference gave

    def train(self, mode: bool) -> None:
        for module in [*self.modules, *(m for c in self.contenders.values() for m in c.own)]:
            module.train(mode)

    def wanted(self, contender: Contender) -> list[Tensor]:
        """Return the tensors whose gradients count: floating inputs, then parameters that require them."""
        modules = contender.own or self.modules
        leaves = [*tensors(self.inputs), *(p for module in modules for p in module.parameters())]
        unique = {id(leaf): leaf for leaf in leaves if leaf.requires_grad}
        return list(unique.values())


@dataclass(frozen=True)
class Case:
    """A component under measurement: which public names it covers, how to build it, and at which sizes."""

    name: str
    build: Callable[[Setup], Problem]
    toy: Mapping[str, int]
    sizes: tuple[Size, ...]
    covers: tuple[str, ...] = ()

    def selected(self, sizes: str, device: str) -> list[Size]:
        """Return the sizes that ``--sizes`` selects on a kind of device."""
        if sizes == "toy":
            return [Size(self.toy)]
        wanted = ("default",) if sizes == "default" else ("default", "full")
        return [size for size in self.sizes if getattr(size, device) in wanted]

    def public_names(self) -> tuple[str, ...]:
        return self.covers or (self.name,)


class Setup:
    """Hands out sizes, random inputs and modules; two setups of one seed differ in nothing but precision."""

    def __init__(
        self, dims: Mapping[str, int], device: torch.device, *, wide: bool = False, seed: int = 0, toy: bool = False
    ) -> None:
        self.dims = dims
        self.device = device
        self.dtype = torch.float64 if wide else torch.float32
        self.wide = wide
        self.seed = seed
        self.toy = toy
        self._random = torch.Generator().manual_seed(seed)

    def __getitem__(self, letters: str) -> Any:
        """Return one size, or several for space-separated letters."""
        sizes = tuple(self.dims[letter] for letter in letters.split())
        return sizes if len(sizes) > 1 else sizes[0]

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0, grad: bool = True) -> Tensor:
        """Draw normal numbers in float32 and place them in the setup's precision."""
        values = torch.randn(shape, generator=self._random) * scale + shift
        return values.to(self.device, self.dtype).requires_grad_(grad)

    def mask(self, *shape: int, keep: float = 0.8) -> Tensor:
        """Draw a bool mask, True = present, with one entirely absent row when there are several rows."""
        values = torch.rand(shape, generator=self._random) < keep
        if shape[0] > 1:
            values[-1] = False
        return values.to(self.device)

    def labels(self, *shape: int, classes: int) -> Tensor:
        return torch.randint(classes, shape, generator=self._random).to(self.device)

    def module(self, build: Callable[[], nn.Module], *, spread: float = 0.05) -> Any:
        """Build a module from the seed and move every parameter off its initial value, zeros included."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=self._random), alpha=spread)
        return module.to(self.device, self.dtype)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Walk over the tensors of nested tuples, lists and mappings; anything else is passed over."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from tensors(value)
