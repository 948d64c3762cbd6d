"""MeGModel: route -> generate a neuron -> attach it -> answer (section 4.2)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.encoder import TextEncoder
from meg_editor.fit_report import FitReport
from meg_editor.gates import Gate
from meg_editor.generators import WeightGenerator
from meg_editor.hparams import MeGHyperParams
from meg_editor.index import QueryIndex
from meg_editor.neuron import NeuronHook, NeuronSpec
from meg_editor.query import QueryReader
from meg_editor.requests import EditRequest
from meg_editor.routing import Router, Routing
from meg_editor.states import StateReader
from meg_editor.tokens import greedy_answers


class MeGModel(nn.Module):
    """A causal LM with edits: used like the transformers model it wraps.

    `generate` takes the prompt as the query: each row is routed once, before the first token, and
    keeps its neuron to the last. Where the query is not the whole input (teacher forcing, an
    answer already begun), name it: `with model.routed(queries): model(...)`.

    Attributes:
        base: the unedited model. Its weights are never touched and it answers as before.
        edits: the N facts, in the order of the index.
        index: the edited queries, in which every query is looked up.
        fitted: what happened in the fit; None after loading.
    """

    def __init__(
        self,
        base: Any,
        tokenizer: Any,
        hparams: MeGHyperParams,
        spec: NeuronSpec,
        encoder: TextEncoder,
        gate: Gate,
        generator: WeightGenerator,
        index: QueryIndex,
        edits: Sequence[EditRequest],
    ) -> None:
        super().__init__()
        if len(index.anchors) != len(edits):
            raise ValueError(
                f"expected an index of {len(edits)} edits, got one of {len(index.anchors)}"
            )
        if isinstance(base, MeGModel):
            raise ValueError("expected an unedited model, got a MeGModel: pass its .base")
        self.base = base
        self.tokenizer, self.hparams, self.spec = tokenizer, hparams, spec
        self.encoder, self.gate, self.generator = encoder, gate, generator
        self.index = index
        self.edits = tuple(edits)
        self.fitted: FitReport | None = None
        self.reader = QueryReader(tokenizer, hparams.prompt_template)
        self.states = StateReader(base, tokenizer, spec, self.reader)
        self.hook = NeuronHook(base, spec)
        weakref.finalize(self, self.hook.remove)  # the base model may outlive many wrappers
        self._routed = False
        self._held: Tensor | None = None  # neurons of the last prefill of a manual decoding loop
        for part in (encoder, gate, generator, self.index):
            part.to(base.device)
        self.eval()

    def __getattr__(self, name: str) -> Any:
        """What is not MeG's own (config, generation_config, device, ...) is the base model's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    @property
    def anchors(self) -> Tensor:
        """(N, E) embeddings of the edited queries."""
        return self.index.anchors

    @property
    def collected(self) -> Tensor | None:
        """(N, P) neurons which the generator was fitted on, on the CPU; None after loading."""
        return self.fitted.collection.neurons if self.fitted and self.fitted.collection else None

    @property
    def stored_bytes(self) -> int:
        """Bytes that grow or come with the edits: generator, gate and index, not the encoder.

        The index counts only where answering needs it.
        """
        needed = [*self.gate.state_dict().values(), *self.generator.state_dict().values()]
        if self.hparams.generator_anchored or self.hparams.gate == "similarity":
            needed += self.index.state_dict().values()
        return sum(value.numel() * value.element_size() for value in needed)

    # ------------------------------------------------------------------ routing

    def route(self, queries: str | Sequence[str]) -> Routing:
        """Which of B queries are edits, of which fact, and with what score."""
        texts = [queries] if isinstance(queries, str) else list(queries)
        router = Router(self.encoder, self.gate, self.index, self.states)
        return router.route([self.reader.readings(text) for text in texts])

    def neurons(self, routing: Routing, steps: int | None = None) -> Tensor | None:
        """Neurons (B, P) for a routing, zero where a query is not an edit; None if none is.

        Args:
            steps: sampling steps, if not those of the hyper-parameters.
        """
        rows = routing.is_edit.nonzero().flatten()
        if not len(rows):
            return None
        conditions = routing.embeddings[rows]
        if self.hparams.generator_anchored:
            conditions = self.anchors[routing.nearest[rows]]
        generated = self.generator.generate(conditions, steps)
        neurons = generated.new_zeros(len(routing.is_edit), self.spec.size)
        neurons[rows] = generated
        return neurons

    @contextmanager
    def routed(self, queries: str | Sequence[str]) -> Iterator[Routing]:
        """Within the block, `forward` and `generate` answer these queries, whatever they are fed.

        The rows of their inputs must be the B queries, or each of them the same number of times.
        """
        routing = self.route(queries)
        with self.attached(self.neurons(routing)):
            yield routing

    @contextmanager
    def attached(self, neurons: Tensor | None) -> Iterator[None]:
        """Within the block, rows have the given neurons (B, P), or none; nothing is routed."""
        before = self._routed
        with self.hook.attached(neurons):
            self._routed = True
            try:
                yield
            finally:
                self._routed = before

    # ---------------------------------------------------------------- answering

    def answer(self, queries: str | Sequence[str], max_new_tokens: int = 32) -> list[str]:
        """Greedy answers to B bare queries, put into the prompt template: B strings."""
        texts = [queries] if isinstance(queries, str) else list(queries)
        prompts = [self.reader.wrap(text) for text in texts]
        with self.routed(texts):
            return greedy_answers(self.base, self.tokenizer, prompts, max_new_tokens)

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
            return self.base.generate(**kwargs)
        ids = kwargs.get("input_ids", inputs)
        with self.routed(self._texts(ids, kwargs.get("attention_mask"))):
            return self.base.generate(**kwargs)

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """As the base model's forward; outside `routed`, each whole row is its own query.

        A call with a filled `past_key_values` continues the last one and keeps its neurons.
        """
        kwargs["input_ids"] = input_ids
        if self._routed:
            return self.base(**kwargs)
        past = kwargs.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            texts = self._texts(input_ids, kwargs.get("attention_mask"))
            with torch.no_grad():
                self._held = self.neurons(self.route(texts))
        with self.attached(self._held):
            return self.base(**kwargs)

    def _texts(self, ids: Tensor | None, mask: Tensor | None) -> list[str]:
        if ids is None:
            raise ValueError(
                "MeG reads the query from input_ids, which are missing; give them, or name the "
                "query: with model.routed(queries): ..."
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

    # -------------------------------------------------------------------- files

    def save_pretrained(self, folder: Any, **kwargs: Any) -> None:
        """Write the edits to `folder`; see `meg_editor.persistence.save_pretrained`."""
        from meg_editor.persistence import save_pretrained

        save_pretrained(self, folder, **kwargs)

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> MeGModel:
        """Read what `save_pretrained` wrote; see `meg_editor.persistence.from_pretrained`."""
        from meg_editor.persistence import from_pretrained

        return from_pretrained(folder, **kwargs)
