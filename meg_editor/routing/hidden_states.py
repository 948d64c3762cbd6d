"""Hidden-state features of queries: the FFN input at the last token, (B, D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meg_editor.lm.ffn import find_ffn_modules
from meg_editor.lm.last_token import inputs_at_last
from meg_editor.lm.neuron import NeuronSpec, middle_layer
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.prompts import PromptReader


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
        self.model, self.tokenizer, self.reader = model, tokenizer, reader
        middle = middle_layer(model, 1 / 2)
        self.module = spec.read if spec.layer >= middle else find_ffn_modules(model, middle).read

    def read(self, queries: Sequence[str], rows: int = 256) -> Tensor:
        """B bare queries -> features (B, D), float32, on the model's device."""
        ids = prompt_tokens(self.tokenizer, [self.reader.wrap(query) for query in queries])
        return inputs_at_last(self.model, self.module, ids, rows)

    def usual(self, queries: Sequence[str]) -> Tensor | None:
        """Mean and deviation (2, D) of the features of B queries; None of fewer than two."""
        if len(queries) < 2:
            return None
        features = self.read(queries)
        return torch.stack([features.mean(0), features.std(0).clamp_min(1e-6)])
