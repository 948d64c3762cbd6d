"""The routing decision of a KV cache, stored as an attribute of the cache object.

Copies of a cache carry it along, so decoding loops may interleave and a prefix may be prefilled
once and copied for every query.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.lm.prompt_tokens import tokens_around
from meg_editor.lm.protocols import Tokenizer
from meg_editor.requests.formats import begins_turn

_NAME = "meg_editor_routing"  # the attribute of a cache


@dataclass(frozen=True)
class CacheRouting:
    """Routing decision for the rows of a cache, and the tokens of the cache with the next input.

    Attributes:
        owner: the routed model which filled the cache.
        decision: for its B rows.
        pieces: inputs in order, (B, t) ids each; None for embeddings.
        masks: (B, t) attention mask of each piece; None if nothing is masked.
        asks_anew: the next input is a part of the prompt, not of the answer: route again.
    """

    owner: weakref.ref[nn.Module]
    decision: Any
    pieces: tuple[Tensor | None, ...]
    masks: tuple[Tensor | None, ...]
    asks_anew: bool = False

    @classmethod
    def start(
        cls, owner: nn.Module, decision: Any, ids: Tensor | None, mask: Tensor | None
    ) -> CacheRouting:
        """Routing of a cache which was just filled with the tokens `ids` (B, T)."""
        width = 0 if ids is None else ids.shape[1]
        if mask is not None and mask.dim() != 2:
            mask = None
        if mask is not None:
            mask = nn.functional.pad(mask[:, :width], (0, max(width - mask.shape[1], 0)), value=1)
            rows = 0 if ids is None else len(ids)
            mask = mask.repeat_interleave(max(rows // len(mask), 1), dim=0)
        return cls(weakref.ref(owner), decision, (ids,), (mask,))

    @classmethod
    def continued(
        cls, owner: nn.Module, cache: Any, ids: Tensor | None, mask: Tensor | None, named: bool
    ) -> CacheRouting | None:
        """Routing of a filled `cache` to which `ids` (B, t) are added; None without filled cache.

        Args:
            mask: attention mask of the new tokens, or of all, as in transformers.
            named: the query is given by a surrounding `routed` block.

        Raises:
            ValueError: the cache was not filled by `owner`, and the query is not named.
        """
        filled = 0 if cache is None else cache.get_seq_length()
        if not filled:
            return None
        earlier: CacheRouting | None = getattr(cache, _NAME, None)
        if earlier is None or earlier.owner() is not owner or earlier._lacks(filled):
            if named:
                return cls(weakref.ref(owner), None, (None, ids), (None, None))
            raise ValueError(
                "expected a KV cache which this model filled, got one of another model, or with "
                "tokens of another: its query is not known. Name the query: "
                "with model.routed(queries): model(...); or fill the cache with this model"
            )
        if mask is not None:
            mask = mask[:, -ids.shape[1] :] if ids is not None and mask.dim() == 2 else None
        before = earlier._cut(filled)
        pieces = (*before.pieces, ids)
        several = ids is not None and ids.shape[1] > 1 and all(p is not None for p in pieces)
        return replace(before, pieces=pieces, masks=(*before.masks, mask), asks_anew=several)

    def ended(self, ids: Tensor) -> CacheRouting:
        """This one with `ids` (B, t) as its last tokens: the last input and what was written."""
        owner: Any = self.owner()
        last = self.start(owner, None, ids, self.masks[-1])
        return replace(self, pieces=(*self.pieces[:-1], ids), masks=(*self.masks[:-1], *last.masks))

    @property
    def ids(self) -> Tensor | None:
        """Ids (B, T) of all tokens including the next input; None if some were embeddings."""
        pieces = [piece for piece in self.pieces if piece is not None]
        if len(pieces) < len(self.pieces):
            return None
        rows = max(map(len, pieces))  # a cache may have been repeated for beams
        return torch.cat([p.repeat_interleave(rows // len(p), dim=0) for p in pieces], dim=1)

    @property
    def mask(self) -> Tensor | None:
        """Attention mask (B, T) of all tokens; None if nothing is masked."""
        if (ids := self.ids) is None or all(mask is None for mask in self.masks):
            return None
        rows = len(ids)
        parts = [
            torch.ones_like(ids[:, : piece.shape[1]])
            if mask is None
            else mask.repeat_interleave(rows // len(mask), dim=0)
            for piece, mask in zip(self.pieces, self.masks, strict=True)
            if piece is not None
        ]
        return torch.cat([part.to(ids) for part in parts], dim=1)

    @property
    def rows(self) -> int:
        """Rows of the cache; of embeddings alone as many as were decided."""
        known = [len(piece) for piece in self.pieces if piece is not None]
        decided = [] if self.decision is None else [len(self.decision)]
        return max([*known, *decided], default=0)

    def decided(self, decision: Any) -> CacheRouting:
        """A copy with this decision."""
        return replace(self, decision=decision, asks_anew=False)

    def tie(self, cache: Any) -> None:
        """Store this on `cache`, and select its rows whenever the cache selects its own."""
        setattr(cache, _NAME, self)
        for name in ("reorder_cache", "batch_select_indices", "batch_repeat_interleave"):
            if hasattr(type(cache), name):
                setattr(cache, name, _RowMethod(cache, name))

    def select_rows(self, rows: Sequence[int]) -> CacheRouting:
        """For a cache of which rows were selected, by index into those it had."""
        owner: Any = self.owner()
        decision = self.decision
        if decision is not None and owner is not None:
            each = self.rows // len(decision)  # rows repeated for beams
            decision = owner.select_rows(decision, [row // each for row in rows])
        pieces = tuple(None if piece is None else piece[list(rows)] for piece in self.pieces)
        masks = tuple(None if mask is None else mask[list(rows)] for mask in self.masks)
        return replace(self, decision=decision, pieces=pieces, masks=masks)

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheRouting:
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "owner"}
        return replace(self, **copy.deepcopy(parts, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled cache has no owner: its query must be named where it is loaded."""
        return _Unknown, ()

    @property
    def _length(self) -> int | None:
        """Tokens that are known; None if some came as embeddings."""
        widths = [None if piece is None else piece.shape[1] for piece in self.pieces]
        return None if None in widths else sum(width or 0 for width in widths)

    def _lacks(self, length: int) -> bool:
        """Whether the cache holds more than is known: the base was run with it."""
        return self._length is not None and self._length < length

    def _cut(self, length: int) -> CacheRouting:
        """Routing of the first `length` tokens, as one piece: a cache may have been cropped."""
        if self._length is None or self._length <= length or (ids := self.ids) is None:
            return self
        mask = self.mask
        return replace(
            self, pieces=(ids[:, :length],), masks=(None if mask is None else mask[:, :length],)
        )


class _Unknown:
    """The routing of a cache which was pickled."""

    def owner(self) -> None:
        return None


class _RowMethod:
    """A method of a cache which selects rows, and selects those of the routing too.

    The cache has this, so this must not have the cache: it would stay until a garbage collection.
    """

    def __init__(self, cache: Any, name: str) -> None:
        self._cache, self._name = weakref.ref(cache), name

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        cache = self._cache()
        result = getattr(type(cache), self._name)(cache, *arguments, **options)
        routing = getattr(cache, _NAME, None)
        if isinstance(routing, CacheRouting):
            rows = arguments[0] if arguments else next(iter(options.values()))
            if self._name == "batch_repeat_interleave":  # it is how often each comes
                rows = torch.arange(routing.rows).repeat_interleave(rows)
            setattr(cache, _NAME, routing.select_rows(torch.as_tensor(rows).tolist()))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> _RowMethod:
        cache = self._cache()
        return _RowMethod(memo.get(id(cache), cache), self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _RowMethod, (self._cache(), self._name)


def cache_of(output: Any, kwargs: Mapping[str, Any]) -> Any:
    """KV cache filled by a call of `forward` or `generate`, or None."""
    cache = getattr(output, "past_key_values", None)
    cache = kwargs.get("past_key_values") if cache is None else cache
    if cache is None and isinstance(output, tuple):
        cache = next((part for part in output if hasattr(part, "get_seq_length")), None)
    return cache if hasattr(cache, "get_seq_length") else None


def prompt_texts(tokenizer: Tokenizer, ids: Tensor | None, mask: Tensor | None) -> list[str]:
    """Texts of B prompts, without padding, BOS and what the tokenizer puts around a text.

    Args:
        ids: (B, T).
        mask: attention mask (B, T), 0 for padding; None: trailing pad tokens are padding.

    Raises:
        ValueError: no ids, or a mask of another shape.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> batch = tokenizer(["Who wrote Emma?"], return_tensors="pt")
        >>> prompt_texts(tokenizer, batch["input_ids"], batch["attention_mask"])
        ['Who wrote Emma?']
    """
    name = "name the query: with model.routed(queries): ..."
    if ids is None or not ids.shape[1]:
        raise ValueError(
            f"the query is read from input_ids, which are missing; give them, or {name}"
        )
    if mask is not None and (mask.dim() != 2 or mask.shape != ids.shape):
        raise ValueError(
            f"attention_mask: expected the shape of input_ids {tuple(ids.shape)}, got "
            f"{tuple(mask.shape)}, which does not tell padding from the prompt; {name}"
        )
    beginnings = {tokenizer.pad_token_id, tokenizer.bos_token_id}
    if begins_turn(tokenizer.bos_token or ""):  # SmolLM2's is the begin of every turn
        beginnings.discard(tokenizer.bos_token_id)
    beginning, ending = tokens_around(tokenizer)
    masks = None if mask is None else mask.tolist()
    texts = []
    for row, tokens in enumerate(ids.tolist()):
        if masks is not None:
            tokens = [token for token, keep in zip(tokens, masks[row], strict=True) if keep]
        elif tokenizer.pad_token_id is not None:
            while tokens and tokens[-1] == tokenizer.pad_token_id:
                tokens.pop()
        while tokens and tokens[0] == tokenizer.pad_token_id:
            tokens = tokens[1:]
        if tokens[: len(beginning)] == beginning:
            tokens = tokens[len(beginning) :]
        while tokens and tokens[0] in beginnings:
            tokens = tokens[1:]
        if ending and tokens[-len(ending) :] == ending:
            tokens = tokens[: -len(ending)]
        # Chat templates mark turns by special tokens, which delimit the question.
        text = tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        texts.append(text.strip())
    return texts


def prompt_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of one prompt of T token ids, as `prompt_texts` reads it."""
    return prompt_texts(tokenizer, torch.tensor([ids]), None)[0]
