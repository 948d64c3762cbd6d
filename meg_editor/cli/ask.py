"""`meg-editor ask`: one question, or a prompt, to an edited model."""

from __future__ import annotations

import argparse
import sys

from meg_editor.lm.loading import resolve_device
from meg_editor.lm.tokens import greedy_answers
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.routed_model import ANSWER_TOKENS


def run(options: argparse.Namespace) -> None:
    """Print each answer, how it was routed, and with --base the unedited answer."""
    if options.question is not None and not options.question.strip():
        raise ValueError("the question is empty")
    model = MeGModel.from_pretrained(options.folder, device=resolve_device(options.device))
    if options.question is not None:
        _answer(model, options.question, options)
        return
    print(f"{len(model.edits)} edits. Ask; an empty line ends.", file=sys.stderr)
    while question := _line():
        _answer(model, question, options)


def _answer(model: MeGModel, question: str, options: argparse.Namespace) -> None:
    routed = model.route(question)[0]
    print(model.answer(question, options.max_new_tokens)[0])
    nearest = model.edits[routed.edit].prompt
    state = f"an edit: {nearest!r}" if routed.is_edit else f"not an edit (nearest: {nearest!r})"
    sign = "≥" if routed.is_edit else "<"
    print(f"  [{state}, score {routed.score:.3f} {sign} {routed.threshold:.3f}]")
    if options.base:
        prompt = model.reader.wrap(question)
        limit = options.max_new_tokens or ANSWER_TOKENS
        answers = greedy_answers(model.base, model.tokenizer, [prompt], limit)
        print(f"  [unedited: {answers[0]}]")


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
