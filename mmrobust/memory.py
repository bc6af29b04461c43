"""Embeddings of earlier batches, kept as additional keys for contrastive losses."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ._checks import (
    as_mask,
    check_floating,
    check_integers,
    check_option,
    check_range,
    check_shape,
    check_size,
)
from ._layouts import check_ranks, checked_together, is_active
from ._memory import all_ranks, ring_slots, unit_rows
from ._precision import no_autocast, widen

_NO_LABEL = -100
_NOBODY = -1
_DTYPES = ("float32", "float64", "bfloat16", "float16")


class MemoryKeys(NamedTuple):
    """What a bank holds: unit ``features (S, D)``, ``labels (S,)``, and ``present (S,)``, True = there is a key."""

    features: Tensor
    labels: Tensor
    present: Tensor


class MemoryBank(nn.Module):
    r"""Keep embeddings of earlier batches, as keys that a contrastive loss compares with.

    Rows are stored detached and at unit length. All state is in buffers, of a size that never changes: a checkpoint
    resumes exactly, and reading or writing waits for no device. There are two kinds:

    - ``"queue"``: the last S rows, first in first out. With ``num_classes`` one queue of S / C rows for each class, so
      that a frequent class cannot drive out the rare ones; more rows of a class than that keep the last. (Even shares,
      because they need no tuning and no statistics, and because slot // (S / C) then is the class.)
    - ``"instance"``: a slot for every sample of the training set. A sample that comes again is averaged in,
      :math:`z \leftarrow (m z + (1 - m) x) / |m z + (1 - m) x|` with momentum m; the first time :math:`z \leftarrow x`.
      If a sample is in a batch more than once, its last row counts and the others are as if absent.

    **Staleness.** The keys come from an encoder that has moved on since. A queue of S rows spans S / B batches, an
    instance bank a whole epoch, which is the larger difference. Where the encoder learns fast (the first epochs, a high
    learning rate) old keys mislead: hand none out before it has settled (``warmup_updates``), keep the queue short, or
    fill it from a slow copy of the encoder, as MoCo does. Momentum smooths a sample's noise, and makes its slot older
    still. In bfloat16 small steps are lost: a slot with momentum above 0.99 hardly follows its sample.

    **Several processes.** Each has its own bank, unless all of them call :meth:`update` with ``gather=True``; then all
    hold the same. DistributedDataParallel overwrites the buffers of what it wraps with those of rank 0 at every
    forward pass: keep a bank that differs between ranks outside of it.

    Args:
        size: Number of slots (S).
        features: Features of an embedding (D).
        kind: ``"queue"`` or ``"instance"``.
        momentum: Weight m of what a slot holds, in [0, 1); for ``"instance"`` only.
        num_classes: Classes C that have a queue each; S has to be a multiple of it. For ``"queue"`` only.
        warmup_updates: Updates (of whatever size) before any key is handed out.
        dtype: What embeddings are stored in, as a torch dtype or its name; ``"bfloat16"`` halves the memory.
        validate: Check the values of labels and indices, which waits for the device.

    Raises:
        TypeError: If a size is no integer or the momentum no number.
        ValueError: If an option is unknown, or a number out of range or for the other kind.

    Source: instance slots of Wu et al., arXiv:1805.01978, section 3.2; the queue of He et al., arXiv:1911.05722 (MoCo),
    with labels as in Wang et al., arXiv:1912.06798 (XBM), whose warm-up this is.

    Example:
        >>> bank = MemoryBank(3, 2)
        >>> bank.update(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([1, 0]))
        >>> keys = bank.keys()
        >>> keys.features[keys.present]
        tensor([[1., 0.],
                [0., 1.]])
        >>> bank.update(torch.tensor([[0.0, -1.0], [-3.0, 0.0]]), torch.tensor([2, 2]))
        >>> bank.keys().labels  # the oldest has gone
        tensor([2, 0, 2])
    """

    features: Tensor
    labels: Tensor
    filled: Tensor
    updates: Tensor
    pointer: Tensor | None
    index: Tensor | None

    def __init__(
        self,
        size: int,
        features: int,
        *,
        kind: Literal["queue", "instance"] = "queue",
        momentum: float = 0.0,
        num_classes: int | None = None,
        warmup_updates: int = 0,
        dtype: str | torch.dtype = "float32",
        validate: bool = False,
    ) -> None:
        super().__init__()
        _check_options(size, features, kind, momentum, num_classes, warmup_updates)
        name = str(dtype).removeprefix("torch.")
        check_option("MemoryBank", "dtype", name, _DTYPES)
        self.size, self.kind, self.momentum, self.num_classes = size, kind, momentum, num_classes
        self.warmup_updates, self.validate = warmup_updates, validate
        # Whatever the kind, slots form rings of equal depth: one, one for each class, or one for each sample.
        queues = num_classes or 1
        self.depth = size // queues if kind == "queue" else 1
        self.register_buffer("features", torch.zeros(size, features, dtype=getattr(torch, name)))
        self.register_buffer("labels", torch.full((size,), _NO_LABEL))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("pointer", torch.zeros(queues, dtype=torch.long) if kind == "queue" else None)
        self.register_buffer("index", torch.full((size,), _NOBODY) if kind == "queue" else None)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        options = f"{self.size}, {self.features.shape[1]}, kind={self.kind!r}"
        options += "" if self.kind == "queue" else f", momentum={self.momentum}"
        options += "" if self.num_classes is None else f", num_classes={self.num_classes}"
        return options + (f", warmup_updates={self.warmup_updates}" if self.warmup_updates else "")

    def reset(self) -> None:
        """Empty the bank; the warm-up begins again."""
        self.features.zero_()
        self.labels.fill_(_NO_LABEL)
        self.filled.zero_()
        self.updates.zero_()
        if self.pointer is not None and self.index is not None:
            self.pointer.zero_()
            self.index.fill_(_NOBODY)

    def keys(self) -> MemoryKeys:
        """Return features ``(S, D)``, labels ``(S,)`` and which of them are keys ``(S,)``, in the order of the slots.

        They fit ``sup_con_loss(..., keys=features, key_labels=labels, key_present=present)``. Features and labels are
        the memory of the bank and no copy: update it after the backward pass (or autograd may complain), and clone what
        is to stay. Rows without a label have -100, which ``ignore_index=-100`` leaves out.
        """
        return MemoryKeys(self.features, self.labels, self.filled & (self.updates >= self.warmup_updates))

    def own_slots(self, index: Tensor) -> Tensor:
        """Tell which slots hold a sample itself: bool ``(B, S)`` for the samples ``index (B,)``, True = its own.

        It keeps a sample from being compared with its own former embedding: ``key_excluded`` of SupCon and
        ``negatives_excluded`` of InfoNCE and NT-Xent take it. A queue knows only the samples whose ``index`` was given
        to :meth:`update`; negative numbers are nobody's.

        Raises:
            TypeError: If ``index`` is not integer.
            ValueError: If it is no vector.
        """
        check_integers("MemoryBank", "index", index)
        check_shape("MemoryBank", "index", index, B=None)
        held = torch.arange(self.size, device=self.features.device) if self.index is None else self.index
        sample = index.long().unsqueeze(1)
        return (sample == held) & (sample >= 0) & self.filled

    def update(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        index: Tensor | None = None,
        present: Tensor | None = None,
        gather: bool = False,
    ) -> None:
        """Store a batch.

        Rows that are absent are never read and never stored. Nor are rows with NaN or Inf (their own loss has shown
        them; here they would spoil the next ones), rows whose index lies outside of an instance bank, and rows whose
        label has no queue of its own where classes have.

        Args:
            features: Floating ``(B, D)``; need no normalisation. Rows without a direction are stored as zeros.
            labels: Integer ``(B,)``. ``None`` = none: -100 in a queue, what they were in an instance bank.
            index: Integer ``(B,)``, number of each sample in the training set. An instance bank needs it; a queue
                remembers it for :meth:`own_slots`.
            present: Bool or integer 0/1 ``(B,)``, True = present.
            gather: Store the rows of all ranks of the default process group, rank by rank. All of them must call, with
                the same arguments given; batches may differ in size, and be empty (which is why this waits for the
                device).

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong, the batch (of all processes) is larger than the bank, or what the kind of
                bank needs is missing; with ``validate`` also if an index or a label is out of range.
        """
        over_ranks = gather and is_active()

        def check() -> list[Tensor]:
            return self._check(features, labels, index, present)

        keep, *known = checked_together(check, features) if over_ranks else check()
        with torch.no_grad(), no_autocast(features):
            unit, finite = unit_rows(features)
            unit, facts = unit.to(self.features.dtype), torch.stack([(keep & finite).long(), *known], dim=1)
            if over_ranks:
                given = {"labels": labels is not None, "index": index is not None}
                check_ranks("MemoryBank", "features", features, differentiable=False, same=given)
                unit, facts = all_ranks(unit, facts)
            if len(unit) > self.size:
                whose = " of all ranks together" if over_ranks else ""
                raise ValueError(
                    f"MemoryBank: expected a batch{whose} of at most size = {self.size} rows, got {len(unit)}"
                )
            if self.validate:
                self._check_values(facts)
            self.updates.add_(1)
            if len(unit):
                self._store(unit, facts, labels is not None)

    def _store(self, unit: Tensor, facts: Tensor, labelled: bool) -> None:
        keep, labels, index = facts.unbind(1)
        ring = index if self.pointer is None else torch.zeros_like(labels) if self.num_classes is None else labels
        rings = self.size // self.depth
        belongs = (keep > 0) & (ring >= 0) & (ring < rings)
        slot, stays = ring_slots(torch.where(belongs, ring, rings), self.depth, self.pointer)
        stays = stays & belongs
        # Every row writes, lest the shapes depend on values: one that does not stay repeats one that does, or else
        # puts slot 0 where it is. Equal values make the order of the writes irrelevant.
        some = stays.any()
        row = torch.where(stays, torch.arange(len(stays), device=stays.device), stays.to(torch.uint8).argmax())
        slot, unit = torch.where(stays, slot, 0)[row], unit[row]
        if self.momentum:
            old, new = widen(self.features[slot]), widen(unit)
            mixed, _ = unit_rows(self.momentum * old + (1.0 - self.momentum) * new)
            unit = torch.where(self.filled[slot].unsqueeze(1), mixed.to(unit.dtype), unit)
        writes = [(self.features, unit), (self.filled, torch.ones_like(stays))]
        if labelled or self.kind == "queue":
            writes.append((self.labels, labels[row]))
        if self.index is not None:
            writes.append((self.index, index[row]))
        for buffer, values in writes:
            buffer.index_copy_(0, slot, torch.where(some, values, buffer[0]))

    def _check(
        self, features: Tensor, labels: Tensor | None, index: Tensor | None, present: Tensor | None
    ) -> list[Tensor]:
        """Check the arguments of an update and return presence, labels and indices, none of them None."""
        check_floating("MemoryBank", "features", features)
        check_shape("MemoryBank", "features", features, B=None, D=self.features.shape[1])
        batch = features.shape[0]
        keep = as_mask("MemoryBank", "present", present, B=batch)
        if index is None and self.kind == "instance":
            raise ValueError("MemoryBank: expected index, the slots of the samples, for kind='instance', got None")
        if labels is None and self.num_classes is not None:
            raise ValueError("MemoryBank: expected labels, for the queues of the classes, got None")
        whole = [features.new_ones(batch, dtype=torch.bool) if keep is None else keep]
        for name, given, gap in (("labels", labels, _NO_LABEL), ("index", index, _NOBODY)):
            if given is not None:
                check_integers("MemoryBank", name, given)
                check_shape("MemoryBank", name, given, B=batch)
            whole.append(features.new_full((batch,), gap, dtype=torch.long) if given is None else given.long())
        return whole

    def _check_values(self, facts: Tensor) -> None:
        _, labels, index = facts[facts[:, 0] > 0].unbind(1)
        for name, values, count, gap in (
            ("index", index, self.size if self.kind == "instance" else None, None),
            ("labels", labels, self.num_classes, _NO_LABEL),
        ):
            if count is not None:
                wrong = values[((values < 0) | (values >= count)) & (values != gap)]
                if wrong.numel():
                    also = "" if gap is None else f" or {gap}"
                    raise ValueError(f"MemoryBank: expected {name} in [0, {count - 1}]{also}, got {int(wrong[0])}")


def _check_options(
    size: int, features: int, kind: str, momentum: float, num_classes: int | None, warmup_updates: int
) -> None:
    check_size("MemoryBank", "size", size)
    check_size("MemoryBank", "features", features)
    check_option("MemoryBank", "kind", kind, ("queue", "instance"))
    check_range("MemoryBank", "momentum", momentum, 0.0, 1.0, high_open=True)
    check_size("MemoryBank", "warmup_updates", warmup_updates, 0)
    if momentum and kind == "queue":
        raise ValueError(f"MemoryBank: expected momentum = 0 for kind='queue', got {momentum}")
    if num_classes is not None:
        check_size("MemoryBank", "num_classes", num_classes)
        if kind == "instance" or size % num_classes:
            room = f"a divisor of size = {size}" if kind == "queue" else "None for kind='instance'"
            raise ValueError(f"MemoryBank: expected num_classes to be {room}, got {num_classes}")
