"""`python -m examples.omics COMMAND ...`: classes of samples from several kinds of omics, any may be missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from examples.pipeline.main import run_main

COMMANDS = {
    "fit": ("examples.omics.cli", "fit_command", "train one configuration"),
    "evaluate": ("examples.omics.evaluate", "evaluate_command", "scores of checkpoints, also on other data"),
    "ablate": ("examples.omics.ablate", "ablate_command", "train and compare configurations over seeds"),
    "predict": ("examples.omics.predict", "predict_command", "classes of other samples, as CSV; they need no labels"),
    "plot": ("examples.omics.plot", "plot_command", "embeddings, confusion and training curves of checkpoints"),
}


def main(args: Sequence[str] | None = None) -> int:
    return run_main("python -m examples.omics", COMMANDS, args)


if __name__ == "__main__":
    sys.exit(main())
