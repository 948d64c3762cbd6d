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
    nearest = repr(model.edits[routed.edit].prompt) if model.edits else "there are none"
    state = f"an edit: {nearest}" if routed.is_edit else f"not an edit (nearest: {nearest})"
    sign = "≥" if routed.is_edit else "<"
    print(f"  [{state}, score {routed.score:.3f} {sign} {routed.threshold:.3f}]")
    if options.explain:
        print("\n".join(f"  {line}" for line in explained(model, question)))
    if options.base:
        prompt = model.reader.wrap(question)
        limit = options.max_new_tokens or ANSWER_TOKENS
        answers = greedy_answers(model.base, model.tokenizer, [prompt], limit)
        print(f"  [unedited: {answers[0]}]")


def explained(model: MeGModel, prompt: str) -> list[str]:
    """Lines which say why a prompt is routed as it is.

    Example:
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, _ = fit(*load_model(hparams), facts, hparams)
        >>> print("\\n".join(explained(edited, "The capital of France is")))
        read as: 'The capital of France is'
        spans: 'The capital of France is'
        edit c43ba61823cf 'The capital of France is' by 'The capital of France is': ...
        decided by ...
    """
    routing = model.route(prompt)
    routed = routing[0]
    given = model.reader.read(prompt)
    read = given.of_spans(routing.spans[0])
    spans = read.spans if model.verifier else read.closing
    lines = [f"read as: {read.text!r}", f"spans: {', '.join(map(repr, spans))}"]
    if given.system and model.verifier and model.verifier.system is not None:
        lines.append(f"under the system text: {given.system!r}")
    for candidate in routed.candidates:
        edit = model.edits[candidate.edit]
        verified = f", verified {candidate.verified:.3f}" if model.verifier else ""
        verified = verified if candidate.named else ", its subject is not named"
        lines.append(
            f"edit {edit.id} {edit.prompt!r} by {candidate.span!r}: similarity "
            f"{candidate.similarity:.3f}{verified}"
        )
    judge = "the verifier" if model.verifier else f"the {model.hparams.gate} gate"
    sign = "≥" if routed.is_edit else "<"
    lines.append(f"decided by {judge}: {routed.score:.3f} {sign} {routed.threshold:.3f}")
    return lines


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
