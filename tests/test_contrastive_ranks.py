"""Contrastive losses over several processes: a model under DDP gets what one process with the whole batch gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mmrobust import ContrastiveOutput
from mmrobust.distributed import global_sum
from mmrobust.losses import info_nce_loss, modality_contrastive_loss, nt_xent_loss, sup_con_loss
from tests.ranks import SECONDS, Ranks, part
from tests.test_distributed_training import Model

K = 7
Data = dict[str, Tensor]
Results = dict[str, Any]


def data(rows: int, dtype: torch.dtype = torch.float64, lonely: tuple[int, ...] = ()) -> Data:
    """Return what all ranks have together; rows ``lonely`` have a class of their own."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    labels = torch.randint(3, (rows,), generator=generator)
    for index in lonely:
        labels[index] = 100 + index
    return {
        "x": normal(rows, 6),
        "y": normal(rows, 6),
        "labels": labels,
        "several": torch.rand(rows, 4, generator=generator) < 0.3,
        "present": torch.rand(rows, generator=generator) < 0.7,
        "weight": torch.rand(rows, generator=generator).to(dtype),
        "modal_present": torch.rand(rows, 3, generator=generator) < 0.7,
        "key_excluded": torch.rand(rows, K, generator=generator) < 0.3,
    }


BANK = {
    "keys": torch.randn(K, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    "key_labels": torch.arange(K) % 4,
    "key_present": torch.arange(K) != 3,
}
NEGATIVES = {"negatives": BANK["keys"], "negatives_present": BANK["key_present"]}

# Two views of rows, what belongs to them, and options -> loss and how many rows count.
Loss = Callable[..., ContrastiveOutput]
SUPERVISED: dict[str, Loss] = {
    "classes": lambda z, _, d, **o: sup_con_loss(z, d["labels"], **o),
    "classes, present": lambda z, _, d, **o: sup_con_loss(z, d["labels"], present=d["present"], **o),
    "classes, weight": lambda z, _, d, **o: sup_con_loss(z, d["labels"], weight=d["weight"], **o),
    "classes, ignored, zero": lambda z, _, d, **o: sup_con_loss(
        z, d["labels"], ignore_index=1, without_positives="zero", **o
    ),
    "classes, keys": lambda z, _, d, **o: sup_con_loss(z, d["labels"], present=d["present"], **BANK, **o),
    "classes, own keys left out": lambda z, _, d, **o: sup_con_loss(
        z, d["labels"], present=d["present"], **BANK, key_excluded=d["key_excluded"], **o
    ),
}
ONLY_GATHERED: dict[str, Loss] = {
    "L_in": lambda z, _, d, **o: sup_con_loss(z, d["labels"], aggregation="in", present=d["present"], **o),
    "several": lambda z, _, d, **o: sup_con_loss(z, d["several"], present=d["present"], **o),
    "several, keys": lambda z, _, d, **o: sup_con_loss(
        z, d["several"], keys=BANK["keys"], key_labels=torch.eye(7, 4).bool(), aggregation="in", **o
    ),
    "L_in, own keys left out": lambda z, _, d, **o: sup_con_loss(
        z, d["labels"], aggregation="in", **BANK, key_excluded=d["key_excluded"], **o
    ),
}
PAIRS: dict[str, Loss] = {
    "info_nce": lambda z, w, _, **o: info_nce_loss(z, w, **o),
    "info_nce, one way": lambda z, w, d, **o: info_nce_loss(z, w, symmetric=False, present=d["present"], **o),
    "info_nce, weight": lambda z, w, d, **o: info_nce_loss(
        z, w, weight=d["weight"], present=d["present"], **NEGATIVES, **o
    ),
    "nt_xent": lambda z, w, _, **o: nt_xent_loss(z, w, **o),
    "nt_xent, present": lambda z, w, d, **o: nt_xent_loss(z, w, present=d["present"], **NEGATIVES, **o),
}


def modalities(z: Tensor, w: Tensor, present: Tensor | None, return_anchors: bool, **options: Any) -> ContrastiveOutput:
    loss = modality_contrastive_loss([z, w, z * w], present, **options)
    return ContrastiveOutput(loss, torch.zeros(()))


MODALITIES: dict[str, Loss] = {
    "modalities": lambda z, w, _, **o: modalities(z, w, None, **o),
    "modalities, present": lambda z, w, d, **o: modalities(z, w, d["modal_present"], **o),
    "modalities, weight": lambda z, w, d, **o: modalities(z, w, d["modal_present"], weight=d["weight"], **o),
}
LOSSES = {**SUPERVISED, **ONLY_GATHERED, **PAIRS, **MODALITIES}


def losses(gather: object) -> dict[str, Loss]:
    return {name: loss for name, loss in LOSSES.items() if gather != "ring" or name not in ONLY_GATHERED}


def step(model: torch.nn.Module, loss: Loss, d: Data, **options: Any) -> ContrastiveOutput:
    features, temperature = model(torch.cat([d["x"], d["y"]]))
    size = len(d["x"])
    output = loss(features[:size], features[size:], d, temperature=temperature, return_anchors=True, **options)
    output.loss.sum().backward()
    return output


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


def train(gather: bool | str, sizes: tuple[int, ...], whole: Data) -> Results:
    """Return of every loss the mean over ranks, how many rows count, and the gradients that DDP averaged."""
    found: Results = {}
    mine = {name: part(x, sizes) for name, x in whole.items()}
    for name, loss in losses(gather).items():
        model = DistributedDataParallel(Model())
        value, anchors = step(model, loss, mine, gather=gather)
        found[name] = {"loss": global_sum(value) / len(sizes), "anchors": anchors, **gradients(model.module)}
    return found


def alone(gather: bool | str, whole: Data) -> Results:
    found: Results = {}
    for name, loss in losses(gather).items():
        model = Model()
        value, anchors = step(model, loss, whole)
        found[name] = {"loss": value.detach(), "anchors": anchors, **gradients(model)}
    return found


def assert_same(got: Results, want: Results, tolerance: float = 1e-10) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        for what, value in expected.items():
            torch.testing.assert_close(
                got[name][what],
                value,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, n=name, w=what: f"{n}, {w}: {text}",
            )


# Even, uneven, ranks without rows, one row in all, and no row at all.
SIZES = [(5, 2), (0, 6), (1, 0), (0, 0), (4, 5, 2), (0, 7, 3), (1, 1, 1)]


@pytest.mark.parametrize("gather", [True, "ring"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_ranks_are_one_process(ranks: Ranks, sizes: tuple[int, ...], gather: bool | str) -> None:
    whole = data(sum(sizes))
    want = alone(gather, whole)
    for got in ranks(len(sizes), train, gather, sizes, whole):
        assert_same(got, want)


@pytest.mark.parametrize("gather", [True, "ring"])
def test_ranks_without_positives_or_presence(ranks: Ranks, gather: bool | str) -> None:
    """Rank 0 has no row with a positive, nothing of rank 2 is present."""
    sizes = (4, 5, 3)
    whole = data(12, lonely=(0, 1, 2, 3))
    whole["present"][9:] = False
    whole["several"][:4] = False
    want = alone(gather, whole)
    assert 0 < int(want["classes"]["anchors"]) < 9
    for got in ranks(3, train, gather, sizes, whole):
        assert_same(got, want)


@pytest.mark.parametrize("gather", [True, "ring"])
def test_many_rows(ranks: Ranks, gather: bool | str) -> None:
    """More than a tile on every rank, in float32 as well."""
    sizes = (300, 280)
    whole = data(580)
    want = alone(gather, whole)
    for got in ranks(2, train, gather, sizes, whole):
        assert_same(got, want)


def rows_and_sums(gather: bool | str, sizes: tuple[int, ...], whole: Data) -> Results:
    found: Results = {}
    mine = {name: part(x, sizes) for name, x in whole.items()}
    for name, loss in losses(gather).items():
        model = DistributedDataParallel(Model())
        total, _ = step(model, loss, mine, gather=gather, reduction="sum")
        slopes = {key: grad * len(sizes) for key, grad in gradients(model.module).items()}
        rows, _ = step(model, loss, mine, gather=gather, reduction="none")
        found[name] = {"sum": global_sum(total), "rows": rows.detach(), **slopes}
    return found


@pytest.mark.parametrize("gather", [True, "ring"])
def test_sums_and_rows(ranks: Ranks, gather: bool | str) -> None:
    """A sum is over the own rows: over all ranks it adds up, and so do its gradients, which DDP divides."""
    sizes = (4, 5, 2)
    whole = data(11)
    found = ranks(3, rows_and_sums, gather, sizes, whole)
    for name, loss in losses(gather).items():
        model = Model()
        total, _ = step(model, loss, whole, reduction="sum")
        for got in found:
            torch.testing.assert_close(got[name]["sum"], total.detach(), rtol=1e-10, atol=1e-10)
            for key, grad in gradients(model).items():
                torch.testing.assert_close(got[name][key], grad, rtol=1e-10, atol=1e-10)
        rows = torch.cat([got[name]["rows"] for got in found], dim=-1)
        want, _ = step(Model(), loss, whole, reduction="none")
        torch.testing.assert_close(rows, want.detach(), rtol=1e-10, atol=1e-10)


def in_single_precision(gather: bool | str, sizes: tuple[int, ...], whole: Data) -> Results:
    mine = {name: part(x, sizes) for name, x in whole.items()}
    found: Results = {}
    for name in ("classes, present", "info_nce", "nt_xent"):
        z = mine["x"].clone().requires_grad_()
        loss = LOSSES[name](z, mine["y"], mine, temperature=0.1, gather=gather, return_anchors=True).loss
        loss.backward()
        assert loss.dtype == torch.float32
        found[name] = global_sum(loss) / len(sizes), z.grad
    return found


@pytest.mark.parametrize("gather", [True, "ring"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_single_and_half_precision(ranks: Ranks, gather: bool | str, dtype: torch.dtype) -> None:
    whole = data(40, dtype)
    found = ranks(2, in_single_precision, gather, (25, 15), whole)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in whole.items()}
    for name in found[0]:
        z = wide["x"].clone().requires_grad_()
        want = LOSSES[name](z, wide["y"], wide, temperature=0.1, return_anchors=True).loss
        want.backward()
        grads = torch.cat([got[name][1] for got in found]).double()
        torch.testing.assert_close(found[0][name][0].double(), want.detach(), rtol=1e-6, atol=0.0)
        # Ranks scale their part of the mean by their number, and rows are rounded once, to their own dtype.
        scale = float(z.grad.abs().max())
        torch.testing.assert_close(grads / 2, z.grad, rtol=0.0, atol=max(4 * torch.finfo(dtype).eps, 5e-6) * scale)


def different_sizes(gather: bool | str) -> tuple[list[str], float]:
    rank, start = dist.get_rank(), time.monotonic()
    x = torch.randn(3, 4 + rank, dtype=torch.float64).requires_grad_()
    labels, messages = torch.tensor([0, 0, 1]), []
    uses: list[Callable[[], Tensor]] = [
        lambda: sup_con_loss(x, labels, gather=gather),
        lambda: info_nce_loss(x, x, gather=gather),
        lambda: nt_xent_loss(x, x, gather=gather),
        lambda: modality_contrastive_loss([x, x], gather=gather),
    ]
    if gather is True:
        several = torch.eye(3, 4 + rank).bool()
        uses += [
            lambda: sup_con_loss(x, labels, aggregation="in", gather=True),
            lambda: sup_con_loss(x, several, gather=True),
            lambda: sup_con_loss(x[:, :4], several, gather=True),
        ]
    for use in uses:
        with pytest.raises(ValueError) as caught:
            use()
        messages.append(str(caught.value))
    assert int(global_sum(torch.tensor(1))) == dist.get_world_size(), "the ranks are no longer in step"
    return messages, time.monotonic() - start


@pytest.mark.parametrize("gather", [True, "ring"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_disagree_raise_together(ranks: Ranks, gather: bool | str, world: int) -> None:
    found = ranks(world, different_sizes, gather)
    messages, seconds = zip(*found, strict=True)
    assert max(seconds) < SECONDS / 2
    same = 6 if gather is True else 4
    assert all(each[:same] == messages[0][:same] for each in messages)
    firsts = {"sup_con_loss": "features", "info_nce_loss": "query", "nt_xent_loss": "z1"}
    names = [*firsts, "modality_contrastive_loss", *["sup_con_loss"] * 2]
    for message, name in zip(messages[0], names, strict=False):
        assert message.startswith(f"{name}: expected {firsts.get(name, 'features')} of shape (B, ...)")
        assert "4) float64 on rank 0" in message
        assert "5) float64 on rank 1" in message
    if gather is True:
        assert messages[0][-1].startswith(
            "sup_con_loss: expected the same labels_per_row on all ranks, got (4,) on rank 0"
        )
        assert "got (5,) on rank 1" in messages[1][-1]


def different_options() -> list[str]:
    rank, x, messages = dist.get_rank(), torch.ones(4, 3), []
    labels = torch.arange(4) % 2
    for call in (
        lambda: sup_con_loss(x, labels, gather="ring" if rank else True),
        lambda: sup_con_loss(x, labels, gather=True, temperature=0.2 if rank else 0.1),
        lambda: sup_con_loss(x, labels, gather=True, aggregation="in" if rank else "out"),
        lambda: sup_con_loss(x, torch.eye(4).bool() if rank else labels, gather=True),
        lambda: info_nce_loss(x, x, gather=True, symmetric=bool(rank)),
        lambda: nt_xent_loss(x, x, gather=True, reduction="sum" if rank else "mean"),
        lambda: nt_xent_loss(x, x, gather=True, validate=bool(rank)),
        lambda: nt_xent_loss(x, x, gather=True, validate=True, temperature=torch.tensor(0.5 + rank)),
        lambda: modality_contrastive_loss([x, x], gather=True, reduction="sum" if rank else "mean"),
        lambda: info_nce_loss(x, x.double() if rank else x, gather=True),
    ):
        with pytest.raises(ValueError, match="expected") as caught:
            call()
        messages.append(str(caught.value))
    nt_xent_loss(x, x, gather=True, temperature=1 if rank else 1.0)  # the same number
    assert int(global_sum(torch.tensor(1))) == 2, "the ranks are no longer in step"
    return messages


def refused_on_one() -> list[str]:
    """Rank 1 finds its arguments wrong by itself; rank 0, whose are right, does not wait for it."""
    rank, x, messages = dist.get_rank(), torch.ones(4, 3), []
    labels, weight = torch.arange(4) % 2, torch.ones(4, requires_grad=bool(rank))
    errors = (TypeError, ValueError, RuntimeError)
    for call in (
        lambda: sup_con_loss(x, labels.float() if rank else labels, gather=True),
        lambda: sup_con_loss(x, torch.eye(4).bool() if rank else labels, gather="ring"),
        lambda: sup_con_loss(x, labels, gather=True, impl="triton" if rank else "torch"),
        lambda: info_nce_loss(x, x, gather=True, temperature=torch.full((1 + rank,), 0.1)),
        lambda: info_nce_loss(x, x, gather="ring", weight=weight),
        lambda: nt_xent_loss(x, x, gather=True, negatives=torch.ones(5, 3 + rank)),
        lambda: nt_xent_loss(x, x, gather=True, reduction="max" if rank else "mean"),
        lambda: modality_contrastive_loss([x, x[rank:]], gather=True),
    ):
        with pytest.raises(errors) as caught:
            call()
        messages.append(str(caught.value))
    assert int(global_sum(torch.tensor(1))) == 2, "the ranks are no longer in step"
    return messages


def test_what_one_rank_refuses_is_an_error_on_all(ranks: Ranks) -> None:
    first, second = ranks(2, refused_on_one)
    for one, other in zip(first, second, strict=True):
        where = one.split(":")[0]
        assert one == f"{where}: expected arguments that all ranks accept, refused on ranks [1], see there why"
        assert other.startswith(f"{where}: ")
        assert "all ranks" not in other


def without_gradients() -> list[str]:
    rank, x = dist.get_rank(), torch.ones(4, 3, requires_grad=True)
    fixed, temperature, messages = torch.ones(4, 3), torch.tensor(0.1, requires_grad=True), []
    for call in (
        lambda: sup_con_loss(x, torch.arange(4) % 2, gather=True),
        lambda: info_nce_loss(fixed, fixed, gather="ring", temperature=temperature),
        lambda: modality_contrastive_loss([fixed, x], gather="ring"),
    ):
        with torch.set_grad_enabled(not rank), pytest.raises(ValueError) as caught:
            call()
        messages.append(str(caught.value))
    assert int(global_sum(torch.tensor(1))) == 2, "the ranks are no longer in step"
    return messages


def test_a_rank_that_records_no_gradients_is_an_error_on_all(ranks: Ranks) -> None:
    first, second = ranks(2, without_gradients)
    assert first == second
    for message, name in zip(first, ("sup_con_loss", "info_nce_loss", "modality_contrastive_loss"), strict=True):
        assert message.startswith(f"{name}: expected all ranks to record gradients")
        assert message.endswith("got no_grad or inference_mode on ranks [1]")


def test_ranks_with_different_options_raise_together(ranks: Ranks) -> None:
    first, second = ranks(2, different_options)
    options = ["gather", "temperature", "aggregation", "labels_per_row", "symmetric", "reduction", "validate"]
    options += ["temperature", "reduction", "dtypes of query and key"]
    for one, other, name in zip(first, second, options, strict=True):
        if name.startswith("dtypes"):
            assert one.startswith("info_nce_loss: expected query of shape (B, ...) with sizes behind B and a dtype")
            continue
        assert f": expected the same {name} on all ranks, got " in one
        assert f": expected the same {name} on all ranks, got " in other
    assert first[0].endswith("got True on rank 0; ranks [1] differ from rank 0")
    assert second[0].endswith("got 'ring' on rank 1; ranks [1] differ from rank 0")
    assert first[7] == second[7]
    assert first[7].endswith("got 0.5 on rank 0, 1.5 on rank 1")


SEVERAL = torch.eye(4, 2, dtype=torch.int64)


def keys_of(rank: int) -> dict[str, Any]:
    """Only the second rank has extra keys, with a label that is none."""
    keys = {"keys": torch.ones(4, 3), "key_labels": SEVERAL + 2 * torch.eye(4, 2, dtype=torch.int64)}
    return {"gather": True, **(keys if rank else {})}


def not_finite(gather: bool | str) -> list[str]:
    x, messages = torch.ones(4, 3), []
    x[2] = float("nan") if dist.get_rank() else 1.0
    wrong = torch.tensor(-1.0 if dist.get_rank() else 1.0)
    for call in (
        lambda: sup_con_loss(x, torch.arange(4) % 2, gather=gather, validate=True),
        lambda: info_nce_loss(torch.ones(4, 3), x, gather=gather, validate=True),
        lambda: nt_xent_loss(torch.ones(4, 3), torch.ones(4, 3), temperature=wrong, gather=gather, validate=True),
        lambda: modality_contrastive_loss([torch.ones(4, 3), x], gather=gather, validate=True),
        lambda: sup_con_loss(torch.ones(4, 3), torch.arange(4), weight=x[:, 0], gather=gather, validate=True),
        *(
            [lambda: sup_con_loss(torch.ones(4, 3), SEVERAL, **keys_of(dist.get_rank()), validate=True)]
            * (gather is True)
        ),
    ):
        with pytest.raises(ValueError, match="expected") as caught:
            call()
        messages.append(str(caught.value))
    assert int(global_sum(torch.tensor(1))) == 2, "the ranks are no longer in step"
    return messages


@pytest.mark.parametrize("gather", [True, "ring"])
def test_validation_raises_on_every_rank(ranks: Ranks, gather: bool | str) -> None:
    first, second = ranks(2, not_finite, gather)
    assert first == second
    assert first[0].endswith("expected features to be finite, row 2 on rank 1 is not")
    assert first[1].endswith("expected key to be finite, row 2 on rank 1 is not")
    assert first[2].endswith("temperature in (0.0, inf), got -1.0 on rank 1")
    assert first[3].endswith("expected features to be finite, row 2 on rank 1 is not")
    assert first[4].endswith("expected weight to be finite and at least 0, row 2 on rank 1 is not")
    if gather is True:
        assert first[5].endswith("expected key_labels to be 0 or 1, row 0 on rank 1 is not")


def checkpointed(gather: bool | str, whole: Data) -> None:
    mine = {name: part(x, (4, 5)) for name, x in whole.items()}
    for name, loss in losses(gather).items():
        x = mine["x"][:, :5].clone().requires_grad_()

        def run(x: Tensor, loss: Loss = loss) -> Tensor:
            return loss(x, mine["y"][:, :5], mine, temperature=0.3, gather=gather, return_anchors=True).loss

        (want,) = torch.autograd.grad(run(x), x)
        (grad,) = torch.autograd.grad(checkpoint(run, x, use_reentrant=False), x)
        torch.testing.assert_close(grad, want, msg=name)


@pytest.mark.parametrize("gather", [True, "ring"])
def test_checkpointing(ranks: Ranks, gather: bool | str) -> None:
    ranks(2, checkpointed, gather, data(9))


def differentiate_twice(gather: bool | str, whole: Data) -> None:
    mine = {name: part(x, (4, 5)) for name, x in whole.items()}
    for name, loss in losses(gather).items():
        x = mine["x"][:, :5].clone().requires_grad_()
        value = loss(x, mine["y"][:, :5], mine, temperature=0.3, gather=gather, return_anchors=True).loss
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate"):
            grad.square().sum().backward()
        assert int(global_sum(torch.tensor(1))) == 2, f"{name}: the ranks are no longer in step"


@pytest.mark.parametrize("gather", [True, "ring"])
def test_second_derivatives_are_refused(ranks: Ranks, gather: bool | str) -> None:
    ranks(2, differentiate_twice, gather, data(9))


@pytest.mark.parametrize("gather", [True, "ring"])
def test_one_process_is_all_ranks(gather: bool | str) -> None:
    """Without a process group the options change nothing."""
    whole = data(9)
    for name, loss in losses(gather).items():
        got, want = (step(Model(), loss, whole, **options) for options in ({"gather": gather}, {}))
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-12, atol=1e-12, msg=name)
        assert torch.equal(got.anchors, want.anchors)


def forget_the_others(sizes: tuple[int, ...], whole: Data) -> Results:
    model = DistributedDataParallel(Model())
    value, _ = step(model, LOSSES["classes"], {name: part(x, sizes) for name, x in whole.items()})
    return {"classes": {"loss": global_sum(value) / len(sizes), **gradients(model.module)}}


def test_the_comparison_sees_losses_of_single_ranks(ranks: Ranks) -> None:
    whole = data(11)
    want = alone(True, whole)["classes"]
    for got in ranks(3, forget_the_others, (4, 5, 2), whole):
        assert (got["classes"]["loss"] - want["loss"]).abs() > 1e-3
        assert (got["classes"]["layers.0.weight"] - want["layers.0.weight"]).abs().max() > 1e-3
