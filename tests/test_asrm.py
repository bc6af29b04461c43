"""The calibration of tokens: defects of the published code, the loss on class centres, and what windows are for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmrobust import ASRM, ContrastiveASRM, PositionAwareASRM, SpanAwareASRM, masked_mean
from mmrobust.asrm import _windows
from tests.references import text as reference

H = 8
MODULES: dict[str, Callable[[], nn.Module]] = {
    "ASRM": lambda: ASRM(H),
    "grouped": lambda: SpanAwareASRM(H, (1, 2, 4)),
    "depthwise": lambda: SpanAwareASRM(H, (1, 3), convolution="depthwise"),
    "dense": lambda: SpanAwareASRM(H, (2, 5), convolution="dense"),
    "position": lambda: PositionAwareASRM(H),
    "contrastive": lambda: ContrastiveASRM(H, 3),
}
every = pytest.mark.parametrize("name", MODULES)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(name: str) -> nn.Module:
    """A module whose gates are open to different degrees."""
    torch.manual_seed(0)
    module = MODULES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module


@every
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.uint8])
def test_any_mask_works(name: str, kind: torch.dtype) -> None:
    """Published: every attention mask raises; integer masks fail even earlier."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).to(kind)
    tokens = trained(name)(normal(2, 4, H), mask)
    assert tokens.isfinite().all()
    assert not tokens[~mask.bool()].any()


@every
def test_training_is_evaluation(name: str) -> None:
    """Published: a layer, and a shift by the label, run in training alone."""
    module, x = trained(name), normal(3, 5, H)
    torch.testing.assert_close(module.train()(x), module.eval()(x), rtol=0, atol=0)


@every
def test_padding_changes_no_real_token(name: str) -> None:
    """Published: convolutions and means see the padding, on either side."""
    module, x = trained(name).double().eval(), normal(2, 5, H).double()
    noise = normal(2, 3, H, seed=1).double()
    mask = torch.zeros(2, 11, dtype=torch.bool)
    mask[:, 3:8] = True
    padded = module(torch.cat([noise, x, noise], dim=1), mask)[:, 3:8]
    torch.testing.assert_close(padded, module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_any_window_at_any_length(size: int, steps: int) -> None:
    """Published: even windows give one token too many."""
    assert SpanAwareASRM(H, (size,))(normal(2, steps, H)).shape == (2, steps, H)


@pytest.mark.parametrize("width", [6, 7, 10])
def test_any_width(width: int) -> None:
    """Published: widths that 8 heads, or 4 groups, do not divide fail."""
    assert SpanAwareASRM(width)(normal(2, 3, width)).shape == (2, 3, width)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "ASRM"])
def test_starts_as_the_identity(name: str) -> None:
    """Published: at the start a pretrained representation is mostly replaced by random features."""
    module, x = MODULES[name](), normal(2, 4, H)
    tokens, gate = module(x, return_gate=True)
    assert torch.equal(tokens, x)
    assert (gate == 1).all()


@every
def test_every_parameter_learns(name: str) -> None:
    """Published: weights that are computed and never used. The second step reaches what zeros hide from the first."""
    module, x = trained(name), normal(2, 4, H)
    module(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


@every
def test_gates_are_bounded(name: str) -> None:
    """Published: position weights times semantic weights, without a bound."""
    with torch.no_grad():
        _, gate = trained(name)(1e4 * normal(2, 6, H), return_gate=True)
    assert gate.min() >= 0
    assert gate.max() <= (1 if name == "ASRM" else 4 if name == "position" else 2)


def test_only_the_original_is_the_same_for_all_tokens() -> None:
    for name in MODULES:
        _, gate = trained(name)(normal(2, 6, H), return_gate=True)
        assert bool((gate[:, :1] == gate).all()) == (name == "ASRM")


def test_places_are_counted_among_real_tokens_from_both_ends() -> None:
    """A gate by position has to change with the position of the same token."""
    module = trained("position")
    x = normal(1, 1, H).expand(1, 5, H)
    _, gate = module(x, return_gate=True)
    assert (gate[0, 0] - gate[0, 1]).abs().max() > 1e-3
    _, longer = module(normal(1, 1, H).expand(1, 6, H), return_gate=True)
    assert (gate[0, 0] - longer[0, 0]).abs().max() > 1e-4  # the end is farther away


@pytest.mark.parametrize("name", ["grouped", "depthwise", "dense", "contrastive"])
@pytest.mark.parametrize("texts", [1, 2, 5])
def test_some_texts_at_a_time_are_all_texts(monkeypatch: pytest.MonkeyPatch, name: str, texts: int) -> None:
    """What runs without the gate returned equals what returns it, in values and first and second derivatives."""
    monkeypatch.setattr(_windows, "_ELEMENTS", {"cpu": texts * 4 * H})
    module, mask = trained(name).double(), torch.ones(5, 4, dtype=torch.bool).tril()
    x, direction = normal(5, 4, H).double().requires_grad_(), normal(5, 4, H, seed=1).double()
    found = []
    for tokens in (module(x, mask), module(x, mask, return_gate=True).tokens):
        leaves = [x, *module.parameters()]
        grads = torch.autograd.grad((tokens * direction).sum(), leaves, create_graph=True)
        seconds = torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves)
        found.append([tokens, *grads, *seconds])
    for have, want in zip(*found, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-12)
    for have, want in zip(torch.autograd.grad((module(x, mask) * direction).sum(), leaves), found[1][1:], strict=False):
        torch.testing.assert_close(have, want.detach(), rtol=1e-10, atol=1e-12)


@every
@pytest.mark.parametrize("shape", [(2, 0, H), (0, 3, H), (0, 0, H)])
def test_nothing_to_calibrate(name: str, shape: tuple[int, ...]) -> None:
    module, x = trained(name), torch.zeros(shape, requires_grad=True)
    tokens, gate = module(x, torch.ones(shape[:2], dtype=torch.bool), return_gate=True)
    assert tokens.shape == gate.shape == module(x).shape == shape
    module(x).sum().backward()
    assert all(one.grad is None or one.grad.isfinite().all() for one in module.parameters())


@every
def test_gradients_of_each_text_by_torch_func(name: str) -> None:
    module, x = trained(name).double(), normal(3, 5, H).double()
    parameters = {key: value.detach() for key, value in module.named_parameters()}

    def energy(parameters: dict[str, Tensor], text: Tensor) -> Tensor:
        tokens: Tensor = torch.func.functional_call(module, parameters, (text.unsqueeze(0),))
        return tokens.square().sum()

    each = torch.func.vmap(torch.func.grad(energy), in_dims=(None, 0))(parameters, x)
    for row, text in enumerate(x):
        module.zero_grad()
        module(text.unsqueeze(0)).square().sum().backward()
        for key, parameter in module.named_parameters():
            torch.testing.assert_close(each[key][row], parameter.grad)
    # The backward pass for many directions at once.
    leaf = x.clone().requires_grad_()
    tokens, directions = module(leaf), normal(4, 3, 5, H, seed=1).double()
    rows = torch.func.vmap(lambda v: torch.autograd.grad(tokens, leaf, v, retain_graph=True)[0])(directions)
    for direction, row in zip(directions, rows, strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(tokens, leaf, direction, retain_graph=True)[0])


class TestClassLoss:
    labels = torch.tensor([0, 1, 0, 2, -100, 1])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]]).bool()

    def test_equals_the_reference(self) -> None:
        module, x = trained("contrastive").double(), normal(6, 3, H).double().requires_grad_()
        module.class_loss(normal(6, 3, H, seed=1).double(), torch.tensor([0, 1, 0, 1, 0, 1]))
        module.eval()
        loss = module.class_loss(x, self.labels, self.mask)
        want = reference.class_loss(
            x.detach().numpy(), self.labels.numpy(), self.mask.numpy(), module.centres.numpy(), module.seen.numpy(), 0.1
        )
        assert module.seen.tolist() == [True, True, False]
        np.testing.assert_allclose(float(loss.detach()), want, rtol=1e-12)
        assert torch.autograd.gradcheck(lambda x: module.class_loss(x, self.labels, self.mask), x)

    def test_centres_are_moving_averages(self) -> None:
        module, (first, second) = ContrastiveASRM(H, 3, momentum=0.75), normal(2, 6, 3, H).unbind()
        module.class_loss(first, self.labels, self.mask)
        means = masked_mean(first, self.mask)
        start = torch.stack([means[[0, 2]].mean(0), means[1], means[3]])
        torch.testing.assert_close(module.centres, start)  # the text without a token and the one without a label: no
        module.class_loss(second[:1], self.labels[:1])
        moved = 0.75 * start[0] + 0.25 * second[0].mean(0)
        torch.testing.assert_close(module.centres, torch.stack([moved, start[1], start[2]]))

    def test_evaluation_moves_nothing(self) -> None:
        module = ContrastiveASRM(H, 3).eval()
        loss = module.class_loss(normal(6, 3, H).requires_grad_(), self.labels, self.mask)
        assert not module.centres.any()
        assert float(loss.detach()) == 0.0  # no class has a centre yet
        loss.backward()

    def test_no_label_at_all(self) -> None:
        x = normal(2, 3, H).requires_grad_()
        loss = ContrastiveASRM(H, 3).class_loss(x, torch.tensor([-100, -100]))
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert not x.grad.any()

    def test_half_precision(self) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            loss = ContrastiveASRM(H, 3).to(dtype).class_loss(normal(6, 3, H).to(dtype), self.labels, self.mask)
            assert loss.dtype == torch.float32
            assert loss.isfinite()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": torch.zeros(6)}, "labels"),
            ({"labels": torch.zeros(5, dtype=torch.int64)}, r"\(B,\) = \(6,\)"),
            ({"mask": torch.ones(6, 4)}, "mask"),
            ({"tokens": torch.zeros(6, H)}, "tokens"),
        ],
    )
    def test_wrong_inputs(self, change: dict[str, Tensor], message: str) -> None:
        inputs = {"tokens": normal(6, 3, H), "labels": self.labels, "mask": self.mask, **change}
        with pytest.raises((TypeError, ValueError), match=message):
            ContrastiveASRM(H, 3).class_loss(**inputs)


def _adjacent_words(texts: int, seed: int) -> tuple[Tensor, Tensor]:
    """Texts of the words 0 to 7, each once: label 1 where 0 stands right before 1, label 0 where 0 right before 2.

    Both classes hold the same words as often, at the same places; only which stand together differs.
    """
    generator = torch.Generator().manual_seed(seed)
    labels, ids = torch.arange(texts) % 2, []
    for label in labels.tolist():
        others = [w for w in range(1, 8) if w != (1 if label else 2)]
        order = [others[i] for i in torch.randperm(6, generator=generator).tolist()]
        place = int(torch.randint(7, (1,), generator=generator))
        ids.append([*order[:place], 0, 1 if label else 2, *order[place:]])
    return torch.tensor(ids), labels


def _accuracy(asrm: nn.Module) -> float:
    torch.manual_seed(0)
    embed = nn.Embedding(8, 32).requires_grad_(False)
    head = nn.Linear(32, 2)
    ids, labels = _adjacent_words(1024, seed=1)
    parameters = [*asrm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    for step in range(300):
        rows = slice(step % 8 * 128, step % 8 * 128 + 128)
        loss = nn.functional.cross_entropy(head(asrm(embed(ids[rows])).mean(1)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, labels = _adjacent_words(1024, seed=2)
    with torch.no_grad():
        return float((head(asrm(embed(ids)).mean(1)).argmax(1) == labels).float().mean())


def test_words_that_stand_together() -> None:
    """One gate for all tokens cannot tell the classes apart; a gate that sees neighbours can. Same budget."""
    torch.manual_seed(0)
    assert abs(_accuracy(ASRM(32)) - 0.5) <= 0.05
    assert _accuracy(SpanAwareASRM(32, (2, 3))) >= 0.95
    assert _accuracy(SpanAwareASRM(32)) >= 0.95
