"""Rows for encoders, decoder and heads."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from mmrobust.encoders import (
    FeatureTokenizer,
    LSTMEncoder,
    MLPEncoder,
    ModalityDecoder,
    ProjectionHead,
    VariationalLSTMEncoder,
    VariationalMLPEncoder,
)
from tests.contract import Inputs, Row, Size
from tests.references import encoders as reference

from .common import H, build_wrong, normal, pad_steps, reads, row_presence, scaled, steps_mask, wrong

D = 5


def _vectors(size: Size, rng: np.random.Generator) -> Inputs:
    return {"x": normal(rng, size.batch, D), "present": row_presence(rng, size.batch)}


def _same_width(size: Size, rng: np.random.Generator) -> Inputs:
    return {"x": normal(rng, size.batch, H), "present": row_presence(rng, size.batch)}


def _sequences(size: Size, rng: np.random.Generator) -> Inputs:
    return {"x": normal(rng, size.batch, size.steps, D), "mask": steps_mask(rng, size.batch, size.steps)}


def _plain(size: Size, rng: np.random.Generator) -> Inputs:
    return {"x": normal(rng, size.batch, D)}


def _latents(size: Size, rng: np.random.Generator) -> Inputs:
    return {"z": normal(rng, size.batch, H)}


def _pad(inputs: Inputs, extra: int) -> Inputs:
    return {"x": pad_steps(inputs["x"], extra, float("nan")), "mask": pad_steps(inputs["mask"], extra, False)}


_x_wrong = (
    wrong("x", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
    wrong("x", "features", lambda x: x[..., 1:], "D", f"{D}"),
)
_vector_wrong = (
    *_x_wrong,
    wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
    wrong("present", "shape", lambda p: p[:, None], "(B,) = (4,)", "(4, 1)"),
)
_step_wrong = (
    *_x_wrong,
    wrong("x", "vector", lambda x: x[:, 0], "(B, T, D)", "(4, 5)"),
    wrong("mask", "float", lambda m: m.float(), "bool", "torch.float32", error=TypeError),
    wrong("mask", "steps", lambda m: m[:, 1:], "(4, 4)", "(4, 3)"),
)
_sizes = {"1e30": scaled("x", by=1e30), "1e-30": scaled("x", by=1e-30), "0": scaled("x", by=0.0)}


def _variational_mlp(label: str, inputs: Any = _vectors, width: int = D, bound: str = "soft", **more: Any) -> Row:
    return Row(
        f"VariationalMLPEncoder{label}",
        lambda size: VariationalMLPEncoder(width, H, 0.25, logvar_bound=bound, init_logvar=0.5),
        inputs,
        partial(reference.variational_mlp, bound=bound),
        real=reads(x="present"),
        masks=("present",),
        stochastic=True,
        **more,
    )


def _lstm(kind: Any, label: str, layers: int = 1, both: bool = False) -> Row:
    variational = kind is VariationalLSTMEncoder
    directions = 2 if both else 1
    ref = reference.variational_lstm if variational else partial(reference.lstm, width=H)
    return Row(
        f"{kind.__name__}{label}",
        lambda size: kind(D, H, 0.25, num_layers=layers, bidirectional=both),
        _sequences,
        partial(ref, layers=layers, directions=directions),
        real=reads(x="mask"),
        wrong=(*_step_wrong, build_wrong("num_layers", lambda: kind(D, H, num_layers=0), "1", "0")),
        letters="BT",
        masks=("mask",),
        stochastic=True,
        pad=_pad,
        extremes={"1e4": scaled("x", by=1e4), "1e30": scaled("x", by=1e30), "0": scaled("x", by=0.0)},
        graph_breaks=True,
        saved_factor=40.0 * layers * directions,
    )


def _mlp(label: str, widths: Any, activation: str, **options: Any) -> Row:
    return Row(
        f"MLPEncoder{label}",
        lambda size: MLPEncoder(D, widths, activation=activation, **options),
        _vectors,
        partial(reference.mlp, activation=activation),
        real=reads(x="present"),
        wrong=(
            *_vector_wrong,
            build_wrong("hidden_features", lambda: MLPEncoder(D, []), "at least one layer"),
            build_wrong("activation", lambda: MLPEncoder(D, H, activation="swish"), "'relu'", "'swish'"),
            build_wrong("dropout", lambda: MLPEncoder(D, H, dropout=1.0), "1.0"),
        ),
        masks=("present",),
        stochastic=bool(options.get("dropout") or options.get("input_dropout")),
        extremes=_sizes,
    )


def _decoder(label: str, steps: int | None) -> Row:
    return Row(
        f"ModalityDecoder{label}",
        lambda size: ModalityDecoder(H, D, 0.25, sequence=steps is not None),
        (lambda size, rng: {**_latents(size, rng), "num_steps": steps}) if steps is not None else _latents,
        reference.decoder,
        wrong=(
            wrong("z", "width", lambda z: z[:, 1:], "H", f"{H}", "(4, 5)"),
            wrong("z", "steps", lambda z: z[:, None], "(B, H)", "(4, 1, 6)"),
            wrong("z", "integer", lambda z: z.long(), "floating-point", error=TypeError),
            build_wrong("out_features", lambda: ModalityDecoder(H, 0), "1", "0"),
            build_wrong("dropout", lambda: ModalityDecoder(H, D, -0.1), "-0.1"),
        ),
        stochastic=True,
        extremes={"1e30": scaled("z", by=1e30), "0": scaled("z", by=0.0)},
    )


ROWS = (
    _variational_mlp(
        "",
        wrong=(
            *_vector_wrong,
            build_wrong("dropout", lambda: VariationalMLPEncoder(D, H, 1.0), "1.0"),
            build_wrong("logvar_bound", lambda: VariationalMLPEncoder(D, H, logvar_bound="hard"), "'soft'", "'hard'"),
            build_wrong("init_logvar", lambda: VariationalMLPEncoder(D, H, init_logvar=11.0), "10", "11.0"),
        ),
        extremes=_sizes,
    ),
    _variational_mlp(
        "[clamp,same-width]",
        _same_width,
        H,
        "clamp",
        wrong=(
            *(w for w in _vector_wrong if "features" not in w.id),
            wrong("x", "features", lambda x: x[..., 1:], "D", f"{H}"),
        ),
        extremes=_sizes,
    ),
    _lstm(VariationalLSTMEncoder, ""),
    _lstm(VariationalLSTMEncoder, "[two-layers,bidirectional]", 2, True),
    _lstm(LSTMEncoder, ""),
    _lstm(LSTMEncoder, "[two-layers,bidirectional]", 2, True),
    _mlp("", [7, H], "relu", dropout=0.25, input_dropout=0.1),
    _mlp("[layer-norm,gelu]", [7, H], "gelu", normalization="layer"),
    _mlp("[one-layer,silu]", H, "silu"),
    _mlp("[tanh]", [H], "tanh", dropout=[0.5]),
    _decoder("", None),
    _decoder("[sequence]", 3),
    Row(
        "ProjectionHead",
        lambda size: ProjectionHead(D, 4, hidden_features=7),
        _plain,
        reference.projection_head,
        wrong=(
            *_x_wrong[:1],
            wrong("x", "features", lambda x: x[..., 1:], "5", "(4, 4)"),
            build_wrong("out_features", lambda: ProjectionHead(D, 0), "1", "0"),
            build_wrong("in_features", lambda: ProjectionHead(2.5, 3), "integer", "float", error=TypeError),
        ),
        extremes=_sizes,
    ),
    Row(
        "ProjectionHead[raw]",
        lambda size: ProjectionHead(D, 4, normalize=False),
        _plain,
        partial(reference.projection_head, normalize=False),
        wrong=(
            *_x_wrong[:1],
            wrong("x", "features", lambda x: x[..., 1:], "5", "(4, 4)"),
            build_wrong("hidden_features", lambda: ProjectionHead(D, 3, hidden_features=-1), "1", "-1"),
        ),
        extremes=_sizes,
    ),
    *(
        Row(
            f"FeatureTokenizer[{mode}]",
            lambda size, mode=mode: FeatureTokenizer(D, 4, mode=mode),
            _plain,
            reference.feature_tokenizer,
            wrong=(
                *_x_wrong,
                build_wrong("mode", lambda: FeatureTokenizer(D, 4, mode="sparse"), "'dense'", "'sparse'"),
                build_wrong("token_features", lambda: FeatureTokenizer(D, 0), "1", "0"),
            ),
            extremes=_sizes,
        )
        for mode in ("dense", "per_feature")
    ),
)
