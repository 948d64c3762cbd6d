"""Measured choices: batched collection, calibration, sampling steps, generators, baselines, growth.

    python examples/benchmark.py collection                # against one fact at a time
    python examples/benchmark.py calibration --edits 24 256  # quick and thorough
    python examples/benchmark.py sampling --edits 1024     # 50, 10, 4, 2, 1 steps
    python examples/benchmark.py generators --edits 256 1024 4096
    python examples/benchmark.py baselines --edits 256   # against EasyEdit's, on PYTHONPATH
    python examples/benchmark.py scale --edits 1024 4096 10000   # seconds per edit as they grow

Each compares its ways in one run on the reference model and prints ratios or one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.baselines.core.locate import Locate
from meg_editor.baselines.core.settings import CovarianceHyperParams
from meg_editor.baselines.registry import BASELINES
from meg_editor.benchmark import Method, edited
from meg_editor.collection.collect import collect
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation import Evaluation, evaluate
from meg_editor.evaluation.cost import peak_memory
from meg_editor.generators import GENERATORS
from meg_editor.integrations.easyedit.methods import easyedit_method
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.runtime.artifacts import ArtifactStore

# Networks as much narrower than the paper's DiT-B as the reference model is than Phi-2.
SIZES = {"generator_width": 256, "generator_depth": 3, "generator_patch_size": 256}


def collection(options: argparse.Namespace) -> None:
    """Batched collection against the paper's way, one fact at a time, to equal success."""
    hparams = MeGHyperParams.preset("default", seed=options.seed)
    model, tokenizer = load_model(hparams)
    spec = NeuronSpec.from_hparams(model, hparams)
    requests = [case.request for case in edit_cases(load_world(), options.edits[0], options.seed)]
    seconds = {}
    for title, rows in (("batched", None), ("one at a time", 1)):
        runtime = RuntimeConfig(collection_batch_size=rows)
        start = time.perf_counter()
        result = collect(model, tokenizer, spec, requests, hparams, runtime)
        seconds[title] = time.perf_counter() - start
        print(
            f"{title:14} {1000 * seconds[title] / len(requests):8.1f} ms per fact   "
            f"success {100 * float(result.success.float().mean()):.2f} %   "
            f"mean steps {float(result.steps.float().mean()):.1f}"
        )
    ratio = seconds["one at a time"] / seconds["batched"]
    print(f"batched is {ratio:.1f} times faster ({len(requests)} facts)")


def calibration(options: argparse.Namespace) -> None:
    """The gate calibrated quickly, by routing alone, and thoroughly, by answers."""
    hparams = MeGHyperParams.preset(options.preset, seed=options.seed)
    model, tokenizer = load_model(hparams)
    print(_header("edits way") + "  threshold  weight  gate s")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEG_EDITOR_CACHE"] = folder  # nothing calibrated earlier is taken up
        store = _store(options)
        for edits in options.edits:
            cases = edit_cases(load_world(), edits, options.seed)
            for way in ("quick", "thorough"):
                settings = dataclasses.replace(hparams, gate_calibration=way)
                meg, report = fit(
                    model, tokenizer, [c.request for c in cases], settings, store=store
                )
                chosen = report.calibration
                print(
                    f"{_row(f'{edits} {way}', evaluate(meg, tokenizer, cases))}  "
                    f"{chosen.threshold if chosen else math.nan:9.3f}  "
                    f"{meg.index.state_weight:6.2f}  {report.seconds['gate']:6.1f}",
                    flush=True,
                )


def sampling(options: argparse.Namespace) -> None:
    """One fitted DiT, sampled in 50, 10, 4, 2 and 1 steps."""
    changes: dict[str, Any] = {} if options.preset == "paper" else {"generator": "dit", **SIZES}
    hparams = MeGHyperParams.preset(options.preset, seed=options.seed, **changes)
    model, tokenizer = load_model(hparams)
    cases = edit_cases(load_world(), options.edits[0], options.seed)
    meg, _ = fit(model, tokenizer, [c.request for c in cases], hparams, store=_store(options))
    print(_header("steps"))
    for steps in (50, 10, 4, 2, 1):
        result = evaluate(meg, tokenizer, cases, sampling_steps=steps)
        print(_row(str(steps), result))


def generators(options: argparse.Namespace) -> None:
    """Neuron bank, MLP and DiT on the same neurons behind the same gate."""
    ways: dict[str, dict[str, Any]] = {
        "bank": {"generator": "bank"},
        "mlp": {"generator": "mlp", **SIZES},
        "dit": {"generator": "dit", **SIZES},
    }
    hparams = MeGHyperParams.preset("default", seed=options.seed)
    model, tokenizer = load_model(hparams)
    print(_header("edits generator") + "  oracle  fit s  KB/edit")
    for edits in options.edits:
        cases = edit_cases(load_world(), edits, options.seed)
        store = _store(options)
        for name, changes in ways.items():
            settings = dataclasses.replace(hparams, **changes)
            meg, report = fit(
                model, tokenizer, [case.request for case in cases], settings, store=store
            )
            neurons = report.collection.neurons if report.collection else None
            result = evaluate(meg, tokenizer, cases, oracle=neurons)
            print(
                f"{_row(f'{edits} {name}', result)}  {result.oracle_generality:6.2f} "
                f"{report.seconds['generator']:6.1f} {meg.stored_bytes / edits / 1024:8.2f}",
                flush=True,
            )


def baselines(options: argparse.Namespace) -> None:
    """Our MEMIT, PMET, AlphaEdit, FT and UltraEdit against those of EasyEdit's checkout.

    The same settings, contexts and covariances (computed before the clock starts) for both.
    """
    hparams = MeGHyperParams.preset("default", seed=options.seed)
    model, tokenizer = load_model(hparams)
    cases = edit_cases(load_world(), options.edits[0], options.seed)
    store = _store(options)
    values = {"v_lr": 5.0, "clamp_norm_factor": 12, "mom2_n_samples": 1000}  # looked up at subjects
    settings: dict[str, dict[str, Any]] = {
        "memit": {**values, "layers": [0, 1], "mom2_update_weight": 20},
        "pmet": {**values, "layers": [0, 1], "mom2_update_weight": 20},
        "alphaedit": {**values, "layers": [0], "nullspace_threshold": 2.0, "L2": 10},
        "ft": {"layers": [2], "lr": 2e-3, "optimizer": "adam"},
        "ultraedit": {"layers": [1, 2], "lr": 1e-3},
    }
    print(_header("method") + "  ms/edit")
    for name, changes in settings.items():
        seconds = {}
        chosen = BASELINES[name].settings(**changes)
        ways = {"": BASELINES[name].apply, "easyedit:": easyedit_method(name)}
        if isinstance(chosen, CovarianceHyperParams):
            Locate(tokenizer, chosen, store=store).moments(model)
        for prefix, apply in ways.items():
            method = Method(prefix + name, apply, chosen)
            start = time.perf_counter()
            with edited(method, model, tokenizer, cases, store=store, seed=0) as result:
                seconds[prefix] = time.perf_counter() - start
                row = _row(prefix + name, evaluate(result, tokenizer, cases))
            print(f"{row}  {1000 * seconds[prefix] / len(cases):7.1f}", flush=True)
        print(f"{name}: {seconds['easyedit:'] / seconds['']:.1f} times as fast", flush=True)


def scale(options: argparse.Namespace) -> None:
    """Milliseconds per edit by stage, peak memory and quality as the edits grow.

    Quality is that of 1,000 of the edits, drawn at random, while all are in place.
    """
    changes = {"generator": options.generator} if options.generator else {}
    hparams = MeGHyperParams.preset(options.preset, seed=options.seed, **changes)
    model, tokenizer = load_model(hparams)
    print(f"{_header('edits')}   fit s  ms/edit  peak GB  seconds by stage")
    for edits in options.edits:
        cases = edit_cases(load_world(), edits, options.seed)
        store = _store(options)
        start = time.perf_counter()
        meg, report = fit(model, tokenizer, [c.request for c in cases], hparams, store=store)
        seconds = time.perf_counter() - start + store.seconds_saved
        peak = peak_memory(model.device) / 1e9
        some = random.Random(options.seed).sample(cases, min(1000, edits))
        stages = ", ".join(f"{name} {value:.0f}" for name, value in report.seconds.items())
        print(
            f"{_row(str(edits), evaluate(meg, tokenizer, some))}  {seconds:6.0f} "
            f"{1000 * seconds / edits:8.1f} {peak:8.2f}  {stages}",
            flush=True,
        )


def _header(first: str) -> str:
    metrics = "  ".join(f"{m} {s}" for m in ("Rel", "Gen", "Loc") for s in ("AG", "TF"))
    return f"{first:16} {metrics}   Score  ms/query"


def _row(first: str, result: Evaluation) -> str:
    scores = result.scores
    pairs = (scores.reliability, scores.generality, scores.locality)
    cells = "  ".join(f"{value:6.2f}" for pair in pairs for value in (pair.ag, pair.tf))
    return f"{first:16} {cells}  {scores.score:6.2f}  {result.milliseconds_per_query:8.2f}"


def _store(options: argparse.Namespace) -> ArtifactStore:
    return ArtifactStore(options.stages)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands: dict[str, tuple[Any, list[int]]] = {
        "collection": (collection, [32]),
        "calibration": (calibration, [24, 256]),
        "sampling": (sampling, [1024]),
        "generators": (generators, [256, 1024, 4096]),
        "baselines": (baselines, [256]),
        "scale": (scale, [1024, 4096, 10000]),
    }
    parser.add_argument("what", choices=commands)
    parser.add_argument("--edits", type=int, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--generator", choices=GENERATORS, help="of scale (default: the preset's)")
    parser.add_argument("--stages", type=Path, help="keep finished stages in this folder")
    options = parser.parse_args()
    run, edits = commands[options.what]
    options.edits = options.edits or edits
    run(options)


if __name__ == "__main__":
    main()
