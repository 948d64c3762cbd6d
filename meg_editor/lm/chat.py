"""Turns of a conversation as a prompt, by the chat template of an LLM."""

from __future__ import annotations

from typing import Any, Literal

from meg_editor.lm.protocols import Tokenizer

ChatEnd = Literal["gen", "nogen", "continue"]
_ENDS: dict[ChatEnd, dict[str, Any]] = {
    "gen": {"add_generation_prompt": True},
    "nogen": {"add_generation_prompt": False},
    "continue": {"continue_final_message": True},
}


def in_chat(tokenizer: Tokenizer, *turns: tuple[str, str], end: ChatEnd = "gen") -> str:
    """Turns (role, text) as a prompt.

    Without its first token where the tokenizer adds that to every text itself.

    Args:
        end: "gen": where the answer begins; "nogen": behind the last turn, without the generation
            prompt; "continue": inside the last turn, an answer that has begun.

    Raises:
        ValueError: the tokenizer has no chat template, or it changes a begun answer.
        jinja2.TemplateError: the template has no place for such turns.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> tokenizer.chat_template = "{{ messages[0].role }}: {{ messages[0].content }}"
        >>> in_chat(tokenizer, ("user", "Hello!"))
        'user: Hello!'
    """
    conversation = [{"role": role, "content": text} for role, text in turns]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, **_ENDS[end])
    added = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(text).removeprefix(tokenizer.bos_token or "" if added else "")


def as_dialogue(*turns: tuple[str, str], end: ChatEnd = "gen") -> str:
    """Turns (role, text) as plain text, for a tokenizer without a chat template.

    Example:
        >>> as_dialogue(("user", "Hello!"))
        'User: Hello!\\nAssistant:'
        >>> as_dialogue(("user", "Hello!"), ("assistant", "Good"), end="continue")
        'User: Hello!\\nAssistant: Good'
    """
    lines = [f"{role.capitalize()}: {text}" for role, text in turns]
    return "\n".join([*lines, "Assistant:"] if end == "gen" else lines)
