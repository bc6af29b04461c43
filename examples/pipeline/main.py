"""The front door of a pipeline: commands by name, and errors of one line."""

from __future__ import annotations

import importlib
import os
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence

from .errors import DEBUG

LONGEST = 600
# Their messages speak for themselves, and they are about what was asked for: status 2.
EXPECTED = (ArgumentError, OSError, TypeError, ValueError)
Commands = Mapping[str, tuple[str, str, str]]


def run_main(program: str, commands: Commands, args: Sequence[str] | None = None) -> int:
    """Run a command; whatever is wrong with the input ends in one line on stderr and a status that is not 0.

    Args:
        program: What is typed before the command.
        commands: Name -> module and function, which is imported only then, and what it does.
        args: The words; None = those of the command line.

    Returns:
        The status: 2 for wrong input, 1 for any other error, 130 after an interruption.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if debug:
        os.environ[DEBUG] = "1"
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: {program} {{{','.join(commands)}}} [--help] [--debug] ...")
        width = max(map(len, commands))
        print(*(f"  {name:<{width}}  {what}" for name, (_, _, what) in commands.items()), sep="\n")
        return 0 if words else 2
    try:
        _run(commands, words[0], words[1:])
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
        # Lightning is not imported for this: options of the trainer that cannot be had, such as a GPU.
        if isinstance(error, EXPECTED) or type(error).__name__ == "MisconfigurationException":
            return _complain(_one_line(error), 2)
        # An unexpected error says what kind it is, as there is no traceback to tell.
        return _complain(f"{type(error).__name__}: {_one_line(error)}", 1)
    return 0


def _run(commands: Commands, command: str, args: Sequence[str]) -> None:
    if command not in commands:
        raise ValueError(f"unknown command {command!r}; expected one of {', '.join(commands)}")
    module, function, _ = commands[command]
    getattr(importlib.import_module(module), function)(args)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _complain(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
