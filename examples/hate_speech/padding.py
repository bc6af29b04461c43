"""The `padding` command: what batches of texts of similar length save, in tokens and in seconds of training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from torch import optim

from examples.pipeline.arguments import Arguments, count, split_overrides

from .batches import LengthBatches, padding_share
from .cli import HateCLI

KINDS = {"shuffled": False, "by length": True}


def padding_command(args: Sequence[str]) -> None:
    """Train with both kinds of batches in turn, and print padding and medians."""
    parser = Arguments(
        "python -m examples.hate_speech padding",
        description=__doc__,
        epilog="All other words, such as --data.root PATH or --model.lr 1e-4, are those of a configuration.",
    )
    parser.add_argument("--config", action="append", required=True, help="YAML files, as for fit")
    parser.add_argument("--batches", type=count, default=40, help="batches of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=7, help="rounds of each kind, in turn (default: %(default)s)")
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    words = [word for file in given.config for word in ("--config", file)]
    cli = HateCLI([*words, *overrides], trainer={"enable_progress_bar": False})
    data, rows = cli.datamodule, cli.datamodule.sets["train"]
    plans = {
        name: LengthBatches(rows, data.batch_size, shuffle=True, bucketing=bucketing, seed=data.seed).plan()
        for name, bucketing in KINDS.items()
    }
    seconds = measure_rounds(cli.model, rows, plans, batches=given.batches, rounds=given.rounds)
    print(f"{len(rows)} training posts, batches of {data.batch_size}; {given.rounds} rounds of {given.batches} batches")
    for name, plan in plans.items():
        each = float(np.median(seconds[name])) / given.batches
        share = padding_share(rows.lengths, plan)
        print(f"{name:10} padding {share:5.1%}, {1000 * each:7.1f} ms a batch, {each * len(plan):6.1f} s an epoch")
    ratios = np.array(seconds["shuffled"]) / np.array(seconds["by length"])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"shuffled / by length: {middle:.2f} [{low:.2f}, {high:.2f}], median and quartiles of paired rounds")


def measure_rounds(
    task: Any, rows: Any, plans: dict[str, list[np.ndarray]], *, batches: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every round: forward, backward and step of so many batches, the kinds in turn.

    A first round, which is not counted, warms up.
    """
    optimizer = optim.AdamW([x for x in task.parameters() if x.requires_grad], 1e-5)
    waiting = {name: cycle(plan) for name, plan in plans.items()}
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(rounds + 1):
        for name, plan in waiting.items():
            start = time.perf_counter()
            for _ in range(batches):
                batch = rows[next(plan)]
                optimizer.zero_grad()
                task.model.loss(batch["inputs"], batch["mask"], batch["labels"]).loss.backward()
                optimizer.step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds
