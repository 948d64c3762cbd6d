"""Training batches of a hypernetwork: pseudo facts, their rephrases, and locality prompts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from meg_editor.baselines.core.hypernetwork import HyperNetworkHyperParams
from meg_editor.lm.answers import batched_answers
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Example
from meg_editor.requests.prompts import in_template
from meg_editor.requests.request import EditRequest
from meg_editor.routing.subject_names import words

_ANSWER_TOKENS = 12  # maximum length of the model's answers; more if some target is longer
_CANDIDATES = 1000  # maximum number of facts searched for a similar prompt


class MetaBatch(NamedTuple):
    """What one step of training edits, asks in other words, and must keep."""

    edits: Sequence[Example]
    rephrases: Sequence[Example]
    locality: Sequence[Example]


def meta_batches(
    model: CausalLM,
    tok: Tokenizer,
    facts: Sequence[EditRequest],
    hparams: HyperNetworkHyperParams,
    steps: int,
) -> Iterator[MetaBatch]:
    """`steps` batches of `n_edits` pseudo facts, all facts before any comes again.

    A fact that the model knows already is edited to the target of another fact with a similar
    prompt, since there would be nothing to learn. `model` answers when this is called, not later,
    and only the sampled locality prompts.
    """
    generator = torch.Generator().manual_seed(hparams.seed)
    prompts = [fact.prompt for fact in facts]
    answers = _answers(model, tok, hparams, facts, prompts)
    targets = _targets(facts, answers, generator)
    samples = list(itertools.islice(_samples(facts, hparams.n_edits, generator), steps))
    answers |= _answers(
        model, tok, hparams, facts, [text for sample in samples for text in sample.locality]
    )

    def examples(texts: Sequence[str], answers: Sequence[str]) -> list[Example]:
        pairs = zip(texts, answers, strict=True)
        return [hparams.example(tok, prompt, target) for prompt, target in pairs]

    def batch(sample: _Sample) -> MetaBatch:
        chosen_targets = [targets[i] for i in sample.chosen]
        return MetaBatch(
            examples([facts[i].prompt for i in sample.chosen], chosen_targets),
            examples(sample.rephrases, chosen_targets),
            examples(sample.locality, [answers[prompt] for prompt in sample.locality]),
        )

    return map(batch, samples)


class _Sample(NamedTuple):
    chosen: list[int]
    rephrases: list[str]
    locality: list[str]


def _samples(
    facts: Sequence[EditRequest], count: int, generator: torch.Generator
) -> Iterator[_Sample]:
    """Facts of each step, one rephrase of each and, where it has any, one locality prompt."""

    def one_of(texts: Sequence[str]) -> str:
        return texts[int(torch.randint(len(texts), (), generator=generator))]

    count, left = min(count, len(facts)), torch.empty(0, dtype=torch.long)
    while True:
        if len(left) < count:  # what is left of a round is dropped, as in the authors' code
            left = torch.randperm(len(facts), generator=generator)
        chosen, left = left[:count].tolist(), left[count:]
        rephrases = [one_of(facts[i].rephrases) for i in chosen]
        locality = [one_of(texts) for i in chosen if (texts := facts[i].locality_prompts)]
        yield _Sample(chosen, rephrases, locality)


def _answers(
    model: CausalLM,
    tok: Tokenizer,
    hparams: HyperNetworkHyperParams,
    facts: Sequence[EditRequest],
    prompts: Sequence[str],
) -> dict[str, str]:
    """Greedy answers by prompt, in as many tokens as the facts' targets need."""
    unique = list(dict.fromkeys(prompts))
    wrapped = [in_template(hparams.prompt_template, prompt) for prompt in unique]
    lengths = [len(hparams.example(tok, fact.prompt, fact.target_new).target) for fact in facts]
    length = max(_ANSWER_TOKENS, *lengths)
    answers = batched_answers(model, tok, wrapped, length, rows=hparams.rows_at_once)
    return dict(zip(unique, answers, strict=True))


def _targets(
    facts: Sequence[EditRequest], answers: dict[str, str], generator: torch.Generator
) -> list[str]:
    """Each fact's target, or that of a similar prompt where the model answers with it already."""
    prompt_words = [words(fact.prompt) for fact in facts]
    targets = []
    for row, fact in enumerate(facts):
        target = fact.target_new
        if answers[fact.prompt].startswith(target):
            some = torch.randperm(len(facts), generator=generator)[:_CANDIDATES].tolist()
            shared = {
                o: len(prompt_words[o] & prompt_words[row])
                for o in some
                if facts[o].target_new != target
            }
            target = facts[max(shared, key=shared.__getitem__, default=row)].target_new
        targets.append(target)
    return targets
