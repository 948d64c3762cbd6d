"""`meg-editor prepare`: do ahead what depends on the model and the settings, but on no edit."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from meg_editor.cli.hparams import check_sources, read_hparams, read_runtime


def run(options: argparse.Namespace) -> None:
    """Print a line for each thing: what was done and where it is kept, or that there is nothing."""
    hparams, runtime = read_hparams(options), read_runtime(options)
    check_sources(hparams)

    from meg_editor.fitting.prepare import Prepared, prepare
    from meg_editor.lm.loading import load_model
    from meg_editor.lm.reference import resolve_model_name
    from meg_editor.lm.sources import portable_source
    from meg_editor.requests.files import read_requests
    from meg_editor.runtime.cache import cache_entries

    pseudo, calibration = (
        read_requests(path).requests if path else None
        for path in (options.pseudo, options.calibration)
    )
    kept = {entry.path for entry in cache_entries()}
    start = time.perf_counter()
    folder = Path(resolve_model_name(hparams.model_name))  # converts a GGUF file
    seconds = time.perf_counter() - start
    if portable_source(folder) is None:
        conversion = Prepared("model", "it is loaded as it is")
    elif folder in kept:
        conversion = Prepared("model", "converted", folder, resumed=True)
    else:
        conversion = Prepared("model", "converted", folder, seconds)
    model, tokenizer = load_model(hparams)
    prepared = prepare(
        model, tokenizer, hparams, pseudo=pseudo, calibration=calibration, runtime=runtime
    )
    print(conversion, *prepared, sep="\n")
