"""`meg-editor benchmark`: methods side by side on a data set."""

from __future__ import annotations

import argparse

from meg_editor.cli.command_line import command_line
from meg_editor.cli.hparams import check_sources, read_hparams, read_paper_hparams


def run(options: argparse.Namespace) -> None:
    """Run, or resume, every cell and print the report."""
    hparams, paper = read_hparams(options), read_paper_hparams(options)
    check_sources(hparams)

    from meg_editor.cli.benchmark_commands import benchmark_command

    benchmark_command(options, hparams, paper, command_line(options))
