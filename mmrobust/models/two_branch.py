"""Feature vectors of several kinds: extractors, attention between their features, subspace prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_integers, check_option, check_range, check_shape, check_size
from .._precision import widen
from ..attention import FeatureTokenFusion
from ..encoders import FeatureTokenizer, MLPEncoder, ProjectionHead
from ..losses import sup_con_loss
from ..masking import masked_mean, zero_missing
from ..memory import MemoryKeys
from ..prototypes import SubspacePrototypeClassifier
from ..prototypes.classifier import Orthogonality
from ._inputs import InputReader

Head = Literal["subspace", "linear"]
_WEIGHTS = ("classification_weight", "contrastive_weight", "orthonormality_weight", "separation_weight")


class PrototypeClassifierOutput(NamedTuple):
    """What the model returns.

    ``logits (B, C)``; ``embedding (B, H)`` that the head reads; unit ``projections (B, M, P)`` for a contrastive loss,
    zero where absent; ``present (B, M)`` what the model went by.
    """

    logits: Tensor
    embedding: Tensor
    projections: Tensor
    present: Tensor


class PrototypeLossOutput(NamedTuple):
    """The weighted sum ``loss``, its parts before their weights (scalars, 0 for what is off), and the output."""

    loss: Tensor
    classification: Tensor
    contrastive: Tensor
    orthonormality: Tensor
    separation: Tensor
    output: PrototypeClassifierOutput


class TwoBranchPrototypeClassifier(nn.Module):
    r"""Encode branches by extractors of their own, let their features attend to each other, classify by subspaces.

    Each branch, such as a kind of omics, has an :class:`~mmrobust.MLPEncoder` of any depth; the H features it gives
    become tokens that look at the features of the other branches (:class:`~mmrobust.FeatureTokenFusion`), whose
    findings are added to them. The mean over the branches that are there is compared with class subspaces.
    Two branches are the usual case; any number works, and each may be absent.

    Args:
        in_features: Features of every branch; the order here is the order of M everywhere.
        hidden_features: Widths of the extractor of each branch, or of all (one integer = one layer); the last is H, the
            same for all.
        num_classes: Number of classes C.
        subspace_dim: Basis vectors of each class.
        dropout: Dropout probability in the extractor of each branch, or in all.
        token_features: Width of a token; 0 = no attention between branches.
        num_heads: Heads of the attention; divides ``token_features``.
        projection_features: Width P of the contrastive space.
        head: ``"subspace"``, or ``"linear"`` to compare with.
        temperature: Temperature of the prototypes.
        normalize: Whether the embedding has unit length before it is compared.
        orthogonality: ``"penalty"`` or ``"exact"``, as in :class:`~mmrobust.SubspacePrototypeClassifier`.
        classification_weight: Weight of cross entropy in :meth:`loss`.
        contrastive_weight: Weight of SupCon with the branches of a sample as its views; 0 = off.
        contrastive_temperature: Its temperature.
        orthonormality_weight: Weight of the penalty on bases.
        separation_weight: Weight of the overlap of subspaces.

    Raises:
        ValueError: If a size or an option does not fit.

    Example:
        >>> sizes = {"genes": 40, "proteins": 12}
        >>> widths = {"genes": [32, 16], "proteins": [16]}
        >>> model = TwoBranchPrototypeClassifier(sizes, widths, num_classes=3, subspace_dim=2)
        >>> inputs = {"genes": torch.randn(6, 40), "proteins": torch.randn(6, 12)}
        >>> model(inputs).logits.shape
        torch.Size([6, 3])
        >>> model.loss({"genes": inputs["genes"]}, torch.arange(6) % 3).loss.backward()  # proteins are missing
    """

    def __init__(
        self,
        in_features: Mapping[str, int],
        hidden_features: Mapping[str, Sequence[int] | int] | Sequence[int] | int,
        num_classes: int,
        subspace_dim: int,
        *,
        dropout: Mapping[str, float] | float = 0.0,
        token_features: int = 16,
        num_heads: int = 2,
        projection_features: int = 128,
        head: Head = "subspace",
        temperature: float = 0.1,
        normalize: bool = True,
        orthogonality: Orthogonality = "penalty",
        classification_weight: float = 1.0,
        contrastive_weight: float = 0.1,
        contrastive_temperature: float = 0.1,
        orthonormality_weight: float = 0.1,
        separation_weight: float = 0.0,
    ) -> None:
        super().__init__()
        where = "TwoBranchPrototypeClassifier"
        self.reader = InputReader(where, in_features, ())
        names = list(in_features)
        check_size(where, "num_classes", num_classes)
        widths, dropouts = _widths(where, hidden_features, names), _by_name(where, "dropout", dropout, names)
        hidden = widths[names[0]][-1]
        check_option(where, "head", head, ("subspace", "linear"))
        check_size(where, "token_features", token_features, 0)
        check_range(where, "contrastive_temperature", contrastive_temperature, 0.0, low_open=True)
        self.hidden_features, self.num_classes = hidden, num_classes
        self.encoders = nn.ModuleList(
            MLPEncoder(
                in_features[name],
                widths[name],
                dropout=dropouts[name],
                activation="gelu",
                normalization="layer",
            )
            for name in names
        )
        self.tokenizers = nn.ModuleList(
            FeatureTokenizer(hidden, token_features, mode="per_feature") for _ in names if token_features
        )
        self.fusion = FeatureTokenFusion(token_features, num_heads, len(names)) if token_features else None
        self.readouts = nn.ModuleList(nn.Linear(token_features, 1) for _ in names if token_features)
        self.projections = nn.ModuleList(ProjectionHead(hidden, projection_features) for _ in names)
        prototypes = {"temperature": temperature, "normalize": normalize, "orthogonality": orthogonality}
        self.head: nn.Module = nn.Linear(hidden, num_classes)
        if head == "subspace":
            self.head = SubspacePrototypeClassifier(hidden, num_classes, subspace_dim, **prototypes)  # type: ignore[arg-type]
        weights = (classification_weight, contrastive_weight, orthonormality_weight, separation_weight)
        for name, weight in zip(_WEIGHTS, weights, strict=True):
            check_range(where, name, weight, 0.0)
        self.weights, self.contrastive_temperature = weights, contrastive_temperature

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor | None = None) -> PrototypeClassifierOutput:
        """Classify ``inputs``, a tensor ``(B, D)`` per branch, with ``present (B, M)``, True = present.

        A branch that the mapping lacks is absent for all. A sample without any branch has a zero embedding.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape or a name is wrong.
        """
        x = self.reader.read(inputs, present, None, fill=False)
        columns = x.present.unbind(1)
        hidden = [
            encoder(part, column) for encoder, part, column in zip(self.encoders, x.features, columns, strict=True)
        ]
        if self.fusion is not None:
            hidden = self._attended(hidden, x.present)
        rows = torch.stack([zero_missing(part, column) for part, column in zip(hidden, columns, strict=True)], dim=1)
        embedding = masked_mean(rows, x.present)
        projected = torch.stack(
            [head(part) for head, part in zip(self.projections, rows.unbind(1), strict=True)], dim=1
        )
        return PrototypeClassifierOutput(self.head(embedding), embedding, zero_missing(projected, x.present), x.present)

    def loss(
        self,
        inputs: Mapping[str, Tensor],
        labels: Tensor,
        present: Tensor | None = None,
        *,
        keys: MemoryKeys | None = None,
    ) -> PrototypeLossOutput:
        """Return the training loss with ``labels (B,)`` in [0, C); ``keys``: more keys of a memory bank.

        Samples without any branch leave the means of cross entropy and SupCon, and their labels are not read; over
        no sample these are 0.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape or a name is wrong.
        """
        output = self(inputs, present)
        check_integers("TwoBranchPrototypeClassifier.loss", "labels", labels)
        check_shape("TwoBranchPrototypeClassifier.loss", "labels", labels, B=output.logits.shape[0])
        classification = self._classification(output, labels)
        contrastive = orthonormality = separation = torch.zeros_like(classification)
        if self.weights[1]:
            contrastive = sup_con_loss(
                output.projections.flatten(0, 1),
                labels.repeat_interleave(output.present.shape[1]),
                present=output.present.flatten(),
                temperature=self.contrastive_temperature,
                keys=None if keys is None else keys.features,
                key_labels=None if keys is None else keys.labels,
                key_present=None if keys is None else keys.present,
            )
        if isinstance(self.head, SubspacePrototypeClassifier):
            orthonormality = self.head.orthonormality_penalty() if self.weights[2] else orthonormality
            separation = self.head.separation() if self.weights[3] else separation
        parts = (classification, contrastive, orthonormality, separation)
        total = sum((w * part for w, part in zip(self.weights, parts, strict=True)), torch.zeros_like(classification))
        return PrototypeLossOutput(total, *parts, output)

    def _classification(self, output: PrototypeClassifierOutput, labels: Tensor) -> Tensor:
        known = output.present.any(1)
        losses = F.cross_entropy(widen(output.logits), torch.where(known, labels.long(), 0), reduction="none")
        return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)

    def _attended(self, hidden: list[Tensor], present: Tensor) -> list[Tensor]:
        assert self.fusion is not None
        tokens = [tokenize(x) for tokenize, x in zip(self.tokenizers, hidden, strict=True)]
        fused = self.fusion(tokens, present)
        found = [readout(x).squeeze(2) for readout, x in zip(self.readouts, fused, strict=True)]
        return [x + more for x, more in zip(hidden, found, strict=True)]


def _by_name(where: str, name: str, option: Any, branches: Sequence[str]) -> dict[str, Any]:
    """Return an option of each branch, which may be given once for all."""
    if not isinstance(option, Mapping):
        return dict.fromkeys(branches, option)
    for branch in branches:
        if branch not in option:
            raise ValueError(f"{where}: expected {name} of each branch, got none of {branch!r}")
    for branch in option:
        if branch not in branches:
            raise ValueError(f"{where}: expected {name} of {', '.join(branches)} only, got one of {branch!r}")
    return dict(option)


def _widths(where: str, option: Any, branches: Sequence[str]) -> dict[str, list[int]]:
    """Return the widths of every extractor, all of which end in the same."""
    given = _by_name(where, "hidden_features", option, branches)
    widths = {name: [one] if isinstance(one, int) else list(one) for name, one in given.items()}
    last = {found[-1] if found else 0 for found in widths.values()}
    if len(last) != 1 or 0 in last:
        raise ValueError(f"{where}: expected hidden_features that end in the same width for all, got {widths}")
    return widths
