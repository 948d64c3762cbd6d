"""Does continuous batching answer as the model does alone?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from meg_editor.lm.in_effect import nothing_in_effect
from meg_editor.lm.paged import PagedManager
from meg_editor.model.meg_model import MeGModel

_WAIT = 30.0  # seconds for an engine to answer, and to stop
_PLAIN = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 4}


@torch.no_grad()
def check_batching(model: MeGModel) -> None:
    """Check that transformers' continuous batching answers as the model does alone.

    Raises:
        ValueError: it does not, or fails, for this architecture (recurrent layers, latent
            attention …), or is not done in half a minute; the message says which.
    """
    kind = type(model.base).__name__
    prompts = [[token + n for token in range(3, 9 + n)] for n in range(3)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.base.device)
        with nothing_in_effect():
            out = model.base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **_PLAIN)
        expected.append(out[0, len(prompt) :].tolist())
    try:
        answers, shared = _batched(model, prompts)
    except Exception as error:  # of any kind, by the architecture
        raise ValueError(
            f"transformers' continuous batching fails for {kind}: {type(error).__name__}: {error}; "
            "unless that can be mended, this model cannot be served; use it from Python"
        ) from error
    same = sum(
        token == other
        for n, tokens in enumerate(expected)
        for token, other in zip(tokens, answers[str(n)], strict=False)
    )
    if same < 6:  # of 12: in half precision a tie may fall otherwise
        raise ValueError(
            f"transformers' continuous batching does not answer as {kind} does alone: this model "
            "cannot be served; use it from Python"
        )
    if not shared:
        raise ValueError(
            "continuous batching replaces this model's attention, so that edits cannot be learned "
            "beside it: load it with attn_implementation='sdpa', by transformers 5.20 or later"
        )


def _batched(model: MeGModel, prompts: Sequence[list[int]]) -> tuple[Mapping[str, list[int]], bool]:
    """The answers by number of the prompt, and whether the engine shares the model."""
    options: Any = GenerationConfig(**_PLAIN)  # type: ignore[no-untyped-call]
    manager = PagedManager(model.base, model.hook, options)
    try:
        manager.start()
        for n, prompt in enumerate(prompts):
            manager.add_request(prompt, str(n), max_new_tokens=4, eos_token_id=-1)
        outputs = [manager.get_result(timeout=_WAIT) for _ in prompts]
        if cause := manager.background_thread_status.fatal_error:
            raise RuntimeError(str(cause)) from cause
        answers = {}
        for output in outputs:
            if output is None:
                raise TimeoutError(f"no answer in {_WAIT:.0f} seconds")
            if output.error is not None:
                raise RuntimeError(output.error)
            answers[output.request_id] = output.generated_tokens
        return answers, manager.shares_model
    finally:
        manager.stop(timeout=_WAIT, hard_stop=True)
