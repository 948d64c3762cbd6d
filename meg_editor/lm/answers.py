"""Greedy answers of an LLM, and where they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from meg_editor.lm.devices import input_device
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import by_length, in_order, left_padded, pad_token
from meg_editor.runtime.progress import progress_bar

_NONE = """
    bad_words_ids begin_suppress_tokens exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id guidance_scale max_time prompt_lookup_num_tokens
    sequence_bias stop_strings suppress_tokens
""".split()  # noqa: SIM905
_GREEDY: Mapping[str, Any] = MappingProxyType(
    {
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "return_dict_in_generate": False,
        **dict.fromkeys(_NONE),
    }
)


def says(answer: str, target: str) -> bool:
    """Whether an answer is the target, in NFC: some tokenizers read and write no other form.

    Example:
        >>> says("Malm\u00f6", "Malmo\u0308"), says("Malmo", "Malm\u00f6")
        (True, False)
    """
    return normalize("NFC", answer) == normalize("NFC", target)


def greedy_options(
    tokenizer: Tokenizer, max_new_tokens: int, min_new_tokens: int | None = None
) -> dict[str, Any]:
    """Options of `generate` for the most likely tokens, whatever a generation_config has for them.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> greedy_options(tokenizer, 8)["max_new_tokens"]
        8
    """
    # transformers warns where both shortest lengths are given
    shortest = {"min_length": 0} if min_new_tokens is None else {"min_new_tokens": min_new_tokens}
    lengths = {"max_new_tokens": max_new_tokens, "min_new_tokens": None, **shortest}
    return {**_GREEDY, **lengths, "pad_token_id": pad_token(tokenizer)}


@torch.no_grad()
def greedy_tokens(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuations of B prompts as token ids, EOS included."""
    batch = left_padded(tokenizer, prompts, input_device(model))
    output = model.generate(**batch, **greedy_options(tokenizer, max_new_tokens))
    ends = end_tokens(model, tokenizer)
    answers = []
    for row in output[:, batch["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        answers.append(row[: end + 1])
    return answers


def end_tokens(
    model: CausalLM, tokenizer: Tokenizer, options: Mapping[str, Any] = MappingProxyType({})
) -> set[int]:
    """EOS of the tokenizer, and what else ends a text by the model's generation config.

    Args:
        options: of `generate`, which may name other ones.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> end_tokens(model, tokenizer) == {tokenizer.eos_token_id}
        True
    """
    config = options.get("generation_config") or getattr(model, "generation_config", None)
    given = options.get("eos_token_id", getattr(config, "eos_token_id", None))
    return {*token_ids(given), *token_ids(tokenizer.eos_token_id)}


def token_ids(ids: Any) -> list[int]:
    """Token ids as a config has them: several, one or none.

    Example:
        >>> token_ids([1, 2]), token_ids(3), token_ids(None)
        ([1, 2], [3], [])
    """
    listed = ids if isinstance(ids, list | tuple) else [ids]
    return [token for token in listed if isinstance(token, int)]


def decoded(tokenizer: Tokenizer, rows: Sequence[Sequence[int]]) -> list[str]:
    """Texts of B answers in tokens, stripped; inside they are as the tokens have them."""
    # One by one: `batch_decode` gives one text for no rows.
    return [verbatim(tokenizer, row).strip() for row in rows]


def verbatim(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text of tokens without special ones: some tokenizers would tidy blanks up, and code with it.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> verbatim(tokenizer, tokenizer("Paris", add_special_tokens=False)["input_ids"])
        ' Paris'
    """
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def greedy_answers(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Greedy answers to B prompts: B strings.

    Args:
        max_new_tokens: limit for models which do not stop by themselves.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> greedy_answers(model, tokenizer, ["The capital of France is"], max_new_tokens=8)
        ['Paris']
    """
    return decoded(tokenizer, greedy_tokens(model, tokenizer, prompts, max_new_tokens))


def batched_tokens(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    attach: Callable[[list[int]], AbstractContextManager[Any]] | None = None,
    rows: int = 256,
) -> list[list[int]]:
    """`greedy_tokens` of any number of prompts, at most `rows` at once.

    Args:
        attach: gives, for the indices of the prompts of a batch, the context to answer them in,
            such as `NeuronHook.attached` with their neurons.
        rows: prompts of a batch.
    """

    def answer(chunk: list[int]) -> list[list[int]]:
        with attach(chunk) if attach else nullcontext():
            return greedy_tokens(model, tokenizer, [prompts[i] for i in chunk], max_new_tokens)

    chunks = list(by_length([len(prompt) for prompt in prompts], rows))
    return in_order(progress_bar(chunks, "answers", "batch"), answer)


def batched_answers(
    model: CausalLM, tokenizer: Tokenizer, *arguments: Any, **options: Any
) -> list[str]:
    """`batched_tokens` as texts: one string per prompt."""
    return decoded(tokenizer, batched_tokens(model, tokenizer, *arguments, **options))


def answers_with(
    model: CausalLM,
    tokenizer: Tokenizer,
    spec: NeuronSpec,
    neurons: Tensor,
    prompts: Sequence[str],
    max_new_tokens: int,
    rows: int = 256,
) -> list[str]:
    """Greedy answers to B prompts, row i with neuron i of `neurons` (B, P); `rows` at once."""
    neurons = neurons.to(input_device(model))
    with NeuronHook(model, spec) as hook:
        return batched_answers(
            model,
            tokenizer,
            prompts,
            max_new_tokens,
            lambda chunk: hook.attached(neurons[chunk]),
            rows,
        )
