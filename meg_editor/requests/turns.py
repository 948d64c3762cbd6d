"""The user turns of a conversation, as chat templates and plain text write them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

_SENTINEL = "§question§"
_ROLE = r"[A-Za-z]+(?:_[a-z]+)?"
# Where a turn begins in the formats of the common chat templates. `role` or one of the named
# groups says whose it is.
_MARKERS = re.compile(
    rf"<\|im_start\|>(?P<chatml>{_ROLE})[^\n]*\n"
    rf"|<\|start_header_id\|>(?P<llama>{_ROLE})<\|end_header_id\|>\s*"
    rf"|<\|header_start\|>(?P<llama4>{_ROLE})<\|header_end\|>\s*"
    rf"|<start_of_turn>(?P<gemma>{_ROLE})\n"
    rf"|<\|start_of_role\|>(?P<granite>{_ROLE})<\|end_of_role\|>"
    rf"|<\|start\|>(?P<harmony>{_ROLE})[^<\n]*(?:<\|channel\|>\w+)?<\|message\|>"
    r"|<\|(?P<phi>user|assistant|system|observation|tool)\|>\s*"
    r"|<｜(?P<deepseek>User|Assistant)｜>"
    r"|<\|(?P<command>USER|CHATBOT|SYSTEM)_TOKEN\|>"
    r"|(?P<inst>\[INST\])\s*"
    r"|(?P<answered>\[/INST\])\s*"
    r"|^\#+ *(?P<alpaca>Instruction|Input|Response|Question|Answer|User|Assistant):?[ \t]*(?:\n|\Z)"
    r"|^(?P<plain>User|Human|Assistant|AI|Bot|Instruct|Output):[ \t]*",
    re.MULTILINE,
)
# Lines of a text with worked examples, the last of which is asked.
_EXAMPLES = re.compile(
    r"^(?:(?P<asked>Q|Question|Input)|A|Answer|Output)(?: ?\d+)?:[ \t]*", re.MULTILINE
)
_END = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<\|eot\|>|<end_of_turn>|<\|end_of_text\|>|<\|endoftext\|>"
    r"|<\|end\|>|<\|return\|>|<\|END_OF_TURN_TOKEN\|>|<｜end▁of▁sentence｜>|</s>"
)
_SYSTEM = re.compile(r"^\s*<<SYS>>.*?<</SYS>>\s*", re.DOTALL)
_LINE_END = re.compile(r"[^\S\n]*\n[^\S\n]*")
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)\s*", re.DOTALL)
_TOOL = re.compile(r"^\s*<tool_response>.*</tool_response>\s*$", re.DOTALL)
_TURNS, _REPLY = 3, 120  # turns of a dialogue; characters of a reply in it
_USER = {"user", "human", "inst", "instruction", "input", "question", "instruct"}
_ASSISTANT = {
    *("assistant", "model", "chatbot", "ai", "bot", "answered", "response", "answer", "output")
}


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

    Example:
        >>> Turn("Who wrote Emma?", "The author is").whole
        'Who wrote Emma?\\nThe author is'
    """

    text: str
    begun: str = ""

    @property
    def whole(self) -> str:
        """The question and the begun answer."""
        return f"{self.text}\n{self.begun}" if self.begun else self.text


class Frame(NamedTuple):
    """The text which a chat template puts around a user turn.

    Attributes:
        before: what precedes it.
        closed: what follows it.
        answered: what follows before the answer.
    """

    before: str
    closed: str
    answered: str

    def turns(self, text: str) -> list[Turn]:
        """The turns in this frame; none without one."""
        return [self._turn(rest) for rest in text.split(self.before)[1:]] if self.before else []

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
    before, after, closed = [], "", ""
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
        before.append(first.removeprefix(tokenizer.bos_token or ""))
    # Prompts are stripped, so their ends are compared without white space.
    texts = [_common_end(*before).lstrip(), closed.strip(), after.strip()]
    return Frame(*map(flush, texts))


def flush(text: str) -> str:
    """`text` without blanks around its line ends, where tokenizers of words put some.

    Example:
        >>> flush("User: Who wrote Emma? \\n Assistant:")
        'User: Who wrote Emma?\\nAssistant:'
    """
    return _LINE_END.sub("\n", text)


def turns_of(text: str, frame: Frame | None = None) -> list[Turn]:
    """The user turns of a `flush` prompt, in the frame or in one of the common formats.

    There is at least one. In the last one, answered questions before the last question are
    examples, and left out.

    Example:
        >>> turns_of("Q: Who wrote Ulysses?\\nA: Joyce\\nQ: Who wrote Emma?\\nA:")
        [Turn(text='Who wrote Emma?', begun='')]
        >>> turns_of("User: Who wrote Emma?\\nAssistant: Joyce.\\nUser: Are you sure?")
        [Turn(text='Who wrote Emma?', begun='Joyce.'), Turn(text='Are you sure?', begun='')]
    """
    turns: list[Turn] = []
    for role, content in _segments(text):
        if role in _USER and not _TOOL.match(content):
            asked = _SYSTEM.sub("", content).strip()
            if role == "input" and turns:  # "### Input:" continues "### Instruction:"
                asked = f"{turns.pop().text}\n{asked}"
            turns.append(Turn(asked))
        elif role in _ASSISTANT and turns:
            turns[-1] = Turn(turns[-1].text, _begun(content))
    if not turns:
        turns = (frame.turns(text) if frame else []) or [Turn(text.strip())]
    return [*turns[:-1], _last_example(turns[-1])]


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


def _last_example(turn: Turn) -> Turn:
    """The last question of a turn that has answered ones before it, or else the turn."""
    lines = list(_EXAMPLES.finditer(turn.text))
    asked = [row for row, line in enumerate(lines) if line["asked"]]
    if len(asked) < 2 or asked[-1] - asked[-2] != 2 or len(lines) > asked[-1] + 2:
        return turn
    last = lines[asked[-1]]
    if lines[asked[-1] + 1 :]:
        end, begin = lines[-1].span()
        return Turn(turn.text[last.end() : end].strip(), turn.begun or turn.text[begin:].strip())
    return Turn(turn.text[last.end() :].strip(), turn.begun)


def _segments(text: str) -> Iterator[tuple[str, str]]:
    """(role, content) of each turn of a text; none where there are no markers."""
    markers = list(_MARKERS.finditer(text))
    ends = [marker.start() for marker in markers[1:]] + [len(text)]
    for marker, end in zip(markers, ends, strict=False):
        kind = marker.lastgroup or ""
        role = kind if kind in ("inst", "answered") else marker.group(kind).lower()
        yield role, _END.split(text[marker.end() : end], maxsplit=1)[0]


def _begun(text: str) -> str:
    return _THINKING.sub("", _END.split(text, maxsplit=1)[0]).strip()


def _common_end(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length :]
