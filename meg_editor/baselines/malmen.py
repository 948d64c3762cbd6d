"""MALMEN: a hypernetwork which predicts the shifts of weights (Tan et al., ICLR 2024, 2311.04661).

It is trained on facts which are not edited, then predicts the shifts for all edits at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from meg_editor.baselines.core.hypernetwork import HyperNetworkHyperParams
from meg_editor.baselines.core.hypernetwork_training import (
    hypernetwork,
    meta_gradients,
    predicted,
)
from meg_editor.baselines.core.meta_batches import meta_batches
from meg_editor.baselines.core.weights import Requests, Updates, edit_weights
from meg_editor.config.settings import setting
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore, Tensors
from meg_editor.runtime.progress import progress_bar
from meg_editor.runtime.torch_defaults import torch_defaults


@dataclass
class MALMENHyperParams(HyperNetworkHyperParams):
    """Hyper-parameters of MALMEN; the defaults are those of the authors' code."""

    ignored: ClassVar[tuple[str, ...]] = (
        "archive",
        "train_base",
        "log_interval",
        "eval_log_interval",
        "final_eval",
        "val_interval",
        "val_batch_size",
        "val_steps",
        "early_stop_patience",
        "early_stop_key",
        "eval_only",
        "debug",
        "save",
        "model_save_pt",
        "max_epochs",
    )

    span: ClassVar[tuple[float, float]] = (26 / 32, 31 / 32)

    alg_name: str = setting("MALMEN", "Always MALMEN.")
    max_iters: int = setting(500, "Steps of training.", ge=0, lt=10**7)


@torch_defaults()
def apply_malmen_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: MALMENHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    pseudo: Sequence[EditRequest] | None = None,
    store: ArtifactStore | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit `model` by MALMEN, with the signature of EasyEdit's methods.

    Args:
        copy: edit a copy of the model.
        pseudo: facts to train on, with rephrases and locality prompts; those which are edited are
            left out. By default those of the reference world.
        store: keeps the trained hypernetwork, so that other edits need no training.
        keep_original_weight, kwargs: accepted for EasyEdit.

    Returns:
        The edited model, and with `return_orig_weights` {parameter: its old value}.

    Raises:
        RequestError: bad or contradictory requests.
        ValueError: settings which do not fit the model, or no pseudo fact with rephrases.
        FloatingPointError: a loss or an update is not finite. The model is as it was then.

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
        >>> hparams = MALMENHyperParams(layers=[2], max_iters=2, rank=16, n_blocks=1)
        >>> edited, old = apply_malmen_to_model(
        ...     model, tok, [request], hparams, return_orig_weights=True, pseudo=pseudo)
        >>> len(old)  # the three matrices of a gated FFN
        3
    """

    def compute(target: CausalLM, edits: Sequence[EditRequest]) -> Updates:
        network = hypernetwork(target, tok, edits, pseudo, hparams, _train, store)
        examples = [hparams.example(tok, edit.prompt, edit.target_new) for edit in edits]
        return predicted(target, network, examples, hparams)[2]

    return edit_weights(model, requests, compute, copy, return_orig_weights)


def _train(
    model: CausalLM, tok: Tokenizer, facts: Sequence[EditRequest], hparams: MALMENHyperParams
) -> Tensors:
    network = hparams.network(model)
    optimiser = torch.optim.Adam(network.parameters(), lr=hparams.meta_lr)
    batches = meta_batches(model, tok, facts, hparams, hparams.max_iters)
    losses = []
    for _ in progress_bar(range(hparams.max_iters), "hypernetwork"):
        optimiser.zero_grad()
        step = meta_gradients(model, network, [next(batches)], hparams)
        losses.append([step.generality, step.locality])
        torch.nn.utils.clip_grad_norm_(network.parameters(), hparams.max_grad_norm)
        optimiser.step()
    return {**network.state_dict(), "losses": torch.tensor(losses).reshape(-1, 2)}
