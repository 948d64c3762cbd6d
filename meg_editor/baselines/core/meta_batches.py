"""Which pseudo facts each step of training a hypernetwork edits, asks about and must keep."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from meg_editor.baselines.core.hypernetwork import HyperNetworkHyperParams
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import Example, batched_answers
from meg_editor.requests.request import EditRequest
from meg_editor.routing.subject_names import words

_ANSWER_TOKENS = 12  # of the model's own answers, at most; more if some target is longer
_CANDIDATES = 1000  # facts among which one with a similar prompt is looked for, at most


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

    Where the model knows a fact already, it is edited to the target of another fact with a similar
    prompt: from what it knows there is nothing to learn. `model` is asked at once, not later, and
    about no other locality prompts than those drawn.
    """
    generator = torch.Generator().manual_seed(hparams.seed)
    prompts = [fact.prompt for fact in facts]
    answers = _answers(model, tok, hparams, facts, prompts)
    targets = _targets(facts, answers, generator)
    drawn = list(itertools.islice(_draws(facts, hparams.n_edits, generator), steps))
    answers |= _answers(model, tok, hparams, facts, [text for draw in drawn for text in draw.kept])

    def examples(texts: Sequence[str], wanted: Sequence[str]) -> list[Example]:
        pairs = zip(texts, wanted, strict=True)
        return [hparams.example(tok, prompt, target) for prompt, target in pairs]

    def batch(draw: _Draw) -> MetaBatch:
        wanted = [targets[i] for i in draw.chosen]
        return MetaBatch(
            examples([facts[i].prompt for i in draw.chosen], wanted),
            examples(draw.rephrases, wanted),
            examples(draw.kept, [answers[prompt] for prompt in draw.kept]),
        )

    return map(batch, drawn)


class _Draw(NamedTuple):
    chosen: list[int]
    rephrases: list[str]
    kept: list[str]


def _draws(facts: Sequence[EditRequest], count: int, generator: torch.Generator) -> Iterator[_Draw]:
    """Facts of each step, one rephrase of each and, where it has any, one locality prompt."""

    def one_of(texts: Sequence[str]) -> str:
        return texts[int(torch.randint(len(texts), (), generator=generator))]

    count, left = min(count, len(facts)), torch.empty(0, dtype=torch.long)
    while True:
        if len(left) < count:  # what is left of a round is dropped, as in the authors' code
            left = torch.randperm(len(facts), generator=generator)
        chosen, left = left[:count].tolist(), left[count:]
        rephrases = [one_of(facts[i].rephrases) for i in chosen]
        kept = [one_of(texts) for i in chosen if (texts := facts[i].locality_prompts)]
        yield _Draw(chosen, rephrases, kept)


def _answers(
    model: CausalLM,
    tok: Tokenizer,
    hparams: HyperNetworkHyperParams,
    facts: Sequence[EditRequest],
    prompts: Sequence[str],
) -> dict[str, str]:
    """What the model says to each of `prompts`, in as many tokens as the facts' targets need."""
    asked = list(dict.fromkeys(prompts))
    wrapped = [hparams.prompt_template.replace("{}", prompt) for prompt in asked]
    lengths = [len(hparams.example(tok, fact.prompt, fact.target_new).target) for fact in facts]
    length = max(_ANSWER_TOKENS, *lengths)
    told = batched_answers(model, tok, wrapped, length, rows=hparams.rows_at_once)
    return dict(zip(asked, told, strict=True))


def _targets(
    facts: Sequence[EditRequest], answers: dict[str, str], generator: torch.Generator
) -> list[str]:
    """Each fact's target, or where the model says that already, one of a similar prompt."""
    asked = [words(fact.prompt) for fact in facts]
    targets = []
    for row, fact in enumerate(facts):
        target = fact.target_new
        if answers[fact.prompt].startswith(target):
            some = torch.randperm(len(facts), generator=generator)[:_CANDIDATES].tolist()
            shared = {o: len(asked[o] & asked[row]) for o in some if facts[o].target_new != target}
            target = facts[max(shared, key=shared.__getitem__, default=row)].target_new
        targets.append(target)
    return targets
