"""First tokens of the answers to edited prompts, by which an answer is seen to begin."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import last_hidden_states
from meg_editor.lm.in_effect import nothing_in_effect
from meg_editor.lm.neuron_hook import eager
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import by_length, encode_example, in_order, logits_of, right_padded
from meg_editor.model.decoding.subjects import name_in
from meg_editor.requests.request import EditRequest

_FIRST_TOKENS = 16  # of the unedited LLM's answers to an edited prompt
_COMMON = 32  # tokens of any text, which tell nothing
_USUAL = 32  # phrasings which say how likely a token is in general
_ROWS = 64  # prompts read at once


@dataclass(frozen=True)
class FirstTokens:
    """First tokens of the answers to an edited prompt.

    Attributes:
        former: (S,) of the unedited LLM's likely answers, those of any text left out.
        target: all of the new answer.
        subject: of the subject's name, in the midst of a text.
    """

    former: Tensor
    target: tuple[int, ...]
    subject: int


class FirstTokenCache:
    """First tokens of the answers to edited prompts, which are read when they are first asked for.

    Args:
        base: the unedited LLM.
    """

    def __init__(self, base: CausalLM, tokenizer: Tokenizer) -> None:
        self._base, self._tokenizer = base, tokenizer
        # Entries go with their edit.
        self._read: weakref.WeakKeyDictionary[EditRequest, FirstTokens]
        self._read = weakref.WeakKeyDictionary()

    def get(self, edits: Sequence[EditRequest]) -> list[FirstTokens]:
        """First tokens of each edit; prompts that are new here are read together."""
        found = {edit: self._read.get(edit) for edit in edits}
        new = [edit for edit, tokens in found.items() if tokens is None]
        if new:
            ends = [hidden[-1] for hidden in self._hidden([_begun(edit.prompt) for edit in new])]
            likely = self._log_probabilities(torch.stack(ends))
            # What the LLM expects here more than elsewhere.
            telling = likely.exp() * (likely - self.usual.to(likely))
            telling[:, self.common.to(likely.device)] = -torch.inf
            former = telling.topk(min(_FIRST_TOKENS, telling.shape[1] // 4), dim=1).indices
            for edit, tokens in zip(new, former, strict=True):
                read = FirstTokens(tokens, self._target(edit), self._name_token(edit))
                found[edit] = self._read[edit] = read
        return [tokens for edit in edits if (tokens := found[edit]) is not None]

    @cached_property
    def usual(self) -> Tensor:
        """Mean log-probability (V,) of each token in texts of no subject."""
        texts = [text for text in Phrasebook.load().texts if "{}" in text]
        texts = [text.replace("{}", "it") for text in texts[:: max(1, len(texts) // _USUAL)]]
        hidden = self._hidden(texts)
        total = torch.stack([self._log_probabilities(states).sum(0) for states in hidden]).sum(0)
        usual: Tensor = total / sum(map(len, hidden))
        return usual

    @cached_property
    def common(self) -> Tensor:
        """The most likely tokens of any text."""
        return self.usual.topk(min(_COMMON, len(self.usual) // 4)).indices

    def _hidden(self, texts: Sequence[str]) -> list[Tensor]:
        """Last hidden states (T, D) of each text, of the unedited LLM."""
        base = self._base
        ids = prompt_tokens(self._tokenizer, texts)

        def read(chunk: list[int]) -> list[Tensor]:
            tokens = right_padded([ids[index] for index in chunk]).to(input_device(base))
            hidden = last_hidden_states(base, tokens)
            return [states[: len(ids[index])] for index, states in zip(chunk, hidden, strict=True)]

        with torch.no_grad(), nothing_in_effect(), eager(base):
            return in_order(by_length([len(row) for row in ids], _ROWS), read)

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        return logits_of(self._base, hidden).log_softmax(-1)

    def _name_token(self, edit: EditRequest) -> int:
        ids = self._tokenizer(f" {name_in(edit)}", add_special_tokens=False)["input_ids"]
        return int(ids[0])

    def _target(self, edit: EditRequest) -> tuple[int, ...]:
        return tuple(encode_example(self._tokenizer, edit.prompt, edit.target_new).target)


def _begun(prompt: str) -> str:
    """An edited prompt as the LLM goes on with an answer: a question needs a place for it."""
    return f"Question: {prompt}\nAnswer:" if re.search(r"[.!?。！？؟।]\s*$", prompt) else prompt
