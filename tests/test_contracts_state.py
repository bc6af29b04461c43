"""Contracts on state: checkpoints, copies, devices, randomness, training mode, threads, memory."""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.components import ROWS, contract
from tests.contract import (
    Row,
    Size,
    assert_close,
    assert_equal,
    call,
    cast,
    draw,
    gradients,
    make,
    tensors,
    with_grad,
)

GOLDEN = Path(__file__).with_name("golden_keys.json")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no-gpu: needs a CUDA device")


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


@contract("state-dict")
def test_state_dict_round_trip(row: Row) -> None:
    """A checkpoint read with weights_only=True restores the component strictly and exactly."""
    module, inputs = make(row, seed=1), draw(row)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = make(row, seed=2)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_equal(call(other, inputs), call(module, inputs))


@contract("golden-keys")
def test_golden_keys(row: Row) -> None:
    """Names and shapes of the state are the public file format: change them on purpose only."""
    golden = json.loads(GOLDEN.read_text())
    assert row.name in golden, f"add {row.name} with: python -m tests.golden"
    assert _shapes(make(row)) == golden[row.name]


def test_golden_keys_are_not_stale() -> None:
    assert set(json.loads(GOLDEN.read_text())) == {row.name for row in ROWS}


@contract("copies")
def test_deepcopy_and_pickle(row: Row) -> None:
    module, inputs = make(row), draw(row)
    want = call(module, inputs)
    twin = copy.deepcopy(module)
    assert_equal(call(twin, inputs), want)
    assert_equal(call(pickle.loads(pickle.dumps(module)), inputs), want)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert_equal(call(module, inputs), want, "the copy shares memory")


@contract("repr")
def test_repr(row: Row) -> None:
    module = make(row)
    assert repr(module).startswith(type(module).__name__ + "(")


@contract("meta")
def test_meta_device(row: Row) -> None:
    """Built on the meta device, a component holds no memory and takes a checkpoint."""
    module, inputs = make(row, dtype=torch.float32), draw(row, dtype=torch.float32)
    with torch.device("meta"):
        empty = row.build(Size())
    assert all(x.is_meta for x in [*empty.parameters(), *empty.buffers()])
    empty = empty.to_empty(device="cpu").eval()
    for key, buffer in module.named_buffers():
        if key not in module.state_dict():
            empty.get_buffer(key).copy_(buffer)
    empty.load_state_dict(module.state_dict(), strict=True)
    assert_equal(call(empty, inputs), call(module, inputs))


@contract("to-dtype")
def test_to_dtype(row: Row) -> None:
    """.to moves every floating parameter and buffer, and back gives the same numbers."""
    module, inputs = make(row, dtype=torch.float32), draw(row, dtype=torch.float32)
    want = call(module, inputs)
    wide = copy.deepcopy(module).to(torch.float64)
    assert all(x.dtype == torch.float64 for x in wide.parameters())
    assert_close(call(wide, cast(inputs, torch.float64)), want, rtol=1e-4, atol=1e-4)
    assert_equal(call(wide.to(torch.float32), inputs), want)


@contract("eval-draws-nothing")
def test_eval_is_deterministic_and_draws_nothing(row: Row) -> None:
    module, inputs = make(row), draw(row)
    want = call(module, inputs)
    state = torch.get_rng_state()
    first, second = dict(tensors(module(**inputs))), dict(tensors(module(**inputs)))
    assert torch.equal(torch.get_rng_state(), state), "drew random numbers in eval mode"
    assert_equal(first, want)
    assert_equal(second, want)


@contract("train-is-eval")
def test_training_computes_the_same(row: Row) -> None:
    module, inputs = make(row), draw(row)
    want = call(module, inputs)
    module.train()
    assert all(m.training for m in module.modules())
    assert_equal(call(module, inputs), want)


@contract("train-draws")
def test_training_draws_from_the_seed(row: Row) -> None:
    """In training the seed, and nothing else, decides; eval afterwards is what it was before."""
    module, inputs = make(row), draw(row, Size(batch=8))
    before = call(module, inputs)
    module.train()
    first, again, other = (call(module, inputs, seed) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert any(not torch.equal(first[name], other[name]) for name in first), "the seed changed nothing"
    assert_equal(call(module.eval(), inputs), before)


@contract("saved-memory")
def test_memory_kept_for_backward(row: Row) -> None:
    """What autograd keeps grows with the inputs, not with their square and not with copies of them."""
    size = Size(batch=64, steps=32)
    module, inputs = make(row, size, torch.float32), with_grad(row, draw(row, size, torch.float32))
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    module.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = call(module, inputs)
    given = sum(x.nbytes for _, x in tensors(inputs)) + sum(p.nbytes for p in module.parameters())
    assert outputs
    assert sum(kept.values()) <= row.saved_factor * given, f"{sum(kept.values()) / given:.1f} times the input"


@contract("threads")
def test_eight_threads_share_one_eval_module(row: Row) -> None:
    module = make(row, dtype=torch.float32)
    cases = [draw(row, dtype=torch.float32, seed=seed) for seed in range(8)]
    with torch.no_grad():
        want = [dict(tensors(module(**inputs))) for inputs in cases]

        def work(index: int) -> list[dict[str, torch.Tensor]]:
            with torch.no_grad():
                return [dict(tensors(module(**cases[index]))) for _ in range(4)]

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(work, range(8)))
        finally:
            sys.setswitchinterval(interval)
    for index, results in enumerate(found):
        for result in results:
            assert_equal(result, want[index], f"thread {index}")


@NEEDS_GPU
@contract("cuda-parity")
def test_cuda_parity(row: Row) -> None:
    """Outputs and gradients on the GPU equal those on the CPU."""
    module, inputs = make(row), draw(row)
    outputs, grads = gradients(row, module, inputs)
    moved = {key: _to_cuda(value) for key, value in inputs.items()}
    cuda_outputs, cuda_grads = gradients(row, module.cuda(), moved)
    assert_close({k: v.cpu() for k, v in cuda_outputs.items()}, outputs, rtol=1e-9, atol=1e-9)
    assert_close({k: v.cpu() for k, v in cuda_grads.items()}, grads, rtol=1e-8, atol=1e-8)


@NEEDS_GPU
@contract("no-host-sync")
def test_no_host_sync(row: Row) -> None:
    """Forward and backward never wait for the device."""
    module = make(row, dtype=torch.float32).cuda()
    inputs = with_grad(row, {key: _to_cuda(value) for key, value in draw(row, dtype=torch.float32).items()})
    dict(tensors(module(**inputs)))  # first use builds handles and workspaces
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = [out for _, out in tensors(module(**inputs)) if out.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _to_cuda(value: object) -> object:
    from tests.contract import tree_map

    return tree_map(lambda x: x.cuda(), value)
