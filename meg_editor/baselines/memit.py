"""MEMIT: write many facts into the FFNs of several layers (Meng et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meg_editor.baselines.core.locate import Locate, locate_then_edit, value_settings
from meg_editor.baselines.core.settings import CovarianceHyperParams
from meg_editor.baselines.core.weights import Requests, Updates, edit_weights
from meg_editor.config.settings import setting
from meg_editor.lm.ffn import block_name
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.torch_defaults import torch_defaults


@dataclass
class MEMITHyperParams(CovarianceHyperParams):
    """Hyper-parameters of MEMIT."""

    alg_name: str = setting("MEMIT", "Always MEMIT.")
    mom2_update_weight: float = setting(
        15000, "Weight λ of the covariance: higher preserves more and edits less.", ge=0
    )


@torch_defaults()
def apply_memit_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: MEMITHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    texts: Sequence[str] | None = None,
    prefixes: Sequence[str] | None = None,
    store: ArtifactStore | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit `model` by MEMIT, with the signature of EasyEdit's methods.

    Args:
        copy: edit a copy of the model.
        texts: what the model knows and is to keep, for the covariance; by default the sentences of
            the reference world.
        prefixes: of contexts, the empty one first; by default sampled from the model.
        store: keeps covariances.
        keep_original_weight, kwargs: accepted for EasyEdit.

    Returns:
        The edited model, and with `return_orig_weights` {parameter: its old value}.

    Raises:
        RequestError: a request without a subject in its prompt, or contradictory ones.
        HParamsError, ValueError: settings which do not fit the model.
        FloatingPointError: an update is not finite. The model is as it was then.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> hparams = MEMITHyperParams(layers=[1], v_num_grad_steps=2, context_prefixes=0)
        >>> edited, old = apply_memit_to_model(
        ...     model, tok, [request], hparams, return_orig_weights=True, texts=["Lima is in Peru"])
        >>> list(old)
        ['model.layers.1.mlp.down_proj.weight']
    """

    def compute(target: CausalLM, edits: Sequence[EditRequest]) -> Updates:
        return locate_then_edit(
            target,
            tok,
            edits,
            hparams,
            Locate(texts, prefixes, store),
            [block_name(target, hparams.layers_of(target)[-1])],
            value_settings(hparams),
            solve,
        )

    def solve(_: str, moment: Tensor, keys: Tensor, residuals: Tensor) -> Tensor:
        return least_squares(keys, residuals, hparams.mom2_update_weight * moment)

    return edit_weights(model, requests, compute, copy, return_orig_weights)


def least_squares(keys: Tensor, residuals: Tensor, preserved: Tensor) -> Tensor:
    """R Kᵀ (K Kᵀ + C)⁻¹ (MEMIT, eq. 14): (D, K) from keys (N, K), residuals (N, D), C (K, K)."""
    update: Tensor = torch.linalg.solve(keys.T @ keys + preserved, keys.T @ residuals).T
    return update
