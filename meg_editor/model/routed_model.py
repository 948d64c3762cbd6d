"""A causal LM which answers each row of a batch according to the query in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.lm.tokens import greedy_answers
from meg_editor.requests.prompts import PromptReader


class RoutedModel(nn.Module, ABC):
    """Wraps a transformers model and is used like it.

    A query is looked at once, before the first token, and what was decided is held to the last:
    `generate` takes the prompt as the query. Where the query is not the whole input (teacher
    forcing, an answer already begun), name it: `with model.routed(queries): model(...)`.

    Attributes:
        base: the unedited model. It answers as before.
        reader: puts queries into the prompt template, and finds them again.
    """

    def __init__(self, base: Any, tokenizer: Any, prompt_template: str = "{}") -> None:
        super().__init__()
        if isinstance(base, RoutedModel):
            kind = type(base).__name__
            raise ValueError(f"expected an unedited model, got a {kind}: pass its .base")
        self.base, self.tokenizer = base, tokenizer
        self.reader = PromptReader(tokenizer, prompt_template)
        self._routed = False
        self._held: Any = None  # the decision of the last prefill of a manual decoding loop

    def __getattr__(self, name: str) -> Any:
        """What is not our own (config, generation_config, device, ...) is the base model's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    @abstractmethod
    def decide(self, queries: Sequence[str]) -> Any:
        """What to do for B queries, a sequence or tensor of B entries, or None; for `attached`."""

    @staticmethod
    def select_rows(decision: Any, rows: Sequence[int]) -> Any:
        """The decision for those of its B queries whose indices are `rows`."""
        if decision is None:
            return None
        return (
            decision[list(rows)]
            if isinstance(decision, Tensor)
            else [decision[row] for row in rows]
        )

    @abstractmethod
    def _apply_decision(self, decision: Any) -> AbstractContextManager[Any]:
        """Within the block the base model does what was planned."""

    @contextmanager
    def applied(self, decision: Any) -> Iterator[None]:
        """Within the block, rows are answered by a decision for B queries; none is looked at again."""
        before = self._routed
        with self._apply_decision(decision):
            self._routed = True
            try:
                yield
            finally:
                self._routed = before

    @contextmanager
    def routed(self, queries: str | Sequence[str]) -> Iterator[Any]:
        """Within the block, `forward` and `generate` answer these queries, whatever they are fed.

        The rows of their inputs must be the B queries, or each of them the same number of times.
        """
        decision = self.decide([queries] if isinstance(queries, str) else queries)
        with self.applied(decision):
            yield decision

    def answer(self, queries: str | Sequence[str], max_new_tokens: int = 32) -> list[str]:
        """Greedy answers to B bare queries, put into the prompt template: B strings."""
        texts = [queries] if isinstance(queries, str) else list(queries)
        prompts = [self.reader.wrap(text) for text in texts]
        with self.routed(texts):
            return greedy_answers(self, self.tokenizer, prompts, max_new_tokens)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """As `transformers.GenerationMixin.generate`, with all its arguments.

        Raises:
            ValueError: there are no token ids to read the query from (inputs_embeds only) and no
                surrounding `routed` block.
        """
        if inputs is not None:
            kwargs["inputs"] = inputs
        if self._routed:
            return self._generate(**kwargs)
        ids = kwargs.get("input_ids", inputs)
        with self.routed(self._texts(ids, kwargs.get("attention_mask"))):
            return self._generate(**kwargs)

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """As the base model's forward; outside `routed`, each whole row is its own query.

        A call with a filled `past_key_values` continues the last one and keeps its neurons.
        """
        kwargs["input_ids"] = input_ids
        if self._routed:
            return self._forward(**kwargs)
        past = kwargs.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            texts = self._texts(input_ids, kwargs.get("attention_mask"))
            with torch.no_grad():
                self._held = self.decide(texts)
        with self.applied(self._held):
            return self._forward(**kwargs)

    def _generate(self, **kwargs: Any) -> Any:
        """While attached."""
        return self.base.generate(**kwargs)

    def _forward(self, **kwargs: Any) -> Any:
        """While attached."""
        return self.base(**kwargs)

    def _texts(self, ids: Tensor | None, mask: Tensor | None) -> list[str]:
        if ids is None:
            raise ValueError(
                "the query is read from input_ids, which are missing; give them, or name it: "
                "with model.routed(queries): ..."
            )
        special = {self.tokenizer.pad_token_id, self.tokenizer.bos_token_id}
        texts = []
        for row, tokens in enumerate(ids.tolist()):
            kept = (
                tokens if mask is None else [t for t, m in zip(tokens, mask[row], strict=True) if m]
            )
            while kept and kept[0] in special:
                kept = kept[1:]
            # Chat templates mark turns by special tokens: they are needed to find the question.
            texts.append(self.tokenizer.decode(kept, skip_special_tokens=False).strip())
        return texts
