"""The dynamic neuron against FFNs which are really wider, on twelve tiny random models."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.activations import ACT2FN

from meg_editor.lm.ffn import find_ffn
from meg_editor.lm.neuron import NeuronSpec, count_layers
from meg_editor.lm.neuron_hook import NeuronHook

D, LAYERS, LAYER, VOCAB, PAD = 32, 3, 1, 61, 0

_HF = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
_WIDE = {**_HF, "intermediate_size": 48}
_GROUPED = {**_WIDE, "num_key_value_heads": 2}
_GPT = {"n_embd": D, "n_layer": LAYERS, "n_head": 4}

# family: (config class, its arguments, where the FFN is, its activation or None for a gated one)
FAMILIES = {
    "gpt2": (tf.GPT2Config, _GPT, "transformer.h.{}.mlp", "gelu_new"),
    "gpt_neo": (
        tf.GPTNeoConfig,
        {
            "hidden_size": D,
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 3,
        },
        "transformer.h.{}.mlp",
        "gelu_new",
    ),
    "gptj": (tf.GPTJConfig, {**_GPT, "rotary_dim": 4}, "transformer.h.{}.mlp", "gelu_new"),
    "gpt_neox": (tf.GPTNeoXConfig, _WIDE, "gpt_neox.layers.{}.mlp", "gelu"),
    "phi": (tf.PhiConfig, _WIDE, "model.layers.{}.mlp", "gelu_new"),
    "opt": (
        tf.OPTConfig,
        {**_HF, "ffn_dim": 48, "dropout": 0.0, "word_embed_proj_dim": 16},
        "model.decoder.layers.{}",
        "relu",
    ),
    "phi3": (tf.Phi3Config, _GROUPED, "model.layers.{}.mlp", None),
    "llama": (tf.LlamaConfig, _GROUPED, "model.layers.{}.mlp", None),
    "mistral": (tf.MistralConfig, {**_GROUPED, "sliding_window": 4}, "model.layers.{}.mlp", None),
    "qwen2": (tf.Qwen2Config, _GROUPED, "model.layers.{}.mlp", None),
    "qwen3": (tf.Qwen3Config, {**_GROUPED, "head_dim": 8}, "model.layers.{}.mlp", None),
    "gemma2": (tf.Gemma2Config, {**_GROUPED, "head_dim": 8}, "model.layers.{}.mlp", None),
}
GATED = [family for family, entry in FAMILIES.items() if entry[3] is None]

all_families = pytest.mark.parametrize("family", FAMILIES)


def build(config_class: type, **arguments: object) -> nn.Module:
    """A frozen random model in float32, whose weights are large enough for logits to differ."""
    torch.manual_seed(0)
    tokens = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None}
    spread = {"initializer_range": 0.2, "init_std": 0.2, "max_position_embeddings": 64}
    config = config_class(vocab_size=VOCAB, **spread, **tokens, **arguments)
    config._attn_implementation = "eager"
    return tf.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@cache
def tiny(family: str) -> nn.Module:
    """One shared model per family; whoever changes it works on a deepcopy."""
    config_class, arguments, *_ = FAMILIES[family]
    return build(config_class, **arguments)


def spec_of(family: str, **overrides: object) -> NeuronSpec:
    return NeuronSpec.from_model(tiny(family), LAYER, **overrides)


def random_neurons(spec: NeuronSpec, rows: int, seed: int = 1) -> Tensor:
    """(rows, P), large enough to matter, with a bias which keeps ReLU and its kin from resting."""
    neurons = 0.7 * torch.randn(rows, spec.size, generator=torch.Generator().manual_seed(seed))
    neurons[:, D : D + spec.bias] += 3.0
    return neurons


def random_tokens(*shape: int, seed: int = 2) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, tokens: Tensor, **arguments: object) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, **arguments).logits


def edited(family: str, spec: NeuronSpec, neurons: Tensor, tokens: Tensor, **arguments) -> Tensor:
    with NeuronHook(tiny(family), spec) as hook, hook.attached(neurons):
        return logits(tiny(family), tokens, **arguments)


# --- by hand: the same neuron as more rows and columns of the FFN's own weights -----------------


def as_linear(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Linear:
    """An nn.Linear with weight (out, in) in the place of `layer`, be it nn.Linear or Conv1D."""
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data, linear.bias.data = weight, bias
    return linear


def parts_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """weight (out, in) and bias (out,) of an nn.Linear or a Conv1D."""
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias
    return weight.detach(), bias.detach()


def widen_up(ffn: nn.Module, name: str, rows: Tensor, biases: Tensor) -> None:
    layer = getattr(ffn, name)
    weight, bias = parts_of(layer)
    setattr(ffn, name, as_linear(layer, torch.cat([weight, rows]), torch.cat([bias, biases])))


def widen_down(ffn: nn.Module, name: str, columns: Tensor) -> None:
    layer = getattr(ffn, name)
    weight, bias = parts_of(layer)
    setattr(ffn, name, as_linear(layer, torch.cat([weight, columns.T], dim=1), bias))


def widened(family: str, k: Tensor, b: Tensor, v: Tensor) -> nn.Module:
    """A copy whose FFN has n more inner neurons: keys k (n, D), biases b (n,), values v (n, D).

    In a gated FFN the new neurons get a gate of (k, b) and an up projection which is always 1, so
    that they compute act(k·x + b) · v as those of a plain FFN do.
    """
    model = copy.deepcopy(tiny(family))
    ffn = model.get_submodule(FAMILIES[family][2].format(LAYER))
    ones, nothing = torch.ones_like(b), torch.zeros_like(k)
    if family == "phi3":  # one fused layer: all gates, then all ups
        weight, bias = parts_of(ffn.gate_up_proj)
        (gate, up), (gate_bias, up_bias) = weight.chunk(2), bias.chunk(2)
        ffn.gate_up_proj = as_linear(
            ffn.gate_up_proj,
            torch.cat([gate, k, up, nothing]),
            torch.cat([gate_bias, b, up_bias, ones]),
        )
        widen_down(ffn, "down_proj", v)
    elif family in GATED:
        widen_up(ffn, "gate_proj", k, b)
        widen_up(ffn, "up_proj", nothing, ones)
        widen_down(ffn, "down_proj", v)
    else:
        names = {"gptj": ("fc_in", "fc_out"), "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h")}
        names |= dict.fromkeys(("phi", "opt"), ("fc1", "fc2"))
        up_name, down_name = names.get(family, ("c_fc", "c_proj"))
        widen_up(ffn, up_name, k, b)
        widen_down(ffn, down_name, v)
    return model


class SideNeuron(nn.Module):
    """old(x) + act(k·x + b) · v, for one neuron, written without looking at the library."""

    def __init__(self, old: nn.Module, activation: Callable, k: Tensor, b: Tensor, v: Tensor):
        super().__init__()
        self.old, self.activation, self.k, self.b, self.v = old, activation, k, b, v

    def forward(self, x: Tensor) -> Tensor:
        return self.old(x) + torch.outer(
            self.activation(x.flatten(0, -2) @ self.k + self.b), self.v
        ).view_as(x)


def by_hand(neuron: Tensor, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """k (1, D), b (1,), v (1, D) of one flat neuron [k, b, v]."""
    b = neuron[D : D + 1] if bias else torch.zeros(1)
    return neuron[None, :D], b, neuron[None, D + bias :]


# --- every family -----------------------------------------------------------------------------


@all_families
def test_found_by_structure(family):
    *_, place, activation = FAMILIES[family]
    for layer in range(LAYERS):
        spec = NeuronSpec.from_model(tiny(family), layer)
        read, write = ("fc1", "fc2") if family == "opt" else ("", "")
        names = tuple(f"{place.format(layer)}.{name}".rstrip(".") for name in (read, write))
        assert (spec.layer, spec.read, spec.write, spec.hidden_size) == (layer, *names, D)
        assert (spec.activation, spec.bias) == (activation or "linear", activation is not None)
        assert spec.size == (2 * D if activation is None else 2 * D + 1)
    assert count_layers(tiny(family)) == LAYERS


@all_families
def test_plain_neuron_equals_a_wider_ffn(family):
    """One neuron with the FFN's own activation is one more row and column of its weights."""
    config = tiny(family).config
    own = FAMILIES[family][3] or getattr(config, "hidden_activation", None) or config.hidden_act
    spec = spec_of(family, activation=own, bias=True)
    neurons, tokens = random_neurons(spec, 3), random_tokens(3, 7)
    actual, unedited = edited(family, spec, neurons, tokens), logits(tiny(family), tokens)
    for row in range(3):
        expected = logits(widened(family, *by_hand(neurons[row], bias=True)), tokens[row, None])
        torch.testing.assert_close(actual[row, None], expected, rtol=1e-4, atol=5e-5)
        assert (actual[row] - unedited[row]).abs().max() > 0.1


@pytest.mark.parametrize("family", GATED)
def test_linear_neuron_equals_two_more_gated_neurons(family):
    """z = act(z) - act(-z) for SiLU and GELU: a linear neuron is a gated FFN two neurons wider."""
    spec = spec_of(family)
    neurons, tokens = random_neurons(spec, 3), random_tokens(3, 7)
    actual, unedited = edited(family, spec, neurons, tokens), logits(tiny(family), tokens)
    for row in range(3):
        k, _, v = by_hand(neurons[row], bias=False)
        model = widened(family, torch.cat([k, -k]), torch.zeros(2), torch.cat([v, -v]))
        expected = logits(model, tokens[row, None])
        torch.testing.assert_close(actual[row, None], expected, rtol=1e-4, atol=5e-5)
        assert (actual[row] - unedited[row]).abs().max() > 0.1


@pytest.mark.parametrize("family", GATED)
@pytest.mark.parametrize(("activation", "bias"), [("linear", False), ("gelu", True)])
def test_gated_ffn_with_a_neuron_beside_it(family, activation, bias):
    spec = spec_of(family, activation=activation, bias=bias)
    neurons, tokens = random_neurons(spec, 3), random_tokens(3, 7)
    actual = edited(family, spec, neurons, tokens)
    for row in range(3):
        model = copy.deepcopy(tiny(family))
        block = model.model.layers[LAYER]
        k, b, v = by_hand(neurons[row], bias)
        block.mlp = SideNeuron(block.mlp, ACT2FN[activation], k[0], b, v[0])
        expected = logits(model, tokens[row, None])
        torch.testing.assert_close(actual[row, None], expected, rtol=1e-4, atol=5e-5)


@all_families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_zero_neuron_is_bit_exact(family, dtype):
    model, spec = copy.deepcopy(tiny(family)).to(dtype), spec_of(family)
    tokens, neurons = random_tokens(3, 7), random_neurons(spec, 3)
    neurons[1] = 0.0
    unedited = logits(model, tokens)
    with NeuronHook(model, spec) as hook:
        assert torch.equal(logits(model, tokens), unedited)  # registered, nothing attached
        with hook.attached(neurons):
            some = logits(model, tokens)
        with hook.attached(torch.zeros(3, spec.size)):
            assert torch.equal(logits(model, tokens), unedited)
    assert torch.equal(some[1], unedited[1])
    assert not torch.equal(some[0], unedited[0]) and not torch.equal(some[2], unedited[2])


def generate(model: nn.Module, tokens: Tensor, **arguments: object):
    defaults = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    report = {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(tokens, **{**defaults, **report, **arguments})


@all_families
def test_cached_equals_uncached(family):
    spec, tokens = spec_of(family), random_tokens(2, 5)
    with NeuronHook(tiny(family), spec) as hook, hook.attached(random_neurons(spec, 2)):
        cached = generate(tiny(family), tokens, use_cache=True)
        uncached = generate(tiny(family), tokens, use_cache=False)
    assert cached.sequences.shape == (2, 5 + 8)
    assert torch.equal(cached.sequences, uncached.sequences)
    for step, other in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(step, other, rtol=1e-4, atol=1e-4)
    unedited = generate(tiny(family), tokens).logits[-1]
    assert (unedited - cached.logits[-1]).abs().max() > 0.1


@all_families
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)], ids=["float16", "bfloat16"]
)
def test_half_precision_is_close_to_float32(family, dtype, error):
    """What the neuron changes in a half-precision model is what it changes in float32."""
    spec, tokens = spec_of(family), random_tokens(3, 7)
    neurons, model = random_neurons(spec, 3), copy.deepcopy(tiny(family)).to(dtype)
    with NeuronHook(model, spec) as hook, hook.attached(neurons):
        actual = logits(model, tokens)
    assert actual.dtype == dtype
    expected = edited(family, spec, neurons, tokens)
    change = (expected - logits(tiny(family), tokens)).norm()
    assert (actual.float() - expected).norm() < error * change


@all_families
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_single_rows(family, side):
    spec, lengths, width = spec_of(family), (3, 7, 5), 7
    neurons, tokens = random_neurons(spec, 3), random_tokens(3, width)
    steps = torch.arange(width)
    real = torch.stack([steps >= width - n if side == "left" else steps < n for n in lengths])
    tokens[~real] = PAD
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)  # as GenerationMixin counts them
    actual = edited(
        family, spec, neurons, tokens, attention_mask=real.long(), position_ids=positions
    )
    for row in range(3):
        single = tokens[row, real[row]][None]
        expected = edited(family, spec, neurons[row, None], single)[0]
        torch.testing.assert_close(actual[row, real[row]], expected, rtol=1e-4, atol=5e-5)


@all_families
def test_beams_and_return_sequences_repeat_rows(family):
    spec, tokens = spec_of(family), random_tokens(2, 5)
    neurons = random_neurons(spec, 2)
    repeated = edited(family, spec, neurons, tokens.repeat_interleave(3, dim=0))
    expected = edited(family, spec, neurons, tokens).repeat_interleave(3, dim=0)
    torch.testing.assert_close(repeated, expected, rtol=1e-4, atol=5e-5)

    beams = {"num_beams": 3, "num_return_sequences": 2, "output_logits": False}
    with NeuronHook(tiny(family), spec) as hook:
        with hook.attached(neurons):
            together = generate(tiny(family), tokens, **beams).sequences
        assert together.shape == (4, 5 + 8)
        for row in range(2):
            with hook.attached(neurons[row, None]):
                alone = generate(tiny(family), tokens[row, None], **beams).sequences
            assert torch.equal(together[2 * row : 2 * row + 2], alone)


@all_families
def test_gradient_reaches_only_the_neurons(family):
    """In float64, against central differences for the steepest coordinate of each part."""
    model, spec = copy.deepcopy(tiny(family)).double(), spec_of(family)
    neurons = random_neurons(spec, 2).double().requires_grad_()
    tokens = random_tokens(2, 6)

    def loss(neurons: Tensor) -> Tensor:
        with hook.attached(neurons):
            scores = model(input_ids=tokens).logits.double()
        return nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    with NeuronHook(model, spec) as hook:
        loss(neurons).backward()
        gradient = neurons.grad[1]
        for part in spec.split(torch.arange(spec.size)):
            if part is None:
                continue
            coordinate = part.flatten()[gradient[part].abs().argmax()]
            nudge = torch.zeros_like(neurons)
            nudge[1, coordinate] = 1e-3  # norms and softmax compute in float32 all the same
            with torch.no_grad():
                slope = (loss(neurons + nudge) - loss(neurons - nudge)) / 2e-3
            assert slope.abs() > 1e-3
            torch.testing.assert_close(gradient[coordinate], slope, rtol=1e-2, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


# --- the hook ---------------------------------------------------------------------------------


def test_an_activation_with_parameters_is_where_the_layer_is():
    """xIELU has some: on a GPU the neuron was computed with those of the CPU, and failed."""
    model = copy.deepcopy(tiny("gpt2")).to("meta")
    spec = dataclasses.replace(spec_of("gpt2"), activation="xielu")
    with NeuronHook(model, spec) as hook:
        parameters = list(hook._activation.parameters())
    assert parameters and all(each.is_meta and not each.requires_grad for each in parameters)


def test_an_activation_with_parameters_follows_a_model_that_moves():
    """It stayed on the CPU where an edited model went to a GPU."""
    spec = dataclasses.replace(spec_of("gpt2"), activation="xielu")
    with NeuronHook(copy.deepcopy(tiny("gpt2")), spec) as hook:
        inputs = torch.zeros(1, 3, spec.hidden_size, device="meta")
        hook._neurons_at(inputs, random_neurons(spec, 1).to("meta"))
        assert all(each.is_meta for each in hook._activation.parameters())


def test_attached_nests_and_restores():
    model, spec, tokens = tiny("llama"), spec_of("llama"), random_tokens(2, 5)
    one, two = random_neurons(spec, 2, seed=5), random_neurons(spec, 2, seed=6)
    expected = [edited("llama", spec, neurons, tokens) for neurons in (one, two)]
    unedited = logits(model, tokens)
    assert not torch.equal(*expected)
    with NeuronHook(model, spec) as hook:
        with hook.attached(one):
            with hook.attached(two):
                assert torch.equal(logits(model, tokens), expected[1])
            assert torch.equal(logits(model, tokens), expected[0])
            with hook.attached(None):
                assert torch.equal(logits(model, tokens), unedited)
            with pytest.raises(KeyError), hook.attached(two):
                raise KeyError
            assert torch.equal(logits(model, tokens), expected[0])
        assert torch.equal(logits(model, tokens), unedited)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_remove_leaves_no_hooks(family):
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    model, spec = tiny(family), spec_of(family)
    assert hooks() == 0
    hook = NeuronHook(model, spec)
    assert hooks() > 0
    hook.remove()
    hook.remove()
    assert hooks() == 0
    with pytest.raises(ValueError, match="removed"), hook.attached(random_neurons(spec, 1)):
        pass
    with pytest.raises(KeyError), NeuronHook(model, spec):
        raise KeyError
    assert hooks() == 0


def test_tuple_outputs_keep_their_other_items():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return 2 * x, "router logits"

    spec = NeuronSpec(0, "0", "0", 2, "linear", bias=False)
    model = nn.Sequential(Pair())
    x = torch.tensor([[[1.0, 2.0]]])
    with NeuronHook(model, spec) as hook, hook.attached(torch.tensor([[3.0, 4.0, 5.0, 6.0]])):
        output, other = model(x)
    assert output.tolist() == [[[2 + 11 * 5, 4 + 11 * 6]]] and other == "router logits"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_models_get_float32_neurons(dtype):
    """A key which half precision would round to zero."""
    spec = NeuronSpec(0, "0", "0", 2, "linear", bias=False)
    model = nn.Sequential(nn.Identity())
    neuron = torch.tensor([[1 + 2**-12, -1.0, 2.0**12, 2.0**13]])
    with NeuronHook(model, spec) as hook, hook.attached(neuron):
        output = model(torch.ones(1, 1, 2, dtype=dtype))
    assert output.dtype == dtype and output.tolist() == [[[1 + 1, 1 + 2]]]


def test_autocast_does_not_round_the_neuron():
    """The sum over D stays in float32 where autocast would run a matmul in bfloat16."""
    spec = NeuronSpec(0, "0", "0", 64, "linear", bias=False)
    model = nn.Sequential(nn.Identity())
    x, neurons = torch.randn(1, 3, 64), torch.randn(1, 128)
    expected = x + (x @ neurons[0, :64])[..., None] * neurons[0, 64:]
    with (
        NeuronHook(model, spec) as hook,
        hook.attached(neurons),
        torch.autocast("cpu", torch.bfloat16),
    ):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_gradient_checkpointing_runs_the_hook_again(family):
    """The backward pass recomputes the block, of which only the FFN's own hooks run twice."""
    spec, tokens, gradients = spec_of(family, activation="tanh"), random_tokens(4, 5), []
    for checkpointing in (False, True):
        model, runs = copy.deepcopy(tiny(family)).train().requires_grad_(), []
        model.get_submodule(spec.write).register_forward_hook(lambda *_, runs=runs: runs.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable()
        neurons = random_neurons(spec, 2).requires_grad_()
        with NeuronHook(model, spec) as hook, hook.attached(neurons):
            model(input_ids=tokens).logits.square().mean().backward()
        assert len(runs) == 1 + checkpointing
        gradients.append(neurons.grad)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients)


# --- the spec ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "size", "activation"),
    [
        (tf.PhiConfig(hidden_size=2560, intermediate_size=10240), 5121, "gelu_new"),
        (tf.GPTJConfig(), 8193, "gelu_new"),
        (tf.LlamaConfig(intermediate_size=14336, num_key_value_heads=8), 8192, "linear"),
    ],
    ids=["phi-2", "gpt-j", "llama-3"],
)
def test_sizes_of_the_paper(config, size, activation):
    """A.11.1, on the shapes of the real models without their weights."""
    config.num_hidden_layers = 2
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config)
    spec = NeuronSpec.from_model(model, 1)
    assert (spec.size, spec.activation) == (size, activation)


@pytest.mark.parametrize("bias", [True, False])
def test_split_and_json(bias):
    spec = NeuronSpec(3, "a.mlp", "a.mlp", 2, "gelu", bias)
    flat = torch.arange(2.0 * spec.size).view(2, spec.size)
    k, b, v = spec.split(flat)
    assert k.tolist() == flat[:, :2].tolist() and v.tolist() == flat[:, 2 + bias :].tolist()
    if bias:
        assert b.tolist() == flat[:, 2].tolist()
    else:
        assert b is None
    assert spec.split(flat[0])[2].shape == (2,)
    assert NeuronSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(
        ValueError, match=rf"expected neurons \(\.\.\., {spec.size}\), got \(2, 3\)"
    ):
        spec.split(flat[:, :3])


@pytest.mark.parametrize(
    ("family", "template", "read", "write"),
    [
        ("llama", "model.layers.{}.mlp", "mlp", "mlp"),
        ("llama", "model.layers.{}.mlp.down_proj", "mlp.gate_proj", "mlp.down_proj"),
        ("phi3", "model.layers.{}.mlp.down_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        ("gpt2", "transformer.h.{}.mlp.c_proj", "mlp.c_fc", "mlp.c_proj"),
        ("opt", "model.decoder.layers.{}.fc2", "fc1", "fc2"),
        ("opt", "model.decoder.layers.{}.fc1", "fc1", "fc2"),
    ],
)
def test_module_template(family, template, read, write):
    """However the FFN is named, the logits are those of the default place."""
    spec, default = spec_of(family, module_template=template), spec_of(family)
    block = template.format(LAYER).rpartition(f".{LAYER}.")[0] + f".{LAYER}"
    assert (spec.read, spec.write) == (f"{block}.{read}", f"{block}.{write}")
    assert (spec.activation, spec.bias) == (default.activation, default.bias)
    neurons, tokens = random_neurons(spec, 2), random_tokens(2, 5)
    expected = edited(family, default, neurons, tokens)
    torch.testing.assert_close(edited(family, spec, neurons, tokens), expected)


def test_language_model_of_a_multimodal_model():
    """The vision tower has as many blocks, of the same width."""
    vision = tf.CLIPVisionConfig(**_WIDE, image_size=8, patch_size=4)
    text = tf.LlamaConfig(vocab_size=VOCAB, **_GROUPED)
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    model = tf.LlavaForConditionalGeneration(config)
    spec = NeuronSpec.from_model(model, LAYER)
    assert model.get_submodule(spec.read) is model.get_decoder().layers[LAYER].mlp
    assert spec.activation == "linear"


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [-1, LAYERS, 40])
def test_layer_out_of_range(layer):
    message = f"layer {layer} does not exist: this model has 3 decoder layers, 0 to 2"
    with pytest.raises(ValueError, match=message):
        NeuronSpec.from_model(tiny("llama"), layer)


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("transformer.h.{}.mlp", "does not exist"),
        ("model.layers.{}.self_attn", "is not an FFN"),  # Phi-3's fused one has an FFN's shapes
        ("model.layers.{}.self_attn.o_proj", "is not an FFN"),
        ("model.layers.{}", "is not an FFN"),
    ],
)
def test_template_which_names_no_ffn(family, template, problem):
    message = f"'{template.format(LAYER)}' {problem}.*; by default it is 'model.layers.1.mlp'"
    with pytest.raises(ValueError, match=message):
        spec_of(family, module_template=template)


def test_template_which_names_a_block():
    """OPT's holds the linear layers of the FFN, but its output is the residual stream."""
    with pytest.raises(ValueError, match=r"layers.1' is not an FFN.*'model.decoder.layers.1.fc2'"):
        spec_of("opt", module_template="model.decoder.layers.{}")


def test_template_without_a_layer():
    with pytest.raises(ValueError, match=r"'model.layers.1.mlp' has no {} for the layer"):
        spec_of("llama", module_template="model.layers.1.mlp")


def test_adapters_are_not_taken_for_the_ffn():
    """Low-rank projections beside the FFN, as in Gemma 3n, have the shapes of a small one."""
    model = copy.deepcopy(tiny("llama"))
    block = model.model.layers[LAYER]
    block.laurel = nn.Sequential(nn.Linear(D, 4), nn.Linear(4, D))
    block.input_gate, block.projection = nn.Linear(D, 64), nn.Linear(64, D)
    block.mlp = block._modules.pop("mlp")  # now the last child
    assert NeuronSpec.from_model(model, LAYER) == spec_of("llama")


@pytest.mark.parametrize("template", [None, "model.layers.{}.mlp"])
def test_mixtures_of_experts(template):
    """A neuron has the whole mixture beside it; a method which writes weights has no layer."""
    model = build(tf.MixtralConfig, **_GROUPED, num_local_experts=2)
    spec = NeuronSpec.from_model(model, LAYER, module_template=template)
    where = "model.layers.1.mlp"
    assert spec == NeuronSpec(LAYER, where, where, D, "linear", bias=False)
    with pytest.raises(ValueError, match=r"layer 1 is a mixture of experts \(model.layers.1.mlp\)"):
        find_ffn(model, LAYER)
    with pytest.raises(ValueError, match=r"experts' is not an FFN.*default it is '.*1.mlp'"):
        NeuronSpec.from_model(model, LAYER, module_template="model.layers.{}.mlp.experts")


@pytest.mark.parametrize(
    ("config_class", "arguments", "message"),
    [
        (tf.BloomConfig, _GPT, "residual itself"),
        (tf.MptConfig, {"d_model": D, "n_layers": LAYERS, "n_heads": 4}, "residual itself"),
        (
            tf.MambaConfig,
            {"hidden_size": D, "num_hidden_layers": LAYERS},
            "has no decoder FFN among",
        ),
        (tf.BertConfig, {**_WIDE, "is_decoder": True}, "has no decoder FFN among"),
    ],
)
def test_models_without_a_usable_ffn(config_class, arguments, message):
    model = build(config_class, **arguments)
    assert count_layers(model) == LAYERS
    with pytest.raises(ValueError, match=message):
        NeuronSpec.from_model(model, LAYER)


def test_config_without_an_activation(monkeypatch):
    monkeypatch.setattr("meg_editor.lm.neuron._ACTIVATION_KEYS", ("no_such_key",))
    with pytest.raises(ValueError, match="GPT2Config names no activation: pass activation="):
        spec_of("gpt2")
    assert spec_of("gpt2", activation="relu").activation == "relu"


def test_what_is_not_a_language_model():
    with pytest.raises(ValueError, match="expected a transformers language model, got Linear"):
        count_layers(nn.Linear(2, 2))


def test_impossible_specs():
    good = spec_of("llama").to_dict()
    with pytest.raises(ValueError, match="unknown activation 'gelu_newer'; there are: .*gelu_new,"):
        NeuronSpec.from_dict({**good, "activation": "gelu_newer"})
    with pytest.raises(ValueError, match="unexpected keys of NeuronSpec: .*'colour'"):
        NeuronSpec.from_dict({**good, "colour": "red"})
    with pytest.raises(ValueError, match="missing .* keys of NeuronSpec: .*'bias'"):
        NeuronSpec.from_dict({key: good[key] for key in good if key != "bias"})
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no module 'nowhere'"):
        NeuronHook(tiny("llama"), NeuronSpec.from_dict({**good, "read": "nowhere"}))


@pytest.mark.parametrize("shape", [(2, 2 * D + 1), (2 * D,), (0, 2 * D), (1, 2, 2 * D)])
def test_neurons_which_do_not_fit(shape):
    with NeuronHook(tiny("llama"), spec_of("llama")) as hook:
        message = rf"expected neurons of shape \(B, {2 * D}\), got \({shape[0]},"
        with pytest.raises(ValueError, match=message), hook.attached(torch.zeros(shape)):
            pass


@all_families
@pytest.mark.parametrize("batch", [1, 3])
def test_rows_which_do_not_divide_the_batch(family, batch):
    """Also in OPT, whose FFN sees B*T rows: 1 * 4 and 3 * 4 could be shared among 2 neurons."""
    spec = spec_of(family)
    with pytest.raises(ValueError, match=f"2 neurons are attached.* got {batch} .*packed"):
        edited(family, spec, random_neurons(spec, 2), random_tokens(batch, 4))


def test_spec_of_another_model():
    spec = NeuronSpec(LAYER, "model.layers.1.mlp", "model.layers.1.mlp", D + 1, "linear", False)
    with pytest.raises(ValueError, match=rf"expected FFN inputs .*{D + 1}\), got \(1, 4, {D}\)"):
        edited("llama", spec, random_neurons(spec, 1), random_tokens(1, 4))
