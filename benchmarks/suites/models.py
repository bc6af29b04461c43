"""Assembled models at the sizes of MER2023: inference, and whole training steps.

A training step is forward, loss, backward, clipping of gradient values and AdamW, for every contender alike. The plain
versions assume that no sample lacks everything, as is true here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size, Target
from benchmarks.suites import published_baseline, published_v4
from benchmarks.suites.attention import finish_attention, plain_attention
from benchmarks.suites.contrastive import plain_modality_contrast, plain_projections
from benchmarks.suites.encoders import linear_flops, plain_decoder, plain_mlp, plain_variational_mlp
from benchmarks.suites.fusion import blend, plain_gate, plain_scores, plain_softmax, plain_weights
from benchmarks.suites.losses import plain_cross_kl, plain_kl, plain_reconstruction
from mmrobust import AttentionFusionClassifier, VariationalFusionClassifier, presence_views

_DROPOUT, _MODALITY_DROPOUT = 0.35, 0.15
Inputs = dict[str, Tensor]
Run = Callable[[Inputs, Tensor], tuple[Tensor, ...]]


def plain_dropout(model: Any, present: Tensor) -> Tensor:
    """Write out modality dropout for samples that have everything: a random row of a table of proper subsets."""
    p = model.modality_dropout.p
    if not model.training or p == 0:
        return present
    count = present.shape[1]
    codes = torch.randint(1, 2**count - 1, (len(present), 1), device=present.device)
    subset = (codes >> torch.arange(count, device=present.device)) % 2 == 1
    return present & (subset | (torch.rand(len(present), 1, device=present.device) >= p))


def plain_heads(heads: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    features = F.dropout(features, heads.dropout.p, heads.training)
    classes, values = heads.classes, heads.values
    return F.linear(features, classes.weight, classes.bias), F.linear(features, values.weight, values.bias)


def plain_variational(model: Any, inputs: Inputs, present: Tensor) -> tuple[Tensor, ...]:
    """Write out the corrected model: logits, values, weights and the auxiliary loss."""
    keep = plain_dropout(model, present)
    columns = keep.unbind(1)
    latents = [
        plain_variational_mlp(encoder, x, column)
        for encoder, x, column in zip(model.encoders, inputs.values(), columns, strict=True)
    ]
    z, mu, logvar, std = (torch.stack(parts, 1) for parts in zip(*latents, strict=True))
    fusion = model.fusion
    weights = plain_weights(std, keep, per_dimension=False)
    if hasattr(fusion, "gate"):
        weights = 0.5 * weights + 0.5 * plain_gate(fusion, mu, keep)
    proxy, attention = blend(mu, weights, keep), model.attention
    p = attention.attentions[0].dropout.p
    attended = plain_attention(attention.attentions[0], proxy, mu, keep, weights, p)
    logits, values = plain_heads(model.heads, finish_attention(attention, proxy, attended, p))
    aux = _plain_aux(model, inputs, z, mu, logvar, keep) if model.training else logits.new_zeros(())
    return logits, values, weights, aux


def _plain_aux(model: Any, inputs: Inputs, z: Tensor, mu: Tensor, logvar: Tensor, keep: Tensor) -> Tensor:
    parts = [
        plain_reconstruction(plain_decoder(decoder, latent), x, column) / x.shape[1]
        for decoder, latent, x, column in zip(model.decoders, z.unbind(1), inputs.values(), keep.unbind(1), strict=True)
    ]
    divergence = plain_kl(mu, logvar, keep) + plain_cross_kl(mu, logvar, keep)
    aux = 0.1 * torch.stack(parts).mean() + 0.01 * divergence / mu.shape[-1]
    if model.contrastive is not None:
        aux = aux + 0.1 * plain_modality_contrast(plain_projections(model.contrastive, mu), keep)
    return aux


def plain_attention_model(model: Any, inputs: Inputs, present: Tensor) -> tuple[Tensor, ...]:
    """Write out the deterministic model: logits, values and weights; there is no auxiliary loss."""
    keep = plain_dropout(model, present)
    encoded = zip(model.encoders, inputs.values(), keep.unbind(1), strict=True)
    hidden = torch.stack([plain_mlp(encoder, x, column) for encoder, x, column in encoded], 1)
    weights = plain_softmax(plain_scores(model.fusion, hidden, keep), keep)
    logits, values = plain_heads(model.heads, blend(hidden, weights, keep))
    return logits, values, weights, logits.new_zeros(())


def ours_run(model: nn.Module) -> Run:
    def run(inputs: Inputs, present: Tensor) -> tuple[Tensor, ...]:
        out = model(inputs, present)
        return out.logits, out.values, out.weights, out.aux_loss

    return run


def published_run(model: nn.Module) -> Run:
    def run(inputs: Inputs, present: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = model(list(inputs.values()))
        return result

    return run


class _Batch:
    """Features of the three modalities, labels and scores of one batch, and the training step on it."""

    def __init__(self, setup: Setup) -> None:
        self.sizes = {"audio": setup["A"], "text": setup["T"], "video": setup["V"]}
        batch = setup["B"]
        self.inputs = {name: setup.normal(batch, size) for name, size in self.sizes.items()}
        self.present = torch.ones(batch, len(self.sizes), dtype=torch.bool, device=setup.device)
        self.labels = setup.labels(batch, classes=6)
        self.scores = setup.normal(batch, grad=False)

    def step(self, model: nn.Module) -> Callable[[Run], Callable[[], None]]:
        inputs = {name: x.detach() for name, x in self.inputs.items()}
        parameters = list(model.parameters())

        def make(run: Run) -> Callable[[], None]:
            optimizer = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=5e-5)

            def action() -> None:
                logits, values, _, aux = run(inputs, self.present)
                logits, values = logits.flatten(0, -2), values.flatten()  # several views follow one another
                views = len(logits) // len(self.labels)
                labels, scores = self.labels.repeat(views), self.scores.repeat(views)
                loss = F.cross_entropy(logits, labels) + F.mse_loss(values, scores) + aux
                loss.backward()
                nn.utils.clip_grad_value_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()  # last, so that no step holds memory of the one before

            return action

        return make


def _problem(
    setup: Setup, batch: _Batch, model: nn.Module, plain: Run, peers: dict[str, Contender], used: float
) -> Problem:
    """Assemble a problem; ``used`` = operations of inference over those of the whole model once."""
    step = batch.step(model)
    contenders = {
        "ours": Contender(ours_run(model), "ours", step=step),
        "eager": Contender(plain, "eager", step=step, note="the arithmetic of ours, plain"),
        **peers,
    }
    flops = linear_flops(setup["B"], model)
    return Problem(
        contenders,
        (batch.inputs, batch.present),
        (model,),
        stochastic=True,
        flops=flops * used,
        training_flops=3 * flops,
    )


def _variational(setup: Setup, gated: bool, contrastive: bool) -> Problem:
    """Compare with V4 as published, with V4 without its Python loop, and with ours set to the published options."""
    batch, width = _Batch(setup), setup["H"]
    options: dict[str, Any] = {"num_classes": 6, "num_values": 1, "dropout": _DROPOUT}
    options |= {"modality_dropout": _MODALITY_DROPOUT, "fusion": "gated" if gated else "uncertainty"}
    options |= {"contrastive_weight": 0.1 if contrastive else 0.0}
    model = setup.module(lambda: VariationalFusionClassifier(batch.sizes, width, **options))

    def plain(inputs: Inputs, present: Tensor) -> tuple[Tensor, ...]:
        return plain_variational(model, inputs, present)

    def make(vectorised: bool) -> nn.Module:
        sizes = list(batch.sizes.values())
        built: nn.Module = setup.module(
            lambda: published_v4.PublishedV4(sizes, width, gated, contrastive, _DROPOUT, _MODALITY_DROPOUT, vectorised)
        )
        return built

    loop, drawn = make(False), make(True)
    drawn.load_state_dict(loop.state_dict())
    rebuilt = setup.module(lambda: VariationalFusionClassifier(batch.sizes, width, **options, **published_v4.OPTIONS))
    published_v4.load(rebuilt, loop)
    peers = {
        "published V4": _peer(batch, loop, published_run(loop), "as published, with a Python loop over samples"),
        "V4 without loop": _peer(batch, drawn, published_run(drawn), "the same with modality dropout vectorised"),
        "ours, published options": _peer(batch, rebuilt, ours_run(rebuilt), "the published function by our components"),
    }
    heads, body = linear_flops(1, model.decoders, model.contrastive or nn.Identity()), linear_flops(1, model)
    problem = _problem(setup, batch, model, plain, peers, 1 - heads / body)
    if width == 128 and setup["B"] == 32:
        claim = "a training step is no slower than the published V4 arithmetic"
        problem.targets = (
            Target(claim, "training_step", "published V4", 1.0),
            Target(f"{claim}, even without its loop", "training_step", "V4 without loop", 1.0),
        )
    return problem


def _peer(batch: _Batch, model: nn.Module, run: Run, note: str, reference: str = "published V4") -> Contender:
    return Contender(run, reference=reference, step=batch.step(model), own=(model,), note=note)


def build_pure(setup: Setup) -> Problem:
    return _variational(setup, gated=False, contrastive=False)


def build_full(setup: Setup) -> Problem:
    return _variational(setup, gated=True, contrastive=True)


def build_views(setup: Setup) -> Problem:
    """Compare one call with all subsets of the modalities as views with a call for each of them."""
    batch, width = _Batch(setup), setup["H"]
    options: dict[str, Any] = {"num_classes": 6, "num_values": 1, "dropout": _DROPOUT}
    model = setup.module(lambda: VariationalFusionClassifier(batch.sizes, width, **options))
    views = presence_views(batch.present, 2 ** len(batch.sizes))

    def ours(inputs: Inputs, present: Tensor) -> tuple[Tensor, ...]:
        out = model(inputs, present, views=views)
        return out.logits, out.values, out.weights, out.aux_loss

    def one_by_one(run: Run) -> Run:
        def separate(inputs: Inputs, present: Tensor) -> tuple[Tensor, ...]:
            calls = [run(inputs, view & present) for view in views]
            logits, values, weights, (aux, *_) = (list(parts) for parts in zip(*calls, strict=True))
            return torch.stack(logits), torch.stack(values), torch.stack(weights), aux

        return separate

    plain = one_by_one(lambda inputs, present: plain_variational(model, inputs, present))
    step, calls = batch.step(model), one_by_one(ours_run(model))
    contenders = {
        "ours": Contender(ours, "ours", step=step),
        "eager": Contender(plain, "eager", step=step, note="the arithmetic of ours, plain, once per view"),
        "a call per view": Contender(calls, step=step, note="our model, called for every view"),
    }
    flops = linear_flops(setup["B"], model)
    problem = Problem(
        contenders, (batch.inputs, batch.present), (model,), stochastic=True, flops=flops, training_flops=3 * flops
    )
    if not setup.toy:
        claim = "a training step on all subsets as views is faster than with a call for each"
        problem.targets = (Target(claim, "training_step", "a call per view", 1.0),)
    return problem


def build_attention_model(setup: Setup) -> Problem:
    """Compare with the MERBench baseline, and with ours set to its options."""
    batch, width = _Batch(setup), setup["H"]
    options: dict[str, Any] = {"num_classes": 6, "num_values": 1, "dropout": _DROPOUT}
    robust: dict[str, Any] = {"modality_dropout": _MODALITY_DROPOUT, "fusion_dropout": _DROPOUT}
    model = setup.module(lambda: AttentionFusionClassifier(batch.sizes, width, **options, **robust))

    def plain(inputs: Inputs, present: Tensor) -> tuple[Tensor, ...]:
        return plain_attention_model(model, inputs, present)

    baseline = setup.module(lambda: published_baseline.PublishedBaseline(list(batch.sizes.values()), width, _DROPOUT))
    rebuilt = setup.module(
        lambda: AttentionFusionClassifier(batch.sizes, width, **options, **published_baseline.OPTIONS)
    )
    published_v4.copy_in_order(rebuilt, baseline)
    name, note = "MERBench baseline", "the published baseline: no softmax, no modality dropout"
    ours_note = "the baseline's function by our components"
    peers = {
        name: _peer(batch, baseline, published_run(baseline), note, name),
        "ours, published options": _peer(batch, rebuilt, ours_run(rebuilt), ours_note, name),
    }
    return _problem(setup, batch, model, plain, peers, 1.0)


_TOY = {"B": 4, "H": 8, "A": 6, "T": 9, "V": 5}
_MER = {"H": 128, "A": 1024, "T": 5120, "V": 768}
_SIZES = (Size({"B": 32, **_MER}, compile=True), Size({"B": 1024, **_MER}))
_FULL_SIZES = (Size({"B": 32, **_MER}), Size({"B": 1024, **_MER}))  # compiles as the one above does, in minutes

CASES = (
    Case("VariationalFusionClassifier", build_pure, _TOY, _SIZES),
    Case("VariationalFusionClassifier full", build_full, _TOY, _FULL_SIZES, ("VariationalFusionClassifier",)),
    Case("VariationalFusionClassifier views", build_views, _TOY, _FULL_SIZES, ("VariationalFusionClassifier",)),
    Case("AttentionFusionClassifier", build_attention_model, _TOY, _SIZES),
)
