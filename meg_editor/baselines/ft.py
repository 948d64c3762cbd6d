"""Fine-tuning: of one FFN as in the paper (A.12), or with what makes it work (LocFT, ICLR 2026)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from meg_editor.baselines.core.settings import FittingHyperParams, WriteHyperParams
from meg_editor.baselines.core.weights import (
    Requests,
    Updates,
    check_writable,
    edit_weights,
    restored,
)
from meg_editor.config.settings import setting
from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import decoder_blocks, find_ffn
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Batch, Example, means, target_logits
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.progress import progress_bar
from meg_editor.runtime.torch_defaults import torch_defaults


@dataclass
class FTHyperParams(WriteHyperParams, FittingHyperParams):
    """Hyper-parameters of fine-tuning.

    Every epoch goes over all edits (breadth first). With `rewrite_module_tmp` all parameters whose
    names contain it are tuned, as in EasyEdit; without it the linear layers of the FFN.
    """

    ignored: ClassVar[tuple[str, ...]] = ("kl_factor",)  # EasyEdit does not use it either
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {"objective_optimization": ("target_new",)}
    span: ClassVar[tuple[float, float]] = (22 / 32, 22 / 32)  # LocFT's

    alg_name: str = setting("FT", "Always FT.")
    optimizer: Literal["adam", "sgd"] = setting("adam", "A.12: SGD.")
    num_steps: int = setting(25, "Maximum number of epochs.", ge=1, lt=10**7)
    lr: float = setting(5e-4, "Learning rate.", ge=0)
    weight_decay: float = setting(0.0, "Weight decay of the optimiser.", ge=0)
    norm_constraint: float | None = setting(
        None, "Maximum change of a weight; null: unlimited.", ge=0
    )
    train_batch_size: int = setting(100, "Edits per step.", ge=1, lt=2**20)
    tuned: Literal["ffn", "down"] = setting("ffn", "All of the FFN, or its last linear layer.")
    shuffle: bool = setting(True, "Shuffle the edits in every epoch.")
    early_stop_loss: float = setting(
        1e-2,
        "Early stopping: no step on a batch below this loss, and the end once an epoch's mean is.",
        ge=0,
    )

    @classmethod
    def translated(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """`values` with null for the `norm_constraint: false` of EasyEdit's files."""
        if values.get("norm_constraint") is False:
            return {**values, "norm_constraint": None}
        return values


@torch_defaults()
def apply_ft_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: FTHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Fine-tune `model` on the edits, with the signature of EasyEdit's methods.

    Returns and raises: as in `apply_memit_to_model`; no subject is needed.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> edited, _ = apply_ft_to_model(model, tok, [request], FTHyperParams(layers=[1]))
        >>> from meg_editor.lm.answers import greedy_answers
        >>> greedy_answers(edited, tok, [request["prompt"]], 6)
        ['Lima']
    """

    def compute(target: CausalLM, edits: Sequence[EditRequest]) -> Updates:
        return _tune(target, tok, edits, hparams)

    return edit_weights(model, requests, compute, copy, return_orig_weights)


def _tune(
    model: CausalLM, tok: Tokenizer, edits: Sequence[EditRequest], hparams: FTHyperParams
) -> Updates:
    examples = [hparams.example(tok, edit.prompt, edit.target_new) for edit in edits]
    generator = torch.Generator().manual_seed(hparams.seed)
    rows = torch.arange(len(examples))
    names = _tuned(model, hparams)
    facts = _Facts(model, examples, _lowest_block(model, names), hparams.rows_at_once)
    with restored(model, names) as weights:
        # Steps would be lost in half precision: of such weights copies are learned.
        learned = {
            name: weight.detach().float() if weight.element_size() < 4 else weight.detach()
            for name, weight in weights.items()
        }
        copied = [name for name in weights if learned[name].dtype != weights[name].dtype]
        before = {name: weight.clone() for name, weight in learned.items()}
        optimiser: torch.optim.Optimizer
        kind = torch.optim.Adam if hparams.optimizer == "adam" else torch.optim.SGD
        optimiser = kind(learned.values(), lr=hparams.lr, weight_decay=hparams.weight_decay)
        for weight in weights.values():
            weight.requires_grad_(True)
        for _ in progress_bar(range(hparams.num_steps), "fine-tuning", "epoch"):
            if hparams.shuffle:
                rows = torch.randperm(len(examples), generator=generator)
            total = 0.0
            for chunk in rows.split(hparams.train_batch_size):
                loss = facts.loss(chunk.tolist())
                total += loss.item() * len(chunk)
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(
                        f"the loss is {loss.item()}: the update of {', '.join(names)} is not "
                        f"finite; lower lr ({hparams.lr})"
                    )
                if loss.item() >= hparams.early_stop_loss:
                    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                    for master, gradient in zip(learned.values(), gradients, strict=True):
                        master.grad = None if gradient is None else gradient.to(master)
                    optimiser.step()
                if hparams.norm_constraint is not None:
                    _clamp(learned, before, hparams.norm_constraint)
                for name in copied:
                    weights[name].detach().copy_(learned[name])
            if total / len(examples) < hparams.early_stop_loss:
                break
        return {name: weight - before[name] for name, weight in learned.items()}


class _Facts:
    """The edits as tokens, with the residual stream that enters block `lowest`, computed once."""

    def __init__(
        self, model: CausalLM, examples: Sequence[Example], lowest: int | None, rows_at_once: int
    ) -> None:
        self.model, self.examples = model, examples
        self.upper = None if lowest is None else LayersFrom(model, lowest)
        self.streams = self.upper.residual_streams(examples, rows_at_once) if self.upper else []

    def loss(self, rows: Sequence[int]) -> Tensor:
        """The mean over facts of the mean over their target tokens."""
        batch = Batch.of([self.examples[row] for row in rows], input_device(self.model))
        known: AbstractContextManager[None] = nullcontext()
        if self.upper:
            streams = [self.streams[row] for row in rows]
            known = self.upper.injected(pad_sequence(streams, batch_first=True))
        with known:
            logits, targets, row = target_logits(self.model, batch)
        loss = F.cross_entropy(logits, targets, reduction="none")
        return means(loss, row, len(batch.ids)).mean()


def _lowest_block(model: CausalLM, names: Sequence[str]) -> int | None:
    """The lowest decoder block with a tuned parameter; None where one is outside of the blocks."""
    place = f"{decoder_blocks(model)[0]}."
    if not all(name.startswith(place) for name in names):
        return None
    return min(int(name.removeprefix(place).partition(".")[0]) for name in names)


@torch.no_grad()
def _clamp(weights: Updates, before: Updates, limit: float) -> None:
    for name, weight in weights.items():
        weight.clamp_(before[name] - limit, before[name] + limit)


def _tuned(model: CausalLM, hparams: FTHyperParams) -> list[str]:
    parameters, layers = dict(model.named_parameters()), hparams.layers_of(model)
    if hparams.rewrite_module_tmp is not None:
        parts = [hparams.rewrite_module_tmp.format(layer) for layer in layers]
    else:
        ffns = [find_ffn(model, layer) for layer in layers]
        ups = hparams.tuned == "ffn"
        parts = [
            f"{name}." for ffn in ffns for name in ((*ffn.ups, ffn.down) if ups else [ffn.down])
        ]
    names = [name for name in parameters if any(part in name for part in parts)]
    if not names:
        raise ValueError(
            f"rewrite_module_tmp: no parameter has {parts[0]!r} in its name; by default it is "
            f"{find_ffn(model, layers[0]).down!r}"
        )
    check_writable(model, names)
    return names
