"""What training hypernetworks has in common: the loss of a step, and its gradient in closed form.

A step edits pseudo facts by what the hypernetwork predicts and measures the edited model. The
gradient with respect to the weights goes back through the normal equation (MALMEN, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.baselines.core.hypernetwork import HyperNetwork, HyperNetworkHyperParams, Shift
from meg_editor.baselines.core.meta_batches import MetaBatch
from meg_editor.baselines.core.token_gradients import (
    TokenGradients,
    mean_cross_entropy,
    token_gradients,
    updates_of,
)
from meg_editor.baselines.core.weights import Updates, add, oriented, restored
from meg_editor.data.world.requests import pseudo_requests
from meg_editor.lm.devices import input_device
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Batch, Example, target_logits
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import Artifact, ArtifactStore, Tensors

# (model, tokenizer, facts, hparams) -> the network's state and `losses`, (steps, 2).
Train = Callable[[Any, Any, Sequence[EditRequest], Any], Tensors]


def hypernetwork(
    model: CausalLM,
    tok: Tokenizer,
    edits: Sequence[EditRequest],
    pseudo: Sequence[EditRequest] | None,
    hparams: HyperNetworkHyperParams,
    train: Train,
    store: ArtifactStore | None,
) -> HyperNetwork:
    """Trained on those of `pseudo`, by default those of the reference world, which are no edits."""
    edited = {edit.key for edit in edits}
    every = pseudo_requests() if pseudo is None else pseudo
    facts = [fact for fact in every if fact.key not in edited]
    network = hparams.network(model)
    stage = trained(model, tok, facts, hparams, train, store or ArtifactStore())
    network.load_state_dict({k: v for k, v in stage.tensors.items() if k != "losses"})
    return network


def predicted(
    model: CausalLM,
    network: HyperNetwork,
    edits: Sequence[Example],
    hparams: HyperNetworkHyperParams,
) -> tuple[dict[str, TokenGradients], dict[str, Shift], Updates]:
    """Keys and gradients at the edits, the shifts, and these as {parameter: update}.

    The edits count for the network's statistics too, as in the authors' code.
    """
    names = list(network.places)
    at_tokens = token_gradients(model, edits, names, hparams.token, hparams.batch_size_once)
    network.observe(at_tokens)
    shifts = network.shifts(at_tokens)
    return (
        at_tokens,
        shifts,
        updates_of(model, {name: shift.value for name, shift in shifts.items()}),
    )


def trained(
    model: CausalLM,
    tok: Tokenizer,
    pseudo: Sequence[EditRequest],
    hparams: HyperNetworkHyperParams,
    train: Train,
    store: ArtifactStore,
) -> Artifact:
    """The trained hypernetwork's state, and `losses`, (steps, 2): generality and locality.

    Raises:
        ValueError: no pseudo fact has rephrases.
        FloatingPointError: a loss is not finite.
    """
    facts = [fact for fact in pseudo if fact.rephrases]
    if not facts:
        raise ValueError("pseudo: expected facts with rephrases, none of them edited")
    unused = {"model_name", "device", "batch_size", "fp16", "model_parallel", "rows_at_once"}
    inputs = {
        "model": fingerprint(model),
        "modules": hparams.linear_layers(model),
        "pseudo": [vars(fact) for fact in facts],
        "hparams": {k: v for k, v in hparams.to_dict().items() if k not in unused},
    }
    name = hparams.alg_name.lower()
    return store.run(name, inputs, lambda: train(model, tok, facts, hparams))


class MetaStep(NamedTuple):
    """The losses of a step, means over batches, and the updates which it tried."""

    generality: float
    locality: float
    updates: Updates


def meta_gradients(
    model: CausalLM,
    network: HyperNetwork,
    batches: Sequence[MetaBatch],
    hparams: HyperNetworkHyperParams,
    decay: float = 1.0,
    penalty: float = 0.0,
) -> MetaStep:
    """Edit, measure, and add the gradients to the hypernetwork's; the model is as it was.

    The loss is the sum over batches of `batch_size_once` examples of their mean over target tokens:
    of the cross entropy at rephrases, and `loc_coef` times the KL divergence from the model before
    this edit at its first answers to locality prompts.

    Args:
        batches: the first is edited and measured, the others, edited before, are only measured.
        decay: the loss of the k-th of the batches, from 0, counts decay^k times.
        penalty: weight of the squared norm of the shifts.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    at_tokens, shifts, updates = predicted(model, network, batches[0].edits, hparams)
    factors = [decay**age for age in range(len(batches))]

    def cut(examples: Sequence[Sequence[Example]]) -> list[tuple[float, Batch]]:
        size = hparams.batch_size_once
        return [
            (factor, Batch.of(rows[i : i + size], input_device(model)))
            for factor, rows in zip(factors, examples, strict=True)
            for i in range(0, len(rows), size)
        ]

    rephrases = cut([batch.rephrases for batch in batches])
    locality = cut([[e for e in batch.locality if e.target] for batch in batches])
    with torch.no_grad():
        before = [_log_probabilities(model, part) for _, part in locality]
    sums = {name: torch.zeros_like(update) for name, update in updates.items()}
    losses: tuple[list[float], list[float]] = ([], [])
    with restored(model, list(updates)) as weights:
        for name, weight in weights.items():
            add(weight, updates[name])
            weight.requires_grad_(True)

        def take(loss: Tensor, kind: int, factor: float) -> None:
            losses[kind].append(loss.item())
            gradients = torch.autograd.grad(factor * loss, [weights[name] for name in updates])
            for name, gradient in zip(updates, gradients, strict=True):
                sums[name] += gradient

        for factor, part in rephrases:
            take(mean_cross_entropy(model, part), 0, factor)
        for (factor, part), reference in zip(locality, before, strict=True):
            now = _log_probabilities(model, part)
            divergence = F.kl_div(now, reference, reduction="batchmean", log_target=True)
            take(divergence, 1, factor * hparams.loc_coef)
    generality, locality_loss = (sum(part) / max(len(part), 1) for part in losses)
    if not torch.tensor([generality, locality_loss]).isfinite().all():
        raise FloatingPointError(
            "a loss of the hypernetwork is not finite; lower lr or meta_lr, or load the model in "
            "float32"
        )
    gradients = {
        name: oriented(model, name, sums[f"{name}.weight"]).T + 2 * penalty * shift.value
        for name, shift in shifts.items()
    }
    network.backpropagate(at_tokens, shifts, gradients)
    return MetaStep(generality, locality_loss, updates)


def _log_probabilities(model: CausalLM, batch: Batch) -> Tensor:
    """(M, V) at the M target tokens."""
    return target_logits(model, batch)[0].log_softmax(-1)
