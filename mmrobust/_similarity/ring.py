"""Sums over the keys of all ranks: blocks of keys travel from rank to rank, past the queries, which stay.

No rank ever holds more than its own rows, the block that visits, the one on its way, and tiles: memory does not grow
with the number of ranks. Backward the blocks travel again and collect their gradients, which arrive at home after one
round. Both directions are collectives: see :mod:`mmrobust.distributed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

from .._layouts import exchange_layouts, is_active
from .._precision import no_autocast
from . import tiles
from .gradients import Side, gradients, weighted_sums
from .once import once
from .pairs import row_logsumexp
from .positives import class_energy, class_sums
from .units import Units

_BLOCK, _GRADIENT = 0, 8  # tags: what travels in one message after the other must not be mistaken for each other


def ring_logsumexp(
    queries: Units,
    keys: Units,
    temperature: Tensor,
    *,
    key_valid: Tensor | None = None,
    skip_own: bool = False,
    least: float = 0.0,
) -> Tensor:
    """Return ``log sum_j exp(e_ij / t)`` of each query over the keys j of all ranks ``(A,)``; ``NO_KEY`` without keys.

    ``keys`` are this rank's, any number. ``key_valid (K,)`` bool: those that count. ``skip_own``: query i leaves out
    key i of its own rank, which is itself. ``least``: a lower bound of the temperature known without reading it. All
    ranks bring the same temperature, and units around the same centre.
    """
    if is_active():
        return _ring_logsumexp(queries, keys, temperature, key_valid, skip_own, least)
    return row_logsumexp(queries, keys, temperature, key_valid=key_valid, skip=0 if skip_own else None, least=least)


def ring_class_energy(
    queries: Units, labels: Tensor, keys: Units, key_labels: Tensor, key_valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return for each query the sum of its energies with all keys of its label on all ranks, and their number ``(A,)``.

    The same as :func:`~.positives.class_energy` with ``keys``, ``key_labels`` and ``key_valid`` of this rank only.
    """
    if is_active():
        return _ring_class_energy(queries, labels, keys, key_labels, key_valid)
    return class_energy(queries, labels, keys, key_labels, key_valid)


@_disable_dynamo  # a graph breaks here: there are no compiled collectives for blocks that travel
def _ring_logsumexp(
    queries: Units, keys: Units, temperature: Tensor, key_valid: Tensor | None, skip_own: bool, least: float
) -> Tensor:
    ring, attach = _join("ring_logsumexp", keys, key_valid, queries.u, keys.u, temperature)
    half, key_half = queries.half.detach(), keys.half.detach()
    rows: Tensor = _Logsumexp.apply(  # type: ignore[no-untyped-call]
        queries.u, half, keys.u, key_half, temperature.to(half.dtype), key_valid, attach, (ring, skip_own, least)
    )
    return rows


@_disable_dynamo
def _ring_class_energy(
    queries: Units, labels: Tensor, keys: Units, key_labels: Tensor, key_valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    ring, attach = _join("ring_class_energy", keys, key_valid, queries.u, keys.u)
    half, key_half = queries.half.detach(), keys.half.detach()
    labels, key_labels = labels.long(), key_labels.long()
    energy, count = _ClassEnergy.apply(  # type: ignore[no-untyped-call]
        queries.u, half, labels, keys.u, key_half, key_labels, key_valid, attach, ring
    )
    return energy, count


class _Transfer(NamedTuple):
    """Tensors on their way from the previous rank, and those sent, which have to live until they are."""

    received: tuple[Tensor, ...]
    sent: tuple[Tensor, ...]
    works: list[dist.Work]

    def wait(self) -> tuple[Tensor, ...]:
        """Return the tensors once they are here."""
        for work in self.works:
            work.wait()
        return self.received


class _Ring(NamedTuple):
    """Where this rank stands, how many keys every rank has, and what somebody somewhere needs."""

    rank: int
    sizes: tuple[int, ...]
    masked: bool  # has keys that do not count
    keys_differ: bool  # wants the gradient of keys

    def visits(self, *block: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield step and block, the own one first; the next one travels in the meantime."""
        for step in range(len(self.sizes)):
            coming = self.shift(block, step, _BLOCK) if step + 1 < len(self.sizes) else None
            yield step, block
            if coming is not None:
                block, coming = coming.wait(), None

    def shift(self, tensors: tuple[Tensor, ...], step: int, tag: int) -> _Transfer:
        """Begin to send tensors of this step's block to the next rank, and to receive those of the next step."""
        world = len(self.sizes)
        here, coming = self.sizes[(self.rank - step) % world], self.sizes[(self.rank - step - 1) % world]
        sent = tuple(x.contiguous() for x in tensors)
        received = tuple(x.new_empty(coming, *x.shape[1:]) for x in sent)
        operations = []
        for index, (x, y) in enumerate(zip(sent, received, strict=True)):
            if here:
                operations.append(dist.P2POp(dist.isend, x, (self.rank + 1) % world, tag=tag + index))
            if coming:
                operations.append(dist.P2POp(dist.irecv, y, (self.rank - 1) % world, tag=tag + index))
        return _Transfer(received, sent, dist.batch_isend_irecv(operations) if operations else [])

    def valid(self, key_valid: Tensor | None, key_half: Tensor) -> tuple[Tensor, ...]:
        """Return what says which keys count, if any rank has some that do not."""
        if not self.masked:
            return ()
        return (torch.ones_like(key_half, dtype=torch.bool) if key_valid is None else key_valid,)


def _join(where: str, keys: Units, key_valid: Tensor | None, *wanting: Tensor) -> tuple[_Ring, Tensor]:
    """Exchange what every rank has to know; return it with a tensor that ties the result to the graph if need be."""
    recording = torch.is_grad_enabled()
    wanted = any(x.requires_grad for x in wanting)
    flags = key_valid is not None, recording and keys.u.requires_grad
    layouts = exchange_layouts(where, "keys", keys.u, *flags, differentiable=wanted)
    masked, keys_differ = (any(layout.flags[index] for layout in layouts) for index in range(2))
    ring = _Ring(dist.get_rank(), tuple(layout.shape[0] for layout in layouts), masked, keys_differ)
    # The backward pass is a collective: a rank that needs no gradient runs it with those that do.
    return ring, keys.u.new_zeros(()).requires_grad_(any(layout.differentiable for layout in layouts))


class _Logsumexp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        half: Tensor,
        v: Tensor,
        key_half: Tensor,
        temperature: Tensor,
        key_valid: Tensor | None,
        attach: Tensor,
        options: tuple[_Ring, bool, float],
    ) -> Tensor:
        ring, skip_own, least = options
        fast = tiles.is_fast(temperature, least)
        with no_autocast(u):
            x = tiles.queries(u, half, temperature)
            rows = torch.full_like(half, tiles.NO_KEY)
            for step, (y, *valid) in ring.visits(
                tiles.keys(v, key_half, temperature), *ring.valid(key_valid, key_half)
            ):
                skip = 0 if skip_own and step == 0 else None
                block, _ = tiles.logsumexp(x, y, None, valid[0] if valid else None, "rows", skip, fast)
                rows = torch.logaddexp(rows, block)
                del y  # or it stays until the one after the next is here
        ctx.save_for_backward(u, half, v, key_half, temperature, key_valid, rows)
        ctx.options = options
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, half, v, key_half, temperature, key_valid, rows = ctx.saved_tensors
        ring, skip_own, least = ctx.options
        fast, side = tiles.is_fast(temperature, least), Side(grad, rows, None)
        arriving = None
        with torch.no_grad(), no_autocast(u):
            x = tiles.queries(u, half, temperature)
            out = torch.zeros_like(x)
            for step, (y, *valid) in ring.visits(
                tiles.keys(v, key_half, temperature), *ring.valid(key_valid, key_half)
            ):
                none = torch.zeros_like(y[:, 0])
                columns = Side(none, none, valid[0] if valid else None)
                skip = 0 if skip_own and step == 0 else None
                more, key_out = weighted_sums(x, y, side, columns, "rows", skip, fast, ring.keys_differ)
                out += more
                if ring.keys_differ:
                    arriving = _pass_on(ring, step, arriving, key_out)
                del y, more, key_out
            key_out = x.new_zeros(v.shape[0], x.shape[1]) if arriving is None else arriving.wait()[0]
            du, dv, dt = gradients(u, half, v, out, key_out, temperature)
        du, dv, dt = (once(x, grad, u, v, temperature) for x in (du, dv, dt))
        return du, None, dv, None, dt, None, None, None


def _pass_on(ring: _Ring, step: int, arriving: _Transfer | None, own: Tensor) -> _Transfer:
    """Add this rank's part to the gradients of the visiting block and send them on."""
    total = own if arriving is None else arriving.wait()[0].add_(own)
    return ring.shift((total,), step, _GRADIENT)


class _ClassEnergy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        half: Tensor,
        labels: Tensor,
        v: Tensor,
        key_half: Tensor,
        key_labels: Tensor,
        key_valid: Tensor | None,
        attach: Tensor,
        ring: _Ring,
    ) -> tuple[Tensor, Tensor]:
        values = torch.cat([v, torch.ones_like(key_half).unsqueeze(1), key_half.unsqueeze(1)], dim=1)
        total = u.new_zeros(u.shape[0], values.shape[1])
        for _, (block, block_labels, *valid) in ring.visits(values, key_labels, *ring.valid(key_valid, key_half)):
            total += class_sums(block, block_labels, valid[0] if valid else None, labels)
        sums, count, halves = total[:, :-2], total[:, -2], total[:, -1]
        ctx.save_for_backward(labels, u, sums - count.unsqueeze(1) * u, v, key_labels, key_valid)
        ctx.ring = ring
        count = count.clone()
        ctx.mark_non_differentiable(count)
        return (u * sums).sum(1) - count * half - halves, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            saved = ctx.saved_tensors  # once: checkpointing hands them out a single time
            du, dv = _class_gradients(ctx.ring, saved, grad)
        _, u, _, v, _, _ = saved
        dv = None if dv is None else once(dv, grad, u, v)
        return once(du, grad, u, v), None, None, dv, None, None, None, None, None


def _class_gradients(ring: _Ring, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradient of u is ``sum_j (v_j - u_i)``; that of v needs the sums of u alone, so no v travels."""
    labels, u, towards, v, key_labels, key_valid = saved
    grad = grad.unsqueeze(1)
    arriving = dv = None
    if ring.keys_differ:
        values = torch.cat([grad * u, grad], dim=1)
        for step, (block_labels,) in ring.visits(key_labels):
            arriving = _pass_on(ring, step, arriving, class_sums(values, labels, None, block_labels))
        assert arriving is not None
        (home,) = arriving.wait()
        dv = home[:, :-1] - home[:, -1:] * v
        dv = dv if key_valid is None else torch.where(key_valid.unsqueeze(1), dv, 0.0)
    return grad * towards, dv
