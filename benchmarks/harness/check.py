"""Correctness before speed: every contender against the float64 twin of its reference."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .case import Contender, Problem, tensors


@dataclass(frozen=True)
class Check:
    """One comparison: relative error ``|out - ref| / |ref|`` of outputs or of gradients (None = not finite)."""

    contender: str
    reference: str
    quantity: str
    error: float | None
    tolerance: float
    passed: bool

    def record(self) -> dict[str, Any]:
        return asdict(self)


def check_contender(
    name: str, contender: Contender, problem: Problem, wide: Problem, *, gradients: bool = True
) -> list[Check]:
    """Compare outputs, and gradients where there are any, with the reference in float64."""
    reference = wide.contenders[contender.reference]
    if contender.check is not None and reference.check is not None:
        have, want = contender.check(contender.run), reference.check(reference.run)
        error = relative_error(list(tensors(have)), list(tensors(want)))
        return [_judge(name, contender.reference, "statistics", error, problem.tolerance)]
    error = relative_error(_outputs(contender, problem), _once(contender.reference, wide, "outputs"))
    checks = [_judge(name, contender.reference, "outputs", error, problem.tolerance)]
    if gradients and problem.gradients and checks[0].passed:
        have, want = _gradients(contender, problem), _once(contender.reference, wide, "gradients")
        if contender.own and contender.reference != name:  # other parameters: the inputs' gradients must agree
            have, want = (found[: _input_leaves(problem)] for found in (have, want))
        error = relative_error(have, want)
        checks.append(_judge(name, contender.reference, "gradients", error, problem.gradient_tolerance))
    return checks


def cotangents(outputs: list[Tensor]) -> list[Tensor]:
    """Return fixed directions for the backward pass: one for scalars, random for the rest, equal in every precision."""
    random = torch.Generator().manual_seed(1)
    return [
        torch.ones_like(out) if out.dim() == 0 else torch.randn(out.shape, generator=random).to(out.device, out.dtype)
        for out in outputs
    ]


def relative_error(have: list[Tensor], want: list[Tensor]) -> float:
    """Return the largest ``|have - want| / |want|`` over the pairs; NaN when shapes or counts differ.

    A tensor far smaller than the largest one is judged on a hundredth of that one's scale: its rounding noise is
    no error (gradients that are zero in exact arithmetic).
    """
    if len(have) != len(want) or any(a.shape != b.shape for a, b in zip(have, want, strict=True)):
        return math.nan
    wide = [(a.detach().double(), b.detach().to(a.device, torch.float64)) for a, b in zip(have, want, strict=True)]
    scales = [float(b.norm()) for _, b in wide]
    least = max([*scales, 1e-30]) / 100
    return max([float((a - b).norm()) / max(s, least) for (a, b), s in zip(wide, scales, strict=True)], default=0.0)


def _judge(contender: str, reference: str, quantity: str, error: float, tolerance: float) -> Check:
    finite = math.isfinite(error)
    passed = finite and error <= tolerance
    return Check(contender, reference, quantity, error if finite else None, tolerance, passed)


def _once(name: str, wide: Problem, quantity: str) -> list[Tensor]:
    """Return outputs or gradients of a reference, which all contenders share."""
    if (name, quantity) not in wide.known:
        compute = _outputs if quantity == "outputs" else _gradients
        wide.known[name, quantity] = compute(wide.contenders[name], wide)
    return wide.known[name, quantity]


def _outputs(contender: Contender, problem: Problem) -> list[Tensor]:
    problem.train(False)
    with torch.no_grad():
        return list(tensors(contender.run(*problem.inputs)))


def _input_leaves(problem: Problem) -> int:
    return sum(leaf.requires_grad for leaf in tensors(problem.inputs))


def _gradients(contender: Contender, problem: Problem) -> list[Tensor]:
    wanted = problem.wanted(contender)
    problem.train(not problem.stochastic)
    # cuDNN has no backward pass for recurrent layers in eval mode, where stochastic problems are checked.
    with torch.backends.cudnn.flags(enabled=not problem.stochastic, allow_tf32=False):
        outputs = [out for out in tensors(contender.run(*problem.inputs)) if out.requires_grad]
        found = torch.autograd.grad(outputs, wanted, cotangents(outputs), allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(wanted, found, strict=True)]
