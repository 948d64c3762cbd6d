"""Run methods on a data set: every cell once, under the same prompts, resumable."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from meg_editor import __version__
from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.definition import Benchmark
from meg_editor.benchmark.diagnostics import diagnose
from meg_editor.benchmark.methods import Method, edited, package_digest, settings_record
from meg_editor.benchmark.pool import only_wrong, sampled
from meg_editor.benchmark.sequential import SequentialError, carried, sequential
from meg_editor.benchmark.weights import WeightSnapshot
from meg_editor.config.settings import FlatHyperParams
from meg_editor.data.cases import EvaluationCase, MultiHopCase
from meg_editor.data.relations import Relations
from meg_editor.evaluation import MAX_NEW_TOKENS, Question, evaluate, questions_of
from meg_editor.evaluation.cost import latency, peak_memory, reset_peak_memory, stored_bytes
from meg_editor.evaluation.forced import forced_scores
from meg_editor.evaluation.forms import (
    FormPrompt,
    evaluate_forms,
    form_prompts,
    form_texts,
    sampled_facts,
)
from meg_editor.evaluation.metrics import METRICS
from meg_editor.evaluation.multi_hop import chains_of
from meg_editor.evaluation.natural import NATURAL_TOKENS, natural_answers, natural_scores
from meg_editor.evaluation.report import MethodReport
from meg_editor.lm.answers import end_tokens
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import max_target_length
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.runtime.artifacts import ArtifactStore, digest
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
        report: called with a line per cell, and with why a method has none.

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
    pool = list(benchmark.split.edited)
    if benchmark.sample is None and not benchmark.whole_pool:
        pool = sampled(pool, max(benchmark.edits))
        store = ArtifactStore(out / "stages")
        pool = only_wrong(pool, model, tokenizer, benchmark.hparams, store)
        report(f"{benchmark.data}: {len(pool)} facts whose target the model does not give yet")
    model.eval()
    before = _Before(model)
    samples = [  # all of them now: a number of edits that there are not fails before hours of work
        (count, seed, benchmark.cases(pool, count, seed))
        for count in benchmark.edits
        for seed in range(benchmark.seeds)
    ]
    cells = []
    for count, seed, cases in samples:
        run = _EditSet(benchmark, model, tokenizer, cases, seed, before)
        for method in benchmark.methods:
            name = f"{benchmark.data}-{method.name}-{count}-{seed}{benchmark.protocol}.json"
            path = out / "cells" / name
            key = run.key(method)
            stored = read_json(path, "measure it")
            if stored is None or stored.get("key") != key:
                try:
                    cell = dataclasses.replace(run.measure(method, out), key=key)
                except (SequentialError, _MethodError) as error:
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


class _MethodError(RuntimeError):
    """A method failed to edit; the cause has why."""


class _Before:
    """The model before any method."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model

    @cached_property
    def fingerprint(self) -> dict[str, list[float]]:
        return fingerprint(self.model)

    @cached_property
    def package(self) -> str:
        return package_digest()

    @cached_property
    def snapshot(self) -> WeightSnapshot:
        return WeightSnapshot(self.model)


@dataclass
class _EditSet:
    """One set of edits, the same for every method."""

    benchmark: Benchmark
    model: CausalLM
    tokenizer: Tokenizer
    cases: list[EvaluationCase]
    seed: int
    before: _Before

    @cached_property
    def reader(self) -> PromptReader:
        """Has the prompt template."""
        return PromptReader(self.tokenizer, self.benchmark.hparams.prompt_template)

    @cached_property
    def questions(self) -> list[Question]:
        split = self.benchmark.split
        known = [*self.cases, *split.edited, *split.pseudo, *split.calibration]
        return questions_of(
            self.model,
            self.tokenizer,
            self.cases,
            self.reader,
            traps=Relations(known),
            only=self.asked,
        )

    @cached_property
    def asked(self) -> set[int]:
        """Indices of the evaluated cases."""
        count = len(self.cases)
        size = min(self.benchmark.max_asked or count, count)
        return set(random.Random(self.seed).sample(range(count), size))

    @cached_property
    def asked_in_forms(self) -> list[int]:
        """Indices of the cases which are asked in prompt forms; none without forms."""
        return sampled_facts(self.asked, self.seed) if self.benchmark.forms else []

    @cached_property
    def in_forms(self) -> list[FormPrompt]:
        """Those cases in all forms."""
        forms = self.benchmark.forms
        return form_prompts(self.model, self.tokenizer, self.cases, forms, self.asked_in_forms)

    @cached_property
    def chains(self) -> list[MultiHopCase]:
        """Those of which every edit is made, and which no other edit contradicts."""
        return chains_of(self.cases, self.benchmark.multi_hop)

    @cached_property
    def natural_questions(self) -> list[Question]:
        """Those which natural answers are judged by."""
        return [question for question in self.questions if question.family in METRICS]

    @cached_property
    def natural_before(self) -> list[str]:
        """Answers of the unedited model, in the same batches."""
        return self.natural_answers(self.model)

    def natural_answers(self, model: Any) -> list[str]:
        """Of a model, unedited or edited, to these questions."""
        prompts = [question.prompt for question in self.natural_questions]
        limit = self.max_tokens(NATURAL_TOKENS)
        return natural_answers(model, self.tokenizer, prompts, self.reader, limit)

    def max_tokens(self, at_least: int) -> int:
        """Of an answer: the longest target has to fit."""
        requests = [case.request for case in self.cases]
        return max_target_length(self.tokenizer, requests, at_least)

    def key(self, method: Method) -> str:
        """Digest of all a cell depends on."""
        hparams = method.hparams
        parts = [
            str(self.model.name_or_path),
            __version__,
            self.seed,
            self.benchmark.options,
            [self.cases, self.chains],
            getattr(hparams, "__dict__", hparams),
            method.code,
            self.before.package,
            self.before.fingerprint,
        ]
        if len(self.asked) < len(self.cases):
            parts.append(sorted(self.asked))
        if self.benchmark.forms:
            texts = [form_texts(self.cases[index]) for index in self.asked_in_forms]
            parts.append([list(self.benchmark.forms), texts])
        if self.benchmark.protocol:
            parts.append(self.benchmark.protocol)
        if self.reader.template != "{}":
            parts.append({"prompt_template": self.reader.template})
        ends = end_tokens(self.model, self.tokenizer)
        own = getattr(self.model.config.get_text_config(), "eos_token_id", None)
        if ends != set(own if isinstance(own, list) else [own]):
            parts.append({"end_tokens": sorted(ends)})
        return digest(parts)

    def measure(self, method: Method, out: Path) -> Cell:
        """One cell."""
        hparams, timed = method.hparams, self.benchmark.timed
        if isinstance(hparams, FlatHyperParams):
            hparams = hparams.changed(seed=self.seed)
            method = dataclasses.replace(method, hparams=hparams)
        chunk = self.benchmark.sequential
        if chunk is not None:
            method = sequential(method, chunk)
        store = ArtifactStore(out / "stages")
        options = {**self.benchmark.options, "store": store, "seed": self.seed}
        # While the model is unedited.
        questions, in_forms = self.questions, self.in_forms
        before = self.natural_before if self.benchmark.natural else []
        reset_peak_memory(self.model.device)
        snapshot = self.before.snapshot
        start = time.perf_counter()
        with ExitStack() as stack:
            editing = edited(method, self.model, self.tokenizer, self.cases, snapshot, **options)
            try:
                result = stack.enter_context(editing)
            except SequentialError:
                raise
            except Exception as error:  # whatever a method raises
                raise _MethodError(f"{method.name}: {type(error).__name__}: {error}") from error
            seconds = time.perf_counter() - start
            meg = result if isinstance(result, MeGModel) else None
            evaluation = evaluate(
                result,
                self.tokenizer,
                self.cases,
                questions=questions,
                oracle=meg.collected if meg else None,
                reader=self.reader,
            )
            stored = stored_bytes(result, self.model)
            report = MethodReport(evaluation, meg.fitted if meg else None, stored)
            prompts = {
                kind: [self.reader.wrap(q.prompt) for q in questions if q.family == family]
                for kind, family in (("edited", "reliability"), ("unedited", "locality"))
            }
            entries = {
                "data": self.benchmark.data,
                "method": method.name,
                "edits": len(self.cases),
                "asked": len(self.asked),
                "seed": self.seed,
                "questions": dict(Counter(question.kind for question in questions)),
                "max_tokens": self.max_tokens(MAX_NEW_TOKENS),
                **report.to_dict(),
                "settings": settings_record(hparams),
                "seconds_total": seconds + store.seconds_saved,
                "bytes_per_edit": stored / len(self.cases),
                "peak_memory": peak_memory(self.model.device),
                "latency": {
                    kind: dataclasses.asdict(latency(result, self.tokenizer, texts[:timed]))
                    for kind, texts in prompts.items()
                    if texts[:timed]
                },
                **diagnose(
                    result,
                    self.tokenizer,
                    self.cases,
                    questions,
                    evaluation,
                    self.chains,
                    self.benchmark.encode,
                    self.reader,
                ),
            }
            forced = forced_scores(result, self.tokenizer, self.cases, questions, self.reader)
            entries["forced"] = dataclasses.asdict(forced)
            entries["questions"]["with old answer"] = entries["forced"].pop("compared")
            if chunk is not None:
                entries["sequential"] = {"chunk": chunk, "carried": carried(method)}
            if self.benchmark.natural:
                answers = self.natural_answers(result)
                entries["natural"] = natural_scores(self.natural_questions, before, answers)
            if in_forms:
                entries |= evaluate_forms(result, self.tokenizer, in_forms).to_dict()
            return Cell.from_dict(entries)
