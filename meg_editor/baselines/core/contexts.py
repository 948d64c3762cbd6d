"""Texts sampled from the model, after which a fact should hold too (MEMIT, section 4.3)."""

from __future__ import annotations

import torch

from meg_editor.lm.devices import input_device
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import left_padded, pad_token
from meg_editor.runtime.randomness import seeded

_BEGINNINGS = ("The", "Therefore", "Because", "I", "You")


@torch.no_grad()
def context_prefixes(
    model: CausalLM, tokenizer: Tokenizer, count: int, seed: int, tokens: int = 10
) -> list[str]:
    """The empty prefix, and `count` sampled ones such as "The river is long. "

    Args:
        tokens: maximum length of a prefix.
    """
    if not count:
        return [""]
    starts = [_BEGINNINGS[i % len(_BEGINNINGS)] for i in range(count)]
    batch = left_padded(tokenizer, starts, input_device(model))
    with seeded(seed, input_device(model)):
        output = model.generate(
            **batch,
            do_sample=True,
            top_k=5,
            max_new_tokens=tokens - 1,
            pad_token_id=pad_token(tokenizer),
        )
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in output.tolist()]
    return ["", *(f"{' '.join(text.split()).rstrip('.')}. " for text in texts)]
