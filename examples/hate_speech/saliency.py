"""Scores of tokens that a trained model gives: gates, gradients, attention; and whether they are faithful."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import LengthBatches, TextSet
from .encoders import TextEncoder
from .metrics import neutral_class, softmax
from .posts import Post, Range
from .rationales import TOP, top_words

if TYPE_CHECKING:
    from .data import TextData
    from .task import HateTask

ROWS = 64
GATE, CHANGE, CONTRIBUTION, GRADIENT, ATTENTION, RANDOM, PIECES = (
    "gate",
    "change",
    "contribution",
    "gradient",
    "attention",
    "random",
    "pieces",
)
MEANING = {
    GATE: "mean over channels of |gate - 1|",
    CHANGE: "length of what the calibration changed in the token's state, (gate - 1) times the state",
    CONTRIBUTION: "what the calibrated token adds to the log odds of toxic against normal: gradient times token",
    GRADIENT: "gradient of these log odds times the encoder's state (or input embedding, where it is fine-tuned)",
    ATTENTION: "attention that the token receives in the last layer of the encoder, mean over heads and tokens",
    RANDOM: "a random number per word, to compare with",
    PIECES: "number of pieces that the tokenizer cuts the word into, to compare with: rare words are marked more often",
}
Scores = dict[str, list[np.ndarray]]


def batches(rows: TextSet, size: int = ROWS) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Yield all rows, the shortest first, as (rows, batch)."""
    for index in LengthBatches(rows, size, shuffle=False).plan():
        yield index, rows[index]


@torch.inference_mode()
def predict(task: HateTask, rows: TextSet) -> np.ndarray:
    """Give the logits of a set ``(N, C)`` in float64."""
    task.eval()
    logits = np.zeros((len(rows), len(task.classes)))
    for index, batch in batches(rows):
        output = task.model(batch["inputs"].to(task.device), batch["mask"].to(task.device))
        logits[index] = output.logits.double().cpu().numpy()
    return logits


def token_scores(task: HateTask, rows: TextSet) -> Scores:
    """Give gates, gradients and what comes of them for all tokens of a set: by name, ``(T,)`` per post.

    Models without a calibration have no `gate` and no `change`.
    """
    task.eval()
    found: Scores = {}
    for index, batch in batches(rows):
        inputs, mask = batch["inputs"].to(task.device), batch["mask"].to(task.device)
        scores = _batch_scores(task, inputs, mask)
        for name, values in scores.items():
            each = found.setdefault(name, [np.zeros(0)] * len(rows))
            for row, length, one in zip(index, rows.lengths[index], values.double().cpu().numpy(), strict=True):
                each[row] = one[:length]
    return found


def _batch_scores(task: HateTask, inputs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    with torch.enable_grad(), _source(task.model.encoder, inputs) as (given, source):
        output = task.model(given, mask, return_gate=True)
        odds = log_odds(output.logits, task.classes)
        # Rows do not depend on each other: the gradient of the sum is that of each.
        kept = [output.tokens, *source]
        gradients = torch.autograd.grad(odds.sum(), kept)
    tokens = output.tokens.detach()
    scores = {CONTRIBUTION: (gradients[0] * tokens).sum(-1)}
    if source:
        scores[GRADIENT] = (gradients[1] * source[0].detach()).sum(-1)
    if output.gate is not None:
        gate = output.gate.detach()
        scores[GATE] = (gate - 1).abs().mean(-1)
        scores[CHANGE] = (tokens - output.states.detach()).norm(dim=-1)
    return scores


def log_odds(logits: Tensor, classes: Sequence[str]) -> Tensor:
    """Give the log odds of toxic against normal ``(B,)``; without a normal class those of the predicted class."""
    neutral = neutral_class(classes)
    one = logits.argmax(1) if neutral is None else torch.full_like(logits[:, 0], neutral, dtype=torch.long)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, one[:, None], True)
    others = logits.masked_fill(chosen, float("-inf")).logsumexp(1)
    odds = logits.gather(1, one[:, None]).squeeze(1) - others
    return odds if neutral is None else -odds


@contextmanager
def _source(encoder: Any, inputs: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Give what to call the model with, and a list that holds the leaf of the gradient once it was called."""
    if encoder is None:
        leaf = inputs.detach().requires_grad_()
        yield leaf, [leaf]
    elif not hasattr(encoder, "get_input_embeddings"):
        yield inputs, []
    else:
        source: list[Tensor] = []

        def keep(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            source.append(output.detach().requires_grad_())
            return source[0]

        hook = encoder.get_input_embeddings().register_forward_hook(keep)
        try:
            yield inputs, source
        finally:
            hook.remove()


@torch.inference_mode()
def attention_scores(encoder: TextEncoder, model: nn.Module, posts: Sequence[Post]) -> list[np.ndarray] | None:
    """Give the attention that each token receives in the last layer: ``(T,)`` per post; None where there is none."""
    if not hasattr(model, "set_attn_implementation"):
        return None
    rows = TextSet(posts, encoder.encode(posts), None, encoder.pad_id)
    device, before = next(model.parameters()).device, model.config._attn_implementation
    training, found = model.training, [np.zeros(0)] * len(posts)
    try:
        model.set_attn_implementation("eager")  # the others do not return it
    except ValueError:
        return None
    model.eval()
    try:
        for index, batch in batches(rows):
            ids, mask = batch["inputs"].to(device), batch["mask"].to(device)
            layers = model(input_ids=ids, attention_mask=mask.long(), output_attentions=True).attentions
            if not layers:
                return None
            weights = layers[-1].mean(1).double() * mask[:, :, None]  # of padding nobody asks what it looks at
            received = (weights.sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
            for row, length, one in zip(index, rows.lengths[index], received, strict=True):
                found[row] = one[:length]
    finally:
        model.set_attn_implementation(before)
        model.train(training)
    return found


def faithfulness(
    task: HateTask,
    data: TextData,
    rows: TextSet,
    words: Sequence[Sequence[Range]],
    scores: Sequence[np.ndarray],
    logits: np.ndarray,
    top: int = TOP,
) -> dict[str, float]:
    """Encode the posts again without their highest words, and with these alone, as the benchmark of HateXplain does.

    Args:
        task: The model.
        data: The data it was trained on, for its encoder.
        rows: The posts.
        words: Their words.
        scores: The scores of these words.
        logits: What the model says of the whole posts, ``(N, C)``.
        top: Number of words.

    Returns:
        By how much the probability of the predicted class falls on average: ``comprehensiveness`` without the words
        (higher is better), ``sufficiency`` with these alone (lower is better).
    """
    chosen = [top_words(one, top) for one in scores]
    whole = softmax(logits)
    every, said = np.arange(len(rows)), whole.argmax(1)
    result = {}
    for name, keep in (("comprehensiveness", False), ("sufficiency", True)):
        triples = zip(rows.posts, words, chosen, strict=True)
        changed = [_only(post, ranges, one == keep) for post, ranges, one in triples]
        left = softmax(predict(task, data.text_set(changed)))
        result[name] = float(np.mean(whole[every, said] - left[every, said])) if len(rows) else float("nan")
    return result


def _only(post: Post, words: Sequence[Range], keep: np.ndarray) -> Post:
    text = " ".join(post.text[start:end] for (start, end), one in zip(words, keep, strict=True) if one)
    return Post(post.id, text, post.label)
