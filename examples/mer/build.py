"""Models and losses from the names and options of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from torch import nn

from examples.pipeline.errors import check_number, check_option, check_options
from mmrobust.losses.classification import FocalLabelSmoothingLoss, FocalLoss, LabelSmoothingCrossEntropy
from mmrobust.models import AttentionFusionClassifier, VariationalFusionClassifier

from .selection import VIEWS

FAMILIES: dict[str, type[nn.Module]] = {
    "attention": AttentionFusionClassifier,
    "variational": VariationalFusionClassifier,
}
LOSSES: dict[str, type[nn.Module]] = {
    "cross_entropy": LabelSmoothingCrossEntropy,
    "focal": FocalLoss,
    "label_smoothing": LabelSmoothingCrossEntropy,
    "focal_label_smoothing": FocalLabelSmoothingLoss,
}
# What the data decides: never an option of a config.
FROM_DATA = frozenset({"in_features", "num_classes", "num_values", "sequences"})


def build_model(
    family: str, options: Mapping[str, Any] | None, in_features: Mapping[str, int], **from_data: Any
) -> nn.Module:
    """Construct a model of `family`, naming the option and the allowed ones when a config is wrong."""
    model = FAMILIES[check_option("model.family", family, FAMILIES)]
    options = check_options(f"model.options (family {family})", options, model, exclude=FROM_DATA)
    from_data["sequences"] = tuple(from_data["sequences"] or ())
    return model(in_features, **from_data, **options)


def build_loss(loss: str, options: Mapping[str, Any] | None) -> nn.Module:
    """Construct a classification loss that leaves out the rows labelled -1."""
    kind = LOSSES[check_option("model.loss", loss, LOSSES)]
    fixed = frozenset({"ignore_index", "reduction", "validate"})
    options = check_options(f"model.loss_options (loss {loss})", options, kind, exclude=fixed)
    if loss == "cross_entropy":
        options = {**options, "smoothing": 0.0}
    return kind(**options, ignore_index=-1)


def check_training(settings: Mapping[str, Any], selection: Sequence[str], absence: str) -> None:
    """Check the settings of a task that are not the model's, each by itself and with the others.

    Raises:
        ValueError: naming the first that is wrong.
    """
    for view in selection:
        check_option("model.selection", view, VIEWS)
    check_option("model.select_by", settings["select_by"], ("combined", "likelihood"))
    for name, high in (("views", inf), ("full_weight", 1.0), ("average", 1.0), ("consistency", inf)):
        if settings[name] is not None:
            check_number(f"model.{name}", settings[name], 0, high)
    views, family = settings["views"], settings["family"]
    if views and family != "variational":
        raise ValueError(f"model.views: expected 0 with family {family}, got {views}")
    if views and absence != "exclude":
        raise ValueError(f"model.views: expected 0 with absence {absence}, got {views}")
    _check_quality_and_dropout(settings, settings["options"] or {})
    if settings["consistency"] > 0 and not settings["average"]:
        raise ValueError(f"model.consistency: expected 0 without model.average, got {settings['consistency']}")
    if settings["calibrate"] and set(selection) == {"corrupt"}:
        raise ValueError("model.calibrate: expected 'clean' or 'subset' in model.selection, got only 'corrupt'")


def _check_quality_and_dropout(settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise where an option of the model and a setting of the task leave one of them without effect."""
    dropout = options.get("modality_dropout", 0.0)
    if settings["views"] and dropout > 0:
        raise ValueError(f"model.options.modality_dropout: expected 0 with model.views, got {dropout}")
    if settings["teach_quality"] and options.get("quality", "none") == "none":
        raise ValueError("model.teach_quality: expected false without model.options.quality, got true")
    if options.get("freeze_quality") and not settings["teach_quality"]:
        raise ValueError("model.options.freeze_quality: expected false without model.teach_quality, got true")
