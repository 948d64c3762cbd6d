"""HoReN: a codebook on the unit sphere with Hopfield retrieval (Fang et al., 2026, 2605.08143).

Once per query: the mean of what enters the FFN's last linear layer over the second half of the
prompt is normalised, drawn towards the stored keys, and compared with them; the nearest one, if it
is near enough, adds its value at the last token of the prompt. No weight changes.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.baselines.core.activations import first
from meg_editor.baselines.core.decision import Decision, decisions
from meg_editor.baselines.core.fact_tokens import FactTokens
from meg_editor.baselines.core.settings import FittingHyperParams, WriteHyperParams
from meg_editor.baselines.core.target_values import ValueSettings, optimise_values
from meg_editor.baselines.core.weights import Requests
from meg_editor.config.settings import setting
from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import text_config
from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.partial_forward import capture_input
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import by_length, left_padded
from meg_editor.lm.weak_hook import hook_weakly
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import only_edits
from meg_editor.runtime.torch_defaults import torch_defaults


@dataclass
class HoReNHyperParams(WriteHyperParams, FittingHyperParams):
    """Hyper-parameters of HoReN, as its authors spell them: one layer."""

    one_layer: ClassVar[bool] = True
    span: ClassVar[tuple[float, float]] = (29 / 32, 29 / 32)

    alg_name: str = setting("HOREN", "Always HOREN.")
    n_iter: int = setting(50, "Steps of Adam on a value.", ge=1, lt=10**7)
    edit_lr: float = setting(1.0, "Rate of Adam.", ge=0)
    query_share: float = setting(
        0.5, "Share of the prompt's tokens, the last ones, which make up a query.", ge=0
    )
    hopfield_retrieval_alpha: float = setting(0.1, "Step towards the retrieved key.", ge=0)
    hopfield_retrieval_beta: float = setting(20.0, "Inverse temperature.", ge=0)
    hopfield_retrieval_max_iter: int = setting(1, "Steps.", ge=0, lt=10**7)
    hopfield_key_match_threshold: float = setting(0.85, "Least cosine to the nearest key.")


class HoReNModel(RoutedModel):
    """A causal LM with a codebook.

    Args:
        base: the unedited model.
        module: dotted name of the FFN's last linear layer.
        keys: (N, K) unit vectors.
        values: (N, D).
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self,
        base: CausalLM,
        tokenizer: Tokenizer,
        hparams: HoReNHyperParams,
        module: str,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        super().__init__(base, tokenizer, hparams.prompt_template)
        self.hparams, self.module = hparams, module
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)
        self._call = object()  # for which a `_Call` is in effect
        decoder, place = base.get_decoder(), base.get_submodule(module)
        hook_weakly(self, "_find_ends", decoder.register_forward_pre_hook, with_kwargs=True)
        hook_weakly(self, "_add_values", place.register_forward_hook, with_kwargs=True)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a HoReNModel is not pickled: its hooks would not come along")

    def __deepcopy__(self, memo: dict[int, Any]) -> HoReNModel:
        # Hooks of a copied model act on nothing: the copy needs its own.
        other = memo[id(self)] = type(self)(
            copying.deepcopy(self.base, memo),
            self.tokenizer,
            self.hparams,
            self.module,
            self.keys.clone(),
            self.values.clone(),
        )
        return other

    def decide(self, queries: Sequence[str]) -> Tensor:
        """(B,) number of tokens of each prompt: its value is added at the last one."""
        prompts = [self.reader.wrapped(query) for query in queries]
        return torch.tensor([len(row) for row in prompt_tokens(self._tokenizer, prompts)])

    def _decide_for(self, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B,) number of tokens of inputs which are the prompts, whatever stands around a query."""
        if ids is None or not ids.shape[1] or (mask is not None and mask.dim() != 2):
            decision: Tensor = super()._decide_for(ids, mask)
            return decision
        rows = torch.ones_like(ids) if mask is None else mask[:, : ids.shape[1]]
        return rows.sum(1).cpu()

    def route(self, prompts: Sequence[str]) -> list[Decision]:
        """Which of B prompts are near enough to a key, and to which."""
        queries = _keys(self.base, self._tokenizer, prompts, self.module, self.hparams)
        cosine, index = nearest(queries, self.keys, self.hparams)
        threshold = self.hparams.hopfield_key_match_threshold
        return decisions(cosine, index, lambda score: score > threshold)

    def _apply_decision(self, decision: Tensor) -> AbstractContextManager[None]:
        return in_effect(self._call, _Call(decision))

    def _find_ends(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder, which alone knows the cache and the padding."""
        call: _Call | None = value_of(self._call)
        if call is None:
            return
        past, lengths, ends = kwargs.get("past_key_values"), None, None
        if past is None or past.get_seq_length() == 0:
            ids = args[0] if args else kwargs["input_ids"]
            lengths = call.lengths.to(ids.device).repeat_interleave(len(ids) // len(call.lengths))
            ends = lengths - 1 + left_padding(kwargs.get("attention_mask"))
        _ENDS.set((call, lengths, ends))

    def _add_values(self, _: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> Any:
        """After the FFN's last linear layer."""
        call, lengths, ends = _ENDS.get()
        if call is None or call is not value_of(self._call) or lengths is None or ends is None:
            return None
        leaving = first(output)
        shape = (len(ends), -1)
        entering = args[0].reshape(*shape, args[0].shape[-1])
        queries = mean_of_last(entering, ends, lengths, self.hparams.query_share)
        cosine, index = nearest(F.normalize(queries.float(), dim=-1), self.keys, self.hparams)
        used = cosine > self.hparams.hopfield_key_match_threshold
        values = self.values[index] * used.unsqueeze(-1)
        flat = leaving.reshape(*shape, leaving.shape[-1])
        at = torch.arange(len(ends), device=flat.device), ends
        return flat.index_put(at, values.to(flat), accumulate=True).reshape(leaving.shape)


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a HoReNModel: the tokens of its B prompts (B,)."""

    lengths: Tensor


# Of the forward pass under way, as tasks may share a call: its prompts' tokens and last ones
# (rows,) each; None while decoding.
_Ends = tuple[_Call | None, Tensor | None, Tensor | None]
_ENDS: ContextVar[_Ends] = ContextVar("horen_ends", default=(None, None, None))


def left_padding(mask: Any) -> Tensor | int:
    """(B,) tokens of padding before each prompt, by the mask a decoder gets.

    Args:
        mask: (B, T); of static caches (B, 1, T, length), a bool or what is added to attention;
            several of these by kind, where layers differ; or None.

    Example:
        >>> left_padding(torch.tensor([[0, 0, 1], [1, 1, 1]])).tolist()
        [2, 0]
    """
    if isinstance(mask, Mapping):  # a window would hide more
        mask = mask.get("full_attention")
    if mask is None:
        return 0
    if mask.dim() == 4:
        last = mask[:, 0, -1]
        mask = last if last.dtype == torch.bool else last == 0
    padding: Tensor = (mask.cumsum(1) == 0).sum(1)
    return padding


def hopfield(queries: Tensor, keys: Tensor, alpha: float, beta: float, steps: int) -> Tensor:
    """Damped retrieval on the unit sphere: q <- norm((1-α) q + α norm(softmax(β q Kᵀ) K)).

    Args:
        queries: (B, K) unit vectors.
        keys: (N, K) unit vectors.
    """
    for _ in range(steps):
        retrieved = F.normalize((beta * queries @ keys.T).softmax(-1) @ keys, dim=-1)
        queries = F.normalize((1 - alpha) * queries + alpha * retrieved, dim=-1)
    return queries


def nearest(queries: Tensor, keys: Tensor, hparams: HoReNHyperParams) -> tuple[Tensor, Tensor]:
    """(B,) cosines of retrieved queries (B, K) to their nearest keys, and (B,) which these are."""
    refined = hopfield(
        queries,
        keys,
        hparams.hopfield_retrieval_alpha,
        hparams.hopfield_retrieval_beta,
        hparams.hopfield_retrieval_max_iter,
    )
    cosine, index = (refined @ keys.T).max(-1)
    return cosine, index


def mean_of_last(states: Tensor, ends: Tensor, lengths: Tensor, share: float) -> Tensor:
    """(B, T, K) -> (B, K): the mean over the last ceil(share · length) tokens up to each end."""
    count = (share * lengths).ceil().clamp(min=1)
    place = torch.arange(states.shape[1], device=states.device)
    inside = (place <= ends[:, None]) & (place > (ends - count)[:, None])
    weights = inside.to(states) / inside.sum(1, keepdim=True)
    return torch.einsum("bt,btk->bk", weights, states)


@torch_defaults()
def apply_horen_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: HoReNHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **kwargs: Any,
) -> tuple[HoReNModel, dict[str, Tensor]]:
    """Edit by HoReN, with the signature of EasyEdit's methods.

    Returns:
        A HoReNModel around `model`, or its copy, and no weights to restore.

    Raises:
        RequestError: contradictory requests.
        ValueError: the layer does not exist or has no usable FFN.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> edited, _ = apply_horen_to_model(model, tok, [request], HoReNHyperParams(layers=[2]))
        >>> edited.answer("The capital of France is", max_new_tokens=6)
        ['Lima']
    """
    edits = only_edits(requests)
    if copy:
        model = copying.deepcopy(model)
    (name,) = hparams.down_projections(model)
    examples = [hparams.example(tok, edit.prompt, edit.target_new) for edit in edits]
    facts = [FactTokens((row,), (len(row.prompt) - 1,), None, 0) for row in examples]
    generator = torch.Generator().manual_seed(hparams.seed)
    values = optimise_values(
        model,
        facts,
        hparams.layers_of(model)[0],
        [name],
        ValueSettings(lr=hparams.edit_lr, steps=hparams.n_iter + 1, early_stop=False),
        hparams.rows_at_once,
        start=torch.rand(len(edits), text_config(model).hidden_size, generator=generator),
    )
    prompts = [in_template(hparams.prompt_template, edit.prompt) for edit in edits]
    keys = _keys(model, tok, prompts, name, hparams)
    return HoReNModel(model, tok, hparams, name, keys, values.shift[name]), {}


@torch.no_grad()
def _keys(
    model: CausalLM, tok: Tokenizer, prompts: Sequence[str], module: str, hparams: HoReNHyperParams
) -> Tensor:
    """(N, K) the unit queries of the edited prompts."""
    queries = torch.zeros(len(prompts), 0)
    lengths = [len(row) for row in prompt_tokens(tok, prompts)]
    for chunk in by_length(lengths, hparams.rows_at_once):
        batch = left_padded(tok, [prompts[i] for i in chunk], input_device(model))
        forward = partial(model.get_decoder(), **batch, use_cache=False)
        entering = capture_input(model.get_submodule(module), forward)
        entering = entering.reshape(len(chunk), -1, entering.shape[-1])
        length = torch.tensor([lengths[i] for i in chunk], device=entering.device)
        last = torch.full_like(length, entering.shape[1] - 1)
        if not queries.shape[1]:
            queries = entering.new_zeros(len(prompts), entering.shape[-1])
        queries[chunk] = mean_of_last(entering, last, length, hparams.query_share)
    return F.normalize(queries.float(), dim=-1)
