"""`meg-editor edit`: edit a model with the facts of a file and save the edits."""

from __future__ import annotations

import argparse
import logging

from meg_editor.cli.hparams import check_sources, read_hparams, read_runtime
from meg_editor.cli.lost_edits import check_nothing_is_lost

_LOG = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """Check everything first, then fit, save, and say what was learned."""
    hparams, runtime = read_hparams(options), read_runtime(options)  # refused before torch is there
    check_sources(hparams)

    from meg_editor.fitting.pipeline import fit
    from meg_editor.lm.loading import load_model
    from meg_editor.model.saved.saving import check_destination
    from meg_editor.requests.files import read_requests
    from meg_editor.runtime.artifacts import ArtifactStore
    from meg_editor.runtime.processes import Processes

    processes = Processes.launched(hparams.device)
    merged = read_requests(options.edits)
    pseudo, calibration = (
        read_requests(path).requests if path else None
        for path in (options.pseudo, options.calibration)
    )
    out = check_destination(options.out)
    check_nothing_is_lost(
        out,
        merged.requests,
        f"--out {options.out}",
        f"`meg-editor add {options.out} --edits {options.edits}` adds to them",
    )
    has_base = (out / "base" / "config.json").is_file()
    _LOG.info(
        "%d facts from %s; loading %s", len(merged.requests), options.edits, hparams.model_name
    )
    model, tokenizer = load_model(hparams)
    _LOG.info("%s on %s in %s", type(model).__name__, model.device, model.dtype)
    store = ArtifactStore(out.with_name(f"{out.name}.stages"))
    edited, report = fit(
        model,
        tokenizer,
        merged.requests,
        hparams,
        pseudo=pseudo,
        calibration=calibration,
        store=store,
        processes=processes,
        runtime=runtime,
    )
    if not processes.is_main:
        return
    _LOG.info("seconds by stage: %s", report.seconds)
    edited.save_pretrained(out, save_base=options.save_base or has_base)
    store.clear()  # they were kept for a command that is interrupted
    resumed = f" (resumed: {', '.join(report.resumed)})" if report.resumed else ""
    print(f"{report.edits} facts in {sum(report.seconds.values()):.1f} s{resumed} -> {options.out}")
    report.duplicates = merged.duplicates  # fit got them merged
    for line in report.notes:
        print(line)
    if report.calibration:
        print(f"gate threshold, on held-out facts (table 16):\n{report.calibration.table()}")
