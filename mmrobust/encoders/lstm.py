"""Encoders of sequences."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_shape, check_size, check_tensor
from ..masking import lengths_to_mask, zero_missing
from ._gaussian import GaussianHead, VariationalOutput, check_dropout, check_widths


class _MaskedLSTM(nn.Module):
    """Run LSTM layers over the real steps alone and return the final states of the last layer.

    The real steps are gathered to the front, so that the state after the last of them is one gather away; the
    backward direction reads them through a reversed index.
    """

    def __init__(self, in_features: int, features: int, num_layers: int, bidirectional: bool, dropout: float) -> None:
        super().__init__()
        self.directions = 2 if bidirectional else 1
        self.out_features = self.directions * features
        self.dropout = nn.Dropout(dropout)
        self.cells = nn.ModuleList(
            nn.LSTM(in_features if layer == 0 else self.out_features, features, batch_first=True)
            for layer in range(num_layers)
            for _ in range(self.directions)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, steps = x.shape[:2]
        if batch == 0 or steps == 0:
            return x.new_zeros(batch, self.out_features)
        place = torch.arange(steps, device=x.device).expand(batch, steps)
        length = torch.full((batch, 1), steps, device=x.device)
        if mask is not None:
            length = mask.sum(1, keepdim=True)
            x = _take(x, (~mask).int().argsort(dim=1, stable=True))
        backward = torch.where(place < length, length - 1 - place, place)
        last = (length - 1).clamp(min=0)
        final = [x]
        for index in range(0, len(self.cells), self.directions):
            if index > 0:
                x = self.dropout(x)
            runs = [self.cells[index](x)[0]]
            if self.directions == 2:
                runs.append(self.cells[index + 1](_take(x, backward))[0])
            final = [_take(run, last).squeeze(1) for run in runs]
            x = torch.cat([runs[0], *(_take(run, backward) for run in runs[1:])], dim=-1)
        return torch.cat(final, dim=-1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class VariationalLSTMEncoder(nn.Module):
    r"""Encode a sequence as a diagonal Gaussian, from the last valid state of an LSTM.

    :math:`h = \mathrm{ReLU}(W_s\,\mathrm{Dropout}(h_T))`, then mean and bounded log-variance as in
    :class:`VariationalMLPEncoder`. In both directions the two final states of the last layer are joined. Equals the
    result of a packed ``nn.LSTM`` without packing, which would break compilation and export.

    Args:
        in_features: Features D of a step.
        hidden_features: Latent width H.
        dropout: Dropout probability on the final state and between layers, in [0, 1).
        num_layers: Number of LSTM layers.
        bidirectional: Whether to read in both directions.
        logvar_bound: As in :class:`VariationalMLPEncoder`.
        init_logvar: As in :class:`VariationalMLPEncoder`.

    Raises:
        ValueError: If a size, the dropout or an option is out of range.

    Example:
        >>> encoder = VariationalLSTMEncoder(5, 8, 0.0, num_layers=2, bidirectional=True)
        >>> mask = torch.tensor([[True, True, False], [False, False, False]])
        >>> encoder(torch.randn(2, 3, 5), mask).std[1]  # an empty sequence tells nothing
        tensor([1., 1., 1., 1., 1., 1., 1., 1.], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        dropout: float = 0.0,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        logvar_bound: Literal["soft", "clamp"] = "soft",
        init_logvar: float = 0.0,
    ) -> None:
        super().__init__()
        check_widths("VariationalLSTMEncoder", in_features, hidden_features)
        check_dropout("VariationalLSTMEncoder", dropout)
        self.in_features, self.hidden_features = in_features, hidden_features
        check_size("VariationalLSTMEncoder", "num_layers", num_layers)
        self.lstm = _MaskedLSTM(in_features, hidden_features, num_layers, bidirectional, dropout)
        self.dropout = nn.Dropout(dropout)
        self.shared = nn.Linear(self.lstm.out_features, hidden_features)
        self.head = GaussianHead("VariationalLSTMEncoder", hidden_features, logvar_bound, init_logvar)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, sample: bool | None = None) -> VariationalOutput:
        """Encode ``x (B, T, D)``.

        Args:
            x: Floating steps ``(B, T, D)``.
            mask: Bool or integer 0/1 mask ``(B, T)``, True = real step, in any pattern (steps that are not real are
                left out as if they had never been there), or integer lengths ``(B,)``. ``None`` = all real. Empty
                sequences come out as the prior.
            sample: Whether ``z`` is drawn or equals ``mu``; ``None`` = drawn in training only.

        Raises:
            TypeError: If ``x`` is not floating or the mask neither bool nor integer.
            ValueError: If a shape does not fit.
        """
        final, present = _final_state("VariationalLSTMEncoder", self.lstm, x, mask, self.in_features)
        hidden = F.relu(self.shared(self.dropout(final)))
        result: VariationalOutput = self.head(hidden, present, self.training if sample is None else sample)
        return result


class LSTMEncoder(nn.Module):
    """Encode a sequence as the last valid state of an LSTM: :class:`VariationalLSTMEncoder` without the Gaussian.

    Args:
        in_features: Features D of a step.
        hidden_features: Output width H.
        dropout: Dropout probability on the final state and between layers, in [0, 1).
        num_layers: Number of LSTM layers.
        bidirectional: Whether to read in both directions; the two final states are joined and projected to H.

    Raises:
        ValueError: If a size or the dropout is out of range.

    Example:
        >>> LSTMEncoder(5, 8)(torch.randn(2, 3, 5), torch.tensor([3, 0]))[1].abs().sum().item()
        0.0
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        dropout: float = 0.0,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        check_widths("LSTMEncoder", in_features, hidden_features)
        check_dropout("LSTMEncoder", dropout)
        self.in_features, self.hidden_features = in_features, hidden_features
        check_size("LSTMEncoder", "num_layers", num_layers)
        self.lstm = _MaskedLSTM(in_features, hidden_features, num_layers, bidirectional, dropout)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(self.lstm.out_features, hidden_features) if bidirectional else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode ``x (B, T, D)`` as ``(B, H)``; the mask is as in :class:`VariationalLSTMEncoder`, empty gives 0.

        Raises:
            TypeError: If ``x`` is not floating or the mask neither bool nor integer.
            ValueError: If a shape does not fit.
        """
        final, present = _final_state("LSTMEncoder", self.lstm, x, mask, self.in_features)
        return zero_missing(self.projection(self.dropout(final)), present)


def _final_state(
    where: str, lstm: _MaskedLSTM, x: Tensor, mask: Tensor | None, in_features: int
) -> tuple[Tensor, Tensor | None]:
    """Check the input of a sequence encoder; return the final states and which sequences are not empty."""
    check_floating(where, "x", x)
    check_shape(where, "x", x, B=None, T=None, D=in_features)
    batch, steps = x.shape[:2]
    if mask is not None:
        check_tensor(where, "mask", mask)
        if mask.dim() == 1 and not mask.is_floating_point() and mask.dtype != torch.bool:
            check_shape(where, "mask", mask, B=batch)
            mask = lengths_to_mask(mask, steps)
    mask = as_mask(where, "mask", mask, B=batch, T=steps)
    final: Tensor = lstm(zero_missing(x, mask), mask)
    if mask is None:
        return final, torch.zeros(batch, dtype=torch.bool, device=x.device) if steps == 0 else None
    return final, mask.any(1)
