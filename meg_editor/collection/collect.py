"""Knowledge-weight collection: facts -> target neurons, many at once (section 4.1 c.1)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import find_executable_batch_size
from torch import Tensor

from meg_editor.collection.optimizer import Rows, optimise, row_losses
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Batch, Example, batched_answers, encode_example
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.memory import free_bytes, rows_within
from meg_editor.runtime.progress import progress_bar

_ENOUGH = {"cpu": 48}  # rows: more are no faster there
_MAX_ROWS = 4096
RETRIES = 2


@dataclass(frozen=True)
class Collection:
    """Neurons for N facts.

    Attributes:
        neurons: (N, P) float32, on the CPU.
        success: (N,) bool, whether the greedy answer is the target.
        steps: (N,) SGD steps taken.
    """

    neurons: Tensor
    success: Tensor
    steps: Tensor

    @classmethod
    def empty(cls, spec: NeuronSpec, count: int = 0) -> Collection:
        """Of facts which have no neuron yet."""
        return cls(
            torch.zeros(count, spec.size),
            torch.ones(count, dtype=torch.bool),
            torch.zeros(count, dtype=torch.long),
        )


def shared_start(spec: NeuronSpec, seed: int) -> Tensor:
    """The one random neuron (P,) from which every fact starts.

    One start for all keeps the neurons of similar facts close, so that a generator can learn
    them. k is scaled so that k·x is about 1 for a normalised x; v starts small but not at zero,
    where k would get no gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(spec.size, generator=generator)
    k, b, v = spec.split(start)
    k /= math.sqrt(spec.hidden_size)
    v *= 0.1 / math.sqrt(spec.hidden_size)
    if b is not None:
        b.zero_()
    return start


def collect(
    model: CausalLM,
    tokenizer: Tokenizer,
    spec: NeuronSpec,
    requests: Sequence[EditRequest],
    hparams: MeGHyperParams,
    runtime: RuntimeConfig | None = None,
    *,
    retries: int = RETRIES,
) -> Collection:
    """Optimise one neuron per fact on the frozen model.

    Facts are independent: their rows share a batch, never a parameter. Each fact is shown in
    `collection_contexts` contexts, bare and after random beginnings of other prompts, so that its
    neuron does not hang on the first position. A fact has converged once every context has the
    target as its greedy answer with a loss below `collection_loss_threshold`. Facts that fail are
    tried again, from the start with half the rate and twice the steps.

    Args:
        retries: most further rounds.

    Raises:
        FloatingPointError: no fact has a finite loss.
    """
    runtime = runtime or RuntimeConfig()
    reader = PromptReader(tokenizer, hparams.prompt_template)
    contexts = _contexts(requests, hparams.collection_contexts, hparams.seed)
    examples = [
        [
            encode_example(tokenizer, prefix + reader.wrap(request.prompt), request.target_new)
            for prefix in prefixes
        ]
        for request, prefixes in zip(requests, contexts, strict=True)
    ]
    start = shared_start(spec, hparams.seed)
    neurons = start.repeat(len(requests), 1)
    success = torch.zeros(len(requests), dtype=torch.bool)
    steps = torch.zeros(len(requests), dtype=torch.long)
    longest = max(len(row.target) for rows in examples for row in rows)
    prompts = [reader.wrap(request.prompt) for request in requests]
    unlearned = list(range(len(requests)))
    any_finite = False
    with NeuronHook(model, spec) as hook:
        rows = _rows_at_once(model, hook, start, examples, runtime)
        # Should they not fit all the same, it begins again with fewer.
        fitting = find_executable_batch_size(optimise, starting_batch_size=rows)
        for attempt in range(1 + retries):
            with progress_bar(range(len(unlearned)), "collection", "fact") as bar:
                descent = fitting(
                    model,
                    hook,
                    start,
                    [examples[fact] for fact in unlearned],
                    hparams.collection_lr / 2**attempt,
                    hparams.collection_steps * 2**attempt,
                    hparams,
                    runtime.collection_bfloat16,
                    bar.update,
                )
            finite = descent.neurons.isfinite().all(1)
            any_finite = any_finite or bool(finite.any())
            learned = descent.converged & finite
            # The answer of a converged fact is the target: only the others are asked.
            unsure = (finite & ~learned).nonzero().flatten().tolist()
            facts = [unlearned[place] for place in unsure]
            answers = answers_with(
                model,
                tokenizer,
                spec,
                descent.neurons[unsure],
                [prompts[fact] for fact in facts],
                longest,
            )
            for place, fact, answer in zip(unsure, facts, answers, strict=True):
                learned[place] = answer == requests[fact].target_new
            places = torch.tensor(unlearned)
            steps[places] += descent.steps
            neurons[places[finite]] = descent.neurons[finite]
            success[places] = learned
            unlearned = [fact for fact in unlearned if not success[fact]]
            if not unlearned:
                break
    if requests and not any_finite:
        raise FloatingPointError(
            "collection: no neuron has a finite loss; lower collection_lr "
            f"({hparams.collection_lr})"
        )
    return Collection(neurons, success, steps)


def _rows_at_once(
    model: CausalLM,
    hook: NeuronHook,
    start: Tensor,
    examples: Sequence[Sequence[Example]],
    runtime: RuntimeConfig,
) -> int:
    """The given batch size, or as many rows of the longest fact as fit into memory."""
    if runtime.collection_batch_size is not None:
        return runtime.collection_batch_size
    device = model.device
    longest = max(examples, key=lambda rows: max(map(len, rows)))
    batch = Batch.of(longest, device)
    layers = LayersFrom(model, hook.spec.layer)
    owner = torch.zeros(len(longest), dtype=torch.long, device=device)
    rows = Rows(batch, layers.residual_stream(batch.ids), owner)
    neuron = start[None].to(device).requires_grad_(True)

    def forward() -> Tensor:
        return row_losses(model, hook, layers, rows, neuron, runtime.collection_bfloat16)[0]

    budget = runtime.collection_memory * free_bytes(device)
    fitting = rows_within(budget, forward, len(longest), model.parameters())
    return min(fitting, _ENOUGH.get(device.type, _MAX_ROWS))


def answers_with(
    model: CausalLM,
    tokenizer: Tokenizer,
    spec: NeuronSpec,
    neurons: Tensor,
    prompts: Sequence[str],
    max_new_tokens: int,
    rows: int = 256,
) -> list[str]:
    """Greedy answers to B prompts, each row with its own of the neurons (B, P)."""
    neurons = neurons.to(model.device)
    with NeuronHook(model, spec) as hook:
        return batched_answers(
            model,
            tokenizer,
            prompts,
            max_new_tokens,
            lambda chunk: hook.attached(neurons[chunk]),
            rows,
        )


def _contexts(requests: Sequence[EditRequest], count: int, seed: int) -> list[list[str]]:
    """For each request `count` prefixes: none, and random sentence beginnings of other facts."""
    rng = random.Random(seed)
    beginnings = [" ".join(request.prompt.split()[:5]) for request in requests]
    return [
        ["", *(f"{rng.choice(beginnings).rstrip('?.,')}. " for _ in range(count - 1))]
        for _ in requests
    ]
