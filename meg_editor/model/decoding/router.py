"""Routing while the answer is written: a text that gets to an edited fact goes on with the edit.

A prompt is routed before its first token. "Tell me about France" asks for no fact, and its answer
may state one: "… Its capital is". An edit is proposed where its subject is named in the question or
in the text so far, and the scores of the next token say that an answer of its kind comes. The
verifier then reads the sentence that names the subject, and the one that is being written. If it
agrees, the LLM goes on with the edit's neuron until the sentence ends.
"""

from __future__ import annotations

from collections import ChainMap, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor
from transformers import LogitsProcessor

from meg_editor.model.decoding.sentences import SENTENCE_END, about, joined, to_last_word

_WINDOW = 8  # last tokens of a text in which names are looked for
_BEYOND = 8  # tokens an edit stays in effect beyond the length of its target


@dataclass(frozen=True)
class Proposal:
    """An edit which a text may be about to state; the higher the score the likelier."""

    edit: int
    score: float


@dataclass(frozen=True)
class _InEffect:
    """An edit in effect for a text since it had `since` tokens."""

    edit: int
    since: int


@dataclass(frozen=True)
class _Text:
    """What is known of a text.

    Attributes:
        words: numbers of the words in it which occur in any name.
        named: edits which these name.
        in_effect: the edit in effect.
        stated: edits which the sentence has stated.
        refused: what the verifier read, up to its last word, and the edit that it refused.
    """

    words: frozenset[int]
    named: tuple[int, ...]
    in_effect: _InEffect | None = None
    stated: frozenset[int] = frozenset()
    refused: frozenset[tuple[str, int]] = frozenset()

    def after(self) -> _Text:
        """With no edit in effect any more."""
        if self.in_effect is None:
            return self
        return replace(self, in_effect=None, stated=self.stated | {self.in_effect.edit})


class SubjectWords(Protocol):
    """Which words belong to names of subjects, and which edits they name."""

    def words(self, text: str) -> frozenset[int]:
        """Numbers of the words in `text` which occur in any name."""

    def named(self, words: frozenset[int]) -> tuple[int, ...]:
        """Edits whose subject is named by these words."""

    def name(self, edit: int) -> str:
        """The subject of an edit, or the words which stand for it."""


class EditsInForce(Protocol):
    """The edits of one call: when a text is about to state one, and how it goes on then."""

    def propose(self, scores: Tensor, named: list[tuple[int, ...]]) -> list[list[Proposal]]:
        """Edits that each of R texts may be about to state.

        Args:
            scores: (R, V) of the next token.
            named: edits that each text names.
        """

    def confirm(self, texts: list[str], proposals: list[Proposal]) -> list[bool]:
        """Whether each text is about to state the edit proposed for it."""

    def logits(self, said: list[list[int]], edits: list[int]) -> Tensor:
        """Logits (R, V) of the next token under the neurons of R edits.

        Args:
            said: tokens written since each edit came into effect.
        """

    def target(self, edit: int) -> tuple[str, int]:
        """The target of an edit, and how many tokens it has."""

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""


class DecodingRouter(LogitsProcessor):
    """Logits of the next token under the edit that the text so far is about to state.

    It keeps what is known of the last step's texts, as beams may be reordered, and of a single row
    that of earlier calls, as assisted decoding drops candidates. The KV cache is left alone.

    Args:
        prompts: (B, T) token ids.
        questions: what each prompt asks; a line break at its end where the answer is a turn.
        edited: rows of prompts which ask for an edit themselves: these are left alone.
        subjects: finds the edits that a text names.
        edits: the edits of this call.
        ends: tokens which end an answer.

    Example:
        >>> import torch
        >>> class France:
        ...     def words(self, text): return frozenset([0] if "France" in text else [])
        ...     def named(self, words): return tuple(words)
        ...     def name(self, edit): return "France"
        >>> class Edits:
        ...     def propose(self, scores, named): return [[Proposal(0, 1.0)]]
        ...     def confirm(self, texts, proposals): return [True]
        ...     def logits(self, said, edits): return torch.tensor([[0.0, 9.0]])
        ...     def target(self, edit): return "Lima", 1
        ...     def decode(self, ids): return "Its capital is"
        >>> prompts, questions = torch.tensor([[1]]), ["Tell me about France."]
        >>> router = DecodingRouter(prompts, questions, [], France(), Edits())
        >>> router(torch.tensor([[1, 1]]), torch.zeros(1, 2)).argmax().item()
        1
    """

    def __init__(
        self,
        prompts: Tensor,
        questions: Sequence[str],
        edited: Sequence[int],
        subjects: SubjectWords,
        edits: EditsInForce,
        ends: Collection[int] = (),
    ) -> None:
        self.length, self.count = prompts.shape[1], len(prompts)
        self.questions, self.edited = questions, frozenset(edited)
        self.subjects, self.edits, self.ends = subjects, edits, frozenset(ends)
        self._words = [subjects.words(question) for question in questions]
        # (prompt, tokens written) -> what is known of the text, of many calls, the last one first.
        self._texts: deque[dict[tuple[int, tuple[int, ...]], _Text]] = deque(maxlen=256)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if len(scores) == 1 and (scores == 1).all():  # prompt lookup asks so what is ruled out
            return scores
        written = [tuple(row) for row in input_ids[:, self.length :].tolist()]
        each = max(1, len(written) // self.count)  # beams, or several answers to a prompt
        texts = {
            row: self._read(row // each, tokens)
            for row, tokens in enumerate(written)
            if tokens and tokens[-1] not in self.ends and row // each not in self.edited
        }
        waiting = [row for row, text in texts.items() if text.named and text.in_effect is None]
        for row, begun in self._begun(waiting, texts, written, each, scores).items():
            texts[row] = replace(texts[row], in_effect=begun)
        scores = self._edited_scores(scores, texts, written)
        if len(written) > 1:  # no assisted decoding
            self._texts.clear()
        self._texts.appendleft({(row // each, written[row]): text for row, text in texts.items()})
        return scores

    def _read(self, prompt: int, tokens: tuple[int, ...]) -> _Text:
        """What is known of a text: what was known without its last token, and what that adds."""
        known = ChainMap(*self._texts)
        again, before = known.get((prompt, tokens)), known.get((prompt, tokens[:-1]))
        refused = again.refused if again else frozenset()
        if before is None:
            words = self._words[prompt] | self.subjects.words(self.edits.decode(list(tokens)))
            return _Text(words, self.subjects.named(words) if words else (), refused=refused)
        end = self.edits.decode(list(tokens[-_WINDOW:]))
        words = before.words | self.subjects.words(end)
        if words != before.words:
            before = replace(before, words=words, named=self.subjects.named(words))
        if before.in_effect is not None and not self._goes_on(before.in_effect, tokens):
            before = before.after()
        if before.stated and SENTENCE_END.match(end[-1:]):
            before = replace(before, stated=frozenset())
        return replace(before, refused=before.refused | refused)

    def _goes_on(self, found: _InEffect, tokens: tuple[int, ...]) -> bool:
        """Whether an edit stays in effect: it is not said yet."""
        said = self.edits.decode(list(tokens[found.since :]))
        target, length = self.edits.target(found.edit)
        long = len(tokens) - found.since > length + _BEYOND
        return not (long or target in said or SENTENCE_END.search(said))

    def _begun(
        self,
        rows: list[int],
        texts: dict[int, _Text],
        written: Sequence[tuple[int, ...]],
        each: int,
        scores: Tensor,
    ) -> dict[int, _InEffect]:
        """Rows whose text is about to state an edit; what is refused is noted in `texts`."""
        if not rows:
            return {}
        pairs: list[tuple[int, Proposal, str]] = []
        proposals = self.edits.propose(scores[rows], [texts[row].named for row in rows])
        for row, found in zip(rows, proposals, strict=True):
            if not found:
                continue
            text = joined(self.questions[row // each], self.edits.decode(list(written[row])))
            for proposal in sorted(found, key=lambda proposal: -proposal.score):
                read = about(text, self.subjects.name(proposal.edit))
                if read is None or proposal.edit in texts[row].stated:
                    continue
                if (to_last_word(read), proposal.edit) not in texts[row].refused:
                    pairs.append((row, proposal, read))
        if not pairs:
            return {}
        sure = self.edits.confirm([read for _, _, read in pairs], [found for _, found, _ in pairs])
        begun: dict[int, _InEffect] = {}
        for (row, proposal, read), yes in zip(pairs, sure, strict=True):
            if yes:
                begun.setdefault(row, _InEffect(proposal.edit, len(written[row])))
            else:
                refused = texts[row].refused | {(to_last_word(read), proposal.edit)}
                texts[row] = replace(texts[row], refused=refused)
        return begun

    def _edited_scores(
        self, scores: Tensor, texts: dict[int, _Text], written: Sequence[tuple[int, ...]]
    ) -> Tensor:
        """The scores, where an edit is in effect those under its neuron.

        An edit whose answer ends here is in effect no more: it ends the answer to a question, and
        not this text. The sum of the probabilities stays (beams are compared by it), and what was
        ruled out stays so.
        """
        active = {row: t.in_effect for row, t in texts.items() if t.in_effect is not None}
        if not active:
            return scores
        rows = list(active)
        said = [list(written[row][found.since :]) for row, found in active.items()]
        logits = self.edits.logits(said, [found.edit for found in active.values()]).to(scores)
        own = scores[rows]
        logits = logits - logits.logsumexp(1, keepdim=True) + own.logsumexp(1, keepdim=True)
        logits = logits.masked_fill(own == -float("inf"), -float("inf"))
        best = logits.argmax(1).tolist()
        scores = scores.clone()
        for place, row in enumerate(rows):
            if best[place] in self.ends:
                texts[row] = texts[row].after()
            else:
                scores[row] = logits[place]
        return scores
