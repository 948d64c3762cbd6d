"""Joins a MeGModel and a DecodingRouter: proposals, confirmation, and logits under an edit."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from meg_editor.edits.edition import Edition
from meg_editor.lm.answers import end_tokens, verbatim
from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import last_hidden_states
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.tokens import encode_example, logits_of, right_padded
from meg_editor.model.cache_routing import prompt_texts
from meg_editor.model.decoding.first_tokens import FirstTokenCache
from meg_editor.model.decoding.router import DecodingRouter, Proposal
from meg_editor.model.decoding.subjects import Subjects
from meg_editor.model.in_force import InForce
from meg_editor.routing.verifier import fact_text

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel
    from meg_editor.model.routed_model import PromptTokens

_MAX_COMMON = 0.5  # probability of these above which no answer is about to begin
_MAX_SUBJECT = 0.5  # the same of the subject's name, as behind "The capital of"
_MIN_SCORE = -4.5  # of a proposal, in nats
_MIN_SURE = 0.5  # lowest probability of the verifier that a text is about to state an edit
_MIN_BOTH = 1.0  # of its log odds and the proposal's score together


class WhileDecoding:
    """Routing of what a MeGModel writes, where its setting `routing` is "decoding".

    Edited prompts are read when a text first names their subject.
    """

    def __init__(self, model: MeGModel) -> None:
        self._model = weakref.ref(model)
        self._first_tokens = FirstTokenCache(model.base, model._tokenizer)
        # Entries go with their edition.
        self._subjects: weakref.WeakKeyDictionary[Edition, Subjects] = weakref.WeakKeyDictionary()

    @property
    def model(self) -> MeGModel:
        model = self._model()
        if model is None:
            raise ReferenceError("the edited model is gone")
        return model

    @contextmanager
    def routed(
        self, decision: Tensor | None, prompts: PromptTokens, options: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Context of one `generate` with these options; gives what changes among them.

        Args:
            decision: neurons (B, P) of the prompts; None if none of them is an edit.
            prompts: as a whole; beside a filled cache the options have their last tokens.

        Raises:
            ValueError: the model has no verifier.
        """
        model = self.model
        ids = options.get("inputs") if options.get("input_ids") is None else options["input_ids"]
        if model.hparams.routing != "decoding" or ids is None:
            yield {}
            return
        if model.verifier is None:
            raise ValueError(
                "routing: decoding needs a verifier, which this model lacks: fit it with gate "
                "verified and an encoder that one is shipped for (all-MiniLM-L6-v2), or set "
                "routing to prompt"
            )
        in_force = model._in_force
        if not in_force.edition.edits:
            yield {}
            return
        given = options.pop("logits_processor", None) or []
        edited = [] if decision is None else _edited_rows(decision, len(ids))
        router = DecodingRouter(
            ids,
            [self._question(text) for text in prompt_texts(model._tokenizer, *prompts)],
            edited,
            self._subjects_of(in_force.edition),
            EditedAnswers(model, in_force, self._first_tokens),
            end_tokens(model.base, model._tokenizer, options),
        )
        yield {"logits_processor": LogitsProcessorList([*given, router])}

    def _question(self, prompt: str) -> str:
        """What a prompt asks, with a line break behind it unless the answer goes on with it."""
        question = self.model.reader.read(prompt).text
        return question if prompt.endswith(question) else f"{question}\n"

    def _subjects_of(self, edition: Edition) -> Subjects:
        if (found := self._subjects.get(edition)) is None:
            found = self._subjects[edition] = Subjects(edition)
        return found


class EditedAnswers:
    """The edits in force in one call: their proposals, their confirmation, and their logits.

    One pass over an edited prompt and its target gives the logits of every step, as long as the
    answer is the target.
    """

    def __init__(self, model: MeGModel, in_force: InForce, first_tokens: FirstTokenCache) -> None:
        self._model, self._in_force, self._first_tokens = model, in_force, first_tokens
        self._edits = in_force.edition.edits
        self._hidden: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    @torch.no_grad()
    def propose(self, scores: Tensor, named: list[tuple[int, ...]]) -> list[list[Proposal]]:
        """Edits whose answer is about to begin, by the scores (R, V) of the next token.

        The score is the log of the probability that one of the former answers begins, plus half
        of how much more likely than usual (in nats) the new one does.
        """
        rows = [row for row, edits in enumerate(named) for _ in edits]
        edits = [edit for found in named for edit in found]
        first = self._first_tokens.get([self._edits[edit] for edit in edits])
        likely = scores.float().log_softmax(-1)
        where = torch.tensor(rows, device=likely.device)
        former = torch.stack([tokens.former.to(likely.device) for tokens in first])
        target = torch.tensor([tokens.target[0] for tokens in first], device=likely.device)
        subject = torch.tensor([tokens.subject for tokens in first], device=likely.device)
        common = likely[:, self._first_tokens.common.to(likely.device)].exp().sum(1)[where]
        other = (common > _MAX_COMMON) | (likely[where, subject].exp() > _MAX_SUBJECT)
        begins = likely[where.unsqueeze(1), former].logsumexp(1)
        gain = likely[where, target] - self._first_tokens.usual.to(likely)[target]
        proposals: list[list[Proposal]] = [[] for _ in named]
        values = (begins + gain / 2).masked_fill(other, -torch.inf).tolist()
        for row, edit, score in zip(rows, edits, values, strict=True):
            if score >= _MIN_SCORE:
                proposals[row].append(Proposal(edit, score))
        return proposals

    def confirm(self, texts: list[str], proposals: list[Proposal]) -> list[bool]:
        """Whether the verifier agrees, and all the more surely the less the LLM speaks for it."""
        verifier = self._model.verifier
        if verifier is None:
            return [False] * len(texts)
        facts = [fact_text(self._edits[proposal.edit]) for proposal in proposals]
        sure = verifier.probability(texts, facts)
        both = sure.logit(eps=1e-6) + torch.tensor([proposal.score for proposal in proposals])
        agreed = (sure >= max(verifier.threshold, _MIN_SURE)) & (both >= _MIN_BOTH)
        return agreed.tolist()

    @torch.no_grad()
    def logits(self, said: Sequence[list[int]], edits: Sequence[int]) -> Tensor:
        """Logits (R, V) of the next token behind R edited prompts and what was said since.

        Args:
            said: tokens of the answers so far.
        """
        asked = [(edit, tuple(tokens)) for edit, tokens in zip(edits, said, strict=True)]
        new = [key for key in dict.fromkeys(asked) if key not in self._hidden]
        if new:
            self._run(new)
        return logits_of(self._model.base, torch.stack([self._hidden[key] for key in asked]))

    def target(self, edit: int) -> tuple[str, int]:
        """The target of an edit, and how many tokens it has."""
        request = self._edits[edit]
        (first,) = self._first_tokens.get([request])
        return request.target_new, len(first.target)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        return verbatim(self._model._tokenizer, ids)

    def _run(self, asked: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        model = self._model
        rows, keys = [], []
        for edit, said in asked:
            request = self._edits[edit]
            prompt = model.reader.wrap(request.prompt)
            (ids,) = prompt_tokens(model._tokenizer, [prompt])
            target = tuple(encode_example(model._tokenizer, prompt, request.target_new).target)
            whole = target if target[: len(said)] == said else said
            rows.append([*ids, *whole[: max(len(said), len(whole) - 1)]])
            keys.append(
                [(edit, whole[:end]) for end in range(len(said), len(rows[-1]) + 1 - len(ids))]
            )
        tokens = right_padded(rows).to(input_device(model.base))
        with model.hook.attached(self._in_force.of_edits([edit for edit, _ in asked])):
            hidden = last_hidden_states(model.base, tokens)
        for row, (ids, steps) in enumerate(zip(rows, keys, strict=True)):
            first = len(ids) - len(steps)
            self._hidden.update({key: hidden[row, first + n] for n, key in enumerate(steps)})


def _edited_rows(decision: Tensor, rows: int) -> list[int]:
    """Which of R rows have a neuron, of neurons (B, P) for R / B rows each."""
    edited = decision.any(1).repeat_interleave(rows // len(decision))
    return edited.nonzero().flatten().tolist()
