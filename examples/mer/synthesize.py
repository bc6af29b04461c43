"""Write a made-up set in exactly the layout and dimensions of MER2023, from a documented latent-factor model.

The real set needs a signed licence; this one lets every command run without it. Its difficulty is set so that the
modalities need each other: scores on it say whether the pipeline works, nothing about emotion recognition.

One sample has the class y and these factors, all standard normal around their class means:

* shared ``s``: 6 factors whose class means are the corners of a regular simplex, and one that follows the valence.
  Every modality sees the same ``s`` plus view noise of its own.
* own ``o_m``: 6 factors of modality m alone, on a simplex of their own with corners pulled in for the classes that
  this modality tells apart badly (``SEPARATION``).
* nuisance ``n_m``: factors without any class (speaker, topic, scene), which carry most of the variance.

Every modality of every sample has a quality ``q``, log-normal: it scales the view noise and the noise of the
features, so how much a modality can be trusted changes from sample to sample and can be seen in its features::

    code_m    = [s + q * view_m * noise,  o_m + q * view_m * noise,  n_m]
    feature_m = offset_m + scale_m * (A_m code_m + q * noise)

``A_m`` is a fixed random matrix, ``offset_m`` and ``scale_m`` differ from column to column as in summed layers.
``valence`` = class mean + shared valence factor + what raters disagree about, clipped to [-5, 5].

Splits, scaled: train 3373, test1 411 (alike), test2 412 (*noise, not absence*: audio code at an SNR of 5 to 10 dB,
video code blurred at rate 1, 2 or 4), test3 834 (more sad samples, valence -10 = none). In every split a few samples
lack a modality, as all-zero arrays: no face found, empty text.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.pipeline.errors import DataError
from examples.pipeline.files import atomic_folder

from .layout import EMOTIONS, NO_VALENCE

SPLITS = {"train": 3373, "test1": 411, "test2": 412, "test3": 834}
PRIOR = np.array([871, 822, 689, 383, 462, 146]) / 3373  # train; order of EMOTIONS
SAD_IN_TEST3 = 0.31
VALENCE = np.array([-0.1, -2.4, 2.0, -2.4, -1.4, -0.2])  # mean of each class
SHARED, OWN, NUISANCE = 7, 6, 24
SHARED_SPREAD = 1.8  # distance of the shared class means from their centre
NUISANCE_SPREAD = 2.0
QUALITY_SPREAD = 0.5  # standard deviation of log q
RATER_NOISE = 0.4
MARKER = "synthetic.json"


class Modality(NamedTuple):
    """What one made-up modality is like."""

    feature: str
    size: int
    view: float  # standard deviation of the view noise
    separation: tuple[float, ...]  # distance of the own class means from their centre, by class
    missing: float  # share of samples without it
    frames: tuple[int, int]  # shortest and longest sequence


MODALITIES = {
    "audio": Modality("chinese-hubert-large", 1024, 1.2, (1.2, 2.4, 1.5, 1.5, 1.1, 2.1), 0.01, (12, 40)),
    "text": Modality("Baichuan-13B-Base", 5120, 1.4, (1.5, 1.2, 1.5, 1.5, 2.2, 1.1), 0.03, (4, 16)),
    "video": Modality("clip-vit-large-patch14", 768, 1.35, (1.1, 1.2, 2.5, 1.9, 1.0, 1.8), 0.04, (8, 24)),
}


class World(NamedTuple):
    """What all samples of a seed share, whatever the scale."""

    shared: np.ndarray  # (C, SHARED) class means
    own: dict[str, np.ndarray]  # (C, OWN)
    mixing: dict[str, np.ndarray]  # (code, D)
    offset: dict[str, np.ndarray]  # (D,)
    scale: dict[str, np.ndarray]  # (D,)


def synthesize(
    out: str | Path, *, scale: float = 0.15, seed: int = 0, frames: bool = False, overwrite: bool = False
) -> Path:
    """Write a synthetic set to the folder ``out``: the whole set, or nothing.

    Args:
        out: The folder to make.
        scale: Split sizes as a share of the real ones (5030 samples), in (0, 1].
        seed: Same seed and scale, same files.
        frames: Write frames ``(T, D)`` of varying length in place of utterance vectors ``(D,)``; this takes about
            fifteen times the room.
        overwrite: Replace ``out`` if an earlier call made it.

    Returns:
        The folder. It also holds ``synthetic.json`` with the arguments.

    Raises:
        DataError: If ``out`` is there already (and not ours, with ``overwrite``) or an argument is out of range.
    """
    out = Path(out)
    if not 0.01 <= scale <= 1:
        raise DataError(f"scale: expected 0.01 to 1, got {scale}")
    if seed < 0:
        raise DataError(f"seed: expected 0 or more, got {seed}")
    if out.exists() and not (overwrite and (out / MARKER).is_file()):
        wanted = f"a set made by synthesize (with {MARKER})" if overwrite else "a new folder, or overwrite"
        raise DataError(f"{out}: is there already; expected {wanted}")
    with atomic_folder(out) as folder:
        _write(folder, make_world(seed), scale, seed, frames)
    return out


def feature_names(frames: bool = False) -> dict[str, str]:
    """Name the feature folder of every modality."""
    return {name: f"{m.feature}-{'FRA' if frames else 'UTT'}" for name, m in MODALITIES.items()}


def _write(folder: Path, world: World, scale: float, seed: int, frames: bool) -> None:
    names = feature_names(frames)
    for feature in names.values():
        (folder / "features" / feature).mkdir(parents=True)
    table = [("name", "split", "emotion", "valence")]
    for number, (split, full_size) in enumerate(SPLITS.items()):
        rng = np.random.default_rng([seed, 1 + number])
        label = _labels(rng, split, max(round(scale * full_size), len(EMOTIONS)))
        codes, quality, valence = draw_codes(rng, world, label, split)
        samples = [f"sample_{len(table) - 1 + i:08d}" for i in range(len(label))]
        for name, feature in names.items():
            for sample, x in zip(samples, _features(rng, world, name, codes[name], quality[name], frames), strict=True):
                np.save(folder / "features" / feature / f"{sample}.npy", x)
        for sample, y, v in zip(samples, label, valence, strict=True):
            table.append((sample, split, EMOTIONS[y], f"{v:g}"))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    about = {"made_by": "examples.mer.synthesize", "scale": scale, "seed": seed, "frames": frames}
    (folder / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def make_world(seed: int) -> World:
    """Draw class means, mixing matrices, offsets and scales."""
    rng = np.random.default_rng([seed, 0])
    classes = len(EMOTIONS)
    shared = np.zeros((classes, SHARED))
    shared[:, : SHARED - 1] = SHARED_SPREAD * _simplex(rng, SHARED - 1)
    own, mixing, offset, scale = {}, {}, {}, {}
    for name, m in MODALITIES.items():
        own[name] = np.array(m.separation)[:, None] * _simplex(rng, OWN)
        mixing[name] = rng.standard_normal((SHARED + OWN + NUISANCE, m.size)) / np.sqrt(SHARED + OWN)
        offset[name] = rng.standard_normal(m.size)
        scale[name] = np.exp(0.5 * rng.standard_normal(m.size))
    return World(shared, own, mixing, offset, scale)


def _simplex(rng: np.random.Generator, size: int) -> np.ndarray:
    """Corners of a regular simplex at distance 1 from its centre, one per class, randomly turned in ``size`` axes."""
    corners = np.eye(len(EMOTIONS)) - 1 / len(EMOTIONS)
    corners /= np.linalg.norm(corners[0])
    turn, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return np.asarray(corners @ turn)


def _labels(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    """Class of each sample: exact shares (largest remainder), at least one of every class, random order."""
    prior = PRIOR.copy()
    if split == "test3":
        sad = EMOTIONS.index("sad")
        prior *= (1 - SAD_IN_TEST3) / (1 - prior[sad])
        prior[sad] = SAD_IN_TEST3
    wanted = prior * (size - len(prior))
    count = np.floor(wanted).astype(int)
    count[np.argsort(count - wanted)[: size - len(prior) - count.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(len(prior)), count + 1))


def draw_codes(
    rng: np.random.Generator, world: World, label: np.ndarray, split: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Draw the code of every modality ``(N, code)``, its quality ``(N, 1)`` (0 = absent), and the valence ``(N,)``."""
    n = len(label)
    shared = world.shared[label] + rng.standard_normal((n, SHARED))
    valence = VALENCE[label] + 0.5 * shared[:, -1] + RATER_NOISE * rng.standard_normal(n)
    valence = np.clip(np.round(valence, 2), -5, 5) if split != "test3" else np.full(n, NO_VALENCE)
    codes, quality = {}, {}
    for name, m in MODALITIES.items():
        q = np.exp(QUALITY_SPREAD * rng.standard_normal((n, 1)))
        signal = np.concatenate([shared, world.own[name][label] + rng.standard_normal((n, OWN))], axis=1)
        signal = signal + q * m.view * rng.standard_normal(signal.shape)
        nuisance = NUISANCE_SPREAD * rng.standard_normal((n, NUISANCE))
        codes[name], quality[name] = np.concatenate([signal, nuisance], axis=1), q
    if split == "test2":
        codes["audio"] = _with_noise(rng, codes["audio"])
        codes["video"] = _blurred(rng, codes["video"])
    _take_away(rng, quality)
    return codes, quality, valence


def _with_noise(rng: np.random.Generator, code: np.ndarray) -> np.ndarray:
    """Add noise at an SNR of 5 to 10 dB, drawn per sample."""
    power = np.square(code).mean(axis=1, keepdims=True) / 10 ** (rng.uniform(5, 10, (len(code), 1)) / 10)
    return np.asarray(code + np.sqrt(power) * rng.standard_normal(code.shape))


def _blurred(rng: np.random.Generator, code: np.ndarray) -> np.ndarray:
    """Keep 1 / rate of what is the video's own (the detail) and 1 / sqrt(rate) of the rest, rate in {1, 2, 4}."""
    rate = rng.choice([1.0, 2.0, 4.0], (len(code), 1))
    keep = np.repeat(rate**-0.5, code.shape[1], axis=1)
    keep[:, SHARED : SHARED + OWN] = 1 / rate
    return np.asarray(code * keep)


def _take_away(rng: np.random.Generator, quality: dict[str, np.ndarray]) -> None:
    """Set the quality of absent modalities to 0 in place, never of all in one sample."""
    for name, m in MODALITIES.items():
        others = np.concatenate([q > 0 for key, q in quality.items() if key != name], axis=1)
        gone = (rng.random(others.shape[0]) < m.missing) & others.all(axis=1)
        quality[name][gone] = 0.0


def _features(
    rng: np.random.Generator, world: World, name: str, code: np.ndarray, quality: np.ndarray, frames: bool
) -> Iterator[np.ndarray]:
    """Make the float32 features of one modality, sample by sample."""
    m = MODALITIES[name]
    for row, q in zip(code, quality[:, 0], strict=True):
        length = int(rng.integers(m.frames[0], m.frames[1] + 1)) if frames else 1
        # Within a sample the code wanders around its mean, and so do the features around theirs.
        wander = rng.standard_normal((length, len(row))) if frames else np.zeros((1, len(row)))
        noise = q * rng.standard_normal((length, m.size), dtype=np.float32)
        x = world.offset[name] + world.scale[name] * ((row + wander - wander.mean(0)) @ world.mixing[name] + noise)
        x = (x if q > 0 else np.zeros((1, m.size))).astype(np.float32)
        yield x if frames else x[0]
