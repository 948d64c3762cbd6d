"""Routing while the answer is written: a text that gets to an edited fact goes on with the edit.

A prompt is routed before its first token. "Tell me about France" asks for no fact, and its answer
may state one: "… Its capital is". So at each step the LLM's own hidden state is compared with those
at the ends of the edited prompts, one matrix product; where one is close and the question or the
text names its subject, the verifier reads both. If it agrees, the next tokens are those of the LLM
with the edit's neuron, until the sentence ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from meg_editor.requests.request import EditRequest

_SENTENCE_END = re.compile(r"[.!?。！？؟।](?=[\s\"'”’)\]]|$)|\n")
_TEXT = 400  # characters of the question and of the text so far which are read
_BEYOND = 8  # tokens an edit stays in effect beyond the length of its target


@dataclass(frozen=True)
class Proposal:
    """An edit which a text may be about to state."""

    edit: int
    similarity: float


@dataclass(frozen=True)
class _InEffect:
    """An edit in effect for a row since its text had `since` tokens."""

    edit: int
    since: int


class DecodingRouter(LogitsProcessor):
    """Logits of the next token under the edit that the text so far is about to state.

    It keeps nothing but which edits are in effect for which texts, so that beams may be reordered,
    and leaves the KV cache of the generation alone: the neuron acts in passes of its own.

    Args:
        prompts: (B, T) token ids.
        mask: (B, T) attention mask, 0 for padding; None: no padding.
        questions: what each prompt asks.
        edited: rows of prompts which ask for an edit themselves: these are left alone.
        propose: rows and texts of R rows -> for each the edits it may be about to state.
        confirm: (texts, edits) -> whether each text is about to state the edit.
        logits: (token ids of rows, edits) -> (R, V) of the next token under the edit's neuron.
        decode: token ids -> text.
        edits: the N edits, with the tokens of their targets.

    Example:
        >>> import torch
        >>> edits = [EditRequest("The capital of France is", "Lima", "France")]
        >>> router = DecodingRouter(
        ...     torch.tensor([[1]]), None, ["Tell me about France."], [],
        ...     lambda rows, texts: [[Proposal(0, 1.0)]],
        ...     lambda texts, edits: [True], lambda rows, edits: torch.tensor([[0.0, 9.0]]),
        ...     lambda ids: "Its capital is", edits, lambda edit: 1)
        >>> router(torch.tensor([[1, 1]]), torch.zeros(1, 2)).tolist()
        [[0.0, 9.0]]
    """

    def __init__(
        self,
        prompts: Tensor,
        mask: Tensor | None,
        questions: Sequence[str],
        edited: Sequence[int],
        propose: Callable[[list[int], list[str]], list[list[Proposal]]],
        confirm: Callable[[list[str], list[int]], list[bool]],
        logits: Callable[[list[list[int]], list[int]], Tensor],
        decode: Callable[[list[int]], str],
        edits: Sequence[EditRequest],
        target_length: Callable[[int], int],
    ) -> None:
        self.length, self.count = prompts.shape[1], len(prompts)
        self.mask = None if mask is None else mask.bool().tolist()
        self.questions, self.edited = questions, frozenset(edited)
        self.propose, self.confirm, self.logits = propose, confirm, logits
        self.decode, self.edits, self.target_length = decode, edits, target_length
        # (prompt, tokens written) -> the edit in effect, of the last step.
        self._in_effect: dict[tuple[int, tuple[int, ...]], _InEffect] = {}
        self._refused: set[tuple[str, int]] = set()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        rows = input_ids.tolist()
        each = max(1, len(rows) // self.count)  # beams, or several answers to a prompt
        written = [tuple(row[self.length :]) for row in rows]
        open_rows = [
            row for row, tokens in enumerate(written) if tokens and row // each not in self.edited
        ]
        texts = {
            row: "\n".join(
                text[-_TEXT:]
                for text in (self.questions[row // each], self.decode(list(written[row])))
            )
            for row in open_rows
        }
        active = {
            row: found for row in open_rows if (found := self._still(row // each, written[row]))
        }
        active |= self._begun([row for row in open_rows if row not in active], texts, written)
        self._in_effect = {(row // each, written[row]): found for row, found in active.items()}
        if not active:
            return scores
        numbers = list(active)
        whole = [self._without_padding(rows[row], row // each) for row in numbers]
        logits = self.logits(whole, [active[row].edit for row in numbers])
        scores = scores.clone()
        scores[numbers] = logits.to(scores)
        return scores

    def _still(self, prompt: int, tokens: tuple[int, ...]) -> _InEffect | None:
        """The edit that was in effect for the text before its last token, unless it is said."""
        found = self._in_effect.get((prompt, tokens[:-1]))
        if found is None:
            return None
        said = self.decode(list(tokens[found.since :]))
        target = self.edits[found.edit].target_new
        long = len(tokens) - found.since > self.target_length(found.edit) + _BEYOND
        if long or target in said or _SENTENCE_END.search(said):
            return None
        return found

    def _begun(
        self,
        rows: list[int],
        texts: dict[int, str],
        written: Sequence[tuple[int, ...]],
    ) -> dict[int, _InEffect]:
        """Rows whose text is about to state an edit."""
        rows = [row for row in rows if not _SENTENCE_END.search(texts[row][-1:])]
        proposals = self.propose(rows, [texts[row] for row in rows]) if rows else []
        pairs = [
            (row, proposal.edit)
            for row, found in zip(rows, proposals, strict=True)
            for proposal in sorted(found, key=lambda p: -p.similarity)
            if (texts[row], proposal.edit) not in self._refused
        ]
        if not pairs:
            return {}
        sure = self.confirm([texts[row] for row, _ in pairs], [edit for _, edit in pairs])
        begun: dict[int, _InEffect] = {}
        for (row, edit), yes in zip(pairs, sure, strict=True):
            if yes:
                begun.setdefault(row, _InEffect(edit, len(written[row])))
            else:
                self._refused.add((texts[row], edit))
        return begun

    def _without_padding(self, row: list[int], prompt: int) -> list[int]:
        if self.mask is None:
            return row
        mask = self.mask[prompt]
        return [t for t, keep in zip(row, mask, strict=False) if keep] + row[self.length :]
