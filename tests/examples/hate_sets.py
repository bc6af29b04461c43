"""Tiny corpora of neutral words, written in every format that the readers know."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PARTS = ("train", "val", "test")
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fern", "grove", "harbour", "island", "juniper", "kelp", "lagoon"]
SIZES = {"train": 24, "val": 9, "test": 12}


def text(i: int, length: int | None = None) -> str:
    """Make the i-th text: a few words, the first of which tells its class (i mod 3)."""
    length = 3 + i % 5 if length is None else length
    return " ".join([WORDS[i % 3], *(WORDS[(7 * i + 5 * k) % len(WORDS)] for k in range(length - 1))])


def write(path: Path, content: str) -> Path:
    """Write UTF-8 text, gzipped where the name says so, exactly as given."""
    raw = content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def entry(i: int, part: str = "test") -> dict[str, Any]:
    """Make a HateXplain post as JSON lines hold it; in class 1, "normal", nothing is marked."""
    tokens = text(i).split()
    label = i % 3
    union = [int(label != 1 and k in (0, 2)) for k in range(len(tokens))]
    post = {
        "id": f"{part}_{i}",
        "label": label,
        "tokens": tokens,
        "annotator_labels": [label] * 3,
        "rationale_union": union,
        "rationale_source": "annotators",
    }
    return post if part == "train" else post | {"targets": [["Lakes", "None"], ["Lakes"], ["Hills"]]}


def json_lines(entries: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in entries)


def write_hatexplain(root: Path, suffix: str = ".jsonl", **sizes: int) -> Path:
    """Write 24 training, 9 validation and 12 test posts of three classes as JSON lines."""
    for part, size in (SIZES | sizes).items():
        write(root / f"{part}{suffix}", json_lines([entry(i, part) for i in range(size)]))
    return root


# Text, label (1 = normal) and groups of the test posts; "amber" is all that a model has to go by.
GROUPED = (
    ("amber fern", 0, ["Women"]),
    ("fern amber", 2, ["Women"]),
    ("fern kelp", 0, ["Women"]),
    ("kelp", 1, ["Women"]),
    ("kelp fern", 1, ["Women"]),
    ("amber kelp", 2, ["Islam"]),
    ("kelp amber", 1, ["Islam"]),
    ("fern", 1, ["Islam"]),
    ("grove", 0, ["Lakes"]),
    ("amber", 1, ["None"]),
)


def write_groups(root: Path) -> Path:
    """Write test posts about two of the groups that bias is measured on, of which nobody marked a word."""
    write_hatexplain(root)
    rows = [
        entry(i) | {"label": label, "tokens": words.split(), "rationale_source": "none", "targets": [groups] * 2}
        for i, (words, label, groups) in enumerate(GROUPED)
    ]
    write(root / "test.jsonl", json_lines(rows))
    return root


def published(i: int, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """Make a HateXplain post as the published JSON holds it; two annotators mark a word each."""
    tokens = text(i).split()
    label = ("hatespeech", "normal", "offensive")[i % 3]
    labels = [label] * 3 if labels is None else labels
    marks = [[int(k == place) for k in range(len(tokens))] for place in (0, 2)]
    return {
        "post_id": f"p{i}",
        "annotators": [{"label": one, "annotator_id": k, "target": ["Lakes"]} for k, one in enumerate(labels)],
        "rationales": [] if label == "normal" else marks,
        "post_tokens": tokens,
    }


def write_published(root: Path, posts: Mapping[str, Any] | None = None, size: int = 9) -> Path:
    posts = {f"p{i}": published(i) for i in range(size)} if posts is None else posts
    names = list(posts)
    divisions = {part: names[k * len(names) // 3 : (k + 1) * len(names) // 3] for k, part in enumerate(PARTS)}
    write(root / "dataset.json", json.dumps(posts))
    write(root / "post_id_divisions.json", json.dumps(divisions))
    return root


def write_hateval(root: Path, rows: int = 8) -> Path:
    """Write train and test of 8 rows, dev of 4; texts are quoted, with a comma."""
    for name, count in {"train": rows, "dev": 4, "test": rows}.items():
        lines = [f'{i},"{text(i)}, said",{i % 2},0,0' for i in range(count)]
        write(root / f"hateval2019_en_{name}.csv", "\n".join(["id,text,HS,TR,AG", *lines, ""]))
    return root


def write_davidson(root: Path, rows: int = 60) -> Path:
    lines = [f'{i},{i // 3 % 5},{i % 3},"{text(i)}"' for i in range(rows)]
    write(root / "davidson.csv.gz", "\n".join(["id,fold,label,text", *lines, ""]))
    return root


def write_tweeteval(root: Path) -> Path:
    for part, size in SIZES.items():
        write(root / f"{part}_text.txt", "".join(f"{text(i)} \n" for i in range(size)))
        write(root / f"{part}_labels.txt", "".join(f"{i % 2}\n" for i in range(size)))
    write(root / "mapping.txt", "0\tnot-hate\n1\thate\n")
    return root


def write_spans(root: Path) -> Path:
    rows = [
        'train,"[[0, 5], [6, 11]]",amber birch cedar',
        "train,[],cedar birch",
        'trial,"[0, 1, 2, 3, 4, 8]",amber fern',
    ]
    write(root / "toxic_spans.csv", "\n".join(["split,spans,text", *rows, 'test,"[[0, 4]]","kelp, lagoon"', ""]))
    return root
