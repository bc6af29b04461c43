"""Contracts on torch.compile and torch.export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.components import ROWS, contract
from tests.contract import Row, Size, assert_close, assert_finite, call, draw, gradients, make, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch itself, while it traces


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _same(row: Row, module: nn.Module, compiled: nn.Module, inputs: dict, tolerance: float = 1e-10) -> None:
    outputs, grads = gradients(row, module, inputs)
    got_outputs, got = gradients(row, compiled, inputs)
    got = {name.replace("_orig_mod.", ""): grad for name, grad in got.items()}
    assert_close(got_outputs, outputs, rtol=tolerance, atol=tolerance)
    assert_close(got, grads, rtol=tolerance * 10, atol=tolerance * 10)


@contract("compile")
def test_compiles_to_one_graph(row: Row) -> None:
    """fullgraph and dynamic, outputs and gradients as in eager; one graph for three patterns and three batch sizes."""
    module = make(row)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, dynamic=True, backend="aot_eager")
    # No batch size equals another size of a row: dynamo would take the two for one and recompile when they part.
    for batch, seed in ((11, 0), (9, 1), (13, 2)):
        with torch._dynamo.config.patch(error_on_recompile=True):
            _same(row, module, compiled, draw(row, Size(batch=batch), seed=seed))


def test_lstm_rows_still_break_the_graph() -> None:
    """Once torch compiles nn.LSTM, the reason to skip goes."""
    for row in ROWS:
        if row.graph_breaks:
            torch._dynamo.reset()
            with pytest.raises(torch._dynamo.exc.Unsupported):
                call(torch.compile(make(row), fullgraph=True, dynamic=True, backend="eager"), draw(row))


@pytest.mark.parametrize("row", [row for row in ROWS if row.graph_breaks], ids=lambda row: row.name)
def test_lstm_compiles_without_fullgraph(row: Row) -> None:
    module = make(row)
    compiled = torch.compile(copy.deepcopy(module), dynamic=True, backend="aot_eager")
    for batch in (5, 3):
        _same(row, module, compiled, draw(row, Size(batch=batch)))


@contract("compile-training")
def test_compiles_in_training(row: Row) -> None:
    """The random paths of training trace too; the numbers differ, for a compiled graph draws in its own order."""
    module = make(row).train()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=not row.graph_breaks, dynamic=True, backend="eager")
    want = call(module, draw(row))
    got = call(compiled, draw(row))
    assert {k: (v.shape, v.dtype) for k, v in got.items()} == {k: (v.shape, v.dtype) for k, v in want.items()}
    assert_finite(got)


@pytest.mark.slow
@contract("inductor")
def test_inductor(row: Row) -> None:
    module = make(row, dtype=torch.float32)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=not row.graph_breaks, dynamic=True)
    for batch in (5, 3):
        _same(row, module, compiled, draw(row, Size(batch=batch), torch.float32), tolerance=2e-5)


def _shapes(value: Any, batch: Any, axis: int = 0) -> Any:
    """Mark the batch dimension of every tensor."""
    if isinstance(value, dict):
        return {key: _shapes(part, batch, axis) for key, part in value.items()}
    if isinstance(value, list):
        return [_shapes(part, batch, axis) for part in value]
    return {axis: batch} if isinstance(value, torch.Tensor) else None


class _Positional(nn.Module):
    """Take arguments by position: export ties shapes to names, and a wrapped function has none of its own."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *args: Any) -> Any:
        return self.module(**dict(zip(self.names, args, strict=True)))


@contract("export")
def test_exports_with_dynamic_batch(row: Row) -> None:
    """torch.export with a dynamic batch dimension; the program serves other batch sizes."""
    module, inputs = make(row), draw(row, Size(batch=11))
    batch = torch.export.Dim("batch", min=2, max=1024)
    shapes = {"args": tuple(_shapes(value, batch, row.axis(key)) for key, value in inputs.items())}
    positional = _Positional(module, tuple(inputs))
    program = torch.export.export(positional, tuple(inputs.values()), dynamic_shapes=shapes).module()
    for size in (5, 2, 9):
        other = draw(row, Size(batch=size), seed=size)
        torch.manual_seed(0)
        got = dict(tensors(program(*other.values())))
        assert_close(got, call(module, other), rtol=1e-10, atol=1e-10)
