"""MeGModel: route, generate a neuron, attach it, answer (section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.edits.change import History
from meg_editor.edits.change_lock import ChangeLock
from meg_editor.edits.edition import Edition
from meg_editor.edits.live import LiveEdits
from meg_editor.generators import WeightGenerator
from meg_editor.generators.cache import NeuronCache
from meg_editor.generators.dit import DiTGenerator
from meg_editor.lm.devices import input_device
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.partial_forward import InputCapture
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import max_target_length
from meg_editor.lm.working_copy import without_engine
from meg_editor.model.batching import ContinuousBatching
from meg_editor.model.decoding.generation import WhileDecoding
from meg_editor.model.fit_report import FitReport
from meg_editor.model.in_force import InForce
from meg_editor.model.pipelines import silence_pipelines
from meg_editor.model.queries import query_texts
from meg_editor.model.routed_model import PromptTokens, RoutedModel
from meg_editor.model.saved.appending import Saved, Settings
from meg_editor.model.storable import StorableEdits
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import Gate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import Router
from meg_editor.routing.routing import Routing
from meg_editor.routing.verifier import Verifier
from meg_editor.runtime.tensors import chunks


class MeGModel(LiveEdits, ContinuousBatching, RoutedModel, StorableEdits):
    """A causal LM with edits: used like the transformers model it wraps.

    `RoutedModel` says which part of an input is the query. Thread-safe.

    Attributes:
        base: the unedited model; its weights do not change and it answers as before.
        edits: the N facts; `add`, `replace`, `remove` and `undo` change them.
        verifier: decides whether a prompt asks for an edit it resembles; None: similarity does.
        fitted: the report of the fit; None after loading, and after a change of the edits.

    Example:
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu", encoder_steps=0,
        ...                                 gate_threshold=0.8)
        >>> model, tokenizer = load_model(hparams)
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, _ = fit(model, tokenizer, facts, hparams)
        >>> edited.route("The capital of France is")[0].is_edit
        True
        >>> edited.answer(["The capital of France is", "The currency of France is"])
        ['Lima', 'the euro']

        Saved and loaded again:

        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> edited.save_pretrained(folder)
        >>> MeGModel.from_pretrained(folder, device="cpu").answer("The capital of France is")
        ['Lima']
    """

    _hub_mixin_config = {}  # noqa: RUF012 - of ModelHubMixin: our own config file is enough

    def __init__(
        self,
        base: CausalLM,
        tokenizer: Tokenizer,
        hparams: MeGHyperParams,
        spec: NeuronSpec,
        encoder: TextEncoder,
        edition: Edition,
        runtime: RuntimeConfig | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        super().__init__(base, tokenizer, hparams.prompt_template)
        self.hparams, self.spec = hparams, spec
        self.runtime = runtime or RuntimeConfig()
        self.encoder = encoder
        self.states = HiddenStateReader(base, self._tokenizer, spec, self.reader)
        self.verifier = verifier
        self._changing, self._history = ChangeLock(), History(edition)
        self._saved: dict[Path, Saved] = {}  # by folder
        self._put_in_force(edition)
        self.hook, self._capture = self._hooks()
        self._while_decoding = WhileDecoding(self)
        for part in self._parts:
            part.to(input_device(base)).eval()
        self.training = self.base.training
        silence_pipelines()

    @property
    def edition(self) -> Edition:
        """The edits in force, with gate, index and generator."""
        return self._in_force.edition

    @property
    def gate(self) -> Gate:
        """Decides, or retrieves for the verifier."""
        return self.edition.gate

    @property
    def index(self) -> QueryIndex:
        """The edited queries, which every query is matched against."""
        return self.edition.index

    @property
    def generator(self) -> WeightGenerator:
        """Gives the neurons."""
        return self.edition.generator

    @property
    def router(self) -> Router:
        """Of the edits in force."""
        return self._in_force.router

    @property
    def neuron_cache(self) -> NeuronCache:
        """Of the edits in force."""
        return self._in_force.cache

    def _put_in_force(self, edition: Edition) -> None:
        """In one step: what routes and answers meanwhile does so by the former edits."""
        edition.to(input_device(self.base))
        for part in edition.generator.modules():  # it may have grown
            if isinstance(part, DiTGenerator):
                part.compile_network = self.runtime.generator_compile
        self.fitted: FitReport | None = None
        found_by = (self.encoder, edition.gate, edition.index, self.states)
        router = Router(*found_by, edition.edits, self.verifier, edition.row_of_key)
        cache = NeuronCache(self.runtime.neuron_cache)
        anchored, size = self.hparams.generator_anchored, self.spec.size
        self._in_force = InForce(edition, router, cache, anchored, size)
        self.add_module("_edition", edition)  # for state_dict

    def fork(self) -> MeGModel:
        """Another model with these edits; hyper-parameters and changes are its own, while base,
        encoder, gate, verifier and neurons are shared."""
        parts = (self.encoder, self.edition, self.runtime, self.verifier)
        return type(self)(self.base, self.tokenizer, self.hparams.changed(), self.spec, *parts)

    @property
    def _parts(self) -> list[nn.Module]:
        """All modules but the base."""
        parts = [self.encoder, self.edition]
        return [*parts, self.verifier] if self.verifier else parts

    @property
    def _settings(self) -> Settings:
        return Settings.of(self.hparams, self.gate, self.verifier)

    @property
    def anchors(self) -> Tensor:
        """Embeddings (N, E) of the edited queries."""
        return self.index.anchors

    @property
    def collected(self) -> Tensor | None:
        """Neurons (N, P) which the generator was fitted on, on the CPU.

        None after loading, and after a change of the edits.
        """
        return self.fitted.collection.neurons if self.fitted and self.fitted.collection else None

    @property
    def stored_bytes(self) -> int:
        """Bytes of generator, gate and, if answering needs it, index; without the encoder."""
        needed = [*self.gate.state_dict().values(), *self.generator.state_dict().values()]
        if self.hparams.generator_anchored or self.hparams.gate != "familiarity":
            needed += self.index.state_dict().values()
        return sum(value.nbytes for value in needed)

    def __repr__(self) -> str:
        return (
            f"MeGModel({self.name_or_path or type(self.base).__name__}, {len(self.edits)} edits, "
            f"layer {self.spec.layer}, gate {self.hparams.gate}, "
            f"generator {self.hparams.generator})"
        )

    def __copy__(self) -> MeGModel:
        return self.fork()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a MeGModel is not pickled: save_pretrained writes its edits to a folder, which "
            "MeGModel.from_pretrained reads"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> MeGModel:
        memo |= without_engine(self.base, {})
        copied = memo[id(self)] = type(self).__new__(type(self))
        apart = ("hook", "_capture", "_changing", "_in_force", "_while_decoding")
        with self._changing.taken():
            state = {name: value for name, value in self.__dict__.items() if name not in apart}
            copied.__dict__.update(copy.deepcopy(state, memo))
            copied._changing = ChangeLock()
            copied._put_in_force(copy.deepcopy(self.edition, memo))
        copied.hook, copied._capture = copied._hooks()
        copied._while_decoding = WhileDecoding(copied)
        return copied

    def _hooks(self) -> tuple[NeuronHook, InputCapture | None]:
        """The hooks on the base model: none is registered or removed while it answers."""
        module = self.base.get_submodule(self.states.module)
        capture = InputCapture(module) if self.index.state_weight else None
        return NeuronHook(self.base, self.spec), capture

    # ------------------------------------------------------------------ routing

    def route(self, queries: str | Sequence[str]) -> Routing:
        """Routing of B queries: which are edits, of which fact, with what score.

        Independent of a surrounding `routed` block.
        """
        texts = query_texts(queries)
        in_force = self._in_force
        routing = in_force.router.route([self.reader.read(text) for text in texts])
        return replace(routing, in_force=in_force)

    def neurons(self, routing: Routing, steps: int | None = None) -> Tensor | None:
        """Neurons (B, P) of a routing: zeros for queries that are no edit; None if no query is one.

        Recent ones come from the cache (`RuntimeConfig.neuron_cache`).

        Args:
            routing: of B queries.
            steps: sampling steps; default: those of the hyper-parameters.
        """
        return (routing.in_force or self._in_force).neurons(routing, steps)

    def generated_neurons(self, rows: int = 1024) -> Tensor:
        """Neurons (N, P) of all edits as the generator gives them, float32 on the CPU.

        Args:
            rows: edits at once.
        """
        edition = self.edition
        parts = [edition.neurons(part).cpu() for part in chunks(len(edition.edits), rows)]
        return torch.cat([torch.zeros(0, self.spec.size), *parts])

    def _apply(self, fn: Any, recurse: bool = True) -> MeGModel:
        """Moves everything, and casts the base alone: a rounded threshold decides otherwise."""
        self.neuron_cache.clear()  # its neurons are of the device which is left

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor[:0] if tensor.dim() else tensor).device)

        self.base._apply(fn, recurse)
        for part in self._parts:
            part._apply(move, recurse)
        return self

    def train(self, mode: bool = True) -> MeGModel:
        """Sets the base alone: dropout in the encoder or the gate would make routing a gamble."""
        super().train(mode)
        for part in self._parts:
            part.eval()
        return self

    @contextmanager
    def routed(self, queries: str | Sequence[str]) -> Iterator[Routing]:
        """Context in which `forward` and `generate` use the neurons of these B queries.

        Their inputs must have B rows, or the same number of consecutive rows for each query. Gives
        the routing.
        """
        routing = self.route(queries)
        with self.with_decision(self.neurons(routing)):
            yield routing

    def decide(self, queries: Sequence[str]) -> Tensor | None:
        """Neurons (B, P) of B queries; None if no query is an edit."""
        return self.neurons(self.route(queries))

    def _apply_decision(self, decision: Tensor | None) -> AbstractContextManager[None]:
        return self.hook.attached(decision)

    def _answer_tokens(self, routed: Routing) -> int:
        """As many as the longest target of the edits asked for takes, at least 32."""
        edits = torch.where(routed.is_edit, routed.nearest, -1).unique().tolist()
        in_force = routed.in_force or self._in_force
        asked = [in_force.edition.edits[edit] for edit in edits if edit >= 0]
        return max_target_length(self._tokenizer, asked, super()._answer_tokens(routed))

    def _generate(self, decision: Tensor | None, prompts: PromptTokens, **kwargs: Any) -> Any:
        with self._while_decoding.routed(decision, prompts, kwargs) as further:
            output = super()._generate(decision, prompts, **kwargs, **further)
        self.hook.check()
        return output

    def _forward(self, **kwargs: Any) -> Any:
        output = super()._forward(**kwargs)
        self.hook.check()
        return output
