"""`meg-editor tables`: the paper's ablations on one model."""

from __future__ import annotations

import argparse

from meg_editor.cli.command_line import command_line
from meg_editor.cli.hparams import check_sources, read_hparams


def run(options: argparse.Namespace) -> None:
    """Run, or resume, the tables and print them."""
    hparams = read_hparams(options)
    check_sources(hparams)

    from meg_editor.cli.benchmark_commands import tables_command

    tables_command(options, hparams, command_line(options))
