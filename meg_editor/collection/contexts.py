"""The contexts a fact is fitted in: its neuron shall speak wherever the fact is asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.chat import in_chat
from meg_editor.lm.context import that_fit
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import Example, encode_example
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import EditRequest
from meg_editor.requests.spans import canonical

_MARK = "§question§"
_SYSTEM = ("You are a helpful assistant.", "Answer the user's questions.")
_TURNS = (("Hello!", "Hello! How can I help?"), ("Can you help me?", "Yes. What is it about?"))
_BEHIND = ("Reply briefly.", "Give only the answer.", "Keep it short, please.")
_OTHERS = (
    "The first railway in the north was built",
    "A recipe for six people takes",
    "He closed the door and walked",
    "In the second half of the season",
    "Most of the samples which were taken",
    "The meeting was put off until",
    "Her latest novel tells the story of",
    "Which of these two is the cheaper one",
)
_QUESTION_MARKS, _SENTENCE_ENDS = "?？؟", " :.!…。！："
_FRAMES = ("Question: {}\nAnswer:", "Q: {}\nA:", "{}\nAnswer:")


def fact_contexts(
    tokenizer: Any,
    prompts: Sequence[str],
    count: int | None = None,
    template: str = "{}",
    seed: int = 0,
) -> list[list[str]]:
    """`count` whole prompts for each of N bare ones, the bare one in the template first.

    The next ones in turn: after a random beginning of others, in the chat template, in it after an
    earlier turn and with an instruction behind the question, with an instruction alone, typed
    carelessly, in a question frame, and so on with other texts. Without a chat template the
    instruction stands after a beginning too, in a frame and in none.

    Args:
        tokenizer: of the LLM.
        count: None: six with a chat template, five without one, where the sixth gains nothing.
        template: the template around every query, with one `{}`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> fact_contexts(tokenizer, ["The capital of France is"], 2)
        [['The capital of France is', 'The meeting was put off. The capital of France is']]
    """
    rng = random.Random(seed)
    wrap = partial(in_template, template)
    # Few prompts are no choice of texts to stand before one of them.
    others = [*prompts, *(_OTHERS if len(prompts) < len(_OTHERS) else ())]
    beginnings = [" ".join(prompt.split()[:5]).rstrip("?.,") for prompt in others]

    def after_others(prompt: str) -> str:
        return f"{rng.choice(beginnings)}. {wrap(prompt)}"

    def framed(prompt: str) -> str:
        return rng.choice(_FRAMES).replace("{}", prompt)

    def instructed(prompt: str) -> str:
        return f"{prompt} {rng.choice(_BEHIND)}"

    def careless(prompt: str) -> str:
        # A conversation is not typed, and of a question mark alone nothing would be left.
        marked = "\n" in prompt or any(
            mark and mark in prompt for mark in tokenizer.all_special_tokens
        )
        return prompt if marked else retyped(prompt) or prompt

    chat = _chat(tokenizer, rng)
    middle: list[Callable[[str], str]]
    if chat is None:
        middle = [
            lambda prompt: framed(after_others(instructed(prompt))),
            lambda prompt: after_others(instructed(prompt)),
        ]
    else:
        plain, earlier = chat
        middle = [plain, lambda prompt: earlier(instructed(prompt))]
    kinds = [after_others, *middle, instructed, careless, framed]
    if count is None:
        count = 5 if chat is None else 6
    return [
        [wrap(prompt), *(kinds[n % len(kinds)](prompt) for n in range(count - 1))]
        for prompt in prompts
    ]


def contexts_that_fit(
    model: CausalLM, tokenizer: Any, requests: Sequence[EditRequest], hparams: MeGHyperParams
) -> list[list[tuple[str, Example]]]:
    """The contexts of each of N facts that are not too long for the model, with its target there.

    Args:
        hparams: `collection_contexts`, `prompt_template` and `seed`.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> facts = [EditRequest("The capital of France is", "Lima")]
        >>> [prompt for prompt, _ in contexts_that_fit(model, tokenizer, facts, hparams)[0]][:1]
        ['The capital of France is']
    """
    contexts = fact_contexts(
        tokenizer,
        [request.prompt for request in requests],
        hparams.collection_contexts,
        hparams.prompt_template,
        hparams.seed,
    )
    examples = []
    for request, prompts in zip(requests, contexts, strict=True):
        rows = [(text, encode_example(tokenizer, text, request.target_new)) for text in prompts]
        fitting = that_fit(model, [len(example) for _, example in rows])
        examples.append([rows[row] for row in fitting])
    return examples


def retyped(prompt: str) -> str:
    """A prompt as it is typed carelessly: in lower case; a question without its mark, a sentence
    with one.

    A neuron fitted in it speaks behind questions where the edit is a sentence, and the other way
    round.

    Example:
        >>> [retyped(prompt) for prompt in ("Who wrote Emma?", "The capital of Peru is")]
        ['who wrote emma', 'the capital of peru is?']
    """
    text = canonical(prompt, "NFC").lower().replace("i\u0307", "i")  # İ
    bare = text.rstrip(f"{_QUESTION_MARKS} ")
    if any(mark in bare for mark in _QUESTION_MARKS):  # an instruction behind the question
        return text
    return bare if bare != text else f"{text.rstrip(_SENTENCE_ENDS)}?"


def _chat(
    tokenizer: Any, rng: random.Random
) -> tuple[Callable[[str], str], Callable[[str], str]] | None:
    """Ways to put a prompt into the chat template: alone, and with text before it; None without."""
    if not getattr(tokenizer, "chat_template", None):
        return None

    def turns(*messages: tuple[str, str]) -> str | None:
        try:
            text = in_chat(tokenizer, *messages)
        except Exception:  # a template refuses what it has no place for, such as a system text
            return None
        # Without SmolLM2's first token, which in_chat leaves, neurons answer instructions that
        # stand in no template too.
        text = text.removeprefix(tokenizer.bos_token or "")
        return text if text.count(_MARK) == 1 else None

    question = ("user", _MARK)
    alone = turns(question)
    if alone is None:
        return None
    before = [[("user", asked), ("assistant", answered)] for asked, answered in _TURNS] + [
        [("system", text)] for text in _SYSTEM
    ]
    fuller = [text for messages in before if (text := turns(*messages, question))] or [alone]

    def plain(prompt: str) -> str:
        return alone.replace(_MARK, prompt)

    def earlier(prompt: str) -> str:
        return rng.choice(fuller).replace(_MARK, prompt)

    return plain, earlier
