"""A causal LM which answers each row of a batch according to the query in it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import greedy_answers
from meg_editor.model.cache_routing import CacheRouting, cache_of, prompt_texts
from meg_editor.requests.prompts import PromptReader

# What the base model is asked for under its own name. Whatever is not here would answer as the
# unedited model without a word (`generate_batch`) or change it (`save_pretrained`).
_OF_BASE = frozenset(
    """
    base_model_prefix can_generate config device dtype framework generation_config
    get_input_embeddings get_memory_footprint get_output_embeddings hf_device_map
    input_modalities is_gradient_checkpointing main_input_name name_or_path num_parameters
    output_modalities vocab_size
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class _Routed:
    """The routing decision of a `routed` or `applied` block."""

    decision: Any


class RoutedModel(nn.Module, ABC):
    """Wraps a transformers model and is used like it.

    A query is routed once, before the first token: `generate` takes the prompt as the query. In a
    manual decoding loop the decision is tied to the KV cache: one new token continues the answer,
    several are the next part of the prompt and are routed with all that came before. Where the
    query is not the whole input (teacher forcing, an answer already begun), name it:
    `with model.routed(queries): model(...)`. Decisions belong to a call: threads and asyncio tasks
    may use one model at once.

    Attributes:
        base: the unedited model. It answers as before.
        reader: puts queries into the prompt template, and finds them again.
    """

    def __init__(self, base: CausalLM, tokenizer: Tokenizer, prompt_template: str = "{}") -> None:
        super().__init__()
        if isinstance(base, RoutedModel):
            kind = type(base).__name__
            raise ValueError(f"expected an unedited model, got a {kind}: pass its .base")
        self.base: Any = base
        self.tokenizer = tokenizer
        # Our own copy: a fast tokenizer breaks when another thread changes its padding meanwhile.
        self._tokenizer = copy.deepcopy(tokenizer)
        self.reader = PromptReader(self._tokenizer, prompt_template)

    def __getattr__(self, name: str) -> Any:
        """Parts of this model, and of the base model what is on the list of this module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = super().__getattr__("base")
            if name in _OF_BASE or not hasattr(base, name):
                return getattr(base, name)
            raise AttributeError(
                f"{type(self).__name__} does not pass on {name!r} of its base model, which knows "
                f"nothing of the edits; to use it on the unedited model: model.base.{name}"
            ) from None

    @abstractmethod
    def decide(self, queries: Sequence[str]) -> Any:
        """The routing decision for B queries: a sequence or tensor of B entries, or None."""

    @staticmethod
    def select_rows(decision: Any, rows: Sequence[int]) -> Any:
        """The decision for those of its B queries whose indices are `rows`."""
        if decision is None:
            return None
        if isinstance(decision, Tensor):
            return decision[list(rows)]
        return [decision[row] for row in rows]

    @abstractmethod
    def _apply_decision(self, decision: Any) -> AbstractContextManager[Any]:
        """Within the block the base model, in this thread or task, answers as decided."""

    @contextmanager
    def applied(self, decision: Any) -> Iterator[None]:
        """Within the block rows are answered by a decision for B queries, by `base` itself too."""
        with self.in_effect(decision), self._apply_decision(decision):
            yield

    @contextmanager
    def routed(self, queries: str | Sequence[str]) -> Iterator[Any]:
        """Within the block, `forward` and `generate` answer these queries, whatever they are fed.

        The rows of their inputs must be the B queries, or each of them the same number of times.
        """
        decision = self.decide([queries] if isinstance(queries, str) else queries)
        with self.in_effect(decision):
            yield decision

    def in_effect(self, decision: Any) -> AbstractContextManager[None]:
        """Within the block, `forward` and `generate` answer rows by this decision; `base` does not.

        Only in this thread or asyncio task.
        """
        return in_effect(self, _Routed(decision))

    def answer(self, queries: str | Sequence[str], max_new_tokens: int = 32) -> list[str]:
        """Greedy answers to B bare queries, put into the prompt template: B strings."""
        texts = [queries] if isinstance(queries, str) else list(queries)
        prompts = [self.reader.wrap(text) for text in texts]
        with self.routed(texts):
            return greedy_answers(self, self._tokenizer, prompts, max_new_tokens)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """As `transformers.GenerationMixin.generate`, with all its arguments.

        Raises:
            ValueError: there are no token ids to read the query from (inputs_embeds only) and no
                surrounding `routed` block.
        """
        if inputs is not None:
            kwargs["inputs"] = inputs
        ids = kwargs.get("input_ids", inputs)
        mask = kwargs.get("attention_mask")
        routed: _Routed | None = value_of(self)
        if routed is None:
            routed = _Routed(self._decide_for(ids, mask))
        with self._apply_decision(routed.decision):
            output = self._generate(**kwargs)
        cache = cache_of(output, kwargs)
        if cache is not None and ids is not None:
            sequences = output if isinstance(output, Tensor) else output.sequences
            held = sequences[:, : cache.get_seq_length()]
            CacheRouting.start(self, routed.decision, held, mask).tie(cache)
        return output

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """As the base model's forward; outside `routed`, each whole row is its own query.

        With a filled `past_key_values` one new token keeps the decision of that cache; several are
        routed together with what the cache holds.

        Raises:
            ValueError: the cache was filled elsewhere, so that nobody knows what was asked.
        """
        kwargs["input_ids"] = input_ids
        mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        routed: _Routed | None = value_of(self)
        routing = CacheRouting.continued(self, past, input_ids, mask, named=routed is not None)
        if routed is not None:
            decision = routed.decision
        elif routing is not None and not routing.asks_anew:
            decision = routing.decision
        else:
            ids, mask = (input_ids, mask) if routing is None else (routing.ids, routing.mask)
            decision = self._decide_for(ids, mask)
        with self._apply_decision(decision):
            output = self._forward(**kwargs)
        cache = cache_of(output, kwargs)
        if cache is not None:
            if routing is None:
                routing = CacheRouting.start(self, decision, input_ids, mask)
            routing.decided(decision).tie(cache)
        return output

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _decide_for(self, ids: Tensor | None, mask: Tensor | None) -> Any:
        return self.decide(prompt_texts(self._tokenizer, ids, mask))

    def _generate(self, **kwargs: Any) -> Any:
        """While the decision is applied."""
        return self.base.generate(**kwargs)

    def _forward(self, **kwargs: Any) -> Any:
        """While the decision is applied."""
        return self.base(**kwargs)
