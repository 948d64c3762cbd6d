"""Turns of a conversation as a prompt, by the chat template of an LLM."""

from __future__ import annotations

from meg_editor.lm.protocols import Tokenizer


def in_chat(tokenizer: Tokenizer, *turns: tuple[str, str]) -> str:
    """Turns (role, text) as a prompt that ends where the answer begins.

    Without the first token, which the tokenizer adds to every text itself.

    Raises:
        ValueError: the tokenizer has no chat template.
        jinja2.TemplateError: the template has no place for such turns.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> tokenizer.chat_template = "{{ messages[0].role }}: {{ messages[0].content }}"
        >>> in_chat(tokenizer, ("user", "Hello!"))
        'user: Hello!'
    """
    conversation = [{"role": role, "content": text} for role, text in turns]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return str(text).removeprefix(tokenizer.bos_token or "")
