"""The user turns of a conversation, as chat templates and plain text write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from meg_editor.requests.formats import (
    Segment,
    before_end,
    front,
    label_segments,
    token_segments,
)

_SENTINEL, _SYSTEM_SENTINEL = "§question§", "§system§"
# Lines of a text with worked examples, the last of which is asked.
_EXAMPLES = re.compile(
    r"^(?:(?P<asked>Q|Question|Input)|A|Answer|Output)(?: ?\d+)?:[ \t]*", re.MULTILINE
)
_INNER_SYSTEM = re.compile(r"^\s*<<SYS>>(.*?)<</SYS>>\s*", re.DOTALL)
# Thoughts in front of an answer, also those whose begin or end is missing, and its own begin.
_THINKING = re.compile(
    "|".join(
        rf"{begin}.*?(?:{end}|\Z)\s*|^\s*{end}\s*"
        for begin, end in (
            ("<think>", "</think>"),
            (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
        )
    )
    + r"|<\|START_RESPONSE\|>\s*",
    re.DOTALL,
)
_SWITCH = re.compile(r"(?<!<)/(?:no_?)?think\b")  # of thinking, in a template; no "</think>"
_TOOL = re.compile(r"^\s*<tool_response>.*</tool_response>\s*$", re.DOTALL)
_TURNS, _REPLY = 3, 120  # turns of a dialogue; characters of a reply in it
# Bytes of a system text and the turn under it, and of the former alone, that are read: a letter
# which is no Latin one is a token or two.
_UNDER, _SYSTEM = 640, 240
_DATE = re.compile(r"\d+|\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*")


class ChatTokenizer(Protocol):
    """A tokenizer which may have a chat template (`meg_editor.lm.protocols.Tokenizer` is one)."""

    bos_token: str | None

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class Turn:
    """What a user asks.

    Attributes:
        text: a user turn, or a whole text that is no conversation.
        begun: the answer; of the last turn, what is there already.
        task: what stands in front of examples or of quoted turns, the last of which this is.
        system: of the last turn, the system text of the conversation.

    Example:
        >>> Turn("Who wrote Emma?", "The author is").whole
        'Who wrote Emma?\\nThe author is'
    """

    text: str
    begun: str = ""
    task: str = ""
    system: str = ""

    @property
    def whole(self) -> str:
        """The task, the question and the begun answer."""
        return "\n".join(filter(None, (self.task, self.text, self.begun)))


class Frame(NamedTuple):
    """The text which a chat template puts around a user turn.

    Attributes:
        before: what precedes it.
        closed: what follows it.
        answered: what follows before the answer.
        system: the system text of a conversation that gives none.
        around_system: what precedes a system text which is given, and follows it.
        bos: the token in front of a conversation.
    """

    before: str
    closed: str
    answered: str
    system: str = ""
    around_system: tuple[str, str] = ("", "")
    bos: str = ""

    def head(self, text: str) -> str:
        """The system text in front of the first turn; of several the first one."""
        head = text.partition(self.before)[0].removeprefix(self.bos).strip()
        before, after = self.around_system
        if not (before or after) or not head.startswith(before):
            return front(head)
        head = head[len(before) :]
        return (head.partition(after)[0] if after else head).strip()

    def turns(self, text: str) -> list[Turn]:
        """The turns in this frame; none without one."""
        return [self._turn(rest) for rest in text.split(self.before)[1:]]

    def _turn(self, rest: str) -> Turn:
        for ending in (self.answered, self.closed):
            if ending and ending in f"{rest} ":
                question, _, begun = rest.partition(ending)
                return Turn(question.strip(), _begun(begun))
            if ending and rest.endswith(ending.rstrip()):
                return Turn(rest[: len(rest) - len(ending.rstrip())].strip())
        return Turn(rest.strip())


def chat_frame(tokenizer: ChatTokenizer) -> Frame | None:
    """The frame of the tokenizer's chat template; None without a template.

    BOS and a default system prompt come before the first turn only, so the frame is what a first
    and a later turn have in common.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return _common_frame(tokenizer)
    except (TemplateError, ValueError):  # such as one that asks for a system text
        return None


def _common_frame(tokenizer: ChatTokenizer) -> Frame | None:
    before, after, closed, whole, bos = [], "", "", [], tokenizer.bos_token or ""
    for roles in (["user"], ["user", "assistant", "user"]):
        turns = [{"role": role, "content": _SENTINEL} for role in roles]
        texts = [
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
            for prompt in (True, False)
        ]
        if _SENTINEL not in texts[0]:
            return None
        first, _, after = texts[0].rpartition(_SENTINEL)
        closed = texts[1].rpartition(_SENTINEL)[2]
        before.append(first.removeprefix(bos))
        whole.append(flush(texts[0].strip()))
    # Prompts are stripped, so their ends are compared without white space.
    common = flush(_common_end(*before).lstrip())
    if not common:
        return None
    around = _around_system(tokenizer, common)
    frame = Frame(common, flush(closed.strip()), flush(after.strip()), "", around, bos)
    return frame._replace(system=turns_of(whole[0], frame)[-1].system)


def _around_system(tokenizer: ChatTokenizer, turn: str) -> tuple[str, str]:
    """What a template puts around a system text in front of the first turn, which begins so."""
    turns = [{"role": "system", "content": _SYSTEM_SENTINEL}, {"role": "user", "content": "?"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError):  # it takes no system text
        return "", ""
    head = flush(text.removeprefix(tokenizer.bos_token or "").strip()).partition(turn)[0]
    before, given, after = head.partition(_SYSTEM_SENTINEL)
    return (before.lstrip(), after.rstrip()) if given else ("", "")


def switches_of(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """Switches of thinking which the tokenizer's template puts behind a user turn: "/nothink".

    Example:
        >>> from types import SimpleNamespace
        >>> switches_of(SimpleNamespace(chat_template="{{ m.content }}/nothink<|assistant|>"))
        ('/nothink',)
    """
    template = getattr(tokenizer, "chat_template", None)
    return tuple(dict.fromkeys(_SWITCH.findall(template))) if isinstance(template, str) else ()


def flush(text: str) -> str:
    """`text` without blanks around its line ends, where tokenizers of words put some.

    Example:
        >>> flush("User: Who wrote Emma? \\n Assistant:")
        'User: Who wrote Emma?\\nAssistant:'
    """
    first, *lines = text.split("\n")
    if not lines:
        return text
    *lines, last = lines
    return "\n".join([first.rstrip(), *(line.strip() for line in lines), last.lstrip()])


def turns_of(text: str, frame: Frame | None = None) -> list[Turn]:
    """The user turns of a `flush` prompt, in the frame or in one of the common formats.

    There is at least one. In the last one, answered questions before the last question are
    examples, and left out. What stands in front of examples, or of turns which are all answered,
    may be a task which is given with them: it is kept apart. So is the system text, or what
    stands in front of a conversation.

    Example:
        >>> turns_of("Q: Who wrote Ulysses?\\nA: Joyce\\nQ: Who wrote Emma?\\nA:")
        [Turn(text='Who wrote Emma?', begun='', task='', system='')]
        >>> turns_of("User: Who wrote Emma?\\nAssistant: Joyce.\\nUser: Are you sure?")[1].text
        'Are you sure?'
    """
    head, segments = token_segments(text)
    turns = _user_turns(segments)
    if not turns and frame:
        head, turns = frame.head(text), frame.turns(text)
    if not turns:
        head, segments = label_segments(text)
        turns = _user_turns(segments) or [Turn(text.strip())]
        if head and turns[-1].begun and segments[-1].role == "assistant":
            turns[-1], head = replace(turns[-1], task=head), ""
    systems = [head, *(content.strip() for role, content in segments if role == "system")]
    systems += [turn.system for turn in turns]
    last = replace(_last_example(turns[-1]), system="\n".join(filter(None, systems)))
    return [*turns[:-1], last]


def _user_turns(segments: Iterable[Segment]) -> list[Turn]:
    turns: list[Turn] = []
    for role, content in segments:
        if role in ("user", "input") and not _TOOL.match(content):
            inner = _INNER_SYSTEM.match(content)
            asked = content[inner.end() if inner else 0 :].strip()
            if role == "input" and turns:  # "### Input:" continues "### Instruction:"
                asked = f"{turns.pop().text}\n{asked}"
            turns.append(Turn(asked, system=inner[1].strip() if inner else ""))
        elif role == "assistant" and turns:
            turns[-1] = replace(turns[-1], begun=_begun(content))
    return turns


def dialogue(turns: Sequence[Turn]) -> str:
    """The last turns of a conversation as a text, replies shortened.

    Example:
        >>> print(dialogue([Turn("Who wrote Emma?", "Joyce."), Turn("Are you sure?")]))
        User: Who wrote Emma?
        Assistant: Joyce.
        User: Are you sure?
    """
    lines = []
    for turn in turns[-_TURNS:]:
        lines.append(f"User: {' '.join(turn.text.split())}")
        if turn.begun:
            reply = " ".join(turn.begun.split())
            short = reply if len(reply) <= _REPLY else f"{reply[:_REPLY]} …"
            lines.append(f"Assistant: {short}")
    return "\n".join(lines)


def without_usual(system: str, usual: str) -> str:
    """The lines of a system text which `usual` does not have, in which dates may differ.

    Example:
        >>> without_usual("Today: 2 May 2026\\nBe brief.", "Today: 28 Nov 2025")
        'Be brief.'
    """
    known = {_DATE.sub("", line).strip() for line in usual.splitlines()}
    lines = [line for line in system.splitlines() if _DATE.sub("", line).strip() not in known]
    return "\n".join(lines).strip()


def under(system: str, text: str) -> str:
    """What is asked, behind a system text, of a long one its begin and its end.

    Example:
        >>> under("You translate to German.", "Who wrote Emma?")
        'You translate to German.\\n\\nWho wrote Emma?'
    """
    return f"{ends_of(system, max(_SYSTEM, _UNDER - len(text.encode())))}\n\n{text}"


def ends_of(text: str, limit: int = _UNDER) -> str:
    """The begin and the end of a text of more bytes than `limit`, else the text.

    Example:
        >>> ends_of("You translate to German.", 12)
        'You tr … erman.'
    """
    if len(text.encode()) <= limit:
        return text
    half = limit * len(text) // len(text.encode()) // 2
    return f"{text[:half].rstrip()} … {text[-half:].lstrip()}"


def _last_example(turn: Turn) -> Turn:
    """The last question of a turn that has answered ones before it, or else the turn."""
    lines = list(_EXAMPLES.finditer(turn.text))
    asked = [row for row, line in enumerate(lines) if line["asked"]]
    if len(asked) < 2 or asked[-1] - asked[-2] != 2 or len(lines) > asked[-1] + 2:
        return turn
    last, task = lines[asked[-1]], turn.text[: lines[0].start()].strip()
    if lines[asked[-1] + 1 :]:
        end, begin = lines[-1].span()
        begun = turn.begun or turn.text[begin:].strip()
        return Turn(turn.text[last.end() : end].strip(), begun, task)
    return Turn(turn.text[last.end() :].strip(), turn.begun, task)


def _begun(text: str) -> str:
    return _THINKING.sub("", before_end(text)).strip()


def _common_end(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length :]
