"""MeGModel: route -> generate a neuron -> attach it -> answer (section 4.2)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators import WeightGenerator
from meg_editor.generators.cache import NeuronCache
from meg_editor.lm.neuron import NeuronHook, NeuronSpec
from meg_editor.model.fit_report import FitReport
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import Gate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import Router, Routing


class MeGModel(RoutedModel):
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
        super().__init__(base, tokenizer, hparams.prompt_template)
        if len(index.anchors) != len(edits):
            raise ValueError(
                f"expected an index of {len(edits)} edits, got one of {len(index.anchors)}"
            )
        self.hparams, self.spec = hparams, spec
        self.encoder, self.gate, self.generator = encoder, gate, generator
        self.index = index
        self.edits = tuple(edits)
        self.fitted: FitReport | None = None
        self.states = HiddenStateReader(base, tokenizer, spec, self.reader)
        self.cache = NeuronCache(hparams.neuron_cache)
        self.hook = NeuronHook(base, spec)
        weakref.finalize(self, self.hook.remove)  # the base model may outlive many wrappers
        for part in (encoder, gate, generator, self.index):
            part.to(base.device)
        self.eval()

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
        return router.route([self.reader.candidates(text) for text in texts])

    def neurons(self, routing: Routing, steps: int | None = None) -> Tensor | None:
        """Neurons (B, P) for a routing, zero where a query is not an edit; None if none is.

        Those asked for lately are taken from the cache (`neuron_cache`).

        Args:
            steps: sampling steps, if not those of the hyper-parameters.
        """
        # Which rows need a neuron is all that ever comes back from the device: B numbers.
        wanted = torch.where(routing.is_edit, routing.nearest, -1).tolist()
        rows = [row for row, edit in enumerate(wanted) if edit >= 0]
        if not rows:
            return None
        place = torch.tensor(rows).to(routing.nearest.device, non_blocking=True)
        if not self.hparams.generator_anchored:
            generated = self.generator.generate(routing.embeddings[place], steps)
        elif steps is None and self.cache.size:
            generated = self.cache.get([wanted[row] for row in rows], self._of_edits)
        else:
            generated = self.generator.generate(self.anchors[routing.nearest[place]].float(), steps)
        neurons = generated.new_zeros(len(wanted), self.spec.size)
        neurons[place] = generated
        return neurons

    def _apply(self, fn: Any, recurse: bool = True) -> MeGModel:
        self.cache.clear()  # its neurons are of the device and precision which are left
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _of_edits(self, edits: list[int]) -> Tensor:
        rows = torch.tensor(edits).to(self.anchors.device, non_blocking=True)
        return self.generator.generate(self.anchors[rows].float())

    @contextmanager
    def routed(self, queries: str | Sequence[str]) -> Iterator[Routing]:
        """Within the block, `forward` and `generate` answer these queries, whatever they are fed.

        The rows of their inputs must be the B queries, or each of them the same number of times.
        """
        routing = self.route(queries)
        with self.applied(self.neurons(routing)):
            yield routing

    def decide(self, queries: Sequence[str]) -> Tensor | None:
        """Neurons (B, P) for B queries, or None."""
        return self.neurons(self.route(queries))

    def _apply_decision(self, decision: Tensor | None) -> AbstractContextManager[None]:
        return self.hook.attached(decision)

    # -------------------------------------------------------------------- files

    def save_pretrained(self, folder: Any, **kwargs: Any) -> None:
        """Write the edits to `folder`; see `meg_editor.model.saving.save_pretrained`."""
        from meg_editor.model.saving import save_pretrained

        save_pretrained(self, folder, **kwargs)

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> MeGModel:
        """Read what `save_pretrained` wrote; see `meg_editor.model.saving.from_pretrained`."""
        from meg_editor.model.saving import from_pretrained

        return from_pretrained(folder, **kwargs)
