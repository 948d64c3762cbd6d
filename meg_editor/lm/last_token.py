"""What a model has gathered at the end of a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import text_config
from meg_editor.lm.in_effect import nothing_in_effect
from meg_editor.lm.neuron_hook import eager
from meg_editor.lm.partial_forward import capture_input
from meg_editor.lm.tokens import by_length, right_padded
from meg_editor.runtime.progress import progress_bar


@torch.no_grad()
def inputs_at_last(
    model: Any, module: str, rows: Sequence[Sequence[int]], rows_at_once: int = 256
) -> Tensor:
    """Hidden state which enters a module at the last token of B texts: (B, D) float32.

    As the unedited model has it, on its device. A forward pass ends there.

    Args:
        model: a causal LM, whole.
        module: dotted name of one that reads the hidden state, such as an FFN.
        rows: B lists of token ids.

    Raises:
        ValueError: a forward pass does not reach the module.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> rows = tokenizer(["The capital of France is", "Hello"])["input_ids"]
        >>> inputs_at_last(model, "model.layers.2.mlp", rows).shape
        torch.Size([2, 256])
    """
    device, place = input_device(model), model.get_submodule(module)
    states = torch.zeros(len(rows), text_config(model).hidden_size, device=device)
    with nothing_in_effect(), eager(model):
        chunks = list(by_length([len(row) for row in rows], rows_at_once))
        for chunk in progress_bar(chunks, "hidden states", "batch"):
            tokens = right_padded([rows[index] for index in chunk]).to(device)
            entering = capture_input(place, partial(model, input_ids=tokens, use_cache=False))
            entering = entering.reshape(*tokens.shape, -1)  # OPT flattens rows
            here = torch.arange(len(chunk), device=entering.device)
            last = torch.tensor([len(rows[index]) - 1 for index in chunk], device=entering.device)
            states[torch.tensor(chunk)] = entering[here, last].to(states)
    return states
