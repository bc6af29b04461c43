"""Token states of a frozen encoder, computed once without padding and kept on disk."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from examples.pipeline.errors import DataError
from examples.pipeline.files import atomic_folder

from .batches import TextSet
from .encoders import TextEncoder
from .posts import Post

__all__ = ["token_states"]

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}  # on a CPU what fits its caches is quicker
SECONDS_BETWEEN_LINES = 20.0


def token_states(
    encoder: TextEncoder, posts: Sequence[Post], folder: Path | str | None = None, *, device: str | None = None
) -> list[np.ndarray]:
    """Give the last hidden states of posts: one float16 array ``(T, H)`` each, special tokens included.

    The cache is a folder per (fingerprint of the encoder, set of texts), so that the order of posts does not matter and
    all folds of a corpus share one. It holds ``states.npy`` (all tokens, H), which is mapped and not read, and
    ``lengths.npy``; it is there whole or not at all. A damaged one is made again.

    Args:
        encoder: The encoder; its model is loaded only where states are missing.
        posts: The posts; a text that occurs twice is computed once.
        folder: Folder of the caches; ``None`` = keep the states in memory.
        device: Where to compute; ``None`` = the first GPU, or the CPU.

    Raises:
        DataError: If states are not finite in float16.
    """
    if not posts:
        return []
    texts = sorted({post.text for post in posts})
    place = {text: i for i, text in enumerate(texts)}
    if folder is None:
        flat, lengths = _in_memory(encoder, texts, device)
    else:
        path = Path(folder) / f"{encoder.fingerprint}-{_hash(texts)}"
        found = _read(path, len(texts), encoder.hidden_features)
        if found is None:
            _write(path, encoder, texts, device)
            found = _read(path, len(texts), encoder.hidden_features)
        if found is None:
            raise DataError(f"{path}: expected the states just written, could not read them")
        flat, lengths = found
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return [flat[starts[i] : starts[i + 1]] for i in (place[post.text] for post in posts)]


def batches_by_length(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Cut rows, longest first, into batches of at most ``tokens`` tokens with padding (one row may have more)."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(tokens // max(int(lengths[order[start]]), 1), 1)
        batches.append(order[start : start + size])
        start += size
    return batches


def _compute(encoder: TextEncoder, rows: TextSet, flat: np.ndarray, device: str | None) -> None:
    """Fill ``flat``, all tokens one text behind the other, with the states of ``rows``."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, training = encoder.model, encoder.model.training
    home = next(model.parameters()).device
    model.to(place).eval()
    try:
        _fill(encoder, rows, flat, place)
    finally:
        model.to(home).train(training)


def _fill(encoder: TextEncoder, rows: TextSet, flat: np.ndarray, place: torch.device) -> None:
    starts, done, said = np.cumsum(rows.lengths) - rows.lengths, 0, time.monotonic()
    for index in batches_by_length(rows.lengths, TOKENS_PER_BATCH.get(place.type, TOKENS_PER_BATCH["cpu"])):
        batch = rows[index]
        with torch.inference_mode():
            output = encoder.model(input_ids=batch["inputs"].to(place), attention_mask=batch["mask"].to(place).long())
            states = output.last_hidden_state.half().cpu().numpy()
        for one, start, length in zip(states, starts[index], rows.lengths[index], strict=True):
            flat[start : start + length] = one[:length]
            if not np.isfinite(one[:length]).all():
                raise DataError(f"encoder {encoder.name}: expected states that are finite in float16")
        done += len(index)
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            print(f"token states of {encoder.name}: {done} of {len(rows)} texts", file=sys.stderr, flush=True)
            said = time.monotonic()


def _encode(encoder: TextEncoder, texts: list[str]) -> tuple[TextSet, tuple[int, int]]:
    """Return the texts as a set, and the shape of all their states."""
    posts = [Post("", text, -100) for text in texts]
    rows = TextSet(posts, encoder.encode(posts), None, encoder.pad_id)
    return rows, (int(rows.lengths.sum()), encoder.hidden_features)


def _in_memory(encoder: TextEncoder, texts: list[str], device: str | None) -> tuple[np.ndarray, np.ndarray]:
    rows, shape = _encode(encoder, texts)
    flat = np.empty(shape, dtype=np.float16)
    _compute(encoder, rows, flat, device)
    return flat, rows.lengths


def _write(path: Path, encoder: TextEncoder, texts: list[str], device: str | None) -> None:
    rows, shape = _encode(encoder, texts)
    with atomic_folder(path) as scratch:
        np.save(scratch / "lengths.npy", rows.lengths)
        flat = np.lib.format.open_memmap(scratch / "states.npy", mode="w+", dtype=np.float16, shape=shape)
        _compute(encoder, rows, flat, device)
        flat.flush()


def _read(path: Path, rows: int, features: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Map a cache, or give None where there is none or it is not whole."""
    try:
        lengths = np.load(path / "lengths.npy", allow_pickle=False)
        flat = np.load(path / "states.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = lengths.shape == (rows,) and flat.dtype == np.float16 and flat.shape == (lengths.sum(), features)
    # A plain array over the same map: slices of a memmap are slow to make.
    return (np.asarray(flat), lengths) if whole else None


def _hash(texts: list[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode(errors="surrogatepass"))
        found.update(b"\xff")  # no byte of UTF-8
    return found.hexdigest()[:16]
