"""Second moments of what enters the FFNs' last layers, over texts the model knows (MEMIT, eq. 15).

Locate-then-edit methods keep answers to everything in those texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.lm.devices import input_device
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.partial_forward import run_until
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import by_length, pad_token, right_padded
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.progress import progress_bar

_ROWS = 64


def second_moments(
    model: CausalLM,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    modules: Sequence[str],
    max_length: int,
    store: ArtifactStore,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Module name -> the mean of k kᵀ over all tokens of `texts`, (inputs, inputs), on the CPU.

    Args:
        max_length: texts are cut after so many tokens.
        store: keeps them, as they depend on the model and the texts alone.

    Raises:
        ValueError: there are no texts.
    """
    if not texts:
        raise ValueError("texts: expected some for the covariance of the keys, got none")
    inputs = {
        "model": fingerprint(model),
        "modules": list(modules),
        "texts": list(texts),
        "max_length": max_length,
        "dtype": str(dtype),
    }
    stage = store.run(
        "covariance",
        inputs,
        lambda: _sums(model, tokenizer, texts, modules, max_length, dtype),
    )
    return stage.tensors


@torch.no_grad()
def _sums(
    model: CausalLM,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    modules: Sequence[str],
    max_length: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    real = torch.tensor([])

    def add(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            keys = args[0].reshape(*real.shape, -1)[real.to(args[0].device)].to(dtype)
            product = keys.T @ keys
            sums[name] = sums[name] + product if name in sums else product

        return hook

    places = {name: model.get_submodule(name) for name in modules}
    handles = [place.register_forward_pre_hook(add(name)) for name, place in places.items()]
    decoder = partial(model.get_decoder(), use_cache=False)
    rows = [row[:max_length] for row in prompt_tokens(tokenizer, texts)]
    chunks = list(by_length([len(row) for row in rows], _ROWS))
    pad = pad_token(tokenizer)
    try:
        for chunk in progress_bar(chunks, "covariance", "batch"):
            ids = right_padded([rows[i] for i in chunk], pad)
            real = torch.tensor([[n < len(rows[i]) for n in range(ids.shape[1])] for i in chunk])
            run_until(places.values(), partial(decoder, input_ids=ids.to(input_device(model))))
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / sum(map(len, rows))).cpu() for name, total in sums.items()}
