"""Routing while the answer is written: a text that gets to an edited fact goes on with the edit.

A prompt is routed before its first token. "Tell me about France" asks for no fact, and its answer
may state one: "… Its capital is". An edit is proposed where its subject is named in the question or
in the text so far, and the scores of the next token say that an answer of its kind comes. The
verifier then reads the sentence that names the subject, and the one that is being written. If it
agrees, the LLM goes on with the edit's neuron until the sentence ends.
"""

from __future__ import annotations

import re
import unicodedata
from collections import ChainMap, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor
from transformers import LogitsProcessor

from meg_editor.model.named_subjects import last_word
from meg_editor.requests.request import EditRequest

_SENTENCE_END = re.compile(r"[.!?](?=[\s\"'”’)\]]|$)|[。！？؟।]|\n")
_WINDOW = 8  # last tokens of a text in which names are looked for
_READ = 4000  # characters at the end of a text in which subjects are looked for
_LONGEST = 200  # characters of a sentence for the verifier
_BEYOND = 8  # tokens an edit stays in effect beyond the length of its target
_SLOT = 8  # characters behind a subject by which its place is known again
_OTHER_NAME = (
    r"(?:The )?(?!(?:The|This|That|These|Those|There|Here|It|Its|He|His|She|Her|They|Their)\b)"
    r"[^\W\d_a-z]\w[^\n.!?]{0,40}?"
)


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


class DecodingRouter(LogitsProcessor):
    """Logits of the next token under the edit that the text so far is about to state.

    It keeps what is known of the last step's texts, as beams may be reordered, and of a single row
    that of earlier calls, as assisted decoding drops candidates. The KV cache is left alone.

    Args:
        prompts: (B, T) token ids.
        questions: what each prompt asks; a line break at its end where the answer is a turn.
        edited: rows of prompts which ask for an edit themselves: these are left alone.
        subjects: finds the edits that a text names.
        propose: (scores (R, V) of the next token, edits named by each of R texts) -> for each the
            edits it may be about to state.
        confirm: (texts, a proposal for each) -> whether each text is about to state the edit.
        logits: (tokens written since each of R edits came into effect, edits) -> (R, V) of the
            next token under the edit's neuron.
        decode: token ids -> text.
        edits: the N edits.
        target_length: edit -> tokens of its target.
        ends: tokens which end an answer.

    Example:
        >>> import torch
        >>> class France:
        ...     def words(self, text): return frozenset([0] if "France" in text else [])
        ...     def named(self, words): return tuple(words)
        ...     def name(self, edit): return "France"
        >>> router = DecodingRouter(
        ...     torch.tensor([[1]]), ["Tell me about France."], [], France(),
        ...     lambda scores, named: [[Proposal(0, 1.0)]], lambda texts, proposals: [True],
        ...     lambda rows, edits: torch.tensor([[0.0, 9.0]]), lambda ids: "Its capital is",
        ...     [EditRequest("The capital of France is", "Lima", "France")], lambda edit: 1)
        >>> router(torch.tensor([[1, 1]]), torch.zeros(1, 2)).argmax().item()
        1
    """

    def __init__(
        self,
        prompts: Tensor,
        questions: Sequence[str],
        edited: Sequence[int],
        subjects: SubjectWords,
        propose: Callable[[Tensor, list[tuple[int, ...]]], list[list[Proposal]]],
        confirm: Callable[[list[str], list[Proposal]], list[bool]],
        logits: Callable[[list[list[int]], list[int]], Tensor],
        decode: Callable[[list[int]], str],
        edits: Sequence[EditRequest],
        target_length: Callable[[int], int],
        ends: Collection[int] = (),
    ) -> None:
        self.length, self.count = prompts.shape[1], len(prompts)
        self.questions, self.edited = questions, frozenset(edited)
        self.subjects, self.propose, self.confirm = subjects, propose, confirm
        self.logits, self.decode = logits, decode
        self.edits, self.target_length, self.ends = edits, target_length, frozenset(ends)
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
            words = self._words[prompt] | self.subjects.words(self.decode(list(tokens)))
            return _Text(words, self.subjects.named(words) if words else (), refused=refused)
        end = self.decode(list(tokens[-_WINDOW:]))
        words = before.words | self.subjects.words(end)
        if words != before.words:
            before = replace(before, words=words, named=self.subjects.named(words))
        if before.in_effect is not None and not self._goes_on(before.in_effect, tokens):
            before = before.after()
        if before.stated and _SENTENCE_END.match(end[-1:]):
            before = replace(before, stated=frozenset())
        return replace(before, refused=before.refused | refused)

    def _goes_on(self, found: _InEffect, tokens: tuple[int, ...]) -> bool:
        """Whether an edit stays in effect: it is not said yet."""
        said = self.decode(list(tokens[found.since :]))
        target = self.edits[found.edit].target_new
        long = len(tokens) - found.since > self.target_length(found.edit) + _BEYOND
        return not (long or target in said or _SENTENCE_END.search(said))

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
        proposals = self.propose(scores[rows], [texts[row].named for row in rows])
        for row, found in zip(rows, proposals, strict=True):
            if not found:
                continue
            text = _joined(self.questions[row // each], self.decode(list(written[row])))
            for proposal in sorted(found, key=lambda proposal: -proposal.score):
                read = about(text, self.subjects.name(proposal.edit))
                if read is None or proposal.edit in texts[row].stated:
                    continue
                if (_to_last_word(read), proposal.edit) not in texts[row].refused:
                    pairs.append((row, proposal, read))
        if not pairs:
            return {}
        sure = self.confirm([read for _, _, read in pairs], [found for _, found, _ in pairs])
        begun: dict[int, _InEffect] = {}
        for (row, proposal, read), yes in zip(pairs, sure, strict=True):
            if yes:
                begun.setdefault(row, _InEffect(proposal.edit, len(written[row])))
            else:
                refused = texts[row].refused | {(_to_last_word(read), proposal.edit)}
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
        logits = self.logits(said, [found.edit for found in active.values()]).to(scores)
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


def about(text: str, subject: str) -> str | None:
    """What a verifier reads: the sentence that names the subject, and the one being written.

    None where no sentence has begun, where the subject is not named, and where the text has left
    it: the words around the subject have come again around another name, as in notes on several.

    Example:
        >>> about("Tell me about France. It is big. Its capital is", "France")
        'Tell me about France.\\nIts capital is'
        >>> about("On Peru: It is big.\\nOn France: It is big. Its capital is", "Peru") is None
        True
    """
    text = _bare(text[-_READ:])
    starts = [0, *(end.end() for end in _SENTENCE_END.finditer(text))]
    last = text[starts[-1] :].strip()
    mentions = _mentions(text, _bare(subject))
    if not last or not mentions or _left(text, starts, mentions):
        return None
    place = mentions[-1].start()
    start = max(start for start in starts if start <= place)
    if start == starts[-1]:
        return last[-2 * _LONGEST :]
    end = min(s for s in starts if s > place)
    name = text[max(start, place - _LONGEST // 2) : min(end, place + _LONGEST // 2)].strip()
    return f"{name}\n{last[-_LONGEST:]}"


def _mentions(text: str, subject: str) -> list[re.Match[str]]:
    """Where the subject is named in full, or else by its last word."""
    for name in (subject, last_word(subject)):
        found = list(re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))
        if found:
            return found
    return []


def _left(text: str, starts: Sequence[int], mentions: Sequence[re.Match[str]]) -> bool:
    """Whether the words around a mention come again, after the last one, around another name."""
    rest, subject = text[mentions[-1].end() :], mentions[-1].group()
    for mention in mentions:
        start = max(start for start in starts if start <= mention.start())
        before = text[start : mention.start()].lstrip()
        slot = rf"(?:\n|[.!?]\s)\s*{re.escape(before)}"
        if len(before.split()) < 2 and not re.search(r"\w\W*[:#*>-]", before):
            # "On", "##" or nothing is not telling enough: with what follows it is.
            behind = text[mention.end() :]
            if len(behind[:_SLOT].strip()) < 2:
                continue
            slot += rf"(?P<other>{_OTHER_NAME}){_behind(behind, subject)}"
        if re.search(slot, rest):
            return True
    return False


def _behind(text: str, subject: str) -> str:
    """Pattern of what follows a name; where that is the name again, it is the other one again."""
    blank = len(text) - len(text.lstrip())
    if text.startswith(subject, blank):
        return rf"{re.escape(text[:blank])}(?P=other)"
    return re.escape(text[:_SLOT])


def _joined(question: str, text: str) -> str:
    return question + (text if question[-1:].isspace() or text[:1].isspace() else f" {text}")


def _to_last_word(text: str) -> str:
    """`text` without the word it ends with, which may go on."""
    return re.sub(r"\w+$", "", text)


def _bare(text: str) -> str:
    """`text` without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
