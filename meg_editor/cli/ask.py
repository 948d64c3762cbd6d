"""`meg-editor ask`: one question, or a prompt, to an edited model."""

from __future__ import annotations

import argparse
import sys

from meg_editor.lm.answers import greedy_answers
from meg_editor.model.explanation import Explanation
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.routed_model import ANSWER_TOKENS
from meg_editor.routing.routing import ReadWith, RoutedQuery

_READ: dict[ReadWith, str] = {
    "turn": "",
    "dialogue": ", with the turns before",
    "system": ", with the system text",
}


def run(options: argparse.Namespace) -> None:
    """Print each answer, how it was routed, and with --base the unedited answer."""
    if options.question is not None and not options.question.strip():
        raise ValueError("the question is empty")
    model = MeGModel.from_pretrained(options.folder, base=options.model, device=options.device)
    if options.question is not None:
        _answer(model, options.question, options)
        return
    print(f"{len(model.edits)} edits. Ask; an empty line ends.", file=sys.stderr)
    while question := _line():
        _answer(model, question, options)


def _answer(model: MeGModel, question: str, options: argparse.Namespace) -> None:
    why = Explanation.of(model, question)
    print(model.answer(question, options.max_new_tokens)[0])
    nearest = repr(why.nearest.prompt) if why.nearest else "there are none"
    state = f"an edit: {nearest}" if why.routed.is_edit else f"not an edit (nearest: {nearest})"
    print(f"  [{state}, score {_compared(why.routed)}]")
    if options.explain:
        print("\n".join(f"  {line}" for line in explained(why, model.hparams.gate)))
    if options.base:
        prompt = model.reader.wrap(question)
        limit = options.max_new_tokens or ANSWER_TOKENS
        answers = greedy_answers(model.base, model.tokenizer, [prompt], limit)
        print(f"  [unedited: {answers[0]}]")


def explained(why: Explanation, gate: str) -> list[str]:
    """Lines which say why a prompt is routed as it is; `gate`: of the hyper-parameters.

    Example:
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, _ = fit(*load_model(hparams), facts, hparams)
        >>> why = Explanation.of(edited, "The capital of France is")
        >>> print("\\n".join(explained(why, hparams.gate)))
        read as: 'The capital of France is'
        spans: 'The capital of France is'
        edit c43ba61823cf 'The capital of France is' by 'The capital of France is': ...
        decided by ...
    """
    lines = [f"read as: {why.text!r}", f"spans: {', '.join(map(repr, why.spans))}"]
    if why.system:
        lines.append(f"under the system text: {why.system!r}")
    if why.goes_back is not None and why.goes_back < 0:
        lines.append(f"goes back to no earlier turn: {why.goes_back:.3f} < 0")
    for edit, candidate in why.considered:
        verdict = candidate.verdict or (", not verified" if why.verified else "")
        lines.append(
            f"edit {edit.id} {edit.prompt!r} by {candidate.span!r}: similarity "
            f"{candidate.similarity:.3f}{verdict}"
        )
    judge = "the verifier" if why.verified else f"the {gate} gate"
    lines.append(f"decided by {judge}{_READ[why.routed.read_with]}: {_compared(why.routed)}")
    return lines


def _compared(routed: RoutedQuery) -> str:
    sign = "≥" if routed.is_edit else "<"
    return f"{routed.score:.3f} {sign} {routed.threshold:.3f}"


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
