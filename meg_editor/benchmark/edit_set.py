"""A set of edits: the questions every method is asked about it, and what a cell depends on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from meg_editor.benchmark.definition import Benchmark
from meg_editor.benchmark.methods import Method, package_digest
from meg_editor.benchmark.weights import WeightSnapshot
from meg_editor.data.cases import EvaluationCase, MultiHopCase
from meg_editor.data.relations import Relations
from meg_editor.evaluation import Question, questions_of
from meg_editor.evaluation.forms import FormPrompt, form_prompts, form_texts, sampled_facts
from meg_editor.evaluation.metrics import METRICS
from meg_editor.evaluation.multi_hop import chains_of
from meg_editor.evaluation.natural import NATURAL_TOKENS, natural_answers
from meg_editor.lm.answers import end_tokens
from meg_editor.lm.devices import input_device
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import max_target_length
from meg_editor.requests.prompts import PromptReader
from meg_editor.runtime.artifacts import digest


class Before:
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
class EditSet:
    """One set of edits, the same for every method."""

    benchmark: Benchmark
    model: CausalLM
    tokenizer: Tokenizer
    cases: list[EvaluationCase]
    seed: int
    before: Before

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

    def ask_unedited(self) -> None:
        """Ask the model what is compared later; it has to be unedited now."""
        _ = self.questions, self.in_forms
        if self.benchmark.natural:
            _ = self.natural_before

    def key(self, method: Method) -> str:
        """Digest of all a cell depends on."""
        hparams = method.hparams
        return digest(
            [
                str(self.model.name_or_path),
                self.before.fingerprint,
                sorted(end_tokens(self.model, self.tokenizer)),
                self.reader.template,
                method.code,
                getattr(hparams, "__dict__", hparams),
                self.before.package,
                self.seed,
                self.benchmark.options,
                self.benchmark.protocol,
                [self.cases, self.chains, sorted(self.asked)],
                [self.benchmark.forms, [form_texts(self.cases[n]) for n in self.asked_in_forms]],
                self.benchmark.timed,
                self.benchmark.hparams.encoder_name,  # it compares long answers
                # Seconds of a GPU do not stand beside those of a CPU.
                *([] if (kind := input_device(self.model).type) == "cpu" else [kind]),
            ]
        )
