"""MALMEN: a hypernetwork which predicts the shifts of weights (Tan et al., ICLR 2024, 2311.04661).

It is trained on facts which are not edited, then predicts the shifts for all edits at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.baselines.malmen_network import HyperNetwork
from meg_editor.baselines.token_gradients import (
    TokenGradientHyperParams,
    mean_cross_entropy,
    token_gradients,
    updates_of,
)
from meg_editor.baselines.weights import Requests, Updates, add, edit_weights, oriented, restored
from meg_editor.data.reference_requests import pseudo_requests
from meg_editor.fingerprint import fingerprint
from meg_editor.flat_hparams import setting
from meg_editor.names import words
from meg_editor.progress import track
from meg_editor.requests import EditRequest
from meg_editor.stages import Stage, StageStore, Tensors
from meg_editor.tokens import Batch, Example, batched_answers, target_logits

_ANSWER_TOKENS = 12  # of the model's own answers, at most; more if some target is longer
_CANDIDATES = 1000  # facts among which one with a similar prompt is looked for, at most


@dataclass
class MALMENHyperParams(TokenGradientHyperParams):
    """Hyper-parameters of MALMEN; the defaults are those of the authors' code.

    `batch_size_once` is their `data.batch_size`, `editor_batch_size` their `editor.batch_size`.
    """

    alg_name: str = setting("MALMEN", "Always MALMEN.")
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
    max_iters: int = setting(500, "Steps of training.", least=0)
    archive: str | None = setting(None, "Not needed: pass a store.")
    train_base: bool = setting(False, "Not needed.")
    log_interval: int = setting(100, "Not needed.")
    eval_log_interval: int = setting(100, "Not needed.")
    final_eval: bool = setting(True, "Not needed.")
    val_interval: int = setting(100, "Not needed.")
    val_batch_size: int = setting(1, "Not needed.")
    val_steps: int = setting(200, "Not needed.")
    early_stop_patience: int = setting(1000, "Not needed.")
    early_stop_key: str | None = setting(None, "Not needed.")
    eval_only: bool = setting(False, "Not needed.")
    debug: bool = setting(False, "Not needed.")
    save: bool = setting(False, "Not needed.")

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


def apply_malmen_to_model(
    model: Any,
    tok: Any,
    requests: Requests,
    hparams: MALMENHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    pseudo: Sequence[EditRequest] | None = None,
    store: StageStore | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit `model` by MALMEN, with the signature of EasyEdit's methods.

    Args:
        copy: edit a copy of the model.
        pseudo: facts to train on, with rephrases and locality prompts; those which are edited are
            left out. By default those of the reference world.
        store: keeps the trained hypernetwork, so that other edits need no training.
        keep_original_weight, kwargs: accepted for EasyEdit's sake.

    Returns:
        The edited model, and with `return_orig_weights` {parameter: its old value}.

    Raises:
        RequestError: bad or contradictory requests.
        ValueError: settings which do not fit the model, or no pseudo fact with rephrases.
        FloatingPointError: a loss or an update is not finite. The model is as it was then.
    """

    def compute(target: Any, edits: Sequence[EditRequest]) -> Updates:
        edited = {edit.key for edit in edits}
        every = pseudo_requests() if pseudo is None else pseudo
        facts = [fact for fact in every if fact.key not in edited]
        network = hparams.network(target)
        stage = trained(target, tok, facts, hparams, store or StageStore())
        network.load_state_dict({k: v for k, v in stage.tensors.items() if k != "losses"})
        examples = [hparams.example(tok, edit.prompt, edit.target_new) for edit in edits]
        names = list(network.places)
        found = token_gradients(target, examples, names, hparams.token, hparams.batch_size_once)
        network.observe(found)  # the edits count for the statistics too, as in the authors' code
        shifts = network.shifts(found)
        return updates_of(target, {name: shift.value for name, shift in shifts.items()})

    return edit_weights(model, requests, compute, copy, return_orig_weights)


def trained(
    model: Any,
    tok: Any,
    pseudo: Sequence[EditRequest],
    hparams: MALMENHyperParams,
    store: StageStore,
) -> Stage:
    """The trained hypernetwork's state, and `losses`, (steps, 2): generality and locality.

    Each step edits `n_edits` pseudo facts, all of them before any comes again. Where the model
    knows a fact already, it is edited to the target of another fact with a similar prompt: from
    what it knows there is nothing to learn.

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
    return store.run("malmen", inputs, lambda: _train(model, tok, facts, hparams))


class MetaBatch(NamedTuple):
    """What one step of training edits, asks in other words, and must keep."""

    edits: Sequence[Example]
    rephrases: Sequence[Example]
    locality: Sequence[Example]


def _train(
    model: Any, tok: Any, facts: Sequence[EditRequest], hparams: MALMENHyperParams
) -> Tensors:
    generator = torch.Generator().manual_seed(hparams.seed)

    def one_of(texts: Sequence[str]) -> str:
        return texts[int(torch.randint(len(texts), (), generator=generator))]

    network = hparams.network(model)
    optimiser = torch.optim.Adam(network.parameters(), lr=hparams.meta_lr)
    answers = _answers(model, tok, hparams, facts)
    targets = _targets(facts, answers, generator)
    count = min(hparams.n_edits, len(facts))
    losses, left = [], torch.empty(0, dtype=torch.long)
    for _ in track(range(hparams.max_iters), "hypernetwork"):
        if len(left) < count:  # what is left of a round is dropped, as in the authors' code
            left = torch.randperm(len(facts), generator=generator)
        chosen, left = left[:count].tolist(), left[count:]
        rephrases = [(one_of(facts[i].rephrases), targets[i]) for i in chosen]
        kept = [one_of(texts) for i in chosen if (texts := facts[i].locality_prompts)]
        batch = MetaBatch(
            [hparams.example(tok, facts[i].prompt, targets[i]) for i in chosen],
            [hparams.example(tok, prompt, target) for prompt, target in rephrases],
            [hparams.example(tok, prompt, answers[prompt]) for prompt in kept],
        )
        optimiser.zero_grad()
        losses.append(meta_gradients(model, network, batch, hparams))
        torch.nn.utils.clip_grad_norm_(network.parameters(), hparams.max_grad_norm)
        optimiser.step()
    return {**network.state_dict(), "losses": torch.tensor(losses).reshape(-1, 2)}


def meta_gradients(
    model: Any, network: HyperNetwork, batch: MetaBatch, hparams: MALMENHyperParams
) -> tuple[float, float]:
    """Edit, measure, and add the gradients to the hypernetwork's; the model is as it was.

    The loss is the sum over batches of `batch_size_once` examples of their mean over target tokens:
    of the cross entropy at rephrases, and `loc_coef` times the KL divergence from the unedited
    model at its own answers to locality prompts.

    Returns:
        The generality and locality losses, means over batches.

    Raises:
        FloatingPointError: one of them is not finite.
    """
    size = hparams.batch_size_once
    names = list(network.places)
    found = token_gradients(model, batch.edits, names, hparams.token, size)
    network.observe(found)
    shifts = network.shifts(found)
    rephrases = _batches(batch.rephrases, size, model.device)
    locality = _batches([e for e in batch.locality if e.target], size, model.device)
    with torch.no_grad():
        before = [_log_probabilities(model, part) for part in locality]
    updates = updates_of(model, {name: shift.value for name, shift in shifts.items()})
    sums = {name: torch.zeros_like(update) for name, update in updates.items()}
    losses: tuple[list[float], list[float]] = ([], [])
    with restored(model, list(updates)) as weights, torch.enable_grad():
        for name, weight in weights.items():
            with torch.no_grad():
                add(weight, updates[name])
            weight.requires_grad_(True)

        def take(loss: Tensor, kind: int, factor: float) -> None:
            losses[kind].append(loss.item())
            gradients = torch.autograd.grad(factor * loss, [weights[name] for name in updates])
            for name, gradient in zip(updates, gradients, strict=True):
                sums[name] += gradient

        for part in rephrases:
            take(mean_cross_entropy(model, part), 0, 1.0)
        for part, reference in zip(locality, before, strict=True):
            now = _log_probabilities(model, part)
            divergence = F.kl_div(now, reference, reduction="batchmean", log_target=True)
            take(divergence, 1, hparams.loc_coef)
    generality, kept = (sum(part) / max(len(part), 1) for part in losses)
    if not torch.tensor([generality, kept]).isfinite().all():
        raise FloatingPointError(
            "a loss of the hypernetwork is not finite; lower lr or meta_lr, or load the model in "
            "float32"
        )
    gradients = {name: oriented(model, name, sums[f"{name}.weight"]).T for name in names}
    network.backpropagate(found, shifts, gradients)
    return generality, kept


def _batches(examples: Sequence[Example], size: int, device: Any) -> list[Batch]:
    return [Batch.of(examples[i : i + size], device) for i in range(0, len(examples), size)]


def _log_probabilities(model: Any, batch: Batch) -> Tensor:
    """(M, V) at the M target tokens."""
    return target_logits(model, batch)[0].log_softmax(-1)


def _answers(
    model: Any, tok: Any, hparams: MALMENHyperParams, facts: Sequence[EditRequest]
) -> dict[str, str]:
    """What the model says to each prompt and locality prompt."""
    texts = [text for fact in facts for text in (fact.prompt, *fact.locality_prompts)]
    prompts = list(dict.fromkeys(texts))
    wrapped = [hparams.prompt_template.replace("{}", prompt) for prompt in prompts]
    lengths = [len(hparams.example(tok, fact.prompt, fact.target_new).target) for fact in facts]
    length = max(_ANSWER_TOKENS, *lengths)
    told = batched_answers(model, tok, wrapped, length, rows=hparams.rows_at_once)
    return dict(zip(prompts, told, strict=True))


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
