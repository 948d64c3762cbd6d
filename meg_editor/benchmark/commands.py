"""`meg-editor benchmark` and `meg-editor tables`, once their settings are read."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from meg_editor.benchmark.methods import resolve_method
from meg_editor.benchmark.paper_tables import run_tables
from meg_editor.benchmark.plots import check_matplotlib
from meg_editor.benchmark.report import write_report
from meg_editor.benchmark.runner import Benchmark, run_benchmark
from meg_editor.data.cases import Dataset
from meg_editor.data.datasets import DATASETS
from meg_editor.data.preprocessing import one_per_subject, without_conflicts
from meg_editor.data.splits import split_cases
from meg_editor.hparams import MeGHyperParams
from meg_editor.loading import load_model


def benchmark_command(
    options: argparse.Namespace, hparams: MeGHyperParams, paper: MeGHyperParams
) -> None:
    """Methods side by side; prints the report."""
    methods = [resolve_method(name, hparams, paper) for name in options.methods.split(",")]
    benchmark = dataclasses.replace(
        _benchmark(options, hparams), methods=methods, seeds=options.seeds
    )
    model, tokenizer = load_model(hparams)
    cells = run_benchmark(benchmark, model, tokenizer, options.out)
    write_report(cells, options.out, plots=options.plots)
    print((options.out / "report.md").read_text("utf-8"))


def tables_command(options: argparse.Namespace, hparams: MeGHyperParams) -> None:
    """The paper's tables and figures; prints them."""
    unke = DATASETS["unke"](options.unke) if options.unke else None
    mquake = DATASETS["mquake"](options.mquake) if options.mquake else None
    benchmark = _benchmark(options, hparams)
    model, tokenizer = load_model(hparams)
    run_tables(
        benchmark,
        model,
        tokenizer,
        options.out,
        unke=unke,
        mquake=mquake,
        only=options.only,
        long_answers=options.long_answers,
        plots=options.plots,
    )
    print((options.out / "tables.md").read_text("utf-8"))


def _benchmark(options: argparse.Namespace, hparams: MeGHyperParams) -> Benchmark:
    if options.plots:
        check_matplotlib()  # not after an hour
    data = _load(options.data, options.path)
    cases = without_conflicts(data.cases)
    if not data.multi_hop:  # chains need several facts about one subject
        cases = one_per_subject(cases)
    training = None
    if options.training_path:
        training = _load(options.data, options.training_path).cases
    options.out.mkdir(parents=True, exist_ok=True)
    return Benchmark(
        options.data,
        split_cases(cases, training),
        (),
        options.edits,
        hparams=hparams,
        multi_hop=data.multi_hop,
    )


def _load(name: str, path: Path) -> Dataset:
    if name not in DATASETS:
        raise ValueError(f"--data: expected one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name](path)
