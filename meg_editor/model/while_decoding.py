"""Joins a MeGModel and a DecodingRouter: proposals, confirmation, and logits under an edit."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessorList

from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.edits.edition import Edition
from meg_editor.lm.ffn import decoder_of
from meg_editor.lm.last_input import LastInput
from meg_editor.lm.tokens import encode_example, logits_of, right_padded
from meg_editor.model.cache_routing import prompt_texts
from meg_editor.model.decoding import DecodingRouter, Proposal
from meg_editor.model.in_force import InForce
from meg_editor.routing.verifier import fact_text

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel

_SIMILAR = 0.5  # lowest cosine of hidden states
_NAMED = 0.5  # lowest share of the subject's words that the text has
_PROPOSED = 2  # most edits that are verified for a text
_USUAL = 256  # phrasings which say what hidden states are like in general


class WhileDecoding:
    """Routing of what a MeGModel writes, where its setting `routing` is "decoding".

    The hidden states of the edited prompts are read before the first answer.
    """

    def __init__(self, model: MeGModel) -> None:
        self._model = weakref.ref(model)
        self._read: dict[str, Tensor] = {}  # unit vectors (D,) by edited prompt

    @property
    def model(self) -> MeGModel:
        model = self._model()
        if model is None:
            raise ReferenceError("the edited model is gone")
        return model

    @contextmanager
    def routed(self, decision: Tensor | None, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Context of one `generate` with these options; gives what changes among them.

        Args:
            decision: neurons (B, P) of the prompts; None if none of them is an edit.

        Raises:
            ValueError: the model has no verifier.
        """
        model = self.model
        prompts = options.get("input_ids", options.get("inputs"))
        if model.hparams.routing != "decoding" or prompts is None:
            yield {}
            return
        if model.verifier is None:
            raise ValueError(
                "routing: decoding needs a verifier, and none is shipped for the encoder "
                f"{model.hparams.encoder_name!r}; use all-MiniLM-L6-v2, or routing: prompt"
            )
        given = options.pop("logits_processor", None) or []
        edited = [] if decision is None else decision.any(1).nonzero().flatten().tolist()
        in_force = model._in_force
        mask, tokenizer = options.get("attention_mask"), model._tokenizer
        router = DecodingRouter(
            prompts,
            mask,
            [model.reader.read(text).text for text in prompt_texts(tokenizer, prompts, mask)],
            edited,
            partial(self._propose, in_force, self._states_of(in_force.edition)),
            partial(self._confirm, in_force.edition),
            partial(self._logits, in_force),
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            in_force.edition.edits,
            partial(self._target_length, in_force.edition),
        )
        with self._last.kept():
            yield {"logits_processor": LogitsProcessorList([*given, router])}

    @cached_property
    def _last(self) -> LastInput:
        return LastInput(self.model.base.get_submodule(self.model.states.module))

    @cached_property
    def _usual(self) -> Tensor:
        texts = [text for text in Phrasebook.load().texts if "{}" in text]
        step = max(1, len(texts) // _USUAL)
        usual = self.model.states.usual([text.replace("{}", "it") for text in texts[::step]])
        if usual is None:
            raise ValueError("expected a phrasebook with phrasings")
        return usual

    def _states_of(self, edition: Edition) -> Tensor:
        """(N, D) unit vectors of the edited prompts."""
        new = [edit.prompt for edit in edition.edits if edit.prompt not in self._read]
        if new:
            self._read.update(zip(new, self._standard(self.model.states.read(new)), strict=True))
        if not edition.edits:
            return self._usual[:0]
        return torch.stack([self._read[edit.prompt] for edit in edition.edits])

    def _standard(self, features: Tensor) -> Tensor:
        return F.normalize((features.float() - self._usual[0]) / self._usual[1], dim=-1)

    def _propose(
        self, in_force: InForce, states: Tensor, rows: list[int], texts: list[str]
    ) -> list[list[Proposal]]:
        entering = self._last.value
        if entering is None or not len(states):
            return [[] for _ in rows]
        features = entering.reshape(-1, entering.shape[-1])
        if entering.dim() == 3:
            features = entering[:, -1]
        cosine, edits = (self._standard(features[rows]) @ states.T).topk(
            min(_PROPOSED, len(states)), dim=1
        )
        names = in_force.edition.index.names
        named = names.overlap(names.tokenize(texts), edits)
        named = torch.where(names.known(edits), named, torch.ones_like(named))
        close = (cosine >= _SIMILAR) & (named >= _NAMED)
        if not bool(close.any()):
            return [[] for _ in rows]
        return [
            [
                Proposal(edit, similarity)
                for edit, similarity, yes in zip(*values, strict=True)
                if yes
            ]
            for values in zip(edits.tolist(), cosine.tolist(), close.tolist(), strict=True)
        ]

    def _confirm(self, edition: Edition, texts: list[str], edits: list[int]) -> list[bool]:
        facts = [fact_text(edition.edits[edit]) for edit in edits]
        verifier = self.model.verifier
        if verifier is None:
            return [False] * len(texts)
        sure = verifier.probability(texts, facts)
        return (sure >= verifier.threshold).tolist()

    def _target_length(self, edition: Edition, edit: int) -> int:
        request = edition.edits[edit]
        return len(encode_example(self.model._tokenizer, request.prompt, request.target_new).target)

    def _logits(self, in_force: InForce, rows: Sequence[list[int]], edits: list[int]) -> Tensor:
        model = self.model
        neurons = in_force.of_edits(edits)
        ids = right_padded(rows).to(model.base.device)
        last = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
        with self._last.paused(), model.hook.attached(neurons):
            hidden = decoder_of(model.base)(input_ids=ids, use_cache=False).last_hidden_state
        return logits_of(model.base, hidden[torch.arange(len(rows), device=ids.device), last])
