"""Entry point of `meg-editor`: parse, set up logging, run one command, report errors in a line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from meg_editor.cli.parser import build_parser

_LOG = logging.getLogger(__name__)
_BAD_INPUT = (ValueError, OSError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 2 for bad input, 130 for Ctrl-C, 1 for an error nobody foresaw.
    """
    options = build_parser().parse_args(arguments)
    _set_up_logging(options)
    _hide_loading_bars()
    try:
        command = import_module(f"meg_editor.cli.{options.command}")
        command.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted; finished stages are kept, the same command resumes", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of standard output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        return _report(error, options.debug)
    return 0


def _report(error: Exception, debug: bool) -> int:
    """One line on standard error, with the traceback above it under --debug; the exit status."""
    if debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    if isinstance(error, _BAD_INPUT):
        print(f"meg-editor: error: {text}", file=sys.stderr)
        return 2
    hint = "" if debug else "; --debug shows where"
    print(f"meg-editor: unexpected {type(error).__name__}: {text}{hint}", file=sys.stderr)
    return 1


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
    sys.exit(main())
