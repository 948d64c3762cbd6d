"""`meg-editor edit`: edit a model with the facts of a file and save the edits."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meg_editor.cli.hparams import check_sources, read_hparams, read_runtime
from meg_editor.config.input_files import short_repr

if TYPE_CHECKING:
    from meg_editor.requests.request import EditRequest

_LOG = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """Check everything first, then fit, save, and say what was learned."""
    hparams, runtime = read_hparams(options), read_runtime(options)  # refused before torch is there
    check_sources(hparams)

    from meg_editor.fitting.pipeline import fit
    from meg_editor.lm.loading import load_model
    from meg_editor.model.changes_folder import count_changes
    from meg_editor.model.saving import check_destination
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
    if changes := count_changes(out):
        raise ValueError(
            f"--out {options.out}: its edits were changed {changes} times since they were fitted, "
            f"which would be lost: `meg-editor add {options.out} --edits {options.edits}` adds to "
            "them; or name another folder, or delete this one"
        )
    _check_nothing_is_lost(out, options, merged.requests)
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


def _check_nothing_is_lost(
    out: Path, options: argparse.Namespace, requests: Sequence[EditRequest]
) -> None:
    """Edits that came after a fit are in no file of facts: `compact` makes them look fitted."""
    from meg_editor.model.listing import saved_edits

    try:
        known = saved_edits(out)
    except (OSError, ValueError):  # no edits, or none that can be read
        return
    given = {(request.key, request.target_new) for request in requests}
    lost = [e for e in known if e.by != "fit" and (e.key, e.target_new) not in given]
    if lost:
        raise ValueError(
            f"--out {options.out}: {len(lost)} of its edits came later and are not in "
            f"{options.edits}, such as {short_repr(lost[0].prompt)}: `meg-editor add {options.out} "
            f"--edits {options.edits}` adds to them; or name another folder, or delete this one"
        )
