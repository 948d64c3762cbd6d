"""Run methods on a data set: every cell once, under the same prompts, resumable."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from meg_editor import __version__
from meg_editor.benchmark.diagnostics import diagnose
from meg_editor.benchmark.methods import Method, edited
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.settings import FlatHyperParams
from meg_editor.data.cases import EvaluationCase, MultiHopCase
from meg_editor.data.relations import Relations
from meg_editor.data.splits import Split, choose, known_texts, tuning_requests
from meg_editor.evaluation import Question, evaluate, questions_of
from meg_editor.evaluation.cost import added_bytes, latency, peak_memory, reset_peak_memory
from meg_editor.evaluation.metrics import normalise
from meg_editor.evaluation.report import MethodReport
from meg_editor.lm.reference import resolve_model_name
from meg_editor.lm.tokens import batched_answers
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import ArtifactStore, digest
from meg_editor.runtime.text_files import read_json, write_json


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        data: the name of the data set.
        split: its facts: those to edit, and those of the fitting stages.
        methods: the rows of the tables.
        edits: numbers of edits.
        seeds: how many draws of the edits, 0, 1, ….
        pseudo, calibration: how many facts the fitting stages may have.
        hparams: what the questions are put with, and the encoder which compares long answers.
        asked: ask about so many of the edits at most, drawn at random, while all are in place.
        timed: so many edits, and so many other queries, are asked one by one for the latency.
        whole_pool: edit facts too which the model knows that way already.
        draw: (edits, seed) -> cases, where these are not chosen from `split.edited`.
        multi_hop: chains of facts; those are asked of which every edit is made.
    """

    data: str
    split: Split
    methods: Sequence[Method]
    edits: Sequence[int] = (1024,)
    seeds: int = 3
    pseudo: int = 2000
    calibration: int = 400
    hparams: MeGHyperParams = field(default_factory=lambda: MeGHyperParams.preset("default"))
    multi_hop: Sequence[MultiHopCase] = ()
    asked: int | None = None
    timed: int = 20
    whole_pool: bool = False
    draw: Callable[[int, int], Sequence[EvaluationCase]] | None = None

    @cached_property
    def options(self) -> dict[str, Any]:
        """What the fitting stages may see, as keywords of every method: facts, none of them edited
        (`pseudo`, `calibration`), and texts which the model should go on knowing (`texts`).
        """
        pseudo, calibration = self.split.pseudo, self.split.calibration
        wordings = Relations([*pseudo, *calibration])
        return {
            # What is asked takes an encoder many examples; a threshold is not about these alone.
            "pseudo": tuning_requests(pseudo, self.pseudo, 0, wordings, others=16),
            "calibration": tuning_requests(calibration, self.calibration, 0, wordings),
            "texts": known_texts(self.split.pseudo),
        }

    def encode(self, texts: Sequence[str]) -> Tensor:
        """B texts -> unit vectors (B, E), by the encoder as it is before any tuning."""
        name = resolve_model_name(self.hparams.encoder_name)
        return TextEncoder.from_pretrained(name).encode(texts)


def run_benchmark(
    benchmark: Benchmark,
    model: Any,
    tokenizer: Any,
    out: Path,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure every method at every number of edits with every seed.

    Each cell is kept in `out`/cells as JSON and not run again while what it depends on is the same.

    Returns:
        One entry per cell: `method`, `edits`, `asked` of them, `seed`, the entries of
        `MethodReport.to_dict`, and `seconds_total`, `peak_memory`, `latency` of an edited and of an
        unedited query.

    Raises:
        ValueError: too few facts, or none to ask about.
        RuntimeError: a method leaves the model changed.
    """
    if benchmark.asked is not None and benchmark.asked < 1:
        raise ValueError(f"asked: expected at least 1 edit to ask about, got {benchmark.asked}")
    pool = list(benchmark.split.edited)
    if benchmark.draw is None and not benchmark.whole_pool:
        pool = only_wrong(pool, model, tokenizer, benchmark.hparams)
        say(f"{benchmark.data}: {len(pool)} facts which the model does not know that way")
    cells = []
    for count in benchmark.edits:
        for seed in range(benchmark.seeds):
            draw = benchmark.draw or partial(choose, pool)
            run = _Draw(benchmark, model, tokenizer, list(draw(count, seed)), seed)
            for method in benchmark.methods:
                path = out / "cells" / f"{benchmark.data}-{method.name}-{count}-{seed}.json"
                key = run.key(method)
                cell = read_json(path, "measure it")
                if cell is None or cell.get("key") != key:
                    cell = without_nan({"key": key, **run.measure(method, out)})
                    write_json(path, cell)
                score = "-" if cell["score"] is None else f"{cell['score']:.1f}"
                say(
                    f"{method.name:14} {count:6} edits, seed {seed}: Score {score} "
                    f"({cell['seconds_total']:.0f} s)"
                )
                cells.append(cell)
    return cells


def without_nan(value: Any) -> Any:
    """None for NaN, which is no JSON: a metric of which the data set asks nothing."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def only_wrong(
    cases: Sequence[EvaluationCase], model: Any, tokenizer: Any, hparams: MeGHyperParams
) -> list[EvaluationCase]:
    """The facts of which the model does not give the target anyway (A.9)."""
    reader = PromptReader(tokenizer, hparams.prompt_template)
    prompts = [reader.wrap(case.request.prompt) for case in cases]
    answers = batched_answers(model, tokenizer, prompts, 12)
    return [
        case
        for case, answer in zip(cases, answers, strict=True)
        if normalise(answer) != normalise(case.request.target_new)
    ]


@dataclass
class _Draw:
    """One set of edits, which every method gets."""

    benchmark: Benchmark
    model: Any
    tokenizer: Any
    cases: list[EvaluationCase]
    seed: int

    @cached_property
    def questions(self) -> list[Question]:
        reader = PromptReader(self.tokenizer, self.benchmark.hparams.prompt_template)
        split = self.benchmark.split
        known = [*self.cases, *split.edited, *split.pseudo, *split.calibration]
        return questions_of(
            self.model,
            self.tokenizer,
            self.cases,
            reader,
            traps=Relations(known),
            asked=self.asked,
        )

    @cached_property
    def asked(self) -> set[int]:
        """The indices of the cases which are asked about."""
        count = len(self.cases)
        asked = min(self.benchmark.asked or count, count)
        return set(random.Random(self.seed).sample(range(count), asked))

    @cached_property
    def chains(self) -> list[MultiHopCase]:
        edited = {case.request.prompt for case in self.cases}
        return [chain for chain in self.benchmark.multi_hop if edited.issuperset(chain.edits)]

    def key(self, method: Method) -> str:
        """A digest of all a cell depends on."""
        hparams = method.hparams
        parts = [
            str(self.model.name_or_path),
            __version__,
            self.seed,
            self.benchmark.options,
            [self.cases, self.chains],
            getattr(hparams, "__dict__", hparams),
        ]
        if len(self.asked) < len(self.cases):
            parts.append(sorted(self.asked))
        return digest(parts)

    def measure(self, method: Method, out: Path) -> dict[str, Any]:
        """One cell."""
        b, hparams = self.benchmark, method.hparams
        if isinstance(hparams, FlatHyperParams):
            hparams = hparams.changed(seed=self.seed)
            method = dataclasses.replace(method, hparams=hparams)
        store = ArtifactStore(out / "stages")
        options = {**b.options, "store": store, "seed": self.seed}
        questions = self.questions
        reset_peak_memory(self.model.device)
        start = time.perf_counter()
        with edited(method, self.model, self.tokenizer, self.cases, **options) as result:
            seconds = time.perf_counter() - start
            meg = result if isinstance(result, MeGModel) else None
            evaluation = evaluate(
                result,
                self.tokenizer,
                self.cases,
                questions=questions,
                oracle=meg.collected if meg else None,
            )
            stored = meg.stored_bytes if meg else added_bytes(result, self.model)
            report = MethodReport(evaluation, meg.fitted if meg else None, stored)
            prompts = {
                "edited": [q.prompt for q in questions if q.kind == "reliability"],
                "unedited": [q.prompt for q in questions if q.kind.startswith("locality")],
            }
            return {
                "data": b.data,
                "method": method.name,
                "edits": len(self.cases),
                "asked": len(self.asked),
                "seed": self.seed,
                **report.to_dict(),
                "settings": _settings(hparams),
                "seconds_total": seconds + store.seconds_saved,
                "bytes_per_edit": stored / len(self.cases),
                "peak_memory": peak_memory(self.model.device),
                "latency": {
                    kind: dataclasses.asdict(latency(result, self.tokenizer, texts[: b.timed]))
                    for kind, texts in prompts.items()
                    if texts[: b.timed]
                },
                **diagnose(
                    result,
                    self.tokenizer,
                    self.cases,
                    questions,
                    evaluation,
                    self.chains,
                    self.benchmark.encode,
                ),
            }


def _settings(hparams: Any) -> Any:
    """For the record: plain types, and no secret."""
    if isinstance(hparams, FlatHyperParams):
        return {name: v for name, v in hparams.to_dict().items() if name != "api_key"}
    return json.loads(json.dumps(hparams, default=str))
