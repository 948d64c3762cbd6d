"""How right a neuron is: what it answers wherever its fact was fitted."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import normalize

from torch import Tensor

from meg_editor.collection.collect import answers_with
from meg_editor.collection.contexts import fact_contexts
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.context import that_fit
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import encode_example, max_target_length
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
    for edit in edits:
        (contexts,) = fact_contexts(  # of each alone: the same whatever it is asked with
            tokenizer,
            [edit.prompt],
            hparams.collection_contexts,
            hparams.prompt_template,
            hparams.seed,
        )
        texts = list(dict.fromkeys(contexts))
        lengths = [len(encode_example(tokenizer, text, edit.target_new)) for text in texts]
        prompts.append([texts[row] for row in that_fit(model, lengths)])
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
