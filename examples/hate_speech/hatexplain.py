"""HateXplain: the published JSON, and the same posts as JSON lines; rationales become character ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from examples.pipeline.errors import DataError

from .posts import Post, label_code, parse_list, ranges_from_words
from .tables import clean, read_json, read_json_lines

CLASSES = ("hatespeech", "normal", "offensive")
NORMAL = CLASSES.index("normal")
ANNOTATORS_TO_AGREE = 2
Splits = dict[str, list[Post]]


def read_lines_corpus(paths: Mapping[str, Path]) -> tuple[Splits, list[str]]:
    """Read one JSON-lines file per part: ``id, label, tokens, rationale_union, rationale_source, targets``."""
    splits, sources = Splits(), Counter[str]()
    for part, path in paths.items():
        posts = splits.setdefault(part, [])
        for where, entry in read_json_lines(path):
            for key in ("id", "label", "tokens"):
                if key not in entry:
                    raise DataError(f"{where}: expected the key {key!r}, found {', '.join(entry)}")
            source, union = entry.get("rationale_source"), entry.get("rationale_union")
            sources[str(source)] += part == "train"
            words = _words(entry["tokens"], where)
            marks = None if source == "none" or union is None else _marks(union, words, where)
            label = label_code(entry["label"], len(CLASSES), where)
            posts.append(
                _post(clean(str(entry["id"])), label, words, marks, _targets(entry.get("targets") or [], where))
            )
    notes = [f"{sources['none']} training posts with an unknown rationale"] if sources["none"] else []
    if sources["word_set"]:
        notes.append(f"{sources['word_set']} training rationales rebuilt from sets of words: for training only")
    return splits, notes


def read_published(dataset: Path, divisions: Path) -> tuple[Splits, list[str]]:
    """Read ``dataset.json`` in the official split; posts on which all annotators differ are left out."""
    posts, parts = read_json(dataset), read_json(divisions)
    for path, value in ((dataset, posts), (divisions, parts)):
        if not isinstance(value, dict):
            raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    splits, undecided = Splits(), 0
    for part in ("train", "val", "test"):
        rows = splits.setdefault(part, [])
        for name in parse_list(parts.get(part), f"{divisions}: {part}: expected a list of post ids"):
            if name not in posts:
                raise DataError(f"{dataset}: expected the post {name!r}, which {divisions.name} names, found none")
            post = _published_post(clean(str(name)), posts[name], f"{dataset}: post {name}")
            undecided += post is None
            rows += [] if post is None else [post]
    return splits, [f"{undecided} posts without a majority label left out"] if undecided else []


def _published_post(name: str, entry: Any, where: str) -> Post | None:
    keys = ("annotators", "rationales", "post_tokens")
    if not isinstance(entry, dict) or any(key not in entry for key in keys):
        raise DataError(f"{where}: expected an object with the keys {', '.join(keys)}")
    votes, targets = Counter[str](), []
    for one in parse_list(entry["annotators"], f"{where}: annotators: expected a list of objects"):
        if not isinstance(one, dict) or one.get("label") not in CLASSES:
            got = one.get("label") if isinstance(one, dict) else one
            raise DataError(f"{where}: expected a label of {', '.join(CLASSES)}, got {got!r}")
        votes[one["label"]] += 1
        targets.append(one.get("target") or [])
    words = _words(entry["post_tokens"], where)
    rationales = parse_list(entry["rationales"], f"{where}: rationales: expected a list of lists")
    each = [_marks(marks, words, where) for marks in rationales]
    label, count = votes.most_common(1)[0] if votes else ("", 0)
    if count < ANNOTATORS_TO_AGREE:
        return None
    # As in the benchmark: what any annotator marked; normal posts have no rationale.
    union = [int(any(marks)) for marks in zip(*each, strict=True)] if each else None
    if label == CLASSES[NORMAL]:
        union = [0] * len(words)
    return _post(name, CLASSES.index(label), words, union, _targets(targets, where))


def _post(name: str, label: int, words: tuple[str, ...], marks: list[int] | None, targets: tuple[str, ...]) -> Post:
    rationale = None if marks is None else ranges_from_words(words, marks)
    return Post(name, " ".join(words), label, words, rationale, targets)


def _words(value: Any, where: str) -> tuple[str, ...]:
    words = parse_list(value, f"{where}: expected a list of tokens")
    if not all(isinstance(word, str) for word in words):
        raise DataError(f"{where}: expected tokens to be text")
    return tuple(map(clean, words))


def _marks(value: Any, words: tuple[str, ...], where: str) -> list[int]:
    marks = parse_list(value, f"{where}: expected a rationale of {len(words)} marks")
    if len(marks) != len(words):
        raise DataError(f"{where}: expected a rationale of {len(words)} marks, one per token, got {len(marks)}")
    if any(mark not in (0, 1) for mark in marks):
        raise DataError(f"{where}: expected a rationale of 0 and 1")
    return [int(mark) for mark in marks]


def _targets(lists: Any, where: str) -> tuple[str, ...]:
    """Name the groups that at least two annotators named; "None" is no group."""
    votes = Counter[str]()
    for one in parse_list(lists, f"{where}: expected a list of targets per annotator"):
        groups: Iterable[Any] = parse_list(one, f"{where}: expected a list of targets per annotator")
        votes.update({str(group) for group in groups} - {"None", ""})
    return tuple(sorted(group for group, count in votes.items() if count >= ANNOTATORS_TO_AGREE))
