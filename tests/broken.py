"""A sound stand-in component and its broken relatives, each with one fault: what the guard feeds to the contracts."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrobust._checks import as_mask, check_floating, check_shape
from mmrobust.masking import masked_mean, zero_missing
from tests.contract import Inputs, Row, Size
from tests.rows.common import H, normal, pad_steps, presence, reads, wrong


class Sound(nn.Module):
    """Project every step, average the present ones."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(H, H)

    def clean(self, x: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor | None]:
        check_floating("Sound", "x", x)
        check_shape("Sound", "x", x, B=None, M=None, H=H)
        present = as_mask("Sound", "present", present, B=x.shape[0], M=x.shape[1])
        return zero_missing(x, present), present

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        x, present = self.clean(x, present)
        return masked_mean(self.linear(x), present)


def _inputs(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "x": normal(rng, size.batch, size.modalities, H),
        "present": presence(rng, size.batch, size.modalities),
    }


def _reference(state: Any, x: Any, present: Any = None) -> Any:
    out = np.zeros((len(x), H))
    for b in range(len(x)):
        here = [m for m in range(x.shape[1]) if present is None or present[b, m]]
        for m in here:
            out[b] += (state["linear.weight"] @ x[b, m] + state["linear.bias"]) / len(here)
    return out


SOUND = Row(
    "Sound",
    lambda size: Sound(),
    _inputs,
    _reference,
    real=reads(x="present"),
    wrong=(
        wrong("x", "integer", lambda x: x.long(), "floating-point", error=TypeError),
        wrong("x", "width", lambda x: x[..., 1:], "(4, 3, 5)"),
        wrong("present", "shape", lambda p: p[:, 1:], "(4, 2)"),
    ),
    letters="BM",
    masks=("present",),
    modality_axis={"x": 1, "present": 1},
    pad=lambda inputs, extra: {
        "x": pad_steps(inputs["x"], extra, float("nan")),
        "present": pad_steps(inputs["present"], extra, False),
    },
    extremes={"1e30": lambda inputs: {**inputs, "x": 1e30 * inputs["x"]}},
)


# Broken stand-ins ------------------------------------------------------------------------------------------------


class Multiplies(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        mask = torch.ones(x.shape[:2]) if present is None else present
        return masked_mean(self.linear(x * mask.unsqueeze(-1).to(x.dtype)), present)


class WhereAfterLinear(Sound):
    """The output is right; the gradient of the weight is NaN."""

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return masked_mean(zero_missing(self.linear(x), present), present)


class ReadsAbsent(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return self.linear(x.nan_to_num(0.0, 0.0, 0.0)).mean(1)


class DividesByAll(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        x, present = self.clean(x, present)
        return zero_missing(self.linear(x), present).mean(1)


class EmptyIsNaN(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        x, present = self.clean(x, present)
        keep = torch.ones(x.shape[:2], dtype=torch.bool) if present is None else present
        logits = torch.where(keep, x.sum(-1), -torch.inf)
        return (logits.softmax(1).unsqueeze(-1) * self.linear(x)).sum(1)


class OrderCounts(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        x, present = self.clean(x, present)
        return masked_mean(self.linear(x) * torch.arange(1, x.shape[1] + 1).unsqueeze(-1), present)


class NoneIsAbsent(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, x.new_zeros(x.shape[:2], dtype=torch.bool) if present is None else present)


class InvertsIntegers(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, None if present is None else ~(~present))[: len(x)] * (
            1 if present is None or present.dtype == torch.bool else 2
        )


class BatchStatistics(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        out = super().forward(x, present)
        return out - (out.mean(0) if len(out) else 0)


class RowNumber(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present) + torch.arange(len(x)).unsqueeze(-1)


class EmptyBatch(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        out = super().forward(x, present)
        return out + out.detach().sum() / len(x) * 0 if len(x) else out.new_full((1, H), float("nan"))


class OneModality(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present) / (x.shape[1] - 1)


class ReadsMemory(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        batch, count = x.shape[:2]
        return super().forward(torch.as_strided(x, (batch, count, H), (count * H, H, 1)), present)


class WritesInput(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        out = super().forward(x, present)
        with torch.no_grad():
            x.mul_(0.5)
        return out


class SlightlyOff(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present) * (1 + 1e-7)


class Detached(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x.detach(), present) + 0 * x.sum()


class Widens(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present).float()


class Overflows(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present) * 6e4 * 10 / 6e4 / 10


class Squares(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        out = super().forward(x, present)
        return out.square().sum(-1, keepdim=True).sqrt() + out


class DrawsInEval(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return nn.functional.dropout(super().forward(x, present), 0.5, training=True)


class DrawsForNothing(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        torch.rand(1)
        return super().forward(x, present)


class TrainsOtherwise(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present) * (2 if self.training else 1)


class PlainState(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(H).tolist()

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present) * x.new_tensor(self.scale)


class SharedCopy(Sound):
    def __deepcopy__(self, memo: dict[int, Any]) -> SharedCopy:
        return self


class NeedsValues(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.start = float(self.linear.weight[0, 0])


class KeepsState(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        self.given = x
        time.sleep(0.002)
        return super().forward(self.given, present)


class SquareMemory(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        out = super().forward(x, present)
        similar = (out.repeat(8, 1) @ out.repeat(8, 1).T).exp()
        return out + 0 * similar.sum()


class BranchesOnValues(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present) if x.sum() > 0 else super().forward(x, present) * 1.0


class SpecialisesOnBatch(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(x, present) + 0 * torch.ones(int(str(len(x))))[0]


class ChecksNothing(Sound):
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        return (x.double() @ self.linear.weight.double()[:, : x.shape[-1]].T).mean(1).to(x.dtype)
