"""Contrastive losses: time, memory and accuracy against published formulas and installed libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size, Target
from benchmarks.harness.measure import free_bytes
from benchmarks.suites import contrastive_peers as peers
from benchmarks.suites.encoders import linear_flops
from mmrobust import InfoNCELoss, ModalityContrastiveLoss, NTXentLoss, SupConLoss, modality_contrastive_loss

_CLASSES = 10
_MODALITIES = 0.07  # temperature
_SMALL = (64, 128, 256, 512)
_TEMPERATURES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MB, _GB = 10**6, 10**9
_SUP_CONTRAST, _OPEN_CLIP = "the formula of SupContrast", "the formula of open_clip"
_METRIC_LEARNING = "pytorch-metric-learning"


class Loss(NamedTuple):
    """A loss of ours at its default temperature, formulas of the same in plain PyTorch, and its float64 reference."""

    name: str
    ours: Callable[..., nn.Module]
    exact: peers.Loss
    formulas: Mapping[str, peers.Loss]
    temperature: float
    labelled: bool = False


SUP_CON = Loss(
    "SupCon",
    SupConLoss,
    peers.exact_sup_con,
    {_SUP_CONTRAST: peers.sup_contrast, "masked log-softmax": peers.log_softmax_sup_con},
    temperature=0.1,
    labelled=True,
)
INFO_NCE = Loss(
    "symmetric InfoNCE",
    InfoNCELoss,
    peers.exact_info_nce,
    {_OPEN_CLIP: peers.clip, "one product": peers.clip_transposed},
    temperature=0.07,
)
NT_XENT = Loss(
    "NT-Xent",
    NTXentLoss,
    peers.exact_nt_xent,
    {"masked cross entropy": peers.masked_cross_entropy},
    temperature=0.5,
)


class Contest:
    """Collects contenders that one float64 reference judges, and what is left out."""

    def __init__(self, setup: Setup, ours: Callable[..., Any], exact: Callable[..., Any], note: str = "") -> None:
        self.device = setup.device
        self.contenders = {"ours": Contender(ours, "ours", "float64", note=note)}
        if setup.wide:  # the reference runs in float64 alone, and is never timed
            self.contenders["float64"] = Contender(exact, reference="float64")
        self.missing: dict[str, str] = {}

    def add(self, name: str, run: Callable[..., Any], kind: Any = "peer", note: str = "", needs: float = 0.0) -> None:
        """Add a contender that needs so many bytes, unless they are not there."""
        free = free_bytes(self.device)
        if needs > free:
            self.missing[name] = f"needs {needs / _GB:.3g} GB of memory, of which {free / _GB:.3g} GB are free"
        else:
            self.contenders[name] = Contender(run, kind, "float64", note=note)

    def add_library(self, name: str, build: Callable[[], nn.Module], needs: float = 0.0) -> None:
        """Add the loss of an installed library."""
        try:
            self.add(name, build(), needs=needs)
        except ImportError as error:
            self.missing[name] = f"not installed ({error})"

    def problem(self, inputs: tuple[Any, ...], **settings: Any) -> Problem:
        return Problem(self.contenders, inputs, missing=self.missing, **settings)


def _faster(loss: str, versus: str, times: float, whose: str) -> Target:
    claim = f"{loss} is never slower than {whose}" if times == 1 else f"{loss} is {times:g} times faster than {whose}"
    return Target(claim, versus=versus, at_least=times)


def _lean(loss: str, megabytes: int) -> Target:
    return Target(f"{loss} takes at most {megabytes} MB beside its inputs", bytes_at_most=megabytes * _MB)


def _accurate(loss: str) -> list[Target]:
    return [
        Target(f"{loss} is within 1e-6 of float64", quantity="outputs", error_at_most=1e-6),
        Target(f"the gradient of {loss} is within 5e-6 of float64", quantity="gradients", error_at_most=5e-6),
    ]


def _labels(setup: Setup, batch: int) -> Tensor:
    """Return classes of equal size in a random order, so that every row has a positive."""
    classes = max(1, min(_CLASSES, batch // 2))
    return (setup.normal(batch, grad=False).argsort() % classes).to(setup.device)


def _inputs(setup: Setup, loss: Loss) -> tuple[Tensor, Tensor]:
    x = setup.normal(*setup["B D"])
    return x, _labels(setup, setup["B"]) if loss.labelled else setup.normal(*setup["B D"])


def build_sup_con(setup: Setup) -> Problem:
    batch, width = setup["B D"]
    huge, on_cpu = batch > 8192, setup.device.type == "cpu"
    inputs, temperature = _inputs(setup, SUP_CON), SUP_CON.temperature
    contest = Contest(setup, SupConLoss(temperature), partial(peers.exact_sup_con, temperature=temperature))
    if huge and on_cpu:
        contest.missing["eager"] = "a call takes seconds and shows nothing new"
    else:
        eager = partial(peers.sup_contrast, temperature=temperature)
        contest.add("eager", eager, "eager", _SUP_CONTRAST, needs=35 * batch**2)
    contest.add_library(_METRIC_LEARNING, lambda: peers.metric_learning_sup_con(temperature), needs=50 * batch**2)
    targets = _accurate("SupCon") if batch in (256, 4096, 16384) else []
    if on_cpu:
        times, limit = {1024: 5, 4096: 12, 16384: 18}.get(batch), {4096: 25, 16384: 100}.get(batch)
        compiled = f"torch.compile of {_SUP_CONTRAST}"
        targets += [_faster("SupCon", "eager", 1, _SUP_CONTRAST)] if batch in _SMALL else []
        targets += [_faster("SupCon", _METRIC_LEARNING, times, _METRIC_LEARNING)] if times else []
        targets += [_faster("SupCon", "compile", 3, compiled)] if batch == 4096 else []
        targets += [_lean("SupCon", limit)] if limit else []
    return contest.problem(
        inputs,
        flops=1.0 * batch**2 * width,  # a score serves both of its rows
        targets=tuple(targets),
        modes=("forward_backward",) if huge else (),
        rounds=3 if huge else 7,
        own_process=batch >= 1024,
    )


def build_info_nce(setup: Setup) -> Problem:
    batch, width = setup["B D"]
    inputs, temperature = _inputs(setup, INFO_NCE), INFO_NCE.temperature
    contest = Contest(setup, InfoNCELoss(temperature), partial(peers.exact_info_nce, temperature=temperature))
    contest.add("eager", partial(peers.clip, temperature=temperature), "eager", _OPEN_CLIP)
    if batch <= 4096:
        one = partial(peers.clip_transposed, temperature=temperature)
        contest.add("one product", one, note="one matrix product, transposed for the other direction")
    targets = _accurate("symmetric InfoNCE") if batch in (256, 4096) else []
    if setup.device.type == "cpu":
        times = {**dict.fromkeys(_SMALL, 1.0), 4096: 2.8, 8192: 3.0}.get(batch)
        targets += [_faster("symmetric InfoNCE", "eager", times, _OPEN_CLIP)] if times else []
        targets += [_lean("symmetric InfoNCE", 50)] if batch == 8192 else []
    return contest.problem(
        inputs, flops=2.0 * batch**2 * width, targets=tuple(targets), own_process=batch >= 1024
    )  # fmt: skip


def build_nt_xent(setup: Setup) -> Problem:
    """Compare B pairs, hence 2B rows."""
    batch, width = setup["B D"]
    inputs, temperature = _inputs(setup, NT_XENT), NT_XENT.temperature
    contest = Contest(setup, NTXentLoss(temperature), partial(peers.exact_nt_xent, temperature=temperature))
    dense = partial(peers.masked_cross_entropy, temperature=temperature)
    contest.add("eager", dense, "eager", "cross entropy over all pairs, the diagonal masked")
    contest.add_library("lightly", lambda: peers.lightly_nt_xent(temperature))
    targets = _accurate("NT-Xent") if batch in (256, 2048) else []
    if setup.device.type == "cpu":
        targets += [_faster("NT-Xent", "eager", 1, "masked cross entropy")] if batch in _SMALL else []
        targets += [_faster("NT-Xent", "lightly", 5, "lightly"), _lean("NT-Xent", 25)] if batch == 2048 else []
    flops = 1.0 * (2 * batch) ** 2 * width  # a score serves both of its rows
    return contest.problem(inputs, flops=flops, targets=tuple(targets), own_process=batch >= 1024)


def build_bfloat16(loss: Loss, targets: Mapping[int, tuple[Target, ...]], setup: Setup) -> Problem:
    """Compare in bfloat16, in which products are taken; all else of the formulas is float32."""
    batch, width = setup["B D"]
    inputs = tuple(_rounded(setup, x) for x in _inputs(setup, loss))
    ours, note = _kernels(loss, inputs)
    contest = Contest(setup, ours, partial(loss.exact, temperature=loss.temperature), note)
    formula, run = next(iter(loss.formulas.items()))
    contest.add("eager", partial(run, temperature=loss.temperature), "eager", formula, needs=35 * batch**2)
    return contest.problem(
        inputs,
        flops=(1.0 if loss.labelled else 2.0) * batch**2 * width,
        targets=targets.get(batch, ()) if setup.device.type == "cuda" else (),
        dtype="bfloat16",
        tolerance=1e-2,  # bfloat16 has 8 bits
        gradient_tolerance=5e-2,
    )


def _rounded(setup: Setup, x: Tensor) -> Tensor:
    """Return numbers in bfloat16 or, for the reference, the same numbers in float64."""
    if not x.is_floating_point():
        return x
    rounded = x.detach().to(torch.bfloat16)
    return (rounded.to(setup.dtype) if setup.wide else rounded).requires_grad_()


def _kernels(loss: Loss, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, str]:
    """Return the loss with Triton kernels where they run on such inputs, or as it is; and a note."""
    kernels = loss.ours(loss.temperature, impl="triton")
    try:
        kernels(*(x.detach()[:4] for x in inputs))
    except (ImportError, RuntimeError):
        return loss.ours(loss.temperature), ""
    return kernels, "impl='triton'"


Embed = Callable[[Setup, Tensor], Tensor]
# What promises say counts here: peers may be far off, and times are beside the point.
_LOOSE: dict[str, Any] = {
    "tolerance": 1e-2,
    "gradient_tolerance": 0.5,
    "modes": ("forward_backward",),
    "rounds": 3,
}


def _collapsed(setup: Setup, noise: Tensor) -> Tensor:
    """Return embeddings that all point into one direction, but for angles of about a thousandth."""
    return setup.normal(1, noise.shape[1], grad=False).to(noise.dtype) + 1e-3 * noise


def _opposite(setup: Setup, noise: Tensor) -> Tensor:
    """Return embeddings in two bundles, as far from each other as vectors can be, two rows here, two there."""
    centre, row = setup.normal(1, noise.shape[1], grad=False).to(noise.dtype), torch.arange(len(noise))
    return (1 - 2 * (row // 2 % 2)).to(noise.device).unsqueeze(1) * centre + 1e-2 * noise


def _embeddings(setup: Setup, loss: Loss, embed: Embed) -> list[Tensor]:
    """Return the inputs of a loss for embeddings that are computed in float32, also for the reference."""
    batch, width = setup["B D"]
    noise = setup.normal(batch if loss.labelled else 2 * batch, width, grad=False).float()
    parts = [part.to(setup.dtype).requires_grad_() for part in embed(setup, noise).split(batch)]
    return [*parts, _labels(setup, batch)] if loss.labelled else parts


def build_collapsed(loss: Loss, setup: Setup) -> Problem:
    ours, exact = loss.ours(loss.temperature), partial(loss.exact, temperature=loss.temperature)
    contest = Contest(setup, ours, exact)
    for name, run in loss.formulas.items():
        contest.add(name, partial(run, temperature=loss.temperature))
    targets = tuple(_accurate(f"{loss.name} of collapsed embeddings"))
    inputs = tuple(_embeddings(setup, loss, _collapsed))
    return contest.problem(inputs, targets=targets, **_LOOSE)


def build_temperatures(loss: Loss, setup: Setup) -> Problem:
    """Compare losses of random and of opposite embeddings from temperature 1e-3 to 10, times the temperature."""
    embeds: tuple[Embed, ...] = (lambda _, noise: noise, _opposite)
    inputs = tuple(_embeddings(setup, loss, embed) for _ in _TEMPERATURES for embed in embeds)

    def every(run: Callable[[float], Callable[..., Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
        losses = [(t, run(t)) for t in _TEMPERATURES for _ in embeds]
        return lambda *inputs: tuple(t * loss(*x) for (t, loss), x in zip(losses, inputs, strict=True))

    contest = Contest(setup, every(loss.ours), every(lambda t: partial(loss.exact, temperature=t)))
    for name, run in loss.formulas.items():
        contest.add(name, every(lambda t, run=run: partial(run, temperature=t)))
    claim = f"{loss.name} is finite, and within 1e-3 of float64, at temperatures from 1e-3 to 10"
    targets = (
        Target(claim, quantity="outputs", error_at_most=1e-3),
        Target(f"the gradient of {claim}", quantity="gradients", error_at_most=1e-3),
    )
    return contest.problem(inputs, targets=targets, **_LOOSE)


def plain_modality_contrast(x: Tensor, present: Tensor) -> Tensor:
    """Write out the loop over pairs of modalities; samples that lack one of a pair are masked out of it."""
    losses, counts = [], []
    for a, b in combinations(range(x.shape[1]), 2):
        both = present[:, a] & present[:, b]
        logits = F.normalize(x[:, a], dim=-1) @ F.normalize(x[:, b], dim=-1).T / _MODALITIES
        positive = logits.diagonal()
        logits = torch.where(both[:, None] & both[None, :], logits, -1e9)
        rows = (torch.logsumexp(logits, 1) + torch.logsumexp(logits, 0)) / 2 - positive
        losses.append(torch.where(both, rows, 0.0).sum() / both.sum().clamp(min=1))
        counts.append(both.any())
    return torch.stack(losses).sum() / torch.stack(counts).sum().clamp(min=1)


def build_modality_contrastive(setup: Setup) -> Problem:
    batch, modalities, width = setup["B M H"]

    def ours(x: Tensor, present: Tensor) -> Tensor:
        return modality_contrastive_loss(x, present, temperature=_MODALITIES)

    contenders = {"ours": Contender(ours, "ours"), "eager": Contender(plain_modality_contrast, "eager")}
    inputs = (setup.normal(batch, modalities, width), setup.mask(batch, modalities))
    flops = 2.0 * batch**2 * width * modalities * (modalities - 1) / 2
    return Problem(contenders, inputs, flops=flops)


def plain_projections(loss: Any, mu: Tensor) -> Tensor:
    """Write out one head per modality."""
    projected = [
        F.linear(F.relu(F.linear(mu[:, m], head[0].weight, head[0].bias)), head[2].weight, head[2].bias)
        for m, head in enumerate(loss.heads)
    ]
    return torch.stack(projected, 1)


def build_modality_contrastive_module(setup: Setup) -> Problem:
    batch, modalities, width = setup["B M H"]
    loss = setup.module(lambda: ModalityContrastiveLoss(width, modalities))

    def eager(mu: Tensor, present: Tensor) -> Tensor:
        return plain_modality_contrast(plain_projections(loss, mu), present)

    contenders = {"ours": Contender(loss, "ours"), "eager": Contender(eager, "eager")}
    inputs = (setup.normal(batch, modalities, width), setup.mask(batch, modalities))
    pairs = modalities * (modalities - 1) / 2
    return Problem(contenders, inputs, (loss,), flops=linear_flops(batch, loss) + 2.0 * batch**2 * 64 * pairs)


def _sizes(*batches: int, width: int = 128, compiled: tuple[int, ...] = (), on_gpu: tuple[int, ...] = ()) -> Any:
    sizes = [Size({"B": batch, "D": width}, compile=batch in compiled) for batch in batches]
    return (*sizes, *(Size({"B": b, "D": width}, cpu="never", compile=b in compiled) for b in on_gpu))


_FAST_SUP_CON = {
    16384: (
        Target("SupCon in bfloat16 takes at most 0.9 ms", seconds_at_most=0.9e-3),
        _faster("SupCon in bfloat16", "eager", 10, _SUP_CONTRAST),
        _faster("SupCon in bfloat16", "compile", 3, f"torch.compile of {_SUP_CONTRAST}"),
    ),
    131072: (Target("SupCon takes at most 2 GB beside its inputs", bytes_at_most=2 * _GB),),
    262144: (Target("SupCon takes at most 0.35 s", seconds_at_most=0.35),),
}
_FAST_INFO_NCE = {32768: (_faster("symmetric InfoNCE in bfloat16", "eager", 1.5, _OPEN_CLIP),)}
_TOY = {"B": 6, "D": 5}
_SUP_CON, _INFO_NCE, _NT_XENT = (
    ("SupConLoss", "sup_con_loss"),
    ("InfoNCELoss", "info_nce_loss"),
    ("NTXentLoss", "nt_xent_loss"),
)
_CONTRAST = (Size({"B": 32, "M": 3, "H": 128}), Size({"B": 1024, "M": 3, "H": 128}, compile=True))

CASES = (
    Case("SupConLoss", build_sup_con, _TOY, _sizes(32, *_SMALL, 1024, 4096, 16384, compiled=(4096,)), _SUP_CON),
    Case("InfoNCELoss", build_info_nce, _TOY, _sizes(32, *_SMALL, 1024, 4096, 8192, compiled=(4096,)), _INFO_NCE),
    Case("NTXentLoss", build_nt_xent, _TOY, _sizes(32, *_SMALL, 2048, compiled=(2048,)), _NT_XENT),
    Case(
        "SupConLoss bfloat16",
        partial(build_bfloat16, SUP_CON, _FAST_SUP_CON),
        _TOY,
        _sizes(32, compiled=(16384,), on_gpu=(16384, 131072, 262144)),
        _SUP_CON,
    ),
    Case(
        "InfoNCELoss bfloat16",
        partial(build_bfloat16, INFO_NCE, _FAST_INFO_NCE),
        _TOY,
        _sizes(32, width=512, on_gpu=(32768,)),
        _INFO_NCE,
    ),
    *(
        Case(f"{covers[0]} {what}", build, _TOY, _sizes(96, *batches), covers)
        for loss, covers in ((SUP_CON, _SUP_CON), (INFO_NCE, _INFO_NCE), (NT_XENT, _NT_XENT))
        for what, build, batches in (
            ("collapsed", partial(build_collapsed, loss), (1024, 2048 if loss is NT_XENT else 4096)),
            ("temperatures", partial(build_temperatures, loss), (1024,)),
        )
    ),
    Case("modality_contrastive_loss", build_modality_contrastive, {"B": 4, "M": 3, "H": 5}, _CONTRAST),
    Case("ModalityContrastiveLoss", build_modality_contrastive_module, {"B": 4, "M": 3, "H": 5}, _CONTRAST),
)
