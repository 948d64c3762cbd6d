"""AlphaEdit: updates in the null space of preserved keys (Fang et al., ICLR 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from meg_editor.baselines.core.locate import Locate
from meg_editor.baselines.core.settings import CovarianceHyperParams
from meg_editor.baselines.core.weights import Requests, edit_weights
from meg_editor.config.settings import setting
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.torch_defaults import torch_defaults


@dataclass
class AlphaEditHyperParams(CovarianceHyperParams):
    """Hyper-parameters of AlphaEdit. The projection is computed: EasyEdit's P_loc is ignored."""

    ignored: ClassVar[tuple[str, ...]] = ("P_loc",)

    alg_name: str = setting("AlphaEdit", "Always AlphaEdit.")
    nullspace_threshold: float = setting(
        2e-2, "Directions with less than this second moment are free.", ge=0
    )
    L2: float = setting(10, "Weight of the identity in the solve.", ge=0)


@torch_defaults()
def apply_alphaedit_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: AlphaEditHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    texts: Sequence[str] | None = None,
    prefixes: Sequence[str] | None = None,
    earlier: dict[str, Tensor] | None = None,
    store: ArtifactStore | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit `model` by AlphaEdit, with the signature of EasyEdit's methods.

    Args:
        earlier: for a sequence of calls; pass one dict, at first empty, to all of them. After each
            it is {module: (2, K, K)}: the second moment before the first edit, by which all calls
            project, and the sum of k kᵀ of the edits so far, which later calls keep too.
        texts, prefixes, store, results and what is raised: as in `apply_memit_to_model`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> hparams = AlphaEditHyperParams(layers=[1], v_num_grad_steps=2, context_prefixes=0)
        >>> edited, old = apply_alphaedit_to_model(
        ...     model, tok, [request], hparams, return_orig_weights=True, texts=["Lima is in Peru"])
        >>> list(old)
        ['model.layers.1.mlp.down_proj.weight']
    """
    before = earlier or {}
    after: dict[str, Tensor] = {}

    def solve(name: str, moment: Tensor, keys: Tensor, residuals: Tensor) -> Tensor:
        """R Kᵀ P (K Kᵀ P + E P + L2)⁻¹, with E = Σ k kᵀ of earlier edits (eq. 14)."""
        free = null_space(moment, hparams.nullspace_threshold)
        preserved = keys.T @ keys
        if name in before:
            preserved += before[name][1].to(keys)
        after[name] = torch.stack([moment, preserved]).float().cpu()
        identity = torch.eye(len(free), dtype=free.dtype, device=free.device)
        left, right = free @ preserved + hparams.L2 * identity, free @ keys.T @ residuals
        update: Tensor = torch.linalg.solve(left, right).T
        return update

    known = {name: both[0] for name, both in before.items()}
    locate = Locate(tok, hparams, texts, prefixes, store, known)
    compute = partial(locate.updates, solve=solve)
    edited = edit_weights(model, requests, compute, copy, return_orig_weights)
    if earlier is not None:
        earlier.update(after)
    return edited


def null_space(moment: Tensor, threshold: float) -> Tensor:
    """The projection (K, K) onto the eigenvectors of a second moment with less than `threshold`."""
    values, vectors = torch.linalg.eigh(moment)
    free = vectors[:, values < threshold]
    projection: Tensor = free @ free.T
    return projection
