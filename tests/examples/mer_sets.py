"""Small sets in both formats for the tests of the emotion pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.mer.data import MultimodalData, MultimodalSet
from examples.mer.layout import EMOTIONS

SIZES = {"audio": 4, "text": 3, "video": 2}
Rng = np.random.Generator


def write_layout(root: Path, rng: Rng, *, frames: bool = False, train: int = 30, test: int = 6) -> list[str]:
    """Write a small complete set; sample i of the train part has class i mod 6."""
    lines, names = ["name,split,emotion,valence"], []
    for split, count in {"train": train, "test1": test, "test3": test}.items():
        for i in range(count):
            names.append(f"{split}_{i}")
            lines.append(f"{names[-1]},{split},{EMOTIONS[i % 6]},{-10 if split == 'test3' else i / 8}")
    for feature, size in SIZES.items():
        (root / "features" / feature).mkdir(parents=True)
        for name in names:
            shape = (int(rng.integers(2, 6)), size) if frames else (size,)
            np.save(root / "features" / feature / f"{name}.npy", 5 + 3 * rng.standard_normal(shape).astype(np.float32))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return names


def layout_data(root: Path, **options: Any) -> MultimodalData:
    data = MultimodalData(str(root), list(SIZES), **options)
    data.setup()
    return data


def write_npz(path: Path, rng: Rng, rows: int = 60, **arrays: np.ndarray) -> Path:
    content = {
        "a": rng.standard_normal((rows, 3)),
        "b": rng.standard_normal((rows, 2)).astype(np.float16),
        "label": np.arange(rows) % 3,
        "subject": np.arange(rows) // 5,
        **arrays,
    }
    np.savez(path, **content)
    return path


def npz_data(path: Path, **options: Any) -> MultimodalData:
    data = MultimodalData(str(path), **{"modalities": ["a", "b"], "format": "npz", **options})
    data.setup()
    return data


def toy_set(rows: int) -> MultimodalSet:
    present = torch.ones(rows, 1, dtype=torch.bool)
    return MultimodalSet(
        [str(i) for i in range(rows)], {"a": torch.ones(rows, 1)}, {}, present, torch.zeros(rows).long()
    )
