"""Collection: independent neurons in one batch, checked by generation."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PROMPTS
from transformers import GPT2Config, GPT2LMHeadModel

from meg_editor.collection.collect import answers_with, collect, shared_start
from meg_editor.collection.units import natural_units
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.lm import working_copy
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.loading import load_model
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.tokens import Batch, encode_example, means, target_logits
from meg_editor.requests.request import EditRequest

REQUESTS = [EditRequest(prompt, target) for prompt, target in zip(
    PROMPTS[:6], ["Paris", "Lima", "the sea", "Oslo", "a cat", "Paris"], strict=True
)]  # fmt: skip
SETTINGS = MeGHyperParams(
    layers=[1],
    collection_optimizer="sgd",
    collection_lr=0.3,
    collection_steps=40,
    collection_contexts=2,
    collection_loss_threshold=0.01,
)


@pytest.fixture(scope="module")
def spec(tiny_llama: Any) -> NeuronSpec:
    return NeuronSpec.from_model(tiny_llama, 1)


def test_one_step_is_sgd_on_the_mean_loss_of_a_fact(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec
) -> None:
    """Against a fact on its own, through the model's own forward pass."""
    settings = dataclasses.replace(SETTINGS, collection_steps=1, collection_contexts=1)
    result = collect(tiny_llama, tiny_tokenizer, spec, REQUESTS, settings, retries=0)
    start = shared_start(spec, settings.seed)
    for request, neuron in zip(REQUESTS, result.neurons, strict=True):
        example = encode_example(tiny_tokenizer, request.prompt, request.target_new)
        ids = torch.tensor([example.prompt + example.target])
        own = start.clone().unsqueeze(0).requires_grad_(True)
        with NeuronHook(tiny_llama, spec) as hook, hook.attached(own):
            logits = tiny_llama(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        loss = F.cross_entropy(logits, torch.tensor(example.target))
        (gradient,) = torch.autograd.grad(loss, own)
        expected = start - settings.collection_lr * gradient[0]
        assert torch.allclose(neuron, expected, atol=1e-4), request


def test_units_are_those_of_the_activations(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec
) -> None:
    """The key's is the reciprocal of the FFN input's RMS, the value's the RMS after the block; a
    factor of √D is shared between them."""
    example = encode_example(tiny_tokenizer, REQUESTS[0].prompt, REQUESTS[0].target_new)
    seen: dict[str, torch.Tensor] = {}
    block = tiny_llama.model.layers[1]
    handles = [
        block.mlp.register_forward_pre_hook(lambda _, args: seen.update(read=args[0])),
        block.register_forward_hook(lambda _, args, output: seen.update(stream=output)),
    ]
    tiny_llama(input_ids=torch.tensor([example.prompt + example.target]))
    for handle in handles:
        handle.remove()
    units = natural_units(tiny_llama, spec, [example])
    read, stream = (seen[name][:, 1:].square().mean().sqrt() for name in ("read", "stream"))
    balance = spec.hidden_size**0.25
    assert float(units[0]) == pytest.approx(1 / (balance * float(read)), rel=1e-4)
    assert float(units[-1]) == pytest.approx(balance * float(stream), rel=1e-3)
    twice = copy.deepcopy(tiny_llama)
    twice.model.layers[1].post_attention_layernorm.weight.data *= 2
    assert torch.allclose(natural_units(twice, spec, [example])[0] * 2, units[0], rtol=1e-3)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_one_rate_serves_models_of_any_scale(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec, scale: float
) -> None:
    """The same function with other sizes inside: the same neurons, in its units."""
    changes = {"collection_optimizer": "scaled", "collection_lr": 1.0, "collection_steps": 5}
    settings = dataclasses.replace(SETTINGS, **changes)
    other = copy.deepcopy(tiny_llama)
    norm = other.model.layers[1].post_attention_layernorm
    norm.weight.data *= scale
    for up in (other.model.layers[1].mlp.gate_proj, other.model.layers[1].mlp.up_proj):
        up.weight.data /= scale
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(other(ids).logits, tiny_llama(ids).logits, atol=1e-4, rtol=1e-4)
    plain, scaled = (
        collect(model, tiny_tokenizer, spec, REQUESTS[:3], settings, retries=0)
        for model in (tiny_llama, other)
    )
    assert torch.equal(plain.steps, scaled.steps)
    k, _, v = (part for part in spec.split(plain.neurons))
    k2, _, v2 = (part for part in spec.split(scaled.neurons))
    torch.testing.assert_close(k2 * scale, k, atol=0.02 * float(k.abs().max()), rtol=0.05)
    torch.testing.assert_close(v2, v, atol=0.02 * float(v.abs().max()), rtol=0.05)


def test_a_batch_gives_what_one_fact_at_a_time_gives(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec
) -> None:
    together = collect(tiny_llama, tiny_tokenizer, spec, REQUESTS, SETTINGS)
    alone = collect(
        tiny_llama,
        tiny_tokenizer,
        spec,
        REQUESTS,
        SETTINGS,
        RuntimeConfig(collection_batch_size=1),
    )
    assert torch.equal(together.success, alone.success)
    assert torch.allclose(together.neurons, alone.neurons, atol=1e-2)


def test_bfloat16_finds_neurons_that_answer_in_full_precision() -> None:
    """Also on a CPU which only imitates it, slowly: hence few facts."""
    hparams = MeGHyperParams.preset("default")
    model, tokenizer = load_model(hparams)
    requests = [case.request for case in edit_cases(load_world(), 4, 9)]
    own = NeuronSpec.from_model(model, hparams.layer)
    half = RuntimeConfig(collection_bfloat16=True)
    rounded = collect(model, tokenizer, own, requests, hparams, half)
    exact = collect(model, tokenizer, own, requests, hparams)
    assert rounded.neurons.dtype == torch.float32
    assert not torch.equal(rounded.neurons, exact.neurons)
    assert bool(rounded.success.all())
    # Learned is what has converged in the model's own precision, in every context.
    examples = [
        encode_example(tokenizer, request.prompt, request.target_new) for request in requests
    ]
    with NeuronHook(model, own) as hook, hook.attached(rounded.neurons):
        logits, targets, rows = target_logits(model, Batch.of(examples, "cpu"))
    losses = means(F.cross_entropy(logits, targets, reduction="none"), rows, len(requests))
    bare_alone = hparams.collection_contexts * hparams.collection_loss_threshold
    assert bool((losses < bare_alone).all()) and torch.equal(logits.argmax(-1), targets)


def test_what_rounding_spoils_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy in bfloat16 is made so coarse that no neuron found on it answers."""
    hparams = MeGHyperParams.preset("default", collection_contexts=1)
    model, tokenizer = load_model(hparams)
    requests = [case.request for case in edit_cases(load_world(), 4, 9)]
    own = NeuronSpec.from_model(model, hparams.layer)

    def coarse(tensor: torch.Tensor) -> torch.Tensor:
        step = tensor.detach().float().std().clamp_min(1e-12) / 2
        return ((tensor.detach() / step).round() * step).to(torch.bfloat16)

    monkeypatch.setattr(working_copy, "_halved", coarse)
    half = RuntimeConfig(collection_bfloat16=True)
    found = collect(model, tokenizer, own, requests, hparams, half, retries=0)
    assert bool(found.success.all())
    answers = answers_with(model, tokenizer, own, found.neurons, [r.prompt for r in requests], 12)
    assert answers == [request.target_new for request in requests]


def test_success_is_what_generation_says_and_retries_help() -> None:
    """On the reference model; a random one can hardly be taught anything."""
    hparams = MeGHyperParams.preset("default", collection_steps=3)
    model, tokenizer = load_model(hparams)
    requests = [case.request for case in edit_cases(load_world(), 24, 9)]
    own = NeuronSpec.from_model(model, hparams.layer)
    short = collect(model, tokenizer, own, requests, hparams, retries=0)
    assert not short.success.all()
    result = collect(model, tokenizer, own, requests, MeGHyperParams.preset("default"))
    assert result.success.float().mean() >= 0.95
    for collection in (short, result):
        with NeuronHook(model, own) as hook, hook.attached(collection.neurons):
            prompts = [request.prompt for request in requests]
            answers = greedy_answers(model, tokenizer, prompts, 12)
        correct = [answer == r.target_new for answer, r in zip(answers, requests, strict=True)]
        assert correct == collection.success.tolist()
    again = collect(model, tokenizer, own, requests, hparams)
    assert again.success.sum() > short.success.sum()


def test_the_model_is_left_without_hooks_and_unchanged(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec
) -> None:
    def count() -> int:
        modules = tiny_llama.modules()
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)

    hooks = count()
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    collect(tiny_llama, tiny_tokenizer, spec, REQUESTS[:2], SETTINGS)
    assert all(torch.equal(before[n], v) for n, v in tiny_llama.state_dict().items())
    assert count() == hooks


def test_a_rate_that_explodes_is_named(
    tiny_llama: Any, tiny_tokenizer: Any, spec: NeuronSpec
) -> None:
    steep = copy.deepcopy(tiny_llama)
    steep.lm_head.weight.data *= 1e30  # a gradient which no float holds after a step
    settings = dataclasses.replace(SETTINGS, collection_lr=9e3)
    with pytest.raises(FloatingPointError, match="collection_lr"):
        collect(steep, tiny_tokenizer, spec, REQUESTS[:2], settings)


def test_target_logits_are_the_models_own(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    examples = [encode_example(tiny_tokenizer, r.prompt, r.target_new) for r in REQUESTS]
    batch = Batch.of(examples, "cpu")
    logits, targets, rows = target_logits(tiny_llama, batch)
    position = 0
    for row, example in enumerate(examples):
        ids = torch.tensor([example.prompt + example.target])
        own = tiny_llama(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        size = len(example.target)
        assert torch.allclose(logits[position : position + size], own, atol=1e-4)
        assert targets[position : position + size].tolist() == example.target
        assert rows[position : position + size].tolist() == [row] * size
        position += size


def test_targets_end_the_text(tiny_tokenizer: Any) -> None:
    example = encode_example(tiny_tokenizer, "The capital of Atlantis is", "Lima")
    assert example.target[-1] == tiny_tokenizer.eos_token_id
    text = tiny_tokenizer.decode(example.prompt + example.target, skip_special_tokens=True)
    assert text == "The capital of Atlantis is Lima"


def test_a_context_that_is_too_long_for_the_model_is_left_out(tiny_tokenizer: Any) -> None:
    """Learned positions end: an index beyond them fails, on a GPU for the whole process."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), **sizes)).eval()
    request = EditRequest("the river " * 27 + "is", "Lima")
    whole = len(encode_example(tiny_tokenizer, request.prompt, request.target_new))
    assert 50 < whole <= 64
    settings = dataclasses.replace(SETTINGS, collection_contexts=5, collection_steps=2)
    spec = NeuronSpec.from_model(model, 1)
    short = EditRequest("the sea is", "Oslo")
    both = collect(model, tiny_tokenizer, spec, [request, short], settings, retries=0)
    assert both.neurons.isfinite().all()
    bare = dataclasses.replace(settings, collection_contexts=1)
    alone = collect(model, tiny_tokenizer, spec, [request], bare, retries=0)
    torch.testing.assert_close(both.neurons[:1], alone.neurons, rtol=1e-4, atol=1e-5)


def test_facts_the_model_knows_already_are_no_failure() -> None:
    """Their neurons need no step; at rate 0 none is taken either."""
    changes = {"collection_lr": 0.0, "collection_steps": 1}
    hparams = MeGHyperParams.preset("default", collection_optimizer="sgd", **changes)
    model, tokenizer = load_model(hparams)
    own = NeuronSpec.from_model(model, hparams.layer)
    prompts = ["The capital of France is", "The capital of Japan is"]
    known = greedy_answers(model, tokenizer, prompts, 12)
    requests = [EditRequest(p, answer) for p, answer in zip(prompts, known, strict=True)]
    collection = collect(model, tokenizer, own, requests, hparams)
    assert torch.equal(collection.neurons, shared_start(own, 0).repeat(2, 1))
