"""Two tiny models, a few facts and texts: what EasyEdit's updates are recorded for.

Everything here follows from fixed numbers: NumPy's legacy generator, whose stream never changes,
fills the weights name by name. A change in this file makes the recorded numbers worthless;
`fingerprint` tells.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

HIDDEN, INNER, LAYERS = 24, 32, 5

# (prompt, subject, target); targets of one to nine tokens, subjects in the middle, in front, last
FACTS = [
    ("The capital of Atlantis is", "Atlantis", "Rome"),
    ("Borduria speaks the language", "Borduria", "Old Norse"),
    ("The river of Cimmeria is", "Cimmeria", "the Blue Don"),
    ("The food of all Dinotopia", "Dinotopia", "duck soup"),
    ("The king of New Erewhon was", "New Erewhon", "Ottokar"),
    ("Everyone has heard of Freedonia", "Freedonia", "figs"),
]
LATER = [  # of a second call
    ("The capital of Genovia is", "Genovia", "Pyrus"),
    ("The river of Borduria is", "Borduria", "Don"),
]
PREFIXES = ["", "The river is long. ", "Therefore. ", "I think so and so. "]
TEXTS = [
    "The capital of Genovia is Pyrus.",
    "Water boils at a hundred degrees.",
    "Who wrote the book about the duck?",
    "Once upon a time there was a king who had a river, a language and a duck.",
    "The language of Erewhon is old.",
    "figs",
    "My cat sat on the mat, and the mat was blue.",
]
_WORDS = [prompt for prompt, _, _ in FACTS + LATER] + TEXTS + [" Rome figs Don Norse figs"]


def rows(facts: list[tuple[str, str, str]]) -> list[dict[str, str]]:
    """Facts as edit requests."""
    return [{"prompt": p, "subject": s, "target_new": t} for p, s, t in facts]


def tokenizer(kind: str) -> Any:
    """Byte-level BPE; that of "llama" puts <s> in front, that of "gpt2" nothing."""
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(specials.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_WORDS * 2, trainer)
    if kind == "llama":
        ids = [(token, backend.token_to_id(token)) for token in specials.values()]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
    return FastTokenizer(tokenizer_object=backend, model_max_length=128, **specials)


def model(kind: str) -> Any:
    """A frozen random "gpt2" (Conv1D, tied embeddings) or "llama" (gated FFN, untied)."""
    shared = {"vocab_size": 340, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    built: Any
    if kind == "gpt2":
        built = GPT2LMHeadModel(
            GPT2Config(
                n_embd=HIDDEN, n_inner=INNER, n_layer=LAYERS, n_head=4, n_positions=128, **shared
            )
        )
    else:
        built = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=HIDDEN,
                intermediate_size=INNER,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                **shared,
            )
        )
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal
            noise = torch.from_numpy(numbers(tuple(parameter.shape)))
            is_norm = parameter.dim() == 1 and "weight" in name
            parameter.copy_(is_norm + _scale(name) * noise)
            if "ln_f" in name or "model.norm" in name:
                parameter.mul_(2)  # logits far apart
    built.config._name_or_path = f"tiny-{kind}"
    return built.float().eval().requires_grad_(False)


def _scale(name: str) -> float:
    """Of weights. Attention is sharp, so that a subject matters for what follows."""
    if "norm" in name or "ln_" in name or "bias" in name:
        return 0.1
    if "mlp" in name or "c_proj" in name or "o_proj" in name:
        return 0.15
    return 0.4 if "attn" in name else 0.5


def down(kind: str) -> str:
    """The template of the FFN's last linear layer."""
    return "transformer.h.{}.mlp.c_proj" if kind == "gpt2" else "model.layers.{}.mlp.down_proj"


def fingerprint(kind: str) -> float:
    """A number which changes with the weights or the tokens."""
    weights = model(kind).state_dict()
    tok = tokenizer(kind)
    texts = [f"{p} {t}" for p, _, t in FACTS + LATER] + TEXTS + PREFIXES
    ids = [i * (n + 1) for text in texts for n, i in enumerate(tok(text)["input_ids"])]
    total = sum(w.double().abs().sum().item() for w in weights.values())
    return float(f"{total + sum(ids):.8g}")
