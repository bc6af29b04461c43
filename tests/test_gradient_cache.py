"""Gradient caching: the gradient of a single pass, the randomness of one, and the memory of a chunk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.harness.measure import peak_bytes
from mmrobust import InfoNCELoss, VariationalLSTMEncoder, VariationalMLPEncoder, cached_encode
from tests.contract import tensors

B, D, H = 10, 6, 5
Encode = Callable[..., Any]


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def contrast(z: Tensor, scale: Tensor | float = 10.0) -> Tensor:
    """Return a loss in which every row meets every other."""
    z = F.normalize(z, dim=-1)
    return (z @ z.T * scale).logsumexp(1).mean()


def network(*between: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(D, 8), *between, nn.Tanh(), nn.Linear(8, H)).to(dtype)


def in_chunks(encode: Encode, x: Tensor, *, chunk_size: int) -> Tensor:
    """Encode chunk after chunk and keep all the activations."""
    return torch.cat([encode(chunk) for chunk in x.split(chunk_size)])


def gradients(module: nn.Module, loss: Tensor, *others: Tensor) -> list[Tensor]:
    leaves = [*module.parameters(), *others]
    return list(torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True))


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


class TestExactness:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
    @pytest.mark.parametrize("chunk_size", [1, 3, 5, 9, B, 64])
    def test_gradients_are_those_of_a_single_pass(self, chunk_size: int, dtype: torch.dtype, tolerance: float) -> None:
        """Of the encoder, of a learnable scale in the loss, and of the inputs."""
        module, x = network(dtype=dtype), normal(B, D, dtype=dtype).requires_grad_()
        scale = torch.tensor(3.0, dtype=dtype, requires_grad=True)
        got = contrast(cached_encode(module, x, chunk_size=chunk_size), scale)
        want = contrast(module(x), scale)
        assert_close([got], [want], tolerance)
        assert_close(gradients(module, got, scale, x), gradients(module, want, scale, x), tolerance)

    @pytest.mark.parametrize("batch", [0, 1])
    def test_few_rows(self, batch: int) -> None:
        module, x = network(), normal(batch, D)
        z = cached_encode(module, x, chunk_size=1)
        assert torch.equal(z, module(x))
        assert_close(gradients(module, z.sum()), gradients(module, module(x).sum()))

    @pytest.mark.parametrize("chunk_size", [3, 16])
    def test_modalities_with_masks(self, chunk_size: int) -> None:
        """Vectors and sequences, NaN where nothing is present; dicts, NamedTuples and None go in and come back."""
        torch.manual_seed(0)
        encoders = nn.ModuleDict({"text": VariationalLSTMEncoder(D, H), "audio": VariationalMLPEncoder(4, H)}).double()
        masks = (torch.arange(7) < torch.arange(B).unsqueeze(1) % 8, torch.arange(B) % 3 > 0)
        inputs = {"text": normal(B, 7, D), "audio": normal(B, 4, seed=1)}
        for x, mask in zip(inputs.values(), masks, strict=True):
            x[~mask] = float("nan")

        def encode(inputs: dict[str, Tensor], masks: tuple[Tensor, Tensor], nothing: None) -> dict[str, Any]:
            assert nothing is None
            pairs = zip(encoders, masks, strict=True)
            return {key: encoders[key](inputs[key], mask, sample=False) for key, mask in pairs} | {"none": None}

        got, want = cached_encode(encode, inputs, masks, None, chunk_size=chunk_size), encode(inputs, masks, None)
        assert list(got) == list(want) == ["text", "audio", "none"]
        assert got["none"] is None
        assert type(got["text"]) is type(want["text"])
        assert_close([x for _, x in tensors(got)], [x for _, x in tensors(want)])
        loss, wanted = (
            InfoNCELoss()(each["text"].mu, each["audio"].z).double() + each["text"].std.mean() for each in (got, want)
        )
        assert_close(found := gradients(encoders, loss), gradients(encoders, wanted))
        assert all(gradient.isfinite().all() for gradient in found)

    def test_what_the_loss_ignores_changes_nothing(self) -> None:
        """Not even where its derivative is infinite; what has no gradient goes through as it is."""
        module, x = network(), normal(B, D)

        def encode(x: Tensor) -> tuple[Tensor, ...]:
            z = module(x)
            return z, (1e4 * module(x)).exp(), x.argmax(1), z.detach()

        z, infinite, index, fixed = cached_encode(encode, x, chunk_size=3)
        assert infinite.isinf().any()
        assert torch.equal(index, x.argmax(1))
        assert not fixed.requires_grad
        assert_close(gradients(module, contrast(z)), gradients(module, contrast(module(x))))

    def test_backward_twice_second_order_and_checkpoints_inside(self) -> None:
        module, x = network(), normal(B, D)

        def inside(x: Tensor) -> Any:
            return checkpoint(module, x, use_reentrant=False)

        def curvature(z: Tensor) -> list[Tensor]:
            first = torch.autograd.grad(contrast(z), list(module.parameters()), create_graph=True)
            return gradients(module, torch.stack([gradient.square().sum() for gradient in first]).sum())

        want, z = gradients(module, contrast(module(x))), cached_encode(module, x, chunk_size=4)
        for _ in range(2):
            assert_close(gradients(module, contrast(z)), want)
        assert_close(curvature(cached_encode(module, x, chunk_size=4)), curvature(module(x)), 1e-10)
        assert_close(gradients(module, contrast(cached_encode(inside, x, chunk_size=4))), want)


def referring(module: nn.Module) -> dict[str, Encode]:
    """Return functions that refer to a module in different ways."""
    held = {"a": module}
    method = functools.partial(module.forward)
    return {"module": module, "method": module.forward, "function": lambda x: held["a"](x), "partial": method}


class TestReplay:
    def test_dropout_sees_the_same_masks(self) -> None:
        """And the random stream goes on where one pass, chunk after chunk, leaves it."""
        module, x, found = network(nn.Dropout(0.5)), normal(B, D), []
        for encode in (in_chunks, cached_encode):
            torch.manual_seed(7)
            gradient = gradients(module, contrast(encode(module, x, chunk_size=3)))
            found.append([*gradient, torch.rand(3)])
        assert_close(*found)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_and_gradient_scaling(self, dtype: torch.dtype) -> None:
        """The second encoding runs under the autocast of the first, although backward is called outside of it."""
        module, x = network(dtype=torch.float32), normal(64, D, dtype=torch.float32)
        optimizer, seen, found = torch.optim.SGD(module.parameters(), 0.0), [], []
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

        def encode(x: Tensor) -> Any:
            seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == dtype)
            return module(x)

        for run in (encode, functools.partial(cached_encode, encode, chunk_size=16)):
            with torch.autocast("cpu", dtype):
                loss = contrast(run(x))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            found.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
        assert seen == [True] * 9
        assert_close(*found, tolerance=2 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("how", ["module", "method", "function", "partial"])
    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_batch_norm_updates_its_statistics_once(self, how: str, momentum: float | None) -> None:
        """Statistics and gradient are those of one pass, chunk after chunk."""
        found = []
        for encode in (in_chunks, cached_encode):
            module = network(nn.BatchNorm1d(8, momentum=momentum), nn.BatchNorm1d(8, track_running_stats=False))
            gradient = gradients(module, contrast(encode(referring(module)[how], normal(B, D), chunk_size=4)))
            found.append([*gradient, *module.buffers()])
        assert len(found[0]) == 11
        assert_close(*found)

    def test_batch_norm_in_eval_mode_is_exact(self) -> None:
        module, x = network(nn.BatchNorm1d(8)).eval(), normal(B, D)
        got, want = (gradients(module, contrast(z)) for z in (cached_encode(module, x, chunk_size=3), module(x)))
        assert_close(got, want)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_how_often_it_encodes(self, context: Callable[[], Any]) -> None:
        module, x, rows = network(), normal(B, D), []

        def encode(x: Tensor) -> Any:
            rows.append(len(x))
            return module(x)

        with context():
            z = cached_encode(encode, x, chunk_size=4)
            assert_close([z], [module(x)])
        assert rows == [4, 4, 2]
        assert not z.requires_grad
        for chunk_size, want in ((B, [B]), (B - 1, [B - 1, 1, 1, B - 1])):
            rows.clear()
            cached_encode(encode, x, chunk_size=chunk_size).sum().backward()
            assert rows == want, "a batch that fits is encoded once, the last chunk of others is the first again"


class Two(NamedTuple):
    small: Tensor
    other: Tensor


class Deep(nn.Module):
    """Much wider inside than what comes out: the first of many steps, as views of all."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(32, 32), nn.GELU())))
        self.other = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.GELU())))

    def forward(self, x: Tensor) -> Two:
        x = self.trunk(x)
        return Two(x[:, 0], self.other(x)[:, 0])


class TestMemory:
    @staticmethod
    def peak(batch: int, chunk_size: int | None, both: bool, *, training: bool = True) -> int:
        """Return the peak of a step, or of a forward pass, in bytes above what its input takes."""
        module, x = Deep(), normal(batch, 32, 32, dtype=torch.float32)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)

        def step() -> None:
            out = module(x) if chunk_size is None else cached_encode(module, x, chunk_size=chunk_size)
            if training:
                # Both parts are held until the end, also the one that the loss does not read.
                (out.small.square().mean() + (out.other.square().mean() if both else 0.0)).backward()

        with torch.set_grad_enabled(training):
            return peak_bytes(step, torch.device("cpu"))

    @pytest.mark.parametrize("both", [False, True])
    def test_activations_are_bounded_by_a_chunk(self, both: bool) -> None:
        chunk, representations = self.peak(8, None, both), 2 * 32 * 4
        for batch in (64, 256):
            got = self.peak(batch, 8, both)
            assert got < 1.3 * chunk + 5 * batch * representations, f"{got / chunk:.1f} chunks for {batch} rows"
        assert self.peak(256, None, both) > 25 * chunk

    def test_forward_holds_a_chunk_and_the_representations(self) -> None:
        chunk, representations = self.peak(8, None, True, training=False), 2 * 32 * 4
        assert self.peak(256, 8, True, training=False) < 1.3 * chunk + 3 * 256 * representations


class TestWrongUse:
    @pytest.mark.parametrize(
        ("error", "inputs", "says"),
        [
            (ValueError, (), "expected inputs to hold at least one tensor, got none"),
            (ValueError, (None, {}), "expected inputs to hold at least one tensor, got none"),
            (ValueError, (torch.tensor(1.0),), r"expected inputs[0] of shape (B, ...), got ()"),
            (
                ValueError,
                (torch.ones(4, 2), {"a": (None, torch.ones(3))}),
                "expected inputs[1]['a'][1] to have the 4 rows of inputs[0], got 3",
            ),
            (TypeError, (torch.ones(2), ["x"]), "expected inputs[1][0] to be a tensor, None, or a tuple, list"),
            (TypeError, (torch.ones(2), 0.5), "expected inputs[1] to be a tensor, None"),
        ],
    )
    def test_inputs(self, error: type[Exception], inputs: tuple[Any, ...], says: str) -> None:
        with pytest.raises(error) as caught:
            cached_encode(lambda *_: None, *inputs, chunk_size=2)
        assert str(caught.value).startswith(f"cached_encode: {says}")

    @pytest.mark.parametrize(
        ("size", "error"), [(0, "chunk_size of at least 1, got 0"), (2.0, "chunk_size to be an integer, got float")]
    )
    def test_chunk_size(self, size: Any, error: str) -> None:
        with pytest.raises((ValueError, TypeError), match=f"cached_encode: expected {error}"):
            cached_encode(network(), normal(B, D), chunk_size=size)

    @pytest.mark.parametrize("chunk_size", [4, B])
    @pytest.mark.parametrize(
        ("encode", "error", "says"),
        [
            (lambda x: x.mean(), ValueError, "the output of encode of shape (B, ...) with B = {0}, got ()"),
            (
                lambda x: {"a": (x, x[1:])},
                ValueError,
                "the output of encode['a'][1] of shape (B, ...) with B = {0}, got",
            ),
            (lambda x: Two(x, "b"), TypeError, "the output of encode.other to be a tensor, None, or a tuple, list"),
            (lambda x: x.to("meta"), ValueError, "inputs on meta, where the output of encode is computed, got cpu"),
        ],
    )
    def test_output(self, encode: Encode, error: type[Exception], says: str, chunk_size: int) -> None:
        with pytest.raises(error) as caught:
            cached_encode(encode, normal(B, D), chunk_size=chunk_size)
        assert str(caught.value).startswith(f"cached_encode: expected {says.format(chunk_size)}")
