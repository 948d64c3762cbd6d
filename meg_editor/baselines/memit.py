"""MEMIT: write many facts into the FFNs of several layers (Meng et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from meg_editor.baselines.core.locate import Locate, preserving
from meg_editor.baselines.core.settings import CovarianceHyperParams
from meg_editor.baselines.core.weights import Requests, edit_weights
from meg_editor.config.settings import setting
from meg_editor.lm.protocols import CausalLM, Tokenizer
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
    locate = Locate(tok, hparams, texts, prefixes, store)
    compute = partial(locate.updates, solve=preserving(hparams.mom2_update_weight))
    return edit_weights(model, requests, compute, copy, return_orig_weights)
