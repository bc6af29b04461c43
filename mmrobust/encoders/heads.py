"""From a latent back to features, and heads on top of encoders."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_floating, check_option, check_shape, check_size
from .._precision import no_autocast, widen
from ._gaussian import check_dropout, check_widths


class ModalityDecoder(nn.Module):
    r"""Decode a latent into features, or into a sequence of them.

    Linear-ReLU-Dropout-Linear-ReLU-Linear, H wide throughout. For sequences the latent is repeated over T steps, each
    with a sinusoidal position added (Vaswani et al., arXiv 1706.03762, section 3.5), and every step is decoded alike.

    Args:
        hidden_features: Latent width H.
        out_features: Features D to rebuild.
        dropout: Dropout probability, in [0, 1).
        sequence: Whether the target is a sequence ``(B, T, D)``.

    Raises:
        ValueError: If a size or the dropout is out of range.

    Example:
        >>> ModalityDecoder(8, 20, 0.1)(torch.randn(4, 8)).shape
        torch.Size([4, 20])
        >>> ModalityDecoder(8, 20, sequence=True)(torch.randn(4, 8), num_steps=5).shape
        torch.Size([4, 5, 20])
    """

    def __init__(
        self, hidden_features: int, out_features: int, dropout: float = 0.0, *, sequence: bool = False
    ) -> None:
        super().__init__()
        check_size("ModalityDecoder", "hidden_features", hidden_features)
        check_size("ModalityDecoder", "out_features", out_features)
        check_dropout("ModalityDecoder", dropout)
        self.hidden_features, self.out_features, self.sequence = hidden_features, out_features, sequence
        self.layers = nn.Sequential(
            nn.Linear(hidden_features, hidden_features),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_features, hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, out_features),
        )

    def forward(self, z: Tensor, num_steps: int | None = None) -> Tensor:
        """Decode ``z (B, H)`` into ``(B, D)``, or into ``(B, num_steps, D)`` when built with ``sequence=True``.

        Raises:
            TypeError: If ``z`` is not floating.
            ValueError: If the shape does not fit, or ``num_steps`` is given without ``sequence=True`` or lacking
                with it.
        """
        check_floating("ModalityDecoder", "z", z)
        check_shape("ModalityDecoder", "z", z, B=None, H=self.hidden_features)
        if self.sequence != (num_steps is not None):
            needed = "an integer (sequence=True)" if self.sequence else "None (sequence=False)"
            raise ValueError(f"ModalityDecoder: expected num_steps to be {needed}, got {num_steps}")
        if num_steps is not None:
            check_size("ModalityDecoder", "num_steps", num_steps, 0)
            z = z.unsqueeze(1) + _positions(num_steps, self.hidden_features, z)
        decoded: Tensor = self.layers(z)
        return decoded


def _positions(steps: int, features: int, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    place = torch.arange(steps, device=like.device, dtype=dtype).unsqueeze(1)
    index = torch.arange(features, device=like.device)
    angle = place * torch.exp((index // 2).to(dtype) * (-2.0 * math.log(10000.0) / features))
    return torch.where(index % 2 == 0, angle.sin(), angle.cos()).to(like.dtype)


class ProjectionHead(nn.Module):
    r"""Project features to the space of a contrastive loss: Linear-ReLU-Linear, then unit length.

    :math:`y = u / \max(\|u\|_2, 10^{-12})` with :math:`u = W_2\,\mathrm{ReLU}(W_1 x)`.

    Args:
        in_features: Features D of the input.
        out_features: Width P of the projection.
        hidden_features: Width in between; ``None`` = ``in_features``.
        normalize: Whether the output has unit length.

    Raises:
        ValueError: If a size is out of range.

    Source: Chen et al., SimCLR, arXiv 2002.05709, section 2.1.

    Example:
        >>> ProjectionHead(16, 4)(torch.randn(3, 16)).norm(dim=1).allclose(torch.ones(3))
        True
    """

    def __init__(
        self, in_features: int, out_features: int, *, hidden_features: int | None = None, normalize: bool = True
    ) -> None:
        super().__init__()
        hidden = in_features if hidden_features is None else hidden_features
        check_widths("ProjectionHead", in_features, hidden)
        check_size("ProjectionHead", "out_features", out_features)
        self.in_features, self.out_features, self.normalize = in_features, out_features, normalize
        self.layers = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Project ``x (..., D)`` to ``(..., P)``.

        Raises:
            TypeError: If ``x`` is not floating.
            ValueError: If the last dimension is not D.
        """
        check_floating("ProjectionHead", "x", x)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"ProjectionHead: expected x of shape (..., {self.in_features}), got {tuple(x.shape)}")
        projected: Tensor = self.layers(x)
        if not self.normalize:
            return projected
        with no_autocast(projected):
            return F.normalize(widen(projected), dim=-1).to(projected.dtype)


class FeatureTokenizer(nn.Module):
    r"""Turn a vector of D features into D tokens of width E.

    ``"dense"``: one linear map from all features to all tokens, :math:`D \cdot D E` weights.
    ``"per_feature"``: token :math:`d` is :math:`x_d w_d + b_d`, :math:`2 D E` weights (Gorishniy et al.,
    arXiv 2106.11959, section 3.3).

    Args:
        in_features: Number of features D.
        token_features: Token width E.
        mode: ``"dense"`` or ``"per_feature"``.

    Raises:
        ValueError: If a size or the option is out of range.

    Example:
        >>> FeatureTokenizer(6, 4, mode="per_feature")(torch.randn(2, 6)).shape
        torch.Size([2, 6, 4])
    """

    def __init__(
        self, in_features: int, token_features: int, *, mode: Literal["dense", "per_feature"] = "dense"
    ) -> None:
        super().__init__()
        check_size("FeatureTokenizer", "in_features", in_features)
        check_size("FeatureTokenizer", "token_features", token_features)
        check_option("FeatureTokenizer", "mode", mode, ("dense", "per_feature"))
        self.in_features, self.token_features, self.mode = in_features, token_features, mode
        if mode == "dense":
            self.linear = nn.Linear(in_features, in_features * token_features)
        else:
            bound = token_features**-0.5
            self.weight = nn.Parameter(torch.empty(in_features, token_features).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.empty(in_features, token_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Tokenize ``x (B, D)`` into ``(B, D, E)``.

        Raises:
            TypeError: If ``x`` is not floating.
            ValueError: If the shape is not ``(B, D)``.
        """
        check_floating("FeatureTokenizer", "x", x)
        check_shape("FeatureTokenizer", "x", x, B=None, D=self.in_features)
        if self.mode == "dense":
            dense: Tensor = self.linear(x)
            return dense.reshape(x.shape[0], self.in_features, self.token_features)
        return x.unsqueeze(-1) * self.weight + self.bias
