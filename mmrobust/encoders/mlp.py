"""Encoders of feature vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_option, check_shape
from .._precision import squarable
from .._random import masked_dropout
from ..masking import zero_missing
from ._gaussian import GaussianHead, VariationalOutput, check_dropout, check_widths

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class MLPEncoder(nn.Module):
    """Encode a feature vector by a plain stack of linear layers.

    Every layer is Linear, then normalisation, activation and dropout. A deep branch
    ``MLPEncoder(10000, [2048, 1024, 512, 256], dropout=0.5, activation="gelu")`` and a shallow one
    ``MLPEncoder(3000, [512, 256], dropout=0.2, activation="gelu")`` are two lines; the encoder of the MERBench
    baseline is ``MLPEncoder(D, [H, H, H], input_dropout=p)``.

    Args:
        in_features: Features D of the input.
        hidden_features: Width of every layer, the last one being the output width; one integer = one layer.
        dropout: Dropout after every layer, in [0, 1): one value, or one per layer.
        input_dropout: Dropout on the input, in [0, 1).
        normalization: ``"none"`` or ``"layer"``. There is no batch normalisation: its statistics would take in
            rows that are absent.
        activation: ``"relu"``, ``"gelu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        ValueError: If a size, a dropout or an option is out of range.

    Example:
        >>> MLPEncoder(30, [16, 8], dropout=0.2)(torch.randn(4, 30)).shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | Sequence[int],
        *,
        dropout: float | Sequence[float] = 0.0,
        input_dropout: float = 0.0,
        normalization: Literal["none", "layer"] = "none",
        activation: Literal["relu", "gelu", "silu", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        widths = [hidden_features] if isinstance(hidden_features, int) else list(hidden_features)
        rates = [dropout] * len(widths) if isinstance(dropout, (int, float)) else list(dropout)
        if not widths or len(rates) != len(widths):
            raise ValueError(
                f"MLPEncoder: expected hidden_features with at least one layer and one dropout per layer, "
                f"got {len(widths)} layers and {len(rates)} dropouts"
            )
        check_option("MLPEncoder", "normalization", normalization, ("none", "layer"))
        check_option("MLPEncoder", "activation", activation, _ACTIVATIONS)
        check_dropout("MLPEncoder", input_dropout, "input_dropout")
        layers: list[nn.Module] = [nn.Dropout(input_dropout)]
        size = in_features
        for width, rate in zip(widths, rates, strict=True):
            check_widths("MLPEncoder", size, width)
            check_dropout("MLPEncoder", rate)
            layers.append(nn.Linear(size, width))
            layers += [nn.LayerNorm(width)] if normalization == "layer" else []
            layers += [_ACTIVATIONS[activation](), nn.Dropout(rate)]
            size = width
        self.in_features, self.out_features = in_features, size
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Encode ``x (B, D)`` as ``(B, H)``; rows absent by ``present (B,)`` are not read and come out as 0.

        Raises:
            TypeError: If ``x`` is not floating or ``present`` neither bool nor integer.
            ValueError: If a shape does not fit.
        """
        check_floating("MLPEncoder", "x", x)
        check_shape("MLPEncoder", "x", x, B=None, D=self.in_features)
        present = as_mask("MLPEncoder", "present", present, B=x.shape[0])
        x = zero_missing(x, present)
        for layer in self.layers:
            x = layer(squarable(x) if isinstance(layer, nn.LayerNorm) else x)
        return zero_missing(x, present)


class VariationalMLPEncoder(nn.Module):
    r"""Encode a feature vector as a diagonal Gaussian.

    With :math:`x' = \mathrm{Dropout}(x)`: :math:`h = \mathrm{GELU}(\mathrm{LN}(W_1 x'))`,
    :math:`h = \mathrm{GELU}(\mathrm{LN}(W_2 h)) + W_p x'` (identity when the sizes agree), :math:`\mu = W_\mu h`,
    :math:`\ell = b(W_\ell h)`, :math:`\sigma = e^{\ell/2}`, :math:`z = \mu + \sigma\epsilon`. The log-variance is
    bounded to [-10, 10] and starts constant.

    Args:
        in_features: Features D of the input.
        hidden_features: Latent width H.
        dropout: Dropout probability on the input, in [0, 1).
        logvar_bound: ``"soft"`` = :math:`10\,\mathrm{softsign}(\ell/10)`, with a gradient everywhere; ``"clamp"`` =
            the published hard clamp, without gradient outside.
        init_logvar: Initial log-variance, inside (-10, 10).

    Raises:
        ValueError: If a size, the dropout or an option is out of range.

    Example:
        >>> encoder = VariationalMLPEncoder(20, 8, 0.1).eval()
        >>> z, mu, logvar, std = encoder(torch.randn(4, 20))
        >>> mu.shape, bool((z == mu).all()), std.mean().item()
        (torch.Size([4, 8]), True, 1.0)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        dropout: float = 0.0,
        *,
        logvar_bound: Literal["soft", "clamp"] = "soft",
        init_logvar: float = 0.0,
    ) -> None:
        super().__init__()
        check_widths("VariationalMLPEncoder", in_features, hidden_features)
        check_dropout("VariationalMLPEncoder", dropout)
        self.in_features, self.hidden_features = in_features, hidden_features
        self.dropout = nn.Dropout(dropout)
        self.layer1 = _normalized_linear(in_features, hidden_features)
        self.layer2 = _normalized_linear(hidden_features, hidden_features)
        same = in_features == hidden_features
        self.residual = nn.Identity() if same else nn.Linear(in_features, hidden_features)
        self.head = GaussianHead("VariationalMLPEncoder", hidden_features, logvar_bound, init_logvar)

    def forward(self, x: Tensor, present: Tensor | None = None, *, sample: bool | None = None) -> VariationalOutput:
        """Encode ``x (B, D)``.

        Args:
            x: Floating features ``(B, D)``.
            present: Bool or integer 0/1 mask ``(B,)``, True = present. Absent rows are not read; they come out as
                the prior: ``mu = 0``, ``logvar = 0``, ``std = 1``, ``z = 0``.
            sample: Whether ``z`` is drawn or equals ``mu``; ``None`` = drawn in training only.

        Raises:
            TypeError: If ``x`` is not floating or ``present`` neither bool nor integer.
            ValueError: If a shape does not fit.
        """
        check_floating("VariationalMLPEncoder", "x", x)
        check_shape("VariationalMLPEncoder", "x", x, B=None, D=self.in_features)
        present = as_mask("VariationalMLPEncoder", "present", present, B=x.shape[0])
        x = masked_dropout(x, present, self.dropout)
        linear, norm, activation = self.layer1
        hidden = self.layer2(activation(norm(squarable(linear(x))))) + self.residual(x)
        result: VariationalOutput = self.head(hidden, present, self.training if sample is None else sample)
        return result


def _normalized_linear(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, out_features), nn.LayerNorm(out_features), nn.GELU())
