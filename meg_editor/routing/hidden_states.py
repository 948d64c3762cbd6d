"""Hidden-state features of queries: the FFN input at the last token, (B, D)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import find_ffn_modules
from meg_editor.lm.in_effect import nothing_in_effect
from meg_editor.lm.neuron import NeuronSpec, middle_layer
from meg_editor.lm.neuron_hook import eager
from meg_editor.lm.partial_forward import capture_input
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import by_length, right_padded
from meg_editor.requests.prompts import PromptReader
from meg_editor.runtime.progress import progress_bar


class HiddenStateReader:
    """Reads the input of an FFN at the last token of a query.

    There the LM has gathered what it will answer from, so that two phrasings of one question end
    in close states, whatever words they use. It is the FFN of the neuron's layer, or of the middle
    layer where the neuron is lower: the first layers have not gathered anything yet. Only the
    layers up to there are run, and always those of the unedited model.

    Attributes:
        module: dotted name of that FFN.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> spec = NeuronSpec.from_model(model, layer=2)
        >>> reader = HiddenStateReader(model, tokenizer, spec, PromptReader(tokenizer))
        >>> reader.read(["The capital of France is"]).shape == (1, spec.hidden_size)
        True
    """

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer, spec: NeuronSpec, reader: PromptReader
    ) -> None:
        self.model, self.tokenizer, self.spec, self.reader = model, tokenizer, spec, reader
        middle = middle_layer(model, 1 / 2)
        self.module = spec.read if spec.layer >= middle else find_ffn_modules(model, middle).read

    @torch.no_grad()
    def read(self, queries: Sequence[str], rows: int = 256) -> Tensor:
        """B bare queries -> features (B, D), float32, on the model's device."""
        model: Any = self.model
        ids = prompt_tokens(self.tokenizer, [self.reader.wrap(query) for query in queries])
        features = torch.zeros(len(queries), self.spec.hidden_size, device=input_device(model))
        module = model.get_submodule(self.module)
        with nothing_in_effect(), eager(self.model):
            chunks = list(by_length([len(row) for row in ids], rows))
            for chunk in progress_bar(chunks, "hidden states", "batch"):
                tokens = right_padded([ids[index] for index in chunk]).to(input_device(model))
                entering = capture_input(module, partial(model, input_ids=tokens, use_cache=False))
                entering = entering.reshape(*tokens.shape, -1)  # OPT flattens rows
                last = torch.tensor([len(ids[index]) - 1 for index in chunk])
                here = torch.arange(len(chunk), device=entering.device)
                at_last = entering[here, last.to(entering.device)]
                features[torch.tensor(chunk)] = at_last.to(features)
        return features

    def usual(self, queries: Sequence[str]) -> Tensor | None:
        """Mean and deviation (2, D) of the features of B queries; None of fewer than two."""
        if len(queries) < 2:
            return None
        features = self.read(queries)
        return torch.stack([features.mean(0), features.std(0).clamp_min(1e-6)])
