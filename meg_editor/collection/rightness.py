"""How right a neuron is: what it answers wherever its fact was fitted."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import normalize

from torch import Tensor

from meg_editor.collection.contexts import contexts_that_fit
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.answers import answers_with
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import max_target_length
from meg_editor.requests.request import EditRequest


def rightness(
    model: CausalLM,
    tokenizer: Tokenizer,
    spec: NeuronSpec,
    edits: Sequence[EditRequest],
    neurons: Tensor,
    hparams: MeGHyperParams,
) -> list[list[int]]:
    """What each of N `neurons` (N, P) answers to its prompt, bare and in each of its contexts.

    2: the target; 1: a text that begins with it; 0: another one. Contexts which the model cannot
    read are left out.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> spec = NeuronSpec.from_hparams(model, hparams)
        >>> known = [EditRequest("The capital of France is", "Paris")]
        >>> import torch
        >>> rightness(model, tokenizer, spec, known, torch.zeros(1, spec.size), hparams)[0][0]
        2
    """
    prompts = []
    for edit in edits:  # each alone: the same whatever it is asked with
        (contexts,) = contexts_that_fit(model, tokenizer, [edit], hparams)
        prompts.append(list(dict.fromkeys(text for text, _ in contexts)))
    owner = [row for row, texts in enumerate(prompts) for _ in texts]
    answers = answers_with(
        model,
        tokenizer,
        spec,
        neurons[owner],
        [text for texts in prompts for text in texts],
        max_target_length(tokenizer, edits),
    )
    right: list[list[int]] = [[] for _ in edits]
    for row, answer in zip(owner, answers, strict=True):
        said, target = (normalize("NFC", text) for text in (answer, edits[row].target_new))
        right[row].append(said.startswith(target) + (said == target))
    return right
