"""Reader of prompts: what is asked now, and where the question stands in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meg_editor.requests.formats import before_end, label_segments, token_segments
from meg_editor.requests.spans import closing_spans, spans_of
from meg_editor.requests.turns import (
    ChatTokenizer,
    Frame,
    Turn,
    chat_frame,
    dialogue,
    flush,
    switches_of,
    turns_of,
    without_usual,
)

_FOLLOW_UP = 240  # characters of a turn that may go back to an earlier one


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as the router sees it.

    Attributes:
        text: what is asked now, a begun answer behind it.
        closing: spans that end the turn, which are asked rather than mentioned; at least one.
        spans: all spans that may be the question.
        dialogue: the last turns together, where the last one may go back to an earlier one ("Are
            you sure?"); None if it cannot.
        system: the system text of the conversation, without what the templates put there.
        whole: the prompt as it came, by which an edit of such a text is known.

    Example:
        >>> ReadPrompt.of("Who wrote Emma? Be brief.").spans[1:]
        ('Be brief.', 'Who wrote Emma?')
    """

    text: str
    closing: tuple[str, ...]
    spans: tuple[str, ...]
    dialogue: ReadPrompt | None = None
    system: str = ""
    whole: str = ""

    @classmethod
    def of(cls, text: str, with_answer: str | None = None) -> ReadPrompt:
        """A prompt that asks `text`; `with_answer` has a begun answer behind it."""
        closing = tuple(closing_spans(text)) or (text,)
        read = text if with_answer is None else with_answer
        return cls(read, closing, tuple(spans_of(text)) or closing, whole=text)

    def of_spans(self, spans: Sequence[str]) -> ReadPrompt:
        """The reading with these spans, which was decided on: this one or the dialogue."""
        return self.dialogue if self.dialogue and tuple(spans) == self.dialogue.spans else self


def in_template(template: str, query: str) -> str:
    """The prompt of a bare query; not by `str.format`, as both may have braces of their own.

    Example:
        >>> in_template("Question: {} Answer:", "What is {1}?")
        'Question: What is {1}? Answer:'
    """
    return template.replace("{}", query)


class PromptReader:
    """Puts queries into the prompt template, and reads what prompts ask.

    Args:
        tokenizer: of the LLM; its chat template, if any, gives the text around a user turn.
        prompt_template: the template around every query, with one `{}`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> reader = PromptReader(tokenizer, "Question: {} Answer:")
        >>> reader.wrap("Who wrote Emma?")
        'Question: Who wrote Emma? Answer:'
        >>> reader.candidates("Q: Who wrote Ulysses?\\nA: Joyce\\nQ: Who wrote Emma?\\nA:")
        ['Who wrote Emma?']
    """

    def __init__(self, tokenizer: ChatTokenizer, prompt_template: str = "{}") -> None:
        self.template = prompt_template
        before, _, after = flush(prompt_template).partition("{}")
        # Prompts are stripped, so their ends are compared without white space.
        self._before, self._after = before.lstrip(), after.rstrip()
        self._chat: Frame | None = chat_frame(tokenizer)
        self._switches = switches_of(tokenizer)
        bare = turns_of(flush(self.wrap("?").strip()), self._chat)[-1].system
        self._usual = "\n".join(filter(None, (self._chat.system if self._chat else "", bare)))

    def wrap(self, query: str) -> str:
        """The prompt of a bare query: the query in the prompt template."""
        return in_template(self.template, query)

    def wrapped(self, prompt: str) -> str:
        """The prompt as it is where the template is around it, else in the template."""
        known = self._query(flush(prompt.strip())) is not None
        return prompt if known else self.wrap(prompt)

    def read(self, prompt: str) -> ReadPrompt:
        """What `prompt` asks: the query in the template, or the last user turn of a chat."""
        prompt = flush(prompt.strip())
        turns = turns_of(prompt, self._chat)
        query, inner = self._query(prompt), self._query(turns[-1].text)
        if query is not None:
            turn = Turn(query)
        else:
            turn = turns[-1] if inner is None else replace(turns[-1], text=inner)
        system = without_usual(turns[-1].system, self._usual)
        turn, turns = self._unswitched(turn), [self._unswitched(each) for each in turns]
        read = replace(ReadPrompt.of(turn.text, turn.whole), system=system, whole=prompt)
        if len(turns) == 1 or len(turn.text) > _FOLLOW_UP:
            return read
        return replace(read, dialogue=ReadPrompt.of(dialogue(turns)))

    def candidates(self, prompt: str) -> list[str]:
        """What `prompt` asks, longest first: the turn, its last line, that line's last sentence."""
        return list(self.read(prompt).closing)

    def _unswitched(self, turn: Turn) -> Turn:
        """A turn without the switch of thinking which the chat template put behind it."""
        for switch in self._switches:
            text = turn.text.removesuffix(switch).rstrip()
            if text and text != turn.text:
                return replace(turn, text=text)
        return turn

    def _query(self, prompt: str) -> str | None:
        """The query in the prompt template; None where the prompt has no such ends."""
        text = prompt.rstrip()
        before, after = self._before, self._after
        if not (before or after) or not text.endswith(after):
            return None
        start = text.rfind(f"\n{before}") + 1 if before else 0  # 0 where it is no later line
        if not text.startswith(before, start):
            return None
        query = text[start + len(before) : len(text) - len(after)].strip()
        marked = token_segments(query)[1] or label_segments(query)[1] or before_end(query) != query
        return None if marked else query
