"""Facts which enter and leave a batch find what each finds alone."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PROMPTS
from torch import Tensor

from meg_editor.collection import collect as collection
from meg_editor.collection.collect import collect, shared_start
from meg_editor.collection.optimizer import ContinuousBatch, Descent, optimise
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.lm.loading import load_model
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.tokens import Example, encode_example
from meg_editor.requests.request import EditRequest
from meg_editor.runtime import memory
from meg_editor.runtime.memory import rows_within, saved_bytes

RATE, BUDGET = 0.3, 7
TARGETS = ["Paris", "Lima", "the sea and the sky", "Oslo", "a cat", "Rome", "x", "Bern"]


@pytest.fixture(scope="module")
def spec(tiny_llama: Any) -> NeuronSpec:
    return NeuronSpec.from_model(tiny_llama, 1)


@pytest.fixture(scope="module")
def facts(tiny_tokenizer: Any) -> list[list[Example]]:
    """Each in two contexts of very different lengths."""
    return [
        [
            encode_example(tiny_tokenizer, prefix + prompt, target)
            for prefix in ("", "Once upon a time. " * (row % 3))
        ]
        for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=False))
    ]


def alone(
    model: Any,
    spec: NeuronSpec,
    contexts: list[Example],
    margin: float,
    cosine: bool = False,
    polyak: float | None = None,
) -> tuple[Tensor, int]:
    """The recipe written plainly: one fact, the whole model, one context after the other.

    With `polyak` a step is that many times L·g / |g|², and at most 1 long.
    """
    neuron = shared_start(spec, 0)[None].to(model.dtype).requires_grad_(True)
    for step in range(BUDGET):
        losses, right = [], True
        with NeuronHook(model, spec) as hook, hook.attached(neuron):
            for example in contexts:
                ids = torch.tensor([example.prompt + example.target])
                logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
                target = torch.tensor(example.target)
                losses.append(F.cross_entropy(logits, target))
                right = right and bool((logits.argmax(-1) == target).all())
        loss = torch.stack(losses).mean()
        if right and float(loss) < margin:
            return neuron.detach()[0], step
        (gradient,) = torch.autograd.grad(loss, neuron)
        step_size = RATE
        if polyak is not None:
            length = min(1.0, polyak * loss.item() / float(gradient.norm()))
            step_size = length / float(gradient.norm())
        if cosine:
            step_size *= 0.5 * (1 + math.cos(math.pi * step / BUDGET))
        neuron = (neuron.detach() - step_size * gradient).requires_grad_(True)
    return neuron.detach()[0], BUDGET


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_every_fact_finds_what_it_finds_alone(
    tiny_llama: Any, spec: NeuronSpec, facts: list[list[Example]], rows: int, schedule: Any
) -> None:
    losses = [alone(tiny_llama, spec, contexts, 0.0) for contexts in facts[:1]]
    assert losses[0][1] == BUDGET
    margin = 4.5  # some reach it after some steps, others never
    settings = MeGHyperParams(
        layers=[1],
        collection_optimizer="sgd",
        collection_loss_threshold=margin,
        collection_schedule=schedule,
    )
    finished: list[int] = []
    with NeuronHook(tiny_llama, spec) as hook:
        descent = optimise(
            rows,
            tiny_llama,
            hook,
            shared_start(spec, 0),
            facts,
            RATE,
            BUDGET,
            settings,
            progress=finished.append,
        )
    assert sum(finished) == len(facts)
    for fact, contexts in enumerate(facts):
        neuron, steps = alone(tiny_llama, spec, contexts, margin, schedule == "cosine")
        assert int(descent.steps[fact]) == steps, fact
        assert bool(descent.converged[fact]) == (steps < BUDGET), fact
        torch.testing.assert_close(descent.neurons[fact], neuron, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("multiple", [0.5, 3.0])
def test_steps_of_the_scaled_optimizer_are_polyak_s(
    tiny_llama: Any, spec: NeuronSpec, facts: list[list[Example]], multiple: float
) -> None:
    """In units as large as one, in double precision: rounding grows from step to step."""
    model = copy.deepcopy(tiny_llama).double()
    settings = MeGHyperParams(layers=[1], collection_loss_threshold=0.0)
    start = shared_start(spec, 0).double()
    with NeuronHook(model, spec) as hook:
        descent = optimise(4, model, hook, start, facts, multiple, BUDGET, settings)
    for fact, contexts in enumerate(facts):
        neuron, _ = alone(model, spec, contexts, 0.0, polyak=multiple)
        torch.testing.assert_close(descent.neurons[fact], neuron, atol=2e-4, rtol=1e-3)


def test_neurons_which_have_converged_take_no_step_and_others_go_on() -> None:
    """On the reference model: a random one can hardly be taught anything."""
    settings = MeGHyperParams.preset("default", device="cpu")
    model, tokenizer = load_model(settings)
    own = NeuronSpec.from_hparams(model, settings)
    requests = [case.request for case in edit_cases(load_world(), 8, 9)]
    facts = [[encode_example(tokenizer, r.prompt, r.target_new)] for r in requests]
    start = shared_start(own, 0)

    def descent(starts: Tensor, steps: int) -> Descent:
        with NeuronHook(model, own) as hook:
            return optimise(100, model, hook, starts, facts, 3.0, steps, settings)

    whole = descent(start, 60)
    first = descent(start, int(whole.steps.median()) + 1)
    rest = descent(first.neurons, 60)
    assert first.converged.any() and not first.converged.all()
    assert not rest.steps[first.converged].any()
    assert torch.equal(rest.neurons[first.converged], first.neurons[first.converged])
    assert rest.steps[~first.converged].any() and bool(rest.converged.all())
    assert (first.steps + rest.steps - whole.steps).abs().max() <= 1  # rounding


def test_rows_of_a_pass_are_of_like_length(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec
) -> None:
    """A fact bare, in a chat and after a passage: padded to the longest they took twice as long."""
    prompts = [prefix + "The capital of France is" for prefix in ("", "word " * 40, "word " * 200)]
    facts = [[encode_example(tiny_tokenizer, text, "Lima") for text in prompts]] * 5
    settings = MeGHyperParams(layers=[1], collection_loss_threshold=0.0)
    tokens: list[int] = []

    def count(_: Any, args: Any, kwargs: Any) -> None:
        tokens.append(kwargs["input_ids"].numel())

    handle = tiny_llama.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    with handle, NeuronHook(tiny_llama, spec) as hook:
        batch = ContinuousBatch(
            tiny_llama, hook, shared_start(spec, 0), 48, settings, torch.ones(spec.size)
        )
        batch.admit(dict(enumerate(facts)))
        tokens.clear()
        batch.step(1.0, 5)
    assert sum(tokens) == sum(len(example) for fact in facts for example in fact)


def test_no_facts(tiny_llama: Any, spec: NeuronSpec) -> None:
    with NeuronHook(tiny_llama, spec) as hook:
        descent = optimise(
            4, tiny_llama, hook, shared_start(spec, 0), [], RATE, BUDGET, MeGHyperParams(layers=[1])
        )
    assert descent.neurons.shape == (0, spec.size)
    assert descent.converged.shape == descent.steps.shape == (0,)


# ---------------------------------------------------------------------------------- memory


def test_saved_bytes_are_those_of_the_inputs_of_each_product() -> None:
    """x @ w keeps x for the gradient of w, and w for that of x; relu keeps its output."""
    x, w = torch.randn(8, 16, requires_grad=True), torch.randn(16, 32, requires_grad=True)
    assert saved_bytes(lambda: x @ w, [w]) == 8 * 16 * 4
    assert saved_bytes(lambda: (x @ w).relu(), [w]) == 8 * 16 * 4 + 8 * 32 * 4
    assert saved_bytes(lambda: x @ w, []) == (8 * 16 + 16 * 32) * 4


def test_rows_are_as_many_as_fit() -> None:
    x, w = torch.randn(8, 16, requires_grad=True), torch.randn(16, 32, requires_grad=True)
    each = memory._MARGIN * 16 * 4
    assert rows_within(10.5 * each, lambda: x @ w, 8, [w]) == 10
    assert rows_within(0.1, lambda: x @ w, 8, [w]) == 1


def test_less_free_memory_means_fewer_rows_and_the_same_neurons(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [EditRequest(p, t) for p, t in zip(PROMPTS, TARGETS, strict=False)]
    settings = MeGHyperParams(layers=[1], collection_steps=3)
    sizes: list[int] = []
    real = collection.optimise

    @functools.wraps(real)
    def counted(rows: int, *arguments: Any) -> Any:
        sizes.append(rows)
        return real(rows, *arguments)

    monkeypatch.setattr(collection, "optimise", counted)
    plenty = collect(tiny_llama, tiny_tokenizer, spec, requests, settings, retries=0)
    monkeypatch.setattr(collection, "free_bytes", lambda _: 1_000_000)
    little = collect(tiny_llama, tiny_tokenizer, spec, requests, settings, retries=0)
    assert sizes[1] < sizes[0] == collection._MAX_ROWS["cpu"]
    torch.testing.assert_close(plenty.neurons, little.neurons, atol=1e-3, rtol=1e-3)
    given = RuntimeConfig(collection_batch_size=3)
    collect(tiny_llama, tiny_tokenizer, spec, requests, settings, given, retries=0)
    assert sizes[2] == 3


def test_what_does_not_fit_is_tried_again_with_fewer_rows(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [EditRequest(p, t) for p, t in zip(PROMPTS[:3], TARGETS, strict=False)]
    sizes: list[int] = []
    real = collection.optimise

    @functools.wraps(real)
    def small(rows: int, *arguments: Any) -> Any:
        sizes.append(rows)
        if rows > 10:
            raise RuntimeError("CUDA out of memory. Tried to allocate everything")
        return real(rows, *arguments)

    monkeypatch.setattr(collection, "optimise", small)
    settings = MeGHyperParams(layers=[1], collection_steps=2)
    given = RuntimeConfig(collection_batch_size=16)
    found = collect(tiny_llama, tiny_tokenizer, spec, requests, settings, given)
    assert sizes[0] == 16 and sizes[-1] <= 10 and len(found.neurons) == 3
