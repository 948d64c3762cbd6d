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
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore

# (the layer's module, its second moment (K, K), keys (N, K), residuals (N, D)) -> update (D, K),
# all in double precision
Solve = Callable[[str, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Locate:
    """The material of one edit, apart from the facts.

    Attributes:
        texts: known texts to preserve, for the covariance; None: those of the reference world.
        prefixes: of contexts, the empty one first; None: sampled from the model.
        store: keeps covariances.
        known: second moments by module, of the model before earlier edits; where they lack a module
            all are computed.
    """

    texts: Sequence[str] | None = None
    prefixes: Sequence[str] | None = None
    store: ArtifactStore | None = None
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def facts(
        self,
        model: CausalLM,
        tok: Tokenizer,
        edits: Sequence[EditRequest],
        hparams: LocateHyperParams,
    ) -> list[FactTokens]:
        """The edits as tokens, each in all contexts."""
        prefixes = self.prefixes
        if prefixes is None:
            prefixes = context_prefixes(model, tok, hparams.context_prefixes, hparams.seed)
        return fact_tokens(tok, edits, prefixes, hparams)

    def moments(
        self, model: CausalLM, tok: Tokenizer, hparams: CovarianceHyperParams
    ) -> dict[str, Tensor]:
        """Second moments of the keys, by module."""
        names = hparams.down_projections(model)
        check_writable(model, [f"{name}.weight" for name in names])
        if set(names) <= set(self.known):
            return {name: self.known[name] for name in names}
        known = reference_texts() if self.texts is None else self.texts
        return second_moments(
            model,
            tok,
            list(known)[: hparams.mom2_n_samples],
            names,
            hparams.mom2_max_length,
            self.store or ArtifactStore(),
            getattr(torch, hparams.mom2_dtype),
        )


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


def locate_then_edit(
    model: CausalLM,
    tok: Tokenizer,
    edits: Sequence[EditRequest],
    hparams: CovarianceHyperParams,
    material: Locate,
    modules: Sequence[str],
    settings: ValueSettings,
    solve: Solve,
    share: Callable[[int], float] = float,
) -> Updates:
    """Updates with which `modules[0]` of the last layer outputs the target values.

    Args:
        modules: those whose values are optimised together.
        share: number of layers that are left -> what the residual is divided by.

    Returns:
        {parameter: its update}; the model is as it was.
    """
    hparams.check(model)
    moments = material.moments(model, tok, hparams)
    facts = material.facts(model, tok, edits, hparams)
    values = optimise_values(
        model, facts, hparams.layers_of(model)[-1], modules, settings, hparams.rows_at_once
    )
    names = hparams.down_projections(model)
    weights = [f"{name}.weight" for name in names]
    updates: Updates = {}
    with restored(model, weights) as parameters, torch.no_grad():
        for place, (name, weight) in enumerate(zip(names, weights, strict=True)):
            keys = keys_of(model, facts, name, hparams.rows_at_once).double()
            residuals = residuals_of(
                model, facts, values, modules[0], hparams.rows_at_once
            ).double()
            residuals = residuals / share(len(names) - place)
            update = solve(name, moments[name].to(keys), keys, residuals)
            updates[weight] = oriented(model, name, update)
            add(parameters[weight], updates[weight])
    return updates


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
