"""Does continuous batching answer as the model does alone?"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from meg_editor.lm.in_effect import nothing_in_effect
from meg_editor.lm.paged import PagedManager
from meg_editor.model.meg_model import MeGModel

_STOPPING = 30.0  # seconds for an engine to answer


@torch.no_grad()
def check_batching(model: MeGModel) -> None:
    """Check that transformers' continuous batching answers as the model does alone.

    Raises:
        ValueError: it does not, for this architecture (recurrent layers, latent attention …).
    """
    prompts = [[token + n for token in range(3, 9 + n)] for n in range(3)]
    plain = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 4}
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.base.device)
        with nothing_in_effect():
            out = model.base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **plain)
        expected.append(out[0, len(prompt) :].tolist())
    try:
        options: Any = GenerationConfig(**plain)  # type: ignore[no-untyped-call]
        found = PagedManager(model.base, model.hook, options)
        found.start()
        for n, prompt in enumerate(prompts):
            found.add_request(prompt, str(n), max_new_tokens=4, eos_token_id=-1)
        outputs = [found.get_result(timeout=_STOPPING) for _ in prompts]
        shared = found.shares_model
        found.stop(hard_stop=True)
        answers = {output.request_id: output.generated_tokens for output in outputs if output}
    except Exception:
        answers, shared = {}, True
    same = sum(
        token == other
        for n, tokens in enumerate(expected)
        for token, other in zip(tokens, answers.get(str(n), []), strict=False)
    )
    if same < 6:  # of 12: in half precision a tie may fall otherwise
        kind = type(model.base).__name__
        raise ValueError(
            f"transformers' continuous batching does not answer as {kind} does alone: this model "
            "cannot be served; use it from Python"
        )
    if not shared:
        raise ValueError(
            "continuous batching replaces this model's attention, so that edits cannot be learned "
            "beside it: load it with attn_implementation='sdpa', by transformers 5.20 or later"
        )
