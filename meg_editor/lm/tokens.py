"""Prompts and targets as tokens, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from meg_editor.lm.ffn import last_hidden_states, text_config
from meg_editor.lm.prompt_tokens import prompt_tokens
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its target, the end of text included."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def encode_example(tokenizer: Tokenizer, prompt: str, target: str, end: bool = True) -> Example:
    """Tokenise `prompt` + " " + `target`, split where the prompt ends.

    Args:
        end: append EOS to the target.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> example = encode_example(tokenizer, "The capital of France is", "Paris")
        >>> tokenizer.decode(example.target)
        ' Paris<eos>'
    """
    prompt_ids, whole = prompt_tokens(tokenizer, [prompt, f"{prompt} {target}"])
    if whole[: len(prompt_ids)] == prompt_ids:
        target_ids = whole[len(prompt_ids) :]
    else:  # the boundary fell inside a token
        target_ids = list(tokenizer(f" {target}", add_special_tokens=False)["input_ids"])
    if end and tokenizer.eos_token_id is not None:
        target_ids.append(tokenizer.eos_token_id)
    return Example(prompt_ids, target_ids)


def max_target_length(
    tokenizer: Tokenizer, requests: Sequence[EditRequest], min_length: int = 1
) -> int:
    """Tokens of the longest target with EOS, at least `min_length`: a limit for `generate`."""
    targets = (encode_example(tokenizer, r.prompt, r.target_new).target for r in requests)
    return max([min_length, *map(len, targets)])


@dataclass(frozen=True)
class Batch:
    """Right-padded examples; under a causal mask padding on the right needs no attention mask.

    Attributes:
        ids: (B, T) input ids.
        labels: (B, T) the NEXT token at positions before a target token, -100 elsewhere.

    Example:
        >>> Batch.of([Example([5, 6], [7]), Example([5], [6, 7, 8])], "cpu").labels.tolist()
        [[-100, 7, -100, -100], [6, 7, 8, -100]]
    """

    ids: Tensor
    labels: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device | str) -> Batch:
        """B examples, padded to the longest."""
        width = max(len(example) for example in examples)
        ids = torch.zeros(len(examples), width, dtype=torch.long)
        labels = torch.full((len(examples), width), -100)
        for row, example in enumerate(examples):
            start, stop = len(example.prompt), len(example)
            ids[row, :stop] = torch.tensor(example.prompt + example.target)
            labels[row, start - 1 : stop - 1] = torch.tensor(example.target)
        return cls(ids.to(device), labels.to(device))


def target_logits(model: CausalLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the positions before target tokens.

    Returns:
        For M target tokens: logits (M, V) float32, the tokens (M,), the row of each (M,).

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> example = encode_example(tokenizer, "The capital of France is", "Paris")
        >>> batch = Batch.of([example], "cpu")
        >>> logits, targets, rows = target_logits(model, batch)
        >>> torch.equal(logits.argmax(-1), targets), rows.tolist()
        (True, [0, 0])
    """
    is_target = batch.labels != -100
    # The vocabulary is the widest layer: multiply only before targets.
    hidden = last_hidden_states(model, batch.ids)
    return logits_of(model, hidden[is_target]), batch.labels[is_target], is_target.nonzero()[:, 0]


def means(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Means of grouped values, 0 for an empty group.

    Args:
        values: (M,).
        group: (M,) index of the group of each value.
        count: number of groups, G.

    Returns:
        (G,) means.

    Example:
        >>> means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3).tolist()
        [2.0, 0.0, 5.0]
    """
    zeros = torch.zeros(count, device=values.device)
    size = zeros.index_add(0, group, torch.ones_like(values))
    return zeros.index_add(0, group, values) / size.clamp(min=1)


def logits_of(model: CausalLM, hidden: Tensor) -> Tensor:
    """Logits (..., V), float32, of last hidden states (..., D) of the decoder."""
    config = text_config(model)
    logits: Tensor = model.get_output_embeddings()(hidden).float() * _logit_factor(config)
    caps = (getattr(config, name, None) for name in _SOFTCAPS)
    softcap = next((cap for cap in caps if cap), None)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


# As Gemma, RecurrentGemma and xLSTM spell it in their configs.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def _logit_factor(config: Any) -> float:
    """What logits are multiplied by: Cohere, Granite, Falcon-H1 and their kin have a factor."""
    factor = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        factor *= getattr(config, name, None) or 1.0
    factor /= getattr(config, "logits_mup_width_multiplier", None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    # Granite divides by the setting which HyperCLOVA X multiplies by.
    return factor * scaling if config.model_type.startswith("hyperclovax") else factor / scaling


def by_length(lengths: Sequence[int], rows: int, padding: int | None = None) -> Iterator[list[int]]:
    """Indices sorted by length, in chunks of at most `rows`.

    Args:
        padding: limit of the padding in a chunk; default: none.

    Example:
        >>> list(by_length([9, 1, 5], rows=2))
        [[1, 2], [0]]
        >>> list(by_length([9, 1, 5], rows=3, padding=4))
        [[1, 2], [0]]
    """
    chunk: list[int] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        too_much = padding is not None and lengths[index] * len(chunk) - held > padding
        if chunk and (too_much or len(chunk) == rows):
            yield chunk
            chunk, held = [], 0
        chunk.append(index)
        held += lengths[index]
    if chunk:
        yield chunk


def in_order(chunks: Iterable[list[int]], run: Callable[[list[int]], Iterable[T]]) -> list[T]:
    """The results of `run` for chunks of N rows, in the order of the rows.

    Example:
        >>> in_order([[1, 2], [0]], lambda rows: [10 * row for row in rows])
        [0, 10, 20]
    """
    found = {row: each for chunk in chunks for row, each in zip(chunk, run(chunk), strict=True)}
    return [found[row] for row in range(len(found))]


def pad_token(tokenizer: Tokenizer) -> int:
    """Id of the padding token, else of EOS, else 0: padding is masked, any token will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def right_padded(rows: Sequence[Sequence[int]], fill: int = 0) -> Tensor:
    """B rows of token ids as a tensor (B, T) int64, on the CPU, T that of the longest.

    Under a causal mask padding on the right needs no mask, and shifts no position.

    Example:
        >>> right_padded([[1, 2], [3]]).tolist()
        [[1, 2], [3, 0]]
    """
    width = max(map(len, rows), default=0)
    filled = [[*row, *[fill] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long).reshape(len(rows), width)


def left_padded(
    tokenizer: Tokenizer, prompts: Sequence[str], device: torch.device | str
) -> dict[str, Tensor]:
    """B prompts tokenised for `generate`: input_ids and attention_mask, (B, T) each.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> batch = left_padded(tokenizer, ["Who wrote Emma?", "Emma"], "cpu")
        >>> batch["attention_mask"][:, 0].tolist()
        [1, 0]

    Raises:
        ValueError: a prompt has no token, not even BOS.
    """
    rows = prompt_tokens(tokenizer, prompts)
    if not all(rows):
        empty = prompts[[len(row) for row in rows].index(0)]
        raise ValueError(f"prompts: expected at least one token in each, got none for {empty!r}")
    width = max(map(len, rows))
    pad = pad_token(tokenizer)
    padded = [[pad] * (width - len(row)) + list(row) for row in rows]
    ids = torch.tensor(padded, dtype=torch.long, device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}
