"""Facts as tokens: prompts after prefixes, and where each fact is looked up in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from meg_editor.baselines.core.settings import LocateHyperParams
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import Tokenizer
from meg_editor.lm.tokens import Example, encode_example
from meg_editor.requests.request import EditRequest, RequestError


@dataclass(frozen=True)
class FactTokens:
    """One fact in C contexts, the bare one first.

    Attributes:
        rows: C prompts with their targets.
        lookups: C positions, of the token at which the fact is looked up.
        essence: "{subject} is a", whose answer should not change; None without a subject.
        essence_lookup: its position there.
    """

    rows: tuple[Example, ...]
    lookups: tuple[int, ...]
    essence: Example | None
    essence_lookup: int

    @property
    def longest_tail(self) -> int:
        """Maximum over rows of the number of tokens from the lookup token on."""
        return max(len(row) - at for row, at in zip(self.rows, self.lookups, strict=True))


def fact_tokens(
    tokenizer: Tokenizer,
    requests: Sequence[EditRequest],
    prefixes: Sequence[str],
    hparams: LocateHyperParams,
) -> list[FactTokens]:
    """Tokenise facts.

    Raises:
        RequestError: a subject is needed and is missing, or does not stand in its prompt.
    """
    return [
        _fact(tokenizer, request, prefixes, hparams, f"request {index}")
        for index, request in enumerate(requests)
    ]


def _fact(
    tokenizer: Tokenizer,
    request: EditRequest,
    prefixes: Sequence[str],
    hparams: LocateHyperParams,
    where: str,
) -> FactTokens:
    before, subject, after = _parts(request, hparams.fact_token, where)
    opening, _, closing = hparams.prompt_template.partition("{}")
    rows, lookups = [], []
    for prefix in prefixes:
        start, end = prefix + opening + before, after + closing
        prompt = start + subject + end
        rows.append(encode_example(tokenizer, prompt, request.target_new, hparams.target_end))
        lookups.append(lookup(tokenizer, start, subject, end, hparams.fact_token))
    if not request.subject:
        return FactTokens(tuple(rows), tuple(lookups), None, 0)
    essence = Example(prompt_tokens(tokenizer, [f"{request.subject} is a"])[0], [])
    place = lookup(tokenizer, "", request.subject, " is a", hparams.fact_token)
    return FactTokens(tuple(rows), tuple(lookups), essence, place)


def lookup(tokenizer: Tokenizer, before: str, subject: str, after: str, fact_token: str) -> int:
    """The position of the token at which a fact is looked up in before + subject + after.

    As MEMIT counts: the tokens of the text up to there, tokenised alone.
    """

    def count(text: str) -> int:
        return len(prompt_tokens(tokenizer, [text])[0])

    if fact_token == "last":
        return count(before + subject + after) - 1
    if fact_token == "subject_first":
        return count(before.rstrip()) if before.strip() else count("")
    last = count(before + subject) - 1
    if fact_token == "subject_first_after_last" and after:
        return last + 1
    return last


def _parts(request: EditRequest, fact_token: str, where: str) -> tuple[str, str, str]:
    """The prompt before, at and after the subject."""
    if fact_token == "last":
        return request.prompt, "", ""
    if not request.subject:
        raise RequestError(
            f"{where}: field 'subject' is missing, which fact_token {fact_token!r} needs; give it, "
            "or use fact_token 'last'"
        )
    name = re.escape(request.subject)
    alone = re.search(rf"(?<!\w){name}(?!\w)", request.prompt)  # Ann, not that of Annabel
    place = alone or re.search(name, request.prompt)
    if place is None:
        raise RequestError(
            f"{where}: the subject {request.subject!r} does not stand in the prompt "
            f"{request.prompt!r}; spell it as there, or use fact_token 'last'"
        )
    return request.prompt[: place.start()], place[0], request.prompt[place.end() :]
