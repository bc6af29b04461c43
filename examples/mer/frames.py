"""From per-sample arrays of any length to tensors: one vector, aligned frames or frames of own length.

A frame that is all zeros was written for something that was not there (no face found, empty text). It is kept in
place, so that timing stays right, but counts as absent: no mean includes it and its mask is False.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from examples.pipeline.errors import DataError, check_option
from mmrobust.presence import presence_from_zeros

FRAMES = ("utterance", "aligned", "unaligned")
Rows = Sequence["np.ndarray | None"]  # one (D,) or (T, D) array per sample, None = absent


def assemble(
    samples: Mapping[str, Rows], frames: str, align_to: str | None = None, max_frames: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Build features, masks and presence of all modalities.

    Args:
        samples: Modality name -> one array per sample. A modality that has only ``(D,)`` arrays stays ``(N, D)``.
        frames: ``"utterance"``: mean over the real frames; ``"unaligned"``: own lengths, padded at the end;
            ``"aligned"``: everything average-pooled in time to the length that ``align_to`` has in this sample.
        align_to: Modality with frames that sets the length in ``"aligned"``. A sample without it is aligned to the
            shortest modality it has.
        max_frames: Longer sequences are average-pooled to this length; ``None`` = no limit.

    Returns:
        ``features`` (float32), ``masks`` (of modalities with frames), ``present (N, M)``.
    """
    check_option("frames", frames, FRAMES)
    if frames == "utterance":
        sequences: list[str] = []
    else:
        sequences = [name for name, rows in samples.items() if any(x is not None and x.ndim == 2 for x in rows)]
    if frames == "aligned":
        check_option("align_to", align_to, sequences)
    lengths = _lengths({name: samples[name] for name in sequences}, align_to if frames == "aligned" else None)
    features, masks, present = {}, {}, []
    for name, rows in samples.items():
        if name in sequences:
            wanted = lengths[name] if max_frames is None else np.minimum(lengths[name], max_frames)
            features[name], masks[name] = _pad(rows, wanted)
            present.append(masks[name].any(1))
        else:
            features[name], here = _means(rows)
            present.append(here)
    return features, masks, torch.stack(present, 1)


def pool(x: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Average ``x (T, D)`` over ``length`` windows that cover it evenly; absent frames are left out of each mean.

    Returns:
        Means ``(length, D)`` and a bool mask ``(length,)``, False where a window holds no real frame.
    """
    real = x.any(1)
    # The windows of adaptive average pooling: never empty, overlapping where length does not divide T.
    edges = np.arange(length + 1) * len(x)
    start, stop = edges[:-1] // length, -(-edges[1:] // length)
    total = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0, dtype=np.float64)])
    count = np.concatenate([[0], np.cumsum(real)])
    number = (count[stop] - count[start])[:, None]
    mean = np.where(number > 0, (total[stop] - total[start]) / np.maximum(number, 1), 0.0)
    return mean.astype(np.float32), number[:, 0] > 0


def _as_frames(x: np.ndarray | None) -> np.ndarray | None:
    """Give ``(T, D)`` or None where there is nothing: no array, no frame, or only zeros."""
    if x is None or not x.any():
        return None
    return x[None] if x.ndim == 1 else x


def _lengths(samples: Mapping[str, Rows], align_to: str | None) -> dict[str, np.ndarray]:
    """Length of every sample in every modality with frames, after alignment."""
    own = {name: np.array([0 if x is None else len(x) for x in map(_as_frames, samples[name])]) for name in samples}
    if align_to is None:
        return own
    shortest = np.min([np.where(n > 0, n, np.iinfo(int).max) for n in own.values()], axis=0)
    common = np.where(own[align_to] > 0, own[align_to], shortest)
    return {name: np.where(n > 0, common, 0) for name, n in own.items()}


def _pad(rows: Rows, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
    size, longest = _size(rows), max(int(lengths.max(initial=0)), 1)
    x = torch.zeros(len(rows), longest, size)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(map(_as_frames, rows)):
        if row is None:
            continue
        length = int(lengths[i])
        values, real = (row, row.any(1)) if length == len(row) else pool(row, length)
        x[i, :length] = torch.from_numpy(np.asarray(values, dtype=np.float32))
        mask[i, :length] = torch.from_numpy(real)
    return x, mask


def _means(rows: Rows) -> tuple[Tensor, Tensor]:
    blank = np.zeros(_size(rows), dtype=np.float32)
    means = [blank if x is None else x if x.ndim == 1 else pool(x, 1)[0][0] for x in rows]
    x = torch.from_numpy(np.stack(means).astype(np.float32, copy=False))
    return x, presence_from_zeros(x)


def _size(rows: Rows) -> int:
    for row in rows:
        if row is not None:
            return int(row.shape[-1])
    raise DataError("expected at least one sample that has the modality, got none")
