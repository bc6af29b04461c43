"""Trained tasks as functions, one or an ensemble, and what they score on the test parts of their data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.robustness import VIEWS, Evaluator, Predict, Prediction, View, clean_view, evaluate_views
from mmrobust.masking import zero_missing

from .data import MultimodalData
from .normalize import Standardizer
from .reporting import METRICS
from .sets import MultimodalSet
from .task import FusionTask

# What is said of a part without scores when the data set has them elsewhere, as the benchmark reports test3.
ONLY_F1 = ("rows", "weighted_f1", "macro_f1")


class Member(NamedTuple):
    """One trained model of an ensemble, with the standardisation of its own training rows.

    Attributes:
        task: the model.
        own: the standardisation that the model was trained with; None = that of the data it is evaluated on.
    """

    task: FusionTask
    own: Standardizer | None = None


def predictor(members: Sequence[Member], shared: Standardizer | None = None, *, probabilities: bool = False) -> Predict:
    """Make a function that averages the outputs of several models, each with its moving average and temperature.

    What not all of them have (values, weights, stds) is left out.

    Args:
        members: the models.
        shared: the standardisation of the features that the function will be given; None with members that use it.
        probabilities: whether class probabilities are averaged, whose logarithms the logits then are; else the logits
            are, as in MERBench.

    Returns:
        The function; it runs where the models are and answers on the CPU.
    """

    def predict(features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]) -> Prediction:
        answers = [_answer(member, shared, features, present, masks) for member in members]
        mean = Prediction(*(_mean(parts) for parts in zip(*answers, strict=True)))
        if not probabilities:
            return mean
        logs = torch.stack([answer.logits for answer in answers]).log_softmax(-1)
        return mean._replace(logits=logs.logsumexp(0) - math.log(len(answers)))

    return predict


def _mean(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.stack(known).mean(0) if len(known) == len(parts) else None


def _answer(
    member: Member, shared: Standardizer | None, features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]
) -> Prediction:
    task = member.task.eval()
    if member.own is not None and shared is not None:
        real = {name: masks.get(name, present[:, index]) for index, name in enumerate(features)}
        features = {name: _translate(x, name, shared, member.own, real[name]) for name, x in features.items()}
    device = next(task.parameters()).device
    features = {name: x.to(device) for name, x in features.items()}
    output = task.final(features, present.to(device), {name: mask.to(device) for name, mask in masks.items()})
    weights, std = output.weights, output.std
    if weights is not None and weights.dim() == 3:
        weights = weights.mean(-1)
    values = None if output.values is None else output.values[:, 0]
    logits = output.logits if task.temperature is None else task.temperature(output.logits)
    parts = (logits, values, weights, None if std is None else std.mean(-1))
    return Prediction(*(None if part is None else part.float().cpu() for part in parts))


def _translate(x: Tensor, name: str, shared: Standardizer, own: Standardizer, real: Tensor) -> Tensor:
    raw = x * shared.scale[name] + shared.mean[name]
    return zero_missing(((raw - own.mean[name]) / own.scale[name]).to(x.dtype), real)


def views_on_tests(
    predict: Predict, data: MultimodalData, *, views: Sequence[str] = VIEWS, draws: int = 10
) -> dict[str, View]:
    """Score a trained model on all test parts: every part as it is, the first one also in the robustness views.

    Raises:
        ValueError: if the data has no test part, or an empty one.
    """
    first, *others = list_tests(data)
    result = evaluate_views(predict, data.sets[first], clean=first, views=views, draws=draws)
    for name in others:
        result[name] = clean_view(Evaluator(predict, data.sets[name]))
    for name in (first, *others):
        if data.num_values and _scoreless(data.sets[name]):
            scores = result[name][""]
            result[name] = {"": {metric: scores[metric] for metric in ONLY_F1}}
    return result


def list_tests(data: MultimodalData) -> list[str]:
    """List the test parts; the first one gets the robustness views."""
    if not data.test_names:
        raise ValueError(f"{data.root}: expected a test part, the split has only {', '.join(data.sets)}")
    return data.test_names


def list_metrics(data: MultimodalData) -> list[str]:
    """List the metrics of the robustness views: without a score to predict, or one to compare with, no error of it."""
    scored = data.num_values > 0 and not _scoreless(data.sets[list_tests(data)[0]])
    return [metric for metric in METRICS if scored or metric != "valence_mse"]


def _scoreless(part: MultimodalSet) -> bool:
    return part.score is None or bool(part.score.isnan().all())
