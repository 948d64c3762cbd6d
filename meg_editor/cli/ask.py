"""`meg-editor ask`: one question, or a prompt, to an edited model."""

from __future__ import annotations

import argparse
import sys

from meg_editor.lm.loading import resolve_device
from meg_editor.lm.tokens import greedy_answers
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saving import from_pretrained


def run(options: argparse.Namespace) -> None:
    """Print each answer, how it was routed, and with --base the unedited answer."""
    if options.question is not None and not options.question.strip():
        raise ValueError("the question is empty")
    model = from_pretrained(options.folder, device=resolve_device(options.device))
    if options.question is not None:
        _answer(model, options.question, options)
        return
    print(f"{len(model.edits)} edits. Ask; an empty line ends.", file=sys.stderr)
    while question := _line():
        _answer(model, question, options)


def _answer(model: MeGModel, question: str, options: argparse.Namespace) -> None:
    routing = model.route(question)
    print(model.answer(question, options.max_new_tokens)[0])
    is_edit, score = bool(routing.is_edit[0]), float(routing.score[0])
    nearest = model.edits[int(routing.nearest[0])].prompt
    state = f"an edit: {nearest!r}" if is_edit else f"not an edit (nearest: {nearest!r})"
    print(f"  [{state}, score {score:.3f} {'≥' if is_edit else '<'} {routing.threshold:.3f}]")
    if options.base:
        prompt = model.reader.wrap(question)
        answers = greedy_answers(model.base, model.tokenizer, [prompt], options.max_new_tokens)
        print(f"  [unedited: {answers[0]}]")


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
