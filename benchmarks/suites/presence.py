"""Presence masks and corruptions; what is random is checked by its statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size, Target
from mmrobust import (
    ModalityCorruption,
    ModalityDropout,
    add_noise,
    all_presence_patterns,
    drop_frames,
    presence_from_zeros,
    presence_views,
    random_presence,
    scale_rows,
    shuffle_rows,
    spoil_rows,
)

Statistics = Callable[[Callable[..., Tensor]], Tensor]
_MASK_SIZES = (Size({"B": 32, "M": 3}), Size({"B": 4096, "M": 3}, compile=True))
_ROW_SIZES = (
    Size({"B": 32, "D": 1024}),
    Size({"B": 4096, "D": 1024}, compile=True),
    Size({"B": 65536, "D": 1024}, cpu="never"),
)


def build_presence_from_zeros(setup: Setup) -> Problem:
    batch, modalities, features = setup["B M D"]
    parts = [setup.normal(batch, features, grad=False) for _ in range(modalities)]
    for part in parts:
        part[:: 2 + len(part) // 8] = 0.0

    def eager(*parts: Tensor) -> Tensor:
        return torch.stack([part.abs().amax(1) > 0 for part in parts], 1)

    contenders = {
        "ours": Contender(lambda *parts: presence_from_zeros(parts), "ours"),
        "eager": Contender(eager, "eager"),
    }
    return Problem(contenders, tuple(parts), gradients=False)


def build_all_presence_patterns(setup: Setup) -> Problem:
    modalities = setup["M"]

    def eager() -> Tensor:
        rows = [row for row in itertools.product((1, 0), repeat=modalities) if any(row)]
        return torch.tensor(sorted(rows, key=lambda row: -sum(row)), dtype=torch.bool)

    contenders = {
        "ours": Contender(lambda: all_presence_patterns(modalities), "ours"),
        "eager": Contender(eager, "eager"),
    }
    return Problem(contenders, gradients=False, compiles="no")


def build_presence_views(setup: Setup) -> Problem:
    """Take all subsets of the modalities, so that nothing is random."""
    present = setup.mask(*setup["B M"])
    modalities = present.shape[1]

    def eager(present: Tensor) -> Tensor:
        rows = [row for row in itertools.product((1, 0), repeat=modalities) if 0 < sum(row) < modalities]
        views = [present]
        for row in sorted(rows, key=lambda row: -sum(row)):
            view = present & torch.tensor(row, dtype=torch.bool, device=present.device)
            views.append(torch.where(view.any(1, keepdim=True), view, present))
        return torch.stack(views)

    contenders = {
        "ours": Contender(lambda present: presence_views(present, 2**modalities), "ours"),
        "eager": Contender(eager, "eager"),
    }
    return Problem(contenders, (present,), gradients=False)


def build_random_presence(setup: Setup) -> Problem:
    batch, modalities = setup["B M"]
    rate, device = 0.5, setup.device

    def ours(rows: int = batch) -> Tensor:
        return random_presence(rows, modalities, rate, device=device)

    def eager(rows: int = batch) -> Tensor:
        keep = torch.rand(rows, modalities, device=device) >= rate
        rescued = torch.randint(modalities, (rows, 1), device=device)
        return keep | (~keep.any(1, keepdim=True) & (torch.arange(modalities, device=device) == rescued))

    def loop(rows: int = batch) -> Tensor:
        mask = torch.rand(rows, modalities, device=device) >= rate
        for row in range(rows):
            if not bool(mask[row].any()):
                mask[row, int(torch.randint(modalities, (1,)))] = True
        return mask

    weights = torch.full((2**modalities,), rate**modalities, dtype=torch.float64)
    weights[0] = 0.0
    weights[2 ** torch.arange(modalities)] += rate**modalities / modalities
    return _random_masks(setup, {"ours": ours, "eager": eager, "loop": loop}, weights)


def build_modality_dropout(setup: Setup) -> Problem:
    """Compare with the published per-sample loop, and with its arithmetic written as one table lookup."""
    batch, modalities = setup["B M"]
    p, device = 0.3, setup.device
    dropout = setup.module(lambda: ModalityDropout(p))
    full = torch.ones(batch, modalities, dtype=torch.bool, device=device)
    proper = all_presence_patterns(modalities)[1:].to(device)
    kept = proper.tolist()

    def ours(rows: int = batch) -> Tensor:
        result: Tensor = dropout(full if rows == batch else full.new_ones(rows, modalities))
        return result

    def eager(rows: int = batch) -> Tensor:
        pattern = proper[torch.randint(len(proper), (rows,), device=device)]
        return pattern | (torch.rand(rows, 1, device=device) >= p)

    def loop(rows: int = batch) -> Tensor:
        mask = torch.ones(rows, modalities, device=device)
        for row in range(rows):
            if torch.rand(1).item() < p:
                pattern = kept[int(torch.randint(len(kept), (1,)).item())]
                for modality, stays in enumerate(pattern):
                    if not stays:
                        mask[row, modality] = 0.0
        return mask > 0

    weights = torch.full((2**modalities,), p / (2**modalities - 2), dtype=torch.float64)
    weights[0], weights[-1] = 0.0, 1 - p
    problem = _random_masks(setup, {"ours": ours, "eager": eager, "loop": loop}, weights)
    if batch >= 4096:
        claim = "ModalityDropout is at least 100 times faster than a per-sample loop"
        problem.targets = (Target(claim, mode="forward", versus="loop", at_least=100.0),)
    return problem


def _random_masks(setup: Setup, draws: dict[str, Callable[..., Tensor]], weights: Tensor) -> Problem:
    """Compare how often every pattern is drawn with its probability."""
    rows = 3000 if setup.toy else 20000

    def frequencies(draw: Callable[..., Tensor]) -> Tensor:
        mask = _seeded(lambda: draw(rows))
        codes = (mask.long() * 2 ** torch.arange(mask.shape[1], device=mask.device)).sum(1)
        return torch.bincount(codes, minlength=len(weights)) / rows

    contenders = {
        "ours": Contender(draws["ours"], "ours", check=frequencies),
        "eager": _exact(draws["eager"], frequencies, weights, setup),
        "loop": Contender(draws["loop"], check=frequencies, note="a Python loop over samples"),
    }
    return Problem(contenders, gradients=False, tolerance=0.1 if setup.toy else 0.05)


def build_add_noise(setup: Setup) -> Problem:
    x, mask, snr = setup.normal(*setup["B D"], grad=False), setup.mask(setup["B"]), 5.0

    def eager(x: Tensor, mask: Tensor) -> Tensor:
        kept = torch.where(mask.unsqueeze(1), x, 0.0)
        scale = (kept.square().mean(1, keepdim=True) * 10 ** (-snr / 10)).sqrt()
        return kept + scale * torch.randn_like(kept)

    def measured(run: Callable[..., Tensor]) -> Tensor:
        clean = torch.randn(100, 3000, device=setup.device)
        noise = _seeded(lambda: run(clean, torch.ones(100, dtype=torch.bool, device=setup.device))) - clean
        return torch.stack([clean.square().mean() / noise.square().mean(), 1 + (clean * noise).mean()])

    return _corruption(
        setup, lambda x, mask: add_noise(x, snr, mask), eager, measured, [10 ** (snr / 10), 1.0], x, mask
    )


def build_shuffle_rows(setup: Setup) -> Problem:
    x, mask = setup.normal(*setup["B D"], grad=False), setup.mask(setup["B"])

    def eager(x: Tensor, mask: Tensor) -> Tensor:
        rows = mask.nonzero().squeeze(1)
        order = rows[torch.randperm(len(rows), device=rows.device)]
        out = torch.zeros_like(x)
        out[order] = x[order.roll(1)]
        return out

    def measured(run: Callable[..., Tensor]) -> Tensor:
        """Count rows that stayed, absent rows that were handed on, and rows that are there after all."""
        ids = torch.arange(1.0, 101.0, device=setup.device).unsqueeze(1)
        keep = torch.arange(100, device=setup.device) < 80
        out = _seeded(lambda: run(ids, keep))
        stayed, handed_on = (out == ids).sum(), (out > 80).sum()
        return torch.stack([stayed.float(), handed_on.float(), out.unique().numel() + 0 * out.sum()])

    return _corruption(setup, shuffle_rows, eager, measured, [0.0, 0.0, 81.0], x, mask)


def build_scale_rows(setup: Setup) -> Problem:
    x, mask, limit = setup.normal(*setup["B D"], grad=False), setup.mask(setup["B"]), 6.0

    def eager(x: Tensor, mask: Tensor) -> Tensor:
        decibels = torch.empty(len(x), 1, device=x.device, dtype=x.dtype).uniform_(-limit, limit)
        return torch.where(mask.unsqueeze(1), x, 0.0) * 10 ** (decibels / 20)

    def measured(run: Callable[..., Tensor]) -> Tensor:
        ones = torch.ones(20000, 1, device=setup.device)
        decibels = 20 * _seeded(lambda: run(ones, ones.squeeze(1) > 0)).log10()
        return torch.stack([decibels.mean() + limit, decibels.std(), decibels.amax()])

    wanted = [limit, limit / 3**0.5, limit]
    return _corruption(setup, lambda x, mask: scale_rows(x, limit, mask), eager, measured, wanted, x, mask)


def build_drop_frames(setup: Setup) -> Problem:
    mask, rate = setup.mask(*setup["B T"]), 0.3

    def eager(mask: Tensor) -> Tensor:
        return mask & (torch.rand(mask.shape, device=mask.device) >= rate)

    def measured(run: Callable[..., Tensor]) -> Tensor:
        half = torch.arange(200, device=setup.device) < 100
        kept = _seeded(lambda: run(half.expand(200, 200)))
        return torch.stack([kept[:, :100].float().mean(), kept[:, 100:].float().mean()])

    return _corruption(setup, lambda mask: drop_frames(mask, rate), eager, measured, [1 - rate, 0.0], mask)


def build_modality_corruption(setup: Setup) -> Problem:
    """Compare with the default kinds written out for one modality: noise at a random level, or zeros."""
    x, rate, low, high = setup.normal(*setup["B D"], grad=False), 0.5, -20.0, 15.0
    corruption = setup.module(lambda: ModalityCorruption(rate))

    def eager(x: Tensor) -> Tensor:
        draws = torch.rand(2, len(x), 1, device=x.device, dtype=x.dtype)
        snr = low + (high - low) * draws[1]
        noisy = x + (x.square().mean(1, keepdim=True) * 10 ** (-snr / 10)).sqrt() * torch.randn_like(x)
        return torch.where(draws[0] < rate / 2, noisy, torch.where(draws[0] < rate, 0.0, x))

    def measured(run: Callable[..., Tensor]) -> Tensor:
        """Count clean and silent rows, and place the mean level of the noise between its limits."""
        clean = torch.randn(8000, 200, device=setup.device)
        out = _seeded(lambda: run(clean))
        same, silent = (out == clean).all(1), (out == 0).all(1)
        noise = (out - clean)[~same & ~silent].square().mean(1)
        level = (10 * (clean.square().mean() / noise).log10() - low) / (high - low)
        return torch.stack([same.float().mean(), silent.float().mean(), level.mean()])

    return _corruption(setup, lambda x: corruption({"a": x})["a"], eager, measured, [1 - rate, rate / 2, 0.5], x)


def build_spoil_rows(setup: Setup) -> Problem:
    """Compare with the default kinds written out, shares included."""
    x, mask, rate, low, high = setup.normal(*setup["B D"], grad=False), setup.mask(setup["B"]), 0.5, -20.0, 15.0

    def eager(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        draws = torch.rand(2, len(x), device=x.device, dtype=x.dtype)
        noise = 10 ** (-(low + (high - low) * draws[1]) / 10)
        kept = torch.where(mask.unsqueeze(1), x, 0.0)
        level = (kept.square().mean(1) * noise).sqrt().unsqueeze(1)
        noisy = kept + level * torch.randn_like(x) * mask.unsqueeze(1)
        silent, spoilt = draws[0] < rate / 2, draws[0] < rate
        rows = torch.where(silent.unsqueeze(1), 0.0, torch.where(spoilt.unsqueeze(1), noisy, x))
        return rows, torch.where(silent, 1.0, torch.where(spoilt, noise / (1 + noise), 0.0))

    def measured(run: Callable[..., Any]) -> Tensor:
        """Count clean and silent rows, and compare the shares that are told with those of the power."""
        clean = torch.randn(8000, 200, device=setup.device)
        out, share = _seeded(lambda: run(clean, torch.ones(8000, dtype=torch.bool, device=setup.device)))
        same, silent = (out == clean).all(1), (out == 0).all(1)
        noise, signal = (out - clean).square().mean(1), clean.square().mean(1)
        off = torch.where(silent, share - 1, share - noise / (noise + signal))
        return torch.stack([same.float().mean(), silent.float().mean(), 1 + off.abs().mean()])

    expected = [1 - rate, rate / 2, 1.0]
    return _corruption(setup, lambda x, mask: spoil_rows(x, rate, mask), eager, measured, expected, x, mask)


def _corruption(
    setup: Setup,
    ours: Callable[..., Any],
    eager: Callable[..., Any],
    measured: Statistics,
    expected: list[float],
    *inputs: Any,
) -> Problem:
    statistics = torch.tensor(expected, dtype=torch.float64)
    contenders = {
        "ours": Contender(ours, "ours", check=measured),
        "eager": _exact(eager, measured, statistics, setup),
    }
    return Problem(contenders, inputs, gradients=False, tolerance=0.05)


def _exact(run: Callable[..., Any], measured: Statistics, expected: Tensor, setup: Setup) -> Contender:
    """Return the eager contender; its float64 twin states the expected statistics themselves."""
    wide = setup.dtype == torch.float64
    return Contender(run, "eager", check=(lambda run: expected) if wide else measured)


def _seeded(draw: Callable[[], Tensor]) -> Tensor:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return draw()


CASES = (
    Case(
        "presence_from_zeros",
        build_presence_from_zeros,
        {"B": 6, "M": 2, "D": 4},
        (Size({"B": 32, "M": 3, "D": 1024}), Size({"B": 4096, "M": 3, "D": 1024}, compile=True)),
    ),
    Case("all_presence_patterns", build_all_presence_patterns, {"M": 3}, (Size({"M": 3}), Size({"M": 12}))),
    Case("presence_views", build_presence_views, {"B": 4, "M": 3}, _MASK_SIZES),
    Case("random_presence", build_random_presence, {"B": 4, "M": 3}, _MASK_SIZES),
    Case("ModalityDropout", build_modality_dropout, {"B": 4, "M": 3}, _MASK_SIZES),
    Case("add_noise", build_add_noise, {"B": 4, "D": 5}, _ROW_SIZES),
    Case("shuffle_rows", build_shuffle_rows, {"B": 4, "D": 5}, _ROW_SIZES),
    Case("ModalityCorruption", build_modality_corruption, {"B": 4, "D": 5}, _ROW_SIZES),
    Case("spoil_rows", build_spoil_rows, {"B": 4, "D": 5}, _ROW_SIZES),
    Case("scale_rows", build_scale_rows, {"B": 4, "D": 5}, _ROW_SIZES),
    Case(
        "drop_frames",
        build_drop_frames,
        {"B": 4, "T": 5},
        (Size({"B": 32, "T": 500}), Size({"B": 4096, "T": 500}, compile=True)),
    ),
)
