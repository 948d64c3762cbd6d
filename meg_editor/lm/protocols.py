"""Structural types of a causal LM and of its tokenizer: what this package uses of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn


class CausalLM(Protocol):
    """A decoder LM of transformers: any `PreTrainedModel` with a language-model head.

    Configs and outputs are `Any`, as in transformers.
    """

    config: Any
    name_or_path: str

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    @property
    def generate(self) -> Callable[..., Any]: ...
    def get_decoder(self) -> nn.Module: ...
    def get_input_embeddings(self) -> nn.Module: ...
    def get_output_embeddings(self) -> nn.Module: ...
    def get_submodule(self, target: str) -> nn.Module: ...
    def get_parameter(self, target: str) -> nn.Parameter: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Tokenizer(Protocol):
    """A tokenizer of transformers.

    Token ids are `list[int]`; calling it on B texts gives `{"input_ids": B lists of ids, …}`.
    """

    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    padding_side: str
    chat_template: Any

    def __call__(self, text: Any, **kwargs: Any) -> Any: ...
    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str: ...
    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
