"""What training a hypernetwork has in common: which facts, which loss, in closed form.

A step edits pseudo facts by what the hypernetwork predicts and measures the edited model. The
gradient with respect to the weights goes back through the normal equation (MALMEN, section 4.2).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.baselines.malmen_network import HyperNetwork, Shift
from meg_editor.baselines.token_gradients import (
    TokenGradientHyperParams,
    TokenGradients,
    mean_cross_entropy,
    token_gradients,
    updates_of,
)
from meg_editor.baselines.weights import Updates, add, oriented, restored
from meg_editor.data.reference_requests import pseudo_requests
from meg_editor.fingerprint import fingerprint
from meg_editor.flat_hparams import setting
from meg_editor.names import words
from meg_editor.requests import EditRequest
from meg_editor.stages import Stage, StageStore, Tensors
from meg_editor.tokens import Batch, Example, batched_answers, target_logits

_ANSWER_TOKENS = 12  # of the model's own answers, at most; more if some target is longer
_CANDIDATES = 1000  # facts among which one with a similar prompt is looked for, at most


@dataclass
class HyperNetworkHyperParams(TokenGradientHyperParams):
    """Of methods whose hypernetwork is trained on facts which are not edited.

    `batch_size_once` is the authors' `data.batch_size`, `editor_batch_size` their
    `editor.batch_size`.
    """

    token: Literal["ans", "mask"] = setting(
        "ans", "ans: where a target token comes next; mask: every token of prompt and target."
    )
    batch_size_once: int = setting(32, "Edits per forward and backward pass.", least=1)
    rank: int = setting(1920, "Rank of each block of the hypernetwork.", least=1)
    n_blocks: int = setting(2, "Blocks of the hypernetwork.", least=0)
    lr: float = setting(1e-6, "First value of the hypernetwork's rates.", least=0)
    meta_lr: float = setting(1e-5, "Rate of Adam when the hypernetwork is trained.", least=0)
    loc_coef: float = setting(1.0, "Weight of the locality loss.", least=0)
    max_grad_norm: float = setting(1.0, "The hypernetwork's gradients are clipped to it.", least=0)
    n_edits: int = setting(512, "Pseudo facts edited at each step of training, at most.", least=1)

    def network(self, model: Any) -> HyperNetwork:
        """An untrained hypernetwork for a model."""
        return HyperNetwork.of(
            model,
            self.linear_layers(model),
            self.rank,
            self.n_blocks,
            self.lr,
            self.editor_batch_size,
            self.seed,
        )


# (model, tokenizer, facts, hparams) -> the network's state and `losses`, (steps, 2).
Train = Callable[[Any, Any, Sequence[EditRequest], Any], Tensors]


def hypernetwork(
    model: Any,
    tok: Any,
    edits: Sequence[EditRequest],
    pseudo: Sequence[EditRequest] | None,
    hparams: HyperNetworkHyperParams,
    train: Train,
    store: StageStore | None,
) -> HyperNetwork:
    """Trained on those of `pseudo`, by default those of the reference world, which are no edits."""
    edited = {edit.key for edit in edits}
    every = pseudo_requests() if pseudo is None else pseudo
    facts = [fact for fact in every if fact.key not in edited]
    network = hparams.network(model)
    stage = trained(model, tok, facts, hparams, train, store or StageStore())
    network.load_state_dict({k: v for k, v in stage.tensors.items() if k != "losses"})
    return network


def predicted(
    model: Any, network: HyperNetwork, edits: Sequence[Example], hparams: HyperNetworkHyperParams
) -> tuple[dict[str, TokenGradients], dict[str, Shift], Updates]:
    """Keys and gradients at the edits, the shifts made of them, and these as {parameter: update}.

    The edits count for the network's statistics too, as in the authors' code.
    """
    names = list(network.places)
    found = token_gradients(model, edits, names, hparams.token, hparams.batch_size_once)
    network.observe(found)
    shifts = network.shifts(found)
    return found, shifts, updates_of(model, {name: shift.value for name, shift in shifts.items()})


def trained(
    model: Any,
    tok: Any,
    pseudo: Sequence[EditRequest],
    hparams: HyperNetworkHyperParams,
    train: Train,
    store: StageStore,
) -> Stage:
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


class MetaBatch(NamedTuple):
    """What one step of training edits, asks in other words, and must keep."""

    edits: Sequence[Example]
    rephrases: Sequence[Example]
    locality: Sequence[Example]


def meta_batches(
    model: Any,
    tok: Any,
    facts: Sequence[EditRequest],
    hparams: HyperNetworkHyperParams,
    steps: int,
) -> Iterator[MetaBatch]:
    """`steps` batches of `n_edits` pseudo facts, all facts before any comes again.

    Where the model knows a fact already, it is edited to the target of another fact with a similar
    prompt: from what it knows there is nothing to learn. `model` is asked at once, not later, and
    about no other locality prompts than those drawn.
    """
    generator = torch.Generator().manual_seed(hparams.seed)
    prompts = [fact.prompt for fact in facts]
    answers = _answers(model, tok, hparams, facts, prompts)
    targets = _targets(facts, answers, generator)
    drawn = list(itertools.islice(_draws(facts, hparams.n_edits, generator), steps))
    answers |= _answers(model, tok, hparams, facts, [text for draw in drawn for text in draw.kept])

    def examples(texts: Sequence[str], wanted: Sequence[str]) -> list[Example]:
        pairs = zip(texts, wanted, strict=True)
        return [hparams.example(tok, prompt, target) for prompt, target in pairs]

    def batch(draw: _Draw) -> MetaBatch:
        wanted = [targets[i] for i in draw.chosen]
        return MetaBatch(
            examples([facts[i].prompt for i in draw.chosen], wanted),
            examples(draw.rephrases, wanted),
            examples(draw.kept, [answers[prompt] for prompt in draw.kept]),
        )

    return map(batch, drawn)


class _Draw(NamedTuple):
    chosen: list[int]
    rephrases: list[str]
    kept: list[str]


def _draws(facts: Sequence[EditRequest], count: int, generator: torch.Generator) -> Iterator[_Draw]:
    """Facts of each step, one rephrase of each and, where it has any, one locality prompt."""

    def one_of(texts: Sequence[str]) -> str:
        return texts[int(torch.randint(len(texts), (), generator=generator))]

    count, left = min(count, len(facts)), torch.empty(0, dtype=torch.long)
    while True:
        if len(left) < count:  # what is left of a round is dropped, as in the authors' code
            left = torch.randperm(len(facts), generator=generator)
        chosen, left = left[:count].tolist(), left[count:]
        rephrases = [one_of(facts[i].rephrases) for i in chosen]
        kept = [one_of(texts) for i in chosen if (texts := facts[i].locality_prompts)]
        yield _Draw(chosen, rephrases, kept)


class MetaStep(NamedTuple):
    """The losses of a step, means over batches, and the updates which it tried."""

    generality: float
    locality: float
    updates: Updates


def meta_gradients(
    model: Any,
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
    found, shifts, updates = predicted(model, network, batches[0].edits, hparams)
    factors = [decay**age for age in range(len(batches))]

    def cut(examples: Sequence[Sequence[Example]]) -> list[tuple[float, Batch]]:
        size = hparams.batch_size_once
        return [
            (factor, Batch.of(rows[i : i + size], model.device))
            for factor, rows in zip(factors, examples, strict=True)
            for i in range(0, len(rows), size)
        ]

    rephrases = cut([batch.rephrases for batch in batches])
    locality = cut([[e for e in batch.locality if e.target] for batch in batches])
    with torch.no_grad():
        before = [_log_probabilities(model, part) for _, part in locality]
    sums = {name: torch.zeros_like(update) for name, update in updates.items()}
    losses: tuple[list[float], list[float]] = ([], [])
    with restored(model, list(updates)) as weights, torch.enable_grad():
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
    generality, kept = (sum(part) / max(len(part), 1) for part in losses)
    if not torch.tensor([generality, kept]).isfinite().all():
        raise FloatingPointError(
            "a loss of the hypernetwork is not finite; lower lr or meta_lr, or load the model in "
            "float32"
        )
    gradients = {
        name: oriented(model, name, sums[f"{name}.weight"]).T + 2 * penalty * shift.value
        for name, shift in shifts.items()
    }
    network.backpropagate(found, shifts, gradients)
    return MetaStep(generality, kept, updates)


def _log_probabilities(model: Any, batch: Batch) -> Tensor:
    """(M, V) at the M target tokens."""
    return target_logits(model, batch)[0].log_softmax(-1)


def _answers(
    model: Any,
    tok: Any,
    hparams: HyperNetworkHyperParams,
    facts: Sequence[EditRequest],
    prompts: Sequence[str],
) -> dict[str, str]:
    """What the model says to each of `prompts`, in as many tokens as the facts' targets need."""
    asked = list(dict.fromkeys(prompts))
    wrapped = [hparams.prompt_template.replace("{}", prompt) for prompt in asked]
    lengths = [len(hparams.example(tok, fact.prompt, fact.target_new).target) for fact in facts]
    length = max(_ANSWER_TOKENS, *lengths)
    told = batched_answers(model, tok, wrapped, length, rows=hparams.rows_at_once)
    return dict(zip(asked, told, strict=True))


def _targets(
    facts: Sequence[EditRequest], answers: dict[str, str], generator: torch.Generator
) -> list[str]:
    """Each fact's target, or where the model says that already, one of a similar prompt."""
    asked = [words(fact.prompt) for fact in facts]
    targets = []
    for row, fact in enumerate(facts):
        target = fact.target_new
        if answers[fact.prompt].startswith(target):
            some = torch.randperm(len(facts), generator=generator)[:_CANDIDATES].tolist()
            shared = {o: len(asked[o] & asked[row]) for o in some if facts[o].target_new != target}
            target = facts[max(shared, key=shared.__getitem__, default=row)].target_new
        targets.append(target)
    return targets
