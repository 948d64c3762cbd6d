"""`meg-editor layers`: which decoder layer should get the neuron?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from meg_editor.cli.hparams import check_sources, read_hparams
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.sources import OURS
from meg_editor.requests.request import EditRequest


def run(options: argparse.Namespace) -> None:
    """Collect the same facts in every layer and print a row for each as it is measured."""
    hparams = read_hparams(options)
    if options.edits and options.data:
        raise ValueError("facts to try: expected --edits or --data, got both: leave one out")
    check_sources(hparams, encoder=False)

    from meg_editor.collection.layer_sweep import layer_sweep
    from meg_editor.lm.loading import load_model
    from meg_editor.lm.neuron import usable_layers

    requests = _facts(options, hparams)
    model, tokenizer = load_model(hparams)
    layers = usable_layers(model) if options.layer is None else [options.layer]
    print(f"layer  reliability  generality  steps  ms/fact   ({len(requests)} facts, AG, %)")
    for layer in layers:
        (result,) = layer_sweep(model, tokenizer, requests, hparams, [layer])
        generality = "-" if result.generality is None else f"{result.generality:.1f}"
        print(
            f"{result.layer:>5} {result.reliability:>12.1f} {generality:>11} {result.steps:>6.1f} "
            f"{result.milliseconds:>8.1f}",
            flush=True,
        )


def _facts(options: argparse.Namespace, hparams: MeGHyperParams) -> Sequence[EditRequest]:
    if options.edits:
        from meg_editor.requests.files import read_requests

        return read_requests(options.edits).requests
    if options.data:
        from meg_editor.cli.benchmark_commands import calibration_facts

        return calibration_facts(options, options.count)
    from meg_editor.data.world.requests import sweep_requests

    return sweep_requests(options.count, hparams.seed, real=not hparams.model_name.startswith(OURS))
