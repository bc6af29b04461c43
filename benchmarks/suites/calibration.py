"""Calibration: finding one temperature, and dividing by it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from mmrobust import TemperatureScaling, fit_temperature

_CLASSES = (
    Size({"B": 32, "C": 6}),
    Size({"B": 65536, "C": 6}, compile=True),
    Size({"B": 8192, "C": 1000}, cpu="full"),
)


def build_fit_temperature(setup: Setup) -> Problem:
    """Compare with a search that looks at each step's result, and with L-BFGS, which is how it is published."""
    batch, classes = setup["B C"]
    logits = setup.normal(batch, classes, scale=3.0, grad=False)
    labels = torch.where(setup.mask(batch, keep=0.7), logits.argmax(1), setup.labels(batch, classes=classes))

    def eager(logits: Tensor, labels: Tensor) -> Tensor:
        low, high = math.log(0.01), math.log(100.0)
        for _ in range(40):
            middle = (low + high) / 2
            p = (logits / math.exp(middle)).softmax(1)
            slope = (p * logits).sum() - logits.gather(1, labels.unsqueeze(1)).sum()
            low, high = (middle, high) if float(slope) > 0 else (low, middle)
        return logits.new_tensor(math.exp((low + high) / 2))

    def lbfgs(logits: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            temperature = torch.ones((), dtype=logits.dtype, device=logits.device, requires_grad=True)
            optimizer = torch.optim.LBFGS([temperature], max_iter=50, line_search_fn="strong_wolfe")

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(logits / temperature, labels)
                torch.autograd.backward(loss)
                return loss

            optimizer.step(closure)
        return temperature.detach()

    contenders = {
        "ours": Contender(fit_temperature, "ours"),
        "eager": Contender(eager, "eager", note="the same search, waiting for the device at every step"),
        "L-BFGS": Contender(lbfgs, note="as published, to its default tolerance"),
    }
    return Problem(contenders, (logits, labels), gradients=False, tolerance=1e-2, compiles="no")


def build_temperature_scaling(setup: Setup) -> Problem:
    scale = setup.module(lambda: TemperatureScaling(1.7))
    contenders = {
        "ours": Contender(scale, "ours"),
        "eager": Contender(lambda logits: logits / scale.temperature, "eager"),
    }
    return Problem(contenders, (setup.normal(*setup["B C"]),), (scale,))


CASES = (
    Case("fit_temperature", build_fit_temperature, {"B": 40, "C": 3}, _CLASSES),
    Case("TemperatureScaling", build_temperature_scaling, {"B": 5, "C": 3}, _CLASSES),
)
