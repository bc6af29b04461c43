"""The memory bank against a plain list of slots, and what its state must survive."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmrobust import MemoryBank, sup_con_loss
from tests.references import memory as reference

S, D = 12, 5
KINDS: dict[str, dict[str, Any]] = {
    "queue": {"kind": "queue"},
    "classes": {"kind": "queue", "num_classes": 4},
    "instance": {"kind": "instance"},
    "momentum": {"kind": "instance", "momentum": 0.7},
}
KEYS = {
    "queue": {"features": (S, D), "labels": (S,), "filled": (S,), "updates": (), "pointer": (1,), "index": (S,)},
    "classes": {"features": (S, D), "labels": (S,), "filled": (S,), "updates": (), "pointer": (4,), "index": (S,)},
    "instance": {"features": (S, D), "labels": (S,), "filled": (S,), "updates": ()},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def batch(seed: int, rows: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Rows that are partly absent, labels and indices of which some are nowhere at home, and repeated ones."""
    source = torch.Generator().manual_seed(seed)
    return {
        "features": torch.randn(rows, D, generator=source, dtype=torch.float64).to(dtype),
        "labels": torch.randint(-1, 5, (rows,), generator=source),
        "index": torch.randint(-1, S + 1, (rows,), generator=source),
        "present": torch.rand(rows, generator=source) < 0.7,
    }


def filled(kind: str, updates: int = 3, **options: Any) -> MemoryBank:
    bank = MemoryBank(S, D, **KINDS[kind], **options)
    for seed in range(updates):
        bank.update(**batch(seed, 7, torch.float32))
    return bank


def assert_same(got: MemoryBank, want: MemoryBank) -> None:
    assert list(got.state_dict()) == list(want.state_dict())
    for name, value in want.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name


class TestReference:
    @every_kind
    @settings(max_examples=60)
    @given(
        rows=st.lists(st.integers(0, S), min_size=1, max_size=6),
        seed=st.integers(0, 99),
        leave_out=st.sets(st.sampled_from(["labels", "index", "present"])),
        warmup=st.integers(0, 3),
    )
    def test_any_sequence_of_batches(
        self, kind: str, rows: list[int], seed: int, leave_out: set[str], warmup: int
    ) -> None:
        needed = {"queue": set(), "classes": {"labels"}, "instance": {"index"}, "momentum": {"index"}}[kind]
        options = {**KINDS[kind], "warmup_updates": warmup}
        bank, want = MemoryBank(S, D, **options, dtype="float64"), reference.Bank(S, D, **options)
        for step, count in enumerate(rows):
            given_rows = {k: v for k, v in batch(seed + step, count).items() if k in needed or k not in leave_out}
            bank.update(**given_rows)
            want.update(**{k: v.numpy() for k, v in given_rows.items()})
            for got, wanted in zip(bank.keys(), want.keys(), strict=True):
                assert torch.allclose(got, torch.as_tensor(wanted), rtol=1e-12, atol=1e-12)
            samples = torch.arange(-1, S + 1)
            assert torch.equal(bank.own_slots(samples), torch.as_tensor(want.own_slots(samples)))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.float64], ids=str)
    @pytest.mark.parametrize("given_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_dtypes(self, dtype: str | torch.dtype, given_dtype: torch.dtype) -> None:
        bank, want = MemoryBank(S, D, dtype=dtype), reference.Bank(S, D)
        rows = batch(0, 9, given_dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            bank.update(**rows)
        want.update(**{k: v.double().numpy() if v.is_floating_point() else v.numpy() for k, v in rows.items()})
        keys = bank.keys().features
        assert str(keys.dtype).endswith(str(dtype).removeprefix("torch."))
        tolerance = 2 * max(torch.finfo(keys.dtype).eps, 1e-7 if given_dtype != torch.float64 else 0)
        assert torch.allclose(keys.double(), torch.as_tensor(want.keys()[0]), rtol=0, atol=tolerance)

    @pytest.mark.parametrize("scale", [1e30, 1e-11, 1e-30, 0.0])
    def test_extremes(self, scale: float) -> None:
        """Directions survive any scale; what is too small to have one is a row of zeros."""
        x = torch.randn(4, D)
        bank = MemoryBank(S, D)
        bank.update(x * scale)
        want = torch.nn.functional.normalize(x) if scale > 1e-12 else torch.zeros_like(x)
        assert torch.allclose(bank.keys().features[:4], want, atol=1e-6)
        assert bank.keys().present[:4].all()


class TestQueue:
    def test_first_in_first_out(self) -> None:
        bank = MemoryBank(5, 1)
        for number in range(4):
            bank.update(torch.ones(2, 1), torch.tensor([2 * number, 2 * number + 1]))
        assert bank.keys().labels.tolist() == [5, 6, 7, 3, 4]

    def test_a_batch_that_fills_it(self) -> None:
        bank = MemoryBank(4, 1)
        bank.update(torch.ones(3, 1), torch.arange(3))
        bank.update(torch.ones(4, 1), torch.arange(4) + 10)
        assert bank.keys().labels.tolist() == [11, 12, 13, 10]

    def test_a_frequent_class_does_not_drive_out_a_rare_one(self) -> None:
        bank = MemoryBank(6, 1, num_classes=3)
        bank.update(torch.ones(4, 1), torch.tensor([2, 0, 1, -100]))
        for _ in range(5):
            bank.update(torch.ones(6, 1), torch.zeros(6, dtype=torch.long), index=torch.arange(6))
        keys = bank.keys()
        assert keys.labels[keys.present].tolist() == [0, 0, 1, 2]
        assert sorted(bank.index[:2].tolist()) == [4, 5], "more rows than fit: the last ones stay"


class TestInstance:
    def test_momentum(self) -> None:
        bank = MemoryBank(3, 2, kind="instance", momentum=0.75)
        bank.update(torch.tensor([[2.0, 0.0]]), torch.tensor([5]), index=torch.tensor([1]))
        assert bank.features[1].tolist() == [1.0, 0.0]
        bank.update(torch.tensor([[0.0, 9.0]]), index=torch.tensor([1]))
        assert torch.allclose(bank.features[1], torch.tensor([0.75, 0.25]) / (0.75**2 + 0.25**2) ** 0.5)
        assert bank.labels.tolist() == [-100, 5, -100], "labels stay when none are given"
        assert bank.keys().present.tolist() == [False, True, False]

    def test_the_last_of_repeated_rows_that_are_present_counts(self) -> None:
        bank = MemoryBank(4, 2, kind="instance", momentum=0.5)
        rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        bank.update(
            rows, torch.arange(4), index=torch.tensor([2, 2, 2, 0]), present=torch.tensor([True, True, False, True])
        )
        assert bank.features[2].tolist() == [0.0, 1.0]
        assert bank.labels.tolist() == [3, -100, 1, -100]

    def test_own_slots_differ_by_anchor(self) -> None:
        bank = MemoryBank(3, 2, kind="instance")
        bank.update(torch.ones(2, 2), index=torch.tensor([2, 0]))
        assert bank.own_slots(torch.tensor([0, 1, 2])).tolist() == [
            [True, False, False],
            [False, False, False],
            [False, False, True],
        ]


class TestAbsence:
    @every_kind
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38], ids=str)
    def test_absent_is_neither_read_nor_stored(self, kind: str, value: float) -> None:
        bank = filled(kind)
        other, rows = copy.deepcopy(bank), batch(9, 8, torch.float32)
        bank.update(**rows)
        other.update(**{**rows, "features": torch.where(rows["present"].unsqueeze(1), rows["features"], value)})
        assert_same(other, bank)
        assert bank.keys().features.isfinite().all()

    @every_kind
    def test_nothing_present_changes_nothing(self, kind: str) -> None:
        bank = filled(kind)
        before = copy.deepcopy(bank)
        bank.update(**{**batch(9, 8, torch.float32), "present": torch.zeros(8, dtype=torch.bool)})
        bank.update(**batch(9, 0, torch.float32))
        assert int(bank.updates) == int(before.updates) + 2
        before.updates.add_(2)
        assert_same(bank, before)

    @every_kind
    def test_rows_that_are_not_finite_count_as_absent(self, kind: str) -> None:
        rows = batch(9, 8, torch.float32)
        bank, other = filled(kind), filled(kind)
        bank.update(**rows)
        broken = rows["features"].clone()
        broken[~rows["present"], 1] = torch.tensor(float("nan"))
        other.update(**{**rows, "features": broken, "present": None})
        assert_same(other, bank)

    @every_kind
    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
    def test_integer_masks_and_labels(self, kind: str, dtype: torch.dtype) -> None:
        rows = batch(9, 8, torch.float32)
        rows |= {"labels": rows["labels"].clamp(min=0), "index": rows["index"].clamp(min=0)}
        bank, other = filled(kind), filled(kind)
        bank.update(**rows)
        other.update(**{k: v if v.is_floating_point() else v.to(dtype) for k, v in rows.items()})
        assert_same(other, bank)


class TestWarmup:
    def test_no_keys_before(self) -> None:
        bank = MemoryBank(S, D, warmup_updates=3)
        for done in range(5):
            assert bool(bank.keys().present.any()) == (done >= 3)
            bank.update(torch.randn(2, D))
        assert int(bank.keys().present.sum()) == 10

    def test_reset(self) -> None:
        bank = filled("queue", warmup_updates=2)
        bank.reset()
        assert_same(bank, MemoryBank(S, D, warmup_updates=2))


class TestState:
    @every_kind
    def test_resumed_run_continues_exactly(self, kind: str) -> None:
        whole = filled(kind, 6, warmup_updates=4)
        first, file = filled(kind, 3, warmup_updates=4), io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = MemoryBank(S, D, **KINDS[kind], warmup_updates=4)
        second.load_state_dict(torch.load(file, weights_only=True), strict=True)
        for seed in range(3, 6):
            second.update(**batch(seed, 7, torch.float32))
        assert_same(second, whole)
        for got, want in zip(second.keys(), whole.keys(), strict=True):
            assert torch.equal(got, want)

    @pytest.mark.parametrize("kind", KEYS)
    def test_golden_keys(self, kind: str) -> None:
        """Names and shapes of the state are the public file format: change them on purpose only."""
        assert {k: tuple(v.shape) for k, v in filled(kind).state_dict().items()} == KEYS[kind]
        assert not list(filled(kind).parameters())

    @every_kind
    def test_copies_share_nothing(self, kind: str) -> None:
        bank = filled(kind)
        for twin in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
            assert_same(twin, bank)
            twin.update(**batch(9, 7, torch.float32))
            assert not torch.equal(twin.features, bank.features)

    @every_kind
    def test_meta_and_to(self, kind: str) -> None:
        bank = filled(kind)
        with torch.device("meta"):
            empty = MemoryBank(S, D, **KINDS[kind])
        assert all(buffer.is_meta for buffer in empty.buffers())
        empty = empty.to_empty(device="cpu")
        empty.load_state_dict(bank.state_dict())
        assert_same(empty, bank)
        wide = copy.deepcopy(bank).double()
        assert wide.keys().features.dtype == torch.float64
        assert_same(wide.float(), bank)

    def test_repr(self) -> None:
        assert repr(MemoryBank(S, D, num_classes=3)) == "MemoryBank(12, 5, kind='queue', num_classes=3)"
        instance = MemoryBank(S, D, kind="instance", momentum=0.5, warmup_updates=2)
        assert repr(instance) == "MemoryBank(12, 5, kind='instance', momentum=0.5, warmup_updates=2)"


class TestGraph:
    def test_stored_rows_are_detached(self) -> None:
        x = torch.randn(3, D, requires_grad=True)
        bank = MemoryBank(S, D)
        bank.update(x)
        assert not bank.keys().features.requires_grad
        (x @ bank.keys().features.T).sum().backward()
        assert torch.allclose(x.grad, bank.features.sum(0).expand(3, D))

    def test_an_update_before_the_backward_pass_is_noticed(self) -> None:
        x = torch.randn(3, D, requires_grad=True)
        bank = filled("queue")
        loss = (x @ bank.keys().features.T).sum()
        bank.update(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @every_kind
    def test_inputs_strides_and_random_state(self, kind: str) -> None:
        rows = batch(9, 8, torch.float32)
        before, state = {k: v.clone() for k, v in rows.items()}, torch.get_rng_state()
        bank, other = filled(kind), filled(kind)
        bank.update(**rows)
        other.update(**{k: torch.stack([v, v.flip(0)], -1)[..., 0] for k, v in rows.items()})
        assert_same(other, bank)
        assert all(torch.equal(rows[k], before[k]) for k in rows)
        assert torch.equal(torch.get_rng_state(), state)
        shared = {k: v[:1].expand(4, *v.shape[1:]) for k, v in rows.items()}
        bank.update(**shared)
        other.update(**{k: v.clone() for k, v in shared.items()})
        assert_same(other, bank)

    @every_kind
    @pytest.mark.filterwarnings("ignore")
    def test_compiles_to_one_graph(self, kind: str) -> None:
        torch._dynamo.reset()
        bank, twin = filled(kind), filled(kind)

        def step(rows: dict[str, Tensor]) -> Any:
            twin.update(**rows)
            return twin.keys(), twin.own_slots(rows["index"])

        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
        for seed, count in enumerate((7, 4, 11, 9)):
            rows = batch(seed, count, torch.float32)
            bank.update(**rows)
            with torch._dynamo.config.patch(error_on_recompile=True):
                keys, own = compiled(rows)
            assert_same(twin, bank)
            for got, want in zip((*keys, own), (*bank.keys(), bank.own_slots(rows["index"])), strict=True):
                assert torch.equal(got, want)
        torch._dynamo.reset()

    @every_kind
    def test_no_value_is_looked_at(self, kind: str) -> None:
        """Fake tensors have no values, so whatever would wait for one fails."""
        rows = batch(0, 7, torch.float32)
        with FakeTensorMode() as mode:
            bank = MemoryBank(S, D, **KINDS[kind])
            fake = {k: mode.from_tensor(v) for k, v in rows.items()}
            bank.update(**fake)
            assert bank.keys().present.shape == (S,)
            assert bank.own_slots(fake["index"]).shape == (7, S)
            with pytest.raises(RuntimeError, match="_local_scalar_dense"):
                bool(bank.keys().present.any())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no-gpu: needs a CUDA device")
    @every_kind
    def test_no_host_sync(self, kind: str) -> None:
        bank, twin = filled(kind), filled(kind).cuda()
        rows = batch(9, 8, torch.float32)
        moved = {k: v.cuda() for k, v in rows.items()}
        copy.deepcopy(twin).update(**moved)  # first use builds workspaces
        torch.cuda.set_sync_debug_mode("error")
        try:
            twin.update(**moved)
            twin.keys()
            twin.own_slots(moved["index"])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        bank.update(**rows)
        assert torch.allclose(twin.features.cpu(), bank.features, atol=1e-6)
        assert all(torch.equal(getattr(twin, name).cpu(), getattr(bank, name)) for name in ("labels", "filled"))

    @every_kind
    def test_an_update_costs_what_the_batch_costs(self, kind: str) -> None:
        """Nothing of the size of the bank is made on the way."""
        largest = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal largest
                out = func(*args, **(kwargs or {}))
                if isinstance(out, Tensor) and not func._schema.is_mutable and not out._is_view():
                    largest = max(largest, out.numel())
                return out

        bank = MemoryBank(5000 - 5000 % 4, D, **KINDS[kind])
        with Watch():
            bank.update(**batch(0, 7, torch.float32))
        assert 0 < largest <= 7 * D


class TestLosses:
    """The keys go into the losses as they are."""

    def test_keys_that_are_not_there_are_no_keys(self) -> None:
        rows, bank = batch(3, 6), filled("instance", dtype="float64")
        features, labels, present = bank.keys()
        assert 0 < int(present.sum()) < S
        got = sup_con_loss(
            rows["features"], rows["labels"], keys=features, key_labels=labels, key_present=present, ignore_index=-100
        )
        want = sup_con_loss(rows["features"], rows["labels"], keys=features[present], key_labels=labels[present])
        assert torch.allclose(got, want, rtol=1e-12)

    @pytest.mark.parametrize("kind", ["queue", "instance"])
    def test_own_slots_are_excluded(self, kind: str) -> None:
        bank, sample = filled(kind, dtype="float64"), torch.tensor([4])
        own = bank.own_slots(sample)
        assert own.any()
        x, label = torch.randn(1, D, dtype=torch.float64), torch.tensor([1])
        features, labels, present = bank.keys()
        others = present & ~own[0]
        got = sup_con_loss(
            x, label, keys=features, key_labels=labels, key_present=present,
            excluded=torch.nn.functional.pad(own, (1, 0)),
        )  # fmt: skip
        want = sup_con_loss(x, label, keys=features[others], key_labels=labels[others])
        assert float(want) > 0
        assert torch.allclose(got, want, rtol=1e-12)


ROWS = batch(0, 4, torch.float32)
WRONG: list[tuple[str, Any, type[Exception], tuple[str, ...]]] = [
    ("size", lambda: MemoryBank(0, 3), ValueError, ("size", "at least 1", "0")),
    ("features", lambda: MemoryBank(3, 2.0), TypeError, ("features", "integer", "float")),
    ("kind", lambda: MemoryBank(3, 2, kind="ring"), ValueError, ("kind", "'queue', 'instance'", "'ring'")),
    ("momentum", lambda: MemoryBank(3, 2, kind="instance", momentum=1.0), ValueError, ("[0.0, 1.0)", "1.0")),
    ("momentum-queue", lambda: MemoryBank(3, 2, momentum=0.5), ValueError, ("momentum = 0", "'queue'", "0.5")),
    ("classes", lambda: MemoryBank(7, 2, num_classes=3), ValueError, ("num_classes", "divisor of size = 7", "3")),
    (
        "classes-instance",
        lambda: MemoryBank(6, 2, kind="instance", num_classes=3),
        ValueError,
        ("num_classes", "None for kind='instance'", "3"),
    ),
    ("warmup", lambda: MemoryBank(7, 2, warmup_updates=-1), ValueError, ("warmup_updates", "at least 0", "-1")),
    ("dtype", lambda: MemoryBank(7, 2, dtype=torch.int8), ValueError, ("dtype", "'bfloat16'", "'int8'")),
    ("batch", lambda: MemoryBank(3, D).update(**ROWS), ValueError, ("batch", "size = 3", "got 4")),
    (
        "batch-classes",
        lambda: MemoryBank(3, D, num_classes=3).update(**ROWS),
        ValueError,
        ("batch", "size = 3", "got 4"),
    ),
    ("width", lambda: MemoryBank(9, 2).update(torch.ones(4, 3)), ValueError, ("features", "(any, 2)", "(4, 3)")),
    (
        "integers",
        lambda: MemoryBank(9, 2).update(torch.ones(4, 2).long()),
        TypeError,
        ("features", "floating-point", "torch.int64"),
    ),
    (
        "labels",
        lambda: MemoryBank(9, D).update(ROWS["features"], ROWS["labels"][1:]),
        ValueError,
        ("labels", "(4,)", "(3,)"),
    ),
    (
        "labels-float",
        lambda: MemoryBank(9, D).update(ROWS["features"], ROWS["labels"].float()),
        TypeError,
        ("labels", "integer", "torch.float32"),
    ),
    (
        "labels-none",
        lambda: MemoryBank(9, D, num_classes=3).update(ROWS["features"]),
        ValueError,
        ("labels", "queues of the classes", "None"),
    ),
    (
        "index-none",
        lambda: MemoryBank(9, D, kind="instance").update(ROWS["features"]),
        ValueError,
        ("index", "kind='instance'", "None"),
    ),
    (
        "present",
        lambda: MemoryBank(9, D).update(ROWS["features"], present=torch.ones(4)),
        TypeError,
        ("present", "bool", "torch.float32"),
    ),
    (
        "own",
        lambda: MemoryBank(9, D).own_slots(torch.ones(2, 2).long()),
        ValueError,
        ("index", "(B,)", "(2, 2)"),
    ),
    (
        "validate-index",
        lambda: MemoryBank(9, D, kind="instance", validate=True).update(
            ROWS["features"], index=torch.tensor([0, 8, 9, 1])
        ),
        ValueError,
        ("index", "[0, 8]", "9"),
    ),
    (
        "validate-labels",
        lambda: MemoryBank(9, D, num_classes=3, validate=True).update(ROWS["features"], torch.tensor([0, -100, 2, -1])),
        ValueError,
        ("labels", "[0, 2] or -100", "-1"),
    ),
]


@pytest.mark.parametrize(("use", "error", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_use(use: Any, error: type[Exception], says: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        use()
    assert caught.type is error
    message = str(caught.value)
    assert message.startswith("MemoryBank: expected ")
    for piece in (*says, "got"):
        assert piece in message, f"{piece!r} is missing in {message!r}"


def test_what_is_absent_is_not_validated() -> None:
    bank = MemoryBank(9, D, kind="instance", validate=True)
    bank.update(ROWS["features"], index=torch.tensor([0, 8, 9, 1]), present=torch.tensor([1, 1, 0, 1]))
    assert int(bank.keys().present.sum()) == 3


def test_a_refused_batch_leaves_the_bank_as_it_was() -> None:
    bank = filled("queue")
    before = copy.deepcopy(bank)
    with pytest.raises(ValueError, match="at most size = 12 rows, got 13"):
        bank.update(torch.randn(13, D))
    assert_same(bank, before)
