"""Contrastive losses over batches whose activations do not fit into memory."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)
from torch.utils.checkpoint import checkpoint

from ._checks import check_size

T = TypeVar("T")

_WHERE = "cached_encode"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def cached_encode(encode: Callable[..., T], *inputs: Any, chunk_size: int) -> T:
    r"""Encode a batch in chunks whose activations are recomputed in backward: the memory is that of one chunk.

    A contrastive loss :math:`\mathcal L(z_1, \dots, z_B)` compares every row with every other, so that accumulating
    gradients over small batches is not the same loss. But it needs all *representations* at once, not all
    activations: with :math:`v_i = \partial \mathcal L / \partial z_i`

    .. math:: \frac{\partial \mathcal L}{\partial \theta} =
              \sum_{\text{chunks } c} \sum_{i \in c} v_i^\top \frac{\partial z_i}{\partial \theta},

    and every chunk of the outer sum can be encoded again when its turn comes. The price is that second encoding, a
    third to a half of a training step; the gradient is the one of a single pass, up to rounding.

    What comes back is attached to the graph, so ``loss(cached_encode(...)).backward()`` is the whole of it: autocast,
    gradient scaling, a learnable temperature, losses that gather from other processes, and Lightning's automatic
    optimisation work as they do without it. Each parameter is accumulated into once, after its last chunk, as
    ``DistributedDataParallel`` wants it: wrap the module that computes the loss, or the encoder. A compiled encoder
    runs compiled; a compiled step leaves the chunks to eager.

    - *Random numbers.* Dropout sees the same masks in both encodings. They are those of encoding one chunk after the
      other, and so is the state of the global generators afterwards. A :class:`torch.Generator` that ``encode`` uses
      is not replayed: draw before, and hand in what was drawn.
    - *Batch normalisation* takes its statistics over a chunk, so there, and only there, the gradient is not the one of
      a single pass but of one pass per chunk. Running statistics are updated once. The layers are found in a
      module, in the module of a method, and in modules that a function or partial refers to.
    - Any other state that ``encode`` changes is changed twice, as by spectral normalisation. Until backward is over,
      leave alone what it depends on: parameters and the training flag.
    - Without gradients, as in evaluation, it is a forward pass in chunks; a batch of at most ``chunk_size`` rows is
      encoded once.

    Args:
        encode: Module or function; called with a chunk of each of the inputs. Returns a tensor or a nest of tuples
            (NamedTuples too), lists and dicts of tensors and ``None``, each tensor with the rows of the chunk first.
        *inputs: Tensors ``(B, ...)`` of any dtype, or nests of them; ``None`` stays ``None``. Masks of what is
            present are inputs like any other. They are on the device that ``encode`` computes on.
        chunk_size: Rows that are encoded at once; the last chunk may have fewer.

    Returns:
        What ``encode`` returns for all B rows at once. For B = 0 it is called once, with no rows.

    Raises:
        TypeError: If a leaf of the inputs or of what ``encode`` returns is neither tensor nor ``None``.
        ValueError: If ``chunk_size`` is below 1, there is no input, inputs differ in their number of rows, or
            ``encode`` returns another number of rows, or on another device.

    Source: Gao et al., arXiv:2101.06983, section 3. There two passes are written out, the first without a
    graph, and a closure feeds cached gradients to the second; here :func:`torch.utils.checkpoint.checkpoint` over
    chunks has autograd do both, in the same memory: it runs one chunk's backward to its end before the next begins.

    Example:
        >>> from mmrobust import InfoNCELoss
        >>> image, text = torch.nn.Linear(5, 8), torch.nn.Linear(3, 8)
        >>> x, y = torch.randn(64, 5), torch.randn(64, 3)
        >>> query, key = cached_encode(lambda x, y: (image(x), text(y)), x, y, chunk_size=16)
        >>> InfoNCELoss()(query, key).backward()
        >>> query.shape, image.weight.grad.shape
        (torch.Size([64, 8]), torch.Size([8, 5]))
    """
    check_size(_WHERE, "chunk_size", chunk_size)
    rows, devices = _check_inputs(inputs)
    if rows <= chunk_size:
        whole = encode(*inputs)
        _check_output(whole, rows, devices)
        return whole
    return _in_chunks(encode, inputs, rows, chunk_size, devices)


# A step that is compiled leaves this to eager; an encoder that was compiled by itself runs compiled.
@_disable_dynamo
def _in_chunks(
    encode: Callable[..., T], inputs: tuple[Any, ...], rows: int, chunk_size: int, devices: set[torch.device]
) -> T:
    layers = _batch_norms(encode)

    def run(start: int) -> tuple[list[Any], TreeSpec]:
        stop = min(start + chunk_size, rows)
        chunk = tree_map(lambda x: None if x is None else x[start:stop], inputs)
        output = checkpoint(
            encode, *chunk, use_reentrant=False, context_fn=lambda: (nullcontext(), _StatisticsKept(layers))
        )
        _check_output(output, stop - start, devices)
        leaves, structure = tree_flatten(output)
        return _together(leaves), structure

    parts, structures = zip(*(run(start) for start in range(0, rows, chunk_size)), strict=True)
    joined = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    result: T = tree_unflatten(joined, structures[0])
    return result


def _check_inputs(inputs: tuple[Any, ...]) -> tuple[int, set[torch.device]]:
    """Return the number of rows that all inputs have, and where they are."""
    found = list(_tensors("inputs", inputs))
    if not found:
        raise ValueError(f"{_WHERE}: expected inputs to hold at least one tensor, got none")
    first, rows = found[0][0], 0
    for index, (name, x) in enumerate(found):
        if x.dim() == 0:
            raise ValueError(f"{_WHERE}: expected {name} of shape (B, ...), got ()")
        rows = rows if index else x.shape[0]
        if x.shape[0] != rows:
            raise ValueError(f"{_WHERE}: expected {name} to have the {rows} rows of {first}, got {x.shape[0]}")
    return rows, {x.device for _, x in found}


def _check_output(output: object, rows: int, devices: set[torch.device]) -> None:
    for name, x in _tensors("the output of encode", output):
        if x.shape[:1] != (rows,):
            raise ValueError(f"{_WHERE}: expected {name} of shape (B, ...) with B = {rows}, got {tuple(x.shape)}")
        # Checkpointing replays the random numbers of the devices that it sees.
        if x.device not in devices and x.device.type != "cpu":
            where = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"{_WHERE}: expected inputs on {x.device}, where {name} is computed, got {where}")


def _tensors(name: str, tree: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a nest with their names; None is passed over, anything else is an error."""
    for path, leaf in tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, Tensor):
            yield name + keystr(path), leaf
        elif leaf is not None:
            raise TypeError(
                f"{_WHERE}: expected {name}{keystr(path)} to be a tensor, None, or a tuple, list or dict of them, "
                f"got {type(leaf).__name__}"
            )


class _Together(torch.autograd.Function):
    """Copy tensors, with one node of the graph for all.

    The loss may ignore some of what a chunk returns. Backward has to walk there all the same, with nothing in its
    hands: what is recomputed is released by being visited, and would else pile up over the chunks.
    """

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(x.clone() for x in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return grads


def _together(leaves: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Copy what a chunk returns: the first of 128 tokens, as a view, keeps the memory of all of them."""
    attached = [x for x in leaves if x is not None and x.requires_grad]
    copies = iter(_Together.apply(*attached))  # type: ignore[no-untyped-call]
    return [x if x is None else next(copies) if x.requires_grad else x.clone() for x in leaves]


def _batch_norms(encode: object) -> list[_NormBase]:
    """Find the layers that may keep running statistics in what ``encode`` is or refers to."""
    modules = [leaf for leaf in tree_leaves(_referred(encode)) if isinstance(leaf, nn.Module)]
    layers = {layer: None for module in modules for layer in module.modules() if isinstance(layer, _NormBase)}
    return list(layers)


def _referred(encode: object) -> object:
    if isinstance(encode, functools.partial):
        return (_referred(encode.func), encode.args, encode.keywords)
    if inspect.isfunction(encode) or inspect.ismethod(encode):
        scope = inspect.getclosurevars(encode)
        return (getattr(encode, "__self__", None), dict(scope.nonlocals), dict(scope.globals))
    return encode


class _StatisticsKept:
    """Let batch normalisation update copies of its running statistics; can be entered again and again."""

    def __init__(self, layers: Sequence[_NormBase]) -> None:
        self.layers = layers
        self.kept: list[tuple[_NormBase, str, Tensor | None]] = []

    def __enter__(self) -> None:
        # Copies, not None: autograd must save as many tensors as it did the first time.
        self.kept = [(layer, name, getattr(layer, name)) for layer in self.layers for name in _STATISTICS]
        for layer, name, value in self.kept:
            setattr(layer, name, None if value is None else value.clone())

    def __exit__(self, *_: object) -> None:
        for layer, name, value in self.kept:
            setattr(layer, name, value)
