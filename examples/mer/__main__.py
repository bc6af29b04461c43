"""`python -m examples.mer COMMAND ...`: emotion recognition with missing modalities."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from examples.pipeline.main import run_main

COMMANDS = {
    "fit": ("examples.mer.cli", "fit_command", "train one configuration"),
    "evaluate": ("examples.mer.evaluate", "evaluate_command", "robustness of trained checkpoints"),
    "ablate": ("examples.mer.ablate", "ablate_command", "train and evaluate configurations x seeds x folds"),
    "demo": ("examples.mer.demo", "demo_command", "synthesize, train and compare two models in two minutes"),
    "synthesize": ("examples.mer.prepare", "synthesize_command", "write a synthetic set in the MER2023 layout"),
    "convert": ("examples.mer.prepare", "convert_command", "turn the published pickled labels into CSV"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its status."""
    return run_main("python -m examples.mer", COMMANDS, args)


if __name__ == "__main__":
    sys.exit(main())
