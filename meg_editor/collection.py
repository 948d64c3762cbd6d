"""Knowledge-weight collection: facts -> target neurons, many at once (section 4.1 c.1)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.hparams import MeGHyperParams
from meg_editor.neuron import NeuronHook, NeuronSpec
from meg_editor.precision import bfloat16
from meg_editor.progress import track
from meg_editor.query import QueryReader
from meg_editor.requests import EditRequest
from meg_editor.tokens import (
    Batch,
    Example,
    batched_answers,
    by_length,
    encode_example,
    greedy_answers,
    target_logits,
)
from meg_editor.upper_layers import UpperLayers


@dataclass(frozen=True)
class Collection:
    """Neurons for N facts.

    Attributes:
        neurons: (N, P) float32, on the CPU.
        success: (N,) bool, whether greedy generation gives the target.
        steps: (N,) SGD steps taken.
    """

    neurons: Tensor
    success: Tensor
    steps: Tensor


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
    model: Any,
    tokenizer: Any,
    spec: NeuronSpec,
    requests: Sequence[EditRequest],
    hparams: MeGHyperParams,
) -> Collection:
    """Optimise one neuron per fact on the frozen model.

    Facts are independent: their rows share a batch, never a parameter. Each fact is shown in
    `collection_contexts` contexts, bare and after random beginnings of other prompts, so that its
    neuron does not hang on the first position. A fact is finished once every context has the
    target as its greedy answer with a loss below `collection_margin`. Facts which fail
    are tried again, from the start with half the rate and twice the steps.

    Raises:
        FloatingPointError: every attempt at some fact ended in a loss that is not finite.
    """
    reader = QueryReader(tokenizer, hparams.prompt_template)
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
    open_facts = list(range(len(requests)))
    with NeuronHook(model, spec) as hook:
        for attempt in range(1 + hparams.collection_retries):
            rate = hparams.collection_lr / 2**attempt
            budget = hparams.collection_steps * 2**attempt
            lengths = [max(map(len, examples[fact])) for fact in open_facts]
            with track(range(len(open_facts)), "neurons", "fact") as bar:
                facts_at_once = hparams.collection_batch_size // hparams.collection_contexts
                for chunk in by_length(lengths, max(1, facts_at_once)):
                    facts = [open_facts[position] for position in chunk]
                    found, taken = _descend(
                        model, hook, start, [examples[f] for f in facts], rate, budget, hparams
                    )
                    told = _greedy_success(
                        model, tokenizer, hook, found, [requests[f] for f in facts], reader
                    )
                    finite = found.isfinite().all(1)
                    rows = torch.tensor(facts)
                    steps[rows] += taken
                    neurons[rows[finite]] = found[finite]
                    success[rows] = told & finite
                    bar.update(len(facts))
            open_facts = [fact for fact in open_facts if not success[fact]]
            if not open_facts:
                break
    if torch.equal(neurons, start.repeat(len(requests), 1)):
        raise FloatingPointError(
            "collection: no neuron has a finite loss; lower collection_lr "
            f"({hparams.collection_lr})"
        )
    return Collection(neurons, success, steps)


def answers_with(
    model: Any,
    tokenizer: Any,
    spec: NeuronSpec,
    neurons: Tensor,
    prompts: Sequence[str],
    max_new_tokens: int,
    rows: int = 256,
) -> list[str]:
    """Greedy answers to B prompts, the row of each with its own of the neurons (B, P)."""
    own = neurons.to(model.device)
    with NeuronHook(model, spec) as hook:
        return batched_answers(
            model,
            tokenizer,
            prompts,
            max_new_tokens,
            lambda chunk: hook.attached(own[chunk]),
            rows,
        )


def _descend(
    model: Any,
    hook: NeuronHook,
    start: Tensor,
    facts: Sequence[Sequence[Example]],
    rate: float,
    budget: int,
    hparams: MeGHyperParams,
) -> tuple[Tensor, Tensor]:
    """SGD on the neurons of M facts: (M, P) on the CPU, and steps taken (M,)."""
    contexts = len(facts[0])
    neurons = start.repeat(len(facts), 1)
    taken = torch.zeros(len(facts), dtype=torch.long)
    active = torch.arange(len(facts))
    batch = Batch.of([row for fact in facts for row in fact], model.device)
    upper = UpperLayers(model, hook.spec.layer)
    stream = upper.stream(batch.ids)  # the layers below the neuron never change
    current = neurons.clone().to(model.device)
    for step in range(budget):
        current.requires_grad_(True)
        attached = hook.attached(current.repeat_interleave(contexts, dim=0))
        precision = bfloat16(stream.device, hparams.collection_bfloat16)
        with attached, upper.fed(stream), precision:
            logits, wanted, rows = target_logits(model, batch)
        token_loss = F.cross_entropy(logits, wanted, reduction="none")
        count = torch.zeros(len(batch.ids), device=rows.device).index_add_(
            0, rows, torch.ones_like(token_loss)
        )
        row_loss = torch.zeros_like(count).index_add(0, rows, token_loss) / count
        fact_loss = row_loss.unflatten(0, (-1, contexts)).mean(1)
        (gradient,) = torch.autograd.grad(fact_loss.sum(), current)
        wrong = torch.zeros_like(count).index_add_(0, rows, (logits.argmax(-1) != wanted).float())
        right = wrong.unflatten(0, (-1, contexts)).sum(1) == 0
        done = (right & (fact_loss < hparams.collection_margin)).detach().cpu()
        scale = rate
        if hparams.collection_schedule == "cosine":
            scale *= 0.5 * (1 + math.cos(math.pi * step / budget))
        current = current.detach()
        keep = ~done
        current[keep] -= scale * gradient[keep]
        taken[active[keep]] += 1
        if step + 1 == budget or (step % 5 == 4 and bool(done.any())) or bool(done.all()):
            neurons[active] = current.cpu()
            active, current = active[keep], current[keep]
            if not len(active):
                break
            batch = Batch.of([row for i in active.tolist() for row in facts[i]], model.device)
            going = keep.repeat_interleave(contexts).to(stream.device)
            stream = stream[going, : batch.ids.shape[1]]
    return neurons, taken


def _greedy_success(
    model: Any,
    tokenizer: Any,
    hook: NeuronHook,
    neurons: Tensor,
    requests: Sequence[EditRequest],
    reader: QueryReader,
) -> Tensor:
    """(M,) bool: a neuron counts only if greedy generation gives the target."""
    longest = max(len(encode_example(tokenizer, r.prompt, r.target_new).target) for r in requests)
    prompts = [reader.wrap(request.prompt) for request in requests]
    with hook.attached(neurons.to(model.device)):
        answers = greedy_answers(model, tokenizer, prompts, longest)
    return torch.tensor(
        [answer == request.target_new for answer, request in zip(answers, requests, strict=True)]
    )


def _contexts(requests: Sequence[EditRequest], count: int, seed: int) -> list[list[str]]:
    """For each request `count` prefixes: none, and random sentence beginnings of other facts."""
    rng = random.Random(seed)
    beginnings = [" ".join(request.prompt.split()[:5]) for request in requests]
    return [
        ["", *(f"{rng.choice(beginnings).rstrip('?.,')}. " for _ in range(count - 1))]
        for _ in requests
    ]
