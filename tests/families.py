"""Tiny random models of every family the neuron is verified in, and the table of them for docs.

Write the table with `python tests/families.py`; test_families.py checks that it is up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as tf

from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron import NeuronSpec

DOCS = Path(__file__).resolve().parents[1] / "docs" / "families.md"
LAYER, LAYERS = 2, 4

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # larger than usual: the logits are far apart
}
_WIDE = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
_DENSE = {**_WIDE, "head_dim": 8}
_GPT = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "initializer_range": 0.3}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MOE = {**_DENSE, **_ROUTED, "num_experts": 4}
_LOCAL = {**_WIDE, "num_local_experts": 4, "num_experts_per_tok": 2}
_SHARED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
_LATENT = {
    **_WIDE,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_DEEPSEEK = {**_LATENT, **_ROUTED, **_SHARED, "first_k_dense_replace": 1, "head_dim": 4}
_DELTA = {  # linear attention: gated delta rule
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_MULTIPLIED = {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 0.5}
_PER_LAYER = {**_SLIDING, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 420}


class Family(NamedTuple):
    """A family: name, class of its config in transformers, arguments of it."""

    name: str
    config: str
    arguments: dict[str, Any]


FAMILIES = [
    # One FFN.
    Family("GPT-2", "GPT2Config", _GPT),
    Family(
        "GPT-Neo",
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 4,
            "max_position_embeddings": 128,
            "initializer_range": 0.6,
        },
    ),
    Family("GPT-J", "GPTJConfig", {**_GPT, "rotary_dim": 4}),
    Family("CodeGen", "CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    Family("GPT-BigCode", "GPTBigCodeConfig", {**_GPT, "initializer_range": 0.6}),
    Family("GPT-NeoX, Pythia", "GPTNeoXConfig", {**_SIZES, "intermediate_size": 48}),
    Family("OPT", "OPTConfig", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    Family("BioGPT", "BioGptConfig", {**_SIZES, "intermediate_size": 48}),
    Family("Falcon", "FalconConfig", _SIZES),
    Family("Phi", "PhiConfig", {**_SIZES, "intermediate_size": 48}),
    Family("Phi-3, Phi-4", "Phi3Config", _WIDE),
    Family("Persimmon", "PersimmonConfig", {**_SIZES, "intermediate_size": 48}),
    Family("StableLM", "StableLmConfig", _WIDE),
    Family("StarCoder2", "Starcoder2Config", {**_WIDE, "sliding_window": 4}),
    Family("Nemotron", "NemotronConfig", _WIDE),
    Family("Llama 2, 3", "LlamaConfig", _WIDE),
    Family("Mistral", "MistralConfig", {**_WIDE, "sliding_window": 4}),
    Family("Ministral", "MinistralConfig", _DENSE),
    Family("Qwen 2, 2.5", "Qwen2Config", _WIDE),
    Family("Qwen 3", "Qwen3Config", _DENSE),
    Family("Gemma", "GemmaConfig", _DENSE),
    Family("Gemma 2", "Gemma2Config", {**_DENSE, "sliding_window": 4}),
    Family("Gemma 3", "Gemma3TextConfig", {**_DENSE, **_SLIDING}),
    Family(
        "Gemma 3n",
        "Gemma3nTextConfig",
        {
            **_DENSE,
            **_PER_LAYER,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "activation_sparsity_pattern": None,
        },
    ),
    Family("Gemma 4", "Gemma4TextConfig", {**_DENSE, **_PER_LAYER, "num_kv_shared_layers": 2}),
    Family("OLMo", "OlmoConfig", _WIDE),
    Family("OLMo 2", "Olmo2Config", _WIDE),
    Family("OLMo 3", "Olmo3Config", {**_WIDE, **_SLIDING}),
    Family("SmolLM 3", "SmolLM3Config", _WIDE),
    Family("Granite", "GraniteConfig", {**_WIDE, **_MULTIPLIED}),
    Family("Cohere", "CohereConfig", {**_WIDE, "logit_scale": 0.5}),
    Family("Cohere 2", "Cohere2Config", {**_DENSE, **_SLIDING, "logit_scale": 0.5}),
    Family("GLM", "GlmConfig", _DENSE),
    Family("GLM-4", "Glm4Config", _DENSE),
    Family("EXAONE 4", "Exaone4Config", {**_WIDE, **_SLIDING}),
    Family("Helium", "HeliumConfig", _DENSE),
    Family("Apertus", "ApertusConfig", _WIDE),
    Family("Seed-OSS", "SeedOssConfig", _DENSE),
    Family("ERNIE 4.5", "Ernie4_5Config", _DENSE),
    Family("Hunyuan", "HunYuanDenseV1Config", _DENSE),
    Family("MiniCPM 3", "MiniCPM3Config", _LATENT),
    Family("nanochat", "NanoChatConfig", _WIDE),
    # An FFN above recurrent or convolutional layers.
    Family("Falcon-H1", "FalconH1Config", {**_DENSE, **_MAMBA, "mamba_d_ssm": 64}),
    Family("LFM2", "Lfm2Config", {**_WIDE, "layer_types": ["conv", "full_attention"] * 2}),
    Family("Qwen 3.5", "Qwen3_5TextConfig", {**_DENSE, **_DELTA}),
    Family("RecurrentGemma", "RecurrentGemmaConfig", {**_DENSE, "lru_width": 32}),
    Family("Bamba", "BambaConfig", {**_WIDE, **_MAMBA, "attn_layer_indices": [1, 3]}),
    # Mixtures of experts.
    Family("Mixtral", "MixtralConfig", _LOCAL),
    Family("Qwen 2 MoE", "Qwen2MoeConfig", {**_MOE, "shared_expert_intermediate_size": 24}),
    Family("Qwen 3 MoE", "Qwen3MoeConfig", _MOE),
    Family(
        "Qwen 3 Next", "Qwen3NextConfig", {**_MOE, **_DELTA, "shared_expert_intermediate_size": 24}
    ),
    Family(
        "Qwen 3.5 MoE",
        "Qwen3_5MoeTextConfig",
        {**_MOE, **_DELTA, "shared_expert_intermediate_size": 24},
    ),
    Family("gpt-oss", "GptOssConfig", {**_LOCAL, **_SLIDING, "head_dim": 8}),
    Family("Llama 4", "Llama4TextConfig", {**_LOCAL, "head_dim": 8, "intermediate_size_mlp": 48}),
    Family("OLMoE", "OlmoeConfig", {**_WIDE, "num_experts": 4, "num_experts_per_tok": 2}),
    Family("Granite MoE", "GraniteMoeConfig", {**_LOCAL, **_MULTIPLIED}),
    Family(
        "Granite MoE hybrid",
        "GraniteMoeHybridConfig",
        {
            **_LOCAL,
            **_MAMBA,
            **_MULTIPLIED,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention"] * 2,
        },
    ),
    Family("Phi-3.5 MoE", "PhimoeConfig", _LOCAL),
    Family("GLM-4 MoE", "Glm4MoeConfig", {**_DENSE, **_ROUTED, **_SHARED}),
    Family("GLM-4 MoE lite", "Glm4MoeLiteConfig", _DEEPSEEK),
    Family("DeepSeek V2", "DeepseekV2Config", {**_DEEPSEEK, "topk_method": "greedy"}),
    Family("DeepSeek V3", "DeepseekV3Config", _DEEPSEEK),
    Family("dots.llm1", "Dots1Config", {**_DENSE, **_ROUTED, **_SHARED}),
    Family("ERNIE 4.5 MoE", "Ernie4_5_MoeConfig", {**_MOE, "moe_num_experts": 4, "moe_k": 2}),
    Family("Hunyuan MoE", "HunYuanMoEV1Config", {**_MOE, "moe_topk": [2] * 4}),
    Family(
        "Jamba",
        "JambaConfig",
        {
            **_MOE,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 0,
        },
    ),
    Family("JetMoE", "JetMoeConfig", {**_LOCAL, "kv_channels": 8}),
    Family(
        "LFM2 MoE",
        "Lfm2MoeConfig",
        {**_MOE, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    ),
    Family("MiniMax", "MiniMaxConfig", _LOCAL),
    Family("MiniMax M2", "MiniMaxM2Config", {**_LOCAL, "head_dim": 8}),
    Family(
        "Nemotron-H",
        "NemotronHConfig",
        {
            **{key: value for key, value in _DENSE.items() if key != "num_hidden_layers"},
            **_ROUTED,
            **_SHARED,
            "layers_block_type": ["mamba", "attention", "moe", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "moe_shared_expert_intermediate_size": 24,
        },
    ),
    Family("AFMoE", "AfmoeConfig", {**_MOE, **_SLIDING, "num_dense_layers": 1}),
]


def build(family: Family, tokenizer: Any) -> Any:
    """A frozen random model in float32; skips the test where transformers lacks the family."""
    if not hasattr(tf, family.config):
        pytest.skip(f"transformers {tf.__version__} has no {family.config}")
    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    tokens |= {"vocab_size": len(tokenizer), "eos_token_id": None}
    config = getattr(tf, family.config)(**family.arguments, **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        # A norm behind the FFN, as it is before training, leaves a neuron less than answers take.
        if f".{LAYER}." in name and ("post_feedforward" in name or "post_mlp" in name):
            parameter.data.fill_(4.0)
    return model.eval().requires_grad_(False)


def row(family: Family, model: Any) -> str:
    """The line of the table in docs."""
    spec = NeuronSpec.from_model(model, LAYER)
    inside = {type(module).__name__.lower() for module in model.get_submodule(spec.read).modules()}
    kind = "mixture of experts" if any("expert" in name for name in inside) else "FFN"
    neuron = f"{spec.activation}, with bias" if spec.bias else spec.activation
    passes = "from its block on" if LayersFrom(model, LAYER).injectable else "whole model"
    where = spec.read.rpartition(".")[2]
    return f"| {family.name} | `{family.config}` | {kind} `{where}` | {neuron} | {passes} |"


HEAD = """# Families of language models

Written by `python tests/families.py`; every line is tested on a tiny random model, with
transformers {version}. No list is needed to edit a model: its FFN or mixture of experts is found by
structure.

In each family: a zero neuron changes no bit of the logits, alone and in a batch; any other gives
what `FFN(x) + act(k·x + b) · v` gives computed by hand. Two facts of one token each are fitted and
answered, another prompt keeps its answer; saved and loaded, the answers are the same.

- **neuron beside**: the module whose output the neuron is added to.
- **activation**: the neuron's. Beside a plain FFN it has that FFN's and a bias; beside a gated FFN
  or experts it is linear, without one (the paper's A.11.1).
- **collection runs**: the blocks from the edited one on, or the whole model where more than the
  residual stream leads from block to block. The neurons are the same, it takes longer.

Refused, in one sentence: recurrent models without an FFN (Mamba, RWKV), FFNs which add the residual
themselves (Bloom, MPT), models whose blocks are not one list (LongCat-Flash, ModernBERT decoder).

| family | config | neuron beside | activation | collection runs |
|---|---|---|---|---|
"""

if __name__ == "__main__":
    from conftest import tokenizer_of_llama

    tokenizer = tokenizer_of_llama()
    lines = [row(family, build(family, tokenizer)) for family in FAMILIES]
    text = HEAD.format(version=tf.__version__) + "\n".join(lines) + "\n"
    if sys.argv[1:]:
        print(text)
    else:
        DOCS.write_text(text, encoding="utf-8")
