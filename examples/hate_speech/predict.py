"""The `predict` command: classes and probabilities of new texts, as CSV."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.pipeline.arguments import Arguments, count, split_overrides
from examples.pipeline.files import write_table

from .metrics import softmax
from .posts import Post, plural
from .saliency import predict
from .tables import clean, read_lines
from .trained import Trained, open_checkpoint


def predict_command(args: Sequence[str]) -> None:
    """Write a row for every line of a text file."""
    parser = Arguments(
        "python -m examples.hate_speech predict",
        description=__doc__,
        epilog="Other words, such as --data.root PATH, change the stored configuration. Such models are often wrong, "
        "on HateXplain about every third post: a help for people who decide.",
    )
    parser.add_argument("checkpoint", type=Path, help="best.ckpt of a run")
    parser.add_argument(
        "--file",
        type=Path,
        required=True,
        help="UTF-8 texts, one a line; empty lines count, a file of nothing else is an error",
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV: line, label, probability of each class, cut")
    parser.add_argument("--threads", type=count, help="threads (default: all)")
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    if given.threads:
        torch.set_num_threads(given.threads)
    posts = [Post(f"line {number}", clean(line), -100) for number, line in enumerate(read_lines(given.file), 1)]
    with tempfile.TemporaryDirectory() as folder:
        trained = open_checkpoint(given.checkpoint, overrides, Path(folder))
        rows, cut = label(trained, posts)
    write_table(given.out, [["line", "label", *trained.data.classes, "cut"], *rows])
    more = f", {cut} cut at {trained.data.max_tokens} tokens" if cut else ""
    print(f"{given.out}: {plural(len(posts), 'text')}{more}")


def label(trained: Trained, posts: Sequence[Post]) -> tuple[list[list[str]], int]:
    """Return a row for every post: number, class, probabilities, 1 where it was cut; and how many were."""
    data = trained.data
    found = data.text_set(posts)
    odds = softmax(predict(trained.task, found))
    rows = [
        [str(number), data.classes[int(one.argmax())], *(f"{p:.4f}" for p in one), str(int(cut))]
        for number, (one, cut) in enumerate(zip(odds, found.tokens.cut, strict=True), 1)
    ]
    return rows, found.tokens.truncated
