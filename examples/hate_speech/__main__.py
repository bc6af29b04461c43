"""`python -m examples.hate_speech COMMAND ...`: hate-speech detection with calibrated tokens."""

from __future__ import annotations

import importlib
import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence

COMMANDS = {
    "fit": ("examples.hate_speech.cli", "fit_command", "train one configuration"),
    "evaluate": ("examples.hate_speech.evaluate", "evaluate_command", "scores, rationales and bias of checkpoints"),
    "ablate": ("examples.hate_speech.ablate", "ablate_command", "train and compare configurations over seeds"),
    "explain": ("examples.hate_speech.explain", "explain_command", "show which words a checkpoint looks at"),
}
USAGE = "usage: python -m examples.hate_speech {" + ",".join(COMMANDS) + "} [--help] [--debug] ..."
LONGEST = 600
# Their messages speak for themselves, and they are about what was asked for: status 2.
EXPECTED = (ArgumentError, OSError, TypeError, ValueError)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; whatever is wrong with the input ends in one line on stderr and status 2."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if debug:
        os.environ["MER_DEBUG"] = "1"  # for the processes of `ablate` too
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, *(f"  {name:<9} {what}" for name, (_, _, what) in COMMANDS.items()), sep="\n")
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
        return _complain(_one_line(stop), 2) if isinstance(stop.code, str) else stop.code or 0
    except Exception as error:
        if debug:
            raise
        if isinstance(error, EXPECTED):
            return _complain(_one_line(error), 2)
        # An unexpected error says what kind it is, as there is no traceback to tell.
        return _complain(f"{type(error).__name__}: {_one_line(error)}", 1)
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
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _complain(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
