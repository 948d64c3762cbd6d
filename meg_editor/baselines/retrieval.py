"""Retrieval in the prompt: the nearest edit is put before the question, as in-context editing.

No weight and no hidden state changes; how well it does depends on how well the LLM reads.
"""

from __future__ import annotations

import copy as copying
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from meg_editor.baselines.core.decision import Decision, decisions
from meg_editor.baselines.core.settings import BaselineHyperParams
from meg_editor.baselines.core.weights import Requests
from meg_editor.config.settings import HParamsError, setting
from meg_editor.lm.devices import input_device
from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.reference import resolve_model_name
from meg_editor.lm.tokens import pad_token
from meg_editor.model.routed_model import PromptTokens, RoutedModel
from meg_editor.requests.formats import token_segments
from meg_editor.requests.request import EditRequest, only_edits
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.torch_defaults import torch_defaults

CONTEXT = (
    "Context: {prompt} {target}.\nAnswer with the context.\n"
    "Context says: {prompt} {target}{eos}\nAnswer: "
)


@dataclass
class RetrievalHyperParams(BaselineHyperParams):
    """Hyper-parameters of retrieval in the prompt."""

    ignored: ClassVar[tuple[str, ...]] = ("target_end",)
    renamed: ClassVar[Mapping[str, str]] = {"told": "context_template"}

    alg_name: str = setting("Retrieval", "Always Retrieval.")
    encoder_name: str = setting(
        "sentence-transformers/all-MiniLM-L6-v2", "Hub id or directory of the text encoder."
    )
    threshold: float = setting(0.7, "Lowest cosine to the nearest edit.")
    context_template: str = setting(
        CONTEXT,
        "Text put before the question: {prompt} and {target} of the edit; {eos}, the model's end "
        "of text, shows a model which was never taught the fact where its answer ends.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            filled = self.context_template.format(prompt="<p>", target="<t>", eos="")
        except (LookupError, ValueError, AttributeError):
            filled = ""
        if "<p>" not in filled or "<t>" not in filled:
            raise HParamsError(
                "context_template: expected {prompt} and {target} in it, {eos} if you like, and "
                f"other braces doubled, got {self.context_template!r}"
            )


class RetrievalModel(RoutedModel):
    """A causal LM which reads the nearest edit before it answers.

    Args:
        base: the unedited model.
        anchors: (N, E) unit embeddings of the edited prompts.
    """

    anchors: Tensor

    def __init__(
        self,
        base: CausalLM,
        tokenizer: Tokenizer,
        hparams: RetrievalHyperParams,
        encoder: TextEncoder,
        edits: Sequence[EditRequest],
        anchors: Tensor,
    ) -> None:
        super().__init__(base, tokenizer, hparams.prompt_template)
        self.hparams, self.encoder, self.edits = hparams, encoder, tuple(edits)
        self.register_buffer("anchors", anchors)
        self._call = object()  # for which the contexts of a call are in effect

    def decide(self, queries: Sequence[str]) -> list[str]:
        """B texts to put before the questions, empty where no edit is near enough."""
        contexts = []
        for query_text, query in zip(queries, self.route(queries), strict=True):
            request = self.edits[query.edit]
            # In a turn of a chat an end of text would be the end of the turn.
            in_turn = bool(token_segments(query_text)[1])
            text = self.hparams.context_template.format(
                prompt=request.prompt,
                target=request.target_new,
                eos="" if in_turn else self._tokenizer.eos_token or "",
            )
            contexts.append(text if query.is_edit else "")
        return contexts

    @torch.no_grad()
    def route(self, queries: Sequence[str]) -> list[Decision]:
        """Which of B queries are near enough to an edit, and to which."""
        questions = [self.reader.candidates(query)[0] for query in queries]
        best, index = (self.encoder.encode(questions) @ self.anchors.T).max(-1)
        threshold = self.hparams.threshold
        return decisions(best, index, lambda score: score >= threshold)

    def _apply_decision(self, decision: Sequence[str]) -> AbstractContextManager[None]:
        contexts = [
            list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
            for text in decision
        ]
        return in_effect(self._call, contexts)

    def get_decoder(self) -> Any:
        """The base model's decoder, with the retrieved edits before its inputs."""
        return self._decode

    def _decode(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        inputs, places = self._insert(input_ids, attention_mask)
        output = self.base.get_decoder()(**inputs, return_dict=True)
        output.last_hidden_state = _at(output.last_hidden_state, places)
        return output

    def _forward(self, **kwargs: Any) -> Any:
        """Without a cache, which would have to hold the retrieved edit.

        Raises:
            ValueError: a filled cache is given.
        """
        past = kwargs.get("past_key_values")
        if past is not None and past.get_seq_length():
            raise ValueError(
                "past_key_values: expected none, since the retrieved edit stands before the "
                "prompt; use generate"
            )
        inputs, places = self._insert(kwargs["input_ids"], kwargs.get("attention_mask"))
        output = self.base(**inputs)
        output.logits = _at(output.logits, places)
        return output

    def _generate(self, decision: Any, prompts: PromptTokens, **kwargs: Any) -> Any:
        ids = kwargs.pop("inputs", None)
        ids = kwargs.pop("input_ids") if ids is None else ids
        inputs, _ = self._insert(ids, kwargs.pop("attention_mask", None))
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = self.base.generate(**kwargs, **given)
        sequences = output if isinstance(output, Tensor) else output.sequences
        before = ids.repeat_interleave(len(sequences) // len(ids), dim=0)
        sequences = torch.cat([before, sequences[:, given["input_ids"].shape[1] :]], dim=1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    def _insert(self, ids: Tensor, mask: Tensor | None) -> tuple[dict[str, Any], Tensor]:
        """Put the contexts in effect into rows of tokens, in front of the text or the last turn.

        Returns:
            The inputs, padded on the left, and (B, T) where each token of `ids` is in them.
        """
        contexts: list[list[int]] = value_of(self._call) or [[]]
        rows, moved = [], []
        for row, tokens in enumerate(ids.tolist()):
            extra = contexts[row * len(contexts) // len(ids)]
            pads = 0 if mask is None else int((mask[row].cumsum(0) == 0).sum())
            start = pads + (self._start(tokens[pads:]) if extra else 0)
            rows.append(tokens[pads:start] + extra + tokens[start:])
            places = torch.arange(len(tokens)) - pads
            moved.append(places + len(extra) * (torch.arange(len(tokens)) >= start))
        width = max(map(len, rows))
        pad = pad_token(self.tokenizer)
        shape = [[pad] * (width - len(row)) + row for row in rows]
        mask_rows = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        offset = torch.tensor([[width - len(row)] for row in rows])
        attention = torch.tensor(mask_rows, device=ids.device)
        inputs = {
            "input_ids": torch.tensor(shape, device=ids.device),
            "attention_mask": attention,
            "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
            "use_cache": False,
        }
        return inputs, (torch.stack(moved) + offset).clamp(min=0).to(ids.device)

    def _start(self, tokens: list[int]) -> int:
        """Tokens in front of the place for a context: BOS, or what precedes the last user turn."""
        text = self._tokenizer.decode(tokens)
        if not token_segments(text)[1]:
            return int(tokens[:1] == [self._tokenizer.bos_token_id])
        place = max(0, text.rfind(self.reader.read(text).text))
        return bisect_left(
            range(len(tokens)), place, key=lambda end: len(self._tokenizer.decode(tokens[:end]))
        )


def _at(states: Tensor, places: Tensor) -> Tensor:
    """(B, T', D) and (B, T) -> (B, T, D)."""
    return states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


@torch_defaults()
def apply_retrieval_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: RetrievalHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    encoder: TextEncoder | None = None,
    **kwargs: Any,
) -> tuple[RetrievalModel, dict[str, Tensor]]:
    """Edit by retrieval in the prompt, with the signature of EasyEdit's methods.

    Args:
        encoder: instead of the one of the hyper-parameters.

    Returns:
        A RetrievalModel around `model`, or its copy, and no weights to restore.

    Raises:
        RequestError: contradictory requests.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> hparams = RetrievalHyperParams(encoder_name="meg_editor:bert-reference")
        >>> edited, _ = apply_retrieval_to_model(model, tok, [request], hparams)
        >>> edited.decide(["The capital of France is", "Who wrote Emma?"])[1]
        ''
    """
    edits = only_edits(requests)
    if copy:
        model = copying.deepcopy(model)
    if encoder is None:
        name = resolve_model_name(hparams.encoder_name)
        encoder = TextEncoder.from_pretrained(name).to(input_device(model))
    with torch.no_grad():
        anchors = encoder.encode([edit.prompt for edit in edits])
    return RetrievalModel(model, tok, hparams, encoder, edits, anchors), {}
