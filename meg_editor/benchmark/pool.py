"""The facts which edits are chosen from: those whose target the model does not give anyway."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import compress

import torch

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.cases import EvaluationCase
from meg_editor.evaluation import MAX_NEW_TOKENS
from meg_editor.evaluation.metrics import normalise
from meg_editor.lm.answers import batched_answers, end_tokens
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import max_target_length
from meg_editor.requests.prompts import in_template
from meg_editor.runtime.artifacts import ArtifactStore

_FACTS, _LEAST = 16, 512  # to choose from: so many for each edit, and at least


def sampled(cases: Sequence[EvaluationCase], edits: int) -> list[EvaluationCase]:
    """Enough of `cases` to choose so many edits from: a pretrained LLM answers all facts of a large
    data set for longer than the benchmark takes.
    """
    limit = max(_LEAST, _FACTS * edits)
    return random.Random(0).sample(list(cases), limit) if limit < len(cases) else list(cases)


def only_wrong(
    cases: Sequence[EvaluationCase],
    model: CausalLM,
    tokenizer: Tokenizer,
    hparams: MeGHyperParams,
    store: ArtifactStore | None = None,
) -> list[EvaluationCase]:
    """The facts of which the model does not give the target anyway (A.9).

    Args:
        store: has the result where the same model was asked the same before.
    """
    prompts = [in_template(hparams.prompt_template, case.request.prompt) for case in cases]
    targets = [case.request.target_new for case in cases]
    length = max_target_length(tokenizer, [case.request for case in cases], MAX_NEW_TOKENS)

    def ask() -> dict[str, torch.Tensor]:
        answers = batched_answers(model, tokenizer, prompts, length)
        pairs = zip(answers, targets, strict=True)
        return {"wrong": torch.tensor([normalise(a) != normalise(t) for a, t in pairs])}

    ends = sorted(end_tokens(model, tokenizer))
    inputs = [fingerprint(model), ends, length, prompts, targets]
    found = (store or ArtifactStore()).run("wrong", inputs, ask)
    return list(compress(cases, found.tensors["wrong"].tolist()))
