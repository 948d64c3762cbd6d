"""The neuron in every family of language models: exact, learned, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from conftest import OTHERS, PROMPTS
from families import DOCS, FAMILIES, LAYER, Family, build, row
from torch import Tensor, nn
from transformers.activations import ACT2FN

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.evaluation.fluency import perplexity
from meg_editor.fitting.pipeline import fit
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.ffn import decoder_of
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.loading import load_model
from meg_editor.lm.neuron import NeuronSpec, middle_layer, usable_layers
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.tokens import logits_of
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.hidden_states import HiddenStateReader

all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.config)
SETTINGS = MeGHyperParams(
    layers=[LAYER],
    encoder_steps=0,
    gate_threshold=0.99,
    gate_name_weight=0.0,
    gate_state_weight=0.0,
    collection_contexts=1,
    collection_loss_threshold=0.3,
    collection_optimizer="scaled",
    generator="bank",
)
TUNING = [
    EditRequest(prompt, "x", rephrases=(f"Say: {prompt}",), locality_prompts=(other,))
    for prompt, other in zip(PROMPTS[8:13], OTHERS, strict=True)
]


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def by_hand(model: Any, spec: NeuronSpec, neurons: Tensor, ids: Tensor) -> Tensor:
    """Logits where act(k·x + b) · v, from inputs recorded beforehand, is added to the output."""
    inputs: list[Tensor] = []

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append((*args, *kwargs.values())[0].clone())

    handle = model.get_submodule(spec.read).register_forward_pre_hook(record, with_kwargs=True)
    logits(model, ids)
    handle.remove()
    x = inputs[0].reshape(*ids.shape, spec.hidden_size)
    rows = []
    for hidden, neuron in zip(x, neurons, strict=True):
        key, bias, value = spec.split(neuron)
        inner = hidden @ key if bias is None else hidden @ key + bias
        rows.append(torch.outer(ACT2FN[spec.activation](inner), value))
    addition = torch.stack(rows)

    def add(_: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + addition.reshape(output[0].shape), *output[1:])
        return output + addition.reshape(output.shape)

    handle = model.get_submodule(spec.write).register_forward_hook(add)
    result = logits(model, ids)
    handle.remove()
    return result


@all_families
def test_the_neuron_is_exact(family: Family, tiny_tokenizer: Any) -> None:
    model = build(family, tiny_tokenizer)
    spec = NeuronSpec.from_model(model, LAYER)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, len(tiny_tokenizer), (3, 7), generator=generator)
    neurons = 0.5 * torch.randn(3, spec.size, generator=generator)
    unedited = logits(model, ids)
    with NeuronHook(model, spec) as hook:
        for batch in (ids, ids[:1]):  # the kernels of a batch round in another way
            expected = logits(model, batch)
            with hook.attached(torch.zeros(len(batch), spec.size)):
                assert torch.equal(logits(model, batch), expected)
        with hook.attached(neurons):
            edited = logits(model, ids)
    assert (edited - unedited).abs().max() > 1e-2
    torch.testing.assert_close(edited, by_hand(model, spec, neurons, ids), rtol=1e-4, atol=1e-4)

    layers = LayersFrom(model, LAYER)
    with torch.no_grad(), layers.injected(layers.residual_stream(ids)):
        assert torch.equal(logits(model, ids), unedited)
    with torch.no_grad():
        hidden = decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(logits_of(model, hidden), unedited, rtol=1e-5, atol=1e-5)


@all_families
def test_facts_are_learned_saved_and_loaded(
    family: Family, tiny_tokenizer: Any, tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    model = build(family, tiny_tokenizer)
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.eos_token = None  # answers of one token: what random weights can be taught
    facts = [EditRequest(PROMPTS[0], "river"), EditRequest(PROMPTS[1], "language")]
    prompts, targets = [fact.prompt for fact in facts], [fact.target_new for fact in facts]
    before = greedy_answers(model, tiny_tokenizer, OTHERS[:1], 4)
    tuning: dict[str, Any] = {"pseudo": TUNING, "calibration": TUNING, "encoder": tiny_encoder}
    edited, report = fit(model, tiny_tokenizer, facts, SETTINGS, **tuning)
    assert report.collection is not None
    assert report.collection.success.tolist() == [True, True]
    assert edited.answer(prompts, 1) == targets
    assert edited.answer(OTHERS[:1], 4) == before
    edited.save_pretrained(tmp_path / "edits")
    loaded = MeGModel.from_pretrained(tmp_path / "edits", base=model, tokenizer=tiny_tokenizer)
    assert loaded.answer(OTHERS[:1], 4) == before
    assert loaded.answer(prompts, 1) == targets


_IN_FLOAT32 = ["Ernie4_5_MoeConfig", "HunYuanMoEV1Config", "GptOssConfig"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", _IN_FLOAT32)
@pytest.mark.parametrize("whole", [True, False])
def test_the_copy_of_a_half_precision_model_is_that_model(
    config: str,
    dtype: torch.dtype,
    whole: bool,
    tiny_tokenizer: Any,
    tiny_encoder: TextEncoder,
    tmp_path: Path,
) -> None:
    """transformers loads routers and norms of some families in float32, whatever was saved."""
    (family,) = (family for family in FAMILIES if family.config == config)
    model = build(family, tiny_tokenizer)
    if whole:
        model = model.to(dtype)
    else:  # with the exceptions
        model.save_pretrained(tmp_path / "llm")
        model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=dtype).eval()
    edited = fitted(model, tiny_tokenizer, tiny_encoder)
    edited.save_pretrained(tmp_path / "edits", save_base=True)
    loaded = MeGModel.from_pretrained(tmp_path / "edits", device="cpu", tokenizer=edited.tokenizer)
    assert dtypes(loaded.base) == dtypes(model)
    assert loaded.answer(PROMPTS[:4], 2) == edited.answer(PROMPTS[:4], 2)


@pytest.mark.parametrize("config", ["FalconConfig"])
def test_a_model_and_an_encoder_which_return_tuples_are_edited_alike(
    config: str, tiny_tokenizer: Any, tiny_encoder: TextEncoder
) -> None:
    """As their configs may ask for; other families of transformers fail with it by themselves."""
    (family,) = (family for family in FAMILIES if family.config == config)
    results = []
    for return_dict in (True, False):
        model, encoder = build(family, tiny_tokenizer), copy.deepcopy(tiny_encoder)
        model.config.return_dict = encoder.model.config.return_dict = return_dict
        assert isinstance(model(torch.tensor([[5, 6]])), tuple) != return_dict
        edited = fitted(model, tiny_tokenizer, encoder)
        inputs = tiny_tokenizer(PROMPTS[0], return_tensors="pt")
        generated = edited.generate(**inputs, max_new_tokens=3).tolist()
        quality = perplexity(edited, tiny_tokenizer, PROMPTS[:4])
        results.append((edited.answer(PROMPTS[:4], 2), generated, quality))
    assert results[1] == results[0] and results[0][0][0].startswith("river")


def fitted(model: Any, tokenizer: Any, encoder: TextEncoder) -> MeGModel:
    """The model with one edit."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    tuning: dict[str, Any] = {"pseudo": TUNING, "calibration": TUNING, "encoder": encoder}
    return fit(model, tokenizer, [EditRequest(PROMPTS[0], "river")], SETTINGS, **tuning)[0]


def dtypes(model: Any) -> dict[str, torch.dtype]:
    """Of all parameters but those which are zero: there the bits do not say which it was."""
    return {name: value.dtype for name, value in model.named_parameters() if value.any()}


def llava(tokenizer: Any) -> Any:
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32}
    sizes |= {"intermediate_size": 48}
    text = tf.LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes)
    vision = tf.CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=32)
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    config.eos_token_id = None
    torch.manual_seed(0)
    return tf.LlavaForConditionalGeneration(config).eval().requires_grad_(False)


def test_the_copy_of_a_multimodal_model_is_found_by_its_class(
    tiny_tokenizer: Any, tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    """AutoModelForCausalLM does not know its config."""
    edited = fitted(llava(tiny_tokenizer), tiny_tokenizer, tiny_encoder)
    edited.save_pretrained(tmp_path / "edits", save_base=True)
    loaded = MeGModel.from_pretrained(tmp_path / "edits", device="cpu", tokenizer=edited.tokenizer)
    assert type(loaded.base) is tf.LlavaForConditionalGeneration
    assert loaded.answer(PROMPTS[:4], 2) == edited.answer(PROMPTS[:4], 2)
    assert loaded.answer(PROMPTS[0], 1) == ["river"]
    tiny_tokenizer.save_pretrained(tmp_path / "edits" / "base")
    hparams = SETTINGS.changed(model_name=str(tmp_path / "edits" / "base"), device="cpu")
    assert type(load_model(hparams)[0]) is tf.LlavaForConditionalGeneration


def test_a_copy_which_could_not_be_loaded_is_not_made(
    tiny_tokenizer: Any, tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    class StrangeConfig(tf.LlavaConfig):
        model_type = "strange"

    class Strange(tf.LlavaForConditionalGeneration):
        config_class = StrangeConfig

    model = llava(tiny_tokenizer)
    model.__class__, model.config.__class__ = Strange, StrangeConfig
    edited = fitted(model, tiny_tokenizer, tiny_encoder)
    with pytest.raises(ValueError, match=r"^save_base: .*got a Strange with a Strange.*base="):
        edited.save_pretrained(tmp_path / "edits", save_base=True)
    assert not list(tmp_path.iterdir())
    edited.save_pretrained(tmp_path / "edits")


@pytest.mark.parametrize("config", [tf.MambaConfig, tf.RwkvConfig, tf.FalconMambaConfig])
def test_recurrent_models_without_an_ffn_are_refused(config: Any) -> None:
    small = config(vocab_size=61, hidden_size=32, num_hidden_layers=LAYER + 1)
    model = tf.AutoModelForCausalLM.from_config(small)
    with pytest.raises(ValueError, match=r"has no decoder FFN among"):
        NeuronSpec.from_model(model, LAYER)


def test_where_the_named_depth_has_no_ffn_the_nearest_layer_with_one_is_taken(
    tiny_tokenizer: Any,
) -> None:
    """Blocks of Nemotron-H are recurrence or attention or an FFN."""
    family = next(family for family in FAMILIES if family.config == "NemotronHConfig")
    kinds = ["mlp", "mamba", "attention", "mamba", "mamba", "attention", "moe", "mamba"]
    deep = family._replace(arguments={**family.arguments, "layers_block_type": kinds})
    model = build(deep, tiny_tokenizer)
    assert usable_layers(model) == [0, 6] and middle_layer(model) == 6
    assert NeuronSpec.from_hparams(model, MeGHyperParams()).layer == 6
    spec = NeuronSpec.from_model(model, 0)
    states = HiddenStateReader(model, tiny_tokenizer, spec, PromptReader(tiny_tokenizer))
    assert states.module == NeuronSpec.from_model(model, 6).read
    assert (spec.activation, spec.bias) == ("relu2", True)
    none = family._replace(arguments={**family.arguments, "layers_block_type": ["mamba"] * 4})
    with pytest.raises(ValueError, match=r"layers.1 has no decoder FFN among norm, mixer"):
        middle_layer(build(none, tiny_tokenizer))


def test_the_table_in_docs_is_up_to_date(tiny_tokenizer: Any) -> None:
    """Write it anew with `python tests/families.py`."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    present = [family for family in FAMILIES if hasattr(tf, family.config)]
    assert not [line for f in present if (line := row(f, build(f, tiny_tokenizer))) not in lines]
    assert sum(line.startswith("| ") for line in lines) == 1 + len(FAMILIES)
