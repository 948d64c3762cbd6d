"""hparams/MeG: every file loads, and names a layer and an FFN which its model really has."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as tf
import yaml

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators.dit import DiT
from meg_editor.lm.neuron import NeuronSpec, count_layers
from meg_editor.lm.reference import reference_model_path
from meg_editor.routing.gates import GATES

FOLDER = Path(__file__).parents[1] / "hparams" / "MeG"
REFERENCE = "llama-reference"


class Architecture(NamedTuple):
    """What the hub's config of a model says, and what follows from it."""

    config: type[tf.PreTrainedConfig]
    arguments: dict[str, Any]
    parameters: int  # as published: tells whether the arguments are the real ones
    layers: int
    hidden: int
    ffn: str
    activation: str = "linear"
    neuron: int = 8192


def _sizes(hidden: int, layers: int, heads: int, keys: int, inner: int, **more: Any) -> Any:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        **more,
    }


_LLAMA3 = _sizes(4096, 32, 32, 8, 14336, vocab_size=128256)
_MLP, _HMLP, _GELU = "model.layers.{}.mlp", "transformer.h.{}.mlp", "gelu_new"
ARCHITECTURES = {
    "gpt2-xl": Architecture(
        tf.GPT2Config,
        {"n_embd": 1600, "n_layer": 48, "n_head": 25},
        1_557_611_200,
        48,
        1600,
        _HMLP,
        _GELU,
        3201,
    ),
    "gpt-j-6B": Architecture(
        tf.GPTJConfig,
        {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400},
        6_050_882_784,
        28,
        4096,
        _HMLP,
        _GELU,
        8193,
    ),
    "phi-2": Architecture(
        tf.PhiConfig,
        _sizes(2560, 32, 32, 32, 10240, vocab_size=51200, partial_rotary_factor=0.4),
        2_779_683_840,
        32,
        2560,
        _MLP,
        _GELU,
        5121,
    ),
    "llama3-8b": Architecture(tf.LlamaConfig, _LLAMA3, 8_030_261_248, 32, 4096, _MLP),
    "llama3.1-8b": Architecture(tf.LlamaConfig, _LLAMA3, 8_030_261_248, 32, 4096, _MLP),
    "qwen2.5-7b": Architecture(
        tf.Qwen2Config,
        _sizes(3584, 28, 28, 4, 18944, vocab_size=152064),
        7_615_616_512,
        28,
        3584,
        _MLP,
        neuron=7168,
    ),
    "qwen3-8b": Architecture(
        tf.Qwen3Config,
        _sizes(4096, 36, 32, 8, 12288, head_dim=128, vocab_size=151936),
        8_190_735_360,
        36,
        4096,
        _MLP,
    ),
    "mistral-7b": Architecture(
        tf.MistralConfig,
        _sizes(4096, 32, 32, 8, 14336, vocab_size=32000),
        7_241_732_096,
        32,
        4096,
        _MLP,
    ),
    "gemma2-9b": Architecture(
        tf.Gemma2Config,
        _sizes(3584, 42, 16, 8, 14336, head_dim=256, vocab_size=256000),
        9_241_705_984,
        42,
        3584,
        _MLP,
        neuron=7168,
    ),
}

_PHI, _GPTJ, _LLAMA = (0.01, 80, "constant"), (0.07, 500, "cosine"), (0.02, 50, "constant")
# name: hub id, layer, SGD. The paper has the first three; the others are as deep and as fast as
# the nearest of these.
MODELS: dict[str, tuple[str, int]] = {
    "phi-2": ("microsoft/phi-2", 29),
    "gpt-j-6B": ("EleutherAI/gpt-j-6B", 9),
    "llama3-8b": ("meta-llama/Meta-Llama-3-8B", 14),
    "gpt2-xl": ("openai-community/gpt2-xl", 15),
    "llama3.1-8b": ("meta-llama/Llama-3.1-8B", 14),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B", 12),
    "qwen3-8b": ("Qwen/Qwen3-8B", 16),
    "mistral-7b": ("mistralai/Mistral-7B-v0.1", 14),
    "gemma2-9b": ("google/gemma-2-9b", 18),
}

# The paper and its public code: what is the same for all, per model, and per model and data set.
METHOD = {
    "alg_name": "MeG",
    "fp16": True,
    "encoder_name": "bert-base-uncased",
    "encoder_tuning": "infonce",
    "encoder_tuned_layers": "last",
    "encoder_hard_negatives": False,
    "encoder_lr": 1e-4,
    "gate": "familiarity",
    "gate_name_weight": 0,
    "gate_state_weight": 0,
    "collection_contexts": 1,
    "generator": "dit",
    "generator_anchored": False,
    "generator_conditioning": "time",
    "generator_width": 768,
    "generator_depth": 12,
    "generator_patch_size": 100,
    "generator_dropout": 0.2,
    "generator_scale": 0.01,
    "generator_lr": 1e-4,
    "generator_ema": 0,
    "diffusion_prediction": "v_prediction",
    "sampling_steps": 50,
}
PAPER_MODELS = {
    "phi-2": {
        "model_name": "microsoft/phi-2",
        "layers": [29],
        "collection_optimizer": "sgd",
        "collection_lr": 0.01,
        "collection_steps": 80,
        "collection_schedule": "constant",
        "prompt_template": (
            "Instruct:Answer the following question in less than 5 words. {}\nOutput:"
        ),
    },
    "gpt-j-6B": {
        "model_name": "EleutherAI/gpt-j-6B",
        "layers": [9],
        "collection_optimizer": "sgd",
        "collection_lr": 0.07,
        "collection_steps": 500,
        "collection_schedule": "cosine",
        "prompt_template": "Q: Answer the following question in less than 5 words. {}\nA:",
    },
    "llama3-8b": {
        "model_name": "meta-llama/Meta-Llama-3-8B-Instruct",
        "layers": [14],
        "collection_optimizer": "sgd",
        "collection_lr": 0.02,
        "collection_steps": 50,
        "collection_schedule": "constant",
        "prompt_template": "Answer the following question in less than 5 words: {} \nAnswer:",
    },
}
ENTROPIES = {
    ("phi-2", "zsre"): 0.1,
    ("phi-2", "counterfact"): 0.1,
    ("gpt-j-6B", "zsre"): 0.3,
    ("gpt-j-6B", "counterfact"): 0.7,
    ("llama3-8b", "zsre"): 0.3,
    ("llama3-8b", "counterfact"): 0.3,
}
# What the paper leaves open and the files name all the same, each with a comment.
OURS = {
    "device",
    "batch_size",
    "max_length",
    "familiarity_epochs",
    "collection_loss_threshold",
    "generator_epochs",
}
PAPER = {f"paper/{model}-{data}": (model, data) for model, data in ENTROPIES}
ALL = [REFERENCE, *MODELS, *PAPER]


def _architecture(name: str) -> str:
    return PAPER[name][0] if name in PAPER else name


@cache
def _model(name: str) -> Any:
    """The model in its real size, without any memory for its weights."""
    if name == REFERENCE:
        config = tf.AutoConfig.from_pretrained(reference_model_path())
    else:
        config = ARCHITECTURES[name].config(**ARCHITECTURES[name].arguments)
    with torch.device("meta"):
        return tf.AutoModelForCausalLM.from_config(config)


def _load(name: str) -> MeGHyperParams:
    return MeGHyperParams.from_hparams(FOLDER / name)


def _spec(hparams: MeGHyperParams, model: Any, **changes: Any) -> NeuronSpec:
    """The neuron which `fit` would add."""
    settings = {"module_template": hparams.mlp_module_tmp}
    return NeuronSpec.from_model(model, hparams.layer, **{**settings, **changes})


def test_every_file_is_in_a_table_of_this_test() -> None:
    result = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*")}
    assert result == {f"{name}.yaml" for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_every_file_loads_and_sets_what_it_says(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    hparams = MeGHyperParams.from_hparams(path)
    assert hparams == MeGHyperParams.from_hparams(FOLDER / name)
    nodes = yaml.compose(path.read_text("utf-8")).value
    assert max(Counter(key.value for key, _ in nodes).values()) == 1  # YAML takes the last one
    values = yaml.safe_load(path.read_text("utf-8"))
    assert values["alg_name"] == "MeG" and "batch_size" in values
    assert {key: getattr(hparams, key) for key in values} == values


def test_the_reference_file_is_the_default_preset() -> None:
    preset, file = MeGHyperParams.preset("default").to_dict(), _load(REFERENCE).to_dict()
    preset.pop("batch_size"), file.pop("batch_size")
    assert file == preset


@pytest.mark.parametrize("name", MODELS)
def test_models_have_their_layer_and_nothing_else_of_their_own(name: str) -> None:
    hparams = _load(name)
    assert (hparams.model_name, hparams.layer) == MODELS[name]
    own = {"model_name", "layers", "batch_size", "max_length", "device"}
    defaults = MeGHyperParams().to_dict()
    assert {k for k, v in hparams.to_dict().items() if v != defaults[k]} <= own


@pytest.mark.parametrize("name", [REFERENCE, *MODELS])
def test_whole_prompts_are_left_as_they_are(name: str) -> None:
    assert _load(name).prompt_template == "{}"


@pytest.mark.parametrize("name", [name for name in MODELS if name not in PAPER_MODELS])
def test_models_without_a_paper_say_so(
    name: str,
) -> None:
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    assert "paper does not cover this model" in text
    assert f"layers: [{MODELS[name][1]}] # ours" in text


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_dimensions_are_those_of_the_real_models(name: str) -> None:
    assert _model(name).num_parameters() == ARCHITECTURES[name].parameters
    assert count_layers(_model(name)) == ARCHITECTURES[name].layers


@pytest.mark.parametrize("name", [*MODELS, *PAPER])
def test_the_neuron_has_a_place_in_the_real_model(name: str) -> None:
    hparams, architecture = _load(name), ARCHITECTURES[_architecture(name)]
    spec = _spec(hparams, _model(_architecture(name)))
    place = architecture.ffn.format(hparams.layer)
    biased = architecture.activation != "linear"
    assert spec == NeuronSpec(
        hparams.layer, place, place, architecture.hidden, architecture.activation, biased
    )
    assert spec.size == architecture.neuron == 2 * architecture.hidden + biased


def test_the_neuron_has_a_place_in_the_reference_model() -> None:
    spec = _spec(_load(REFERENCE), _model(REFERENCE))
    place = "model.layers.2.mlp"
    assert spec == NeuronSpec(2, place, place, 256, "linear", False)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_easyedits_template_names_the_ffn_which_is_found(name: str) -> None:
    hparams, model = _load(name), _model(name)
    named = _spec(hparams, model, module_template=ARCHITECTURES[name].ffn)
    assert named == _spec(hparams, model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_beyond_the_last_are_refused(name: str) -> None:
    depth = ARCHITECTURES[name].layers
    hparams = _load(name)
    hparams.layers = [depth - 1]
    assert _spec(hparams, _model(name)).read == ARCHITECTURES[name].ffn.format(depth - 1)
    hparams.layers = [depth]
    with pytest.raises(ValueError, match=f"layer {depth} does not exist.*0 to {depth - 1}"):
        _spec(hparams, _model(name))


@pytest.mark.parametrize("name", [*MODELS, *PAPER])
def test_a_generator_of_these_settings_makes_such_neurons(name: str) -> None:
    size = ARCHITECTURES[_architecture(name)].neuron
    with torch.device("meta"):
        network = DiT(_load(name), dimension=768, size=size)
        built = network(torch.empty(2, size), torch.empty(2), torch.empty(2, 768))
    assert built.shape == (2, size)


@pytest.mark.parametrize("name", PAPER)
def test_paper_files_have_the_papers_settings_and_name_no_others(name: str) -> None:
    model, data = PAPER[name]
    expected = {**METHOD, **PAPER_MODELS[model], "gate_threshold": ENTROPIES[model, data]}
    hparams = _load(name)
    assert {key: getattr(hparams, key) for key in expected} == expected
    assert set(yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))) == {*expected, *OURS}


@pytest.mark.parametrize("name", PAPER)
def test_paper_files_build_a_dit_b(name: str) -> None:
    size = ARCHITECTURES[_architecture(name)].neuron
    with torch.device("meta"):
        network = DiT(_load(name), dimension=768, size=size)
    assert network.tokens == {5121: 52, 8192: 82, 8193: 82}[size]
    assert network.per_patch is None  # the condition enters with the time step alone
    # DiT-B has 130 million parameters, of which its class and patch embeddings are less than one.
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(130e6, rel=0.02)


@pytest.mark.parametrize("name", PAPER)
def test_paper_files_gate_at_their_entropy(name: str) -> None:
    gate = GATES["familiarity"].build(_load(name), 8)
    assert -float(gate.threshold) == pytest.approx(ENTROPIES[PAPER[name]])
    assert gate.logits(torch.zeros(1, 8)).shape == (1, 10)
    assert [m.p for m in gate.modules() if isinstance(m, torch.nn.Dropout)] == [0.1] * 5


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_the_data_sets_differ_in_their_entropy_alone(model: str) -> None:
    zsre, counterfact = (
        _load(f"paper/{model}-{data}").to_dict() for data in ("zsre", "counterfact")
    )
    differing = {key for key in zsre if zsre[key] != counterfact[key]}
    assert differing == ({"gate_threshold"} if model == "gpt-j-6B" else set())
