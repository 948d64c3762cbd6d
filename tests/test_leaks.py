"""Fits leave no tensors behind."""

from __future__ import annotations

import gc
from typing import Any

import torch
from conftest import OTHERS, PROMPTS

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.fitting.pipeline import fit
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.memory import saved_bytes

SETTINGS = MeGHyperParams(
    layers=[1],
    encoder_steps=0,
    gate_threshold=0.8,
    gate_state_weight=0.2,
    collection_steps=3,
    generator="bank",
)


def live_tensors() -> int:
    """Tensors which the garbage collector sees; those that only C++ refers to are among them."""
    gc.collect()
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


def test_fits_of_the_same_facts_leave_no_tensors(
    tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: TextEncoder
) -> None:
    facts = [EditRequest(prompt, "Paris") for prompt in PROMPTS[:2]]
    pseudo = [EditRequest(PROMPTS[8], "x", rephrases=("Say:",), locality_prompts=(OTHERS[0],))] * 2
    settings: dict[str, Any] = {"encoder": tiny_encoder, "pseudo": pseudo, "calibration": pseudo}

    def run(times: int) -> int:
        for _ in range(times):
            model, _ = fit(tiny_llama, tiny_tokenizer, facts, SETTINGS, **settings)
            model.answer(PROMPTS[0], 2)
            del model
        return live_tensors()

    assert run(3) == run(6)


def test_measured_passes_leave_no_tensors() -> None:
    """`exp` saves its own output: a graph that holds what it computed would hold itself."""
    before = live_tensors()
    for _ in range(5):
        x = torch.ones(256, requires_grad=True)
        assert saved_bytes(lambda x=x: x.exp().exp(), [x]) == 2 * 1024
    del x
    assert live_tensors() == before
