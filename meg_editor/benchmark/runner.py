"""Run methods on a data set: every cell once, under the same prompts, resumable."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path

from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.definition import Benchmark
from meg_editor.benchmark.edit_set import Before, EditSet
from meg_editor.benchmark.measure import MethodError, measure
from meg_editor.benchmark.pool import only_wrong, sampled
from meg_editor.benchmark.sequential import SequentialError
from meg_editor.data.cases import EvaluationCase
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.text_files import read_json, write_json

_LOG = logging.getLogger(__name__)


def run_benchmark(
    benchmark: Benchmark,
    model: CausalLM,
    tokenizer: Tokenizer,
    out: Path,
    report: Callable[[str], None] = print,
) -> list[Cell]:
    """Measure every method at every number of edits with every seed.

    Each cell is kept in `out`/cells as JSON and not run again while all it depends on is the same:
    weights, code and settings of the method, facts and questions, and `package_digest`. The weights
    of `model` are the same again after each cell; a copy of them is held in host memory meanwhile.
    A method that fails has no cell, and the others are measured.

    Args:
        report: called with a line per cell, with why a method has none, and with how many facts
            there are to choose from.

    Raises:
        ValueError: too few facts, or none to ask about, or chunks of none; two edits of a prompt.
        RuntimeError: a method leaves the model changed.

    Example:
        >>> benchmark = Benchmark("reference", split, methods, edits=(64, 256))  # doctest: +SKIP
        >>> cells = run_benchmark(benchmark, model, tok, Path("out"))  # doctest: +SKIP
    """
    if benchmark.max_asked is not None and benchmark.max_asked < 1:
        raise ValueError(
            f"max_asked: expected at least 1 edit to ask about, got {benchmark.max_asked}"
        )
    model.eval()
    samples = []  # all of them now: a number of edits that there are not fails before hours of work
    for count in dict.fromkeys(benchmark.edits):
        pool = _pool(benchmark, count, model, tokenizer, out, report)
        samples += [
            (count, seed, benchmark.cases(pool, count, seed)) for seed in range(benchmark.seeds)
        ]
    before = Before(model)
    cells = []
    for count, seed, cases in samples:
        edits = EditSet(benchmark, model, tokenizer, cases, seed, before)
        for method in benchmark.methods:
            name = f"{benchmark.data}-{method.name}-{count}-{seed}{benchmark.protocol}.json"
            path = out / "cells" / name
            key = edits.key(method)
            stored = read_json(path, "measure it")
            if stored is None or stored.get("key") != key:
                try:
                    cell = dataclasses.replace(measure(method, edits, out), key=key)
                except (SequentialError, MethodError) as error:
                    report(f"left out: {error}")
                    _LOG.debug("%s", error, exc_info=True)
                    continue
                write_json(path, cell.to_dict())
            else:
                cell = Cell.from_dict(stored)
            score = "-" if math.isnan(cell.score) else f"{cell.score:.1f}"
            report(
                f"{method.name:14} {count:6} edits, seed {seed}: Score {score} "
                f"({cell.seconds_total:.0f} s)"
            )
            cells.append(cell)
    return cells


def _pool(
    benchmark: Benchmark,
    count: int,
    model: CausalLM,
    tokenizer: Tokenizer,
    out: Path,
    report: Callable[[str], None],
) -> list[EvaluationCase]:
    """Facts to choose `count` edits from: the same whatever other numbers are measured."""
    pool = list(benchmark.split.edited)
    if benchmark.sample is not None or benchmark.whole_pool:
        return pool
    store = ArtifactStore(out / "stages")
    pool = only_wrong(sampled(pool, count), model, tokenizer, benchmark.hparams, store)
    facts = f"{len(pool)} facts whose target the model does not give yet"
    report(f"{benchmark.data}, {count} edits: {facts}")
    return pool
