"""Readers of hate-speech corpora, recognised by their files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.pipeline.errors import DataError
from examples.pipeline.folds import fold_numbers

from .hatexplain import CLASSES as HATEXPLAIN_CLASSES
from .hatexplain import read_lines_corpus, read_published
from .posts import Post, label_code, parse_list, plural, ranges_from_offsets
from .tables import Table, clean, read_csv, read_lines

__all__ = ["Corpus", "DataError", "Post", "read_corpus"]

PARTS = ("train", "val", "test")
PART_OF = {"train": "train", "val": "val", "valid": "val", "dev": "val", "trial": "val", "test": "test"}
DAVIDSON_FOLDS = 5
Splits = dict[str, list[Post]]
Part = tuple[str, tuple[str, ...], Splits, list[str]]  # name, classes, splits, notes


class Corpus(NamedTuple):
    """A corpus with its split.

    Attributes:
        name: ``"hatexplain"``, ``"hateval"``, ``"davidson"``, ``"tweeteval"`` or ``"toxic_spans"``.
        classes: Names of the classes, in the order of the label numbers.
        splits: ``"train"``, ``"val"`` and ``"test"``, none of them empty.
        notes: What a reader should know: rows left out, empty texts, an option without effect.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, list[Post]]
    notes: tuple[str, ...]


def read_corpus(root: Path | str, *, fold: int = 0) -> Corpus:
    """Read the corpus in a folder (or a single file) with its official split.

    - HateXplain: ``train/val/test.jsonl(.gz)``, or the published ``dataset.json`` with ``post_id_divisions.json``.
    - HatEval 2019: CSV files with the columns id, text, HS, TR, AG and train, dev or test in their names. Rows
      without a label are counted and left out; so are rows with too few cells, whose cells may have moved.
    - Davidson: ``fold,label,text`` (test = fold ``fold``) or the published ``class,tweet`` (five stratified folds, the
      same for every run). A stratified tenth of the other folds is val.
    - TweetEval: ``{train,val,test}_{text,labels}.txt`` with ``mapping.txt``, or CSV with ``split,label,text``.
    - Toxic spans: CSV with ``spans,text`` and a column ``split``, or train, trial and test in the file names. There
      is only one class: it serves to evaluate spans.

    Args:
        root: The folder, or a single CSV file.
        fold: Fold of a corpus without an official split.

    Raises:
        DataError: One line that names the file, the line and what is expected.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    files = [root] if root.is_file() else sorted(path for path in root.iterdir() if path.is_file())
    named = {path.name.removesuffix(".gz"): path for path in files}
    folder = root.parent if root.is_file() else root
    if "dataset.json" in named and "post_id_divisions.json" in named:
        splits, notes = read_published(named["dataset.json"], named["post_id_divisions.json"])
        found: Part = ("hatexplain", HATEXPLAIN_CLASSES, splits, notes)
    elif any(f"{part}.jsonl" in named for part in PARTS):
        splits, notes = read_lines_corpus({part: _file(folder, named, f"{part}.jsonl") for part in PARTS})
        found = ("hatexplain", HATEXPLAIN_CLASSES, splits, notes)
    elif any(f"{part}_text.txt" in named for part in PARTS):
        found = _tweeteval_texts(folder, named)
    else:
        found = _tables(root, [path for name, path in named.items() if name.endswith(".csv")], fold)
    return _checked(root, *found, fold=fold)


def _file(folder: Path, named: Mapping[str, Path], name: str) -> Path:
    if name not in named:
        raise DataError(f"{folder / name}: no such file, plain or as .gz; expected it beside the others of the corpus")
    return named[name]


def _checked(
    root: Path, name: str, classes: Sequence[str], splits: Splits, notes: Iterable[str], *, fold: int
) -> Corpus:
    notes = list(notes)
    for part in PARTS:
        if not splits.get(part):
            found = ", ".join(name for name in PARTS if splits.get(name)) or "no rows"
            reasons = f" ({'; '.join(notes)})" if notes else ""
            raise DataError(f"{root}: expected labelled rows of train, val and test, found {found}{reasons}")
    counts = Counter(post.label for post in splits["train"])
    if len(classes) > 1 and len(counts) == 1:
        only = classes[next(iter(counts))]
        raise DataError(f"{root}: expected at least two classes in train, all {counts.total()} rows are {only!r}")
    missing = [label for code, label in enumerate(classes) if code not in counts]
    if missing:
        notes.append(f"no training row of the class {', '.join(missing)}")
    empty = {part: sum(not post.text.strip() for post in splits[part]) for part in PARTS}
    if any(empty.values()):
        places = ", ".join(f"{part} {number}" for part, number in empty.items() if number)
        notes.append(f"{sum(empty.values())} empty texts kept ({places})")
    if fold and name != "davidson":
        notes.append(f"fold {fold} has no effect: {name} has an official split")
    return Corpus(name, tuple(classes), {part: splits[part] for part in PARTS}, tuple(notes))


# --- CSV tables


def _tables(root: Path, paths: Sequence[Path], fold: int) -> Part:
    tables, kinds = [read_csv(path) for path in paths], dict[str, list[Table]]()
    for table in tables:
        mark = next((mark for mark in _KINDS if mark in table.header), None)
        if mark is not None:
            kinds.setdefault(_KINDS[mark][0], []).append(table)
    if len(kinds) != 1:
        known = "hatexplain, hateval, davidson, tweeteval or toxic_spans"
        seen = "; ".join(f"{table.path.name} with the columns {', '.join(table.header)}" for table in tables)
        raise DataError(f"{root}: expected the files of one corpus ({known}), found {seen or 'no file of that kind'}")
    (kind, found), readers = next(iter(kinds.items())), dict(_KINDS.values())
    return readers[kind](root, found, fold)


def _by_part(tables: Sequence[Table]) -> dict[str, Table]:
    """Name the part that each file holds from the words of its name."""
    found: dict[str, Table] = {}
    for table in tables:
        words = re.split(r"[^a-z]+", table.path.name.lower())
        parts = {PART_OF[word] for word in words if word in PART_OF}
        if len(parts) != 1:
            raise DataError(f"{table.path}: expected one of train, dev, trial, val, test in the file name")
        part = parts.pop()
        if part in found:
            raise DataError(f"{table.path}: expected one file of {part!r}, {found[part].path.name} is one as well")
        found[part] = table
    return found


def _one_table(tables: Sequence[Table]) -> Table:
    if len(tables) > 1:
        names = ", ".join(table.path.name for table in tables)
        raise DataError(f"{tables[0].path.parent}: expected one table of this kind, found {names}")
    return tables[0]


def _hateval(root: Path, tables: Sequence[Table], fold: int) -> Part:
    classes, splits, notes = ("not-hate", "hate"), Splits(), []
    for part, table in _by_part(tables).items():
        posts, skipped = list[Post](), {"without a label": list[int](), "with too few cells": list[int]()}
        for line, cells in table.records(("id", "text", "HS"), whole=False):
            if len(cells) < len(table.header):
                skipped["with too few cells"].append(line)
            elif not cells["HS"].strip():
                skipped["without a label"].append(line)
            else:
                posts.append(Post(cells["id"], clean(cells["text"]), label_code(cells["HS"], 2, table.where(line))))
        splits[part] = posts
        for reason, lines in skipped.items():
            if lines:
                first = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
                notes.append(f"{table.path.name}: {plural(len(lines), 'row')} {reason} left out (lines {first})")
    return "hateval", classes, splits, notes


def _davidson(root: Path, tables: Sequence[Table], fold: int) -> Part:
    table = _one_table(tables)
    published = "tweet" in table.header
    label, text = ("class", "tweet") if published else ("label", "text")
    posts, numbers = list[Post](), list[int]()
    for line, cells in table.records((label, text) if published else (label, text, "fold")):
        where = table.where(line)
        identity = cells.get("id") or cells.get("") or str(len(posts))
        posts.append(Post(identity, clean(cells[text]), label_code(cells[label], 3, where)))
        if not published:
            numbers.append(label_code(cells["fold"], DAVIDSON_FOLDS, where, "fold"))
    if not 0 <= fold < DAVIDSON_FOLDS:
        raise DataError(f"fold: expected 0 to {DAVIDSON_FOLDS - 1}, got {fold}")
    labels = np.array([post.label for post in posts])
    if published and len(posts) < DAVIDSON_FOLDS:
        raise DataError(f"{table.path}: expected at least {DAVIDSON_FOLDS} rows, got {len(posts)}")
    folds = fold_numbers(labels, None, DAVIDSON_FOLDS, 0) if published else np.array(numbers)
    parts = _hold_out_tenth(labels, folds != fold, seed=fold)
    splits = {name: [posts[i] for i in rows] for name, rows in parts.items()}
    return "davidson", ("hate", "offensive", "neither"), splits, []


def _hold_out_tenth(labels: np.ndarray, rest: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Make val of a tenth of every class of ``rest``, at least one row where there are two, and test of the others."""
    random = np.random.RandomState(seed)
    val = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[rest]):
        rows = random.permutation(np.flatnonzero(rest & (labels == label)))
        val[rows[: max(round(len(rows) / 10), 1) if len(rows) > 1 else 0]] = True
    return {name: np.flatnonzero(rows) for name, rows in {"train": rest & ~val, "val": val, "test": ~rest}.items()}


def _tweeteval(root: Path, tables: Sequence[Table], fold: int) -> Part:
    table, splits = _one_table(tables), Splits()
    for line, cells in table.records(("split", "label", "text")):
        part = _part(cells["split"], table.where(line))
        code = label_code(cells["label"], 2, table.where(line))
        posts = splits.setdefault(part, [])
        posts.append(Post(f"{part}-{len(posts)}", clean(cells["text"]), code))
    return "tweeteval", ("not-hate", "hate"), splits, []


def _toxic_spans(root: Path, tables: Sequence[Table], fold: int) -> Part:
    splits = Splits()
    parts = {} if "split" in tables[0].header else _by_part(tables)
    for name, table in (parts or {"": _one_table(tables)}).items():
        for line, cells in table.records(("spans", "text") if name else ("split", "spans", "text")):
            where = table.where(line)
            part, text = name or _part(cells["split"], where), clean(cells["text"])
            posts = splits.setdefault(part, [])
            posts.append(Post(f"{part}-{len(posts)}", text, 0, None, _spans(cells["spans"], len(text), where)))
    return "toxic_spans", ("toxic",), splits, []


def _part(cell: str, where: str) -> str:
    if cell.strip() not in PART_OF:
        raise DataError(f"{where}: expected a split of train, val, trial, dev, test, got {cell!r}")
    return PART_OF[cell.strip()]


def _spans(cell: str, length: int, where: str) -> tuple[tuple[int, int], ...]:
    """Read ``[[start, end), ...]``, or the published list of single offsets."""
    expected = f"a list of offsets or [start, end) ranges within the {length} characters of the text"
    try:
        value = json.loads(cell)
    except (json.JSONDecodeError, RecursionError):
        value = None
    pairs = [(x, x + 1) if type(x) is int else x for x in parse_list(value, f"{where}: expected {expected}")]
    offsets = set[int]()
    for pair in pairs:
        ends = tuple(pair) if isinstance(pair, (list, tuple)) else ()
        if len(ends) != 2 or any(type(x) is not int for x in ends) or not 0 <= ends[0] < ends[1] <= length:
            raise DataError(f"{where}: expected {expected}, got {pair}")
        offsets.update(range(*ends))
    return ranges_from_offsets(offsets)


# The column that tells a kind -> the kind and its reader.
_KINDS: dict[str, tuple[str, Callable[[Path, Sequence[Table], int], Part]]] = {
    "HS": ("hateval", _hateval),
    "fold": ("davidson", _davidson),
    "tweet": ("davidson", _davidson),
    "spans": ("toxic_spans", _toxic_spans),
    "split": ("tweeteval", _tweeteval),
}


# --- text files


def _tweeteval_texts(folder: Path, named: Mapping[str, Path]) -> Part:
    splits, classes = Splits(), ("not-hate", "hate")
    if "mapping.txt" in named:
        rows = [line.split("\t") for line in read_lines(named["mapping.txt"]) if line.strip()]
        if any(len(row) < 2 or row[0] != str(code) for code, row in enumerate(rows)):
            raise DataError(f"{named['mapping.txt']}: expected lines of number, tab, name, numbered from 0")
        classes = tuple(row[1].strip() for row in rows)
    for part in PARTS:
        texts, labels = (_file(folder, named, f"{part}_{kind}.txt") for kind in ("text", "labels"))
        lines, codes = read_lines(texts), read_lines(labels)
        if len(codes) != len(lines):
            raise DataError(f"{labels}: expected {len(lines)} lines as in {texts.name}, got {len(codes)}")
        splits[part] = [
            Post(f"{part}-{i}", clean(text), label_code(code, len(classes), f"{labels}: line {i + 1}"))
            for i, (text, code) in enumerate(zip(lines, codes, strict=True))
        ]
    return "tweeteval", classes, splits, []
