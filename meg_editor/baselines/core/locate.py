"""Locate-then-edit: what MEMIT, AlphaEdit and PMET do alike.

values of the last layer -> for each layer: keys, what is still missing, solve -> updates
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meg_editor.baselines.core.activations import activations_at
from meg_editor.baselines.core.contexts import context_prefixes
from meg_editor.baselines.core.covariance import second_moments
from meg_editor.baselines.core.fact_tokens import FactTokens, fact_tokens
from meg_editor.baselines.core.settings import CovarianceHyperParams, LocateHyperParams
from meg_editor.baselines.core.target_values import TargetValues, ValueSettings, optimise_values
from meg_editor.baselines.core.weights import Updates, add, check_writable, oriented, restored
from meg_editor.data.world.requests import reference_texts
from meg_editor.lm.ffn import block_name
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore

# (the layer's module, its second moment (K, K), keys (N, K), residuals (N, D)) -> update (D, K),
# all in double precision
Solve = Callable[[str, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Locate:
    """Locate-then-edit under the settings of one method.

    Attributes:
        tok, hparams: of the model to edit, and of the method.
        texts: known texts to preserve, for the covariance; None: those of the reference world.
        prefixes: of contexts, the empty one first; None: sampled from the model.
        store: keeps covariances.
        known: second moments by module, of the model before earlier edits; where they lack a module
            all are computed.
    """

    tok: Tokenizer
    hparams: CovarianceHyperParams
    texts: Sequence[str] | None = None
    prefixes: Sequence[str] | None = None
    store: ArtifactStore | None = None
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def moments(self, model: CausalLM) -> dict[str, Tensor]:
        """Second moments (K, K) of the keys, by module."""
        names = self.hparams.down_projections(model)
        check_writable(model, [f"{name}.weight" for name in names])
        if set(names) <= set(self.known):
            return {name: self.known[name] for name in names}
        known = reference_texts() if self.texts is None else self.texts
        return second_moments(
            model,
            self.tok,
            list(known)[: self.hparams.mom2_n_samples],
            names,
            self.hparams.mom2_max_length,
            self.store or ArtifactStore(),
            getattr(torch, self.hparams.mom2_dtype),
        )

    def updates(
        self,
        model: CausalLM,
        edits: Sequence[EditRequest],
        solve: Solve,
        modules: Sequence[str] | None = None,
        settings: ValueSettings | None = None,
        share: Callable[[int], float] = float,
    ) -> Updates:
        """Updates with which `modules[0]` of the last layer outputs the target values.

        Args:
            modules: those whose values are optimised together; None: the last layer's block.
            settings: None: `value_settings(hparams)`.
            share: number of layers that are left -> what the residual is divided by.

        Returns:
            {parameter: its update}; the model is as it was.
        """
        self.hparams.check(model)
        moments = self.moments(model)
        facts = facts_in_contexts(model, self.tok, edits, self.hparams, self.prefixes)
        last, rows_at_once = self.hparams.layers_of(model)[-1], self.hparams.rows_at_once
        modules = modules or [block_name(model, last)]
        settings = settings or value_settings(self.hparams)
        values = optimise_values(model, facts, last, modules, settings, rows_at_once)
        # In the order of the layers: a stored dict of tensors has its own.
        weights = {name: f"{name}.weight" for name in self.hparams.down_projections(model)}
        updates: Updates = {}
        with restored(model, list(weights.values())) as parameters, torch.no_grad():
            for place, (name, weight) in enumerate(weights.items()):
                keys = keys_of(model, facts, name, rows_at_once).double()
                residuals = residuals_of(model, facts, values, modules[0], rows_at_once).double()
                residuals = residuals / share(len(weights) - place)
                update = solve(name, moments[name].to(keys), keys, residuals)
                updates[weight] = oriented(model, name, update)
                add(parameters[weight], updates[weight])
        return updates


def preserving(weight: float) -> Solve:
    """The solve of MEMIT and PMET: the covariance, times `weight`, is what is preserved."""

    def solve(_: str, moment: Tensor, keys: Tensor, residuals: Tensor) -> Tensor:
        return least_squares(keys, residuals, weight * moment)

    return solve


def least_squares(keys: Tensor, residuals: Tensor, preserved: Tensor) -> Tensor:
    """R Kᵀ (K Kᵀ + C)⁻¹ (MEMIT, eq. 14): (D, K) from keys (N, K), residuals (N, D), C (K, K)."""
    update: Tensor = torch.linalg.solve(keys.T @ keys + preserved, keys.T @ residuals).T
    return update


def value_settings(hparams: LocateHyperParams, **changes: Any) -> ValueSettings:
    """How the hyper-parameters want values to be optimised."""
    settings: dict[str, Any] = {
        "lr": hparams.v_lr,
        "steps": hparams.v_num_grad_steps,
        "decay": hparams.v_weight_decay,
        "clamp": hparams.clamp_norm_factor,
        "kl": hparams.kl_factor,
    }
    return ValueSettings(**{**settings, **changes})


def facts_in_contexts(
    model: CausalLM,
    tok: Tokenizer,
    edits: Sequence[EditRequest],
    hparams: LocateHyperParams,
    prefixes: Sequence[str] | None,
) -> list[FactTokens]:
    """The edits as tokens, each after all prefixes; None: those sampled from the model."""
    if prefixes is None:
        prefixes = context_prefixes(model, tok, hparams.context_prefixes, hparams.seed)
    return fact_tokens(tok, edits, prefixes, hparams)


def residuals_of(
    model: CausalLM,
    facts: Sequence[FactTokens],
    values: TargetValues,
    module: str,
    rows_at_once: int,
) -> Tensor:
    """(N, D) residuals of `module` at the bare prompts: target values minus the current outputs."""
    now = activations_at(
        model,
        [fact.rows[0].prompt for fact in facts],
        [fact.lookups[0] for fact in facts],
        [module],
        rows_at_once,
    )[module].outputs
    target = values.target(module)
    return target - now.to(target)


def keys_of(model: CausalLM, facts: Sequence[FactTokens], module: str, rows_at_once: int) -> Tensor:
    """(N, K) what enters `module` at the lookup tokens: the mean of that in the bare prompt and of
    the mean of the other contexts.
    """
    rows = [row.prompt for fact in facts for row in fact.rows]
    positions = [position for fact in facts for position in fact.lookups]
    inputs = activations_at(model, rows, positions, [module], rows_at_once)[module].inputs.float()
    keys: Tensor = inputs.unflatten(0, (len(facts), -1))
    if keys.shape[1] == 1:
        return keys[:, 0]
    return (keys[:, 0] + keys[:, 1:].mean(1)) / 2
