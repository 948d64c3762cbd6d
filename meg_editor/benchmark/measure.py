"""One cell: a method edits the model, and is asked."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.diagnostics import diagnose
from meg_editor.benchmark.edit_set import EditSet
from meg_editor.benchmark.methods import Method, edited, settings_record
from meg_editor.benchmark.sequential import SequentialError, carried, sequential
from meg_editor.config.settings import FlatHyperParams
from meg_editor.evaluation import MAX_NEW_TOKENS, evaluate
from meg_editor.evaluation.cost import latency, peak_memory, reset_peak_memory, stored_bytes
from meg_editor.evaluation.forced import forced_scores
from meg_editor.evaluation.forms import evaluate_forms
from meg_editor.evaluation.natural import natural_scores
from meg_editor.evaluation.report import MethodReport
from meg_editor.lm.devices import input_device
from meg_editor.model.meg_model import MeGModel
from meg_editor.runtime.artifacts import ArtifactStore


class MethodError(RuntimeError):
    """A method failed to edit; the cause has why."""


def measure(method: Method, edits: EditSet, out: Path) -> Cell:
    """One cell; the model is as before afterwards.

    Args:
        out: stages of fitting are stored in its folder "stages".

    Raises:
        MethodError: the method failed to edit.
        SequentialError: it cannot edit in chunks.
    """
    benchmark, model = edits.benchmark, edits.model
    hparams = method.hparams
    if isinstance(hparams, FlatHyperParams):
        hparams = hparams.changed(seed=edits.seed)
        method = dataclasses.replace(method, hparams=hparams)
    chunk = benchmark.sequential
    if chunk is not None:
        method = sequential(method, chunk)
    store = ArtifactStore(out / "stages")
    options = {**benchmark.options, "store": store, "seed": edits.seed}
    edits.ask_unedited()
    reset_peak_memory(input_device(model))
    snapshot = edits.before.snapshot
    start = time.perf_counter()
    with ExitStack() as stack:
        editing = edited(method, model, edits.tokenizer, edits.cases, snapshot, **options)
        try:
            result = stack.enter_context(editing)
        except SequentialError:
            raise
        except Exception as error:  # whatever a method raises
            raise MethodError(f"{method.name}: {type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - start + store.seconds_saved
        entries = {
            "data": benchmark.data,
            "method": method.name,
            "edits": len(edits.cases),
            "asked": len(edits.asked),
            "seed": edits.seed,
            "settings": settings_record(hparams),
            "seconds_total": seconds,
            **_answers(result, edits),
        }
        if chunk is not None:
            entries["sequential"] = {"chunk": chunk, "carried": carried(method)}
        return Cell.from_dict(entries)


def _answers(result: Any, edits: EditSet) -> dict[str, Any]:
    """What an edited model answers, and what that costs."""
    benchmark, tokenizer, reader = edits.benchmark, edits.tokenizer, edits.reader
    cases, questions = edits.cases, edits.questions
    meg = result if isinstance(result, MeGModel) else None
    oracle = meg.collected if meg else None
    evaluation = evaluate(
        result, tokenizer, cases, questions=questions, oracle=oracle, reader=reader
    )
    stored = stored_bytes(result, edits.model)
    report = MethodReport(evaluation, meg.fitted if meg else None, stored)
    chains, encode = edits.chains, benchmark.encode
    found = diagnose(result, tokenizer, cases, questions, evaluation, chains, encode, reader)
    forced = dataclasses.asdict(forced_scores(result, tokenizer, cases, questions, reader))
    counts = Counter(question.kind for question in questions)
    entries = {
        **report.to_dict(),
        "questions": {**counts, "with old answer": forced.pop("compared")},
        "max_tokens": edits.max_tokens(MAX_NEW_TOKENS),
        "bytes_per_edit": stored / len(cases),
        "peak_memory": peak_memory(input_device(edits.model)),
        "latency": _latency(result, edits),
        **found,
        "forced": forced,
    }
    if benchmark.natural:
        before, after = edits.natural_before, edits.natural_answers(result)
        entries["natural"] = natural_scores(edits.natural_questions, before, after)
    if edits.in_forms:
        entries |= evaluate_forms(result, tokenizer, edits.in_forms).to_dict()
    return entries


def _latency(result: Any, edits: EditSet) -> dict[str, dict[str, float]]:
    """Of an edited model, asked about edits and about something else; none if none is timed."""
    timed = edits.benchmark.timed
    prompts = {
        kind: [edits.reader.wrap(q.prompt) for q in edits.questions if q.family == family][:timed]
        for kind, family in (("edited", "reliability"), ("unedited", "locality"))
    }
    return {
        kind: dataclasses.asdict(latency(result, edits.tokenizer, texts))
        for kind, texts in prompts.items()
        if texts
    }
