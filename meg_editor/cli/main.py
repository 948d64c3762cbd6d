"""Entry point of `meg-editor`: parse, set up logging, run one command, report errors in a line."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType

from meg_editor.cli.parser import build_parser, one_line

_LOG = logging.getLogger(__name__)
_RESUMABLE = ("benchmark", "demo", "edit", "prepare", "tables")
_BAD_INPUT = (ValueError, OSError, FloatingPointError)
# How torch, C++ and Linux say it, beside MemoryError.
_NO_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|bad_alloc|could not create a (primitive|memory)",
    re.IGNORECASE,
)


def entry() -> int:
    """The program `meg-editor`: `main`, and before it Ctrl-C ends the process without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM, 1 for an error nobody
        foresaw.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of standard output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    for argument in sys.argv[1:] if arguments is None else arguments:
        if not _is_text(argument):
            parser.error(f"{argument!r} is not UTF-8: rename the file, or type it again")
        if re.fullmatch("--[^=]+=--", argument):  # argparse would make an empty list of it
            parser.error(f"{argument}: expected a value, got '--'")
    options = parser.parse_args(arguments)
    _set_up_logging(options)
    _hide_loading_bars()
    try:
        command = import_module(f"meg_editor.cli.{getattr(options, 'module', options.command)}")
        with _stopping_in_order():
            command.run(options)
    except KeyboardInterrupt:
        kept = "; finished stages are kept, the same command resumes"
        print(f"\ninterrupted{kept if options.command in _RESUMABLE else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        return _report(error, options.debug)
    return 0


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _stopping_in_order() -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM unwind what runs; no second one disturbs the clean-up."""
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGTERM:
            sys.exit(128 + number)
        raise KeyboardInterrupt

    former = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


def _report(error: Exception, debug: bool) -> int:
    """One line on standard error, with the traceback above it under --debug; the exit status."""
    if debug:
        traceback.print_exception(error)
    text = one_line(str(error))
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        print(f"meg-editor: error: {_no_memory(text)}", file=sys.stderr)
        return 2
    if isinstance(error, _BAD_INPUT):
        print(f"meg-editor: error: {text}", file=sys.stderr)
        return 2
    hint = "" if debug else "; --debug shows where"
    print(f"meg-editor: unexpected {type(error).__name__}: {text}{hint}", file=sys.stderr)
    return 1


def _no_memory(text: str) -> str:
    hint = "close other programs, or take a smaller model or collection_memory"
    return f"out of memory; {hint}" + (f" ({text[:200]})" if text else "")


def _set_up_logging(options: argparse.Namespace) -> None:
    """Messages of the package on standard error: warnings, more with --verbose or --debug."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if options.verbose or options.debug:
        level = logging.DEBUG if options.debug else logging.INFO
        logging.getLogger("meg_editor").setLevel(level)
    _LOG.debug("options: %s", options)


def _hide_loading_bars() -> None:
    """Hide the bars of transformers, imported or not yet: ours have a stage and a time left."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if (transformers := sys.modules.get("transformers")) is not None:
        transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(entry())
