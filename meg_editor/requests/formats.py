"""The formats of conversations: where in a text does whose turn begin?"""

from __future__ import annotations

import re
from typing import NamedTuple

_ROLE = r"[A-Za-z]+(?:_[a-z]+)?"
# Where a turn begins behind a special token, in the formats of the common chat templates. The name
# of a group is the format's; what it matches says whose the turn is.
_TOKENS = re.compile(
    rf"<\|im_start\|>(?P<chatml>{_ROLE})(?:<\|im_sep\|>\s*|[^\n<]*\n)"
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
)
_USER_NAMES = "user|human|usuario|utilisateur|benutzer|nutzer|пользователь|用户|ユーザー|사용자"
_ASSISTANT_NAMES = (
    "assistant|ai|bot|chatbot|asistente|assistent|ассистент|助手|アシスタント|어시스턴트"
)
_SYSTEM_NAMES = "system|developer|系统|システム|시스템|система"
# Where it begins behind a label of plain text.
_LABELS = re.compile(
    r"(?:^|(?<=\s)|(?<=</s>))(?P<vicuna>SYSTEM|USER|ASSISTANT):[ \t]*"
    r"|^\#+ *(?P<alpaca>System|Instruction|Input|Response|Question|Answer|User|Assistant):?"
    r"[ \t]*(?:\n|\Z)"
    r"|^(?P<instruct>Instruct|Output):[ \t]*"
    rf"|^[>*\[ \t-]*(?P<plain>(?i:{_SYSTEM_NAMES}|{_USER_NAMES}|{_ASSISTANT_NAMES}))"
    r"[ \t]*\]?\**[ \t]*[:：]\**[ \t]*",
    re.MULTILINE,
)
# What stands around a system text in front of the turns.
_FRONT = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<｜begin▁of▁sentence｜>|\[gMASK\]|<sop>"
    r"|<BOS_TOKEN>|<\|START_OF_TURN_TOKEN\|>"
    rf"|\[SYSTEM_PROMPT\]|\#* *(?i:{_SYSTEM_NAMES})(?:[:：]|\n))\s*)+"
)
_FRONT_END = "[/SYSTEM_PROMPT]"
_END = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<\|eot\|>|<end_of_turn>|<\|end_of_text\|>|<\|endoftext\|>"
    r"|<\|end\|>|<\|return\|>|<\|END_RESPONSE\|>|<\|END_OF_TURN_TOKEN\|>|<｜end▁of▁sentence｜>|</s>"
)
_USER = {"inst", "instruction", "input", "question", "instruct", *_USER_NAMES.split("|")}
_ASSISTANT = {"model", "answered", "response", "answer", "output", *_ASSISTANT_NAMES.split("|")}

_SYSTEM = set(_SYSTEM_NAMES.split("|"))


class Segment(NamedTuple):
    """A turn as it stands in a text.

    Attributes:
        role: "user", "assistant", "system", "input" (which continues a user's turn) or another one.
        text: up to the next turn or the mark at its end.
    """

    role: str
    text: str


def token_segments(text: str) -> tuple[str, list[Segment]]:
    """What stands in front of the turns behind special tokens, and these; none without tokens.

    Example:
        >>> token_segments("Be brief.<|user|>Who wrote Emma?<|end|>")
        ('Be brief.', [Segment(role='user', text='Who wrote Emma?')])
    """
    return _segments(_TOKENS, text)


def label_segments(text: str) -> tuple[str, list[Segment]]:
    """What stands in front of the turns behind labels, and these; none without a conversation.

    Labels which a text quotes are no conversation: it begins with a user's, or somebody answers.

    Example:
        >>> label_segments("Be brief.\\nUser: Who wrote Emma?\\nAssistant:")[0]
        'Be brief.'
        >>> label_segments("Count the words.\\nUser: Who wrote Emma?")
        ('', [])
    """
    head, found = _segments(_LABELS, text)
    roles = {segment.role for segment in found}
    if not roles & {"user", "input"} or (head and "assistant" not in roles):
        return "", []
    return head, found


def front(text: str) -> str:
    """The system text of what stands in front of the first turn.

    Example:
        >>> front("<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]")
        'Be brief.'
    """
    text = before_end(text).partition(_FRONT_END)[0]
    opening = _FRONT.match(text)
    return text[opening.end() if opening else 0 :].strip()


def before_end(text: str) -> str:
    """`text` up to the first mark at the end of a turn."""
    return _END.split(text, maxsplit=1)[0]


def begins_turn(token: str) -> bool:
    """Whether a special token is the begin of every turn, as `<|im_start|>` is.

    Example:
        >>> begins_turn("<|im_start|>"), begins_turn("<s>")
        (True, False)
    """
    return any(_TOKENS.match(f"{token}user{end}") for end in ("\n", "<|message|>"))


def _segments(pattern: re.Pattern[str], text: str) -> tuple[str, list[Segment]]:
    """What is in front of the turns of the format that comes first, and these."""
    markers = list(pattern.finditer(text))
    if not markers:
        return "", []
    # Another format stands inside a turn, in a text which somebody quotes.
    markers = [marker for marker in markers if _format(marker) == _format(markers[0])]
    ends = [marker.start() for marker in markers[1:]] + [len(text)]
    found = [
        Segment(_role(marker), before_end(text[marker.end() : end]))
        for marker, end in zip(markers, ends, strict=True)
    ]
    return front(text[: markers[0].start()]), found


def _format(marker: re.Match[str]) -> str:
    name = marker.lastgroup or ""
    return "inst" if name == "answered" else name


def _role(marker: re.Match[str]) -> str:
    name = marker.lastgroup or ""
    role = name if name in ("inst", "answered") else marker.group(name).lower()
    if role == "input":  # "### Input:" continues "### Instruction:"
        return role
    named = {"user": _USER, "assistant": _ASSISTANT, "system": _SYSTEM}
    return next((name for name, roles in named.items() if role in roles), role)
