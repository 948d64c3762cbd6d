"""Base class of causal LMs which route every row of a batch by its query."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from meg_editor.lm.answers import batched_answers
from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.model.cache_routing import CacheRouting, cache_of, prompt_texts
from meg_editor.model.queries import check_ids, query_texts
from meg_editor.requests.prompts import PromptReader

ANSWER_TOKENS = 32  # longest answer by default
# Attributes that are passed on to the base model. Any other one would silently answer as the
# unedited model (`generate_batch`) or change it.
_OF_BASE = frozenset(
    """
    base_model_prefix can_generate config device dtype framework generation_config
    get_input_embeddings get_memory_footprint get_output_embeddings hf_device_map
    input_modalities is_gradient_checkpointing main_input_name name_or_path num_parameters
    output_modalities vocab_size
    """.split()  # noqa: SIM905
)

# Ids (B, T) and mask of whole prompts, those in a cache included; None where they are not known.
PromptTokens = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Routed:
    """The routing decision of a `routed` or `applied` block."""

    decision: Any


class RoutedModel(nn.Module, ABC):
    """Wrapper around a transformers model which routes every query, and is used like that model.

    A query is routed once, before the first token: `generate` takes the prompt as the query. In a
    manual decoding loop the decision is tied to the KV cache: one new token continues the answer,
    several are the next part of the prompt and are routed together with the earlier tokens. If the
    query is not the whole input (teacher forcing, an answer already begun), name it:
    `with model.routed(queries): model(...)`. Decisions belong to a call: threads and asyncio tasks
    may use one model at once.

    Attributes:
        base: the unedited model; it answers as before.
        reader: applies the prompt template, and extracts question spans from prompts.

    Example:
        >>> from contextlib import nullcontext
        >>> from meg_editor import MeGHyperParams, load_model
        >>> class Unedited(RoutedModel):
        ...     def decide(self, queries):
        ...         return None
        ...
        ...     def _apply_decision(self, decision):
        ...         return nullcontext()
        >>> model = Unedited(*load_model(MeGHyperParams.preset("default", device="cpu")))
        >>> model.answer("The capital of France is", max_new_tokens=8)
        ['Paris']
    """

    def __init__(self, base: CausalLM, tokenizer: Tokenizer, prompt_template: str = "{}") -> None:
        super().__init__()
        if isinstance(base, RoutedModel):
            kind = type(base).__name__
            raise ValueError(f"expected an unedited model, got a {kind}: pass its .base")
        self.base: Any = base
        self.tokenizer = tokenizer
        # A copy: a fast tokenizer breaks when another thread changes its padding.
        self._tokenizer = copy.deepcopy(tokenizer)
        self.reader = PromptReader(self._tokenizer, prompt_template)

    def __getattr__(self, name: str) -> Any:
        """Submodules of this model, and the attributes of the base model in `_OF_BASE`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = super().__getattr__("base")
            if name in _OF_BASE or not hasattr(base, name):
                return getattr(base, name)
            raise AttributeError(
                f"{type(self).__name__} does not pass on {name!r} of its base model, which has no "
                f"edits; to use it on the unedited model: model.base.{name}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        """A generation config is set on the base model, where `generate` reads it."""
        if name == "generation_config" and "base" in self._modules:
            self.base.generation_config = value
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def decide(self, queries: Sequence[str]) -> Any:
        """Routing decision for B queries: a sequence or tensor of B entries, or None."""

    @staticmethod
    def select_rows(decision: Any, rows: Sequence[int]) -> Any:
        """Decision for the R queries at `rows`, from one for B queries."""
        if decision is None:
            return None
        if isinstance(decision, Tensor):
            return decision[list(rows)]
        return [decision[row] for row in rows]

    @abstractmethod
    def _apply_decision(self, decision: Any) -> AbstractContextManager[Any]:
        """Context in which the base model answers by the decision, in this thread or task."""

    @contextmanager
    def applied(self, decision: Any) -> Iterator[None]:
        """Context in which this model and `base` answer B rows by a given decision."""
        with self.with_decision(decision), self._apply_decision(decision):
            yield

    @contextmanager
    def routed(self, queries: str | Sequence[str]) -> Iterator[Any]:
        """Context in which `forward` and `generate` use the decision for these B queries.

        Their inputs must have B rows, or the same number of consecutive rows for each query.
        """
        decision = self.decide(query_texts(queries))
        with self.with_decision(decision):
            yield decision

    def with_decision(self, decision: Any) -> AbstractContextManager[None]:
        """Context in which `forward` and `generate`, not `base`, use this decision.

        Only in this thread or asyncio task.
        """
        return in_effect(self, _Routed(decision))

    def answer(self, queries: str | Sequence[str], max_new_tokens: int | None = None) -> list[str]:
        """Greedy answers to B bare queries: B strings. The prompt template is applied.

        Args:
            max_new_tokens: of an answer; default: 32, more where an edited answer is longer.
        """
        texts = query_texts(queries)
        if not texts:
            return []
        prompts = [self.reader.wrap(text) for text in texts]
        with self.routed(texts) as routed:
            limit = self._answer_tokens(routed) if max_new_tokens is None else max_new_tokens
            decision = cast(_Routed, value_of(self)).decision

            def of_rows(rows: list[int]) -> AbstractContextManager[None]:
                return self.with_decision(self.select_rows(decision, rows))

            return batched_answers(self, self._tokenizer, prompts, limit, of_rows)

    def _answer_tokens(self, routed: Any) -> int:
        """Longest answer by default, in tokens, to the queries of a `routed` block."""
        return ANSWER_TOKENS

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """`generate` of transformers, with all its arguments; the prompt is the query.

        With a filled `past_key_values` it is the whole prompt, or what follows the tokens in the
        cache: then the attention mask is of all of them.

        Raises:
            TypeError: something else than a tensor came as token ids.
            ValueError: there are no token ids to read the query from (inputs_embeds only) and no
                surrounding `routed` block; an edited model is to be the assistant; or prompts are
                to be healed, which transformers does one by one.
        """
        if args:  # by their place, such as a generation config
            kwargs |= signature(self.base.generate).bind_partial(None, *args).arguments
            kwargs.pop("inputs")
        if inputs is not None:
            kwargs["inputs"] = inputs
        ids = inputs if kwargs.get("input_ids") is None else kwargs["input_ids"]
        check_ids(ids, kwargs.get("inputs_embeds") is not None)
        if isinstance(assistant := kwargs.get("assistant_model"), RoutedModel):
            raise ValueError(
                f"assistant_model: expected an unedited model, got a {type(assistant).__name__}: "
                "pass its .base; it only proposes tokens, and the answers are those of this model"
            )
        config = kwargs.get("generation_config") or self.base.generation_config
        if kwargs.get("token_healing", getattr(config, "token_healing", False)):
            raise ValueError(
                "token_healing: expected healed prompts; heal them before, without edits: "
                "ids = model.base.heal_tokens(ids, tokenizer)"
            )
        paged = kwargs.get("cache_implementation", getattr(config, "cache_implementation", None))
        if paged == "paged":  # it answers in a thread of its own, which no edit reaches
            raise ValueError(
                "cache_implementation: expected a cache of one call, got 'paged'; a MeGModel "
                "answers many prompts with a paged cache by generate_batch(...)"
            )
        mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        routed: _Routed | None = value_of(self)
        earlier, filled, prompts = None, 0, (ids, mask)
        if ids is not None and isinstance(mask, Tensor) and mask.shape[1] > ids.shape[1]:
            earlier = CacheRouting.continued(self, past, ids, mask, named=routed is not None)
            if earlier and past is not None:
                filled, prompts = past.get_seq_length(), (earlier.ids, earlier.mask)
                if routed is not None and earlier.ids is None:  # it is named: any cache will do
                    prompts = (ids, mask[:, -ids.shape[1] :])
        if routed is None:
            routed = _Routed(self._decide_for(*prompts))
        with self._apply_decision(routed.decision):
            output = self._generate(routed.decision, prompts, **kwargs)
        cache = cache_of(output, kwargs)
        if cache is not None and ids is not None:
            sequences = output if isinstance(output, Tensor) else output.sequences
            held = sequences[:, : cache.get_seq_length() - filled]
            if earlier:
                routing = earlier.ended(held).decided(routed.decision)
            else:
                routing = CacheRouting.start(self, routed.decision, held, mask)
            routing.tie(cache)
        return output

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's `forward`; outside `routed`, each row is a query.

        With a filled `past_key_values`, one new token takes the decision of that cache; several
        are routed together with the tokens in the cache.

        Args:
            input_ids: (B, T).

        Raises:
            TypeError: something else than a tensor came as token ids.
            ValueError: another model filled the cache, so that its query is not known.
        """
        check_ids(input_ids, kwargs.get("inputs_embeds") is not None)
        kwargs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        mask, past = attention_mask, kwargs.get("past_key_values")
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

    def _generate(self, decision: Any, prompts: PromptTokens, **kwargs: Any) -> Any:
        """`generate` of the base model, inside `_apply_decision`."""
        return self.base.generate(**kwargs)

    def _forward(self, **kwargs: Any) -> Any:
        """`forward` of the base model, inside `_apply_decision`."""
        return self.base(**kwargs)


def check_unedited(model: Any, name: str = "model") -> None:
    """Check that what was given as `name` is a causal LM, and not one of ours around it.

    Raises:
        TypeError: it is no causal LM of transformers.
        ValueError: it is an edited model.

    Example:
        >>> check_unedited("gpt2")
        Traceback (most recent call last):
        ...
        TypeError: model: expected a causal LM of transformers, such as ... loads, got str
    """
    if isinstance(model, RoutedModel):
        kind = type(model).__name__
        raise ValueError(f"expected an unedited model, got a {kind}: pass its .base")
    if not all(hasattr(model, part) for part in ("config", "generate", "get_decoder")):
        inside = ": pass its .module" if hasattr(model, "module") else ""
        raise TypeError(
            f"{name}: expected a causal LM of transformers, such as AutoModelForCausalLM loads, "
            f"got {type(model).__name__}{inside}"
        )
