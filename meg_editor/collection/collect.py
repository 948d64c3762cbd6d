"""Knowledge-weight collection: facts -> target neurons, many at once (section 4.1 c.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate.utils import find_executable_batch_size
from torch import Tensor

from meg_editor.collection.contexts import contexts_that_fit
from meg_editor.collection.optimizer import Descent, Rows, optimise, row_losses
from meg_editor.collection.units import natural_units
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.lm.answers import answers_with, decoded, end_tokens, says
from meg_editor.lm.devices import input_device
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Batch, Example
from meg_editor.lm.working_copy import working_copy
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.memory import free_bytes, rows_within
from meg_editor.runtime.progress import progress_bar

_MAX_ROWS = {"cpu": 48, "cuda": 4096}  # more rows of a pass are no faster
RETRIES = 2


@dataclass(frozen=True)
class Collection:
    """Neurons for N facts.

    Attributes:
        neurons: (N, P) float32, on the CPU.
        success: (N,) bool, whether the greedy answer is the target.
        steps: (N,) SGD steps taken.

    Example:
        >>> spec = NeuronSpec(0, "mlp", "mlp", hidden_size=2, activation="linear", bias=False)
        >>> Collection.empty(spec, 3).neurons.shape
        torch.Size([3, 4])
    """

    neurons: Tensor
    success: Tensor
    steps: Tensor

    @classmethod
    def empty(cls, spec: NeuronSpec, count: int = 0) -> Collection:
        """Zero neurons of `count` facts."""
        return cls(
            torch.zeros(count, spec.size),
            torch.ones(count, dtype=torch.bool),
            torch.zeros(count, dtype=torch.long),
        )


def shared_start(spec: NeuronSpec, seed: int) -> Tensor:
    """Random initial neuron (P,), the same for all facts.

    A shared start leaves the neurons of similar facts close, so that a generator can learn them.
    k is scaled so that k·x is about 1 for a normalised x; v starts small but not at zero, where k
    would get no gradient.

    Example:
        >>> spec = NeuronSpec(0, "mlp", "mlp", hidden_size=2, activation="linear", bias=False)
        >>> torch.equal(shared_start(spec, seed=0), shared_start(spec, seed=0))
        True
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(spec.size, generator=generator)
    k, b, v = spec.split(start)
    k /= math.sqrt(spec.hidden_size)
    v *= 0.1 / math.sqrt(spec.hidden_size)
    if b is not None:
        b.fill_(1.0)  # where ReLU and its kin pass gradients, for every fact
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
    """Neurons of N facts by SGD on the frozen model, one per fact (section 4.1 c.1).

    Facts share batches, never parameters. Each is optimised in `collection_contexts` contexts, so
    that its neuron speaks wherever it is asked for. With the "scaled" optimizer weights are in the
    units of the model (`natural_units`). A fact has converged once the target is the greedy answer
    in every context with a loss below `collection_loss_threshold`; one that was optimised in
    bfloat16 has to converge in the model's own precision too. Facts that fail are retried from the
    start with half the learning rate and twice the steps. A context that is too long for the model
    is left out.

    Args:
        spec: layer and size of the neurons.
        hparams: the `collection_*` settings, `prompt_template` and `seed`.
        runtime: memory and batch size.
        retries: limit of further rounds.

    Returns:
        Collection with `neurons` (N, P) float32 on the CPU, `success` (N,), `steps` (N,).

    Raises:
        FloatingPointError: no fact has a finite neuron. One of several that has none keeps the
            start, and is no success.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> spec = NeuronSpec.from_hparams(model, hparams)
        >>> facts = [EditRequest("The capital of France is", "Lima")]
        >>> collect(model, tokenizer, spec, facts, hparams).success.tolist()
        [True]
    """
    if not requests:
        return Collection.empty(spec)
    runtime = runtime or RuntimeConfig()
    contexts = contexts_that_fit(model, tokenizer, requests, hparams)
    examples = [[example for _, example in pairs] for pairs in contexts]
    working = working_copy(model, runtime.collection_bfloat16)
    if hparams.collection_optimizer == "scaled":
        units = natural_units(working, spec, [rows[0] for rows in examples])
    else:
        units = torch.ones(spec.size)
    start = shared_start(spec, hparams.seed)
    neurons = (start * units).repeat(len(requests), 1)
    success = torch.zeros(len(requests), dtype=torch.bool)
    steps = torch.zeros(len(requests), dtype=torch.long)
    is_right = partial(_learned, model, tokenizer, spec, requests, examples, hparams)
    unlearned, any_finite = list(range(len(requests))), False
    with _descents(model, working, spec, examples, start, units, hparams, runtime) as descend:
        for attempt in range(1 + retries):
            facts = torch.tensor(unlearned)
            descent = descend(unlearned, attempt)
            finite = descent.neurons.isfinite().all(1)
            any_finite = any_finite or bool(finite.any())
            neurons[facts[finite]] = descent.neurons[finite]
            steps[facts] += descent.steps
            success[facts] = is_right(unlearned, descent)
            unlearned = [fact for fact in unlearned if not success[fact]]
            if not unlearned:
                break
    if not any_finite:
        raise FloatingPointError(
            "collection: no neuron has a finite loss; lower collection_lr "
            f"({hparams.collection_lr})"
        )
    neurons = spec.in_half_range(neurons)
    success &= neurons.half().isfinite().all(1)
    return Collection(neurons, success, steps)


@contextmanager
def _descents(
    model: CausalLM,
    working: CausalLM,
    spec: NeuronSpec,
    examples: Sequence[Sequence[Example]],
    start: Tensor,
    units: Tensor,
    hparams: MeGHyperParams,
    runtime: RuntimeConfig,
) -> Iterator[Callable[[list[int], int], Descent]]:
    """Within the block: descents on some of N facts (their indices, the number of the attempt).

    They go down on the working copy, and from there in the model's own precision where that is
    another one.
    """
    copies = [working]
    if working.dtype != model.dtype:
        copies.append(working_copy(model, bfloat16=False))
    with ExitStack() as stack:
        hooks = [stack.enter_context(NeuronHook(copy, spec)) for copy in copies]
        rows = _rows_at_once(copies[-1], hooks[-1], start, examples, runtime)
        # Out of memory all the same: it restarts with fewer rows.
        fitting = find_executable_batch_size(optimise, starting_batch_size=rows)

        def descend(facts: list[int], attempt: int) -> Descent:
            starts, steps = start, torch.zeros(len(facts), dtype=torch.long)
            descent: Descent
            for copy, hook, what in zip(copies, hooks, ("collection", "check"), strict=False):
                with progress_bar(range(len(facts)), what, "fact") as bar:
                    descent = fitting(
                        copy,
                        hook,
                        starts,
                        [examples[fact] for fact in facts],
                        hparams.collection_lr / 2**attempt,
                        hparams.collection_steps * 2**attempt,
                        hparams,
                        units,
                        bar.update,
                    )
                starts, steps = descent.neurons / units, steps + descent.steps
            return replace(descent, steps=steps)

        yield descend


def _learned(
    model: CausalLM,
    tokenizer: Tokenizer,
    spec: NeuronSpec,
    requests: Sequence[EditRequest],
    examples: Sequence[Sequence[Example]],
    hparams: MeGHyperParams,
    facts: Sequence[int],
    descent: Descent,
) -> Tensor:
    """(M,) bool: whether the greedy answer of each of these facts is its target now.

    Facts that have converged are not asked, where that says it.
    """
    requests = [requests[fact] for fact in facts]
    targets = [examples[fact][0].target for fact in facts]
    said = _said_when_converged(model, tokenizer, requests, [list(row) for row in targets])
    finite = descent.neurons.isfinite().all(1)
    learned = descent.converged & finite & said
    unsure = (finite & ~learned).nonzero().flatten().tolist()
    prompts = [in_template(hparams.prompt_template, requests[row].prompt) for row in unsure]
    longest = max(len(row.target) for rows in examples for row in rows)
    answers = answers_with(model, tokenizer, spec, descent.neurons[unsure], prompts, longest)
    for row, answer in zip(unsure, answers, strict=True):
        learned[row] = says(answer, requests[row].target_new)
    return learned


def _said_when_converged(
    model: CausalLM,
    tokenizer: Tokenizer,
    requests: Sequence[EditRequest],
    targets: Sequence[list[int]],
) -> Tensor:
    """(N,) bool: whether the greedy answer is the target once its tokens are the greedy ones.

    Not where an end of text stands inside them, or they read otherwise. Without any end of text a
    target cannot end; there it is enough that the answer begins so.
    """
    ends = end_tokens(model, tokenizer)
    if not ends:
        return torch.ones(len(requests), dtype=torch.bool)
    bodies = [tokens[:-1] if tokens[-1] in ends else tokens for tokens in targets]
    texts = decoded(tokenizer, bodies)
    rows = zip(requests, targets, bodies, texts, strict=True)
    return torch.tensor(
        [
            len(body) < len(tokens) and ends.isdisjoint(body) and says(text, request.target_new)
            for request, tokens, body, text in rows
        ]
    )


def _rows_at_once(
    model: CausalLM,
    hook: NeuronHook,
    start: Tensor,
    examples: Sequence[Sequence[Example]],
    runtime: RuntimeConfig,
) -> int:
    """Batch size of the runtime config, else how many of the longest row fit into memory."""
    if runtime.collection_batch_size is not None:
        return runtime.collection_batch_size
    device = input_device(model)
    longest = max((row for rows in examples for row in rows), key=len)
    batch = Batch.of([longest], device)
    layers = LayersFrom(model, hook.spec.layer)
    owner = torch.zeros(1, dtype=torch.long, device=device)
    rows = Rows(batch, layers.residual_stream(batch.ids), owner)
    neuron = start[None].to(device).requires_grad_(True)

    def forward() -> Tensor:
        return row_losses(model, hook, layers, rows, neuron)[0]

    budget = runtime.collection_memory * free_bytes(device)
    fitting = rows_within(budget, forward, 1, model.parameters())
    return min(fitting, _MAX_ROWS.get(device.type, 4096))
