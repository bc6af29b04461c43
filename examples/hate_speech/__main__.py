"""`python -m examples.hate_speech COMMAND ...`: hate-speech detection with calibrated tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from examples.pipeline.main import run_main

COMMANDS = {
    "fit": ("examples.hate_speech.cli", "fit_command", "train one configuration"),
    "evaluate": ("examples.hate_speech.evaluate", "evaluate_command", "scores, rationales and bias of checkpoints"),
    "ablate": ("examples.hate_speech.ablate", "ablate_command", "train and compare configurations over seeds"),
    "predict": ("examples.hate_speech.predict", "predict_command", "classes and probabilities of new texts, as CSV"),
    "explain": ("examples.hate_speech.explain", "explain_command", "show which words a checkpoint looks at"),
    "padding": ("examples.hate_speech.padding", "padding_command", "what batches of texts of similar length save"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its status."""
    return run_main("python -m examples.hate_speech", COMMANDS, args)


if __name__ == "__main__":
    sys.exit(main())
