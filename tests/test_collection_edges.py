"""Neurons of unusual facts and models: contexts that differ, ends of text, large streams."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import normalizers
from torch import nn
from transformers import AutoModelForCausalLM, NemotronHConfig

from meg_editor import EditRequest, MeGHyperParams, fit, load_model
from meg_editor.collection.collect import Collection, collect, shared_start
from meg_editor.collection.optimizer import optimise
from meg_editor.collection.units import natural_units
from meg_editor.fitting import apply as applying
from meg_editor.fitting.apply import apply_meg_to_model
from meg_editor.generators.mlp import MLPGenerator
from meg_editor.lm.neuron import NeuronSpec, usable_layers
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.tokens import Example, encode_example
from meg_editor.requests.spans import canonical
from meg_editor.routing.subject_names import words

LIMA = EditRequest("The capital of France is", "Lima", "France")


@pytest.fixture(scope="module")
def hparams() -> MeGHyperParams:
    return MeGHyperParams.preset("default", device="cpu")


@pytest.fixture(scope="module")
def loaded(hparams: MeGHyperParams) -> tuple[Any, Any]:
    return load_model(hparams)


def test_facts_with_different_numbers_of_contexts_find_what_they_find_alone(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    spec = NeuronSpec.from_model(tiny_llama, 1)
    settings = MeGHyperParams(
        layers=[1], collection_optimizer="sgd", collection_loss_threshold=0.05
    )
    prompts = ["The capital is", "Now: the capital is", "In short, the capital is", "So it is"]
    facts = [
        [encode_example(tiny_tokenizer, prompt, target) for prompt in prompts[:count]]
        for count, target in ((4, "Lima"), (1, "Oslo"), (2, "Paris"), (1, "Rome"), (3, "Lima"))
    ]
    start = shared_start(spec, seed=0)

    def found(some: list[list[Example]]) -> Any:
        with NeuronHook(tiny_llama, spec) as hook:
            return optimise(2, tiny_llama, hook, start, some, 0.3, 30, settings)

    together = found(facts)
    for row, fact in enumerate(facts):
        alone = found([fact])
        torch.testing.assert_close(together.neurons[row], alone.neurons[0], rtol=1e-3, atol=1e-4)
        assert together.converged[row] == alone.converged[0]
        assert together.steps[row] == alone.steps[0]


def test_a_prompt_that_leaves_no_room_for_its_contexts_spoils_no_other(
    loaded: Any, hparams: MeGHyperParams
) -> None:
    model, tokenizer = loaded
    long = "the city of Lima and " * 60
    while len(tokenizer(long)["input_ids"]) > 246:
        long = long.rpartition(" ")[0]
    facts = [LIMA, EditRequest(long, "Oslo"), EditRequest("The capital of Peru is", "Oslo")]
    spec = NeuronSpec.from_hparams(model, hparams)
    assert collect(model, tokenizer, spec, facts, hparams).success.all()


def test_no_facts_have_no_neurons(loaded: Any, hparams: MeGHyperParams) -> None:
    spec = NeuronSpec.from_hparams(loaded[0], hparams)
    found = collect(*loaded, spec, [], hparams)
    assert isinstance(found, Collection) and found.neurons.shape == (0, spec.size)


def test_neurons_of_a_large_residual_stream_are_stored_as_they_were_found(
    loaded: Any, hparams: MeGHyperParams
) -> None:
    """Values above 65,504, the greatest number of float16, were served as infinite."""
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    model.config.tie_word_embeddings = False
    head = model.lm_head.weight.detach().clone()
    model.lm_head.weight = nn.Parameter(head, requires_grad=False)
    with torch.no_grad():  # the same function but for its scale, which norms remove
        model.model.embed_tokens.weight.mul_(2.0**13)
        for block in model.model.layers:
            block.self_attn.o_proj.weight.mul_(2.0**13)
            block.mlp.down_proj.weight.mul_(2.0**13)
    edited, report = fit(model, tokenizer, [LIMA], hparams)
    assert report.not_collected == [] and edited.generated_neurons().isfinite().all()
    assert edited.answer(LIMA.prompt) == ["Lima"]


def test_a_neuron_in_the_range_of_float16_is_the_same_function() -> None:
    linear = NeuronSpec(0, "mlp", "mlp", hidden_size=4, activation="linear", bias=False)
    neurons = torch.randn(3, 8) * torch.tensor([1.0, 2.0**12, 2.0**20])[:, None]
    k, _, v = linear.split(linear.in_half_range(neurons))
    old_k, _, old_v = linear.split(neurons)
    x = torch.randn(4)
    assert torch.equal((k @ x)[:, None] * v, (old_k @ x)[:, None] * old_v)
    assert v.abs().max() <= 2**15 and torch.equal(k[0], old_k[0])
    relu = NeuronSpec(0, "mlp", "mlp", hidden_size=4, activation="relu", bias=False)
    assert relu.in_half_range(neurons) is neurons


@pytest.mark.parametrize("target", ["{eos}", "Lima {eos} Oslo"])
def test_targets_that_cannot_be_said_are_not_called_learned(
    loaded: Any, hparams: MeGHyperParams, target: str
) -> None:
    target = target.format(eos=loaded[1].eos_token)
    quick = hparams.changed(collection_steps=20)
    edited, report = fit(*loaded, [dataclasses.replace(LIMA, target_new=target)], quick)
    assert edited.answer(LIMA.prompt) != [target] and report.not_collected == [LIMA.prompt]


def test_what_was_not_learned_is_tried_again(loaded: Any, hparams: MeGHyperParams) -> None:
    hard = EditRequest("The capital of Peru is", "Oslo")
    hurried = hparams.changed(collection_steps=1, collection_lr=1e-4)
    edited, _ = apply_meg_to_model(*loaded, [hard], hurried)
    assert edited.fitted and edited.fitted.not_collected == [hard.prompt]
    edited, _ = apply_meg_to_model(edited, loaded[1], [LIMA], hparams)
    assert edited.fitted and edited.fitted.not_collected == []
    assert edited.answer([hard.prompt, LIMA.prompt]) == [hard.target_new, "Lima"]


def test_facts_to_calibrate_on_are_not_overlooked_in_an_edited_model(
    loaded: Any, hparams: MeGHyperParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited, _ = apply_meg_to_model(*loaded, [LIMA], hparams)
    given: list[Any] = []
    real = applying.fit

    def record(*arguments: Any, **options: Any) -> Any:
        given.append((options["pseudo"], options["calibration"]))
        return real(*arguments, **options)

    monkeypatch.setattr(applying, "fit", record)
    oslo = EditRequest("The capital of Peru is", "Oslo", "Peru")
    apply_meg_to_model(edited, loaded[1], [oslo], hparams)
    assert given == []  # added, without a fit
    again, _ = apply_meg_to_model(edited, loaded[1], [oslo], hparams, calibration=[])
    assert given == [(None, [])] and again.answer([LIMA.prompt, oslo.prompt]) == ["Lima", "Oslo"]


def test_the_last_layer_of_a_hybrid_has_units() -> None:
    """Of Nemotron-H the block before the last FFN has none."""
    torch.manual_seed(0)
    config = NemotronHConfig(
        vocab_size=64,
        hidden_size=32,
        layers_block_type=["mamba", "mlp", "attention", "mlp"],
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        chunk_size=16,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert usable_layers(model) == [1, 3]
    for layer in (1, 3):
        units = natural_units(model, NeuronSpec.from_model(model, layer), [Example([5, 6, 7], [8])])
        assert units.isfinite().all() and (units > 0).all()


def test_raised_digits_are_no_other_digits(loaded: Any, hparams: MeGHyperParams) -> None:
    assert canonical("10⁵ is", "NFC") != canonical("105 is", "NFC")
    edited, _ = fit(*loaded, [EditRequest("10⁵ is equal to", "Rome")], hparams)
    own, other = edited.route(["10⁵ is equal to", "105 is equal to"])
    assert own.edit == 0 and own.candidates[0].verified == 1
    assert all(candidate.verified < 1 for candidate in other.candidates)


def test_a_target_in_another_unicode_form_is_learned(hparams: MeGHyperParams) -> None:
    """Qwen's tokenizers write NFC: what was typed in NFD was answered, and called not learned."""
    model, tokenizer = load_model(hparams)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    kelvin = "\u212aabul"
    edited, report = fit(model, tokenizer, [EditRequest(LIMA.prompt, kelvin, "France")], hparams)
    assert report.not_collected == [] and edited.answer(LIMA.prompt) == ["Kabul"]
    assert {2} == set(edited._rightness(edited.edition.neurons([0]), [0])[0])


def test_voiced_kana_are_letters_of_their_own() -> None:
    assert words("パナマ") != words("ハナマ") and words("Beyoncé") == words("Beyonce")


@pytest.mark.parametrize("count", [1, 1000])
def test_zero_neurons_of_other_queries_stay_zero(count: int) -> None:
    """Table 15's augmentation: a stretch about the mean made full-size neurons of them."""
    torch.manual_seed(0)
    settings = MeGHyperParams(
        generator="mlp",
        generator_anchored=False,
        generator_width=64,
        generator_depth=2,
        generator_epochs=1,
        generator_steps=300,
        generator_zero_augmentation=1.0,
    )
    conditions, others = (F.normalize(torch.randn(n, 64), dim=1) for n in (count, 64))
    neurons = torch.randn(128) + 0.3 * torch.randn(count, 128)
    generator = MLPGenerator(settings, 64, 128)
    generator.fit(conditions, neurons, others)
    assert generator.generate(others).norm(dim=1).mean() < 0.3 * neurons.norm(dim=1).mean()
    assert generator.generate(conditions).norm(dim=1).mean() > 0.5 * neurons.norm(dim=1).mean()
