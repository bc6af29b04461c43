"""Proxy cross-attention: one query per sample, so that keys and values need no projection at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from mmrobust import FeatureTokenFusion, ProxyCrossModalAttention

_HEADS = 4
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def finish_attention(module: Any, proxy: Tensor, attended: Tensor, dropout: float = 0.0) -> Tensor:
    """Write out what follows the attention: residual, LayerNorm, feed-forward with residual."""
    hidden = F.layer_norm(proxy + attended, proxy.shape[-1:], module.norm.weight, module.norm.bias)
    first, last = (layer for layer in module.feed_forward if isinstance(layer, nn.Linear))
    inner = F.dropout(F.gelu(F.linear(hidden, first.weight, first.bias)), dropout, module.training)
    return hidden + F.linear(inner, last.weight, last.bias)


def _project(attention: Any, proxy: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project query, keys and values and split the heads: (B, heads, 1 or K, H / heads)."""
    batch, keys = x.shape[:2]
    q = F.linear(proxy, attention.query.weight, attention.query.bias).view(batch, 1, _HEADS, -1)
    k = F.linear(x, attention.key.weight).view(batch, keys, _HEADS, -1)
    v = F.linear(x, attention.value.weight, attention.value.bias).view(batch, keys, _HEADS, -1)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def plain_attention(
    attention: Any, proxy: Tensor, x: Tensor, mask: Tensor, factors: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Write out multi-head attention with projected keys and values; ``factors`` multiply the exponentials."""
    q, k, v = _project(attention, proxy, x)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    scores = scores if factors is None else scores + factors.clamp(min=1e-37).log()[:, None, None]
    weights = torch.softmax(torch.where(mask[:, None, None], scores, -1e9), -1)
    weights = F.dropout(weights, dropout, attention.training)
    joined = (weights @ v).transpose(1, 2).flatten(1)
    return F.linear(joined, attention.out.weight, attention.out.bias)


def sdpa_attention(attention: Any, proxy: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = _project(attention, proxy, x)
    joined = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None]).transpose(1, 2).flatten(1)
    return F.linear(joined, attention.out.weight, attention.out.bias)


def _torch_attention(setup: Setup, attention: Any) -> nn.MultiheadAttention:
    """Return an nn.MultiheadAttention with the parameters of ours, copied."""
    width = setup["H"]
    peer = nn.MultiheadAttention(width, _HEADS, batch_first=True, device=setup.device, dtype=setup.dtype)
    with torch.no_grad():
        maps = (attention.query, attention.key, attention.value)
        peer.in_proj_weight.copy_(torch.cat([part.weight for part in maps]))
        peer.in_proj_bias.zero_()
        peer.in_proj_bias[:width] = attention.query.bias
        peer.in_proj_bias[2 * width :] = attention.value.bias
        peer.out_proj.weight.copy_(attention.out.weight)
        peer.out_proj.bias.copy_(attention.out.bias)
    return peer


class _TorchPeer(nn.Module):
    """nn.MultiheadAttention followed by LayerNorm and feed-forward with parameters of their own."""

    def __init__(self, setup: Setup, module: Any) -> None:
        super().__init__()
        self.attention = _torch_attention(setup, module.attentions[0])
        self.norm = nn.LayerNorm(setup["H"]).to(setup.device, setup.dtype)
        self.norm.load_state_dict(module.norm.state_dict())
        layers = [
            nn.Linear(setup["H"], 2 * setup["H"]),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(2 * setup["H"], setup["H"]),
        ]
        self.feed_forward = nn.Sequential(*layers).to(setup.device, setup.dtype)
        self.feed_forward.load_state_dict(module.feed_forward.state_dict())

    def forward(self, proxy: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        attended, _ = self.attention(proxy.unsqueeze(1), x, x, key_padding_mask=~mask, need_weights=False)
        return finish_attention(self, proxy, attended.squeeze(1))


def _problem(setup: Setup, module: Any, ours: Callable[..., Tensor], keys: int, modalities: list[Tensor]) -> Problem:
    batch, width = setup["B H"]
    mask = setup.mask(batch, keys)
    mask[:, 0] = True  # softmax over no key at all is NaN in the peers; ours is tested on that, not timed
    inputs = (setup.normal(batch, width), mask, *modalities)

    def whole(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(proxy: Tensor, mask: Tensor, *parts: Tensor) -> Tensor:
            x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            return finish_attention(module, proxy, attend(module.attentions[0], proxy, x, mask))

        return run

    peer = _TorchPeer(setup, module)

    def torch_peer(proxy: Tensor, mask: Tensor, *parts: Tensor) -> Tensor:
        result: Tensor = peer(proxy, parts[0] if len(parts) == 1 else torch.cat(parts, 1), mask)
        return result

    contenders = {
        "ours": Contender(ours, "ours"),
        "eager": Contender(whole(plain_attention), "eager"),
        "SDPA": Contender(whole(sdpa_attention), note="F.scaled_dot_product_attention, keys and values projected"),
        "nn.MultiheadAttention": Contender(torch_peer, own=(peer,)),
    }
    return Problem(contenders, inputs, (module,), flops=_least_flops(batch, keys, width))


def _least_flops(batch: int, keys: int, width: int) -> float:
    """Count the absorbed form: six products with an H x H matrix and two (heads x K x H) products per sample."""
    projections = 2.0 * batch * 4 * width * width
    feed_forward = 2.0 * batch * 4 * width * width
    return projections + feed_forward + 2 * 2.0 * batch * _HEADS * keys * width


def build_sequences(setup: Setup) -> Problem:
    batch, modalities, steps, width = setup["B M T H"]
    module = setup.module(lambda: ProxyCrossModalAttention(width, _HEADS))

    def ours(proxy: Tensor, mask: Tensor, *parts: Tensor) -> Tensor:
        result: Tensor = module(proxy, parts, masks=mask.split(steps, 1))
        return result

    parts = [setup.normal(batch, steps, width) for _ in range(modalities)]
    return _problem(setup, module, ours, modalities * steps, parts)


def build_vectors(setup: Setup) -> Problem:
    batch, modalities, width = setup["B M H"]
    module = setup.module(lambda: ProxyCrossModalAttention(width, _HEADS))

    def ours(proxy: Tensor, mask: Tensor, x: Tensor) -> Tensor:
        result: Tensor = module(proxy, x, present=mask)
        return result

    return _problem(setup, module, ours, modalities, [setup.normal(batch, modalities, width)])


def build_feature_tokens(setup: Setup) -> Problem:
    """Compare with weights that are written out, all branches present."""
    batch, steps, width = setup["B T E"]
    module: Any = setup.module(lambda: FeatureTokenFusion(width, _HEADS))

    def attend(branch: Any, normed: Tensor, keys: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], _HEADS, -1).transpose(1, 2)

        q, (k, v) = heads(branch.query(normed)), map(heads, branch.key_value(keys).chunk(2, dim=-1))
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        attended: Tensor = branch.out((weights @ v).transpose(1, 2).flatten(2))
        return attended

    def plain(first: Tensor, second: Tensor) -> list[Tensor]:
        a, b = module.branches
        normed = a.norm(first), b.norm(second)
        x, y = first + attend(a, *normed), second + attend(b, *normed[::-1])
        return [x + a.feed_forward(x), y + b.feed_forward(y)]

    def ours(first: Tensor, second: Tensor) -> list[Tensor]:
        fused: list[Tensor] = module([first, second])
        return fused

    contenders = {"ours": Contender(ours, "ours"), "eager": Contender(plain, "eager")}
    return Problem(contenders, tuple(setup.normal(batch, steps, width) for _ in range(2)), (module,))


_COVERS = ("ProxyCrossModalAttention",)

CASES = (
    Case(
        "ProxyCrossModalAttention vectors",
        build_vectors,
        {"B": 3, "M": 3, "H": 8},
        (
            Size({"B": 32, "M": 3, "H": 128}),
            Size({"B": 2048, "M": 3, "H": 256}),
            Size({"B": 16384, "M": 3, "H": 256}, cpu="full"),
        ),
        _COVERS,
    ),
    Case(
        "ProxyCrossModalAttention steps",
        build_sequences,
        {"B": 3, "M": 2, "T": 4, "H": 8},
        (
            Size({"B": 32, "M": 3, "T": 50, "H": 128}),
            Size({"B": 32, "M": 3, "T": 200, "H": 256}, cpu="full"),
            Size({"B": 8, "M": 2, "T": 500, "H": 768}, cuda="never", compile=True),
            Size({"B": 64, "M": 3, "T": 500, "H": 768}, cpu="never", compile=True),
        ),
        _COVERS,
    ),
    Case(
        "FeatureTokenFusion",
        build_feature_tokens,
        {"B": 3, "T": 4, "E": 8},
        (Size({"B": 32, "T": 64, "E": 32}), Size({"B": 64, "T": 256, "E": 32}, compile=True)),
        ("FeatureTokenFusion",),
    ),
)
