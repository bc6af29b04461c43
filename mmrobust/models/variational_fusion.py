"""Probabilistic encoders and fusion by uncertainty: the published family V4 and the corrected one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._checks import check_option, check_range, check_size
from .._precision import widen
from ..encoders import VariationalOutput
from ..fusion import weighted_sum
from ..fusion.uncertainty import Weighting
from ..losses.contrastive import ModalityContrastiveLoss
from ..losses.variational import VariationalLoss
from ..presence import ModalityDropout
from ..quality import ModalityQuality, quality_loss
from ._inputs import ABSENCES, Absence, FusionClassifierOutput, InputReader, ModalityInputs, PredictionHeads
from ._variational_parts import (
    build_attention,
    build_decoders,
    build_encoders,
    build_fusion,
    check_views,
    complete_targets,
    decode,
    encode,
    fuse,
    repeat_views,
    spoilt_rows,
    unflatten_views,
)

_WHERE = "VariationalFusionClassifier"


class VariationalFusionClassifier(nn.Module):
    r"""Encode every modality as a Gaussian, fuse by uncertainty, look back by attention, classify or regress.

    Encoders give :math:`\mu_m, \sigma_m, z_m`; the fusion weighs the means (or samples) into a proxy;
    :class:`ProxyCrossModalAttention` lets the proxy attend to the modalities again; heads read the result. In
    training the auxiliary loss adds KL terms, reconstruction and, optionally, a contrastive loss between modalities.
    The reconstruction is denoising where the targets know more than the encoders saw: with ``targets`` when the caller
    has spoilt the input, and with ``reconstruct_from="fused"`` for what modality dropout took away.

    Args:
        in_features: Features of every modality; the order here is the order of M everywhere.
        hidden_features: Latent width H.
        num_classes: Number of classes C; ``None`` = no class head.
        num_values: Number of regression targets V; 0 = no value head.
        sequences: Names of the modalities given as ``(B, T, D)``.
        dropout: Dropout probability in encoders, decoders, attention and before the heads.
        fusion: ``"uncertainty"``, ``"gated"``, or ``"mean"`` = equal weights for what is present, for which
            the five options below mean nothing and ``quality`` must be ``"none"``.
        weighting: As in :class:`UncertaintyWeightedFusion`, like the four options below.
        power: Exponent for ``"precision"``.
        temperature: Softness of the weights.
        per_dimension: Whether every dimension has weights of its own.
        prior_expert: Whether a prior N(0, I) takes part; the weights then sum to less than 1.
        gate_alpha: Share of the uncertainty weights in ``fusion="gated"``.
        attention: ``"joint"``, ``"per_modality"`` (as published) or ``"none"``.
        num_heads: Attention heads.
        modality_dropout: Probability that a training sample loses modalities: :class:`ModalityDropout`.
        modality_dropout_warmup: Epochs without modality dropout.
        modality_dropout_ramp: Epochs over which it then rises.
        absence: ``"exclude"``: absent modalities get weight 0, and modality dropout acts before the encoders.
            ``"zero_fill"``, as published: absent inputs are zeros that are encoded and fused as if present; modality
            dropout zeroes means after encoding and sets their std to 1e6, which leaves them some weight.
        classify_from: ``"mean"`` or ``"sample"``: what the fusion weighs (in eval mode always the mean).
        quality: What becomes of the log-variance that :class:`ModalityQuality` reads from the inputs: ``"none"`` =
            there is none; ``"scale"``: it scales the encoders' stds; ``"replace"``: it stands in their place in the
            fusion. Call :meth:`fit_quality` before training, and train with spoilt inputs and clean ``targets``.
        quality_weight: Weight of :func:`quality_loss`, which compares it with what was spoilt; no ``targets``, no term.
        freeze_quality: Whether its networks stay as ``fit_quality(..., teach=True)`` made them: no gradient, no term.
        kl_weight: Weight of the KL to the prior; these and the next are passed to :class:`VariationalLoss`.
        reconstruction_weight: Weight of the reconstruction; 0 = no decoders.
        cross_kl_weight: Weight of the KL between modalities.
        contrastive_weight: Weight of :class:`ModalityContrastiveLoss` on the means; 0 = none.
        contrastive_features: Width of its projections.
        reconstruct_from: ``"own"``: each modality from its own sample; ``"fused"``: every modality, dropped ones
            included, from the weighted sum of the samples.
        latent_reduction: ``"mean"`` or ``"sum"`` over H in the KL to the prior.
        symmetric_cross_kl: Whether the KL between modalities goes both ways.
        free_bits: Free bits of the KL to the prior.
        kl_warmup: Epochs without KL terms.
        kl_ramp: Epochs over which they then rise.
        logvar_bound: ``"soft"`` or ``"clamp"``, as in :class:`VariationalMLPEncoder`.

    Raises:
        ValueError: If a size or an option does not fit.

    Source: MERTools descendants V4 (variational, proxy attention) after P-RMF, Zhu et al., ACL 2025. The published
    arithmetic: ``weighting="softmax_inverse_std", attention="per_modality", absence="zero_fill",
    latent_reduction="sum", symmetric_cross_kl=False, logvar_bound="clamp"``; the defaults correct it.

    Example:
        >>> model = VariationalFusionClassifier({"audio": 10, "text": 20}, 8, num_classes=3, modality_dropout=0.5)
        >>> batch = {"audio": torch.randn(4, 10), "text": torch.randn(4, 20)}
        >>> out = model(batch)
        >>> out.logits.shape, out.std.shape, bool(out.aux_loss > 0)
        (torch.Size([4, 3]), torch.Size([4, 2, 8]), True)
        >>> model.eval()(batch, torch.tensor([[True, False]] * 4)).weights[0].detach()
        tensor([1., 0.])
    """

    def __init__(
        self,
        in_features: Mapping[str, int],
        hidden_features: int,
        *,
        num_classes: int | None = None,
        num_values: int = 0,
        sequences: Sequence[str] = (),
        dropout: float = 0.0,
        fusion: Literal["uncertainty", "gated", "mean"] = "uncertainty",
        weighting: Weighting = "precision",
        power: float = 2.0,
        temperature: float = 1.0,
        per_dimension: bool = False,
        prior_expert: bool = False,
        gate_alpha: float = 0.5,
        attention: Literal["joint", "per_modality", "none"] = "joint",
        num_heads: int = 4,
        modality_dropout: float = 0.0,
        modality_dropout_warmup: int = 0,
        modality_dropout_ramp: int = 0,
        absence: Absence = "exclude",
        classify_from: Literal["mean", "sample"] = "mean",
        quality: Literal["none", "scale", "replace"] = "none",
        quality_weight: float = 1.0,
        freeze_quality: bool = False,
        kl_weight: float = 0.01,
        reconstruction_weight: float = 0.1,
        cross_kl_weight: float = 0.01,
        contrastive_weight: float = 0.0,
        contrastive_features: int = 64,
        reconstruct_from: Literal["own", "fused"] = "own",
        latent_reduction: Literal["mean", "sum"] = "mean",
        symmetric_cross_kl: bool = True,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
        kl_ramp: int = 0,
        logvar_bound: Literal["soft", "clamp"] = "soft",
    ) -> None:
        super().__init__()
        check_size(_WHERE, "hidden_features", hidden_features)
        check_option(_WHERE, "absence", absence, ABSENCES)
        check_option(_WHERE, "classify_from", classify_from, ("mean", "sample"))
        check_option(_WHERE, "reconstruct_from", reconstruct_from, ("own", "fused"))
        check_option(_WHERE, "quality", quality, ("none", "scale", "replace"))
        check_range(_WHERE, "contrastive_weight", contrastive_weight, 0.0)
        check_range(_WHERE, "quality_weight", quality_weight, 0.0)
        self.reader, count = InputReader(_WHERE, in_features, sequences), len(in_features)
        self.modalities = tuple(in_features)
        self.absence, self.classify_from, self.reconstruct_from = absence, classify_from, reconstruct_from
        self.encoders = build_encoders(self.reader, hidden_features, dropout, logvar_bound)
        self.modality_dropout = ModalityDropout(
            modality_dropout, warmup_epochs=modality_dropout_warmup, ramp_epochs=modality_dropout_ramp
        )
        weighing = {"weighting": weighting, "power": power, "temperature": temperature}
        weighing |= {"per_dimension": per_dimension, "prior_expert": prior_expert}
        self.fusion = build_fusion(_WHERE, fusion, hidden_features, count, gate_alpha, weighing, quality)
        self.attention = build_attention(_WHERE, attention, hidden_features, num_heads, dropout, count)
        self.heads = PredictionHeads(_WHERE, hidden_features, num_classes, num_values, dropout)
        self.decoders = build_decoders(self.reader, hidden_features, dropout) if reconstruction_weight > 0 else None
        loss: dict[str, Any] = {"latent_reduction": latent_reduction, "cross_reduction": "mean"}
        loss |= {"symmetric": symmetric_cross_kl, "free_bits": free_bits}
        loss |= {"warmup_epochs": kl_warmup, "ramp_epochs": kl_ramp}
        self.variational_loss = VariationalLoss(kl_weight, reconstruction_weight, cross_kl_weight, **loss)
        self.quality_mode, self.quality_weight, self.freeze_quality = quality, quality_weight, freeze_quality
        self.quality = None if quality == "none" else ModalityQuality(in_features).requires_grad_(not freeze_quality)
        self.contrastive_weight, self.contrastive = contrastive_weight, None
        if contrastive_weight > 0:
            self.contrastive = ModalityContrastiveLoss(hidden_features, count, contrastive_features)

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch (0-based), which modality dropout and KL warm-up follow."""
        self.modality_dropout.set_epoch(epoch)
        self.variational_loss.set_epoch(epoch)

    def fit_quality(
        self,
        inputs: Mapping[str, Tensor],
        present: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        *,
        teach: bool = False,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Show :class:`ModalityQuality` the training rows, without labels.

        Args:
            inputs: As in :meth:`forward`, like the next two.
            present: Presence.
            masks: Step masks.
            teach: Whether its networks also learn what spoilt rows look like: :meth:`ModalityQuality.teach`.
            groups: As there, such as the subject of every row.
            generator: As there.

        Raises:
            RuntimeError: If the model has no quality, or a frozen one that is not taught.
            TypeError: If a dtype is wrong.
            ValueError: If a name or a shape does not fit, or a modality is in too few rows or groups.
        """
        if self.quality is None or (self.freeze_quality and not teach):
            wanted = "teach=True with freeze_quality=True" if self.quality else "a model with quality"
            raise RuntimeError(f"{_WHERE}: expected {wanted}, got quality={self.quality_mode!r}, teach={teach}")
        x = self.reader.read(inputs, present, masks, fill=False)
        self.quality.fit(x.features, x.present, x.masks)
        if teach:
            self.quality.teach(x.features, x.present, x.masks, groups=groups, generator=generator)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        present: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        targets: Mapping[str, Tensor] | None = None,
        *,
        views: Tensor | None = None,
    ) -> FusionClassifierOutput:
        """Classify a batch.

        Args:
            inputs: By name, floating features ``(B, D)`` or, for ``sequences``, ``(B, T, D)``. A modality that is
                left out is absent for the whole batch, whatever ``present`` says.
            present: Bool or integer 0/1 mask ``(B, M)``, True = present.
            masks: By name, for sequences, bool or integer 0/1 masks ``(B, T)``, True = real step.
            targets: By name, complete inputs to reconstruct when ``inputs`` are spoilt ones; they count where
                ``inputs`` are present. ``None`` = the inputs themselves. Used in training only.
            views: Bool or integer 0/1 masks ``(V, B, M)``, such as :func:`presence_views` makes: the batch is encoded
                once and classified V times, each time with the modalities of one view that are present. All fields
                but the auxiliary loss, which is that of the first view, then begin with V. They take the place of
                modality dropout, and need ``absence="exclude"``.

        Raises:
            TypeError: If an input is not floating or a mask neither bool nor integer.
            ValueError: If a name or a shape does not fit.
        """
        exclude = self.absence == "exclude"
        x = self.reader.read(inputs, present, masks, fill=not exclude)
        if views is None:
            kept = self.modality_dropout(x.present if exclude else torch.ones_like(x.present))
            return self._classify(x, kept, targets)
        if not exclude:
            raise ValueError(f"{_WHERE}: expected views=None with absence='zero_fill', got views")
        return self._classify(x, check_views(_WHERE, views, x.present), targets)

    def _classify(
        self, x: ModalityInputs, kept: Tensor, targets: Mapping[str, Tensor] | None
    ) -> FusionClassifierOutput:
        """Encode a batch and classify it by what is kept: ``(B, M)``, or ``(V, B, M)`` for several views of it."""
        exclude, views = self.absence == "exclude", kept.shape[:-2]
        union = kept.any(0) if views else kept
        visible, quality = union if exclude else None, None
        latent = encode(self.encoders, x, visible)
        if self.quality is not None:
            quality = self.quality(x.features, visible, x.masks)
        seen, std = latent.z if self.classify_from == "sample" else latent.mu, latent.std
        if quality is not None:
            factor = (0.5 * widen(quality)).exp().unsqueeze(-1)
            std = (factor if self.quality_mode == "replace" else widen(std) * factor).to(std.dtype)
        present, mu = kept & x.present, latent.mu
        if views:
            seen, std, mu = repeat_views(kept, seen, std, mu)
        fused, weights = fuse(self.fusion, self.attention, seen, std, kept.flatten(0, -2), exclude)
        features, logits, values = self.heads(fused)
        aux_loss = widen(fused).new_zeros(())
        if self.training:
            first = kept[0] if views else kept
            aux_loss = self._aux_loss(x, targets, latent, quality, weights[: len(first)], first if exclude else None)
        output = FusionClassifierOutput(features, logits, values, aux_loss, weights, mu, std.expand_as(mu), present)
        return unflatten_views(output, kept.shape[:2]) if views else output

    def _aux_loss(
        self,
        x: ModalityInputs,
        targets: Mapping[str, Tensor] | None,
        latent: VariationalOutput,
        quality: Tensor | None,
        weights: Tensor,
        visible: Tensor | None,
    ) -> Tensor:
        clean, seen = complete_targets(x, self.modalities, targets), x.present if visible is None else visible
        if self.reconstruct_from == "fused":
            sources, counted = [weighted_sum(latent.z, weights, visible)] * len(clean), x.present
        else:
            sources, counted = list(latent.z.unbind(1)), seen
        rebuilt = decode(self.decoders, sources, x)
        loss: Tensor = self.variational_loss(
            latent.mu, latent.logvar, rebuilt, clean, visible, target_present=counted, masks=x.masks
        ).total
        if self.contrastive is not None:
            loss = loss + self.contrastive_weight * self.contrastive(latent.mu, visible)
        if quality is not None and targets is not None and not self.freeze_quality:
            loss = loss + self.quality_weight * quality_loss(quality, spoilt_rows(x, clean), seen)
        return loss
