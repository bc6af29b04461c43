"""What the kernels say about where they run, with or without Triton."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrobust import _kernels

ROOT = Path(__file__).resolve().parents[2]


class OnGPU:
    """What `available` looks at of a CUDA tensor."""

    dtype = torch.float32
    device = torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(_kernels, "_is_installed", lambda: True)
    return monkeypatch


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "_is_installed", lambda: False)
    assert _kernels.available(torch.zeros(1)) == "Triton is not installed (pip install 'mmrobust[triton]')"


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_dtypes_without_a_kernel(dtype: torch.dtype, gpu: pytest.MonkeyPatch) -> None:
    assert _kernels.available(torch.zeros(1, dtype=dtype)) == f"there is no Triton kernel for {dtype}"


def test_on_a_cpu(gpu: pytest.MonkeyPatch) -> None:
    gpu.delenv("TRITON_INTERPRET", raising=False)
    assert _kernels.available(torch.zeros(1)) == "Triton kernels need a CUDA tensor, got one on the CPU"
    gpu.setenv("TRITON_INTERPRET", "1")
    assert all(_kernels.available(torch.zeros(1, dtype=dtype)) is None for dtype in _kernels._DTYPES)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_on_a_gpu(capability: tuple[int, int], gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "hip", None)
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _kernels.available(OnGPU()) is None


@pytest.mark.parametrize("capability", [(7, 5), (10, 0)])
def test_on_another_gpu(capability: tuple[int, int], gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "hip", None)
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    have = ".".join(map(str, capability))
    expected = f"Triton kernels are made for compute capabilities 8.x, 9.x, 12.x, cuda:1 has {have}"
    assert _kernels.available(OnGPU()) == expected


def test_on_rocm(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "hip", "6.4")
    assert _kernels.available(OnGPU()) == "Triton kernels need an NVIDIA GPU, got a tensor on cuda:1"


def test_asking_imports_no_triton() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); from mmrobust._kernels import available, contrastive, plans\n"
        "available(torch.zeros(1)); assert not [m for m in set(sys.modules) - before if m.startswith('triton')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
