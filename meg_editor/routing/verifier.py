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
from meg_editor.lm.tokens import by_length
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.pooling import pool
from meg_editor.routing.support_vectors import FOLLOW_UP, SYSTEM_TEXT, SupportVectors
from meg_editor.runtime.artifacts import digest

_LENGTH = 192  # tokens of fact and prompt together
_CHUNK = 64
_LIMITS = ("threshold", "similarity", "dialogue", "system")
DOWN, UP = ".down", ".up"  # of the low-rank change of a layer's weight
TYPES = "embeddings.token_type_embeddings.weight"  # of BERT and its kin


class Verifier(nn.Module):
    """Reads a prompt together with a fact, and says whether a reply to it states the fact.

    A bi-encoder puts "The capital of Japan is" as near to "The currency of Japan is" as it does a
    paraphrase, and sees no difference between a question and a request to translate it. The
    verifier is the text encoder once more, with low-rank changes (LoRA, 2106.09685) and a head,
    applied to both texts at once.

    Args:
        encoder: the one it was trained on; its network is copied, but for the embeddings.
        adapter: "head.weight" (1, E), "head.bias" (1,), the limits "threshold" (), "similarity" ()
            and, if it has learned dialogues and system texts, "dialogue" () and "system" (); for
            each linear layer which differs, of M inputs and N outputs, "<name>.down" (R, M) and
            "<name>.up" (N, R); where the network has token types their embeddings; and those of
            `SupportVectors` named "follow_up" and "system_text".

    Attributes:
        adapter: as it was given.
        threshold: lowest probability at which a reply states the fact.
        similarity: lowest similarity, in the index, of an edit which is worth to be verified: high
            for a verifier which knows forms and not relations.
        dialogue: lowest probability where a turn goes back to an earlier one; None if it does not
            know dialogues.
        follow_up: at least 0 for a turn that may go back to an earlier one; None: any may.
        system: lowest probability where a system text is read with the prompt; None if it does not
            know any.
        system_text: what a system text adds to the log-odds that a reply under it states the fact,
            where `system` is a limit; None: nothing.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> blank = {"head.weight": torch.zeros(1, encoder.dimension), "head.bias": torch.zeros(1),
        ...          "threshold": torch.tensor(0.5), "similarity": torch.tensor(0.4)}
        >>> verifier = Verifier(encoder, blank)
        >>> verifier.probability(["Who wrote Emma?"], ["Emma is by Austen"]).tolist()
        [0.5]
    """

    def __init__(self, encoder: TextEncoder, adapter: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.adapter = dict(adapter)
        limits = limits_of(adapter)
        self.threshold, self.similarity = limits["threshold"], limits["similarity"]
        self.dialogue, self.system = limits.get("dialogue"), limits.get("system")
        embeddings = encoder.model.get_input_embeddings()
        device = embeddings.weight.device
        memo = {id(embeddings): embeddings}  # by far the largest part
        self.model: Any = copy.deepcopy(encoder.model, memo)
        self.reader = PairReader.of(encoder)
        self.head = nn.Linear(encoder.dimension, 1, device=device)
        learned = (SupportVectors.of(adapter, name) for name in (FOLLOW_UP, SYSTEM_TEXT))
        self.follow_up, self.system_text = (part and part.to(device) for part in learned)
        with torch.no_grad():
            for name in {key.removesuffix(UP) for key in adapter if key.endswith(UP)}:
                change = adapter[name + UP].float() @ adapter[name + DOWN].float()
                weight = self.model.get_submodule(name).weight
                weight += change.to(weight)
            if TYPES in adapter:
                self.model.get_parameter(TYPES).copy_(adapter[TYPES])
            self.head.weight.copy_(adapter["head.weight"])
            self.head.bias.copy_(adapter["head.bias"])
        self.eval().requires_grad_(False)

    @classmethod
    def shipped(cls, encoder: TextEncoder) -> Verifier | None:
        """The verifier which is shipped for an encoder; None for any other, or once it is tuned."""
        path = shipped_path(encoder)
        return cls(encoder, load_file(path)) if path.is_file() else None

    @property
    def limits(self) -> dict[str, float]:
        """The limits in force, by name; which it does not know are not among them."""
        known = {name: getattr(self, name) for name in _LIMITS}
        return {name: float(limit) for name, limit in known.items() if limit is not None}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What makes it anew: the adapter, with the limits in force."""
        learned = {name: value for name, value in self.adapter.items() if name not in _LIMITS}
        return {**learned, **{name: torch.tensor(limit) for name, limit in self.limits.items()}}

    @torch.no_grad()
    def probability(self, prompts: Sequence[str], facts: Sequence[str]) -> Tensor:
        """Of B prompts and a fact each: how sure it is that the reply states the fact, (B,)."""
        scores = torch.zeros(len(prompts))
        lengths = [len(prompt) + len(fact) for prompt, fact in zip(prompts, facts, strict=True)]
        for rows in by_length(lengths, _CHUNK):
            pooled = self.reader.pooled(
                self.model, [prompts[row] for row in rows], [facts[row] for row in rows]
            )
            logits: Tensor = self.head(pooled)[:, 0]
            scores[torch.tensor(rows)] = logits.sigmoid().cpu()
        return scores


def limits_of(adapter: Mapping[str, Tensor]) -> dict[str, float]:
    """The limits among the tensors of an adapter."""
    return {name: float(adapter[name]) for name in _LIMITS if name in adapter}


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
    """Reads pairs of a prompt and a fact with an encoder's network, or a changed copy of it."""

    tokenizer: Any
    pooling: str
    max_length: int

    @classmethod
    def of(cls, encoder: TextEncoder) -> PairReader:
        """As `encoder` reads its texts, with a tokenizer of its own.

        A tokenizer keeps the length that it cuts texts to, and the encoder cuts at another one.
        """
        tokenizer = copy.deepcopy(encoder.tokenizer)
        return cls(tokenizer, encoder.pooling, min(_LENGTH, encoder.max_length))

    def pooled(self, model: Any, prompts: Sequence[str], facts: Sequence[str]) -> Tensor:
        """Pooled states (B, E), float32, of B pairs: the fact is read first.

        A pair that is too long loses the begin of the longer text. Token types, where the network
        has them, mark the tokens which occur in the other text too: a name is the same or it is
        not, and that need not be learned.
        """
        batch = self.tokenizer(
            list(facts),
            list(prompts),
            padding=True,
            truncation="longest_first",
            max_length=self.max_length,
            return_tensors="pt",
        )
        ids = batch["input_ids"]
        inputs = {"input_ids": ids, "attention_mask": batch["attention_mask"]}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = shared(
                ids, [batch.sequence_ids(row) for row in range(len(ids))]
            )
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        states = model(**inputs)[0]
        return pool(states.float(), inputs["attention_mask"], self.pooling)


def shared(ids: Tensor, texts: Sequence[Sequence[int | None]]) -> Tensor:
    """1 for the tokens of either text of a pair which occur in the other one too: (B, T).

    Args:
        ids: (B, T) token ids.
        texts: (B, T), 0 and 1 for the tokens of the two texts, None for other tokens.

    Example:
        >>> shared(torch.tensor([[0, 5, 6, 0, 6, 7]]), [[None, 0, 0, None, 1, 1]]).tolist()
        [[0, 0, 1, 0, 1, 0]]
    """
    text = torch.tensor([[-1 if t is None else t for t in row] for row in texts])
    same = ids.unsqueeze(2) == ids.unsqueeze(1)
    apart = (text.unsqueeze(2) + text.unsqueeze(1) == 1) & (text.unsqueeze(2) >= 0)
    apart &= text.unsqueeze(1) >= 0
    return (same & apart).any(2).long()
