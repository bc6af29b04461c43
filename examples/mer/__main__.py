"""`python -m examples.mer COMMAND ...`: emotion recognition with missing modalities."""

from __future__ import annotations

import importlib
import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence

COMMANDS = {
    "fit": ("examples.mer.cli", "fit_command", "train one configuration"),
    "evaluate": ("examples.mer.evaluate", "evaluate_command", "robustness of trained checkpoints"),
    "ablate": ("examples.mer.ablate", "ablate_command", "train and evaluate configurations x seeds x folds"),
    "demo": ("examples.mer.demo", "demo_command", "synthesize, train and compare two models in two minutes"),
    "synthesize": ("examples.mer.prepare", "synthesize_command", "write a synthetic set in the MER2023 layout"),
    "convert": ("examples.mer.prepare", "convert_command", "turn the published pickled labels into CSV"),
}
USAGE = "usage: python -m examples.mer {" + ",".join(COMMANDS) + "} [--help] [--debug] ..."
LONGEST = 600
# Their messages speak for themselves.
EXPECTED = (ArgumentError, KeyboardInterrupt, OSError, SystemExit, TypeError, ValueError)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; whatever is wrong with the input ends in one line on stderr and a status that is not 0."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if debug:
        os.environ["MER_DEBUG"] = "1"  # for the processes of `ablate` too
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, *(f"  {name:<11} {what}" for name, (_, _, what) in COMMANDS.items()), sep="\n")
        return 0 if words else 2
    try:
        run(words[0], words[1:])
    except KeyboardInterrupt as stop:
        return _complain(_one_line(stop) if str(stop) else "interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has enough; Python would complain again while closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as stop:
        return _status(stop)
    except Exception as error:
        if debug:
            raise
        return _complain(_one_line(error), 1)
    return 0


def run(command: str, args: Sequence[str]) -> None:
    """Run one command; errors are raised."""
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}; expected one of {', '.join(COMMANDS)}")
    module, function, _ = COMMANDS[command]
    getattr(importlib.import_module(module), function)(args)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) or type(error).__name__
    # An unexpected error says what kind it is, as there is no traceback to tell.
    if not isinstance(error, EXPECTED):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _complain(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _status(stop: SystemExit) -> int:
    if isinstance(stop.code, str):
        return _complain(_one_line(stop), 1)
    return stop.code or 0


if __name__ == "__main__":
    sys.exit(main())
