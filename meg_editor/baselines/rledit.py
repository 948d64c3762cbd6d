"""RLEdit: a hypernetwork trained on whole sequences of edits (Li et al., ICML 2025, 2502.05759).

That of MALMEN, but it edits a few facts at a time, one batch after another, and is trained on such
sequences: what it changed stays changed for the batches which follow, and edits of the last few
batches count in the loss, the older the less. The reward of an edit is minus that loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from meg_editor.baselines.core.hypernetwork import HyperNetwork, HyperNetworkHyperParams
from meg_editor.baselines.core.hypernetwork_training import (
    hypernetwork,
    meta_gradients,
    predicted,
)
from meg_editor.baselines.core.meta_batches import MetaBatch, meta_batches
from meg_editor.baselines.core.weights import Requests, Updates, add, edit_weights, restored
from meg_editor.config.settings import setting
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore, Tensors
from meg_editor.runtime.progress import progress_bar
from meg_editor.runtime.torch_defaults import torch_defaults


@dataclass
class RLEditHyperParams(HyperNetworkHyperParams):
    """Hyper-parameters of RLEdit, as its authors spell them; their defaults.

    `n_edits` is the number of facts which are edited at a time, in training and after it.
    """

    span: ClassVar[tuple[float, float]] = (22 / 32, 30 / 32)

    alg_name: str = setting("RLEDIT", "Always RLEDIT.")
    batch_size_once: int = setting(4, "Edits per forward and backward pass.", ge=1, lt=2**20)
    rank: int = setting(1024, "Rank of each block of the hypernetwork.", ge=1, lt=2**17)
    n_blocks: int = setting(4, "Blocks of the hypernetwork.", ge=0, lt=1000)
    loc_coef: float = setting(0.6, "Weight of the locality loss.", ge=0)
    n_edits: int = setting(20, "Facts edited at a time.", ge=1, lt=2**24)
    num_seq: int = setting(400, "Batches in a sequence of training.", ge=1, lt=10**7)
    n_epochs: int = setting(
        1, "Sequences of training; each ends with a step of Adam.", ge=0, lt=10**7
    )
    time_decay: float = setting(0.95, "Of the loss of an edit, per batch since.", ge=0)
    back_depth: int = setting(
        10, "Batches whose loss counts: this one and those before.", ge=1, lt=10**7
    )
    reg_coef: float = setting(1e-4, "Weight of the squared norm of the shifts.", ge=0)


@torch_defaults()
def apply_rledit_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: RLEditHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    pseudo: Sequence[EditRequest] | None = None,
    store: ArtifactStore | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit `model` by RLEdit, with the signature of EasyEdit's methods.

    Args, returns and raises: as `apply_malmen_to_model`.

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
        >>> hparams = RLEditHyperParams(layers=[2], num_seq=2, rank=16, n_blocks=1)
        >>> edited, old = apply_rledit_to_model(
        ...     model, tok, [request], hparams, return_orig_weights=True, pseudo=pseudo)
        >>> len(old)  # the three matrices of a gated FFN
        3
    """

    def compute(target: CausalLM, edits: Sequence[EditRequest]) -> Updates:
        network = hypernetwork(target, tok, edits, pseudo, hparams, _train, store)
        examples = [hparams.example(tok, edit.prompt, edit.target_new) for edit in edits]
        parts = range(0, len(examples), hparams.n_edits)
        sums: Updates = {}
        with restored(target, _weights(network)) as weights:
            for start in progress_bar(parts, "edits"):
                chunk = examples[start : start + hparams.n_edits]
                for name, update in predicted(target, network, chunk, hparams)[2].items():
                    sums[name] = sums[name] + update if name in sums else update
                    add(weights[name], update)
        return sums

    return edit_weights(model, requests, compute, copy, return_orig_weights)


def _train(
    model: CausalLM, tok: Tokenizer, facts: Sequence[EditRequest], hparams: RLEditHyperParams
) -> Tensors:
    network = hparams.network(model)
    optimiser = torch.optim.Adam(network.parameters(), lr=hparams.meta_lr)
    steps = hparams.n_epochs * hparams.num_seq
    batches = meta_batches(model, tok, facts, hparams, steps)
    losses = []
    for _ in range(hparams.n_epochs):
        optimiser.zero_grad()
        latest: list[MetaBatch] = []
        with restored(model, _weights(network)) as weights:
            for _ in progress_bar(range(hparams.num_seq), "hypernetwork"):
                latest = [next(batches), *latest][: hparams.back_depth]
                step = meta_gradients(
                    model, network, latest, hparams, hparams.time_decay, hparams.reg_coef
                )
                losses.append([step.generality, step.locality])
                # What has come together so far is clipped at every batch, as in the authors' code.
                torch.nn.utils.clip_grad_norm_(network.parameters(), hparams.max_grad_norm)
                for name, update in step.updates.items():
                    add(weights[name], update)
        optimiser.step()
    return {**network.state_dict(), "losses": torch.tensor(losses).reshape(-1, 2)}


def _weights(network: HyperNetwork) -> list[str]:
    return [f"{name}.weight" for name in network.places]
