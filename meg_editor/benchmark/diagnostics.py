"""Diagnostics beside the six metrics: fluency, perplexity, long answers, chains, gate scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meg_editor.data.cases import EvaluationCase, MultiHopCase
from meg_editor.evaluation import MAX_NEW_TOKENS, Evaluation, Question
from meg_editor.evaluation.edit_conflicts import near_duplicates
from meg_editor.evaluation.fluency import ngram_entropy, perplexity
from meg_editor.evaluation.long_answers import embedding_similarity, rouge_l, token_recall, tokens
from meg_editor.evaluation.metrics import METRICS
from meg_editor.evaluation.multi_hop import multi_hop_scores
from meg_editor.lm.answers import batched_answers, greedy_options
from meg_editor.lm.devices import input_device
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.tokens import by_length, encode_example, left_padded
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.prompts import PromptReader

_LONG = 20  # mean words of a target, from which exact match is too strict
_TEXTS, _CONTINUED, _NEW_TOKENS = 200, 64, 48
_BINS = 40

Encode = Callable[[Sequence[str]], Tensor]


def diagnose(
    model: CausalLM,
    tokenizer: Tokenizer,
    cases: Sequence[EvaluationCase],
    questions: Sequence[Question],
    evaluation: Evaluation,
    chains: Sequence[MultiHopCase] = (),
    encode: Encode | None = None,
    reader: PromptReader | None = None,
) -> dict[str, Any]:
    """Entries of a cell beside the metrics; each is there only where it means something.

    `perplexity` is of locality questions with the unedited model's answers, `fluency` the n-gram
    entropy in bits of `model` going on after edited prompts, `long_answers` for answers that are
    paragraphs, `multi_hop` for chains of facts, `near_duplicates` and `gate_scores` for a MeGModel.

    Args:
        model: edited by any method.
        chains: those of which every edit is among `cases`.
        encode: texts -> unit vectors (B, E), for the similarity of long answers.
        reader: as for `evaluate`.
    """
    reader = reader or PromptReader(tokenizer)
    edited_prompts = [reader.wrap(case.request.prompt) for case in cases[:_CONTINUED]]
    entries: dict[str, Any] = {"fluency": _fluency(model, tokenizer, edited_prompts)}
    untouched = [q for q in questions if q.family == "locality" and q.target][:_TEXTS]
    if untouched:
        queries = [reader.wrap(question.prompt) for question in untouched]
        texts = [f"{query} {q.target}" for query, q in zip(queries, untouched, strict=True)]
        entries["perplexity"] = perplexity(model, tokenizer, texts, queries=queries)
    if fmean(len(tokens(case.request.target_new)) for case in cases) >= _LONG:
        entries["long_answers"] = _long_answers(questions, evaluation, encode)
    if chains:
        entries["multi_hop"] = _multi_hop(model, tokenizer, cases, chains, reader)
    if isinstance(model, MeGModel):
        close = near_duplicates(model.edits, model.anchors)
        entries["near_duplicates"] = {
            "pairs": len(close),
            "contradictory": sum(pair.contradictory for pair in close),
        }
        entries["gate_scores"] = {
            "measure": model.router.measure,
            "threshold": model.router.threshold,
            **score_histogram(questions, evaluation.gate_scores),
        }
    return entries


def score_histogram(questions: Sequence[Question], scores: Sequence[float]) -> dict[str, Any]:
    """Gate scores of edited prompts, paraphrases and others in common bins.

    Returns:
        `edges` (bins + 1) and, for each of the metrics' names, counts (bins).
    """
    groups = {
        metric: [s for q, s in zip(questions, scores, strict=True) if q.family == metric]
        for metric in METRICS
    }
    every = [score for group in groups.values() for score in group]
    edges = np.histogram_bin_edges(every, _BINS)
    counts = {name: np.histogram(group, edges)[0].tolist() for name, group in groups.items()}
    return {"edges": edges.tolist(), **counts}


@torch.no_grad()
def _fluency(model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[str]) -> float:
    options = greedy_options(tokenizer, _NEW_TOKENS, _NEW_TOKENS)
    entropies = []
    for rows in by_length([len(prompt) for prompt in prompts], 32):
        batch = left_padded(tokenizer, [prompts[row] for row in rows], input_device(model))
        output = model.generate(**batch, **options)
        new = output[:, batch["input_ids"].shape[1] :]
        entropies += [
            ngram_entropy(tokenizer.decode(row, skip_special_tokens=True)) for row in new.tolist()
        ]
    return fmean(entropies)


def _long_answers(
    questions: Sequence[Question], evaluation: Evaluation, encode: Encode | None
) -> dict[str, dict[str, float]]:
    """In percent, for edited prompts and for paraphrases."""
    metrics = {}
    for metric in ("reliability", "generality"):
        pairs = [
            (text, question.target)
            for text, question in zip(evaluation.answers.texts, questions, strict=True)
            if question.kind == metric
        ]
        if not pairs:
            continue
        entry = {
            "token_recall": 100 * fmean(token_recall(*pair) for pair in pairs),
            "rouge_l": 100 * fmean(rouge_l(*pair) for pair in pairs),
        }
        if encode:
            answers, targets = zip(*pairs, strict=True)
            entry["embedding_similarity"] = 100 * embedding_similarity(answers, targets, encode)
        metrics[metric] = entry
    return metrics


def _multi_hop(
    model: CausalLM,
    tokenizer: Tokenizer,
    cases: Sequence[EvaluationCase],
    chains: Sequence[MultiHopCase],
    reader: PromptReader,
) -> Mapping[str, float]:
    edited = model if isinstance(model, RoutedModel) else None
    targets = {case.request.prompt: case.request.target_new for case in cases}
    probes = [hop.answers for chain in chains for hop in chain.hops]
    names = [answers[0] for answers in (*probes, *(c.answers for c in chains)) if answers]
    right = [*targets.values(), *names]
    lengths = (len(encode_example(tokenizer, "", text).target) for text in right)
    limit = max(MAX_NEW_TOKENS, *lengths)

    def answer(queries: Sequence[str]) -> Sequence[str]:
        if edited is None:
            prompts = [reader.wrap(query) for query in queries]
            return batched_answers(model, tokenizer, prompts, limit)
        return batched_answers(
            edited,
            tokenizer,
            [edited.reader.wrap(query) for query in queries],
            limit,
            lambda rows: edited.routed([queries[row] for row in rows]),
        )

    return {"chains": len(chains), **asdict(multi_hop_scores(answer, chains, targets))}
