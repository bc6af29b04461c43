"""The text classifier: any encoder, its losses against the parts they consist of, and texts without a token."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mmrobust import (
    ASRM,
    ContrastiveASRM,
    DualContrastiveTextClassifier,
    SpanAwareASRM,
    focal_label_smoothing_loss,
    nt_xent_loss,
    sup_con_loss,
)

H, C = 8, 3


class _Output(NamedTuple):
    last_hidden_state: Tensor


class Transformer(nn.Module):
    """Takes arguments by the names, and returns the object, that models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, H)
        self.seen: list[Tensor] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None) -> _Output:
        assert attention_mask is not None
        self.seen.append(attention_mask)
        scores = attention_mask.float().log().unsqueeze(1)  # a row that sees nothing is NaN, as in attention
        return _Output(torch.softmax(scores.expand(-1, input_ids.shape[1], -1), -1) @ self.embed(input_ids))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, H)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        assert mask.dtype == torch.bool
        return self.embed(ids)


def batch(rows: int = 6, steps: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (rows, steps), generator=generator)
    mask = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1), generator=generator)
    return ids, mask, torch.arange(rows) % C


def build(encoder: Any = None, **options: Any) -> DualContrastiveTextClassifier:
    torch.manual_seed(0)
    return DualContrastiveTextClassifier(encoder, H, C, projection_features=4, **options)


@pytest.mark.parametrize("encoder", [Transformer, Plain])
@pytest.mark.parametrize("asrm", [None, lambda: ASRM(H), lambda: SpanAwareASRM(H), lambda: ContrastiveASRM(H, C)])
def test_any_encoder_learns(encoder: Any, asrm: Any) -> None:
    model = build(encoder(), asrm=None if asrm is None else asrm())
    ids, mask, labels = batch()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(30):
        loss = model.loss(ids, mask.long(), labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert (model.eval()(ids, mask).logits.argmax(1) == labels).float().mean() >= 5 / 6
    assert copy.deepcopy(model)(ids, mask).logits.equal(model(ids, mask).logits)
    assert pickle.loads(pickle.dumps(model))(ids, mask).logits.equal(model(ids, mask).logits)


def test_a_text_without_a_token_is_the_bias() -> None:
    """Attention over nothing is NaN: the encoder sees one token, and the classifier none."""
    encoder = Transformer()
    model, (ids, mask, labels) = build(encoder, asrm=SpanAwareASRM(H)), batch()
    mask = mask.clone()
    mask[2] = False
    output = model.eval()(ids, mask)
    assert encoder.seen[-1].sum(1).min() == 1
    torch.testing.assert_close(output.logits[2], model.head.bias)
    assert not output.pooled[2].any()
    model.train().loss(ids, mask, labels).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_is_the_sum_of_its_parts() -> None:
    """Two passes with different dropout, as one batch: SupCon over all of it, NT-Xent between its halves."""
    weights = [1.0, 0.3, 0.7, 0.2]
    model = build(
        None,
        asrm=ContrastiveASRM(H, C),
        classification_weight=weights[0],
        supervised_weight=weights[1],
        self_supervised_weight=weights[2],
        class_separation_weight=weights[3],
        supervised_temperature=0.2,
        self_supervised_temperature=0.4,
        class_weight=[1.0, 2.0, 3.0],
        smoothing=0.1,
    )
    states, (_, mask, labels) = torch.randn(6, 5, H), batch()
    copied = copy.deepcopy(model)
    torch.manual_seed(1)
    parts = model.loss(states, mask, labels)
    torch.manual_seed(1)
    output = copied(states.repeat(2, 1, 1), mask.repeat(2, 1))
    both = labels.repeat(2)
    want = [
        focal_label_smoothing_loss(output.logits, both, gamma=2.0, smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0])),
        sup_con_loss(copied.supervised_head(output.pooled), both, temperature=0.2),
        nt_xent_loss(*copied.self_supervised_head(output.pooled).split(6), temperature=0.4),
        copied.asrm.class_loss(output.tokens, both, mask.repeat(2, 1)),
    ]
    torch.testing.assert_close(torch.stack(parts[1:5]), torch.stack(want))
    torch.testing.assert_close(parts.loss, sum(w * x for w, x in zip(weights, want, strict=True)))
    assert not torch.equal(output.logits[:6], output.logits[6:])
    torch.testing.assert_close(parts.logits, output.logits[:6])


def test_a_batch_passes_once_without_contrastive_losses() -> None:
    encoder = Transformer()
    model, (ids, mask, labels) = build(encoder, supervised_weight=0.0, self_supervised_weight=0.0), batch()
    parts = model.loss(ids, mask, labels)
    assert [len(x) for x in encoder.seen] == [6]
    assert float(parts.supervised) == float(parts.self_supervised) == float(parts.class_separation) == 0.0
    assert torch.equal(parts.loss, parts.classification)


def test_texts_without_a_label() -> None:
    """They count for nothing but the two views."""
    model, (_, mask, labels) = build(None, dropout=0.0), batch()
    states, unknown = torch.randn(6, 5, H), torch.where(torch.arange(6) > 3, -100, labels)
    parts, few = model.loss(states, mask, unknown), model.loss(states[:4], mask[:4], labels[:4])
    torch.testing.assert_close(parts.classification, few.classification)
    torch.testing.assert_close(parts.supervised, few.supervised)
    none = model.loss(states, mask, torch.full((6,), -100))
    assert none.loss.isfinite()
    assert float(none.classification.detach()) == 0.0


def test_one_text_and_one_class() -> None:
    model = DualContrastiveTextClassifier(None, H, 1, projection_features=4, asrm=ContrastiveASRM(H, 1))
    parts = model.loss(torch.randn(1, 1, H), None, torch.zeros(1, dtype=torch.int64))
    parts.loss.backward()
    assert parts.loss.isfinite()


def refuses_nothing(ids: Tensor, mask: Tensor) -> Tensor:
    raise RuntimeError("cannot reshape tensor of 0 elements")  # as many encoders do


@pytest.mark.parametrize("encoder", [None, refuses_nothing])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("masked", [True, False])
def test_no_text_and_no_token(encoder: Any, pooling: str, shape: tuple[int, int], masked: bool) -> None:
    model = DualContrastiveTextClassifier(encoder, H, C, asrm=ContrastiveASRM(H, C), pooling=pooling)
    mask = torch.ones(shape, dtype=torch.bool) if masked else None
    inputs = torch.zeros(*shape, H) if encoder is None else torch.zeros(shape, dtype=torch.int64)
    parts = model.loss(inputs, mask, torch.zeros(shape[0], dtype=torch.int64))
    parts.loss.backward()
    assert parts.logits.shape == (shape[0], C)
    assert parts.loss.isfinite()
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("masked", [True, False])
def test_cls_pooling_takes_the_first_real_token(masked: bool) -> None:
    model = DualContrastiveTextClassifier(None, H, C, pooling="cls").eval()
    states, mask = torch.randn(3, 4, H), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    first = [states[0, 0], states[1, 2], torch.zeros(H)] if masked else states[:, 0]
    assert torch.equal(model(states, mask if masked else None).pooled, torch.stack(tuple(first)))


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: build(3), TypeError, "encoder"),
        (lambda: build(gamma=-1.0), ValueError, "gamma"),
        (lambda: build(supervised_temperature=0.0), ValueError, "supervised_temperature"),
        (lambda: build(lambda ids, mask: torch.zeros(6, 5, H + 1))(*batch()[:2]), ValueError, "encoder's output"),
        (lambda: build().loss(torch.zeros(6, 5, H), None, torch.zeros(6)), TypeError, "labels"),
        (lambda: build().loss(torch.zeros(6, 5, H), None, torch.zeros(5, dtype=torch.int64)), ValueError, "labels"),
        (lambda: build()(batch()[0], torch.ones(6, 5)), TypeError, "mask"),
        # The sizes of the batch, not of its two passes.
        (
            lambda: build().loss(torch.zeros(6, 5, H), torch.ones(6, 4, dtype=torch.bool), batch()[2]),
            ValueError,
            r"loss: expected mask of shape \(B, T\) = \(6, 5\), got \(6, 4\)",
        ),
    ],
)
def test_wrong_uses(use: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use()
