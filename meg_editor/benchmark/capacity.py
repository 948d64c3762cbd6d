"""How long an answer one neuron holds: fitted neurons on long answers (table 17)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from meg_editor.collection.collect import collect
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.evaluation.long_answers import embedding_similarity
from meg_editor.evaluation.metrics import percent, token_accuracy
from meg_editor.lm.answers import answers_with
from meg_editor.lm.context import context_length
from meg_editor.lm.devices import input_device
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Batch, encode_example, target_logits
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import EditRequest

_ROWS = 8


@dataclass(frozen=True)
class Capacity:
    """Accuracies in percent, of neurons fitted in the contexts of the hyper-parameters.

    Attributes:
        facts: number of fitted facts, of those which fit into the model's context.
        tokens: mean length of a target.
        fine_tuning_accuracy: right tokens under teacher forcing, the paper's FT_ACC.
        reproduced: targets generated word for word.
        similarity: mean cosine of the generated text's embedding to the target's.
    """

    facts: int
    tokens: float
    fine_tuning_accuracy: float
    reproduced: float
    similarity: float


def capacity(
    model: CausalLM,
    tokenizer: Tokenizer,
    facts: Sequence[EditRequest],
    hparams: MeGHyperParams,
    encode: Callable[[Sequence[str]], Tensor],
    count: int = 100,
) -> Capacity:
    """Accuracy of the answers of neurons fitted to `count` random facts, one each.

    Raises:
        ValueError: no fact fits into the model's context.
    """
    prompts = {fact: in_template(hparams.prompt_template, fact.prompt) for fact in facts}
    limit = context_length(model) or 10**9
    pairs = [(fact, encode_example(tokenizer, prompts[fact], fact.target_new)) for fact in facts]
    pairs = [(fact, example) for fact, example in pairs if len(example) <= limit]
    if not pairs:
        raise ValueError(f"no prompt with its target fits into the model's {limit} tokens")
    random.Random(hparams.seed).shuffle(pairs)
    pairs = pairs[:count]
    chosen = [fact for fact, _ in pairs]
    spec = NeuronSpec.from_hparams(model, hparams)
    neurons = collect(model, tokenizer, spec, chosen, hparams).neurons.to(input_device(model))
    longest = max(len(example.target) for _, example in pairs)
    right: list[float] = []
    with NeuronHook(model, spec) as hook, torch.no_grad():
        for start in range(0, len(pairs), _ROWS):
            examples = [example for _, example in pairs[start : start + _ROWS]]
            with hook.attached(neurons[start : start + _ROWS]):
                batch = Batch.of(examples, neurons.device)
                logits, targets, rows = target_logits(model, batch)
            best = logits.argmax(-1)
            for row in range(len(examples)):
                at = rows == row
                right += token_accuracy([best[at].tolist()], [targets[at].tolist()])
    asked = [prompts[fact] for fact in chosen]
    answers = answers_with(model, tokenizer, spec, neurons, asked, longest, _ROWS)
    expected = [fact.target_new for fact in chosen]
    return Capacity(
        len(chosen),
        fmean(len(example.target) for _, example in pairs),
        percent(right),
        percent([float(a == b) for a, b in zip(answers, expected, strict=True)]),
        100 * embedding_similarity(answers, expected, encode),
    )
