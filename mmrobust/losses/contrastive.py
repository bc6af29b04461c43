"""Contrastive losses between paired vectors: InfoNCE, and InfoNCE over every pair of modalities.

Vectors are normalised inside, in float32 (float64 for float64). A vector whose largest entry is below ``1e-12`` has
no direction: its similarities are 0 and its gradient is exactly 0, so that an all-zero vector does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_range, check_shape, check_size, stack_modalities
from .._precision import no_autocast, widen
from ..masking import zero_missing

_NO_DIRECTION = 1e-12
_ABSENT_LOGIT = -1e30  # exp gives exactly 0; finite, so that a row without any key makes no NaN on the way


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float = 0.07,
    symmetric: bool = True,
    present: Tensor | None = None,
    negatives: Tensor | None = None,
) -> Tensor:
    r"""Compute InfoNCE: each query should be more similar to its own key than to the other keys of the batch.

    With unit vectors :math:`q_i, k_i`, extra negatives :math:`n_j` and temperature :math:`\tau`

    .. math:: \ell_i = -\log \frac{e^{q_i k_i / \tau}}{\sum_j e^{q_i k_j / \tau} + \sum_j e^{q_i n_j / \tau}}

    and the mean over the pairs that are present. ``symmetric`` averages it with the direction from keys to queries,
    which has no extra negatives (they are keys).

    Args:
        query: Floating tensor ``(B, D)``; needs no normalisation.
        key: Floating tensor ``(B, D)``; row ``i`` is the positive of query ``i``.
        temperature: :math:`\tau > 0`.
        symmetric: Average both directions.
        present: Bool or integer 0/1 ``(B,)``, True = the pair exists. Other rows are neither queries nor keys and are
            never read.
        negatives: Floating tensor ``(N, D)`` of extra keys that are nobody's positive.

    Returns:
        A float32 scalar (float64 for float64). Without a pair it is 0 and attached to the graph. A single pair
        without extra negatives has nothing to be told from: its loss is 0 whatever the vectors.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape or the temperature is wrong.

    Source: van den Oord et al., arXiv:1807.03748, eq. 4; symmetric as Radford et al., arXiv:2103.00020, figure 3,
    with a fixed temperature.

    Example:
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> info_nce_loss(query, query, temperature=1.0)
        tensor(0.3133)
        >>> info_nce_loss(query[:1], query[:1], negatives=query[1:], temperature=1.0, symmetric=False)
        tensor(0.3133)
    """
    where = "info_nce_loss"
    for name, x in (("query", query), ("key", key)):
        check_floating(where, name, x)
    check_shape(where, "query", query, B=None, D=None)
    check_shape(where, "key", key, B=query.shape[0], D=query.shape[1])
    check_range(where, "temperature", temperature, 0.0, low_open=True)
    valid = as_mask(where, "present", present, B=query.shape[0])
    if negatives is not None:
        check_floating(where, "negatives", negatives)
        check_shape(where, "negatives", negatives, N=None, D=query.shape[1])
    with no_autocast(query):
        query, key = (_unit(zero_missing(x, valid)) for x in (query, key))
        extra = None if negatives is None else _unit(negatives)
        rows = _info_nce_rows(query, key, valid, temperature, symmetric, extra)
        return rows.sum() / _count(rows, valid)


def modality_contrastive_loss(
    features: Tensor | Sequence[Tensor], present: Tensor | None = None, *, temperature: float = 0.07
) -> Tensor:
    r"""Compute symmetric InfoNCE between every two modalities of the same samples.

    .. math:: L = \frac{1}{|P|} \sum_{(a, b) \in P} \mathrm{InfoNCE}(x_a, x_b)

    over the pairs :math:`P` of modalities that at least one sample has together. In a pair only the samples that have
    both modalities are queries and keys.

    Args:
        features: Floating tensor ``(B, M, D)`` or a sequence of M tensors ``(B, D)``; needs no normalisation.
        present: Bool or integer 0/1 ``(B, M)``, True = the sample has the modality. What is absent is never read.
        temperature: Divides the cosine similarities; > 0.

    Returns:
        A float32 scalar (float64 for float64); 0 and attached to the graph when no sample has two modalities.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape or the temperature is wrong.

    Source: all pairs of modalities with the loss of Radford et al., arXiv:2103.00020. Deviation: pairs with an absent
    side leave the loss instead of entering it as zero vectors.

    Example:
        >>> features = torch.eye(2).unsqueeze(1).repeat(1, 3, 1)
        >>> modality_contrastive_loss(features, temperature=1.0)
        tensor(0.3133)
        >>> modality_contrastive_loss(features, torch.tensor([[True, False, False], [False, True, False]]))
        tensor(0.)
    """
    where = "modality_contrastive_loss"
    x = stack_modalities(where, "features", features)
    check_range(where, "temperature", temperature, 0.0, low_open=True)
    keep = as_mask(where, "present", present, B=x.shape[0], M=x.shape[1])
    pairs = list(combinations(range(x.shape[1]), 2))
    with no_autocast(x):
        if not pairs:
            return widen(x[:, :0]).sum()  # a zero that is attached to the graph and reads nothing
        units = _unit(zero_missing(x, keep)).unbind(1)
        first = torch.stack([units[a] for a, _ in pairs])  # (P, B, D)
        second = torch.stack([units[b] for _, b in pairs])
        valid = None if keep is None else torch.stack([keep[:, a] & keep[:, b] for a, b in pairs])
        rows = _info_nce_rows(first, second, valid, temperature, symmetric=True)
        losses = rows.sum(1) / _count(rows, valid)  # 0 for a pair without rows
        return losses.sum() / (len(pairs) if valid is None else valid.any(1).sum().clamp(min=1))


def _unit(x: Tensor) -> Tensor:
    """Return vectors of length one; those without a direction become zero, with a zero gradient."""
    x = widen(x)
    # Scaled by the largest entry first: the squares of 1e30 or 1e-30 do not fit into float32.
    scale = x.detach().abs().amax(-1, keepdim=True)
    directed = scale >= _NO_DIRECTION
    scaled = torch.where(directed, x, 1.0) / torch.where(directed, scale, 1.0)
    return torch.where(directed, scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True), 0.0)


def _info_nce_rows(
    query: Tensor,
    key: Tensor,
    valid: Tensor | None,
    temperature: float,
    symmetric: bool,
    negatives: Tensor | None = None,
) -> Tensor:
    """Return the loss of every row of unit vectors ``(..., B, D)``, 0 where ``valid (..., B)`` is False."""
    query = query / temperature
    extra = [] if negatives is None else [query @ negatives.mT]
    if valid is not None:
        # Two more features add the absent logit wherever a side is absent: far cheaper than a mask of all pairs.
        absent = torch.where(valid, 0.0, _ABSENT_LOGIT).to(query.dtype).unsqueeze(-1)
        one = torch.ones_like(absent)
        query, key = torch.cat([query, one, absent], dim=-1), torch.cat([key, absent, one], dim=-1)
    logits = query @ key.mT  # (..., B, B)
    scores = torch.cat([logits, *extra], dim=-1).log_softmax(-1)[..., : query.shape[-2]].diagonal(dim1=-2, dim2=-1)
    if symmetric:
        scores = (scores + logits.log_softmax(-2).diagonal(dim1=-2, dim2=-1)) / 2
    return -scores if valid is None else torch.where(valid, -scores, 0.0)


def _count(rows: Tensor, valid: Tensor | None) -> Tensor | int:
    """Return how many rows ``(..., B)`` are valid, at least 1."""
    return max(rows.shape[-1], 1) if valid is None else valid.sum(-1).clamp(min=1)


class InfoNCELoss(nn.Module):
    """Apply :func:`info_nce_loss` with a fixed temperature.

    Raises:
        TypeError: If the temperature is no number.
        ValueError: If it is not positive.

    Example:
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> InfoNCELoss(1.0)(query, query)
        tensor(0.3133)
    """

    def __init__(self, temperature: float = 0.07, *, symmetric: bool = True) -> None:
        super().__init__()
        check_range("InfoNCELoss", "temperature", temperature, 0.0, low_open=True)
        self.temperature, self.symmetric = temperature, symmetric

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"temperature={self.temperature}, symmetric={self.symmetric}"

    def forward(
        self, query: Tensor, key: Tensor, *, present: Tensor | None = None, negatives: Tensor | None = None
    ) -> Tensor:
        """Return the loss of ``query (B, D)`` against ``key (B, D)``; see :func:`info_nce_loss`."""
        return info_nce_loss(
            query, key, temperature=self.temperature, symmetric=self.symmetric, present=present, negatives=negatives
        )


class ModalityContrastiveLoss(nn.Module):
    """Project every modality by a head of its own, then apply :func:`modality_contrastive_loss`.

    A head is Linear(H, H), ReLU, Linear(H, P). What is absent is never read and gives the heads no gradient.

    Args:
        hidden_features: Features H of every modality.
        num_modalities: Number of modalities M.
        projection_features: Features P in which similarities are taken.
        temperature: Divides the cosine similarities; > 0.

    Raises:
        TypeError: If a size is no integer or the temperature no number.
        ValueError: If one of them is out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> loss = ModalityContrastiveLoss(8, 3)
        >>> loss(torch.randn(4, 3, 8), torch.tensor([[True, True, False]]).expand(4, 3)).shape
        torch.Size([])
    """

    def __init__(
        self, hidden_features: int, num_modalities: int, projection_features: int = 64, temperature: float = 0.07
    ) -> None:
        super().__init__()
        where = "ModalityContrastiveLoss"
        check_size(where, "hidden_features", hidden_features)
        check_size(where, "num_modalities", num_modalities)
        check_size(where, "projection_features", projection_features)
        check_range(where, "temperature", temperature, 0.0, low_open=True)
        self.hidden_features, self.num_modalities, self.temperature = hidden_features, num_modalities, temperature
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_features, hidden_features),
                nn.ReLU(),
                nn.Linear(hidden_features, projection_features),
            )
            for _ in range(num_modalities)
        )

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"temperature={self.temperature}"

    def forward(self, mu: Tensor | Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Return the loss of ``mu (B, M, H)`` (or M tensors ``(B, H)``) with ``present (B, M)``, True = present.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong.
        """
        x = stack_modalities("ModalityContrastiveLoss", "mu", mu)
        check_shape("ModalityContrastiveLoss", "mu", x, B=None, M=self.num_modalities, H=self.hidden_features)
        keep = as_mask("ModalityContrastiveLoss", "present", present, B=x.shape[0], M=x.shape[1])
        parts = zero_missing(x, keep).unbind(1)
        projected = torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)], dim=1)
        return modality_contrastive_loss(projected, keep, temperature=self.temperature)
