"""Verifier: does a reply to this prompt state that fact? A cross-encoder over both texts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from meg_editor.lm.fingerprint import fingerprint
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.pooling import pool
from meg_editor.runtime.artifacts import digest

_LENGTH = 192  # tokens of fact and prompt together
_CHUNK = 64
DOWN, UP = ".down", ".up"  # of the low-rank change of a layer's weight


class Verifier(nn.Module):
    """Reads a prompt together with a fact, and says whether a reply to it states the fact.

    A bi-encoder puts "The capital of Japan is" as near to "The currency of Japan is" as it does a
    paraphrase, and sees no difference between a question and a request to translate it. The
    verifier is the text encoder once more, with low-rank changes (LoRA, 2106.09685) and a head,
    applied to both texts at once.

    Args:
        encoder: the one it was trained on; its network is copied, but for the embeddings.
        adapter: "head.weight" (1, E), "head.bias" (1,), and for each linear layer which differs,
            of M inputs and N outputs, "<name>.down" (R, M) and "<name>.up" (N, R).

    Attributes:
        adapter: as it was given.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> blank = {"head.weight": torch.zeros(1, encoder.dimension), "head.bias": torch.zeros(1)}
        >>> Verifier(encoder, blank).probability(["Who wrote Emma?"], ["Emma is by Austen"]).tolist()
        [0.5]
    """

    def __init__(self, encoder: TextEncoder, adapter: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.adapter = dict(adapter)
        embeddings = encoder.model.get_input_embeddings()
        memo = {id(embeddings): embeddings}  # by far the largest part
        self.model: Any = copy.deepcopy(encoder.model, memo)
        self.reader = PairReader.of(encoder)
        self.head = nn.Linear(encoder.dimension, 1)
        with torch.no_grad():
            for name in {key.rpartition(".")[0] for key in adapter} - {"head"}:
                change = adapter[name + UP].float() @ adapter[name + DOWN].float()
                weight = self.model.get_submodule(name).weight
                weight += change.to(weight)
            self.head.weight.copy_(adapter["head.weight"])
            self.head.bias.copy_(adapter["head.bias"])
        self.eval().requires_grad_(False)

    @classmethod
    def shipped(cls, encoder: TextEncoder) -> Verifier | None:
        """The verifier which is shipped for an encoder; None for any other, or once it is tuned."""
        path = shipped_path(encoder)
        return cls(encoder, load_file(path)) if path.is_file() else None

    @torch.no_grad()
    def probability(self, prompts: Sequence[str], facts: Sequence[str]) -> Tensor:
        """Of B prompts and a fact each: how sure it is that the reply states the fact, (B,)."""
        scores = torch.zeros(len(prompts))
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]) + len(facts[row]))
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            pooled = self.reader.pooled(
                self.model, [prompts[row] for row in rows], [facts[row] for row in rows]
            )
            logits: Tensor = self.head(pooled)[:, 0]
            scores[torch.tensor(rows)] = logits.sigmoid().cpu()
        return scores


def shipped_path(encoder: TextEncoder) -> Path:
    """Where the verifier of an encoder is shipped, whether there is one or not."""
    name = digest([fingerprint(encoder), encoder.pooling])[:16]
    return Path(str(files(__package__).joinpath("verifiers", f"{name}.safetensors")))


def fact_text(edit: EditRequest) -> str:
    """An edit as the verifier reads it: the prompt and its new answer.

    Example:
        >>> fact_text(EditRequest("The capital of France is", "Lima"))
        'The capital of France is Lima'
    """
    return f"{edit.prompt} {edit.target_new}"


@dataclass(frozen=True)
class PairReader:
    """Reads pairs of a prompt and a fact with the network of an encoder, or a changed copy of it."""

    tokenizer: Any
    pooling: str
    max_length: int

    @classmethod
    def of(cls, encoder: TextEncoder) -> PairReader:
        """As `encoder` reads its texts."""
        return cls(encoder.tokenizer, encoder.pooling, min(_LENGTH, encoder.max_length))

    def pooled(self, model: Any, prompts: Sequence[str], facts: Sequence[str]) -> Tensor:
        """Pooled states (B, E), float32, of B pairs: the fact is read first.

        A pair that is too long loses the begin of the longer text.
        """
        batch = self.tokenizer(
            list(facts),
            list(prompts),
            padding=True,
            truncation="longest_first",
            max_length=self.max_length,
            return_tensors="pt",
        ).to(next(model.parameters()).device)
        states = model(**batch).last_hidden_state
        return pool(states.float(), batch["attention_mask"], self.pooling)
