"""`meg-editor demo --model M`: edit a pretrained LLM in front of the reader."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meg_editor.cli.hparams import check_sources
from meg_editor.cli.lost_edits import check_nothing_is_lost
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.familiar import familiar_cases
from meg_editor.evaluation.metrics import normalise
from meg_editor.fitting.pipeline import fit
from meg_editor.lm.answers import batched_answers
from meg_editor.lm.chat import in_chat
from meg_editor.lm.loading import load_model, resolve_device
from meg_editor.model.meg_model import MeGModel

INSTRUCTION = "Answer in one word."
_TOKENS = 12  # of an answer
_WIDTHS = (12, 52, 30, 30)


@dataclass(frozen=True)
class Asked:
    """A question before and after the edits.

    Attributes:
        kind: edited, paraphrase, in chat or neighbour.
        target: the new answer; None where the old one must stay.
    """

    kind: str
    prompt: str
    target: str | None
    before: str
    after: str

    @property
    def is_right(self) -> bool:
        """Whether the answer after the edits is the target, or else the one before."""
        expected = self.before if self.target is None else self.target
        return normalise(self.after) == normalise(expected)


def run_pretrained(
    options: argparse.Namespace, say: Callable[[str], None] = print
) -> tuple[MeGModel, list[Asked]]:
    """Edit familiar facts of the model, ask it before and after, and save the edits in --out.

    Raises:
        ValueError: more facts than there are, or a preset, which is of the reference model.
        OSError: no such model or encoder.
    """
    if options.preset:
        raise ValueError("--preset is of the reference model: leave it out beside --model")
    cases = familiar_cases() if options.edits is None else familiar_cases(options.edits)
    encoder = {"encoder_name": options.encoder} if options.encoder else {}
    hparams = MeGHyperParams(
        model_name=options.model,
        device=resolve_device(options.device),
        seed=options.seed,
        **encoder,
    )
    check_sources(hparams)
    folder: Path = options.out / "model"
    requests = [case.request for case in cases]
    check_nothing_is_lost(folder, requests, str(folder))
    model, tokenizer = load_model(hparams)
    say(f"{len(cases)} facts of {options.model} get a new answer. Its weights stay as they are.\n")
    edited, report = fit(model, tokenizer, requests, hparams)
    questions: list[tuple[str, str, str | None]] = []
    for case in cases:
        request = case.request
        questions.append(("edited", request.prompt, request.target_new))
        questions += [("paraphrase", text, request.target_new) for text in case.paraphrases]
        if getattr(tokenizer, "chat_template", None):
            questions.append(("in chat", f"{request.prompt} {INSTRUCTION}", request.target_new))
        questions += [("neighbour", p.prompt, None) for ps in case.locality.values() for p in ps]
    prompts = [
        in_chat(tokenizer, ("user", text)) if kind == "in chat" else text
        for kind, text, _ in questions
    ]
    before = batched_answers(edited.base, tokenizer, prompts, _TOKENS)
    after = batched_answers(edited, tokenizer, prompts, _TOKENS)
    asked = [
        Asked(*question, old, new)
        for question, old, new in zip(questions, before, after, strict=True)
    ]
    say(table(asked))
    seconds = sum(report.seconds.values())
    say(f"\nfitted in {seconds:.0f} s, {seconds / len(cases):.1f} s a fact")
    edited.save_pretrained(folder)
    say(f'\nAsk it yourself: meg-editor ask {folder} "{cases[0].paraphrases[0]}" --base')
    return edited, asked


def table(asked: list[Asked]) -> str:
    """Every question with both answers, a mark where it went wrong, and the counts by kind."""
    lines = [_line("", "question", "before", "after")]
    for question in asked:
        wrong = "" if question.is_right else "  <- wrong"
        row = _line(question.kind, question.prompt, question.before, question.after)
        lines += ["", row + wrong] if question.kind == "edited" else [row + wrong]
    lines.append("")
    for kind in dict.fromkeys(question.kind for question in asked):
        right = [question.is_right for question in asked if question.kind == kind]
        text = "unchanged" if kind == "neighbour" else "with the new answer"
        lines.append(f"{kind:{_WIDTHS[0]}} {sum(right)} of {len(right)} {text}")
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return " ".join(
        f"{cut(cell, width):{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)
    ).rstrip()


def cut(text: str, width: int) -> str:
    """The text on one line, at most `width` characters of it.

    Example:
        >>> cut("Alexander Graham Bell", 10)
        'Alexander…'
    """
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
