"""`meg-editor cache`: what was prepared for models, and how to get rid of it."""

from __future__ import annotations

import argparse

from meg_editor.runtime.cache import cache_entries, cache_folder, clear_cache


def run(options: argparse.Namespace) -> None:
    """List the cache, or clear it."""
    if options.clear:
        print(f"{_megabytes(clear_cache())} freed in {cache_folder()}")
        return
    whole = 0
    for entry in cache_entries():
        whole += entry.bytes
        print(f"{_megabytes(entry.bytes):>10}  {entry.kind}/{entry.path.name}")
    print(f"{_megabytes(whole):>10}  in {cache_folder()}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
