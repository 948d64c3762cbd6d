"""SCEN: an expert and an index neuron for every edit (Yao et al., COLM 2024).

The expert is a neuron beside the FFN, fitted on its fact alone; the index neuron, a classifier on
the LLM's hidden state at the end of the query, decides whether the expert is used.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.baselines.core.decision import Decision, decisions
from meg_editor.baselines.core.settings import FittingHyperParams, LayerHyperParams
from meg_editor.baselines.core.weights import Requests
from meg_editor.collection.collect import collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.config.settings import setting
from meg_editor.data.world.requests import pseudo_requests
from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import find_ffn_modules
from meg_editor.lm.last_token import inputs_at_last
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.partial_forward import InputCapture
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import EditRequest, only_edits
from meg_editor.runtime.torch_defaults import torch_defaults

_NEGATIVES = 512  # states of other queries in one step
_SPREAD = 4  # edits from which their own states' deviation is used: that of one is 0


@dataclass
class SCENHyperParams(LayerHyperParams, FittingHyperParams):
    """Hyper-parameters of SCEN: one layer."""

    one_layer: ClassVar[bool] = True
    span: ClassVar[tuple[float, float]] = (29 / 32, 29 / 32)

    alg_name: str = setting("SCEN", "Always SCEN.")
    expert_lr: float = setting(
        3.0,
        "Multiple of Polyak's step when an expert is fitted (paper: plain SGD, raw rates).",
        ge=0,
    )
    expert_steps: int = setting(60, "Maximum number of steps of an expert.", ge=1, lt=10**7)
    index_lr: float = setting(0.05, "Adam learning rate of the index neurons.", ge=0)
    index_steps: int = setting(200, "Adam steps.", ge=1, lt=10**7)
    theta: float = setting(0.7, "An expert is used above this activation of its index neuron.")

    def _check_layer(self, model: CausalLM, layer: int) -> None:
        find_ffn_modules(model, layer)  # beside a mixture of experts too


class SCENModel(RoutedModel):
    """A causal LM with experts.

    Args:
        base: the unedited model.
        experts: (N, P) neurons for the place `spec`.
        index: (N, D) weights and (N,) biases of the index neurons.
        scale: (2, D) mean and deviation of states, by which they are standardised.
    """

    experts: Tensor
    weights: Tensor
    biases: Tensor
    scale: Tensor

    def __init__(
        self,
        base: CausalLM,
        tokenizer: Tokenizer,
        hparams: SCENHyperParams,
        spec: NeuronSpec,
        experts: Tensor,
        index: tuple[Tensor, Tensor],
        scale: Tensor,
    ) -> None:
        super().__init__(base, tokenizer, hparams.prompt_template)
        self.hparams, self.spec = hparams, spec
        for name, value in zip(
            ("experts", "weights", "biases", "scale"), (experts, *index, scale), strict=True
        ):
            self.register_buffer(name, value.to(input_device(base)))
        self.hook = NeuronHook(base, spec)
        self._capture = InputCapture(base.get_submodule(spec.read))  # many threads may route

    def __deepcopy__(self, memo: dict[int, Any]) -> SCENModel:
        # A copied NeuronHook acts on nothing: the copy needs a hook of its own.
        other = memo[id(self)] = type(self)(
            copying.deepcopy(self.base, memo),
            self.tokenizer,
            self.hparams,
            self.spec,
            self.experts.clone(),
            (self.weights.clone(), self.biases.clone()),
            self.scale.clone(),
        )
        return other

    def decide(self, queries: Sequence[str]) -> Tensor:
        """(B, P) the experts, zero where no index neuron is active enough."""
        best, index = self._activations(queries)
        return self.experts[index] * (best > self.hparams.theta).unsqueeze(-1)

    def route(self, queries: Sequence[str]) -> list[Decision]:
        """Which of B queries an expert answers, and which expert."""
        theta = self.hparams.theta
        return decisions(*self._activations(queries), lambda score: score > theta)

    @torch.no_grad()
    def _activations(self, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B,) of the most active index neuron, and (B,) which it is."""
        prompts = [self.reader.wrap(self.reader.candidates(query)[0]) for query in queries]
        rows = prompt_tokens(self._tokenizer, prompts)
        states = inputs_at_last(self.base, self.spec.read, rows, self.hparams.rows_at_once)
        logits = (states - self.scale[0]) / self.scale[1] @ self.weights.T + self.biases
        best, index = logits.sigmoid().max(-1)
        return best, index

    def _apply_decision(self, decision: Tensor) -> AbstractContextManager[None]:
        return self.hook.attached(decision)


@torch_defaults()
def apply_scen_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: SCENHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    pseudo: Sequence[EditRequest] | None = None,
    **kwargs: Any,
) -> tuple[SCENModel, dict[str, Tensor]]:
    """Edit by SCEN, with the signature of EasyEdit's methods.

    Args:
        pseudo: facts which are not edited: their prompts and locality prompts teach the index
            neurons to stay silent; by default those of the reference world.

    Returns:
        A SCENModel around `model`, or its copy, and no weights to restore.

    Raises:
        RequestError: contradictory requests.
        ValueError: the layer does not exist or has no usable FFN.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> pseudo = [
        ...     EditRequest("The capital of Peru is", "Oslo", "Peru", ("Peru's capital is",),
        ...                 ("The currency of Peru is",)),
        ...     EditRequest("Emma was written by", "Joyce", "Emma", ("Who wrote Emma?",),
        ...                 ("Ulysses was written by",)),
        ... ]
        >>> hparams = SCENHyperParams(layers=[2])
        >>> edited, _ = apply_scen_to_model(model, tok, [request], hparams, pseudo=pseudo)
        >>> edited.answer("The capital of France is", max_new_tokens=6)
        ['Lima']
    """
    edits = only_edits(requests)
    if copy:
        model = copying.deepcopy(model)
    (layer,) = hparams.layers_of(model)
    settings = MeGHyperParams(
        layers=[layer],
        prompt_template=hparams.prompt_template,
        seed=hparams.seed,
        collection_lr=hparams.expert_lr,
        collection_steps=hparams.expert_steps,
        collection_contexts=1,
    )
    runtime = RuntimeConfig(collection_batch_size=hparams.rows_at_once)
    spec = NeuronSpec.from_model(model, layer)
    experts = collect(model, tok, spec, edits, settings, runtime).neurons
    facts = pseudo_requests() if pseudo is None else pseudo
    texts = [text for fact in facts for text in (fact.prompt, *fact.locality_prompts)]
    wrapped = [
        [in_template(hparams.prompt_template, text) for text in group]
        for group in ([edit.prompt for edit in edits], texts)
    ]
    edited, others = (
        inputs_at_last(model, spec.read, prompt_tokens(tok, prompts), hparams.rows_at_once)
        for prompts in wrapped
    )
    spread = edited if len(edited) >= _SPREAD else torch.cat([edited, others])
    scale = torch.stack([edited.mean(0), spread.std(0, correction=0).clamp(min=1e-6)])
    index = train_index((edited - scale[0]) / scale[1], (others - scale[0]) / scale[1], hparams)
    return SCENModel(model, tok, hparams, spec, experts, index, scale), {}


def train_index(edited: Tensor, others: Tensor, hparams: SCENHyperParams) -> tuple[Tensor, Tensor]:
    """Index neurons: a logistic classifier per edit, its features against all others.

    Args:
        edited: (N, D) hidden-state features of the edited queries.
        others: (M, D) of other queries.

    Returns:
        (N, D) weights and (N,) biases.
    """
    count = len(edited)
    generator = torch.Generator().manual_seed(hparams.seed)
    weights = torch.zeros_like(edited).requires_grad_(True)
    biases = edited.new_zeros(count).requires_grad_(True)
    states = torch.cat([edited, others])
    optimiser = torch.optim.Adam([weights, biases], lr=hparams.index_lr)
    for _ in range(hparams.index_steps):
        rows = torch.randperm(len(states), generator=generator)[:_NEGATIVES].to(edited.device)
        positive = (edited * weights).sum(-1) + biases
        other = states[rows] @ weights.T + biases
        is_self = rows.unsqueeze(1) == torch.arange(count, device=edited.device)
        silent = F.softplus(other).masked_fill(is_self, 0).sum() / (~is_self).sum().clamp(min=1)
        optimiser.zero_grad()
        # Summed over edits: every classifier learns at the same rate, however many there are.
        (F.softplus(-positive).sum() + count * silent).backward()
        optimiser.step()
    return weights.detach(), biases.detach()
