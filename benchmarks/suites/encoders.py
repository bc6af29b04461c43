"""Encoders, decoders and heads. The plain versions read the parameters of ours, so that both compute one function."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from mmrobust import (
    FeatureTokenizer,
    LSTMEncoder,
    MLPEncoder,
    ModalityDecoder,
    ProjectionHead,
    VariationalLSTMEncoder,
    VariationalMLPEncoder,
    lengths_to_mask,
    reparameterize,
)

_DROPOUT = 0.1
_VECTORS = (
    Size({"B": 32, "D": 1024, "H": 128}),
    Size({"B": 2048, "D": 1024, "H": 256}, compile=True),
    Size({"B": 16384, "D": 1024, "H": 256}, cpu="full"),
)
_SEQUENCES = (
    Size({"B": 32, "T": 50, "D": 128, "H": 128}),
    Size({"B": 64, "T": 200, "D": 256, "H": 256}, cpu="full"),
)


def linear_flops(rows: int, *modules: nn.Module) -> float:
    """Return the operations of applying every weight matrix of the modules to ``rows`` rows once."""
    return sum(2.0 * rows * p.numel() for module in modules for p in module.parameters() if p.dim() == 2)


def plain_gaussian(head: Any, hidden: Tensor, present: Tensor, training: bool) -> tuple[Tensor, ...]:
    """Write out the Gaussian head: mean, softly bounded log-variance, std and a draw; the prior where absent."""
    there = present.unsqueeze(1)
    mu = torch.where(there, F.linear(hidden, head.mu.weight, head.mu.bias), 0.0)
    raw = F.linear(hidden, head.logvar.weight, head.logvar.bias)
    logvar = torch.where(there, raw / (1 + raw.abs() / 10), 0.0)
    std = torch.exp(logvar / 2)
    z = torch.where(there, mu + std * torch.randn_like(std), 0.0) if training else mu
    return z, mu, logvar, std


def plain_variational_mlp(encoder: Any, x: Tensor, present: Tensor) -> tuple[Tensor, ...]:
    """Write out the encoder: dropout, two Linear-LayerNorm-GELU with a residual projection, the Gaussian head."""
    x = F.dropout(torch.where(present.unsqueeze(1), x, 0.0), encoder.dropout.p, encoder.training)
    hidden = x
    for linear, norm in ((encoder.layer1[0], encoder.layer1[1]), (encoder.layer2[0], encoder.layer2[1])):
        hidden = F.linear(hidden, linear.weight, linear.bias)
        hidden = F.gelu(F.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias))
    hidden = hidden + F.linear(x, encoder.residual.weight, encoder.residual.bias)
    return plain_gaussian(encoder.head, hidden, present, encoder.training)


def build_variational_mlp(setup: Setup) -> Problem:
    batch, features, width = setup["B D H"]
    encoder = setup.module(lambda: VariationalMLPEncoder(features, width, _DROPOUT))
    contenders = {
        "ours": Contender(encoder, "ours"),
        "eager": Contender(lambda x, present: plain_variational_mlp(encoder, x, present), "eager"),
    }
    inputs = (setup.normal(batch, features), setup.mask(batch))
    return Problem(contenders, inputs, (encoder,), stochastic=True, flops=linear_flops(batch, encoder))


def plain_mlp(encoder: Any, x: Tensor, present: Tensor) -> Tensor:
    """Write out the stack: dropout on the input, then Linear (with LayerNorm where there is one) and ReLU."""
    there = present.unsqueeze(1)
    x = F.dropout(torch.where(there, x, 0.0), encoder.layers[0].p, encoder.training)
    for layer in encoder.layers[1:]:
        if isinstance(layer, nn.Linear):
            x = F.linear(x, layer.weight, layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            x = F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)
        elif isinstance(layer, nn.ReLU):
            x = F.relu(x)
    return torch.where(there, x, 0.0)


def build_mlp(setup: Setup) -> Problem:
    batch, features, width = setup["B D H"]
    encoder = setup.module(lambda: MLPEncoder(features, [width] * 3, input_dropout=_DROPOUT, normalization="layer"))

    contenders = {
        "ours": Contender(encoder, "ours"),
        "eager": Contender(lambda x, present: plain_mlp(encoder, x, present), "eager"),
    }
    inputs = (setup.normal(batch, features), setup.mask(batch))
    return Problem(contenders, inputs, (encoder,), stochastic=True, flops=linear_flops(batch, encoder))


def packed_state(cells: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """Return the final state of one LSTM layer the usual way: by packing, which needs the lengths on the host."""
    packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
    state: Tensor = cells[0](packed)[1][0][-1]
    return state


def _sequence_inputs(setup: Setup) -> tuple[Tensor, Tensor]:
    batch, steps, features = setup["B T D"]
    lengths = setup.labels(batch, classes=steps + 1)
    lengths[0] = 0
    return setup.normal(batch, steps, features), lengths


def _sequence_problem(setup: Setup, encoder: nn.Module, eager: Any) -> Problem:
    x, lengths = _sequence_inputs(setup)
    note = "packed nn.LSTM; absent sequences are run with one step and zeroed"
    contenders = {
        "ours": Contender(lambda x, lengths, mask: encoder(x, mask), "ours"),
        "eager": Contender(lambda x, lengths, mask: eager(x, lengths), "eager", note=note),
    }
    flops = linear_flops(setup["B"] * setup["T"], encoder)
    mask = lengths_to_mask(lengths, setup["T"])
    missing = {"compile": "torch.compile leaves a packed nn.LSTM to eager"}
    return Problem(
        contenders, (x, lengths, mask), (encoder,), stochastic=True, flops=flops, compiles="no", missing=missing
    )


def build_variational_lstm(setup: Setup) -> Problem:
    features, width = setup["D H"]
    encoder = setup.module(lambda: VariationalLSTMEncoder(features, width, _DROPOUT))

    def eager(x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        state = F.dropout(packed_state(encoder.lstm.cells, x, lengths), _DROPOUT, encoder.training)
        hidden = F.relu(F.linear(state, encoder.shared.weight, encoder.shared.bias))
        return plain_gaussian(encoder.head, hidden, lengths > 0, encoder.training)

    return _sequence_problem(setup, encoder, eager)


def build_lstm(setup: Setup) -> Problem:
    features, width = setup["D H"]
    encoder = setup.module(lambda: LSTMEncoder(features, width, _DROPOUT))

    def eager(x: Tensor, lengths: Tensor) -> Tensor:
        state = F.dropout(packed_state(encoder.lstm.cells, x, lengths), _DROPOUT, encoder.training)
        return torch.where((lengths > 0).unsqueeze(1), state, 0.0)

    return _sequence_problem(setup, encoder, eager)


def plain_decoder(decoder: Any, z: Tensor) -> Tensor:
    first, dropout, second, last = (decoder.layers[place] for place in (0, 2, 3, 5))
    hidden = F.dropout(F.relu(F.linear(z, first.weight, first.bias)), dropout.p, decoder.training)
    return F.linear(F.relu(F.linear(hidden, second.weight, second.bias)), last.weight, last.bias)


def build_decoder(setup: Setup) -> Problem:
    batch, features, width = setup["B D H"]
    decoder = setup.module(lambda: ModalityDecoder(width, features, _DROPOUT))

    contenders = {
        "ours": Contender(decoder, "ours"),
        "eager": Contender(lambda z: plain_decoder(decoder, z), "eager"),
    }
    flops = linear_flops(batch, decoder)
    return Problem(contenders, (setup.normal(batch, width),), (decoder,), stochastic=True, flops=flops)


def build_projection(setup: Setup) -> Problem:
    batch, features, width = setup["B D H"]
    head = setup.module(lambda: ProjectionHead(features, width))

    def eager(x: Tensor) -> Tensor:
        first, last = head.layers[0], head.layers[2]
        out = F.linear(F.relu(F.linear(x, first.weight, first.bias)), last.weight, last.bias)
        return out / out.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    contenders = {"ours": Contender(head, "ours"), "eager": Contender(eager, "eager")}
    return Problem(contenders, (setup.normal(batch, features),), (head,), flops=linear_flops(batch, head))


def build_tokenizer(setup: Setup) -> Problem:
    batch, features, width = setup["B D E"]
    tokenizer = setup.module(lambda: FeatureTokenizer(features, width, mode="per_feature"))

    def eager(x: Tensor) -> Tensor:
        return torch.einsum("bd,de->bde", x, tokenizer.weight) + tokenizer.bias

    contenders = {"ours": Contender(tokenizer, "ours"), "eager": Contender(eager, "eager")}
    return Problem(contenders, (setup.normal(batch, features),), (tokenizer,))


def build_dense_tokenizer(setup: Setup) -> Problem:
    batch, features, width = setup["B D E"]
    tokenizer = setup.module(lambda: FeatureTokenizer(features, width))

    def eager(x: Tensor) -> Tensor:
        return F.linear(x, tokenizer.linear.weight, tokenizer.linear.bias).view(len(x), features, width)

    contenders = {"ours": Contender(tokenizer, "ours"), "eager": Contender(eager, "eager")}
    inputs = (setup.normal(batch, features),)
    return Problem(contenders, inputs, (tokenizer,), flops=linear_flops(batch, tokenizer))


def build_reparameterize(setup: Setup) -> Problem:
    mu, logvar = (setup.normal(*setup["B H"]) for _ in range(2))

    def eager(mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)

    def moments(run: Any) -> Tensor:
        wide = torch.full((200, 500), 2 * math.log(3.0), device=setup.device)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
            torch.manual_seed(0)
            drawn = run(torch.full_like(wide, 2.0), wide)
        return torch.stack([drawn.mean(), drawn.std()])

    exact = torch.tensor([2.0, 3.0], dtype=torch.float64)
    wide = setup.dtype == torch.float64
    contenders = {
        "ours": Contender(reparameterize, "ours", check=moments),
        "eager": Contender(eager, "eager", check=(lambda run: exact) if wide else moments),
    }
    return Problem(contenders, (mu, logvar), tolerance=0.02)


_TOY = {"B": 3, "D": 5, "H": 4}
_TOY_SEQUENCE = {"B": 3, "T": 4, "D": 5, "H": 4}
_TOKENS = (Size({"B": 32, "D": 64, "E": 32}), Size({"B": 1024, "D": 128, "E": 32}, compile=True))

CASES = (
    Case("VariationalMLPEncoder", build_variational_mlp, _TOY, _VECTORS),
    Case("MLPEncoder", build_mlp, _TOY, _VECTORS),
    Case("VariationalLSTMEncoder", build_variational_lstm, _TOY_SEQUENCE, _SEQUENCES),
    Case("LSTMEncoder", build_lstm, _TOY_SEQUENCE, _SEQUENCES),
    Case("ModalityDecoder", build_decoder, _TOY, _VECTORS),
    Case("ProjectionHead", build_projection, _TOY, _VECTORS),
    Case("FeatureTokenizer per_feature", build_tokenizer, {"B": 3, "D": 5, "E": 4}, _TOKENS, ("FeatureTokenizer",)),
    Case("FeatureTokenizer dense", build_dense_tokenizer, {"B": 3, "D": 5, "E": 4}, _TOKENS, ("FeatureTokenizer",)),
    Case(
        "reparameterize",
        build_reparameterize,
        {"B": 3, "H": 4},
        (Size({"B": 96, "H": 128}), Size({"B": 12288, "H": 256}, compile=True)),
    ),
)
